"""train(cfg) -> Run: read a log, split it, fit a model, measure it, leave a run directory.

Names no model and no data set. A checkpoint holds weights, optimiser state and the position in the
data, and every random draw of training derives from (seed, step), so a resumed run ends in the same
bits as one that was never stopped.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytorch_lightning as lightning
import torch
from omegaconf import DictConfig

from recsys import atomic, backend, baselines, config, loggers, tasks, tracking
from recsys.comparison import LESS_IS_BETTER
from recsys.data.datamodule import Protocol, RecDataModule
from recsys.data.log import Log
from recsys.data.readers import frame
from recsys.evaluation import slices
from recsys.evaluation.estimates import RATIOS
from recsys.evaluation.ranking import cut_offs
from recsys.fitting import fit
from recsys.run import PRUNED, Run
from recsys.watch import Pruned, Watch

FRAME = "frame"  # in place of a reader's configuration: the fingerprint of the data frame that was given


def train(
    cfg: DictConfig,
    run_dir: Path,
    data: Any = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> Run:
    """Train and measure the model of a configuration; the result stands in `run_dir`.

    A directory that holds an unfinished run of the same configuration is resumed.

    Args:
        cfg: what `recsys.config.compose` returns.
        run_dir: where the run directory goes; it is made if it is not there.
        data: a Log, or a Polars or pandas DataFrame, in place of the configured data.
        progress: progress(done, total, values) is called after every epoch with "val/ndcg@10" and the like; it stops
            the run by raising `recsys.watch.Pruned`, and the directory then says so in pruned.json.

    Raises:
        ValueError: the configuration or the data do not fit, or `run_dir` holds a finished or another run.
        Interrupted: SIGINT; the run can be resumed.
        Pruned: by `progress`.
    """
    _quiet_lightning()
    if data is not None:
        data = data if isinstance(data, Log) else frame(data)
        cfg = config.with_value(cfg, "data", {FRAME: data.fingerprint})
    for group in ("data", "split", "model", "features", "trainer"):
        if cfg.get(group) is not None and FRAME not in cfg[group]:
            config.partial(cfg[group])  # a wrong word is said before any work is done
    config.evaluator(cfg)
    cut_offs(cfg.evaluation.k)
    beside = config.check_type(cfg.evaluation.get("baselines", False), bool, "evaluation.baselines")
    if beside and tasks.of(cfg) is tasks.Ranking:
        raise ValueError("evaluation.baselines=true is for retrievers: compare runs of rankers, as model=logistic")
    monitor = tasks.monitor_of(cfg)
    trackers = loggers.trackers(cfg, run_dir)
    checkpoint = _claim(run_dir, cfg)
    seed = config.check_type(cfg.seed, int, "seed")
    device = backend.device(cfg.trainer.accelerator)

    log = _log(cfg, data)
    module = _module(cfg, log, seed)
    task = tasks.of(cfg)(cfg, module, device, seed)
    lightning.seed_everything(seed, verbose=False)
    model = task.build()
    if cfg.trainer.max_epochs is not None and hasattr(model, "max_epochs"):
        model.max_epochs = config.check_type(cfg.trainer.max_epochs, int, "trainer.max_epochs")
    if getattr(model, "max_epochs", 1) < 1:
        raise ValueError(f"max_epochs={model.max_epochs}: expected at least 1")
    task.observe()
    model.to(device)

    atomic.write_text(run_dir / tracking.CONFIG, config.to_yaml(cfg))
    environment = tracking.environment(device)
    data_facts = {"name": log.name, "files": log.files, "fingerprint": log.fingerprint}
    with loggers.recorded(cfg, run_dir, trackers, {"data": data_facts, **environment}) as record:
        batch_size = getattr(model, "batch_size", None)
        watch = Watch(
            run_dir,
            model,
            record,
            validate=_validation(cfg, task, monitor),
            monitor=f"val/{monitor}",
            patience=config.check_type(cfg.patience, int | None, "patience"),
            checkpoint_seconds=config.check_type(cfg.checkpoint_seconds, float, "checkpoint_seconds"),
            resume_from=checkpoint,
            less_is_better=monitor in LESS_IS_BETTER,
            progress=progress,
        )
        if batch_size != getattr(model, "batch_size", None):
            task.observe()  # the checkpoint's batch is smaller, because memory was short
        try:
            with watch:
                if not task.solve(watch.report):
                    trainer = config.partial(cfg.trainer)
                    fit(model, task.source, watch, trainer=trainer, observe=task.observe, device=device)
        except Pruned as reason:
            record.metrics = watch.latest
            atomic.write_json(run_dir / PRUNED, {"reason": str(reason), "epoch": watch.epoch, **watch.latest})
            watch.forget()
            raise
        record.save()
        samples = watch.samples or watch.epochs_here * task.num_examples
        model.to(device).eval()

        measured, per_user, counts = task.measure()
        metrics: dict[str, Any] = {
            **measured,
            **watch.latest,
            "train/seconds": round(watch.seconds, 3),
            "train/samples_per_second": round(samples / max(watch.seconds, 1e-9), 1),
            "train/data_wait_share": round(watch.waited / max(watch.seconds, 1e-9), 4),
        }
        if batch_size is not None:
            metrics["train/batch_size"] = model.batch_size
        if log.world is not None:
            metrics |= task.truth()
        task.save(run_dir)
        if beside:
            others = baselines.measured(cfg, module, device, seed)
            atomic.write(run_dir / tracking.BASELINES, others.write_parquet)
            for (name,), rows in others.group_by("baseline", maintain_order=True):
                metrics |= {f"baselines/{name}/{m}": rows[m].mean() for m in rows.columns if "@" in m}
        atomic.write(run_dir / tracking.PER_USER, per_user.write_parquet)
        manifest = {
            "model": cfg.model["_target_"],
            "seed": seed,
            "trials": config.check_type(cfg.get("trials"), int | None, "trials"),
            "data": {**data_facts, **log.counts},
            "split": module.report,
            "queries": module.queries,
            "candidates": module.ranked,
            "evaluation": counts,
            **environment,
        }
        atomic.write_json(run_dir / tracking.MANIFEST, manifest)
        atomic.write_json(run_dir / tracking.METRICS, metrics)
        record.metrics = metrics
        (run_dir / PRUNED).unlink(missing_ok=True)
        watch.forget()
        return Run(run_dir)


def resume(run_dir: Path, data: Any = None) -> Run:
    """Go on with a run that was stopped. A run that was trained on a data frame needs it again as `data`.

    Raises:
        ValueError: the directory holds no run; or as `train`.
    """
    written = run_dir / tracking.CONFIG
    if not written.exists():
        raise ValueError(f"{run_dir} holds no run to resume: {tracking.CONFIG} is missing")
    with config.of_file(written):
        return train(config.load(written), run_dir, data=data)


def evaluate(run_dir: Path, changes: Sequence[str] = (), data: Any = None) -> dict[str, Any]:
    """Measure a finished run again on its own data, with changes such as "evaluation.k=[5]" or
    "queries=next_in_session".

    Nothing in the run directory is changed. A run that was trained on a data frame needs it again as `data`.

    Raises:
        ValueError: there is no finished run, a change names no key, or the data are not what they were.
    """
    run, task = again(run_dir, changes, data)
    return task.measure_run(run)[0]


def again(run_dir: Path, changes: Sequence[str] = (), data: Any = None) -> tuple[Run, tasks.Retrieval | tasks.Ranking]:
    """A finished run and its task over its own data, as `evaluate` measures it; see there."""
    run = Run(run_dir)
    cfg = config.update(run.config, changes)
    with config.of_file(run_dir / tracking.CONFIG):
        device = backend.device(cfg.trainer.accelerator)
        log = _log(cfg, data if data is None or isinstance(data, Log) else frame(data))
        module = _module(cfg, log, cfg.seed)
        if log.fingerprint != run.manifest["data"]["fingerprint"]:
            raise ValueError(f"{log.name} has changed since {run_dir} was trained: its content differs")
        return run, tasks.of(cfg)(cfg, module, device, cfg.seed)


def sliced(
    run_dir: Path, by: Sequence[str], changes: Sequence[str] = (), metrics: Sequence[str] = (), data: Any = None
) -> dict[str, pl.DataFrame]:
    """A finished run measured for parts of its users and items, a table each (see `evaluation.slices`).

    Args:
        by: columns of the log's table of users or, for a retriever, of items; "activity", how many positives a user had
            before the test cut; "item_popularity", how many an item had in train.
        changes, data: as in `evaluate`.
        metrics: none given: recall and NDCG at the middle cut-off; of a ranker log_loss, calibration and grouped_auc.

    Raises:
        ValueError: as `evaluate`, or there is no such column or metric; the message names it.
    """
    run, task = again(run_dir, changes, data)
    _, per_user, _ = task.measure_run(run)
    ranker = isinstance(task, tasks.Ranking)
    if not metrics:
        k = sorted(task.cfg.evaluation.k)[len(task.cfg.evaluation.k) // 2]
        metrics = ("log_loss", "calibration", "grouped_auc") if ranker else (f"recall@{k}", f"ndcg@{k}")
    for metric in metrics:
        if metric not in (*per_user.columns, *RATIOS):
            raise ValueError(f"metric {metric} was not measured: {config.nearest(metric, per_user.columns)}")
    found = {}
    for name in by:
        users, items = task.groups(name)
        if users is not None:
            found[name] = slices.by_users(per_user, users, metrics)
        elif items is not None and isinstance(task, tasks.Retrieval):
            score = task.model.scorer_with_fallback()
            found[name] = slices.by_items(task.evaluate, score, task.data.test, items, metrics)
    return found


def _module(cfg: DictConfig, log: Log, seed: int) -> RecDataModule:
    queries = config.check_type(cfg.get("queries", "users"), Protocol, "queries")
    session = config.check_type(cfg.get("session", "session_id"), str, "session")
    sampled = config.check_type(cfg.get("num_sampled"), int | None, "num_sampled")
    return RecDataModule(
        log, config.partial(cfg.split), seed, queries=queries, session=session, num_sampled=sampled
    )  # fmt: skip


def _log(cfg: DictConfig, data: Log | None) -> Log:
    if data is not None:
        return data
    if FRAME in cfg.data:
        raise ValueError("this run was trained on a data frame: go on from Python, where the frame can be given")
    return config.build(cfg.data)


def _claim(run_dir: Path, cfg: DictConfig) -> Path | None:
    """The checkpoint to resume from, if the directory holds one of the same configuration."""
    if (run_dir / tracking.METRICS).exists():
        raise ValueError(f"{run_dir} holds a finished run: choose another hydra.run.dir, or remove it")
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"{run_dir} is a file: choose another hydra.run.dir")
    written = run_dir / tracking.CONFIG
    if not written.exists():
        return None
    before = config.flat(config.load(written))
    now = config.flat(cfg)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"{run_dir} holds an unfinished run with {key}={before.get(key)}, not {now.get(key)}: "
                f"resume it with `recsys resume run={run_dir}`, or choose another hydra.run.dir"
            )
    checkpoint = run_dir / tracking.LAST
    return checkpoint if checkpoint.exists() else None


def _validation(cfg: DictConfig, task: Any, monitor: str) -> Any:
    """A callable that measures the model on the validation part, or None where there is none."""
    measure = task.validation(monitor)
    if measure is None:
        if cfg.patience is not None:
            raise ValueError("patience needs a validation set: set split.validation above 0, or patience=null")
        return None

    def validate() -> dict[str, float]:
        task.model.eval()
        found = measure()
        task.model.train()
        return {f"val/{metric}": value for metric, value in found.items()}

    return validate


def _quiet_lightning() -> None:
    """Lightning's hints concern per-row data loaders and processes that this trainer does not use."""
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning.*")
    torch.set_float32_matmul_precision("highest")
