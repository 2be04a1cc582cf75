"""Off-policy estimates: exact over a log of all slates as often as they are likely, right as often as said."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from scipy import stats

from recsys.online import offpolicy
from recsys.online.offpolicy import effective_sample, evaluate_policy

LOGGING = {"ann": (3, 3, 2, 2), "bob": (1, 4, 4, 1)}  # of ten
TARGET = {"ann": (6, 2, 1, 1), "bob": (1, 1, 6, 2)}
ATTRACTION = {"ann": (0.9, 0.3, 0.2, 0.1), "bob": (0.1, 0.4, 0.8, 0.2)}
EXAMINATION = (1.0, 0.5)
Slates = dict[tuple[int, ...], Fraction]


def slates(tenths: tuple[int, ...]) -> Slates:
    """Probabilities of two different items drawn one after the other."""
    p = [Fraction(t, 10) for t in tenths]
    return {(a, b): p[a] * p[b] / (1 - p[a]) for a, b in itertools.permutations(range(len(p)), 2)}


def given(tenths: tuple[int, ...], slate: tuple[int, ...], place: int) -> float:
    """P(the item of the place | the rows above)."""
    return tenths[slate[place]] / (10 - sum(tenths[a] for a in slate[:place]))


def at(tenths: tuple[int, ...], item: int, place: int) -> float:
    return float(sum(p for slate, p in slates(tenths).items() if slate[place] == item))


def seen(tenths: tuple[int, ...], item: int) -> float:
    return sum(EXAMINATION[place] * at(tenths, item, place) for place in range(2))


def reward(user: str, item: int, place: int) -> float:
    return EXAMINATION[place] * ATTRACTION[user][item]


def model(user: str, item: int, place: int) -> float:
    """Wrong on purpose."""
    return EXAMINATION[place] * (0.2 + 0.1 * item + 0.3 * (user == "bob"))


def whole_log(target: dict[str, tuple[int, ...]] = TARGET) -> pl.DataFrame:
    """Every slate of two equally frequent users as often as it is likely, with its expected reward."""
    chances = [(user, slate, p) for user, tenths in LOGGING.items() for slate, p in slates(tenths).items()]
    size = math.lcm(*(p.denominator for _, _, p in chances))
    table = []
    for number, (user, slate, p) in enumerate(chances):
        logging, other = LOGGING[user], target[user]
        for place, item in enumerate(slate):
            left = [a for a in range(4) if a not in slate[:place]]
            table.append(
                {
                    "user_id": user, "slate": number, "position": place, "label": reward(user, item, place),
                    "examination": EXAMINATION[place], "times": list(range(int(p * size))),
                    "propensity": given(logging, slate, place), "target": given(other, slate, place),
                    "at": at(logging, item, place), "at_target": at(other, item, place),
                    "seen": seen(logging, item), "seen_target": seen(other, item), "q": model(user, item, place),
                    "q_target": sum(given(other, (*slate[:place], a), place) * model(user, a, place) for a in left),
                    "q_seen": sum(seen(other, a) * model(user, a, 0) for a in range(4)) / 2,
                }
            )  # fmt: skip
    return pl.DataFrame(table).explode("times").with_columns(visit=pl.col("slate") * size + pl.col("times"))


def value_of(policy: dict[str, tuple[int, ...]]) -> float:
    """Clicks a visit, of two equally frequent users."""
    total = 0.0
    for user, tenths in policy.items():
        for slate, p in slates(tenths).items():
            total += float(p) * sum(reward(user, item, place) for place, item in enumerate(slate)) / 2
    return total


def one_step_value() -> float:
    """Each row by the target, below rows by the logging policy."""
    total = 0.0
    for user in LOGGING:
        total += sum(TARGET[user][a] / 10 * reward(user, a, 0) for a in range(4)) / 2
        for first in range(4):
            for second in set(range(4)) - {first}:
                chance = LOGGING[user][first] / 10 * given(TARGET[user], (first, second), 1)
                total += chance * reward(user, second, 1) / 2
    return total


def found(table: pl.DataFrame, column: str = "value") -> dict[str, float]:
    return dict(zip(table["estimator"], table[column], strict=True))


COLUMNS = {"q": "q", "q_target": "q_target", "visit": "visit", "position": "position"}


def test_over_all_slates_every_estimator_gives_the_value_of_its_question_exactly() -> None:
    rows = whole_log()
    assert (rows["user_id"] == "ann").mean() == 0.5
    table = evaluate_policy(
        rows, **COLUMNS, lookback=0.0, item_position=("at", "at_target"), position_based=("seen", "seen_target")
    )
    values = found(table)
    truth = value_of(TARGET)
    assert values["naive"] == pytest.approx(value_of(LOGGING), rel=1e-12)
    assert {name: values[name] for name in ("rips", "item_position", "position_based")} == pytest.approx(
        dict.fromkeys(("rips", "item_position", "position_based"), truth), rel=1e-12
    )
    below = one_step_value()
    assert below > truth * 1.01  # the target's favourites are still there: counted too often
    for name in ("ips", "snips", "dr"):
        assert values[name] == pytest.approx(below, rel=1e-12), name


def test_by_position_based_probabilities_ips_snips_and_dr_give_the_value_of_the_target() -> None:
    rows = whole_log()
    table = evaluate_policy(
        rows,
        propensity="seen",
        target="seen_target",
        q="q",
        q_target="q_seen",
        examination="examination",
        visit="visit",
    )
    for name in ("ips", "snips", "dr"):
        assert found(table)[name] == pytest.approx(value_of(TARGET), rel=1e-12), name
    assert set(table["verdict"]) == {"the logging policy's own value", "ok"}
    # Without the examination the weights do not average 1, and what they are divided by is wrong.
    unlooked = evaluate_policy(rows, propensity="seen", target="seen_target", visit="visit")
    assert found(unlooked)["snips"] != pytest.approx(value_of(TARGET), rel=1e-3)


def test_the_logging_policy_as_its_own_target_has_the_logged_mean() -> None:
    rows = whole_log(LOGGING)
    table = evaluate_policy(
        rows, **COLUMNS, cluster="visit", item_position=("at", "at_target"), position_based=("seen", "seen_target")
    )
    assert table.height == 8
    assert found(table) == pytest.approx(dict.fromkeys(found(table), value_of(LOGGING)), rel=1e-12)
    assert found(table, "share") == pytest.approx(dict.fromkeys(found(table), 1.0))


def drawn(seed: int, users: int = 40, visits: int = 3, depth: int = 4) -> pl.DataFrame:
    """A log of no meaning, with all columns."""
    generator, rows = np.random.default_rng(seed), []
    for user in range(users):
        for visit in range(generator.integers(1, visits + 1)):
            for position in range(generator.integers(1, depth + 1)):
                propensity, target, q = generator.uniform(0.05, 1, 3)
                rows.append(
                    {
                        "user_id": f"u{user}", "visit": visit, "position": 3 * position, "propensity": propensity,
                        "target": target, "label": float(generator.random() < 0.4), "q": q,
                        "q_target": generator.random(), "examination": 1 / (1 + position),
                        "at": generator.uniform(0.1, 1), "at_target": generator.random(),
                        "seen": generator.uniform(0.1, 1), "seen_target": generator.random(),
                    }
                )  # fmt: skip
    return pl.DataFrame(rows)


Estimator = Callable[[list[dict], dict[str, float]], float]


def naive_estimators(rows: list[dict], threshold: float) -> dict[str, Callable[[dict[str, float]], float]]:
    """Values with users counted by weights, in plain loops."""

    def visits(by: dict[str, float]) -> float:
        return sum(by[user] for user, _ in {(row["user_id"], row["visit"]) for row in rows})

    def mean(of: Callable[[dict], float]) -> Callable[[dict[str, float]], float]:
        return lambda by: sum(by[row["user_id"]] * of(row) for row in rows) / visits(by)

    def ratio(row: dict) -> float:
        return row["target"] / row["propensity"]

    def above(row: dict) -> list[dict]:
        same = [r for r in rows if (r["user_id"], r["visit"]) == (row["user_id"], row["visit"])]
        return [r for r in same if r["position"] < row["position"]]

    product = {id(row): ratio(row) * math.prod(map(ratio, above(row))) for row in rows}

    def normalised(by: dict[str, float], part: list[dict], weight: Callable[[dict], float]) -> float:
        looked = sum(by[r["user_id"]] * r["examination"] for r in part)
        hits = sum(by[r["user_id"]] * weight(r) * r["label"] for r in part)
        return hits / sum(by[r["user_id"]] * weight(r) * r["examination"] for r in part) * looked / visits(by)

    places = [[row for row in rows if row["position"] == place] for place in {row["position"] for row in rows}]
    return {
        "naive": mean(lambda row: row["label"]),
        "ips": mean(lambda row: ratio(row) * row["label"]),
        "snips": lambda by: normalised(by, rows, ratio),
        "dr": mean(lambda row: row["q_target"] + ratio(row) * (row["label"] - row["q"])),
        "switch_dr": mean(
            lambda row: row["q_target"] + (ratio(row) if ratio(row) <= threshold else 0) * (row["label"] - row["q"])
        ),
        "rips": lambda by: sum(normalised(by, part, lambda row: product[id(row)]) for part in places),
        "item_position": mean(lambda row: row["at_target"] / row["at"] * row["label"]),
        "position_based": mean(lambda row: row["seen_target"] / row["seen"] * row["label"]),
    }


ALL = COLUMNS | {
    "examination": "examination", "cluster": "user_id", "item_position": ("at", "at_target"),
    "position_based": ("seen", "seen_target"), "lookback": 0.0,
}  # fmt: skip


def test_values_and_intervals_are_those_of_plain_loops_and_of_the_jackknife() -> None:
    """What a cluster brings is the derivative of the value by the cluster's weight, here by differences."""
    rows, step = drawn(0), 1e-5
    table = evaluate_policy(rows, **ALL, threshold=2.0, confidence=0.9)
    users = sorted(set(rows["user_id"]))
    once = dict.fromkeys(users, 1.0)
    naive = naive_estimators(rows.to_dicts(), 2.0)
    assert list(naive) == table["estimator"].to_list()
    for name, value, low, high in table.select("estimator", "value", "low", "high").iter_rows():
        of = naive[name]
        assert value == pytest.approx(of(once), rel=1e-12), name
        shares = [(of(once | {user: 1 + step}) - of(once | {user: 1 - step})) / (2 * step) for user in users]
        assert sum(shares) == pytest.approx(0, abs=1e-8)
        error = math.sqrt(sum(s * s for s in shares) * len(users) / (len(users) - 1))
        expected = stats.t.interval(0.9, len(users) - 1, value, error)
        assert (low, high) == pytest.approx(expected, rel=1e-6), name


