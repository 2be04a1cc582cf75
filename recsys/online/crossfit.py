"""A model's expected reward of rows, each by a model that has not seen the row's user.

A doubly robust estimate is unbiased whatever q is, as long as q does not know the row's reward: it is fitted on the
other folds of users (cross-fitting, Chernozhukov et al., "Double/Debiased Machine Learning", 2018).

The default model is a click model of the position-based kind whose attraction is a logistic regression,

    q = examination * sigmoid(bias + w.x),

where examination is known, or learnt: 1 at the first place and free at places 1, 2-3, 4-7, ... below. Its product form
is what makes q of all actions cheap: one attraction a pair serves all places. Where q goes with position-based
probabilities the examination must be the one that they were summed with.

Shapes: B rows, F features, P groups of places, J = F + 1 weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
import torch

from recsys.evaluation.significance import key_streams
from recsys.features.vocabulary import id_keys
from recsys.online.columns import Floats, Ints, column, numbers, probabilities, refuse

# (features_BF, position_B, examined_B) -> q_B, and (features_BF, reward_B, position_B, examined_B) -> such a one.
Predict = Callable[[Floats, Ints, Floats], Floats]
Fit = Callable[[Floats, Floats, Ints, Floats], Predict]

_NEAR = 1e-9  # a step that lowers the loss by so little of it ends the search
_STEPS = 50


def groups(position_B: Ints) -> Ints:
    """Places by doubling: 0, 1, 2-3, 4-7, ..."""
    return np.frexp(np.asarray(position_B, dtype=np.float64))[1].astype(np.int64)


@dataclass(frozen=True)
class Attraction:
    """What is known of the examination * what was learnt of it * sigmoid(bias + weight.x)."""

    weight_F: Floats
    bias: float
    examination_P: Floats

    def __call__(self, features_BF: Floats, position_B: Ints, examined_B: Floats) -> Floats:
        return examined_B * self.examination(position_B) * self.attraction(features_BF)

    def attraction(self, features_BF: Floats) -> Floats:
        """P(positive | examined), of the dtype of the features."""
        logits_B = torch.from_numpy(features_BF @ self.weight_F.astype(features_BF.dtype)) + self.bias
        return logits_B.sigmoid_().numpy()

    def examination(self, position_B: Ints) -> Floats:
        """What was learnt; places below all that were learnt from are as the last."""
        return self.examination_P[np.minimum(groups(position_B), len(self.examination_P) - 1)]


def fit_attraction(
    features_BF: Floats, reward_B: Floats, position_B: Ints, examined_B: Floats, penalty: float = 1.0
) -> Attraction:
    """The maximum of the Bernoulli likelihood less penalty * |w|^2 / 2, w by standard deviations of the features, and
    less penalty / 2 times the squared log of each examination learnt against the one of the places above.

    By Fisher scoring, a step halved until the loss falls.

    Args:
        reward_B: in [0, 1]. position_B: from 0; where all are 0 no examination is learnt.
        examined_B: what is known of it, in (0, 1].

    Raises ValueError: a reward outside [0, 1], or a penalty that is not above 0.
    """
    if not penalty > 0:
        raise ValueError(f"penalty must be above 0, got {penalty}")
    wrong_B = ~((reward_B >= 0) & (reward_B <= 1))
    if wrong_B.any():
        raise ValueError(f"reward {reward_B[wrong_B.argmax()]:g} is not in [0, 1], as of clicks: fit another model")
    mean_F, scale_F = features_BF.mean(0), features_BF.std(0)
    scale_F = np.where(scale_F > 1e-12 * (1 + abs(mean_F)), scale_F, 1.0)
    x_BJ = np.column_stack([(features_BF - mean_F) / scale_F, np.ones(len(features_BF))])
    group_B = groups(position_B)
    J, P = x_BJ.shape[1], int(group_B.max()) + 1
    base = np.clip(reward_B.mean(), 1e-6, 1 - 1e-6)
    found = np.zeros(J + P - 1)  # weights, bias, then log examination at groups 1, 2, ...
    found[J - 1] = np.log(base / (1 - base))
    step_PP = np.eye(P - 1) - np.eye(P - 1, k=-1)
    prior = np.zeros((J + P - 1, J + P - 1))
    prior[: J - 1, : J - 1] = penalty * np.eye(J - 1)
    prior[J:, J:] = penalty * step_PP.T @ step_PP

    def chance(found: Floats) -> tuple[Floats, Floats]:
        attraction_B = torch.from_numpy(x_BJ @ found[:J]).sigmoid_().numpy()
        p_B = examined_B * attraction_B * np.exp(np.r_[0.0, found[J:]])[group_B]
        return attraction_B, p_B.clip(1e-12, 1 - 1e-6)

    def loss(found: Floats, p_B: Floats) -> float:
        return float(found @ prior @ found / 2 - reward_B @ np.log(p_B) - (1 - reward_B) @ np.log1p(-p_B))

    attraction_B, p_B = chance(found)
    now = loss(found, p_B)
    for _ in range(_STEPS):
        slope_BJ = x_BJ * (1 - attraction_B)[:, None]  # d log p / d weights; by log examination it is 1 in its group
        curve_B, pull_B = p_B / (1 - p_B), (reward_B - p_B) / (1 - p_B)
        gradient = -prior @ found
        gradient[:J] += slope_BJ.T @ pull_B
        gradient[J:] += np.bincount(group_B, pull_B, P)[1:]
        fisher = prior.copy()
        weighted_BJ = slope_BJ * curve_B[:, None]
        fisher[:J, :J] += slope_BJ.T @ weighted_BJ
        mixed_JP = np.stack([np.bincount(group_B, column, P)[1:] for column in weighted_BJ.T])
        fisher[:J, J:] += mixed_JP
        fisher[J:, :J] += mixed_JP.T
        fisher[J:, J:] += np.diag(np.bincount(group_B, curve_B, P)[1:])
        step = np.linalg.solve(fisher + 1e-9 * np.eye(len(fisher)), gradient)
        for share in 0.5 ** np.arange(12):
            tried = found + share * step
            attraction_B, p_B = chance(tried)
            then = loss(tried, p_B)
            if then <= now:
                break
        else:
            break
        fallen, found, now = now - then, tried, then
        if fallen < _NEAR * abs(now):
            break
    weight_F = found[: J - 1] / scale_F
    return Attraction(weight_F, float(found[J - 1] - mean_F @ weight_F), np.exp(np.r_[0.0, found[J:]]))


@dataclass(frozen=True)
class CrossFit:
    """Models by fold, each fitted on the rows of all other folds."""

    models: list[Predict]
    features: Sequence[str]
    cluster: str
    position: str | None
    examination: str | None
    seed: int

    def fold(self, ids: pl.Series) -> Ints:
        """The fold of clusters: a function of (seed, id) alone."""
        return _folds(ids, len(self.models), self.seed)

    def __call__(self, rows: pl.DataFrame) -> Floats:
        """q of rows, float64 [B]: logged ones, or all actions in a context, which have the context's cluster."""
        features_BF = _features(rows, self.features)
        position_B, examined_B = _positions(rows, self.position), _examined(rows, self.examination)
        fold_B, q_B = self.fold(column(rows, self.cluster)), np.empty(rows.height)
        for f, model in enumerate(self.models):
            of_fold = np.flatnonzero(fold_B == f)
            q_B[of_fold] = model(features_BF[of_fold], position_B[of_fold], examined_B[of_fold])
        return q_B


