"""The commands that need whole runs: recsys study … and recsys index sweep."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.options import parsed, whole
from recsys.tables import print_frame

if TYPE_CHECKING:
    import polars as pl


def study_command(arguments: list[str]) -> None:
    studies = {"collisions": _collisions, "leakage": _leakage, "debiasing": _debiasing}
    if not arguments or arguments[0] not in studies:
        raise ValueError(f"recsys study: expected one of {', '.join(studies)}")
    studies[arguments[0]](arguments)


def _leakage(arguments: list[str]) -> None:
    own = [a for a in arguments[1:] if a.startswith(("metric=", "out="))]
    options = parsed(own, optional=("metric", "out"))
    metric = options.get("metric", "recall@20")
    import torch

    from recsys import atomic, config, tasks, tracking
    from recsys.data.datamodule import RecDataModule
    from recsys.studies.leakage_price import study

    chosen = [a for a in arguments[1:] if a not in own]
    if not any(a.startswith("model=") for a in chosen):
        chosen.append("model=als")
    cfg = config.compose(*chosen)
    data = RecDataModule(config.build(cfg.data), config.partial(cfg.split), cfg.seed, queries=cfg.queries)
    pipeline = None
    if cfg.get("features") is not None:
        task = tasks.of(cfg)(cfg, data, torch.device("cpu"), cfg.seed)
        task.build()
        pipeline = task.pipeline

    def measure(module: RecDataModule) -> pl.DataFrame:
        return tasks.trained(cfg, module, torch.device("cpu"), cfg.seed).measure()[1]

    report = study(data, measure, pipeline, metric)
    if report.is_empty():
        tracking.print_line(f"{data.log.name}, split={data.split.report['kind']}: nothing leaks")
    else:
        print_frame(f"{data.log.name}: leaks, and their price in points of {metric}", report, ".4g")
    if "out" in options:
        atomic.write(Path(options["out"]), report.write_parquet)


def _debiasing(arguments: list[str]) -> None:
    options = parsed(arguments[1:], required=("run",), optional=("k", "out"))
    from recsys import atomic, config
    from recsys.studies.debiasing import study
    from recsys.training import again

    k = [config.check_type(n, int, "k") for n in options.get("k", "20,100").strip("[]").split(",")]
    run, task = again(Path(options["run"]))
    if run.is_ranker:
        raise ValueError(f"{run.path} holds a ranker: the study is about lists, name a retriever's run")
    report = study(task.data, run.model.to("cpu").scorer_with_fallback(), k, seed=task.seed)
    print_frame("what the lists are worth, by the log and in truth", report, ".4f")
    if "out" in options:
        atomic.write(Path(options["out"]), report.write_parquet)


def _collisions(arguments: list[str]) -> None:
    own = [a for a in arguments[1:] if a.startswith(("buckets=", "k=", "out="))]
    options = parsed(own, optional=("buckets", "k", "out"))
    k = whole(options, "k") or 20
    from recsys import atomic, backend, config
    from recsys.data.datamodule import RecDataModule
    from recsys.studies.collisions import study

    chosen = [a for a in arguments[1:] if a not in own]
    if not any(a.startswith("model=") for a in chosen):
        chosen.append("model=als")
    cfg = config.compose(*chosen)
    if cfg.queries != "users":
        raise ValueError(f"queries={cfg.queries}: the study of collisions asks one query a user, leave it out")
    data = RecDataModule(config.build(cfg.data), config.partial(cfg.split), cfg.seed)
    items = len(data.items)
    numbers: list[int | None] = [None, *(max(items * share // 100, 2) for share in (1000, 200, 100, 50, 25, 10))]
    if "buckets" in options:
        numbers = [None, *(config.check_type(n, int, "buckets") for n in options["buckets"].strip("[]").split(","))]
    evaluate = partial(config.evaluator(cfg), device=backend.device("cpu"), seed=cfg.seed)
    report = study(data, config.partial(cfg.model), evaluate, numbers, k=k, seed=cfg.seed)
    print_frame(f"{data.log.name}: {items:,} items in buckets (none given: every item has its own)", report, ".4g")
    if "out" in options:
        atomic.write(Path(options["out"]), report.write_parquet)


def index_command(arguments: list[str]) -> None:
    """Factories are parted by semicolons, as they hold commas."""
    if arguments[:1] != ["sweep"]:
        raise ValueError("recsys index: expected `recsys index sweep run=DIR`")
    options = parsed(arguments[1:], required=("run",), optional=("k", "recall", "factories", "out"))
    k = whole(options, "k")
    from recsys import atomic, config
    from recsys.run import Run
    from recsys.studies.frontier import cheapest, check_recall, of_run

    recall = config.check_type(options.get("recall", "0.95"), float, "recall")
    check_recall(recall)  # before minutes are spent
    factories = [factory for factory in options.get("factories", "").strip("[]").split(";") if factory]
    run = Run(Path(options["run"]))
    frame = of_run(run, factories=factories or None, k=100 if k is None else k)
    names = {"build_seconds": "build s", "megabytes": "MB", "batch_qps": "queries/s"}
    left_out = [c for c in frame.columns if c.startswith(("single_qps", "precision@")) or c.partition("@")[2].isdigit()]
    shown = frame.with_columns(frame["batch_qps"].round().cast(int)).drop(left_out).rename(names)
    print_frame(f"{run.path}: indexes beside exact search, losses in hundredths", shown, ",.4g")
    if "out" in options:
        atomic.write(Path(options["out"]), frame.write_parquet)
    row = cheapest(frame, recall)
    sys.stdout.write(
        f"recall of {recall:g} is kept, 95% sure, at {row['batch_qps']:,.0f} queries/s by\n"
        f"  ItemIndex(vectors, ids, factory={row['factory']!r}, search={row['search']!r})\n"
    )
