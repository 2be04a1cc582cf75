"""Effects are those of Welch, of least squares and of simulation; verdicts wait for correction."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from scipy import stats

from recsys.evaluation.estimates import benjamini_hochberg, holm
from recsys.online import effects
from recsys.online.abtest import BETTER, NO_TRUST, NOT_TOLD, WORSE, Analysis, analyse
from recsys.online.measures import per_user

CTR = ("clicks", "impressions")
BEFORE = ("clicks_before", "impressions_before")


def users(seed: int = 0, count: int = 600, lift: float = 0.0, treatments: int = 1) -> pl.DataFrame:
    """Users of an experiment: a log-normal activity, clicks at a rate of their own, both as before it."""
    generator = np.random.default_rng(seed)
    group = generator.integers(0, treatments + 1, count)
    activity = 8 * np.exp(0.8 * generator.normal(size=count))
    rate = 0.1 * np.exp(0.4 * generator.normal(size=count))
    shown, shown_before = generator.poisson(activity) + 1, generator.poisson(activity)
    names = np.array(["control", *(f"new_{t}" for t in range(1, treatments + 1))])
    return pl.DataFrame(
        {
            "user_id": generator.permutation(count),
            "group": names[group],
            "impressions": shown,
            "clicks": generator.binomial(shown, np.minimum(rate * (1 + lift * (group > 0)), 1)),
            "seconds": generator.gamma(2.0, 30.0, count) * (1 + lift * (group > 0)),
            "impressions_before": shown_before,
            "clicks_before": generator.binomial(shown_before, np.minimum(rate, 1)),
        }
    )


def row(found: Analysis, metric: str = "m", method: str = "raw", treatment: str = "new_1") -> dict[str, float]:
    return found.effects.row(by_predicate=_where(metric, method, treatment), named=True)


def _where(metric: str, method: str, treatment: str) -> pl.Expr:
    return (pl.col("metric") == metric) & (pl.col("method") == method) & (pl.col("treatment") == treatment)


def of(frame: pl.DataFrame, name: str, group: str) -> np.ndarray:
    return frame.filter(pl.col("group") == group)[name].cast(pl.Float64).to_numpy()


def test_a_mean_is_compared_by_welch() -> None:
    frame = users(lift=0.1)
    found = row(analyse(frame, {"m": "seconds"}))
    known = stats.ttest_ind(of(frame, "seconds", "new_1"), of(frame, "seconds", "control"), equal_var=False)
    low, high = known.confidence_interval(0.95)
    assert (found["p"], found["low"], found["high"]) == pytest.approx((known.pvalue, low, high))
    assert found["difference"] == pytest.approx(of(frame, "seconds", "new_1").mean() - found["control_value"])


def test_a_ratio_is_compared_by_the_shares_of_its_users() -> None:
    frame = users(1, lift=0.2)
    share = {}
    for group in ("control", "new_1"):
        above, below = of(frame, "clicks", group), of(frame, "impressions", group)
        ratio = above.sum() / below.sum()
        share[group] = ratio + (above - ratio * below) / below.mean()
    known = stats.ttest_ind(share["new_1"], share["control"], equal_var=False)
    found = row(analyse(frame, {"m": CTR}))
    assert (found["p"], found["difference"]) == pytest.approx(
        (known.pvalue, share["new_1"].mean() - share["control"].mean())
    )
    assert (found["low"], found["high"]) == pytest.approx(tuple(known.confidence_interval(0.95)))


def test_the_deviation_of_a_ratio_is_that_of_repeated_experiments() -> None:
    """200 draws of users anew: their spread is what one of them says it is, about half wider by clicks as trials."""
    found = [row(analyse(users(seed, 2000), {"m": CTR})) for seed in range(100, 300)]
    spread = np.std([one["difference"] for one in found], ddof=1)
    said = np.mean([(one["high"] - one["low"]) / 2 / 1.96 for one in found])
    assert said == pytest.approx(spread, rel=3 / math.sqrt(2 * 200))
    shown = 8 * math.exp(0.32) + 1
    naive = math.sqrt(2 * 0.1 * 0.9 / (1000 * shown))
    assert said > 1.1 * naive


@pytest.mark.parametrize("covariates", [["clicks_before"], ["clicks_before", "impressions_before"]])
def test_cuped_is_least_squares_on_treatment_and_covariates(covariates: list[str]) -> None:
    frame = users(2, 4000, lift=0.3)
    found = row(analyse(frame, {"m": "clicks"}, covariates={"m": covariates}), method="cuped")
    y = frame["clicks"].cast(pl.Float64).to_numpy()
    treated = (frame["group"] == "new_1").cast(pl.Float64).to_numpy()
    design = np.column_stack([np.ones(len(y)), treated, *(frame[name].to_numpy() for name in covariates)])
    coefficient, *_ = np.linalg.lstsq(design, y, rcond=None)
    assert found["difference"] == pytest.approx(coefficient[1])
    # White's variance, which holds as Welch's does where groups vary differently (HC1 here, HC2 to first order there).
    residual, bread = y - design @ coefficient, np.linalg.inv(design.T @ design)
    white = bread @ (design.T * residual**2) @ design @ bread * len(y) / (len(y) - design.shape[1])
    half = (found["high"] - found["low"]) / 2
    assert half / stats.t.ppf(0.975, len(y)) == pytest.approx(math.sqrt(white[1, 1]), rel=0.01)


def test_cuped_of_a_ratio_is_least_squares_of_shares_on_shares() -> None:
    frame = users(3, 500, lift=0.3)
    found = analyse(frame, {"m": CTR}, covariates={"m": [BEFORE]})
    y, x = np.zeros(frame.height), np.zeros(frame.height)
    before = {name: frame[name].cast(pl.Float64).to_numpy() for name in BEFORE}
    ratio = before["clicks_before"].sum() / before["impressions_before"].sum()
    x = (before["clicks_before"] - ratio * before["impressions_before"]) / before["impressions_before"].mean()
    for group in ("control", "new_1"):
        rows = (frame["group"] == group).to_numpy()
        above, below = of(frame, "clicks", group), of(frame, "impressions", group)
        y[rows] = above.sum() / below.sum() + (above - above.sum() / below.sum() * below) / below.mean()
    design = np.column_stack([np.ones(len(y)), (frame["group"] == "new_1").to_numpy(), x])
    coefficient, *_ = np.linalg.lstsq(design, y, rcond=None)
    adjusted = row(found, method="cuped")
    assert adjusted["difference"] == pytest.approx(coefficient[1])
    residual = y - design @ coefficient
    by_group = [residual[(frame["group"] == group).to_numpy()] for group in ("control", "new_1")]
    half = stats.t.ppf(0.975, frame.height) * math.sqrt(sum(r.var(ddof=1) / len(r) for r in by_group))
    assert (adjusted["high"] - adjusted["low"]) / 2 == pytest.approx(half, rel=0.005)
    assert adjusted["variance_left"] < 0.95
    assert row(found)["variance_left"] == 1


def test_cuped_takes_away_what_came_before_by_chance() -> None:
    """Of repeated A/A experiments, the adjusted differences spread as they say, and less than raw."""
    found = [analyse(users(s, 500), {"m": "clicks"}, covariates={"m": ["clicks_before"]}) for s in range(200)]
    raw, adjusted = ([row(one, method=m) for one in found] for m in ("raw", "cuped"))
    spread = [np.std([one["difference"] for one in rows]) for rows in (raw, adjusted)]
    said = np.sqrt(np.mean([one["variance_left"] for one in adjusted]))
    assert spread[1] / spread[0] == pytest.approx(said, rel=0.1)
    assert said < 0.85


def test_a_covariate_that_says_nothing_new_changes_nothing() -> None:
    frame = users(4).with_columns(
        constant=pl.lit(0.1), twice=2e6 * pl.col("clicks_before"), same=pl.col("impressions_before")
    )
    alone = row(analyse(frame, {"m": "clicks"}, covariates={"m": ["clicks_before"]}), method="cuped")
    more = ["clicks_before", "constant", "twice", ("same", "impressions_before")]
    found = row(analyse(frame, {"m": "clicks"}, covariates={"m": more}), method="cuped")
    assert found["difference"] == pytest.approx(alone["difference"], rel=1e-6)
    raw = analyse(frame, {"m": "clicks"}, covariates={"m": ["constant"]})
    assert row(raw, method="cuped")["difference"] == pytest.approx(row(raw)["difference"])


def fieller(control: np.ndarray, treatment: np.ndarray) -> list[float]:
    """Where the t test of treatment - ratio * control turns, less 1, by search."""
    t, c = treatment.mean(), control.mean()
    of_t, of_c = treatment.var(ddof=1) / len(treatment), control.var(ddof=1) / len(control)
    freedom = (of_t + of_c) ** 2 / (of_t**2 / (len(treatment) - 1) + of_c**2 / (len(control) - 1))
    ratio = np.linspace(0.5, 2.0, 300_001)
    kept = np.abs(t - ratio * c) <= stats.t.ppf(0.975, freedom) * np.sqrt(of_t + ratio**2 * of_c)
    return [ratio[kept].min() - 1, ratio[kept].max() - 1]


def test_the_relative_interval_is_fiellers() -> None:
    frame = users(5, 300, lift=0.15)
    found = row(analyse(frame, {"m": "seconds"}))
    known = fieller(of(frame, "seconds", "control"), of(frame, "seconds", "new_1"))
    assert [found["relative_low"], found["relative_high"]] == pytest.approx(known, abs=1e-5)
    assert found["relative"] == pytest.approx(found["difference"] / found["control_value"])


def test_relative_and_absolute_intervals_agree_on_zero() -> None:
    told = 0
    for seed in range(60):
        found = row(analyse(users(seed, 100, lift=0.2), {"m": "seconds"}))
        assert (found["relative_low"] > 0) == (found["low"] > 0) == (found["p"] < 0.05 and found["difference"] > 0)
        told += found["low"] > 0
    assert 5 < told < 55


def test_a_control_about_zero_has_no_relative_interval_and_one_below_it_the_mirrored() -> None:
    frame = users(6, lift=0.2)
    centre = of(frame, "seconds", "control").mean()
    found = row(analyse(frame.with_columns(pl.col("seconds") - centre), {"m": "seconds"}))
    assert (found["relative_low"], found["relative_high"]) == (-math.inf, math.inf)
    ours = row(analyse(frame, {"m": "seconds"}))
    mirrored = row(analyse(frame.with_columns(-pl.col("seconds")), {"m": "seconds"}))
    assert mirrored["relative"] == pytest.approx(-ours["relative"])
    assert mirrored["relative_low"] == pytest.approx(-ours["relative_high"])
    assert mirrored["relative_high"] == pytest.approx(-ours["relative_low"])


def test_cuped_relative_intervals_hold_the_truth() -> None:
    held = 0
    for seed in range(300):
        found = analyse(users(seed, 500, lift=0.2), {"m": CTR}, covariates={"m": [BEFORE]})
        one = row(found, method="cuped")
        held += one["relative_low"] <= 0.2 <= one["relative_high"]
    assert held / 300 == pytest.approx(0.95, abs=3 * math.sqrt(0.05 * 0.95 / 300))


def test_the_variance_of_cuped_is_that_of_least_squares_where_groups_are_of_one_size() -> None:
    """Of 20 users and 3 covariates, where degrees of freedom tell."""
    columns_CU = np.random.default_rng(22).normal(size=(4, 20))
    sides = [effects.moments(columns_CU[:, part]) for part in (slice(0, 10), slice(10, 20))]
    found = effects.effect(*sides, (0,), [(1,), (2,), (3,)])
    design = np.column_stack([np.ones(20), np.arange(20) >= 10, *columns_CU[1:]])
    coefficient, squares, *_ = np.linalg.lstsq(design, columns_CU[0], rcond=None)
    assert float(found.difference) == pytest.approx(coefficient[1])
    assert float(found.variance) == pytest.approx(float(squares[0]) / (20 - 5) * (1 / 10 + 1 / 10))


def test_the_relative_variance_of_cuped_is_that_of_repeated_experiments() -> None:
    """A doubled mean and a covariate that foretells most: a fifth of the variance is what both groups share."""
    generator, tests, count = np.random.default_rng(23), 4000, 60
    before = generator.normal(5, 1, (2, tests, count))
    after = before + 0.5 * generator.normal(size=before.shape) + np.array([0, 5])[:, None, None]
    sides = [effects.moments([after[g], before[g]]) for g in range(2)]
    found = effects.effect(*sides, (0,), [(1,)])
    spread = effects.relative(found).std()
    assert np.sqrt(effects.relative_variance(found).mean()) == pytest.approx(spread, rel=3 / math.sqrt(2 * tests))
    assert (found.variance_shared / found.control**2 / effects.relative_variance(found)).mean() > 0.15
    low, high = effects.relative_interval(found)
    assert ((low <= 1) & (high >= 1)).mean() == pytest.approx(0.95, abs=3 * math.sqrt(0.05 * 0.95 / tests))


def everything(frame: pl.DataFrame, **arguments: object) -> pl.DataFrame:
    metrics = {"seconds": "seconds", "ctr": CTR}
    return analyse(frame, metrics, covariates={"ctr": [BEFORE]}, **arguments).effects  # type: ignore[arg-type]


def test_nothing_depends_on_the_order_of_rows() -> None:
    frame = users(7)
    assert_close(everything(frame), everything(frame.sample(fraction=1, shuffle=True, seed=1)))


def test_swapping_groups_turns_the_sign() -> None:
    frame = users(8)
    a, b = everything(frame), everything(frame, control="new_1")
    for name, other in (("difference", "difference"), ("low", "high"), ("high", "low")):
        assert a[name].to_numpy() == pytest.approx(-b[other].to_numpy())
    assert a["p"].to_numpy() == pytest.approx(b["p"].to_numpy())


def test_the_unit_of_a_metric_does_not_matter() -> None:
    frame = users(9)
    a, b = everything(frame), everything(frame.with_columns(pl.col("seconds", "clicks", "clicks_before") / 1000))
    assert b["difference"].to_numpy() == pytest.approx(a["difference"].to_numpy() / 1000)
    for name in ("p", "relative_low", "relative_high"):
        assert a[name].to_numpy() == pytest.approx(b[name].to_numpy())


def test_a_far_mean_costs_no_digits() -> None:
    frame = users(10)
    a = row(analyse(frame, {"m": "seconds"}))
    b = row(analyse(frame.with_columns(pl.col("seconds") + 1e9), {"m": "seconds"}))
    assert (b["low"], b["high"]) == pytest.approx((a["low"], a["high"]), abs=1e-4)


def assert_close(a: pl.DataFrame, b: pl.DataFrame) -> None:
    for name in a.columns:
        if a[name].dtype == pl.Float64:
            assert a[name].fill_null(-1).to_numpy() == pytest.approx(b[name].fill_null(-1).to_numpy()), name
        else:
            assert a[name].to_list() == b[name].to_list(), name


def test_running_moments_are_those_of_each_part() -> None:
    values_CBU = np.random.default_rng(11).normal(3, 1, (3, 4, 50))
    found = effects.moments(values_CBU, [7, 8, 50])
    for number, end in enumerate((7, 8, 50)):
        for b in range(4):
            assert found.mean[b, number] == pytest.approx(values_CBU[:, b, :end].mean(-1))
            assert found.covariance[b, number] == pytest.approx(np.cov(values_CBU[:, b, :end]))
    whole = effects.moments(values_CBU)
    assert whole.covariance == pytest.approx(found.covariance[:, -1])
    assert whole.users.tolist() == [50] * 4


@pytest.mark.parametrize("correction", ["none", "bonferroni", "holm", "benjamini_hochberg"])
def test_verdicts_wait_for_the_correction_of_all_that_decide(correction: str) -> None:
    frame = users(12, 900, treatments=3).with_columns(pl.col("seconds") + 5 * (pl.col("group") == "new_2"))
    metrics = {"seconds": "seconds", "ctr": CTR, "clicks": "clicks"}
    found = analyse(frame, metrics, covariates={"ctr": [BEFORE]}, correction=correction).effects
    deciding = found.filter(pl.col("verdict").is_not_null())
    assert deciding.select("metric", "method").unique().sort("metric").rows() == [
        ("clicks", "raw"),
        ("ctr", "cuped"),
        ("seconds", "raw"),
    ]
    assert deciding.height == 9
    p = deciding["p"].to_list()
    expected = {
        "none": p,
        "bonferroni": [min(9 * one, 1.0) for one in p],
        "holm": holm(p),
        "benjamini_hochberg": benjamini_hochberg(p),
    }[correction]
    assert deciding["p_corrected"].to_list() == pytest.approx(expected)
    told = [one < 0.05 for one in expected]
    assert [one != NOT_TOLD for one in deciding["verdict"]] == told
    assert found.filter(pl.col("verdict").is_null())["p_corrected"].null_count() == found.height - 9


def test_correction_takes_back_what_chance_alone_found() -> None:
    """Of 20 metrics of noise one is below 5%, and no verdict follows."""
    generator = np.random.default_rng(13)
    noise = {f"m{n}": generator.normal(size=400) for n in range(20)}
    frame = pl.DataFrame({"user_id": range(400), "group": ["control", "new_1"] * 200, **noise})
    found = analyse(frame, {name: name for name in noise}).effects
    assert found["p"].min() < 0.05
    assert found["verdict"].unique().to_list() == [NOT_TOLD]


def test_what_is_better_depends_on_the_metric() -> None:
    frame = users(14, 2000).with_columns(pl.col("seconds") + 20 * (pl.col("group") == "new_1"))
    assert row(analyse(frame, {"m": "seconds"}))["verdict"] == BETTER
    assert row(analyse(frame, {"m": "seconds"}, lower_is_better=["m"]))["verdict"] == WORSE
    assert row(analyse(frame, {"m": "seconds"}, control="new_1"), treatment="control")["verdict"] == WORSE


def test_groups_of_other_sizes_than_planned_take_all_trust() -> None:
    frame = users(15, 4000).with_columns(pl.col("seconds") + 20 * (pl.col("group") == "new_1"))
    shares = {"control": 0.5, "new_1": 0.5}
    fine = analyse(frame, {"m": "seconds"}, shares=shares)
    assert fine.trusted
    assert "as planned" in repr(fine)
    lost = frame.filter((pl.col("group") == "control") | (pl.col("seconds") > 45))
    found = analyse(lost, {"m": "seconds"}, shares=shares)
    assert not found.trusted
    assert row(found)["verdict"] == NO_TRUST
    assert "must not be trusted" in repr(found)
    assert "must not be trusted" in found._repr_html_()
    assert analyse(lost, {"m": "seconds"}, shares={"control": 0.5, "new_1": 0.3}).mismatch.counts == found.counts


def test_what_does_not_vary_has_no_p() -> None:
    frame = users(16).with_columns(constant=pl.lit(0.1))
    found = row(analyse(frame, {"m": "constant"}))
    assert (found["p"], found["low"], found["relative_low"]) == (None, None, None)
    assert found["difference"] == pytest.approx(0, abs=1e-15)
    assert found["verdict"] == NOT_TOLD


def test_users_without_a_group_take_no_part() -> None:
    frame = users(17)
    out = frame.with_columns(group=pl.lit(None, pl.String), user_id=pl.col("user_id") + 10_000)
    assert_close(everything(pl.concat([frame, out])), everything(frame))


def test_a_log_is_summed_by_user() -> None:
    log = pl.DataFrame(
        {
            "user_id": [3, 1, 3, 1, 1],
            "label": [1, 0, 1, 0, 1],
            "watch_seconds": [2.0, 0.0, 5.0, 0.0, 1.5],
            "country": ["FR", "US", "FR", "US", "US"],
        }
    )
    found = per_user(log, ["label", "watch_seconds"], keep=["country"], rows="impressions")
    assert found.to_dict(as_series=False) == {
        "user_id": [1, 3],
        "label": [1, 2],
        "watch_seconds": [1.5, 7.0],
        "country": ["US", "FR"],
        "impressions": [3, 2],
    }
    everyone = pl.DataFrame({"user_id": [1, 2, 3], "group": ["control", "new_1", "new_1"]})
    found = per_user(log, ["label"], rows="impressions", users=everyone)
    assert found.rows() == [(1, "control", 1, 3), (2, "new_1", 0, 0), (3, "new_1", 2, 2)]
    with pytest.raises(ValueError, match="user 1 has more than one country"):
        per_user(log.with_columns(country=pl.Series(["FR", "US", "FR", "US", "DE"])), [], keep=["country"])
    with pytest.raises(ValueError, match="label is in the log and in users"):
        per_user(log, ["label"], users=everyone.with_columns(label=1))


def broken(**changes: pl.Expr) -> pl.DataFrame:
    return users(18, 60).sort("user_id").with_columns(**changes)


FIRST = pl.int_range(pl.len()) == 0
WRONG = [
    (broken(clicks=pl.when(FIRST).then(float("nan")).otherwise(1.0)), {}, "column clicks is nan in row 0"),
    (broken(clicks=pl.when(~FIRST).then(1.0)), {}, "column clicks is null in row 0"),
    (broken(clicks=pl.lit(math.inf)), {}, "column clicks is inf in row 0"),
    (broken(clicks=pl.lit("a")), {}, "column clicks is String"),
    (broken(impressions=pl.lit(0)), {}, "denominator impressions is 0 for all users: "),
    (broken(impressions=pl.when(pl.col("group") == "control").then(1).otherwise(0)), {}, "for all users of new_1"),
    (broken(impressions=-pl.col("impressions")), {}, "denominator impressions is below 0 in row"),
    (broken(group=pl.lit("control")), {}, "group is control for everyone"),
    (broken(group=pl.lit(None, pl.String)), {}, "group has no control: there is none to choose"),
    (broken(group=pl.when(FIRST).then(pl.lit("b")).otherwise(pl.lit("control"))), {}, "group b has one user"),
    (broken(user_id=pl.when(pl.int_range(pl.len()) < 2).then(-1).otherwise("user_id")), {}, "user -1 "),
    (broken(user_id=pl.when(~FIRST).then("user_id")), {}, "user_id is null in row 0"),
    (users(18, 60).drop("clicks"), {}, "no column clicks: did you mean clicks_before?"),
    (broken(), {"group": "grup"}, "no column grup: did you mean group?"),
    (broken(), {"control": "contrl"}, "group has no contrl: did you mean control?"),
    (broken(), {"correction": "homl"}, "correction=homl: did you mean holm?"),
    (broken(), {"confidence": 95}, "confidence must lie between 0 and 1"),
    (broken(), {"covariates": {"crt": ["clicks_before"]}}, "covariates name no metric by crt: did you mean ctr?"),
    (broken(), {"covariates": {"ctr": BEFORE}}, "give a list of them"),
    (broken(), {"lower_is_better": "ctr"}, "give a list of metrics"),
    (broken(), {"lower_is_better": ["crt"]}, "lower_is_better name no metric by crt: did you mean ctr?"),
    (broken(), {"shares": {"control": 0.5, "new_1": 0.6}}, "shares add up to 1.1: expected at most 1"),
    (broken(), {"shares": {"control": 0.5, "new_1": 0.2, "b": 0.2}}, "group has no user in b"),
    (broken(), {"shares": {"control": 1.0}}, "group new_1 is in counts alone"),
]


@pytest.mark.parametrize(("frame", "arguments", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_what_does_not_fit_is_refused_in_one_line(
    frame: pl.DataFrame, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match="(?s)" + message.replace("?", r"\?")) as refused:
        analyse(frame, {"ctr": CTR}, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_a_user_in_two_groups_is_not_one_who_has_two_rows() -> None:
    frame = users(19, 60)
    with pytest.raises(ValueError, match=r"user \d+ has 2 rows: sum a log's rows"):
        analyse(pl.concat([frame, frame.head(1)]), {"ctr": CTR})
    other = frame.head(1).with_columns(group=pl.lit("b"))
    with pytest.raises(ValueError, match=r"user \d+ is in b and (control|new_1): leave out"):
        analyse(pl.concat([frame, other]), {"ctr": CTR})


def test_too_many_covariates_for_the_users_are_refused() -> None:
    frame = users(20, 6).with_columns(group=pl.Series(["control", "new_1"] * 3))
    names = [f"x{n}" for n in range(4)]
    frame = frame.with_columns(**{name: pl.lit(float(n)) for n, name in enumerate(names)})
    with pytest.raises(ValueError, match="6 users are too few for 4 covariates"):
        analyse(frame, {"m": "seconds"}, covariates={"m": names})


def test_a_wider_confidence_holds_the_narrower() -> None:
    rows = [row(analyse(users(21), {"m": CTR}, confidence=c)) for c in (0.8, 0.95, 0.999)]
    for narrow, wide in pairwise(rows):
        assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]
        assert wide["relative_low"] < narrow["relative_low"] < narrow["relative_high"] < wide["relative_high"]