def test_order_of_rows_and_names_of_visits_do_not_matter() -> None:
    rows = drawn(1)
    first = evaluate_policy(rows, **ALL)
    shuffled = rows.sample(fraction=1.0, shuffle=True, seed=3)
    apart = shuffled.with_columns(visit=pl.col("user_id") + pl.col("visit").cast(pl.String), user_id=pl.col("user_id"))
    for other in (evaluate_policy(shuffled, **ALL), evaluate_policy(apart, **ALL)):
        assert other["verdict"].to_list() == first["verdict"].to_list()
        for column in ("value", "low", "high", "effective_sample"):
            assert other[column].to_numpy() == pytest.approx(first[column].to_numpy(), rel=1e-10)


def test_scaled_targets_scale_ips_leave_snips_and_are_called_doubtful() -> None:
    rows = whole_log()
    table = evaluate_policy(rows, visit="visit", cluster="visit")
    scaled = evaluate_policy(rows.with_columns(target=pl.col("target") / 2), visit="visit", cluster="visit")
    assert found(scaled)["ips"] == pytest.approx(found(table)["ips"] / 2)
    assert found(scaled)["snips"] == pytest.approx(found(table)["snips"])
    assert scaled["share"].to_list() == pytest.approx(table["share"].to_list())
    assert set(found(table, "verdict").values()) == {"the logging policy's own value", "ok"}
    assert "weights average 0.5, not 1" in found(scaled, "verdict")["ips"]


