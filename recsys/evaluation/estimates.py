"""How sure a figure is, or the difference of two models: over users and over seeds at once.

A figure moves with who is measured and with how training went. With one run a seed, and every run measured on the same
users, the two are crossed: a user has an effect in all runs, a run has one on all users, and the rest is noise of one
user in one run. The variance of a mean over both is what users bring plus what runs bring, less the noise, which lies
in either (the two-way clustered variance of Cameron, Gelbach and Miller, "Robust Inference with Multiway Clustering",
2011). Users are many and seeds few, so each part is stretched by its own quantile of Student's t before the two are
added in quadrature: an interval that holds at least as often as it says. With one run the variance of training is not
in it: repeat seeds.

What a user brings to a figure is the user's share: a mean, a ratio of sums or an AUC is its value plus the shares of
all users, to first order, and shares sum to zero.

Shapes: S runs (one a seed), U users, N hypotheses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.evaluation.significance import key_columns

POWER = 0.8  # with which `detectable` would be seen

# A ranker's metrics that are a ratio of two sums over users.
_LOSS, _ROWS, _PREDICTED, _POSITIVES = (pl.col(name) for name in ("log_loss", "rows", "predicted", "positives"))
_OF_BOTH = pl.col("auc").is_not_null()
RATIOS = {
    "log_loss": (_LOSS, _ROWS),
    "calibration": (_PREDICTED, _POSITIVES),
    "grouped_auc": (_ROWS * pl.col("auc").fill_null(0.0), _ROWS * _OF_BOTH),
}


class Estimate(NamedTuple):
    """value with its interval (low, high).

    p: two-sided, of no difference (or of 0); None where the interval has no width. effect: the value over the standard
    deviation of users, Cohen's d of a paired design. detectable: the smallest value that a test at this confidence
    would see four times in five, given this variance.
    """

    value: float
    low: float
    high: float
    p: float | None
    effect: float | None
    detectable: float
    users: int
    seeds: int


def estimate(
    ours: Sequence[pl.DataFrame],
    metric: str,
    theirs: Sequence[pl.DataFrame] | None = None,
    *,
    values: Sequence[float] | None = None,
    other_values: Sequence[float] | None = None,
    confidence: float = 0.95,
) -> Estimate | None:
    """A metric of one model, or its difference to another's, and how sure it is.

    Args:
        ours: what each run measured, one row a query (`Evaluation.per_user`) or a user (`Measured.per_user`).
        theirs: the other model's, by the same seeds in the same order; a single one stands beside each of ours.
        values, other_values: the metric of each run, where the rows alone do not give it (auc, calibration_error).

    Returns:
        None where the variance is not known: one user, or one run and a metric that is no sum over users.

    Raises:
        ValueError: other queries on one side than on the other, as many runs on neither side, or a confidence outside
            (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if theirs is not None and len(theirs) not in (1, len(ours)):
        raise ValueError(f"paired runs need one seed beside each: got {len(ours)} and {len(theirs)}")
    found = _values(ours, metric, values)
    shares = [_shares(frame, metric) for frame in ours]
    if theirs is not None:
        for s, frame in enumerate(ours):
            _check_pairs(frame, theirs[s % len(theirs)])
        found = found - _values(theirs, metric, other_values)
        others = [_shares(frame, metric) for frame in theirs]
        shares = [_minus(one, others[s % len(others)]) for s, one in enumerate(shares)]
    return _estimate(found, [one for one in shares if one is not None], confidence)


def ratio(rows: pl.DataFrame, *, confidence: float = 0.95) -> Estimate | None:
    """A sum over a sum, and how sure it is over users: rows have user_key, above and below; None for one user."""
    value = float(rows["above"].sum()) / float(rows["below"].sum())
    share = (pl.col("above") - value * pl.col("below")) / pl.col("below").sum()
    shares = rows.select("user_key", share=share.cast(pl.Float64)).group_by("user_key").sum()
    return _estimate(np.array([value]), [shares], confidence)


def holm(p: Sequence[float]) -> list[float]:
    """p-values of N hypotheses, so corrected that any below alpha errs with probability alpha at most (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    return _placed(np.maximum.accumulate(scaled), order)


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """p-values of N hypotheses, so corrected that of those below alpha a share of alpha at most errs (1995)."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p)[order] * len(p) / np.arange(1, len(p) + 1)
    return _placed(np.minimum.accumulate(scaled[::-1])[::-1], order)


CORRECTIONS = {"holm": holm, "benjamini_hochberg": benjamini_hochberg}


def _placed(sorted_N: NDArray[np.float64], order: NDArray[np.int64]) -> list[float]:
    found = np.empty(len(order))
    found[order] = np.minimum(sorted_N, 1.0)
    return found.tolist()


def _values(frames: Sequence[pl.DataFrame], metric: str, values: Sequence[float] | None) -> NDArray[np.float64]:
    if values is not None:
        return np.asarray(values, dtype=np.float64)
    if metric in RATIOS:
        above, below = RATIOS[metric]
        return np.array([frame.select(above.sum() / below.sum()).item() for frame in frames], dtype=np.float64)
    if metric not in frames[0].columns or "@" not in metric:
        raise ValueError(f"{metric} does not follow from rows of users: give the values of the runs")
    return np.array([frame[metric].cast(pl.Float64).mean() for frame in frames], dtype=np.float64)


def _shares(frame: pl.DataFrame, metric: str) -> pl.DataFrame | None:
    """What each user brings to the metric of one run: user_key, share; None for a metric that is no such sum."""
    if metric == "auc":
        share = pl.col("auc_influence")
    elif metric in RATIOS:
        above, below = RATIOS[metric]
        share = (above - below * (above.sum() / below.sum())) / below.sum()
    elif metric == "normalised_cross_entropy":
        rate = _POSITIVES.sum() / _ROWS.sum()
        entropy = -(rate * rate.log() + (1 - rate) * (1 - rate).log())
        mean = _LOSS.sum() / _ROWS.sum()
        of_rate = (_POSITIVES - rate * _ROWS) * ((1 - rate) / rate).log()
        share = ((_LOSS - mean * _ROWS) - mean / entropy * of_rate) / entropy / _ROWS.sum()
    elif metric in frame.columns:
        value = pl.col(metric).cast(pl.Float64)
        share = (value - value.mean()) / pl.len()
    else:
        return None
    rows = frame.select("user_key", share=share.cast(pl.Float64))
    return rows.group_by("user_key").sum().sort("user_key")


def _check_pairs(ours: pl.DataFrame, theirs: pl.DataFrame) -> None:
    keys = key_columns(ours)
    if keys != key_columns(theirs):
        raise ValueError("a paired difference needs two runs by one protocol: one has several queries a user")
    a, b = (frame.select(keys).sort(keys) for frame in (ours, theirs))
    if not a.equals(b):
        alone = sorted(set(a["user_key"]) ^ set(b["user_key"]))
        named = f"; user_key {alone[0]} is in one of them alone" if alone else ""
        raise ValueError(
            f"a paired difference needs two runs over the same users, got {len(a)} and {len(b)} rows{named}"
        )


def _minus(ours: pl.DataFrame | None, theirs: pl.DataFrame | None) -> pl.DataFrame | None:
    if ours is None or theirs is None:
        return None
    return ours.with_columns(share=ours["share"] - theirs["share"])  # both are sorted by the same users


def _estimate(values: NDArray[np.float64], shares: list[pl.DataFrame], confidence: float) -> Estimate | None:
    """An estimate from the values of S runs and the shares of their users; no shares: from the values alone."""
    seeds, users, value = len(values), 0, float(values.mean())
    parts = [(float(values.var(ddof=1)) / seeds, seeds - 1)] if seeds > 1 else []  # variances and degrees of freedom
    effect = None
    if shares:
        share_SU = _matrix(shares)
        users = share_SU.shape[1]
        if users < 2:
            return None
        share_U = share_SU.mean(0)
        of_users = float(share_U @ share_U) * users / (users - 1)
        if of_users > 0:
            effect = value / math.sqrt(of_users * users)
        if seeds > 1:
            noise = float(((share_SU - share_U) ** 2).sum()) * users / ((users - 1) * (seeds - 1) * seeds)
            of_users = max(of_users - noise, 0.0)  # taken from the part that is known better
        parts.append((of_users, users - 1))
    if not parts:
        return None
    tail = (1 - confidence) / 2
    half = _half(parts, tail)
    return Estimate(
        value, value - half, value + half, _p(parts, abs(value)), effect, half + _half(parts, 1 - POWER), users, seeds
    )


def _half(parts: list[tuple[float, int]], tail: float) -> float:
    """How far a value errs to one side with probability `tail`."""
    from scipy.special import stdtrit  # scipy.stats takes half a second to import

    return math.sqrt(sum(variance * float(stdtrit(freedom, tail)) ** 2 for variance, freedom in parts if variance > 0))


def _p(parts: list[tuple[float, int]], distance: float) -> float | None:
    """Twice the tail at which `_half` is the distance, by bisection; None where nothing varies."""
    if not any(variance > 0 for variance, _ in parts):
        return None
    low, high = -300.0, math.log10(0.5)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _half(parts, 10**middle) > distance else (low, middle)
    return 2 * 10**high


def _matrix(shares: list[pl.DataFrame]) -> NDArray[np.float64]:
    """float64 [S, U]: 0 where a run did not measure a user, who then moves it by nothing."""
    keys = np.unique(np.concatenate([frame["user_key"].to_numpy() for frame in shares]))
    found = np.zeros((len(shares), len(keys)))
    for s, frame in enumerate(shares):
        found[s, np.searchsorted(keys, frame["user_key"].to_numpy())] = frame["share"].to_numpy()
    return found
