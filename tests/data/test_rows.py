"""The joined view: order, names, nulls, and one answer on either engine."""

from dataclasses import replace

import polars as pl
import pytest

from recsys import config
from recsys.data import readers, splits
from recsys.data.checks import DataError
from recsys.data.rows import item_kinds, joined

EVENTS = pl.DataFrame(
    {"user_id": [2, 1, 9, 2, 1], "item_id": [10, 10, 20, 30, 20], "timestamp": range(1, 6), "tab": [5, 4, 3, 2, 1]}
)
USERS = pl.DataFrame({"user_id": [1, 2], "age": [30, 40], "language": ["de", "fr"], "tab": ["x", "y"]})
ITEMS = pl.DataFrame({"item_id": [20, 10], "timestamp": [7, 8], "language": ["en", "zh"], "user_id": [1, 2]})


def log_of(users=USERS, items=ITEMS, events=EVENTS):
    log = readers.frame(events, keep=["tab"])
    return replace(log, users=None if users is None else users.lazy(), items=None if items is None else items.lazy())


def test_rows_keep_their_order_and_names_are_told_apart():
    log = log_of()
    found = joined(log, log.events).collect()
    assert found.select(log.events.collect_schema().names()).equals(log.events.collect())
    assert found.select(pl.exclude(log.events.collect_schema().names())).to_dict(as_series=False) == {
        "age": [40, 30, None, 40, 30],
        "user_language": ["fr", "de", None, "fr", "de"],
        "user_tab": ["y", "x", None, "y", "x"],
        "item_timestamp": [8, 8, 7, None, 7],
        "item_language": ["zh", "zh", "en", None, "en"],
        "item_user_id": [2, 2, 1, None, 1],
    }


def test_names_do_not_hang_on_the_rows_asked_for():
    log = log_of()
    every = joined(log, log.events).collect_schema().names()
    bare = joined(log, log.events.select("user_id", "item_id")).collect_schema().names()
    assert bare == [name for name in every if name not in ("timestamp", "tab")]
    # What only the rows have counts, too.
    assert "user_age" in joined(log, log.events.with_columns(age=1)).collect_schema()


def test_either_table_may_be_missing():
    events = log_of().events
    without = joined(log_of(users=None), events).collect()
    assert without.columns == ["user_id", "item_id", "timestamp", "tab", "item_timestamp", "language", "item_user_id"]
    assert joined(log_of(items=None), events).collect()["language"].to_list() == ["fr", "de", None, "fr", "de"]
    assert joined(log_of(None, None), events.collect()).collect().equals(events.collect())


@pytest.mark.parametrize("role", ["user_id", "item_id"])
def test_ids_of_two_types_are_refused(role):
    there = (USERS if role == "user_id" else ITEMS).with_columns(pl.col(role).cast(pl.String))
    log = log_of(users=there) if role == "user_id" else log_of(items=there)
    message = f"frame: {role} is Int64 in the rows and String in the table of features; convert one of them"
    with pytest.raises(DataError) as caught:
        joined(log, log.events)
    assert str(caught.value) == message
    with pytest.raises(DataError, match=rf"{role} is String in the rows and Int64"):
        joined(log_of(), EVENTS.with_columns(pl.col(role).cast(pl.String)))


def test_rows_without_an_id_and_names_that_meet_are_refused():
    with pytest.raises(DataError, match=r"^frame: the rows have no column 'item_id' \(they have user_id\)$"):
        joined(log_of(), EVENTS.select("user_id"))
    log = log_of(users=USERS.with_columns(user_tab=1))
    with pytest.raises(DataError, match=r"^frame: column 'user_tab' comes twice"):
        joined(log, log.events)


def test_a_world_by_its_parts_on_either_engine():
    log = config.build(config.compose("data=world", "world=tiny").data)
    split = splits.global_time(log)
    for part in (split.train, split.validation, split.test):
        view = joined(log, part)
        found = view.collect(engine="streaming")
        assert found.equals(view.collect(engine="in-memory"))
        assert found.select(part.columns).equals(part)
        assert found["country"].null_count() == found["topic"].null_count() == 0
        assert {"user_language", "item_language", "item_timestamp", "sign_up"} <= set(found.columns)
    row = found.row(-1, named=True)
    video = log.items.filter(pl.col("item_id") == row["item_id"]).collect().row(0, named=True)
    person = log.users.filter(pl.col("user_id") == row["user_id"]).collect().row(0, named=True)
    assert (row["item_language"], row["item_timestamp"]) == (video["language"], video["timestamp"])
    assert (row["user_language"], row["age_band"]) == (person["language"], person["age_band"])


def test_kinds_of_items_are_values_of_a_column():
    table = pl.DataFrame(
        {
            "item_id": [5, 6, 7, 8],
            "genres": ["drama|war", "war", None, " drama, comedy"],
            "topic": [3, 1, 1, None],
            "tags": [["b"], [], ["a", "b"], None],
            "length": [1.0, 2.0, 3.0, 4.0],
        }
    )
    log = log_of(items=table)
    ids = pl.Series([8, 5, 7, 6, 9])  # of the last nothing is known
    found = item_kinds(log, ids, "genres")  # comedy, drama, war
    assert found.tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert item_kinds(log, ids, "topic")[2:].tolist() == [[0, 0], [0, 1], [1, 0], [1, 0], [0, 0]]
    assert item_kinds(log, ids, "tags")[2:].tolist() == [[0, 0], [0, 1], [1, 1], [0, 0], [0, 0]]
    for column, message in {"genre": "did you mean genres", "length": "holds fractions"}.items():
        with pytest.raises(DataError, match=message):
            item_kinds(log, ids, column)
    with pytest.raises(DataError, match="has no value"):
        item_kinds(log, pl.Series([9]), "topic")
    many = pl.DataFrame({"item_id": range(5000), "name": [f"{n}" for n in range(5000)]})
    with pytest.raises(DataError, match=r"more than 4,096 values"):
        item_kinds(log_of(items=many), many["item_id"], "name")
