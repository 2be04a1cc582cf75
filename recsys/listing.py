"""All runs under a folder as one frame."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from recsys import config, tracking
from recsys.run import PRUNED
from recsys.scorecard import of_test

SWEEP = "sweep.json"  # in the folder that holds a sweep's runs


def runs(dir: Path | str = "runs") -> pl.DataFrame:
    """Every run under a folder, however deep, in order of its path.

    >>> recsys.runs(folder).filter(model="als").select("data", "seed", "state").rows()
    [('tiny', 0, 'finished')]

    Args:
        dir: a folder of runs, of sweeps, or of both.

    Returns:
        path; finished; state: finished, pruned or unfinished; model: the file stem in configs/model; data: the log's
        name; seed; started: when it was last started (UTC: the time of its config.yaml); seconds: of training;
        sweep, trial: the folder of the sweep and the number there; test/recall@20, …: metrics of the test part without
        intervals. What a run does not know, because it is not finished or its files cannot be read, is null.

    Raises:
        ValueError: there is no such folder.
    """
    root = Path(dir)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder of runs")
    rows = [_row(path) for path in _run_dirs(root)]
    types: dict[str, Any] = {
        "path": pl.String,
        "finished": pl.Boolean,
        "state": pl.String,
        "model": pl.String,
        "data": pl.String,
    }
    types |= {"seed": pl.Int64, "started": pl.Datetime("us", "UTC"), "seconds": pl.Float64, "sweep": pl.String}
    types |= {"trial": pl.Int64} | {name: pl.Float64 for row in rows for name in row if name.startswith("test/")}
    return pl.DataFrame(rows, schema=types)


def _run_dirs(root: Path) -> Iterator[Path]:
    """Folders with a config.yaml; what lies below one is the run's own."""
    for folder, below, files in os.walk(root):
        if tracking.CONFIG in files:
            below.clear()
            yield Path(folder)
        below.sort()


def _row(path: Path) -> dict[str, Any]:
    metrics, manifest = _read(path / tracking.METRICS), _read(path / tracking.MANIFEST)
    try:
        cfg = config.flat(config.load(path / tracking.CONFIG))
    except Exception:  # half written by hand, or of another tool: the row stands, and says what is known
        cfg = {}
    finished = bool(metrics)
    target = str(cfg.get("model._target_") or "")
    trial = {t["path"]: t["trial"] for t in _read(path.parent / SWEEP).get("trials", [])}.get(path.name)
    seed = cfg.get("seed")
    row: dict[str, Any] = {
        "path": str(path),
        "finished": finished,
        "state": "finished" if finished else "pruned" if (path / PRUNED).exists() else "unfinished",
        "model": target.split(".")[-2] if target.count(".") else None,
        "data": manifest.get("data", {}).get("name"),
        "seed": seed if isinstance(seed, int) else None,
        "started": datetime.fromtimestamp((path / tracking.CONFIG).stat().st_mtime, UTC),
        "seconds": metrics.get("train/seconds"),
        "sweep": str(path.parent) if (path.parent / SWEEP).exists() else None,
        "trial": trial,
    }
    return row | of_test(metrics)


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of keys and values; none where there is no such file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
