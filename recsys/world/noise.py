"""Counter-based randomness: every number is a pure function of its key, never of the order of drawing.

A key is an int64 built from a seed, a stream and any number of counters by splitmix64 (Steele, Lea and
Flood 2014), in wrapping int64 arithmetic that CPU and GPU share. Uniforms have 52 bits and a half, so that
neither 0 nor 1 comes out.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(constant: int) -> int:
    return (constant + (1 << 63)) % (1 << 64) - (1 << 63)


GOLDEN = _signed(0x9E3779B97F4A7C15)
FIRST = _signed(0xBF58476D1CE4E5B9)
SECOND = _signed(0x94D049BB133111EB)


def mix(x: Tensor) -> Tensor:
    """The splitmix64 finaliser, a bijection of int64. Shifts are logical: the sign bits are masked off."""
    x = (x >> 30).bitwise_and_((1 << 34) - 1).bitwise_xor_(x).mul_(FIRST)
    x = (x >> 27).bitwise_and_((1 << 37) - 1).bitwise_xor_(x).mul_(SECOND)
    return (x >> 31).bitwise_and_((1 << 33) - 1).bitwise_xor_(x)


def key(*parts: Tensor | int) -> Tensor:
    """An int64 key of all parts in their order; tensors broadcast."""
    return extend(torch.tensor(0), *parts)


def extend(start: Tensor, *parts: Tensor | int) -> Tensor:
    """The key `start`, made longer by further parts: extend(key(a), b) == key(a, b)."""
    for part in parts:
        step = (part + 1) * GOLDEN
        start = mix(start + (_signed(step) if isinstance(step, int) else step))
    return start


def uniform(keys: Tensor) -> Tensor:
    """float64 in the open interval (0, 1), of the shape of the keys."""
    return ((keys >> 12) & ((1 << 52) - 1)).double().add_(0.5).mul_(2.0**-52)


def normal(keys: Tensor) -> Tensor:
    """Standard normal float64 by inversion."""
    return torch.special.ndtri(uniform(keys))


def categorical(keys: Tensor, shares: tuple[float, ...]) -> Tensor:
    """int64 classes with the given shares (they are normalised)."""
    edges = torch.tensor(shares, dtype=torch.float64, device=keys.device).cumsum(0)
    return torch.searchsorted(edges[:-1] / edges[-1], uniform(keys), right=True)


def poisson(rate: Tensor, keys: Tensor, limit: int) -> Tensor:
    """Poisson counts (int64) by inversion, cut at `limit`."""
    u = uniform(keys)
    term = torch.exp(-rate)
    reached, count = term.clone(), torch.zeros_like(keys)
    for n in range(1, limit + 1):
        above = u > reached
        if not bool(above.any()):
            break
        count += above
        term = term * rate / n
        reached += term
    return count


ROUNDS = 6


def _rounds(x: Tensor, bits: int, keys: list[int]) -> Tensor:
    mask = (1 << bits) - 1
    left, right = x >> bits, x & mask
    for round_key in keys:
        left, right = right, left ^ (mix(right + round_key) & mask)
    # The halves leave swapped: then the same rounds in reverse order are the inverse.
    return (right << bits) | left


def half_bits(size: int) -> int:
    """Bits of one half of the network that permutes 0 .. size - 1."""
    return max(1, ((size - 1).bit_length() + 1) // 2)


def _walk(x: Tensor, size: int, keys: list[int]) -> Tensor:
    bits = half_bits(size)
    x = _rounds(x, bits, keys)
    outside = x >= size
    while bool(outside.any()):
        x = torch.where(outside, _rounds(x, bits, keys), x)
        outside = x >= size
    return x


def round_keys(seed: int) -> list[int]:
    """The keys of the rounds of `permute`, first round first."""
    return key(seed, torch.arange(ROUNDS)).tolist()


def permute(x: Tensor, size: int, seed: int) -> Tensor:
    """A random-looking bijection of 0 .. size - 1: a Feistel network over the next power of four, walked
    along its cycle until it is back inside (Black and Rogaway 2002). Needs no table."""
    return _walk(x, size, round_keys(seed))


def unpermute(x: Tensor, size: int, seed: int) -> Tensor:
    """The inverse of `permute`."""
    return _walk(x, size, round_keys(seed)[::-1])
