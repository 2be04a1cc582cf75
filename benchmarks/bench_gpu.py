"""What a device can do, and what share of it the evaluator, the world and the indexes reach.

    python benchmarks/bench_gpu.py [--parts world evaluation index] [--users 100000 200000] [--items 100000 1000000]
        [--dim 64] [--vectors 1000000] [--world-rows 200000000] [--repeats 3] [--size small] [--out FILE]

limits: bytes a second of a copy, read and written; floating-point operations a second of square matrix products.
world: impressions a second of world large, made in blocks, and what share of their columns a CPU makes alike.
evaluation: all items for all users, K = 100: the bare product, block by block; the product with seen items masked and
    torch.topk, which is what one writes by hand; `rank`; `evaluate` at K = 20 and 100, without and with 1,000 bootstrap
    replicates. floor: the time of the operations by the limit of float32 products, or of writing and reading each score
    once, whichever is longer.
index: `ItemIndex` of vectors that are hard for inverted lists, exact and inverted: queries a second in batches of
    1,024, recall@100, and the time of the wrapper beside that of the same faiss index by hand.

Training is measured by bench_training.py and hashing by bench_hashing.py. Runs on the GPU where there is one, else on
two threads of the CPU. Medians of repeats. The last line is one JSON.
"""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2"))

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import training_models
import training_scale
from bench_index import Mixture
from torch import Tensor

from recsys import benching, config
from recsys.evaluation import evaluate, rank
from recsys.index import ItemIndex
from recsys.schema import NUM_RESERVED, Interactions, Queries, UserBatch
from recsys.world import logs
from recsys.world.population import users as people

K, SEEN, RELEVANT, BLOCK_BYTES, BATCH = 100, 20, 5, 2**30, 1024
DEVICE = training_scale.where()


def seconds_of(call: Callable[[], object], repeats: int = 3) -> list[float]:
    """Of each repeat, after one that does not count, with all that the device was given done."""
    times = []
    for _ in range(repeats + 1):
        begin = training_models.now(DEVICE)
        call()
        times.append(training_models.now(DEVICE) - begin)
    return times[1:]


def median(call: Callable[[], object], repeats: int = 3) -> float:
    return statistics.median(seconds_of(call, repeats))


def limits() -> dict[str, float]:
    """Gigabytes a second of a copy, and teraflops of products in float32 and bfloat16."""
    size = 8192 if DEVICE.type == "cuda" else 1024
    found = {
        "copy_gigabytes_per_second": training_models.copy_bandwidth(DEVICE, 2**31 if size == 8192 else 2**27) / 1e9
    }
    torch.set_float32_matmul_precision("highest")
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(2, size, size, device=DEVICE).to(dtype)
        seconds = median(partial(torch.matmul, left, right), 9)
        found[f"{str(dtype).removeprefix('torch.')}_teraflops"] = 2 * size**3 / seconds / 1e12
    return found


def world(rows: int) -> dict[str, Any]:
    """Rows a second of world large, and of its columns the share of values that a CPU makes to the bit."""
    large = config.build(config.compose("data=world", "world=large").world)
    whole = logs.blocks(large, device=DEVICE)
    logs.of_block(large, 0, range(64), DEVICE)
    times, counts = [], []
    while sum(counts) < rows:
        block = next(whole)
        begin = training_models.now(DEVICE)
        counts.append(len(logs.of_block(large, *block, DEVICE)["label"]))
        times.append(training_models.now(DEVICE) - begin)
    rates = [count / spent for count, spent in zip(counts, times, strict=True)][1:] or [counts[0] / times[0]]
    found: dict[str, Any] = {"rows": sum(counts), "rows_per_second": statistics.median(rates)}
    if DEVICE.type == "cuda":
        number = torch.arange(100_000)
        here, there = (logs.impressions(large, 3, people(large, number.to(where))) for where in ("cpu", DEVICE))
        alike = {name: float((there[name].cpu() == here[name]).double().mean()) for name in logs.COLUMNS}
        found |= {"compared_rows": len(here["label"]), "share_alike": alike}
    return found


def problem(num_users: int, num_items: int, dim: int) -> tuple[Tensor, Tensor, Queries]:
    """Vectors, and for each user items that were seen and items that are relevant."""
    generator = torch.Generator().manual_seed(0)
    users_UD, items_ID = (torch.randn(n + NUM_RESERVED, dim, generator=generator) for n in (num_users, num_items))
    row = torch.arange(num_users)
    seen, relevant = (
        Interactions.from_pairs(
            row.repeat_interleave(count),
            torch.randint(NUM_RESERVED, num_items + NUM_RESERVED, (num_users * count,), generator=generator),
            num_rows=num_users,
            num_items=num_items + NUM_RESERVED,
        )
        for count in (SEEN, RELEVANT)
    )
    queries = Queries(
        user_idx=row + NUM_RESERVED,
        user_key=row,
        history=seen,
        relevant=relevant,
        num_cold_relevant=torch.zeros(num_users, dtype=torch.int64),
        warm=torch.ones(num_users, dtype=torch.bool),
        candidates=torch.arange(num_items + NUM_RESERVED) >= NUM_RESERVED,
    )
    return users_UD.to(DEVICE), items_ID.to(DEVICE), queries


