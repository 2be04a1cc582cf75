"""Where candidates come from, and how several lists become one."""

from datetime import UTC, datetime, timedelta

import pytest
import torch

from recsys.audience import Audience
from recsys.features.vocabulary import Vocabulary
from recsys.index import ItemIndex
from recsys.schema import Interactions
from recsys.sources import everybody, fresh, fused, most_popular, names_of, searched

NOW = datetime(2026, 1, 5, tzinfo=UTC)
ITEMS = Vocabulary(list(range(100, 110)))


def asked(*requests):
    return Audience(None, None, ITEMS, now=NOW).asked(list(requests) or [{}, {}])


def naive(lists, num, seen, allowed):
    """One user's list: the sum of reciprocal ranks, equal sums by id."""
    sums, bits = {}, {}
    for j, found in enumerate(lists):
        for rank, item in enumerate(found, 1):
            if item > 1 and allowed[item] and item not in seen:
                sums[item] = sums.get(item, 0) + 1 / (60 + rank)
                bits[item] = bits.get(item, 0) | 1 << j
    order = sorted(sums, key=lambda item: (-sums[item], item))[:num]
    return order, [sums[item] for item in order], [bits[item] for item in order]


@pytest.mark.parametrize("num_lists", [1, 3])
@pytest.mark.parametrize("num", [3, 50])
def test_lists_are_fused_as_a_naive_loop_does(num_lists, num):
    generator = torch.Generator().manual_seed(num)
    lists = {
        str(j): torch.stack([torch.randperm(12, generator=generator)[:8] for _ in range(5)]) for j in range(num_lists)
    }
    seen = Interactions.from_pairs(torch.tensor([0, 0, 3]), torch.tensor([4, 7, 11]), num_rows=5, num_items=12)
    allowed = torch.arange(12) != 9
    allowed[:2] = False
    item, value, bits = fused(lists, num, seen, allowed)
    for b in range(5):
        mine = set(seen.rows(b, b + 1).item_idx.tolist())
        order, sums, from_ = naive([found[b].tolist() for found in lists.values()], num, mine, allowed)
        size = len(order)
        assert item[b, :size].tolist() == order
        assert (item[b, size:] == 0).all()
        assert value[b, :size].tolist() == pytest.approx(sums)
        assert bits[b, :size].tolist() == from_


def test_nothing_found_is_an_empty_list():
    none = torch.zeros(3, 0, dtype=torch.int64)
    item, value, bits = fused({"a": none, "b": none}, 5, Interactions.empty(3, 12), torch.ones(12, dtype=torch.bool))
    assert item.shape == value.shape == bits.shape == (3, 0)


def test_names_say_which_lists_had_an_item():
    assert names_of(torch.tensor([1, 2, 3, 0]), ["als", "tags"]) == ["als", "tags", "als+tags", ""]


def test_everybody_gets_the_most_popular():
    order = most_popular(torch.tensor([9, 9, 1, 5, 0, 5]))
    assert order.tolist() == [3, 5, 2, 4]
    assert everybody(order)(asked(), 3).tolist() == [[3, 5, 2]] * 2


def test_fresh_items_are_the_newest_as_of_the_request():
    day = 86_400_000_000
    start = int(NOW.timestamp() * 1_000_000)
    came = torch.tensor([-1, -1, start, start - day, start + day, -1, start - 2 * day])
    requests = asked(
        {},
        {"timestamp": NOW + timedelta(days=2)},
        {"timestamp": NOW - timedelta(days=1)},
        {"timestamp": NOW - timedelta(days=9)},
    )
    assert fresh(came)(requests, 3).tolist() == [[2, 3, 6], [4, 2, 3], [3, 6, 0], [0, 0, 0]]
    assert fresh(came)(requests, 50).shape == (4, 4)


def test_an_index_is_asked_for_no_more_than_it_has():
    index = ItemIndex(torch.eye(3), torch.tensor([4, 5, 6]), factory="exact")
    found = searched(index, lambda requests: torch.tensor([[3.0, 2, 1], [0, 1, 2]]))(asked(), 10)
    assert found.tolist() == [[4, 5, 6], [6, 5, 4]]
