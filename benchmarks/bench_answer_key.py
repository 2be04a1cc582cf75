"""What an evaluation would have told wrongly: leaks and their price, clicks and the truth, the metric and the better
model.

    python benchmarks/bench_answer_key.py [--parts leakage debiasing agreement] [--size small] [--out FILE]

leakage: ml-100k (ratings of 4 and more) by leave-last-out and by random split, iALS: points of recall@20 that train
    owes to rows from after the moment at which test begins.
debiasing: world tiny, popularity, iALS, EASE and tags: logged clicks as they are and weighed by propensity, beside the
    truth.
agreement: world tiny, seven models, three splits: how often a metric picks of two models the one whose lists would
    truly bring more clicks.
Real logs are found through RECSYS_DATA (default: ../shared/data) and left out, by name, where they are not. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

import recsys
from recsys import benching, config, tasks
from recsys.data.datamodule import RecDataModule
from recsys.studies import debiasing
from recsys.studies.leakage_price import study

ROOT = Path(__file__).resolve().parents[1]
ML = Path(os.environ.get("RECSYS_DATA", ROOT.parent / "shared" / "data")) / "ml-100k"
CPU = torch.device("cpu")
MODELS = (
    "model=popularity",
    "model=popularity model.window_days=3",
    "model=knn",
    "model=ease",
    "model=als",
    "model=als model.embedding_dim=8",
    "model=tags features=world",
)


def leakage() -> list[dict[str, Any]]:
    """A row a split and leak."""
    if not ML.is_dir():
        print(f"leakage: {ML} is not there, left out (set RECSYS_DATA)")
        return []
    rows = []
    for split in ("leave_last_out", "random"):
        cfg = config.compose("data=movielens", f"data.path={ML}", f"split={split}", "model=als")
        data = RecDataModule(config.build(cfg.data), config.partial(cfg.split), 0)
        found = study(data, lambda module, cfg=cfg: tasks.trained(cfg, module, CPU).measure()[1])
        rows += [{"log": "ml-100k", "split": split, "model": "iALS"} | row for row in found.to_dicts()]
    return rows


def debiased() -> list[dict[str, Any]]:
    """A row a model, estimator and length of lists."""
    rows = []
    for words in ("model=popularity", "model=als", "model=ease", "model=tags features=world"):
        cfg = config.compose("world=tiny", *words.split())
        data = RecDataModule(config.build(cfg.data), config.partial(cfg.split), 0)
        score = tasks.trained(cfg, data, CPU).model.scorer_with_fallback()
        rows += [
            {"log": "world tiny", "model": words} | row for row in debiasing.study(data, score, [20, 100]).to_dicts()
        ]
    return rows


def agreement() -> list[dict[str, Any]]:
    """A row a split and metric."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for split in ("global_time", "leave_last_out", "random"):
            for number, words in enumerate(MODELS):
                own = f"split={split}", "trainer=cpu", "evaluation.num_replicates=0"
                runs.append(recsys.train(*words.split(), *own, f"hydra.run.dir={folder}/{split}_{number}"))
        return recsys.agreement(runs).to_dicts()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"leakage": leakage, "debiasing": debiased, "agreement": agreement}
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    arguments = benching.arguments(parser, small={"parts": ["leakage", "debiasing"]})
    result: dict[str, Any] = {}
    for name in arguments.parts:
        result[name] = parts[name]()
        print(name, *result[name], sep="\n", flush=True)
    benching.publish("answer_key", result, arguments)


if __name__ == "__main__":
    main()
