"""Vocabulary: raw ids to indices and back."""

import hashlib

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.features import Category, FeatureError, FeaturePipeline
from recsys.features.vocabulary import FEW, Counts, Vocabulary, id_keys, mix64

numbers = st.lists(st.integers(0, 2**63 - 1), max_size=40)
texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=40)


@given(st.one_of(numbers, texts), st.data())
def test_indices_follow_the_sorted_ids_and_go_back(ids, data):
    kind = pl.String if ids and isinstance(ids[0], str) else pl.Int64
    vocabulary = Vocabulary(pl.Series(ids, dtype=kind))
    assert len(vocabulary) == len(set(ids)) + 2
    place = {raw: index for index, raw in enumerate(vocabulary.ids.to_list(), 2)}
    asked = data.draw(st.permutations(ids))
    assert vocabulary.encode(pl.Series(asked, dtype=kind)).tolist() == [place[raw] for raw in asked]
    assert vocabulary.decode(vocabulary.encode(pl.Series(asked, dtype=kind))).to_list() == asked
    shuffled = Vocabulary(pl.Series(asked, dtype=kind))
    assert shuffled == vocabulary


def test_unknown_and_null_ids_are_index_one_and_decode_to_null():
    vocabulary = Vocabulary([7, 3, 7])
    assert vocabulary.encode([3, 7, 5]).tolist() == [2, 3, 1]
    assert vocabulary.encode(pl.Series([None, 3], dtype=pl.Int64)).tolist() == [1, 2]
    assert vocabulary.encode([]).tolist() == []
    assert vocabulary.decode(torch.tensor([0, 1, 3])).to_list() == [None, None, 7]


def test_text_that_reads_like_a_number_stays_text():
    vocabulary = Vocabulary(["7", "07"])
    assert vocabulary.ids.to_list() == ["07", "7"]
    with pytest.raises(ValueError, match=r"ids here are text, got integers: 7"):
        vocabulary.encode([7])
    with pytest.raises(ValueError, match=r"ids here are integers, got text: '7'"):
        Vocabulary([7]).encode(["7"])


def test_ids_up_to_the_largest_int64_survive(tmp_path):
    vocabulary = Vocabulary(np.array([2**63 - 1, 2**63 - 2, 0]))
    vocabulary.save(tmp_path / "users.parquet")
    assert Vocabulary.load(tmp_path / "users.parquet") == vocabulary
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]
    assert vocabulary.encode([2**63 - 1]).tolist() == [4]


@pytest.mark.parametrize(("ids", "message"), [([1, None], "null"), ([1.5], "integers or text, got Float64")])
def test_refuses_what_is_no_id(ids, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(ids)


def test_decode_refuses_an_index_outside():
    with pytest.raises(ValueError, match=r"\[0, 3\), found \[3, 3\]"):
        Vocabulary([5]).decode(torch.tensor([3]))


def test_keys_belong_to_the_id_alone():
    assert id_keys(pl.Series([5, 2**62])).tolist() == [5, 2**62]
    keys = id_keys(pl.Series(["b", "a", "b"]))
    expected = int.from_bytes(hashlib.blake2b(b"b", digest_size=8).digest(), "little", signed=True)
    assert keys[0] == keys[2] == expected
    assert keys[1] == id_keys(pl.Series(["a"]))[0] != expected


def test_mix64_is_splitmix64():
    # The first outputs of the reference generator seeded with 1234567.
    seed = np.full(1, 1234567)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(mix64(seed, step)[0]) for step in range(3)] == expected


def test_null_can_be_a_value_of_its_own(tmp_path):
    vocabulary = Vocabulary(["b", "a"], null=True)
    assert len(vocabulary) == 5
    assert vocabulary.encode(pl.Series(["a", None, "c", "b"])).tolist() == [2, 4, 1, 3]
    assert vocabulary.encode(pl.Series([None, None])).tolist() == [4, 4]
    assert vocabulary.decode(torch.tensor([4, 3])).to_list() == [None, "b"]
    vocabulary.save(tmp_path / "v.parquet")
    assert Vocabulary.load(tmp_path / "v.parquet") == vocabulary != Vocabulary(["b", "a"])


@given(st.one_of(numbers, texts), st.one_of(numbers, texts))
def test_few_ids_are_looked_up_as_many_are_joined(known, asked):
    kind = pl.String if any(isinstance(value, str) for value in known + asked) else pl.Int64
    known, asked = ([str(v) if kind == pl.String else v for v in values] for values in (known, asked))
    filler = [f"~{n}" for n in range(900)] if kind == pl.String else [-n for n in range(1, 901)]
    vocabulary = Vocabulary(pl.Series([*known, *filler], dtype=kind), null=True)
    few = pl.Series([*asked, None], dtype=kind)
    one_by_one = [vocabulary.encode(few[row : row + 1]).item() for row in range(few.len())]
    for padding in ([None] * FEW, filler):  # searched, then joined
        some = pl.concat([few, pl.Series(padding, dtype=kind)])
        assert vocabulary.encode(some).tolist()[: few.len()] == one_by_one


