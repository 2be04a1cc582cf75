"""Popularity: the same ranking for everybody, by how often an item was positive in train.

It is the floor that any other model has to beat, and on short windows of fast catalogues a high one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.models.base import Report, Retriever, no_report
from recsys.schema import Interactions, Schema, UserBatch

MICROSECONDS_PER_DAY = 24 * 60 * 60 * 1_000_000


class Popularity(Retriever):
    """Scores an item by its number of positive users, all time or in the window before the newest one.

    A pair counts once, at the time of its earliest positive.

    Args:
        schema: the sizes.
        window_days: days before the newest training timestamp that count; None counts all of train.

    Raises:
        ValueError: `window_days` is not positive, or is given for interactions without timestamps.
    """

    popularity_I: Tensor

    def __init__(self, schema: Schema, *, window_days: float | None = None) -> None:
        super().__init__(schema)
        if window_days is not None and window_days <= 0:
            raise ValueError(f"window_days must be positive, or null for all time, got {window_days}")
        self.window_days = window_days
        self.register_buffer("popularity_I", torch.zeros(schema.num_items))

    def fit(self, interactions: Interactions, report: Report = no_report) -> None:
        """Count. One step."""
        self.observe(interactions)
        item_idx = interactions.item_idx
        if self.window_days is not None:
            if interactions.timestamp is None:
                raise ValueError(
                    f"window_days={self.window_days} needs a timestamp column, and this log has none; "
                    "map one or set window_days to null"
                )
            if len(interactions):
                age = interactions.timestamp.max() - interactions.timestamp
                item_idx = item_idx[age <= self.window_days * MICROSECONDS_PER_DAY]
        self.popularity_I.copy_(torch.bincount(item_idx, minlength=self.schema.num_items))
        report(1, 1, {"train/pairs_counted": float(item_idx.numel())})

    def score(self, batch: UserBatch) -> Tensor:
        """The counts, float32 [B, I], once per user."""
        return self.popularity_I.repeat(batch["user_idx"].numel(), 1)

    def personal(self, batch: UserBatch) -> Tensor:
        """Always: the ranking is for everybody, so nobody needs the fallback."""
        return torch.ones_like(batch["user_idx"], dtype=torch.bool)
