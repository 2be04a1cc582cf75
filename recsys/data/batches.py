"""Batches for training: resident on the device, a permutation an epoch, many optimiser steps a chunk.

Shapes in names: S optimiser steps of a chunk, B rows of a step, N rows of an epoch, Z training pairs, L inputs
of a sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from recsys.schema import PADDING, Interactions


class _Batches:
    """N rows once an epoch, in an order that belongs to (seed, epoch); what a row holds is said by `_taker`.

    A chunk holds tensors [S, B, ...] and "seed": int, "step": int, "samples": int, where step is the global number
    of its first optimiser step and samples the positives that it predicts. The last batch of an epoch may be
    shorter and is then a chunk of its own, [1, b]. What a chunk holds depends on (seed, epoch, its number)
    alone, so training may stop after any chunk and go on with `chunks(epoch, start)` as if it never had.

    Iterating yields the chunks from `epoch` and `start` on; `set_position` moves them.
    """

    def __init__(
        self, num_rows: int, batch_size: int, seed: int, steps_per_chunk: int, device: torch.device | str
    ) -> None:
        for name, value in (("batch_size", batch_size), ("steps_per_chunk", steps_per_chunk)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.num_rows = num_rows
        self.device = torch.device(device)
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
        generator = self._generator(epoch)
        order_N = torch.randperm(self.num_rows, generator=generator, device=self.device)
        take = self._taker(generator)
        full = self.num_rows // self.batch_size
        for number in range(start, len(self)):
            first = number * self.steps_per_chunk
            # Behind the full batches comes at most one chunk: the rest, as a single step.
            first, last = (first, min(first + self.steps_per_chunk, full)) if first < full else (full, full + 1)
            row_SB = order_N[first * self.batch_size : last * self.batch_size].view(last - first, -1)
            step = epoch * self.steps_per_epoch + first
            yield {**take(row_SB), "seed": self.seed, "step": step}

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
    ) -> None:
        """interactions: rows are user_idx; moved to the device whole.

        Raises:
            ValueError: no pairs, or a batch_size or steps_per_chunk below 1.
        """
        if len(interactions) == 0:
            raise ValueError("there are no training pairs to make batches of")
        super().__init__(len(interactions), batch_size, seed, steps_per_chunk, device)
        interactions = interactions.to(device)
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
    see `_Batches`."""

    def __init__(
        self,
        rows: dict[str, Tensor],
        batch_size: int,
        seed: int,
        *,
        steps_per_chunk: int = 32,
        device: torch.device | str = "cpu",
    ) -> None:
        """rows: tensors of equal length by name; moved to the device whole.

        Raises:
            ValueError: no rows, or a batch_size or steps_per_chunk below 1.
        """
        num_rows = min(map(len, rows.values()), default=0)
        if num_rows == 0:
            raise ValueError("there are no rows to make batches of")
        super().__init__(num_rows, batch_size, seed, steps_per_chunk, device)
        self.rows = {name: values.to(device) for name, values in rows.items()}

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
    ) -> None:
        """interactions: rows are user_idx; moved to the device whole. length: L.

        Raises:
            ValueError: no user with two items, or a length, batch_size or steps_per_chunk below 1.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        interactions = interactions.to(device)
        targets_U = (interactions.row_counts() - 1).clamp(min=0)
        windows_U = -(-targets_U // length)
        num_rows = int(windows_U.sum())
        if num_rows == 0:
            raise ValueError("no user has two items: there are no sequences to make batches of")
        super().__init__(num_rows, batch_size, seed, steps_per_chunk, device)
        self.item_idx = interactions.item_idx  # [Z]
        user_N = torch.repeat_interleave(windows_U, output_size=num_rows)
        first_N = (windows_U.cumsum(0) - windows_U)[user_N]
        behind_N = (torch.arange(num_rows, device=user_N.device) - first_N) * length  # targets of later windows
        stop_N = interactions.indptr[1:][user_N] - behind_N
        self.targets_N = (targets_U[user_N] - behind_N).clamp(max=length)
        self.start_N = stop_N - self.targets_N - 1
        self.column_L1 = torch.arange(length + 1, device=user_N.device)
        row_Z, time_Z = interactions.row_idx(), interactions.timestamp
        later_Z = row_Z[1:] != row_Z[:-1]
        if time_Z is not None:
            later_Z |= time_Z[1:] != time_Z[:-1]
        # Equal for pairs of one user and moment, and ascending.
        self.moment_Z = torch.nn.functional.pad(later_Z.cumsum(0), (1, 0)).double()

    def _taker(self, generator: torch.Generator) -> Callable[[Tensor], dict[str, Any]]:
        random_Z = torch.rand(len(self.item_idx), generator=generator, device=self.device, dtype=torch.float64)
        # Half a moment at most, so that no rounding leads into the next one.
        item_Z = self.item_idx[torch.argsort(self.moment_Z + random_Z / 2, stable=True)]

        def take(row_SB: Tensor) -> dict[str, Any]:
            targets_SB = self.targets_N[row_SB]
            outside_SBL1 = self.column_L1 > targets_SB[..., None]
            place_SBL1 = (self.start_N[row_SB][..., None] + self.column_L1).clamp(max=len(item_Z) - 1)
            sequence = item_Z[place_SBL1].masked_fill(outside_SBL1, PADDING)
            return {"sequence": sequence, "samples": int(targets_SB.sum())}

        return take