def test_an_empty_vocabulary_knows_nothing_of_any_kind():
    for ids in (["a", None] * 20, pl.Series([1, None] * 20, dtype=pl.Int64)):
        assert Vocabulary([]).encode(ids).tolist() == [1] * 40


# --- Category ---


def fitted(feature, values):
    return FeaturePipeline(context={"x": feature}).fit(pl.DataFrame({"x": values}))


def indices(pipeline, values):
    return pipeline.transform(pl.DataFrame({"x": values}))["x"].tolist()


def test_rare_values_are_other_and_null_is_a_value():
    pipeline = fitted(Category(min_count=2), ["b", "a", "b", None, "a", None, "rare"])
    assert pipeline.columns[0].cardinality == 5
    assert indices(pipeline, ["a", "b", None, "rare", "unseen"]) == [2, 3, 4, 1, 1]
    without = fitted(Category(), ["b", "a"])
    assert without.columns[0].cardinality == 4
    assert indices(without, pl.Series([None, "a"], dtype=pl.String)) == [1, 2]


@given(st.permutations([3, 3, 3, 1, 1, 2, 2, 9, None]))
def test_the_most_frequent_are_kept_whatever_the_order_of_rows(values):
    pipeline = fitted(Category(max_size=2), pl.Series(values, dtype=pl.Int64))
    assert pipeline.features["x"].vocabulary.ids.to_list() == [1, 3]  # of 1 and 2, the smaller


def test_counts_over_many_chunks_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    values, counts = rng.integers(0, 5000, 60_000), Counts()
    counts._held = -500_000  # so that merging begins early
    for part in np.array_split(values, 37):
        counts.add(pl.Series(part))
    found = counts.table()
    expected = np.unique(values, return_counts=True)
    assert found["value"].to_list() == expected[0].tolist()
    assert found["count"].to_list() == expected[1].tolist()


def test_booleans_and_whole_numbers_are_categories():
    assert indices(fitted(Category(), [True, False]), [False, True, None]) == [2, 3, 1]
    assert indices(fitted(Category(), [4.0, 7.0, float("nan")]), [7, 4, 5]) == [3, 2, 1]
    assert indices(fitted(Category(), [4.0, None]), [4.0, None, float("nan")]) == [2, 3, 3]
    assert indices(fitted(Category(), pl.Series(["a", "b"], dtype=pl.Categorical())), ["b"]) == [3]


def test_lists_are_padded_and_cut():
    tags = pl.Series([["b", "a"], None, [], ["a", "c", "d", "b"], ["z", None]], dtype=pl.List(pl.String))
    pipeline = fitted(Category(length=3), tags)
    assert (pipeline.columns[0].cardinality, pipeline.columns[0].width) == (7, 3)
    assert indices(pipeline, tags) == [[3, 2, 0], [0, 0, 0], [0, 0, 0], [2, 4, 5], [6, 1, 0]]
    assert indices(pipeline, tags.head(0)) == []
    hot = fitted(Category(length=3, one_hot=True), tags)
    assert indices(hot, tags)[3] == [0, 0, 1, 0, 1, 1, 0]
    assert indices(hot, tags)[1] == [0] * 7


def test_one_hot_has_a_column_for_other():
    hot = fitted(Category(one_hot=True), ["a", "b"])
    assert indices(hot, ["b", "zzz"]) == [[0, 0, 0, 1], [0, 1, 0, 0]]
    assert (hot.columns[0].dtype, hot.columns[0].width, hot.columns[0].cardinality) == ("float32", 4, None)


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        (Category(), pl.Series([None, None], dtype=pl.String), "nothing but nulls in the rows to fit on: leave it out"),
        (Category(), [None, None], "nothing but nulls: leave it out"),
        (Category(), [1.0, 2.5], "'x' holds integers, row 1 has 2.5"),
        (Category(), pl.Series([0]).cast(pl.Datetime("us")), "categories are integers, text or booleans"),
        (Category(), [["a"]], "holds lists: say how many places to keep"),
        (Category(length=2), ["a"], "holds no lists: leave length out"),
        (Category(), [{"a": 1}], "is Struct.*: convert it"),
    ],
)
def test_columns_that_are_no_categories(feature, values, message):
    with pytest.raises(FeatureError, match=f"feature 'x': .*{message}"):
        fitted(feature, values)
    with pytest.raises(FeatureError, match="min_count=0: expected at least 1"):
        Category(min_count=0)
