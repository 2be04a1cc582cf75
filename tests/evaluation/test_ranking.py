"""The evaluator against a float64 reference of `naive`."""

import math
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import make_queries, reference, scorer_of

from recsys.evaluation import evaluate, rank, top_k
from recsys.evaluation.metrics import METRICS
from recsys.schema import Interactions, Queries


@pytest.mark.filterwarnings("ignore:k=")
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_queries=st.integers(1, 12),
    num_items=st.sampled_from([3, 9, 40, 300]),
    levels=st.sampled_from([1, 2, 5, 10**6]),
    ks=st.lists(st.sampled_from([1, 2, 3, 7, 20, 50]), min_size=1, max_size=4),
    density=st.sampled_from([0, 1, 8]),
    mask_history=st.booleans(),
    memory_bytes=st.sampled_from([1, 2**20, None]),
    listed=st.sampled_from([None, 2, 20]),
)
def test_evaluation_equals_the_reference(
    seed, num_queries, num_items, levels, ks, density, mask_history, memory_bytes, listed
):
    rng = np.random.default_rng(seed)
    size = {"history": density, "relevant": density, "cold": 0.3 * density, "listed": listed}
    queries = make_queries(rng, num_queries, num_items, **size)
    scores = torch.from_numpy(rng.integers(0, levels, (num_queries, num_items)).astype(np.float32))
    scores[torch.from_numpy(rng.random(scores.shape) < 0.02)] = -math.inf
    metrics, warm, users = reference(scores, queries, sorted(set(ks)), seed, mask_history)
    arguments = {"k": ks, "seed": seed, "mask_history": mask_history, "memory_bytes": memory_bytes}
    if not users:
        with pytest.raises(ValueError, match="nothing to measure"):
            evaluate(scorer_of(scores), queries, **arguments)
        return
    found = evaluate(scorer_of(scores), queries, **arguments, num_replicates=20)
    assert found.metrics == pytest.approx(metrics, abs=1e-12)
    assert found.warm == pytest.approx(warm, abs=1e-12)
    assert found.counts["queries"] == len(users)
    assert found.counts["empty_relevant"] == num_queries - len(users)
    assert found.counts["cold_relevant"] == int(queries.num_cold_relevant.sum())
    if listed is not None:
        assert found.counts["list_longest"] == int(queries.lists.row_counts().max())
    for row, expected in zip(found.per_user.iter_rows(named=True), users, strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_history_reserved_and_non_candidates_are_never_recommended():
    rng = np.random.default_rng(3)
    queries = make_queries(rng, 20, 50, history=20, candidates=0.6)
    scores = torch.from_numpy(rng.random((20, 50)))
    scores[:, :2] = math.nan  # what a model says of reserved items does not matter
    scores[:, ~queries.candidates] += 9
    item_idx = rank(scorer_of(scores), queries, 48)
    for row, items in enumerate(item_idx.tolist()):
        seen = set(queries.history.rows(row, row + 1).item_idx.tolist())
        expected = {i for i in range(50) if queries.candidates[i]} - seen
        assert [i for i in items if i >= 0] == items[: len(expected)]
        assert set(items) - {-1} == expected
    repeated = rank(scorer_of(scores), queries, 48, mask_history=False)
    assert all(set(items) - {-1} == set(queries.candidates.nonzero()[:, 0].tolist()) for items in repeated.tolist())


def test_a_constant_model_scores_as_chance():
    """Mean recall@K of a constant is K / candidates, whatever the relevant items are."""
    num_queries, num_items, k = 3000, 402, 20
    # Every user wants the same three items: one order shared by all users would show.
    row = torch.arange(num_queries).repeat_interleave(3)
    relevant = Interactions.from_pairs(
        row, torch.tensor([2, 3, 201]).repeat(num_queries), num_rows=num_queries, num_items=num_items
    )
    known = torch.arange(num_items) >= 2
    queries = Queries(
        user_idx=torch.arange(num_queries),
        user_key=torch.arange(num_queries),  # keys as regular as they can be
        history=Interactions.empty(num_queries, num_items),
        relevant=relevant,
        num_cold_relevant=torch.zeros(num_queries, dtype=torch.int64),
        warm=torch.ones(num_queries, dtype=torch.bool),
        candidates=known,
    )
    chance = k / 400
    deviation = math.sqrt(chance * (1 - chance) / (3 * num_queries))
    recalls = []
    for seed in range(3):
        found = evaluate(lambda batch: torch.zeros(len(batch["user_idx"]), num_items), queries, k=(k,), seed=seed)
        recalls.append(found.metrics[f"recall@{k}"])
        assert abs(recalls[-1] - chance) < 4 * deviation
        # The first place is as good as any other.
        assert abs(found.metrics[f"mrr@{k}"] - np.mean(1 / np.arange(1, 401) * (np.arange(400) < k)) * 3) < 0.004
    assert len(set(recalls)) == 3
    lists = rank(lambda batch: torch.zeros(len(batch["user_idx"]), num_items), queries, k)
    counts = torch.bincount(lists.view(-1), minlength=num_items)[2:].double()
    # Chi-square with 399 degrees of freedom, five deviations wide.
    statistic = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert abs(statistic - 399) < 5 * math.sqrt(2 * 399)


def permuted(queries, scores, users, items):
    """The same queries and scores with users in the order `users` and item i renamed to items[i]."""

    def renamed(pairs):
        pairs = pairs.select(users)
        return Interactions.from_pairs(
            pairs.row_idx(), items[pairs.item_idx], num_rows=len(users), num_items=len(items)
        )

    candidates, moved = torch.empty_like(queries.candidates), torch.empty_like(scores)
    candidates[items] = queries.candidates
    moved[:, items] = scores
    return (
        Queries(
            queries.user_idx[users],
            queries.user_key[users],
            renamed(queries.history),
            renamed(queries.relevant),
            queries.num_cold_relevant[users],
            queries.warm[users],
            candidates,
        ),
        moved,
    )


@pytest.mark.parametrize("seed", range(3))
def test_user_order_item_names_and_blocks_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    queries = make_queries(rng, 60, 2000, relevant=60)
    scores = torch.from_numpy(rng.permuted(np.tile(np.arange(2000.0), (60, 1)), axis=1))
    before = evaluate(scorer_of(scores), queries, k=(5, 50))
    users = torch.from_numpy(rng.permutation(60))
    items = torch.cat([torch.arange(2), 2 + torch.from_numpy(rng.permutation(1998))])
    other_queries, other_scores = permuted(queries, scores, users, items)
    after = evaluate(scorer_of(other_scores), other_queries, k=(50, 5, 5), memory_bytes=1)
    assert after.metrics == pytest.approx(before.metrics, abs=1e-12)
    assert after.warm == pytest.approx(before.warm, abs=1e-12)
    for name, ends in before.intervals.items():
        assert after.intervals[name] == pytest.approx(ends, abs=1e-9)
    assert after.per_user.sort("user_key").equals(before.per_user.sort("user_key").select(after.per_user.columns))
    assert 0 < before.metrics["recall@5"] < before.metrics["recall@50"] < 1


def test_ties_follow_the_user_and_not_the_row():
    queries = make_queries(np.random.default_rng(0), 30, 500)
    constant = torch.zeros(30, 500)
    lists = rank(scorer_of(constant), queries, 10, seed=3)
    users = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    other, _ = permuted(queries, constant, users, torch.arange(500))
    assert torch.equal(rank(scorer_of(constant), other, 10, seed=3, memory_bytes=1), lists[users])
    assert not torch.equal(rank(scorer_of(constant), queries, 10, seed=4), lists)


def test_the_scorer_gets_its_scores_back():
    """A scorer may hand out what it keeps: one row for all, or a table."""
    queries = make_queries(np.random.default_rng(1), 30, 80, history=10)
    popularity = torch.arange(80.0)
    table = popularity.repeat(30, 1)
    expected = rank(lambda batch: popularity.repeat(len(batch["user_idx"]), 1), queries, 9)
    assert torch.equal(rank(lambda batch: popularity.expand(len(batch["user_idx"]), -1), queries, 9), expected)
    assert torch.equal(rank(lambda batch: table, queries, 9), expected)
    assert torch.equal(rank(lambda batch: table.T.contiguous().T, queries, 9), expected)
    assert torch.equal(table, torch.arange(80.0).repeat(30, 1))
    assert torch.equal(popularity, torch.arange(80.0))


def test_metrics_of_real_valued_scores_hold_to_the_rounding_bound():
    """A float32 inner product may swap only items closer than its rounding error."""
    rng = np.random.default_rng(5)
    users, items = rng.normal(size=(50, 64)), rng.normal(size=(3000, 64))
    queries = make_queries(rng, 50, 3000, candidates=1.0)
    users_32, items_32 = torch.from_numpy(users).float(), torch.from_numpy(items).float()
    lists = rank(lambda batch: users_32[batch["user_idx"] - 2] @ items_32.T, queries, 100)
    exact = users_32.double() @ items_32.double().T
    bound = 64 * 2**-24 * (users_32.double().abs() @ items_32.double().abs().T)
    exact_lists = rank(scorer_of(exact), queries, 100)
    rows = torch.arange(50)[:, None]
    gap = (exact[rows, lists] - exact[rows, exact_lists]).abs()
    assert bool((gap <= bound[rows, lists] + bound[rows, exact_lists]).all())


def test_nan_names_the_first_user():
    queries = make_queries(np.random.default_rng(0), 9, 600, history=0, candidates=1.0)
    scores = torch.rand(9, 600)
    scores[5, 431] = math.nan
    scores[7] = math.nan
    for memory_bytes in (1, None):
        with pytest.raises(ValueError, match=rf"user_idx 7 \(user_key {int(queries.user_key[5])}\) is NaN"):
            evaluate(scorer_of(scores), queries, memory_bytes=memory_bytes)
    with pytest.raises(ValueError, match="row 5 is NaN"):
        top_k(scores, 3, user_key=queries.user_key, seed=0)


def test_bad_arguments_are_one_line():
    queries = make_queries(np.random.default_rng(0), 3, 30)
    scores = torch.rand(3, 30)
    for k in ([0], [10, -1], []):
        with pytest.raises(ValueError, match="at least 1"):
            evaluate(scorer_of(scores), queries, k=k)
    with pytest.raises(ValueError, match="at least 1"):
        rank(scorer_of(scores), queries, 0)
    with pytest.raises(ValueError, match=r"3 users and 30 items, got shape \(3, 29\)"):
        rank(scorer_of(scores[:, 1:]), queries, 5)


def test_k_beyond_the_catalogue_warns_once_and_counts_misses():
    queries = make_queries(np.random.default_rng(0), 8, 12, candidates=1.0, relevant=5)
    with pytest.warns(UserWarning, match="k=50 is beyond the catalogue of 10 candidates") as caught:
        found = evaluate(scorer_of(torch.rand(8, 12)), queries, k=(5, 20, 50))
    assert len(caught) == 1
    assert found.counts["k_beyond_catalogue"] == 2
    assert found.metrics["recall@20"] == found.metrics["recall@50"]
    assert found.metrics["precision@20"] == pytest.approx(2.5 * found.metrics["precision@50"])


def test_only_cold_items_is_not_empty():
    none = Interactions.empty(2, 10)
    queries = Queries(
        user_idx=torch.tensor([2, 3]),
        user_key=torch.tensor([11, 12]),
        history=none,
        relevant=none,
        num_cold_relevant=torch.tensor([2, 0]),
        warm=torch.tensor([True, True]),
        candidates=torch.arange(10) >= 2,
    )
    found = evaluate(scorer_of(torch.rand(2, 10)), queries, k=(3,))
    assert found.per_user["user_key"].to_list() == [11]
    assert found.metrics == dict.fromkeys((f"{metric}@3" for metric in METRICS), 0.0)
    assert found.warm == {}
    assert found.counts["empty_relevant"] == 1
    assert found.counts["cold_relevant"] == 2


def test_output_is_flat_typed_and_reports_progress():
    queries = make_queries(np.random.default_rng(2), 1100, 30)
    seen = []
    found = evaluate(
        scorer_of(torch.rand(1100, 30)),
        queries,
        k=(20, 10),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 1100) for done in (1024, 1100)]
    assert evaluate(scorer_of(torch.rand(1100, 30)), queries, k=(5,), num_replicates=0).intervals == {}
    columns = [f"{metric}@{k}" for metric in METRICS for k in (10, 20)]
    assert list(found.metrics) == list(found.intervals) == list(found.warm) == columns
    assert found.per_user.columns == ["user_idx", "user_key", "num_relevant", "warm", *columns]
    assert set(found.per_user.select(columns).dtypes) == {pl.Float32}
    assert all(low <= found.metrics[name] <= high for name, (low, high) in found.intervals.items())
    assert found.seconds > 0


