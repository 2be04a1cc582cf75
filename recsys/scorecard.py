"""Which figures of a run stand beside which: a value, its interval, and the best that anyone could reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from recsys import reprs

OF_LISTS = ("popularity", "popularity_lift", "novelty", "serendipity", "diversity", "coverage", "gini")


class Metrics(dict[str, Any]):
    """Flat numbers by name, as metrics.json holds them; a table in a notebook, else a dict."""

    def _repr_html_(self) -> str:
        rest = [f"{name} {value:,.4g}" for name, value in self.items() if name.startswith(("train/", "evaluation/"))]
        return reprs.page(title(self), *_tables(self), reprs.line(rest))


def card(
    name: str,
    path: Path,
    manifest: Mapping[str, Any],
    metrics: Mapping[str, Any],
    curves: Mapping[str, Sequence[float]],
    monitor: str,
) -> str:
    """A run as HTML: what it is, its figures at the middle cut-off, and the learning curve of `monitor`, or of the loss
    where that was not measured."""
    data, hardware = manifest["data"], manifest.get("hardware", {})
    counts = [f"{data[of]:,} {of}" for of in ("rows", "users", "items") if of in data]
    facts = [f"{data['name']}: {', '.join(counts)}", f"split {manifest['split'].get('kind')}"]
    facts += [f"seed {manifest['seed']}", f"trained in {metrics.get('train/seconds', 0):,.1f} s"]
    facts += [f"on {hardware.get('gpu') or hardware.get('device')}"] if hardware else []
    drawn = ""
    for of in ("train/loss", monitor):
        values = [value for value in curves.get(of, ()) if isfinite(value)]
        if len(values) > 1:
            said = f"{of} {values[0]:.4g} to {values[-1]:.4g} over {len(values)} epochs or sweeps"
            drawn = reprs.line([reprs.Markup(f"{reprs.sparkline(values, said)} {reprs.text(said)}")])
    table = reprs.table(*scores(metrics, middle(metrics)))
    return reprs.page(f"{name}, {title(metrics)}", reprs.line(facts), table, drawn, reprs.line([path]))


def of_test(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the whole test part, without their intervals, by their full names."""
    return {name: value for name, value in metrics.items() if name.startswith("test/") and name.count("/") == 1}


def title(metrics: Mapping[str, Any]) -> str:
    """What was asked: how the candidates were ranked, or that rows were judged as they were shown."""
    if "test/log_loss" in metrics:
        return "test, rows as shown"
    asked = "next in session, " if metrics.get("queries") == "next_in_session" else ""
    return f"test, {asked}{metrics.get('candidates', 'whole catalogue')} ranked"


def scores(metrics: Mapping[str, Any], k: int | None = None) -> tuple[list[str], list[list[str]]]:
    """A row a metric of the test part: its value, its interval, its share of the log oracle's (or Bayes' own value),
    and the value for users known to train; then what lists would bring, beside the best lists'.

    Args:
        k: only metrics at this cut-off, and those without one.

    Returns: the header and the rows, without the columns that are empty in every row.
    """
    rows = []
    for name, value in of_test(metrics).items():
        metric = name.removeprefix("test/")
        if metric.partition("@")[0] in OF_LISTS or not _at(metric, k):
            continue
        low, high = metrics.get(f"{name}/low"), metrics.get(f"{name}/high")
        oracle, bayes = metrics.get(f"oracle/{metric}"), metrics.get(f"bayes/{metric}")
        warm = metrics.get(f"test/warm/{metric}")
        row = [metric, f"{value:.4f}", "" if low is None else f"[{low:.4f}, {high:.4f}]"]
        row += [f"{value / oracle:.1%} of {oracle:.4f}" if oracle else "", "" if bayes is None else f"{bayes:.4f}"]
        rows.append([*row, "" if warm is None else f"{warm:.4f}"])
    for name, value in metrics.items():
        metric = name.removeprefix("utility/")
        if metric != name and _at(metric, k):
            best = metrics.get(f"best/{metric}")
            rows.append(
                [f"expected {metric}", f"{value:.4f}", "", f"{value / best:.1%} of {best:.4f}" if best else "", "", ""]
            )
    header = ["metric", "value", "interval", "of the oracle, the best lists", "Bayes", "warm only"]
    shown = [place for place in range(len(header)) if any(row[place] for row in rows)]
    return [header[place] for place in shown], [[row[place] for place in shown] for row in rows]


def of_lists(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What the lists are like, a row a measure and a column a cut-off: the header and the rows; none were measured of a
    ranker."""
    test = of_test(metrics)
    found = {name: [key for key in test if key.startswith(f"test/{name}@")] for name in OF_LISTS}
    found = {name: keys for name, keys in found.items() if keys}
    cuts = [f"@{key.partition('@')[2]}" for key in next(iter(found.values()), [])]
    return ["", *cuts], [[name, *(f"{metrics[key]:.4f}" for key in keys)] for name, keys in found.items()]


def middle(metrics: Mapping[str, Any]) -> int | None:
    """The middle cut-off of those that were measured; None of a ranker."""
    cuts = sorted({int(key.partition("@")[2]) for key in of_test(metrics) if key.startswith("test/recall@")})
    return cuts[len(cuts) // 2] if cuts else None


def headline(metrics: Mapping[str, Any]) -> list[str]:
    """A run in one figure: recall at the middle cut-off and its share of the oracle's, or AUC beside Bayes' own."""
    k = middle(metrics)
    name = "auc" if k is None else f"recall@{k}"
    if (value := metrics.get(f"test/{name}")) is None:
        return []
    oracle, bayes = metrics.get(f"oracle/{name}"), metrics.get(f"bayes/{name}")
    beside = [f"{value / oracle:.0%} of the oracle"] if oracle else [f"Bayes {bayes:.4f}"] if bayes else []
    return [f"{name} {value:.4f}", *beside]


def _at(metric: str, k: int | None) -> bool:
    cut = metric.partition("@")[2]
    return k is None or not cut or cut == str(k)


def _tables(metrics: Mapping[str, Any]) -> list[str]:
    """The tables of all figures, those that have rows."""
    found = [scores(metrics), of_lists(metrics)]
    return [reprs.table(header, rows) for header, rows in found if rows]
