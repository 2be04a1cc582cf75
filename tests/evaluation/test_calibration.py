"""Predicted probabilities against scikit-learn, naive loops, simulation, and properties."""

import math
import warnings

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import log_loss, mean_absolute_percentage_error, mean_pinball_loss, roc_auc_score

from recsys.evaluation.calibration import mae, mape, measure, pinball, reliability, rmse, smape, watch_time
from recsys.evaluation.significance import poisson_weights


def rows_of(rng, num_rows, num_users, levels=None, spread=1.0):
    """logits (of so many levels, or all distinct), labels and user keys."""
    logits = rng.normal(scale=spread, size=num_rows)
    if levels is not None:
        logits = np.floor(logits * levels / 6) * 6 / levels
    labels = rng.random(num_rows) < 1 / (1 + np.exp(-logits))
    names = rng.integers(-(2**63), 2**63 - 1, num_users)
    return torch.from_numpy(logits), torch.from_numpy(labels).long(), torch.from_numpy(rng.choice(names, num_rows))


def naive_auc(logits, labels):
    wins = [(p > n) + (p == n) / 2 for p in logits[labels == 1].tolist() for n in logits[labels == 0].tolist()]
    return sum(wins) / len(wins)


def naive_bins(logits, labels, num_bins):
    """{bin: (rows, sum of predictions, positives)}: a tied run goes to the bin of its middle."""
    ordered, bins = sorted(logits.tolist()), {}
    for value, label in zip(logits.tolist(), labels.tolist(), strict=True):
        middle = ordered.index(value) + ordered.count(value) / 2
        key = math.floor(middle * num_bins / len(ordered))
        rows, predicted, positives = bins.get(key, (0, 0.0, 0))
        bins[key] = (rows + 1, predicted + 1 / (1 + math.exp(-value)), positives + label)
    return bins


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_rows=st.integers(2, 120),
    num_users=st.integers(1, 20),
    levels=st.sampled_from([1, 3, 10, None]),
    dtypes=st.sampled_from(
        [(torch.float64, torch.int64), (torch.float32, torch.bool), (torch.bfloat16, torch.float32)]
    ),
)
def test_values_equal_scikit_learn_and_naive_loops(seed, num_rows, num_users, levels, dtypes):
    logits, labels, user_key = rows_of(np.random.default_rng(seed), num_rows, num_users, levels)
    logits, labels[:2] = logits.to(dtypes[0]), torch.tensor([0, 1])
    user_key[:2] = user_key[0]  # at least one user with both classes
    found = measure(logits, labels.to(dtypes[1]), user_key, num_replicates=0)
    logits, rate = logits.double(), float(labels.double().mean())
    loss = log_loss(labels, logits.sigmoid())
    bins = naive_bins(logits, labels, 20)
    aucs, weights = {}, {}
    for key in set(user_key.tolist()):
        own = user_key == key
        if 0 < labels[own].sum() < own.sum():
            aucs[key], weights[key] = naive_auc(logits[own], labels[own]), int(own.sum())
    expected = {
        "auc": roc_auc_score(labels, logits),
        "grouped_auc": sum(aucs[key] * weights[key] for key in aucs) / sum(weights.values()),
        "log_loss": loss,
        "normalised_cross_entropy": loss / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)),
        "calibration": float(logits.sigmoid().mean()) / rate,
        "calibration_error": sum(abs(predicted - positives) for _, predicted, positives in bins.values()) / num_rows,
    }
    assert found.metrics == pytest.approx(expected, abs=1e-12)
    assert found.metrics["auc"] == pytest.approx(naive_auc(logits, labels), abs=1e-13)
    assert found.intervals == {}
    users = len(set(user_key.tolist()))
    assert found.counts == {
        "rows": num_rows, "positives": int(labels.sum()), "users": users, "one_class_users": users - len(aucs),
        "undefined": 0,
    }  # fmt: skip
    for row in found.per_user.iter_rows(named=True):
        own = user_key == row["user_key"]
        assert (row["rows"], row["positives"]) == (int(own.sum()), int(labels[own].sum()))
        assert row["log_loss"] == pytest.approx(
            row["rows"] * log_loss(labels[own], logits[own].sigmoid(), labels=[0, 1])
        )
        assert row["predicted"] == pytest.approx(float(logits[own].sigmoid().sum()))
        assert row["auc"] == (pytest.approx(aucs[row["user_key"]]) if row["user_key"] in aucs else None)
    assert found.per_user["user_key"].is_sorted()


