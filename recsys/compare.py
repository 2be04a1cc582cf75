"""Several runs in one table: seeds aggregated, differences paired."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from recsys import config
from recsys.evaluation.significance import paired_interval, seeds_interval
from recsys.run import Run


def compare(
    runs: Sequence[Run | Path | str],
    metrics: Sequence[str] | None = None,
    baseline: str | None = None,
) -> pl.DataFrame:
    """One row a configuration and metric, the seeds of a configuration aggregated.

    Args:
        runs: finished runs or their directories, measured on the same data.
        metrics: such as ["recall@20"]; None = every metric that all runs have.
        baseline: the label of the configuration to compare with; None = the first run's.

    Returns:
        label: the model, and the keys in which configurations of that model differ;
        metric; seeds: how many; value: the mean over seeds;
        low, high: 95% interval. One seed: of the user bootstrap, which does not hold training variance.
            Several: the t interval of the mean over seeds;
        share: of the log oracle's value, where the data has an answer key;
        difference, difference_low, difference_high: to the baseline, paired by user on the same
            resamples (one seed) or by seed (several).

    Raises:
        ValueError: no runs; runs on different data; a metric or the baseline is unknown; the message
            names it.
    """
    found = [run if isinstance(run, Run) else Run(run) for run in runs]
    if not found:
        raise ValueError("nothing to compare: give at least one run")
    for run in found[1:]:
        if run.manifest["data"]["fingerprint"] != found[0].manifest["data"]["fingerprint"]:
            raise ValueError(f"{run.path} was measured on other data than {found[0].path}")
    groups: dict[str, list[Run]] = {}
    for run, label in zip(found, labels(found), strict=True):
        groups.setdefault(label, []).append(run)
    baseline = baseline or next(iter(groups))
    if baseline not in groups:
        raise ValueError(f"baseline={baseline}: {config.nearest(baseline, groups)}")
    common = set.intersection(*({m for m in run.metrics if m.count("/") == 1} for run in found))
    known = [m.removeprefix("test/") for m in found[0].metrics if m.startswith("test/") and m in common]
    for metric in metrics or ():
        if metric not in known:
            raise ValueError(
                f"metric {metric} was not measured in every run: {config.nearest(metric, known)}"
            )
    rows = [
        _row(label, group, groups[baseline], metric, is_baseline=label == baseline)
        for metric in metrics or known
        for label, group in groups.items()
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def labels(runs: Sequence[Run]) -> list[str]:
    """What to call each run: its model, and the keys in which runs of that model differ, seed aside."""
    names = [run.manifest["model"].rpartition(".")[2] for run in runs]
    flats = [config.flat(run.config) for run in runs]
    answers = []
    for name, flat in zip(names, flats, strict=True):
        same = [f for other, f in zip(names, flats, strict=True) if other == name]
        differing = [
            key
            for key in flat
            if key != "seed" and len({repr(other.get(key)) for other in same}) > 1
        ]  # fmt: skip
        values = [f"{key.removeprefix('model.')}={flat[key]}" for key in differing]
        answers.append(" ".join([name, *values]))
    return answers


def _row(
    label: str, group: list[Run], baseline: list[Run], metric: str, *, is_baseline: bool
) -> dict[str, float | str | int | None]:
    name = f"test/{metric}"
    values = [run.metrics[name] for run in group]
    low: float | None
    high: float | None
    if len(group) > 1:
        value, low, high = seeds_interval(values)
    else:
        value, low, high = (
            values[0],
            group[0].metrics.get(f"{name}/low"),
            group[0].metrics.get(f"{name}/high"),
        )
    oracle = [run.metrics[f"oracle/{metric}"] for run in group if f"oracle/{metric}" in run.metrics]
    difference: tuple[float | None, float | None, float | None] = (None, None, None)
    if not is_baseline:
        difference = _difference(group, baseline, metric)
    return {
        "metric": metric,
        "label": label,
        "seeds": len(group),
        "value": value,
        "low": low,
        "high": high,
        "share": value / (sum(oracle) / len(oracle)) if oracle and sum(oracle) > 0 else None,
        "difference": difference[0],
        "difference_low": difference[1],
        "difference_high": difference[2],
    }


def _difference(
    group: list[Run], baseline: list[Run], metric: str
) -> tuple[float | None, float | None, float | None]:
    name = f"test/{metric}"
    ours = {run.manifest["seed"]: run for run in group}
    theirs = {run.manifest["seed"]: run for run in baseline}
    shared = sorted(ours.keys() & theirs.keys())
    if len(shared) > 1:
        return seeds_interval([ours[s].metrics[name] - theirs[s].metrics[name] for s in shared])
    if len(shared) == 1:
        a, b = ours[shared[0]], theirs[shared[0]]
        return paired_interval(a.per_user, b.per_user, metric)
    return (None, None, None)
