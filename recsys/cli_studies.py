"""The commands that need whole runs: recsys study … and recsys index sweep."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.options import TRACKERS, parsed, parted, whole
from recsys.tables import print_frame

if TYPE_CHECKING:
    import polars as pl

    from recsys.run import Run


def study_command(arguments: list[str]) -> None:
    studies = {
        "collisions": _collisions, "leakage": _leakage, "debiasing": _debiasing, "loss_budget": _loss_budget,
    }  # fmt: skip
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


def _loss_budget(arguments: list[str]) -> None:
    own = ("retrievers", "k", "users", "out", *FUNNEL)
    options = parsed(arguments[1:], required=("retrievers",), optional=own)
    from recsys import atomic, config
    from recsys.studies.loss_budget import study
    from recsys.training import again

    retrievers, ranker, settings = funnel_options(options)
    numbers = options.get("candidates", "1000").strip("[]").split(",")
    settings["num_candidates"] = [config.check_type(n, int, "candidates") for n in numbers]
    _, task = again(next(iter(retrievers.values())).path)
    for name, option in {"k": "k", "num_users": "users"}.items():
        if option in options:
            settings[name] = whole(options, option)
    report = study(retrievers, ranker, task.data, **settings)
    print_frame("what each stage of the funnel loses", report, ".4g")
    if "out" in options:
        atomic.write(Path(options["out"]), report.write_parquet)


def funnel_command(arguments: list[str]) -> None:
    """Lists of a funnel for users, as `recsys recommend` gives them for a run."""
    options = parsed(arguments, required=("retrievers", "users"), optional=("k", "out", *FUNNEL))
    from recsys import atomic, tracking
    from recsys.funnel import Funnel
    from recsys.run import read_user_ids
    from recsys.training import again

    retrievers, ranker, settings = funnel_options(options)
    num = whole(options, "candidates")
    first = next(iter(retrievers.values()))
    users = read_user_ids(options["users"], first.users.ids.dtype)
    _, task = again(first.path)
    page = Funnel.of_runs(retrievers, ranker, task.data.log, num_candidates=1000 if num is None else num, **settings)
    k = whole(options, "k")
    answer = page.recommend(users, 100 if k is None else k)
    if "out" in options:
        atomic.write(Path(options["out"]), answer.write_parquet)
        tracking.print_line(f"{options['out']}: {answer.height:,} rows for {len(users):,} users")
    else:
        print_frame("the page", answer, ".4g")
    for what, count in page.failures.items():
        tracking.print_line(f"degraded {count} times, {what}")


# Options of a funnel, beside its retrievers.
FUNNEL = ("ranker", "candidates", "factory", "search", "diversity", "caps", "exploration", "fresh", "precision")


def funnel_options(options: dict[str, str]) -> tuple[dict[str, Run], Run | None, dict[str, Any]]:
    """Retrievers by name, the ranker, and the settings of `Funnel.of_runs` but for the number of candidates.

    Raises:
        ValueError: an option that is none; the message names it.
    """
    from recsys import config
    from recsys.run import Run

    runs = [Run(Path(path)) for path in options["retrievers"].split(",")]
    names = [str(run.config.model._target_).split(".")[-2] for run in runs]
    names = [name if names.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(names)]
    retrievers = dict(zip(names, runs, strict=True))
    settings: dict[str, Any] = {name: options[name] for name in ("factory", "search", "precision") if name in options}
    for name in ("diversity", "exploration"):
        if name in options:
            settings[name] = config.check_type(options[name], float, name)
    if "fresh" in options:
        settings["with_fresh"] = config.check_type(options["fresh"], bool, "fresh")
    if "caps" in options:
        caps = (part.partition(":") for part in options["caps"].strip("{}").split(","))
        settings["caps"] = {
            name.strip(): config.check_type(most.strip(), int, f"caps {name}") for name, _, most in caps
        }
    return retrievers, Run(Path(options["ranker"])) if "ranker" in options else None, settings


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
    tracked, own = parted(arguments[1:], TRACKERS)
    options = parsed(own, required=("run",), optional=("k", "recall", "factories", "out"))
    k = whole(options, "k")
    from recsys import atomic, backend, config, loggers
    from recsys.run import Run
    from recsys.studies.frontier import cheapest, check_recall, of_run, record

    recall = config.check_type(options.get("recall", "0.95"), float, "recall")
    check_recall(recall)  # before minutes are spent
    factories = [factory for factory in options.get("factories", "").strip("[]").split(";") if factory]
    run = Run(Path(options["run"]))
    loggers.trackers(config.compose(*tracked), run.path, "index")  # a wrong word, likewise
    frame = of_run(run, factories=factories or None, k=100 if k is None else k)
    names = {"build_seconds": "build s", "megabytes": "MB", "batch_qps": "queries/s"}
    left_out = [c for c in frame.columns if c.startswith(("single_qps", "precision@")) or c.partition("@")[2].isdigit()]
    shown = frame.with_columns(frame["batch_qps"].round().cast(int)).drop(left_out).rename(names)
    print_frame(f"{run.path}: indexes beside exact search, losses in hundredths", shown, ",.4g")
    if "out" in options:
        atomic.write(Path(options["out"]), frame.write_parquet)
    if not backend.installed("faiss"):
        sys.stdout.write("exact search alone: approximate indexes need faiss, pip install 'recsys[cpu]'\n")
    try:
        row = cheapest(frame, recall)
    except ValueError:  # what was measured is kept all the same
        if tracked:
            record(run, frame, None, tracked)
        raise
    sys.stdout.write(
        f"recall of {recall:g} is kept, 95% sure, at {row['batch_qps']:,.0f} queries/s by\n"
        f"  ItemIndex(vectors, ids, factory={row['factory']!r}, search={row['search']!r})\n"
    )
    if tracked:
        record(run, frame, row, tracked)