def cross_fit(
    rows: pl.DataFrame,
    features: Sequence[str],
    *,
    reward: str = "label",
    cluster: str = "user_id",
    position: str | None = None,
    examination: str | None = None,
    fit: Fit | None = None,
    penalty: float = 1.0,
    folds: int = 5,
    seed: int = 0,
) -> CrossFit:
    """Models of the reward, so that q of a row comes from one that has not seen the row's cluster.

        model = cross_fit(rows, ["taste", "quality"], position="position")
        rows = rows.with_columns(q=model(rows))
        actions = actions.with_columns(q=model(actions))  # all actions of each row: row, features, user_id, probability
        q_target = actions.group_by("row").agg((pl.col("q") * pl.col("probability")).sum())

    Args:
        rows: a log with numeric features.
        position: column of the place, from 0, whose examination is to be learnt.
        examination: column of the examination as far as it is known. With neither, all rows count as examined.
        fit: (features_BF, reward_B, position_B, examined_B) -> a callable (features_BF, position_B, examined_B) -> q_B;
            `fit_attraction` with this penalty by default.
        folds: at least 2.

    Raises ValueError: a missing or null column, fewer folds than 2, or folds that no cluster falls in.
    """
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    fit = fit or partial(fit_attraction, penalty=penalty)
    reward_B = numbers(rows, reward)
    columns = _features(rows, features), reward_B, _positions(rows, position), _examined(rows, examination)
    fold_B = _folds(column(rows, cluster), folds, seed)
    counts = np.bincount(fold_B, minlength=folds)
    if (counts == 0).any():
        raise ValueError(f"no {cluster} falls in fold {int(counts.argmin())} of {folds}: take fewer folds or more rows")
    models = [fit(*(of_B[fold_B != f] for of_B in columns)) for f in range(folds)]
    return CrossFit(models, tuple(features), cluster, position, examination, seed)


def _folds(ids: pl.Series, folds: int, seed: int) -> Ints:
    keys = torch.from_numpy(id_keys(ids).copy())
    return ((key_streams(seed, keys) >> 33) % folds).numpy()


def _features(rows: pl.DataFrame, features: Sequence[str]) -> Floats:
    return np.column_stack([np.zeros((rows.height, 0)), *(numbers(rows, name) for name in features)])


def _positions(rows: pl.DataFrame, position: str | None) -> Ints:
    if position is None:
        return np.zeros(rows.height, np.int64)
    position_B = numbers(rows, position).astype(np.int64)
    refuse(position_B, position_B < 0, position, "is negative: places count from 0")
    return position_B


def _examined(rows: pl.DataFrame, examination: str | None) -> Floats:
    return np.ones(rows.height) if examination is None else probabilities(rows, examination)
