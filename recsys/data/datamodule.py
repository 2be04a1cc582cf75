"""A log and a split become what models and the evaluator take: indices, CSR and queries."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pytorch_lightning
import torch
from torch import Tensor

from recsys.data.log import Log, row_hashes
from recsys.data.splits import PAIR, Split, positives
from recsys.features.vocabulary import Vocabulary, id_keys, mix64
from recsys.schema import (
    ITEM_ID,
    LABEL,
    NUM_RESERVED,
    TIMESTAMP,
    UNKNOWN,
    USER_ID,
    Interactions,
    Queries,
    Schema,
)


class RecDataModule(pytorch_lightning.LightningDataModule):
    """One log, split and encoded.

    users, items: every id in the rows before the test cut, shown ones included; items also those that the
        item table dates before the cut. What comes later is unknown.
    train: the positives of train, row = user_idx.
    report: the split's leakage report and the number of queries.
    """

    def __init__(self, log: Log, split: Callable[..., Split] | Split, seed: int = 0) -> None:
        """
        Args:
            split: one of `recsys.data.splits`, with its options bound; called as split(log, seed=seed). Or a
                Split that was made already.

        Raises:
            DataError: the split does not fit the log.
        """
        super().__init__()
        self.log = log
        self.split = split if isinstance(split, Split) else split(log, seed=seed)
        self._known = [part for part in (self.split.train, self.split.validation) if part is not None]
        self.users = Vocabulary(pl.concat([part[USER_ID].unique() for part in self._known]))
        listed = self._listed(self.split.test_cut)
        self.items = Vocabulary(pl.concat([*(part[ITEM_ID].unique() for part in self._known), listed]))
        self.schema = Schema.of(len(self.users), len(self.items))
        self.report: dict[str, Any] = {
            **self.split.report,
            "validation_queries": 0 if self.validation is None else len(self.validation),
            "test_queries": len(self.test),
            "test_queries_of_users_unknown_to_train": int((~self.test.warm).sum()),
        }

    @cached_property
    def train(self) -> Interactions:
        rows = positives(self.split.train)
        return Interactions.from_pairs(
            self.users.encode(rows[USER_ID]),
            self.items.encode(rows[ITEM_ID]),
            num_rows=len(self.users),
            num_items=len(self.items),
            timestamp=_micros(rows),
        )

    @cached_property
    def history(self) -> Interactions:
        """The positives of train and validation, row = user_idx: what is known of each user at test."""
        rows = pl.concat([positives(part).select(PAIR) for part in self._known])
        return Interactions.from_pairs(
            self.users.encode(rows[USER_ID]),
            self.items.encode(rows[ITEM_ID]),
            num_rows=len(self.users),
            num_items=len(self.items),
        )

    @cached_property
    def train_events(self) -> pl.DataFrame:
        """All train rows, negatives too: user_idx, item_idx, timestamp, label and kept columns, sorted."""
        rows = self.split.train
        encoded = rows.select(
            pl.Series("user_idx", self.users.encode(rows[USER_ID]).numpy()),
            pl.Series("item_idx", self.items.encode(rows[ITEM_ID]).numpy()),
            pl.exclude(PAIR),
        )
        order = [TIMESTAMP] if TIMESTAMP in encoded.columns else []
        order += ["user_idx", "item_idx", *([LABEL] if LABEL in encoded.columns else [])]
        return encoded.sort(order, maintain_order=True)

    @cached_property
    def validation(self) -> Queries | None:
        """Users with a positive in validation, cut off where validation begins."""
        if self.split.validation is None:
            return None
        return self._queries([self.split.train], self.split.validation, self.split.validation_cut)

    @cached_property
    def test(self) -> Queries:
        """Users with a positive in test, cut off where test begins."""
        return self._queries(self._known, self.split.test, self.split.test_cut)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 hex of the log's content; see `fingerprint`."""
        return fingerprint(self.log)

    def _listed(self, cut: datetime | None) -> pl.Series:
        """Items that the item table dates before the cut; none where it has no dates or nothing is cut."""
        items = self.log.items
        if items is None or cut is None or TIMESTAMP not in items.collect_schema():
            return self.split.train[ITEM_ID].clear()
        return items.filter(pl.col(TIMESTAMP) < cut).select(ITEM_ID).collect()[ITEM_ID]

    def _queries(self, before: list[pl.DataFrame], after: pl.DataFrame, cut: datetime | None) -> Queries:
        """One query a user with a positive in `after`, in ascending order of the raw user id."""
        tested = positives(after)
        asked = tested[USER_ID].unique().sort()
        place = asked.to_frame().with_row_index("query")

        known_user = torch.zeros(len(self.users), dtype=torch.bool)
        candidates = torch.zeros(len(self.items), dtype=torch.bool)
        for part in before:
            known_user[self.users.encode(part[USER_ID].unique())] = True
            candidates[self.items.encode(part[ITEM_ID].unique())] = True
        candidates[self.items.encode(self._listed(cut))] = True
        candidates[:NUM_RESERVED] = False
        user_idx = self.users.encode(asked)
        user_idx = torch.where(known_user[user_idx], user_idx, UNKNOWN)

        columns = [*PAIR, *([TIMESTAMP] if TIMESTAMP in before[0].columns else [])]
        history = pl.concat([positives(part).select(columns) for part in before])
        history = history.join(place, on=USER_ID)
        relevant = tested.select(columns).join(place, on=USER_ID)
        item_idx = self.items.encode(relevant[ITEM_ID])
        cold = pl.Series(~candidates[item_idx].numpy())
        num_cold = relevant.filter(cold).select("query", ITEM_ID).unique()["query"].to_numpy().astype(np.int64)
        return Queries(
            user_idx=user_idx,
            user_key=torch.from_numpy(id_keys(asked).astype(np.int64)),
            history=self._csr(history, asked.len()),
            relevant=self._csr(relevant.filter(~cold), asked.len()),
            num_cold_relevant=torch.bincount(torch.from_numpy(num_cold), minlength=asked.len()),
            warm=self.train.row_counts()[user_idx] > 0,
            candidates=candidates,
        )

    def _csr(self, rows: pl.DataFrame, num_rows: int) -> Interactions:
        return Interactions.from_pairs(
            _int64(rows["query"]),
            self.items.encode(rows[ITEM_ID]),
            num_rows=num_rows,
            num_items=len(self.items),
            timestamp=_micros(rows),
        )


def fingerprint(log: Log) -> str:
    """SHA-256 hex of the rows of a log, its own test part and its past included: equal for equal content, whatever the
    order of rows and columns and however they lie in files.

    Each row becomes two 64-bit hashes over its (column name, value) pairs; their sums modulo 2^64 go into the
    digest with the number of rows and the names and types of the columns.
    """
    digest = hashlib.sha256()
    for name, lazy in (("events", log.events), ("test", log.test), ("past", log.past)):
        if lazy is None:
            continue
        rows = lazy.collect()
        sums = [int(mix64(row_hashes(rows, lane), 7).sum(dtype=np.uint64)) for lane in (0, 1)]
        columns = sorted((column, str(dtype)) for column, dtype in rows.schema.items())
        digest.update(repr((name, rows.height, columns, sums)).encode())
    return digest.hexdigest()


def _micros(rows: pl.DataFrame) -> Tensor | None:
    if TIMESTAMP not in rows.columns:
        return None
    return _int64(rows[TIMESTAMP].to_physical())


def _int64(values: pl.Series) -> Tensor:
    return torch.from_numpy(values.cast(pl.Int64).to_numpy(writable=True))
