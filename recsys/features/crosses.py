"""Hashed columns and crosses of columns: any number of categories in a table of fixed size, without a vocabulary.

Nothing is fitted, so values that training never saw have a place too. Weinberger et al., "Feature hashing for large
scale multitask learning", ICML 2009; several hashes a value: Svenstrup et al., "Hash embeddings", NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import polars as pl
import torch
from torch import Tensor

from recsys.features.base import Device, Feature, FeatureError, check_lists, flatten, pad
from recsys.features.hashing import MAX_BUCKETS, buckets, hash_column, signs, xxh64_seeded
from recsys.features.vocabulary import categories
from recsys.schema import NUM_RESERVED, UNKNOWN, Column, Role


def cross(columns: list[pl.Series], seed: int, device: Device = "cpu") -> Tensor:
    """One hash of the values of several columns in their order, int64 [n] holding the bits of an unsigned number.

    The first column is hashed with the seed; each further one is hashed, and the eight bytes of that are hashed with
    what came before as the seed. So (a, b) and (b, a) differ, and one column alone is its plain hash.
    """
    combined = hash_column(columns[0], seed, device)
    for column in columns[1:]:
        combined = xxh64_seeded(hash_column(column, seed, device), combined)
    return combined


@dataclass(eq=False)
class Hashed(Feature):
    """A column, or a cross of several, hashed into buckets: 0 padding, 1 null, buckets from 2 on.

    Args:
        num_buckets: up to 2**31. Two of n values share a bucket with probability 1 / num_buckets.
        columns: crossed in this order, as [country, hour]; the column with the name of the feature if empty. In a
            cross a null is one value among the others.
        num_hashes: indices a value, each by a seed of its own into the same table. Two values collide in all of them
            with probability num_buckets ** -num_hashes.
        sign: also a float32 of +1 or -1 for each index, which makes collisions cancel on average.
        length: places of a list column; what is longer is cut.
        seed: of the first hash; the next one has seed + 1.
    """

    num_buckets: int
    columns: Sequence[str] = ()
    num_hashes: int = 1
    sign: bool = False
    length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):
            raise FeatureError(f"columns={self.columns}: expected a list, as [{self.columns}]")
        self.columns = tuple(self.columns)
        if not 1 <= self.num_buckets <= MAX_BUCKETS:
            raise FeatureError(f"num_buckets={self.num_buckets}: expected 1 to {MAX_BUCKETS}")
        if self.num_hashes < 1 or (self.length is not None and self.length < 1):
            raise FeatureError(f"num_hashes={self.num_hashes}, length={self.length}: expected at least 1")
        if not 0 <= self.seed <= 2**64 - self.num_hashes:
            raise FeatureError(f"seed={self.seed}: expected 0 to 2**64 - num_hashes")
        if self.length and (len(self.columns) > 1 or self.num_hashes > 1):
            raise FeatureError("a list column takes one hash and no cross: leave num_hashes out, or length")

    def named(self, name: str) -> Self:
        return replace(self, columns=self.columns or (name,))

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def observe(self, rows: pl.DataFrame) -> None:
        for name in self.inputs:
            check_lists(categories(rows[name]), self.length)

    def transform(self, rows: pl.DataFrame, device: Device) -> dict[str, Tensor]:
        columns = [categories(rows[name]) for name in self.inputs]
        if self.length:
            flat, place = flatten(columns[0], self.length)
            hashes = hash_column(flat, self.seed, device)
            shape = rows.height, self.length
            found = {"": pad(self._idx(hashes, flat), place, *shape)}
            return found | ({"_sign": pad(signs(hashes), place, *shape)} if self.sign else {})
        seeds = range(self.seed, self.seed + self.num_hashes)
        hashes = torch.stack([cross(columns, seed, device) for seed in seeds], 1)
        if self.num_hashes == 1:
            hashes = hashes[:, 0]
        found = {"": self._idx(hashes, columns[0] if len(columns) == 1 else None)}
        return found | ({"_sign": signs(hashes)} if self.sign else {})

    def _idx(self, hashes: Tensor, column: pl.Series | None) -> Tensor:
        idx = buckets(hashes, self.num_buckets).add_(NUM_RESERVED)
        if column is not None and column.null_count():
            idx[torch.from_numpy(column.is_null().to_numpy(writable=True)).to(idx.device)] = UNKNOWN
        return idx

    def outputs(self, name: str, role: Role) -> tuple[Column, ...]:
        width = self.length or (self.num_hashes if self.num_hashes > 1 else None)
        idx = Column(name, role, "int64", self.num_buckets + NUM_RESERVED, width)
        return (idx, Column(f"{name}_sign", role, "float32", None, width))[: 1 + self.sign]
