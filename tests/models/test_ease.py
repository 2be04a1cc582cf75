"""EASE against the problem it solves."""

import numpy as np
import pytest
import torch

from recsys.models import ease
from recsys.models.ease import EASE
from recsys.schema import Interactions, Schema


def random_pairs(users: int = 60, items: int = 30, pairs: int = 500) -> Interactions:
    generator = torch.Generator().manual_seed(0)
    return Interactions.from_pairs(
        torch.randint(2, users, (pairs,), generator=generator),
        torch.randint(2, items, (pairs,), generator=generator),
        num_rows=users,
        num_items=items,
    )


PAIRS = random_pairs()
SCHEMA = Schema.of(PAIRS.num_rows, PAIRS.num_items)


@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-6), (False, 1e-4)])
def test_each_column_is_the_ridge_regression_without_its_own_item(double: bool, tolerance: float) -> None:
    model = EASE(SCHEMA, ridge=7.0, double=double)
    model.fit(PAIRS)
    x_UI = PAIRS.to_scipy().toarray().astype(np.float64)
    weights_II = model.weights_II.double().numpy()
    for j in range(PAIRS.num_items):
        others = np.arange(PAIRS.num_items) != j
        a = x_UI[:, others]
        column = np.linalg.solve(a.T @ a + 7.0 * np.eye(others.sum()), a.T @ x_UI[:, j])
        np.testing.assert_allclose(weights_II[others, j], column, atol=tolerance)
        assert weights_II[j, j] == 0
    users = torch.arange(PAIRS.num_rows)
    scores_BI = model.score({"user_idx": users, "history": PAIRS, "user_key": users})
    np.testing.assert_allclose(scores_BI.numpy(), x_UI @ weights_II, atol=1e-5)


def test_the_ridge_follows_from_the_log() -> None:
    """Each user four times over: the mean count is fourfold, and the ridge doubles."""
    fourfold = Interactions.from_pairs(
        torch.cat([PAIRS.row_idx() + 60 * copy for copy in range(4)]),
        PAIRS.item_idx.repeat(4),
        num_rows=240,
        num_items=PAIRS.num_items,
    )
    ridges: list[float] = []
    for pairs in (PAIRS, fourfold):
        model = EASE(Schema.of(pairs.num_rows, pairs.num_items))
        model.fit(pairs, lambda done, total, measured: ridges.append(measured["train/ridge"]))
    assert ridges[0] == pytest.approx(30 * (len(PAIRS) / len(PAIRS.item_idx.unique())) ** 0.5)
    assert ridges[1] == pytest.approx(2 * ridges[0])


def test_gram_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "GRAM_BLOCK", 7)
    x_UI = PAIRS.to_scipy().toarray()
    np.testing.assert_array_equal(ease.gram(PAIRS, torch.float64).numpy(), x_UI.T @ x_UI)


def test_refuses_what_does_not_fit() -> None:
    model = EASE(Schema.of(10, 50_000))
    with pytest.raises(ValueError, match=r"50000 items needs 60\.0 GB, more than memory_limit_gb=8\.0"):
        model.fit(Interactions.empty(10, 50_000))


def test_refuses_an_empty_log_and_a_ridge_of_zero() -> None:
    with pytest.raises(ValueError, match="at least one positive pair"):
        EASE(SCHEMA).fit(Interactions.empty(SCHEMA.num_users, SCHEMA.num_items))
    with pytest.raises(ValueError, match="ridge must be positive"):
        EASE(SCHEMA, ridge=0.0)
