"""What data and models share: index conventions, column names, Schema, Interactions and Queries.

Shapes in names: B batch, U users, I items, Q queries, Z stored pairs (non-zeros), K cut-off.
`num_users` and `num_items` count the two reserved rows, so they are the sizes of embedding tables and
of score rows: index 0 is padding, index 1 is "unknown", real ids start at 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_array

PADDING = 0
UNKNOWN = 1
NUM_RESERVED = 2

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
LABEL = "label"

Role = Literal["user", "item", "timestamp", "label", "user_feature", "item_feature", "context"]


@dataclass(frozen=True)
class Column:
    """One column of a log, or one input of a model: its name, what it is for, its dtype, how many indices it takes,
    how many values stand in each row (None: one), and the column whose indices these are, where another's."""

    name: str
    role: Role
    dtype: str
    cardinality: int | None = None
    width: int | None = None
    table: str | None = None


@dataclass(frozen=True)
class Schema:
    """The columns a model may rely on. Hashable, comparable, and JSON in both directions."""

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, num_users: int, num_items: int) -> Schema:
        """The least a retriever needs: two id columns. Both counts include the reserved indices 0 and 1."""
        if num_users <= NUM_RESERVED or num_items <= NUM_RESERVED:
            raise ValueError(
                f"a schema needs at least one user and one item beside the {NUM_RESERVED} reserved indices, "
                f"got num_users={num_users}, num_items={num_items}"
            )
        return cls(
            (
                Column(USER_ID, "user", "int64", num_users),
                Column(ITEM_ID, "item", "int64", num_items),
            )
        )

    def _cardinality(self, role: Role) -> int:
        for column in self.columns:
            if column.role == role and column.cardinality is not None:
                return column.cardinality
        raise ValueError(f"the schema has no {role} column with a cardinality: {self.columns}")

    @property
    def num_users(self) -> int:
        """Rows of a user table, reserved rows included."""
        return self._cardinality("user")

    @property
    def num_items(self) -> int:
        """Rows of an item table, reserved rows included."""
        return self._cardinality("item")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, for JSON and checkpoints."""
        return {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Schema:
        """The inverse of `to_dict`."""
        return cls(tuple(Column(**column) for column in values["columns"]))


@dataclass(frozen=True, eq=False)
class Interactions:
    """Unique (row, item) pairs as CSR: row r holds item_idx[indptr[r]:indptr[r + 1]].

    Rows are users when the whole training set is meant (row = user_idx), or the queries of a batch.
    Within a row items are in chronological order where a timestamp is known, else ascending.
    """

    indptr: Tensor  # int64 [rows + 1]
    item_idx: Tensor  # int64 [Z]
    num_items: int
    timestamp: Tensor | None = None  # int64 [Z], microseconds since 1970 UTC

    @classmethod
    def from_pairs(
        cls,
        row: Tensor,
        item_idx: Tensor,
        *,
        num_rows: int,
        num_items: int,
        timestamp: Tensor | None = None,
    ) -> Interactions:
        """Sort pairs into CSR; of equal (row, item) pairs the earliest stays.

        Args:
            row, item_idx: int64 [n], in any order, 0 <= row < num_rows, 0 <= item_idx < num_items.
            timestamp: int64 [n] or None.

        Raises:
            ValueError: an index lies outside its range; the message says which.
        """
        for name, values, bound in (("row", row, num_rows), ("item_idx", item_idx, num_items)):
            if values.numel() and (int(values.min()) < 0 or int(values.max()) >= bound):
                raise ValueError(f"{name} must lie in [0, {bound}), found [{int(values.min())}, {int(values.max())}]")
        row, item_idx = row.long(), item_idx.long()
        order = torch.argsort(item_idx, stable=True)
        if timestamp is not None:
            order = order[torch.argsort(timestamp[order], stable=True)]
        # Rows last: after the sorts above each row comes out by (timestamp, item).
        order = order[torch.argsort(row[order], stable=True)]
        row, item_idx = row[order], item_idx[order]
        timestamp = None if timestamp is None else timestamp[order].long()
        key = row * num_items + item_idx
        sorted_key, position = torch.sort(key, stable=True)
        first = torch.ones_like(sorted_key, dtype=torch.bool)
        first[1:] = sorted_key[1:] != sorted_key[:-1]
        if not bool(first.all()):
            keep = torch.sort(position[first]).values
            row, item_idx = row[keep], item_idx[keep]
            timestamp = None if timestamp is None else timestamp[keep]
        indptr = torch.zeros(num_rows + 1, dtype=torch.int64, device=row.device)
        indptr[1:] = torch.cumsum(torch.bincount(row, minlength=num_rows), 0)
        return cls(indptr, item_idx, num_items, timestamp)

    @classmethod
    def empty(cls, num_rows: int, num_items: int) -> Interactions:
        """No pairs at all."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(torch.zeros(num_rows + 1, dtype=torch.int64), none, num_items)

    @property
    def num_rows(self) -> int:
        return self.indptr.numel() - 1

    def __len__(self) -> int:
        return self.item_idx.numel()

    @property
    def device(self) -> torch.device:
        return self.item_idx.device

    def row_counts(self) -> Tensor:
        """Pairs in each row, int64 [rows]."""
        return self.indptr[1:] - self.indptr[:-1]

    def item_counts(self) -> Tensor:
        """Pairs of each item, int64 [I]."""
        return torch.bincount(self.item_idx, minlength=self.num_items)

    def row_idx(self) -> Tensor:
        """The row of every stored pair, int64 [Z]."""
        rows = torch.arange(self.num_rows, device=self.device)
        return torch.repeat_interleave(rows, self.row_counts(), output_size=len(self))

    def rows(self, start: int, stop: int) -> Interactions:
        """Rows start..stop as views, without copying the pairs."""
        begin, end = int(self.indptr[start]), int(self.indptr[stop])
        timestamp = None if self.timestamp is None else self.timestamp[begin:end]
        return Interactions(self.indptr[start : stop + 1] - begin, self.item_idx[begin:end], self.num_items, timestamp)

    def select(self, row: Tensor, length: Tensor | None = None) -> Interactions:
        """The given rows, in the given order, repeats allowed. row: int64 [B]; length: int64 [B], of each row only so
        many pairs from its start."""
        counts = self.row_counts()[row] if length is None else length
        indptr = torch.zeros(row.numel() + 1, dtype=torch.int64, device=self.device)
        indptr[1:] = torch.cumsum(counts, 0)
        total = int(indptr[-1])
        shift = torch.repeat_interleave(self.indptr[row] - indptr[:-1], counts, output_size=total)
        source = torch.arange(total, device=self.device) + shift
        timestamp = None if self.timestamp is None else self.timestamp[source]
        return Interactions(indptr, self.item_idx[source], self.num_items, timestamp)

    def transpose(self) -> Interactions:
        """Items as rows, rows as items: each item's rows in ascending order."""
        return Interactions.from_pairs(self.item_idx, self.row_idx(), num_rows=self.num_items, num_items=self.num_rows)

    def to(self, device: torch.device | str) -> Interactions:
        """The same pairs on another device."""
        timestamp = None if self.timestamp is None else self.timestamp.to(device)
        return Interactions(self.indptr.to(device), self.item_idx.to(device), self.num_items, timestamp)

    def to_scipy(self) -> csr_array:
        """A float32 scipy.sparse CSR of ones, shape [rows, I]."""
        import numpy as np
        from scipy.sparse import csr_array

        ones = np.ones(len(self), dtype=np.float32)
        return csr_array(
            (ones, self.item_idx.cpu().numpy(), self.indptr.cpu().numpy()),
            shape=(self.num_rows, self.num_items),
        )


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Rows that are beginnings of others: row q is the first length[q] pairs of row[q] of `pairs`. They are laid out a
    block at a time, as together they can take far more room than what they are parts of."""

    pairs: Interactions
    row: Tensor  # int64 [Q]
    length: Tensor  # int64 [Q]

    def rows(self, start: int, stop: int) -> Interactions:
        """Rows start..stop, laid out."""
        return self.pairs.select(self.row[start:stop], self.length[start:stop])

    def select(self, row: Tensor) -> Prefixes:
        """The given rows, in the given order, repeats allowed. row: int64 [B]."""
        return Prefixes(self.pairs, self.row[row], self.length[row])

    def to(self, device: torch.device | str) -> Prefixes:
        """The same rows on another device."""
        return Prefixes(self.pairs.to(device), self.row.to(device), self.length.to(device))


# What a retriever is given to score:
# {"user_idx": int64 [B], "history": Interactions with B rows, "user_key": int64 [B]}.
UserBatch = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Queries:
    """Whom to rank for and what counts: one row a user, as cut off at one moment; or several, each as of a moment of
    its own.

    history: positives before that moment; they are masked and leave the relevant set.
    relevant: positives from it on that count, among the items known by the cut.
    num_cold_relevant: how many further positives are items first seen after the cut. They can never
        be hit and still count in |R|.
    user_key: a number that belongs to the raw user id, so that ties and bootstrap weights follow the
        person and not the row.
    warm: whether the user had a positive in train.
    candidates: which items were known by the cut.
    query_key: a number that belongs to the query, where a user may have several; None where users have one.
    lists: the items that are ranked for each query, its relevant ones among them; None: all candidates.
    """

    user_idx: Tensor  # int64 [Q]; UNKNOWN for users first seen after the cut
    user_key: Tensor  # int64 [Q]
    history: Interactions | Prefixes  # [Q rows]; of blocks and single queries always Interactions
    relevant: Interactions  # [Q rows]
    num_cold_relevant: Tensor  # int64 [Q]
    warm: Tensor  # bool [Q]
    candidates: Tensor  # bool [I]; never the reserved indices
    query_key: Tensor | None = None  # int64 [Q]
    lists: Interactions | None = None  # [Q rows]

    def __len__(self) -> int:
        return self.user_idx.numel()

    @property
    def num_items(self) -> int:
        return self.candidates.numel()

    @property
    def seen(self) -> Interactions:
        """The history, laid out."""
        return self.history if isinstance(self.history, Interactions) else self.history.rows(0, len(self))

    def rows(self, start: int, stop: int) -> Queries:
        """Queries start..stop, as views but for histories that are prefixes."""
        return Queries(
            self.user_idx[start:stop],
            self.user_key[start:stop],
            self.history.rows(start, stop),
            self.relevant.rows(start, stop),
            self.num_cold_relevant[start:stop],
            self.warm[start:stop],
            self.candidates,
            None if self.query_key is None else self.query_key[start:stop],
            None if self.lists is None else self.lists.rows(start, stop),
        )

    def about(self, items: Tensor) -> Queries:
        """The queries with a relevant item among `items`, bool [I]; for them nothing else is relevant."""
        chosen = items[self.relevant.item_idx]
        row, item_idx = self.relevant.row_idx()[chosen], self.relevant.item_idx[chosen]
        asked, place = row.unique(return_inverse=True)
        relevant = Interactions.from_pairs(place, item_idx, num_rows=len(asked), num_items=self.num_items)
        return replace(self.select(asked), relevant=relevant, num_cold_relevant=torch.zeros_like(asked))

    def select(self, row: Tensor) -> Queries:
        """The given queries, in the given order. row: int64 [B]."""
        return Queries(
            self.user_idx[row],
            self.user_key[row],
            self.history.select(row),
            self.relevant.select(row),
            self.num_cold_relevant[row],
            self.warm[row],
            self.candidates,
            None if self.query_key is None else self.query_key[row],
            None if self.lists is None else self.lists.select(row),
        )

    def blocks(self, size: int) -> Iterator[Queries]:
        """Consecutive blocks of at most `size` queries."""
        for start in range(0, len(self), size):
            yield self.rows(start, min(start + size, len(self)))

    def to(self, device: torch.device | str) -> Queries:
        """The same queries on another device."""
        return Queries(
            self.user_idx.to(device),
            self.user_key.to(device),
            self.history.to(device),
            self.relevant.to(device),
            self.num_cold_relevant.to(device),
            self.warm.to(device),
            self.candidates.to(device),
            None if self.query_key is None else self.query_key.to(device),
            None if self.lists is None else self.lists.to(device),
        )

    def batch(self) -> UserBatch:
        """What a retriever's `score` takes."""
        return {"user_idx": self.user_idx, "history": self.seen, "user_key": self.user_key}
