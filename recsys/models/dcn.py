"""Deep & Cross Network, version 2: polynomials of the fields, one degree more a layer, beside or below an MLP.

Wang, Shivanna, Cheng, Jain, Lin, Hong & Chi, "DCN V2: Improved Deep & Cross Network and Practical Lessons for
Web-scale Learning to Rank Systems" (WWW 2021, arXiv 2008.13535).
Shapes in names: B rows, W numbers of all fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recsys.models.base import Ranker, RowBatch
from recsys.models.layers import Dense, FieldEmbeddings
from recsys.schema import LABEL, Column


class Cross(nn.Module):
    """x_{l+1} = x_0 * (W x_l + b) + x_l, elementwise (equation 1); with low_rank W = U V^T (equation 2)."""

    def __init__(self, width: int, num_layers: int, low_rank: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(width, width)
            if low_rank is None
            else nn.Sequential(nn.Linear(width, low_rank, bias=False), nn.Linear(low_rank, width))
            for _ in range(num_layers)
        )

    def forward(self, x_BW: Tensor) -> Tensor:
        found_BW = x_BW
        for layer in self.layers:
            found_BW = torch.addcmul(found_BW, x_BW, layer(found_BW))
        return found_BW


class DCN(Ranker):
    """logit = linear of the cross layers' and the MLP's last vectors; stacked: of the MLP over the cross layers'.

    num_cross: cross layers. low_rank: rank of their matrices; None: full.
    hidden: widths of the MLP's layers. training: see `Ranker`.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        embedding_dim: int = 16,
        num_cross: int = 2,
        low_rank: int | None = 64,
        structure: Literal["stacked", "parallel"] = "stacked",
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(columns, **training)
        if structure not in ("stacked", "parallel"):
            raise ValueError(f"structure={structure}: expected stacked or parallel")
        for name, count in {"num_cross": num_cross, "low_rank": low_rank}.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self.fields = FieldEmbeddings(self.columns, embedding_dim)
        width = self.fields.width
        self.cross = Cross(width, num_cross, low_rank)
        self.deep = Dense(width, hidden, dropout)
        self.parallel = structure == "parallel"
        self.head = nn.Linear(self.deep.out_features + width * self.parallel, 1)

    def forward(self, batch: RowBatch) -> dict[str, Tensor]:
        x_BW = self.fields(batch).flatten(1)
        crossed_BW = self.cross(x_BW)
        last = torch.cat([crossed_BW, self.deep(x_BW)], 1) if self.parallel else self.deep(crossed_BW)
        return {LABEL: self.head(last).squeeze(1)}
