"""Popularity counts what it says it counts."""

import pytest
import torch

from recsys.models.popularity import MICROSECONDS_PER_DAY, Popularity
from recsys.schema import Interactions, Schema

SCHEMA = Schema.of(5, 6)
USER = torch.tensor([2, 3, 4, 2, 3, 2])
ITEM = torch.tensor([2, 2, 2, 3, 3, 4])
DAY = torch.tensor([0, 1, 2, 8, 9, 10])


def interactions(timestamp: torch.Tensor | None) -> Interactions:
    return Interactions.from_pairs(USER, ITEM, num_rows=5, num_items=6, timestamp=timestamp)


def scores_of(model: Popularity) -> list[float]:
    batch = {"user_idx": torch.tensor([1, 2]), "history": Interactions.empty(2, 6), "user_key": USER[:2]}
    scores_BI = model.score(batch)
    assert torch.equal(scores_BI[0], scores_BI[1])
    assert bool(model.personal(batch).all())
    return scores_BI[0].tolist()


def test_all_time_counts_users() -> None:
    model = Popularity(SCHEMA)
    model.fit(interactions(None))
    assert scores_of(model) == [0, 0, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("days", "expected"), [(2, [0, 0, 0, 2, 1, 0]), (1, [0, 0, 0, 1, 1, 0]), (100, [0, 0, 3, 2, 1, 0])]
)
def test_window_counts_the_days_before_the_newest(days: float, expected: list[float]) -> None:
    model = Popularity(SCHEMA, window_days=days)
    model.fit(interactions(DAY * MICROSECONDS_PER_DAY))
    assert scores_of(model) == expected


def test_window_needs_time() -> None:
    with pytest.raises(ValueError, match="needs a timestamp column"):
        Popularity(SCHEMA, window_days=3).fit(interactions(None))
    with pytest.raises(ValueError, match="window_days must be positive"):
        Popularity(SCHEMA, window_days=0)
