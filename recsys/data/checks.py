"""Raw columns to typed ones, or one line that names file, column and first bad row and says what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate

import polars as pl

UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}  # microseconds in one (ns are divided)
UTC = pl.Datetime("us", "UTC")


class DataError(ValueError):
    """What is wrong with the data, in one line."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """ ", did you mean 'x'?" or nothing."""
    names = {known_name.lower(): known_name for known_name in known}
    close = get_close_matches(name.lower(), names, n=1, cutoff=cutoff)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def one_line(error: BaseException) -> str:
    """The first line of what a library said."""
    said = str(error).strip()
    return said.splitlines()[0].rstrip(":.") if said else type(error).__name__


@dataclass(frozen=True)
class Rows:
    """Raw rows of one or several files, in order, and how many each file gave."""

    frame: pl.DataFrame
    files: list[str]
    heights: list[int]
    text: bool = False  # from a format without types: numbers may have come as text
    numbers: pl.Series | None = None  # the row's own number in the file, where it is not the position

    def at(self, row: int, column: str) -> str:
        """Where a row stands: file, column and 1-based data row."""
        if self.numbers is not None:
            return f"{self.files[0]}: column {column!r}, line {self.numbers[row]}"
        for file, height, end in zip(self.files, self.heights, accumulate(self.heights), strict=True):
            if row < end:
                return f"{file}: column {column!r}, row {row - end + height + 1}"
        raise IndexError(row)

    def refuse(self, bad: pl.Series, column: str, what: str, remedy: str) -> None:
        """Raise at the first row where `bad` holds. `{}` in `what` stands for the value."""
        position = bad.arg_max() if bad.len() else None
        if position is not None and bad[position]:
            value = repr(self.frame[column][position])
            shown = value if len(value) <= 60 else value[:57] + "..."
            raise DataError(f"{self.at(position, column)}: {what.replace('{}', shown)}; {remedy}")

    def wrong_type(self, column: str, wanted: str) -> DataError:
        """The error for a column whose type cannot serve."""
        return DataError(
            f"{self.files[0]}: column {column!r} is {self.frame[column].dtype}, wanted {wanted}; "
            "name another column or convert it first"
        )


def ids(rows: Rows, column: str) -> pl.Series:
    """Ids as Int64 or String.

    Text stays text, also where it reads like a number, except in formats without types: there a column
    whose every value is an integer in its plain form ("7", not "07") is integers.

    Raises:
        DataError: a null, empty, negative or too large id, or a type that is neither integer nor text.
    """
    raw = rows.frame[column]
    null = raw.is_null()
    if raw.dtype == pl.String:
        null |= (raw == "").fill_null(False)
    if raw.dtype.is_float():
        null |= raw.is_nan().fill_null(False)
    rows.refuse(null, column, "the id is missing", "fill it or drop the row")
    if raw.dtype in (pl.String, pl.Categorical, pl.Enum):
        text = raw.cast(pl.String)
        if not rows.text:
            return text
        number = text.cast(pl.Int64, strict=False)
        if not (number.cast(pl.String) == text).fill_null(False).all():
            decimal = text.str.contains(r"^[+-]?\d*\.\d*$")
            if text.cast(pl.Float64, strict=False).null_count() == 0 and decimal.any():
                rows.refuse(decimal, column, "id {} is a decimal number", "ids must be integers or text")
            return text
        raw = number
    if not raw.dtype.is_integer():
        raise rows.wrong_type(column, "integers or text")
    if raw.dtype == pl.UInt64:
        rows.refuse(raw > 2**63 - 1, column, "id {} exceeds 64 signed bits", "give ids as text")
    rows.refuse(raw < 0, column, "id {} is negative", "drop the row, or give ids as text")
    return raw.cast(pl.Int64)


def plain(column: pl.Series) -> pl.Series:
    """Text of a format without types as integers or decimals, where every value is one."""
    if column.dtype == pl.String:
        for dtype in (pl.Int64, pl.Float64):
            number = column.cast(dtype, strict=False)
            if number.null_count() == column.null_count() and number.null_count() < column.len():
                return number
    return column


def labels(rows: Rows, column: str, threshold: float | None) -> pl.Series:
    """Labels as Int8: 1 is positive. With a threshold, value >= threshold; without, 0/1 or booleans.

    Raises:
        DataError: a missing value, text, or values other than 0 and 1 without a threshold.
    """
    raw = rows.frame[column]
    rows.refuse(raw.is_null(), column, "the label is missing", "fill it or drop the row")
    if raw.dtype == pl.Boolean:
        raw = raw.cast(pl.Int8)
    elif raw.dtype == pl.String:
        words = raw.str.strip_chars().str.to_lowercase()
        number = words.replace({"true": "1", "false": "0"}).cast(pl.Float64, strict=False)
        rows.refuse(number.is_null(), column, "{} is not a number", "correct it or drop the row")
        raw = number
    elif not raw.dtype.is_numeric():
        raise rows.wrong_type(column, "numbers or booleans")
    if raw.dtype.is_float():
        rows.refuse(raw.is_nan(), column, "the label is not a number", "fill it or drop the row")
    if threshold is None:
        remedy = "say from which value a row is positive (label_threshold=4, say)"
        rows.refuse((raw != 0) & (raw != 1), column, "label {} is neither 0 nor 1", remedy)
        return raw.cast(pl.Int8)
    return (raw >= threshold).cast(pl.Int8)


def times(rows: Rows, column: str, unit: str | None = None, pattern: str | None = None) -> pl.Series:
    """Timestamps as UTC microseconds. Times without a zone are taken as UTC.

    Datetimes, dates, ISO 8601 text, text or integers in a stated `pattern` (as "%d/%m/%Y %H:%M"), and epochs
    in a stated `unit` (s, ms, us, ns) or, unstated, in the unit that puts the largest before the year 5138.

    Raises:
        DataError: a missing or unparsable time, an unknown unit.
    """
    if unit is not None and unit not in UNITS:
        raise DataError(f"timestamp_unit={unit} is unknown{nearest(unit, UNITS)}; it is one of {', '.join(UNITS)}")
    raw = rows.frame[column]
    missing = raw.is_null()
    if raw.dtype.is_float():
        missing |= ~raw.is_finite().fill_null(False)
    rows.refuse(missing, column, "the time is missing", "fill it or drop the row")
    if isinstance(raw.dtype, pl.Datetime):
        zoned = raw.dt.convert_time_zone("UTC") if raw.dtype.time_zone else raw.dt.replace_time_zone("UTC")
        return zoned.dt.cast_time_unit("us")
    if raw.dtype == pl.Date:
        return raw.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if pattern is not None and (raw.dtype == pl.String or raw.dtype.is_integer()):
        parsed = _parse(raw.cast(pl.String).str.strip_chars(), pattern)
        rows.refuse(parsed.is_null(), column, f"time {{}} does not fit {pattern!r}", "correct timestamp_format")
        return parsed
    if raw.dtype == pl.String:
        number = raw.str.strip_chars().cast(pl.Int64, strict=False)
        if number.null_count():
            number = raw.str.strip_chars().cast(pl.Float64, strict=False)
        if number.null_count():
            parsed = _iso(raw)
            bad = (parsed if parsed.null_count() <= number.null_count() else number).is_null()
            remedy = "correct it, or say timestamp_format=… (as %d/%m/%Y)"
            rows.refuse(bad, column, "time {} cannot be parsed", remedy)
            return parsed
        raw = number
    if not raw.dtype.is_numeric():
        raise rows.wrong_type(column, "a datetime, a date, ISO text or an epoch")
    return _epoch(rows, column, raw, unit)


def _epoch(rows: Rows, column: str, raw: pl.Series, unit: str | None) -> pl.Series:
    largest = float(raw.cast(pl.Float64).abs().max() or 0.0)  # type: ignore[arg-type]
    if unit is None:
        written = raw.is_between(19000101, 21001231) & (raw % 100).is_between(1, 31)
        if raw.len() and (written & (raw // 100 % 100).is_between(1, 12)).all():
            remedy = "say timestamp_format=%Y%m%d, or timestamp_unit=s where it is an epoch"
            rows.refuse(written, column, "{} reads like a date", remedy)
        unit = "s" if largest < 1e11 else "ms" if largest < 1e14 else "us" if largest < 1e17 else "ns"
    micros = raw // 1000 if unit == "ns" else raw * UNITS[unit] if raw.dtype.is_float() else None
    if micros is None:
        micros = raw.cast(pl.Int64) * UNITS[unit]
    # Beyond the year 9999 a time is a wrong unit rather than a time.
    far = raw.cast(pl.Float64).abs() * UNITS[unit] / (1000 if unit == "ns" else 1) > 253402300799e6
    rows.refuse(far, column, f"time {{}} in {unit} lies beyond the year 9999", "correct it, or state timestamp_unit")
    rounded = micros.round() if micros.dtype.is_float() else micros
    return rounded.cast(pl.Int64).cast(UTC)


def _parse(text: pl.Series, pattern: str) -> pl.Series:
    if not any(part in pattern for part in ("%H", "%I", "%T", "%s")):
        return text.str.to_date(pattern, strict=False).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    parsed = text.str.to_datetime(pattern, strict=False, time_unit="us")
    return parsed if parsed.dtype == UTC else parsed.dt.replace_time_zone("UTC")


def _iso(text: pl.Series) -> pl.Series:
    """ISO 8601 dates and times, space or T between, offset or Z or none; null where it does not parse."""
    clean = text.str.strip_chars().str.replace("T", " ", literal=True).str.replace(r"\s*Z$", "+00:00")
    parsed = pl.repeat(None, text.len(), dtype=UTC, eager=True)
    for pattern in ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%z", "%Y-%m-%d", "%Y-%m-%d %H:%M"):
        if parsed.null_count() == 0:
            break
        parsed = parsed.zip_with(parsed.is_not_null(), _parse(clean, pattern))
    return parsed
