"""What an experiment says: effects with intervals, raw and adjusted by CUPED, and a verdict after correction.

A frame has one row a user: user_id, group, what metrics are made of, and what was measured before the experiment
(`measures.per_user` makes one of a log). `effects` has the arithmetic, `planning` what comes before, `guardrails` what
must not get worse, `sequential` how to look while it runs, `report` the page.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from recsys.config import nearest
from recsys.evaluation.estimates import CORRECTIONS
from recsys.online import effects
from recsys.online.assignment import Mismatch, mismatch
from recsys.online.effects import Effect, Moments
from recsys.online.measures import Measure, listed, places, sides


def bonferroni(p: Sequence[float]) -> list[float]:
    """p-values of N hypotheses times N: any below alpha errs with probability alpha at most, and so does one test each
    at alpha / N, by which experiments are planned."""
    return [min(value * len(p), 1.0) for value in p]


CORRECTED: dict[str, Callable[[Sequence[float]], list[float]]] = {"none": list, "bonferroni": bonferroni, **CORRECTIONS}
BETTER, WORSE, NOT_TOLD, NO_TRUST = "better", "worse", "not told apart", "not trusted"
SCHEMA = {
    "metric": pl.String, "treatment": pl.String, "method": pl.String, "control_value": pl.Float64,
    "treatment_value": pl.Float64, "difference": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "relative": pl.Float64, "relative_low": pl.Float64, "relative_high": pl.Float64, "p": pl.Float64,
    "p_corrected": pl.Float64, "variance_left": pl.Float64, "verdict": pl.String,
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Analysis:
    """An experiment's results.

    effects: one row a metric, treatment and method; see `analyse`.
    counts: users by group. mismatch: of the counts to the planned shares; None where these were not given.
    """

    effects: pl.DataFrame
    counts: dict[str, int]
    mismatch: Mismatch | None
    control: str
    confidence: float
    correction: str

    @property
    def trusted(self) -> bool:
        """False where the counts contradict the planned shares."""
        return self.mismatch is None or self.mismatch.trusted

    def __repr__(self) -> str:
        with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, tbl_hide_dataframe_shape=True):
            return f"{self.headline()}\n{self.effects}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline())}</p>{self.effects._repr_html_()}"

    def headline(self) -> str:
        """Groups, whether their sizes are as planned, and how verdicts were reached, in one line."""
        groups = ", ".join(f"{name} {count:,}" for name, count in self.counts.items())
        if self.mismatch is None:
            ratio = "planned shares not given, group sizes not checked"
        elif self.mismatch.trusted:
            ratio = f"group sizes as planned (p = {self.mismatch.p:.3g})"
        else:
            ratio = f"SAMPLE RATIO MISMATCH (p = {self.mismatch.p:.2g}): effects must not be trusted"
        return f"users: {groups}; {ratio}; {self.confidence:.0%} intervals, verdicts corrected by {self.correction}"


def analyse(
    frame: pl.DataFrame,
    metrics: Mapping[str, Measure],
    *,
    covariates: Mapping[str, Sequence[Measure]] | None = None,
    lower_is_better: Collection[str] = (),
    shares: Mapping[str, float] | None = None,
    group: str = "group",
    control: str = "control",
    user_id: str = "user_id",
    confidence: float = 0.95,
    correction: str = "holm",
) -> Analysis:
    """Compare every treatment with the control on every metric.

    `analyse(users, {"clicks": "clicks", "ctr": ("clicks", "impressions")}, covariates={"clicks": ["clicks_before"],
    "ctr": [("clicks_before", "impressions_before")]}, shares={"control": 0.5, "treatment": 0.5})`

    Args:
        frame: one row a user; those whose group is null take no part.
        metrics: by name, a column (its mean over users) or (above, below).
        covariates: of a metric, what was measured before the experiment, any of the same kinds.
        shares: planned, by group; without them the sizes of groups go unchecked.
        correction: of the p-values of all metrics and treatments together: holm, benjamini_hochberg, bonferroni, none.

    Returns: effects, one row a metric, treatment and method, `raw` or where it has covariates also `cuped`:
        control_value, treatment_value: of the metric, for cuped adjusted to the covariates of both groups;
        difference, low, high: with Student's interval (Welch);
        relative, relative_low, relative_high: over the control's value, with Fieller's interval, which holds 0 just
            where the other does; unbounded where the control's value is not told apart from 0;
        p: two-sided, null where nothing varies; p_corrected: of the method that decides, cuped where there is one;
        variance_left: of the difference, as a share of raw;
        verdict: better or worse where p_corrected is below 1 - confidence, else not told apart; not trusted where the
            sizes of groups contradict the planned shares. Intervals are each for itself, without correction.
    Raises:
        ValueError: an unknown column, metric or correction, a value that is no number, a user in two groups or rows,
            no control, a group that is empty or alone, a denominator of 0 for a whole group; the message names it.
    """
    covariates = check_names(metrics, covariates, lower_is_better, confidence)
    if correction not in CORRECTED:
        raise ValueError(f"correction={correction}: {nearest(correction, CORRECTED)}")
    names, found = sides(frame, measures_of(metrics, covariates), group=group, control=control, user_id=user_id)
    counts = {name: side.shape[1] for name, side in found.items()}
    checked = None
    if shares is not None:
        for name in shares:
            if name not in counts:
                raise ValueError(f"{group} has no user in {name}: leave it out of shares, or look for who was lost")
        checked = mismatch(counts, shares)
    group_moments = {name: effects.moments(side) for name, side in found.items()}
    rows, deciding = list[dict[str, Any]](), list[dict[str, Any]]()
    for metric, measure in metrics.items():
        for treatment in list(found)[1:]:
            pair = group_moments[control], group_moments[treatment]
            raw = compare(*pair, names, measure)
            methods = {"raw": raw}
            if covariates.get(metric):
                methods["cuped"] = compare(*pair, names, measure, covariates[metric])
            for method, effect in methods.items():
                row: dict[str, Any] = {"metric": metric, "treatment": treatment, "method": method}
                row["variance_left"] = float(effect.variance / raw.variance) if raw.variance > 0 else None
                rows.append(row | described(effect, confidence))
            deciding.append(rows[-1])
    known = [row for row in deciding if row["p"] is not None]
    for row, p in zip(known, CORRECTED[correction]([row["p"] for row in known]), strict=True):
        row["p_corrected"] = p
    for row in deciding:
        lower = row["metric"] in lower_is_better
        trusted = checked is None or checked.trusted
        row["verdict"] = _verdict(row, 1 - confidence, lower) if trusted else NO_TRUST
    return Analysis(pl.DataFrame(rows, schema=SCHEMA), counts, checked, control, confidence, correction)


def compare(
    control: Moments, treatment: Moments, names: Sequence[str], metric: Measure, covariates: Sequence[Measure] = ()
) -> Effect:
    """The effect on one metric, of moments of columns by these names.

    Raises:
        ValueError: too few users for so many covariates.
    """
    users = int(np.min(control.users + treatment.users))
    if users < 4 + len(covariates):
        raise ValueError(f"{users} users are too few for {len(covariates)} covariates: leave some out")
    return effects.effect(control, treatment, places(metric, names), [places(one, names) for one in covariates])


def described(effect: Effect, confidence: float) -> dict[str, float | None]:
    """An effect of one experiment by the names of `analyse`; None for what is not known."""
    low, high = effects.interval(effect, confidence)
    relative_low, relative_high = effects.relative_interval(effect, confidence)
    found = {
        "control_value": effect.control, "treatment_value": effect.treatment, "difference": effect.difference,
        "low": low, "high": high, "relative": effects.relative(effect), "relative_low": relative_low,
        "relative_high": relative_high, "p": effects.p_value(effect),
    }  # fmt: skip
    return {name: None if np.isnan(value) else float(value) for name, value in found.items()}


def measures_of(metrics: Mapping[str, Measure], covariates: Mapping[str, Sequence[Measure]]) -> list[Measure]:
    """All that has to be measured of a user."""
    return [*metrics.values(), *(one for several in covariates.values() for one in several)]


def check_names(
    metrics: Mapping[str, Measure],
    covariates: Mapping[str, Sequence[Measure]] | None,
    lower_is_better: Collection[str],
    confidence: float,
) -> Mapping[str, Sequence[Measure]]:
    """The covariates.

    Raises:
        ValueError: no metric, a name that is none, one covariate in place of a list, or a confidence outside (0, 1).
    """
    if not metrics:
        raise ValueError("metrics name none: give at least one, such as {'clicks': 'clicks'}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    covariates = {} if covariates is None else covariates
    if isinstance(lower_is_better, str):
        raise ValueError(f"lower_is_better={lower_is_better!r}: give a list of metrics, [{lower_is_better!r}]")
    for argument, named in (("covariates", covariates), ("lower_is_better", lower_is_better)):
        for name in named:
            if name not in metrics:
                raise ValueError(f"{argument} name no metric by {name}: {nearest(name, metrics)}")
    return {name: listed(several) for name, several in covariates.items()}


def _verdict(row: Mapping[str, Any], alpha: float, lower_is_better: bool) -> str:
    p = row.get("p_corrected")
    if p is None or p >= alpha:
        return NOT_TOLD
    return BETTER if (row["difference"] > 0) != lower_is_better else WORSE
