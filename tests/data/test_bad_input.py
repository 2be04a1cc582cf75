"""Bad input: one line that names the file, the column and the first bad row, and says what to do."""

import os

import polars as pl
import pytest

from recsys.data import readers
from recsys.data.checks import DataError

GOOD = "user_id,item_id,rating,timestamp\n1,10,5,1600000000\n2,10,4,1600000001\n3,11,2,1600000002\n"
STARS = {"columns": {"label": "rating"}, "label_threshold": 4}


def refused(read, *args, **options):
    """The one line that a reader says."""
    with pytest.raises(DataError) as caught:
        read(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__cause__ is None
    return message


@pytest.fixture
def csv(tmp_path):
    """Writes the good file with one text replaced."""

    def make(old="", new="", name="log.csv"):
        assert old in GOOD
        path = tmp_path / name
        path.write_text(GOOD.replace(old, new, 1) if old else GOOD)
        return path

    return make


def test_the_good_file_is_good(csv):
    assert readers.table(csv(), **STARS).counts["positives"] == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2,10,4", ",10,4", "column 'user_id', row 2: the id is missing; fill it or drop the row"),
        ("3,11,2", "3,,2", "column 'item_id', row 3: the id is missing"),
        ("2,10,4", "-2,10,4", "column 'user_id', row 2: id -2 is negative"),
        ("2,10,4", "2.5,10,4", "column 'user_id', row 2: id '2.5' is a decimal number"),
        ("2,10,4", "2,10,good", "column 'rating', row 2: 'good' is not a number"),
        ("2,10,4", "2,10,", "column 'rating', row 2: the label is missing"),
        ("1600000002", "yesterday", "column 'timestamp', row 3: time 'yesterday' cannot be parsed"),
        ("1600000002", "", "column 'timestamp', row 3: the time is missing"),
        ("3,11,2,1600000002", "3,11", "column 'timestamp', row 3: the time is missing"),
        ("2,10,4,", "2,10,4,9,", "row 2 has more fields than the header"),
    ],
)
def test_a_bad_value_is_named_by_file_column_and_row(csv, old, new, message):
    path = csv(old, new)
    said = refused(readers.table, path, **STARS)
    assert said.startswith(f"{path}: {message}")


def test_the_row_is_counted_within_its_file(tmp_path):
    for name, items in (("a", [1, 2, 3]), ("b", [4, 5, -6])):
        pl.DataFrame({"user_id": [1, 1, 1], "item_id": items}).write_parquet(tmp_path / f"{name}.parquet")
    said = refused(readers.table, tmp_path)
    assert said.startswith(f"{tmp_path}/b.parquet: column 'item_id', row 3: id -6 is negative")


def test_a_missing_column_names_the_nearest(csv):
    said = refused(readers.table, csv(), columns={"user_id": "userid"})
    assert "log.csv: no column 'userid'; did you mean 'user_id'?" in said
    said = refused(readers.table, csv("user_id", "person"))
    assert "log.csv: no column 'user_id' among person, item_id, rating, timestamp; say columns.user_id=NAME" in said
    said = refused(readers.table, csv(), columns={"user": "user_id"})
    assert said.startswith("columns.user is unknown; did you mean 'user_id'?")
    assert "no column 'ratin'; did you mean 'rating'?" in refused(readers.table, csv(), keep=["ratin"])


