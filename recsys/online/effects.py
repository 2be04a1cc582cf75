"""What a treatment moves, from the moments of two groups: means, ratios of means, either adjusted by covariates.

A metric is a mean over users, or a ratio of two means, such as clicks over impressions. A ratio is, to first order, a
mean of its users' shares (above - ratio * below) / mean below: the delta method (Deng, Knoblich and Lu, "Applying the
Delta Method in Metric Analytics", KDD 2018). So both are linear in columns whose mean and covariance are known, and a
covariate of the time before takes away what it foretells: CUPED (Deng, Xu, Kohavi and Walker, WSDM 2013), which is
least squares of the shares on treatment and covariates. A ratio may be the covariate of a ratio.

Everything here is arithmetic on moments and takes any leading axes: one experiment, thousands of simulated ones, or
one at each of its looks. Shapes: U users of a group, C columns, K covariates, L looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Floats = NDArray[np.float64]
ROUNDING = 1e-12  # of a variance, relative to its terms: what is left of less is 0, not noise of the arithmetic
Places = tuple[int, ...]  # of a metric's columns: (mean,) or (above, below)


class Moments(NamedTuple):
    """Of a group: users [...], mean [..., C], covariance [..., C, C] (by users - 1)."""

    users: NDArray[np.int64]
    mean: Floats
    covariance: Floats


class Effect(NamedTuple):
    """Of one metric, all [...]: its value in either group, adjusted by covariates where there are any, and variances.

    variance_control, variance_treatment: of each value but for what both share, the mean of the covariates over all
    users, whose part of the variance is `variance_shared` in both and leaves their difference alone. freedom: Welch's.
    """

    control: Floats
    treatment: Floats
    variance_control: Floats
    variance_treatment: Floats
    variance_shared: Floats
    freedom: Floats

    @property
    def difference(self) -> Floats:
        return self.treatment - self.control

    @property
    def variance(self) -> Floats:
        """Of the difference."""
        return self.variance_control + self.variance_treatment


def moments(columns_CU: Sequence[Floats] | Floats, ends_L: Sequence[int] | NDArray[np.int64] | None = None) -> Moments:
    """Moments of the C columns, each [..., U]; with ends, of the first ends[l] users, an axis L behind the others.

    Ends rise and lie between 1 and U; the covariance of a single user is nan. A column whose deviation is no more than
    its mean's rounding does not vary.
    """
    columns = [np.asarray(column, dtype=np.float64) for column in columns_CU]
    users = columns[0].shape[-1]
    ends = np.array([users]) if ends_L is None else np.asarray(ends_L, dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    cut = slice(0, int(ends[-1]))

    def sums(values: Floats) -> Floats:
        return np.add.reduceat(values, starts, axis=-1).cumsum(-1)

    # Sums of squares lose their digits where the mean is far from 0: taken about the mean of all.
    centres = [column[..., cut].mean(-1, keepdims=True) for column in columns]
    centred = [column[..., cut] - centre for column, centre in zip(columns, centres, strict=True)]
    for values, centre in zip(centred, centres, strict=True):
        rounded = np.abs(values).max(-1, keepdims=True) <= 16 * np.finfo(float).eps * np.abs(centre)
        np.copyto(values, 0.0, where=rounded)
    sums_C = [sums(column) for column in centred]
    covariance = np.empty((*sums_C[0].shape, len(columns), len(columns)))
    with np.errstate(invalid="ignore", divide="ignore"):
        for i, one in enumerate(centred):
            for j, other in enumerate(centred[: i + 1]):
                product = sums(one * other) - sums_C[i] * sums_C[j] / ends
                covariance[..., i, j] = covariance[..., j, i] = product / (ends - 1)
    mean = np.stack([total / ends + centre for total, centre in zip(sums_C, centres, strict=True)], -1)
    count = np.broadcast_to(ends, mean.shape[:-1])
    if ends_L is None:
        return Moments(count[..., 0], mean[..., 0, :], covariance[..., 0, :, :])
    return Moments(count, mean, covariance)


def effect(control: Moments, treatment: Moments, metric: Places, covariates: Sequence[Places] = ()) -> Effect:
    """What the treatment moves a metric by.

    The coefficients of covariates are those of least squares within groups, one for both; what is left varies in each
    group on its own (Welch), so that they need not be alike.

    Args:
        metric, covariates: each as places of its columns: one for a mean, two for a ratio.
    """
    sides = (control, treatment)
    values, slopes = zip(*(linear(side.mean, metric) for side in sides), strict=True)
    shared, stretch = np.zeros_like(values[0]), np.ones_like(values[0])
    if covariates:
        users = control.users + treatment.users
        mean = sum(side.users[..., None] * side.mean for side in sides) / users[..., None]
        slopes_KC = np.stack([linear(mean, covariate)[1] for covariate in covariates], -2)
        within = [(side.users - 1)[..., None, None] * side.covariance for side in sides]
        of_covariates = slopes_KC @ (within[0] + within[1]) @ np.swapaxes(slopes_KC, -1, -2)
        with_metric = sum(slopes_KC @ (w @ slope[..., None]) for w, slope in zip(within, slopes, strict=True))
        terms_K = np.stack([_terms(within[0] + within[1], slopes_KC[..., k, :]) for k in range(len(covariates))], -1)
        coefficient_K = _solve(of_covariates, with_metric[..., 0], terms_K)
        adjustment = (coefficient_K[..., None, :] @ slopes_KC)[..., 0, :]
        values = tuple(
            value - (adjustment * (side.mean - mean)).sum(-1) for value, side in zip(values, sides, strict=True)
        )
        slopes = tuple(slope - adjustment for slope in slopes)
        stretch = (users - 2) / (users - 2 - len(covariates))
        shared = (coefficient_K[..., None, :] @ of_covariates @ coefficient_K[..., None])[..., 0, 0]
        shared = shared / (users - 2) / users
    of_c, of_t = (
        _along(side.covariance, slope) / side.users * stretch for side, slope in zip(sides, slopes, strict=True)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = (of_c + of_t) ** 2 / (of_c**2 / (control.users - 1) + of_t**2 / (treatment.users - 1))
    return Effect(values[0], values[1], of_c, of_t, shared, freedom)


def linear(mean: Floats, places: Places) -> tuple[Floats, Floats]:
    """A metric at the means of columns [..., C], and its slope in each of them [..., C]; nan where below is 0."""
    slope = np.zeros_like(mean)
    if len(places) == 1:
        slope[..., places[0]] = 1
        return mean[..., places[0]], slope
    above, below = places
    divisor = np.where(mean[..., below] == 0, np.nan, mean[..., below])
    value = mean[..., above] / divisor
    slope[..., above] = 1 / divisor
    slope[..., below] -= value / divisor  # not =: a column over itself is 1, whatever happens
    return value, slope


def variance(group: Moments, metric: Places) -> Floats:
    """Of a user's share in a metric, [...]: over the number of users it is the variance of the metric."""
    return _along(group.covariance, linear(group.mean, metric)[1])


