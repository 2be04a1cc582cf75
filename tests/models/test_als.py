"""iALS against its objective in dense float64, its own optimality conditions, and `implicit`."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from recsys.models.als import ALS
from recsys.schema import Interactions, Schema, UserBatch

USERS, ITEMS, DIM = 90, 70, 8


def random_pairs() -> Interactions:
    """Skewed counts, a row longer than DIM by far, and users and items without a pair."""
    generator = torch.Generator().manual_seed(0)
    item = 2 + ((ITEMS - 10) * torch.rand(900, generator=generator) ** 2).long()
    user = torch.randint(2, USERS - 5, (900,), generator=generator)
    user[:60] = 5
    return Interactions.from_pairs(user, item, num_rows=USERS, num_items=ITEMS)


PAIRS = random_pairs()
SCHEMA = Schema.of(USERS, ITEMS)
X_UI = PAIRS.to_scipy().toarray().astype(np.float64)
WEIGHTS = {"positive_weight": 3.0, "unobserved_weight": 0.4, "regularization": 0.2}


def fitted(**kwargs: float) -> tuple[ALS, list[float]]:
    model = ALS(SCHEMA, **({"embedding_dim": DIM, "num_sweeps": 6} | WEIGHTS | kwargs))  # type: ignore[arg-type]
    losses: list[float] = []
    model.fit(PAIRS, lambda done, total, measured: losses.append(measured["train/loss"]))
    return model, losses


def ridges(exponent: float) -> tuple[np.ndarray, np.ndarray]:
    users, items = X_UI.sum(1), X_UI.sum(0)
    ridge_U = 0.2 * (3.0 * users + 0.4 * (items > 0).sum()) ** exponent
    return ridge_U, 0.2 * (3.0 * items + 0.4 * (users > 0).sum()) ** exponent


def dense_loss(model: ALS, exponent: float) -> float:
    """Every cell, one by one."""
    users, items = model.user_factors_UD.double().numpy(), model.item_factors_ID.double().numpy()
    ridge_U, ridge_I = ridges(exponent)
    cells = np.where(X_UI > 0, 3.0, 0.4) * (X_UI - users @ items.T) ** 2
    return float(cells.sum() + ridge_U @ (users**2).sum(1) + ridge_I @ (items**2).sum(1))


def batch_of(history: Interactions) -> UserBatch:
    users = torch.arange(history.num_rows)
    return {"user_idx": users, "history": history, "user_key": users}


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cg_steps", [1, 3])
def test_the_reported_loss_is_the_objective_and_falls(exponent: float, cg_steps: int) -> None:
    model, losses = fitted(frequency_exponent=exponent, cg_steps=cg_steps)
    assert losses[-1] == pytest.approx(dense_loss(model, exponent), rel=1e-6)
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_fold_in_solves_each_users_problem(exponent: float) -> None:
    model, _ = fitted(frequency_exponent=exponent)
    items = model.item_factors_ID.double().numpy()
    ridge_U, _ = ridges(exponent)
    folded_UD = model.encode_users(batch_of(PAIRS)).double().numpy()
    for u in range(USERS):
        weight_I = np.where(X_UI[u] > 0, 3.0, 0.4)
        exact = np.linalg.solve((items.T * weight_I) @ items + ridge_U[u] * np.eye(DIM), (items.T * weight_I) @ X_UI[u])
        np.testing.assert_allclose(folded_UD[u], exact, atol=2e-5)


def test_converged_factors_are_a_stationary_point() -> None:
    """After many sweeps the factors of training are what folding in gives: both solve the same system."""
    model, _ = fitted(num_sweeps=300)
    assert torch.allclose(model.encode_users(batch_of(PAIRS)), model.user_factors_UD, atol=1e-3)


def test_rows_without_pairs_stay_zero() -> None:
    model, _ = fitted()
    assert not bool(model.user_factors_UD[PAIRS.row_counts() == 0].any())
    assert not bool(model.item_factors_ID[PAIRS.item_counts() == 0].any())


def test_history_without_known_items_is_not_personal() -> None:
    model, _ = fitted()
    history = Interactions.from_pairs(torch.tensor([0, 1]), torch.tensor([3, ITEMS - 1]), num_rows=3, num_items=ITEMS)
    assert model.personal(batch_of(history)).tolist() == [True, False, False]
    assert not bool(model.encode_users(batch_of(history))[1:].any())


def test_rendle_notation_is_the_same_problem() -> None:
    """(1 - s)^2 on positives plus alpha_0 s^2 on every cell, at the scaled factors: our loss but for a
    factor and a constant."""
    alpha_0, ridge = 0.25, 0.3
    model, losses = fitted(
        positive_weight=1.0,
        unobserved_weight=alpha_0 / (1 + alpha_0),
        regularization=ridge,
        frequency_exponent=0.0,
    )
    users, items = (
        factors.double().numpy() / np.sqrt(1 + alpha_0) for factors in (model.user_factors_UD, model.item_factors_ID)
    )
    scores = users @ items.T
    theirs = ((1 - scores[X_UI > 0]) ** 2).sum() + alpha_0 * (scores**2).sum()
    theirs += ridge * ((users**2).sum() + (items**2).sum())
    assert (1 + alpha_0) * theirs - alpha_0 * len(PAIRS) == pytest.approx(losses[-1], rel=1e-6)


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_common_scale_of_the_weights_changes_nothing_in_plain_l2(scale: float) -> None:
    one, one_losses = fitted(frequency_exponent=0.0)
    other, other_losses = fitted(frequency_exponent=0.0, **{k: scale * v for k, v in WEIGHTS.items()})
    np.testing.assert_allclose(np.array(other_losses), scale * np.array(one_losses), rtol=1e-4)
    assert torch.allclose(one.score(batch_of(PAIRS)), other.score(batch_of(PAIRS)), atol=1e-3)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("regularization", 0.0), ("embedding_dim", 0), ("unobserved_weight", 5.0), ("cg_steps", 0)],
)
def test_refuses(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=argument):
        ALS(SCHEMA, **{argument: value})  # type: ignore[arg-type]


def test_refuses_an_empty_log() -> None:
    with pytest.raises(ValueError, match="at least one positive pair"):
        ALS(SCHEMA).fit(Interactions.empty(USERS, ITEMS))


def planted_pairs(users: int, items: int, blocks: int) -> Interactions:
    """Each user likes items of two of the blocks, and a few others."""
    generator = torch.Generator().manual_seed(1)
    home = torch.randint(0, blocks, (2, users, 1), generator=generator)
    near = (torch.arange(items) % blocks == home).any(0)
    liked = torch.rand(users, items, generator=generator) < torch.where(near, 0.5, 0.02)
    liked[:2], liked[:, :2] = False, False
    user, item = liked.nonzero().unbind(1)
    return Interactions.from_pairs(user, item, num_rows=users, num_items=items)


@pytest.mark.parametrize(("alpha", "ridge"), [(2.0, 5.0), (10.0, 5.0)])
def test_reaches_the_loss_of_implicit(alpha: float, ridge: float) -> None:
    """Plain L2, the same weights and as many iterations: our loss lies at most 0.1% above implicit's."""
    als = pytest.importorskip("implicit.cpu.als")
    pairs = planted_pairs(300, 200, blocks=12)
    cells_UI = pairs.to_scipy().toarray()

    def loss(users: np.ndarray, items: np.ndarray) -> float:
        users, items = users.astype(np.float64), items.astype(np.float64)
        cells = np.where(cells_UI > 0, alpha, 1.0) * (cells_UI - users @ items.T) ** 2
        return float(cells.sum() + ridge * ((users**2).sum() + (items**2).sum()))

    peer = als.AlternatingLeastSquares(
        factors=12, alpha=alpha, regularization=ridge, iterations=20, random_state=0, num_threads=1
    )
    peer.fit(csr_matrix(pairs.to_scipy()), show_progress=False)
    model = ALS(
        Schema.of(300, 200),
        embedding_dim=12,
        num_sweeps=20,
        positive_weight=alpha,
        unobserved_weight=1.0,
        regularization=ridge,
        frequency_exponent=0.0,
    )
    model.fit(pairs)
    theirs = loss(peer.user_factors, peer.item_factors)
    assert loss(model.user_factors_UD.numpy(), model.item_factors_ID.numpy()) <= 1.001 * theirs
