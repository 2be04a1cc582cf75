"""What another policy would bring, told from the log of the policy that was.

A row of the log is a context, an action that the logging policy drew with probability `propensity`, and a reward. The
target policy would have drawn that action with probability `target`; w = target / propensity is the row's weight. With
q the expected reward of the logged action by a model, and q_target its mean under the target policy in that context:

    naive      mean of r: the value of the logging policy, whatever the target
    ips        mean of w r (Horvitz and Thompson 1952)
    snips      sum of w r / sum of w (Swaminathan and Joachims, NIPS 2015): biased a little, and far less variable
    dr         mean of q_target + w (r - q) (Dudik, Langford and Li, ICML 2011): unbiased whatever q is
    switch_dr  mean of q_target + [w <= threshold] w (r - q) (Wang, Agarwal and Dudik, ICML 2017): above the threshold
               the model is trusted alone
    rips       slates whose rows depend on the rows above: the weight of a row is the product of its own and of those
               above it, self-normalised at each place, as far up as enough effective sample is left (McInerney et al.,
               "Counterfactual Evaluation of Slate Recommendations with Sequential Reward Interactions", KDD 2020)
    item_position   mean of w r with the probabilities of this item at this place, over all that may stand above
               (Li et al., "Offline Evaluation of Ranking Policies with Click Models", KDD 2018)
    position_based  the same with probabilities summed over places, each times the examination there: right where a
               click is examination of the place times attraction of the item

Values are a row's, or, where a visit (a slate) is named, the sum over the rows of a visit.

Which probabilities. Of a slate drawn without replacement, p(action | rows above) of both policies tells the value of
drawing each row by the target below rows that the *logging* policy drew. What the target would have used up by then is
still there, so what it likes most is counted too often. On world tiny, with visits of 18 rows, better policies than the
logging one are overstated by 4 to 6%, worse ones understated by 3 to 8% (benchmarks/bench_offpolicy.py). The product
over all rows above, as of rips, has no such bias and soon no effective sample either. Probabilities over all that may
stand above have neither fault: `propensity` and `target` may themselves be those of item_position or position_based.
The latter weights average 1 only over rows that are examined: name their `examination`, for snips.

Rows of a visit share what the user came for, and visits of a user the user: intervals are of Student's t over
clusters, by the shares that clusters bring to the value to first order, as in `recsys.evaluation.estimates`. They hold
no bias of a threshold, of a model of slates, or of wrong propensities.

Shapes: R rows, C clusters, V visits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from recsys.online.columns import Floats, Ints, codes, numbers, probabilities, refuse

LEAST = 0.01  # effective share of the rows below which nothing is said
ENOUGH = 0.05  # and below which a few large weights decide, and more so those that the log happens to lack
THRESHOLDS = 21  # that switch_dr chooses from
DOUBT = 0.001  # the weights average 1 where the probabilities are right: below this p they are called wrong


class _Log(NamedTuple):
    """What all estimators share: of each row the reward, its examination, its cluster and visit by number."""

    reward_R: Floats
    examined_R: Floats
    cluster_R: Ints
    visit_R: Ints
    visits_C: Floats


class _Value(NamedTuple):
    """A value, what each cluster brings to it (shares sum to 0), and the weights whose effective sample counts."""

    value: float
    share_C: Floats
    weight_R: Floats
    note: str = ""


def evaluate_policy(
    rows: pl.DataFrame,
    *,
    reward: str = "label",
    propensity: str = "propensity",
    target: str = "target",
    q: str | None = None,
    q_target: str | None = None,
    examination: str | None = None,
    visit: str | None = None,
    position: str | None = None,
    cluster: str | None = None,
    item_position: tuple[str, str] | None = None,
    position_based: tuple[str, str] | None = None,
    threshold: float | None = None,
    reward_max: float | None = None,
    lookback: float = 0.1,
    confidence: float = 0.95,
) -> pl.DataFrame:
    """The value of the target policy by every estimator whose columns are there.

    Args:
        reward, propensity, target: columns; the probabilities of the logged action by the logging and by the target
            policy.
        q, q_target: columns, both or neither: see the head of the module. With them dr and switch_dr are told. Where a
            visit is named, only the sum of q_target over its rows counts.
        examination: column of the probability that the row's place is looked at: snips then divides by the sum of
            w * examination, times that of examination. 1 by default.
        visit, position: columns of the slate and of the order in it. With a visit values are sums over a visit, with a
            position too rips is told. A visit without rows does not count.
        cluster: column of what is independent of all else, as the user; the visit by default, else the row.
        item_position, position_based: columns of (logging, target) probabilities of these two estimators.
        threshold: of switch_dr. By default that of the least estimated mean squared error, among 21 between the least
            and the largest weight: variance + (reward_max * the target's probability of weights above it) squared, as
            in the paper, that probability being estimated by the weights themselves. The bound is wide: unless
            reward_max is near what rewards are, all weights are kept and switch_dr is dr.
        reward_max: the largest reward that can be, by default the largest of the log.
        lookback: rips multiplies the ratios of rows above while the effective visits are this share of those that
            reach the place.

    Returns: one row an estimator: estimator, value, low and high (at this confidence), effective_sample
    ((sum w)^2 / sum w^2, in rows), share (of all rows), verdict. The verdict is "ok", "the logging policy's own value",
    "doubtful" (the weights do not average 1), "thin" (the share is below 5%: the interval may be too short), or "not
    identifiable": the share is below 1%, and value, low and high are null.
    Raises:
        ValueError: no rows, one cluster, a column that is missing or null, a propensity outside (0, 1], a negative
            target, or a number that is not finite; the message names column and row (from 0).
    """
    if not rows.height:
        raise ValueError("the log has no rows: there is nothing to evaluate a policy on")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if threshold is not None and not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}")
    if not 0 <= lookback <= 1:
        raise ValueError(f"lookback must lie in [0, 1], got {lookback}")
    if (q is None) != (q_target is None):
        raise ValueError("q and q_target go together: the model's reward of the logged action, and under the target")
    if position is not None and visit is None:
        raise ValueError(f"position {position} needs a visit: name the column of the slate")
    log = _log(rows, reward, examination, visit, cluster)
    weight_R = _weights(rows, propensity, target)
    doubt = _doubt(log, weight_R)
    found = {"naive": _mean(log, log.reward_R, np.ones(rows.height))}
    found["ips"] = _mean(log, weight_R * log.reward_R, weight_R)
    found["snips"] = _self_normalised(log, weight_R, np.zeros(rows.height, np.int64))
    if q is not None and q_target is not None:
        model_R, direct_R = numbers(rows, q), numbers(rows, q_target)
        found["dr"] = _mean(log, direct_R + weight_R * (log.reward_R - model_R), weight_R)
        most = float(log.reward_R.max()) if reward_max is None else reward_max
        found["switch_dr"] = _switch(log, weight_R, model_R, direct_R, threshold, most)
    if position is not None:
        found["rips"] = _rips(log, weight_R, _places(rows, log, position), lookback)
    doubtful = dict.fromkeys(("ips", "snips", "dr", "switch_dr", "rips"), doubt)
    if item_position is not None:
        chance_R = _weights(rows, *item_position)
        found["item_position"] = _mean(log, chance_R * log.reward_R, chance_R)
        doubtful["item_position"] = _doubt(log, chance_R)
    if position_based is not None:
        seen_R = _weights(rows, *position_based)
        found["position_based"] = _mean(log, seen_R * log.reward_R, seen_R)
        doubtful["position_based"] = "" if examination is None else _doubt(log, seen_R)
    doubtful["naive"] = "the logging policy's own value"
    table = [_row(name, one, doubtful.get(name, ""), rows.height, confidence) for name, one in found.items()]
    return pl.DataFrame(table, schema=SCHEMA, orient="row")


SCHEMA: dict[str, Any] = {
    "estimator": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "effective_sample": pl.Float64, "share": pl.Float64, "verdict": pl.String,
}  # fmt: skip


def effective_sample(weight_R: Floats) -> float:
    """How many rows of equal weight vary as much: (sum w)^2 / sum w^2 (Kish 1965); 0 where all weights are."""
    top = float(weight_R.max(initial=0.0))
    scaled_R = weight_R / top if top > 0 else weight_R  # squares of large weights stay finite
    squares = float(scaled_R @ scaled_R)
    return float(scaled_R.sum()) ** 2 / squares if squares > 0 else 0.0


# --- estimators -------------------------------------------------------------------------------------


def _mean(log: _Log, total_R: Floats, weight_R: Floats) -> _Value:
    """The sum of rows a visit."""
    visits = float(log.visits_C.sum())
    value = float(total_R.sum()) / visits
    return _Value(value, (_by_cluster(log, total_R) - value * log.visits_C) / visits, weight_R)


def _self_normalised(log: _Log, weight_R: Floats, place_R: Ints) -> _Value:
    """The weighted mean of rewards of what is examined at each place, times that a visit, summed over places."""
    looked_P = np.bincount(place_R, weights=log.examined_R)
    sum_P = np.bincount(place_R, weights=weight_R * log.examined_R)
    above_P = np.bincount(place_R, weights=weight_R * log.reward_R)
    mean_P = np.divide(above_P, sum_P, out=np.zeros_like(sum_P), where=sum_P > 0)
    scale_P = np.divide(looked_P, sum_P, out=np.zeros_like(sum_P), where=sum_P > 0)
    weight_R, mean_R = weight_R * scale_P[place_R], mean_P[place_R] * log.examined_R
    return _mean(log, mean_R + weight_R * (log.reward_R - mean_R), weight_R)


def _switch(
    log: _Log, weight_R: Floats, model_R: Floats, direct_R: Floats, threshold: float | None, reward_max: float
) -> _Value:
    def by(threshold: float) -> _Value:
        kept_R = np.where(weight_R <= threshold, weight_R, 0.0)
        return _mean(log, direct_R + kept_R * (log.reward_R - model_R), weight_R)

    if threshold is None:
        positive_R = weight_R[weight_R > 0]
        if not len(positive_R):
            return by(0.0)
        candidates = np.geomspace(positive_R.min(), positive_R.max(), THRESHOLDS)
        candidates[-1] = positive_R.max()  # exactly: nothing lies above it
        errors = []
        for candidate in candidates:
            above = float(weight_R[weight_R > candidate].sum()) / float(log.visits_C.sum())
            errors.append(_variance(by(float(candidate)).share_C) + (reward_max * above) ** 2)
        threshold = float(candidates[::-1][np.argmin(errors[::-1])])  # of equals the one that trusts the log most
    left = float((weight_R > threshold).mean())
    note = f"weights above {threshold:.3g} ({left:.1%} of rows) left to q" if left else ""
    return by(threshold)._replace(note=note)


def _rips(log: _Log, weight_R: Floats, place_R: Ints, lookback: float) -> _Value:
    """Products of weights over the rows above, as far up as `lookback` allows: chosen anew at each place."""
    depth, visits = int(place_R.max()) + 1, int(log.visit_R.max()) + 1
    row_VP = np.full((visits, depth), -1)
    row_VP[log.visit_R, place_R] = np.arange(len(weight_R))
    product_R = np.empty_like(weight_R)
    for place in range(depth):
        reached_V = np.flatnonzero(row_VP[:, place] >= 0)
        product_V = weight_R[row_VP[reached_V, place]]
        for above in range(place - 1, -1, -1):
            longer_V = product_V * weight_R[row_VP[reached_V, above]]
            if not effective_sample(longer_V) >= max(lookback * len(reached_V), 1e-300):
                break
            product_V = longer_V
        product_R[row_VP[reached_V, place]] = product_V
    return _self_normalised(log, product_R, place_R)


# --- intervals --------------------------------------------------------------------------------------


def _by_cluster(log: _Log, value_R: Floats) -> Floats:
    return np.bincount(log.cluster_R, weights=value_R, minlength=len(log.visits_C)).astype(np.float64)


def _variance(share_C: Floats) -> float:
    return float(share_C @ share_C) * len(share_C) / (len(share_C) - 1)


def _half(share_C: Floats, tail: float) -> float:
    """How far a value errs to one side with probability `tail`."""
    from scipy.special import stdtrit  # scipy.stats takes half a second to import

    return math.sqrt(_variance(share_C)) * -float(stdtrit(len(share_C) - 1, tail))


def _doubt(log: _Log, weight_R: Floats) -> str:
    """What is wrong with weights that do not average 1 over what is examined."""
    looked = float(log.examined_R.sum())
    mean = float(weight_R @ log.examined_R) / looked
    share_C = _by_cluster(log, (weight_R - mean) * log.examined_R) / looked
    if abs(mean - 1) <= _half(share_C, DOUBT / 2) + 1e-6:  # float32 propensities of target and log may differ
        return ""
    return (
        f"doubtful: weights average {mean:.3g}, not 1: a propensity is wrong, or the log never shows what target does"
    )


def _row(name: str, found: _Value, doubt: str, rows: int, confidence: float) -> dict[str, Any]:
    effective = effective_sample(found.weight_R)
    row: dict[str, Any] = {"estimator": name, "value": None, "low": None, "high": None}
    row |= {"effective_sample": effective, "share": effective / rows}
    if effective / rows < LEAST:
        few = f"{effective:.3g} of {rows} rows count"
        return row | {"verdict": f"not identifiable: {few}, {effective / rows:.2%} and less than {LEAST:.0%}"}
    half = _half(found.share_C, (1 - confidence) / 2)
    row |= {"value": found.value, "low": found.value - half, "high": found.value + half}
    thin = (
        f"thin: a share of {effective / rows:.1%}, the interval may be too short" if effective / rows < ENOUGH else ""
    )
    return row | {"verdict": "; ".join(filter(None, (doubt, thin, found.note))) or "ok"}


# --- columns ----------------------------------------------------------------------------------------


def _log(rows: pl.DataFrame, reward: str, examination: str | None, visit: str | None, cluster: str | None) -> _Log:
    each_R = np.arange(rows.height)
    visit_R = each_R if visit is None else codes(rows, visit)
    cluster_R = visit_R if cluster is None else codes(rows, cluster)
    # A visit may be numbered within its user.
    both_V, visit_R = np.unique(cluster_R * (int(visit_R.max()) + 1) + visit_R, return_inverse=True)
    of_V = np.empty(len(both_V), np.int64)
    of_V[visit_R] = cluster_R
    visits_C = np.bincount(of_V).astype(np.float64)
    if len(visits_C) < 2:
        what = f"column {cluster or visit} has one value" if cluster or visit else "the log has one row"
        raise ValueError(f"{what}: an interval needs at least two clusters that are independent")
    examined_R = np.ones(rows.height) if examination is None else probabilities(rows, examination)
    return _Log(numbers(rows, reward), examined_R, cluster_R, visit_R, visits_C)


def _places(rows: pl.DataFrame, log: _Log, position: str) -> Ints:
    """The place of each row in its visit, from 0, by the order of position."""
    position_R = numbers(rows, position)
    order_R = np.lexsort((position_R, log.visit_R))
    visit_R, sorted_R = log.visit_R[order_R], position_R[order_R]
    same_R = np.r_[False, (visit_R[1:] == visit_R[:-1]) & (sorted_R[1:] == sorted_R[:-1])]
    if same_R.any():
        row = int(order_R[same_R.argmax()])
        raise ValueError(f"column {position}: {position_R[row]:g} in row {row} is there twice in its visit")
    place_R = np.empty(len(order_R), np.int64)
    place_R[order_R] = np.arange(len(order_R)) - np.searchsorted(visit_R, visit_R)
    return place_R


def _weights(rows: pl.DataFrame, propensity: str, target: str) -> Floats:
    below_R, above_R = probabilities(rows, propensity), numbers(rows, target)
    refuse(above_R, above_R < 0, target, "is negative: give the target's probability of the logged action")
    return above_R / below_R
