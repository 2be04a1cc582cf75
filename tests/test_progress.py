"""A bar on a terminal, a line in the end in a notebook, nothing in a pipe."""

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from recsys import progress
from recsys.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Handle:
    """Of a display: what stands there now, and how often it changed."""

    def __init__(self, shown: dict[str, str]) -> None:
        self.shown, self.changes = shown, 0

    def update(self, shown: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown, self.changes = shown, self.changes + 1


def work() -> Bar:
    bar = Bar("Model <b>")
    bar.start()
    for done in range(1, 4):
        bar.update(done - 0.5, 3)
        bar.update(done, 3, f"loss {1 / done:.2f}")
    return bar


def test_nothing_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    work().stop()
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    work().stop()
    last = terminal.getvalue().rsplit("\r", 1)[-1]
    for said in ("Model", "3/3", "loss 0.33"):
        assert said in last


def test_an_html_bar_in_a_kernel_becomes_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import IPython.display

    handles: list[Handle] = []

    def display(shown: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        handles.append(Handle(shown))
        return handles[-1]

    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(progress, "in_kernel", lambda: True)
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    bar = work()
    (handle,) = handles
    assert handle.changes == 6
    assert '<progress value="3.000" max="3"></progress>' in handle.shown["text/html"]
    assert "Model &lt;b&gt;: 3 of 3" in handle.shown["text/html"]
    assert ", 0 s left" in handle.shown["text/html"]
    bar.stop()
    assert list(handle.shown) == ["text/plain"]
    assert handle.shown["text/plain"].startswith("Model <b>: 3 of 3, ")
    assert handle.shown["text/plain"].endswith(" s, loss 0.33")
    assert capsys.readouterr() == ("", "")


def test_redrawing_costs_no_more_than_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = Bar("Model")
    bar.start()
    handle: Any = Handle({})
    bar._display = handle
    for done in range(1000):
        bar.update(done, 1000)
    assert 1 <= handle.changes < 100


def test_a_kernel_is_known_by_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell, expected in ((None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=object()), True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert progress.in_kernel() is expected
    monkeypatch.delitem(sys.modules, "IPython")
    assert not progress.in_kernel()
