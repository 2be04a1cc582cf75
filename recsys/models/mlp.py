"""A fully connected network over the concatenated fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from recsys.models.base import Ranker, RowBatch
from recsys.models.layers import Dense, FieldEmbeddings
from recsys.schema import LABEL, Column


class MLP(Ranker):
    """logit = linear of the hidden layers of the fields (the deep part of Cheng et al. 2016, arXiv 1606.07792).

    hidden: widths of the hidden layers. training: see `Ranker`.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        embedding_dim: int = 16,
        hidden: Sequence[int] = (128, 64),
        activation: Literal["relu", "sigmoid"] = "relu",
        dropout: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(columns, **training)
        self.fields = FieldEmbeddings(self.columns, embedding_dim)
        self.deep = Dense(self.fields.width, hidden, dropout, activation)
        self.head = nn.Linear(self.deep.out_features, 1)

    def forward(self, batch: RowBatch) -> dict[str, Tensor]:
        return {LABEL: self.head(self.deep(self.fields(batch).flatten(1))).squeeze(1)}
