"""Diversity, caps and exploration against naive loops, and by properties."""

import numpy as np
import pytest
import torch

from recsys.reranking import diversified, explored

B, P, K, D = 4, 30, 12, 5


def pools(seed=0):
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(B, P, generator=generator)
    vectors = torch.randn(B, P, D, generator=generator)
    category = torch.randint(-1, 4, (B, P, 2), generator=generator)
    return score, vectors, category


def naive(score, vectors, category, k, diversity, most):
    """One list, by the definition."""
    found, left = [], [p for p in range(len(score)) if score[p] > -np.inf]
    finite = score[left]
    scaled = (score - finite.min()) / max(finite.max() - finite.min(), 1e-12)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    while left and len(found) < k:

        def full(p):
            return any(
                category[p, g] >= 0 and sum(category[q, g] == category[p, g] for q in found) >= most[g]
                for g in range(len(most))
            )

        open_ = [p for p in left if not full(p)] or left
        values = [
            (1 - diversity) * scaled[p] - diversity * max((unit[p] @ unit[q] for q in found), default=0) for p in open_
        ]
        best = open_[int(np.argmax(values))]
        found.append(best)
        left.remove(best)
    return found + [-1] * (min(k, len(score)) - len(found))


@pytest.mark.parametrize("diversity", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("most", [[], [3, 2]])
def test_lists_are_those_of_a_naive_loop(diversity, most):
    score, vectors, category = pools()
    score[1, 5:] = -torch.inf  # fewer than K
    found = diversified(
        score, K, diversity=diversity, vector_BPD=vectors, category_BPG=category, most_G=torch.tensor(most).long()
    )
    for b in range(B):
        expected = naive(
            score[b].double().numpy(), vectors[b].double().numpy(), category[b].numpy(), K, diversity, most
        )
        assert found[b].tolist() == expected


def test_caps_hold_where_they_can_and_give_way_where_nothing_else_is_left():
    score, _, _ = pools()
    category = torch.arange(P).remainder(10)[None, :, None].expand(B, -1, -1)
    found = diversified(score, 20, category_BPG=category, most_G=torch.tensor([2]))
    counts = [torch.bincount(category[b, found[b], 0], minlength=10) for b in range(B)]
    assert all((count == 2).all() for count in counts)
    one = torch.zeros(B, P, 1, dtype=torch.int64)
    found = diversified(score, K, category_BPG=one, most_G=torch.tensor([1]))
    assert torch.equal(found, score.argsort(dim=1, descending=True)[:, :K])


def test_diversity_brings_lists_whose_items_are_less_alike():
    score, vectors, _ = pools()

    def alike(diversity):
        found = diversified(score, K, diversity=diversity, vector_BPD=vectors)
        unit = torch.nn.functional.normalize(vectors.gather(1, found[:, :, None].expand(-1, -1, D)), dim=2)
        return float((unit @ unit.mT).mean())

    assert alike(0.9) < alike(0.5) < alike(0.0)


def test_a_list_does_not_depend_on_those_beside_it():
    score, vectors, category = pools()
    most = torch.tensor([2, 2])
    whole = diversified(score, K, diversity=0.4, vector_BPD=vectors, category_BPG=category, most_G=most)
    for b in range(B):
        one = slice(b, b + 1)
        alone = diversified(
            score[one], K, diversity=0.4, vector_BPD=vectors[one], category_BPG=category[one], most_G=most
        )
        assert torch.equal(alone, whole[one])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": 5, "diversity": 1.5}, r"diversity must lie in \[0, 1\], got 1.5"),
        ({"k": 5, "diversity": 0.5}, "diversity=0.5 needs vectors"),
        (
            {"k": 5, "category_BPG": torch.zeros(B, P, 1).long(), "most_G": torch.tensor([0])},
            "a cap must be at least 1",
        ),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        diversified(pools()[0], **arguments)


def test_a_score_that_is_no_number_is_named():
    score = pools()[0]
    score[2, 3] = torch.nan
    with pytest.raises(ValueError, match="score of list 2 is NaN"):
        diversified(score, K)


def listed(num_rows):
    pool = torch.arange(2, 42).expand(num_rows, -1)
    return pool[:, :10], pool, torch.arange(num_rows)


def test_exploration_gives_away_the_share_of_places_that_was_asked_for_evenly():
    lists, pool, key = listed(20_000)
    found, explores, propensity = explored(lists, pool, 0.1, key, seed=3)
    assert explores.float().mean() == pytest.approx(0.1, abs=0.003)
    assert torch.equal(found[~explores], lists[~explores])
    counts = torch.bincount(found[explores], minlength=42)
    assert counts[:12].sum() == 0
    expected = explores.sum() / 30
    assert ((counts[12:] - expected).abs() < 5 * expected.sqrt()).all()
    assert all(len(row.unique()) == 10 for row in found[:500])
    # At the first place the probabilities are plain: 0.9, and 0.1 shared by 30.
    assert torch.allclose(propensity[~explores], torch.tensor(0.9))
    assert torch.allclose(propensity[:, 0][explores[:, 0]], torch.tensor(0.1 / 30))
    again, _, _ = explored(lists, pool, 0.1, key, seed=3)
    other, _, _ = explored(lists, pool, 0.1, key, seed=4)
    assert torch.equal(found, again)
    assert not torch.equal(found, other)


def test_propensities_are_those_of_many_draws():
    """Of a list of two and a pool of two more, each outcome as often as the product of its propensities says."""
    pool = torch.tensor([[2, 3, 4, 5]]).expand(40_000, -1)
    found, _, propensity = explored(pool[:, :2], pool, 0.5, torch.arange(40_000), seed=0)
    key = found[:, 0] * 10 + found[:, 1]
    for outcome in key.unique():
        rows = key == outcome
        assert rows.float().mean() == pytest.approx(float(propensity[rows].prod(1).mean()), abs=0.01)


def test_an_order_decides_what_is_explored():
    lists, pool, key = listed(500)
    order = torch.arange(40.0).expand(500, -1)
    found, explores, propensity = explored(lists, pool, 0.3, key, 0, order)
    first = explores.int().cumsum(1).eq(1) & explores
    assert (found[first] == 41).all()
    assert propensity[explores].isnan().all()


def test_nothing_is_explored_without_a_share_or_without_others():
    lists, pool, key = listed(50)
    found, explores, propensity = explored(lists, pool, 0.0, key, 0)
    assert torch.equal(found, lists)
    assert not explores.any()
    assert (propensity == 1).all()
    found, explores, propensity = explored(lists, lists, 0.9, key, 0)
    assert torch.equal(found, lists)
    assert not explores.any()
    assert (propensity == 1).all()
    few = torch.cat([lists, torch.tensor([[50]]).expand(50, -1)], 1)
    found, explores, propensity = explored(lists, few, 1.0, key, 0)
    assert (explores.sum(1) == 1).all()
    assert (found[:, 0] == 50).all()
    with pytest.raises(ValueError, match=r"exploration must be a share in \[0, 1\], got 2"):
        explored(lists, pool, 2, key, 0)
