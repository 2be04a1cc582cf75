"""How sure a measured figure is: a Poisson bootstrap over users.

In a Poisson bootstrap each replicate weighs each user by a Poisson(1) number instead of drawing users
with replacement (Chamandy et al. 2012, "Estimating uncertainty for massive data streams"). Here a weight
is a function of (seed, user_key, replicate) alone: it does not depend on the order of the users, the block
they come in or the device, and two models are compared on the same resamples.

A bootstrap over users says how far the figure of *these trained weights* would move with other users. It
does not hold the variance of training: repeat seeds and see `estimates` for that.

Shapes: Q queries (one row a user), M metrics, R replicates.
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import torch
from torch import Tensor

_BLOCK_WEIGHTS = 2**20  # weights made at a time: few enough to stay in cache on a CPU
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 of the same 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


def mix64(z: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014), a bijection of int64 that looks random.

    Integer products wrap alike on all devices, so the bits are the same everywhere.
    """
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _signed(_FIRST)
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _signed(_SECOND)
    return z ^ ((z >> 31) & (2**33 - 1))


def key_streams(seed: int, user_key: Tensor) -> Tensor:
    """One 64-bit stream a user: int64 like `user_key`, random-looking in seed and user alike."""
    start = mix64(torch.tensor(_signed(seed * _GOLDEN + 1), dtype=torch.int64))
    return mix64(user_key ^ int(start))


def poisson_weights(user_key: Tensor, num_replicates: int, *, seed: int = 0) -> Tensor:
    """Poisson(1) weights of each user in each replicate.

    Sixteen random bits choose a weight through the cumulative distribution rounded to 1 / 65536, so mean
    and variance are 1 within 1e-4.

    Args:
        user_key: int64 [Q].

    Returns:
        uint8 [Q, R].
    """
    streams = key_streams(seed, user_key)
    words = torch.arange(1, -(-num_replicates // 4) + 1, device=user_key.device) * _signed(_GOLDEN)
    bits_QR = mix64(streams[:, None] + words).view(torch.int16)[:, :num_replicates].int() + 2**15
    table = torch.from_numpy(_poisson_table()).to(user_key.device)
    return table.index_select(0, bits_QR.reshape(-1)).view(bits_QR.shape)


def _poisson_table() -> np.ndarray:
    """The weight that each of the 65536 values of 16 bits stands for, uint8 [65536]."""
    cumulative = np.cumsum([math.exp(-1) / math.factorial(n) for n in range(12)])
    return np.searchsorted(np.rint(cumulative * 2**16), np.arange(2**16), side="right").astype(np.uint8)


def replicate_sums(per_user_QM: Tensor, user_key: Tensor, *, num_replicates: int = 1000, seed: int = 0) -> Tensor:
    """Weighted sums of each metric, and of the weights, in each bootstrap replicate: float64 [M + 1, R].

    Sums of parts add up to the sums of the whole. Works in blocks of users: the memory does not grow with Q.
    """
    num_queries, num_metrics = per_user_QM.shape
    sums_MR = torch.zeros(num_metrics + 1, num_replicates, dtype=torch.float64, device=per_user_QM.device)
    step = max(1, _BLOCK_WEIGHTS // max(1, num_replicates))
    for start in range(0, num_queries, step):
        values = per_user_QM[start : start + step].double()
        values = torch.cat([values, values.new_ones(len(values), 1)], dim=1)
        weights_QR = poisson_weights(user_key[start : start + step], num_replicates, seed=seed)
        sums_MR += values.T @ weights_QR.double()
    return sums_MR


def percentile_ends(sums_MR: Tensor, confidence: float = 0.95) -> Tensor:
    """Percentile intervals of the means from `replicate_sums`: float64 [M, 2] (low, high).

    A replicate in which no user has weight (which happens with a handful of users) is left out.

    Raises:
        ValueError: a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    tail = (1 - confidence) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64, device=sums_MR.device)
    return torch.nanquantile(sums_MR[:-1] / sums_MR[-1], ends, dim=1).T


def intervals(
    per_user_QM: Tensor,
    user_key: Tensor,
    *,
    num_replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Tensor:
    """Percentile intervals of the means of the columns, float64 [M, 2] (low, high).

    Args:
        per_user_QM: float [Q, M], one row a query.
        user_key: int64 [Q]; rows of one user share their weight.

    Raises:
        ValueError: no rows, no replicates, or a confidence outside (0, 1).
    """
    if num_replicates < 1 or len(per_user_QM) == 0:
        raise ValueError(
            f"an interval needs users and replicates, got {len(per_user_QM)} users and num_replicates={num_replicates}"
        )
    sums_MR = replicate_sums(per_user_QM, user_key, num_replicates=num_replicates, seed=seed)
    return percentile_ends(sums_MR, confidence)


def key_columns(per_user: pl.DataFrame) -> list[str]:
    """The columns of `Evaluation.per_user` that tell one row from another."""
    return [name for name in ("user_key", "query_key") if name in per_user.columns]


def paired_interval(
    a: pl.DataFrame,
    b: pl.DataFrame,
    *,
    num_replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """The difference a - b of each shared metric between two runs, on the same resamples of users.

    Args:
        a, b: `Evaluation.per_user` of two runs over the same queries, in any order. With a query_key a user may have
            several rows, of one weight.

    Returns:
        {"recall@20": (difference, low, high), …}.

    Raises:
        ValueError: the runs were not measured on the same queries, or share no metric.
    """
    metrics = [name for name in a.columns if "@" in name and name in b.columns]
    if not metrics:
        raise ValueError(f"the two runs share no metric: {a.columns} and {b.columns}")
    keys = key_columns(a)
    if keys != key_columns(b):
        raise ValueError("a paired interval needs two runs by one protocol: one has several queries a user")
    a, b = (run.sort(keys, maintain_order=True) for run in (a, b))
    if not a.select(keys).equals(b.select(keys)):
        alone = sorted(set(a["user_key"].to_list()) ^ set(b["user_key"].to_list()))
        named = f"; user_key {alone[0]} is in one of them alone" if alone else ""
        raise ValueError(f"a paired interval needs two runs over the same users, got {len(a)} and {len(b)} rows{named}")
    difference = a.select(metrics).cast(pl.Float64).to_numpy() - b.select(metrics).cast(pl.Float64).to_numpy()
    ends = intervals(
        torch.from_numpy(difference),
        torch.from_numpy(a["user_key"].to_numpy().copy()),
        num_replicates=num_replicates,
        confidence=confidence,
        seed=seed,
    )
    means = difference.mean(0)
    return {
        name: (float(mean), low, high) for name, mean, (low, high) in zip(metrics, means, ends.tolist(), strict=True)
    }
