"""Exact top-K of rows of scores, ties in an order that belongs to the user.

The K best of a row lie in the K chunks of highest maximum: one pass over the scores takes the maximum of every
chunk, the K best maxima are found in the same way, and then only K chunks are looked at.

"Exact" means the order of the scores as they are given, bit by bit: nothing is rounded here. A float32 scorer
may itself swap two items whose float64 scores differ by less than its rounding error, for an inner product
of D terms about D * 2**-24 * sum |x_d y_d|.

Equal scores are ordered by a hash of (seed, user, item): never by id, and not by one permutation shared by
all users, so a constant model scores as chance.

Shapes: B users of a block, I items (the two reserved ones included), K list length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recsys.evaluation.significance import key_streams, mix64
from recsys.schema import NUM_RESERVED, Interactions

NEVER = -math.inf
_TIED_SCORES = {"cpu": 2**18}  # scores searched for ties at a time, by device type
_MANY_TIED_SCORES = 2**28  # … on accelerators


def top_k(
    scores_BI: Tensor,
    k: int,
    *,
    user_key: Tensor,
    seed: int,
    history: Interactions | None = None,
    candidates: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The K best items of each row, best first, ties in the order of a hash of (seed, user_key, item).

    Args:
        scores_BI: any real dtype, left as it is. A score of -inf means: never recommend.
        user_key: int64 [B].
        history: B rows of items that are not to be recommended.
        candidates: bool [I]; None: all but the two reserved items.

    Returns:
        item_idx int64 [B, K] and their scores [B, K]; -1 and -inf where a row has fewer candidates than K.

    Raises:
        ValueError: k < 1, or a score is NaN; the message names the row.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    scores_BI = scores_BI.detach()
    scores_BI = scores_BI.clone() if scores_BI.is_floating_point() else scores_BI.double()
    if candidates is None:
        candidates = torch.arange(scores_BI.shape[1], device=scores_BI.device) >= NUM_RESERVED
    scores_BI[:, (~candidates).nonzero()[:, 0]] = NEVER
    if history is not None:
        scores_BI[history.row_idx(), history.item_idx] = NEVER
    item_idx, values = best(scores_BI, k, user_key, seed)
    bad_B = values[:, 0].isnan()
    if bool(bad_B.any()):
        raise ValueError(f"the score of row {int(bad_B.nonzero()[0])} is NaN: scores must be numbers")
    return item_idx, values


def best(scores_BI: Tensor, k: int, user_key: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The K best of each row of masked scores, ties by hash; a row with a NaN has it first."""
    num_items = scores_BI.shape[1]
    values, item_idx = _largest(scores_BI, min(k + 1, num_items))
    missing = k + 1 - values.shape[1]
    if missing > 0:
        values = torch.nn.functional.pad(values, (0, missing), value=NEVER)
        item_idx = torch.nn.functional.pad(item_idx, (0, missing), value=-1)
    equal = (values[:, 1:] == values[:, :-1]) & (values[:, 1:] > NEVER)
    last_tied = equal[:, -1].nonzero()[:, 0]
    tied = equal.any(1).nonzero()[:, 0]
    values, item_idx = values[:, :k], item_idx[:, :k].masked_fill(values[:, :k] == NEVER, -1)
    if len(tied) == 0:
        return item_idx, values
    streams = key_streams(seed, user_key)
    step = max(1, _TIED_SCORES.get(scores_BI.device.type, _MANY_TIED_SCORES) // num_items)
    for row in last_tied.split(step):
        item_idx[row] = _settle_last(scores_BI[row], values[row], item_idx[row], streams[row])
    # Inside the list: by hash first, then stably by score.
    order = _tie_hash(streams[tied, None], item_idx[tied]).argsort(dim=1, stable=True)
    by_score = values[tied].gather(1, order).argsort(dim=1, descending=True, stable=True)
    item_idx[tied] = item_idx[tied].gather(1, order.gather(1, by_score))
    return item_idx, values


def _largest(scores_BI: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n largest of each row: the values are exact, of equal ones it returns any. n <= I.

    The n largest lie in the n chunks of largest maximum, which are found in the same way, level by level, until
    few are left. Chunks are cut so that maxima are taken over whole vectors: where the scores of an item lie side
    by side chunk c holds the items c * width, c * width + 1, …, where those of a user do c, c + C, c + 2C, …
    """
    num_rows, num_items = scores_BI.shape
    width = 16 if num_items >= 512 * n else 8
    num_chunks = num_items // width
    if num_chunks < 4 * n:
        return scores_BI.contiguous().topk(n, dim=1)
    whole = num_chunks * width
    if scores_BI.T.is_contiguous():
        maxima_BC = scores_BI.T[:whole].view(num_chunks, width, num_rows).amax(1).T
        first, step = width, 1
    else:
        maxima_BC = scores_BI[:, :whole].unflatten(1, (width, num_chunks)).amax(1)
        first, step = 1, num_chunks
    _, chunk = _largest(maxima_BC, n)
    within = torch.arange(width, device=scores_BI.device) * step
    item_idx = (chunk[:, :, None] * first + within).view(num_rows, -1)
    rest = torch.arange(whole, num_items, device=scores_BI.device).expand(num_rows, -1)
    item_idx = torch.cat([item_idx, rest], dim=1)
    values, position = scores_BI.gather(1, item_idx).topk(n, dim=1)
    return values, item_idx.gather(1, position)


def _tie_hash(streams: Tensor, item_idx: Tensor) -> Tensor:
    """What orders equal scores, the smallest first: int64 >= 0, a function of (seed, user_key, item_idx)."""
    return mix64(streams + mix64(item_idx)) & (2**63 - 1)


def _settle_last(scores_BI: Tensor, values_BK: Tensor, item_idx_BK: Tensor, streams_B: Tensor) -> Tensor:
    """item_idx_BK with the places of the K-th score given to those of the smallest hash that have it."""
    last = values_BK[:, -1:]
    open_BK = values_BK == last
    need_B = open_BK.sum(1)
    tied_BI = scores_BI == last
    count_B = tied_BI.sum(1)
    # Hashes are uniform, so the smallest few of many lie below a known bound, with room for eight standard
    # deviations: only those need sorting. Should a row fall short, all are sorted.
    likely_B = (need_B + 8 * need_B.double().sqrt() + 16) / count_B
    if bool((likely_B < 0.1).any()):
        items = torch.arange(scores_BI.shape[1], device=scores_BI.device)
        bound_B = torch.where(likely_B < 1, likely_B * 2.0**63, 2.0**63 - 1024).long()
        low_BI = tied_BI & (_tie_hash(streams_B[:, None], items) <= bound_B[:, None])
        if bool((low_BI.sum(1) >= need_B)[likely_B < 1].all()):
            tied_BI = torch.where((likely_B < 1)[:, None], low_BI, tied_BI)
    row, item = tied_BI.nonzero(as_tuple=True)
    hashed = _tie_hash(streams_B[row], item)
    order = hashed.argsort()
    order = order[row[order].argsort(stable=True)]
    row, item = row[order], item[order]
    begin_B = torch.searchsorted(row, torch.arange(len(need_B), device=row.device))
    place = torch.arange(len(row), device=row.device) - begin_B[row]
    chosen = place < need_B[row]
    row, item, place = row[chosen], item[chosen], place[chosen]
    return item_idx_BK.index_put((row, open_BK.shape[1] - need_B[row] + place), item)
