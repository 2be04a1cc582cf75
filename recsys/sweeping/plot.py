"""The picture of a sweep, as SVG beside sweep.json: how good its trials were, and what the values of keys brought."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from recsys import atomic
from recsys.sweeping.summary import PLOT, read, trials

if TYPE_CHECKING:
    import altair as alt

_MOST = 4  # keys shown
_WIDE = 20  # a range whose ends are so many times apart is shown by logarithm


def write(directory: Path) -> None:
    """Draw the sweep of a folder; no network is used."""
    atomic.write(directory / PLOT, lambda path: chart(directory).save(str(path), format="svg"))


def chart(directory: Path) -> alt.VConcatChart:
    """The value over trials with the best so far, and below it the value over the keys that mattered most.

    Raises:
        ValueError: the folder holds no sweep.
    """
    import altair as alt

    found, frame = read(directory), trials(directory).filter(state="complete")
    value: Any = pl.col("value")
    best = value.cum_min() if found["direction"] == "minimize" else value.cum_max()
    y = alt.Y("value:Q", title=found["metric"], scale=alt.Scale(zero=False, padding=8))
    colour = alt.Color("model:N", title=None, scale=alt.Scale(scheme="tableau10"))

    def points(rows: pl.DataFrame, x: alt.X, width: int, height: int) -> alt.Chart:
        base = alt.Chart(rows.select("x", "value", "model")).mark_circle(size=45, opacity=0.9)
        return base.encode(x=x, y=y, color=colour).properties(width=width, height=height)

    step = alt.Chart(frame.select(x="trial", value=best)).mark_line(interpolate="step-after", color="#8C8C8C")
    over_trials = points(
        frame.with_columns(x="trial"), alt.X("x:Q", title="trial; line: the best so far", axis=alt.Axis(tickMinStep=1)),
        460, 200,
    )  # fmt: skip
    parts: list[Any] = [step.encode(x="x:Q", y=y) + over_trials]
    panels = []
    for key in _keys(found, frame):
        rows = frame.with_columns(x=pl.col(key)).drop_nulls("x")
        panels.append(points(rows, _axis(rows["x"], key), 185, 130))
    return alt.vconcat(*parts, *([alt.concat(*panels, columns=2)] if panels else []))


def _keys(found: dict[str, Any], frame: pl.DataFrame) -> list[str]:
    """Keys that differ between trials, without the model: the most important, else those that most trials drew."""
    drawn = {
        key: None for trial in found["trials"] for key in trial["parameters"] if key in frame.columns and key != "model"
    }
    known = [key for key in drawn if frame[key].drop_nulls().n_unique() > 1]
    share: dict[str, float] = {}
    for name, part in found["importance"].items():
        key = name.rpartition("/")[2]
        share[key] = max(part, share.get(key, 0.0))
    return sorted(known, key=lambda key: (-share.get(key, 0.0), frame[key].null_count()))[:_MOST]


def _axis(values: pl.Series, key: str) -> alt.X:
    import altair as alt

    if not values.dtype.is_numeric():
        return alt.X("x:N", title=key, axis=alt.Axis(labelAngle=0))
    low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
    wide = low > 0 and high / low >= _WIDE
    scale = alt.Scale(type="log", nice=False, padding=8) if wide else alt.Scale(zero=False, padding=8)
    return alt.X("x:Q", title=key, scale=scale, axis=alt.Axis(tickCount=4, format="~r", grid=False))
