"""How often two equal models are called different: 20,000 pairs each way, with the intervals that `compare` prints.

    python benchmarks/bench_comparison.py [--pairs 20000] [--users 500] [--seeds 5] [--size small] [--out FILE]

A user has few relevant items and a chance of each being found, drawn for the user; either model finds them by lots of
its own, so that recall is skewed and mostly 0.
one_run: `estimate` over users.
bootstrap: `paired_interval`, percentiles of 1,000 resamples of users.
several_runs: `estimate` over users and seeds, where training moves nothing but lots.
moving_runs: the same where a seed moves the chances of all users as well.
The last line is one JSON object: the share of pairs that are told apart at 95%, and its standard error. Between 4.5%
and 5.5% is right; the last, whose parts are each stretched for themselves, should only not lie above.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np
import polars as pl

from recsys import benching
from recsys.evaluation.estimates import estimate
from recsys.evaluation.significance import paired_interval


def recall(generator: np.random.Generator, chance_U: np.ndarray, relevant_U: np.ndarray) -> pl.DataFrame:
    """Recall of users by one model."""
    hits_U = generator.binomial(relevant_U, chance_U)
    return pl.DataFrame({"user_key": np.arange(len(chance_U)), "recall@20": (hits_U / relevant_U).astype(np.float32)})


def told_apart(name: str, generator: np.random.Generator, users: int, seeds: int) -> bool:
    """Whether one pair of equal models is."""
    relevant_U = generator.geometric(0.3, users)
    logit_U = generator.normal(-1.7, 1.0, users)

    def runs(count: int) -> list[pl.DataFrame]:
        shift = generator.normal(0, 0.1, count) if name == "moving_runs" else np.zeros(count)
        return [recall(generator, 1 / (1 + np.exp(-logit_U - s)), relevant_U) for s in shift]

    if name == "bootstrap":
        _, low, high = paired_interval(*runs(2))["recall@20"]
    else:
        count = 1 if name == "one_run" else seeds
        found = estimate(runs(count), "recall@20", runs(count))
        assert found is not None
        low, high = found.low, found.high
    return low > 0 or high < 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = benching.arguments(parser, small={"pairs": 500})
    result: dict[str, Any] = {"pairs": arguments.pairs, "users": arguments.users, "seeds": arguments.seeds}
    for number, name in enumerate(("one_run", "bootstrap", "several_runs", "moving_runs")):
        generator, began = np.random.default_rng(number), time.perf_counter()
        count = sum(told_apart(name, generator, arguments.users, arguments.seeds) for _ in range(arguments.pairs))
        share = count / arguments.pairs
        error = math.sqrt(share * (1 - share) / arguments.pairs)
        seconds = round(time.perf_counter() - began, 1)
        result[name] = {"told_apart": round(share, 5), "error": round(error, 5), "seconds": seconds}
        print(name, result[name], flush=True)
    benching.publish("comparison", result, arguments)


if __name__ == "__main__":
    main()
