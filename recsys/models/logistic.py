"""Logistic regression over the fields: a weight for every index and every number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys.models.base import Ranker, RowBatch
from recsys.models.layers import FieldEmbeddings
from recsys.schema import LABEL, Column


class Logistic(Ranker):
    """logit = bias + the sum over fields of a weight of the field's value (McMahan et al., KDD 2013).

    training: see `Ranker`.
    """

    def __init__(self, columns: Sequence[Column], **training: Any) -> None:
        super().__init__(columns, **training)
        self.weights = FieldEmbeddings(self.columns, 1, init_std=0.0)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: RowBatch) -> dict[str, Tensor]:
        return {LABEL: self.bias + self.weights(batch).sum((1, 2))}