def test_a_missing_column_in_a_later_file(tmp_path):
    pl.DataFrame({"user_id": [1], "item_id": [1]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"user_id": [1], "item": [1]}).write_parquet(tmp_path / "b.parquet")
    assert refused(readers.table, tmp_path).startswith(f"{tmp_path}/b.parquet: no column 'item_id'")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user_id", [1.0, 2.0], "column 'user_id' is Float64, wanted integers or text"),
        ("item_id", [[1], [2]], "column 'item_id' is List(Int64), wanted integers or text"),
        ("timestamp", [True, False], "column 'timestamp' is Boolean, wanted a datetime, a date"),
        ("rating", [[1], [2]], "column 'rating' is List(Int64), wanted numbers or booleans"),
        ("user_id", [1.0, None], "column 'user_id', row 2: the id is missing"),
        ("user_id", ["a", ""], "column 'user_id', row 2: the id is missing"),
        (
            "user_id",
            pl.Series([1, 2**63], dtype=pl.UInt64),
            "row 2: id 9223372036854775808 exceeds 64 signed",
        ),
        ("rating", [1.0, float("nan")], "column 'rating', row 2: the label is not a number"),
        ("timestamp", [1.0, float("inf")], "column 'timestamp', row 2: the time is missing"),
        ("timestamp", [1, 10**16], "column 'timestamp', row 2: time 10000000000000000 in s lies beyond"),
        ("timestamp", [20220425, 20220426], "column 'timestamp', row 1: 20220425 reads like a date"),
    ],
)
def test_a_wrong_type_or_value_in_parquet_and_frame(tmp_path, column, values, message):
    data = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1, 2], "rating": [4, 5]})
    data = data.with_columns(pl.Series(column, values))
    data.write_parquet(tmp_path / "log.parquet")
    options = {**STARS, "timestamp_unit": None if list(values) == [20220425, 20220426] else "s"}
    assert message in refused(readers.table, tmp_path / "log.parquet", **options)
    assert message in refused(readers.frame, data, **options)


def test_a_rating_needs_a_threshold(csv):
    said = refused(readers.table, csv(), columns={"label": "rating"})
    assert "row 1: label 5 is neither 0 nor 1; say from which value a row is positive" in said
    said = refused(readers.table, csv(), label_threshold=4)
    assert "label_threshold=4 without a label; say columns.label=NAME" in said


def test_an_unknown_unit(csv):
    assert "timestamp_unit=msec is unknown; did you mean 'ms'?" in refused(readers.table, csv(), timestamp_unit="msec")


def test_a_path_that_is_not_there_names_the_nearest(csv):
    path = csv()
    assert refused(readers.table, path.parent / "logs.csv") == (
        f"{path.parent}/logs.csv: no such file or folder; did you mean 'log.csv'?"
    )
    assert "no file matches" in refused(readers.table, path.parent / "*.parquet")
    assert "no such file" in refused(readers.movielens, path.parent / "ml-1m")


