"""Splits: every row in one part, the cut where it belongs, and a report that can be recounted."""

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data import readers, splits
from recsys.data.checks import DataError

START = datetime(2024, 1, 1, tzinfo=UTC)


def log_of(rows, labels=True):
    """A log of (user, item, second, label) rows."""
    data = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "label"], orient="row")
    if not labels:
        data = data.drop("label")
    return readers.frame(data, columns={"label": "label"} if labels else None, timestamp_unit="s")


# Enough rows, most of them positive, for most logs to be splittable.
rows_strategy = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 8), st.integers(0, 30), st.sampled_from([1, 1, 0])),
    min_size=12,
    max_size=60,
)
text_rows = rows_strategy.map(lambda rows: [(f"u{u}", f"i{i}", t, y) for u, i, t, y in rows])
any_rows = st.one_of(rows_strategy, text_rows)
split_kinds = st.sampled_from(["global_time", "leave_last_out", "random"])


def make(kind, log, validation, seed=0):
    validation = int(validation > 0) if kind == "leave_last_out" else validation
    return getattr(splits, kind)(log, validation=validation, seed=seed)


def parts_of(split):
    return [split.train, split.validation, split.test]


def rows_of(part):
    return [] if part is None else sorted(part.rows())


@settings(max_examples=80, deadline=None)
@given(any_rows, split_kinds, st.sampled_from([0, 0.3]), st.booleans(), st.randoms(use_true_random=False))
def test_every_row_lies_in_one_part_and_row_order_plays_no_part(rows, kind, validation, labels, random):
    log = log_of(rows, labels)
    try:
        split = make(kind, log, validation)
    except DataError:
        return
    everything = Counter(row for part in parts_of(split) for row in rows_of(part))
    assert everything == Counter(log.events.collect().rows())
    shuffled = list(rows)
    random.shuffle(shuffled)
    again = make(kind, log_of(shuffled, labels), validation)
    assert [rows_of(part) for part in parts_of(split)] == [rows_of(part) for part in parts_of(again)]
    # The log's own counts are the same as well.
    assert again.report == split.report


@settings(max_examples=100, deadline=None)
@given(any_rows, st.floats(0.05, 0.9), st.sampled_from([0, 0.3]))
def test_global_time_cuts_at_a_moment(rows, share, validation):
    log = log_of(rows)
    try:
        split = splits.global_time(log, test=share, validation=validation)
    except DataError:
        return
    times = sorted(log.events.collect()["timestamp"])
    assert all(t >= split.test_cut for t in split.test["timestamp"])
    assert all(t < split.test_cut for t in split.train["timestamp"])
    if split.validation is not None:
        assert all(split.validation_cut <= t < split.test_cut for t in split.validation["timestamp"])
        assert all(t < split.validation_cut for t in split.train["timestamp"])
    # Naively: the share of rows, enlarged to a whole timestamp; the next moment where nothing would be left.
    cut = times[len(times) - max(1, int(share * len(times) + 1e-9))]
    assert split.test_cut == (cut if cut > times[0] else min(t for t in times if t > times[0]))
    assert split.report["test_rows_older_than_newest_train_row"] == 0


def test_global_time_takes_a_stated_cut():
    log = log_of([(u, i, 86400 * i, 1) for u in range(3) for i in range(10)])
    split = splits.global_time(log, test="1970-01-08", validation="1970-01-06T00:00:00+00:00")
    assert split.test["item_id"].unique().sort().to_list() == [7, 8, 9]
    assert split.validation["item_id"].unique().sort().to_list() == [5, 6]
    assert split.report["test_cut"] == "1970-01-08T00:00:00+00:00"
    with pytest.raises(DataError, match=r"split.test=1980-01-01: the cut must lie after 1970-01-01"):
        splits.global_time(log, test="1980-01-01")


@settings(max_examples=100, deadline=None)
@given(any_rows, st.sampled_from([1, 2]), st.sampled_from([0, 1, 2]))
def test_leave_last_out_against_a_loop(rows, test, validation):
    log = log_of(rows)
    try:
        split = splits.leave_last_out(log, test=test, validation=validation)
    except DataError:
        return
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    found = {name: defaultdict(list) for name in parts}
    for name, part in parts.items():
        for user, _, time, label in rows_of(part):
            if label:
                found[name][user].append(time)
    held = split.validation is not None
    for user in {row[0] for row in log.events.collect().rows()}:
        times = sorted(t for name in parts for t in found[name][user])
        ends = test if len(times) > test else 0
        middle = validation if held and len(times) > test + validation else 0
        assert sorted(found["test"][user]) == times[len(times) - ends :]
        stop = len(times) - ends
        assert sorted(found["validation"][user]) == times[stop - middle : stop]
    # What was shown and not liked never lies in train after the user's first held-out positive.
    for user, _, time, _ in rows_of(split.train):
        assert all(time <= later for later in found["test"][user] + found["validation"][user])


@settings(max_examples=50, deadline=None)
@given(any_rows, st.integers(-3, 2**40))
def test_random_keeps_pairs_whole_and_one_of_each_user_in_train(rows, seed):
    log = log_of(rows)
    try:
        split = splits.random(log, test=0.5, validation=0.5, seed=seed)
    except DataError:
        return
    pairs = [set() if part is None else set(part.select("user_id", "item_id").rows()) for part in parts_of(split)]
    assert not pairs[0] & pairs[1]
    assert not pairs[0] & pairs[2]
    assert not pairs[1] & pairs[2]
    assert {user for user, *_ in rows_of(split.test)} <= {user for user, *_ in rows_of(split.train)}


