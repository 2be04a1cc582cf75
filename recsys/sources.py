"""Where candidates come from: any retriever's run, what is popular, what is new; and how several lists become one.

A source is a function source(asked, num) -> item_idx int64 [B, num], best first, `PADDING` where it has no more to say.
Shapes: B users asked for, I items, N candidates, J sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from recsys.audience import Asked
from recsys.features.vocabulary import Vocabulary
from recsys.index import ItemIndex
from recsys.models.base import Retriever
from recsys.run import Run
from recsys.schema import NUM_RESERVED, PADDING, TIMESTAMP, UNKNOWN, Interactions, UserBatch

FUSION = 60  # of reciprocal rank fusion: how little the first places count more than the next

Source = Callable[[Asked, int], Tensor]


def of_run(run: Run, items: Vocabulary, *, factory: str = "Flat", search: str = "", seed: int = 0) -> Source:
    """The items that a retriever's run scores highest; none for users of whom its model knows nothing.

    The history is the one asked with, not the run's. Inner products go through an `ItemIndex`, other scores are sorted.

    Args:
        items: what item_idx means.
        factory, search, seed: of the index.
    """
    model: Retriever = run.model
    idx_I = items.encode(run.items.ids)  # of the run's items in `items`
    known_I = (idx_I > UNKNOWN).nonzero()[:, 0]
    its_I, ours_I = known_I + NUM_RESERVED, idx_I[known_I]
    same = bool((its_I == ours_I).all()) and len(run.items) == len(items)
    to_its_I = torch.zeros(len(items), dtype=torch.int64)
    to_its_I[ours_I] = its_I
    index = None
    if model.factored:
        with torch.no_grad():
            vectors_ND = model.encode_items(its_I.to(model.device))
        device = "cuda" if vectors_ND.is_cuda else "cpu"
        index = ItemIndex(vectors_ND, ours_I, factory=factory, search=search, device=device, seed=seed)

    def find(asked: Asked, num: int) -> Tensor:
        history = asked.history if same else _translated(asked.history, to_its_I, len(run.items))
        batch: UserBatch = {
            "user_idx": run.users.encode(asked.user_id).to(model.device),
            "user_key": asked.key.to(model.device),
            "history": history.to(model.device),
        }
        if index is not None:
            found_BN = _nearest(index, model.encode_users(batch), num)
        else:
            best = model.score(batch)[:, its_I.to(model.device)].topk(min(num, len(its_I)))
            found_BN = ours_I[best.indices.cpu()].masked_fill(best.values.isneginf().cpu(), PADDING)
        return found_BN.masked_fill(~model.personal(batch).cpu()[:, None], PADDING)

    return find


def searched(index: ItemIndex, encode: Callable[[Asked], Tensor]) -> Source:
    """What an index of item_idx finds for vectors of users [B, D]."""
    return lambda asked, num: _nearest(index, encode(asked), num)


def _nearest(index: ItemIndex, vectors_BD: Tensor, num: int) -> Tensor:
    return index.search(vectors_BD, min(num, len(index)))[1].clamp(min=PADDING).cpu()


def _translated(history: Interactions, to_I: Tensor, num_items: int) -> Interactions:
    """Histories in other item indices; items that have none are left out."""
    idx, row = to_I[history.item_idx], history.row_idx()
    keep = idx > UNKNOWN
    indptr = torch.zeros_like(history.indptr)
    indptr[1:] = torch.bincount(row[keep], minlength=history.num_rows).cumsum(0)
    return Interactions(indptr, idx[keep], num_items)


def everybody(item_idx: Tensor) -> Source:
    """The same list for all, best first."""
    return lambda asked, num: item_idx[:num].expand(len(asked), -1)


def most_popular(count_I: Tensor) -> Tensor:
    """Items by falling count over any window, int64, without the two reserved ones."""
    return count_I[NUM_RESERVED:].argsort(descending=True, stable=True) + NUM_RESERVED


def fresh(came_I: Tensor) -> Source:
    """The newest items as of the time of each request.

    came_I: int64 microseconds since 1970 UTC, -1: not known, such items are never found.
    """
    order = came_I.argsort(descending=True, stable=True)
    order = order[came_I[order] >= 0]
    falling = -came_I[order]

    def find(asked: Asked, num: int) -> Tensor:
        now_B = torch.from_numpy(asked.rows[TIMESTAMP].to_physical().to_numpy(writable=True))
        first_B = torch.searchsorted(falling, -now_B)
        place_BN = first_B[:, None] + torch.arange(min(num, len(order)))
        some = torch.cat([order, torch.zeros(1, dtype=torch.int64)])
        return some[place_BN.clamp(max=len(order))]

    return find


def fused(
    lists: Mapping[str, Tensor], num: int, seen: Interactions, allowed_I: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Several lists as one, without what was seen or is not allowed: each item once, by the sum over lists of
    1 / (60 + rank) (reciprocal rank fusion: Cormack, Clarke & Buettcher, SIGIR 2009).

    Args:
        lists: item_idx [B, N_j] by source, best first, `PADDING` for none.
        seen: B rows of items that are left out. allowed_I: bool [I].

    Returns:
        item_idx int64 [B, N], N at most `num`, `PADDING` behind; their sums, float32 [B, N]; and which lists had them,
        int64 [B, N], bit j for the j-th.
    """
    parts, sums, bits = [], [], []
    for j, found_BN in enumerate(lists.values()):
        parts.append(found_BN)
        rank = torch.arange(1, found_BN.shape[1] + 1, dtype=torch.float32)
        sums.append((1 / (FUSION + rank)).expand(found_BN.shape))
        bits.append(torch.full_like(found_BN, 1 << j))
    item_BM, sum_BM, bit_BM = (torch.cat(p, 1) for p in (parts, sums, bits))
    num_rows, num_items = len(item_BM), len(allowed_I)
    row_BM = torch.arange(num_rows)[:, None].expand_as(item_BM)
    key = row_BM * num_items + item_BM
    keep_BM = (item_BM >= NUM_RESERVED) & allowed_I[item_BM]
    if len(seen):
        keep_BM &= ~torch.isin(key, seen.row_idx() * num_items + seen.item_idx)
    key, value, bit = key[keep_BM], sum_BM[keep_BM], bit_BM[keep_BM]
    if len(parts) > 1:
        key, group = key.unique(return_inverse=True)
        value = torch.zeros(len(key)).index_add_(0, group, value)
        bit = torch.zeros_like(key).index_add_(0, group, bit)
    # By row, then by falling sum, then by id: two stable sorts.
    order = value.argsort(descending=True, stable=True)
    if num_rows > 1:
        order = order[(key[order] // num_items).argsort(stable=True)]
    key, value, bit = key[order], value[order], bit[order]
    row = key // num_items
    count_B = torch.bincount(row, minlength=num_rows)
    place = torch.arange(len(key)) - (count_B.cumsum(0) - count_B)[row]
    width = min(num, int(count_B.max())) if len(key) else 0
    inside = place < width
    into = row[inside], place[inside]
    item_BN = torch.full((num_rows, width), PADDING)
    sum_BN, bit_BN = torch.zeros(num_rows, width), torch.zeros(num_rows, width, dtype=torch.int64)
    item_BN[into], sum_BN[into], bit_BN[into] = (key % num_items)[inside], value[inside], bit[inside]
    return item_BN, sum_BN, bit_BN


def names_of(bits: Tensor, names: Sequence[str]) -> list[str]:
    """Which sources the bits of `fused` stand for, joined by +."""
    known = {value: "+".join(n for j, n in enumerate(names) if value >> j & 1) for value in set(bits.tolist())}
    return [known[value] for value in bits.tolist()]