def foretold(group: Moments, metric: Places, covariates: Sequence[Places]) -> Floats:
    """The share of `variance` that least squares on covariates takes away, [...]: a multiple correlation, squared."""
    share_C = linear(group.mean, metric)[1]
    slopes_KC = np.stack([linear(group.mean, covariate)[1] for covariate in covariates], -2)
    with_metric = (slopes_KC @ (group.covariance @ share_C[..., None]))[..., 0]
    terms_K = np.stack([_terms(group.covariance, slopes_KC[..., k, :]) for k in range(len(covariates))], -1)
    matrix = slopes_KC @ group.covariance @ np.swapaxes(slopes_KC, -1, -2)
    taken = (_solve(matrix, with_metric, terms_K) * with_metric).sum(-1)
    every = variance(group, metric)
    return np.clip(np.where(every > 0, taken / np.where(every > 0, every, 1.0), 0.0), 0.0, 1.0)


def p_value(found: Effect) -> Floats:
    """Two-sided, of no difference, by Student's t with Welch's degrees of freedom; nan where nothing varies."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * stdtr(found.freedom, -np.abs(found.difference) / np.sqrt(found.variance))


def interval(found: Effect, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Of the difference, by Student's t; nan where nothing varies."""
    half = _quantile(found, confidence) * np.sqrt(found.variance)
    return found.difference - half, found.difference + half


def relative(found: Effect) -> Floats:
    """The difference over the size of the control's value: its sign is that of the difference; nan where that is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(found.control == 0, np.nan, found.difference / np.abs(found.control))


def relative_interval(found: Effect, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Of the relative difference, by Fieller (1954): the ratios that a t test of treatment - ratio * control keeps.

    It leaves out 0 just where the interval of the difference does, which that of the delta method does not. Where the
    control's own interval holds 0 no bound is known: -inf and inf.
    """
    sign = np.where(found.control < 0, -1.0, 1.0)  # of a control below 0 the mirror image is measured
    control, difference = sign * found.control, sign * found.difference
    square = _quantile(found, confidence) ** 2
    # (difference - x control)^2 = square (of_t + (1 + x)^2 of_c + x^2 shared), a x^2 - 2 b x + c = 0
    a = control**2 - square * (found.variance_control + found.variance_shared)
    b = control * difference + square * found.variance_control
    c = difference**2 - square * found.variance
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(np.maximum(b**2 - a * c, 0))
        low, high = (b - root) / a, (b + root) / a
    bounded = a > 0
    low, high = np.where(bounded, low, -np.inf), np.where(bounded, high, np.inf)
    known = np.isfinite(square)
    return np.where(known, np.where(sign < 0, -high, low), np.nan), np.where(
        known, np.where(sign < 0, -low, high), np.nan
    )


def relative_variance(found: Effect) -> Floats:
    """Of the relative difference, by the delta method."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = found.treatment / found.control
        parts = found.variance_treatment + ratio**2 * found.variance_control + (1 - ratio) ** 2 * found.variance_shared
        return parts / found.control**2


def _quantile(found: Effect, confidence: float) -> Floats:
    return -stdtrit(found.freedom, (1 - confidence) / 2)


def _along(covariance: Floats, slope: Floats) -> Floats:
    """slope' covariance slope, [...]."""
    found = (slope[..., None, :] @ covariance @ slope[..., None])[..., 0, 0]
    return np.where(found <= ROUNDING * _terms(covariance, slope), 0.0, found)


def _terms(covariance: Floats, slope: Floats) -> Floats:
    """What slope' covariance slope would be at most, did no term cancel another, [...]."""
    deviation = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    return (np.abs(slope) * deviation).sum(-1) ** 2


def _solve(matrix: Floats, right: Floats, terms: Floats) -> Floats:
    """Least squares of [..., K, K] and [..., K]: what does not vary or says what others say adds nothing."""
    variance = np.diagonal(matrix, axis1=-2, axis2=-1)
    varies = variance > ROUNDING * terms
    inverse = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
    if matrix.shape[-1] == 1:
        return right * inverse * inverse
    correlation = matrix * inverse[..., :, None] * inverse[..., None, :]
    correlation = np.where(np.isfinite(correlation), correlation, 0.0)
    return inverse * (np.linalg.pinv(correlation, rcond=1e-10, hermitian=True) @ (inverse * right)[..., None])[..., 0]
