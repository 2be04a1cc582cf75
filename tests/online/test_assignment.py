"""Groups are what the hash says: of their shares, the same for all, independent of other salts, steady in growth."""

from __future__ import annotations

import struct

import numpy as np
import polars as pl
import pytest
import xxhash
from scipy import stats

from recsys.online.assignment import MISMATCH, assign, mismatch

USERS = np.arange(40_000)


def test_groups_have_their_shares_and_the_rest_takes_no_part() -> None:
    shares = {"control": 0.3, "a": 0.2, "b": 0.1}
    groups = assign(USERS, "one", shares)
    assert groups.name == "group"
    counts = dict(groups.value_counts().iter_rows())
    expected = np.array([0.3, 0.2, 0.1, 0.4]) * len(USERS)
    seen = [counts[name] for name in ("control", "a", "b", None)]
    assert stats.chisquare(seen, expected).pvalue > 0.001
    assert mismatch({name: counts[name] for name in shares}, shares).trusted


def test_everyone_takes_part_where_shares_are_whole() -> None:
    assert assign(USERS, "x").null_count() == 0
    thirds = assign(USERS, "x", dict.fromkeys("abc", 1 / 3))
    assert thirds.null_count() == 0
    assert set(thirds) == set("abc")
    assert set(assign(USERS, "x", {"all": 1.0})) == {"all"}


def test_a_group_depends_on_the_id_and_the_salt_alone() -> None:
    order = np.random.default_rng(0).permutation(len(USERS))
    groups = assign(USERS, "one", {"control": 0.4, "treatment": 0.4})
    assert assign(USERS[order], "one", {"control": 0.4, "treatment": 0.4}).equals(groups.gather(order))
    assert assign(USERS[:5].tolist(), "one", {"control": 0.4, "treatment": 0.4}).equals(groups.head(5))
    assert assign(pl.Series(USERS[:9], dtype=pl.Int32), "one", {"control": 0.4, "treatment": 0.4}).equals(
        groups.head(9)
    )
    assert assign([], "one").len() == 0


@pytest.mark.parametrize("ids", [USERS[:2000], ["anna", "ben", "ćwiek", "dörte", ""]], ids=["integers", "text"])
def test_groups_follow_from_two_hashes(ids: np.ndarray | list[str]) -> None:
    """By the library that defines the hash: other groups would move the users of running experiments."""
    shares = {"control": 0.25, "a": 0.25, "b": 0.125}
    whether, which = (xxhash.xxh64_intdigest(f"ranking {word}".encode()) for word in ("whether", "which"))
    expected: list[str | None] = []
    for user in ids:
        word = user.encode() if isinstance(user, str) else struct.pack("<q", user)
        place = xxhash.xxh64_intdigest(word, which) / 2**64 * 0.625
        group = "control" if place < 0.25 else "a" if place < 0.5 else "b"
        expected.append(group if xxhash.xxh64_intdigest(word, whether) < 0.625 * 2**64 else None)
    assert assign(ids, "ranking", shares).to_list() == expected


@pytest.mark.parametrize("ids", [USERS, [f"user {n}" for n in USERS]], ids=["integers", "text"])
def test_salts_are_independent(ids: np.ndarray | list[str]) -> None:
    shares = {"control": 0.4, "treatment": 0.3}
    table = (
        pl.DataFrame({"a": assign(ids, "one", shares), "b": assign(ids, "two", shares)})
        .fill_null("out")
        .group_by("a", "b")
        .len()
        .pivot("b", index="a", values="len")
        .drop("a")
        .to_numpy()
    )
    assert table.shape == (3, 3)
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_growing_with_all_shares_alike_moves_nobody() -> None:
    small = assign(USERS, 7, {"control": 0.05, "treatment": 0.05})
    large = assign(USERS, 7, {"control": 0.4, "treatment": 0.4})
    taken = small.is_not_null()
    assert taken.sum() > 3000
    assert large.filter(taken).equals(small.filter(taken))


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({}, "shares name no group"),
        ({"a": 0.6, "b": 0.5}, "add up to 1.1: expected at most 1"),
        ({"a": 0.5, "b": 0.0}, r"shares\['b'\]=0.0"),
        ({"a": -0.5}, r"shares\['a'\]=-0.5"),
        ({"a": float("nan")}, r"shares\['a'\]=nan"),
    ],
)
def test_shares_that_make_no_sense_are_refused(shares: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assign(USERS, "x", shares)


def test_a_missing_id_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 is null"):
        assign(pl.Series([1, None]), "x")


def test_the_mismatch_is_chi_square() -> None:
    counts, shares = {"control": 5100, "a": 2450, "b": 2400}, {"control": 0.4, "a": 0.2, "b": 0.2}
    found = mismatch(counts, shares)
    known = stats.chisquare([5100, 2450, 2400], [4975, 2487.5, 2487.5])
    assert found.p == pytest.approx(known.pvalue)
    assert found.expected == pytest.approx({"control": 4975, "a": 2487.5, "b": 2487.5})
    assert found.trusted == (known.pvalue >= MISMATCH)


def test_the_alarm_sees_what_others_saw_and_rarely_cries_wolf() -> None:
    # Kohavi, Tang and Xu, "Trustworthy Online Controlled Experiments", 2020, chapter 21: p = 1.8e-6.
    assert mismatch({"a": 821_588, "b": 815_482}, {"a": 0.5, "b": 0.5}).p == pytest.approx(1.8e-6, rel=0.05)
    assert not mismatch({"control": 821_588, "treatment": 815_482}, {"control": 0.5, "treatment": 0.5}).trusted
    drawn = np.random.default_rng(1).binomial(10_000, 0.5, 4000)
    cried = [not mismatch({"a": int(n), "b": 10_000 - int(n)}, {"a": 0.5, "b": 0.5}).trusted for n in drawn]
    assert sum(cried) <= 9  # 2 expected


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="group b is in shares alone"):
        mismatch({"a": 3}, {"a": 0.5, "b": 0.5})
    with pytest.raises(ValueError, match="a is the only group"):
        mismatch({"a": 3}, {"a": 1.0})
    with pytest.raises(ValueError, match="nobody is in any group"):
        mismatch({"a": 0, "b": 0}, {"a": 0.5, "b": 0.5})
