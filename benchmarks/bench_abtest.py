"""How right an experiment is: A/A tests, planned power, coverage and peeking on users like the world's.

    python benchmarks/bench_abtest.py [--tests 20000] [--users 4000] [--power-tests 5000] [--size small] [--out FILE]

Visits are Poisson about a log-normal activity, impressions a geometric number each, clicks binomial about a user's own
rate, which is lower the more active they are, watch seconds gamma about a user's own patience; before the experiment
the same user drew all of it once, at a drifted activity. The treatment multiplies the rate of clicks, so that every
true effect is known. Two metrics, each raw and with CUPED: watch_seconds a user, and ctr, clicks over impressions.
The arithmetic is that of `recsys.online.abtest`, thousands of experiments at a time.

same: two equal groups: the share told apart at 5% by one test at the end (between 4.5% and 5.5% is right), at any of
100 looks by the confidence sequence (below 5% is right), and by a t test at each of these looks.
coverage: the share of 95% intervals of the difference and of the relative difference that hold the true one, at
--lift (94% to 96% is right).
power: the share of experiments of `sample_size` users, planned for 80% on a pilot of --pilot users, that see --lift
(77% to 83% is right); by the confidence sequence as well, and the share of the users that it takes on average until it
does or all are there.
The last line is one JSON object. Shapes: B tests at a time, U users of a group.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from recsys import benching
from recsys.online import effects
from recsys.online.effects import Effect, Floats
from recsys.online.measures import Measure, columns_of, places
from recsys.online.planning import pilot, sample_size
from recsys.online.sequential import BURN_IN, confidence_sequence

VISITS, DEPTH, RATE, SECONDS = 7.0, 18.6, 0.06, 60.0  # means: of a week, a visit, an impression, a click
ACTIVITY_SIGMA, RATE_SIGMA, PATIENCE_SIGMA, DRIFT_SIGMA = 0.8, 0.4, 0.5, 0.3
SATIATION = -0.3  # correlation of the logarithms of activity and rate
CTR = RATE * math.exp(SATIATION * ACTIVITY_SIGMA * RATE_SIGMA)  # of impressions, to which active users add more
TRUE = {"watch_seconds": VISITS * DEPTH * CTR * SECONDS, "ctr": CTR}
METRICS: dict[str, Measure] = {"watch_seconds": "watch_seconds", "ctr": ("clicks", "impressions")}
COVARIATES: dict[str, list[Measure]] = {
    "watch_seconds": ["watch_seconds_before"],
    "ctr": [("clicks_before", "impressions_before")],
}
ARMS = [(metric, method) for metric in METRICS for method in ("raw", "cuped")]
LOOKS = 100
AT_ONCE = 100_000  # users drawn at a time: few enough to stay near the caches


def draw(generator: np.random.Generator, shape: tuple[int, int], lift: float) -> dict[str, Floats]:
    """Users of one group of B tests: each column [B, U]."""
    activity, rate, patience, drift = generator.standard_normal((4, *shape))
    rate = SATIATION * activity + math.sqrt(1 - SATIATION**2) * rate
    visits = VISITS * np.exp(ACTIVITY_SIGMA * activity - ACTIVITY_SIGMA**2 / 2)
    before = visits * np.exp(DRIFT_SIGMA * drift - DRIFT_SIGMA**2 / 2)
    clicked = RATE * np.exp(RATE_SIGMA * rate - RATE_SIGMA**2 / 2)
    seconds = SECONDS * np.exp(PATIENCE_SIGMA * patience - PATIENCE_SIGMA**2 / 2)
    found = {}
    for suffix, expected, gain in (("", visits, 1 + lift), ("_before", before, 1.0)):
        came = generator.poisson(expected)
        shown = came + generator.poisson(generator.standard_gamma(came) * (DEPTH - 1))  # geometric ones, summed
        clicks = generator.binomial(shown, np.minimum(clicked * gain, 1.0))
        found[f"impressions{suffix}"], found[f"clicks{suffix}"] = shown.astype(float), clicks.astype(float)
        found[f"watch_seconds{suffix}"] = generator.standard_gamma(clicks) * seconds
    return found


def experiments(
    seed: int, tests: int, users: int, lift: float
) -> Iterator[tuple[dict[str, Floats], dict[str, Floats]]]:
    """Control and treatment of all tests, with so many users of both groups, some tests at a time."""
    generator, at_once = np.random.default_rng(seed), max(AT_ONCE // users, 1)
    for start in range(0, tests, at_once):
        shape = min(at_once, tests - start), users // 2
        yield draw(generator, shape, 0.0), draw(generator, shape, lift)


def found(
    control: dict[str, Floats], treatment: dict[str, Floats], metric: str, method: str, ends: np.ndarray | None = None
) -> Effect:
    """The effect in each test, [B]; with ends, after so many users of each group, [B, L]."""
    covariates = COVARIATES[metric] if method == "cuped" else []
    names = columns_of([METRICS[metric], *covariates])
    sides = [effects.moments([side[name] for name in names], ends) for side in (control, treatment)]
    return effects.effect(*sides, places(METRICS[metric], names), [places(one, names) for one in covariates])


def last(effect: Effect) -> Effect:
    """At the last look."""
    return Effect(*(values[..., -1] for values in effect))


def looks(users: int) -> np.ndarray:
    """Users of each group at the looks, rising."""
    ends = np.unique(np.ceil(np.arange(1, LOOKS + 1) * (users // 2 / LOOKS)).astype(np.int64))
    return ends[ends >= BURN_IN]


def share(hits: list[np.ndarray]) -> dict[str, float]:
    """Of tests, with its standard error."""
    every = np.concatenate(hits)
    part = float(every.mean())
    return {"share": round(part, 5), "error": round(math.sqrt(part * (1 - part) / len(every)), 5)}


def gathered(rows: Iterator[dict[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Shares of what each part of the tests found, by name."""
    hits = dict[str, list[np.ndarray]]()
    for row in rows:
        for name, values in row.items():
            hits.setdefault(name, []).append(values)
    return {name: share(values) for name, values in hits.items()}


