"""Estimates over users and seeds: Student's where one of them is alone, right as often as they say where both are."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from recsys.evaluation import calibration, estimates
from recsys.evaluation.estimates import benjamini_hochberg, estimate, holm


def frames(values_SU: np.ndarray, keys: np.ndarray | None = None) -> list[pl.DataFrame]:
    keys = np.arange(values_SU.shape[1]) if keys is None else keys
    return [pl.DataFrame({"user_key": keys, "recall@5": values}) for values in values_SU]


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def test_one_run_gives_students_paired_test_over_users() -> None:
    a, b = drawn(0, 2, 60)
    found = estimate(frames(a[None]), "recall@5", frames(b[None]))
    assert found is not None
    known = stats.ttest_rel(a, b)
    low, high = known.confidence_interval(0.95)
    assert (found.value, found.low, found.high, found.p) == pytest.approx(
        (a.mean() - b.mean(), low, high, known.pvalue)
    )
    assert found.effect == pytest.approx((a - b).mean() / (a - b).std(ddof=1))
    assert (found.users, found.seeds) == (60, 1)


def test_a_single_model_gets_students_interval_of_its_mean() -> None:
    (values,) = drawn(1, 1, 40)
    found = estimate(frames(values[None]), "recall@5", confidence=0.9)
    assert found is not None
    expected = stats.t.interval(0.9, 39, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)


def test_without_users_effects_seeds_decide_alone() -> None:
    """Runs that move all users alike: the interval is that of the t test over seeds."""
    shift_S = np.array([0.1, 0.13, 0.08, 0.11, 0.12])
    base_U = drawn(2, 50)
    found = estimate(frames(base_U + shift_S[:, None]), "recall@5", frames(base_U[None]))
    assert found is not None
    known = stats.ttest_1samp(shift_S, 0)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval(0.95)), rel=1e-6)
    assert found.p == pytest.approx(known.pvalue, rel=1e-6)


def test_runs_that_are_the_same_add_nothing() -> None:
    a, b = drawn(3, 2, 70)
    once = estimate(frames(a[None]), "recall@5", frames(b[None]))
    thrice = estimate(frames(np.stack([a] * 3)), "recall@5", frames(np.stack([b] * 3)))
    assert once is not None
    assert thrice is not None
    assert thrice[:5] == pytest.approx(once[:5])


def test_queries_of_one_user_count_as_one() -> None:
    """A user asked four times over tells no more than once."""
    value_U = drawn(4, 30)
    once = estimate(frames(value_U[None]), "recall@5")
    often = pl.DataFrame({"user_key": np.repeat(np.arange(30), 4), "recall@5": np.repeat(value_U, 4)})
    found = estimate([often.with_columns(query_key=pl.int_range(pl.len()))], "recall@5")
    assert found is not None
    assert once is not None
    assert found[:5] == pytest.approx(once[:5])


@pytest.mark.parametrize(("of_runs", "of_users"), [(0.0, 0.0), (0.02, 0.0), (0.0, 0.2), (0.01, 0.2), (0.05, 0.05)])
def test_two_equal_models_are_rarely_told_apart(of_runs: float, of_users: float) -> None:
    """Runs and users have effects of their own, and each user in each run noise: at most 5% of intervals miss 0."""
    generator, missed, tries = np.random.default_rng(5), 0, 600
    for _ in range(tries):
        values_SU = generator.normal(0, 0.3, (5, 80))
        values_SU += generator.normal(0, of_runs, (5, 1)) + generator.normal(0, of_users, (1, 80))
        found = estimate(frames(values_SU), "recall@5")
        assert found is not None
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        missed += found.p < 0.05
    assert missed / tries < 0.05 + 3 * math.sqrt(0.05 * 0.95 / tries)
    if of_users == of_runs == 0:
        assert missed / tries > 0.05 - 3 * math.sqrt(0.05 * 0.95 / tries)


def test_what_is_called_detectable_is_seen_four_times_in_five() -> None:
    generator, seen, tries = np.random.default_rng(6), 0, 800
    for _ in range(tries):
        values = generator.normal(0.0, 1.0, (1, 100))
        found = estimate(frames(values), "recall@5")
        assert found is not None
        known = estimate(frames(generator.normal(found.detectable, 1.0, (1, 100))), "recall@5")
        assert known is not None
        seen += known.low > 0
    assert seen / tries == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("metric", ["log_loss", "calibration", "grouped_auc", "normalised_cross_entropy", "auc"])
def test_the_interval_of_a_rankers_metric_is_that_of_the_bootstrap(metric: str) -> None:
    generator = np.random.default_rng(7)
    user = generator.integers(0, 400, 6000)
    logits = generator.normal(-1, 1, 6000) + generator.normal(0, 0.5, 400)[user]
    labels = (generator.random(6000) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    found = calibration.measure(*map(torch.from_numpy, (logits, labels, user)), num_replicates=4000)
    one = estimate([found.per_user], metric, values=[found.metrics[metric]])
    assert one is not None
    low, high = found.intervals[metric]
    assert one.value == pytest.approx(found.metrics[metric])
    assert (one.high - one.low) == pytest.approx(high - low, rel=0.06)
    if metric != "auc":
        follows = estimates._values([found.per_user], metric, None) if metric in estimates.RATIOS else [one.value]
        assert follows[0] == pytest.approx(found.metrics[metric])


def test_a_metric_of_no_sums_has_an_interval_over_seeds_alone() -> None:
    per_user = pl.DataFrame({"user_key": [1, 2], "rows": [3, 4]})
    assert estimate([per_user], "calibration_error", values=[0.1]) is None
    found = estimate([per_user] * 3, "calibration_error", values=[0.1, 0.2, 0.3])
    assert found is not None
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, 0.2, stats.sem([0.1, 0.2, 0.3])))


def test_a_split_that_changes_with_the_seed_measures_other_users() -> None:
    first, second = frames(drawn(8, 1, 20), np.arange(20)), frames(drawn(9, 1, 20), np.arange(10, 30))
    found = estimate([*first, *second], "recall@5", [*first, *second])
    assert found is not None
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, None)
    assert found.users == 30


def test_what_does_not_fit_is_refused() -> None:
    a = frames(drawn(10, 2, 6))
    with pytest.raises(ValueError, match="user_key 5 is in one of them alone"):
        estimate(a[:1], "recall@5", [a[0].head(5)])
    with pytest.raises(ValueError, match="got 2 and 3"):
        estimate(a, "recall@5", [*a, a[0]])
    with pytest.raises(ValueError, match="confidence"):
        estimate(a, "recall@5", confidence=1.0)
    with pytest.raises(ValueError, match="one protocol"):
        estimate(a[:1], "recall@5", [a[0].with_columns(query_key=pl.lit(1))])
    with pytest.raises(ValueError, match="auc does not follow"):
        estimate(a, "auc")
    assert estimate([a[0].head(1)], "recall@5") is None


def test_corrections_are_those_of_scipy_and_of_the_definition() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.2, 0.04]
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    # Holm's, step by step: 6 x .005, 5 x .01, 4 x .03, then no smaller than the one before.
    assert holm(p) == pytest.approx([0.05, 0.12, 0.12, 0.03, 0.2, 0.12])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == benjamini_hochberg([]) == []
    assert holm([0.02]) == benjamini_hochberg([0.02]) == [0.02]
