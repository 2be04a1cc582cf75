"""What every reader returns: `Log`, and how typed rows become one: duplicates, filters, counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl

from recsys.data.checks import DataError
from recsys.data.files import format_of
from recsys.schema import ITEM_ID, LABEL, TIMESTAMP, USER_ID


@dataclass(frozen=True, eq=False)
class Log:
    """Who met which item when, before any split.

    events: user_id, item_id (Int64 or String) and, where known, timestamp (Datetime us, UTC) and label (Int8,
        1 = positive). Without a label column every row is a positive. Further columns are kept as they came.
    test: the same columns, for logs that bring their own test part.
    users, items: feature tables with a user_id or item_id column. An item table with a timestamp says from
        when each item can be recommended.
    counts: what was seen while reading: rows_read, duplicate_rows, …
    world: the answer key, when the log is synthetic.
    """

    name: str
    events: pl.LazyFrame
    test: pl.LazyFrame | None = None
    users: pl.LazyFrame | None = None
    items: pl.LazyFrame | None = None
    files: tuple[Path, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)
    world: object | None = None


def make_log(
    name: str,
    events: pl.DataFrame,
    test: pl.DataFrame | None,
    users: pl.LazyFrame | None,
    items: pl.LazyFrame | None,
    files: tuple[Path, ...],
    counts: dict[str, Any],
    *,
    keep_negatives: bool = True,
    k_core: int = 0,
    start: str | datetime | None = None,
    end: str | datetime | None = None,
) -> Log:
    """Drop duplicates, apply the filters in the order threshold, window, k-core, and count what left."""
    counts = {"rows_read": events.height, **counts}
    if test is not None:
        counts["test_rows_read"] = test.height
        events, test = _same_ids(name, events, test, files)
        before = test.height
        test = test.unique(maintain_order=True)
        counts["test_duplicate_rows"] = before - test.height
        if LABEL in test.columns and not keep_negatives:
            test = test.filter(pl.col(LABEL) == 1)

    def without(key: str, kept: pl.DataFrame) -> pl.DataFrame:
        counts[key] = events.height - kept.height
        if kept.is_empty():
            raise DataError(f"{name}: no rows left of {events.height} after {key}; loosen the filter")
        return kept

    events = without("duplicate_rows", events.unique(maintain_order=True))
    if LABEL in events.columns and not keep_negatives:
        events = without("rows_below_threshold", events.filter(pl.col(LABEL) == 1).drop(LABEL))
        test = None if test is None else test.drop(LABEL, strict=False)
    if start is not None or end is not None:
        if TIMESTAMP not in events.columns:
            raise DataError(
                f"{name}: start and end need a timestamp; say columns.timestamp=NAME or leave them out"
            )
        time = pl.col(TIMESTAMP)
        inside = pl.lit(True)
        inside = inside if start is None else inside & (time >= moment(start, "start"))
        inside = inside if end is None else inside & (time < moment(end, "end"))
        events = without("rows_outside_window", events.filter(inside))
    if k_core > 1:
        events = without("rows_outside_k_core", _k_core(events, k_core))
    counts["rows"] = events.height
    positives = events.filter(pl.col(LABEL) == 1) if LABEL in events.columns else events
    counts["positives"] = positives.height
    counts["users"], counts["items"] = events[USER_ID].n_unique(), events[ITEM_ID].n_unique()
    counts["one_interaction_users"] = int((positives[USER_ID].unique_counts() == 1).sum())
    return Log(name, events.lazy(), None if test is None else test.lazy(), users, items, files, counts)


def moment(value: str | date, name: str) -> datetime:
    """A UTC datetime from ISO text, a date or a datetime; without a zone it is taken as UTC.

    Raises:
        DataError: text that is not a date or time; `name` is the argument it was given for.
    """
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise DataError(
            f"{name}={value} is not a date or time; write it as 2022-05-03 or 2022-05-03T12:00:00"
        ) from None
    if not isinstance(at, datetime):
        at = datetime(at.year, at.month, at.day)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _same_ids(
    name: str, events: pl.DataFrame, test: pl.DataFrame, files: tuple[Path, ...]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Train and test with one type of id. Integers recognised in text go back to the very same text."""
    text = bool(files) and format_of(files[0]) not in ("Parquet", "NDJSON")
    for role in (USER_ID, ITEM_ID):
        here, there = events[role].dtype, test[role].dtype
        if here != there:
            if not text:
                raise DataError(f"{name}: {role} is {here} in train and {there} in test; convert one of them")
            as_text = pl.col(role).cast(pl.String)
            events, test = events.with_columns(as_text), test.with_columns(as_text)
    return events, test


def _k_core(events: pl.DataFrame, k: int) -> pl.DataFrame:
    """Rows whose user and item keep at least k distinct positive partners each, iterated to the end."""
    positives = events.filter(pl.col(LABEL) == 1) if LABEL in events.columns else events
    pairs, height = positives.select(USER_ID, ITEM_ID).unique(), -1
    while pairs.height != height:
        height = pairs.height
        pairs = pairs.filter(pl.len().over(USER_ID) >= k).filter(pl.len().over(ITEM_ID) >= k)
    return events.join(pairs, on=USER_ID, how="semi").join(pairs, on=ITEM_ID, how="semi")
