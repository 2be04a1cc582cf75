"""Batches for training: a permutation an epoch, many optimiser steps a chunk; resident on the device where they fit.

Shapes in names: S optimiser steps of a chunk, B rows of a step, N rows of an epoch, Z training pairs, L inputs
of a sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from recsys.data.prefetch import prefetch
from recsys.schema import NUM_RESERVED, PADDING, Interactions

_RESIDENT_SHARE = 0.5  # of a GPU's free memory: the rest is for the model, its optimisers and its steps


class _Batches:
    """N rows once an epoch, in an order that belongs to (seed, epoch); what a row holds is said by `_taker`.

    A chunk holds tensors [S, B, ...] and "seed": int, "step": int, "samples": int, where step is the global number
    of its first optimiser step and samples the positives that it predicts. The last batch of an epoch may be
    shorter and is then a chunk of its own, [1, b]. What a chunk holds depends on (seed, epoch, its number)
    alone, so training may stop after any chunk and go on with `chunks(epoch, start)` as if it never had.

    Rows lie on the device whole. Where they would take more than resident_bytes of it (None: half of what is free on a
    GPU, no limit on a CPU) they stay on the CPU, and chunks are gathered and copied by a thread, two ahead. Orders are
    drawn on the device in either case, so they do not depend on where rows lie; a CPU and a GPU draw different ones.

    Iterating yields the chunks from `epoch` and `start` on; `set_position` moves them.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int,
        steps_per_chunk: int,
        device: torch.device | str,
        streams: bool,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("steps_per_chunk", steps_per_chunk)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.num_rows = num_rows
        self.device = torch.device(device)
        self.streams = streams
        self.home = _home(device, streams)
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_chunk = steps_per_chunk
        self.set_position(0)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch, the shorter last one included."""
        return -(-self.num_rows // self.batch_size)

    def __len__(self) -> int:
        """Chunks an epoch."""
        full, rest = divmod(self.num_rows, self.batch_size)
        return -(-full // self.steps_per_chunk) + (rest > 0)

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Let the next iteration begin at chunk `start` of `epoch`."""
        self.epoch = epoch
        self.start = start

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.chunks(self.epoch, self.start)

    def chunks(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """The chunks of an epoch, from number `start` on."""
        made = self._made(epoch, start)
        return prefetch(made, self.device) if self.streams else made

    def _made(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        """The chunks where the rows lie."""
        generator = self._generator(epoch)
        order_N = self._order(generator)
        take = self._taker(generator)
        full = self.num_rows // self.batch_size
        for number in range(start, len(self)):
            first = number * self.steps_per_chunk
            # Behind the full batches comes at most one chunk: the rest, as a single step.
            first, last = (first, min(first + self.steps_per_chunk, full)) if first < full else (full, full + 1)
            row_SB = order_N[first * self.batch_size : last * self.batch_size].view(last - first, -1)
            step = epoch * self.steps_per_epoch + first
            yield {**take(row_SB), "seed": self.seed, "step": step}

    def _order(self, generator: torch.Generator) -> Tensor:
        """The rows of an epoch in their order, int64 [N]."""
        return torch.randperm(self.num_rows, generator=generator, device=self.device).to(self.home)

    def _taker(self, generator: torch.Generator) -> Callable[[Tensor], dict[str, Any]]:
        """What makes a chunk, but for seed and step, of rows int64 [S, B]; it may draw for the epoch beforehand."""
        raise NotImplementedError

    def _generator(self, epoch: int) -> torch.Generator:
        digest = hashlib.blake2b(repr(("epoch", self.seed, epoch)).encode(), digest_size=8).digest()
        return torch.Generator(self.device).manual_seed(int.from_bytes(digest, "little") >> 1)


class PairBatches(_Batches):
    """Every (user, item) pair once an epoch: {"user_idx": int64 [S, B], "item_idx": int64 [S, B], "samples": S * B,
    "seed", "step"}; see `_Batches`."""

    def __init__(
        self,
        interactions: Interactions,
        batch_size: int,
        seed: int,
        *,
        steps_per_chunk: int = 32,
        device: torch.device | str = "cpu",
        resident_bytes: int | None = None,
    ) -> None:
        """interactions: rows are user_idx.

        Raises:
            ValueError: no pairs, or a batch_size or steps_per_chunk below 1.
        """
        if len(interactions) == 0:
            raise ValueError("there are no training pairs to make batches of")
        streams = _streams(16 * len(interactions), device, resident_bytes)
        super().__init__(len(interactions), batch_size, seed, steps_per_chunk, device, streams)
        interactions = interactions.to(self.home)
        self.user_idx = interactions.row_idx()  # [Z]
        self.item_idx = interactions.item_idx  # [Z]

    def _taker(self, generator: torch.Generator) -> Callable[[Tensor], dict[str, Any]]:
        return lambda row_SB: {
            "user_idx": self.user_idx[row_SB],
            "item_idx": self.item_idx[row_SB],
            "samples": row_SB.numel(),
        }


class RowBatches(_Batches):
    """Every row of a table of tensors once an epoch: {"rows": {name: [S, B, ...]}, "samples": S * B, "seed", "step"};
    see `_Batches`.

    With a group, rows of one index of it stand side by side, in lists of list_length rows and a shorter one. Lists and
    their order are drawn anew each epoch. Batches stay of one size, so their borders cut some lists in two. Who padding
    and unknown are is not known: such a row is a list of its own.
    """

    def __init__(
        self,
        rows: dict[str, Tensor],
        batch_size: int,
        seed: int,
        *,
        group: str | None = None,
        list_length: int | None = None,
        steps_per_chunk: int = 32,
        device: torch.device | str = "cpu",
        resident_bytes: int | None = None,
    ) -> None:
        """rows: tensors of equal length by name. group: one of them, int64 [N].
        list_length: rows of a group that stand together; None: all.

        Raises:
            ValueError: no rows, no such group, or a batch_size, list_length or steps_per_chunk below 1.
        """
        num_rows = min(map(len, rows.values()), default=0)
        if num_rows == 0:
            raise ValueError("there are no rows to make batches of")
        streams = _streams(sum(values.nbytes for values in rows.values()), device, resident_bytes)
        super().__init__(num_rows, batch_size, seed, steps_per_chunk, device, streams)
        self.rows = {name: values.to(self.home) for name, values in rows.items()}
        self.group_N: Tensor | None = None
        if group is not None:
            if group not in rows or rows[group].dim() != 1:
                raise ValueError(f"group={group}: the rows have no such column of one index")
            if list_length is not None and list_length < 1:
                raise ValueError(f"list_length must be at least 1, got {list_length}")
            idx_N, place_N = self.rows[group], torch.arange(num_rows, device=self.home)
            self.group_N = torch.where(idx_N < NUM_RESERVED, -1 - place_N, idx_N).unique(return_inverse=True)[1]
            # Of rows sorted by group, whatever the order within groups: the list that each place belongs to.
            rows_G = self.group_N.bincount()
            within_N = place_N - (rows_G.cumsum(0) - rows_G).repeat_interleave(rows_G)
            self.list_N = (within_N % (list_length or num_rows) == 0).cumsum(0) - 1

    def _order(self, generator: torch.Generator) -> Tensor:
        order_N = super()._order(generator)
        if self.group_N is None:
            return order_N
        order_N = order_N[self.group_N[order_N].argsort(stable=True)]
        drawn = torch.randperm(int(self.list_N[-1]) + 1, generator=generator, device=self.device)
        return order_N[drawn.to(self.home)[self.list_N].argsort(stable=True)]

    def _taker(self, generator: torch.Generator) -> Callable[[Tensor], dict[str, Any]]:
        return lambda row_SB: {
            "rows": {name: values[row_SB] for name, values in self.rows.items()},
            "samples": row_SB.numel(),
        }


class SequenceBatches(_Batches):
    """Users' items in order of time, in windows: {"sequence": int64 [S, B, L + 1], "samples", "seed", "step"}.

    A window's items stand from column 0 on, padding behind them. Windows are counted from a user's last item
    backwards and share one item with the next, so that an epoch holds every item but a user's first exactly
    once as a target, an item with one before it in its window. Users of a single item give no target and are
    left out.

    Items of one moment, and all of a user's items where no timestamps are known, come in an order drawn anew
    each epoch: that order means nothing, and must not be learnt.
    """

    def __init__(
        self,
        interactions: Interactions,
        batch_size: int,
        seed: int,
        *,
        length: int,
        steps_per_chunk: int = 32,
        device: torch.device | str = "cpu",
        resident_bytes: int | None = None,
    ) -> None:
        """interactions: rows are user_idx. length: L.

        Raises:
            ValueError: no user with two items, or a length, batch_size or steps_per_chunk below 1.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        streams = _streams(64 * len(interactions), device, resident_bytes)
        interactions = interactions.to(_home(device, streams))
        targets_U = (interactions.row_counts() - 1).clamp(min=0)
        windows_U = -(-targets_U // length)
        num_rows = int(windows_U.sum())
        if num_rows == 0:
            raise ValueError("no user has two items: there are no sequences to make batches of")
        super().__init__(num_rows, batch_size, seed, steps_per_chunk, device, streams)
        self.item_idx = interactions.item_idx  # [Z]
        user_N = torch.repeat_interleave(windows_U, output_size=num_rows)
        first_N = (windows_U.cumsum(0) - windows_U)[user_N]
        behind_N = (torch.arange(num_rows, device=user_N.device) - first_N) * length  # targets of later windows
        stop_N = interactions.indptr[1:][user_N] - behind_N
        self.targets_N = (targets_U[user_N] - behind_N).clamp(max=length)
        self.start_N = stop_N - self.targets_N - 1
        self.column_L1 = torch.arange(length + 1, device=user_N.device)
        self.moment_Z = _moments(interactions)

    def _taker(self, generator: torch.Generator) -> Callable[[Tensor], dict[str, Any]]:
        item_Z = self.item_idx[_within(self.moment_Z, generator)]

        def take(row_SB: Tensor) -> dict[str, Any]:
            targets_SB = self.targets_N[row_SB]
            outside_SBL1 = self.column_L1 > targets_SB[..., None]
            place_SBL1 = (self.start_N[row_SB][..., None] + self.column_L1).clamp(max=len(item_Z) - 1)
            sequence = item_Z[place_SBL1].masked_fill(outside_SBL1, PADDING)
            return {"sequence": sequence, "samples": int(targets_SB.sum())}

        return take


class HistoryBatches(_Batches):
    """Every (user, item) pair once an epoch, each with what else its user liked: {"user_idx": int64 [S, B],
    "item_idx": int64 [S, B], "history": int64 [S, B, L], "samples": S * B, "seed", "step"}, and where times are known
    "timestamp": int64 [S, B], microseconds; see `_Batches`.

    The items of a history stand from column 0 on, padding behind them:
        past: the last L of before the pair's moment, in order of time, items of one moment in an order drawn anew each
            epoch; none for a user's first.
        others: up to L of all but the pair's own, earlier or later, drawn anew each epoch and in no order.
        None: the past where there are timestamps, else the others.
    """

    def __init__(
        self,
        interactions: Interactions,
        batch_size: int,
        seed: int,
        *,
        length: int,
        kind: Literal["past", "others"] | None = None,
        steps_per_chunk: int = 32,
        device: torch.device | str = "cpu",
        resident_bytes: int | None = None,
    ) -> None:
        """interactions: rows are user_idx. length: L.

        Raises:
            ValueError: no pairs, no timestamps where the past is asked for, an unknown kind, or a length, batch_size or
                steps_per_chunk below 1.
        """
        if len(interactions) == 0:
            raise ValueError("there are no training pairs to make batches of")
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        kind = kind or ("others" if interactions.timestamp is None else "past")
        if kind not in ("past", "others"):
            raise ValueError(f"kind={kind}: expected past or others")
        if kind == "past" and interactions.timestamp is None:
            raise ValueError("the log has no timestamps, so nobody has a past: take the others")
        streams = _streams(96 * len(interactions), device, resident_bytes)
        super().__init__(len(interactions), batch_size, seed, steps_per_chunk, device, streams)
        interactions = interactions.to(self.home)
        self.kind = kind
        self.user_idx = interactions.row_idx()  # [Z]
        self.item_idx = interactions.item_idx  # [Z]
        self.time_Z = interactions.timestamp  # [Z]
        self.first_Z = interactions.indptr[self.user_idx]  # where the user's items begin
        self.count_Z = interactions.row_counts()[self.user_idx]  # how many they are
        self.moment_Z = _moments(interactions)
        # Where the pair's moment begins: all before it is past.
        self.stop_Z = torch.searchsorted(self.moment_Z, self.moment_Z)
        most = self.stop_Z - self.first_Z if kind == "past" else self.count_Z - 1
        self.column_L = torch.arange(min(length, max(int(most.max()), 1)), device=self.user_idx.device)

    def _taker(self, generator: torch.Generator) -> Callable[[Tensor], dict[str, Any]]:
        if self.kind == "past":
            item_Z = self.item_idx[_within(self.moment_Z, generator)]
        else:
            order_Z = _within(self.user_idx.double(), generator)
            item_Z = self.item_idx[order_Z]
            # A history is what comes behind the pair's own item, from the user's last on to the first again.
            place_Z = torch.empty_like(order_Z).scatter_(0, order_Z, torch.arange(len(order_Z), device=order_Z.device))

        def take(row_SB: Tensor) -> dict[str, Any]:
            first_SB1 = self.first_Z[row_SB][..., None]
            if self.kind == "past":
                stop_SB1 = self.stop_Z[row_SB][..., None]
                start_SB1 = torch.maximum(first_SB1, stop_SB1 - len(self.column_L))
                place_SBL = start_SB1 + self.column_L
                outside_SBL = place_SBL >= stop_SB1
            else:
                count_SB1 = self.count_Z[row_SB][..., None]
                own_SB1 = place_Z[row_SB][..., None] - first_SB1
                place_SBL = first_SB1 + (own_SB1 + 1 + self.column_L) % count_SB1
                outside_SBL = self.column_L >= count_SB1 - 1
            history = item_Z[place_SBL.clamp(max=len(item_Z) - 1)].masked_fill(outside_SBL, PADDING)
            pairs = {"user_idx": self.user_idx[row_SB], "item_idx": self.item_idx[row_SB]}
            if self.time_Z is not None:
                pairs["timestamp"] = self.time_Z[row_SB]
            return {**pairs, "history": history, "samples": row_SB.numel()}

        return take


def _streams(num_bytes: int, device: torch.device | str, resident_bytes: int | None) -> bool:
    """Whether rows of so many bytes, what an epoch derives from them included, are too large for the device."""
    if resident_bytes is None and torch.device(device).type == "cuda":
        resident_bytes = int(_RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0])
    return resident_bytes is not None and num_bytes > resident_bytes


def _home(device: torch.device | str, streams: bool) -> torch.device:
    return torch.device("cpu" if streams else device)


def _moments(interactions: Interactions) -> Tensor:
    """Equal for pairs of one user and moment, ascending, float64 [Z]; without timestamps all of a user's are one."""
    row_Z, time_Z = interactions.row_idx(), interactions.timestamp
    later_Z = row_Z[1:] != row_Z[:-1]
    if time_Z is not None:
        later_Z |= time_Z[1:] != time_Z[:-1]
    return torch.nn.functional.pad(later_Z.cumsum(0), (1, 0)).double()


def _within(group_Z: Tensor, generator: torch.Generator) -> Tensor:
    """An order of pairs, int64 [Z], that is random within equal groups and keeps groups, whole numbers, ascending."""
    random_Z = torch.rand(len(group_Z), generator=generator, device=generator.device, dtype=torch.float64)
    half_Z = random_Z.to(group_Z.device) / 2  # of a step at most: no rounding leads to the next group
    return torch.argsort(group_Z + half_Z, stable=True)
