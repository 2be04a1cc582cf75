"""Readers: every layout and format gives the same log."""

import gzip
from datetime import UTC, datetime

import pandas as pd
import polars as pl
import pytest

from recsys.data import readers
from recsys.data.checks import DataError

ROWS = [(1, 10, 5.0, 978300760), (1, 20, 3.0, 978300761), (2, 10, 4.0, 978300762), (2, 30, 4.5, 978300763)]
LIKED = [(1, 10), (2, 10), (2, 30)]


def pairs(log):
    return sorted(log.events.select("user_id", "item_id").collect().rows())


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def hundred_thousand(folder):
    write(folder / "u.data", "".join(f"{u}\t{i}\t{r:g}\t{t}\n" for u, i, r, t in ROWS))
    write(folder / "u.user", "1|24|M|technician|85711\n2|53|F|other|T8H1N\n")
    flags = "|".join("1" if genre in (5, 8) else "0" for genre in range(19))
    write(
        folder / "u.item",
        f"10|Café: a film (1995)|01-Jan-1995|||{flags}\n20|B|||" + f"|{flags}\n30|C||||{flags}\n",
        "latin-1",
    )


def one_million(folder):
    write(folder / "ratings.dat", "".join(f"{u}::{i}::{r:g}::{t}\n" for u, i, r, t in ROWS))
    write(folder / "users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n")
    write(folder / "movies.dat", "10::Café: a film (1995)::Comedy|Drama\n20::B::Drama\n", "latin-1")


def ten_million(folder):
    write(folder / "ratings.dat", "".join(f"{u}::{i}::{r:g}::{t}\n" for u, i, r, t in ROWS))
    write(folder / "movies.dat", "10::Café: a film (1995)::Comedy|Drama\n20::B::Drama\n")


def latest(folder):
    header = "userId,movieId,rating,timestamp\n"
    write(folder / "ratings.csv", header + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in ROWS))
    write(
        folder / "movies.csv",
        'movieId,title,genres\n10,"Café: a film (1995)",Comedy|Drama\n20,"B, C",Drama\n',
    )


@pytest.mark.parametrize(
    ("layout", "name", "has_users"),
    [
        (hundred_thousand, "movielens-100k", True),
        (one_million, "movielens-1m", True),
        (ten_million, "movielens-10m", False),
        (latest, "movielens-ml-x", False),
    ],
)
def test_movielens_layouts_are_recognised_by_their_files(tmp_path, layout, name, has_users):
    layout(tmp_path / "ml-x")
    for path in (tmp_path / "ml-x", tmp_path):
        log = readers.movielens(path)
        assert (log.name, pairs(log)) == (name, LIKED)
        assert log.counts["rows_below_threshold"] == 1
        assert log.events.collect()["timestamp"].min() == datetime(2000, 12, 31, 22, 12, 40, tzinfo=UTC)
        assert log.items.collect().row(0) == (10, "Café: a film (1995)", "Comedy|Drama")
        assert (log.users is not None) == has_users
    kept = readers.movielens(tmp_path, min_rating=4.5, keep_negatives=True).events.collect()
    assert sorted(kept.select("user_id", "item_id", "label").rows()) == [
        (1, 10, 1), (1, 20, 0), (2, 10, 0), (2, 30, 1),
    ]  # fmt: skip


def test_movielens_100k(ml_100k):
    log = readers.movielens(ml_100k)
    assert log.counts["rows_read"] == 100_000
    assert log.counts["rows"] == 55_375
    assert log.users.collect().height == 943
    assert log.items.collect().height == 1682
    assert log.items.collect().row(0) == (1, "Toy Story (1995)", "Animation|Children's|Comedy")


def test_kuairand(kuairand):
    log = readers.table(
        kuairand / "log_standard_20220425_20220504.parquet",
        columns={"label": "long_view"},
        user_features=kuairand / "user_features.parquet",
        item_features=kuairand / "video_features_basic.parquet",
        item_features_timestamp="upload_dt",
    )
    raw = pl.read_parquet(kuairand / "log_standard_20220425_20220504.parquet")
    distinct = raw.select("user_id", "video_id", "time_ms", "long_view").unique()
    assert log.counts["columns"]["item_id"] == "video_id"
    assert log.counts["duplicate_rows"] == raw.height - distinct.height > 0
    assert log.counts["positives"] == distinct["long_view"].sum()
    assert log.events.collect()["timestamp"].max() == datetime(2022, 5, 4, 15, 52, 9, 474000, tzinfo=UTC)
    assert log.items.collect()["timestamp"].dtype == pl.Datetime("us", "UTC")


