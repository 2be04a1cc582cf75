"""Time and memory of the evaluator beside implicit + ranx and beside the bare matrix product.

    python benchmarks/bench_evaluation.py [--users 30000] [--items 40000] [--dim 64] [--k 20 100] [--size small]
        [--out F]

One run measures, in turn and several times over, on two threads:
    product      users × items alone, in blocks, buffer reused, the fastest orientation and block size
    evaluation   top-K of all users with seen items masked, and six metrics
    + intervals  the same with 1,000 bootstrap replicates
    + lists      the same, and what the lists are like (popularity, novelty, serendipity, coverage, Gini)
    peers        implicit's recommend with seen items masked (the faster of one and two BLAS threads), then
                 ranx's evaluate with the same six metrics on its own Qrels and Run: building those and
                 compiling are left out
The figures are medians, and only ratios within one run compare. Every user's metrics must equal ranx's to
1e-6 (their MAP divides by |R| where ours divides by min(K, |R|)); users for whom the two float32 products
order items differently are counted and left out of that check. Memory is what an evaluation adds at its peak, for these
users and for ten times as many, with blocks of at most BUDGET bytes. The last line is one JSON object.
"""

import os

os.environ.update(
    dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "2")
)

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from recsys import benching
from recsys.evaluation import evaluate, rank
from recsys.evaluation.beyond import Items
from recsys.models.base import Retriever
from recsys.schema import NUM_RESERVED, Interactions, Queries, Schema

SEED = 0
BUDGET = 2**28
THREADS = int(os.environ["OMP_NUM_THREADS"])
PEER_METRICS = {
    "precision": "precision",
    "recall": "recall",
    "hit": "hit_rate",
    "ndcg": "ndcg",
    "map": "map",
    "mrr": "mrr",
}


class Factors(Retriever):
    """A factored retriever with given vectors: what any trained inner-product model is to the evaluator."""

    def __init__(self, users_UD: torch.Tensor, items_ID: torch.Tensor) -> None:
        super().__init__(Schema.of(len(users_UD), len(items_ID)))
        self.users_UD, self.items_ID = users_UD, items_ID

    def encode_users(self, batch):
        return self.users_UD[batch["user_idx"]]

    def encode_items(self, item_idx):
        return self.items_ID[item_idx]


def make_problem(num_users: int, num_items: int, dim: int) -> tuple[Factors, Queries]:
    """Vectors, and for each user some 27 seen and 7 relevant items that the vectors say something about."""
    generator = torch.Generator().manual_seed(SEED)
    users = torch.randn(num_users + NUM_RESERVED, dim, generator=generator) / dim**0.5
    items = torch.randn(num_items + NUM_RESERVED, dim, generator=generator)
    popularity = torch.rand(num_items, generator=generator).pow(-0.3)
    rng = np.random.default_rng(SEED)
    pairs: dict[str, list[torch.Tensor]] = {"seen": [], "relevant": []}
    for start in range(0, num_users, 2000):
        rows = torch.arange(start, min(start + 2000, num_users))
        drawn = torch.multinomial(popularity, 500 * len(rows), replacement=True, generator=generator)
        drawn = (drawn + NUM_RESERVED).view(len(rows), 500).sort(1).values
        liking = torch.einsum("bd,bnd->bn", users[rows + NUM_RESERVED], items[drawn])
        liking[:, 1:][drawn[:, 1:] == drawn[:, :-1]] = -torch.inf  # an item counts once
        best = drawn.gather(1, liking.topk(60, dim=1).indices)
        best = best.gather(1, torch.rand(best.shape, generator=generator).argsort(1))
        seen = torch.from_numpy(rng.poisson(27, len(rows)).clip(1, 50))[:, None]
        relevant = torch.from_numpy(rng.poisson(7, len(rows)).clip(1, 10))[:, None]
        place = torch.arange(60)[None]
        for name, chosen in (("seen", place < seen), ("relevant", place >= 60 - relevant)):
            row, column = chosen.nonzero(as_tuple=True)
            pairs[name].append(torch.stack([row + start, best[row, column]]))
    history, relevant = (
        Interactions.from_pairs(*torch.cat(parts, 1), num_rows=num_users, num_items=len(items))
        for parts in pairs.values()
    )
    queries = Queries(
        user_idx=torch.arange(num_users) + NUM_RESERVED,
        user_key=torch.arange(num_users),
        history=history,
        relevant=relevant,
        num_cold_relevant=torch.zeros(num_users, dtype=torch.int64),
        warm=torch.ones(num_users, dtype=torch.bool),
        candidates=torch.arange(len(items)) >= NUM_RESERVED,
    )
    return Factors(users, items), queries


