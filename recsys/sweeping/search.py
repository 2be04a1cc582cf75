"""The trials of a sweep: TPE (Bergstra et al., NeurIPS 2011) over Optuna's ask and tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from omegaconf import DictConfig
from optuna.trial import TrialState

from recsys import tracking
from recsys.comparison import LESS_IS_BETTER
from recsys.sweeping import plot
from recsys.sweeping.plan import Compose, Composed, defaults_of, plan, words
from recsys.sweeping.processes import cluster, on_cluster, on_cores
from recsys.sweeping.space import Choices, Range, Space, draw
from recsys.sweeping.study import ask, next_number, opened, pruner_of, reporter
from recsys.sweeping.summary import STATES, summarise
from recsys.sweeping.trial import Outcome, outcome
from recsys.watch import Interrupted


def run(
    compose: Compose,
    directory: Path,
    fixed: Mapping[str, str],
    drawn: Mapping[str, Range | Choices],
    *,
    n_trials: int,
    n_jobs: int = 1,
    submitit: dict[str, Any] | None = None,
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
        n_trials, n_jobs, submitit, seed, startup_trials, defaults, pruner, warmup_trials, warmup_share, space: see
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
    executor = None if submitit is None else cluster(submitit, directory)
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
                cells = [(cfg, run_dir, trial._trial_id) for trial, cfg, run_dir in trials]
                if executor is not None:
                    outcomes = on_cluster(cells, executor, directory, monitor, stops)
                elif n_jobs > 1:
                    outcomes = on_cores(cells, n_jobs, directory, monitor, stops)
                else:
                    ((trial, cfg, run_dir),) = trials
                    outcomes = [outcome(cfg, run_dir, reporter(trial, monitor), monitor)]
            except (KeyboardInterrupt, Interrupted):
                done = f"stopped with {number} of {n_trials} trials done"
                raise Interrupted(f"{done}; to go on: the same words with hydra.sweep.dir={directory}") from None
            for (trial, *_), found in zip(trials, outcomes, strict=True):
                _tell(study, trial, found, monitor)
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


def _tell(study: optuna.Study, trial: optuna.Trial, found: Outcome, monitor: str) -> None:
    """Tell the study, and the person, what came of a trial."""
    trial.set_user_attr("seconds", found.seconds)
    if found.test:
        trial.set_user_attr("test", found.test)
    if found.reason is not None:
        trial.set_user_attr("reason", found.reason)
    study.tell(trial, found.value, found.state)
    said = f"{found.value:.4f}" if found.value is not None else f"{STATES[found.state]}: {found.reason}"
    drawn = " ".join(words(trial.user_attrs["parameters"]))
    tracking.print_line(f"trial {trial.number}  {monitor} {said}  {found.seconds:.1f} s  {drawn}")
