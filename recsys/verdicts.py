"""A comparison as it is read: verdicts in words, intervals as bars."""

from __future__ import annotations

from typing import Any

import polars as pl

from recsys import reprs

COLUMNS = ("metric", "label", "value", "difference", "difference_low", "difference_high", "p_corrected", "verdict")
MOST_ROWS = 24  # that are drawn


class Comparison(pl.DataFrame):
    """What `recsys.compare` returns: a Polars DataFrame that a notebook shows as HTML. What Polars makes of it by
    `filter`, `select` and the like is a plain frame again."""

    def _repr_html_(self, *, _from_series: bool = False) -> str:
        if not set(COLUMNS) <= set(self.columns) or not self.height:
            return super()._repr_html_(_from_series=_from_series)
        rows = self.head(MOST_ROWS).to_dicts()
        has_values = any(row.get("low") is not None for row in rows)
        has_seeds = any(row.get("seeds", 1) != 1 for row in rows)
        has_share = any(row.get("share") is not None for row in rows)
        drawn = [
            [
                row["metric"], row["label"], *([row["seeds"]] if has_seeds else ()), _two_lines(_value(row)),
                *([_whisker(row, "", rows)] if has_values else ()),
                *(["" if row["share"] is None else f"{row['share']:.1%}"] if has_share else ()),
                _two_lines(_difference(row)), _whisker(row, "difference", rows),
                _two_lines(_said(row), ", "),
            ]
            for row in rows
        ]  # fmt: skip
        header = ["metric", "model", *(["seeds"] if has_seeds else []), "value", *([""] if has_values else [])]
        header += [*(["of the oracle"] if has_share else []), "difference", "", "verdict"]
        rest = self.height - len(rows)
        more = f"{rest} more rows: choose with metrics=[…], or look at the frame" if rest else ""
        bases = {row["label"] for row in rows if row["difference"] is None}
        title = f"{self['label'].n_unique()} compared by {self['metric'].n_unique()} metrics"
        title += f", differences to {bases.pop()}" if len(bases) == 1 else ""
        return reprs.page(title, reprs.table(header, drawn, left=2), reprs.line([more]))


def _value(row: dict[str, Any]) -> str:
    low = row.get("low")
    return f"{row['value']:.4f}" + ("" if low is None else f" [{low:.4f}, {row['high']:.4f}]")


def _difference(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return ""
    low, high = row["difference_low"], row["difference_high"]
    return f"{row['difference']:+.4f}" + ("" if low is None else f" [{low:+.4f}, {high:+.4f}]")


def _two_lines(said: str, at: str = " ") -> str:
    """A value above its interval, a verdict above its p."""
    value, _, more = said.partition(at)
    return reprs.Markup(f"{reprs.text(value)}<br/><small>{reprs.text(more)}</small>") if more else value


def _whisker(row: dict[str, Any], name: str, rows: list[dict[str, Any]]) -> str:
    """The interval of the value, or of the difference, on an axis that all rows of the metric share; 0 lies on that of
    differences."""
    low, high, value = (f"{name}_low", f"{name}_high", name) if name else ("low", "high", "value")
    if row.get(low) is None:
        return ""
    known = [other for other in rows if other["metric"] == row["metric"] and other.get(low) is not None]
    ends = [other[low] for other in known] + [other[high] for other in known] + ([0.0] if name else [])
    said = _difference(row) if name else _value(row)
    return reprs.whisker(row[low], row[value], row[high], (min(ends), max(ends)), said, width=80)


def _said(row: dict[str, Any]) -> str:
    """The verdict, and with which p."""
    if row["difference"] is None:
        return ""
    if row["verdict"] is None:
        return "not known, the variance is not"
    return row["verdict"] + ("" if row["p_corrected"] is None else f", p {row['p_corrected']:.2g}")
