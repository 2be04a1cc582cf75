"""What came of a sweep: sweep.json, a frame, a table and the command line of the best trial."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import polars as pl
from optuna.trial import FrozenTrial, TrialState

from recsys import atomic
from recsys.listing import SWEEP
from recsys.sweeping.plan import GROUPS, words
from recsys.sweeping.space import text
from recsys.tables import print_table

PLOT = "sweep.svg"
ENOUGH = 20  # completed trials, for the importance of keys to be more than chance
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def trials(directory: Path | str) -> pl.DataFrame:
    """The trials of a sweep, one row each, in order.

    Returns:
        trial: its number; state: complete, pruned or failed; value: of the validation metric, of a pruned trial the
        last; best: whether it is the one; model; seconds: of its last start; path: the run directory; reason: of a
        failed or pruned trial; a column for every key that was drawn, null where the default stood; test/…: metrics of
        the test part, which chose nothing.

    Raises:
        ValueError: the folder holds no sweep.
    """
    found = read(directory)
    rows = [
        {
            "trial": t["trial"], "state": t["state"], "value": t["value"], "best": t["trial"] == found["best"],
            "model": t["model"], "seconds": t["seconds"], "path": str(Path(directory) / t["path"]),
            "reason": t["reason"],
        }
        for t in found["trials"]
    ]  # fmt: skip
    types = {"trial": pl.Int64, "state": pl.String, "value": pl.Float64, "best": pl.Boolean, "model": pl.String}
    types |= {"seconds": pl.Float64, "path": pl.String, "reason": pl.String}
    frame = pl.DataFrame(rows, schema=types)
    keys = {key: None for t in found["trials"] for key in t["parameters"] if key != "model"}
    columns = [_column(key, [t["parameters"].get(key) for t in found["trials"]]) for key in keys]
    metrics = {key: None for t in found["trials"] for key in t["test"]}
    columns += [pl.Series(key, [t["test"].get(key) for t in found["trials"]], dtype=pl.Float64) for key in metrics]
    return frame.with_columns(columns)


def show(directory: Path | str) -> None:
    """The trials of a sweep as a table, what mattered, and the command line of the best."""
    found = read(directory)
    test = of_test_part(found["metric"])
    header = ["trial", "state", found["metric"], test, "seconds", "parameters", ""]
    rows = []
    for t in found["trials"]:
        values = number(t["value"]), number(t["test"].get(test)), number(t["seconds"], 1)
        rows.append([str(t["trial"]), t["state"], *values, drawn(t), t["reason"] or ""])
    print_table(f"{directory}: {len(rows)} trials, chosen by {found['metric']} alone", header, rows)
    if found["importance"]:
        shares = (f"{key} {share:.0%}" for key, share in found["importance"].items() if share >= 0.01)
        sys.stdout.write(f"what told the best from the rest (PED-ANOVA): {', '.join(shares)}\n")
    if found["best"] is not None:
        best = next(t for t in found["trials"] if t["trial"] == found["best"])
        if (plot := Path(directory) / PLOT).exists():
            sys.stdout.write(f"plot: {plot}\n")
        sys.stdout.write(f"best: trial {best['trial']}, {found['metric']} {best['value']:.4f}\n{found['command']}\n")


def of_test_part(metric: str) -> str:
    """The name of a validation metric where the test part is measured by it."""
    return metric.replace("val/", "test/")


def drawn(trial: Mapping[str, Any]) -> str:
    """What a trial of sweep.json drew, as words of a command line."""
    return " ".join(words(trial["parameters"])) + (" (defaults)" if trial["defaults"] else "")


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many digits behind the point; nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"


def summarise(directory: Path, study: optuna.Study, monitor: str, fixed: Mapping[str, str]) -> None:
    """Write sweep.json: the finished trials, the best by validation and its command line."""
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state in STATES]
    complete = [trial for trial in done if trial.state == TrialState.COMPLETE]
    sign = -1 if study.direction == optuna.study.StudyDirection.MINIMIZE else 1
    best = max(complete, key=lambda trial: (sign * float(trial.value or 0), -trial.number), default=None)
    command = None
    if best is not None:
        chosen = {} if any(key in fixed for key in GROUPS) else {"model": best.user_attrs["model"]}
        kept = {key: value for key, value in fixed.items() if key not in ("sweep", "trials")}
        said = words(chosen, kept, best.user_attrs["parameters"], {"trials": len(done)})
        command = shlex.join(["recsys", "train", *said])
    summary = {
        "metric": f"val/{monitor}",
        "direction": study.direction.name.lower(),
        "best": None if best is None else best.number,
        "command": command,
        "importance": _importance(study, complete),
        "trials": [
            {
                "trial": trial.number,
                "state": STATES[trial.state],
                "value": trial.value,
                "defaults": "defaults" in trial.user_attrs,
                **{key: trial.user_attrs.get(key) for key in ("model", "parameters", "seconds", "path", "reason")},
                "test": trial.user_attrs.get("test", {}),
            }
            for trial in done
        ],
    }
    atomic.write_json(directory / SWEEP, summary)


def _importance(study: optuna.Study, complete: list[FrozenTrial]) -> dict[str, float]:
    """The share of each key in what tells the best tenth from the rest; none where trials are few or all alike."""
    if len(complete) < ENOUGH or len({trial.value for trial in complete}) < 2:
        return {}
    found = optuna.importance.get_param_importances(study)
    return {key: round(share, 4) for key, share in found.items() if math.isfinite(share)}


def read(directory: Path | str) -> dict[str, Any]:
    """What `summarise` wrote.

    Raises:
        ValueError: the folder holds no sweep.
    """
    directory = Path(directory)
    try:
        return json.loads((directory / SWEEP).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{directory} holds no sweep: {SWEEP} is missing") from None


def _column(key: str, values: list[Any]) -> pl.Series:
    """Values of a key as one column: numbers where all of them are, else text."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known):
        return pl.Series(key, values, dtype=pl.Boolean)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return pl.Series(key, values, dtype=pl.Int64 if all(isinstance(v, int) for v in known) else pl.Float64)
    return pl.Series(key, [None if value is None else text(value) for value in values], dtype=pl.String)