def test_random_meets_its_share_and_follows_the_seed():
    log = log_of([(u, i, 0, 1) for u in range(400) for i in range(7)])
    one, same, other = (splits.random(log, test=0.2, validation=0.1, seed=seed) for seed in (0, 0, 1))
    assert rows_of(one.test) == rows_of(same.test) != rows_of(other.test)
    # 2,800 pairs; the rounding of 400 users has a standard deviation of about 10.
    assert abs(one.test.height - 560) < 50
    assert abs(one.validation.height - 224) < 50
    assert len(set(one.test["user_id"])) == 400
    # Which items are drawn has nothing to do with their ids.
    assert max(Counter(one.test["item_id"]).values()) < 130


def test_random_draws_a_user_apart_from_all_others():
    rows = [(u, i, 0, 1) for u in range(30) for i in range(10)]
    all_users, few = (splits.random(log_of(part)).test for part in (rows, rows[:100]))
    assert rows_of(few) == rows_of(all_users.filter(pl.col("user_id") < 10))


def test_given_takes_the_test_part_as_it_is():
    train = pl.DataFrame({"user_id": [1, 1, 1, 2, 2], "item_id": [1, 2, 3, 1, 2]})
    test = pl.DataFrame({"user_id": [1, 3], "item_id": [9, 1]})
    split = splits.given(readers.frame(train, test=test), validation=0)
    assert rows_of(split.train) == train.rows()
    assert rows_of(split.test) == test.rows()
    assert split.validation is None
    assert split.report["test_items_unseen_in_train"] == 1
    assert split.report["test_users_unseen_in_train"] == 1
    split = splits.given(readers.frame(train, test=test), validation=0.4, seed=3)
    assert sorted(rows_of(split.train) + rows_of(split.validation)) == train.rows()
    assert rows_of(split.test) == test.rows()


def test_given_cuts_validation_by_time_where_there_is_time():
    train = pl.DataFrame({"user_id": [1] * 10, "item_id": range(10), "timestamp": range(10)})
    split = splits.given(readers.frame(train, test=train[:1].with_columns(item_id=99)), validation=0.2)
    assert split.validation["item_id"].to_list() == [8, 9]
    assert split.report["test_rows_older_than_newest_train_row"] == 1


def test_the_report_counts_what_it_says():
    rows = [
        (1, 1, 0, 1), (1, 2, 1, 1), (1, 3, 1, 0), (2, 1, 2, 1), (2, 1, 2, 1), (3, 4, 5, 1),
        (1, 1, 10, 1), (9, 2, 11, 1), (2, 8, 12, 1),
    ]  # fmt: skip
    report = splits.global_time(log_of(rows), test="1970-01-01T00:00:10", validation=0).report
    assert report["read"]["duplicate_rows"] == 1
    assert report["train"] == {
        "rows": 5, "positives": 4, "users": 3, "items": 4,
        "first": "1970-01-01T00:00:00+00:00", "last": "1970-01-01T00:00:05+00:00",
    }  # fmt: skip
    assert report["test"]["rows"] == 3
    assert report["validation"] is None
    assert report["pairs_on_both_sides"] == 1
    assert report["test_users_unseen_in_train"] == 1
    assert report["test_items_unseen_in_train"] == 1
    assert report["timestamp_ties_broken"] == 1
    last = splits.leave_last_out(log_of(rows), validation=0).report
    # User 1's last row is at 10; users 9's and 3's only rows stay in train, at 11 and 5.
    assert last["test_rows_older_than_newest_train_row"] == 1


def test_validation_without_a_positive_goes_back_to_train():
    log = log_of([(1, 1, 0, 1), (1, 2, 1, 0), (2, 1, 2, 1)])
    split = splits.global_time(log, test="1970-01-01T00:00:02", validation="1970-01-01T00:00:01")
    assert split.validation is None
    assert split.validation_cut is None
    assert split.train.height == 2


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (lambda log: splits.global_time(log, test=1.5), "split.test=1.5: wanted a share between 0 and 1"),
        (lambda log: splits.global_time(log, test=0), "split.test=0: wanted a share"),
        (lambda log: splits.global_time(log, test="May"), "split.test=May is not a date or time"),
        (
            lambda log: splits.random(log, validation=-1),
            "split.validation=-1: wanted 0 \\(none\\) or a share",
        ),
        (lambda log: splits.random(log, test="x"), "split.test=x: wanted a share"),
        (
            lambda log: splits.leave_last_out(log, validation=0.1),
            "split.validation=0.1: leave_last_out takes whole",
        ),
        (lambda log: splits.leave_last_out(log, test=50), "leaves test without a positive"),
        (lambda log: splits.given(log), "brings no test part; name one"),
    ],
)
def test_options_that_cannot_be(split, message):
    log = log_of([(u, i, i, 1) for u in range(3) for i in range(5)])
    with pytest.raises(DataError, match=message):
        split(log)


@pytest.mark.parametrize("kind", ["global_time", "leave_last_out"])
def test_no_timestamps_names_the_alternative(kind):
    log = readers.frame(pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2]}))
    with pytest.raises(DataError, match=f"split={kind} needs timestamps; .* or split=random"):
        getattr(splits, kind)(log)


def test_one_timestamp_cannot_be_cut():
    with pytest.raises(DataError, match="all rows have one timestamp"):
        splits.global_time(log_of([(1, 1, 5, 1), (1, 2, 5, 1)]))


def test_cuts_keep_microseconds():
    times = [START + timedelta(microseconds=offset) for offset in range(10)]
    data = pl.DataFrame({"user_id": [1] * 10, "item_id": range(10), "timestamp": times})
    assert splits.global_time(readers.frame(data), validation=0).test["item_id"].to_list() == [8, 9]
