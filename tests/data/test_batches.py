"""Every pair once an epoch, in an order of its own; any chunk boundary can be resumed from."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.batches import HistoryBatches, PairBatches, RowBatches, SequenceBatches
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


def grouped(rows, epoch=0, start=0, batch_size=4):
    """(group, row) of each row in the order of an epoch."""
    chunks = RowBatches(rows, batch_size, seed=0, group="group", steps_per_chunk=2).chunks(epoch, start)
    return [
        pair
        for chunk in chunks
        for pair in zip(*(chunk["rows"][name].flatten().tolist() for name in ("group", "row")), strict=True)
    ]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 20), st.integers(0, 3), st.data())
def test_rows_of_a_group_stand_side_by_side(group, batch_size, epoch, data):
    rows = {"group": torch.tensor(group), "row": torch.arange(len(group))}
    order = grouped(rows, epoch, batch_size=batch_size)
    assert sorted(order, key=lambda pair: pair[1]) == list(zip(group, range(len(group)), strict=True))
    runs = [g for g, _ in itertools.groupby(g for g, _ in order) if g > 1]  # 0 and 1 are no group
    assert len(runs) == len(set(runs))
    num_chunks = len(RowBatches(rows, batch_size, seed=0, steps_per_chunk=2))
    rest = grouped(rows, epoch, data.draw(st.integers(0, num_chunks - 1)), batch_size)
    assert rest == order[-len(rest) :]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(2, 5), min_size=1, max_size=60), st.integers(1, 7))
def test_long_groups_are_lists_apart(group, length):
    """A group's rows by full lists and one of the rest: lists of one group may meet, so runs are sums of lists."""
    rows = {"group": torch.tensor(group), "row": torch.arange(len(group))}
    chunks = RowBatches(rows, 4, seed=0, group="group", list_length=length).chunks(0)
    order = [g for chunk in chunks for g in chunk["rows"]["group"].flatten().tolist()]
    assert sorted(order) == sorted(group)
    runs = [(g, len(list(run))) for g, run in itertools.groupby(order)]
    for g in set(group):
        rest = group.count(g) % length
        cut = [run % length for of, run in runs if of == g and run % length]
        assert cut == ([rest] if rest else [])


def test_lists_of_one_group_are_drawn_anew_each_epoch():
    rows = {"group": torch.arange(64) % 2 + 2, "row": torch.arange(64)}
    source = RowBatches(rows, 64, seed=0, group="group", list_length=4)
    orders = [next(source.chunks(epoch))["rows"]["row"][0].tolist() for epoch in (0, 1, 0)]
    lists = [{frozenset(order[low : low + 4]) for low in range(0, 64, 4)} for order in orders]
    assert orders[0] == orders[2] != orders[1]
    assert len(lists[0] & lists[1]) < 4
    with pytest.raises(ValueError, match="list_length must be at least 1, got 0"):
        RowBatches(rows, 4, seed=0, group="group", list_length=0)


def test_groups_and_their_rows_are_drawn_anew_each_epoch():
    rows = {"group": torch.arange(40) % 8 + 2, "row": torch.arange(40)}
    orders = [grouped(rows, epoch) for epoch in range(20)]
    assert len({order[0][0] for order in orders}) > 4
    assert len({tuple(row for g, row in order if g == 2) for order in orders}) > 10
    assert grouped(rows, 7) == orders[7]


def test_rows_of_nobody_known_do_not_stand_together():
    rows = {"group": torch.tensor([1, 2] * 20), "row": torch.arange(40)}
    first = [next(place for place, (g, _) in enumerate(grouped(rows, epoch)) if g == 2) for epoch in range(20)]
    assert len(set(first)) > 5


@pytest.mark.parametrize("group", ["a", "c"])
def test_what_is_no_group_is_refused(group):
    with pytest.raises(ValueError, match=f"group={group}: the rows have no such column of one index"):
        RowBatches({"a": torch.zeros(5, 2), "b": torch.zeros(5)}, 4, seed=0, group=group)


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


def timed_pairs(count, moments):
    pairs = torch.randperm(400, generator=torch.Generator().manual_seed(count))[:count]
    time = torch.randint(moments, (count,), generator=torch.Generator().manual_seed(count + 1))
    return Interactions.from_pairs(pairs // 40 + 2, pairs % 40 + 2, num_rows=12, num_items=42, timestamp=time)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 200), st.integers(1, 60), st.integers(1, 12), st.integers(0, 3), st.sampled_from(["past", "others"])
)
def test_a_pair_comes_with_what_else_its_user_liked(count, moments, length, epoch, kind):
    interactions = timed_pairs(count, moments)
    source = HistoryBatches(interactions, 7, seed=1, length=length, kind=kind, steps_per_chunk=3)
    chunks = list(source.chunks(epoch))
    expected = zip(interactions.row_idx().tolist(), interactions.item_idx.tolist(), strict=True)
    assert sorted(pairs_of(chunks)) == sorted(expected)
    when = {
        (user, item): time
        for user, item, time in zip(
            interactions.row_idx().tolist(),
            interactions.item_idx.tolist(),
            interactions.timestamp.tolist(),
            strict=True,
        )
    }
    for chunk in chunks:
        for user, item, history in zip(
            chunk["user_idx"].flatten().tolist(),
            chunk["item_idx"].flatten().tolist(),
            chunk["history"].flatten(0, 1).tolist(),
            strict=True,
        ):
            told = [i for i in history if i]
            assert history == told + [0] * (len(history) - len(told))
            likes = {i for u, i in when if u == user}
            if kind == "others":
                assert len(set(told)) == len(told) == min(length, len(likes) - 1)
                assert set(told) <= likes - {item}
                continue
            past = sorted(when[user, i] for i in likes if when[user, i] < when[user, item])
            assert [when[user, i] for i in told] == past[-length:]
            assert len(set(told)) == len(told)


def test_histories_are_drawn_anew_each_epoch_and_resume_from_any_chunk():
    for kind in ("past", "others"):
        source = HistoryBatches(timed_pairs(150, 4), 16, seed=0, length=5, kind=kind, steps_per_chunk=2)
        whole = list(source.chunks(1))
        for chunk, again in zip(whole[2:], source.chunks(1, 2), strict=True):
            assert torch.equal(chunk["history"], again["history"])
        one, other = (
            {(u, i): h for c in source.chunks(e) for u, i, h in zip(
                c["user_idx"].flatten().tolist(), c["item_idx"].flatten().tolist(), c["history"].flatten(0, 1).tolist(),
                strict=True,
            )}
            for e in (0, 1)
        )  # fmt: skip
        assert one != other


def test_what_has_no_history_is_refused():
    with pytest.raises(ValueError, match="no timestamps"):
        HistoryBatches(some_pairs(5), 2, 0, length=3, kind="past")
    with pytest.raises(ValueError, match="length must be at least 1"):
        HistoryBatches(some_pairs(5), 2, 0, length=0, kind="others")
    with pytest.raises(ValueError, match="kind=all: expected past or others"):
        HistoryBatches(some_pairs(5), 2, 0, length=3, kind="all")
    with pytest.raises(ValueError, match="no training pairs"):
        HistoryBatches(Interactions.empty(3, 4), 2, 0, length=3, kind="others")
