"""Runs, metrics and comparisons as tables on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from recsys.run import Run

OF_LISTS = ("popularity", "popularity_lift", "novelty", "serendipity", "diversity", "coverage", "gini")
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
    columns = ["metric", "value", "95% interval", "share of the oracle", "warm only"]
    if any(name.startswith("bayes/") for name in metrics):
        columns[3] = "the truth known"
    rows = []
    for name, value in metrics.items():
        if not name.startswith("test/") or name.count("/") != 1:
            continue
        metric = name.removeprefix("test/")
        if metric.partition("@")[0] in OF_LISTS:
            continue
        low, high = metrics.get(f"{name}/low"), metrics.get(f"{name}/high")
        oracle, warm = metrics.get(f"oracle/{metric}"), metrics.get(f"test/warm/{metric}")
        row = [metric, f"{value:.4f}"]
        row.append("" if low is None else f"[{low:.4f}, {high:.4f}]")
        best = metrics.get(f"bayes/{metric}")
        row.append(f"{value / oracle:.1%} of {oracle:.4f}" if oracle else "" if best is None else f"Bayes {best:.4f}")
        row.append("" if warm is None else f"{warm:.4f}")
        rows.append(row)
    for name, value in metrics.items():
        if name.startswith("utility/"):
            metric = name.removeprefix("utility/")
            best = metrics[f"best/{metric}"]
            rows.append([f"expected {metric}", f"{value:.4f}", "", f"{value / best:.1%} of {best:.4f}", ""])
    # A column that has nothing to say in any row (no answer key, no intervals) is left out.
    shown = [c for c in range(len(columns)) if any(row[c] for row in rows)]
    title = f"{metrics.get('candidates', 'whole catalogue')} ranked"
    if "test/log_loss" in metrics:
        title = "rows as shown"
    elif metrics.get("queries") == "next_in_session":
        title = f"next in session, {title}"
    print_table(
        f"test, {title}",
        [columns[c] for c in shown],
        [[row[c] for c in shown] for row in rows],
    )
    lists = {name: [k for k in metrics if k.startswith(f"test/{name}@") and k.count("/") == 1] for name in OF_LISTS}
    lists = {name: found for name, found in lists.items() if found}
    if lists:
        cuts = [f"@{name.partition('@')[2]}" for name in next(iter(lists.values()))]
        cells = [[name, *(f"{metrics[k]:.4f}" for k in found)] for name, found in lists.items()]
        print_table("what the lists are like", ["", *cuts], cells)
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
    title = f"{len(runs)} run{'s' * (len(runs) > 1)}, differences to {baseline or frame['label'][0]}, p by {correction}"
    show_differences(title, frame)


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
