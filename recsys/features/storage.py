"""A description and tables as a folder: JSON and Parquet, versioned and checksummed.

Tables lie under names that hold the digest of their content, and the description, which names them, is written last. So
the folder is whole at any moment, also while another description is written over the one that is there.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from recsys import atomic
from recsys.features.base import FeatureError

FORMAT, VERSION = "recsys features", 1
FILE = "pipeline.json"


def fingerprint(description: Mapping[str, Any], tables: Mapping[str, pl.DataFrame]) -> str:
    """SHA-256 hex of a description and its tables."""
    return _digest(_whole(description, _parquet(tables)))


def write(path: Path, description: Mapping[str, Any], tables: Mapping[str, pl.DataFrame]) -> None:
    """Write into a folder; what stood there before is replaced in one step and then removed.

    Args:
        description: what JSON can hold.
        tables: by name, without a slash.

    Raises:
        OSError: a file cannot be written. What was there before still loads.
    """
    data = _parquet(tables)
    whole = _whole(description, data)
    try:
        before = {entry["file"] for entry in _checked(path / FILE)["tables"].values()}
    except FeatureError:
        before = set()
    files = {entry["file"]: data[name] for name, entry in whole["tables"].items()}
    for file, content in files.items():
        atomic.write(path / file, lambda beside, content=content: beside.write_bytes(content))  # type: ignore[misc]
    atomic.write_json(path / FILE, {**whole, "checksum": _digest(whole)})
    for file in before - set(files):
        (path / file).unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """The inverse of `write`.

    Raises:
        FeatureError: nothing there, a newer version, or a file that is damaged or missing.
    """
    found = _checked(path / FILE)
    return found, {name: _table(path / entry["file"], entry["sha256"]) for name, entry in found["tables"].items()}


def _parquet(tables: Mapping[str, pl.DataFrame]) -> dict[str, bytes]:
    found = {}
    for name, table in tables.items():
        table.write_parquet(file := io.BytesIO(), compression="zstd")
        found[name] = file.getvalue()
    return found


def _whole(description: Mapping[str, Any], data: Mapping[str, bytes]) -> dict[str, Any]:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in data.items()}
    files = {name: {"file": f"{name}.{d[:16]}.parquet", "sha256": d} for name, d in digests.items()}
    return {"format": FORMAT, "version": VERSION, **description, "tables": files}


def _digest(values: Mapping[str, Any]) -> str:
    """SHA-256 hex of JSON, whatever the order of its keys and the spaces in it."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FeatureError(f"{file}: no such file; name the folder of a saved pipeline") from None
    except (OSError, ValueError) as error:
        raise FeatureError(f"{file}: cannot be read ({str(error).splitlines()[0]}); save the pipeline again") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FeatureError(f"{file}: not a saved pipeline; name the folder of one")
    if found.get("version") != VERSION:
        what = f"written in format version {found.get('version')}, this recsys reads {VERSION}"
        raise FeatureError(f"{file}: {what}; upgrade, or fit again")
    if found.pop("checksum", None) != _digest(found):
        raise FeatureError(f"{file}: damaged, its checksum does not fit; copy it again, or fit again")
    return found


def _table(file: Path, sha256: str) -> pl.DataFrame:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise FeatureError(f"{file}: cannot be read ({error.strerror}); copy the whole folder, or fit again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise FeatureError(f"{file}: damaged, its checksum does not fit; copy it again, or fit again")
    return pl.read_parquet(io.BytesIO(data))
