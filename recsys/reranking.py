"""The last word on a list: diversity, caps by category, and a share of exploration.

Shapes: B lists, P places of the pool, K list length, N candidates, D dimension of vectors, G columns of categories.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from recsys.evaluation.significance import key_streams, mix64
from recsys.features.sampling import uniform_of
from recsys.schema import PADDING


def diversified(
    score_BP: Tensor,
    k: int,
    *,
    diversity: float = 0.0,
    vector_BPD: Tensor | None = None,
    category_BPG: Tensor | None = None,
    most_G: Tensor | None = None,
) -> Tensor:
    """Places of the K items that are taken one after the other, int64 [B, K], -1 where a pool is smaller.

    Each time that of largest (1 - diversity) * relevance - diversity * (largest cosine to one already taken), maximal
    marginal relevance (Carbonell & Goldstein, SIGIR 1998); relevance is the score brought to [0, 1] within its list. A
    category that has its share is passed over, until nothing else is left.

    Args:
        score_BP: best first or in any order; -inf for places that hold nothing.
        diversity: in [0, 1]. vector_BPD: what cosines are of; needed where diversity > 0.
        category_BPG: int64, categories by column; negative: none. most_G: how many of a category a list may have.

    Raises:
        ValueError: k < 1, a diversity outside [0, 1] or without vectors, NaN scores, a cap below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity must lie in [0, 1], got {diversity}")
    if diversity > 0 and vector_BPD is None:
        raise ValueError(f"diversity={diversity} needs vectors to measure it by")
    if most_G is not None and len(most_G) and int(most_G.min()) < 1:
        raise ValueError(f"a cap must be at least 1, got {int(most_G.min())}")
    if bool(score_BP.isnan().any()):
        raise ValueError(
            f"the score of list {int(score_BP.isnan().any(1).nonzero()[0])} is NaN: scores must be numbers"
        )
    there_BP = score_BP > -torch.inf
    width = min(k, score_BP.shape[1])
    capped = category_BPG is not None and most_G is not None and len(most_G) > 0
    if diversity == 0 and not capped:
        best = score_BP.sort(dim=1, descending=True, stable=True).indices[:, :width]
        return best.masked_fill(~there_BP.gather(1, best), -1)
    low_B1 = score_BP.masked_fill(~there_BP, torch.inf).amin(1, keepdim=True)
    high_B1 = score_BP.amax(1, keepdim=True)
    value_BP = (1 - diversity) * ((score_BP - low_B1) / (high_B1 - low_B1).clamp(min=1e-12)).double()
    cosine_BPP = torch.zeros(len(score_BP), 0, 0)
    if vector_BPD is not None and diversity > 0:
        unit_BPD = torch.nn.functional.normalize(vector_BPD.float(), dim=2)
        cosine_BPP = unit_BPD @ unit_BPD.mT
    if not capped or category_BPG is None or most_G is None:
        category_BPG, most_G = torch.zeros(*score_BP.shape, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    found_BK = np.full((len(score_BP), width), -1)
    arrays = (t.numpy() for t in (value_BP.masked_fill(~there_BP, -torch.inf), cosine_BPP, category_BPG, most_G))
    _greedy(*arrays, diversity, found_BK)
    return torch.from_numpy(found_BK)


@numba.njit(cache=True, nogil=True)
def _greedy(value_BP, cosine_BPP, category_BPG, most_G, diversity, found_BK):  # type: ignore[no-untyped-def]
    """Fill found_BK with places, one after the other. cosine_BPP: [B, 0, 0] where diversity is 0."""
    num_places, num_columns = value_BP.shape[1], len(most_G)
    for b in range(len(value_BP)):
        left = value_BP[b] > -np.inf
        nearest = np.zeros(num_places)
        count = np.zeros((num_places, num_columns), np.int64)  # of each place's categories, in the list so far
        for k in range(found_BK.shape[1]):
            best, best_value, best_full = -1, -np.inf, True
            for p in range(num_places):
                if left[p]:
                    value = value_BP[b, p] - diversity * nearest[p]
                    full = False
                    for g in range(num_columns):
                        full |= count[p, g] >= most_G[g]
                    if best < 0 or full < best_full or (full == best_full and value > best_value):
                        best, best_value, best_full = p, value, full
            if best < 0:
                break
            found_BK[b, k], left[best] = best, False
            for p in range(num_places):
                if cosine_BPP.shape[1]:
                    cosine = cosine_BPP[b, best, p]
                    nearest[p] = cosine if k == 0 else max(nearest[p], cosine)
                for g in range(num_columns):
                    category = category_BPG[b, p, g]
                    count[p, g] += category >= 0 and category == category_BPG[b, best, g]


def explored(
    item_BK: Tensor, pool_BN: Tensor, share: float, key_B: Tensor, seed: int, order_BN: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give each place with probability `share` to an item of the pool that is not in the list.

    Args:
        item_BK: lists, `PADDING` behind. pool_BN: candidates, `PADDING` for none.
        key_B: a number that belongs to the request: the same one brings the same list.
        order_BN: whose largest go first, as a posterior draw of their scores (Thompson sampling); None: uniformly.

    Returns:
        the lists int64 [B, K]; which places explore, bool [B, K]; and the probability of each item at its place given
        those above, float32 [B, K]: NaN at explored places under an order.

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"exploration must be a share in [0, 1], got {share}")
    stream_B = key_streams(seed, key_B)
    place_K = torch.arange(item_BK.shape[1])
    uniform_BK = uniform_of(mix64(stream_B[:, None] + 1 + place_K))
    row_B1 = torch.arange(len(pool_BN))[:, None] * (1 + int(pool_BN.max()) if pool_BN.numel() else 1)
    free_BN = (pool_BN != PADDING) & ~torch.isin(row_B1 + pool_BN, row_B1 + item_BK)
    num_free_B1 = free_BN.sum(1, keepdim=True)
    explores_BK = (uniform_BK < share) & (item_BK != PADDING)
    turn_BK = explores_BK.cumsum(1) - 1
    explores_BK = explores_BK & (turn_BK < num_free_B1)
    chance_BK = torch.full(item_BK.shape, 1.0 - share).masked_fill(num_free_B1 <= turn_BK + ~explores_BK, 1.0)
    if not bool(explores_BK.any()):
        return item_BK, explores_BK, chance_BK
    priority_BN = uniform_of(mix64(mix64(stream_B)[:, None] + pool_BN)) if order_BN is None else order_BN.double()
    drawn_BN = pool_BN.gather(1, priority_BN.masked_fill(~free_BN, -torch.inf).argsort(dim=1, descending=True))
    taken_BK = drawn_BN.gather(1, turn_BK.clamp(0, pool_BN.shape[1] - 1))
    left_BK = (num_free_B1 - turn_BK).clamp(min=1)
    of_drawn_BK = share / left_BK if order_BN is None else torch.full_like(chance_BK, torch.nan)
    return torch.where(explores_BK, taken_BK, item_BK), explores_BK, torch.where(explores_BK, of_drawn_BK, chance_BK)
