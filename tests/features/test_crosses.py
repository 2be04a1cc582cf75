"""Hashed columns and crosses against xxhash, value by value."""

import polars as pl
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from recsys.features import FeatureError, FeaturePipeline, Hashed
from recsys.features.crosses import cross
from recsys.features.hashing import NULL_HASH

values = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))
words = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=9))


def reference(value: int | str | None, seed: int) -> int:
    if value is None:
        return NULL_HASH % 2**64
    data = value.encode() if isinstance(value, str) else value.to_bytes(8, "little", signed=True)
    return xxhash.xxh64(data, seed).intdigest()


def reference_cross(row: tuple[int | str | None, ...], seed: int) -> int:
    combined = reference(row[0], seed)
    for value in row[1:]:
        combined = xxhash.xxh64(reference(value, seed).to_bytes(8, "little"), combined).intdigest()
    return combined


def bucket(hashed: int, num_buckets: int) -> int:
    return 2 + (hashed * num_buckets >> 64)


@given(st.lists(st.tuples(values, words, values), min_size=1, max_size=20), st.integers(0, 2**64 - 1))
def test_a_cross_chains_the_hashes_of_its_columns(rows, seed):
    columns = [
        pl.Series("a", [row[0] for row in rows], dtype=pl.Int64),
        pl.Series("b", [row[1] for row in rows], dtype=pl.String),
        pl.Series("c", [row[2] for row in rows], dtype=pl.Int64),
    ]
    for used in (1, 2, 3):
        found = cross(columns[:used], seed).view(torch.uint64).tolist()
        assert found == [reference_cross(row[:used], seed) for row in rows]


def test_indices_are_buckets_from_two_on_and_null_is_one():
    frame = pl.DataFrame({"a": ["x", None, "y"], "n": [5, 6, None]})
    pipeline = FeaturePipeline(
        context={
            "a": Hashed(1000),
            "many": Hashed(1000, columns=["n"], num_hashes=3, seed=7, sign=True),
            "both": Hashed(50, columns=["a", "n"]),
            "turned": Hashed(50, columns=["n", "a"]),
        }
    ).fit(frame)
    found = pipeline.transform(frame)
    assert found["a"].tolist() == [bucket(reference("x", 0), 1000), 1, bucket(reference("y", 0), 1000)]
    many = [[bucket(reference(n, seed), 1000) for seed in (7, 8, 9)] for n in (5, 6)]
    assert found["many"].tolist() == [*many, [1, 1, 1]]
    assert found["many_sign"][0].tolist() == [1.0 if reference(5, seed) & 1 else -1.0 for seed in (7, 8, 9)]
    assert found["both"].tolist() == [bucket(reference_cross(row, 0), 50) for row in frame.rows()]
    assert found["turned"].tolist() != found["both"].tolist()
    assert [(c.name, c.cardinality, c.width) for c in pipeline.columns] == [
        ("a", 1002, None), ("many", 1002, 3), ("many_sign", None, 3), ("both", 52, None), ("turned", 52, None),
    ]  # fmt: skip


def test_lists_are_hashed_place_by_place():
    frame = pl.DataFrame({"tags": [["a", "b", "c"], [], None, ["c", None]]})
    pipeline = FeaturePipeline(item={"tags": Hashed(100, length=2, sign=True)}).fit(frame)
    found = pipeline.transform(frame)
    a, b, c = (bucket(reference(tag, 0), 100) for tag in "abc")
    assert found["tags"].tolist() == [[a, b], [0, 0], [0, 0], [c, 1]]
    assert found["tags_sign"][1].tolist() == [0.0, 0.0]


def test_values_that_training_never_saw_have_a_place():
    pipeline = FeaturePipeline(item={"a": Hashed(10)}).fit(pl.DataFrame({"a": [1]}))
    assert 2 <= int(pipeline.transform({"a": -77})["a"]) < 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_buckets": 0}, "num_buckets=0: expected 1 to"),
        ({"num_buckets": 2**31 + 1}, "expected 1 to 2147483648"),
        ({"num_buckets": 5, "columns": "a"}, r"columns=a: expected a list, as \[a\]"),
        ({"num_buckets": 5, "num_hashes": 0}, "expected at least 1"),
        ({"num_buckets": 5, "seed": -1}, "seed=-1"),
        ({"num_buckets": 5, "length": 2, "columns": ["a", "b"]}, "one hash and no cross"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(FeatureError, match=message):
        Hashed(**arguments)


@pytest.mark.parametrize("column", [[1.5], pl.Series([0]).cast(pl.Datetime("us")), [["a"]]])
def test_columns_that_cannot_be_hashed(column):
    with pytest.raises(FeatureError, match="feature 'a': column 'a'"):
        FeaturePipeline(item={"a": Hashed(10)}).fit(pl.DataFrame({"a": column}))
