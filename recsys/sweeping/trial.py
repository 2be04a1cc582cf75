"""What comes of one trial: a run, or a reason."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from optuna.trial import TrialState

from recsys import config, loggers, tracking
from recsys.run import PRUNED, Run
from recsys.scorecard import of_test
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


def outcome(cfg: DictConfig, run_dir: Path, report: Report, monitor: str) -> Outcome:
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
            test = of_test(metrics)
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
