"""Learning curves for TensorBoard, in the run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from recsys import backend, config
from recsys.tracker import State, Tracker


class TensorBoard(Tracker):
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
