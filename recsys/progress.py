"""A bar while something takes long: on a terminal, in a notebook, and nowhere else."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from html import escape
from typing import Any, Protocol

REDRAW_SECONDS = 0.2


class _Display(Protocol):
    def update(self, obj: Any, *, raw: bool = False) -> None: ...


class Bar:
    """To be started before the work and stopped after it. On a terminal a bar of rich; in a notebook an HTML one that
    needs no widgets and shrinks to a line of text in the end; elsewhere, as in a pipe, nothing."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.done, self.total, self.measured = 0.0, 0, ""
        self._rich: Any = None
        self._display: _Display | None = None

    def start(self) -> None:
        """Show the bar."""
        self._began = time.perf_counter()
        self._first: tuple[float, float] | None = None  # when, and how much was done: a resumed run begins in between
        self._drawn = 0.0
        if in_kernel():
            from IPython.display import display

            self._display = display(self._html(), raw=True, display_id=True)
        elif sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
            from rich.progress import TimeRemainingColumn as Left

            columns = ("[bold]{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Left())
            self._rich = Progress(*columns, TextColumn("{task.fields[measured]}"), console=Console(stderr=True))
            self._task = self._rich.add_task(self.what, total=None, measured="")
            self._rich.start()

    def stop(self) -> None:
        """Leave one line."""
        if self._rich is not None:
            self._rich.stop()
        if self._display is not None:
            self._display.update({"text/plain": str(self)}, raw=True)

    def __str__(self) -> str:
        """One line: what, how much of it, in which time, and what was measured last."""
        spent = f"{time.perf_counter() - self._began:.1f} s"
        parts = [f"{self.done:.0f} of {self.total}" if self.total else "", spent, self.measured]
        return f"{self.what}: {', '.join(part for part in parts if part)}"

    def update(self, done: float, total: int, measured: str | None = None) -> None:
        """So much is done of the total, in whole and begun parts.

        measured: what to say beside it; None: what was said last.
        """
        now = time.perf_counter()
        self._first = self._first or (now, done)
        self.done, self.total = done, total
        self.measured = self.measured if measured is None else measured
        if self._rich is not None:
            self._rich.update(self._task, completed=round(done, 2), total=total, measured=self.measured)
        if self._display is not None and now - self._drawn >= REDRAW_SECONDS:
            self._drawn = now
            self._display.update(self._html(), raw=True)

    def _html(self) -> dict[str, str]:
        bar = (
            f'<progress value="{self.done:.3f}" max="{self.total}"></progress>'
            if self.total
            else "<progress></progress>"
        )
        left = "" if self._left() is None else f", {self._left():.0f} s left"
        return {"text/html": f"<div>{bar} {escape(str(self) + left)}</div>", "text/plain": str(self)}

    def _left(self) -> float | None:
        """Seconds that the rest takes at the pace so far."""
        if self._first is None or self.done <= self._first[1]:
            return None
        return (time.perf_counter() - self._first[0]) / (self.done - self._first[1]) * (self.total - self.done)


def in_kernel() -> bool:
    """Whether this runs in a kernel of Jupyter, which shows HTML."""
    with suppress(KeyError, AttributeError):
        return getattr(sys.modules["IPython"].get_ipython(), "kernel", None) is not None
    return False
