"""One page of an experiment: a single HTML file that needs no network and runs no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys import atomic
from recsys.online.abtest import Analysis
from recsys.online.assignment import MISMATCH

WIDTH, LEFT, RIGHT, ROW = 860, 260, 90, 26  # of a figure, in pixels
HEIGHT, BOTTOM = 260, 30
VERDICTS = {"better": "good", "passes": "good", "worse": "bad", "fails": "bad", "not trusted": "bad"}
NAMES = {
    "control_value": "control", "treatment_value": "treatment value", "relative_low": "relative low",
    "relative_high": "relative high", "p_corrected": "p corrected", "variance_left": "variance left",
    "users_raw": "users without covariates", "told_apart": "told apart",
}  # fmt: skip
SHARES = ("relative", "relative_low", "relative_high", "variance_left")
STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #6e6e73; --line: #d2d2d7; --page: #ffffff; --mark: #2563a8;
  --raw: #9aa3ad; --good: #1a7f4b; --bad: #b3261e; --alarm: #fdecea; }
@media (prefers-color-scheme: dark) { :root { --ink: #f0f0f2; --soft: #a1a1a6; --line: #45454a; --page: #161618;
  --mark: #74aef0; --raw: #7a828c; --good: #5fce94; --bad: #ff8a80; --alarm: #43211f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1080px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p.note { color: var(--soft); }
p.alarm { background: var(--alarm); border-left: 4px solid var(--bad); padding: .6rem 1rem; }
div.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } .text { text-align: left; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 12px; } svg .tick { fill: var(--soft); }
svg .grid { stroke: var(--line); } svg .zero { stroke: var(--soft); }
svg .mark { stroke: var(--mark); fill: var(--mark); }
svg .raw { stroke: var(--raw); fill: var(--raw); } svg .band { fill: var(--mark); opacity: .18; }
"""


def report(
    analysis: Analysis,
    path: str | Path,
    *,
    title: str = "Experiment",
    plan: pl.DataFrame | None = None,
    guardrails: pl.DataFrame | None = None,
    sequential: Mapping[str, pl.DataFrame] | None = None,
) -> Path:
    """Write the page and return where it is.

    Args:
        plan: of `planning.plan`. guardrails: of `guardrails.guard`. sequential: by name, of `sequential.watch`.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="note">{escape(analysis.headline())}</p>']
    if not analysis.trusted and analysis.mismatch is not None:
        parts.append(
            f'<p class="alarm"><strong>Sample ratio mismatch</strong>, p = {analysis.mismatch.p:.2g}, below {MISMATCH}'
            ": the groups are not of the planned sizes, so users were lost or added on one side. Effects must not be "
            "trusted until it is known why.</p>"
        )
    if plan is not None:
        parts += ["<h2>Plan</h2>", _table(plan)]
    parts += ["<h2>Assignment</h2>", _table(_assignment(analysis))]
    parts += ["<h2>Metrics</h2>", f'<p class="note">{_explained(analysis)}</p>', _forest(analysis.effects)]
    parts.append(_table(analysis.effects))
    if guardrails is not None:
        parts += ["<h2>Guardrails</h2>", _table(guardrails)]
    for name, looks in (sequential or {}).items():
        parts += [f"<h2>While it ran: {escape(name)}</h2>", _curve(looks), _table(looks.tail(1))]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
    atomic.write_text(Path(path), page)
    return Path(path)


def _assignment(analysis: Analysis) -> pl.DataFrame:
    rows = pl.DataFrame({"group": list(analysis.counts), "users": list(analysis.counts.values())})
    if analysis.mismatch is None:
        return rows
    expected = [analysis.mismatch.expected[name] for name in analysis.counts]
    return rows.with_columns(planned=pl.Series(expected).round(1))


def _explained(analysis: Analysis) -> str:
    return (
        f"Difference of each treatment to {escape(analysis.control)}, relative to it, with {analysis.confidence:.0%} "
        f"intervals, each for itself. A verdict needs p corrected by {escape(analysis.correction)} below "
        f"{1 - analysis.confidence:.3g}; where a metric has covariates, cuped decides and raw stands beside."
    )


def _table(frame: pl.DataFrame) -> str:
    text = {name for name, dtype in frame.schema.items() if dtype == pl.String}
    head = "".join(_cell("th", NAMES.get(name, name), name in text) for name in frame.columns)
    body = "".join(
        f"<tr>{''.join(_cell('td', _written(value, name), name in text, value) for name, value in row.items())}</tr>"
        for row in frame.iter_rows(named=True)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(tag: str, text: str, is_text: bool, value: object = None) -> str:
    classes = [
        *(["text"] if is_text else []),
        *([VERDICTS[value]] if isinstance(value, str) and value in VERDICTS else []),
    ]
    named = f' class="{" ".join(classes)}"' if classes else ""
    return f"<{tag}{named}>{escape(text)}</{tag}>"


def _written(value: Any, name: str = "") -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.2%}" if name in SHARES else f"{value:.4g}"


def _ticks(low: float, high: float) -> list[float]:
    """Some five round numbers between the two."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 6)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest, 0 included, with a margin."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _forest(effects: pl.DataFrame) -> str:
    """Relative differences and their intervals, one row each; what is unbounded runs out of the figure."""
    rows = effects.filter(pl.col("relative_low").is_not_null())
    ends = rows.select("relative", "relative_low", "relative_high").to_numpy().ravel()
    low, high = _span(ends[np.isfinite(ends)].tolist() or [0.0])
    height = ROW * len(rows) + BOTTOM

    def x(value: float) -> float:
        return LEFT + (min(max(value, low), high) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    marks = []
    for tick in _ticks(low, high):
        kind = "zero" if abs(tick) < 1e-12 else "grid"
        marks.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{height - BOTTOM}"/>')
        marks.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{height - 10}" text-anchor="middle">{100 * tick:+.3g}%</text>'
        )
    for number, row in enumerate(rows.iter_rows(named=True)):
        y, kind = ROW * (number + 0.5), "mark" if row["verdict"] is not None else "raw"
        name = escape(f"{row['metric']} · {row['treatment']} · {row['method']}")
        marks.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{name}</text>')
        left, right, middle = (x(row[name]) for name in ("relative_low", "relative_high", "relative"))
        marks.append(f'<line class="{kind}" stroke-width="2" x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}"/>')
        marks.append(f'<circle class="{kind}" cx="{middle:.1f}" cy="{y}" r="4"/>')
        marks.append(f'<text x="{WIDTH - RIGHT + 10}" y="{y + 4}">{row["relative"]:+.2%}</text>')
    return _figure("Relative differences with their intervals", height, marks)


