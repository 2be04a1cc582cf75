"""Runs, metrics and comparisons as tables on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.scorecard import OF_LISTS, of_lists, scores, title

if TYPE_CHECKING:
    import polars as pl

    from recsys.regressions import Change
    from recsys.run import Run

WIDTH = 140  # where the output is no terminal


def show_run(run: Run) -> None:
    show_metrics(run.metrics)
    if any(name.startswith("baselines/") for name in run.metrics):
        from recsys.comparison import beside

        show_differences("beside baselines, differences of this run to them", beside(run))
    path = os.path.relpath(run.path) if run.path.is_relative_to(Path.cwd()) else str(run.path)
    ask = f"recsys.load({path!r}).predict(rows)" if run.is_ranker else ""
    if not ask:
        first = run.users.ids[0] if len(run.users.ids) else ""
        ask = f"recsys recommend run={path} users={first} k=10"
    sys.stdout.write(
        f"\nrun: {path}\n"
        f"next: {ask}\n"
        f"      recsys train model=als        (another model on the same data)\n"
        f"      recsys train --help           (every group and key)\n"
    )


def show_metrics(metrics: dict[str, Any]) -> None:
    """One line a metric: value, interval, share of the oracle or Bayes' own value; then the lists, then the rest."""
    print_table(title(metrics), *scores(metrics))
    header, rows = of_lists(metrics)
    if rows:
        print_table("what the lists are like", header, rows)
    rest = {k: v for k, v in metrics.items() if k.split("/")[0] in ("train", "evaluation")}
    sys.stdout.write("  ".join(f"{name} {value:,.4g}" for name, value in rest.items()) + "\n")


def show_comparison(
    runs: list[Run], metrics: list[str] | None = None, baseline: str | None = None, correction: str = "holm"
) -> None:
    from recsys.comparison import compare

    frame = compare(runs, metrics, baseline, correction=correction).rename({"low": "value/low", "high": "value/high"})
    if metrics is None:
        import polars as pl

        frame = frame.filter(~pl.col("metric").str.split("@").list.first().is_in(OF_LISTS))
    runs_said = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    show_differences(f"{runs_said}, differences to {baseline or frame['label'][0]}, p by {correction}", frame)


def show_differences(title: str, frame: pl.DataFrame) -> None:
    """What `comparison` gives, as a table."""
    rows = []
    for row in frame.iter_rows(named=True):
        known = row["difference_low"] is not None
        interval = f" [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]" if known else ""
        share = row.get("share")
        cells = [row["metric"], row["label"], *("" if row.get(n) is None else str(row[n]) for n in ("seeds", "trials"))]
        cells += [with_interval(row, "value")]
        cells += ["" if share is None else f"{share:.1%}"]
        cells += ["" if row["difference"] is None else f"{row['difference']:+.4f}{interval}"]
        cells += ["" if row["detectable"] is None else f"{row['detectable']:.4f}"]
        cells += ["" if row["p_corrected"] is None else f"{row['p_corrected']:.3f}", row["verdict"] or ""]
        rows.append(cells)
    header = [
        "metric",
        "label",
        "seeds",
        "trials",
        "value",
        "of the oracle",
        "difference",
        "detectable",
        "p",
        "verdict",
    ]
    shown = [c for c in range(len(header)) if any(row[c] for row in rows)]
    print_table(title, [header[c] for c in shown], [[row[c] for c in shown] for row in rows])


def show_changes(changes: Sequence[Change], notes: Sequence[str]) -> None:
    """What `regressions.compare` found: what to know first, what changed, and how much did not."""
    from recsys.regressions import LEAST, UNKNOWN

    for note in notes:
        sys.stdout.write(f"{note}\n")
    moved = [change for change in changes if change.verdict != "same"]
    rows = [
        [c.file, c.figure, f"{c.a:,.4g}", f"{c.b:,.4g}", f"{c.change:+.1%}", f"{c.noise:.1%}", c.verdict] for c in moved
    ]
    if rows:
        print_table("changed beyond noise", ("file", "figure", "A", "B", "change", "noise", ""), rows)
    sys.stdout.write(
        f"{len(changes)} figures compared, {len(changes) - len(moved)} the same within noise: the quartiles of the "
        f"repeats of both, {LEAST:.0%} at least, and {UNKNOWN:.0%} where no repeats are known\n"
    )


def with_interval(row: dict[str, Any], name: str) -> str:
    """A value with its interval, where it has one."""
    low, high = row.get(f"{name}/low"), row.get(f"{name}/high")
    text = "" if row[name] is None else f"{row[name]:.4f}" if isinstance(row[name], float) else f"{row[name]}"
    return text if low is None else f"{text} [{low:.4f}, {high:.4f}]"


def print_frame(title: str, frame: pl.DataFrame, spec: str) -> None:
    """A frame as a table; spec: how floats are written."""
    rows = [
        ["" if v is None else f"{v:{spec}}" if isinstance(v, float) else str(v) for v in row]
        for row in frame.iter_rows()
    ]
    print_table(title, frame.columns, rows)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in header:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
