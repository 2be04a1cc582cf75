"""A simulated day: iALS factors behind an index serve every user of a world, beside the world's own logging policy.

    python benchmarks/bench_simulator.py [--world small] [--train-days 7] [--size small] [--out FILE]

The factors are fitted to the positives of the first days, streamed; the day after them is simulated: who comes, a slate
of max_depth positions for each visit, the response. A list is searched once a user, without what the user liked, for
all users that the model knows, in the policy's seconds. In a large world exact search of all users is a product of
1,000,000 x 1,000,000 x 64 and takes an hour on two cores: the index is IVF, its recall against exact search printed.
The last line is one JSON object: seconds of fitting by part, apart; of the day in total and by part (visits, policy,
response, the rest being sums), visits, impressions and positions filled a second, clicks a visit, and the peak of
memory.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from recsys import benching, config
from recsys.index import ItemIndex
from recsys.models.als import ALS
from recsys.online.policies import Popularity
from recsys.online.simulator import LoggingPolicy, simulate
from recsys.online.slates import Policy
from recsys.online.vectors import FromVectors, from_retriever
from recsys.schema import NUM_RESERVED, Interactions, Schema
from recsys.world import World, logs, population

QUERIES = 500  # for recall


def likes(world: World, days: range) -> tuple[Interactions, Popularity]:
    """Positives of all users, row = user_idx, and their counts; a number plus 2 is an index, without a vocabulary."""
    users, items, frames = [], [], []
    for (_, numbers), rows in zip(logs.blocks(world, days), logs.stream(world, days), strict=True):
        liked = (rows["label"] == 1).nonzero()[:, 0]
        users.append(rows["row"][liked] + numbers.start + NUM_RESERVED)
        items.append(rows["video"][liked] + NUM_RESERVED)
        frames.append(logs.frame({name: rows[name][liked] for name in logs.COLUMNS}).select("item_id"))
    history = Interactions.from_pairs(
        torch.cat(users), torch.cat(items),
        num_rows=world.num_users + NUM_RESERVED, num_items=world.num_videos + NUM_RESERVED,
    )  # fmt: skip
    return history, Popularity(pl.concat(frames))


def factory_of(num_items: int) -> tuple[str, str]:
    """The index and its search: exact below 50,000 items."""
    if num_items < 50_000:
        return "exact", ""
    return f"IVF{2 ** round(math.log2(2 * math.sqrt(num_items)))},Flat", "nprobe=32"


def recall(policy: FromVectors, vectors_ND: Tensor, k: int) -> float:
    """Share of the exact lists of some users that the policy's lists hold."""
    asked = torch.linspace(0, len(policy.vectors_UD) - 1, QUERIES).long()
    seen = None if policy.seen is None else policy.seen.select(asked)
    exact = ItemIndex(vectors_ND, factory="exact").search(policy.vectors_UD[asked], k, exclude=seen)[1]
    found = policy.lists_UL[asked]
    return float((exact[:, :, None] == found[:, None, :]).any(2).double().mean())


def day_of(world: World, policy: Policy, day: int) -> dict[str, float]:
    """Seconds and counts of one simulated day."""
    began = time.perf_counter()
    outcome = simulate(world, policy, days=range(day, day + 1))
    seconds = time.perf_counter() - began
    total = outcome.users.select("visits", "impressions", "clicks").sum().row(0, named=True)
    found = {"seconds": seconds} | {f"seconds_{part}": spent for part, spent in outcome.seconds.items()}
    found |= total | {
        "visits_per_second": total["visits"] / seconds,
        "impressions_per_second": total["impressions"] / seconds,
        "positions_per_second": total["visits"] * world.max_depth / seconds,
        "clicks_per_visit": total["clicks"] / total["visits"],
    }
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="small")
    parser.add_argument("--train-days", type=int, default=7)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--sweeps", type=int, default=4)
    parser.add_argument("--factory", help="of the index; by the number of items if not given")
    parser.add_argument("--search", default="", help="of --factory, as nprobe=32")
    arguments = benching.arguments(parser, small={"world": "tiny"})
    world = config.build(config.compose("data=world", f"world={arguments.world}").world)
    moments = [time.perf_counter()]
    history, popular = likes(world, range(arguments.train_days))
    moments.append(time.perf_counter())
    model = ALS(
        Schema.of(history.num_rows, history.num_items), embedding_dim=arguments.dim, num_sweeps=arguments.sweeps
    )
    model.fit(history)
    moments.append(time.perf_counter())
    num_items = int((model.item_counts > 0).sum())
    factory, search = (arguments.factory, arguments.search) if arguments.factory else factory_of(num_items)
    policy = from_retriever(
        model, history,
        population.user_ids(world, torch.arange(world.num_users)),
        population.video_ids(world, torch.arange(world.num_videos)),
        k=world.max_depth, fallback=popular, factory=factory, search=search,
    )  # fmt: skip
    moments.append(time.perf_counter())
    stream, fit, index = (round(b - a, 2) for a, b in itertools.pairwise(moments))
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "world": world.name,
        "users": world.num_users,
        "videos": world.num_videos,
        "k": world.max_depth,
        "training": {"days": arguments.train_days, "positives": len(history), "dim": arguments.dim,
                     "sweeps": arguments.sweeps, "seconds_stream": stream, "seconds_fit": fit,
                     "seconds_vectors_and_index": index},
        "index": {"factory": factory, "search": search, "items": num_items, "users": len(policy.vectors_UD)},
    }  # fmt: skip
    print(result, flush=True)
    result["mf"] = day_of(world, policy, arguments.train_days)
    print("mf", result["mf"], flush=True)
    known_N = (model.item_counts[NUM_RESERVED:] > 0).nonzero()[:, 0] + NUM_RESERVED
    result["index"]["recall"] = round(recall(policy, model.encode_items(known_N), world.max_depth), 4)
    result["logging"] = day_of(world, LoggingPolicy(world), arguments.train_days)
    print("logging", result["logging"], flush=True)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    result["peak_bytes"] = int(peak.split()[1]) * 1024
    benching.publish("simulator", result, arguments)


if __name__ == "__main__":
    main()
