"""Bayesian logistic regression over the fields: a Gaussian for every weight, learnt in one pass and on from there.

Shapes in names: B rows, R indices of all columns, V numbers and the bias, J = R + V weights, W of them in a batch,
n places of a batch that are filled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.models import losses
from recsys.models.base import Ranker, RowBatch
from recsys.models.layers import Lookups, Numbers
from recsys.schema import LABEL, Column

_NEAR = 1e-4  # a step this short ends the search: squared, in standard deviations of the posterior
_CG_STEPS, _CG_REDUCTION = 50, 1e-2  # of each Newton step's system


class BayesLogistic(Ranker):
    """p(label | x, w) = sigmoid(w.x), w_j ~ N(m_j, 1 / q_j) independent; at first m_j = 0, q_j = 1 / prior_variance.

    A batch is learnt from once (Chapelle and Li, NeurIPS 2011, algorithm 3):

        m  <-  argmin_w  sum_j q_j (w_j - m_j)^2 / 2  +  sum_b log loss(w.x_b, y_b)
        q_j  <-  q_j + sum_b x_bj^2 p_b (1 - p_b),  p_b = sigmoid(m.x_b) at the new m

    Before it, what is known fades, as if older rows had counted for less by `forgetting` a batch (Graepel et al., ICML
    2010, "dynamics"): q' = forgetting q + (1 - forgetting) / prior_variance, m' = forgetting q m / q'. So about
    batch_size / (1 - forgetting) rows are remembered; that is for rows in order of time (`update`), whereas training
    shuffles its rows.

    A prediction is moderated by what is not known (MacKay 1992): with mean mu = m.x and variance s^2 = sum x_j^2 / q_j
    the logit is mu / sqrt(1 + pi s^2 / 8). As weights count as independent, s^2 is too large where some always meet,
    which makes rare positives look a little less rare.

    An index of a column has a weight of its own, also where columns share a table; a list of n indices or numbers
    counts 1 / sqrt(n) each, so that every field has the same variance at first. Nothing is trained by gradient: rows
    seen twice would count twice, so there is one epoch.

    Args:
        prior_variance: of each weight.
        forgetting: in (0, 1]; 1 forgets nothing.
        steps: Newton steps a batch at most; seldom are more than a few needed.
    """

    compilable = ()  # its steps are sparse
    squeeze_V: Tensor
    precision_J: Tensor
    num_updates: Tensor

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        prior_variance: float = 0.1,
        forgetting: float = 1.0,
        steps: int = 10,
        batch_size: int = 1024,
    ) -> None:
        super().__init__(columns, batch_size=batch_size, max_epochs=1)
        if not 0 < prior_variance < math.inf:
            raise ValueError(f"prior_variance must be above 0 and finite, got {prior_variance}")
        if not 0 < forgetting <= 1:
            raise ValueError(f"forgetting must lie in (0, 1], got {forgetting}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.prior_variance, self.forgetting, self.steps = prior_variance, forgetting, steps
        self.lookups = Lookups([replace(column, table=None) for column in self.columns], 1)
        self.lookups.table = None  # the weights of all kinds lie in one vector, the bias last
        self.numbers = Numbers(self.columns)
        squeeze = [width**-0.5 for width in self.numbers.widths for _ in range(width)]
        self.register_buffer("squeeze_V", torch.tensor([*squeeze, 1.0], dtype=torch.float64), persistent=False)
        self.num_indices = len(self.lookups.scratch_R)
        num_weights = self.num_indices + len(self.squeeze_V)
        self.mean_J = nn.Parameter(torch.zeros(num_weights, dtype=torch.float64))
        self.register_buffer("precision_J", torch.full((num_weights,), 1 / prior_variance, dtype=torch.float64))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: RowBatch) -> dict[str, Tensor]:
        return {LABEL: _moderated(*self.distribution(batch)).float()}

    def distribution(self, batch: RowBatch) -> tuple[Tensor, Tensor]:
        """Mean and variance of each row's w.x, float64 [B]."""
        design = self.design(batch)
        return design.times(self.mean_J), design.squared().times(1 / self.precision_J)

    @torch.no_grad()
    def sample(self, batch: RowBatch, generator: torch.Generator | None = None) -> Tensor:
        """Logits under weights drawn once for the whole batch, float32 [B]: Thompson sampling.

        What rows have in common, as an item, has one weight in all of them. The draw does not depend on the rows: equal
        states of the generator give equal weights, for a catalogue that comes in several batches.
        """
        noise_J = torch.randn(len(self.mean_J), dtype=torch.float64, device=self.device, generator=generator)
        return self.design(batch).times(self.mean_J + noise_J * self.precision_J.rsqrt()).float()

    def observe(self, num_rows: int) -> None:
        if self.max_epochs != 1:
            raise ValueError(f"max_epochs must be 1, got {self.max_epochs}: rows seen twice would count twice")
        super().observe(num_rows)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return []

    def train_steps(self, chunk: dict[str, Any], optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
        """Learn from the batches of a chunk; the mean loss of each before it was learnt from."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for s in range(len(chunk["rows"][LABEL])):
            total += self._learn({name: rows[s] for name, rows in chunk["rows"].items()})
        return (total / len(chunk["rows"][LABEL])).float()

    def update(self, rows: RowBatch) -> None:
        """Go on learning, from rows with labels in their order, batch_size at a time: what training does.

        Raises:
            ValueError, IndexError: a label, a number or an index that is none; batches before it are learnt from.
        """
        for low in range(0, len(rows[LABEL]), self.batch_size):
            self._learn({name: values[low : low + self.batch_size].to(self.device) for name, values in rows.items()})

    @torch.no_grad()
    def _learn(self, batch: RowBatch) -> Tensor:
        """Learn from a batch; its mean log loss as predicted before."""
        label_B = _labels(batch)
        design = self.design(batch)
        used_R, weight_n = design.weight_n.unique(return_inverse=True)
        used_W = torch.cat([used_R, torch.arange(self.num_indices, len(self.mean_J), device=self.device)])
        design = replace(design, weight_n=weight_n, num_indices=len(used_R))
        squared = design.squared()
        if self.forgetting < 1:
            kept_J = self.forgetting * self.precision_J
            torch.add(kept_J, (1 - self.forgetting) / self.prior_variance, out=self.precision_J)
            self.mean_J.mul_(kept_J / self.precision_J)
        mean_W, precision_W = self.mean_J[used_W], self.precision_J[used_W]
        logits_B = _moderated(design.times(mean_W), squared.times(1 / precision_W))
        loss = losses.log_loss(logits_B, label_B).mean()
        mode_W = posterior_mode(design, label_B, mean_W, precision_W, self.steps)
        p_B = design.times(mode_W).sigmoid()
        added_W = squared.transposed_times(p_B * (1 - p_B))
        if not bool((loss + mode_W.sum() + added_W.sum()).isfinite()):
            raise ValueError(f"the weights are not finite by update {int(self.num_updates)}: scale the numbers down")
        self.mean_J[used_W] = mode_W
        self.precision_J[used_W] = precision_W + added_W
        self.num_updates += 1
        return loss

    def design(self, batch: RowBatch) -> Design:
        """The values of a batch as a matrix, a column a weight."""
        x_BV = self.numbers(batch).double()
        numbers_BV = torch.cat([x_BV, x_BV.new_ones(len(x_BV), 1)], 1) * self.squeeze_V
        if not self.lookups.fields:
            none_n = torch.zeros(0, dtype=torch.int64, device=self.device)
            return Design(none_n, none_n, none_n.double(), numbers_BV, 0)
        weight_n, counts_BF = self.lookups.places(batch)
        counts, num_fields = counts_BF.view(-1), counts_BF.shape[1]
        bag_n = torch.arange(len(counts), device=self.device).repeat_interleave(counts)
        # An index that a list holds twice is one place, with twice the value.
        place_n, merged_n = (bag_n // num_fields * self.num_indices + weight_n).unique(return_inverse=True)
        x_n = torch.zeros(len(place_n), dtype=torch.float64, device=self.device)
        x_n.index_add_(0, merged_n, counts.double().rsqrt()[bag_n])
        return Design(place_n // self.num_indices, place_n % self.num_indices, x_n, numbers_BV, self.num_indices)


@dataclass(frozen=True)
class Design:
    """The values of features as a matrix X, a row of the batch by a weight: x_n at (row_n, weight_n), no place twice,
    for num_indices weights, and then numbers_BV."""

    row_n: Tensor
    weight_n: Tensor
    x_n: Tensor
    numbers_BV: Tensor
    num_indices: int

    def times(self, w_W: Tensor) -> Tensor:
        """X w, [B]."""
        logits_B = self.numbers_BV @ w_W[self.num_indices :]
        return logits_B.index_add(0, self.row_n, self.x_n * w_W[self.weight_n])

    def transposed_times(self, r_B: Tensor) -> Tensor:
        """X' r, [W]."""
        indices_R = r_B.new_zeros(self.num_indices).index_add_(0, self.weight_n, self.x_n * r_B[self.row_n])
        return torch.cat([indices_R, r_B @ self.numbers_BV])

    def squared(self) -> Design:
        """Of the squares of the values."""
        return replace(self, x_n=self.x_n.square(), numbers_BV=self.numbers_BV.square())


def posterior_mode(design: Design, label_B: Tensor, mean_W: Tensor, precision_W: Tensor, steps: int) -> Tensor:
    """argmin_w of sum q (w - m)^2 / 2 + sum log loss(Xw, y), float64 [W].

    Newton steps, each by conjugate gradients, as weights that are active together cannot be moved one by one; of a
    step that share 1, 1/2, 1/4, ... or 0 is taken that makes the objective least: it never rises. Where little of a
    step is of use, as where sigmoids are flat on the wrong side, the next goes by their sharpest quadratic bound, of
    curvature (p - 1/2) / z (Jaakkola and Jordan 2000), whose whole step is sure to fall.
    """
    w_W, squared, bounded = mean_W.clone(), design.squared(), False
    share_T = torch.cat([0.5 ** torch.arange(6, dtype=w_W.dtype), torch.zeros(1, dtype=w_W.dtype)]).to(w_W.device)
    for _ in range(steps):
        z_B = design.times(w_W)
        p_B = z_B.sigmoid()
        curve_B = p_B * (1 - p_B)
        if bounded:
            curve_B = torch.where(z_B.abs() < 1e-4, 0.25, (p_B - 0.5) / z_B)
        gradient_W = precision_W * (w_W - mean_W) + design.transposed_times(p_B - label_B)

        def hessian(v_W: Tensor, curve_B: Tensor = curve_B) -> Tensor:
            return precision_W * v_W + design.transposed_times(curve_B * design.times(v_W))

        step_W = _solve(hessian, -gradient_W, precision_W + squared.transposed_times(curve_B))
        z_TB = z_B + share_T[:, None] * design.times(step_W)
        pull_W = precision_W * step_W
        prior_T = share_T * (pull_W @ (w_W - mean_W)) + share_T**2 / 2 * (pull_W @ step_W)
        share = share_T[(prior_T + (F.softplus(z_TB) - z_TB * label_B).sum(1)).argmin()]
        w_W = w_W + share * step_W
        bounded = bool(share < 0.25)
        if float(-gradient_W @ step_W) < _NEAR:
            break
    return w_W


def _solve(matrix: Callable[[Tensor], Tensor], right_W: Tensor, diagonal_W: Tensor) -> Tensor:
    """matrix^-1 right, by conjugate gradients preconditioned with the diagonal."""
    found_W, residual_W = torch.zeros_like(right_W), right_W
    direction_W = residual_W / diagonal_W
    size = first = residual_W @ direction_W
    for _ in range(_CG_STEPS):
        if not bool(size > _CG_REDUCTION**2 * first):
            break
        image_W = matrix(direction_W)
        length = size / (direction_W @ image_W)
        found_W = found_W + length * direction_W
        residual_W = residual_W - length * image_W
        scaled_W = residual_W / diagonal_W
        size, before = residual_W @ scaled_W, size
        direction_W = scaled_W + size / before * direction_W
    return found_W


def _moderated(mean_B: Tensor, variance_B: Tensor) -> Tensor:
    """The logit of the mean of sigmoid(z), z ~ N(mean, variance), nearly (MacKay 1992)."""
    return mean_B / (1 + math.pi / 8 * variance_B).sqrt()


def _labels(batch: RowBatch) -> Tensor:
    label_B = batch[LABEL].double()
    wrong_B = (label_B != 0) & (label_B != 1)
    if bool(wrong_B.any()):
        b = int(wrong_B.nonzero()[0])
        raise ValueError(f"{LABEL}: {float(label_B[b])} in row {b} of the batch is neither 0 nor 1")
    return label_B
