"""Columns of a log as arrays; what cannot be is refused in one line that names column and row (from 0).

Shapes: R rows.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import nearest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def column(rows: pl.DataFrame, name: str) -> pl.Series:
    """A column without nulls. Raises ValueError: it is missing, or null somewhere."""
    if name not in rows.columns:
        raise ValueError(f"the log has no column {name}: {nearest(name, rows.columns)}")
    series = rows[name]
    if series.null_count():
        raise ValueError(
            f"column {name} is null in row {int(series.is_null().arg_max() or 0)}: drop the row or fill it"
        )
    return series


def numbers(rows: pl.DataFrame, name: str) -> Floats:
    """float64 [R]. Raises ValueError: no numbers, or one that is not finite."""
    series = column(rows, name)
    if not (series.dtype.is_numeric() or series.dtype == pl.Boolean):
        raise ValueError(f"column {name} holds {series.dtype}, no numbers: cast it")
    value_R = series.cast(pl.Float64).to_numpy()
    refuse(value_R, ~np.isfinite(value_R), name, "is not finite: drop the row or fill it")
    return value_R


def probabilities(rows: pl.DataFrame, name: str) -> Floats:
    """float64 [R]. Raises ValueError: one outside (0, 1]."""
    value_R = numbers(rows, name)
    refuse(value_R, (value_R <= 0) | (value_R > 1), name, "is not in (0, 1]: give a probability of what was logged")
    return value_R


def codes(rows: pl.DataFrame, name: str) -> Ints:
    """Values by number, from 0."""
    return np.unique(column(rows, name).to_numpy(), return_inverse=True)[1].astype(np.int64)


def refuse(value_R: Floats | Ints, wrong_R: NDArray[np.bool_], name: str, why: str) -> None:
    """Raises ValueError for the first row that is wrong."""
    if wrong_R.any():
        row = int(wrong_R.argmax())
        raise ValueError(f"column {name}: {value_R[row]:g} in row {row} {why}")
