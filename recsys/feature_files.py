"""A log as model inputs on disk: a pipeline fitted on train, and the tensors of every part of the split.

A folder holds `pipeline/`, `train/part-00000.safetensors` and so on, likewise `validation/` and `test/`, and
`features.json`, which describes them. It is made beside its place and renamed, so it is whole or not there.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys import atomic
from recsys.data.datamodule import RecDataModule
from recsys.data.rows import joined
from recsys.features import FeaturePipeline
from recsys.features.pipeline import ROLES
from recsys.features.sampling import NegativeSampling

DESCRIPTION, PIPELINE = "features.json", "pipeline"
ROWS_A_FILE = 1 << 16


def write(
    pipeline: FeaturePipeline,
    module: RecDataModule,
    path: str | Path,
    *,
    negatives: NegativeSampling | None = None,
    rows_a_file: int = ROWS_A_FILE,
) -> dict[str, Any]:
    """Fit a pipeline on the train rows of a log, and write the tensors of all parts.

    Histories of train see each row's own past, those of validation what train knows, those of test also the validation
    rows: the pipeline that is saved knows all before the test cut.

    Args:
        negatives: keep this share of train's negatives. The pipeline is fitted on all rows, validation and test are
            left whole, and the rate stands in features.json, to correct probabilities by.

    Returns: what features.json holds: rows, files and seconds of each part, the columns, fingerprints.
    Raises:
        ValueError: the folder holds something, or a column does not fit a feature; the message names it.
        OSError: a file cannot be written; nothing is left of the others.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is not an empty folder: name another one, or remove it")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        parts = {}
        rows = joined(module.log, module.split.train)
        start = time.perf_counter()
        pipeline.fit(rows, past=module.log.past)
        fitting = time.perf_counter() - start
        kept = rows if negatives is None else negatives.keep(rows)
        parts["train"] = _write_part(pipeline, kept, beside / "train", rows_a_file)
        if module.split.validation is not None:
            rows = joined(module.log, module.split.validation)
            parts["validation"] = _write_part(pipeline, rows, beside / "validation", rows_a_file)
            pipeline.update(rows)
        rows = joined(module.log, module.split.test)
        parts["test"] = _write_part(pipeline, rows, beside / "test", rows_a_file)
        pipeline.save(beside / PIPELINE)
        description = {
            "parts": parts,
            "negatives": None if negatives is None else negatives.to_dict(),
            "fit_seconds": round(fitting, 3),
            "columns": [asdict(column) for column in pipeline.columns],
            "pipeline": pipeline.fingerprint,
            "data": module.log.fingerprint,
        }
        atomic.write_json(beside / DESCRIPTION, description)
        if path.exists():
            path.rmdir()
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return description


def _write_part(pipeline: FeaturePipeline, rows: pl.LazyFrame, folder: Path, rows_a_file: int) -> dict[str, Any]:
    start, count, files = time.perf_counter(), 0, 0
    for number, tensors in enumerate(pipeline.batches(rows, rows_a_file, ROLES)):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / f"part-{number:05d}.safetensors")
        count, files = count + len(next(iter(tensors.values()))), number + 1
    return {"rows": count, "files": files, "seconds": round(time.perf_counter() - start, 3)}


def describe(path: str | Path) -> dict[str, Any]:
    """What features.json holds.

    Raises:
        ValueError: the folder holds no features.
    """
    try:
        found: dict[str, Any] = json.loads((Path(path) / DESCRIPTION).read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{path} holds no features: {DESCRIPTION} is missing") from None
    return found


def read(path: str | Path, part: str = "train") -> Iterator[dict[str, Tensor]]:
    """The tensors of a part, file by file, in the order of its rows.

    Raises:
        ValueError: the folder holds no features, or not this part.
    """
    parts = describe(path)["parts"]
    if part not in parts:
        raise ValueError(f"{path} has no part {part}: it has {', '.join(parts)}")
    for file in sorted((Path(path) / part).glob("part-*.safetensors")):
        yield load_file(file)