def _curve(looks: pl.DataFrame) -> str:
    """The difference and its running interval by users."""
    known = looks.filter(pl.col("low").is_not_null())
    if known.is_empty():
        return '<p class="note">Nothing varied at any look.</p>'
    users, low, high, value = (known[name].to_numpy() for name in ("users", "low", "high", "difference"))
    # The first looks know nothing and would flatten the rest.
    bottom, top = _span(
        [*np.quantile(low, [0.1, 1.0]).tolist(), *np.quantile(high, [0.0, 0.9]).tolist(), *value.tolist()]
    )
    left = 80

    def at(n: float, d: float) -> str:
        x = left + n / users[-1] * (WIDTH - left - 20)
        y = (top - min(max(d, bottom), top)) / (top - bottom) * (HEIGHT - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    marks = []
    for tick in _ticks(bottom, top):
        (x1, y1), (x2, _) = (at(n, tick).split(",") for n in (0.0, float(users[-1])))
        kind = "zero" if abs(tick) < 1e-12 else "grid"
        marks.append(f'<line class="{kind}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y1}"/>')
        marks.append(f'<text class="tick" x="{left - 8}" y="{float(y1) + 4}" text-anchor="end">{tick:.3g}</text>')
    edge = [*zip(users, high, strict=True), *reversed(list(zip(users, low, strict=True)))]
    marks.append(f'<polygon class="band" points="{" ".join(at(n, d) for n, d in edge)}"/>')
    line = " ".join(at(n, d) for n, d in zip(users, value, strict=True))
    marks.append(f'<polyline class="mark" style="fill: none" stroke-width="2" points="{line}"/>')
    marks.append(f'<text class="tick" x="{WIDTH - 20}" y="{HEIGHT - 8}" text-anchor="end">{users[-1]:,} users</text>')
    return _figure("The difference by users, with the interval that holds at all looks", HEIGHT, marks)


def _figure(label: str, height: float, marks: Sequence[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">{"".join(marks)}</svg>'
