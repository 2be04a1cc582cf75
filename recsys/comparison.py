"""Several runs in one table: seeds aggregated, differences paired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from recsys import config
from recsys.evaluation.significance import key_columns, paired_interval, seeds_interval
from recsys.run import Run

NORMAL = 1.96  # the 95% interval of a normal distribution, in standard errors
RATIOS = {"log_loss": ("log_loss", "rows"), "calibration": ("predicted", "positives")}  # sums over users


def compare(
    runs: Sequence[Run | Path | str],
    metrics: Sequence[str] | None = None,
    baseline: str | None = None,
    names: Sequence[str] | None = None,
) -> pl.DataFrame:
    """One row a configuration and metric, the seeds of a configuration aggregated.

    Args:
        runs: finished runs or their directories, measured on the same data.
        metrics: such as ["recall@20"]; None = every metric that all runs have.
        baseline: the label of the configuration to compare with; None = the first run's.
        names: a label for each run, in place of the ones that `labels` gives.

    Returns:
        label: the model, and the keys in which configurations of that model differ;
        metric; seeds: how many; value: the mean over seeds;
        low, high: 95% interval: the one over users (a bootstrap; normal for a ranker's auc, log_loss and calibration)
            and, where seeds repeat, the t interval over seeds, combined; null where neither is known. With one seed
            it does not hold the variance of training;
        share: of the log oracle's value, where the data has an answer key;
        difference, difference_low, difference_high: to the baseline, paired by query on the same
            resamples of users and by seed; its interval likewise.

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
    common = set.intersection(*({m for m in run.metrics if m.count("/") == 1} for run in found))
    known = [m.removeprefix("test/") for m in found[0].metrics if m.startswith("test/") and m in common]
    for metric in metrics or ():
        if metric not in known:
            raise ValueError(f"metric {metric} was not measured in every run: {config.nearest(metric, known)}")
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
            if key not in ("seed", "model.seed") and len({repr(other.get(key)) for other in same}) > 1
        ]  # fmt: skip
        values = [f"{key.removeprefix('model.')}={flat[key]}" for key in differing]
        answers.append(" ".join([name, *values]))
    return answers


def _row(
    label: str, group: list[Run], baseline: list[Run], metric: str, *, is_baseline: bool
) -> dict[str, float | str | int | None]:
    name = f"test/{metric}"
    values = [run.metrics[name] for run in group]
    value = sum(values) / len(values)
    low, high = _ends(value, _users_half(group, None, metric), values)
    oracle = [run.metrics[f"oracle/{metric}"] for run in group if f"oracle/{metric}" in run.metrics]
    row: dict[str, float | str | int | None] = {
        "metric": metric,
        "label": label,
        "seeds": len(group),
        "value": value,
        "low": low,
        "high": high,
        "share": value / (sum(oracle) / len(oracle)) if sum(oracle) > 0 else None,
        "difference": None,
        "difference_low": None,
        "difference_high": None,
    }
    ours = {run.manifest["seed"]: run for run in group}
    theirs = {run.manifest["seed"]: run for run in baseline}
    shared = sorted(ours.keys() & theirs.keys())
    if shared and not is_baseline:
        differences = [ours[seed].metrics[name] - theirs[seed].metrics[name] for seed in shared]
        difference = sum(differences) / len(differences)
        half = _users_half([ours[seed] for seed in shared], [theirs[seed] for seed in shared], metric)
        row["difference"] = difference
        row["difference_low"], row["difference_high"] = _ends(difference, half, differences)
    return row


def _ends(
    center: float, users_half: tuple[float, float] | None, over_seeds: list[float]
) -> tuple[float | None, float | None]:
    """An interval that holds both what other users and what other seeds would change; none where neither is known.

    The two are independent, so their half-widths add in quadrature.
    """
    if users_half is None and len(over_seeds) < 2:
        return None, None
    below, above = users_half or (0.0, 0.0)
    if len(over_seeds) > 1:
        _, low, _ = seeds_interval(over_seeds)
        seeds_half = center - low
        below, above = math.hypot(below, seeds_half), math.hypot(above, seeds_half)
    return center - below, center + above


def _users_half(group: list[Run], baseline: list[Run] | None, metric: str) -> tuple[float, float] | None:
    """How far the interval over users reaches below and above the mean, each query averaged over seeds: by a
    bootstrap of users for means over queries, for a ranker's ratios by what each user adds to their error; None where
    that is not known."""
    if "@" not in metric:
        mine = _influence(group, metric)
        other = None if baseline is None else _influence(baseline, metric)
        if mine is None or (baseline is not None and other is None):
            return None
        error = mine if other is None else mine.join(other, on="user_key", suffix="_other")
        share = pl.col("share") if other is None else pl.col("share") - pl.col("share_other")
        half = NORMAL * math.sqrt(float(error.select((share * share).sum()).item()))
        return half, half
    ours = _query_means(group, metric)
    theirs = ours.with_columns(pl.lit(0.0).alias(metric)) if baseline is None else _query_means(baseline, metric)
    mean, low, high = paired_interval(ours, theirs)[metric]
    return mean - low, high - mean


def _influence(group: list[Run], metric: str) -> pl.DataFrame | None:
    """What each user adds to the error of a ranker's metric, averaged over seeds: user_key, share."""
    if metric == "auc":
        share = pl.col("auc_influence")
    elif metric in RATIOS:
        above, below = (pl.col(name) for name in RATIOS[metric])
        share = (above - below * (above.sum() / below.sum())) / below.sum()
    else:
        return None
    frames = [run.per_user.select("user_key", share=share.cast(pl.Float64)) for run in group]
    return pl.concat(frames).group_by("user_key").mean().sort("user_key")


def _query_means(group: list[Run], metric: str) -> pl.DataFrame:
    keys = key_columns(group[0].per_user)
    frames = [run.per_user.select(*keys, pl.col(metric).cast(pl.Float64)) for run in group]
    return pl.concat(frames).group_by(keys).mean().sort(keys)
