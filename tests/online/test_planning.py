"""Plans are the textbook's, turn into each other, and are met by experiments that follow them."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from recsys.online.planning import minimum_detectable_effect, pilot, plan, power, sample_size


def frame(count: int = 5000, seed: int = 0) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    activity = 10 * np.exp(0.8 * generator.normal(size=count))
    rate = 0.1 * np.exp(0.4 * generator.normal(size=count))
    shown, before = generator.poisson(activity) + 1, generator.poisson(activity) + 1
    return pl.DataFrame(
        {
            "impressions": shown,
            "clicks": generator.binomial(shown, np.minimum(rate, 1)),
            "impressions_before": before,
            "clicks_before": generator.binomial(before, np.minimum(rate, 1)),
        }
    )


def test_the_textbooks_numbers() -> None:
    # Two groups, 80% at two-sided 5%: 2 (1.960 + 0.842)^2 = 15.7 a group at one standard deviation.
    assert sample_size(1.0) in (31, 32)
    each = 2 * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 / 0.1**2
    assert sample_size(0.1) == math.ceil(2 * each)
    one_sided = 2 * (stats.norm.ppf(0.95) + stats.norm.ppf(0.9)) ** 2 / 0.1**2
    assert sample_size(0.1, power=0.9, two_sided=False) == math.ceil(2 * one_sided)


def test_what_makes_a_plan_larger() -> None:
    base = sample_size(0.01, variance=4.0)
    assert sample_size(-0.01, variance=4.0) == base
    assert sample_size(0.01, variance=8.0) == pytest.approx(2 * base, rel=1e-4)
    assert sample_size(0.005, variance=4.0) == pytest.approx(4 * base, rel=1e-4)
    assert sample_size(0.01, variance=4.0, correlation=0.6) == pytest.approx(0.64 * base, rel=1e-4)
    assert sample_size(0.01, variance=4.0, share=0.1) == pytest.approx(base / (4 * 0.1 * 0.9), rel=1e-4)
    assert sample_size(0.01, variance=4.0, comparisons=10) == sample_size(0.01, variance=4.0, alpha=0.005)
    assert sample_size(100.0, share=0.01) == 200  # two users of the smaller group


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("wanted", [0.06, 0.5, 0.8, 0.99])
def test_the_three_turn_into_each_other(relative: bool, two_sided: bool, wanted: float) -> None:
    of_metric = {"mean": 3.0, "variance": 7.0, "correlation": 0.5, "relative": relative, "two_sided": two_sided}
    of_metric |= {"share": 0.3, "comparisons": 2, "alpha": 0.06}
    effect = minimum_detectable_effect(5000, power=wanted, **of_metric)
    assert power(5000, effect, **of_metric) == pytest.approx(wanted, abs=1e-9)
    assert sample_size(effect, power=wanted, **of_metric) in (5000, 5001)
    assert power(sample_size(0.05, power=wanted, **of_metric), 0.05, **of_metric) >= wanted - 1e-9


def test_chance_alone_sees_alpha() -> None:
    assert power(1000, 0.0) == pytest.approx(0.05)
    assert power(1000, 0.0, two_sided=False, comparisons=5) == pytest.approx(0.01)
    assert power(1000, 0.1, variance=0.0) == 1.0


def test_a_pilot_measures_a_ratio_as_repetition_does() -> None:
    found = pilot(frame(), ("clicks", "impressions"), [("clicks_before", "impressions_before")])
    ratios = []
    for seed in range(1, 200):
        sums = frame(500, seed).sum()
        ratios.append(sums["clicks"][0] / sums["impressions"][0])
    assert found.mean == pytest.approx(np.mean(ratios), rel=0.03)
    assert math.sqrt(found.variance / 500) == pytest.approx(np.std(ratios), rel=0.2)
    rows = frame()
    above, below = (
        [rows[f"{name}{suffix}"].cast(pl.Float64).to_numpy() for suffix in ("", "_before")]
        for name in ("clicks", "impressions")
    )
    shares = [a - a.sum() / b.sum() * b for a, b in zip(above, below, strict=True)]
    assert found.correlation == pytest.approx(np.corrcoef(*shares)[0, 1])


def test_the_correlation_with_several_covariates_is_that_of_least_squares() -> None:
    rows = frame()
    names = ["clicks_before", "impressions_before"]
    y = rows["clicks"].cast(pl.Float64).to_numpy()
    design = np.column_stack([np.ones(len(y)), *(rows[name].to_numpy() for name in names)])
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    found = pilot(rows, "clicks", names)
    assert found.correlation == pytest.approx(math.sqrt(1 - residual.var() / y.var()))
    assert (found.mean, found.variance) == pytest.approx((y.mean(), y.var(ddof=1)))
    assert pilot(rows.with_columns(one=pl.lit(0.1)), "clicks", ["one"]).correlation == 0


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_an_experiment_as_planned_sees_what_it_should(share: float) -> None:
    """Log-normal values that a treatment multiplies by 1.1: the plan's 80% within three standard errors."""
    generator, tries = np.random.default_rng(1), 1500
    mean, variance = math.exp(0.18), (math.exp(0.36) - 1) * math.exp(0.36)
    users = sample_size(0.1, mean, variance, relative=True, share=share)
    treated = round(users * share)
    seen = 0
    values = np.exp(0.6 * generator.normal(size=(tries, users)))
    values[:, :treated] *= 1.1
    seen = (stats.ttest_ind(values[:, :treated], values[:, treated:], axis=1, equal_var=False).pvalue < 0.05).sum()
    assert seen / tries == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / tries))


