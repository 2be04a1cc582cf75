"""What a tracker is: something beside the CSV files that is told of a run while it trains."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from recsys import tracking

State = Literal["finished", "pruned", "interrupted", "failed"]


class Tracker:
    """It is told what happens, and keeps what it can. Its errors reach nobody but the reader of one line."""

    def begin(self, settings: dict[str, Any], about: dict[str, Any]) -> None:
        """settings: the resolved configuration. about: versions, hardware and data."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """values: of an epoch, by name."""

    def picture(self, name: str, chart: Any) -> None:
        """chart: Altair's."""

    def artifact(self, kind: str, files: Mapping[str, Path], metadata: Mapping[str, Any]) -> None:
        """files: by the name that they have in the artifact; those that do not exist are left out."""

    def end(self, state: State, metrics: Mapping[str, Any]) -> None:
        """metrics: what sums the run up."""


@contextmanager
def said(name: str) -> Generator[list[str]]:
    """An error in the body is said in one line and goes no further; what is yielded is empty after it."""
    going = [name]
    try:
        yield going
    except Exception as error:
        going.clear()
        say(f"{name} failed, training goes on: {' '.join(f'{type(error).__name__}: {error}'.split())}")


@cache
def say(text: str) -> None:
    """Say one line, and the same line never again."""
    tracking.print_line(text)
