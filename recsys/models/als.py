"""iALS: matrix factorisation over all cells of the matrix, by alternating least squares.

Hu, Koren & Volinsky, "Collaborative Filtering for Implicit Feedback Datasets" (ICDM 2008); Rendle, Krichene,
Zhang & Koren, "Revisiting the Performance of iALS on Item Recommendation Benchmarks" (arXiv 2110.14037).
Shapes in names: U users, I items, R rows of the side being solved, N rows of the other, D dim, Z pairs.
"""

from __future__ import annotations

import math
import time
import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.models.base import Report, Retriever, no_report
from recsys.schema import Interactions, Schema, UserBatch

GRAM_BLOCK = 65536  # rows widened to float64 at a time
FOLD_IN_TOLERANCE = 1e-6  # preconditioned residual at which a folded-in user is solved, relative to the first
TINY = torch.finfo(torch.float32).tiny
UNOBSERVED_SHARE = 3.0  # default weight of all unobserved cells, relative to all positives
RIDGE_SHARE = 0.35  # default regularization, relative to the noise of a log of this size
INITIAL_ITERATIONS = 2  # subspace iterations that the first item vectors come from


class ALS(Retriever):
    """Implicit-feedback ALS. Minimises, over all cells of the users x items matrix,

        sum_{(u, i) positive} positive_weight (1 - x_u.y_i)^2 + sum_{all others} unobserved_weight (x_u.y_i)^2
        + regularization (sum_u f_u |x_u|^2 + sum_i f_i |y_i|^2),
        f_u = (positive_weight * positives of u + unobserved_weight * items)^frequency_exponent, f_i alike,

    where items and users are counted that have a positive. Exponent 1 is the frequency-scaled
    regularisation of Rendle et al., 0 is plain L2.

    What suits a log depends on its size and density, so by default both constants follow from it:
        unobserved_weight: all other cells together weigh UNOBSERVED_SHARE times the positives.
        regularization: RIDGE_SHARE times (1/sqrt(a) + 1/sqrt(b)) / (1 + share), a and b being the mean
            positives of a user and of an item and share what was just said. A direction enters the model
            if its singular value in the matrix of positive_weight / sqrt(f_u f_i), exponent 1, exceeds the
            regularization, and the singular values of a random log of the same counts reach about that
            far. Other exponents scale it by the mean f they lack.

    The same in other notations:
        implicit (alpha, regularization): positive_weight=alpha, unobserved_weight=1, the same
            regularization, frequency_exponent=0. Then a common factor of the three changes no ranking.
        Rendle et al. (alpha_0, lambda), who fit (1 - s)^2 on positives plus alpha_0 s^2 on every cell:
            positive_weight=1, unobserved_weight=alpha_0 / (1 + alpha_0), the same regularization; their
            factors are ours over sqrt(1 + alpha_0), and f differs by that unobserved_weight.

    How a sweep works. Both sides are rotated into the eigenvectors of the fixed side's Gram matrix, which
    changes no score and no norm and makes the part that all rows' systems share diagonal. That diagonal
    preconditions conjugate gradients, run for all rows at once from the factors of the sweep before: one
    sampled dense-dense and one sparse-dense product a step, whatever the lengths of the rows. Memory is
    a few times the factors and the pairs. The first items span the leading singular vectors of the log,
    roughly, by INITIAL_ITERATIONS of subspace iteration from Gaussian vectors, which saves most sweeps.

    Users are scored by folding in the history of the batch (conjugate gradients to convergence), so
    new users and grown histories need no training.

    Args:
        schema: the sizes.
        embedding_dim: D.
        num_sweeps: updates of all users and then all items.
        regularization, frequency_exponent, positive_weight, unobserved_weight: see above.
        cg_steps: conjugate gradient steps a row and sweep.
        seed: of the initial factors.

    Raises:
        ValueError: an argument is out of its range.
    """

    scores_from_history = True
    user_factors_UD: Tensor
    item_factors_ID: Tensor
    item_energy_D: Tensor
    sweeps_done: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 64,
        num_sweeps: int = 16,
        regularization: float | None = None,
        frequency_exponent: float = 1.0,
        positive_weight: float = 1.0,
        unobserved_weight: float | None = None,
        cg_steps: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(schema)
        for name, value in (
            ("embedding_dim", embedding_dim),
            ("num_sweeps", num_sweeps),
            ("cg_steps", cg_steps),
            ("regularization", regularization),
            ("unobserved_weight", unobserved_weight),
            ("positive_weight", positive_weight),
        ):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if unobserved_weight is not None and positive_weight < unobserved_weight:
            raise ValueError(
                f"positive_weight={positive_weight} must be at least unobserved_weight={unobserved_weight}"
            )
        self.embedding_dim = embedding_dim
        self.num_sweeps = num_sweeps
        self.regularization = regularization
        self.frequency_exponent = frequency_exponent
        self.positive_weight = positive_weight
        self.unobserved_weight = unobserved_weight
        self.cg_steps = cg_steps
        self.seed = seed
        self.register_buffer("user_factors_UD", torch.zeros(schema.num_users, embedding_dim))
        self.register_buffer("item_factors_ID", torch.zeros(schema.num_items, embedding_dim))
        # The factors stand in the basis that makes the items' Gram matrix diagonal; this is its diagonal.
        self.register_buffer("item_energy_D", torch.zeros(embedding_dim))
        self.register_buffer("sweeps_done", torch.zeros((), dtype=torch.int64))

    def fit(self, interactions: Interactions, report: Report = no_report) -> None:
        """Sweep until `num_sweeps` are done, from wherever `sweeps_done` stands.

        Every report carries "train/loss", the objective after the sweep summed over all cells in float64,
        and "train/sweep_seconds".

        Raises:
            ValueError: there are no interactions, or their indices do not fit the schema.
        """
        self.observe(interactions)
        if not len(interactions):
            raise ValueError("ALS needs at least one positive pair, this training set has none")
        order_Z = torch.argsort(interactions.item_idx, stable=True)
        indptr = F.pad(torch.cumsum(self.item_counts, 0), (1, 0))
        transposed = Interactions(indptr, interactions.row_idx()[order_Z], self.schema.num_users)
        by_user, by_item = csr(interactions), csr(transposed)
        ridge_U = self._ridge(self.user_counts, self.item_counts)
        ridge_I = self._ridge(self.item_counts, self.user_counts)
        if int(self.sweeps_done) == 0:
            self.user_factors_UD.zero_()
            items_ID, _, energy_D = eigenbasis(self._initial_items(by_user, by_item), self.user_factors_UD)
            self.item_factors_ID.copy_(items_ID)
            self.item_energy_D.copy_(energy_D)
        users_UD, items_ID, energy_D = self.user_factors_UD, self.item_factors_ID, self.item_energy_D
        scores_Z = sampled_products(by_user, users_UD, items_ID)
        while int(self.sweeps_done) < self.num_sweeps:
            started = time.perf_counter()
            users_UD, scores_Z = self._solve(by_user, users_UD, items_ID, energy_D, ridge_U, scores_Z, self.cg_steps)
            users_UD, items_ID, energy_D = eigenbasis(users_UD, items_ID)
            items_ID, _ = self._solve(by_item, items_ID, users_UD, energy_D, ridge_I, scores_Z[order_Z], self.cg_steps)
            items_ID, users_UD, energy_D = eigenbasis(items_ID, users_UD)
            # Afresh from the factors, so that a resumed fit starts from the very same numbers.
            scores_Z = sampled_products(by_user, users_UD, items_ID)
            self.user_factors_UD.copy_(users_UD)
            self.item_factors_ID.copy_(items_ID)
            self.item_energy_D.copy_(energy_D)
            self.sweeps_done += 1
            measured = {
                "train/loss": self._loss(scores_Z, users_UD, items_ID, ridge_U, ridge_I),
                "train/sweep_seconds": time.perf_counter() - started,
            }
            report(int(self.sweeps_done), self.num_sweeps, measured)

    def encode_users(self, batch: UserBatch) -> Tensor:
        """Each user's least squares problem solved for the history of the batch, float [B, D].

        The history weighs what it would in training; items without a positive in train do not count.
        """
        history: Interactions = batch["history"]
        known_Z = (self.item_counts.index_select(0, history.item_idx) > 0).long()
        count_B = torch.zeros_like(history.indptr[1:]).index_add_(0, history.row_idx(), known_Z)
        start_BD = self.item_factors_ID.new_zeros(history.num_rows, self.embedding_dim)
        users_BD, _ = self._solve(
            csr(history),
            start_BD,
            self.item_factors_ID,
            self.item_energy_D,
            self._ridge(count_B, self.item_counts),
            start_BD.new_zeros(len(history)),
            steps=2 * self.embedding_dim,
            tolerance=FOLD_IN_TOLERANCE,
        )
        return users_BD

    def encode_items(self, item_idx: Tensor) -> Tensor:
        """Item vectors, float [N, D]."""
        return self.item_factors_ID.index_select(0, item_idx)

    def constants(self) -> tuple[float, float]:
        """The unobserved weight and the regularization in use; what was not given follows from the log.

        They need the counts of the training set, so they are known once it was observed.
        """
        users, items = int((self.user_counts > 0).sum()), int((self.item_counts > 0).sum())
        pairs = int(self.item_counts.sum())
        positive = self.positive_weight
        weight, ridge = self.unobserved_weight, self.regularization
        if weight is None:
            weight = min(positive, UNOBSERVED_SHARE * positive * pairs / (users * items))
        if ridge is None:
            share = weight * users * items / (positive * pairs)
            noise = (math.sqrt(users / pairs) + math.sqrt(items / pairs)) / (1 + share)
            mean_f = positive * (1 + share) * pairs / math.sqrt(users * items)
            ridge = RIDGE_SHARE * noise * mean_f ** (1 - self.frequency_exponent)
        return weight, ridge

    def _initial_items(self, by_user: Tensor, by_item: Tensor) -> Tensor:
        """Items times the roots of the singular values; those without a positive get zero, and keep it."""
        generator = torch.Generator().manual_seed(self.seed)
        items_ID = torch.randn(self.item_factors_ID.shape, generator=generator).to(self.device)
        for _ in range(INITIAL_ITERATIONS):
            users_UD, _ = orthonormal(by_user @ items_ID)
            items_ID, singular_D = orthonormal(by_item @ users_UD)
        return items_ID * singular_D.sqrt()

    def _ridge(self, count_R: Tensor, other_count_N: Tensor) -> Tensor:
        """regularization * f, float32 [R]."""
        unobserved_weight, regularization = self.constants()
        weight_R = self.positive_weight * count_R + unobserved_weight * int((other_count_N > 0).sum())
        return regularization * weight_R.float() ** self.frequency_exponent

    def _solve(
        self,
        matrix_RN: Tensor,
        x_RD: Tensor,
        y_ND: Tensor,
        energy_D: Tensor,
        ridge_R: Tensor,
        scores_Z: Tensor,
        steps: int,
        tolerance: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Preconditioned conjugate gradients on every row's normal equations,

            (unobserved_weight Y'Y + ridge + (positive_weight - unobserved_weight) Y_r'Y_r) x_r
                = positive_weight Y_r'1,  Y_r the vectors of the row's pairs.

        Args:
            matrix_RN: the pairs; its values are not used.
            x_RD: where to start; scores_Z: its products with y_ND at the pairs.
            y_ND: the fixed side, in the basis that makes Y'Y diagonal; energy_D: that diagonal.
            steps, tolerance: stop after so many steps, or once every row's residual has shrunk so far.

        Returns:
            The new x_RD and scores_Z.
        """
        unobserved_weight, _ = self.constants()
        excess = self.positive_weight - unobserved_weight
        diagonal_RD = ridge_R[:, None] + unobserved_weight * energy_D
        residual_RD = with_values(matrix_RN, self.positive_weight - excess * scores_Z) @ y_ND
        residual_RD -= diagonal_RD * x_RD
        direction_RD = residual_RD / diagonal_RD
        descent_R = row_dots(residual_RD, direction_RD)
        first_R = descent_R
        for step in range(steps):
            products_Z = sampled_products(matrix_RN, direction_RD, y_ND)
            image_RD = with_values(matrix_RN, products_Z) @ y_ND
            image_RD = torch.addcmul(excess * image_RD, diagonal_RD, direction_RD)
            # A row that is solved has direction 0 and must not become 0 / 0.
            length_R = descent_R / row_dots(direction_RD, image_RD).clamp_min(TINY)
            x_RD = torch.addcmul(x_RD, length_R[:, None], direction_RD)
            scores_Z = torch.addcmul(scores_Z, per_pair(matrix_RN, length_R), products_Z)
            if step + 1 == steps:
                break
            residual_RD.addcmul_(length_R[:, None], image_RD, value=-1.0)
            preconditioned_RD = residual_RD / diagonal_RD
            before_R, descent_R = descent_R, row_dots(residual_RD, preconditioned_RD)
            if tolerance and bool((descent_R <= tolerance**2 * first_R).all()):
                break
            momentum_R = descent_R / before_R.clamp_min(TINY)
            direction_RD = torch.addcmul(preconditioned_RD, momentum_R[:, None], direction_RD)
        return x_RD, scores_Z

    def _loss(self, scores_Z: Tensor, users_UD: Tensor, items_ID: Tensor, ridge_U: Tensor, ridge_I: Tensor) -> float:
        """The objective over all cells; items_ID in the basis that makes its Gram matrix diagonal."""
        unobserved_weight, _ = self.constants()
        scores_Z = scores_Z.double()
        user_square_UD, item_square_ID = users_UD.square(), items_ID.square()
        pairs = self.positive_weight * (1 - scores_Z).square() - unobserved_weight * scores_Z.square()
        # sum of (x_u.y_i)^2 over all cells is <X'X, Y'Y>: with Y'Y diagonal, the diagonals' product.
        cells = user_square_UD.sum(0, dtype=torch.float64) @ item_square_ID.sum(0, dtype=torch.float64)
        norms = user_square_UD.sum(1).double() @ ridge_U.double()
        norms += item_square_ID.sum(1).double() @ ridge_I.double()
        return float(pairs.sum() + unobserved_weight * cells + norms)


def csr(pairs: Interactions) -> Tensor:
    """The pairs as a sparse CSR tensor of ones, float32 [rows, num_items].

    Raises:
        ValueError: an item lies outside the range; unchecked it would read foreign memory.
    """
    item_idx = pairs.item_idx
    if len(pairs):
        low, high = int(item_idx.min()), int(item_idx.max())
        if low < 0 or high >= pairs.num_items:
            raise ValueError(f"item_idx must lie in [0, {pairs.num_items}), found [{low}, {high}]")
    values = torch.ones(len(pairs), device=pairs.device)
    with warnings.catch_warnings():  # once a process: "Sparse CSR tensor support is in beta state"
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(pairs.indptr.int(), item_idx.int(), values, (pairs.num_rows, pairs.num_items))


def with_values(matrix: Tensor, values_Z: Tensor) -> Tensor:
    """The same pattern with other values."""
    return torch.sparse_csr_tensor(matrix.crow_indices(), matrix.col_indices(), values_Z, matrix.shape)


def sampled_products(matrix_RN: Tensor, x_RD: Tensor, y_ND: Tensor) -> Tensor:
    """x_r.y_n at the stored pairs (r, n), float [Z]."""
    return torch.sparse.sampled_addmm(matrix_RN, x_RD, y_ND.T, beta=0.0).values()


def per_pair(matrix_RN: Tensor, values_R: Tensor) -> Tensor:
    """A row's value at each of its pairs, [Z]."""
    return torch.repeat_interleave(values_R, matrix_RN.crow_indices().diff(), output_size=matrix_RN.values().numel())


def row_dots(a_RD: Tensor, b_RD: Tensor) -> Tensor:
    """Inner product of each row of one with the same row of the other, [R]."""
    return torch.linalg.vecdot(a_RD, b_RD)


def eigenbasis(fixed_ND: Tensor, other_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both sides rotated so that the Gram matrix of the first is diagonal, which changes none of their
    products; and that diagonal, ascending."""
    gram_DD = fixed_ND.new_zeros(fixed_ND.shape[1], fixed_ND.shape[1], dtype=torch.float64)
    for block_ND in fixed_ND.split(GRAM_BLOCK):
        block_ND = block_ND.double()
        gram_DD.addmm_(block_ND.T, block_ND)
    energy_D, rotation_DD = torch.linalg.eigh(gram_DD)
    rotation_DD = rotation_DD.to(fixed_ND.dtype)
    return fixed_ND @ rotation_DD, other_RD @ rotation_DD, energy_D.clamp_min(0).to(fixed_ND.dtype)


def orthonormal(y_ND: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of the columns' span and the lengths they had, in ascending order."""
    y_ND, _, _ = eigenbasis(y_ND, y_ND[:0])
    length_D = torch.linalg.vector_norm(y_ND, dim=0)
    return y_ND / length_D.clamp_min(TINY), length_D
