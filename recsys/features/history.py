"""What a user did before: the last items before a row's time, never one after it nor at it.

The state is every positive of the fitted rows, by user and time. A row looks into it as of its own timestamp by binary
search, so rows of train see their own past, and rows after the cut, requests among them, what was known at the cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recsys.features.base import Device, Feature, FeatureError, first
from recsys.features.numeric import divide
from recsys.features.vocabulary import Vocabulary, categories
from recsys.schema import ITEM_ID, LABEL, NUM_RESERVED, PADDING, TIMESTAMP, USER_ID, Column, Role

SECOND = 1_000_000  # timestamps are in microseconds
AT_ONCE = 1 << 15  # places that a core keeps at hand, and that PyTorch starts no threads for


@dataclass(eq=False)
class History(Feature):
    """The last items of a row's user before the row's timestamp: the latest last, padding in front.

    Three outputs: `<name>`, item indices [B, L]; `<name>_gap_seconds`, float32 [B, L], how long before the row each
    was, 0 for padding; `<name>_length`, how many places are filled. A user without a past, or without an id, has
    padding alone.

    Args:
        of: the feature of the pipeline that encodes the items, so that both share an embedding table.
        length: L.
        user, timestamp: columns.
        positive: a column of 0/1; only rows with 1 enter histories. None: every row does.
    """

    of: str = ITEM_ID
    length: int = 50
    user: str = USER_ID
    timestamp: str = TIMESTAMP
    positive: str | None = LABEL
    events: Events = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.length < 1:
            raise FeatureError(f"length={self.length}: expected at least 1")
        self._seen: list[pl.DataFrame] = []
        self.events = Events.none()

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.user, self.timestamp)

    @property
    def fit_inputs(self) -> tuple[str, ...]:
        label = () if self.positive is None else (self.positive,)
        return (self.user, self.timestamp, *self._items.inputs, *label)

    def use(self, features: dict[str, Feature]) -> None:
        if self.of not in features:
            raise FeatureError(f"of={self.of}: expected a feature of the pipeline that encodes items")
        self._items = features[self.of]

    def observe(self, rows: pl.DataFrame) -> None:
        columns = list(dict.fromkeys((self.user, self.timestamp, *self._items.inputs)))
        if self.positive is not None:
            label = rows[self.positive]
            if label.null_count() or not label.is_in([0, 1]).all():
                raise FeatureError(f"column {self.positive!r} should say 1 for a positive and 0 for any other row")
            rows = rows.filter(label.cast(pl.Int8) == 1)
        refuse_missing(rows[self.user])
        times(rows[self.timestamp])
        self._seen.append(rows.select(columns))

    def finish(self) -> None:
        self.events = Events.none()
        self.extend()

    def forget(self) -> None:
        """Drop what was observed and is not yet among the events."""
        self._seen = []

    def extend(self) -> None:
        """Add what was observed since to the events."""
        seen, self._seen = self._seen, []
        if not seen:
            return
        rows = pl.concat(seen)
        item_idx = self._items.transform(rows, "cpu")[""]
        if item_idx.ndim != 1 or item_idx.dtype != torch.int64:
            raise FeatureError(f"of={self.of}: a history needs one index an item, as Category or Hashed give")
        fresh = pl.DataFrame(
            {
                "user": categories(rows[self.user]),
                "timestamp": times(rows[self.timestamp]),
                "item_idx": item_idx.numpy(),
            }
        )
        before = self.events.table()
        self.events = Events.of_table(fresh if before.is_empty() else pl.concat([before, fresh]))

    def transform(self, rows: pl.DataFrame, device: Device) -> dict[str, Tensor]:
        now = times(rows[self.timestamp])
        items, gap, length = self.events.before(categories(rows[self.user]), now, self.length, device)
        return {"": items, "_gap_seconds": gap, "_length": length}

    def outputs(self, name: str, role: Role) -> tuple[Column, ...]:
        size = self._items.outputs(self.of, role)[0].cardinality
        return (
            Column(name, role, "int64", size, self.length, table=self.of),
            Column(f"{name}_gap_seconds", role, "float32", None, self.length),
            Column(f"{name}_length", role, "int64"),
        )

    def tables(self) -> dict[str, pl.DataFrame]:
        return {"events": self.events.table()}

    def restore(self, state: dict[str, Any], tables: dict[str, pl.DataFrame]) -> None:
        self.events = Events.of_table(tables["events"])

    def trim(self) -> None:
        """Forget all but the last L events of each user: what rows after the cut can see."""
        self.events = Events.of_table(self.events.table().group_by("user", maintain_order=True).tail(self.length))


class Events:
    """Items of users over time, as CSR: row r belongs to users.ids[r], in the order of (timestamp, item)."""

    def __init__(self, users: Vocabulary, indptr: Tensor, timestamp: Tensor, item_idx: Tensor) -> None:
        self.users, self.indptr, self.timestamp, self.item_idx = users, indptr, timestamp, item_idx
        self._on: dict[str, tuple[Tensor, ...]] = {}

    @classmethod
    def none(cls) -> Events:
        """No event of anybody."""
        return cls.of_table(pl.DataFrame(schema={"user": pl.Int64, "timestamp": pl.Int64, "item_idx": pl.Int64}))

    @classmethod
    def of_table(cls, table: pl.DataFrame) -> Events:
        """user (integers or text), timestamp (int64 microseconds), item_idx: in any order."""
        table = table.sort("user", "timestamp", "item_idx")
        counts = table["user"].rle().struct.field("len").cast(pl.Int64).to_numpy()
        indptr = torch.zeros(len(counts) + 1, dtype=torch.int64)
        indptr[1:] = torch.from_numpy(counts.cumsum())
        columns = (torch.from_numpy(table[name].to_numpy(writable=True)) for name in ("timestamp", "item_idx"))
        return cls(Vocabulary(table["user"]), indptr, *columns)

    def table(self) -> pl.DataFrame:
        """The inverse of `of_table`, sorted."""
        user = self.users.ids.gather(np.repeat(np.arange(len(self.indptr) - 1), self.indptr.diff().numpy()))
        columns = {"timestamp": self.timestamp.numpy(), "item_idx": self.item_idx.numpy()}
        return pl.DataFrame({"user": user, **columns})

    def before(
        self, user: pl.Series, now: Tensor | np.ndarray, length: int, device: Device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The last `length` events of each user strictly before a time.

        Args:
            user: raw ids [B].
            now: int64 [B], microseconds.

        Returns: item indices int64 [B, L], latest last; seconds from each to `now`, float32 [B, L]; how many there are
            of them, int64 [B].
        """
        indptr, timestamp, item_idx = self._of(device)
        now = torch.as_tensor(now).to(device)
        row = self.users.encode(user).to(device) - NUM_RESERVED
        if not len(timestamp):
            items = torch.full((len(now), length), PADDING, device=now.device)
            return items, torch.zeros(items.shape, device=now.device), torch.zeros_like(now)
        start = indptr[row.clamp(min=0)]
        stop = torch.where(row < 0, start, indptr[row.clamp(min=0) + 1])
        low, high = start.clone(), stop  # the first event at `now` or later lies in [low, high]
        for _ in range(int(self.indptr.diff().max() + 1).bit_length()):
            middle = (low + high) >> 1
            earlier = (timestamp[middle.clamp(max=len(timestamp) - 1)] < now) & (low < high)
            low, high = torch.where(earlier, middle + 1, low), torch.where(earlier, high, middle)
        items = torch.empty(len(now), length, dtype=torch.int64, device=now.device)
        gaps = torch.empty(items.shape, device=now.device)
        steps = torch.arange(length, 0, -1, device=now.device)
        block = max(AT_ONCE // length if now.device.type == "cpu" else len(now), 1)
        for rows in range(0, len(now), block):
            part = slice(rows, rows + block)
            place = low[part, None] - steps
            empty = place < start[part, None]
            place.clamp_(min=0)
            torch.index_select(item_idx, 0, place.view(-1), out=items[part].view(-1))
            items[part].masked_fill_(empty, PADDING)
            gap = (now[part, None] - timestamp[place]).double()
            gaps[part] = divide(gap, SECOND).masked_fill_(empty, 0.0)
        return items, gaps, (low - start).clamp(max=length)

    def _of(self, device: Device) -> tuple[Tensor, ...]:
        """The tensors on a device, kept there."""
        name = str(device)
        if name not in self._on:
            self._on[name] = tuple(t.to(device) for t in (self.indptr, self.timestamp, self.item_idx))
        return self._on[name]


def times(column: pl.Series) -> np.ndarray:
    """Timestamps as int64 microseconds; integers are taken as they are.

    Raises:
        FeatureError: one is missing, or it is no time.
    """
    if not (column.dtype == pl.Datetime("us", "UTC") or column.dtype == pl.Int64):
        raise FeatureError(f"column {column.name!r} is {column.dtype}: a history needs times, or integer microseconds")
    refuse_missing(column)
    return column.to_physical().to_numpy(writable=True)


def refuse_missing(column: pl.Series) -> None:
    """Raise FeatureError for the first null."""
    if column.null_count():
        raise FeatureError(f"column {column.name!r} has no value in row {first(column.is_null())}: fill it or drop it")
