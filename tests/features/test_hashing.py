"""XXH64 by every path against the xxhash package; buckets against Python's integers, their spread by chi-square."""

import shutil
import sys

import numpy as np
import polars as pl
import pytest
import torch
import xxhash
from hash_values import LAST, SEEDS, bits, integers, texts
from hypothesis import given
from hypothesis import strategies as st

from recsys.features import hashing
from recsys.features.hashing import NULL_HASH, buckets, hash_column, kernels, pack_text, signs, xxh64, xxh64_seeded

compiled = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="NO C++ COMPILER: the kernels' text is not run here"
)


def of_words(values: np.ndarray, seed: int = 0) -> np.ndarray:
    data = memoryview(values.astype(values.dtype.newbyteorder("<"))).cast("B")
    return np.array([xxhash.xxh64_intdigest(data[i : i + 8], seed) for i in range(0, len(data), 8)], np.uint64)


def of_text(values: list[str], seed: int = 0) -> np.ndarray:
    return np.array([xxhash.xxh64_intdigest(value.encode(), seed) for value in values], np.uint64)


@pytest.fixture(scope="module")
def many() -> list[str]:
    return texts(996_000, 4_000)


# --- the CPU --------------------------------------------------------------------------------------------------


def test_a_million_integers():
    values = integers(1_000_000)
    found = xxh64(values)
    assert found.dtype == np.uint64
    assert np.array_equal(found, of_words(values))
    assert np.array_equal(bits(xxh64(torch.from_numpy(values))), found)
    assert np.array_equal(bits(hash_column(pl.Series(values), 0)), found)


def test_a_million_texts(many):
    found = xxh64(pl.Series(many))
    assert found.dtype == np.uint64
    assert found.flags.writeable
    assert np.array_equal(found, of_text(many))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_kind_of_value_and_container(seed):
    values = [*integers(500).tolist(), 0, 1, -1, -(2**63), 2**63 - 1]
    expected = of_words(np.array(values), seed)
    array = np.array(values)
    for given_as in (
        values, array, pl.Series(values), array.astype(">i8"), np.repeat(array, 2)[::2],
    ):  # fmt: skip
        assert np.array_equal(xxh64(given_as, seed), expected)
    assert np.array_equal(xxh64(array.reshape(5, -1), seed), expected.reshape(5, -1))
    for dtype in ("int8", "int16", "int32", "uint8", "uint16", "uint32", "bool"):
        narrow = array.astype(dtype)
        expected = of_words(narrow.astype(np.int64), seed)
        assert np.array_equal(xxh64(narrow, seed), expected)
        assert np.array_equal(xxh64(pl.Series(narrow), seed), expected)
        assert np.array_equal(xxh64(torch.from_numpy(narrow), seed).numpy(), expected)
    assert np.array_equal(xxh64([True, False], seed), of_words(np.array([1, 0]), seed))

    words = texts(500, 5)
    expected = of_text(words, seed)
    series = pl.Series(words)
    data = [word.encode() for word in words]
    for given_as in (
        words, tuple(words), series, np.array(words, object), data, series.cast(pl.Binary), series.cast(pl.Categorical),
        series.cast(pl.Enum(series.unique())),
    ):  # fmt: skip
        assert np.array_equal(xxh64(given_as, seed), expected)
    assert np.array_equal(xxh64(np.array(["a", "é", ""]), seed), of_text(["a", "é", ""], seed))
    assert xxh64([b"\xff\x00"], seed).tolist() == [xxhash.xxh64_intdigest(b"\xff\x00", seed)]


def test_integers_beyond_int64_keep_their_bits():
    values = [0, 1, 2**63, LAST]
    expected = of_words(np.array(values, np.uint64))
    array = np.array(values, np.uint64)
    for found in (
        xxh64(values), xxh64(array), xxh64(pl.Series(values, dtype=pl.UInt64)), xxh64(torch.from_numpy(array)).numpy(),
    ):  # fmt: skip
        assert np.array_equal(found, expected)
    assert np.array_equal(xxh64([1] * 1000 + [LAST])[-1], expected[-1])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5), st.integers(0, LAST))
def test_any_text_with_any_seed(values, seed):
    assert xxh64(values, seed).tolist() == of_text(values, seed).tolist()


