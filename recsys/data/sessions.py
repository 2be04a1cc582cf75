"""Queries within a visit: each positive after the first of its session, to be found from what came before it.

A session is a value of the session column together with the user, so that ids may repeat between users. A row without
one belongs to no session: it is history, never a query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recsys.data.checks import DataError, nearest
from recsys.data.splits import PAIR
from recsys.features.vocabulary import id_keys, mix64
from recsys.schema import TIMESTAMP, USER_ID, Interactions, Prefixes

AGAIN = "again"


def check_sessions(parts: Sequence[pl.DataFrame], session: str, name: str) -> None:
    """Every part of a log says when each row was, and of which session.

    Raises:
        DataError: a part has no such column, or a row no timestamp; the message names the column.
    """
    for part in parts:
        for column, remedy in ((TIMESTAMP, "columns.timestamp=NAME"), (session, "data.keep=[NAME] session=NAME")):
            if column not in part.columns:
                hint = f"{nearest(column, part.columns)} (it has {', '.join(part.columns)})"
                raise DataError(f"{name}: queries=next_in_session needs column {column!r}, say {remedy}{hint}")
        if part[TIMESTAMP].null_count():
            raise DataError(f"{name}: queries=next_in_session needs a timestamp in every row, some have none")


def next_in_session(before: pl.DataFrame, after: pl.DataFrame, session: str) -> pl.DataFrame:
    """The rows of `after` that are later than the first positive of their session, which may lie in `before`.

    Args:
        before, after: positives, with user_id, item_id, timestamp and the session.

    Returns: user_id, item_id, timestamp, each once and in this order of user, time and item; and `again`, whether the
        user had a positive with the item earlier.
    """
    both = pl.concat([before, after])
    first = both.group_by(USER_ID, session).agg(began=pl.col(TIMESTAMP).min())
    liked = both.group_by(PAIR).agg(liked=pl.col(TIMESTAMP).min())
    asked = after.join(first, on=[USER_ID, session]).filter(pl.col(TIMESTAMP) > pl.col("began"))
    asked = asked.select(*PAIR, TIMESTAMP).unique().join(liked, on=PAIR)
    asked = asked.select(*PAIR, TIMESTAMP, (pl.col(TIMESTAMP) > pl.col("liked")).alias(AGAIN))
    return asked.sort(USER_ID, TIMESTAMP, PAIR[1])


def prefixes(liked: Interactions, row: Tensor, timestamp: Tensor) -> Prefixes:
    """What stands in a row before a moment. row, timestamp (microseconds): int64 [Q]."""
    assert liked.timestamp is not None
    moments, code = torch.cat([liked.timestamp, timestamp]).unique(return_inverse=True)
    # Pairs lie by row and time, so that one number orders them all.
    key_Z = liked.row_idx() * len(moments) + code[: len(liked)]
    place = torch.searchsorted(key_Z, row * len(moments) + code[len(liked) :])
    return Prefixes(liked, row, place - liked.indptr[row])


def query_keys(asked: pl.DataFrame) -> Tensor:
    """A number that belongs to (user, item, timestamp), int64 [Q]."""
    user, item = (mix64(id_keys(asked[name]), seed) for seed, name in enumerate(PAIR))
    time = asked[TIMESTAMP].to_physical().cast(pl.Int64).to_numpy()
    return torch.from_numpy(mix64(mix64(user ^ item, 2) ^ mix64(time, 3), 4).view(np.int64).copy())
