"""Ranking metrics as pure functions of hits.

Shapes: B users, N length of the ranked lists, K how many cut-offs. `hits_BN[b, r]` says whether the item
at rank r + 1 of user b is relevant; `num_relevant_B` is |R|, the relevant items that could not be ranked
included. Every function takes `k`, one cut-off a column of its result, and returns float64 [B, K]. A cut-off
beyond N counts the missing ranks as misses. A user with |R| = 0 has no value: leave such users out before.

With H the hits in the top K:

    precision  H / K
    recall     H / |R|
    hit        1 where H > 0
    ndcg       DCG / ideal DCG, gain 1 / log2(rank + 1), the ideal over min(K, |R|) ranks
               (Järvelin and Kekäläinen 2002)
    map        sum over the ranks r of the hits of precision@r, / min(K, |R|)
    mrr        1 / rank of the first hit, 0 without one
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

Metric = Callable[[Tensor, Tensor, Sequence[int]], Tensor]  # metric(hits_BN, num_relevant_B, k) -> float64 [B, K]


def precision(hits_BN: Tensor, num_relevant_B: Tensor, k: Sequence[int]) -> Tensor:
    """Share of the K recommended that are relevant, H / K."""
    return sums_within(hits_BN.double(), k) / _row(k, hits_BN)


def recall(hits_BN: Tensor, num_relevant_B: Tensor, k: Sequence[int]) -> Tensor:
    """Share of the relevant that are recommended, H / |R|."""
    return sums_within(hits_BN.double(), k) / num_relevant_B[:, None]


def hit(hits_BN: Tensor, num_relevant_B: Tensor, k: Sequence[int]) -> Tensor:
    """1 where any of the K recommended is relevant."""
    return (sums_within(hits_BN.double(), k) > 0).double()


def ndcg(hits_BN: Tensor, num_relevant_B: Tensor, k: Sequence[int]) -> Tensor:
    """Discounted cumulative gain over the best one possible at K."""
    device = hits_BN.device
    dcg_BK = sums_within(hits_BN / torch.log2(_ranks(hits_BN) + 1), k)
    discount = 1 / torch.log2(torch.arange(2, max(k) + 2, dtype=torch.float64, device=device))
    ideal = torch.cat([discount.new_zeros(1), discount.cumsum(0)])
    return dcg_BK / ideal[_attainable(num_relevant_B, k)]


def average_precision(hits_BN: Tensor, num_relevant_B: Tensor, k: Sequence[int]) -> Tensor:
    """Precision at the ranks of the hits, averaged over min(K, |R|)."""
    hits = hits_BN.double()
    return sums_within(hits.cumsum(1) / _ranks(hits_BN) * hits, k) / _attainable(num_relevant_B, k)


def reciprocal_rank(hits_BN: Tensor, num_relevant_B: Tensor, k: Sequence[int]) -> Tensor:
    """1 / rank of the first hit, 0 where none of the K recommended is relevant."""
    first_BN = hits_BN & (hits_BN.cumsum(1) == 1)
    return sums_within(first_BN / _ranks(hits_BN), k)


METRICS: dict[str, Metric] = {
    "precision": precision,
    "recall": recall,
    "hit": hit,
    "ndcg": ndcg,
    "map": average_precision,
    "mrr": reciprocal_rank,
}


def with_own(own: Mapping[str, Metric] | None) -> dict[str, Metric]:
    """`METRICS` and others beside them.

    Raises:
        ValueError: a name is taken, or cannot stand before "@20".
    """
    for name in own or {}:
        if name in METRICS or not name.isidentifier():
            what = "is one of ours" if name in METRICS else "is no name of letters, digits and _"
            raise ValueError(f"metrics: {name!r} {what}: choose another")
    return METRICS | dict(own or {})


def measure(
    hits_BN: Tensor, num_relevant_B: Tensor, k: Sequence[int], metrics: Mapping[str, Metric] = METRICS
) -> Tensor:
    """All metrics at every K: float64 [B, len(metrics) * K], in the order of `names(k, metrics)`.

    Raises:
        ValueError: one of them returns another shape, or a number that is not finite.
    """
    found = []
    for name, metric in metrics.items():
        values_BK = metric(hits_BN, num_relevant_B, k).double()
        if values_BK.shape != (len(hits_BN), len(k)):
            shape = list(values_BK.shape)
            raise ValueError(f"metric {name} returned the shape {shape}, expected [{len(hits_BN)}, {len(k)}]")
        if not bool(values_BK.isfinite().all()):
            raise ValueError(f"metric {name} is NaN or infinite for some user: give every user a number")
        found.append(values_BK)
    return torch.cat(found, dim=1)


def names(k: Sequence[int], metrics: Iterable[str] = METRICS) -> list[str]:
    """ "recall@20" and the like, the columns of `measure`."""
    return [f"{metric}@{cut}" for metric in metrics for cut in k]


def _ranks(hits_BN: Tensor) -> Tensor:
    return torch.arange(1, hits_BN.shape[1] + 1, dtype=torch.float64, device=hits_BN.device)


def _row(k: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(list(k), dtype=torch.int64, device=like.device)


def sums_within(values_BN: Tensor, k: Sequence[int]) -> Tensor:
    """The sum of the first K ranks, for every K: one product with a matrix of ones."""
    within_NK = torch.arange(values_BN.shape[1], device=values_BN.device)[:, None] < _row(k, values_BN)
    return values_BN @ within_NK.double()


def _attainable(num_relevant_B: Tensor, k: Sequence[int]) -> Tensor:
    """How many hits K ranks could hold at most, min(K, |R|), int64 [B, K]."""
    return torch.minimum(num_relevant_B[:, None], _row(k, num_relevant_B))
