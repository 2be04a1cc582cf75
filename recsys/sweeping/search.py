"""The trials of a sweep: TPE (Bergstra et al., NeurIPS 2011) over Optuna's ask and tell."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from omegaconf import DictConfig
from optuna.trial import TrialState

from recsys import config, tracking
from recsys.comparison import LESS_IS_BETTER
from recsys.run import Run
from recsys.sweeping.plan import Compose, Composed, defaults_of, plan, words
from recsys.sweeping.space import Choices, Range, Space, draw
from recsys.sweeping.study import ask, next_number, opened, pruner_of, reporter
from recsys.sweeping.summary import STATES, summarise
from recsys.training import train
from recsys.watch import Interrupted, Pruned


def sweep(
    compose: Compose,
    directory: Path,
    fixed: Mapping[str, str],
    drawn: Mapping[str, Range | Choices],
    *,
    n_trials: int,
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
        seed, startup_trials, defaults, pruner, warmup_trials, warmup_share, space: see configs/sweep/optuna.yaml.

    Raises:
        ValueError: the words, the space or the folder do not fit, or no trial came to its end; the message says what.
        Interrupted: SIGINT; the sweep can be started again.
    """
    for name, least in (("n_trials", n_trials), ("startup_trials", startup_trials), ("warmup_trials", warmup_trials)):
        if least < 1:
            raise ValueError(f"hydra.sweeper.{name}={least}: expected at least 1")
    if not 0 < warmup_share < 1:
        raise ValueError(f"hydra.sweeper.warmup_share={warmup_share}: expected a share between 0 and 1")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    composed: Composed = cache(lambda *said: compose([*said], 0))  # composing takes as long as a small model does
    kinds, monitor = plan(composed, fixed, drawn, space)
    asked: dict[str, Any] = {"metric": monitor, "seed": seed, "startup_trials": startup_trials, "defaults": defaults}
    asked |= {"pruner": pruner, "warmup_trials": warmup_trials, "warmup_share": warmup_share}
    asked |= {**fixed, **{key: str(of) for key, of in drawn.items()}}
    asked |= {f"space.{kind}.{key}": str(of) for kind, keys in kinds.items() for key, of in keys.items()}
    with opened(directory, asked, less_is_better=monitor in LESS_IS_BETTER) as study:
        study.pruner = pruner_of(pruner, warmup_trials, warmup_share)
        firsts = defaults_of(composed, fixed, drawn, kinds) if defaults else []
        summarise(directory, study, monitor, fixed)
        while (number := next_number(study)) < n_trials:
            state = np.random.SeedSequence((seed, number)).generate_state(1)
            study.sampler = optuna.samplers.TPESampler(seed=int(state[0]), n_startup_trials=startup_trials)
            trial = ask(study, number, firsts)
            try:
                _try(study, trial, compose, directory, fixed, drawn, kinds, monitor)
            except (KeyboardInterrupt, Interrupted):
                done = f"stopped with {number} of {n_trials} trials done"
                raise Interrupted(f"{done}; to go on: the same words with hydra.sweep.dir={directory}") from None
            summarise(directory, study, monitor, fixed)
        if not any(trial.state == TrialState.COMPLETE for trial in study.trials):
            reasons = [trial.user_attrs.get("reason", "") for trial in study.trials]
            raise ValueError(f"none of {len(reasons)} trials came to its end, the first with: {reasons[0]}")


def _try(
    study: optuna.Study,
    trial: optuna.Trial,
    compose: Compose,
    directory: Path,
    fixed: Mapping[str, str],
    drawn: Mapping[str, Range | Choices],
    kinds: Mapping[str, Space],
    monitor: str,
) -> None:
    """Draw, train, and tell the study."""
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
    began = time.perf_counter()
    value: float | None = None
    state, reason = TrialState.FAIL, None
    try:
        run = _trained(cfg, run_dir, reporter(trial, monitor))
        value = run.metrics.get(f"val/{monitor}")
        if value is None:
            reason = f"val/{monitor} was not measured: this split has no validation part"
        else:
            state = TrialState.COMPLETE
            test = {name: v for name, v in run.metrics.items() if name.startswith("test/") and name.count("/") == 1}
            trial.set_user_attr("test", test)
    except Pruned as error:
        state, reason = TrialState.PRUNED, str(error)
    except Interrupted:
        raise
    except Exception as error:
        expected = isinstance(error, ValueError | OSError | MemoryError)
        reason = " ".join(f"{'' if expected else f'{type(error).__name__}: '}{error}".split())
    seconds = time.perf_counter() - began
    trial.set_user_attr("seconds", round(seconds, 2))
    if reason is not None:
        trial.set_user_attr("reason", reason)
    study.tell(trial, value, state)
    said = f"{value:.4f}" if value is not None else f"{STATES[state]}: {reason}"
    tracking.print_line(f"trial {trial.number}  {monitor} {said}  {seconds:.1f} s  {' '.join(words(parameters))}")


def _trained(cfg: DictConfig, run_dir: Path, report: Callable[[int, int, dict[str, float]], None]) -> Run:
    """The run of a trial; one that was finished when its trial was cut off is not repeated."""
    if (run_dir / tracking.METRICS).exists():
        written = config.load(run_dir / tracking.CONFIG)
        if config.flat(written) == config.flat(cfg):
            return Run(run_dir)
    return train(cfg, run_dir, progress=report)