@pytest.mark.parametrize("levels", [4, None])
def test_the_variance_of_auc_is_obuchowskis(levels):
    """Formulas 2 to 5 of Obuchowski (1997) by loops over users."""
    rng = np.random.default_rng(1)
    logits, labels, user_key = rows_of(rng, 200, 25, levels)
    labels[user_key == user_key[0]] = 0
    found = measure(logits, labels, user_key, num_replicates=1)
    positive, negative, auc = logits[labels == 1], logits[labels == 0], found.metrics["auc"]

    def share_below(x):
        return float(((negative < x).double() + (negative == x).double() / 2).mean())

    def share_above(x):
        return float(((positive > x).double() + (positive == x).double() / 2).mean())

    sums = []
    for key in set(user_key.tolist()):
        own = [(x, y) for x, y, k in zip(logits.tolist(), labels.tolist(), user_key.tolist(), strict=True) if k == key]
        of_positives = [share_below(x) - auc for x, y in own if y == 1]
        of_negatives = [share_above(x) - auc for x, y in own if y == 0]
        sums.append((len(of_positives), sum(of_positives), len(of_negatives), sum(of_negatives)))
    m, n, users = len(positive), len(negative), len(sums)
    with_m, with_n = sum(s[0] > 0 for s in sums), sum(s[2] > 0 for s in sums)
    assert with_m < users
    s10 = with_m / ((with_m - 1) * m) * sum(s[1] ** 2 for s in sums)
    s01 = with_n / ((with_n - 1) * n) * sum(s[3] ** 2 for s in sums)
    s11 = users / (users - 1) * sum(s[1] * s[3] for s in sums)
    deviation = math.sqrt(s10 / m + s01 / n + 2 * s11 / (m * n))
    half = 1.959963984540054 * deviation / (auc * (1 - auc))
    odds = math.log(auc / (1 - auc))
    assert found.intervals["auc"] == pytest.approx([1 / (1 + math.exp(-odds - side * half)) for side in (-1, 1)])
    influence = found.per_user["auc_influence"]
    assert influence.sum() == pytest.approx(0, abs=1e-12)
    assert influence.std() * math.sqrt(users) == pytest.approx(deviation, rel=0.03)


def test_intervals_equal_the_bootstrap_that_weighs_rows():
    """Every replicate measured anew with scikit-learn's row weights."""
    logits, labels, user_key = rows_of(np.random.default_rng(2), 600, 80)
    found = measure(logits, labels, user_key, num_replicates=100, confidence=0.9, seed=5)
    replicates = {name: [] for name in found.intervals if name != "auc"}
    assert set(replicates) == set(found.metrics) - {"auc", "calibration_error"}
    for weights in poisson_weights(user_key, 100, seed=5).T.double().numpy():
        rate = float(np.average(labels, weights=weights))
        loss = log_loss(labels, logits.sigmoid(), sample_weight=weights)
        replicates["log_loss"].append(loss)
        entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        replicates["normalised_cross_entropy"].append(loss / entropy)
        replicates["calibration"].append(np.average(logits.sigmoid(), weights=weights) / rate)
        both = [(row, weights[user_key == row["user_key"]][0]) for row in found.per_user.drop_nulls().to_dicts()]
        total = sum(weight * row["rows"] for row, weight in both)
        replicates["grouped_auc"].append(sum(weight * row["rows"] * row["auc"] for row, weight in both) / total)
    for name, values in replicates.items():
        assert found.intervals[name] == pytest.approx(tuple(np.quantile(values, [0.05, 0.95]))), name


def test_the_interval_of_auc_is_close_to_its_bootstrap():
    logits, labels, user_key = rows_of(np.random.default_rng(2), 600, 80)
    low, high = measure(logits, labels, user_key, num_replicates=1, confidence=0.9).intervals["auc"]
    weights = poisson_weights(user_key, 4000).double()
    positives, negatives = weights[labels == 1], weights[labels == 0]
    wins = (logits[labels == 1][:, None] > logits[labels == 0]).double()
    replicates = ((wins.T @ positives) * negatives).sum(0) / (positives.sum(0) * negatives.sum(0))
    assert (low, high) == pytest.approx(tuple(np.quantile(replicates, [0.05, 0.95])), abs=0.05 * (high - low))


