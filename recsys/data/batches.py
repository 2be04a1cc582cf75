"""Batches for training: resident on the device, a permutation an epoch, many optimiser steps a chunk.

Shapes in names: S optimiser steps of a chunk, B positives of a step, Z training pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch

from recsys.schema import Interactions


class PairBatches:
    """Every (user, item) pair once an epoch, in an order that belongs to (seed, epoch).

    A chunk is {"user_idx": int64 [S, B], "item_idx": int64 [S, B], "seed": int, "step": int}, where step is
    the global number of its first optimiser step. The last batch of an epoch may be shorter and is
    then a chunk of its own, [1, b]. What a chunk holds depends on (seed, epoch, its number) alone, so
    training may stop after any chunk and go on with `chunks(epoch, start)` as if it never had.

    Iterating yields the chunks from `epoch` and `start` on; `set_position` moves them.
    """

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
        for name, value in (("batch_size", batch_size), ("steps_per_chunk", steps_per_chunk)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        interactions = interactions.to(device)
        self.user_idx = interactions.row_idx()  # [Z]
        self.item_idx = interactions.item_idx  # [Z]
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_chunk = steps_per_chunk
        self.set_position(0)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch, the shorter last one included."""
        return -(-len(self.item_idx) // self.batch_size)

    def __len__(self) -> int:
        """Chunks an epoch."""
        full, rest = divmod(len(self.item_idx), self.batch_size)
        return -(-full // self.steps_per_chunk) + (rest > 0)

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Let the next iteration begin at chunk `start` of `epoch`."""
        self.epoch = epoch
        self.start = start

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.chunks(self.epoch, self.start)

    def chunks(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """The chunks of an epoch, from number `start` on."""
        order_Z = self._permutation(epoch)
        full = len(order_Z) // self.batch_size
        for number in range(start, len(self)):
            first = number * self.steps_per_chunk
            # Behind the full batches comes at most one chunk: the rest, as a single step.
            first, last = (first, min(first + self.steps_per_chunk, full)) if first < full else (full, full + 1)
            pairs = order_Z[first * self.batch_size : last * self.batch_size]
            yield {
                "user_idx": self.user_idx[pairs].view(last - first, -1),
                "item_idx": self.item_idx[pairs].view(last - first, -1),
                "seed": self.seed,
                "step": epoch * self.steps_per_epoch + first,
            }

    def _permutation(self, epoch: int) -> torch.Tensor:
        digest = hashlib.blake2b(repr(("epoch", self.seed, epoch)).encode(), digest_size=8).digest()
        device = self.item_idx.device
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.randperm(len(self.item_idx), generator=generator, device=device)
