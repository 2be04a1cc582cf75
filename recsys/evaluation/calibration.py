"""How good predicted probabilities of impressions and predicted watch times are.

Rows that share a user and a logit are one cell with a number of rows and of positives. Everything is summed over
cells sorted by (user, logit), in float64: on a CPU the order of the rows does not change a bit of the result.

Shapes: N rows (impressions), L distinct logits, C cells, U users, R replicates.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from recsys.evaluation.significance import percentile_ends, replicate_sums

NUM_BINS = 20


@dataclass(frozen=True, eq=False)
class Measured:
    """What `measure` found; a metric that these rows do not define is left out.

    metrics:
        auc: of all rows; a tie counts half.
        grouped_auc: mean of the users' own AUC, weighted by their rows, over the users with both classes
            (Zhou et al. 2018, DIN).
        log_loss: mean, in nats.
        normalised_cross_entropy: log loss over the entropy of the base rate of these rows (He et al. 2014).
        calibration: mean prediction / mean label; 1 is best.
        calibration_error: mean |predicted - observed| over the 20 bins of `reliability`, weighted by their rows. It
            is above 0 for a calibrated model too, the more the fewer the rows.
    intervals: (low, high) over users of all but calibration_error, whose bias resampling would double; empty with
        num_replicates=0.
    counts: rows, positives, users, one_class_users (left out of grouped_auc), undefined (metrics left out).
    per_user: one row a user, by user_key: user_key, rows, positives, the sums log_loss and predicted, auc (null
        with one class), and auc_influence: what the user adds to the error of the overall AUC. The sum of squared
        differences of auc_influence between two models is the variance of the difference of their AUCs.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    counts: dict[str, int]
    per_user: pl.DataFrame


