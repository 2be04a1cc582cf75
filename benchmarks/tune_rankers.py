"""Random search on the validation part for rankers and LightGBM, as many trials for each: what experiments were chosen
by.

    python benchmarks/tune_rankers.py [--models dcn mf fm lightgbm] [--trials 4] [--out FILE]

World small. The first trial has the defaults, the others draw every key of their space. A trial trains on train, seed
0, and is measured by log loss on validation alone: test is never looked at. Of LightGBM, validation says when to stop
as well. mf is matrix factorisation with biases: model=fm features=ids. Trials that are in the result file are not
repeated. The last line is one JSON object: the best trial of each model.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from recsys import atomic, config, tasks
from recsys.data.datamodule import RecDataModule
from recsys.evaluation import calibration
from recsys.features.vocabulary import id_keys
from recsys.models.base import RowBatch, score
from recsys.schema import LABEL, USER_ID, Column

OUT = Path(__file__).resolve().parent / "results" / "tuning_rankers.json"
SPACES: dict[str, dict[str, list[Any]]] = {
    "dcn": {
        "embedding_dim": [8, 16, 32],
        "lr": [0.001, 0.003, 0.006],
        "table_lr": [0.3, 1.0, 2.0],
        "dropout": [0.0, 0.1],
        "batch_size": [512, 1024],
    },
    "mf": {
        "embedding_dim": [4, 16, 64],
        "lr": [0.001, 0.01],
        "table_lr": [0.0003, 0.001, 0.003, 0.01],
        "max_epochs": [1, 2],
        "batch_size": [1024, 4096],
    },
    "fm": {
        "embedding_dim": [8, 16, 32],
        "lr": [0.001, 0.003, 0.006],
        "table_lr": [0.02, 0.05, 0.1, 0.3],
        "max_epochs": [1, 2],
        "batch_size": [512, 1024],
    },
    "lightgbm": {
        "num_leaves": [15, 31, 63, 127],
        "learning_rate": [0.05, 0.1],
        "min_data_in_leaf": [20, 200, 1000],
        "feature_fraction": [0.5, 0.8, 1.0],
        "lambda_l2": [0.0, 10.0],
    },
}
FEATURES = {"mf": "ids"}
MODELS = {"mf": "fm", "lightgbm": "dcn"}  # LightGBM reads what any ranker of the same columns reads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    data = None
    best = []
    for features in ("world", "ids"):
        models = [m for m in arguments.models if FEATURES.get(m, "world") == features]
        if not models:
            continue
        cfg = config.compose("world=small", f"features={features}", "model=dcn")
        data = data or RecDataModule(config.build(cfg.data), config.partial(cfg.split), 0)
        task = tasks.Ranking(cfg, data, torch.device("cpu"), 0)
        task.build()
        for model in models:
            best.append(min(search(model, task, arguments.trials, arguments.out), key=lambda t: t["log_loss"]))
            print(json.dumps(best[-1]), flush=True)
    print(json.dumps({"benchmark": "tuning_rankers", "trials": arguments.trials, "best": best}))


def search(model: str, task: tasks.Ranking, trials: int, out: Path) -> list[dict[str, Any]]:
    """The trials of one model."""
    lot = random.Random(f"small {model}")
    drawn: list[dict[str, Any]] = [{}]
    while len(drawn) < trials:
        settings = {key: lot.choice(values) for key, values in SPACES[model].items()}
        if settings not in drawn:
            drawn.append(settings)
    found = []
    for number, settings in enumerate(drawn):
        key = {"task": "small", "model": model, "trial": number, "settings": settings}
        known = [t for t in records(out) if {k: t[k] for k in key} == key]
        if not known:
            began = time.perf_counter()
            logits = (by_trees if model == "lightgbm" else by_steps)(model, task, settings)
            split, rows = task.data.split.validation, task.validation_rows
            assert split is not None
            assert rows is not None
            keys = torch.from_numpy(id_keys(split[USER_ID]).copy())
            metrics = calibration.measure(logits, rows[LABEL], keys, num_replicates=0).metrics
            known = [key | {name: round(metrics[name], 6) for name in ("log_loss", "auc")}]
            known[0]["seconds"] = round(time.perf_counter() - began, 1)
            atomic.write_json(out, {"benchmark": "tuning_rankers", "trials": [*records(out), *known]})
        print(known[0], flush=True)
        found += known
    return found


def records(out: Path) -> list[dict[str, Any]]:
    return json.loads(out.read_text())["trials"] if out.exists() else []


def by_steps(model: str, task: tasks.Ranking, settings: dict[str, Any]) -> torch.Tensor:
    """Logits of the validation part by a ranker of ours, trained with the settings."""
    cfg = config.compose(f"model={MODELS.get(model, model)}").model
    cfg.update(settings)
    pl.seed_everything(0, verbose=False)
    task.model = config.partial(cfg)(columns=task.pipeline.columns)
    tasks.fit(task)
    rows: Any = task.validation_rows
    return score(task.model, rows)


def by_trees(_: str, task: tasks.Ranking, settings: dict[str, Any]) -> torch.Tensor:
    """The same by LightGBM."""
    rows: Any = task.validation_rows
    return trees(task.pipeline.columns, task.train, rows, rows, settings)


def trees(
    columns: Sequence[Column],
    train: RowBatch,
    validation: RowBatch,
    test: RowBatch,
    settings: dict[str, Any],
    seed: int = 0,
) -> torch.Tensor:
    """Logits of test by LightGBM over the columns, lists aside, categories as categories; validation says when to
    stop."""
    import lightgbm as lgb

    columns = [c for c in columns if c.role != "label" and c.width is None]
    categories = [i for i, c in enumerate(columns) if c.cardinality is not None]

    def matrix(rows: RowBatch) -> np.ndarray:
        return np.stack([rows[c.name].float().numpy() for c in columns], 1)

    sets = lgb.Dataset(matrix(train), train[LABEL].numpy(), categorical_feature=categories)
    against = lgb.Dataset(matrix(validation), validation[LABEL].numpy(), reference=sets)
    options = {"objective": "binary", "verbose": -1, "num_threads": torch.get_num_threads(), "learning_rate": 0.05}
    stop = lgb.early_stopping(30, verbose=False)
    found = lgb.train({**options, "seed": seed, **settings}, sets, 2000, valid_sets=[against], callbacks=[stop])
    return torch.from_numpy(found.predict(matrix(test), raw_score=True))


if __name__ == "__main__":
    main()
