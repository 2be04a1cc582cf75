"""What collisions cost: a model whose items are hashed into ever fewer buckets, beside the truth of a world.

Items that share a bucket share a vector and a score, so no list can tell them apart. The model is fitted on buckets and
measured on items: logged recall beside the log oracle's, and what its lists would bring if they were shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import polars as pl
import torch
from torch import Tensor

from recsys.answer_key import answer_key
from recsys.data.datamodule import RecDataModule
from recsys.evaluation.ranking import Evaluation
from recsys.features.collisions import collisions
from recsys.features.hashing import buckets, hash_column
from recsys.models.base import Report, Retriever, Solver, no_report
from recsys.schema import ITEM_ID, LABEL, NUM_RESERVED, Interactions, Schema, UserBatch


class HashedItems(Retriever):
    """A solver over buckets of items in place of items.

    bucket_of_item: int64 [num_items], the bucket's index, reserved indices unchanged.
    """

    bucket_of_item: Tensor

    def __init__(
        self, schema: Schema, make: Callable[..., Retriever], bucket_of_item: Tensor, num_buckets: int
    ) -> None:
        super().__init__(schema)
        self.register_buffer("bucket_of_item", bucket_of_item)
        self.num_buckets = num_buckets
        self.model = make(schema=Schema.of(schema.num_users, num_buckets + NUM_RESERVED))
        if not isinstance(self.model, Solver):
            raise ValueError(f"{type(self.model).__name__} has no fit: choose a model that solves, as als, ease or knn")
        self.scores_from_history = self.model.scores_from_history

    def fit(self, interactions: Interactions, report: Report = no_report) -> None:
        """Fit the model on the buckets of the items."""
        hashed = self._hashed(interactions)
        self.model.observe(hashed)
        self.model.fit(hashed, report)  # type: ignore[operator]

    def _hashed(self, interactions: Interactions) -> Interactions:
        size = self.num_buckets + NUM_RESERVED
        item_idx = self.bucket_of_item[interactions.item_idx]
        return Interactions.from_pairs(
            interactions.row_idx(), item_idx, num_rows=interactions.num_rows, num_items=size,
            timestamp=interactions.timestamp,
        )  # fmt: skip

    def scorer(self) -> Callable[[UserBatch], Tensor]:
        score = self.model.scorer()
        return lambda batch: score({**batch, "history": self._hashed(batch["history"])})[:, self.bucket_of_item]


def study(
    data: RecDataModule,
    make: Callable[..., Retriever],
    evaluate: Callable[..., Evaluation],
    num_buckets: Sequence[int | None],
    *,
    k: int = 20,
    seed: int = 0,
) -> pl.DataFrame:
    """Quality of a model against the number of buckets that its items are hashed into.

    Args:
        make: called as make(schema=…), a model that solves (ALS, EASE, ItemKNN).
        evaluate: `recsys.evaluation.ranking.evaluate` with its options bound.
        num_buckets: None stands for no hashing.

    Returns: one row a number: num_buckets (null: no hashing); of the train rows, colliding and expected_colliding items
        and rows_affected and positives_affected (see `features.collisions.collisions`); recall@k with its interval, and
        on a world its share of the oracle's, and clicks@k as a share of the best possible.
    Raises:
        ValueError: the model is not one that solves.
    """
    size = data.schema.num_items
    report = []
    for m in num_buckets:
        torch.manual_seed(seed)
        place = torch.arange(size)
        if m is not None:
            place[NUM_RESERVED:] = buckets(hash_column(data.items.ids, seed), m) + NUM_RESERVED
        model = HashedItems(data.schema, make, place, m or size - NUM_RESERVED)
        model.observe(data.train)
        model.fit(data.train)
        model.eval()
        found = evaluate(score=model.scorer_with_fallback(), queries=data.test, k=[k])
        recall, truth = found.metrics[f"recall@{k}"], answer_key(data, model, evaluate, k=[k], seed=seed)
        low, high = found.intervals.get(f"recall@{k}", (None, None))
        row = {"num_buckets": m, **_lost(data, m, seed), f"recall@{k}": recall, "low": low, "high": high}
        if truth:
            row["share_of_oracle"] = recall / truth[f"oracle/recall@{k}"]
        if f"utility/clicks@{k}" in truth:
            row[f"share_of_best_clicks@{k}"] = truth[f"utility/clicks@{k}"] / truth[f"best/clicks@{k}"]
        report.append(row)
    return pl.DataFrame(report, infer_schema_length=None)


def _lost(data: RecDataModule, num_buckets: int | None, seed: int) -> dict[str, float]:
    names = ("colliding", "expected_colliding", "rows_affected", "positives_affected")
    if num_buckets is None:
        return dict.fromkeys(names, 0.0)
    rows = data.split.train
    label = LABEL if LABEL in rows.columns else None
    return collisions(rows, ITEM_ID, [num_buckets], seed=seed, label=label).select(names).row(0, named=True)
