"""A log and a split become what models and the evaluator take: indices, CSR and queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np
import polars as pl
import pytorch_lightning
import torch
from torch import Tensor

from recsys.data import overview
from recsys.data.candidates import sampled_lists
from recsys.data.checks import DataError
from recsys.data.log import Log
from recsys.data.sessions import AGAIN, check_sessions, next_in_session, prefixes, query_keys
from recsys.data.splits import PAIR, Split, positives
from recsys.features.vocabulary import Vocabulary, id_keys
from recsys.schema import (
    ITEM_ID,
    LABEL,
    NUM_RESERVED,
    TIMESTAMP,
    UNKNOWN,
    USER_ID,
    Interactions,
    Prefixes,
    Queries,
    Schema,
)

# users: one query a user, with all positives after the cut. next_in_session: one each positive after the first of its
# session, with the history up to it; weights stay as of the cut.
Protocol = Literal["users", "next_in_session"]


class RecDataModule(pytorch_lightning.LightningDataModule):
    """One log, split and encoded.

    users, items: every id in the rows before the test cut, shown ones included; items also those that the
        item table dates before the cut. What comes later is unknown.
    train: the positives of train, row = user_idx.
    report: the split's leakage report and the number of queries.
    """

    def __init__(
        self,
        log: Log,
        split: Callable[..., Split] | Split,
        seed: int = 0,
        *,
        queries: Protocol = "users",
        session: str = "session_id",
        num_sampled: int | None = None,
    ) -> None:
        """
        Args:
            split: one of `recsys.data.splits`, with its options bound; called as split(log, seed=seed). Or a
                Split that was made already.
            queries: what is asked of a model in validation and test; see `Protocol`.
            session: the column that says to which session a row belongs, for next_in_session.
            num_sampled: each query's relevant items are ranked among so many others, drawn uniformly, in place of the
                whole catalogue. What that measures is not comparable and may order models otherwise (Krichene and
                Rendle, KDD 2020).

        Raises:
            DataError: the split, the queries or num_sampled do not fit the log.
        """
        super().__init__()
        self.log, self.queries, self.session = log, queries, session
        self.num_sampled, self.seed = num_sampled, seed
        if num_sampled is not None and log.candidates is not None:
            what = f"brings its own candidates, num_sampled={num_sampled} would draw others"
            raise DataError(f"{log.name}: {what}: leave one of them out")
        self.split = split if isinstance(split, Split) else split(log, seed=seed)
        self._known = [part for part in (self.split.train, self.split.validation) if part is not None]
        if queries == "next_in_session":
            check_sessions([*self._known, self.split.test], session, log.name)
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

    def __repr__(self) -> str:
        return f"RecDataModule({overview.parts_title(self.log.name, self.report)})"

    def _repr_html_(self) -> str:
        return overview.parts_html(self.log.name, self.report)

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
    def came(self) -> Tensor | None:
        """From when each item could be recommended, int64 [I] microseconds since 1970; -1 where the item table does not
        say. None where it has no timestamps."""
        items = self.log.items
        if items is None or TIMESTAMP not in items.collect_schema():
            return None
        known = items.select(ITEM_ID, pl.col(TIMESTAMP).cast(pl.Datetime("us", "UTC"))).drop_nulls().collect()
        came_I = torch.full((len(self.items),), -1)
        came_I[self.items.encode(known[ITEM_ID])] = _int64(known[TIMESTAMP].to_physical())
        came_I[:NUM_RESERVED] = -1
        return came_I

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
        """Users with a positive in validation, cut off where validation begins; or its positives within sessions, None
        where there are none."""
        if self.split.validation is None:
            return None
        queries = self._queries([self.split.train], self.split.validation, self.split.validation_cut)
        return queries if len(queries) else None

    @cached_property
    def test(self) -> Queries:
        """Users with a positive in test, cut off where test begins; or its positives within sessions."""
        queries = self._queries(self._known, self.split.test, self.split.test_cut, self.log.candidates)
        if not len(queries):
            what = "no session of test has a positive after its first"
            raise DataError(f"{self.log.name}: {what}: move the cut, or take queries=users")
        return queries

    @property
    def ranked(self) -> str:
        """What each query of the test part ranks."""
        if self.log.candidates is not None:
            return "given candidates"
        return "whole catalogue" if self.num_sampled is None else f"{self.num_sampled} sampled candidates"

    def _listed(self, cut: datetime | None) -> pl.Series:
        """Items that the item table dates before the cut; none where it has no dates or nothing is cut."""
        items = self.log.items
        if items is None or cut is None or TIMESTAMP not in items.collect_schema():
            return self.split.train[ITEM_ID].clear()
        return items.filter(pl.col(TIMESTAMP) < cut).select(ITEM_ID).collect()[ITEM_ID]

    def _queries(
        self,
        before: list[pl.DataFrame],
        after: pl.DataFrame,
        cut: datetime | None,
        listed: pl.LazyFrame | None = None,
    ) -> Queries:
        """The queries of `after` in ascending order of the raw user id, then of time and the raw item id.

        listed: rows of user_id and item_id, the items that are ranked for each user.
        """
        known_user = torch.zeros(len(self.users), dtype=torch.bool)
        candidates = torch.zeros(len(self.items), dtype=torch.bool)
        for part in before:
            known_user[self.users.encode(part[USER_ID].unique())] = True
            candidates[self.items.encode(part[ITEM_ID].unique())] = True
        candidates[self.items.encode(self._listed(cut))] = True
        candidates[:NUM_RESERVED] = False

        past, tested = [positives(part) for part in before], positives(after)
        history: Interactions | Prefixes
        if self.queries == "users":
            asked, history, relevant = self._of_users(past, tested)
        else:
            asked, history, relevant = self._in_sessions(past, tested, candidates)
        user_idx = self.users.encode(asked[USER_ID])
        user_idx = torch.where(known_user[user_idx], user_idx, UNKNOWN)
        cold = ~self._among(candidates, relevant)
        num_cold = relevant.filter(cold).select("query", ITEM_ID).unique()["query"].to_numpy().astype(np.int64)
        queries = Queries(
            user_idx=user_idx,
            user_key=torch.from_numpy(id_keys(asked[USER_ID]).astype(np.int64)),
            history=history,
            relevant=self._csr(relevant.filter(~cold), asked.height),
            num_cold_relevant=torch.bincount(torch.from_numpy(num_cold), minlength=asked.height),
            warm=self.train.row_counts()[user_idx] > 0,
            candidates=candidates,
            query_key=query_keys(asked) if self.queries == "next_in_session" else None,
        )
        if listed is not None:
            rows = listed.collect().join(asked.select("query", USER_ID), on=USER_ID)
            bare = asked.join(rows, on="query", how="anti")
            if len(bare):
                what = f"user {bare[USER_ID][0]} of the test part has no candidates"
                raise DataError(f"{self.log.name}: {what}: list some, or rank the whole catalogue (without candidates)")
            rows = pl.concat([part.select("query", ITEM_ID) for part in (rows, relevant)])
            return replace(queries, lists=self._csr(rows.filter(self._among(candidates, rows)), asked.height))
        if self.num_sampled is not None:
            return replace(queries, lists=sampled_lists(queries, self.num_sampled, self.seed))
        return queries

    def _of_users(
        self, before: list[pl.DataFrame], after: pl.DataFrame
    ) -> tuple[pl.DataFrame, Interactions, pl.DataFrame]:
        """One query a user: who is asked about, with what history, and the relevant rows with their query."""
        columns = [*PAIR, *([TIMESTAMP] if TIMESTAMP in before[0].columns else [])]
        asked = after.select(USER_ID).unique().sort(USER_ID).with_row_index("query")
        history = pl.concat([part.select(columns) for part in before]).join(asked, on=USER_ID)
        return asked, self._csr(history, asked.height), after.select(columns).join(asked, on=USER_ID)

    def _in_sessions(
        self, before: list[pl.DataFrame], after: pl.DataFrame, candidates: Tensor
    ) -> tuple[pl.DataFrame, Prefixes, pl.DataFrame]:
        """The same with one query a positive after the first of its session. Histories hold candidates alone, as a
        model knows no other items; such an item that comes again is not relevant either."""
        columns = [*PAIR, TIMESTAMP, self.session]
        past, after = pl.concat([part.select(columns) for part in before]), after.select(columns)
        asked = next_in_session(past, after, self.session).with_row_index("query")
        people = asked.select(USER_ID).unique().sort(USER_ID).with_row_index("query")
        liked = pl.concat([past, after]).join(people, on=USER_ID)
        liked = liked.filter(self._among(candidates, liked))
        row = _int64(asked.select(USER_ID).join(people, on=USER_ID, maintain_order="left")["query"])
        history = prefixes(self._csr(liked, people.height), row, _int64(asked[TIMESTAMP].to_physical()))
        return asked, history, asked.filter(self._among(candidates, asked) | ~asked[AGAIN])

    def _among(self, candidates: Tensor, rows: pl.DataFrame) -> pl.Series:
        """Which rows are about a candidate."""
        return pl.Series(candidates[self.items.encode(rows[ITEM_ID])].numpy())

    def _csr(self, rows: pl.DataFrame, num_rows: int) -> Interactions:
        return Interactions.from_pairs(
            _int64(rows["query"]),
            self.items.encode(rows[ITEM_ID]),
            num_rows=num_rows,
            num_items=len(self.items),
            timestamp=_micros(rows),
        )


def _micros(rows: pl.DataFrame) -> Tensor | None:
    if TIMESTAMP not in rows.columns:
        return None
    return _int64(rows[TIMESTAMP].to_physical())


def _int64(values: pl.Series) -> Tensor:
    return torch.from_numpy(values.cast(pl.Int64).to_numpy(writable=True))
