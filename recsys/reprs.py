"""What rich reprs in a notebook are made of: tables, lines of facts, and small drawings as inline SVG.

Text is escaped, colours are inherited, so that light and dark themes are both readable; no script, no network. What is
HTML already is marked as such by `Markup`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

ACCENT = "#3a87c8"  # has contrast on white and on JupyterLab's dark grey
_CELL = "text-align:{};padding:1px 10px 1px 0;white-space:nowrap"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A value as HTML; nothing for None."""
    if isinstance(value, Markup):
        return value
    return Markup("" if value is None else escape(str(value)))


def page(title: object, *parts: str) -> Markup:
    """A title in bold, where there is one, and what stands below it."""
    head = f"<div><b>{text(title)}</b></div>" if title else ""
    return Markup(f"<div>{head}{''.join(text(part) for part in parts)}</div>")


def line(facts: Iterable[object]) -> Markup:
    """Facts on one line, those that are there."""
    return Markup(f"<div>{' · '.join(text(fact) for fact in facts if fact)}</div>")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], left: int = 1) -> Markup:
    """Rows of cells; the first `left` columns are aligned to the left, the others to the right."""

    def cells(row: Sequence[object], tag: str) -> str:
        styles = (_CELL.format("left" if place < left else "right") for place in range(len(row)))
        return "".join(f'<{tag} style="{style}">{text(cell)}</{tag}>' for cell, style in zip(row, styles, strict=True))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    style = "border-collapse:collapse;margin:4px 0"
    return Markup(f'<table style="{style}"><thead><tr>{cells(header, "th")}</tr></thead><tbody>{body}</tbody></table>')


def shortened(value: object, length: int = 40) -> str:
    """A value as text of at most so many characters."""
    said = str(value)
    return said if len(said) <= length else f"{said[: length - 1]}…"


def folded(summary: object, rows: Iterable[Sequence[object]]) -> Markup:
    """Rows of text that are shown when their summary is clicked."""
    body = "\n".join("  ".join(str(cell) for cell in row) for row in rows)
    return Markup(
        f'<details><summary style="cursor:pointer">{text(summary)}</summary><pre>{text(body)}</pre></details>'
    )


def sparkline(values: Sequence[float], title: str, width: int = 140, height: int = 28) -> Markup:
    """A curve from left to right, its last value dotted.

    values: at least one finite number.
    """
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = (width - 6) / max(len(values) - 1, 1)
    points = [(3 + place * step, height - 3 - (v - low) / span * (height - 6)) for place, v in enumerate(values)]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    return _svg(
        f'<polyline points="{drawn}" fill="none" stroke="{ACCENT}" stroke-width="1.5"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{ACCENT}"/>',
        title, width, height,
    )  # fmt: skip


def histogram(counts: Sequence[int], title: str, width: int = 300, height: int = 40) -> Markup:
    """Bars of counts from left to right on a base line.

    counts: at least one, not all 0.
    """
    step, most = width / len(counts), max(counts)
    bars = "".join(
        f'<rect x="{place * step:.1f}" y="{(1 - count / most) * (height - 1):.1f}" width="{max(0.8 * step, 0.5):.1f}" '
        f'height="{count / most * (height - 1):.1f}"/>'
        for place, count in enumerate(counts)
        if count
    )
    base = f'<path d="M0 {height - 0.5}H{width}" stroke="currentColor" stroke-opacity="0.4"/>'
    return _svg(f'<g fill="{ACCENT}">{bars}</g>{base}', title, width, height)


def whisker(
    low: float, value: float, high: float, ends: tuple[float, float], title: str, width: int = 110, height: int = 14
) -> Markup:
    """A value with its interval between two ends, and a line at 0 where that lies between them.

    ends: in ascending order, around low and high.
    """
    span = (ends[1] - ends[0]) or 1.0

    def x(at: float) -> str:
        return f"{4 + (at - ends[0]) / span * (width - 8):.1f}"

    middle = height / 2
    zero = (
        f'<path d="M{x(0)} 0V{height}" stroke="currentColor" stroke-opacity="0.4"/>' if ends[0] <= 0 <= ends[1] else ""
    )
    return _svg(
        f'{zero}<path d="M{x(low)} {middle}H{x(high)}" stroke="{ACCENT}" stroke-width="2"/>'
        f'<circle cx="{x(value)}" cy="{middle}" r="3" fill="{ACCENT}"/>',
        title, width, height,
    )  # fmt: skip


def _svg(body: str, title: str, width: int, height: int) -> Markup:
    return Markup(
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'style="vertical-align:middle;max-width:none"><title>{escape(title)}</title>{body}</svg>'
    )
