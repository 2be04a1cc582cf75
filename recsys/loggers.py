"""What is kept of a run while it trains: learning curves as CSV, always, and what trackers make of them beside.

A tracker is a file of configs/logger; `logger=csv` chooses none. A tracker that fails is said in one line, and training
goes on.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recsys import atomic, config, tracking
from recsys.run import Run
from recsys.tracker import State, Tracker, said
from recsys.watch import Interrupted, Pruned


class Record:
    """Where a run's values go while it trains.

    Attributes:
        metrics: what trackers sum the run up by; all of metrics.json where it came to its end.
    """

    def __init__(self, run_dir: Path, trackers: Mapping[str, Tracker]) -> None:
        self.trackers, self.metrics = dict(trackers), dict[str, Any]()
        self._curves = tracking.csv_logger(run_dir)

    def begin(self, cfg: DictConfig, about: dict[str, Any]) -> None:
        self._curves.log_hyperparams(config.flat(cfg))
        settings: Any = OmegaConf.to_container(cfg, resolve=True)
        self._all("begin", settings, about)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        self._curves.log_metrics(dict(values), step)
        self._all("log", values, step)

    def save(self) -> None:
        """Write the curves up to here, or a resumed run would lack them."""
        self._curves.save()

    def end(self, state: State) -> None:
        try:
            self._curves.finalize(state)
        except OSError:
            if state == "finished":  # else the error that ended the run is the one to say
                raise
        finally:
            self._all("end", state, self.metrics)

    def _all(self, do: str, *arguments: Any) -> None:
        """Ask each tracker; one that fails is not asked again."""
        for name in [*self.trackers]:
            with said(name) as going:
                getattr(self.trackers[name], do)(*arguments)
            if not going:
                del self.trackers[name]


def trackers(cfg: DictConfig, run_dir: Path, phase: str = "train") -> dict[str, Tracker]:
    """The trackers that a configuration chooses, by the name of their file; they have not begun.

    Args:
        phase: what is recorded: train, evaluate, index.

    Raises:
        ValueError: a key or value does not fit, or a package is missing.
    """
    chosen = cfg.get("logger") or {}
    for name, node in chosen.items():
        if not isinstance(node, DictConfig):
            raise config.ConfigError(f"logger.{name}={node}: expected the settings of a tracker, as logger=wandb")
    return {str(name): config.build(node, run_dir=run_dir, phase=phase) for name, node in chosen.items()}


@contextmanager
def recorded(cfg: DictConfig, run_dir: Path, chosen: Mapping[str, Tracker], about: dict[str, Any]) -> Generator[Record]:
    """A context around training: the record begins, and ends with the state that it is left in.

    Args:
        about: versions, hardware, and data: name, fingerprint and files.
    """
    record = Record(run_dir, chosen)
    record.begin(cfg, about)
    state: State = "failed"
    try:
        yield record
        state = "finished"
    except Pruned as error:
        state, record.metrics = "pruned", record.metrics | {"reason": str(error)}
        raise
    except (Interrupted, KeyboardInterrupt):
        state = "interrupted"
        raise
    except Exception as error:
        record.metrics = {"reason": " ".join(str(error).split())}
        raise
    finally:
        record.end(state)


def record_failure(cfg: DictConfig, run_dir: Path, reason: str) -> None:
    """Leave config.yaml, and tell trackers, of a run that failed before it began."""
    atomic.write_text(run_dir / tracking.CONFIG, config.to_yaml(cfg))
    with suppress(ValueError):  # settings of trackers may be what failed
        record = Record(run_dir, trackers(cfg, run_dir))
        record.metrics = {"reason": reason}
        record.begin(cfg, {})
        record.end("failed")


def record_phase(
    run: Run,
    phase: str,
    words: list[str],
    metrics: Mapping[str, Any],
    charts: Mapping[str, Any] | None = None,
    folders: Mapping[str, Path] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Give the trackers that `words` choose what was found about a finished run, as a record of its own.

    Args:
        phase: evaluate, index.
        words: as on a command line: "logger=wandb", "logger.wandb.project=mine".
        charts: Altair charts by name. folders: to be kept as artifacts, by type.
        settings: what the phase was asked for.

    Raises:
        ValueError: as `trackers`.
    """
    data = {key: run.manifest["data"][key] for key in ("name", "fingerprint", "files")}
    about: dict[str, Any] = {"data": data}
    about |= {phase: dict(settings or {}), "run": str(run.path)}
    config_of_run: Any = OmegaConf.to_container(run.config, resolve=True)
    for name, tracker in trackers(config.compose(*words), run.path, phase).items():
        with said(name):
            tracker.begin(config_of_run, about)
        with said(name):
            for title, chart in (charts or {}).items():
                tracker.picture(title, chart)
            for kind, folder in (folders or {}).items():
                tracker.artifact(kind, tracking.files_below(folder), {"run": str(run.path)})
        with said(name):
            tracker.end("finished", metrics)
