"""Several runs in one table: seeds aggregated, differences paired."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import polars as pl

from recsys import config, tracking
from recsys.evaluation.estimates import CORRECTIONS, Estimate, estimate
from recsys.evaluation.metrics import METRICS
from recsys.run import Run
from recsys.scorecard import of_test
from recsys.verdicts import Comparison

ALPHA = 0.05
MORE_IS_BETTER = (*METRICS, "auc", "grouped_auc", "gap_closed")
LESS_IS_BETTER = ("log_loss", "normalised_cross_entropy", "calibration_error")


def compare(
    runs: Sequence[Run | Path | str],
    metrics: Sequence[str] | None = None,
    baseline: str | None = None,
    names: Sequence[str] | None = None,
    *,
    correction: str = "holm",
) -> Comparison:
    """One row a configuration and metric, the seeds of a configuration aggregated.

    >>> recsys.compare([other, run], ["recall@20", "ndcg@20"]).select("metric", "label", "seeds").rows()[:2]
    [('recall@20', 'Popularity', 1), ('recall@20', 'ALS', 1)]

    Args:
        runs: finished runs or their directories, measured on the same data.
        metrics: such as ["recall@20"]; None = every metric that all runs have.
        baseline: the label of the configuration to compare with; None = the first run's.
        names: a label for each run, in place of the ones that `labels` gives.
        correction: of p over the configurations that are compared by one metric: "holm" (whether any verdict errs) or
            "benjamini_hochberg" (what share of the verdicts does).

    Returns: a Polars DataFrame, drawn in a notebook:
        label: the model, and the keys in which configurations of that model differ;
        metric; seeds: how many; trials: settings that were tried on validation before, where the configuration says so;
        value: the mean over seeds;
        low, high: 95% interval over users and, where seeds repeat, over seeds (see `evaluation.estimates`); null where
            neither is known. With one seed it does not hold the variance of training;
        share: of the log oracle's value, where the data has an answer key;
        difference, difference_low, difference_high: to the baseline, paired by user and by seed;
        effect: the difference over the standard deviation of users' differences;
        detectable: the smallest difference that this test set and these seeds would show four times in five;
        p, p_corrected; verdict: "better" or "worse" where the corrected p is below 0.05 ("higher" or "lower" where the
            metric is no goal in itself), else "not told apart"; null where the variance is not known.

    Raises:
        ValueError: no runs; runs on different data or by different queries; a metric or the baseline is unknown; the
            message names it.
    """
    found = [run if isinstance(run, Run) else Run(run) for run in runs]
    if not found:
        raise ValueError("nothing to compare: give at least one run")
    for run in found[1:]:
        if run.manifest["data"]["fingerprint"] != found[0].manifest["data"]["fingerprint"]:
            raise ValueError(f"{run.path} was measured on other data than {found[0].path}")
        asked, first = (each.manifest.get("queries", "users") for each in (run, found[0]))
        if asked != first:
            raise ValueError(f"{run.path} was measured by queries={asked}, {found[0].path} by queries={first}")
        ranked, first = (each.manifest.get("candidates", "whole catalogue") for each in (run, found[0]))
        if ranked != first:
            raise ValueError(f"{run.path} ranked the {ranked}, {found[0].path} the {first}")
    groups: dict[str, list[Run]] = {}
    for run, label in zip(found, names or labels(found), strict=True):
        groups.setdefault(label, []).append(run)
    baseline = baseline or next(iter(groups))
    if baseline not in groups:
        raise ValueError(f"baseline={baseline}: {config.nearest(baseline, groups)}")
    known = _shared(found)
    for metric in metrics or ():
        if metric not in known:
            raise ValueError(f"metric {metric} was not measured in every run: {config.nearest(metric, known)}")
    if correction not in CORRECTIONS:
        raise ValueError(f"correction={correction}: {config.nearest(correction, CORRECTIONS)}")
    rows = []
    for metric in metrics or known:
        of_metric = [
            _row(label, group, groups[baseline], metric, is_baseline=label == baseline)
            for label, group in groups.items()
        ]
        _corrected(of_metric, correction)
        rows += of_metric
    return Comparison(rows, infer_schema_length=None)


def beside(run: Run | Path | str, metrics: Sequence[str] | None = None, *, correction: str = "holm") -> pl.DataFrame:
    """A run beside the baselines that were measured with it (evaluation.baselines=true), as `compare` does.

    Args:
        metrics: None: recall and NDCG at the middle cut-off.

    Returns: one row a metric and baseline: metric, label, value of the baseline; difference (the run's less the
        baseline's) with difference_low and difference_high, effect, detectable, p, p_corrected, verdict on the run.
    Raises:
        ValueError: there are no baselines, or no such metric.
    """
    run = run if isinstance(run, Run) else Run(run)
    if not (run.path / tracking.BASELINES).exists():
        raise ValueError(f"{run.path} has no baselines: train with evaluation.baselines=true")
    others = pl.read_parquet(run.path / tracking.BASELINES)
    if metrics is None:
        k = sorted(run.config.evaluation.k)[len(run.config.evaluation.k) // 2]
        metrics = [f"recall@{k}", f"ndcg@{k}"]
    table = []
    for metric in metrics:
        if metric not in others.columns:
            raise ValueError(f"metric {metric} was not measured: {config.nearest(metric, others.columns)}")
        rows: list[dict[str, float | str | int | None]] = []
        for (name,), frame in others.group_by("baseline", maintain_order=True):
            row: dict[str, float | str | int | None] = {"metric": metric, "label": str(name)}
            row["value"] = float(frame[metric].mean())  # type: ignore[arg-type]
            rows.append(row | _difference(estimate([run.per_user], metric, [frame])))
        _corrected(rows, correction)
        table += rows
    return pl.DataFrame(table, infer_schema_length=None)


def _difference(found: Estimate | None) -> dict[str, float | str | int | None]:
    """The columns of a difference whose estimate is this one."""
    if found is None:
        return dict.fromkeys(("difference", "difference_low", "difference_high", "effect", "detectable", "p"))
    return {
        "difference": found.value, "difference_low": found.low, "difference_high": found.high,
        "effect": found.effect, "detectable": found.detectable, "p": found.p,
    }  # fmt: skip


def agreement(
    runs: Sequence[Run | Path | str], truth: str = "utility/clicks@20", metrics: Sequence[str] | None = None
) -> pl.DataFrame:
    """How often a metric picks of two models the one that is truly better, on a world that knows.

    >>> recsys.agreement([other, run], metrics=["recall@20"])["agreement"].to_list()
    [1.0]

    Args:
        runs: of one world, by any splits; those of one split are compared with each other. Seeds of one configuration
            are averaged.
        truth: the metric that is the truth: what lists would bring.
        metrics: None: all that every run has and of which more is better.

    Returns: one row a split and metric, the best first: split, metric, pairs of models, agreement: the share of pairs
        that it orders as the truth does, ties half.
    Raises:
        ValueError: a run has no such metric, or no two models share a split; the message names it.
    """
    found = [run if isinstance(run, Run) else Run(run) for run in runs]
    for run in found:
        if truth not in run.metrics:
            raise ValueError(f"{run.path} has no {truth}: {config.nearest(truth, run.metrics)}")
    known = _shared(found)
    if metrics is None:
        metrics = [m for m in known if m.partition("@")[0] in MORE_IS_BETTER]
    rows = []
    for split in dict.fromkeys(run.manifest["split"]["kind"] for run in found):
        of_split = [run for run in found if run.manifest["split"]["kind"] == split]
        groups: dict[str, list[Run]] = {}
        for run, label in zip(of_split, labels(of_split), strict=True):
            groups.setdefault(label, []).append(run)
        pairs = list(combinations(groups.values(), 2))
        for metric in metrics if pairs else ():
            if metric not in known:
                raise ValueError(f"metric {metric} was not measured in every run: {config.nearest(metric, known)}")
            agree = sum(_agree(*pair, f"test/{metric}", truth) for pair in pairs) / len(pairs)
            rows.append({"split": split, "metric": metric, "pairs": len(pairs), "agreement": agree})
    if not rows:
        raise ValueError("no two models were measured by one split: give runs of several models")
    return pl.DataFrame(rows).sort("agreement", descending=True, maintain_order=True)


def _shared(runs: Sequence[Run]) -> list[str]:
    """The metrics of the test part that every run has, in the order of the first."""
    first = of_test(runs[0].metrics) if runs else {}
    return [name.removeprefix("test/") for name in first if all(name in run.metrics for run in runs)]


def _agree(ours: list[Run], theirs: list[Run], metric: str, truth: str) -> float:
    """1 where both measures order two models alike, 0 where not, half where one of them ties."""
    signs = []
    for name in (metric, truth):
        a, b = (sum(run.metrics[name] for run in side) / len(side) for side in (ours, theirs))
        signs.append((a > b) - (a < b))
    return (1 + signs[0] * signs[1]) / 2


def labels(runs: Sequence[Run]) -> list[str]:
    """What to call each run: its model, and the keys in which runs of that model differ, seed aside."""
    names = [run.name for run in runs]
    flats = [config.flat(run.config) for run in runs]
    answers = []
    for name, flat in zip(names, flats, strict=True):
        same = [f for other, f in zip(names, flats, strict=True) if other == name]
        differing = [
            key
            for key in flat
            if key not in ("seed", "model.seed", "trials") and len({repr(other.get(key)) for other in same}) > 1
        ]  # fmt: skip
        values = [f"{key.removeprefix('model.')}={flat[key]}" for key in differing]
        answers.append(" ".join([name, *values]))
    return answers


def _row(
    label: str, group: list[Run], baseline: list[Run], metric: str, *, is_baseline: bool
) -> dict[str, float | str | int | None]:
    own = _estimate(group, None, metric)
    values = [run.metrics[f"test/{metric}"] for run in group]
    oracle = [run.metrics[f"oracle/{metric}"] for run in group if f"oracle/{metric}" in run.metrics]
    value = sum(values) / len(values)
    row: dict[str, float | str | int | None] = {
        "metric": metric,
        "label": label,
        "seeds": len(group),
        "trials": group[0].manifest.get("trials"),
        "value": value,
        "low": own and own.low,
        "high": own and own.high,
        "share": value / (sum(oracle) / len(oracle)) if sum(oracle) > 0 else None,
    }
    ours = {run.manifest["seed"]: run for run in group}
    theirs = {run.manifest["seed"]: run for run in baseline}
    shared = sorted(ours.keys() & theirs.keys())
    if is_baseline or not shared:
        return row | _difference(None)
    sides = [ours[seed] for seed in shared], [theirs[seed] for seed in shared]
    first, second = ([run.metrics[f"test/{metric}"] for run in side] for side in sides)
    found = _difference(_estimate(*sides, metric))
    return row | found | {"difference": sum(first) / len(first) - sum(second) / len(second)}


def _estimate(group: list[Run], baseline: list[Run] | None, metric: str) -> Estimate | None:
    values = [run.metrics[f"test/{metric}"] for run in group]
    frames = [run.per_user for run in group]
    if baseline is None:
        return estimate(frames, metric, values=values)
    others = [run.metrics[f"test/{metric}"] for run in baseline]
    return estimate(frames, metric, [run.per_user for run in baseline], values=values, other_values=others)


def _corrected(rows: list[dict[str, float | str | int | None]], correction: str) -> None:
    """Give the rows of one metric their corrected p and what it says of the difference."""
    tested = [row for row in rows if row["p"] is not None]
    p = CORRECTIONS[correction]([float(row["p"]) for row in tested])  # type: ignore[arg-type]
    for row in rows:
        row["p_corrected"], row["verdict"] = None, None if row["difference_low"] is None else "not told apart"
    for row, corrected in zip(tested, p, strict=True):
        row["p_corrected"] = corrected
        if corrected < ALPHA:
            is_more = float(row["difference"]) > 0  # type: ignore[arg-type]
            row["verdict"] = _verdict(str(row["metric"]).partition("@")[0], is_more)


def _verdict(metric: str, is_more: bool) -> str:
    """What a difference that is there means. Lists that are more popular or more varied are no better for it."""
    if metric in MORE_IS_BETTER or metric in LESS_IS_BETTER:
        return "better" if is_more == (metric in MORE_IS_BETTER) else "worse"
    return "higher" if is_more else "lower"
