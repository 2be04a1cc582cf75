"""Chunks made ahead: the same ones in the same order, and a thread that ends."""

import threading
import time

import pytest
import torch

from recsys.data.batches import HistoryBatches, PairBatches, RowBatches, SequenceBatches
from recsys.data.prefetch import prefetch
from recsys.schema import Interactions


def numbered(count):
    for number in range(count):
        yield {"rows": {"a": torch.tensor([number])}, "step": number}


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_order_is_kept_and_nothing_is_left_behind(depth):
    chunks = list(prefetch(numbered(20), depth=depth))
    assert [chunk["step"] for chunk in chunks] == list(range(20))
    assert [int(chunk["rows"]["a"]) for chunk in chunks] == list(range(20))
    assert list(prefetch(numbered(0))) == []
    assert not threads()


def test_no_more_is_made_than_was_asked_for():
    made = []

    def source():
        for number in range(50):
            made.append(number)
            yield {"step": number}

    chunks = prefetch(source(), depth=3)
    next(chunks)
    time.sleep(0.05)
    assert 2 <= len(made) <= 5
    chunks.close()
    assert not threads()


def test_what_making_a_chunk_raises_comes_in_its_place():
    def source():
        yield {"step": 0}
        raise IndexError("row 7 is not there")

    chunks = prefetch(source())
    assert next(chunks)["step"] == 0
    with pytest.raises(IndexError, match="row 7 is not there"):
        next(chunks)
    assert not threads()


def test_a_consumer_that_stops_or_fails_leaves_no_thread():
    for chunk in prefetch(numbered(100)):
        if chunk["step"] == 3:
            break
    del chunk
    chunks = prefetch(numbered(100))
    next(chunks)
    with pytest.raises(RuntimeError, match="enough"):
        chunks.throw(RuntimeError("enough"))
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()
    never_begun = prefetch(numbered(100))
    del never_begun
    assert not threads()


def test_a_depth_below_1_is_refused():
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        prefetch(numbered(3), depth=0)


def sources(**where):
    pairs = torch.randperm(900, generator=torch.Generator().manual_seed(0))[:400]
    interactions = Interactions.from_pairs(
        pairs // 30 + 2, pairs % 30 + 2, num_rows=32, num_items=32, timestamp=torch.arange(400) // 2
    )
    rows = {"a": torch.arange(101), "b": torch.rand(101, 3, generator=torch.Generator().manual_seed(1))}
    rows["user_id"] = torch.arange(101) % 7
    some = {"batch_size": 8, "seed": 5, "steps_per_chunk": 3} | where
    return {
        "pairs": PairBatches(interactions, **some),
        "rows": RowBatches(rows, **some),
        "groups": RowBatches(rows, group="user_id", **some),
        "sequences": SequenceBatches(interactions, length=4, **some),
        "histories": HistoryBatches(interactions, length=4, **some),
    }


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, dict):
            assert_same(value, right[name])
        else:
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(right[name])), name


@pytest.mark.parametrize("kind", ["pairs", "rows", "groups", "sequences", "histories"])
def test_rows_that_stream_come_in_the_order_of_those_that_lie_on_the_device(kind):
    resident, streamed = sources()[kind], sources(resident_bytes=0)[kind]
    assert not resident.streams
    assert streamed.streams
    for start in (0, 2):
        whole, again = list(resident.chunks(3, start)), list(streamed.chunks(3, start))
        assert len(whole) == len(again) == len(resident) - start
        for left, right in zip(whole, again, strict=True):
            assert_same(left, right)
    assert not threads()


@pytest.mark.parametrize("kind", ["pairs", "rows"])
def test_rows_that_fit_do_not_stream(kind):
    assert not sources(resident_bytes=10**6)[kind].streams


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["pairs", "rows", "groups", "sequences", "histories"])
def test_rows_that_stream_to_a_gpu_come_in_the_order_of_resident_ones(kind):
    resident, streamed = sources(device="cuda")[kind], sources(device="cuda", resident_bytes=0)[kind]
    for left, right in zip(resident.chunks(1), streamed.chunks(1), strict=True):
        assert_same(left, right)