def test_a_table_of_metrics_divides_alpha_among_them() -> None:
    rows = frame()
    metrics = {"clicks": "clicks", "ctr": ("clicks", "impressions")}
    found = plan(rows, metrics, 0.02, covariates={"ctr": [("clicks_before", "impressions_before")]})
    assert found["metric"].to_list() == ["clicks", "ctr"]
    assert found["alpha"].to_list() == [0.025, 0.025]
    known = pilot(rows, "clicks")
    assert found["users"][0] == found["users_raw"][0] == sample_size(0.02, *known, relative=True, comparisons=2)
    assert found["users"][1] < found["users_raw"][1]
    own = plan(rows, metrics, {"clicks": 0.04, "ctr": 0.02}, comparisons=2)
    assert own["users_raw"].to_list()[1] == found["users_raw"][1]
    assert own["users"][0] < found["users"][0]
    with pytest.raises(ValueError, match="none for the metric ctr"):
        plan(rows, metrics, {"clicks": 0.1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"effect": 0.0}, "effect=0 is seen by no number"),
        ({"effect": math.nan}, "effect=nan"),
        ({"effect": 0.1, "relative": True}, "mean=None"),
        ({"effect": 0.1, "mean": 0.0, "relative": True}, "mean=0.0"),
        ({"effect": -1.0, "mean": 1.0, "relative": True}, "effect=-1.0"),
        ({"effect": 0.1, "variance": -1.0}, "variance=-1.0"),
        ({"effect": 0.1, "correlation": 1.5}, "correlation=1.5"),
        ({"effect": 0.1, "share": 1.0}, "share=1.0"),
        ({"effect": 0.1, "alpha": 0.0}, "alpha=0.0"),
        ({"effect": 0.1, "power": 0.05}, "power=0.05: expected between 0.05"),
        ({"effect": 0.1, "comparisons": 0}, "comparisons=0"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_size(**arguments)  # type: ignore[arg-type]


def test_too_few_users_are_refused() -> None:
    with pytest.raises(ValueError, match="users=3"):
        power(3, 0.1)
    with pytest.raises(ValueError, match="users=10: too few to see any relative effect"):
        minimum_detectable_effect(10, 1.0, 9.0, relative=True)
    with pytest.raises(ValueError, match="pilot of 2 users"):
        pilot(frame(2), "clicks")
    with pytest.raises(ValueError, match="no column click: did you mean clicks"):
        pilot(frame(20), "click")
    with pytest.raises(ValueError, match="give a list of them"):
        pilot(frame(20), "clicks", ("clicks_before", "impressions_before"))
