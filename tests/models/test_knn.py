"""ItemKNN against a dense float64 reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.models import knn
from recsys.models.knn import ItemKNN
from recsys.schema import Interactions, Schema


def random_pairs(seed: int, users: int = 25, items: int = 20, pairs: int = 120) -> Interactions:
    generator = torch.Generator().manual_seed(seed)
    return Interactions.from_pairs(
        torch.randint(2, users, (pairs,), generator=generator),
        torch.randint(2, items, (pairs,), generator=generator),
        num_rows=users,
        num_items=items,
    )


def fitted(pairs: Interactions, **kwargs: object) -> ItemKNN:
    model = ItemKNN(Schema.of(pairs.num_rows, pairs.num_items), **kwargs)  # type: ignore[arg-type]
    model.fit(pairs)
    return model


def scores_of(model: ItemKNN, history: Interactions) -> np.ndarray:
    users = torch.arange(history.num_rows)
    return model.score({"user_idx": users, "history": history, "user_key": users}).double().numpy()


def reference(pairs: Interactions, neighbours: int, shrinkage: float, weighting: str) -> np.ndarray:
    """similarity_II with the largest of each row, by the textbook."""
    x_UI = pairs.to_scipy().toarray().astype(np.float64)
    y_UI = x_UI.copy()
    if weighting != "none":
        items = (x_UI.sum(0) > 0).sum()
        y_UI *= np.log1p(items / np.maximum(x_UI.sum(1), 1))[:, None]
    if weighting == "bm25":
        length_I = x_UI.sum(0)
        y_UI *= 2.2 / (1 + 1.2 * (0.25 + 0.75 * length_I / (length_I.sum() / items)))
    y_UI /= np.sqrt((y_UI**2).sum() / x_UI.sum())
    norm_I = np.linalg.norm(y_UI, axis=0)
    with np.errstate(invalid="ignore"):
        similarity_II = np.nan_to_num((y_UI.T @ y_UI) / (np.outer(norm_I, norm_I) + shrinkage))
    np.fill_diagonal(similarity_II, 0)
    for row in similarity_II:
        row[np.argsort(row, kind="stable")[:-neighbours]] = 0
    return x_UI @ similarity_II


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shrinkage=st.sampled_from([0.0, 5.0]),
    weighting=st.sampled_from(["none", "tfidf", "bm25"]),
)
def test_all_neighbours_match_the_dense_reference(seed: int, shrinkage: float, weighting: str) -> None:
    pairs = random_pairs(seed)
    model = fitted(pairs, num_neighbours=20, shrinkage=shrinkage, weighting=weighting)
    np.testing.assert_allclose(scores_of(model, pairs), reference(pairs, 20, shrinkage, weighting), atol=1e-5)


def test_keeps_the_most_similar() -> None:
    pairs = random_pairs(1)
    every = fitted(pairs, num_neighbours=20).similarity_IN.sort(1, descending=True).values
    few = fitted(pairs, num_neighbours=3).similarity_IN.sort(1, descending=True).values
    assert torch.equal(few, every[:, :3])


def test_small_blocks_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = random_pairs(2)
    whole = scores_of(fitted(pairs), pairs)
    monkeypatch.setattr(knn, "MAX_PRODUCTS", 1)
    monkeypatch.setattr(knn, "MAX_EXPANDED_PAIRS", 1)
    np.testing.assert_allclose(scores_of(fitted(pairs), pairs), whole, rtol=1e-6)


def test_reports_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "MAX_PRODUCTS", 50)
    pairs, seen = random_pairs(3), []
    model = ItemKNN(Schema.of(pairs.num_rows, pairs.num_items))
    model.fit(pairs, lambda done, total, measured: seen.append((done, total)))
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert seen[-1] == (pairs.num_items, pairs.num_items)


@pytest.mark.parametrize(("argument", "value"), [("num_neighbours", 0), ("shrinkage", -1.0), ("weighting", "bm26")])
def test_refuses(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=argument):
        ItemKNN(Schema.of(5, 5), **{argument: value})  # type: ignore[arg-type]