def evaluation(num_users: int, num_items: int, dim: int, limit: dict[str, float], repeats: int) -> dict[str, Any]:
    """Seconds of each way, and ratios to the bare product and to what one writes by hand."""
    users_UD, items_ID, queries = problem(num_users, num_items, dim)
    block = max(1, min(num_users, (BLOCK_BYTES if DEVICE.type == "cuda" else 2**24) // (4 * len(items_ID))))
    buffer_BI = torch.empty(block, len(items_ID), device=DEVICE)

    def score(batch: UserBatch) -> Tensor:
        return users_UD[batch["user_idx"]] @ items_ID.T

    def products() -> None:
        for start in range(NUM_RESERVED, len(users_UD), block):
            part = users_UD[start : start + block]
            torch.mm(part, items_ID.T, out=buffer_BI[: len(part)])

    def by_hand() -> Tensor:
        found = []
        for start in range(0, num_users, block):
            part = queries.rows(start, min(start + block, num_users)).to(DEVICE)
            scores_BI = users_UD[part.user_idx] @ items_ID.T
            scores_BI[:, :NUM_RESERVED] = -torch.inf
            scores_BI[part.history.row_idx(), part.history.item_idx] = -torch.inf
            found.append(scores_BI.topk(K, dim=1).indices.cpu())
        return torch.cat(found)

    def measured(num_replicates: int) -> Callable[[], object]:
        return lambda: evaluate(score, queries, k=[20, K], num_replicates=num_replicates, device=DEVICE)

    ways = {
        "product": products,
        "by_hand": by_hand,
        "rank": lambda: rank(score, queries, K, device=DEVICE),
        "evaluate": measured(0),
        "evaluate_with_intervals": measured(1000),
    }
    spent = {name: median(call, repeats) for name, call in ways.items()}
    scores = num_users * len(items_ID)
    operations = 2 * scores * dim / (limit["float32_teraflops"] * 1e12)
    memory = 8 * scores / (limit["copy_gigabytes_per_second"] * 1e9)
    some = queries.rows(0, min(num_users, 2000))
    mine, theirs = rank(score, some, K, device=DEVICE), by_hand()[: len(some)]
    return {
        "users": num_users, "items": num_items, "dim": dim, "k": K, "seconds": spent,
        "floor_seconds": max(operations, memory), "scores_per_second": scores / spent["evaluate"],
        "over_product": {name: spent[name] / spent["product"] for name in list(ways)[1:]},
        "speed_up_over_by_hand": spent["by_hand"] / spent["rank"],
        "lists_alike": float((mine.sort(1).values == theirs.sort(1).values).all(1).double().mean()),
    }  # fmt: skip


def index(num_vectors: int, dim: int, repeats: int) -> list[dict[str, Any]]:
    """Of each factory: seconds to build, queries a second, recall@100 and the wrapper's share."""
    mixture, rows = Mixture(num_vectors, dim), []
    queries_BD = mixture.queries(BATCH, 0).to(DEVICE)
    vectors_ND = mixture.vectors_ND.to(DEVICE)
    true_BK = ItemIndex(vectors_ND, factory="exact", device=DEVICE.type).search(queries_BD, K)[1]
    lists = 4096 if num_vectors >= 1_000_000 else 256
    for factory, search in (
        ("exact", ""), ("Flat", ""), (f"IVF{lists},Flat", "nprobe=32"), (f"IVF{lists},SQ8", "nprobe=32"),
        (f"IVF{lists},PQ{dim // 2}", "nprobe=32"),
    ):  # fmt: skip
        begin = training_models.now(DEVICE)
        made = ItemIndex(vectors_ND, factory=factory, search=search, device=DEVICE.type)
        built = training_models.now(DEVICE) - begin
        ours = median(partial(made.search, queries_BD, K), repeats)
        found_BK = made.search(queries_BD, K)[1]
        recall = torch.stack([torch.isin(t, f).double().mean() for t, f in zip(true_BK, found_BK, strict=True)]).mean()
        row = {"factory": factory, "search": search, "build_seconds": built, "queries_per_second": BATCH / ours}
        row |= {"recall": float(recall)}
        if factory != "exact":
            array_BD = queries_BD.cpu().numpy()
            row["over_faiss_by_hand"] = ours / median(partial(made._searched.search, array_BD, K), repeats)
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["world", "evaluation", "index"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--users", type=int, nargs="+", default=[100_000, 200_000])
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000], help="one for each of --users")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--world-rows", type=int, default=200_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    small = {"users": [4000], "items": [5000], "vectors": 30_000, "world_rows": 300_000, "repeats": 1}
    given = benching.arguments(parser, small=small)
    torch.set_num_threads(2)
    limit = limits()
    result: dict[str, Any] = {"limits": limit}
    print(json.dumps(result), flush=True)
    if "world" in given.parts:
        result["world"] = world(given.world_rows)
        print(json.dumps(result["world"]), flush=True)
    if "evaluation" in given.parts:
        sizes = zip(given.users, given.items, strict=True)
        result["evaluation"] = [evaluation(*size, given.dim, limit, given.repeats) for size in sizes]
        print(json.dumps(result["evaluation"]), flush=True)
    if "index" in given.parts:
        result["index"] = index(given.vectors, given.dim, given.repeats)
    benching.publish("gpu", result, given, DEVICE)


if __name__ == "__main__":
    main()
