"""A log, and the parts of a split, as a notebook shows them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from recsys import reprs
from recsys.schema import ITEM_ID, LABEL, TIMESTAMP, USER_ID

if TYPE_CHECKING:
    from recsys.data.log import Log

HEAD = 5  # rows
MOST_BARS = 100


def title(log: Log) -> str:
    """A log on one line: its name, and what was counted when it was read."""
    counted = [f"{log.counts[name]:,} {name}" for name in ("rows", "positives", "users", "items") if name in log.counts]
    return ": ".join([log.name, *([", ".join(counted)] if counted else [])])


def html(log: Log) -> str:
    """A log as HTML: sizes and span, rows by day, the head of the events with their types, and what else there is."""
    head = log.events.head(HEAD).collect()
    header = [
        reprs.Markup(f"{reprs.text(name)}<br/><small>{reprs.text(str(dtype).partition('(')[0])}</small>")
        for name, dtype in head.schema.items()
    ]  # fmt: skip
    rows = [[_cell(value, "") for value in row] for row in head.iter_rows()]
    beside = {"users": log.users, "items": log.items, "test part": log.test, "past": log.past}
    others = [
        f"{name}: {', '.join(lazy.collect_schema().names())}"
        for name, lazy in (beside | {"candidates": log.candidates}).items() if lazy is not None
    ]  # fmt: skip
    others += ["" if log.world is None else f"answer key: {log.world!r}", *(str(file) for file in log.files[:3])]
    parts = [reprs.line(_facts(log)), _by_day(log), reprs.table(header, rows, left=len(header))]
    return reprs.page(log.name, *parts, *(reprs.line([other]) for other in others))


def parts_title(name: str, report: Mapping[str, Any]) -> str:
    """The parts of a split on one line: what it is, and their rows."""
    rows = [f"{part} {about['rows']:,} rows" for part, about in _parts(report)]
    return f"{name}, {report['kind']}: {', '.join(rows)}"


def parts_html(name: str, report: Mapping[str, Any]) -> str:
    """The parts of a split as HTML, and what its report counts: of the queries, and of what test shares with train."""
    columns = ("rows", "positives", "users", "items", "first", "last")
    rows = [
        [part, *(_cell(about.get(of)) for of in columns[:4]), *((about.get(of) or "")[:19] for of in columns[4:])]
        for part, about in _parts(report)
    ]  # fmt: skip
    counts = [[f"{value:>9,}", of.replace("_", " ")] for of, value in report.items() if isinstance(value, int)]
    table = reprs.table(["", *columns], rows)
    return reprs.page(f"{name}, split {report['kind']}", table, reprs.folded("report", counts))


def _parts(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(part, report[part]) for part in ("train", "validation", "test") if report.get(part)]


def _facts(log: Log) -> list[str]:
    """Sizes, positives and span, counted anew, as a log may be made by hand."""
    columns = log.events.collect_schema().names()
    asked = [
        pl.len().alias("rows"),
        pl.col(USER_ID).n_unique().alias("users"),
        pl.col(ITEM_ID).n_unique().alias("items"),
    ]
    if LABEL in columns:
        asked += [(pl.col(LABEL) == 1).mean().alias("positive")]
    if TIMESTAMP in columns:
        asked += [pl.col(TIMESTAMP).min().alias("first"), pl.col(TIMESTAMP).max().alias("last")]
    found = log.events.select(asked).collect().row(0, named=True)
    facts = [f"{found[name]:,} {name}" for name in ("rows", "users", "items")]
    facts += [f"{found['positive']:.2%} positive"] if found.get("positive") is not None else ["all positive"]
    if found.get("first") is not None:
        facts.append(f"{found['first']:%Y-%m-%d} to {found['last']:%Y-%m-%d}")
    return facts


def _by_day(log: Log) -> str:
    """Rows by day as a small drawing, several days a bar where they are many; nothing for a log without times."""
    if TIMESTAMP not in log.events.collect_schema() or log.events.head(1).collect().is_empty():
        return ""
    day = pl.col(TIMESTAMP).dt.date()
    first, last = log.events.select(day.min().alias("first"), day.max().alias("last")).collect().row(0)
    if first is None:
        return ""
    days = -(-((last - first).days + 1) // MOST_BARS)
    place = ((day - first).dt.total_days() // days).alias("place")
    found = dict(log.events.drop_nulls(TIMESTAMP).group_by(place).len().collect().rows())
    counts = [found.get(place, 0) for place in range((last - first).days // days + 1)]
    said = f"rows {f'every {days} days' if days > 1 else 'by day'}, at most {max(counts):,}"
    return reprs.line([reprs.Markup(f"{reprs.histogram(counts, f'{said}, {first} to {last}')} {said}")])


def _cell(value: object, separator: str = ",") -> str:
    """A value as text, short; separator: of thousands, which ids have none of."""
    if value is None:
        return ""
    text = str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:{separator}}"
    elif isinstance(value, float | datetime):
        text = f"{value:.4g}" if isinstance(value, float) else f"{value:%Y-%m-%d %H:%M:%S}"
    return reprs.shortened(text)
