"""Numbers as model inputs: scaled, clipped, bucketed, with what is missing imputed and flagged.

Fitted in one pass over chunks by a sketch of bounded size. Transforms are float64 arithmetic of single additions,
products and quotients, the logarithm included, so that CPU and GPU give the same bits; the result is float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recsys.features.base import Device, Feature, FeatureError, as_kind, kind_of
from recsys.schema import NUM_RESERVED, UNKNOWN, Column, Role

KEPT_BITS = 12  # of the mantissa: integers up to 8192 have a range of their own
LARGEST = float(torch.finfo(torch.float32).max)


class Sketch:
    """What a column of finite numbers looks like, in one pass and bounded memory, whatever the order of rows.

    Values that agree in sign, exponent and the first 12 bits of the mantissa share a range (as in HDR histograms); of
    each range the count, extremes, mean and squared deviations are kept. So means and variances are exact up to
    rounding, and a quantile is exact where its range holds one value, else off by less than 2**-12 of itself.
    """

    def __init__(self) -> None:
        self._parts: list[pl.DataFrame] = []
        self._held = 0

    def add(self, values: np.ndarray) -> None:
        """See float64 values, all finite."""
        values = values + 0.0  # -0.0 becomes 0.0
        x, rows = pl.col("value"), pl.len().cast(pl.Int64)
        values_by_range = pl.DataFrame({"key": values.view(np.int64) >> (52 - KEPT_BITS), "value": values})
        part = values_by_range.group_by("key").agg(
            low=x.min(), high=x.max(), count=rows, mean=x.mean(), spread=x.var(ddof=0) * rows
        )
        self._parts.append(part)
        if sum(part.height for part in self._parts) > 2 * self._held + 100_000:
            self._parts = [self._merged()]
            self._held = self._parts[0].height

    def _merged(self) -> pl.DataFrame:
        """The parts as one: means and spreads by Chan, Golub and LeVeque (1983)."""
        count, mean = pl.col("count"), pl.col("mean")
        between = count * (mean - (count * mean).sum() / count.sum()) ** 2
        merged = pl.concat(self._parts).group_by("key").agg(
            low=pl.col("low").min(), high=pl.col("high").max(), count=count.sum(),
            mean=(count * mean).sum() / count.sum(), spread=(pl.col("spread") + between).sum(),
        )  # fmt: skip
        return merged.sort("low")

    def finish(self) -> Distribution:
        """The distribution of what was seen."""
        if not self._parts:
            return Distribution(*(np.zeros(0) for _ in range(5)))
        merged = self._merged()
        return Distribution(*(merged[name].to_numpy() for name in ("low", "high", "count", "mean", "spread")))


@dataclass(eq=False)
class Distribution:
    """Ranges of values in ascending order: extremes, count, mean and sum of squared deviations of each."""

    low: np.ndarray
    high: np.ndarray
    count: np.ndarray
    mean: np.ndarray
    spread: np.ndarray

    def __len__(self) -> int:
        return int(self.count.sum())

    def clip(self, low: float, high: float) -> Distribution:
        """The distribution of the clipped values; the bounds must not fall inside a range of several values."""
        inside = (self.high >= low) & (self.low <= high)
        mean = np.where(inside, self.mean, np.clip(self.mean, low, high))
        spread = np.where(inside, self.spread, 0.0)
        return Distribution(np.clip(self.low, low, high), np.clip(self.high, low, high), self.count, mean, spread)

    def at(self, rank: int) -> float:
        """The value of a rank from 0, interpolated within a range."""
        ends = self.count.cumsum()
        k = int(np.searchsorted(ends, rank, side="right"))
        within = rank - (ends[k] - self.count[k])
        share = within / (self.count[k] - 1) if self.count[k] > 1 else 0.0
        return float(self.low[k] + (self.high[k] - self.low[k]) * share)

    def quantile(self, q: float) -> float:
        """The quantile as NumPy defines it (linear)."""
        place = q * (len(self) - 1)
        below = self.at(math.floor(place))
        return below + (self.at(math.ceil(place)) - below) * (place - math.floor(place))

    def bounds(self, low: float, high: float) -> tuple[float, float]:
        """Values that hold the quantiles `low` and `high` between them, at the outer ends of their ranges."""
        ends = self.count.cumsum()
        first, last = (
            int(np.searchsorted(ends, rank, side="right"))
            for rank in (math.floor(low * (len(self) - 1)), math.ceil(high * (len(self) - 1)))
        )
        return float(self.low[first]), float(self.high[last])

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation (of the population), to 12 digits, so that the order of rows cannot show."""
        mean = float((self.count * self.mean).sum() / len(self))
        variance = float((self.spread + self.count * (self.mean - mean) ** 2).sum() / len(self))
        return float(f"{mean:.12g}"), float(f"{math.sqrt(variance):.12g}")