@given(st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2), max_size=5))
def test_a_seed_a_row(rows):
    values, seeds = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).unbind(1)
    found = bits(xxh64_seeded(values, seeds)).tolist()
    assert found == [xxhash.xxh64_intdigest(v.to_bytes(8, "little", signed=True), s % 2**64) for v, s in rows]


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 2999, 3000, 3001, 10_007])
def test_chunks_and_threads_meet_without_a_seam(size, monkeypatch):
    monkeypatch.setattr(hashing, "ALONE", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    values = integers(size)
    assert np.array_equal(xxh64(values, 5), of_words(values, 5))
    narrow = values.astype(np.int32)
    assert np.array_equal(xxh64(narrow, 5), of_words(narrow.astype(np.int64), 5))
    tensor = torch.from_numpy(values)
    expected = [xxhash.xxh64_intdigest(value.tobytes(), int(value) % 2**64) for value in values]
    assert bits(xxh64_seeded(tensor, tensor)).tolist() == expected


def test_slices_and_chunks_of_a_series():
    numbers, words = integers(1000), texts(900, 100)
    assert np.array_equal(xxh64(pl.Series(numbers)[123:900]), of_words(numbers[123:900]))
    for dtype in (pl.String, pl.Binary, pl.Categorical, pl.Enum(pl.Series(words).unique())):
        series = pl.Series(words).cast(dtype)
        assert np.array_equal(xxh64(series[123:900]), of_text(words[123:900]))
        pieces = pl.concat([series[5:300], series[:0], series[400:999]], rechunk=False)
        assert pieces.n_chunks() > 1
        assert np.array_equal(xxh64(pieces[7:]), of_text([*words[12:300], *words[400:999]]))
    pieces = pl.concat([pl.Series(numbers[5:300]), pl.Series(numbers[400:999])], rechunk=False)
    assert np.array_equal(xxh64(pieces[7:]), of_words(np.concatenate([numbers[12:300], numbers[400:999]])))


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([7, None, -7]), pl.Series([True, None, False]),
        pl.Series(["a", None, ""]), pl.Series([b"a", None, b""]),
        pl.Series(["a", None, "b"], dtype=pl.Categorical), pl.Series(["a", None, "b"], dtype=pl.Enum(["c", "b", "a"])),
        pl.Series([LAST, None, 1], dtype=pl.UInt64), pl.Series([5, None, -5], dtype=pl.Int8),
    ],
)  # fmt: skip
def test_a_null_has_a_hash_of_its_own(column):
    first, last = xxh64(column.drop_nulls(), 3).tolist()
    assert bits(hash_column(column, 3)).tolist() == [first, NULL_HASH, last]
    assert bits(hash_column(column[1:2], 3)).tolist() == [NULL_HASH]
    with pytest.raises(ValueError, match="row 1 is null: fill or drop it"):
        xxh64(column)


@pytest.mark.parametrize(
    "values",
    [[], (), np.array([]), np.array([], "U3"), np.array([], np.int32), pl.Series([]), pl.Series([], dtype=pl.String),
     pl.Series([], dtype=pl.Categorical), torch.tensor([], dtype=torch.int64)],
)  # fmt: skip
def test_nothing_in_nothing_out(values):
    found = xxh64(values)
    assert len(found) == 0
    assert found.dtype in (np.uint64, torch.uint64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([3, None], "row 1 is null: fill or drop it"),
        (np.array(["a", None], object), "row 1 is null: fill or drop it"),
        (pl.Series([None, None]), "row 0 is null"),
        ([1.5], "got Float64: convert it"),
        (np.array([1.5]), "got float64: convert it"),
        (torch.tensor([1.5]), "got torch.float32: convert it"),
        (np.array(["2026-01-01"], "M8[D]"), "got datetime64"),
        (pl.Series([0], dtype=pl.Date), "got Date"),
        (pl.Series([[1]]), "got List"),
        (pl.Series([1], dtype=pl.Int128), "got Int128"),
        ([2**64], "got Int128"),
        ([object()], "got Object"),
        ("abc", "got str"),
        (["a", 1], "all int, all str or all bytes: .*Int64: 1"),
        ([1, "a"], "all int, all str or all bytes"),
        (["\ud800"], "all int, all str or all bytes: .*surrogates not allowed"),
    ],
)
def test_what_cannot_be_hashed_is_one_line(values, message):
    with pytest.raises(ValueError, match=message) as error:
        xxh64(values)
    assert "\n" not in str(error.value)


