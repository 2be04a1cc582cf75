"""What a feature is: columns of a row in, tensors out. And how a column comes to a type that features know.

A feature is fitted in one pass over chunks (`observe`, then `finish`), holds what it learned as plain numbers (`state`)
and tables (`tables`), and turns rows into tensors without looking at any other row. Shapes: B rows, L list places, F
and D numbers a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import polars as pl
import torch
from torch import Tensor

from recsys.schema import Column, Role

Device = torch.device | str


class FeatureError(ValueError):
    """What is wrong with a feature, its columns or its values, in one line."""


@dataclass(eq=False)
class Feature(ABC):
    """One named input of a model. Its arguments are its dataclass fields; what it learns is not among them."""

    def named(self, name: str) -> Self:
        """An unfitted copy that reads the column of its own name where no other was given."""
        if getattr(self, "column", "") is None:
            return replace(self, column=name)  # type: ignore[call-arg]
        return replace(self)

    def arguments(self) -> dict[str, Any]:
        """The arguments to make it again, as JSON takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """The columns that `transform` reads."""

    @property
    def fit_inputs(self) -> tuple[str, ...]:
        """The columns that `observe` reads."""
        return self.inputs

    def use(self, features: dict[str, Feature]) -> None:
        """Be given all features of the pipeline by name, before anything else happens."""

    def observe(self, rows: pl.DataFrame) -> None:
        """See a chunk of the rows to fit on."""

    def finish(self) -> None:
        """Learn from what was seen. Features that others use come first."""

    @abstractmethod
    def transform(self, rows: pl.DataFrame, device: Device) -> dict[str, Tensor]:
        """Tensors of the rows by the suffix of their name: "" is the feature itself."""

    @abstractmethod
    def outputs(self, name: str, role: Role) -> tuple[Column, ...]:
        """What `transform` returns, described: name, dtype, cardinality of indices, numbers a row."""

    def state(self) -> dict[str, Any]:
        """What was learned, as JSON takes it."""
        return {}

    def tables(self) -> dict[str, pl.DataFrame]:
        """What was learned and is too long for JSON."""
        return {}

    def restore(self, state: dict[str, Any], tables: dict[str, pl.DataFrame]) -> None:
        """The inverse of `state` and `tables`."""


@dataclass(eq=False)
class Plain(Feature):
    """A column as it is: labels, weights, indices made elsewhere. A missing or non-finite value is an error.

    Args:
        column: its name; that of the feature if None.
        dtype: of the tensor: float32, float64, int64 or bool. Times become microseconds since 1970 UTC as int64.
    """

    column: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float64", "int64", "bool"):
            raise FeatureError(f"dtype={self.dtype}: expected float32, float64, int64 or bool")

    @property
    def inputs(self) -> tuple[str, ...]:
        return (str(self.column),)

    def transform(self, rows: pl.DataFrame, device: Device) -> dict[str, Tensor]:
        column = rows[str(self.column)]
        bad = column.is_null()
        if column.dtype.is_float():
            bad |= ~column.is_finite().fill_null(False)
        if bad.any():
            row = first(bad)
            raise FeatureError(f"column {self.column!r} has no value in row {row} ({column[row]}): fill it or drop it")
        if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Datetime)):
            raise FeatureError(f"column {self.column!r} is {kind_of(column.dtype)}: only numbers can be taken as is")
        values = torch.from_numpy(column.to_physical().to_numpy(writable=True))
        return {"": values.to(device=device, dtype=getattr(torch, self.dtype))}

    def outputs(self, name: str, role: Role) -> tuple[Column, ...]:
        return (Column(name, role, self.dtype),)


# --- kinds of columns -----------------------------------------------------------------------------------------

KINDS: dict[str, pl.DataType] = {
    "integers": pl.Int64(),
    "large integers": pl.UInt64(),
    "numbers": pl.Float64(),
    "text": pl.String(),
    "booleans": pl.Boolean(),
    "times": pl.Datetime("us", "UTC"),
    "lists of integers": pl.List(pl.Int64()),
    "lists of text": pl.List(pl.String()),
}