def test_the_true_model_leaves_dr_nothing_to_vary() -> None:
    """One context, rewards without noise: dr has the value and no width, ips does not."""
    generator = np.random.default_rng(2)
    logging, target, rewards = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7]), np.array([1.0, 3.0, 2.0])
    action = generator.choice(3, 50, p=logging)
    rows = pl.DataFrame(
        {
            "propensity": logging[action], "target": target[action], "label": rewards[action],
            "q": rewards[action], "q_target": np.full(50, target @ rewards),
        }
    )  # fmt: skip
    table = evaluate_policy(rows, q="q", q_target="q_target")
    dr = table.row(by_predicate=pl.col("estimator") == "dr", named=True)
    assert (dr["value"], dr["low"], dr["high"]) == pytest.approx((target @ rewards,) * 3, rel=1e-12)
    ips = table.row(by_predicate=pl.col("estimator") == "ips", named=True)
    assert ips["high"] - ips["low"] > 0.1


def toy(generator: np.random.Generator, users: int) -> tuple[pl.DataFrame, float]:
    """Users with a taste of their own, twelve rows each, and the target's value."""
    logging, target = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    chance_UA = 0.1 + 0.6 * generator.beta(0.5, 0.5, (users, 1)) * np.array([0.4, 0.6, 0.8, 1.0])
    user = np.repeat(np.arange(users), 12)
    action = generator.choice(4, len(user), p=logging)
    model_A = np.array([0.2, 0.3, 0.35, 0.4])
    rows = pl.DataFrame(
        {
            "user": user, "propensity": logging[action], "target": target[action],
            "label": generator.random(len(user)) < chance_UA[user, action],
            "q": model_A[action], "q_target": np.full(len(user), target @ model_A),
        }
    )  # fmt: skip
    return rows, float(target @ (0.1 + 0.3 * np.array([0.4, 0.6, 0.8, 1.0])))