def test_wrong_arguments(monkeypatch):
    for seed in (-1, 2**64):
        for hashed in (lambda seed: xxh64([1], seed), lambda seed: hash_column(pl.Series(["a"]), seed)):
            with pytest.raises(ValueError, match=f"seed={seed}: expected 0 to 2\\*\\*64 - 1"):
                hashed(seed)
    word = torch.tensor([1, 2])
    for seeds in (torch.tensor([1]), torch.tensor([1, 2], dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"int64 of one shape on one device, got torch\.int64 \[2\] on cpu"):
            xxh64_seeded(word, seeds)
    for num_buckets in (0, 2**31 + 1):
        with pytest.raises(ValueError, match=f"num_buckets={num_buckets}: expected 1 to 2147483648"):
            buckets(word, num_buckets)
    for function in (signs, lambda hashes: buckets(hashes, 5)):
        with pytest.raises(ValueError, match=r"must be int64 or uint64, got torch\.int32"):
            function(word.int())
    monkeypatch.setitem(sys.modules, "polars_hash", None)
    with pytest.raises(ImportError, match="pip install polars-hash"):
        xxh64(["a"])


# --- the text of the kernels, by the C++ compiler -------------------------------------------------------------


@compiled
@pytest.mark.parametrize("seed", SEEDS)
def test_the_kernels_hash_words(seed):
    values, seeds = torch.from_numpy(integers(100_000)), torch.from_numpy(integers(100_000, 1))
    found = torch.empty_like(values)
    kernels("hash_words", len(values), values, hashing._signed(seed), found)
    assert np.array_equal(bits(found), bits(xxh64(values, seed)))
    kernels("hash_words_seeded", len(values), values, seeds, found)
    assert torch.equal(found, xxh64_seeded(values, seeds))


@compiled
def test_the_kernels_hash_a_million_texts(many):
    series = pl.Series(many)
    for seed in (0, LAST):
        found = torch.empty(len(many), dtype=torch.int64)
        kernels("hash_text", len(many), *pack_text(series, "cpu"), hashing._signed(seed), found)
        assert np.array_equal(bits(found), xxh64(series, seed))


@compiled
@pytest.mark.parametrize(
    "series",
    [pl.Series(texts(900, 100))[101:997], pl.concat([pl.Series(["abc", ""]), pl.Series(["é"])], rechunk=False),
     pl.Series(["", "", ""]), pl.Series(["12345678"] * 5), pl.Series([b"\x00", b"", b"\xff" * 33])],
)  # fmt: skip
def test_text_is_packed_in_whole_words(series):
    starts, words = pack_text(series, "cpu")
    data = b"".join(value.encode() if isinstance(value, str) else value for value in series)
    assert words.numpy().tobytes()[: len(data)] == data
    assert len(words) * 8 >= -(-len(data) // 8) * 8 + 8
    assert starts.tolist() == [0, *np.cumsum(series.cast(pl.Binary).bin.size().to_numpy()).tolist()]
    found = torch.empty(len(series), dtype=torch.int64)
    kernels("hash_text", len(series), starts, words, 9, found)
    assert np.array_equal(bits(found), xxh64(series, 9))


# --- buckets and signs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_buckets", [1, 2, 10, 1000003, 2**31 - 1, 2**31])
def test_buckets_are_exact(num_buckets):
    hashes = torch.from_numpy(np.append(integers(10_000), [0, -1, 2**63 - 1, -(2**63), 2**32 - 1, -(2**32)]))
    found = buckets(hashes, num_buckets)
    assert found.dtype == torch.int64
    assert found.tolist() == [value % 2**64 * num_buckets >> 64 for value in hashes.tolist()]
    assert torch.equal(buckets(hashes.view(torch.uint64), num_buckets), found)


def excess(statistic: float, freedom: int) -> float:
    """Standard deviations of a chi-square statistic above its mean."""
    return (statistic - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("num_buckets", [10, 1000003])
@pytest.mark.parametrize("values", [range(1_000_000), [f"user_{i}" for i in range(1_000_000)]], ids=["words", "text"])
def test_buckets_are_even_and_signs_independent_of_them(values, num_buckets):
    hashes = hash_column(pl.Series(values), 0)
    idx, sign = buckets(hashes, num_buckets), signs(hashes)
    assert sign.dtype == torch.float32
    assert set(sign.tolist()) == {1.0, -1.0}
    assert torch.equal(sign > 0, hashes % 2 == 1)
    assert int(idx.min()) >= 0
    assert int(idx.max()) < num_buckets
    counts = torch.bincount(idx, minlength=num_buckets).double()
    expected = len(values) / num_buckets
    assert abs(excess(float(((counts - expected) ** 2 / expected).sum()), num_buckets - 1)) < 4
    assert abs(float(sign.sum())) < 4 * len(values) ** 0.5
    sums = torch.zeros(num_buckets, dtype=torch.float64).index_add_(0, idx, sign.double())
    used = counts > 0
    assert abs(excess(float((sums[used] ** 2 / counts[used]).sum()), int(used.sum()))) < 4
