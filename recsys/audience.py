"""Who asks for a list: known users by their id, unknown ones, and new ones by what a request says of them.

Shapes: B requests, U users, I items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
import torch
from torch import Tensor

from recsys.config import nearest
from recsys.evaluation.significance import mix64
from recsys.features.vocabulary import Vocabulary, id_keys
from recsys.schema import NUM_RESERVED, TIMESTAMP, UNKNOWN, USER_ID, Interactions

Requests = Sequence[Any] | pl.Series | Sequence[Mapping[str, Any]]

HISTORY = "history"  # the key under which a request brings what its user liked
TIME = pl.Datetime("us", "UTC")


@dataclass(frozen=True, eq=False)
class Asked:
    """B requests for a list.

    user_id: raw ids, null where nobody known asks. key: int64 [B], a number that belongs to the user and the time.
    history: item_idx that each liked, the latest last. rows: raw columns, user_id and timestamp among them.
    """

    user_id: pl.Series
    key: Tensor
    history: Interactions
    rows: pl.DataFrame

    def __len__(self) -> int:
        return len(self.key)

    def part(self, low: int, high: int) -> Asked:
        """Requests low .. high, or to the end."""
        high = min(high, len(self))
        some = slice(low, high)
        return Asked(self.user_id[some], self.key[some], self.history.rows(low, high), self.rows[some])


class Audience:
    """What is known of users, and what a request may say.

    Args:
        users: raw columns of known users, user_id among them, each id once; None: nobody is known.
        history: what each of them liked, row = user_idx in the order of their ids, the reserved ones first.
        items: what item_idx means.
        dtypes: further columns that a request may have.
        now: the time of requests that bring none; None: that at which they come.

    Raises:
        ValueError: a user twice, or a history of other users.
    """

    def __init__(
        self,
        users: pl.DataFrame | None,
        history: Interactions | None,
        items: Vocabulary,
        *,
        dtypes: Mapping[str, pl.DataType] | None = None,
        now: datetime | None = None,
    ) -> None:
        self.users = pl.DataFrame({USER_ID: pl.Series([], dtype=pl.Int64)}) if users is None else users.sort(USER_ID)
        self.user_ids = Vocabulary(self.users[USER_ID])
        if len(self.user_ids) != self.users.height + NUM_RESERVED:
            raise ValueError(
                f"users: {self.users.height} rows hold {len(self.user_ids) - NUM_RESERVED} ids: one row each"
            )
        self.history = Interactions.empty(len(self.user_ids), len(items)) if history is None else history
        if self.history.num_rows != len(self.user_ids):
            raise ValueError(f"history has {self.history.num_rows} rows for {len(self.user_ids)} user indices")
        self.items, self.now = items, now
        self.dtypes = {**(dtypes or {}), **self.users.schema, TIMESTAMP: TIME}

    def asked(self, requests: Requests) -> Asked:
        """Requests as the stages of a funnel take them.

        Raises:
            ValueError: a request that says what is no column, or has another type; the message names it.
        """
        given = list(requests)
        said, liked = pl.DataFrame(), None
        if any(isinstance(request, Mapping) for request in given):
            liked = [self._liked(number, request) for number, request in enumerate(given)]
            said = self._said([{n: v for n, v in request.items() if n != HISTORY} for request in given])
        ids = said[USER_ID] if USER_ID in said.columns else None
        if ids is None:
            plain = given if liked is None else [None] * len(given)
            dtype = self.dtypes[USER_ID] if all(value is None for value in plain) else None
            ids = pl.Series(USER_ID, plain, dtype=dtype)
        user_idx = self.user_ids.encode(ids)
        rows = self._known(ids, user_idx)
        for column in said.iter_columns():
            rows = rows.with_columns(column.zip_with(column.is_not_null(), rows[column.name]).alias(column.name))
        now = datetime.now(UTC) if self.now is None else self.now
        rows = rows.with_columns(pl.col(TIMESTAMP).fill_null(pl.lit(now, TIME)))
        history = self.history.select(user_idx)
        if liked is not None:
            history = _replaced(history, liked)
        return Asked(rows[USER_ID], _keys(rows), history, rows)

    def _known(self, ids: pl.Series, user_idx: Tensor) -> pl.DataFrame:
        """What is known of users, null where nothing is."""
        place = pl.Series((user_idx - NUM_RESERVED).numpy())
        place = place.set(place < 0, None)
        columns = [ids.alias(USER_ID)]
        columns += [self.users[name].gather(place) for name in self.users.columns if name != USER_ID]
        rows = pl.DataFrame(columns)
        return rows.with_columns(pl.lit(None, d).alias(n) for n, d in self.dtypes.items() if n not in rows.columns)

    def _said(self, requests: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
        """What requests say, by column; null where one says nothing."""
        names = dict.fromkeys(name for request in requests for name in request)
        columns = []
        for name in names:
            values = [request.get(name) for request in requests]
            try:
                columns.append(_series(name, values, self.dtypes[name]))
            except KeyError:
                number = next(n for n, request in enumerate(requests) if name in request)
                raise ValueError(
                    f"request {number} says {name!r}, which is no column: {nearest(name, [*self.dtypes, HISTORY])}"
                ) from None
            except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
                number = next(n for n, value in enumerate(values) if not _fits(value, self.dtypes[name]))
                raise ValueError(
                    f"request {number}: {name} is {values[number]!r}, expected {self.dtypes[name]}"
                ) from None
        return pl.DataFrame(columns)

    def _liked(self, number: int, request: Any) -> Tensor | None:
        """What a request says was liked, as indices; None where it says nothing."""
        if not isinstance(request, Mapping):
            raise ValueError(f"request {number} is {request!r}: give ids, or dicts, not both")
        given = request.get(HISTORY)
        if given is None:
            return None
        try:
            idx = self.items.encode(pl.Series(given, dtype=self.items.ids.dtype, strict=True))
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
            raise ValueError(f"request {number}: {HISTORY} is {given!r}, expected a list of item ids") from None
        return idx[idx > UNKNOWN]


def _series(name: str, values: Sequence[Any], dtype: pl.DataType) -> pl.Series:
    return pl.Series(name, values, dtype=dtype, strict=True)


def _fits(value: Any, dtype: pl.DataType) -> bool:
    try:
        _series("", [value], dtype)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        return False
    return True


def _replaced(history: Interactions, liked: Sequence[Tensor | None]) -> Interactions:
    """Histories, with those that are given in the place of what is known."""
    own = history.item_idx.split(history.row_counts().tolist())
    parts = [known if given is None else given for known, given in zip(own, liked, strict=True)]
    indptr = torch.zeros(len(parts) + 1, dtype=torch.int64)
    indptr[1:] = torch.tensor([len(part) for part in parts]).cumsum(0)
    return Interactions(indptr, torch.cat(parts), history.num_items)


def _keys(rows: pl.DataFrame) -> Tensor:
    """A number for each request, of its user and its time."""
    ids, keys = rows[USER_ID], rows[TIMESTAMP].to_physical().to_numpy(writable=True)
    known = ids.is_not_null().to_numpy()
    keys[known] ^= id_keys(ids.drop_nulls())
    return mix64(torch.from_numpy(keys))