def measure(
    logits: Tensor,
    labels: Tensor,
    user_key: Tensor,
    *,
    num_replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Measured:
    """Measure predicted probabilities, sigmoid(logits), of impressions.

    The intervals are percentiles of a Poisson bootstrap over users, with the weights of the ranking metrics: each
    replicate is made of weighted sums of a few numbers a user. AUC is no such sum: every replicate would be a pass
    over all rows. Its interval is normal instead, with the variance of Obuchowski (1997) for clustered data (DeLong
    et al. 1988 where every row is a user): a sum of squares over users, equal to first order to the variance of
    that bootstrap, and free once AUC is made. It is taken on the scale of log-odds, so that it stays within (0, 1);
    it needs two users with positives and two with negatives, and has no width where the classes are separated.

    Args:
        logits: float [N], finite.
        labels: [N], 0 or 1 of any dtype.
        user_key: int64 [N].
        num_replicates: of the bootstrap; 0: no intervals.

    Warns:
        UserWarning: metrics are undefined (labels of one class, in all or for each user); it names them.

    Raises:
        ValueError: no rows, other shapes, a logit that is not finite, a label that is not 0 or 1, keys that are no
            integers, or a confidence outside (0, 1).
    """
    z = _normal_quantile(confidence)
    logits, labels = _checked(logits, labels, user_key=user_key)
    auc, error, users = _sums(logits, labels, user_key.long())
    both_U = ~users.auc.isnan()
    rows_of_both_U, weighted_auc_U = users.rows * both_U, users.rows * users.auc.nan_to_num(0)
    statistics_US = torch.stack(
        [users.rows, users.positives, users.log_loss, users.predicted, rows_of_both_U, weighted_auc_U], dim=1
    )
    values = {"auc": auc, **_ratios(statistics_US.sum(0)), "calibration_error": error}
    metrics = {name: float(value) for name, value in values.items() if not value.isnan()}
    undefined = [name for name in values if name not in metrics]
    if undefined:
        reason = "no user has labels of both classes" if "auc" in metrics else f"all labels are {labels[0]:g}"
        warnings.warn(f"left out, because {reason}: {', '.join(undefined)}", stacklevel=2)
    intervals = {}
    if num_replicates > 0:
        ratios = _ratios(replicate_sums(statistics_US, users.user_key, num_replicates=num_replicates, seed=seed)[:-1])
        ends = percentile_ends(torch.stack([*ratios.values(), torch.ones_like(ratios["log_loss"])]), confidence)
        found = [("auc", _auc_interval(auc, users, z)), *zip(ratios, ends.tolist(), strict=True)]
        intervals = {name: (low, high) for name, (low, high) in found if name in metrics and not math.isnan(low)}
    per_user = {
        "user_key": users.user_key,
        "rows": users.rows.long(),
        "positives": users.positives.long(),
        "log_loss": users.log_loss,
        "predicted": users.predicted,
        "auc": users.auc,
        "auc_influence": users.positives_error + users.negatives_error,
    }
    return Measured(
        metrics=metrics,
        intervals=intervals,
        counts={
            "rows": len(labels),
            "positives": int(labels.sum()),
            "users": len(users.user_key),
            "one_class_users": int((~both_U).sum()),
            "undefined": len(undefined),
        },
        per_user=_frame(per_user).fill_nan(None),
    )


def reliability(logits: Tensor, labels: Tensor, num_bins: int = NUM_BINS, *, confidence: float = 0.95) -> pl.DataFrame:
    """Predicted and observed rates in bins of equal mass, for calibration plots.

    Rows of one logit stay together, in the bin of their middle rank: bins are as equal as ties allow, and a bin that
    ties leave empty is left out.

    Args:
        logits: float [N], finite.
        labels: [N], 0 or 1 of any dtype.

    Returns:
        bin, rows, predicted and observed (means), and low, high: Wilson's interval (1927) of the observed rate,
        which takes rows for independent: with many rows a user it is too narrow.

    Raises:
        ValueError: as `measure`, or num_bins < 1.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    z = _normal_quantile(confidence)
    logits, labels = _checked(logits, labels)
    levels, level, rows = logits.unique(return_inverse=True, return_counts=True)
    rows, predicted, positives = _bins(levels, rows, torch.bincount(level, labels), num_bins)
    filled = rows.nonzero()[:, 0]
    rows, predicted, positives = rows[filled], predicted[filled], positives[filled]
    observed = positives / rows
    shrunk = (observed + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * (observed * (1 - observed) / rows + (z / (2 * rows)) ** 2).sqrt()
    columns = {
        "bin": filled,
        "rows": rows.long(),
        "predicted": predicted / rows,
        "observed": observed,
        "low": (shrunk - half).clamp(min=0),
        "high": (shrunk + half).clamp(max=1),
    }
    return _frame(columns)


class WatchTime(NamedTuple):
    """metrics: mae, rmse, mape, smape, and pinball@Q for each quantile. counts: rows, mape_dropped, smape_dropped."""

    metrics: dict[str, float]
    counts: dict[str, int]


def watch_time(predicted: Tensor, actual: Tensor, quantiles: Mapping[float, Tensor] | None = None) -> WatchTime:
    """Measure predicted watch times, or any other amounts.

    Args:
        predicted, actual: [N].
        quantiles: the predicted quantiles [N] by their level, such as {0.5: median_N, 0.9: high_N}.

    Returns:
        metrics and counts; mape or smape is left out where every denominator is 0.

    Raises:
        ValueError: no rows, other shapes, a value that is not finite, or a level outside (0, 1).
    """
    predicted, actual = _amounts(predicted=predicted, actual=actual)
    metrics = {"mae": mae(predicted, actual), "rmse": rmse(predicted, actual)}
    counts = {"rows": len(actual)}
    for name, function in (("mape", mape), ("smape", smape)):
        value, counts[f"{name}_dropped"] = function(predicted, actual)
        if not math.isnan(value):
            metrics[name] = value
    metrics |= {f"pinball@{level:g}": pinball(values, actual, level) for level, values in (quantiles or {}).items()}
    return WatchTime(metrics, counts)


def mae(predicted: Tensor, actual: Tensor) -> float:
    """Mean absolute error of [N] predictions."""
    predicted, actual = _amounts(predicted=predicted, actual=actual)
    return float((predicted - actual).abs().mean())


def rmse(predicted: Tensor, actual: Tensor) -> float:
    """Root of the mean squared error of [N] predictions."""
    predicted, actual = _amounts(predicted=predicted, actual=actual)
    return float((predicted - actual).square().mean().sqrt())


def mape(predicted: Tensor, actual: Tensor) -> tuple[float, int]:
    """Mean of |predicted - actual| / |actual|, and how many of the [N] rows are dropped for actual = 0."""
    predicted, actual = _amounts(predicted=predicted, actual=actual)
    return _mean_ratio((predicted - actual).abs(), actual.abs())


def smape(predicted: Tensor, actual: Tensor) -> tuple[float, int]:
    """Mean of 2 |predicted - actual| / (|predicted| + |actual|), in [0, 2], and the rows dropped where both are 0."""
    predicted, actual = _amounts(predicted=predicted, actual=actual)
    return _mean_ratio(2 * (predicted - actual).abs(), predicted.abs() + actual.abs())


def pinball(predicted: Tensor, actual: Tensor, quantile: float) -> float:
    """Mean loss of the predicted `quantile` of [N] rows (Koenker and Bassett 1978): least at the true quantile.

    Raises:
        ValueError: as `watch_time`.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"a quantile must lie between 0 and 1, got {quantile}")
    predicted, actual = _amounts(predicted=predicted, actual=actual)
    missed = actual - predicted
    return float(torch.maximum(quantile * missed, (quantile - 1) * missed).mean())


