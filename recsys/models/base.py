"""The two contracts. A retriever scores the whole catalogue for a user; a ranker scores given pairs.

Shapes in names: B batch, I items, N some items, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from torch import Tensor

from recsys.schema import Interactions, Schema, UserBatch

# report(done, total, measured): called after every step of a fit, e.g. report(3, 16, {"train/loss": 0.2}).
# It may raise to stop the fit; the model is then in the state that `done` steps leave.
Report = Callable[[int, int, dict[str, float]], None]

_SLAB = 4096  # items multiplied at a time on a CPU


def no_report(done: int, total: int, measured: dict[str, float]) -> None:
    """The default: tell nobody."""


@runtime_checkable
class Solver(Protocol):
    """A retriever that is not trained by gradient: a closed form, or alternating sweeps."""

    def fit(self, interactions: Interactions, report: Report = ...) -> None:
        """Solve for a training set whose rows are user_idx, telling `report` of every step."""


class Retriever(pl.LightningModule):
    """Scores every item for every user of a batch.

    A model whose score is an inner product implements `encode_users` and `encode_items`, and only such
    models can be indexed. Any other implements `score`. A model that is not trained by gradient
    implements `fit(interactions, report)`; its steps are counted by itself in a buffer, so that `fit`
    on a reloaded model goes on where it stopped.
    """

    item_counts: Tensor
    user_counts: Tensor
    # Set by models that know a user by the history of the batch and not by a row of their own.
    scores_from_history = False

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema
        self.register_buffer("item_counts", torch.zeros(schema.num_items, dtype=torch.int64))
        self.register_buffer("user_counts", torch.zeros(schema.num_users, dtype=torch.int64))

    def observe(self, interactions: Interactions) -> None:
        """Keep what the fallback and `personal` need to know of the training set. Called before training."""
        self.item_counts.copy_(interactions.item_counts())
        self.user_counts.copy_(interactions.row_counts())

    def encode_users(self, batch: UserBatch) -> Tensor:
        """User vectors, float [B, D]."""
        raise NotImplementedError(f"{type(self).__name__} is not an inner-product model")

    def encode_items(self, item_idx: Tensor) -> Tensor:
        """Item vectors, float [N, D]."""
        raise NotImplementedError(f"{type(self).__name__} is not an inner-product model")

    @property
    def factored(self) -> bool:
        """Whether the score is an inner product of `encode_users` and `encode_items`."""
        return type(self).encode_items is not Retriever.encode_items

    def score(self, batch: UserBatch) -> Tensor:
        """scores_BI over all `num_items` columns, the reserved two included (the evaluator masks them)."""
        return self.scorer()(batch)

    def scorer(self) -> Callable[[UserBatch], Tensor]:
        """`score` with all that does not depend on the user computed once. Scores carry no gradient."""
        if not self.factored:
            return self.score
        with torch.no_grad():
            items_ID = self.encode_items(torch.arange(self.schema.num_items, device=self.device))

        @torch.no_grad()
        def inner_product(batch: UserBatch) -> Tensor:
            # Items first: a product of many rows and few columns is up to twice as fast on a CPU, and a fifth
            # faster again by slabs of items that stay in its cache.
            users_DB = self.encode_users(batch).T
            if users_DB.device.type != "cpu":
                return (items_ID @ users_DB).T
            scores_IB = items_ID.new_empty(len(items_ID), users_DB.shape[1])
            for items_ND, scores_NB in zip(items_ID.split(_SLAB), scores_IB.split(_SLAB), strict=True):
                torch.mm(items_ND, users_DB, out=scores_NB)
            return scores_IB.T

        return inner_product

    def personal(self, batch: UserBatch) -> Tensor:
        """Whether the model knows each user, bool [B]. Where it does not, the fallback answers: the
        items in order of their count in train."""
        if not self.scores_from_history:
            return self.user_counts.index_select(0, batch["user_idx"]) > 0
        # A history of nothing but items that had no positive in train tells such a model nothing.
        history: Interactions = batch["history"]
        told = (self.item_counts.index_select(0, history.item_idx) > 0).long()
        return torch.zeros_like(history.indptr[1:]).index_add_(0, history.row_idx(), told) > 0

    def scorer_with_fallback(self) -> Callable[[UserBatch], Tensor]:
        """`scorer`, answered by the fallback for users the model does not know."""
        score = self.scorer()

        def answer(batch: UserBatch) -> Tensor:
            scores_BI = score(batch)
            stranger_B = ~self.personal(batch)
            if bool(stranger_B.any()):
                scores_BI = torch.where(stranger_B[:, None], self.item_counts.to(scores_BI.dtype), scores_BI)
            return scores_BI

        return answer
