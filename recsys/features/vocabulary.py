"""Raw ids and other categories to indices and back, and the 64-bit numbers that stand for raw ids.

Index 0 is padding, 1 is "unknown" or "other", real ids start at 2 in ascending order of the raw id, so that the same
set of ids always gives the same indices.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recsys import atomic
from recsys.features.base import Device, Feature, FeatureError, as_kind, check_lists, flatten, kind_of, pad
from recsys.schema import NUM_RESERVED, UNKNOWN, Column, Role


def id_keys(ids: pl.Series) -> np.ndarray:
    """A number for every id that depends on the id alone, int64 [n].

    An integer is its own key; text has the first 8 bytes of its BLAKE2b digest.
    """
    if ids.dtype.is_integer():
        return ids.cast(pl.Int64).to_numpy()
    distinct = ids.unique()
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in distinct)
    keys = pl.DataFrame({"id": distinct, "key": np.frombuffer(digests, dtype="<i8")})
    return ids.to_frame("id").join(keys, on="id", how="left", maintain_order="left")["key"].to_numpy()


def mix64(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """The splitmix64 finaliser of int64 or uint64 `values` advanced by seed + 1 increments, uint64 [n].

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. A bijection of
    `values` for each seed.
    """
    start = np.uint64((seed + 1) * 0x9E3779B97F4A7C15 & (2**64 - 1))
    with np.errstate(over="ignore"):
        mixed = values.view(np.uint64) + start
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


# A few are looked up one by one, and while there are fewer than one for so many known, a binary search beats a join.
FEW, MANY = 16, 4


class Vocabulary:
    """The ids that were known when it was made, all integers or all text."""

    def __init__(self, ids: pl.Series | Sequence[int] | Sequence[str] | np.ndarray, null: bool = False) -> None:
        """
        Args:
            ids: in any order, repeats allowed.
            null: whether a missing value is a value of its own; it then has the last index.

        Raises:
            ValueError: an id is null, or ids are neither integers nor text.
        """
        series = _plain(pl.Series("id", ids))
        if series.null_count():
            raise ValueError("a vocabulary cannot hold a null id")
        self.ids = series.unique().sort()
        self.null = null

    def __len__(self) -> int:
        """Rows of an embedding table: the ids and the reserved indices."""
        return self.ids.len() + NUM_RESERVED + self.null

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.ids.equals(other.ids) and self.null == other.null

    def encode(self, ids: pl.Series | Sequence[int] | Sequence[str] | np.ndarray) -> Tensor:
        """Indices of raw ids, int64 [n]; 1 for every id that is not known, and for null where it is no value.

        Raises:
            ValueError: integers given where ids are text, or the reverse: "7" and 7 are different ids.
        """
        series = pl.Series("id", ids)
        missing = len(self) - 1 if self.null else UNKNOWN
        if series.is_empty() or series.dtype == pl.Null:
            return torch.full((series.len(),), missing, dtype=torch.int64)
        series = _plain(series)
        if series.dtype != self.ids.dtype and not self.ids.is_empty():
            raise ValueError(f"ids here are {_kind(self.ids)}, got {_kind(series)}: {series[0]!r}")
        if series.len() <= FEW or self.ids.is_empty():
            return torch.tensor([missing if value is None else self._index(value) for value in series])
        if series.len() * MANY < self.ids.len():
            place = self.ids.search_sorted(series.fill_null(self.ids[0]))
            there = self.ids.gather(place.clip(0, self.ids.len() - 1)) == series
            found = (place + NUM_RESERVED).zip_with(there.fill_null(False), pl.Series([UNKNOWN], dtype=place.dtype))
        else:
            known = self.ids.to_frame().with_row_index("idx", offset=NUM_RESERVED)
            found = series.to_frame().join(known, on="id", how="left", maintain_order="left")["idx"]
        idx = torch.from_numpy(found.fill_null(UNKNOWN).cast(pl.Int64).to_numpy(writable=True))
        if self.null and series.null_count():
            idx[torch.from_numpy(series.is_null().to_numpy(writable=True))] = missing
        return idx

    def _index(self, value: int | str) -> int:
        place = bisect_left(self.ids, value)
        return place + NUM_RESERVED if place < self.ids.len() and self.ids[place] == value else UNKNOWN

    def decode(self, idx: Tensor | np.ndarray) -> pl.Series:
        """Raw ids of indices [n]; null for padding, unknown and null itself.

        Raises:
            ValueError: an index is outside the vocabulary.
        """
        values = np.asarray(idx.cpu() if isinstance(idx, Tensor) else idx, dtype=np.int64)
        if values.size and (values.min() < 0 or values.max() >= len(self)):
            raise ValueError(f"indices must lie in [0, {len(self)}), found [{values.min()}, {values.max()}]")
        none = (values < NUM_RESERVED) | (values - NUM_RESERVED >= self.ids.len())
        position = pl.Series(np.where(none, -1, values - NUM_RESERVED))
        return self.ids.gather(position.set(position < 0, None)).rename("id")

    def save(self, path: str | os.PathLike[str]) -> None:
        """`table` as Parquet. Written beside and renamed."""
        atomic.write(Path(path), self.table().write_parquet)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """The inverse of `save`.

        Raises:
            ValueError: the file is missing or damaged.
            OSError: it cannot be read.
        """
        try:
            return cls.of_table(pl.read_parquet(Path(path)))
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: copy it again, or train the run again") from None
        except (pl.exceptions.ComputeError, pl.exceptions.ColumnNotFoundError) as error:
            what = str(error).splitlines()[0]
            raise ValueError(f"{path} is no table of ids ({what}): copy it again, or train the run again") from error

    def table(self) -> pl.DataFrame:
        """One column `id`; row r has index r + 2. A null at the end is a value of its own."""
        return pl.concat([self.ids, pl.Series([None] * self.null, dtype=self.ids.dtype)]).to_frame("id")

    @classmethod
    def of_table(cls, table: pl.DataFrame) -> Vocabulary:
        """The inverse of `table`."""
        return cls(table["id"].drop_nulls(), null=table["id"].null_count() > 0)


def _plain(ids: pl.Series) -> pl.Series:
    if ids.dtype.is_integer():
        return ids.cast(pl.Int64)
    if ids.dtype in (pl.String, pl.Categorical, pl.Enum):
        return ids.cast(pl.String)
    if ids.is_empty():
        return ids.cast(pl.Int64)
    raise ValueError(f"ids must be integers or text, got {ids.dtype}")


def _kind(ids: pl.Series) -> str:
    return "integers" if ids.dtype.is_integer() else "text"


class Counts:
    """How often each value occurs, gathered from chunks: exact, in the memory of the distinct values."""

    def __init__(self) -> None:
        self._parts: list[pl.DataFrame] = []
        self._held = 0  # rows of the last merge

    def add(self, values: pl.Series) -> None:
        """Count a chunk."""
        counts = values.alias("value").value_counts(name="count")
        self._parts.append(counts.with_columns(pl.col("count").cast(pl.Int64)))
        if sum(part.height for part in self._parts) > 2 * self._held + 1_000_000:
            self._parts = [self.table()]
            self._held = self._parts[0].height

    def table(self) -> pl.DataFrame:
        """value, count: in ascending order of the value, null last."""
        if not self._parts:
            return pl.DataFrame(schema={"value": pl.Null, "count": pl.Int64})
        whole = pl.concat(self._parts).group_by("value").agg(pl.col("count").sum())
        return whole.sort("value", nulls_last=True)


@dataclass(eq=False)
class Category(Feature):
    """A column of categories as indices: 0 padding, 1 "other", the values of train from 2 on, null a value of its own.

    Values are integers, text or booleans, one a row or a list of them (tags), which is padded to `length`. What train
    did not hold, or what was too rare, is "other".

    Args:
        column: its name; that of the feature if None.
        min_count: values seen less often in train are "other".
        max_size: keep at most so many values, the most frequent; of equals the smaller values.
        length: places of a list column; what is longer is cut. A missing list is an empty one; a null in it is "other".
        one_hot: a float32 row with a 1 at the index instead of the index (at all of them, for lists).
    """

    column: str | None = None
    min_count: int = 1
    max_size: int | None = None
    length: int | None = None
    one_hot: bool = False
    vocabulary: Vocabulary = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("min_count", "max_size", "length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise FeatureError(f"{name}={value}: expected at least 1")
        self._counts = Counts()

    @property
    def inputs(self) -> tuple[str, ...]:
        return (str(self.column),)

    def _values(self, rows: pl.DataFrame) -> pl.Series:
        return categories(rows[str(self.column)])

    def observe(self, rows: pl.DataFrame) -> None:
        values = self._values(rows)
        check_lists(values, self.length)
        self._counts.add(values.explode().drop_nulls() if self.length else values)

    def finish(self) -> None:
        counts = self._counts.table()
        self._counts = Counts()
        if counts["value"].drop_nulls().is_empty():
            raise FeatureError(f"column {self.column!r} holds nothing but nulls in the rows to fit on: leave it out")
        often = counts.filter(pl.col("count") >= self.min_count)
        if self.max_size is not None:
            often = often.sort("count", descending=True, maintain_order=True).head(self.max_size)
        self.vocabulary = Vocabulary(often["value"].drop_nulls(), null=often["value"].null_count() > 0)

    def transform(self, rows: pl.DataFrame, device: Device) -> dict[str, Tensor]:
        values = self._values(rows)
        if self.length:
            flat, place = flatten(values, self.length)
            idx = pad(self.vocabulary.encode(flat), place, rows.height, self.length)
        else:
            idx = self.vocabulary.encode(values)
        idx = idx.to(device)
        if not self.one_hot:
            return {"": idx}
        hot = torch.zeros(rows.height, len(self.vocabulary), device=idx.device)
        hot.scatter_(1, idx.view(rows.height, self.length or 1), 1.0)
        if self.length:
            hot[:, 0] = 0  # a place without a value is no category
        return {"": hot}

    def outputs(self, name: str, role: Role) -> tuple[Column, ...]:
        size = len(self.vocabulary)
        if self.one_hot:
            return (Column(name, role, "float32", None, size),)
        return (Column(name, role, "int64", size, self.length),)

    def tables(self) -> dict[str, pl.DataFrame]:
        return {"vocabulary": self.vocabulary.table()}

    def restore(self, state: dict[str, Any], tables: dict[str, pl.DataFrame]) -> None:
        self.vocabulary = Vocabulary.of_table(tables["vocabulary"])


def categories(values: pl.Series) -> pl.Series:
    """A column as categories: integers, text, or lists of either. Booleans and whole numbers become integers.

    Raises:
        FeatureError: it is of another type, or a number is not whole.
    """
    if values.dtype == pl.Boolean:
        return values.cast(pl.Int64)
    if values.dtype.is_float() or values.dtype == pl.UInt64:
        return as_kind(values, "integers")
    if kind_of(values.dtype) in ("times", "numbers", None) and values.dtype != pl.Null:
        raise FeatureError(
            f"column {values.name!r} is {kind_of(values.dtype) or values.dtype}: categories are integers, text or "
            "booleans; derive one, or use Buckets"
        )
    return values
