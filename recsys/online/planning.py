"""How many users an experiment needs, what it would see, and how surely: before it starts.

All by the normal test of two groups, whose difference has variance
variance (1 - correlation^2) (growth / treated + 1 / others). An absolute effect adds to what users do, growth 1; a
relative one multiplies it, and how it varies: growth (1 + effect)^2, which left out costs a planned 80% four points at
an effect of 10%. `pilot` measures what is needed from users of the past: the variance of a mean or, by the delta
method, of a ratio, and how well covariates foretell it (CUPED).
Users are those of both groups together; share is the treatment's among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from recsys.online import effects
from recsys.online.measures import Measure, columns_of, listed, places, values


class Pilot(NamedTuple):
    """Of users of the past: mean of a metric, variance of a user's share in it, and the multiple correlation of that
    share with the covariates (0 without any)."""

    mean: float
    variance: float
    correlation: float


def pilot(frame: pl.DataFrame, metric: Measure, covariates: Sequence[Measure] = ()) -> Pilot:
    """What planning needs to know of a metric, from one row a user.

    Raises:
        ValueError: an unknown column, a value that is no number, a denominator that is 0 for all, or one user.
    """
    covariates = listed(covariates)
    measures = [metric, *covariates]
    if frame.height < 3 + len(covariates):
        raise ValueError(f"a pilot of {frame.height} users is too small: give {3 + len(covariates)} at least")
    names = columns_of(measures)
    found = effects.moments(values(frame, names, measures))
    of_metric, of_covariates = places(metric, names), [places(one, names) for one in covariates]
    taken = float(effects.foretold(found, of_metric, of_covariates)) if covariates else 0.0
    return Pilot(
        float(effects.linear(found.mean, of_metric)[0]), float(effects.variance(found, of_metric)), math.sqrt(taken)
    )


def sample_size(
    effect: float,
    mean: float | None = None,
    variance: float = 1.0,
    correlation: float = 0.0,
    *,
    relative: bool = False,
    power: float = 0.8,
    alpha: float = 0.05,
    share: float = 0.5,
    two_sided: bool = True,
    comparisons: int = 1,
) -> int:
    """Users of both groups with which a test sees an effect with this power.

    `sample_size(0.02, *pilot(frame, "clicks"), relative=True)` plans from a pilot.

    Args:
        effect: of the metric, or with `relative` as a share of its mean, above -1.
        mean: of the metric, needed for a relative effect alone.
        variance: of a user's share in the metric.
        correlation: of that share with what CUPED adjusts by.
        share: of the users that get the treatment.
        comparisons: metrics times treatments among which alpha is divided (Bonferroni).

    Raises:
        ValueError: an argument out of its range; the message names it.
    """
    size = abs(_absolute(effect, mean, relative))
    if size == 0:
        raise ValueError("effect=0 is seen by no number of users: give the smallest one that matters")
    of_one = _variance_of_one(variance, correlation, share, effect if relative else 0.0)
    users = max(math.ceil((_distance(power, alpha, two_sided, comparisons) / size) ** 2 * of_one), 4)
    # Two users of each group at least: a variance needs them.
    return max(users, math.ceil(2 / min(share, 1 - share)))


def minimum_detectable_effect(
    users: int,
    mean: float | None = None,
    variance: float = 1.0,
    correlation: float = 0.0,
    *,
    relative: bool = False,
    power: float = 0.8,
    alpha: float = 0.05,
    share: float = 0.5,
    two_sided: bool = True,
    comparisons: int = 1,
) -> float:
    """The smallest effect above 0 that so many users of both groups see with this power. Arguments as in `sample_size`.

    Raises:
        ValueError: an argument out of its range, or users so few that no relative effect is seen; the message names it.
    """
    _check_users(users)
    distance = _distance(power, alpha, two_sided, comparisons)
    of_one = _variance_of_one(variance, correlation, share, 0.0)
    if not relative:
        return distance * math.sqrt(of_one / users)
    # effect^2 = each ((1 + effect)^2 / share + 1 / (1 - share)), a quadratic equation.
    each = (distance / _absolute(1.0, mean, relative)) ** 2 * of_one * share * (1 - share) / users
    lead = 1 - each / share
    if lead <= 0:
        raise ValueError(f"users={users}: too few to see any relative effect, its variance grows with it: take more")
    half = each / share
    return (half + math.sqrt(half**2 + lead * each / (share * (1 - share)))) / lead


def power(
    users: int,
    effect: float,
    mean: float | None = None,
    variance: float = 1.0,
    correlation: float = 0.0,
    *,
    relative: bool = False,
    alpha: float = 0.05,
    share: float = 0.5,
    two_sided: bool = True,
    comparisons: int = 1,
) -> float:
    """The probability that so many users of both groups see the effect. Arguments as in `sample_size`.

    Raises:
        ValueError: an argument out of its range; the message names it.
    """
    _check_users(users)
    size = abs(_absolute(effect, mean, relative))
    of_one = _variance_of_one(variance, correlation, share, effect if relative else 0.0)
    if of_one == 0:
        return 1.0 if size else alpha / comparisons
    return float(_seen(size * math.sqrt(users / of_one), _quantile(alpha, two_sided, comparisons), two_sided))


def plan(
    frame: pl.DataFrame,
    metrics: Mapping[str, Measure],
    effect: float | Mapping[str, float],
    *,
    covariates: Mapping[str, Sequence[Measure]] | None = None,
    relative: bool = True,
    power: float = 0.8,
    alpha: float = 0.05,
    share: float = 0.5,
    two_sided: bool = True,
    comparisons: int | None = None,
) -> pl.DataFrame:
    """The users that each metric needs, from a pilot frame of one row a user; all are seen with the largest of them.

    Args:
        effect: one for all metrics or one each.
        covariates: of the metrics that have any; users are counted with them and, as `users_raw`, without.
        comparisons: as in `sample_size`; the number of metrics if None.

    Returns: one row a metric: metric, mean, variance, correlation, effect, relative, power, alpha (each comparison's),
        share, users_raw, users.
    Raises:
        ValueError: what `pilot` and `sample_size` refuse, or a metric without an effect.
    """
    comparisons = len(metrics) if comparisons is None else comparisons
    rows = []
    for name, metric in metrics.items():
        if isinstance(effect, Mapping) and name not in effect:
            raise ValueError(f"effect has none for the metric {name}: give one each, or one number for all")
        size = effect[name] if isinstance(effect, Mapping) else effect
        mean, variance, correlation = pilot(frame, metric, (covariates or {}).get(name, ()))
        of_test: dict[str, Any] = {"relative": relative, "power": power, "alpha": alpha, "share": share}
        of_test |= {"two_sided": two_sided, "comparisons": comparisons}
        raw, adjusted = (sample_size(size, mean, variance, r, **of_test) for r in (0.0, correlation))
        row = {"metric": name, "mean": mean, "variance": variance, "correlation": correlation, "effect": size}
        row |= {"relative": relative, "power": power, "alpha": alpha / comparisons, "share": share}
        rows.append(row | {"users_raw": raw, "users": adjusted})
    return pl.DataFrame(rows)


def _absolute(effect: float, mean: float | None, relative: bool) -> float:
    if not math.isfinite(effect):
        raise ValueError(f"effect={effect}: give a number")
    if not relative:
        return effect
    if not mean or not math.isfinite(mean):
        raise ValueError(f"mean={mean}: a relative effect needs the mean of the metric, and not 0")
    if effect <= -1:
        raise ValueError(f"effect={effect}: a relative effect lies above -1, where nothing is left of the metric")
    return effect * mean


def _variance_of_one(variance: float, correlation: float, share: float, growth: float) -> float:
    """Over the users of both groups, the variance of the difference, where the treatment's values are 1 + growth times
    the control's."""
    if not (variance >= 0 and math.isfinite(variance)):
        raise ValueError(f"variance={variance}: expected a number of at least 0")
    if not -1 <= correlation <= 1:
        raise ValueError(f"correlation={correlation}: expected -1 to 1")
    if not 0 < share < 1:
        raise ValueError(f"share={share}: expected between 0 and 1, of the users that get the treatment")
    return variance * (1 - correlation**2) * ((1 + growth) ** 2 / share + 1 / (1 - share))


def _quantile(alpha: float, two_sided: bool, comparisons: int) -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: expected between 0 and 1")
    if comparisons < 1:
        raise ValueError(f"comparisons={comparisons}: expected at least 1")
    return -float(ndtri(alpha / comparisons / (2 if two_sided else 1)))


def _seen(distance: float, quantile: float, two_sided: bool) -> float:
    """The power where the effect is so many standard errors."""
    return float(ndtr(distance - quantile) + (ndtr(-distance - quantile) if two_sided else 0.0))


def _distance(power: float, alpha: float, two_sided: bool, comparisons: int) -> float:
    """Standard errors that an effect must be to be seen with this power."""
    quantile = _quantile(alpha, two_sided, comparisons)
    if not alpha / comparisons < power < 1:
        raise ValueError(f"power={power}: expected between {alpha / comparisons:g}, what chance alone sees, and 1")
    return float(brentq(lambda d: _seen(d, quantile, two_sided) - power, 0.0, 2 * quantile + 20, xtol=1e-12))


def _check_users(users: int) -> None:
    if users < 4:
        raise ValueError(f"users={users}: two groups need 4 at least")
