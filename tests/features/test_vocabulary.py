"""Vocabulary: raw ids to indices and back."""

import hashlib

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.features.vocabulary import Vocabulary, id_keys, mix64

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
