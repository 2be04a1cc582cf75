"""Trials side by side: processes of this machine by joblib, or jobs of a cluster by submitit."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import torch
from omegaconf import DictConfig
from optuna.trial import TrialState

from recsys import backend
from recsys.sweeping.study import Pruner, attached, pruner_of, reporter, start_of
from recsys.sweeping.trial import Outcome, outcome

Cell = tuple[DictConfig, Path, int]  # configuration, run directory, and the id of the trial in the study


def on_cores(cells: list[Cell], n_jobs: int, directory: Path, monitor: str, stops: Pruner) -> list[Outcome]:
    """What came of several trials, each in a process of its own with its part of the threads; in their order."""
    import joblib

    threads, start = max(1, torch.get_num_threads() // n_jobs), start_of(directory)
    with joblib.parallel_config(backend="loky", inner_max_num_threads=threads):
        work = (joblib.delayed(_on_core)(threads, *cell, directory, start, monitor, stops) for cell in cells)
        return joblib.Parallel(n_jobs=n_jobs)(work)


def cluster(options: Mapping[str, Any], directory: Path) -> Any:
    """What takes jobs, by submitit; it keeps what they print, and the pickles by which it hands them over, in `jobs/`
    of the sweep's folder.

    Args:
        options: see hydra.sweeper.submitit in configs/sweep/optuna.yaml.

    Raises:
        ValueError: the package is missing, there is no such cluster, or an option does not fit.
    """
    if not backend.installed("submitit"):
        raise ValueError("hydra.sweeper.submitit needs the package submitit: pip install 'recsys[submitit]'")
    import submitit

    rest = {"name": f"recsys-{directory.name}"} | dict(options)
    try:
        executor = submitit.AutoExecutor(folder=directory.resolve() / "jobs", cluster=rest.pop("cluster", None))
        executor.update_parameters(**rest)
    except (ValueError, NameError, TypeError, AssertionError, RuntimeError) as error:
        for folder in (directory / "jobs", directory):
            with suppress(OSError):  # it is not empty: a sweep that is there
                folder.rmdir()
        raise ValueError(f"hydra.sweeper.submitit: {' '.join(str(error).split())}") from error
    return executor


def on_cluster(cells: list[Cell], executor: Any, directory: Path, monitor: str, stops: Pruner) -> list[Outcome]:
    """What came of several trials, each a job of `cluster`; in their order.

    A job that is cut off by its time or by others is sent again where the cluster can, and goes on from its checkpoint;
    one that dies is a trial that failed. An interrupt cancels all of them.
    """
    from submitit.helpers import Checkpointable

    class Trial(Checkpointable):
        def __call__(self, *arguments: Any) -> Outcome:
            return _attached(*arguments)

    place, start = directory.resolve(), start_of(directory)
    with executor.batch():
        jobs = [
            executor.submit(Trial(), cfg, run_dir.resolve(), trial_id, place, start, monitor, stops)
            for cfg, run_dir, trial_id in cells
        ]
    try:
        return [_answer(job) for job in jobs]
    except BaseException:
        for job in jobs:
            job.cancel()
        raise


def _answer(job: Any) -> Outcome:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return job.result()
    except (FailedJobError, UncompletedJobError) as error:
        said = str(error).strip().splitlines()
        reason = f"job {job.job_id} ended without an answer: {said[-1] if said else type(error).__name__}"
        return Outcome(TrialState.FAIL, None, f"{reason}; see {job.paths.stderr}", 0.0, {})


def _on_core(threads: int, *arguments: Any) -> Outcome:
    torch.set_num_threads(threads)
    _end_with(os.getppid())
    return _attached(*arguments)


def _attached(
    cfg: DictConfig, run_dir: Path, trial_id: int, directory: Path, start: str, monitor: str, stops: Pruner
) -> Outcome:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sys.stderr.isatty = lambda: False  # type: ignore[method-assign]  # bars of several processes would mix
    with attached(directory, start, trial_id, pruner_of(*stops)) as trial:
        return outcome(cfg, run_dir, reporter(trial, monitor), monitor)


@cache
def _end_with(parent: int) -> None:
    """End this process when its parent, the sweep, is gone; else it would wait for work, or train what is cut off."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
