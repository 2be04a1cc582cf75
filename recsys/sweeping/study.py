"""The study of a sweep: where it lies, which trial is next, and when one is pruned."""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from recsys.watch import Pruned

STUDY = "study.db"
_NAME = "sweep"
_JOBS = ".jobs"  # which start of the sweep it is; locked by the processes of its trials
Pruner = tuple[str | None, int, float]  # the arguments of `pruner_of`


@contextmanager
def opened(directory: Path, asked: dict[str, Any], *, less_is_better: bool) -> Generator[optuna.Study]:
    """The study of a folder, new or gone on with, for one process at a time.

    Raises:
        ValueError: another process is at it, or it was asked something else; the message says what differs.
    """
    from sqlalchemy.exc import SQLAlchemyError

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / STUDY
    with open(directory / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{directory}: another sweep is running there; choose another hydra.sweep.dir") from None
        with open(directory / _JOBS, "a+") as jobs:  # trials of a sweep that was killed are ending
            fcntl.flock(jobs, fcntl.LOCK_EX)
            jobs.truncate(0)
            jobs.write(secrets.token_hex(8))
        storage = None
        try:
            storage = _storage(directory)
            way: Literal["minimize", "maximize"] = "minimize" if less_is_better else "maximize"
            study = optuna.create_study(study_name=_NAME, storage=storage, direction=way, load_if_exists=True)
            before = study.user_attrs.get("asked", asked)
            for key in sorted(before.keys() | asked.keys()):
                was, now = (of.get(key, "(not given)") for of in (before, asked))
                if was != now:
                    raise ValueError(
                        f"{directory} holds a sweep with {key}={was}, not {now}: "
                        "start it with the words it had, or choose another hydra.sweep.dir"
                    )
            study.set_user_attr("asked", asked)
            yield study
        except SQLAlchemyError as error:
            raise ValueError(f"{path} cannot be used as a study: {str(error).splitlines()[0]}") from error
        finally:
            if storage is not None:
                _close(storage)


def start_of(directory: Path) -> str:
    """Which start of the sweep it was that opened its study last."""
    return (directory / _JOBS).read_text()


@contextmanager
def attached(directory: Path, start: str, trial_id: int, pruner: optuna.pruners.BasePruner) -> Generator[optuna.Trial]:
    """A trial of a study that another process has opened.

    start: `start_of` the sweep that wants the trial. A job may wait for longer than its sweep lives.

    Raises:
        ValueError: another start of the sweep does the trial.
    """
    storage = _storage(directory)
    with open(directory / _JOBS) as jobs:
        fcntl.flock(jobs, fcntl.LOCK_SH)
        try:
            if jobs.read() != start:
                raise ValueError(f"{directory}: the sweep was started again, which does this trial itself")
            yield optuna.Trial(optuna.load_study(study_name=_NAME, storage=storage, pruner=pruner), trial_id)
        finally:
            _close(storage)


def _storage(directory: Path) -> optuna.storages.RDBStorage:
    wait = {"connect_args": {"timeout": 60}}  # seconds, for other processes that write
    return optuna.storages.RDBStorage(f"sqlite:///{directory / STUDY}", engine_kwargs=wait)


def _close(storage: optuna.storages.RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def next_number(study: optuna.Study) -> int:
    """The number of the first trial that is not finished, or of the one to come."""
    trials = study.get_trials(deepcopy=False)
    return next((trial.number for trial in trials if not trial.state.is_finished()), len(trials))


def ask(study: optuna.Study, number: int, firsts: list[dict[str, Any]]) -> optuna.Trial:
    """That trial: as it was if it was cut off, with the parameters of `firsts` where it has some, else a new one."""
    trials = study.get_trials(deepcopy=False)
    if number < len(trials) and trials[number].state == TrialState.RUNNING:  # it was cut off
        return optuna.Trial(study, trials[number]._trial_id)
    if number == len(trials) and number < len(firsts):
        study.enqueue_trial(firsts[number], user_attrs={"defaults": sorted(firsts[number])})
    return study.ask()


def reporter(trial: optuna.Trial, monitor: str) -> Callable[[int, int, dict[str, float]], None]:
    """Tells the study the metric after each hundredth of training, so that trials of 10 and of 30 epochs compare."""
    told = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def report(done: int, total: int, measured: dict[str, float]) -> None:
        share = 100 * done // total
        if f"val/{monitor}" not in measured or done >= total or share in told:
            return
        told.add(share)
        trial.report(measured[f"val/{monitor}"], share)
        if trial.should_prune():
            raise Pruned(f"behind the other trials of its model after {done} of {total} epochs")

    return report


def pruner_of(name: str | None, warmup_trials: int, warmup_share: float) -> optuna.pruners.BasePruner:
    """The pruner of that name, over hundredths of training; None prunes nothing."""
    if name is None:
        return optuna.pruners.NopPruner()
    begin = max(1, round(100 * warmup_share))
    if name == "median":
        return _OfOneModel(optuna.pruners.MedianPruner(warmup_trials, begin))
    return _OfOneModel(optuna.pruners.SuccessiveHalvingPruner(begin, 3))


class _OfOneModel(optuna.pruners.BasePruner):
    """A pruner that holds a trial against those of its own model: learning curves of two models do not compare."""

    def __init__(self, pruner: optuna.pruners.BasePruner) -> None:
        self.pruner = pruner

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        view: Any = _Alike(study, trial)
        return self.pruner.prune(view, trial)


class _Alike:
    """A study as a pruner sees it: a trial and the finished ones of its model, whatever runs beside it."""

    def __init__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.study, self.model, self.number = study, trial.user_attrs["model"], trial.number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.study, name)

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        found = self.study.get_trials(deepcopy, states)
        alike = [trial for trial in found if trial.user_attrs.get("model") == self.model]
        return [trial for trial in alike if trial.state.is_finished() or trial.number == self.number]
