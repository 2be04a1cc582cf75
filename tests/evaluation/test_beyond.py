"""Metrics beyond accuracy against loops over their definitions, alone and in the evaluator's pass."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from naive import make_queries, scorer_of

from recsys.evaluation import beyond
from recsys.evaluation.beyond import Items
from recsys.evaluation.ranking import evaluate, rank
from recsys.schema import NUM_RESERVED, Interactions

NUM_ITEMS, NUM_USERS = 30, 50


def items_of(seed: int, vectors: bool = True) -> Items:
    generator = torch.Generator().manual_seed(seed)
    counts_I = torch.randint(0, NUM_USERS, (NUM_ITEMS,), generator=generator)
    counts_I[:NUM_RESERVED] = 0
    counts_I[3] = 0  # nobody had it
    vectors_ID = torch.randint(0, 2, (NUM_ITEMS, 4), generator=generator).float() if vectors else None
    return Items(counts_I / NUM_USERS, NUM_USERS, vectors_ID)


def naive(items: list[int], hits: list[bool], about: Items, k: int) -> dict[str, float]:
    share = about.popularity_I.double().tolist()
    kept = [i for i in items[:k] if i >= 0]
    popular = sorted(range(len(share)), key=lambda i: (-share[i], i))[:k]
    pairs = list(combinations(kept, 2))

    def cosine(i: int, j: int) -> float:
        a, b = (about.vectors_ID[n].double().numpy() for n in (i, j))
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return 0.0 if lengths == 0 else float(a @ b / lengths)

    return {
        "popularity": sum(share[i] for i in kept) / max(len(kept), 1),
        "novelty": sum(-math.log2(max(share[i], 1 / NUM_USERS)) for i in kept) / max(len(kept), 1),
        "serendipity": sum(h and i not in popular for i, h in zip(items[:k], hits, strict=False)) / k,
        "diversity": sum(1 - cosine(i, j) for i, j in pairs) / len(pairs) if pairs else 0.0,
    }


def test_lists_are_described_as_the_definitions_say() -> None:
    generator = torch.Generator().manual_seed(1)
    items, cuts = items_of(0), [1, 3, 8]
    lists_BK = torch.stack([torch.randperm(NUM_ITEMS, generator=generator)[:8] for _ in range(40)])
    lists_BK[5, 2:] = -1
    lists_BK[6] = -1
    hits_BK = (torch.rand(40, 8, generator=generator) < 0.3) & (lists_BK >= 0)
    found = beyond.measure(lists_BK, hits_BK, items, cuts).view(40, 4, 3)
    for b in range(40):
        for c, k in enumerate(cuts):
            expected = naive(lists_BK[b].tolist(), hits_BK[b].tolist(), items, k)
            assert dict(zip(items.names, found[b, :, c].tolist(), strict=True)) == pytest.approx(expected)


def test_spread_is_that_of_all_lists() -> None:
    candidates_I = torch.ones(NUM_ITEMS, dtype=torch.bool)
    candidates_I[:NUM_RESERVED] = False
    one = beyond.exposure(torch.full((9, 1), 4), NUM_ITEMS, [1])
    size = NUM_ITEMS - NUM_RESERVED
    assert beyond.spread(one, candidates_I, [1]) == pytest.approx({"coverage@1": 1 / size, "gini@1": 1 - 1 / size})
    every = beyond.exposure(torch.arange(NUM_RESERVED, NUM_ITEMS)[:, None], NUM_ITEMS, [1])
    assert beyond.spread(every, candidates_I, [1]) == pytest.approx({"coverage@1": 1.0, "gini@1": 0.0})
    lists = torch.tensor([[2, 3, 4], [2, 3, 5], [2, 4, -1]])
    counts = np.zeros(size)
    counts[:4] = [3, 2, 2, 1]
    differences = np.abs(counts[:, None] - counts).sum()
    gini = differences / (2 * size * counts.sum())  # half the relative mean difference
    found = beyond.spread(beyond.exposure(lists, NUM_ITEMS, [2, 3]), candidates_I, [2, 3])
    assert found["gini@3"] == pytest.approx(gini)
    assert (found["coverage@2"], found["coverage@3"]) == pytest.approx((3 / size, 4 / size))


def test_a_history_is_as_popular_as_its_items() -> None:
    items = items_of(2)
    history = Interactions.from_pairs(torch.tensor([0, 0, 2]), torch.tensor([4, 5, 6]), num_rows=3, num_items=NUM_ITEMS)
    share = items.popularity_I
    found = beyond.history_popularity(history, items)
    assert found[[0, 2]].tolist() == pytest.approx([float(share[4] + share[5]) / 2, float(share[6])])
    assert found[1].isnan()


@pytest.mark.parametrize("vectors", [True, False])
def test_the_evaluator_measures_them_in_the_same_pass(vectors: bool) -> None:
    queries = make_queries(np.random.default_rng(3), 60, NUM_ITEMS)
    score = scorer_of(torch.rand(60, NUM_ITEMS, generator=torch.Generator().manual_seed(3)))
    items = items_of(4, vectors=vectors)
    plain = evaluate(score, queries, k=[2, 5], num_replicates=50)
    found = evaluate(score, queries, k=[2, 5], num_replicates=50, items=items)
    assert {name: found.metrics[name] for name in plain.metrics} == pytest.approx(plain.metrics, rel=1e-12)
    for name, interval in plain.intervals.items():
        assert found.intervals[name] == pytest.approx(interval, rel=1e-12)
    lists = rank(score, queries, 5)
    relevant = [set(queries.relevant.rows(q, q + 1).item_idx.tolist()) for q in range(len(queries))]
    seen = [set(queries.history.rows(q, q + 1).item_idx.tolist()) for q in range(len(queries))]
    rows = [q for q in range(len(queries)) if len(relevant[q] - seen[q]) + int(queries.num_cold_relevant[q])]
    assert found.per_user.height == len(rows)
    for k in (2, 5):
        for place, q in enumerate(rows):
            hits = [i in relevant[q] and i not in seen[q] for i in lists[q].tolist()]
            expected = naive(lists[q].tolist(), hits, items_of(4), k)
            for name in items.names:
                assert found.per_user[f"{name}@{k}"][place] == pytest.approx(expected[name], rel=1e-5, abs=1e-6)
        for name in items.names:
            mean = found.per_user[f"{name}@{k}"].mean()
            assert found.metrics[f"{name}@{k}"] == pytest.approx(mean, rel=1e-5, abs=1e-6)
            low, high = found.intervals[f"{name}@{k}"]
            assert low <= found.metrics[f"{name}@{k}"] <= high
        share = items.popularity_I.double()
        told = [(place, q) for place, q in enumerate(rows) if seen[q]]
        of_lists = sum(found.per_user[f"popularity@{k}"][place] for place, _ in told)
        of_histories = sum(float(share[list(seen[q])].mean()) for _, q in told)
        assert found.metrics[f"popularity_lift@{k}"] == pytest.approx(of_lists / of_histories - 1, rel=1e-5)
        shown = {i for q in rows for i in lists[q, :k].tolist() if i >= 0}
        assert found.metrics[f"coverage@{k}"] == pytest.approx(len(shown) / int(queries.candidates.sum()))
    assert ("diversity@2" in found.metrics) == vectors
