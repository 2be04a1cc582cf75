"""For notebooks: train from overrides, plot curves and metrics with Altair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from recsys import config
from recsys.comparison import compare, labels
from recsys.run import Run
from recsys.training import train as train_config

if TYPE_CHECKING:
    import altair as alt


def train(*overrides: str, data: object | None = None) -> Run:
    """Train and measure, as `recsys train` does with the same words.

    Args:
        overrides: "model=als", "data=movielens", "data.path=…", "hydra.run.dir=…", …
        data: a Polars or pandas DataFrame, or a Log, in place of the configured data. Columns are
            user_id, item_id and, where known, timestamp and label.

    Raises:
        ValueError: an override, the data or the run directory does not fit; the message says what does.
    """
    cfg, run_dir = config.compose_run(*overrides)
    return train_config(cfg, run_dir, data=data)


def plot_curves(runs: Sequence[Run], metric: str = "val/ndcg@10") -> alt.Chart:
    """Learning curves: a measured value over epochs or sweeps, one line a run."""
    import altair as alt

    parts = []
    for run, label in zip(runs, labels(runs), strict=True):
        if metric in run.curves.columns:
            curve = run.curves.select("epoch", value=pl.col(metric)).drop_nulls()
            parts.append(curve.with_columns(model=pl.lit(label), seed=pl.lit(run.manifest["seed"])))
    if not parts:
        known = {name for run in runs for name in run.curves.columns}
        raise ValueError(f"no run logged {metric}: {config.nearest(metric, known)}")
    return (
        alt.Chart(pl.concat(parts))
        .mark_line(point=True)
        .encode(
            x=alt.X("epoch:Q", title="epoch or sweep", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False)),
            color=alt.Color("model:N", title=None),
            detail="seed:N",
        )
        .properties(width=420, height=260)
    )


def plot_metrics(runs: Sequence[Run], metrics: Sequence[str] = ("recall@20", "ndcg@20")) -> alt.HConcatChart:
    """Bars with 95% intervals, one panel a metric; where the data has an answer key, a line at the oracle."""
    import altair as alt

    table = compare(runs, metrics)
    panels = []
    for metric in metrics:
        rows = table.filter(metric=metric)
        base = alt.Chart(rows).encode(x=alt.X("label:N", title=None, sort=rows["label"].to_list()))
        bars = base.mark_bar(width=28).encode(
            y=alt.Y("value:Q", title=metric), color=alt.Color("label:N", title=None, legend=None)
        )
        whiskers = base.mark_rule(strokeWidth=2).encode(y="low:Q", y2="high:Q")
        layers = [bars, whiskers]
        if rows["share"].is_not_null().all():
            oracle = pl.DataFrame({"oracle": [float(rows["value"][0] / rows["share"][0])]})
            line = alt.Chart(oracle).mark_rule(strokeDash=[4, 3], color="black").encode(y="oracle:Q")
            text = line.mark_text(align="left", dx=-95, dy=-6).encode(text=alt.value("log oracle"))
            layers += [line, text]
        panels.append(alt.layer(*layers).properties(width=80 + 50 * len(rows), height=240))
    return alt.hconcat(*panels)
