"""What is kept of a run while it trains: learning curves as CSV, always, and what trackers make of them beside.

A tracker is a file of configs/logger; `logger=csv` chooses none. A tracker that fails is said in one line, and training
goes on.
"""

from __future__ import annotations

import json
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from recsys import atomic, backend, config, tracking
from recsys.listing import SWEEP
from recsys.run import Run
from recsys.watch import Interrupted, Pruned

State = Literal["finished", "pruned", "interrupted", "failed"]
EXIT_CODES: dict[State, int] = {"finished": 0, "pruned": 0, "interrupted": 130, "failed": 1}
WANDB = "wandb"  # the folder of W&B in a run directory
_GRID = "multirun.yaml"  # Hydra's, in the folder of a grid
_MODEL_FILES = (
    tracking.CONFIG, tracking.MANIFEST, tracking.METRICS, tracking.MODEL, tracking.USERS, tracking.ITEMS,
    tracking.HISTORY,
)  # fmt: skip


class Tracker(Protocol):
    """What stands beside the CSV files. Its errors reach nobody but the reader of one line."""

    def begin(self, settings: dict[str, Any], about: dict[str, Any]) -> None:
        """settings: the resolved configuration. about: versions, hardware and data."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def end(self, state: State, metrics: Mapping[str, Any]) -> None: ...


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
            with _said(name) as going:
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
        with _said(name):
            tracker.begin(config_of_run, about)
        with _said(name):
            if isinstance(tracker, Wandb):
                for title, chart in (charts or {}).items():
                    tracker.picture(title, chart)
                for kind, folder in (folders or {}).items():
                    tracker.artifact(kind, _files(folder), {"run": str(run.path)})
        with _said(name):
            tracker.end("finished", metrics)


@contextmanager
def _said(name: str) -> Generator[list[str]]:
    """An error in the body is said in one line and goes no further; what is yielded is empty after it."""
    going = [name]
    try:
        yield going
    except Exception as error:
        going.clear()
        say(f"{name} failed, training goes on: {' '.join(f'{type(error).__name__}: {error}'.split())}")


class TensorBoard:
    """Learning curves, and at the end the settings beside the metrics of the test part, as TensorBoard reads them."""

    def __init__(self, run_dir: Path, phase: str = "train") -> None:
        """
        Raises:
            ValueError: the package tensorboard is missing.
        """
        if not backend.version("tensorboard"):
            raise ValueError("logger=tensorboard needs the package tensorboard: pip install 'recsys[tensorboard]'")
        self.folder = run_dir / "tensorboard" / ("" if phase == "train" else phase)
        self._curves: set[str] = set()

    def begin(self, settings: dict[str, Any], about: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._settings = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in config.flat(OmegaConf.create(settings)).items()
        }
        self._writer = SummaryWriter(str(self.folder))
        self._writer.add_text("about", f"```\n{json.dumps(about, indent=2, default=str)}\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._curves |= values.keys()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self, state: State, metrics: Mapping[str, Any]) -> None:
        measured = {name: float(v) for name, v in metrics.items() if isinstance(v, int | float)}
        measured = {name: value for name, value in measured.items() if name not in self._curves}
        if measured:
            self._writer.add_hparams(self._settings, measured, run_name=".")
        self._writer.close()


class Wandb:
    """One run of Weights & Biases, by a process of its own (see `recsys.wandb_process`): whatever it does, it is waited
    for at the end alone, and not for long.

    The id lies in the run directory, so that a resumed run goes on in the same one.
    """

    def __init__(
        self,
        run_dir: Path,
        phase: str = "train",
        project: str = "recsys",
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Args are explained in configs/logger/wandb.yaml."""
        self.run_dir, self.phase, self.timeout = run_dir.resolve(), phase, timeout
        self.init = {
            "project": project, "name": name or self.run_dir.name, "group": group or sweep_of(self.run_dir),
            "job_type": phase, "tags": tags or [], "dir": str(self.run_dir), "resume": "allow",
        }  # fmt: skip
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None

    def begin(self, settings: dict[str, Any], about: dict[str, Any]) -> None:
        mode = _mode()
        if mode == "disabled":
            return
        folder = self.run_dir / WANDB
        self.id = _id(folder) if self.phase == "train" else secrets.token_hex(4)
        packages = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(Path(__file__).parents[1]))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "recsys.wandb_process"], text=True, encoding="utf-8", start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": packages},
        )  # fmt: skip
        threading.Thread(target=self._write, daemon=True).start()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._send(
            "start", init=self.init | {"id": self.id, "mode": mode}, config=settings | {"about": about}, pid=os.getpid()
        )
        if self.phase != "train" and (folder / "id").exists():
            self._send("use", name=f"model-{_id(folder)}:latest")
        if (data := about.get("data")) is None:
            return
        atomic.write_json(folder / "data.json", dict(sorted(data.items())))  # the same bytes in every phase
        files = [str(file) for file in data.get("files", ())]
        name = re.sub(r"[^\w.-]+", "-", str(data["name"]))
        self.artifact("dataset", {"data.json": folder / "data.json"}, data, name=name, references=files, used=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._send("log", values=dict(values) | {"epoch": step})

    def end(self, state: State, metrics: Mapping[str, Any]) -> None:
        if self._process is None:
            return
        with _said(WANDB):
            if state == "finished" and self.phase == "train":
                self._keep_run(Run(self.run_dir))
        self._send("summary", values={**metrics, "state": state})
        self._send("finish", exit_code=EXIT_CODES[state])
        self._queue.put(None)
        try:
            self._process.wait(self.timeout)
            self._reader.join(1)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            say(f"W&B: not done within {self.timeout:g} s and left; `wandb sync` uploads what is in {self.init['dir']}")

    def picture(self, name: str, chart: Any) -> None:
        """Keep an Altair chart as PNG."""
        self._send("picture", name=name, chart=chart.to_dict())

    def artifact(
        self,
        kind: str,
        files: Mapping[str, Path],
        metadata: Mapping[str, Any],
        *,
        name: str | None = None,
        references: list[str] | None = None,
        used: bool = False,
    ) -> None:
        """Keep files, by the name that they have in the artifact, or what they refer to; `used` of an input."""
        there = {inner: str(path) for inner, path in files.items() if path.exists()}
        self._send(
            "artifact", name=name or f"{kind}-{self.id}", type=kind, metadata=dict(metadata), files=there,
            references=references or [], used=used,
        )  # fmt: skip

    def _keep_run(self, run: Run) -> None:
        """The picture of learning, the model as a run directory that `recsys.load` reads, schema and pipeline."""
        import altair as alt
        from safetensors import safe_open

        from recsys.plots import plot_curves

        monitors = (f"val/{run.config.get('monitor')}", "val/ndcg@10", "val/auc")
        monitor = next((name for name in monitors if name in run.curves.columns), None)
        shown = [name for name in ("train/loss", monitor) if name in run.curves.columns]
        if shown:
            self.picture("curves", alt.hconcat(*(plot_curves([run], name) for name in shown)))
        fingerprint = {"fingerprint": run.manifest["data"]["fingerprint"]}
        pipeline = {f"{tracking.PIPELINE}/{name}": path for name, path in _files(run.path / tracking.PIPELINE).items()}
        self.artifact("model", {name: run.path / name for name in _MODEL_FILES} | pipeline, fingerprint)
        schema = run.path / WANDB / "schema.json"
        with safe_open(run.path / tracking.MODEL, framework="pt") as tensors:
            atomic.write_json(schema, {name: json.loads(text) for name, text in tensors.metadata().items()})
        self.artifact("schema", {"schema.json": schema} | pipeline, fingerprint)

    def _send(self, do: str, **what: Any) -> None:
        if self._process is not None:
            self._queue.put(json.dumps({"do": do} | what, default=str))

    def _write(self) -> None:
        stdin: Any = self._process and self._process.stdin
        with suppress(OSError):  # it died: the end says nothing more than that
            for line in iter(self._queue.get, None):
                stdin.write(line + "\n")
                stdin.flush()
        with suppress(OSError):
            stdin.close()

    def _read(self) -> None:
        stdout: Any = self._process and self._process.stdout
        for line in stdout:
            say(f"W&B: {line.strip()}")
        stdout.close()


def sweep_of(run_dir: Path) -> str | None:
    """The name of the sweep or grid that a run directory is part of; None of a single run."""
    there = any((run_dir.parent / file).exists() for file in (SWEEP, _GRID))
    return run_dir.parent.name if there else None


@cache
def say(text: str) -> None:
    """Say one line, and the same line never again."""
    tracking.print_line(text)


def _mode() -> str:
    """online, offline or disabled: as WANDB_MODE says; else online where there is a key."""
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "dryrun"):
        return "offline"
    if mode == "disabled" or (mode == "online" and _has_key()):
        return mode
    if _has_key():
        return "online"
    say("W&B: no API key found, recording offline; upload later with `wandb sync` (a key: `wandb login`)")
    return "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import netrc

    url = os.environ.get("WANDB_BASE_URL")
    hosts = {urlsplit(url).hostname} if url else {"api.wandb.ai", "api.forge.coreweave.com"}  # old name and new
    try:
        return not hosts.isdisjoint(netrc.netrc(os.environ.get("NETRC")).hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def _id(folder: Path) -> str:
    """The id of a training run: the one in its folder, or a new one put there."""
    file = folder / "id"
    if not file.exists():
        atomic.write_text(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8")


def _files(folder: Path) -> dict[str, Path]:
    """All files below a folder, by their path in it."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
