"""Cross-fitted expectations: the likelihood's maximum, and never a word from the user who is asked about."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.optimize import minimize

from recsys.online.crossfit import cross_fit, fit_attraction, groups

WEIGHTS, BIAS = np.array([0.8, -1.2]), -0.5


def planted(seed: int, rows: int) -> pl.DataFrame:
    """Clicks by examination 1 / (1 + position) and a logistic attraction."""
    generator = np.random.default_rng(seed)
    x = generator.normal([3, 0], [1, 0.5], (rows, 2))
    position = generator.integers(0, 4, rows)
    looked = 1 / (1 + groups(position))
    chance = looked / (1 + np.exp(-(x @ WEIGHTS + BIAS)))
    return pl.DataFrame(
        {
            "user_id": generator.integers(0, max(rows // 20, 2), rows), "a": x[:, 0], "b": x[:, 1],
            "position": position, "examination": looked, "label": generator.random(rows) < chance, "chance": chance,
        }
    )  # fmt: skip


def arrays(rows: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rows.select("a", "b").to_numpy(), rows["label"].cast(pl.Float64).to_numpy(), rows["position"].to_numpy()


def test_places_double() -> None:
    assert groups(np.array([0, 1, 2, 3, 4, 7, 8, 63, 64])).tolist() == [0, 1, 2, 2, 3, 3, 4, 6, 7]


def test_what_was_planted_is_found_and_examination_is_learnt_or_known() -> None:
    rows = planted(0, 60_000)
    x, label, position = arrays(rows)
    learnt = fit_attraction(x, label, position, np.ones(len(x)))
    known = fit_attraction(x, label, np.zeros(len(x), np.int64), rows["examination"].to_numpy())
    for model in (learnt, known):
        assert model.weight_F == pytest.approx(WEIGHTS, abs=0.1)
        assert model.bias == pytest.approx(BIAS, abs=0.25)
    assert learnt.examination_P == pytest.approx([1, 1 / 2, 1 / 3], abs=0.03)
    assert known.examination_P.tolist() == [1.0]
    assert learnt.examination(np.array([3, 50])) == pytest.approx([learnt.examination_P[2]] * 2)
    assert learnt(x, position, np.ones(len(x))) == pytest.approx(rows["chance"].to_numpy(), abs=0.05)


def test_the_fit_is_the_maximum_of_the_penalised_likelihood() -> None:
    rows, penalty = planted(1, 400), 2.5
    x, label, position = arrays(rows)
    model = fit_attraction(x, label, position, np.ones(len(x)), penalty)
    scale, group = x.std(0), groups(position)

    def loss(found: np.ndarray) -> float:
        looked = np.exp(np.r_[0, found[3:]])[group]
        p = np.clip(looked / (1 + np.exp(-(x @ found[:2] + found[2]))), 1e-12, 1 - 1e-6)
        prior = np.sum((found[:2] * scale) ** 2) + np.sum(np.diff(np.r_[0, found[3:]]) ** 2)
        return float(penalty / 2 * prior - np.sum(label * np.log(p) + (1 - label) * np.log1p(-p)))

    ours = np.r_[model.weight_F, model.bias, np.log(model.examination_P[1:])]
    theirs = minimize(
        loss, np.zeros(5), method="Nelder-Mead", options={"maxiter": 20_000, "fatol": 1e-10, "xatol": 1e-8}
    )
    assert loss(ours) == pytest.approx(theirs.fun, rel=1e-7)
    assert ours == pytest.approx(theirs.x, abs=2e-3)


def test_a_user_has_no_say_in_their_own_expectation() -> None:
    rows = planted(2, 2000)
    before = cross_fit(rows, ["a", "b"], position="position")(rows)
    own = rows["user_id"] == 7
    turned = rows.with_columns(label=pl.when(own).then(~pl.col("label")).otherwise(pl.col("label")))
    after = cross_fit(turned, ["a", "b"], position="position")(turned)
    own_B = own.to_numpy()
    assert own_B.any()
    assert (before[own_B] == after[own_B]).all()
    assert (before != after).any()


def test_all_actions_of_a_context_go_to_the_model_of_its_user() -> None:
    rows = planted(3, 2000).with_columns(user_id=pl.format("u{}", "user_id"))
    model = cross_fit(rows, ["a", "b"], examination="examination", folds=3, seed=5)
    actions = rows.head(50).with_columns(pl.col("a") + 1).sample(fraction=1.0, shuffle=True, seed=1)
    q = model(actions)
    fold = model.fold(actions["user_id"])
    assert set(fold) == {0, 1, 2}
    for row in range(50):
        x = actions.select("a", "b")[row].to_numpy()
        looked = actions["examination"][row : row + 1].to_numpy()
        assert q[row] == pytest.approx(model.models[fold[row]](x, np.zeros(1, np.int64), looked)[0], rel=1e-12)
    other = cross_fit(rows, ["a", "b"], folds=3, seed=6)
    assert (other.fold(rows["user_id"]) != model.fold(rows["user_id"])).any()


def test_another_model_is_a_callable() -> None:
    rows = planted(4, 500)

    def constant(features_BF: np.ndarray, reward_B: np.ndarray, position_B: np.ndarray, examined_B: np.ndarray) -> Any:
        return lambda features_BF, position_B, examined_B: np.full(len(features_BF), reward_B.mean())

    model = cross_fit(rows, [], folds=2, fit=constant)
    fold = model.fold(rows["user_id"])
    label = rows["label"].to_numpy()
    assert model(rows) == pytest.approx(np.where(fold == 0, label[fold == 1].mean(), label[fold == 0].mean()))


def test_what_cannot_be_learnt_from_is_refused() -> None:
    rows = planted(5, 1000)
    with pytest.raises(ValueError, match="no column aa: "):
        cross_fit(rows, ["aa"])
    with pytest.raises(ValueError, match="column a: nan in row 0 is not finite"):
        cross_fit(rows.with_columns(a=pl.lit(math.nan)), ["a"])
    with pytest.raises(ValueError, match="column b is null in row 0"):
        cross_fit(rows.with_columns(b=pl.lit(None, pl.Float64)), ["b"])
    with pytest.raises(ValueError, match="folds must be at least 2"):
        cross_fit(rows, ["a"], folds=1)
    with pytest.raises(ValueError, match="no user_id falls in fold"):
        cross_fit(rows.with_columns(user_id=pl.lit(1)), ["a"])
    with pytest.raises(ValueError, match=r"reward 2 is not in \[0, 1\]"):
        cross_fit(rows.with_columns(label=pl.lit(2)), ["a"])
    with pytest.raises(ValueError, match="penalty must be above 0"):
        cross_fit(rows, ["a"], penalty=0.0)
    with pytest.raises(ValueError, match="-1 in row 0 is negative"):
        cross_fit(rows.with_columns(position=pl.lit(-1)), ["a"], position="position")
    with pytest.raises(ValueError, match=r"column examination: 0 in row 0 is not in \(0, 1\]"):
        cross_fit(rows.with_columns(examination=pl.lit(0.0)), ["a"], examination="examination")
