"""DeepFM: a factorization machine and an MLP that share their embeddings.

Guo, Tang, Ye, Li & He, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction"
(IJCAI 2017, arXiv 1703.04247).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys.models.base import Ranker, RowBatch
from recsys.models.layers import Dense, FieldEmbeddings, pairwise_products
from recsys.schema import LABEL, Column


class DeepFM(Ranker):
    """logit = FM + MLP of the concatenated fields (equation 1 of the paper).

    hidden: widths of the MLP's layers. training: see `Ranker`.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        embedding_dim: int = 16,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(columns, **training)
        self.weights = FieldEmbeddings(self.columns, 1, init_std=0.0)
        self.fields = FieldEmbeddings(self.columns, embedding_dim)
        deep = Dense(self.fields.width, hidden, dropout)
        self.deep = nn.Sequential(deep, nn.Linear(deep.out_features, 1, bias=False))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: RowBatch) -> dict[str, Tensor]:
        fields_BFD = self.fields(batch)
        linear_B = self.bias + self.weights(batch).sum((1, 2))
        return {LABEL: linear_B + pairwise_products(fields_BFD) + self.deep(fields_BFD.flatten(1)).squeeze(1)}