def test_a_folder_without_data(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert f"{tmp_path}: a folder without .parquet" in refused(readers.table, tmp_path)
    assert "wanted" not in refused(readers.movielens, tmp_path)
    assert "no MovieLens layout here; it should hold u.data" in refused(readers.movielens, tmp_path)
    assert f"{tmp_path}: a folder; name a file" in refused(readers.adjacency, tmp_path, tmp_path)


def test_an_unknown_suffix(csv):
    assert "its format is unknown; the suffix should be one of .parquet" in refused(readers.table, csv(name="log.xlsx"))


def test_mixed_formats(csv, tmp_path):
    csv()
    pl.DataFrame({"user_id": [1], "item_id": [1]}).write_parquet(tmp_path / "log.parquet")
    for path in (tmp_path, tmp_path / "log.*"):
        assert "mixes CSV (log.csv) and Parquet (log.parquet)" in refused(readers.table, path)


def test_files_that_disagree_on_a_type(tmp_path):
    for name, users in (("a", [1]), ("b", ["x"])):
        pl.DataFrame({"user_id": users, "item_id": [1]}).write_parquet(tmp_path / f"{name}.parquet")
    said = refused(readers.table, tmp_path)
    assert f"b.parquet: column 'user_id' is String, in {tmp_path}/a.parquet it is Int64" in said


@pytest.mark.parametrize(
    "name", ["log.csv", "log.parquet", "log.ndjson", "log.tsv", "train.txt", "ratings.dat", "u.data"]
)
def test_an_empty_file(tmp_path, name):
    path = tmp_path / name
    path.touch()
    if name == "train.txt":
        said = refused(readers.adjacency, path, path)
    else:
        said = refused(readers.movielens if name in ("ratings.dat", "u.data") else readers.table, path)
    assert said == f"{path}: the file is empty"


def test_a_file_without_rows(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id\n")
    pl.DataFrame({"user_id": [], "item_id": []}).write_parquet(tmp_path / "log.parquet")
    (tmp_path / "train.txt").write_text("\n\n")
    for name in ("log.csv", "log.parquet"):
        assert refused(readers.table, tmp_path / name) == f"{tmp_path / name}: no rows"
    assert refused(readers.frame, pl.DataFrame({"user_id": [], "item_id": []})) == "the DataFrame: no rows"
    assert "train.txt: no rows" in refused(readers.adjacency, tmp_path / "train.txt", tmp_path / "train.txt")


@pytest.mark.parametrize("left", [0.9, 0.5, 0.01])
def test_a_truncated_parquet(tmp_path, left):
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": range(1000), "item_id": range(1000)}).write_parquet(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    assert refused(readers.table, path).startswith(f"{path}: not readable as Parquet: ")


def test_damaged_pages_in_parquet(tmp_path):
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": range(1000), "item_id": range(1000)}).write_parquet(path)
    data = bytearray(path.read_bytes())
    data[40:400] = b"x" * 360
    path.write_bytes(data)
    assert refused(readers.table, path).startswith(f"{path}: not readable as Parquet: ")


def test_broken_ndjson_and_text_that_is_not_utf8(tmp_path):
    (tmp_path / "log.ndjson").write_text('{"user_id": 1, "item_id": 2}\n{"user_id": \n')
    assert "log.ndjson: not readable as NDJSON" in refused(readers.table, tmp_path / "log.ndjson")
    (tmp_path / "log.csv").write_bytes("user_id,item_id\nJosé,1\n".encode("latin-1"))
    assert "log.csv: not readable as CSV" in refused(readers.table, tmp_path / "log.csv")


def test_a_file_that_may_not_be_read(csv, monkeypatch):
    path = csv()
    monkeypatch.setattr(os, "access", lambda *args: False)
    assert refused(readers.table, path) == f"{path}: may not be read by this user; change its permissions"


def test_a_file_that_fails_while_reading(csv, monkeypatch):
    def fail(self, **options):
        raise OSError("Input/output error")

    monkeypatch.setattr(pl.LazyFrame, "collect", fail)
    assert "log.csv: not readable as CSV: Input/output error" in refused(readers.table, csv())


def test_bad_lines_in_adjacency(tmp_path):
    (tmp_path / "train.txt").write_text("0 1 2\n\n1 -2\n")
    said = refused(readers.adjacency, tmp_path / "train.txt", tmp_path / "train.txt")
    assert said.startswith(f"{tmp_path}/train.txt: column 'item_id', line 3: id '-2' is negative")


def test_bad_movielens_files(tmp_path):
    (tmp_path / "u.data").write_text("1\t2\t5\t881250949\n1\t3\tfive\t881250950\n")
    assert "u.data: column 'rating', row 2: 'five' is not a number" in refused(readers.movielens, tmp_path)
    (tmp_path / "u.data").write_text("1\t2\n")
    assert "u.data: row 1 has 2 fields, wanted user_id, item_id" in refused(readers.movielens, tmp_path)
    (tmp_path / "u.data").write_text("1\t2\t5\t881250949\n")
    (tmp_path / "u.item").write_text("x|A\n")
    assert "u.item: " in refused(readers.movielens, tmp_path)
    for name in ("u.data", "u.item"):
        (tmp_path / name).unlink()
    (tmp_path / "ratings.csv").write_text("user,movieId,rating,timestamp\n1,2,3,4\n")
    assert "ratings.csv: wanted columns userId, movieId" in refused(readers.movielens, tmp_path)


def test_an_id_twice_in_a_feature_table(csv, tmp_path):
    (tmp_path / "films.csv").write_text("item_id,name\n10,A\n11,B\n10,C\n")
    said = refused(readers.table, csv(), item_features=tmp_path / "films.csv")
    assert said.startswith(f"{tmp_path}/films.csv: column 'item_id', row 3: id 10 stands twice")


def test_train_and_test_with_different_types_of_id():
    train = pl.DataFrame({"user_id": [1], "item_id": [1]})
    said = refused(readers.frame, train, test=train.cast(pl.String))
    assert said == "frame: user_id is Int64 in train and String in test; convert one of them"


def test_what_is_no_frame():
    assert "the DataFrame is a dict; give a Polars or pandas DataFrame" in refused(readers.frame, {"user_id": [1]})
