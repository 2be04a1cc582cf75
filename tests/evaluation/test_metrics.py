"""Metrics by hand and against the definitions on random hits."""

import math

import numpy as np
import pytest
import torch

from recsys.evaluation import metrics


def test_values_worked_out_by_hand():
    hits = torch.tensor([[False, True, False, True], [True, False, False, False], [False] * 4])
    relevant = torch.tensor([3, 1, 2])
    k = [2, 4]
    log3, log5 = math.log2(3), math.log2(5)

    def close(function, expected):
        found = function(hits, relevant, k)
        assert found.dtype == torch.float64
        assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)

    close(metrics.precision, [[0.5, 0.5], [0.5, 0.25], [0, 0]])
    close(metrics.recall, [[1 / 3, 2 / 3], [1, 1], [0, 0]])
    close(metrics.hit, [[1, 1], [1, 1], [0, 0]])
    first, both = 1 / log3, 1 / log3 + 1 / log5
    close(metrics.ndcg, [[first / (1 + 1 / log3), both / (1 + 1 / log3 + 0.5)], [1, 1], [0, 0]])
    close(metrics.average_precision, [[0.5 / 2, (0.5 + 0.5) / 3], [1, 1], [0, 0]])
    close(metrics.reciprocal_rank, [[0.5, 0.5], [1, 1], [0, 0]])


@pytest.mark.parametrize("seed", range(5))
def test_bounds_and_monotonicity(seed):
    rng = np.random.default_rng(seed)
    hits = torch.from_numpy(rng.random((40, 30)) < 0.2)
    relevant = torch.clamp(hits.sum(1), min=1) + torch.from_numpy(rng.integers(0, 5, 40))
    k = list(range(1, 31))
    for function in (metrics.recall, metrics.hit, metrics.reciprocal_rank):
        values = function(hits, relevant, k)
        assert bool((values.diff(dim=1) >= 0).all())
    assert bool((metrics.measure(hits, relevant, k) <= 1 + 1e-12).all())
    perfect = torch.arange(30)[None] < relevant[:, None]
    for function in (metrics.ndcg, metrics.average_precision, metrics.reciprocal_rank, metrics.hit):
        assert torch.allclose(function(perfect, relevant, k), torch.ones(40, 30, dtype=torch.float64))


def test_a_cut_off_beyond_the_list_counts_misses():
    hits = torch.tensor([[True, False]])
    values = metrics.measure(hits, torch.tensor([5]), [2, 10])
    padded = metrics.measure(torch.tensor([[True] + [False] * 9]), torch.tensor([5]), [2, 10])
    assert torch.equal(values, padded)
    assert metrics.names([2, 10])[:2] == ["precision@2", "precision@10"]
    assert values[0, :2].tolist() == [0.5, 0.1]