class _Users(NamedTuple):
    """Sums over the rows of each user, float64 [U] beside user_key; users ascend."""

    user_key: Tensor
    rows: Tensor
    positives: Tensor
    log_loss: Tensor
    predicted: Tensor
    auc: Tensor  # no sum; NaN with one class
    positives_error: Tensor  # what the user's positives add to the error of the overall AUC
    negatives_error: Tensor


def _sums(logits: Tensor, labels: Tensor, user_key: Tensor) -> tuple[Tensor, Tensor, _Users]:
    """AUC (NaN with one class), calibration error, and the users."""
    levels_L, level = logits.unique(return_inverse=True)
    key_U, user = user_key.unique(return_inverse=True)
    cell_C, cell, rows_C = (user * len(levels_L) + level).unique(return_inverse=True, return_counts=True)
    user, level = cell_C // len(levels_L), cell_C % len(levels_L)
    logits_C, pos_C = levels_L[level], torch.bincount(cell, labels)
    neg_C = rows_C - pos_C

    def by_user(values_C: Tensor) -> Tensor:
        return torch.bincount(user, values_C, minlength=len(key_U))

    # Shares of the negatives below and of the positives above each logit, ties half.
    pos_L, neg_L = torch.bincount(level, pos_C), torch.bincount(level, neg_C)
    num_pos, num_neg = pos_L.sum(), neg_L.sum()
    below_L = (neg_L.cumsum(0) - neg_L / 2) / num_neg
    above_L = (num_pos - pos_L.cumsum(0) + pos_L / 2) / num_pos
    auc = (pos_L * below_L).sum() / num_pos

    # The same among the rows of one user: less the negatives of the users before.
    pos_U, neg_U = by_user(pos_C), by_user(neg_C)
    own_below_C = neg_C.cumsum(0) - neg_C / 2 - (neg_U.cumsum(0) - neg_U)[user]

    _, predicted, positives = _bins(levels_L, torch.bincount(level, rows_C.double()), pos_L, NUM_BINS)
    users = _Users(
        user_key=key_U,
        rows=pos_U + neg_U,
        positives=pos_U,
        log_loss=by_user(-pos_C * logsigmoid(logits_C) - neg_C * logsigmoid(-logits_C)),
        predicted=by_user(rows_C * logits_C.sigmoid()),
        auc=by_user(pos_C * own_below_C) / (pos_U * neg_U),
        positives_error=by_user(pos_C * (below_L[level] - auc)) / num_pos,
        negatives_error=by_user(neg_C * (above_L[level] - auc)) / num_neg,
    )
    return auc, (predicted - positives).abs().sum() / len(labels), users


