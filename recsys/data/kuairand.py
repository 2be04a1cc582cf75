"""The layout of KuaiRand: its files, and what its columns mean. Reading and typing them is left to `readers`.

Gao et al., "KuaiRand: an unbiased sequential recommendation dataset with randomly exposed videos", CIKM 2022.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from polars import selectors as cs

from recsys.data import checks
from recsys.data.checks import DataError, Rows, nearest
from recsys.data.files import existing
from recsys.schema import ITEM_ID, LABEL, TIMESTAMP, USER_ID

# The log of the random policy, log_random_*, is another experiment and stays out.
LOG, USERS, VIDEOS, HISTORY = "log_standard_*", "user_features*", "video_features_basic*", "user_history*.parquet"
COLUMNS = {USER_ID: "user_id", ITEM_ID: "video_id", TIMESTAMP: "time_ms"}
KEPT = ["tab", "duration_ms", "play_time_ms"]
# What a user did when shown a video. The stays are milliseconds, all others are 0 or 1.
RESPONSES = (
    "is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter",
    "profile_stay_time", "comment_stay_time",
)  # fmt: skip
MISSING = -124
HISTORIES = {"long_view": "long_watch_seq", "is_like": "like_seq"}  # any other label: watch_seq, all that was played


def find_layout(path: Path) -> dict[str, str]:
    """Globs of the files in a folder, or in one folder below it, by the patterns LOG, USERS, VIDEOS and HISTORY.

    Raises:
        DataError: no folder, no log in it, or a log without its users and videos.
    """
    path = existing(path.expanduser())
    folder = path if path.is_dir() else path.parent
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    place = next((p for p in places if any(p.glob(LOG))), None)
    if place is None:
        raise DataError(f"{path}: no KuaiRand layout here; it should hold {LOG}, {USERS} and {VIDEOS}")
    for pattern in (USERS, VIDEOS):
        if not any(place.glob(pattern)):
            raise DataError(f"{place}: no {pattern} beside the log; copy the file there")
    return {p: glob.escape(str(place)) + "/" + p for p in (LOG, USERS, VIDEOS, HISTORY) if any(place.glob(p))}


def check_responses(label: str, keep: Sequence[str]) -> None:
    """Raise where the label or a name to keep is no response."""
    for argument, name in (("label", label), *(("keep", name) for name in keep)):
        if name not in RESPONSES:
            remedy = f"responses are {', '.join(RESPONSES)}"
            raise DataError(f"{argument}={name} is no response of KuaiRand{nearest(name, RESPONSES)}; {remedy}")


def with_context(events: pl.DataFrame, rows: Rows) -> pl.DataFrame:
    """The columns of KEPT in seconds, a duration of zero as null, and responses under names that say so."""
    for name in KEPT:
        if not events[name].dtype.is_numeric():
            raise rows.wrong_type(name, "numbers")
    return events.select(
        cs.by_name(USER_ID, ITEM_ID, TIMESTAMP, LABEL, "tab"),
        duration_seconds=pl.when(pl.col("duration_ms") > 0).then(pl.col("duration_ms") / 1000),
        watch_seconds=pl.col("play_time_ms") / 1000,
        **{f"outcome_{name}": name for name in events.columns if name in RESPONSES},
    )


def users(table: pl.LazyFrame) -> pl.LazyFrame:
    """User features with nulls for what is missing."""
    numbers = cs.numeric() - cs.by_name(USER_ID)
    return _whole(table.with_columns(pl.when(numbers != MISSING).then(numbers)))


def videos(table: pl.LazyFrame) -> pl.LazyFrame:
    """Video features; `uploaded` is a day's first moment, `tag` stays text such as "12,65"."""
    duration, tag = (cs.by_name(name, require_all=False) for name in ("video_duration", "tag"))
    typed = _whole(table.rename({TIMESTAMP: "uploaded"}))
    return typed.with_columns((duration / 1000).name.suffix("_seconds"), tag.cast(pl.String)).drop(duration)


def history_columns(label: str) -> list[str]:
    """User, time of the last video, and the list of videos that fits a label."""
    return [USER_ID, "last_time_ms", HISTORIES.get(label, "watch_seq")]


def past(rows: Rows) -> pl.DataFrame:
    """What each user watched before the log, oldest first: user_id, item_id, timestamp; from the columns above.

    Raises:
        DataError: anything wrong with a value.
    """
    _, last, name = rows.frame.columns
    if not isinstance(rows.frame[name].dtype, pl.List):
        raise rows.wrong_type(name, "lists of video ids")
    owners = checks.ids(rows, USER_ID)
    rows.refuse(~owners.is_first_distinct(), USER_ID, "user {} stands twice", "keep one row a user")
    frame = pl.DataFrame({USER_ID: owners, TIMESTAMP: checks.times(rows, last, "ms"), name: rows.frame[name]})
    frame = frame.with_row_index("line", offset=1).filter(pl.col(name).list.len() > 0)
    # Only the time of the last video is known. By then all had surely been watched, so all are put there, a microsecond
    # apart to keep their order: the log counts in milliseconds, and none of its rows before that moment sees any of
    # them (lists have up to 50 videos; beyond 1,000 the first ones would slip into the millisecond before).
    later = pl.int_ranges(pl.col(name).list.len().cast(pl.Int64) - 1, -1, -1)
    seen = frame.with_columns(later=later).explode(name, "later")
    items = checks.ids(Rows(seen, rows.files, rows.heights, numbers=seen["line"]), name)
    time = pl.col(TIMESTAMP) - pl.duration(microseconds="later")
    return seen.select(USER_ID, items.alias(ITEM_ID), time)


def _whole(table: pl.LazyFrame) -> pl.LazyFrame:
    """Decimal columns that hold nothing but whole numbers as integers."""
    frame = table.with_columns(cs.float().fill_nan(None)).collect()
    whole = [column.name for column in frame.select(cs.float()) if (column == column.round()).all()]
    return frame.with_columns(pl.col(whole).cast(pl.Int64)).lazy()
