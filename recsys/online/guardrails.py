"""What must not get worse: latency, diversity, and what is gained in one country while another pays for it.

A test of non-inferiority asks more than that no harm is seen, which a small experiment always fulfils: the interval has
to lie above the margin. A metric passes where even its worse end is no worse than the margin, fails where its better
end is worse, and else it cannot be told. Ends are those of two-sided intervals, so that at 95% a guardrail at its
margin passes by luck in 2.5% of experiments and fails in as many. All have to pass, which needs no correction.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from scipy.special import ndtri

from recsys.online import effects
from recsys.online.abtest import check_names, compare, described
from recsys.online.effects import Effect, Floats
from recsys.online.measures import Measure, check_columns, columns_of, sides, values

PASSES, FAILS, CANNOT_TELL = "passes", "fails", "cannot tell"
GAP = "largest gap"
SCHEMA = {
    "metric": pl.String, "treatment": pl.String, "among": pl.String, "users": pl.Int64, "effect": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "margin": pl.Float64, "verdict": pl.String,
}  # fmt: skip


def guard(
    frame: pl.DataFrame,
    metrics: Mapping[str, Measure],
    margins: Mapping[str, float] | float,
    *,
    relative: bool = True,
    lower_is_better: Collection[str] = (),
    by: str | None = None,
    gap: float | None = None,
    group: str = "group",
    control: str = "control",
    user_id: str = "user_id",
    confidence: float = 0.95,
) -> pl.DataFrame:
    """Hold metrics against how much worse they may get.

    Args:
        frame, metrics, lower_is_better: as in `abtest.analyse`.
        margins: how much worse than the control a metric may be, above 0, each or one for all; with `relative` a share
            of the control's value.
        by: a column of users, such as country: the margin is also held among the users of each of its values.
        gap: how far the effects among any two of these may lie apart; needs `by`.

    Returns: one row a guardrail: metric, treatment, among ("all", "country = FR", or "largest gap: FR - US"), users,
        effect with low and high (relative: Fieller's), margin, verdict (passes, fails, cannot tell). A gap is that of
        the two values whose effects differ most, without sign; its interval holds the largest true gap of all pairs
        (Bonferroni), so low is 0 where no two are told apart.
    Raises:
        ValueError: what `abtest.analyse` refuses, a margin that is missing or not above 0, a gap without `by`.
    """
    check_names(metrics, None, lower_is_better, confidence)
    allowed = {name: margins if not isinstance(margins, Mapping) else margins.get(name) for name in metrics}
    for name, margin in allowed.items():
        if margin is None or not (margin > 0 and math.isfinite(margin)):
            raise ValueError(f"margin of {name} is {margin}: give how much worse it may get, above 0")
    if gap is not None and (by is None or not gap > 0):
        raise ValueError(f"gap={gap}: {'give the column by which effects may differ' if by is None else 'above 0'}")
    measures = list(metrics.values())
    names, found = sides(frame, measures, group=group, control=control, user_id=user_id)
    slices = _slices(frame, measures, by, group, list(found)) if by is not None else {}
    rows = list[dict[str, Any]]()
    for name, measure in metrics.items():
        sign = -1 if name in lower_is_better else 1
        for treatment in list(found)[1:]:
            pair = {"metric": name, "treatment": treatment}
            within = dict[str, Effect]()
            for among, parts in {"all": found, **slices}.items():
                users = parts[control].shape[1] + parts[treatment].shape[1]
                row = pair | {"among": among, "users": users, "margin": allowed[name], "verdict": CANNOT_TELL}
                if min(parts[control].shape[1], parts[treatment].shape[1]) >= 2:
                    moments = effects.moments(parts[control]), effects.moments(parts[treatment])
                    effect = compare(*moments, names, measure)
                    row |= _held(effect, sign, float(allowed[name] or 0), relative, confidence)
                    if among != "all":
                        within[among] = effect
                rows.append(row)
            if gap is not None:
                row = _gap(within, relative, gap, confidence) if len(within) > 1 else {"among": GAP}
                rows.append(
                    pair | {"margin": gap, "verdict": CANNOT_TELL, "users": rows[-1 - len(slices)]["users"]} | row
                )
    return pl.DataFrame(rows, schema=SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))


def _slices(
    frame: pl.DataFrame, measures: list[Measure], by: str, group: str, groups: list[str]
) -> dict[str, dict[str, Floats]]:
    """By value of a column and by group: the values of measures, [C, U]."""
    check_columns(frame, [by])
    frame = frame.filter(pl.col(group).is_not_null())
    of_user = frame[by].cast(pl.String).fill_null("null")
    label, values_CU = frame[group].cast(pl.String), values(frame, columns_of(measures))
    return {
        f"{by} = {value}": {name: values_CU[:, ((of_user == value) & (label == name)).to_numpy()] for name in groups}
        for value in of_user.unique().sort().to_list()
    }


def _held(effect: Effect, sign: int, margin: float, relative: bool, confidence: float) -> dict[str, Any]:
    """An effect with its interval, and whether it keeps the margin; sign -1 where lower is better."""
    every = described(effect, confidence)
    value, low, high = (
        every[name]
        for name in (("relative", "relative_low", "relative_high") if relative else ("difference", "low", "high"))
    )
    verdict = CANNOT_TELL
    if low is not None and high is not None:
        worse, better = (low, high) if sign > 0 else (-high, -low)
        verdict = PASSES if worse > -margin else FAILS if better < -margin else CANNOT_TELL
    return {"effect": value, "low": low, "high": high, "verdict": verdict}


def _gap(within: Mapping[str, Effect], relative: bool, gap: float, confidence: float) -> dict[str, Any]:
    """The largest gap between the effects among any two values of a column."""
    known = dict[str, tuple[float, float]]()
    for among, effect in within.items():
        value = effects.relative(effect) if relative else effect.difference
        variance = effects.relative_variance(effect) if relative else effect.variance
        if np.isfinite(value) and np.isfinite(variance):
            known[among] = float(value), float(variance)
    if len(known) < 2:
        return {"among": GAP}
    pairs = list(combinations(known, 2))
    quantile = -float(ndtri((1 - confidence) / 2 / len(pairs)))
    apart = {(a, b): abs(known[a][0] - known[b][0]) for a, b in pairs}
    half = {(a, b): quantile * math.sqrt(known[a][1] + known[b][1]) for a, b in pairs}
    low = max(0.0, max(apart[pair] - half[pair] for pair in pairs))
    high = max(apart[pair] + half[pair] for pair in pairs)
    widest = max(pairs, key=lambda pair: apart[pair])
    one, other = sorted(widest, key=lambda name: -known[name][0])
    verdict = PASSES if high < gap else FAILS if low > gap else CANNOT_TELL
    names = " - ".join(name.partition(" = ")[2] for name in (one, other))
    return {
        "among": f"{GAP}: {names}",
        "effect": known[one][0] - known[other][0],
        "low": low,
        "high": high,
        "verdict": verdict,
    }
