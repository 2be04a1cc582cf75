"""Hashes on a GPU are the bits of the CPU, on a stream that is not the default one."""

import numpy as np
import polars as pl
import pytest
import torch
from hash_values import SEEDS, bits, integers, texts

from recsys.features.hashing import buckets, hash_column, signs, xxh64, xxh64_seeded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(autouse=True)
def stream():
    """A stream that is not the default one, current in torch."""
    with torch.cuda.stream(torch.cuda.Stream()):
        yield


@pytest.fixture(scope="module")
def many() -> list[str]:
    return texts(996_000, 4_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_integers(seed):
    values, seeds = torch.from_numpy(integers(1_000_003)), torch.from_numpy(integers(1_000_003, 1))
    expected = xxh64(values, seed)
    found = xxh64(values.cuda(), seed)
    assert (found.dtype, found.device.type) == (torch.uint64, "cuda")
    assert np.array_equal(bits(found), bits(expected))
    assert np.array_equal(bits(xxh64(values.cuda()[5::3], seed)), bits(expected[5::3]))
    assert np.array_equal(bits(xxh64(values.int().cuda(), seed)), bits(xxh64(values.int(), seed)))
    assert torch.equal(xxh64_seeded(values.cuda(), seeds.cuda()).cpu(), xxh64_seeded(values, seeds))
    assert len(xxh64(values[:0].cuda())) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_columns(seed, many):
    words, numbers = pl.Series(many), pl.Series(integers(100_000))
    gaps = pl.Series(["a", None, "é", None, ""])
    for column in (
        words, words[1234:99_999], words.head(1000).cast(pl.Binary), words.head(1000).cast(pl.Categorical), numbers,
        numbers[11:], numbers.cast(pl.UInt64, wrap_numerical=True), numbers > 0, gaps, gaps.cast(pl.Categorical),
        gaps[:0], gaps[1:2], pl.Series([1, None, -1], dtype=pl.Int16),
    ):  # fmt: skip
        assert torch.equal(hash_column(column, seed, "cuda").cpu(), hash_column(column, seed))


def test_cupy():
    cupy = pytest.importorskip("cupy")
    values = integers(1_000_003)
    with cupy.cuda.Stream(non_blocking=True):
        for array in (values, values.view(np.uint64), values.astype(np.int16), values > 0):
            found = xxh64(cupy.asarray(array), 7)
            assert isinstance(found, cupy.ndarray)
            assert found.dtype == np.uint64
            assert np.array_equal(found.get(), xxh64(array, 7))
        with pytest.raises(ValueError, match="got float64"):
            xxh64(cupy.zeros(3))


@pytest.mark.parametrize("num_buckets", [1, 10, 1000003, 2**31])
def test_buckets_and_signs(num_buckets):
    hashes = torch.from_numpy(integers(100_000))
    assert torch.equal(buckets(hashes.cuda(), num_buckets).cpu(), buckets(hashes, num_buckets))
    assert torch.equal(signs(hashes.cuda()).cpu(), signs(hashes))