def _ratios(sums: Tensor) -> dict[str, Tensor]:
    """The metrics that are ratios of sums over users, NaN where undefined, from [S] or [S, R]."""
    rows, positives, loss, predicted, rows_of_both, weighted_auc = sums
    rate = positives / rows
    entropy = -torch.xlogy(rate, rate) - torch.xlogy(1 - rate, 1 - rate)
    ratios = {
        "grouped_auc": weighted_auc / rows_of_both,
        "log_loss": loss / rows,
        "normalised_cross_entropy": loss / rows / entropy,
        "calibration": predicted / positives,
    }
    return {name: ratio.masked_fill(~ratio.isfinite(), math.nan) for name, ratio in ratios.items()}


def _auc_interval(auc: Tensor, users: _Users, z: float) -> tuple[float, float]:
    """Obuchowski's interval, z deviations wide to either side; NaN with fewer than two users of a class."""
    positives, negatives = users.positives_error, users.negatives_error
    with_positives = int((users.positives > 0).sum())
    with_negatives = int((users.positives < users.rows).sum())
    if min(with_positives, with_negatives) < 2:
        return math.nan, math.nan
    if not 0 < auc < 1:
        return float(auc), float(auc)
    variance = (
        with_positives / (with_positives - 1) * positives.square().sum()
        + with_negatives / (with_negatives - 1) * negatives.square().sum()
        + 2 * len(positives) / (len(positives) - 1) * (positives * negatives).sum()
    )
    half = z * variance.clamp(min=0).sqrt() / (auc * (1 - auc))
    return float((auc.logit() - half).sigmoid()), float((auc.logit() + half).sigmoid())


def _bins(levels_L: Tensor, rows_L: Tensor, positives_L: Tensor, num_bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, and sums of predictions and of labels, in each bin: float64 [num_bins]. Distinct logits ascend."""
    end_L = rows_L.long().cumsum(0)
    bin_L = (2 * end_L - rows_L.long()) * num_bins // (2 * end_L[-1])  # twice the middle rank over twice N
    columns = (rows_L.double(), rows_L * levels_L.sigmoid(), positives_L)
    rows, predicted, positives = (torch.bincount(bin_L, column, minlength=num_bins) for column in columns)
    return rows, predicted, positives


def _frame(columns: dict[str, Tensor]) -> pl.DataFrame:
    return pl.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})


def _normal_quantile(confidence: float) -> float:
    """How many deviations a two-sided normal interval reaches."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _checked(logits: Tensor, labels: Tensor, **others: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels in float64, if they are what `measure` can measure."""
    _check_shapes(logits=logits, labels=labels, **others)
    for name, key in others.items():
        if key.is_floating_point():
            raise ValueError(f"{name} must be integers, got {key.dtype}")
    logits = _finite("logits", logits)
    bad = (labels != 0) & (labels != 1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"labels must be 0 or 1, got {labels[row].item():g} at row {row}")
    return logits, labels.double()


def _amounts(**columns: Tensor) -> list[Tensor]:
    """Columns of one shape [N] in float64, if they are finite."""
    _check_shapes(**columns)
    return [_finite(name, column) for name, column in columns.items()]


def _check_shapes(**columns: Tensor) -> None:
    shapes = {name: tuple(column.shape) for name, column in columns.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"one value a row is needed, got shapes {', '.join(f'{n} {s}' for n, s in shapes.items())}")
    if 0 in next(iter(shapes.values())):
        raise ValueError(f"there is nothing to measure: {' and '.join(shapes)} have no rows")


def _finite(name: str, column: Tensor) -> Tensor:
    bad = ~column.isfinite()
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"{name} must be finite, got {column[row].item()} at row {row}: did the model diverge?")
    return column.detach().double()


def _mean_ratio(above: Tensor, below: Tensor) -> tuple[float, int]:
    """Mean of above / below where below is not 0 (NaN where it always is), and how many rows that drops."""
    keep = below != 0
    return float((above[keep] / below[keep]).mean()), int((~keep).sum())