def seconds(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def tuned_product(model: Factors, queries: Queries):
    """The fastest blocked product of all users and items, as a call, and what it is."""
    users, items = model.users_UD[queries.user_idx], model.items_ID
    num_users, sample = len(users), min(len(users), 1536)
    ways = {}
    for size, slab in itertools.product((64, 96, 192, 384), (0, 4096, len(items))):
        buffer = torch.empty((len(items), size) if slab else (size, len(items)))

        def product(size=size, slab=slab, buffer=buffer, stop=num_users):
            for start in range(0, stop - size + 1, size):
                block = users[start : start + size]
                if not slab:
                    torch.mm(block, items.T, out=buffer)
                    continue
                for first in range(0, len(items), slab):
                    torch.mm(items[first : first + slab], block.T, out=buffer[first : first + slab])

        product(stop=size)
        taken = min(seconds(partial(product, stop=sample)) for _ in range(2))
        orientation = f"items first, {slab} at a time" if slab else "users first"
        ways[f"{size} users, {orientation}"] = taken, product
    name = min(ways, key=lambda name: ways[name][0])
    return name, ways[name][1]


def peer_recommender(model: Factors, queries: Queries, k: int):
    """implicit's recommend as a call that returns (item_idx, scores), at the faster BLAS setting."""
    try:
        from implicit.cpu.matrix_factorization_base import MatrixFactorizationBase
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        print(f"implicit is left out: {error}")
        return None

    class Given(MatrixFactorizationBase):
        def fit(self, *_arguments, **_named): ...

        def save(self, *_arguments, **_named): ...

    peer = Given(num_threads=THREADS)
    peer.user_factors = model.users_UD[queries.user_idx].numpy()
    peer.item_factors = model.items_ID[NUM_RESERVED:].numpy().copy()
    seen = queries.history
    liked = csr_matrix(
        (np.ones(len(seen), np.float32), (seen.item_idx - NUM_RESERVED).numpy(), seen.indptr.numpy()),
        shape=(len(queries), queries.num_items - NUM_RESERVED),
    )
    everyone = np.arange(len(queries))

    def recommend(blas_threads, users=everyone):
        with threadpool_limits(blas_threads, user_api="blas"):
            return peer.recommend(users, liked[users], N=k, filter_already_liked_items=True)

    few = everyone[:2000]
    recommend(1, few)
    taken = {n: min(seconds(lambda n=n: recommend(n, few)) for _ in range(2)) for n in (1, THREADS)}
    return lambda: recommend(min(taken, key=taken.get))


def peer_metrics(queries: Queries, item_idx: np.ndarray, scores: np.ndarray, k: int):
    """ranx's evaluate as a call that returns {metric: per-user values}; compiled, its Qrels and Run built."""
    try:
        import ranx
    except ImportError as error:
        print(f"ranx is left out: {error}")
        return None
    names = [f"{row:09d}" for row in range(len(queries))]  # ranx sorts by name
    relevant = queries.relevant.item_idx.tolist()
    pairs = itertools.pairwise(queries.relevant.indptr.tolist())
    qrels = {name: dict.fromkeys(map(str, relevant[i:j]), 1) for name, (i, j) in zip(names, pairs, strict=True)}
    rows = zip(names, item_idx.tolist(), scores.tolist(), strict=True)
    run = {name: dict(zip(map(str, items), values, strict=True)) for name, items, values in rows}
    qrels, run = ranx.Qrels(qrels), ranx.Run(run)
    wanted = [f"{name}@{k}" for name in PEER_METRICS.values()]

    def measure():
        return ranx.evaluate(qrels, run, wanted, return_mean=False, threads=THREADS, save_results_in_run=False)

    measure()
    return measure


def check_agreement(found, lists: np.ndarray, peer_lists: np.ndarray, peer_values: dict, k: int) -> int:
    """Assert equal metrics for all users whose lists are equal; how many users' lists are not."""
    same = (lists == peer_lists).all(1)
    assert same.mean() > 0.99, f"{(~same).sum()} lists differ from implicit's"
    relevant = found.per_user["num_relevant"].to_numpy()
    for name, peer_name in PEER_METRICS.items():
        ours = found.per_user[f"{name}@{k}"].to_numpy().astype(np.float64)
        if name == "map":
            ours = ours * np.minimum(k, relevant) / relevant
        gap = np.abs(ours - peer_values[f"{peer_name}@{k}"])[same].max()
        assert gap < 1e-6, f"{name}@{k} differs from ranx's by {gap:.2g}"
    return int((~same).sum())


def resident_peak(num_users: int, num_items: int, dim: int) -> dict[str, float]:
    """MB of resident memory that an evaluation adds at its peak, and its per-user output. Its own process."""
    model, queries = make_problem(num_users, num_items, dim)
    score = model.scorer()
    evaluate(score, queries.rows(0, min(num_users, 8192)), k=(20,))  # lets the allocators settle
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    found = evaluate(score, queries, k=(20,), memory_bytes=BUDGET)
    done.set()
    watcher.join()
    return {
        "users": num_users,
        "budget_mb": round(BUDGET / 1e6, 1),
        "added_mb": round((peak - before) / 1e6, 1),
        "per_user_output_mb": round(found.per_user.estimated_size() / 1e6, 1),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--users", type=int, default=30_000)
    arguments.add_argument("--items", type=int, default=40_000)
    arguments.add_argument("--dim", type=int, default=64)
    arguments.add_argument("--k", type=int, nargs="+", default=[20, 100])
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--no-memory", action="store_true", help="leave the memory comparison out")
    arguments.add_argument("--resident", action="store_true", help=argparse.SUPPRESS)
    given = benching.arguments(arguments, small={"users": 5000, "items": 10_000, "k": [20]})
    torch.set_num_threads(THREADS)
    if given.resident:
        print(json.dumps(resident_peak(given.users, given.items, given.dim)))
        return

    model, queries = make_problem(given.users, given.items, given.dim)
    score = model.scorer()
    product_name, product = tuned_product(model, queries)
    print(f"{given.users} users × {given.items} items × {given.dim}; product in blocks of {product_name}")
    result: dict = {
        "users": given.users,
        "items": given.items,
        "dim": given.dim,
        "threads": THREADS,
        "repeats": given.repeats,
        "product": product_name,
    }
    about = Items(queries.history.item_counts() / len(queries), len(queries))
    for k in given.k:
        recommend = peer_recommender(model, queries, k)
        calls = {
            "product": product,
            "evaluation": lambda k=k: evaluate(score, queries, k=(k,), num_replicates=0),
            "evaluation_with_intervals": lambda k=k: evaluate(score, queries, k=(k,)),
            "evaluation_with_lists": lambda k=k: evaluate(score, queries, k=(k,), items=about),
        }
        if recommend is not None:
            ids, scores = recommend()
            peer_lists = ids + NUM_RESERVED
            calls["implicit"] = recommend
            measure = peer_metrics(queries, peer_lists, scores, k)
            if measure is not None:
                calls["ranx"] = measure
                found = evaluate(score, queries, k=(k,), num_replicates=0)
                lists = rank(score, queries, k).numpy()
                differing = check_agreement(found, lists, peer_lists, measure(), k)
                result[f"users_ordered_differently@{k}"] = differing
        calls["evaluation"]()
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(given.repeats):
            for name, call in calls.items():
                taken[name].append(seconds(call))
        median = {name: statistics.median(values) for name, values in taken.items()}
        ratios = {"to_product": (["evaluation"], ["product"])}
        if "ranx" in median:
            ours = ("evaluation", "evaluation_with_intervals", "evaluation_with_lists")
            ratios |= {f"peers_to_{name}": (["implicit", "ranx"], [name]) for name in ours}
        result[f"seconds@{k}"] = {name: round(value, 3) for name, value in median.items()}
        result[f"ratios@{k}"], result[f"ratios@{k}_quartiles"] = {}, {}
        for name, (above, below) in ratios.items():
            result[f"ratios@{k}"][name] = round(sum(median[n] for n in above) / sum(median[n] for n in below), 2)
            each = [
                sum(taken[n][repeat] for n in above) / sum(taken[n][repeat] for n in below)
                for repeat in range(given.repeats)
            ]
            result[f"ratios@{k}_quartiles"][name] = [round(end, 3) for end in benching.quartiles(each)]
        print(f"\nK = {k}")
        for name, value in median.items():
            runs = " ".join(f"{one:.2f}" for one in taken[name])
            print(f"  {name:<28}{value:8.2f} s   ({runs})")
        for name, value in result[f"ratios@{k}"].items():
            print(f"  {name:<36}{value:8.2f}")
    if not given.no_memory:
        print("\npeak memory that an evaluation adds, in a process of its own")
        result["memory"] = []
        for num_users in (given.users, 10 * given.users):
            command = [sys.executable, __file__, "--resident", "--users", str(num_users)]
            command += ["--items", str(given.items), "--dim", str(given.dim)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            result["memory"].append(json.loads(done.stdout.splitlines()[-1]))
            print("  {users} users: {added_mb} MB, of it output {per_user_output_mb} MB".format(**result["memory"][-1]))
    benching.publish("evaluation", result, given)


if __name__ == "__main__":
    main()
