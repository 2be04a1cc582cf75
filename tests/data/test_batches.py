"""Every pair once an epoch, in an order of its own; any chunk boundary can be resumed from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.batches import PairBatches
from recsys.schema import Interactions


def some_pairs(count):
    pairs = torch.randperm(900, generator=torch.Generator().manual_seed(count))[:count]
    return Interactions.from_pairs(pairs // 30 + 2, pairs % 30 + 2, num_rows=32, num_items=32)


def pairs_of(chunks):
    return [
        pair
        for c in chunks
        for pair in zip(c["user_idx"].flatten().tolist(), c["item_idx"].flatten().tolist(), strict=True)
    ]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(1, 70), st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_holds_every_pair_once(count, batch_size, steps_per_chunk, epoch):
    interactions = some_pairs(count)
    batches = PairBatches(interactions, batch_size, seed=1, steps_per_chunk=steps_per_chunk)
    chunks = list(batches.chunks(epoch))
    assert len(chunks) == len(batches)
    expected = zip(interactions.row_idx().tolist(), interactions.item_idx.tolist(), strict=True)
    assert sorted(pairs_of(chunks)) == sorted(expected)
    step = epoch * batches.steps_per_epoch
    for number, chunk in enumerate(chunks):
        S, B = chunk["user_idx"].shape
        assert chunk["item_idx"].shape == (S, B)
        assert chunk["step"] == step
        assert chunk["seed"] == 1
        assert steps_per_chunk >= S
        assert batch_size == B or (number == len(chunks) - 1 and S == 1 and batch_size > B)
        step += S
    assert step == (epoch + 1) * batches.steps_per_epoch


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 5), st.data())
def test_any_chunk_can_be_the_first(count, batch_size, steps_per_chunk, data):
    whole = list(PairBatches(some_pairs(count), batch_size, 3, steps_per_chunk=steps_per_chunk).chunks(2))
    start = data.draw(st.integers(0, len(whole)))
    again = PairBatches(some_pairs(count), batch_size, 3, steps_per_chunk=steps_per_chunk)
    again.set_position(2, start)
    rest = list(again)
    assert [c["step"] for c in rest] == [c["step"] for c in whole[start:]]
    assert pairs_of(rest) == pairs_of(whole[start:])


def test_the_order_belongs_to_seed_and_epoch():
    def order(seed, epoch):
        return tuple(pairs_of(PairBatches(some_pairs(100), 10, seed).chunks(epoch)))

    assert order(0, 0) == order(0, 0)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(PairBatches(some_pairs(100), 10, seed=0))
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 4, "steps_per_chunk": 0}, "steps_per_chunk must be at least 1"),
    ],
)
def test_senseless_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PairBatches(some_pairs(5), seed=0, **arguments)


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="no training pairs"):
        PairBatches(Interactions.empty(5, 5), 4, seed=0)
