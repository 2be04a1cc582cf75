"""What goes on beside the arithmetic of training: progress, learning curve, checkpoints, interrupts.

The same for a gradient-trained model (an epoch at a time) and an alternating solver (a sweep at a time).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import pytorch_lightning as pl
import torch

from recsys import atomic, tracking
from recsys.progress import Bar


class Interrupted(Exception):
    """Training was asked to stop; what to resume from is on disk."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback."""
        return [str(self)]


class Pruned(Exception):
    """What was measured so far is too little for training to go on."""


class _Converged(Exception):
    """The monitored metric has not improved for `patience` epochs."""


class Watch:
    """A context around the fit of one model.

    Attributes:
        epoch, chunk: what is done: whole epochs (or sweeps), and chunks of the one under way.
        seconds: time spent training in this process, without validation and checkpoints.
        waited: of these, seconds in which training stood still for its next chunk.
        latest: the last measured values.
        epochs_here, samples: epochs done and positives stepped on in this process.

    A `restart` begins these counts anew.
    """

    def __init__(
        self,
        run_dir: Path,
        model: pl.LightningModule,
        logger: Any,
        *,
        validate: Callable[[], dict[str, float]] | None,
        monitor: str,
        patience: int | None,
        checkpoint_seconds: float,
        resume_from: Path | None,
        less_is_better: bool = False,
        progress: Callable[[int, int, dict[str, float]], None] | None = None,
    ) -> None:
        """less_is_better: of `monitor`. progress: progress(done, total, values) is called after every epoch, and may
        raise `Pruned`."""
        self.run_dir, self.model, self.logger = run_dir, model, logger
        self.validate, self.monitor, self.patience = validate, monitor, patience
        self.checkpoint_seconds = checkpoint_seconds
        self.sign, self.progress = -1 if less_is_better else 1, progress
        self.epoch = self.chunk = self.epochs_here = self.samples = 0
        self.seconds = self.waited = 0.0
        self.latest: dict[str, float] = {}
        self.best: dict[str, Any] = {}
        self.optimizers: list[torch.optim.Optimizer] = []
        self._optimizer_states: list[dict[str, Any]] = []
        self._start: dict[str, torch.Tensor] | None = None
        self._asked_to_stop = False
        if resume_from is not None:
            self._load(resume_from)

    def __enter__(self) -> Watch:
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._previous_handler = signal.signal(signal.SIGINT, self._on_sigint)
        self._bar = Bar(type(self.model).__name__)
        self._bar.start()
        self._saved_at = self._resumed_at = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._pause()
        self._bar.stop()
        if self._in_main_thread:
            signal.signal(signal.SIGINT, self._previous_handler)
        if self.best and (kind is None or kind is _Converged):
            self.model.load_state_dict(self.best["model"])
            self.latest = {**self.latest, **self.best["measured"], "train/best_epoch": self.best["epoch"]}
        return kind is _Converged

    def report(self, done: int, total: int, measured: dict[str, float]) -> None:
        """An epoch or a sweep is done: measure, log, keep, and stop if asked to.

        Raises:
            Interrupted: SIGINT came meanwhile; the checkpoint is written.
            Pruned: what asked for the measurements stops training.
        """
        self._pause()
        self.epoch, self.chunk = done, 0
        self.epochs_here += 1
        if self.validate is not None:
            measured = {**measured, **self.validate()}
        self.latest = measured
        if measured:
            self.logger.log_metrics({**measured, "epoch": done}, step=done)
        shown = [name for name in ("train/loss", self.monitor) if name in measured]
        text = "  ".join(f"{name} {measured[name]:.4f}" for name in shown)
        self._bar.update(done, total, text)
        stale = self._keep_best(measured)
        if self.progress is not None:
            self.progress(done, total, measured)
        self._save_or_stop(finished=done >= total)
        if stale:
            raise _Converged
        self._resume()

    def chunk_done(self, chunks: int, epochs: int) -> None:
        """A chunk of an epoch is done; the last one of an epoch is left to `report`.

        Raises:
            Interrupted: SIGINT came meanwhile; the checkpoint is written.
        """
        self.chunk += 1
        self._bar.update(self.epoch + self.chunk / chunks, epochs)
        if self.chunk < chunks:
            self._save_or_stop(finished=False)

    def load_optimizers(self) -> None:
        """Give the optimisers the state they had in the checkpoint, once they exist."""
        for optimizer, state in zip(self.optimizers, self._optimizer_states, strict=False):
            optimizer.load_state_dict(state)

    def remember_start(self) -> None:
        """Keep the model as it is on the CPU until there is a checkpoint, for a `restart`."""
        if not (self.run_dir / tracking.LAST).exists():
            self._start = _on_cpu(self.model)

    def restart(self, batch_size: int, same_place: Callable[[int, int, int], int]) -> None:
        """Go back to the last checkpoint, or to the start where there is none, and on from there with another batch.

        same_place: same_place(chunk, before, after) is where to go on when batches of `before` rows become `after`.
        """
        self.optimizers, self._optimizer_states = [], []
        self.epochs_here = self.samples = 0
        self.seconds = self.waited = 0.0
        if self._start is None:
            self._load(self.run_dir / tracking.LAST)
        else:
            self.model.load_state_dict(self._start)
            self.epoch = self.chunk = 0
            self.latest, self.best = {}, {}
        model: Any = self.model
        self.chunk = same_place(self.chunk, model.batch_size, batch_size)
        model.batch_size = batch_size
        self._resume()

    def forget(self) -> None:
        """The run is finished: the checkpoint to resume from is not needed any more."""
        (self.run_dir / tracking.LAST).unlink(missing_ok=True)

    def _pause(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self.seconds += time.perf_counter() - self._resumed_at
        self._resumed_at = time.perf_counter()

    def _resume(self) -> None:
        self._resumed_at = time.perf_counter()

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        if self._asked_to_stop:
            raise KeyboardInterrupt
        self._asked_to_stop = True
        tracking.print_line("Stopping at the next step; once more to stop at once, without a checkpoint")

    def _keep_best(self, measured: dict[str, float]) -> bool:
        """Whether `patience` epochs have passed without a better value."""
        if self.patience is None or self.monitor not in measured:
            return False
        if not self.best or self.sign * (measured[self.monitor] - self.best["measured"][self.monitor]) > 0:
            self.best = {"epoch": self.epoch, "measured": measured, "model": _on_cpu(self.model)}
        return self.epoch - self.best["epoch"] >= self.patience

    def _save_or_stop(self, finished: bool) -> None:
        now = time.perf_counter()
        due = now - self._saved_at >= self.checkpoint_seconds
        if self._asked_to_stop or (due and not finished):
            self._save()
            self._saved_at = time.perf_counter()
            self._resumed_at += self._saved_at - now
        if self._asked_to_stop:
            raise Interrupted(
                f"stopped after {self.epoch} epochs and {self.chunk} chunks; to go on: recsys resume run={self.run_dir}"
                f" or recsys.resume({str(self.run_dir)!r})"
            )

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "epoch": self.epoch,
            "chunk": self.chunk,
            "batch_size": getattr(self.model, "batch_size", None),  # not the configured one where memory was short
            "latest": self.latest,
            "best": self.best,
        }
        atomic.write(self.run_dir / tracking.LAST, lambda path: torch.save(state, path))
        self._start = None
        self.logger.save()  # the learning curve up to here, or a resumed run would lack it

    def _load(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
        except Exception as error:
            raise ValueError(f"{path} cannot be resumed from: {str(error).splitlines()[0]}") from error
        self._optimizer_states = state["optimizers"]
        self.epoch, self.chunk = state["epoch"], state["chunk"]
        self.latest, self.best = state["latest"], state["best"]
        if state.get("batch_size") is not None:
            model: Any = self.model
            model.batch_size = state["batch_size"]


def _on_cpu(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
