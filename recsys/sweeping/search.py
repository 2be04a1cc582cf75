"""The trials of a sweep: TPE (Bergstra et al., NeurIPS 2011) over Optuna's ask and tell."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import torch
from omegaconf import DictConfig
from optuna.trial import TrialState

from recsys import config, loggers, tracking
from recsys.comparison import LESS_IS_BETTER
from recsys.run import PRUNED, Run
from recsys.sweeping import plot
from recsys.sweeping.plan import Compose, Composed, defaults_of, plan, words
from recsys.sweeping.space import Choices, Range, Space, draw
from recsys.sweeping.study import Pruner, ask, attached, next_number, opened, pruner_of, reporter
from recsys.sweeping.summary import STATES, summarise
from recsys.training import train
from recsys.watch import Interrupted, Pruned

Report = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial; `reason` of one that failed or was pruned."""

    state: TrialState
    value: float | None
    reason: str | None
    seconds: float
    test: dict[str, Any]


def run(
    compose: Compose,
    directory: Path,
    fixed: Mapping[str, str],
    drawn: Mapping[str, Range | Choices],
    *,
    n_trials: int,
    n_jobs: int = 1,
    seed: int = 0,
    startup_trials: int = 10,
    defaults: bool = True,
    pruner: Literal["median", "halving"] | None = None,
    warmup_trials: int = 5,
    warmup_share: float = 0.2,
    space: Mapping[str, Any],
) -> None:
    """Train up to `n_trials` settings and keep what came of them in `directory`; a sweep that is there goes on.

    A trial that was cut off is run again, with its parameters and from its checkpoint. One that fails or is pruned is
    recorded as that and counts.

    Args:
        fixed, drawn: what the command line says of keys, and leaves to the trials.
        n_trials, n_jobs, seed, startup_trials, defaults, pruner, warmup_trials, warmup_share, space: see
            configs/sweep/optuna.yaml.

    Raises:
        ValueError: the words, the space or the folder do not fit, or no trial came to its end; the message says what.
        Interrupted: SIGINT; the sweep can be started again.
    """
    counts = {"n_trials": n_trials, "n_jobs": n_jobs, "startup_trials": startup_trials, "warmup_trials": warmup_trials}
    for name, least in counts.items():
        if least < 1:
            raise ValueError(f"hydra.sweeper.{name}={least}: expected at least 1")
    if not 0 < warmup_share < 1:
        raise ValueError(f"hydra.sweeper.warmup_share={warmup_share}: expected a share between 0 and 1")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    composed: Composed = cache(lambda *said: compose([*said], 0))  # composing takes as long as a small model does
    kinds, monitor = plan(composed, fixed, drawn, space)
    asked: dict[str, Any] = {"metric": monitor, "seed": seed, "startup_trials": startup_trials, "defaults": defaults}
    asked |= {"pruner": pruner, "warmup_trials": warmup_trials, "warmup_share": warmup_share}
    asked |= {"n_jobs": n_jobs} if n_jobs > 1 else {}
    asked |= {**fixed, **{key: str(of) for key, of in drawn.items()}}
    asked |= {f"space.{kind}.{key}": str(of) for kind, keys in kinds.items() for key, of in keys.items()}
    stops = pruner, warmup_trials, warmup_share
    with opened(directory, asked, less_is_better=monitor in LESS_IS_BETTER) as study:
        study.pruner = pruner_of(*stops)
        firsts = defaults_of(composed, fixed, drawn, kinds) if defaults else []
        summarise(directory, study, monitor, fixed)
        while (number := next_number(study)) < n_trials:
            batch = range(number, min(number - number % n_jobs + n_jobs, n_trials))
            try:
                trials = []
                for n in batch:
                    state = np.random.SeedSequence((seed, n)).generate_state(1)
                    study.sampler = optuna.samplers.TPESampler(seed=int(state[0]), n_startup_trials=startup_trials)
                    trial = ask(study, n, firsts)
                    trials.append((trial, *_drawn(trial, compose, directory, fixed, drawn, kinds)))
                if n_jobs == 1:
                    ((trial, cfg, run_dir),) = trials
                    outcomes = [_outcome(cfg, run_dir, reporter(trial, monitor), monitor)]
                else:
                    cells = [(cfg, run_dir, trial._trial_id) for trial, cfg, run_dir in trials]
                    outcomes = _beside(cells, n_jobs, directory, monitor, stops)
            except (KeyboardInterrupt, Interrupted):
                done = f"stopped with {number} of {n_trials} trials done"
                raise Interrupted(f"{done}; to go on: the same words with hydra.sweep.dir={directory}") from None
            for (trial, *_), outcome in zip(trials, outcomes, strict=True):
                _tell(study, trial, outcome, monitor)
            summarise(directory, study, monitor, fixed)
        if not any(trial.state == TrialState.COMPLETE for trial in study.trials):
            reasons = [trial.user_attrs.get("reason", "") for trial in study.trials]
            raise ValueError(f"none of {len(reasons)} trials came to its end, the first with: {reasons[0]}")
    plot.write(directory)