@dataclass(eq=False)
class Numeric(Feature):
    """A number, scaled, as float32; and whether it was missing.

    Null, NaN and infinity are missing: they are imputed, and flagged as 1 in a second output, `<name>_missing`. What is
    beyond the range of float32 counts as its ends.

    Args:
        column: its name; that of the feature if None.
        scale: "none", "standard" ((v - mean) / deviation), "min_max" (train's range to [low, high]; beyond it the
            ends), "power_law" (log(1 + v) / (1 + median), of v >= 0; below 0 it is that of 0). A column that is
            constant in train becomes 0 ("standard") or `low` ("min_max").
        low, high: where "min_max" goes, as 0 and 1, or -1 and 1.
        clip: [lowest, highest] value; either may be null.
        clip_quantiles: the same as quantiles of train, as [0.01, 0.99]; after `clip`.
        impute: "median", "mean" (of train, clipped), or a number.
        flag: False leaves the second output out.
    """

    column: str | None = None
    scale: Literal["none", "standard", "min_max", "power_law"] = "standard"
    low: float = 0.0
    high: float = 1.0
    clip: Sequence[float | None] | None = None
    clip_quantiles: Sequence[float] | None = None
    impute: Literal["median", "mean"] | float = "median"
    flag: bool = True
    learned: dict[str, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise FeatureError(f"scale={self.scale}: expected one of {', '.join(SCALES)}")
        if not self.low < self.high:
            raise FeatureError(f"low={self.low}, high={self.high}: expected low < high")
        if self.impute not in ("median", "mean") and not _is_number(self.impute):
            raise FeatureError(f"impute={self.impute}: expected median, mean or a number")
        self._clip = _interval("clip", self.clip, -LARGEST, LARGEST)
        self._quantiles = _interval("clip_quantiles", self.clip_quantiles, 0.0, 1.0)
        self._sketch = Sketch()

    @property
    def inputs(self) -> tuple[str, ...]:
        return (str(self.column),)

    def observe(self, rows: pl.DataFrame) -> None:
        values = numbers(rows[str(self.column)])
        values = values[np.isfinite(values)]
        if self.scale == "power_law" and values.size and max(values.min(), self._clip[0]) < 0:
            raise FeatureError(
                f"column {self.column!r} holds {values.min():g}: power_law takes values from 0 on; clip it "
                "(clip=[0, null]) or derive another column"
            )
        self._sketch.add(values.clip(*self._clip))

    def finish(self) -> None:
        seen, self._sketch = _distribution(self._sketch, str(self.column)), Sketch()
        low, high = self._clip
        if self.clip_quantiles is not None:
            low, high = seen.bounds(*self._quantiles)
            seen = seen.clip(low, high)
        if self.scale == "min_max":
            low, high = float(seen.low[0]), float(seen.high[-1])
        mean, deviation = seen.moments()
        median = seen.quantile(0.5)
        fill = {"median": median, "mean": mean}.get(str(self.impute), self.impute)
        constant = seen.low[0] == seen.high[-1]
        self.learned = {
            "low": low, "high": high, "mean": mean,
            "deviation": 0.0 if constant else deviation, "median": median, "fill": float(fill),
        }  # fmt: skip

    def transform(self, rows: pl.DataFrame, device: Device) -> dict[str, Tensor]:
        known = self.learned
        x = torch.from_numpy(numbers(rows[str(self.column)])).to(device)
        missing = ~x.isfinite()
        x = x.masked_fill_(missing, known["fill"]).clamp_(known["low"], known["high"])
        found = {"": SCALES[self.scale](self, x).clamp_(-LARGEST, LARGEST).float()}
        return found | ({"_missing": missing.float()} if self.flag else {})

    def _standard(self, x: Tensor) -> Tensor:
        x = x.sub_(self.learned["mean"])
        return divide(x, self.learned["deviation"]) if self.learned["deviation"] else x.zero_()

    def _min_max(self, x: Tensor) -> Tensor:
        width = self.learned["high"] - self.learned["low"]
        x = x.sub_(self.learned["low"])
        return (divide(x, width) if width else x.zero_()).mul_(self.high - self.low).add_(self.low)

    def _power_law(self, x: Tensor) -> Tensor:
        return divide(log1p(x.clamp_(min=0.0)), 1 + self.learned["median"])

    def outputs(self, name: str, role: Role) -> tuple[Column, ...]:
        return (Column(name, role, "float32"), Column(f"{name}_missing", role, "float32"))[: 1 + self.flag]

    def state(self) -> dict[str, Any]:
        return self.learned

    def restore(self, state: dict[str, Any], tables: dict[str, pl.DataFrame]) -> None:
        self.learned = {name: float(value) for name, value in state.items()}


SCALES = {
    "none": lambda feature, x: x,
    "standard": Numeric._standard,
    "min_max": Numeric._min_max,
    "power_law": Numeric._power_law,
}


@dataclass(eq=False)
class Buckets(Feature):
    """A number as the index of its bucket: 0 padding, 1 missing, buckets in ascending order from 2 on.

    Args:
        column: its name; that of the feature if None.
        num_buckets: of about equal mass in train. Quantiles that coincide make one edge, so there may be fewer.
        edges: ascending, instead of quantiles; a value equal to an edge belongs above it.
    """

    column: str | None = None
    num_buckets: int = 10
    edges: Sequence[float] | None = None
    learned: Tensor = field(init=False, repr=False)  # float64, the edges

    def __post_init__(self) -> None:
        if self.num_buckets < 2:
            raise FeatureError(f"num_buckets={self.num_buckets}: expected at least 2")
        edges = [] if self.edges is None else [float(edge) for edge in self.edges]
        if self.edges is not None and (not edges or edges != sorted(set(edges)) or not all(map(math.isfinite, edges))):
            raise FeatureError(f"edges={edges}: expected finite numbers in ascending order")
        self._sketch = Sketch()

    @property
    def inputs(self) -> tuple[str, ...]:
        return (str(self.column),)

    def observe(self, rows: pl.DataFrame) -> None:
        values = numbers(rows[str(self.column)])
        if self.edges is None:
            self._sketch.add(values[np.isfinite(values)].clip(-LARGEST, LARGEST))

    def finish(self) -> None:
        if self.edges is not None:
            self.learned = torch.tensor([float(edge) for edge in self.edges], dtype=torch.float64)
            return
        seen, self._sketch = _distribution(self._sketch, str(self.column)), Sketch()
        inner = [seen.quantile(i / self.num_buckets) for i in range(1, self.num_buckets)]
        self.learned = torch.tensor(sorted(set(inner)), dtype=torch.float64)

    def transform(self, rows: pl.DataFrame, device: Device) -> dict[str, Tensor]:
        x = torch.from_numpy(numbers(rows[str(self.column)])).to(device)
        idx = torch.bucketize(x, self.learned.to(device), right=True).add_(NUM_RESERVED)
        return {"": idx.masked_fill_(~x.isfinite(), UNKNOWN)}

    def outputs(self, name: str, role: Role) -> tuple[Column, ...]:
        return (Column(name, role, "int64", len(self.learned) + 1 + NUM_RESERVED),)

    def state(self) -> dict[str, Any]:
        return {"edges": self.learned.tolist()}

    def restore(self, state: dict[str, Any], tables: dict[str, pl.DataFrame]) -> None:
        self.learned = torch.tensor(state["edges"], dtype=torch.float64)


def numbers(column: pl.Series) -> np.ndarray:
    """A column as float64 of its own memory, NaN where it is null.

    Raises:
        FeatureError: it holds no numbers.
    """
    if kind_of(column.dtype) == "times":
        raise FeatureError(
            f"column {column.name!r} holds times: derive a number, as extract(hour from {column.name}) or "
            f"extract(epoch from {column.name})"
        )
    return as_kind(column, "numbers").fill_null(math.nan).to_numpy(writable=True)


def divide(x: Tensor, by: float) -> Tensor:
    """x / by in place, rounded once. On a GPU PyTorch multiplies by the reciprocal of a Python number: other bits."""
    return x.div_(torch.tensor(by, dtype=x.dtype, device=x.device))


def log1p(x: Tensor) -> Tensor:
    """log(1 + x) of float64 x >= 0 within 1e-15 of itself, the same bits on every device.

    Libraries differ in the last bit of a logarithm. This one is made of operations that IEEE 754 rounds correctly:
    1 + x = m 2**e with m near 1, log m = 2 atanh((m - 1) / (m + 1)) as a series, and the rounding of 1 + x put right
    to first order (Kahan).
    """
    y = 1 + x
    m, e = torch.frexp(y)
    small = m < math.sqrt(0.5)
    m = torch.where(small, m * 2, m)
    e = (e - small.to(e.dtype)).double()
    s = (m - 1) / (m + 1)
    z = s * s
    series = torch.full_like(z, 1 / 23)
    for n in range(21, 0, -2):
        series = series.mul_(z).add_(1 / n)
    log = series.mul_(s).mul_(2.0).add_(e.mul_(math.log(2)))
    return log.add_((x - (y - 1)).div_(y))


def _distribution(sketch: Sketch, column: str) -> Distribution:
    """What a sketch of a column saw; FeatureError where that was nothing."""
    seen = sketch.finish()
    if not len(seen):
        raise FeatureError(f"column {column!r} holds no finite value in the rows to fit on: leave it out")
    return seen


def _interval(name: str, pair: Sequence[float | None] | None, least: float, most: float) -> tuple[float, float]:
    """[low, high] with None for an open end, checked."""
    if pair is None:
        return least, most
    if len(pair) != 2 or not all(end is None or _is_number(end) for end in pair):
        raise FeatureError(f"{name}={pair}: expected [low, high]")
    low, high = (least if pair[0] is None else pair[0]), (most if pair[1] is None else pair[1])
    if not least <= low < high <= most:
        raise FeatureError(f"{name}={list(pair)}: expected low < high within [{least:g}, {most:g}]")
    return float(low), float(high)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