def users_with_effects(rng, num_users, rows_each=20):
    """Users differ in base rate and in how far their logits are off: rows of one user are far from independent."""
    taste, shift = rng.normal(size=(2, num_users, 1))
    truth = taste - 0.5 + rng.normal(size=(num_users, rows_each))
    labels = rng.random(truth.shape) < 1 / (1 + np.exp(-truth))
    logits = truth + shift + 0.5 * rng.normal(size=truth.shape)
    user_key = np.repeat(rng.integers(-(2**63), 2**63 - 1, num_users), rows_each)
    return torch.from_numpy(logits).view(-1), torch.from_numpy(labels).view(-1), torch.from_numpy(user_key)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """AUC's 95% covers 94.2% of 6000 data sets of a hundred users, and 95.0% of 2000 of four hundred."""
    rng = np.random.default_rng(11)
    truth = measure(*users_with_effects(rng, 20_000), num_replicates=0).metrics
    trials, forgotten = 400, 0
    covered = dict.fromkeys(set(truth) - {"calibration_error"}, 0)
    for trial in range(trials):
        logits, labels, user_key = users_with_effects(rng, 100)
        found = measure(logits, labels, user_key, num_replicates=200, seed=trial).intervals
        for name in covered:
            covered[name] += found[name][0] <= truth[name] <= found[name][1]
        strangers = torch.from_numpy(rng.permutation(len(labels)) // 2)
        low, high = measure(logits, labels, strangers, num_replicates=1).intervals["auc"]
        forgotten += low <= truth["auc"] <= high
    assert 0.92 <= covered["auc"] / trials <= 0.98
    for name, count in covered.items():  # percentiles of 200 replicates, of a hundred users
        assert 0.90 <= count / trials <= 0.98, name
    assert forgotten / trials < 0.9  # what it costs to forget the users


@pytest.mark.parametrize("levels", [5, None])
def test_the_order_of_rows_does_not_change_a_bit(levels):
    rng = np.random.default_rng(4)
    logits, labels, user_key = rows_of(rng, 3000, 200, levels)
    first = measure(logits, labels, user_key, num_replicates=50, seed=3)
    for _ in range(3):
        order = torch.from_numpy(rng.permutation(3000))
        again = measure(logits[order], labels[order], user_key[order], num_replicates=50, seed=3)
        assert (again.metrics, again.intervals, again.counts) == (first.metrics, first.intervals, first.counts)
        assert again.per_user.equals(first.per_user)
        assert reliability(logits[order], labels[order]).equals(reliability(logits, labels))
    other = measure(logits, labels, user_key, num_replicates=50, seed=4)
    assert other.metrics == first.metrics
    assert other.intervals["log_loss"] != first.intervals["log_loss"]


def test_constant_base_rate_and_transformed_scores():
    logits, labels, user_key = rows_of(np.random.default_rng(5), 2000, 100)
    before = measure(logits, labels, user_key, num_replicates=100)
    for constant in (-3.0, 0.0, 0.4):
        found = measure(torch.full((2000,), constant), labels, user_key, num_replicates=0).metrics
        assert found["auc"] == found["grouped_auc"] == 0.5
        assert found["normalised_cross_entropy"] >= 1
        assert found["calibration_error"] == pytest.approx(abs(1 / (1 + math.exp(-constant)) - labels.double().mean()))
    rate = labels.double().mean()
    found = measure(rate.logit().expand(2000), labels, user_key, num_replicates=0).metrics
    assert found["normalised_cross_entropy"] == pytest.approx(1, abs=1e-12)
    assert found["calibration"] == pytest.approx(1, abs=1e-12)
    assert found["calibration_error"] == pytest.approx(0, abs=1e-12)
    for transformed in (logits * 3 - 7, logits**3, logits.exp()):
        found = measure(transformed, labels, user_key, num_replicates=100)
        for name in ("auc", "grouped_auc"):
            assert found.metrics[name] == before.metrics[name]
            assert found.intervals[name] == before.intervals[name]
    assert measure(-logits, labels, user_key, num_replicates=0).metrics["auc"] == pytest.approx(
        1 - before.metrics["auc"]
    )


def test_extreme_logits_stay_finite_and_small_losses_exact():
    logits, labels = torch.tensor([1e4, -1e4, 1e4, -1e4]), torch.tensor([1, 0, 0, 1])
    found = measure(logits, labels, torch.tensor([1, 1, 2, 2]), num_replicates=0)
    assert found.metrics["log_loss"] == 5000
    sure = measure(torch.tensor([1e4, -1e4, 40.0]), torch.tensor([1, 0, 1]), torch.tensor([1, 1, 2]))
    assert sure.metrics["log_loss"] == pytest.approx(math.exp(-40) / 3, rel=1e-12)
    assert sure.metrics["auc"] == 1
    assert all(math.isfinite(value) for value in sure.metrics.values())
    assert all(math.isfinite(end) for ends in sure.intervals.values() for end in ends)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_out_what_it_does_not_define(label):
    logits, labels = torch.randn(6), torch.full((6,), label)
    with pytest.warns(UserWarning, match=f"all labels are {label}: auc, grouped_auc, normalised_cross_entropy"):
        found = measure(logits, labels, torch.tensor([1, 1, 2, 2, 3, 3]))
    defined = {"log_loss", "calibration_error"} | ({"calibration"} if label else set())
    assert set(found.metrics) == defined
    assert set(found.intervals) == defined - {"calibration_error"}
    assert (found.counts["one_class_users"], found.counts["undefined"]) == (3, 6 - len(defined))
    assert found.per_user["auc"].null_count() == found.per_user["auc_influence"].null_count() == 3
    assert found.metrics["log_loss"] == pytest.approx(log_loss(labels, logits.double().sigmoid(), labels=[0, 1]))


def test_few_users():
    with pytest.warns(UserWarning, match="no user has labels of both classes: grouped_auc$"):
        found = measure(torch.tensor([0.3, 0.1, 0.2]), torch.tensor([1, 0, 0]), torch.tensor([7, 8, 9]))
    assert found.metrics["auc"] == 1
    assert "auc" not in found.intervals  # one user holds all positives
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = measure(torch.tensor([0.3, 0.1]), torch.tensor([1, 0]), torch.tensor([7, 7]), num_replicates=20)
    assert alone.intervals["log_loss"] == pytest.approx([alone.metrics["log_loss"]] * 2)


@pytest.mark.parametrize("levels", [3, 8, None])
def test_reliability_bins_and_wilson_intervals(levels):
    logits, labels, _ = rows_of(np.random.default_rng(6), 300, 1, levels)
    table = reliability(logits, labels, 7, confidence=0.9)
    expected = naive_bins(logits, labels, 7)
    assert table["bin"].to_list() == sorted(expected)
    for row in table.iter_rows(named=True):
        rows, predicted, positives = expected[row["bin"]]
        wilson = binomtest(positives, rows).proportion_ci(0.9, method="wilson")
        assert row["rows"] == rows
        assert row["predicted"] == pytest.approx(predicted / rows)
        assert row["observed"] == positives / rows
        assert (row["low"], row["high"]) == pytest.approx((wilson.low, wilson.high))
    if levels is None:
        assert table["rows"].max() - table["rows"].min() <= 1
    error = (pl.col("rows") * (pl.col("predicted") - pl.col("observed")).abs()).sum() / pl.col("rows").sum()
    found = measure(logits, labels, torch.zeros(300, dtype=torch.int64), num_replicates=0)
    assert reliability(logits, labels).select(error).item() == pytest.approx(found.metrics["calibration_error"])


def test_a_calibrated_model_is_found_calibrated():
    logits, labels, user_key = rows_of(np.random.default_rng(7), 200_000, 5000)
    found = measure(logits, labels, user_key, num_replicates=200)
    assert found.intervals["calibration"][0] < 1 < found.intervals["calibration"][1]
    assert found.metrics["calibration_error"] < 0.006
    table = reliability(logits, labels)
    assert ((table["low"] < table["predicted"]) & (table["predicted"] < table["high"])).sum() >= 17
    assert measure(logits + 0.5, labels, user_key, num_replicates=0).metrics["calibration_error"] > 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1, math.nan, math.nan], [0, 1, 1], [1, 2, 3]), "logits must be finite, got nan at row 1"),
        (([0.1, math.inf, 0.2], [0, 1, 1], [1, 2, 3]), "logits must be finite, got inf at row 1"),
        (([0.1, 0.2, 0.3], [0, 1, 0.5], [1, 2, 3]), "labels must be 0 or 1, got 0.5 at row 2"),
        (([0.1, 0.2, 0.3], [0, -1, 1], [1, 2, 3]), "labels must be 0 or 1, got -1 at row 1"),
        (([0.1, 0.2, 0.3], [0, 1], [1, 2, 3]), r"got shapes logits \(3,\), labels \(2,\), user_key \(3,\)"),
        (([[0.1, 0.2]], [[0, 1]], [[1, 2]]), r"one value a row is needed, got shapes logits \(1, 2\)"),
        (([0.1, 0.2], [0, 1], [1.0, 2.0]), "user_key must be integers, got torch.float32"),
        (([], [], []), "logits and labels and user_key have no rows"),
    ],
)
def test_bad_rows_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(*map(torch.tensor, arguments))


