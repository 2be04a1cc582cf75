"""Who gets which treatment, and whether as many got it as were meant to.

Groups follow from a hash of the user and the experiment's salt: the same whoever asks, wherever and in which order,
and independent of the groups of any other salt. Two hashes are drawn, whether a user takes part and in which group,
so that an experiment which grows with all shares alike keeps everyone where they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import chdtrc

from recsys.features.hashing import xxh64

HALVES = {"control": 0.5, "treatment": 0.5}
MISMATCH = 0.0005  # p below which counts contradict the shares: effects are then not to be believed
ROUNDING = 1e-9  # by which shares may add up to more than 1


class Mismatch(NamedTuple):
    """Whether users fell into groups as planned: counts and the expected ones by group, p of chi-square, trusted."""

    counts: dict[str, int]
    expected: dict[str, float]
    p: float
    trusted: bool


def assign(
    user_ids: pl.Series | NDArray[Any] | Sequence[int | str], salt: str | int, shares: Mapping[str, float] | None = None
) -> pl.Series:
    """The group of each user, by XXH64 of id and salt.

    Args:
        user_ids: integers or text; 7 and "7" are two users.
        salt: the experiment's own, such as its name.
        shares: of all users, by group; halves if None. What they leave of 1 takes no part.

    Returns: text by the name of "group"; null for users who take no part.
    Raises:
        ValueError: shares that are not above 0 or add up to more than 1, no share, or an id that is null.
    """
    shares = HALVES if shares is None else shares
    total = check_shares(shares)
    whether, which = xxh64([f"{salt} whether", f"{salt} which"])
    fraction = np.cumsum(list(shares.values()))[:-1] / total
    inner = np.array([round(part * 2**64) for part in fraction.tolist()], dtype=np.uint64)
    place = np.searchsorted(inner, xxh64(user_ids, int(which)), side="right")
    groups = pl.Series("group", list(shares), dtype=pl.String).gather(place)
    if total < 1 - ROUNDING:
        taken = xxh64(user_ids, int(whether)) < np.uint64(round(total * 2**64))
        groups = pl.select(group=pl.when(pl.lit(pl.Series(taken))).then(groups)).to_series()
    return groups


def check_shares(shares: Mapping[str, float]) -> float:
    """What the shares of all groups add up to.

    Raises:
        ValueError: a share is not above 0, all are more than 1, or there is none.
    """
    if not shares:
        raise ValueError("shares name no group: give a share of the users to each")
    for name, share in shares.items():
        if not (share > 0 and math.isfinite(share)):
            raise ValueError(f"shares[{name!r}]={share}: expected above 0; leave out a group that nobody is in")
    total = math.fsum(shares.values())
    if total > 1 + ROUNDING:
        raise ValueError(f"shares add up to {total:g}: expected at most 1, what is left takes no part")
    return total


def mismatch(counts: Mapping[str, int], shares: Mapping[str, float]) -> Mismatch:
    """Hold the users of groups against the planned shares: the sample-ratio mismatch.

    Fabijan et al., "Diagnosing Sample Ratio Mismatch in Online Controlled Experiments", KDD 2019: where the groups are
    not of the planned sizes, users were lost or added on one side, mostly by the treatment itself, and no effect is
    to be believed. p below MISMATCH is the alarm.

    Args:
        shares: planned, of all users or of those who take part.

    Raises:
        ValueError: the two name other groups, there is one group alone, or nobody is in any.
    """
    check_shares(shares)
    if set(counts) != set(shares):
        differ = sorted(set(counts) ^ set(shares), key=str)[0]
        raise ValueError(f"group {differ} is in {'counts' if differ in counts else 'shares'} alone: name each in both")
    if len(shares) < 2:
        raise ValueError(f"{next(iter(shares))} is the only group: an experiment has two at least")
    users, total = sum(counts.values()), math.fsum(shares.values())
    if not users:
        raise ValueError("nobody is in any group: there is nothing to check")
    expected = {name: users * share / total for name, share in shares.items()}
    distance = sum((counts[name] - expected[name]) ** 2 / expected[name] for name in shares)
    p = float(chdtrc(len(shares) - 1, distance))
    return Mismatch({name: int(counts[name]) for name in shares}, expected, p, p >= MISMATCH)
