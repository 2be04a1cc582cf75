"""Logs in: any table, MovieLens, KuaiRand, adjacency lists, sequences, NCF's files, a DataFrame, the world. Each reader
returns a `Log`.

Files are scanned lazily and only the columns that are named are read. Rows that agree in every column read
are one row: the others are counted and dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import torch

from recsys.data import checks
from recsys.data import kuairand as layout
from recsys.data import ncf as ncf_layout
from recsys.data.checks import DataError, Rows, nearest
from recsys.data.files import read_fields, read_lines, read_rows
from recsys.data.log import Log, make_log
from recsys.data.movielens import RATING, read_layout
from recsys.schema import ITEM_ID, LABEL, TIMESTAMP, USER_ID
from recsys.world import World, logs, population, writer

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 100_000_000  # of a world's log in memory, at 57 bytes each

# What columns are usually called; tried in this order where the config names none.
USUAL = {
    USER_ID: ("user_id", "userId", "userid", "user", "uid", "reviewer_id", "customer_id", "visitor_id"),
    ITEM_ID: ("item_id", "itemId", "itemid", "item", "iid", "movieId", "movie_id", "video_id", "product_id"),
    TIMESTAMP: ("timestamp", "time_ms", "time", "ts", "datetime", "event_time"),
}


def table(
    path: str | Path,
    *,
    test: str | Path | None = None,
    candidates: str | Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    keep: list[str] | None = None,
    label_threshold: float | None = None,
    keep_negatives: bool = True,
    timestamp_unit: str | None = None,
    timestamp_format: str | None = None,
    separator: str | None = None,
    user_features: str | Path | None = None,
    user_features_id: str | None = None,
    item_features: str | Path | None = None,
    item_features_id: str | None = None,
    item_features_timestamp: str | None = None,
    k_core: int = 0,
    start: str | datetime | None = None,
    end: str | datetime | None = None,
) -> Log:
    """A log in Parquet, CSV, TSV or NDJSON: one file, a folder (hive partitions become columns) or a glob.

    Args:
        test: the test part in files of the same kind, for split=given.
        candidates: likewise a table of user_id and item_id: what is ranked for each user of the test part beside the
            user's positives, in place of the whole catalogue.
        columns: names of user_id, item_id, timestamp and label in the files. A user_id, item_id or timestamp
            left out is looked for under its usual names; a label is only read where it is named.
        keep: further columns to keep.
        label_threshold: rows with a label of at least this are positive; without it, labels are 0/1 or
            boolean.
        keep_negatives: False drops the rows that are not positive, as "min rating" filters do.
        timestamp_unit: s, ms, us or ns for epochs; recognised by magnitude where not given.
        timestamp_format: a strptime pattern for text that is not ISO 8601.
        user_features, item_features: tables joined by id, with the name of the id column.
        item_features_timestamp: the column that says from when an item is known.
        k_core: keep users and items with at least k distinct positive partners, iterated to the end.
        start, end: keep rows in [start, end).

    Raises:
        DataError: anything wrong with a file, a column or a value, in one line.
    """
    names = dict(columns or {})
    kept = list(keep or [])
    rows, found, files = _table_rows(path, names, kept, separator)
    events = _typed(rows, found, kept, label_threshold, timestamp_unit, timestamp_format)
    held_out = None
    if test is not None:
        test_rows, test_found, test_files = _table_rows(test, names, kept, separator)
        held_out = _typed(test_rows, test_found, kept, label_threshold, timestamp_unit, timestamp_format)
        files += test_files
    listed = None
    if candidates is not None:
        ids = {role: names.get(role) for role in (USER_ID, ITEM_ID)}
        listed_rows, listed_found, listed_files = _table_rows(candidates, ids, [], separator)
        listed = _typed(listed_rows, {role: listed_found[role] for role in ids}, [])
        files += listed_files
    users, items = (
        _features(features, id_name, role, time_name, separator)
        for features, id_name, role, time_name in (
            (user_features, user_features_id, USER_ID, None),
            (item_features, item_features_id, ITEM_ID, item_features_timestamp),
        )
    )
    return make_log(
        Path(path).stem, events, held_out, users, items, files, {"columns": found},
        keep_negatives=keep_negatives, k_core=k_core, start=start, end=end, candidates=listed,
    )  # fmt: skip


def frame(
    df: pl.DataFrame | pl.LazyFrame | pd.DataFrame,
    *,
    test: pl.DataFrame | pl.LazyFrame | pd.DataFrame | None = None,
    columns: Mapping[str, str | None] | None = None,
    keep: list[str] | None = None,
    label_threshold: float | None = None,
    keep_negatives: bool = True,
    timestamp_unit: str | None = None,
    timestamp_format: str | None = None,
    users: pl.DataFrame | pd.DataFrame | None = None,
    items: pl.DataFrame | pd.DataFrame | None = None,
    k_core: int = 0,
    start: str | datetime | None = None,
    end: str | datetime | None = None,
    name: str = "frame",
) -> Log:
    """A log from a Polars or pandas DataFrame. Arguments and errors as in `table`.

    users, items: feature tables whose id column has one of the usual names.
    """
    names = dict(columns or {})
    kept = list(keep or [])
    parts: list[pl.DataFrame | None] = []
    found: dict[str, str] = {}
    for data, what in ((df, "the DataFrame"), (test, "the test DataFrame")):
        if data is None:
            parts.append(None)
            continue
        rows = _frame_rows(data, what)
        found = _resolve(names, rows.frame.columns, what)
        _require(kept, rows.frame.columns, what)
        parts.append(_typed(rows, found, kept, label_threshold, timestamp_unit, timestamp_format))
    events, held_out = parts
    assert events is not None
    features = [
        None if data is None else _feature_table(_frame_rows(data, what), None, role, None)
        for data, what, role in (
            (users, "the users DataFrame", USER_ID),
            (items, "the items DataFrame", ITEM_ID),
        )
    ]
    return make_log(
        name, events, held_out, features[0], features[1], (), {"columns": found},
        keep_negatives=keep_negatives, k_core=k_core, start=start, end=end,
    )  # fmt: skip


def movielens(
    path: str | Path,
    *,
    min_rating: float = 4.0,
    keep_negatives: bool = False,
    k_core: int = 0,
    start: str | datetime | None = None,
    end: str | datetime | None = None,
) -> Log:
    """MovieLens 100K, 1M, 10M, 20M, 25M, 32M or latest, recognised by the files in the folder.

    Ratings of at least `min_rating` are positives; lower ones leave the log unless `keep_negatives`. Users
    and films come with what the layout knows (Harper and Konstan, "The MovieLens datasets", TiiS 2015).

    Raises:
        DataError: no known layout in the folder, or anything wrong with a file.
    """
    name, rows, users, items, files = read_layout(Path(path))
    found = {role: role for role in (USER_ID, ITEM_ID, TIMESTAMP)} | {LABEL: RATING}
    events = _typed(rows, found, [], min_rating, "s")
    return make_log(
        name, events, None, users, items, files, {},
        keep_negatives=keep_negatives, k_core=k_core, start=start, end=end,
    )  # fmt: skip


def kuairand(
    path: str | Path,
    *,
    label: str = "long_view",
    start: str | datetime | None = None,
    end: str | datetime | None = None,
    keep: Sequence[str] = ("is_click", "long_view", "is_like"),
) -> Log:
    """KuaiRand, as published in CSV or as Parquet with histories, recognised by the files in the folder.

    Rows are impressions by the standard policy (Gao et al., CIKM 2022). Known when a video is shown: `tab`, the page,
    and `duration_seconds`, null where unknown. Known only afterwards, so outcomes and never inputs: `watch_seconds`,
    and the responses as `outcome_is_click` and so on. Users and videos bring all their features; `uploaded` is one of
    them, as every video is older than the log. `Log.past` holds up to 50 videos of each user from before, all at the
    time of the last one watched: the long views or likes where one of them is the label, else all that was played,
    clicked or not. What the log has itself is left out of it.

    Args:
        label: the response that makes an impression positive.
        start, end: keep rows in [start, end).
        keep: further responses to keep as outcomes; the label is left out of them.

    Raises:
        DataError: no known layout in the folder, a label that is no response, or anything wrong with a file.
    """
    layout.check_responses(label, keep)
    paths = layout.find_layout(Path(path))
    raw = [*layout.KEPT, *(name for name in dict.fromkeys(keep) if name != label)]
    rows, found, files = _table_rows(paths[layout.LOG], {**layout.COLUMNS, LABEL: label}, raw, None)
    events = layout.with_context(_typed(rows, found, raw, unit="ms"), rows)
    users, items = (
        _features(paths[pattern], layout.COLUMNS[role], role, time, None)
        for pattern, role, time in ((layout.USERS, USER_ID, None), (layout.VIDEOS, ITEM_ID, "upload_dt"))
    )
    assert users is not None
    assert items is not None
    log = make_log(
        "kuairand", events, None, layout.users(users), layout.videos(items), files, {"columns": found},
        start=start, end=end,
    )  # fmt: skip
    if layout.HISTORY not in paths:
        return log

    def choose(available: list[str], file: str) -> list[str]:
        _require(wanted := layout.history_columns(label), available, file)
        return wanted

    histories, more = read_rows(paths[layout.HISTORY], choose)
    # A few histories end with the user's first row of the log.
    before = layout.past(histories).join(events, on=[USER_ID, ITEM_ID, TIMESTAMP], how="anti", maintain_order="left")
    return replace(log, files=files + more, past=before.lazy())


def adjacency(train: str | Path, test: str | Path) -> Log:
    """Two files of lines "user item item …", as published with LightGCN (He et al., SIGIR 2020).

    A user without items is a line with one id; it is known and has no positive.

    Raises:
        DataError: anything wrong with a file.
    """
    parts = [read_lines(path) for path in (train, test)]
    columns = {USER_ID: USER_ID, ITEM_ID: ITEM_ID}
    events, held_out = (_typed(rows, columns, []) for rows, _, _ in parts)
    counts = {"lines_without_items": sum(bare for _, bare, _ in parts)}
    files = tuple(file for _, _, file in parts)
    return make_log(Path(train).resolve().parent.name, events, held_out, None, None, files, counts)


def sequences(path: str | Path, *, k_core: int = 0) -> Log:
    """Lines "user item", each user's in order of time, as published with SASRec (Kang and McAuley, ICDM 2018).

    The timestamp is the number of the row, in microseconds: it orders a user's items and says nothing between users.

    Raises:
        DataError: anything wrong with the file.
    """
    rows = read_fields(path, (USER_ID, ITEM_ID))
    events = _typed(rows, {USER_ID: USER_ID, ITEM_ID: ITEM_ID}, [])
    events = events.with_columns(pl.int_range(pl.len()).cast(checks.UTC).alias(TIMESTAMP))
    files = (Path(path).expanduser(),)
    return make_log(Path(path).stem, events, None, None, None, files, {}, k_core=k_core)


def ncf(path: str | Path, name: str, *, candidates: bool = True) -> Log:
    """The three files of a data set as published with NCF (He et al., WWW 2017): NAME.train.rating, NAME.test.rating
    and NAME.test.negative, the 99 items that each test pair is ranked among. Rows of train rated 0 are left out.

    Args:
        path: the folder.
        name: of the data set: ml-1m or pinterest-20.
        candidates: False ranks the whole catalogue.

    Raises:
        DataError: a file is missing or has a malformed line.
    """
    train, test, listed, files = ncf_layout.read_layout(Path(path), name)
    found = {role: role for role in (USER_ID, ITEM_ID, TIMESTAMP) if role in train.frame.columns}
    events = _typed(train, found | {LABEL: ncf_layout.RATING}, [], threshold=1.0, unit="s")
    held_out = _typed(test, {role: role for role in found if role in test.frame.columns}, [], unit="s")
    pairs = _typed(listed, {USER_ID: USER_ID, ITEM_ID: ITEM_ID}, []) if candidates else None
    return make_log(
        name, events, held_out, None, None, files, {}, keep_negatives=False, candidates=pairs
    )  # fmt: skip


def world(world: World, *, stream: bool = False, device: str = "cpu") -> Log:
    """The log of a synthetic world, generated on the spot; `Log.world` is the world.

    Rows are impressions; label 1 is a click on the homepage, a long view on the feed. Videos are known from the day of
    their upload.

    Args:
        stream: keep the positives alone; the other impressions are generated, counted and forgotten block by block,
            which takes some fifty times less memory on the homepage.
        device: where rows are made: cpu or cuda, hundreds of times as fast. Both have given the same log to the bit
            (benchmarks/bench_gpu.py compares them); no other GPU or library of logarithms is bound to.

    Raises:
        DataError: a log too long to be held, or no such device.
    """
    if device not in ("cpu", "cuda"):
        raise DataError(f"data.device={device}: expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise DataError("data.device=cuda: torch sees no GPU, use data.device=cpu (see `recsys doctor`)")
    rows = writer.expected_rows(world)
    if rows > MOST_ROWS and not stream:
        raise DataError(
            f"world {world.name} has about {rows:,.0f} impressions, too many to hold: use data.stream=true, "
            "or `recsys generate` and data=table"
        )
    events = logs.positives(world, device=device) if stream else logs.log(world, device=device)
    positives = events.filter(pl.col(LABEL) == 1)
    counts = {
        "rows_read": events.height,
        "duplicate_rows": 0,
        "rows": events.height,
        "positives": positives.height,
        "users": events[USER_ID].n_unique(),
        "items": events[ITEM_ID].n_unique(),
        "one_interaction_users": int((positives[USER_ID].unique_counts() == 1).sum()),
    }
    videos = population.video_table(world).rename({"uploaded": TIMESTAMP})
    people = population.user_table(world).lazy()
    return Log(world.name, events.lazy(), users=people, items=videos.lazy(), counts=counts, world=world)


def _table_rows(
    path: str | Path, names: Mapping[str, str | None], keep: list[str], separator: str | None
) -> tuple[Rows, dict[str, str], tuple[Path, ...]]:
    found: dict[str, str] = {}

    def choose(available: list[str], file: str) -> list[str]:
        if not found:
            found.update(_resolve(names, available, file))
        wanted = list(dict.fromkeys([*found.values(), *keep]))
        _require(wanted, available, file)
        return wanted

    rows, files = read_rows(path, choose, separator)
    return rows, found, files


def _resolve(names: Mapping[str, str | None], available: list[str], file: str) -> dict[str, str]:
    """Which column plays which role."""
    roles = (USER_ID, ITEM_ID, TIMESTAMP, LABEL)
    for role in names:
        if role not in roles:
            raise DataError(f"columns.{role} is unknown{nearest(role, roles)}; columns are {', '.join(roles)}")
    found = {role: _column(role, names.get(role), available, file) for role in roles}
    return {role: name for role, name in found.items() if name is not None}


def _column(role: str, named: str | None, available: list[str], file: str) -> str | None:
    """The column as named, else by its usual name; ids must be found."""
    if named is not None:
        _require([named], available, file)
        return named
    usual = next((name for name in USUAL.get(role, ()) if name in available), None)
    if usual is None and role in (USER_ID, ITEM_ID):
        raise DataError(f"{file}: no column {role!r} among {', '.join(available)}; say columns.{role}=NAME")
    return usual


def _require(wanted: list[str], available: list[str], file: str) -> None:
    for name in wanted:
        if name not in available:
            raise DataError(f"{file}: no column {name!r}{nearest(name, available)} (it has {', '.join(available)})")


def _typed(
    rows: Rows,
    found: Mapping[str, str],
    keep: list[str],
    threshold: float | None = None,
    unit: str | None = None,
    pattern: str | None = None,
) -> pl.DataFrame:
    columns = {role: checks.ids(rows, found[role]) for role in (USER_ID, ITEM_ID)}
    if TIMESTAMP in found:
        columns[TIMESTAMP] = checks.times(rows, found[TIMESTAMP], unit, pattern)
    if LABEL in found:
        columns[LABEL] = checks.labels(rows, found[LABEL], threshold)
    elif threshold is not None:
        raise DataError(f"{rows.files[0]}: label_threshold={threshold:g} without a label; say columns.label=NAME")
    for name in keep:
        if name in columns:
            raise DataError(f"keep: column {name!r} has a role already; leave it out")
        columns[name] = checks.plain(rows.frame[name]) if rows.text else rows.frame[name]
    return pl.DataFrame(columns)


def _frame_rows(data: pl.DataFrame | pl.LazyFrame | pd.DataFrame, what: str) -> Rows:
    if isinstance(data, pl.LazyFrame):
        data = data.collect()
    if not isinstance(data, pl.DataFrame):
        if not hasattr(data, "iloc"):
            raise DataError(f"{what} is a {type(data).__name__}; give a Polars or pandas DataFrame")
        data = pl.from_pandas(data)
    if data.is_empty():
        raise DataError(f"{what}: no rows")
    return Rows(data, [what], [data.height])


def _features(
    path: str | Path | None, id_name: str | None, role: str, time_name: str | None, separator: str | None
) -> pl.LazyFrame | None:
    if path is None:
        return None
    rows, _ = read_rows(path, lambda available, file: available, separator)
    return _feature_table(rows, id_name, role, time_name)


def _feature_table(rows: Rows, id_name: str | None, role: str, time_name: str | None) -> pl.LazyFrame:
    """One row an id, the id first under the name of its role, then the timestamp where one is named."""
    available, file = rows.frame.columns, rows.files[0]
    source = _column(role, id_name, available, file)
    assert source is not None
    columns = {role: checks.ids(rows, source)}
    remedy = "keep one row an id"
    rows.refuse(~columns[role].is_first_distinct(), source, "id {} stands twice in a feature table", remedy)
    if time_name is not None:
        _require([time_name], available, file)
        columns[TIMESTAMP] = checks.times(rows, time_name)
    for name in available:
        if name not in (source, time_name):
            columns[name] = checks.plain(rows.frame[name]) if rows.text else rows.frame[name]
    return pl.DataFrame(columns).lazy()
