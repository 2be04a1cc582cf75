"""What every reader returns: `Log`, and how typed rows become one: duplicates, filters, counts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from recsys.data import overview
from recsys.data.checks import DataError
from recsys.data.files import format_of
from recsys.features.vocabulary import id_keys, mix64
from recsys.schema import ITEM_ID, LABEL, TIMESTAMP, USER_ID

if TYPE_CHECKING:
    from recsys.world import World


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
    past: positives from before the log (user_id, item_id, timestamp), for histories only: never split, trained on or
        counted.
    candidates: which items (user_id, item_id) are ranked for each user of the test part, beside the user's positives;
        None: the whole catalogue.
    """

    name: str
    events: pl.LazyFrame
    test: pl.LazyFrame | None = None
    users: pl.LazyFrame | None = None
    items: pl.LazyFrame | None = None
    files: tuple[Path, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)
    world: World | None = None
    past: pl.LazyFrame | None = None
    candidates: pl.LazyFrame | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 hex of the rows, those of test, past and candidates included: equal for equal content, whatever the
        order of rows and columns and however they lie in files.

        Each row becomes two 64-bit hashes over its (column name, value) pairs; their sums modulo 2^64 go into the
        digest with the number of rows and the names and types of the columns.
        """
        digest = hashlib.sha256()
        for name in ("events", "test", "past", "candidates"):
            lazy: pl.LazyFrame | None = getattr(self, name)
            if lazy is None:
                continue
            rows = lazy.collect()
            sums = [int(mix64(row_hashes(rows, lane), 7).sum(dtype=np.uint64)) for lane in (0, 1)]
            columns = sorted((column, str(dtype)) for column, dtype in rows.schema.items())
            digest.update(repr((name, rows.height, columns, sums)).encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"Log({overview.title(self)})"

    def _repr_html_(self) -> str:
        return overview.html(self)


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
    candidates: pl.DataFrame | None = None,
) -> Log:
    """Drop duplicates, apply the filters in the order threshold, window, k-core, and count what left."""
    counts = {"rows_read": events.height, **counts}
    events, test, candidates = _same_ids(name, {"train": events, "test": test, "candidates": candidates}, files)
    if candidates is not None:
        candidates = candidates.select(USER_ID, ITEM_ID).unique(maintain_order=True)
        counts["candidates"] = candidates.height
    if test is not None:
        counts["test_rows_read"] = test.height
        before = test.height
        test = distinct(test)
        counts["test_duplicate_rows"] = before - test.height
        if LABEL in test.columns and not keep_negatives:
            test = test.filter(pl.col(LABEL) == 1)

    def without(key: str, kept: pl.DataFrame) -> pl.DataFrame:
        counts[key] = events.height - kept.height
        if kept.is_empty():
            raise DataError(f"{name}: no rows left of {events.height} after {key}; loosen the filter")
        return kept

    events = without("duplicate_rows", distinct(events))
    if LABEL in events.columns and not keep_negatives:
        events = without("rows_below_threshold", events.filter(pl.col(LABEL) == 1).drop(LABEL))
        test = None if test is None else test.drop(LABEL, strict=False)
    if start is not None or end is not None:
        if TIMESTAMP not in events.columns:
            raise DataError(f"{name}: start and end need a timestamp; say columns.timestamp=NAME or leave them out")
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
    test_rows, pairs = (None if part is None else part.lazy() for part in (test, candidates))
    return Log(name, events.lazy(), test_rows, users, items, files, counts, candidates=pairs)


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


def distinct(rows: pl.DataFrame) -> pl.DataFrame:
    """Each row once. Only rows that share a hash with another are compared, which is what makes it fast."""
    hashes = row_hashes(rows, 0)
    ordered = np.sort(hashes)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not twice.size:
        return rows
    doubtful = np.isin(hashes, twice)
    return pl.concat([rows.filter(~doubtful), rows.filter(doubtful).unique(maintain_order=True)])


def row_hashes(rows: pl.DataFrame, lane: int) -> np.ndarray:
    """A hash of every row's (column name, value) pairs, whatever the order of columns, uint64 [n].

    lane: which of several independent hashes.
    """
    hashes = np.zeros(rows.height, dtype=np.uint64)
    for column in rows:
        seed = int.from_bytes(hashlib.blake2b(column.name.encode(), digest_size=7).digest(), "little") + lane
        mixed = mix64(_words(column), seed)
        hashes += np.where(column.is_null().to_numpy(), np.uint64(seed), mixed) if column.null_count() else mixed
    return hashes


def _words(column: pl.Series) -> np.ndarray:
    """A column as int64 words; null is any."""
    if column.dtype.is_temporal():
        column = column.to_physical()
    if column.dtype.is_float():
        words = (column.fill_null(0.0).cast(pl.Float64) + 0.0).to_numpy().view(np.int64)
    elif column.dtype.is_integer() or column.dtype == pl.Boolean:
        words = column.fill_null(0 if column.dtype.is_integer() else False).cast(pl.Int64).to_numpy()
    else:
        text = column.cast(pl.String) if not column.dtype.is_nested() else _json(column)
        words = id_keys(text.fill_null(""))
    return words


def _json(column: pl.Series) -> pl.Series:
    return column.to_frame("value").select(pl.struct("value").struct.json_encode())["value"]


def _same_ids(name: str, parts: dict[str, pl.DataFrame | None], files: tuple[Path, ...]) -> list[Any]:
    """The parts with one type of id. Integers recognised in text go back to the very same text."""
    text = bool(files) and format_of(files[0]) not in ("Parquet", "NDJSON")
    there = {part: frame for part, frame in parts.items() if frame is not None}
    for role in (USER_ID, ITEM_ID):
        types = {part: frame[role].dtype for part, frame in there.items()}
        (one, first), *others = types.items()
        for other, dtype in others:
            if dtype != first and not text:
                raise DataError(f"{name}: {role} is {first} in {one} and {dtype} in {other}; convert one of them")
        if len(set(types.values())) > 1:
            there = {part: frame.with_columns(pl.col(role).cast(pl.String)) for part, frame in there.items()}
    return [there.get(part) for part in parts]


def _k_core(events: pl.DataFrame, k: int) -> pl.DataFrame:
    """Rows whose user and item keep at least k distinct positive partners each, iterated to the end."""
    positives = events.filter(pl.col(LABEL) == 1) if LABEL in events.columns else events
    pairs, height = positives.select(USER_ID, ITEM_ID).unique(), -1
    while pairs.height != height:
        height = pairs.height
        pairs = pairs.filter(pl.len().over(USER_ID) >= k).filter(pl.len().over(ITEM_ID) >= k)
    return events.join(pairs, on=USER_ID, how="semi").join(pairs, on=ITEM_ID, how="semi")
