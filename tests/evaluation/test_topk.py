"""Top-K lists and the order of ties, against a sort in plain Python."""

import numpy as np
import pytest
import torch
from naive import best_items

from recsys.evaluation import top_k


@pytest.mark.parametrize("levels", [1, 3, 40, 10**9])
@pytest.mark.parametrize("k", [1, 5, 20, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32])
@pytest.mark.parametrize("items_first", [False, True])
def test_top_k_through_chunks_equals_the_reference(levels, k, dtype, items_first):
    rng = np.random.default_rng(levels + k)
    num_items = 5003
    scores = torch.from_numpy(rng.integers(-levels, levels, (6, num_items)).clip(-60000, 60000)).to(dtype)
    scores = scores.T.contiguous().T if items_first else scores
    user_key = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, 6))
    candidates = torch.from_numpy(rng.random(num_items) < 0.8)
    before = scores.clone()
    item_idx, values = top_k(scores, k, user_key=user_key, seed=7, candidates=candidates)
    assert torch.equal(scores, before)
    for row in range(0, 6, 2):
        expected = best_items(scores[row].double(), k, 7, int(user_key[row]), candidates.tolist())
        assert item_idx[row].tolist() == expected
        assert torch.equal(values[row].double(), scores[row].double()[expected])


def test_ties_across_the_last_chunk_are_found():
    """More chunks share the K-th score than are looked at, and one item stands above."""
    num_items, k = 4096, 8
    scores = torch.zeros(3, num_items)
    scores[:, 17::31] = 1.0
    scores[:, 4000] = 2.0
    user_key = torch.tensor([5, 6, 7])
    item_idx, _ = top_k(scores, k, user_key=user_key, seed=1)
    allowed = [i >= 2 for i in range(num_items)]
    for row in range(3):
        assert item_idx[row].tolist() == best_items(scores[row], k, 1, int(user_key[row]), allowed)
    assert item_idx[0].tolist() != item_idx[1].tolist()
    assert item_idx[:, 0].tolist() == [4000] * 3
