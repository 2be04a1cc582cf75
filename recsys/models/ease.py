"""EASE: a linear item-to-item model with a closed form.

Steck, "Embarrassingly Shallow Autoencoders for Sparse Data" (WWW 2019, arXiv 1905.03375).
Shapes in names: B batch, I items.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional as F

from recsys.models.base import Report, Retriever, no_report
from recsys.schema import Interactions, Schema, UserBatch

MATRICES_AT_PEAK = 3  # the Gram matrix, its factor and the inverse, less what LAPACK does in place
RIDGE_SHARE = 30.0  # default ridge, in square roots of the mean item count
GRAM_BLOCK = 1024  # items whose Gram rows are formed at a time


class EASE(Retriever):
    """Weights W with zero diagonal that minimise |X - X W|^2 + ridge |W|^2 over the training matrix X.

    W = I - P diag(1 / diag P), P = (X'X + ridge I)^-1: equation 8 of the paper. A user's scores are the
    sum of the rows of W that the history names.

    The best ridge grows with the item counts, which the diagonal of X'X holds, but slower than they do: on
    logs with a mean count of 11, 32 and 36 it lay at 30, 10 and 3 times that mean, and the paper's choices
    are 1 (ML-20M: 500), 0.3 (Netflix: 1000) and 0.25 times theirs (MSD: 200). By default it is
    RIDGE_SHARE times the square root of the mean count of the items seen.

    Args:
        schema: the sizes.
        ridge: weight of |W|^2; None follows from the log.
        double: invert in float64; float32 halves memory and time and is good to about 1e-3 in W.
        memory_limit_gb: refuse (10^9 bytes) rather than swap: the inverse is dense in items x items.
    """

    scores_from_history = True
    weights_II: Tensor
    steps_done: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        ridge: float | None = None,
        double: bool = True,
        memory_limit_gb: float = 8.0,
    ) -> None:
        super().__init__(schema)
        if ridge is not None and ridge <= 0:
            raise ValueError(f"ridge must be positive, or null to follow from the log, got {ridge}")
        self.ridge = ridge
        self.dtype_of_inverse = torch.float64 if double else torch.float32
        self.memory_limit_gb = memory_limit_gb
        # Sized by the fit: at construction nobody has agreed to items x items yet.
        self.register_buffer("weights_II", torch.zeros(0, 0))
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        self.weights_II = torch.empty_like(state_dict[f"{prefix}weights_II"], device=self.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def bytes_needed(self) -> int:
        """Peak memory of `fit` beyond its input."""
        return MATRICES_AT_PEAK * self.schema.num_items**2 * self.dtype_of_inverse.itemsize

    def fit(self, interactions: Interactions, report: Report = no_report) -> None:
        """Gram matrix, inverse, weights. One step.

        Raises:
            ValueError: the matrices exceed `memory_limit_gb`, or there are no interactions.
        """
        self.observe(interactions)
        if int(self.steps_done):
            return
        needed = self.bytes_needed() / 1e9
        if needed > self.memory_limit_gb:
            raise ValueError(
                f"EASE on {self.schema.num_items} items needs {needed:.1f} GB, more than "
                f"memory_limit_gb={self.memory_limit_gb}; raise it, filter items, or choose als or knn"
            )
        seen = int((self.item_counts > 0).sum())
        if not seen:
            raise ValueError("EASE needs at least one positive pair, this training set has none")
        ridge = RIDGE_SHARE * math.sqrt(len(interactions) / seen) if self.ridge is None else self.ridge
        precision_II = gram(interactions, self.dtype_of_inverse).to(self.device)
        precision_II.diagonal().add_(ridge)
        factor_II = torch.linalg.cholesky(precision_II)
        del precision_II
        inverse_II = torch.cholesky_inverse(factor_II)
        del factor_II
        inverse_II.div_(-inverse_II.diagonal().clone())  # column j by P_jj
        inverse_II.fill_diagonal_(0.0)
        self.weights_II = inverse_II.float().contiguous()  # LAPACK leaves columns together
        self.steps_done.fill_(1)
        report(1, 1, {"train/ridge": ridge})

    def score(self, batch: UserBatch) -> Tensor:
        """Summed weights of the history, float32 [B, I]."""
        history: Interactions = batch["history"]
        return F.embedding_bag(history.item_idx, self.weights_II, history.indptr, mode="sum", include_last_offset=True)


def gram(interactions: Interactions, dtype: torch.dtype) -> Tensor:
    """X'X, dense [I, I] on the CPU: how many users have both items."""
    users_UI = interactions.to_scipy()
    items_IU = csr_array(users_UI.T)
    num_items = interactions.num_items
    gram_II = torch.empty(num_items, num_items, dtype=dtype)
    for start in range(0, num_items, GRAM_BLOCK):
        block: np.ndarray = (items_IU[start : start + GRAM_BLOCK] @ users_UI).toarray()
        gram_II[start : start + GRAM_BLOCK] = torch.from_numpy(block)
    return gram_II
