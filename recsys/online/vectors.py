"""A policy that shows what is nearest: user and item vectors, searched through an index once a user.

Shapes: S visits, U users, I items, D dimension, K positions, L list length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recsys.index import ItemIndex
from recsys.models.base import Retriever
from recsys.online.policies import completed, rows_of
from recsys.online.slates import Policy, Slates, Visits, padded, update_of
from recsys.schema import NUM_RESERVED, Interactions

USERS_AT_ONCE = 4096
_NOT_ASKED = -2


class FromVectors:
    """Shows each user the items of highest inner product, without those the user has seen.

    A list is searched once and kept: 4 * U * L bytes. Users are searched in fixed blocks, in the order of user_id, when
    one of a block comes first: rounding, and so the lists, depend on no batch.

    Args:
        user_id: int64 [U], raw ids, no two alike. vectors_UD: of the users.
        item_id: int64 [I], raw ids of the items that `index` knows as 0 .. I - 1.
        seen: U rows of items, by the index's numbers, that are not shown; None: all can be.
        k: L, the longest list that is asked for.
        fallback: for users without a vector; None: they are shown nothing.
    """

    def __init__(
        self,
        user_id: Tensor,
        vectors_UD: Tensor,
        item_id: Tensor,
        index: ItemIndex,
        *,
        seen: Interactions | None = None,
        k: int = 100,
        fallback: Policy | None = None,
    ) -> None:
        if vectors_UD.ndim != 2 or len(user_id) != len(vectors_UD):
            raise ValueError(f"vectors must be one a user: {len(user_id)} users, got {list(vectors_UD.shape)}")
        if seen is not None and seen.num_rows != len(user_id):
            raise ValueError(f"seen has {seen.num_rows} rows for {len(user_id)} users: give one a user")
        self.sorted_id, self.order = user_id.sort()
        if bool((self.sorted_id[1:] == self.sorted_id[:-1]).any()):
            raise ValueError("user_id must have each user once")
        self.vectors_UD, self.item_id, self.index, self.seen, self.fallback = vectors_UD, item_id, index, seen, fallback
        self.lists_UL = torch.full((len(user_id), k), _NOT_ASKED, dtype=torch.int32)
        self.deterministic = fallback is None or getattr(fallback, "deterministic", False)
        update = None if fallback is None else update_of(fallback)
        if update is not None:
            self.update = update

    def act(self, visits: Visits) -> Slates:
        """The first k of each user's list. Raises ValueError: more positions than lists have."""
        if visits.k > self.lists_UL.shape[1]:
            raise ValueError(
                f"k={visits.k} is more than the {self.lists_UL.shape[1]} items of a list: raise the policy's k"
            )
        known, place = rows_of(self.sorted_id, visits.user_id.cpu())
        row = self.order[place]
        asked = row[known]
        for block in (asked[self.lists_UL[asked, 0] == _NOT_ASKED] // USERS_AT_ONCE).unique().tolist():
            self._search(slice(block * USERS_AT_ONCE, (block + 1) * USERS_AT_ONCE))
        found = self.lists_UL[asked, : visits.k].long()
        slates = torch.full((len(visits), visits.k), -1)
        slates[known] = torch.where(found >= 0, self.item_id[found.clamp(min=0)], -1)
        device = visits.user_id.device
        return completed(slates.to(device), known.to(device), visits, self.fallback)

    def _search(self, rows: slice) -> None:
        vectors_BD = self.vectors_UD[rows]
        seen = None if self.seen is None else self.seen.rows(rows.start, min(rows.stop, len(self.vectors_UD)))
        _, found_BL = self.index.search(vectors_BD, self.lists_UL.shape[1], exclude=seen)
        self.lists_UL[rows] = padded(found_BL, self.lists_UL.shape[1]).int()


@torch.no_grad()
def from_retriever(
    model: Retriever,
    history: Interactions,
    user_id: Tensor,
    item_id: Tensor,
    *,
    k: int = 100,
    fallback: Policy | None = None,
    **index: Any,
) -> FromVectors:
    """The policy of an inner-product model: a user vector from each history, items that had a positive in train.

    Args:
        history: what users liked, row = user_idx, the reserved two included; it is not shown again.
        user_id, item_id: int64, raw ids of user_idx and item_idx 2, 3, …
        fallback: for users that the model does not know.
        index: options of `ItemIndex`; the exact search of a large catalogue is slow, see `factory`.
    """
    model.eval()
    known_N = (model.item_counts[NUM_RESERVED:] > 0).nonzero()[:, 0].cpu()
    items_ND = model.encode_items(known_N.to(model.device) + NUM_RESERVED).cpu()
    vectors, personal = [], []
    user_idx = torch.arange(NUM_RESERVED, len(user_id) + NUM_RESERVED)
    for part in user_idx.split(USERS_AT_ONCE):
        batch = {"user_idx": part, "history": history.select(part), "user_key": user_id[part - NUM_RESERVED]}
        batch = {name: value.to(model.device) for name, value in batch.items()}
        vectors.append(model.encode_users(batch).cpu())
        personal.append(model.personal(batch).cpu())
    told = torch.cat(personal).nonzero()[:, 0]
    seen = history.select(told + NUM_RESERVED)
    place_I = torch.full((history.num_items,), -1)
    place_I[known_N + NUM_RESERVED] = torch.arange(len(known_N))
    kept = place_I[seen.item_idx] >= 0
    seen = Interactions.from_pairs(
        seen.row_idx()[kept], place_I[seen.item_idx[kept]], num_rows=len(told), num_items=max(len(known_N), 1)
    )
    return FromVectors(
        user_id[told], torch.cat(vectors)[told], item_id[known_N], ItemIndex(items_ND, **index),
        seen=seen, k=k, fallback=fallback,
    )  # fmt: skip