FRAME = pl.DataFrame(
    {
        "who": ["a", "b", "b", "c"],
        "what": [1, 1, 2, 2**62],
        "when": [1_600_000_000, 1_600_000_001, 1_600_000_002, 1_600_000_003],
        "stars": [5, 2, 4, 1],
        "place": ["x", "y", "x", None],
    }
)
NAMES = {"user_id": "who", "item_id": "what", "timestamp": "when", "label": "stars"}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "ndjson", "csv.gz", "glob", "folder", "hive"])
def test_every_format_gives_the_same_log(tmp_path, suffix):
    path = tmp_path / f"log.{suffix}"
    if suffix == "parquet":
        FRAME.write_parquet(path)
    elif suffix == "csv":
        FRAME.write_csv(path)
    elif suffix == "tsv":
        FRAME.write_csv(path, separator="\t")
    elif suffix == "ndjson":
        FRAME.write_ndjson(path)
    elif suffix == "csv.gz":
        path.write_bytes(gzip.compress(FRAME.write_csv().encode()))
    elif suffix == "hive":
        # The folder above is no partition of the log, whatever its name.
        path = tmp_path / "who=7"
        for (place,), part in FRAME.fill_null("z").group_by("place"):
            (path / f"place={place}").mkdir(parents=True)
            part.drop("place").write_parquet(path / f"place={place}" / "0.parquet")
    else:
        path.mkdir()
        (path / "_SUCCESS").touch()
        FRAME[:3].with_columns(pl.col("stars").cast(pl.Int32)).write_parquet(path / "a.parquet")
        FRAME[3:].write_parquet(path / "b.parquet")
        path = path / "*.parquet" if suffix == "glob" else path
    log = readers.table(path, columns=NAMES, label_threshold=4, keep=["place"])
    expected = readers.frame(FRAME, columns=NAMES, label_threshold=4, keep=["place"]).events.collect()
    if suffix == "hive":
        expected = expected.with_columns(pl.col("place").fill_null("z"))
    assert log.events.collect().sort("user_id", "item_id").equals(expected.sort("user_id", "item_id"))
    assert expected["label"].to_list() == [1, 0, 1, 0]
    assert all(file.is_file() for file in log.files)


def test_a_pandas_frame_reads_like_a_polars_one():
    data = pd.DataFrame({"uid": [1, 1, 2], "item": ["x", "y", "x"], "time": pd.to_datetime(["2024-01-01"] * 3)})
    log = readers.frame(data)
    expected = pl.from_pandas(data).rename({"uid": "user_id", "item": "item_id"})
    assert log.events.select("user_id", "item_id").collect().equals(expected.select("user_id", "item_id"))
    assert log.events.collect()["timestamp"][0] == datetime(2024, 1, 1, tzinfo=UTC)


MOMENT = datetime(2022, 5, 3, 12, 30, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("times", "options"),
    [
        (["2022-05-03T12:30:15Z"], {}),
        (["2022-05-03 14:30:15+02:00"], {}),
        (["2022-05-03 12:30:15.000"], {}),
        (["03/05/2022 12:30:15"], {"timestamp_format": "%d/%m/%Y %H:%M:%S"}),
        ([MOMENT], {}),
        ([MOMENT.replace(tzinfo=None)], {}),
        ([1651581015], {}),
        ([1651581015.0], {}),
        (["1651581015"], {}),
        ([1651581015_000], {}),
        ([1651581015_000_000], {}),
        ([1651581015_000_000_000], {}),
        ([1651581015_000], {"timestamp_unit": "ms"}),
        ([20220503123015], {"timestamp_format": "%Y%m%d%H%M%S"}),
    ],
)
def test_times_in_many_spellings(tmp_path, times, options):
    data = pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": times})
    data.write_csv(tmp_path / "log.csv")
    assert readers.frame(data, **options).events.collect()["timestamp"].to_list() == [MOMENT]
    if not isinstance(times[0], datetime):
        log = readers.table(tmp_path / "log.csv", **options)
        assert log.events.collect()["timestamp"].to_list() == [MOMENT]


