"""Raw ids to indices and back, and the 64-bit numbers that stand for raw ids.

Index 0 is padding, 1 is "unknown", real ids start at 2 in ascending order of the raw id, so that the same
set of ids always gives the same indices.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recsys.schema import NUM_RESERVED, UNKNOWN


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


class Vocabulary:
    """The ids that were known when it was made, all integers or all text."""

    def __init__(self, ids: pl.Series | Sequence[int] | Sequence[str] | np.ndarray) -> None:
        """
        Args:
            ids: in any order, repeats allowed.

        Raises:
            ValueError: an id is null, or ids are neither integers nor text.
        """
        series = _plain(pl.Series("id", ids))
        if series.null_count():
            raise ValueError("a vocabulary cannot hold a null id")
        self.ids = series.unique().sort()

    def __len__(self) -> int:
        """Rows of an embedding table: the ids and the reserved indices."""
        return self.ids.len() + NUM_RESERVED

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.ids.equals(other.ids)

    def encode(self, ids: pl.Series | Sequence[int] | Sequence[str] | np.ndarray) -> Tensor:
        """Indices of raw ids, int64 [n]; 1 for every id that is not known, null among them.

        Raises:
            ValueError: integers given where ids are text, or the reverse: "7" and 7 are different ids.
        """
        series = pl.Series("id", ids)
        if series.is_empty() or series.dtype == pl.Null:
            return torch.full((series.len(),), UNKNOWN, dtype=torch.int64)
        series = _plain(series)
        if series.dtype != self.ids.dtype and not self.ids.is_empty():
            raise ValueError(f"ids here are {_kind(self.ids)}, got {_kind(series)}: {series[0]!r}")
        known = self.ids.to_frame().with_row_index("idx", offset=NUM_RESERVED)
        found = series.to_frame().join(known, on="id", how="left", maintain_order="left")["idx"]
        return torch.from_numpy(found.fill_null(UNKNOWN).cast(pl.Int64).to_numpy(writable=True))

    def decode(self, idx: Tensor | np.ndarray) -> pl.Series:
        """Raw ids of indices [n]; null for padding and unknown.

        Raises:
            ValueError: an index is outside the vocabulary.
        """
        values = np.asarray(idx.cpu() if isinstance(idx, Tensor) else idx, dtype=np.int64)
        if values.size and (values.min() < 0 or values.max() >= len(self)):
            raise ValueError(f"indices must lie in [0, {len(self)}), found [{values.min()}, {values.max()}]")
        position = pl.Series(np.where(values < NUM_RESERVED, -1, values - NUM_RESERVED))
        return self.ids.gather(position.set(position < 0, None)).rename("id")

    def save(self, path: str | os.PathLike[str]) -> None:
        """One Parquet column `id`; row r has index r + 2. Written beside and renamed."""
        beside = Path(f"{path}.part")
        self.ids.to_frame("id").write_parquet(beside)
        os.replace(beside, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """The inverse of `save`."""
        return cls(pl.read_parquet(Path(path))["id"])


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
