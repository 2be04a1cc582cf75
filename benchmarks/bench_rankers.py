"""Rankers beside LightGBM on the same columns: AUC and log loss of the test part, and the paired difference by user.

    python benchmarks/bench_rankers.py [--models dcn,logistic,mf] [--logs small is_click] [--seeds 1] [--out FILE]

Every ranker is `recsys train model=… features=…` with its defaults. LightGBM gets what the pipeline of that run makes
of the same rows, lists aside (their length it has), categories as categories, and stops early on the validation part.
mf is matrix factorisation with biases: model=fm features=ids. A difference is that of means over seeds, by user.
The last line is one JSON object. KuaiRand is found through RECSYS_DATA (default: ../shared/data) and left out, by name,
where it is not; so is LightGBM where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import recsys
from recsys import atomic, backend, config, tracking
from recsys.data.datamodule import RecDataModule
from recsys.data.rows import joined
from recsys.evaluation import calibration
from recsys.evaluation.significance import poisson_weights, seeds_interval
from recsys.features.pipeline import ROLES
from recsys.features.vocabulary import id_keys

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("RECSYS_DATA", ROOT.parent / "shared" / "data"))
METRICS = ("auc", "grouped_auc", "log_loss", "normalised_cross_entropy", "calibration_error", "gap_closed")


def lightgbm(words: list[str], run: recsys.Run) -> calibration.Measured:
    """LightGBM over the columns of a run's pipeline."""
    import lightgbm as lgb

    cfg = config.compose(*words)
    data = RecDataModule(config.build(cfg.data), config.partial(cfg.split), cfg.seed)
    columns = [c for c in run.pipeline.columns if c.role != "label" and c.width is None]
    categories = [i for i, c in enumerate(columns) if c.cardinality is not None]

    def part(rows: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        tensors = run.pipeline.transform(joined(data.log, rows), ROLES)
        return np.stack([tensors[c.name].float().numpy() for c in columns], 1), tensors["label"].numpy()

    train = lgb.Dataset(*part(data.split.train), categorical_feature=categories)
    validation = lgb.Dataset(*part(data.split.validation), reference=train)
    options = {"objective": "binary", "verbose": -1, "num_threads": torch.get_num_threads(), "learning_rate": 0.05}
    stop = lgb.early_stopping(30, verbose=False)
    trees = lgb.train({**options, "seed": cfg.seed}, train, 2000, valid_sets=[validation], callbacks=[stop])
    values, labels = part(data.split.test)
    logits = torch.from_numpy(trees.predict(values, raw_score=True))
    keys = torch.from_numpy(id_keys(data.split.test["user_id"]).copy())
    return calibration.measure(logits, torch.from_numpy(labels), keys)


def difference(runs: list[recsys.Run], theirs: pl.DataFrame) -> list[float]:
    """Log loss of ours, the mean over seeds, minus theirs, and its 95% interval over users and seeds."""
    ours = pl.concat([run.per_user.select("user_key", "log_loss", "rows") for run in runs]).group_by("user_key").mean()
    both = ours.join(theirs, on="user_key", suffix="_theirs").sort("user_key")
    loss = torch.from_numpy((both["log_loss"] - both["log_loss_theirs"]).to_numpy().copy()).double()
    rows = torch.from_numpy(both["rows"].to_numpy().copy()).double()
    weights = poisson_weights(torch.from_numpy(both["user_key"].to_numpy().copy()), 1000).double()
    ends = ((weights.T @ loss) / (weights.T @ rows)).quantile(torch.tensor([0.025, 0.975]).double())
    mean, (low, high) = float(loss.sum() / rows.sum()), ends.tolist()
    if len(runs) > 1:
        losses = [run.metrics["test/log_loss"] for run in runs]
        center, least, _ = seeds_interval(losses)
        low, high = (mean + sign * math.hypot(end - mean, center - least) for sign, end in ((-1, low), (1, high)))
    return [mean, low, high]


def measured(log: str, words: list[str], models: list[str], seeds: int) -> list[dict[str, Any]]:
    """A row for each model and seed, one for LightGBM, and one for each model with its difference to LightGBM."""
    rows: list[dict[str, Any]] = []
    peer = None
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            named = ["model=fm", "features=ids"] if model == "mf" else [f"model={model}"]
            runs = []
            for seed in range(seeds):
                run = recsys.train(*words, *named, f"seed={seed}", f"hydra.run.dir={folder}/{model}_{seed}")
                runs.append(run)
                metrics = run.metrics
                if peer is None and backend.installed("lightgbm"):
                    start = time.perf_counter()
                    peer = lightgbm(words, run)
                    row = {"log": log, "model": "LightGBM", "seconds": time.perf_counter() - start}
                    row |= {name: peer.metrics.get(name) for name in METRICS}
                    if "bayes/log_loss" in metrics:
                        entropy = peer.metrics["log_loss"] / peer.metrics["normalised_cross_entropy"]
                        gap = entropy - metrics["bayes/log_loss"]
                        row["gap_closed"] = (entropy - peer.metrics["log_loss"]) / gap
                    rows.append(row)
                    print(json.dumps(row), file=sys.stderr)
                row = {"log": log, "model": model, "seed": seed, "seconds": metrics["train/seconds"]}
                row |= {name: metrics.get(f"test/{name}") for name in METRICS}
                row["samples_per_second"] = metrics["train/samples_per_second"]
                if "bayes/log_loss" in metrics:
                    row["bayes_log_loss"] = metrics["bayes/log_loss"]
                rows.append(row)
                print(json.dumps(row), file=sys.stderr)
            if peer is not None:
                row = {"log": log, "model": model, "seeds": seeds}
                row["log_loss_minus_lightgbm"] = difference(runs, peer.per_user)
                rows.append(row)
                print(json.dumps(row), file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="dcn,logistic,bayes_logistic,mf,fm,deepfm,dlrm,mlp,mmoe")
    parser.add_argument(
        "--logs", nargs="+", choices=["tiny", "small", "long_view", "is_click"], default=["tiny", "long_view"]
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for log in arguments.logs:
        words = [f"world={log}", "features=world"]
        if log in ("long_view", "is_click"):
            if not (DATA / "kuairand_pure").is_dir():
                print(f"KuaiRand: not found under {DATA}, left out (set RECSYS_DATA)", file=sys.stderr)
                continue
            words = ["data=kuairand", f"data.path={DATA / 'kuairand_pure'}", f"data.label={log}", "features=kuairand"]
        name = f"world {log}" if log in ("tiny", "small") else f"KuaiRand, {log}"
        rows += measured(name, words, arguments.models.split(","), arguments.seeds)
    left_out = [] if backend.installed("lightgbm") else ["lightgbm"]
    result = {"benchmark": "rankers", "environment": tracking.environment(torch.device("cpu"))}
    result |= {"left_out": left_out, "rows": rows}
    if arguments.out:
        atomic.write_json(arguments.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