def test_a_date_is_its_first_moment_in_utc():
    data = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": ["2022-05-03", "2022-05-04 01:02"]})
    found = readers.frame(data).events.collect()["timestamp"].to_list()
    assert found == [datetime(2022, 5, 3, tzinfo=UTC), datetime(2022, 5, 4, 1, 2, tzinfo=UTC)]


def test_ids_that_are_the_same_number_in_text_stay_apart(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id\n7,1\n07,1\n")
    assert pairs(readers.table(tmp_path / "log.csv")) == [("07", 1), ("7", 1)]
    text = pl.DataFrame({"user_id": ["7", "8"], "item_id": [1, 1]})
    assert pairs(readers.frame(text)) == [("7", 1), ("8", 1)]


def test_booleans_are_labels(tmp_path):
    data = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "liked": [True, False]})
    data.write_csv(tmp_path / "log.csv")
    for log in (
        readers.frame(data, columns={"label": "liked"}),
        readers.table(tmp_path / "log.csv", columns={"label": "liked"}),
    ):
        assert log.events.collect()["label"].to_list() == [1, 0]


def test_duplicate_rows_are_counted_and_dropped():
    data = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [5, 5, 5], "timestamp": [1, 1, 2]})
    log = readers.frame(data)
    assert (log.counts["duplicate_rows"], log.counts["rows"]) == (1, 2)


def test_one_interaction_users_are_read_and_counted():
    log = readers.frame(pl.DataFrame({"user_id": [1, 2, 2], "item_id": [5, 5, 6]}))
    assert log.counts["one_interaction_users"] == 1
    assert log.counts["users"] == 2


def test_window_takes_the_start_and_leaves_the_end():
    data = pl.DataFrame(
        {"user_id": [1] * 4, "item_id": [1, 2, 3, 4], "timestamp": [f"2022-05-0{day}" for day in range(1, 5)]}
    )
    log = readers.frame(data, start="2022-05-02", end=datetime(2022, 5, 4))
    assert pairs(log) == [(1, 2), (1, 3)]
    assert log.counts["rows_outside_window"] == 2
    with pytest.raises(DataError, match=r"start=May is not a date or time; write it as 2022-05-03"):
        readers.frame(data, start="May")


def test_k_core_is_iterated_on_distinct_positive_pairs():
    # Item 3 has two positives of one user; without it user 3 has one item left; without user 3 item 2 stays.
    rows = [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1), (3, 2, 1), (3, 3, 1), (3, 3, 1), (1, 3, 0), (2, 9, 0)]
    data = pl.DataFrame(rows, schema=["user_id", "item_id", "label"], orient="row").with_row_index("timestamp")
    log = readers.frame(data, columns={"label": "label"}, k_core=2)
    assert pairs(log) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    with pytest.raises(DataError, match=r"no rows left of 9 after rows_outside_k_core"):
        readers.frame(data, columns={"label": "label"}, k_core=4)


def test_adjacency_lines(tmp_path):
    (tmp_path / "train.txt").write_text("0 1 2 2\n1\n2\t3  1 \n\n")
    (tmp_path / "test.txt").write_text("0 3\n1 9\n")
    log = readers.adjacency(tmp_path / "train.txt", tmp_path / "test.txt")
    assert pairs(log) == [(0, 1), (0, 2), (2, 1), (2, 3)]
    assert sorted(log.test.collect().rows()) == [(0, 3), (1, 9)]
    assert log.counts["duplicate_rows"] == 1
    assert log.counts["lines_without_items"] == 1
    (tmp_path / "test.txt").write_text("0 x3\n")
    log = readers.adjacency(tmp_path / "train.txt", tmp_path / "test.txt")
    assert log.test.collect().rows() == [(0, "x3")]
    assert pairs(log) == [(0, "1"), (0, "2"), (2, "1"), (2, "3")]


def test_feature_tables_are_typed_like_ids(tmp_path):
    (tmp_path / "log.csv").write_text("uid,item_id\n1,a\n")
    (tmp_path / "films.csv").write_text("key,since,length,name\na,2020-01-01,90,A\nb,2021-01-01,,B\n")
    log = readers.table(
        tmp_path / "log.csv",
        item_features=tmp_path / "films.csv",
        item_features_id="key",
        item_features_timestamp="since",
    )
    items = log.items.collect()
    assert items.columns == ["item_id", "timestamp", "length", "name"]
    assert items["length"].to_list() == [90, None]
    assert items["timestamp"][1] == datetime(2021, 1, 1, tzinfo=UTC)
