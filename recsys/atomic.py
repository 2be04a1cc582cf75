"""Files that are whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it becomes `path` only if the body succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file beside `path`, then rename it.

    Raises:
        OSError: the disk is full or the folder cannot be written; the message names the file, nothing
            half-written remains and what was there before is untouched.
    """
    try:
        with beside(path) as temporary:
            save(temporary)
    except Exception as error:
        # safetensors and Polars wrap the system's error in types of their own.
        if isinstance(error, OSError) or "os error" in str(error).lower() or "I/O" in str(error):
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise OSError(getattr(error, "errno", None) or 5, f"cannot write {path}: {reason}") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text beside `path`, then rename it."""
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    """Write JSON, keys in the order given."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False, default=str) + "\n")
