"""Plots with Altair: of runs, of studies, of predicted probabilities and of vectors.

In a notebook all of Altair's charts are shown as pictures from the moment this is imported, see `recsys.pictures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
import torch

from recsys import config, pictures
from recsys.comparison import compare, labels
from recsys.evaluation.calibration import NUM_BINS, reliability
from recsys.progress import in_kernel
from recsys.run import Run

if TYPE_CHECKING:
    import altair as alt
    from torch import Tensor

if in_kernel():
    pictures.use()

# Okabe and Ito: safe for the colour-blind.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
_SAID = {
    "recall": "share of the true nearest that is found", "batch_qps": "queries a second, in batches",
    "single_qps": "queries a second, one by one", "p99_ms": "99th percentile of one query, ms",
    "megabytes": "memory, MB", "build_seconds": "time to build, s",
}  # fmt: skip


def plot_curves(runs: Sequence[Run], metric: str = "val/ndcg@10") -> alt.Chart:
    """Learning curves: a measured value over epochs or sweeps, one line a run.

    >>> recsys.plot_curves([run], "train/loss").to_dict()["encoding"]["y"]["title"]
    'train/loss'

    Raises:
        ValueError: no run logged the metric.
    """
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
            color=alt.Color("model:N", title=None, scale=alt.Scale(range=_COLOURS)),
            detail="seed:N",
        )
        .properties(width=420, height=260)
    )


def plot_metrics(runs: Sequence[Run], metrics: Sequence[str] = ("recall@20", "ndcg@20")) -> alt.HConcatChart:
    """Bars with 95% intervals, one panel a metric; where the data has an answer key, a line at the oracle.

    >>> len(recsys.plot_metrics([other, run], ["recall@20", "ndcg@20"]).hconcat)
    2

    Raises:
        ValueError: as `compare`.
    """
    import altair as alt

    table = compare(runs, metrics)
    panels = []
    for metric in metrics:
        rows = table.filter(metric=metric)
        base = alt.Chart(rows).encode(x=alt.X("label:N", title=None, sort=rows["label"].to_list()))
        bars = base.mark_bar(width=28).encode(
            y=alt.Y("value:Q", title=metric),
            color=alt.Color("label:N", title=None, legend=None, scale=alt.Scale(range=_COLOURS)),
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


def plot_shares(runs: Sequence[Run], names: Sequence[str] | None = None, k: int = 20) -> alt.LayerChart:
    """Two bars a run on a world: recall of the log oracle's, with its 95% interval, and the clicks that its lists would
    bring of the best lists'.

    Raises:
        ValueError: a run has no answer key, or was not measured at k; or as `compare`.
    """
    import altair as alt

    bars, places = ("recall, of the oracle's", "clicks, of the best lists'"), list(names or labels(runs))
    table = compare(runs, [f"recall@{k}"], names=places)
    for run in runs:
        for metric in (f"oracle/recall@{k}", f"best/clicks@{k}"):
            if metric not in run.metrics:
                raise ValueError(f"{run.path} has no {metric}: {config.nearest(metric, run.metrics)}")
    of_oracle = pl.col("share") / pl.col("value")
    recall = table.select("label", "share", low=pl.col("low") * of_oracle, high=pl.col("high") * of_oracle)
    worth = pl.DataFrame(
        {"label": places, "share": [r.metrics[f"utility/clicks@{k}"] / r.metrics[f"best/clicks@{k}"] for r in runs]}
    ).group_by("label").mean()  # fmt: skip
    parts = [rows.with_columns(of=pl.lit(of)) for of, rows in zip(bars, (recall, worth), strict=True)]
    base = alt.Chart(pl.concat(parts, how="diagonal")).encode(
        y=alt.Y("label:N", title=None, sort=table["label"].to_list(), axis=alt.Axis(ticks=False, labelLimit=300)),
        yOffset=alt.YOffset("of:N", sort=[*bars]),
    )
    fill = alt.Color(
        "of:N", title=None, scale=alt.Scale(domain=[*bars], range=_COLOURS[:2]), legend=alt.Legend(orient="top")
    )
    x = alt.X("share:Q", title="share of what is possible", axis=alt.Axis(format="%", tickCount=5))
    top = float(table.select(pl.max_horizontal((pl.col("high") * of_oracle).max(), 1.0)).item())
    whiskers = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    charts = (
        base.mark_bar().encode(x=x.scale(domain=[0, top]), color=fill),
        whiskers.encode(x="low:Q", x2="high:Q"),
    )
    return alt.LayerChart(layer=[*charts]).properties(width=420, height=alt.Step(18))


def plot_frontier(frame: pl.DataFrame, x: str = "recall", y: str = "batch_qps") -> alt.Chart:
    """What indexes cost for what they find: one line a factory, one point a search setting, y logarithmic.

    Args:
        frame: of `recsys.studies.frontier.sweep`.
        x, y: columns of it; values of y that are not above 0 are left out.

    Raises:
        ValueError: no such column, or more factories than colours.
    """
    import altair as alt

    for name in (x, y):
        if name not in frame.columns:
            raise ValueError(f"the frame has no column {name}: {config.nearest(name, frame.columns)}")
    factories = frame["factory"].unique(maintain_order=True).to_list()
    if len(factories) > len(_COLOURS):
        raise ValueError(f"at most {len(_COLOURS)} factories can be told apart by colour, got {len(factories)}")
    points = frame.filter(pl.col(y) > 0).select("factory", "search", x=x, y=y).with_row_index("order")
    grid: dict[str, Any] = {"gridColor": "#ECECEC", "domain": False, "ticks": False}
    label = "format(datum.value, datum.value < 1 ? '~g' : '~s')"
    scale = alt.Scale(type="log", nice=False, padding=12)
    legend = alt.Legend(symbolType="circle", symbolOpacity=1, labelLimit=260)
    return (
        alt.Chart(points)
        .mark_line(point=alt.OverlayMarkDef(size=45, opacity=1), strokeWidth=2)
        .encode(
            x=alt.X(
                "x:Q", title=_SAID.get(x, x), scale=alt.Scale(zero=False, nice=False, padding=12), axis=alt.Axis(**grid)
            ),
            y=alt.Y("y:Q", title=_SAID.get(y, y), scale=scale, axis=alt.Axis(labelExpr=label, tickCount=6, **grid)),
            order="order:Q",
            color=alt.Color("factory:N", title=None, scale=alt.Scale(domain=factories, range=_COLOURS), legend=legend),
            tooltip=["factory:N", "search:N", alt.Tooltip("x:Q", title=x), alt.Tooltip("y:Q", title=y)],
        )
        .properties(width=420, height=300)
    )


def plot_loss_budget(frame: pl.DataFrame, candidates: int | None = None) -> alt.LayerChart:
    """A waterfall of what each stage of a funnel loses: clicks where there is an answer key, else recall.

    Args:
        frame: of `recsys.studies.loss_budget.study`.
        candidates: which of its numbers of candidates; the first by default.

    Raises:
        ValueError: no row of that number.
    """
    import altair as alt

    numbers = frame["candidates"].drop_nulls().unique(maintain_order=True).to_list()
    chosen = (numbers or [None])[0] if candidates is None else candidates
    if chosen not in numbers and candidates is not None:
        raise ValueError(f"candidates={candidates}: the frame has {', '.join(map(str, numbers)) or 'none'}")
    unit = "recall" if frame["clicks"].null_count() == frame.height else "clicks"
    rows = frame.filter(pl.col("candidates").is_null() | (pl.col("candidates") == chosen))
    title = {"clicks": "clicks a visit", "recall": "recall"}[unit]
    steps = rows.select(
        "stage", milliseconds=pl.col("milliseconds").round(1), now=unit, above=pl.col(unit).shift(1).fill_null(0.0),
        low=pl.col(unit) - (pl.col("high") - pl.col("lost")), high=pl.col(unit) + (pl.col("high") - pl.col("lost")),
    ).with_columns(
        what=pl.when(pl.int_range(pl.len()) == 0).then(pl.lit("all"))
        .when(pl.col("now") < pl.col("above")).then(pl.lit("lost")).otherwise(pl.lit("won")),
        said=pl.col("now").round(3), top=pl.max_horizontal("above", "now", pl.col("high").fill_null(0.0)),
    )  # fmt: skip
    base = alt.Chart(steps).encode(
        x=alt.X("stage:N", title=None, sort=steps["stage"].to_list(), axis=alt.Axis(labelAngle=-20, ticks=False))
    )
    colour = alt.Color(
        "what:N",
        title=None,
        scale=alt.Scale(domain=["all", "lost", "won"], range=["#9AA5B1", _COLOURS[1], _COLOURS[2]]),
    )
    bars = base.mark_bar(size=34).encode(y=alt.Y("above:Q", title=title), y2="now:Q", color=colour)
    level = base.mark_tick(thickness=2, size=34, color="black").encode(y="now:Q")
    whiskers = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q")
    text = base.mark_text(dy=-8, fontSize=11).encode(y="top:Q", text="said:Q")
    return alt.LayerChart(layer=[bars, level, whiskers, text]).properties(width=90 + 75 * steps.height, height=260)


def plot_vectors(vectors_ND: Tensor, names: Sequence[str], shown: Sequence[str]) -> alt.Chart:
    """Vectors on their first two principal components, whose shares of the variance stand on the axes.

    Args:
        vectors_ND: one a row, of at least two numbers.
        names: of what each row is, [N].
        shown: at most six names, in colour; all others are grey.

    Raises:
        ValueError: too few numbers, another number of names, or too many to show.
    """
    import altair as alt

    if vectors_ND.shape[1] < 2 or len(vectors_ND) != len(names):
        raise ValueError(f"{len(names)} names do not fit vectors of shape {[*vectors_ND.shape]}")
    if len(shown) > len(_COLOURS):
        raise ValueError(f"at most {len(_COLOURS)} names can be told apart by colour, got {len(shown)}")
    centred_ND = vectors_ND.detach().double().cpu()
    centred_ND = centred_ND - centred_ND.mean(0)
    variance_D, axes_DD = torch.linalg.eigh(centred_ND.T @ centred_ND)  # in ascending order
    share_D = variance_D / variance_D.sum()
    points = pl.DataFrame(
        {
            "first": (centred_ND @ axes_DD[:, -1]).numpy(),
            "second": (centred_ND @ axes_DD[:, -2]).numpy(),
            "name": [name if name in shown else "other" for name in names],
        }
    )
    scale = alt.Scale(domain=[*shown, "other"], range=[*_COLOURS[: len(shown)], "#D0D0D0"])
    axis = alt.Axis(grid=False, tickCount=5)
    return (
        alt.Chart(points.sort(pl.col("name") != "other"))  # grey below
        .mark_point(filled=True, size=22, opacity=0.8)
        .encode(
            x=alt.X("first:Q", title=f"first component, {float(share_D[-1]):.0%} of the variance", axis=axis),
            y=alt.Y("second:Q", title=f"second component, {float(share_D[-2]):.0%}", axis=axis),
            color=alt.Color("name:N", title=None, scale=scale),
        )
        .properties(width=340, height=340)
    )


def plot_reliability(logits: Mapping[str, Tensor], labels: Tensor, num_bins: int = NUM_BINS) -> alt.LayerChart:
    """Observed against predicted probability in bins of equally many rows, one line each; grey where both agree.

    Axes are logarithmic and rules are Wilson's 95% intervals, cut off at the foot; a bin without a positive is a rule
    and no point.

    Args:
        logits: of the same rows [N] by the name of what predicted them.
        labels: [N], 0 or 1.

    Raises:
        ValueError: nothing to plot, or as `calibration.reliability`.
    """
    import altair as alt

    if not logits:
        raise ValueError("nothing to plot: give the logits of at least one model")
    bins = pl.concat(
        reliability(found, labels, num_bins).with_columns(model=pl.lit(name)) for name, found in logits.items()
    )
    seen = pl.concat([bins["predicted"], bins["observed"]])
    foot, top = 0.7 * float(seen.filter(seen > 0).min()), min(1.4 * float(seen.max()), 1.0)  # type: ignore[arg-type]
    scale = alt.Scale(type="log", domain=[foot, top], clamp=True, nice=False)
    axis = _log_axis(foot, top)
    points = bins.with_columns(pl.col("low").clip(foot), observed=pl.col("observed").replace(0.0, None))
    legend = alt.Legend(symbolOpacity=1)
    base = alt.Chart(points).encode(
        x=alt.X("predicted:Q", title="predicted probability", scale=scale, axis=axis),
        color=alt.Color("model:N", title=None, scale=alt.Scale(domain=[*logits], range=_COLOURS), legend=legend),
    )
    y = alt.Y("observed:Q", title="observed rate", scale=scale, axis=axis)
    agree = alt.Chart(pl.DataFrame({"predicted": [foot, top], "observed": [foot, top]}))
    charts = (
        agree.mark_line(color="#8C8C8C", strokeDash=[4, 3]).encode(x="predicted:Q", y=y),
        base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q"),
        base.mark_line(point=True, strokeWidth=2).encode(y=y),
    )
    return alt.LayerChart(layer=[*charts]).properties(width=340, height=340)


def plot_agreement(predicted: Tensor, truth: Tensor, num_bins: int = 40) -> alt.LayerChart:
    """How many rows have which predicted and which true probability, and the middle half of the predictions for each
    true one; grey where both agree. Axes are logarithmic, from the thousandth to the last of the rows.

    Args:
        predicted, truth: [N], above 0.
        num_bins: cells a side, in equal ratios.

    Raises:
        ValueError: no rows, other shapes, or a probability that is not above 0.
    """
    import altair as alt

    if not len(predicted) or predicted.shape != truth.shape:
        raise ValueError(f"one value a row is needed, got shapes {[*predicted.shape]} and {[*truth.shape]}")
    rows = pl.DataFrame({"predicted": predicted.double().cpu().numpy(), "truth": truth.double().cpu().numpy()})
    if not bool((rows.min_horizontal() > 0).all()):
        raise ValueError("probabilities must be above 0 to be drawn on a logarithmic axis")
    ends = pl.concat([rows["predicted"], rows["truth"]])
    low, high = float(ends.quantile(0.001)), float(ends.max())  # type: ignore[arg-type]
    high = max(high, 1.1 * low)
    ratio = (high / low) ** (1 / num_bins)
    place = ((pl.all() / low).log(ratio).floor()).clip(0, num_bins - 1).cast(pl.Int32)
    cells = rows.select(place).group_by("truth", "predicted").agg(rows=pl.len()).sort("truth", "predicted")
    corners = {
        name + end: low * ratio ** (pl.col(name) + step)
        for name in ("truth", "predicted") for step, end in enumerate(("", "_end"))
    }  # fmt: skip
    twentieth = (pl.col("truth").rank("ordinal").cast(pl.Int64) - 1) * NUM_BINS // len(rows)
    quartiles = {f"q{q * 100:g}": pl.col("predicted").quantile(q) for q in (0.25, 0.5, 0.75)}
    bands = rows.group_by(bin=twentieth).agg(pl.col("truth").median(), **quartiles).sort("bin")

    scale = alt.Scale(type="log", domain=[low, high], clamp=True, nice=False)
    axis = _log_axis(low, high)
    x = alt.X("truth:Q", title="true probability", scale=scale, axis=axis)
    y = alt.Y("predicted:Q", title="predicted probability", scale=scale, axis=axis)
    colour = alt.Color("rows:Q", scale=alt.Scale(type="log", scheme="blues"), legend=alt.Legend(tickCount=4))
    stroke = alt.Stroke("rows:Q", scale=alt.Scale(type="log", scheme="blues"), legend=None)  # no seams
    agree = alt.Chart(pl.DataFrame({"truth": [low, high], "predicted": [low, high]}))
    band = alt.Chart(bands).encode(x=x)
    charts = (
        alt.Chart(cells.with_columns(**corners)).mark_rect(strokeWidth=0.5).encode(
            x=x, x2="truth_end:Q", y=y, y2="predicted_end:Q", color=colour, stroke=stroke
        ),
        agree.mark_line(color="#8C8C8C", strokeDash=[4, 3]).encode(x=x, y=y),
        band.mark_rule(color=_COLOURS[1], strokeWidth=2).encode(y=alt.Y("q25:Q", scale=scale), y2="q75:Q"),
        band.mark_point(color=_COLOURS[1], filled=True, size=40, opacity=1).encode(y=alt.Y("q50:Q", scale=scale)),
    )  # fmt: skip
    return alt.LayerChart(layer=[*charts]).properties(width=340, height=340)


def _log_axis(low: float, high: float) -> alt.Axis:
    """Ticks at the powers of ten between two ends, and at three times them where these are few."""
    import altair as alt

    steps = (1, 3) if high / low < 3000 else (1,)
    ticks = [step * 10.0**k for k in range(-300, 300) for step in steps]
    label = "datum.value < 0.001 ? format(datum.value, '.0e') : format(datum.value, '~g')"
    return alt.Axis(values=[tick for tick in ticks if low <= tick <= high], labelExpr=label, grid=False)
