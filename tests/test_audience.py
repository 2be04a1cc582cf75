"""Who asks: known users, unknown ones, and what requests say."""

from datetime import UTC, datetime

import polars as pl
import pytest
import torch

from recsys.audience import Audience
from recsys.features.vocabulary import Vocabulary
from recsys.schema import Interactions

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
ITEMS = Vocabulary([100, 101, 102, 103])
USERS = pl.DataFrame({"user_id": [7, 3, 5], "country": ["US", "DE", None], "age": [30, 20, 10]})
# Users by their ids: 3, 5, 7.
HISTORY = Interactions.from_pairs(torch.tensor([2, 2, 4]), torch.tensor([2, 3, 4]), num_rows=5, num_items=6)


def audience(**options):
    return Audience(USERS, HISTORY, ITEMS, **({"now": NOW, "dtypes": {"tab": pl.Int64()}} | options))


def test_ids_bring_what_is_known_of_them():
    asked = audience().asked([7, 99, 3])
    assert asked.user_id.to_list() == [7, 99, 3]
    assert asked.rows["country"].to_list() == ["US", None, "DE"]
    assert asked.rows["age"].to_list() == [30, None, 20]
    assert asked.rows["tab"].to_list() == [None] * 3
    assert asked.rows["timestamp"].to_list() == [NOW] * 3
    assert [asked.history.rows(b, b + 1).item_idx.tolist() for b in range(3)] == [[4], [], [2, 3]]
    assert len(asked.key.unique()) == 3


def test_a_series_of_ids_is_as_good_as_a_list():
    one, other = audience().asked(pl.Series([5, 7])), audience().asked([5, 7])
    assert one.rows.equals(other.rows)
    assert torch.equal(one.key, other.key)


def test_what_a_request_says_counts_instead_of_what_is_known():
    later = datetime(2026, 1, 6, tzinfo=UTC)
    asked = audience().asked(
        [{"user_id": 7, "country": "BR"}, {"age": 50, "tab": 1}, {"user_id": 3, "timestamp": later}]
    )
    assert asked.user_id.to_list() == [7, None, 3]
    assert asked.rows["country"].to_list() == ["BR", None, "DE"]
    assert asked.rows["age"].to_list() == [30, 50, 20]
    assert asked.rows["tab"].to_list() == [None, 1, None]
    assert asked.rows["timestamp"].to_list() == [NOW, NOW, later]


def test_a_history_that_is_given_replaces_the_known_one():
    asked = audience().asked([{"user_id": 3, "history": [103, 555, 100]}, {"user_id": 7}, {"history": []}])
    assert [asked.history.rows(b, b + 1).item_idx.tolist() for b in range(3)] == [[5, 2], [4], []]


def test_the_key_belongs_to_user_and_time():
    first = audience().asked([7, 3])
    assert torch.equal(audience().asked([3, 7]).key, first.key.flip(0))
    assert not torch.equal(audience(now=datetime(2026, 1, 7, tzinfo=UTC)).asked([7, 3]).key, first.key)


def test_nobody_may_be_known():
    asked = Audience(None, None, ITEMS).asked([{"timestamp": NOW}, {}])
    assert asked.user_id.null_count() == 2
    assert asked.rows["timestamp"].null_count() == 0
    assert len(asked.history) == 0


def test_no_request_is_no_error():
    for nothing in ([], pl.Series([], dtype=pl.Int64)):
        assert len(audience().asked(nothing)) == 0


def test_parts_are_rows_of_the_whole():
    asked = audience().asked([7, 99, 3])
    part = asked.part(1, 10)
    assert len(part) == 2
    assert part.user_id.to_list() == [99, 3]
    assert part.history.item_idx.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([{}, {"contry": "DE"}], "request 1 says 'contry', which is no column: did you mean country"),
        ([{"age": 3}, {"age": "old"}], "request 1: age is 'old', expected Int64"),
        ([{"history": 5}], "request 0: history is 5, expected a list of item ids"),
        ([{"history": ["a"]}], r"request 0: history is \['a'\], expected a list of item ids"),
        ([{"age": 3}, 7], "request 1 is 7: give ids, or dicts, not both"),
        (["7"], "ids here are integers, got text"),
    ],
)
def test_what_cannot_be_read_is_named(requests, message):
    with pytest.raises(ValueError, match=message):
        audience().asked(requests)


def test_users_and_histories_have_to_fit():
    with pytest.raises(ValueError, match="users: 4 rows hold 3 ids"):
        Audience(pl.concat([USERS, USERS.head(1)]), HISTORY, ITEMS)
    with pytest.raises(ValueError, match="history has 5 rows for 4 user indices"):
        Audience(USERS.head(2), HISTORY, ITEMS)