def kind_of(dtype: pl.DataType) -> str | None:
    """The kind in KINDS that a dtype belongs to; None where features know none."""
    if isinstance(dtype, pl.List | pl.Array):
        inner = kind_of(dtype.inner)  # type: ignore[arg-type]
        return f"lists of {inner}" if inner in ("integers", "text") else None
    if dtype == pl.UInt64:
        return "large integers"
    if dtype.is_integer():
        return "integers"
    if dtype.is_float() or dtype.is_decimal():
        return "numbers"
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return "text"
    if dtype in (pl.Datetime, pl.Date):
        return "times"
    return "booleans" if dtype == pl.Boolean else None


def as_kind(column: pl.Series, kind: str) -> pl.Series:
    """The column with the dtype of its kind; kinds that hold the same values pass for each other.

    Integers are numbers, and numbers that are all whole are integers (a column with nulls comes so from pandas).

    Raises:
        FeatureError: it is of another kind, or a value does not fit; in one line with the first such row.
    """
    target, found = KINDS[kind], kind_of(column.dtype)
    if column.dtype == target:
        return column
    if column.dtype == pl.Null:
        return column.cast(target)
    if found == "numbers" and kind in ("integers", "large integers"):
        column = column.cast(pl.Float64).fill_nan(None)
        broken = ((column != column.round()) | (column.abs() >= 2.0**63)).fill_null(False)
        if broken.any():
            row = first(broken)
            raise FeatureError(f"column {column.name!r} holds integers, row {row} has {column[row]}: convert it")
    elif found == "booleans" and kind in ("integers", "numbers"):
        column = column.cast(pl.Int8)
    elif found == "times" and kind == "times":
        if column.dtype == pl.Date:
            column = column.cast(pl.Datetime("us"))
        if column.dtype.time_zone is None:  # type: ignore[attr-defined]
            column = column.dt.replace_time_zone("UTC")
        return column.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    elif found != kind and {found, kind} - {"integers", "large integers", "numbers"}:
        example = column.drop_nulls().head(1)
        value = f" ({example[0]!r})" if example.len() else ""
        raise FeatureError(f"column {column.name!r} should be {kind}, it is {found or column.dtype}{value}: convert it")
    cast = column.cast(target, strict=False)
    if cast.null_count() > column.null_count():
        row = first(cast.is_null() & column.is_not_null())
        raise FeatureError(f"column {column.name!r} should be {kind}, row {row} has {column[row]}: convert it")
    return cast


def first(found: pl.Series) -> int:
    """The first row of a boolean column that is true."""
    return int(found.arg_max() or 0)


def check_lists(values: pl.Series, length: int | None) -> None:
    """Raise FeatureError where lists come without a length, or a length without lists."""
    lists = isinstance(values.dtype, pl.List)
    if lists and length is None:
        raise FeatureError(f"column {values.name!r} holds lists: say how many places to keep, length=…")
    if length and not lists:
        raise FeatureError(f"column {values.name!r} holds no lists: leave length out, or make lists of it")


def flatten(lists: pl.Series, length: int) -> tuple[pl.Series, Tensor]:
    """The first `length` values of each list one after the other, and where each goes: flat positions in [B, L]."""
    heads = lists.list.head(length)
    counts = torch.from_numpy(heads.list.len().fill_null(0).cast(pl.Int64).to_numpy(writable=True))
    rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
    place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    flat = heads.filter(torch.gt(counts, 0).numpy()).explode()
    return flat, rows * length + place


def pad(values: Tensor, place: Tensor, rows: int, length: int) -> Tensor:
    """What was flattened as [B, L], zeros (padding) where a list ends."""
    padded = torch.zeros(rows * length, dtype=values.dtype, device=values.device)
    padded[place.to(values.device)] = values
    return padded.view(rows, length)
