"""Factorization machine: a weight for every value, and an inner product for every pair of fields.

Rendle, "Factorization Machines" (ICDM 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys.models.base import Ranker, RowBatch
from recsys.models.layers import FieldEmbeddings, pairwise_products
from recsys.schema import LABEL, Column


class FactorizationMachine(Ranker):
    """logit = bias + sum of weights + sum over pairs of fields of <v_f, v_g> (equation 1 of the paper).

    A list is one field, the mean of its vectors: its members do not meet each other.
    training: see `Ranker`.
    """

    def __init__(self, columns: Sequence[Column], *, embedding_dim: int = 16, **training: Any) -> None:
        super().__init__(columns, **training)
        self.weights = FieldEmbeddings(self.columns, 1, init_std=0.0)
        self.fields = FieldEmbeddings(self.columns, embedding_dim)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: RowBatch) -> dict[str, Tensor]:
        linear_B = self.bias + self.weights(batch).sum((1, 2))
        return {LABEL: linear_B + pairwise_products(self.fields(batch))}
