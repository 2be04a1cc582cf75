"""Files that are whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import errno
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
            try:
                save(temporary)
            except Exception as error:
                if not isinstance(error, OSError):
                    _ask_the_disk(temporary)
                raise
    except OSError as error:
        number = error.errno or errno.EIO
        raise OSError(number, f"cannot write {path}: {os.strerror(number)}") from error


def _ask_the_disk(path: Path) -> None:
    """Write on at the end of a file, as safetensors, Polars and torch hide why they could not.

    Raises:
        OSError: neither can we.
    """
    with path.open("ab") as file:
        file.write(bytes(1 << 20))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text beside `path`, then rename it."""
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    """Write JSON, keys in the order given."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False, default=str) + "\n")
