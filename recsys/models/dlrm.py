"""DLRM: the inner products of all pairs of fields, and the numbers, as the input of an MLP.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems" (2019,
arXiv 1906.00091).
Shapes in names: B rows, V numbers of a row, F vectors of a row, D embedding dim, P pairs of vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys.models.base import Ranker, RowBatch
from recsys.models.layers import Dense, Lookups, Numbers
from recsys.schema import LABEL, Column


class DLRM(Ranker):
    """logit = top MLP of the numbers' vector and of <v_f, v_g> for all pairs f < g, the numbers' vector among them.

    The numbers' vector is the bottom MLP of all that is no index. Without such columns there is none.
    bottom, top: widths of the hidden layers; behind the bottom ones comes one of embedding_dim.
    training: see `Ranker`.
    """

    pair_P: Tensor

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        embedding_dim: int = 16,
        bottom: Sequence[int] = (64,),
        top: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(columns, **training)
        self.lookups = Lookups(self.columns, embedding_dim)
        self.numbers = Numbers(self.columns)
        width = sum(self.numbers.widths)
        self.bottom = Dense(width, [*bottom, embedding_dim], dropout) if width else None
        num_vectors = len(self.lookups.fields) + (width > 0)
        f_P, g_P = torch.triu_indices(num_vectors, num_vectors, 1)
        self.register_buffer("pair_P", f_P * num_vectors + g_P, persistent=False)
        top_width = len(f_P) + embedding_dim * (width > 0)
        if not top_width:
            raise ValueError("DLRM multiplies pairs: give it two columns of indices, or numbers")
        self.top = Dense(top_width, top, dropout)
        self.head = nn.Linear(self.top.out_features, 1)

    def forward(self, batch: RowBatch) -> dict[str, Tensor]:
        vectors_BFD, found = self.lookups(batch), []
        if self.bottom is not None:
            found = [self.bottom(self.numbers(batch))]
            vectors_BFD = torch.cat([found[0][:, None], vectors_BFD], 1)
        products_BFF = vectors_BFD @ vectors_BFD.mT
        found.append(products_BFF.flatten(1).index_select(1, self.pair_P))
        return {LABEL: self.head(self.top(torch.cat(found, 1))).squeeze(1)}
