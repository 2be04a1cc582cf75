"""Looking at an experiment while it runs: an interval that holds at all looks at once, however many there are.

The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit
theory and asymptotic confidence sequences", Annals of Statistics 2024, of Robbins' normal mixture: with variance V of
the difference at n users, the truth lies at every look within

    sqrt(V (1 + n r) / (n r) * 2 log(sqrt(1 + n r) / alpha)),    r = (-2 log alpha + log(1 - 2 log alpha)) / planned

of it with probability 1 - alpha, narrowest for its time at the planned number of users. Turned into a p-value it is the
mixture sequential probability ratio test of Johari, Koomen, Pekelis and Walsh, "Peeking at A/B Tests", KDD 2017. Ratios
and CUPED enter by their delta-method shares, taken afresh at each look.

A user counts once, at the end of a window of their own (a week from when they came, say), in the order in which these
windows end. Users whose sums go on growing from look to look are no such sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import nearest
from recsys.online import effects
from recsys.online.abtest import compare
from recsys.online.effects import Effect, Floats, Moments
from recsys.online.measures import Measure, check_columns, listed, sides

BURN_IN = 50  # users of each group before the first look: asymptotics need some


def confidence_sequence(
    found: Effect, users: NDArray[np.int64], planned: int, alpha: float = 0.05
) -> tuple[Floats, Floats, Floats]:
    """low, high and the always-valid p at each look, [..., L] like the effect and its number of users.

    p only falls from look to look; it is at most alpha from the first look on whose interval leaves out 0. nan at looks
    where nothing varies, and p then as it was.

    Args:
        planned: users of both groups, fixed before the first look, where the interval is to be narrowest.
    """
    log = -2 * math.log(alpha)
    information = users * ((log + math.log1p(log)) / planned)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = np.sqrt(found.variance * (1 + 1 / information) * (log + np.log1p(information)))
        half = np.where(found.variance > 0, half, np.nan)
        square = found.difference**2 / found.variance
        log_evidence = information / (1 + information) * square / 2 - np.log1p(information) / 2
    log_evidence = np.where(found.variance > 0, log_evidence, -np.inf)
    p = np.exp(-np.maximum(np.maximum.accumulate(log_evidence, -1), 0))
    return found.difference - half, found.difference + half, p


def watch(
    frame: pl.DataFrame,
    metric: Measure,
    *,
    order: str,
    planned: int,
    covariates: Sequence[Measure] = (),
    treatment: str | None = None,
    looks: int | None = 100,
    burn_in: int = BURN_IN,
    group: str = "group",
    control: str = "control",
    user_id: str = "user_id",
    confidence: float = 0.95,
) -> pl.DataFrame:
    """A metric of a treatment and the control as its users come in.

    Args:
        frame: one row a user.
        order: the column by which users come in: a day, a timestamp, a number. Users of one value come together.
        planned: users of both groups, fixed before the first look, where the interval is to be narrowest.
        treatment: which one; the only one if None.
        looks: how many, after about as many users each; None looks after every value of `order`.
        burn_in: users of each group before the first look, 2 at least.

    Returns: one row a look: users (both groups), the value of `order`, control_value, treatment_value, difference, low,
        high (at all looks at once), p (always valid) and told_apart, whether p was ever below 1 - confidence.
    Raises:
        ValueError: what `abtest.analyse` refuses, a null order, a treatment that is none or not said, planned or looks
            below 1, burn_in below 2, or fewer users than the burn-in.
    """
    if planned < 1:
        raise ValueError(f"planned={planned}: give the users that the experiment is planned for")
    if looks is not None and looks < 1:
        raise ValueError(f"looks={looks}: expected at least 1, or None for one after every value of {order}")
    if burn_in < 2:
        raise ValueError(f"burn_in={burn_in}: expected at least 2, a variance needs them")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    covariates = listed(covariates)
    check_columns(frame, [order, group])
    frame = frame.filter(pl.col(group).is_not_null())
    if frame[order].null_count():
        raise ValueError(f"{order} is null in row {frame[order].is_null().arg_max()}: give every user a place")
    frame = frame.sort(order, maintain_order=True)
    names, found = sides(frame, [metric, *covariates], group=group, control=control, user_id=user_id)
    others = list(found)[1:]
    if treatment is None:
        if len(others) > 1:
            raise ValueError(f"{group} has the treatments {', '.join(others)}: say which one to watch")
        treatment = others[0]
    if treatment not in others:
        raise ValueError(f"{group} has no treatment {treatment}: {nearest(treatment, others)}")
    label = frame[group].cast(pl.String)
    frame = frame.filter(label.is_in([control, treatment]))
    treated = (frame[group].cast(pl.String) == treatment).to_numpy()
    ends = _ends(frame[order], looks)
    of_t = np.cumsum(treated)[ends - 1]
    ends = ends[np.minimum(of_t, ends - of_t) >= burn_in]
    if not len(ends):
        raise ValueError(f"no look has burn_in={burn_in} users in each group: wait for more, or lower it")
    of_t = np.cumsum(treated)[ends - 1]
    effect = compare(_running(found[control], ends - of_t), _running(found[treatment], of_t), names, metric, covariates)
    low, high, p = confidence_sequence(effect, ends, planned, 1 - confidence)
    table = {
        "users": ends, order: frame[order].gather(ends - 1), "control_value": effect.control,
        "treatment_value": effect.treatment, "difference": effect.difference, "low": low, "high": high, "p": p,
        "told_apart": p < 1 - confidence,
    }  # fmt: skip
    return pl.DataFrame(table).with_columns(pl.col(pl.Float64).fill_nan(None))


def _ends(order: pl.Series, looks: int | None) -> NDArray[np.int64]:
    """Users seen at each look, rising: as many as have come with their value of the order."""
    last = order.rle_id().to_numpy()
    ends = np.append(np.flatnonzero(np.diff(last)) + 1, len(order))
    if looks is None:
        return ends
    wanted = np.ceil(np.arange(1, looks + 1) * (len(order) / looks))
    return np.unique(ends[np.minimum(np.searchsorted(ends, wanted), len(ends) - 1)])


def _running(values_CU: Floats, ends_L: NDArray[np.int64]) -> Moments:
    """Moments of a group at looks, at some of which none of it may be new."""
    distinct, place = np.unique(ends_L, return_inverse=True)
    found = effects.moments(values_CU, distinct)
    return Moments(found.users[place], found.mean[place], found.covariance[place])
