"""A run in Weights & Biases: curves, metrics, pictures; data, model and schema as artifacts with their lineage."""

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
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from recsys import atomic, tracking
from recsys.listing import SWEEP
from recsys.run import Run
from recsys.tracker import State, Tracker, said, say

EXIT_CODES: dict[State, int] = {"finished": 0, "pruned": 0, "interrupted": 130, "failed": 1}
_GRID = "multirun.yaml"  # Hydra's, in the folder of a grid
_MODEL_FILES = (
    tracking.CONFIG, tracking.MANIFEST, tracking.METRICS, tracking.MODEL, tracking.USERS, tracking.ITEMS,
    tracking.HISTORY,
)  # fmt: skip


class Wandb(Tracker):
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
        folder = self.run_dir / tracking.WANDB
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
        with said("wandb"):
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

        from recsys.plots import plot_curves

        shown = [name for name in ("train/loss", run.monitor) if name in run.curves.columns]
        if shown:
            self.picture("curves", alt.hconcat(*(plot_curves([run], name) for name in shown)))
        fingerprint = {"fingerprint": run.manifest["data"]["fingerprint"]}
        below = tracking.files_below(run.path / tracking.PIPELINE)
        pipeline = {f"{tracking.PIPELINE}/{name}": path for name, path in below.items()}
        self.artifact("model", {name: run.path / name for name in _MODEL_FILES} | pipeline, fingerprint)
        schema = run.path / tracking.WANDB / "schema.json"
        metadata = tracking.read_metadata(run.path / tracking.MODEL)
        atomic.write_json(schema, {name: json.loads(text) for name, text in metadata.items()})
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