def same(arguments: argparse.Namespace) -> dict[str, Any]:
    ends = looks(arguments.users)

    def rows() -> Iterator[dict[str, np.ndarray]]:
        for groups in experiments(1, arguments.tests, arguments.users, 0.0):
            row = {}
            for metric, method in ARMS:
                effect = found(*groups, metric, method, ends)
                _, _, p = confidence_sequence(effect, 2 * ends, arguments.users)
                p_each = effects.p_value(effect)
                row[f"{metric}/{method}/once"] = effects.p_value(last(effect)) < 0.05
                row[f"{metric}/{method}/sequential"] = p[..., -1] < 0.05
                row[f"{metric}/{method}/naive_peeking"] = (p_each < 0.05).any(-1)
            yield row

    return {"looks": len(ends), **gathered(rows())}


def coverage(arguments: argparse.Namespace) -> dict[str, Any]:
    def rows() -> Iterator[dict[str, np.ndarray]]:
        for groups in experiments(2, arguments.tests, arguments.users, arguments.lift):
            row = {}
            for metric, method in ARMS:
                effect = found(*groups, metric, method)
                low, high = effects.interval(effect)
                truth = TRUE[metric] * arguments.lift
                row[f"{metric}/{method}/difference"] = (low <= truth) & (truth <= high)
                low, high = effects.relative_interval(effect)
                row[f"{metric}/{method}/relative"] = (low <= arguments.lift) & (arguments.lift <= high)
            yield row

    return gathered(rows())


def planned(arguments: argparse.Namespace) -> dict[str, Any]:
    frame = pl.DataFrame({k: v[0] for k, v in draw(np.random.default_rng(3), (1, arguments.pilot), 0.0).items()})
    result = {}
    for number, (metric, method) in enumerate(ARMS):
        known = pilot(frame, METRICS[metric], COVARIATES[metric] if method == "cuped" else ())
        users = sample_size(arguments.lift, *known, relative=True)
        users += users % 2
        ends, seen, taken = looks(users), [], []
        at_any = []
        for groups in experiments(4 + number, arguments.power_tests, users, arguments.lift):
            effect = found(*groups, metric, method, ends)
            seen.append(effects.p_value(last(effect)) < 0.05)
            _, _, p = confidence_sequence(effect, 2 * ends, users)
            told = p < 0.05
            at_any.append(told[..., -1])
            taken.append(np.where(told.any(-1), ends[told.argmax(-1)], ends[-1]) * (2 / users))
        row: dict[str, Any] = {"users": users, "correlation": round(known.correlation, 4), "once": share(seen)}
        row |= {"sequential": share(at_any), "users_taken": round(float(np.concatenate(taken).mean()), 4)}
        result[f"{metric}/{method}"] = row
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=20_000)
    parser.add_argument("--users", type=int, default=4_000)
    parser.add_argument("--power-tests", type=int, default=5_000)
    parser.add_argument("--pilot", type=int, default=200_000)
    parser.add_argument("--lift", type=float, default=0.1)
    arguments = benching.arguments(parser, small={"tests": 2000, "power_tests": 500})
    result: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("tests", "users", "power_tests", "pilot", "lift")
    }
    for measure in (same, coverage, planned):
        began = time.perf_counter()
        name = "power" if measure is planned else measure.__name__
        result[name] = measure(arguments)
        result[name]["seconds"] = round(time.perf_counter() - began, 1)
        for key, value in result[name].items():
            print(name, key, value, flush=True)
    benching.publish("abtest", result, arguments)


if __name__ == "__main__":
    main()
