"""Negative items drawn on the device, by a generator that belongs to (seed, step) and to nothing else.

Training draws through `generator_at`, so what step n sees does not depend on how training got there:
a resumed run draws what the uninterrupted one would have drawn.

Shapes in names: B batch, I items (reserved rows included), N draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from recsys.schema import NUM_RESERVED, Interactions

TRIES = 4  # draws of an item that is no positive, of which the first that is none is taken


def seed_of(seed: int, step: int) -> int:
    """A 63-bit seed for one optimiser step: manual_seed takes no more without changing sign."""
    digest = hashlib.blake2b(repr((seed, step)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_at(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one optimiser step: equal for equal (seed, step), unrelated otherwise."""
    return torch.Generator(device).manual_seed(seed_of(seed, step))


@contextmanager
def seeded(device: torch.device) -> Generator[Callable[[int], object]]:
    """Within it, what it gives seeds the generator that dropout draws from on the device, as `torch.manual_seed` does
    for all devices; afterwards that generator goes on as if nothing had been.

    `torch.manual_seed` formats a stack for each kind of device that is not in use, and keeps it: no call for a step.
    """
    on_gpu = device.type == "cuda"
    generator = torch.cuda.default_generators[device.index or 0] if on_gpu else torch.default_generator
    with torch.random.fork_rng([device] if on_gpu else []):
        yield generator.manual_seed


def uniform_log_q(num_items: int, device: torch.device | str = "cpu") -> Tensor:
    """Log probability of drawing each item uniformly, float32 [I]; -inf for padding and unknown."""
    log_q_I = torch.full((num_items,), -float(torch.tensor(num_items - NUM_RESERVED).log()), device=device)
    log_q_I[:NUM_RESERVED] = -torch.inf
    return log_q_I


def popularity_log_q(item_counts_I: Tensor, power: float = 1.0) -> Tensor:
    """Log probability proportional to count**power, float32 [I]; -inf for padding, unknown and unseen items.

    power=1 is how often an item turns up in a batch of positives, so it is also the logQ of in-batch
    negatives.

    Raises:
        ValueError: no real item has a count.
    """
    weight_I = item_counts_I.double().pow(power) * (item_counts_I > 0)
    weight_I[:NUM_RESERVED] = 0
    total = weight_I.sum()
    if not bool(total > 0):
        raise ValueError("no item has a positive: call observe(interactions) on the training set first")
    return (weight_I / total).log().float()


def draw_uniform(size: tuple[int, ...], num_items: int, generator: torch.Generator) -> Tensor:
    """Real items, each equally likely, with replacement: int64 of the given size."""
    return torch.randint(NUM_RESERVED, num_items, size, generator=generator, device=generator.device)


def cumulative(log_q_I: Tensor) -> Tensor:
    """What `draw_by` searches: float64 [I], rising to exactly 1 at the last item that can be drawn."""
    cdf_I = log_q_I.double().exp().cumsum(0)
    return cdf_I / cdf_I[-1]


def draw_by(cdf_I: Tensor, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Items by inverse CDF, with replacement: int64 of the given size. Items of probability 0 never."""
    # u < 1 and right=True: the first item whose cumulative probability exceeds u.
    u = torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64)
    return torch.searchsorted(cdf_I, u, right=True)


def draw_in_batch(item_idx_B: Tensor, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Items of the batch itself, each place equally likely: int64 of the given size."""
    place = torch.randint(item_idx_B.numel(), size, generator=generator, device=generator.device)
    return item_idx_B[place]


class Unobserved:
    """Items that are no positive of the user, uniform: of TRIES draws the first such one; should all be positives, one
    of them stands.

    Shapes in names: Z training pairs, T tries.
    """

    def __init__(self, interactions: Interactions) -> None:
        """interactions: rows are user_idx; draws are made on their device."""
        self.num_items = interactions.num_items
        # Every pair as one number, ascending.
        self.pair_Z = torch.sort(interactions.row_idx() * self.num_items + interactions.item_idx).values

    def observed(self, user_idx: Tensor, item_idx: Tensor) -> Tensor:
        """Whether each pair is a positive: bool, of the shape that the two broadcast to."""
        pair = user_idx * self.num_items + item_idx
        place = torch.searchsorted(self.pair_Z, pair).clamp_(max=len(self.pair_Z) - 1)
        return self.pair_Z[place] == pair

    def draw(self, user_idx_B: Tensor, num_negatives: int, generator: torch.Generator) -> Tensor:
        """Negatives of each user, int64 [B, N]."""
        drawn_TBN = draw_uniform((TRIES, len(user_idx_B), num_negatives), self.num_items, generator)
        free_TBN = ~self.observed(user_idx_B[:, None], drawn_TBN)
        first_1BN = free_TBN.byte().argmax(0, keepdim=True)
        return drawn_TBN.gather(0, first_1BN)[0]
