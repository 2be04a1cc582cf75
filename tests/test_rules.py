"""Rules of a page: of items alone, of item and request, and what is no rule."""

import polars as pl
import pytest
import torch

from recsys.rules import Rules

ITEMS = pl.DataFrame(
    {
        "item_id": [None, None, 10, 11, 12, 13],
        "duration": [None, None, 5.0, 50.0, None, 500.0],
        "topic": [None, None, 1, 2, 1, 3],
    }
)
REQUESTS = pl.DataFrame({"country": ["DE", "US", None], "age": [12, 40, 40]})
DTYPES = dict(REQUESTS.schema)


def test_a_rule_about_items_is_settled_beforehand():
    rules = Rules(["duration < 100"], ITEMS, DTYPES)
    assert rules.allowed_I.tolist() == [False, False, True, True, False, False]
    candidates = torch.tensor([[2, 3], [5, 0], [0, 0]])
    assert torch.equal(rules.met(REQUESTS, candidates), candidates)


def test_a_rule_about_both_is_asked_of_every_candidate():
    rules = Rules(["topic != 1 OR age >= 18", "duration < 1000", "topic != 3 OR country = 'US'"], ITEMS, DTYPES)
    candidates = torch.tensor([[2, 3, 5, 0], [2, 3, 5, 0], [5, 3, 2, 0]])
    assert rules.met(REQUESTS, candidates).tolist() == [[0, 3, 0, 0], [2, 3, 5, 0], [0, 3, 2, 0]]


def test_without_rules_all_real_items_are_allowed():
    assert Rules([], ITEMS, DTYPES).allowed_I.tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("duration <", "rule 'duration <'"),
        ("durations < 3", "no column 'durations': did you mean duration"),
        ("duration + 1", "write a condition"),
        ("topic = 'music'", "rule \"topic = 'music'\""),
    ],
)
def test_what_is_no_rule_is_named(rule, message):
    with pytest.raises(ValueError, match=message):
        Rules([rule], ITEMS, DTYPES)
