"""KuaiRand: a made-up folder of a few rows in either layout, and what is known of the real slice."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from recsys.data import readers, splits
from recsys.data.checks import DataError
from recsys.data.datamodule import RecDataModule

T0 = 1650812400000  # ms; 2022-04-24 15:00 UTC
RESPONSES = ["is_click", "is_like", "is_follow", "long_view"]
# user, video, time, responses, watched ms, duration ms, tab
ROWS = [
    (1, 10, T0, (1, 0, 0, 1), 20_000, 15_500, 1),
    (1, 10, T0, (1, 0, 0, 1), 20_000, 15_500, 1),
    (1, 11, T0 + 5, (0, 0, 0, 0), 1_200, 0, 4),
    (2, 11, T0 + 9, (1, 1, 0, 0), 3_000, 0, 1),
]
LOG = pl.DataFrame(
    [
        (user, video, 20220424, 2300, at, *said, watched, long, tab)
        for user, video, at, said, watched, long, tab in ROWS
    ],
    schema=["user_id", "video_id", "date", "hourmin", "time_ms", *RESPONSES, "play_time_ms", "duration_ms", "tab"],
    orient="row",
)
USERS = pl.DataFrame(
    {"user_id": [1, 2], "range": ["0", "(0,10]"], "streamer": [-124, 1], "feat4": [3.0, None], "share": [0.5, 1.0]}
)
VIDEOS = pl.DataFrame(
    {
        "video_id": [10, 11],
        "upload_dt": ["2022-04-09", "2022-04-10"],
        "video_duration": [15500.0, None],
        "server_width": [720.0, 1080.0],
        "tag": ["12,65", None],
    }
)
HISTORY = pl.DataFrame(
    {
        "user_id": [1, 2, 3],
        "last_time_ms": [T0, T0 - 1000, T0 - 2000],
        "watch_seq": [[12, 11, 12, 10], [11, 99], [10]],
        "like_seq": [[12], [], []],
        "long_watch_seq": [[12, 12], [99, 11], []],
    },
    schema_overrides={"like_seq": pl.List(pl.Int64)},
)


@pytest.fixture
def folder(tmp_path):
    LOG.write_parquet(tmp_path / "log_standard_x.parquet")
    USERS.write_parquet(tmp_path / "user_features.parquet")
    VIDEOS.write_parquet(tmp_path / "video_features_basic.parquet")
    HISTORY.write_parquet(tmp_path / "user_history_le50.parquet")
    return tmp_path


def micros(log):
    """(user, item, microseconds after T0) of the past, in its order."""
    rows = log.past.with_columns(pl.col("timestamp").to_physical() - T0 * 1000).collect()
    return rows.rows()


def test_events_tell_context_from_outcomes(folder):
    log = readers.kuairand(folder)
    events = log.events.sort("timestamp").collect()
    assert events.columns == [
        "user_id", "item_id", "timestamp", "label", "tab", "duration_seconds", "watch_seconds",
        "outcome_is_click", "outcome_is_like",
    ]  # fmt: skip
    assert (log.counts["rows_read"], log.counts["duplicate_rows"]) == (4, 1)
    assert events["label"].to_list() == [1, 0, 0]
    assert events["duration_seconds"].to_list() == [15.5, None, None]
    assert events["watch_seconds"].to_list() == [20.0, 1.2, 3.0]
    assert events["timestamp"][0] == datetime(2022, 4, 24, 15, tzinfo=UTC)
    liked = readers.kuairand(folder, label="is_like", keep=["is_like", "is_follow"]).events.sort("timestamp").collect()
    assert liked["label"].to_list() == [0, 0, 1]
    assert [name for name in liked.columns if name.startswith("outcome")] == ["outcome_is_follow"]
    assert readers.kuairand(folder, start="2022-04-24T15:00:00.001").counts["rows"] == 2


def test_features_are_typed_and_missing_values_are_null(folder):
    log = readers.kuairand(folder)
    assert log.users.collect().to_dict(as_series=False) == {
        "user_id": [1, 2], "range": ["0", "(0,10]"], "streamer": [None, 1], "feat4": [3, None], "share": [0.5, 1.0],
    }  # fmt: skip
    assert log.users.collect_schema()["feat4"] == pl.Int64
    assert log.items.collect().to_dict(as_series=False) == {
        "item_id": [10, 11],
        "uploaded": [datetime(2022, 4, 9, tzinfo=UTC), datetime(2022, 4, 10, tzinfo=UTC)],
        "server_width": [720, 1080],
        "tag": ["12,65", None],
        "video_duration_seconds": [15.5, None],
    }


def test_the_past_fits_the_label_and_keeps_its_order(folder):
    assert micros(readers.kuairand(folder)) == [(1, 12, -1), (1, 12, 0), (2, 99, -1_000_001), (2, 11, -1_000_000)]
    assert micros(readers.kuairand(folder, label="is_like")) == [(1, 12, 0)]
    # The last video of user 1 is a row of the log.
    assert micros(readers.kuairand(folder, label="is_click")) == [
        (1, 12, -3), (1, 11, -2), (1, 12, -1), (2, 11, -1_000_001), (2, 99, -1_000_000), (3, 10, -2_000_000),
    ]  # fmt: skip


def test_the_published_layout_gives_the_same_log(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("KuaiRand-Pure")
    (place / "data").mkdir()
    for name, part in (
        ("log_standard_4_08_to_4_21_pure", LOG[:3]),
        ("log_standard_4_22_to_5_08_pure", LOG[3:]),
        ("log_random_4_22_to_5_08_pure", LOG.with_columns(user_id=7)),
        ("user_features_pure", USERS),
        ("video_features_basic_pure", VIDEOS),
        ("video_features_statistic_pure", VIDEOS),
    ):
        part.write_csv(place / "data" / f"{name}.csv")
    one, two = readers.kuairand(folder), readers.kuairand(place)
    assert two.past is None
    assert two.events.collect().equals(one.events.collect())
    assert two.users.collect().equals(one.users.collect())
    assert two.items.collect().equals(one.items.collect())
    assert [file.name for file in two.files] == [
        f"log_standard_4_{days}_pure.csv" for days in ("08_to_4_21", "22_to_5_08")
    ]
    assert two.fingerprint == replace(one, past=None).fingerprint != one.fingerprint
    other = replace(one, past=one.past.with_columns(pl.col("timestamp") + timedelta(microseconds=1)))
    assert other.fingerprint != one.fingerprint


def test_what_is_wrong_is_said_in_one_line(folder):
    with pytest.raises(DataError, match=r"^label=long_vew is no response of KuaiRand; did you mean 'long_view'\?"):
        readers.kuairand(folder, label="long_vew")
    with pytest.raises(DataError, match=r"^keep=tab is no response of KuaiRand; responses are is_click, "):
        readers.kuairand(folder, keep=["tab"])
    with pytest.raises(DataError, match=r"log_standard_x.parquet: no column 'is_hate'"):
        readers.kuairand(folder, keep=["is_hate"])
    HISTORY.with_columns(user_id=1).write_parquet(folder / "user_history_le50.parquet")
    with pytest.raises(DataError, match=r"column 'user_id', row 2: user 1 stands twice; keep one row a user"):
        readers.kuairand(folder)
    HISTORY.with_columns(long_watch_seq=pl.lit("12")).write_parquet(folder / "user_history_le50.parquet")
    with pytest.raises(DataError, match=r"column 'long_watch_seq' is String, wanted lists of video ids"):
        readers.kuairand(folder)
    HISTORY.with_columns(long_watch_seq=pl.lit([3, None])).write_parquet(folder / "user_history_le50.parquet")
    with pytest.raises(DataError, match=r"column 'long_watch_seq', line 1: the id is missing"):
        readers.kuairand(folder)
    HISTORY.drop("like_seq").write_parquet(folder / "user_history_le50.parquet")
    with pytest.raises(DataError, match=r"no column 'like_seq'"):
        readers.kuairand(folder, label="is_like")
    LOG.with_columns(pl.col("play_time_ms").cast(pl.String)).write_parquet(folder / "log_standard_x.parquet")
    with pytest.raises(DataError, match=r"column 'play_time_ms' is String, wanted numbers"):
        readers.kuairand(folder)
    (folder / "user_features.parquet").unlink()
    with pytest.raises(DataError, match=r": no user_features\* beside the log"):
        readers.kuairand(folder)
    (folder / "log_standard_x.parquet").unlink()
    with pytest.raises(DataError, match=r"no KuaiRand layout here; it should hold log_standard_\*"):
        readers.kuairand(folder)


def test_the_real_slice(kuairand):
    log = readers.kuairand(kuairand)
    counts = {name: log.counts[name] for name in ("rows_read", "duplicate_rows", "rows", "users", "items")}
    assert counts == {"rows_read": 171_671, "duplicate_rows": 4_732, "rows": 166_939, "users": 24_076, "items": 6_075}
    raw = pl.read_parquet(kuairand / "log_standard_20220425_20220504.parquet")
    events = log.events.collect()
    assert events["duration_seconds"].null_count() > 2_500
    assert events["duration_seconds"].min() > 0
    assert events["watch_seconds"].max() == raw["play_time_ms"].max() / 1000
    users, items = log.users.collect(), log.items.collect()
    assert users.width == 31
    assert not any((column == -124).any() for column in users if column.dtype.is_numeric())
    assert users["is_live_streamer"].null_count() == 21_127
    assert not any(dtype.is_float() for dtype in users.dtypes)
    assert items["uploaded"].max() < events["timestamp"].min()
    assert events.join(users, on="user_id", how="anti").is_empty()
    assert events.join(items, on="item_id", how="anti").is_empty()


@pytest.mark.parametrize(("label", "size"), [("long_view", 390_929), ("is_like", 22_534), ("is_click", 817_187 - 3)])
def test_the_real_past_is_seen_from_its_last_moment_on(kuairand, label, size):
    log = readers.kuairand(kuairand, label=label)
    past = log.past.collect()
    assert past.height == size
    steps = past.select(pl.col("timestamp").diff().over("user_id").drop_nulls())
    assert (steps["timestamp"] == timedelta(microseconds=1)).all()
    history = pl.read_parquet(kuairand / "user_history_le50_before_0425.parquet")
    last = history.select("user_id", last=(pl.col("last_time_ms") * 1000).cast(pl.Datetime("us", "UTC")))
    # A row of the log sees what is strictly older than itself.
    early = log.events.collect().join(last, on="user_id").filter(pl.col("timestamp") < pl.col("last"))
    seen = past.join(last, on="user_id")
    assert (seen["timestamp"] <= seen["last"]).all()
    assert (seen["timestamp"] > seen["last"] - timedelta(milliseconds=1)).all()
    assert early.join(past, on="user_id").filter(pl.col("timestamp_right") < pl.col("timestamp")).is_empty()


def test_the_past_is_neither_split_nor_counted(kuairand):
    log = readers.kuairand(kuairand)
    one, two = (RecDataModule(each, splits.global_time) for each in (log, replace(log, past=None)))
    assert one.report == two.report
    assert len(one.items) == len(two.items) < log.past.select("item_id").unique().collect().height
    assert one.history.item_idx.equal(two.history.item_idx)
