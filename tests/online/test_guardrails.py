"""Guardrails pass on evidence of no harm alone, fail on evidence of harm, and see who pays for whom."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from recsys.online.abtest import analyse
from recsys.online.guardrails import CANNOT_TELL, FAILS, PASSES, guard

CTR = ("clicks", "impressions")


def users(seed: int = 0, count: int = 4000, latency: float = 0.0, lift: dict[str, float] | None = None) -> pl.DataFrame:
    """lift: of the click rate, by country."""
    generator = np.random.default_rng(seed)
    treated = generator.random(count) < 0.5
    country = generator.choice(["DE", "FR", "US"], count, p=[0.2, 0.3, 0.5])
    gain = np.array([(lift or {}).get(name, 0.0) for name in country])
    shown = generator.poisson(20 * np.exp(0.6 * generator.normal(size=count))) + 1
    return pl.DataFrame(
        {
            "user_id": range(count),
            "group": np.where(treated, "new", "control"),
            "country": country,
            "latency": generator.gamma(4.0, 25.0, count) * (1 + latency * treated),
            "impressions": shown,
            "clicks": generator.binomial(shown, 0.1 * (1 + gain * treated)),
        }
    )


def verdict(frame: pl.DataFrame, margin: float, **arguments: object) -> str:
    found = guard(frame, {"latency": "latency"}, margin, lower_is_better=["latency"], **arguments)  # type: ignore[arg-type]
    return found["verdict"].item()


def test_a_metric_passes_fails_or_cannot_be_told() -> None:
    same, slower = users(), users(1, latency=0.2)
    assert verdict(same, 0.1) == PASSES
    assert verdict(same, 0.005) == CANNOT_TELL  # no harm seen, and none excluded
    assert verdict(slower, 0.1) == FAILS
    assert verdict(slower, 0.3) == PASSES
    assert verdict(users(2, latency=-0.2), 0.001) == PASSES  # better by far
    assert verdict(same, 10.0, relative=False) == PASSES
    assert verdict(slower, 10.0, relative=False) == FAILS


def test_more_of_what_should_be_high_is_no_harm() -> None:
    frame = users(3, latency=0.2)
    assert guard(frame, {"m": "latency"}, 0.1)["verdict"].item() == PASSES
    assert guard(frame, {"m": "latency"}, 0.1, control="new")["verdict"].item() == FAILS


def test_effects_and_intervals_are_those_of_the_analysis() -> None:
    frame = users(4, lift={"FR": 0.3})
    found = guard(frame, {"ctr": CTR}, {"ctr": 0.05}, by="country")
    for among, rows in [("all", frame), *((f"country = {c}", frame.filter(country=c)) for c in ("DE", "FR", "US"))]:
        known = analyse(rows, {"ctr": CTR}).effects
        one = found.row(by_predicate=pl.col("among") == among, named=True)
        assert (one["effect"], one["low"], one["high"]) == pytest.approx(
            known.select("relative", "relative_low", "relative_high").row(0)
        )
        assert one["users"] == rows.height
    absolute = guard(frame, {"ctr": CTR}, 0.05, relative=False).row(0, named=True)
    known = analyse(frame, {"ctr": CTR}).effects.select("difference", "low", "high").row(0)
    assert (absolute["effect"], absolute["low"], absolute["high"]) == pytest.approx(known)


def test_at_its_margin_a_guardrail_passes_by_luck_in_a_fortieth() -> None:
    tries, seen = 800, []
    for seed in range(tries):
        seen.append(verdict(users(seed, 400, latency=0.1), 0.1))
    for luck in (PASSES, FAILS):
        share = seen.count(luck) / tries
        assert share == pytest.approx(0.025, abs=3 * math.sqrt(0.025 * 0.975 / tries))


def test_a_loss_of_one_country_is_seen_where_all_gain() -> None:
    frame = users(5, 12_000, lift={"US": 0.3, "FR": 0.2, "DE": -0.3})
    found = guard(frame, {"ctr": CTR}, 0.1, by="country", gap=0.2)
    assert dict(found.select("among", "verdict").iter_rows()) == {
        "all": PASSES,
        "country = DE": FAILS,
        "country = FR": PASSES,
        "country = US": PASSES,
        "largest gap: US - DE": FAILS,
    }
    even = guard(users(6, 12_000), {"ctr": CTR}, 0.1, by="country", gap=0.2)
    assert even["verdict"].unique().to_list() == [PASSES]
    assert even["low"][-1] == 0


def test_the_gap_is_the_largest_of_all_pairs_with_bonferroni() -> None:
    frame = users(7, lift={"DE": 0.3})
    found = guard(frame, {"ctr": CTR}, 0.1, by="country", gap=0.05, relative=False).row(-1, named=True)
    known = {}
    for country in ("DE", "FR", "US"):
        value, low, high = analyse(frame.filter(country=country), {"ctr": CTR}).effects.row(0)[5:8]
        known[country] = value, (high - low) / 2 / 1.96
    pairs = list(combinations(known, 2))
    quantile = stats.norm.ppf(1 - 0.025 / len(pairs))
    apart = [abs(known[a][0] - known[b][0]) for a, b in pairs]
    half = [quantile * math.hypot(known[a][1], known[b][1]) for a, b in pairs]
    assert found["effect"] == pytest.approx(max(apart))
    assert found["low"] == pytest.approx(max(0, *np.subtract(apart, half)), abs=1e-4)
    assert found["high"] == pytest.approx(max(np.add(apart, half)), rel=0.01)


def test_the_interval_of_the_gap_holds_the_true_one() -> None:
    """Of 300 experiments whose effects lie 0.3 apart at most."""
    held = 0
    for seed in range(300):
        frame = users(seed, 1500, lift={"DE": -0.1, "FR": 0.0, "US": 0.2})
        found = guard(frame, {"ctr": CTR}, 0.1, by="country", gap=0.1).row(-1, named=True)
        held += found["low"] <= 0.3 <= found["high"]
    assert held / 300 >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 300)


def test_who_is_too_few_cannot_be_told() -> None:
    frame = users(8)
    few = frame.with_columns(country=pl.when(pl.col("user_id") == 0).then(None).otherwise("country"))
    found = guard(few, {"ctr": CTR}, 0.1, by="country")
    one = found.row(by_predicate=pl.col("among") == "country = null", named=True)
    assert (one["users"], one["effect"], one["verdict"]) == (1, None, CANNOT_TELL)
    none = frame.with_columns(pl.col("impressions", "clicks") * (pl.col("country") != "DE"))
    found = guard(none, {"ctr": CTR}, 0.1, by="country", gap=0.1)
    one = found.row(by_predicate=pl.col("among") == "country = DE", named=True)
    assert (one["effect"], one["verdict"]) == (None, CANNOT_TELL)
    assert found["among"][-1] in ("largest gap: FR - US", "largest gap: US - FR")
    alone = guard(frame.with_columns(country=pl.lit("DE")), {"ctr": CTR}, 0.1, by="country", gap=0.1)
    assert alone["among"][-1] == "largest gap"
    assert alone["verdict"][-1] == CANNOT_TELL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margins": 0.0}, "margin of ctr is 0.0"),
        ({"margins": {"crt": 0.1}}, "margin of ctr is None"),
        ({"gap": 0.1}, "give the column by which"),
        ({"gap": -0.1, "by": "country"}, "gap=-0.1: above 0"),
        ({"by": "contry"}, "no column contry: did you mean country"),
        ({"lower_is_better": ["latency"]}, "lower_is_better name no metric by latency"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guard(users(9), {"ctr": CTR}, **({"margins": 0.1} | arguments))  # type: ignore[arg-type]
