"""Optimisers for large embedding tables: they touch only the rows that a step touched.

Shapes in names: R rows of a table, n entries of a sparse gradient, D dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class RowAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator a row (Duchi et al. 2011; row-wise as in Gupta et al. 2014, DLRM).

    Takes sparse gradients [R, D] and does not merge repeated rows: each entry adds its mean square to
    the row's accumulator, then all entries are applied (and scaled in place) as the accumulators then stand. That
    spares the sort of `coalesce`, and the memory is one float a row.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, eps: float = 1e-10) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a sparse gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table_RD in group["params"]:
                if table_RD.grad is None:
                    continue
                row_n, gradient_nD = table_RD.grad._indices()[0], table_RD.grad._values()
                accumulated_R = self.square(table_RD)
                square_n = torch.linalg.vector_norm(gradient_nD, dim=1).square_().div_(gradient_nD.shape[1])
                accumulated_R.index_add_(0, row_n, square_n)
                rate_n = accumulated_R.index_select(0, row_n).add_(group["eps"]).rsqrt_().mul_(-group["lr"])
                table_RD.index_add_(0, row_n, gradient_nD.mul_(rate_n[:, None]))
        return loss

    def square(self, table_RD: Tensor) -> Tensor:
        """The accumulator of each row of a table, float32 [R]."""
        state = self.state[table_RD]
        if not state:
            state["square"] = torch.zeros(len(table_RD), device=table_RD.device)
        return state["square"]