def test_intervals_hold_the_truth_as_often_as_they_say_and_only_by_clusters() -> None:
    generator, tries = np.random.default_rng(4), 400
    held: dict[str, int] = defaultdict(int)
    for _ in range(tries):
        rows, truth = toy(generator, 60)
        for cluster in ("user", None):
            table = evaluate_policy(rows, q="q", q_target="q_target", cluster=cluster)
            for name, low, high in table.select("estimator", "low", "high").iter_rows():
                held[name, cluster] += low <= truth <= high
    error = math.sqrt(0.05 * 0.95 / tries)
    for name in ("ips", "snips", "dr"):
        assert held[name, "user"] / tries == pytest.approx(0.95, abs=3 * error), name
    assert held["dr", None] / tries < 0.95 - 3 * error  # rows of a user taken as independent
    assert held["naive", "user"] / tries < 0.9


def test_below_a_hundredth_nothing_is_said() -> None:
    generator = np.random.default_rng(5)
    rows = drawn(6, users=100).with_columns(target=pl.lit(0.0))
    lucky = rows.with_row_index().with_columns(target=pl.when(pl.col("index") == 7).then(1.0).otherwise(0.0))
    for one, sample in ((rows, 0.0), (lucky, 1.0)):
        table = evaluate_policy(one, **ALL)
        weighed = table.filter(pl.col("estimator").is_in(["ips", "snips", "dr", "switch_dr", "rips"]))
        assert weighed["effective_sample"].to_list() == pytest.approx([sample] * 5)
        assert weighed.select("value", "low", "high").null_count().row(0) == (5, 5, 5)
        assert weighed["verdict"].str.starts_with("not identifiable").all()
        assert table.filter(pl.col("estimator") == "naive")["value"].item() == pytest.approx(
            one["label"].sum() / one.select("user_id", "visit").n_unique()
        )
    # Just enough is answered: two rows in two hundred.
    plain = pl.DataFrame(
        {"propensity": np.ones(200), "label": generator.random(200), "target": np.r_[1, 1, np.zeros(198)]}
    )
    assert found(evaluate_policy(plain))["snips"] == pytest.approx(plain["label"][:2].mean())
    assert "thin: a share of 1.0%" in found(evaluate_policy(plain), "verdict")["snips"]
    ten = plain.with_columns(target=pl.Series(np.r_[np.ones(10), np.zeros(190)]))
    assert "thin" not in found(evaluate_policy(ten), "verdict")["snips"]
    assert found(evaluate_policy(pl.concat([plain, plain.tail(2)])))["snips"] is None


def test_effective_sample_counts_equal_rows_once_and_bears_any_scale() -> None:
    assert effective_sample(np.ones(7)) == 7
    assert effective_sample(np.array([1e200, 1e200, 0.0])) == pytest.approx(2)
    weights = np.random.default_rng(7).random(30)
    assert effective_sample(weights) == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def heavy(seed: int) -> pl.DataFrame:
    """Few rows of large weight whose rewards vary, and a good model."""
    generator = np.random.default_rng(seed)
    weight = generator.choice([0.5, 30.0], 2000, p=[0.99, 0.01])
    q = generator.uniform(0.4, 0.6, 2000)
    label = (generator.random(2000) < q).astype(float)
    propensity = np.full(2000, 0.02)
    columns = {"propensity": propensity, "target": weight * propensity, "label": label, "q": q, "q_target": q}
    return pl.DataFrame(columns)


