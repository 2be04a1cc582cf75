"""Random search on the validation part, as many trials for every model: what configs/experiment was chosen by.

    python benchmarks/tune_retrievers.py [--tasks small kuairand …] [--trials 8] [--out FILE]

The first trial of a model has its defaults, or what `FIRST` says; the others draw every key of its space. A trial
trains on train, seed 0, and is measured by ndcg@20 on validation alone: test is never looked at. On world small one
training is measured by both protocols. Trials that are in the result file are not repeated.
The last line is one JSON object: the best trial of each task, protocol and model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from pathlib import Path
from typing import Any

import torch

from recsys import atomic, config, tasks
from recsys.data.datamodule import RecDataModule
from recsys.evaluation.ranking import evaluate
from recsys.models.als import ALS
from recsys.models.ease import RIDGE_SHARE

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("RECSYS_DATA", ROOT.parent / "shared" / "data"))
ML = ["data=movielens", f"data.path={DATA / 'ml-100k'}", "data.min_rating=4"]
KUAIRAND = ["data=kuairand", f"data.path={DATA / 'kuairand_pure'}", "data.label=long_view"]
# Words of the command line, the features that two towers and SASRec read, and the models that are tuned.
TASKS: dict[str, tuple[list[str], str, list[str]]] = {
    "small": (["data=world", "world=small"], "world", ["als", "two_tower", "sasrec"]),
    "kuairand": (KUAIRAND, "kuairand", ["als", "ease", "two_tower", "sasrec"]),
    "ml100k_random": ([*ML, "split=random"], "movielens", ["als", "ease", "two_tower"]),
    "ml100k_last": ([*ML, "split=leave_last_out"], "movielens", ["als", "ease", "sasrec"]),
}
# Keys in FACTORS are multiples of what the default is on the log.
SPACES: dict[str, dict[str, list[Any]]] = {
    "als": {
        "embedding_dim": [32, 64, 128],
        "regularization": [0.3, 0.6, 1.0, 1.5, 3.0],
        "unobserved_weight": [0.3, 1.0, 3.0],
        "num_sweeps": [8, 16, 32],
    },
    "ease": {"ridge": [0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0]},
    "two_tower": {
        "history": ["none", "mean", "mean"],
        "history_power": [0.5, 1.0],
        "history_prior": [0.0, 10.0],
        "dense_decay": [0.01, 10.0],
        "id_dropout": [0.0, 0.1],
        "weight_decay": [0.06, 0.12, 0.3, 1.0],
        "feature_decay": [0.1, 0.3, 0.5, 1.0],
        "table_lr": [0.1, 0.3, 0.5],
        "batch_size": [256, 512],
        "max_epochs": [8, 12],
    },
    "sasrec": {
        "length": [20, 50],
        "dropout": [0.2, 0.5],
        "weight_decay": [0.3, 1.0, 2.0],
        "lr": [0.003, 0.006],
        "table_lr": [0.03, 0.1],
        "max_epochs": [8, 15],
    },
}
FACTORS = ("regularization", "unobserved_weight", "ridge")
FIRST: dict[tuple[str, str], dict[str, Any]] = {
    ("small", "two_tower"): {"max_epochs": 10, "batch_size": 512, "table_lr": 0.4, "dense_decay": 10.0, "age": True},
    ("small", "sasrec"): {"max_epochs": 8, "weight_decay": 1.0},
    ("ml100k_random", "two_tower"): {"history": "none", "feature_decay": 0.3, "max_epochs": 20},
    ("kuairand", "two_tower"): {
        "weight_decay": 1.0, "feature_decay": 1.0, "table_lr": 0.1, "batch_size": 512, "max_epochs": 6,
        "history_power": 0.5, "history_prior": 0.0, "dense_decay": 0.01, "negatives": "mixed",
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--models", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "tuning_retrievers.json")
    arguments = parser.parse_args()
    best: list[dict[str, Any]] = []
    for task in arguments.tasks:
        words, features, models = TASKS[task]
        if words[1].startswith("data.path=") and not Path(words[1].partition("=")[2]).exists():
            print(f"{task}: {words[1]} is not there, left out (set RECSYS_DATA)")
            continue
        log = config.build(config.compose(*words).data)
        for model in (m for m in models if m in arguments.models):
            found = search(task, [*words, f"model={model}"], features, log, arguments.trials, arguments.out)
            for protocol in sorted({trial["protocol"] for trial in found}):
                top = max((t for t in found if t["protocol"] == protocol), key=lambda t: t["ndcg@20"])
                best.append(top)
                print(json.dumps(top), flush=True)
    print(json.dumps({"benchmark": "tuning_retrievers", "trials": arguments.trials, "best": best}))


def search(task: str, words: list[str], features: str, log: Any, trials: int, out: Path) -> list[dict[str, Any]]:
    """The trials of one model on one task."""
    name = words[-1].partition("=")[2]
    lot = random.Random(f"{task} {name}")
    drawn: list[dict[str, Any]] = [FIRST.get((task, name), {})]
    while len(drawn) < trials:
        settings = drawn[0] | {key: lot.choice(values) for key, values in SPACES[name].items()}
        if settings not in drawn:
            drawn.append(settings)
    if name in ("two_tower", "sasrec"):
        words = [*words, f"features={features}"]
    cfg = config.compose(*words)
    protocols = ["users", "next_in_session"] if task == "small" else ["users"]
    modules = {p: RecDataModule(log, config.partial(cfg.split), 0, queries=p) for p in protocols}
    found = []
    for number, settings in enumerate(drawn):
        key = {"task": task, "model": name, "trial": number, "settings": settings}
        known = [t for t in records(out) if {k: t[k] for k in key} == key]
        if not known:
            known = [key | measured for measured in trial(cfg, settings, modules)]
            atomic.write_json(out, {"benchmark": "tuning_retrievers", "trials": [*records(out), *known]})
        for one in known:
            print(task, name, number, one["protocol"], one["ndcg@20"], settings, f"{one['seconds']} s", flush=True)
        found += known
    return found


def records(out: Path) -> list[dict[str, Any]]:
    return json.loads(out.read_text())["trials"] if out.exists() else []


def trial(cfg: Any, settings: dict[str, Any], modules: dict[str, RecDataModule]) -> list[dict[str, Any]]:
    """Train once with the settings and measure validation by every protocol."""
    settings = resolved(cfg, settings, modules["users"])
    cfg = cfg.copy()
    cfg.model.update(settings)
    began = time.perf_counter()
    model: Any = tasks.trained(cfg, modules["users"], torch.device("cpu")).model
    seconds = round(time.perf_counter() - began, 1)
    found = []
    for protocol, module in modules.items():
        assert module.validation is not None
        score = model.scorer_with_fallback()
        value = evaluate(score, module.validation, k=[20], num_replicates=0).metrics["ndcg@20"]
        found.append({"protocol": protocol, "ndcg@20": round(value, 5), "seconds": seconds, "resolved": settings})
    return found


def resolved(cfg: Any, settings: dict[str, Any], module: RecDataModule) -> dict[str, Any]:
    """Settings whose factors have become constants, to four digits."""
    if not set(settings) & set(FACTORS):
        return settings
    model = config.build(cfg.model, schema=module.schema)
    model.observe(module.train)
    if isinstance(model, ALS):
        weight, ridge = model.constants()
        defaults = {"unobserved_weight": weight, "regularization": ridge}
    else:
        defaults = {"ridge": RIDGE_SHARE * math.sqrt(len(module.train) / int((model.item_counts > 0).sum()))}
    return {k: float(f"{defaults[k] * v:.4g}") if k in FACTORS else v for k, v in settings.items()}


if __name__ == "__main__":
    main()
