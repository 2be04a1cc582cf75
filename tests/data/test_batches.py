"""Every pair once an epoch, in an order of its own; any chunk boundary can be resumed from."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.batches import PairBatches, RowBatches, SequenceBatches
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


def test_chunks_count_what_they_predict():
    pairs = PairBatches(some_pairs(50), 8, seed=0)
    assert sum(chunk["samples"] for chunk in pairs.chunks(0)) == 50
    sequences = SequenceBatches(some_sequences(12), 4, seed=0, length=3)
    targets = sum(int((chunk["sequence"][..., 1:] > 0).sum()) for chunk in sequences.chunks(0))
    assert sum(chunk["samples"] for chunk in sequences.chunks(0)) == targets


def test_rows_keep_together():
    rows = {"a": torch.arange(23), "b": torch.arange(46).view(23, 2)}
    chunks = list(RowBatches(rows, 4, seed=0, steps_per_chunk=2).chunks(0))
    assert sorted(a for chunk in chunks for a in chunk["rows"]["a"].flatten().tolist()) == list(range(23))
    assert all(torch.equal(chunk["rows"]["b"][..., 0], 2 * chunk["rows"]["a"]) for chunk in chunks)
    with pytest.raises(ValueError, match="no rows"):
        RowBatches({}, 4, seed=0)


def some_sequences(num_users, timed=True):
    """User u has u items (the first ones none, one, two), each item in one history alone, times rising with items."""
    user = torch.arange(num_users).repeat_interleave(torch.arange(num_users))
    item = torch.arange(len(user))
    return Interactions.from_pairs(
        user, item + 2, num_rows=num_users, num_items=len(item) + 2, timestamp=item if timed else None
    )


def sequences_of(chunks):
    """The rows of all chunks without their padding, which may only stand behind."""
    rows = [row for chunk in chunks for row in chunk["sequence"].flatten(0, 1).tolist()]
    stripped = [[item for item in row if item] for row in rows]
    assert all(row == items + [0] * (len(row) - len(items)) for row, items in zip(rows, stripped, strict=True))
    return stripped


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 20), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_an_epoch_holds_every_item_but_the_first_once_as_a_target(num_users, length, batch_size, steps, epoch):
    interactions = some_sequences(num_users)
    source = SequenceBatches(interactions, batch_size, seed=1, length=length, steps_per_chunk=steps)
    chunks = list(source.chunks(epoch))
    assert len(chunks) == len(source)
    assert all(chunk["sequence"].shape[2] == length + 1 for chunk in chunks)
    assert [chunk["step"] for chunk in chunks] == list(
        itertools.accumulate((len(c["sequence"]) for c in chunks[:-1]), initial=epoch * source.steps_per_epoch)
    )
    steps_seen = [pair for items in sequences_of(chunks) for pair in itertools.pairwise(items)]
    rows = [interactions.rows(u, u + 1).item_idx.tolist() for u in range(num_users)]
    assert sorted(steps_seen) == sorted(pair for row in rows for pair in itertools.pairwise(row))


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 20), st.booleans(), st.data())
def test_any_chunk_of_sequences_can_be_the_first(num_users, timed, data):
    def source():
        return SequenceBatches(some_sequences(num_users, timed), 3, 5, length=4, steps_per_chunk=2)

    whole = list(source().chunks(2))
    start = data.draw(st.integers(0, len(whole)))
    again = source()
    again.set_position(2, start)
    rest = list(again)
    assert [c["step"] for c in rest] == [c["step"] for c in whole[start:]]
    assert sequences_of(rest) == sequences_of(whole[start:])


def test_an_order_that_means_nothing_is_drawn_anew():
    """No timestamps: any order of a user's items. Equal ones: any order within the moment."""
    item = torch.arange(2, 10)
    for timestamp, firsts in ((None, 8), (item // 5, 3), (item, 1)):
        row = Interactions.from_pairs(
            torch.zeros(8, dtype=torch.int64), item, num_rows=1, num_items=10, timestamp=timestamp
        )
        source = SequenceBatches(row, 1, seed=0, length=7)
        seen = [sequences_of(source.chunks(epoch))[0] for epoch in range(60)]
        assert all(sorted(items) == item.tolist() for items in seen)
        assert len({items[0] for items in seen}) == firsts
        assert sequences_of(source.chunks(7)) == [seen[7]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"length": 3, "batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_senseless_sequences_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SequenceBatches(some_sequences(5), **{"batch_size": 4, "seed": 0} | arguments)
    with pytest.raises(ValueError, match="no user has two items"):
        SequenceBatches(some_sequences(2), 4, seed=0, length=3)