def test_the_threshold_is_that_of_the_least_estimated_error() -> None:
    rows = heavy(8)
    chosen = {}
    for most in (1e-4, None):
        table = evaluate_policy(rows, q="q", q_target="q_target", reward_max=most)
        weight = (rows["target"] / rows["propensity"]).to_numpy()
        gap = (rows["label"] - rows["q"]).to_numpy()
        errors = {}
        for threshold in np.geomspace(weight.min(), weight.max(), offpolicy.THRESHOLDS):
            threshold = max(threshold, weight.min())
            kept = np.where(weight <= threshold * (1 + 1e-12), weight, 0)
            value = rows["q_target"].to_numpy() + kept * gap
            above = np.mean(weight * (weight > threshold * (1 + 1e-12)))
            errors[value.mean()] = value.var(ddof=1) / len(value) + ((1 if most is None else most) * above) ** 2
        chosen[most] = found(table)["switch_dr"]
        assert chosen[most] == pytest.approx(min(errors, key=errors.__getitem__), rel=1e-9)
    assert chosen[None] == pytest.approx(found(evaluate_policy(rows, q="q", q_target="q_target"))["dr"])
    assert chosen[1e-4] != pytest.approx(chosen[None], rel=1e-3)
    verdict = found(evaluate_policy(rows, q="q", q_target="q_target", reward_max=1e-4), "verdict")["switch_dr"]
    assert "left to q" in verdict


def test_rips_looks_as_far_up_as_the_sample_allows() -> None:
    rows = drawn(9, users=200)
    tables = {share: evaluate_policy(rows, **(ALL | {"lookback": share})) for share in (0.0, 0.1, 1.0)}
    shares = [found(table, "share")["rips"] for table in tables.values()]
    assert shares[0] < shares[1] < shares[2]
    # Not at all: the ratio of each row alone, self-normalised at each place.
    expected = 0.0
    for _, part in rows.with_columns(w=pl.col("target") / pl.col("propensity")).group_by("position"):
        expected += part["examination"].sum() * (part["w"] @ part["label"]) / (part["w"] @ part["examination"])
    visits = rows.select("user_id", "visit").n_unique()
    assert found(tables[1.0])["rips"] == pytest.approx(expected / visits)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"propensity": 0.0}, {}, "column propensity: 0 in row 3 is not in"),
        ({"propensity": 1.5}, {}, "column propensity: 1.5 in row 3 is not in"),
        ({"propensity": math.nan}, {}, "column propensity: nan in row 3 is not finite"),
        ({"target": -0.25}, {}, "column target: -0.25 in row 3 is negative"),
        ({"label": math.inf}, {}, "column label: inf in row 3 is not finite"),
        ({"q": None}, {"q": "q", "q_target": "q_target"}, "column q is null in row 3"),
        ({"user_id": None}, {"cluster": "user_id"}, "column user_id is null in row 3"),
        ({}, {"propensity": "propensty"}, "no column propensty: did you mean propensity"),
        ({}, {"reward": "user_id"}, "user_id holds String, no numbers"),
        ({}, {"q": "q"}, "q and q_target go together"),
        ({}, {"position": "position"}, "position position needs a visit"),
        ({}, {"visit": "user_id", "position": "position"}, "is there twice in its visit"),
        ({}, {"confidence": 1.0}, "confidence must lie between 0 and 1"),
        ({}, {"threshold": 0.0}, "threshold must be above 0"),
        ({}, {"lookback": 2.0}, "lookback must lie in"),
        ({}, {"examination": "visit"}, "column visit: 0 in row 0 is not in"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(change: dict, arguments: dict, message: str) -> None:
    rows = drawn(10)
    for column, value in change.items():
        values = rows[column].to_list()
        values[3] = value
        rows = rows.with_columns(pl.Series(column, values, dtype=rows.schema[column]))
    with pytest.raises(ValueError, match=message) as raised:
        evaluate_policy(rows, **arguments)
    assert "\n" not in str(raised.value)


def test_no_rows_and_one_cluster_are_refused() -> None:
    rows = drawn(11)
    with pytest.raises(ValueError, match="no rows"):
        evaluate_policy(rows.clear())
    with pytest.raises(ValueError, match="column user_id has one value"):
        evaluate_policy(rows.with_columns(user_id=pl.lit("me")), cluster="user_id")
    with pytest.raises(ValueError, match="the log has one row"):
        evaluate_policy(rows.head(1))
