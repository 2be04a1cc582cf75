"""Peeking: the interval is the paper's, holds at all looks at once, and p is the test that it inverts."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from recsys.online import effects
from recsys.online.abtest import analyse
from recsys.online.sequential import BURN_IN, confidence_sequence, watch


def users(seed: int = 0, count: int = 2000, lift: float = 0.0) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    treated = generator.random(count) < 0.5
    activity = 10 * np.exp(0.8 * generator.normal(size=count))
    rate = np.minimum(0.1 * np.exp(0.4 * generator.normal(size=count)), 0.5)
    shown, before = generator.poisson(activity) + 1, generator.poisson(activity)
    return pl.DataFrame(
        {
            "user_id": range(count),
            "group": np.where(treated, "new", "control"),
            "day": np.sort(generator.integers(0, 20, count)),
            "impressions": shown,
            "clicks": generator.binomial(shown, rate * (1 + lift * treated)),
            "impressions_before": before,
            "clicks_before": generator.binomial(before, rate),
        }
    )


CTR = ("clicks", "impressions")


def test_the_interval_is_that_of_the_paper() -> None:
    """Of the mean of t values: sigma sqrt(2 (t rho^2 + 1) / (t^2 rho^2) log(sqrt(t rho^2 + 1) / alpha))."""
    t, alpha, variance, planned = np.array([100, 1000, 5000]), 0.1, 3.0, 1000
    rho = math.sqrt((-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / planned)
    zero = np.zeros(3)
    one = effects.Effect(zero, zero + 0.3, zero, variance / t, zero, zero)
    low, high, _ = confidence_sequence(one, t, planned, alpha)
    log = np.log(np.sqrt(t * rho**2 + 1) / alpha)
    expected = math.sqrt(variance) * np.sqrt(2 * (t * rho**2 + 1) / (t**2 * rho**2) * log)
    assert (high - low) / 2 == pytest.approx(expected)
    assert (high + low) / 2 == pytest.approx(0.3)


def test_the_interval_is_narrowest_for_its_time_where_planned() -> None:
    zero = np.zeros(1)
    halves = []
    for planned in np.geomspace(100, 100_000, 61):
        one = effects.Effect(zero, zero, zero, zero + 1.0, zero, zero)
        halves.append(confidence_sequence(one, np.array([3000]), planned)[1][0])
    assert np.geomspace(100, 100_000, 61)[np.argmin(halves)] == pytest.approx(3000, rel=0.13)
    # Twice as wide as a fixed interval at most, there.
    assert 1.4 < min(halves) / 1.96 < 1.7


def test_p_inverts_the_interval_and_only_falls() -> None:
    frame = users(1, 3000, lift=0.15)
    found = watch(frame, CTR, order="user_id", planned=3000)
    out = (found["low"] > 0) | (found["high"] < 0)
    assert out.any()
    assert not out.all()
    assert found["told_apart"].to_list() == out.cum_max().to_list()
    assert (found["p"].diff().drop_nulls() <= 0).all()
    # At the p of a look, its own interval touches 0: the one of the last new minimum.
    look = int(np.flatnonzero(np.diff(found["p"].to_numpy()) < 0)[-1]) + 1
    rest = found["p"][look]
    again = watch(frame, CTR, order="user_id", planned=_planned_for(3000, rest), confidence=1 - rest)
    assert min(abs(again["low"][look]), abs(again["high"][look])) == pytest.approx(0, abs=1e-9)


def _planned_for(planned: int, alpha: float) -> float:
    """With which another alpha has the same mixture as 5% with `planned`."""
    of = [-2 * math.log(a) + math.log1p(-2 * math.log(a)) for a in (0.05, alpha)]
    return planned * of[1] / of[0]


@pytest.mark.parametrize("covariates", [[], [("clicks_before", "impressions_before")]])
def test_each_look_is_the_experiment_up_to_it(covariates: list[tuple[str, str]]) -> None:
    frame = users(2, 1200).sample(fraction=1, shuffle=True, seed=3)
    found = watch(frame, CTR, order="day", planned=1200, looks=None, covariates=covariates)
    assert found["day"].to_list() == list(range(20))[-found.height :]
    for row in found.iter_rows(named=True):
        seen = frame.filter(pl.col("day") <= row["day"])
        assert row["users"] == seen.height
        assert min(seen["group"].value_counts()["count"]) >= BURN_IN
        known = analyse(seen, {"m": CTR}, covariates={"m": covariates}).effects.row(-1, named=True)
        assert row["difference"] == pytest.approx(known["difference"])
        assert row["control_value"] == pytest.approx(known["control_value"])


def test_looking_all_the_time_errs_less_than_it_may_where_a_t_test_errs_often() -> None:
    """400 A/A experiments, 100 looks each."""
    generator, tests, count = np.random.default_rng(4), 400, 1000
    activity = 10 * np.exp(0.8 * generator.normal(size=(2, tests, count)))
    shown = generator.poisson(activity) + 1
    clicks = generator.binomial(shown, 0.1)
    ends = np.arange(BURN_IN, count + 1, 10)
    sides = [effects.moments([clicks[g], shown[g]], ends) for g in range(2)]
    found = effects.effect(*sides, (0, 1))
    low, high, p = confidence_sequence(found, 2 * ends, 2 * count)
    missed = ((low > 0) | (high < 0)).any(-1)
    assert (missed == (p[:, -1] < 0.05)).all()
    assert missed.mean() < 0.05
    assert (effects.p_value(found) < 0.05).any(-1).mean() > 0.2


def test_looks_are_after_about_as_many_users_each_and_after_whole_days() -> None:
    frame = users(5)
    found = watch(frame, CTR, order="user_id", planned=2000, looks=20, burn_in=2)
    assert found["users"].to_list() == list(range(100, 2001, 100))
    by_day = watch(frame, CTR, order="day", planned=2000, looks=1000, burn_in=2)
    assert by_day["users"].to_list() == frame["day"].value_counts().sort("day")["count"].cum_sum().to_list()
    assert watch(frame, CTR, order="day", planned=2000, looks=1)["users"].to_list() == [2000]


def test_of_several_treatments_one_is_watched() -> None:
    frame = users(6)
    three = frame.with_columns(group=pl.when(pl.col("user_id") % 3 == 0).then(pl.lit("other")).otherwise("group"))
    found = watch(three, CTR, order="day", planned=2000, treatment="new")
    assert found.equals(watch(three.filter(pl.col("group") != "other"), CTR, order="day", planned=2000))
    with pytest.raises(ValueError, match="treatments new, other: say which one"):
        watch(three, CTR, order="day", planned=2000)
    with pytest.raises(ValueError, match="no treatment nw: did you mean new"):
        watch(three, CTR, order="day", planned=2000, treatment="nw")


def test_what_does_not_vary_is_not_known() -> None:
    frame = users(7).with_columns(one=pl.lit(0.1))
    found = watch(frame, "one", order="day", planned=2000)
    assert found["low"].null_count() == found.height
    assert found["p"].to_list() == [1.0] * found.height


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"planned": 0}, "planned=0"),
        ({"looks": 0}, "looks=0"),
        ({"burn_in": 1}, "burn_in=1"),
        ({"burn_in": 5000}, "no look has burn_in=5000"),
        ({"confidence": 5.0}, "confidence must lie"),
        ({"order": "dya"}, "no column dya: did you mean day"),
        ({"covariates": ("clicks_before", "impressions_before")}, "give a list of them"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        watch(users(8), CTR, **({"order": "day", "planned": 2000} | arguments))  # type: ignore[arg-type]


def test_a_user_without_a_place_is_refused() -> None:
    frame = users(9).with_columns(day=pl.when(pl.col("user_id") != 4).then("day"))
    with pytest.raises(ValueError, match="day is null in row 4"):
        watch(frame, CTR, order="day", planned=2000)