def test_threads_do_not_matter_and_are_given_back():
    queries = make_queries(np.random.default_rng(2), 300, 200)
    scores, before = torch.rand(300, 200), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(rank(scorer_of(scores), queries, 9, memory_bytes=2**16))
            assert torch.get_num_threads() == threads
            with pytest.raises(RuntimeError, match="broken"):
                evaluate(broken, queries)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def broken(batch):
    raise RuntimeError("broken")


def test_a_scorer_under_grad_or_inference_mode_works():
    queries = make_queries(np.random.default_rng(2), 10, 60)
    weight = torch.nn.Parameter(torch.rand(10, 60))
    expected = rank(scorer_of(weight.detach()), queries, 5)
    assert torch.equal(rank(scorer_of(weight), queries, 5), expected)
    with torch.inference_mode():
        frozen = weight * 1
    assert torch.equal(rank(lambda batch: frozen, queries, 5), expected)
    with torch.inference_mode():
        assert torch.equal(rank(scorer_of(weight), queries, 5), expected)
    item_idx, _ = top_k(weight, 5, user_key=queries.user_key, seed=0)
    assert item_idx.shape == (10, 5)


PEAK = """
import resource, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, "tests/evaluation")
import numpy as np
from recsys.evaluation import evaluate
from recsys.schema import Interactions, Queries
num_queries, num_items, memory_bytes = int(sys.argv[1]), 20_000, int(sys.argv[2])
g = torch.Generator().manual_seed(0)
pairs = Interactions.from_pairs(
    torch.arange(num_queries), torch.randint(2, num_items, (num_queries,), generator=g),
    num_rows=num_queries, num_items=num_items)
queries = Queries(
    torch.arange(num_queries), torch.arange(num_queries), Interactions.empty(num_queries, num_items), pairs,
    torch.zeros(num_queries, dtype=torch.int64), torch.ones(num_queries, dtype=torch.bool),
    torch.arange(num_items) >= 2)
items = torch.rand(num_items, 1, generator=g)
ranked = lambda batch: batch["user_key"][:, None].float() @ items.T
evaluate(ranked, queries.rows(0, 300), k=(10,), memory_bytes=memory_bytes)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
evaluate(ranked, queries, k=(10,), memory_bytes=memory_bytes)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_peak_memory_is_flat_in_the_number_of_users():
    """Beyond the per-user output (some 60 bytes a user) six times the users take no more memory."""

    def grown(num_queries, memory_bytes):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(num_queries), str(memory_bytes)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout) * 1024

    few, many = grown(500, 2**25), grown(3000, 2**25)
    assert many - few < 2500 * 200 + 2**23  # one float32 row of scores a user would be 200 MB
    assert many < 2**25 + 2**24


def test_counts_of_cold_users_and_seeds():
    queries = make_queries(np.random.default_rng(8), 50, 100, relevant=3)
    scores = torch.zeros(50, 100)
    first, again, other = (evaluate(scorer_of(scores), queries, k=(10,), seed=seed) for seed in (1, 1, 2))
    assert first.metrics == again.metrics
    assert first.intervals == again.intervals
    assert first.metrics != other.metrics
    assert first.counts["cold_users"] == int((~first.per_user["warm"]).sum()) > 0
    assert first.counts["warm_queries"] <= int(first.per_user["warm"].sum())
