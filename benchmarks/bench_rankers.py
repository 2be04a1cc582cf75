"""Rankers beside LightGBM on the same columns: AUC and log loss of the test part, and the paired difference by user.

    python benchmarks/bench_rankers.py [--models dcn,logistic,mf] [--logs small is_click] [--seeds 1] [--size small]
        [--out FILE]

Every ranker is `recsys train model=… features=…` with its defaults, on world small `experiment=small_…` where there is
one. LightGBM gets what the pipeline of that run makes of the same rows, lists aside (their length it has), categories
as categories, and stops early on the validation part; its settings are the best of tune_rankers.py, which are its
defaults. mf is matrix factorisation with biases: model=fm features=ids. A difference is that of means over seeds, by
user and seed. The last line is one JSON object. KuaiRand is found through RECSYS_DATA (default: ../shared/data) and
left out, by name, where it is not; so is LightGBM where it is not installed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tune_rankers import trees

import recsys
from recsys import backend, benching, config
from recsys.data.datamodule import RecDataModule
from recsys.data.rows import joined
from recsys.evaluation import calibration
from recsys.evaluation.estimates import estimate
from recsys.features.pipeline import ROLES
from recsys.features.vocabulary import id_keys
from recsys.schema import LABEL

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("RECSYS_DATA", ROOT.parent / "shared" / "data"))
METRICS = ("auc", "grouped_auc", "log_loss", "normalised_cross_entropy", "calibration_error", "gap_closed")


def lightgbm(words: list[str], run: recsys.Run) -> calibration.Measured:
    """LightGBM over the columns of a run's pipeline."""
    cfg = config.compose(*words)
    data = RecDataModule(config.build(cfg.data), config.partial(cfg.split), cfg.seed)
    parts = [data.split.train, data.split.validation, data.split.test]
    train, validation, test = (run.pipeline.transform(joined(data.log, rows), ROLES) for rows in parts)
    logits = trees(run.pipeline.columns, train, validation, test, {}, cfg.seed)
    keys = torch.from_numpy(id_keys(data.split.test["user_id"]).copy())
    return calibration.measure(logits, test[LABEL], keys)


def measured(log: str, words: list[str], models: list[str], seeds: int) -> list[dict[str, Any]]:
    """A row for each model and seed, one for LightGBM, and one for each model with its difference to LightGBM."""
    rows: list[dict[str, Any]] = []
    title, peer = f"world {log}" if log in ("tiny", "small") else f"KuaiRand, {log}", None
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            named = [*words, *(["model=fm", "features=ids"] if model == "mf" else [f"model={model}"])]
            if (config.config_dir() / "experiment" / f"{log}_{model}.yaml").exists():
                named = [f"experiment={log}_{model}"]
            runs = []
            for seed in range(seeds):
                run = recsys.train(*named, f"seed={seed}", f"hydra.run.dir={folder}/{model}_{seed}")
                runs.append(run)
                gc.collect()  # Lightning's cycles hold the rows of a finished run, gigabytes on world small
                metrics = run.metrics
                if peer is None and backend.installed("lightgbm"):
                    start = time.perf_counter()
                    peer = lightgbm(words, run)
                    row = {"log": title, "model": "LightGBM", "seconds": time.perf_counter() - start}
                    row |= {name: peer.metrics.get(name) for name in METRICS}
                    if "bayes/log_loss" in metrics:
                        entropy = peer.metrics["log_loss"] / peer.metrics["normalised_cross_entropy"]
                        gap = entropy - metrics["bayes/log_loss"]
                        row["gap_closed"] = (entropy - peer.metrics["log_loss"]) / gap
                    rows.append(row)
                    print(json.dumps(row), file=sys.stderr)
                row = {"log": title, "model": model, "seed": seed, "seconds": metrics["train/seconds"]}
                row |= {name: metrics.get(f"test/{name}") for name in METRICS}
                row["samples_per_second"] = metrics["train/samples_per_second"]
                if "bayes/log_loss" in metrics:
                    row["bayes_log_loss"] = metrics["bayes/log_loss"]
                rows.append(row)
                print(json.dumps(row), file=sys.stderr)
            if peer is not None:
                row = {"log": title, "model": model, "seeds": seeds}
                found = estimate([run.per_user for run in runs], "log_loss", [peer.per_user])
                row["log_loss_minus_lightgbm"] = found and found[:3]
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
    arguments = benching.arguments(parser, small={"models": "dcn,logistic", "logs": ["tiny"]})
    rows: list[dict[str, Any]] = []
    for log in arguments.logs:
        words = [f"world={log}", "features=world"]
        if log in ("long_view", "is_click"):
            if not (DATA / "kuairand_pure").is_dir():
                print(f"KuaiRand: not found under {DATA}, left out (set RECSYS_DATA)", file=sys.stderr)
                continue
            words = ["data=kuairand", f"data.path={DATA / 'kuairand_pure'}", f"data.label={log}", "features=kuairand"]
        rows += measured(log, words, arguments.models.split(","), arguments.seeds)
    left_out = [] if backend.installed("lightgbm") else ["lightgbm"]
    result = {"left_out": left_out, "rows": rows}
    benching.publish("rankers", result, arguments)


if __name__ == "__main__":
    main()
