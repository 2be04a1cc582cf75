"""Every retriever with its defaults on the built-in world, beside its answer key.

    python benchmarks/bench_defaults.py [--world tiny] [--models als ease …] [--out FILE]

Every run is a `recsys train model=… world=…`, seed 0, nothing tuned; those that read features get features=world.
recall@20 with its interval, as a share of the log oracle's, and the clicks that a list of 20 is expected to bring if it
is shown, as a share of what the list by true relevance would. collisions: iALS whose videos are hashed into as many
buckets as there are videos, ten times as many, and a tenth (`recsys study collisions`). statistics: those of the world
beside published ones (`recsys world validate`), of --validate. No time is measured. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from typing import Any

import recsys
from recsys import backend, benching, config
from recsys.data.datamodule import RecDataModule
from recsys.studies import collisions
from recsys.world.validation import validate

WITH_FEATURES = ("tags", "sasrec", "two_tower")
MODELS = ("popularity", "knn", "ease", "als", "mf", "item2vec", "lightgcn", "neumf", *WITH_FEATURES)
METRICS = {
    "recall@20": "test/recall@20", "low": "test/recall@20/low", "high": "test/recall@20/high",
    "oracle": "oracle/recall@20", "clicks": "utility/clicks@20", "best_clicks": "best/clicks@20",
}  # fmt: skip


def retrievers(world: str, models: list[str]) -> list[dict[str, Any]]:
    """A row a model."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            words = [f"world={world}", f"model={model}", *(["features=world"] if model in WITH_FEATURES else [])]
            found = recsys.train(*words, "seed=0", "trainer=cpu", f"hydra.run.dir={folder}/{model}").metrics
            row = {"model": model} | {name: found[key] for name, key in METRICS.items()}
            row |= {"of_oracle": row["recall@20"] / row["oracle"], "of_best": row["clicks"] / row["best_clicks"]}
            rows.append(row)
            print(row, flush=True)
    return rows


def hashed(world: str) -> list[dict[str, Any]]:
    """A row a number of buckets, the first without hashing."""
    cfg = config.compose("data=world", f"world={world}", "model=als")
    data = RecDataModule(config.build(cfg.data), config.partial(cfg.split), 0)
    evaluate = partial(config.evaluator(cfg), device=backend.device("cpu"), seed=0)
    numbers = [None, 10 * len(data.items), len(data.items), len(data.items) // 10]
    return collisions.study(data, config.partial(cfg.model), evaluate, numbers, k=20, seed=0).to_dicts()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="tiny")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--validate", nargs="*", default=["medium", "youtube"], help="presets of configs/world")
    given = benching.arguments(parser, small={"models": ["popularity", "knn", "ease", "als", "tags"], "validate": []})
    figures: dict[str, Any] = {"world": given.world, "rows": retrievers(given.world, given.models)}
    figures["collisions"] = hashed(given.world)
    print(*figures["collisions"], sep="\n", flush=True)
    figures["statistics"] = {}
    for name in given.validate:
        world = config.build(config.compose("data=world", f"world={name}").world)
        figures["statistics"][name] = validate(world).to_dicts()
        print(name, *figures["statistics"][name], sep="\n", flush=True)
    benching.publish("defaults", figures, given)


if __name__ == "__main__":
    main()