def _drawn(
    trial: optuna.Trial,
    compose: Compose,
    directory: Path,
    fixed: Mapping[str, str],
    drawn: Mapping[str, Range | Choices],
    kinds: Mapping[str, Space],
) -> tuple[DictConfig, Path]:
    """Draw a trial's parameters: its configuration and its run directory."""
    only = trial.user_attrs.get("defaults")
    parameters = {key: draw(trial, key, of) for key, of in drawn.items() if only is None or key in only}
    model = str(parameters["model"]) if "model" in parameters else next(iter(kinds))
    if len(kinds) > 1 and "model" not in parameters:  # an experiment names it
        _, _, model = compose(words(fixed, parameters), trial.number)
    for key, of in kinds.get(model, {}).items():
        if only is None or f"{model}/{key}" in only:
            parameters[key] = draw(trial, f"{model}/{key}", of)
    cfg, run_dir, _ = compose(words(fixed, parameters), trial.number)
    for name, found in (("model", model), ("parameters", parameters), ("path", os.path.relpath(run_dir, directory))):
        trial.set_user_attr(name, found)
    return cfg, run_dir


def _outcome(cfg: DictConfig, run_dir: Path, report: Report, monitor: str) -> Outcome:
    """Train. Whatever fails is what came of it.

    Raises:
        Interrupted: SIGINT.
    """
    began = time.perf_counter()
    value: float | None = None
    state, reason, test = TrialState.FAIL, None, dict[str, Any]()
    try:
        metrics = _trained(cfg, run_dir, report).metrics
        value = metrics.get(f"val/{monitor}")
        if value is None:
            reason = f"val/{monitor} was not measured: this split has no validation part"
        else:
            state = TrialState.COMPLETE
            test = tracking.of_test(metrics)
    except Pruned as error:
        state, reason = TrialState.PRUNED, str(error)
    except Interrupted:
        raise
    except Exception as error:
        expected = isinstance(error, ValueError | OSError | MemoryError)
        reason = " ".join(f"{'' if expected else f'{type(error).__name__}: '}{error}".split())
        if not (run_dir / tracking.CONFIG).exists():  # it failed before there was a run to record
            loggers.record_failure(cfg, run_dir, reason)
    return Outcome(state, value, reason, round(time.perf_counter() - began, 2), test)


def _trained(cfg: DictConfig, run_dir: Path, report: Report) -> Run:
    """The run of a trial; one that came to its end, or was pruned, when its trial was cut off is not repeated."""
    ends = [run_dir / end for end in (tracking.METRICS, PRUNED) if (run_dir / end).exists()]
    if ends and config.flat(config.load(run_dir / tracking.CONFIG)) == config.flat(cfg):
        if ends[0].name == PRUNED:
            raise Pruned(json.loads(ends[0].read_text(encoding="utf-8"))["reason"])
        return Run(run_dir)
    return train(cfg, run_dir, progress=report)


def _tell(study: optuna.Study, trial: optuna.Trial, outcome: Outcome, monitor: str) -> None:
    """Tell the study, and the person, what came of a trial."""
    trial.set_user_attr("seconds", outcome.seconds)
    if outcome.test:
        trial.set_user_attr("test", outcome.test)
    if outcome.reason is not None:
        trial.set_user_attr("reason", outcome.reason)
    study.tell(trial, outcome.value, outcome.state)
    said = f"{outcome.value:.4f}" if outcome.value is not None else f"{STATES[outcome.state]}: {outcome.reason}"
    drawn = " ".join(words(trial.user_attrs["parameters"]))
    tracking.print_line(f"trial {trial.number}  {monitor} {said}  {outcome.seconds:.1f} s  {drawn}")


def _beside(
    cells: list[tuple[DictConfig, Path, int]], n_jobs: int, directory: Path, monitor: str, stops: Pruner
) -> list[Outcome]:
    """What came of several trials, each in a process of its own with its part of the threads; in their order."""
    import joblib

    threads = max(1, torch.get_num_threads() // n_jobs)
    with joblib.parallel_config(backend="loky", inner_max_num_threads=threads):
        work = (joblib.delayed(_elsewhere)(*cell, threads, directory, monitor, stops) for cell in cells)
        return joblib.Parallel(n_jobs=n_jobs)(work)


def _elsewhere(
    cfg: DictConfig, run_dir: Path, trial_id: int, threads: int, directory: Path, monitor: str, stops: Pruner
) -> Outcome:
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sys.stderr.isatty = lambda: False  # type: ignore[method-assign]  # bars of several processes would mix
    _end_with(os.getppid())
    with attached(directory, trial_id, pruner_of(*stops)) as trial:
        return _outcome(cfg, run_dir, reporter(trial, monitor), monitor)


@cache
def _end_with(parent: int) -> None:
    """End this process when its parent, the sweep, is gone; else it would wait for work, or train what is cut off."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