def test_bad_options_are_refused():
    logits, labels = torch.tensor([0.1, 0.2]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        measure(logits, labels, labels, confidence=95)
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        reliability(logits, labels, 0)
    with pytest.raises(ValueError, match="logits must be finite, got nan at row 0"):
        reliability(logits * math.nan, labels)


def test_watch_time_equals_scikit_learn_and_drops_zero_denominators():
    rng = np.random.default_rng(8)
    actual = torch.from_numpy(rng.exponential(60, 500) * (rng.random(500) < 0.8))
    predicted = torch.from_numpy(rng.exponential(60, 500) * (rng.random(500) < 0.9))
    found = watch_time(predicted, actual, {0.5: predicted, 0.9: 2 * predicted})
    watched, any_of_both = actual > 0, (actual > 0) | (predicted > 0)
    gap = (predicted - actual).abs()
    expected = {
        "mae": float(gap.mean()),
        "rmse": math.sqrt(float((gap**2).mean())),
        "mape": mean_absolute_percentage_error(actual[watched], predicted[watched]),
        "smape": float((gap / ((predicted + actual) / 2))[any_of_both].mean()),
        "pinball@0.5": float(gap.mean()) / 2,
        "pinball@0.9": mean_pinball_loss(actual, 2 * predicted, alpha=0.9),
    }
    assert found.metrics == pytest.approx(expected)
    assert found.counts == {
        "rows": 500, "mape_dropped": int((~watched).sum()), "smape_dropped": int((~any_of_both).sum()),
    }  # fmt: skip
    assert 0 < found.counts["smape_dropped"] < found.counts["mape_dropped"]
    assert (mae(predicted, actual), rmse(predicted, actual)) == (found.metrics["mae"], found.metrics["rmse"])
    assert mape(predicted, actual) == (found.metrics["mape"], found.counts["mape_dropped"])
    assert smape(predicted, actual) == (found.metrics["smape"], found.counts["smape_dropped"])


def test_the_pinball_loss_is_least_at_its_quantile():
    actual = torch.arange(101.0)
    losses = [pinball(torch.full((101,), guess), actual, 0.8) for guess in range(101)]
    assert int(np.argmin(losses)) == 80


def test_watch_time_leaves_out_and_refuses():
    nothing = watch_time(torch.ones(3), torch.zeros(3))
    assert set(nothing.metrics) == {"mae", "rmse", "smape"}
    assert nothing.counts == {"rows": 3, "mape_dropped": 3, "smape_dropped": 0}
    with pytest.raises(ValueError, match="a quantile must lie between 0 and 1, got 50"):
        watch_time(torch.ones(3), torch.ones(3), {50: torch.ones(3)})
    with pytest.raises(ValueError, match=r"shapes predicted \(2,\), actual \(3,\)"):
        watch_time(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="actual must be finite, got nan at row 1"):
        mae(torch.ones(2), torch.tensor([1, math.nan]))
    with pytest.raises(ValueError, match="predicted and actual have no rows"):
        rmse(torch.empty(0), torch.empty(0))
