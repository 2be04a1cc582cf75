"""What lists are like beside being right: how popular, how new, how varied, and how spread over the catalogue.

Shapes: B queries, K list length, C cut-offs, I items, D numbers of an item vector. Lists are int64 [B, K], -1 where a
rank is missing; the missing ranks of a list take no part in its means. Every function takes `k`, one cut-off a column
of its result. popularity_I is the share of train's users with a positive for each item.

Of one list, means over queries:

    popularity   mean share of its items
    novelty      mean of -log2 of the share (Vargas and Castells 2011); what nobody had counts as if one user had had it
    diversity    mean of 1 - cosine over pairs of its items (Smyth and McClave 2001); 0 with fewer than two
    serendipity  relevant items that are not among the K most popular ones, / K (Ge et al. 2010)

Of all lists together:

    coverage         share of the candidates that stand in any list (Ge et al. 2010)
    gini             Gini index of how often each candidate stands in a list: 0 equally often, 1 all places one item's
    popularity_lift  mean popularity of lists over that of histories, less 1, over the queries with a history
                     (Abdollahpouri et al. 2020)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from recsys.evaluation.metrics import sums_within
from recsys.schema import Interactions


@dataclass(frozen=True, eq=False)
class Items:
    """What is known of the items that are ranked.

    popularity_I: float [I]. vectors_ID: float [I, D]; None: diversity is not measured. A row of zeros is like nothing.
    num_users: that shares are of.
    """

    popularity_I: Tensor
    num_users: int
    vectors_ID: Tensor | None = None

    @cached_property
    def information_I(self) -> Tensor:
        """-log2 of the share, in bits."""
        return -self.popularity_I.double().clamp(min=1 / max(self.num_users, 1)).log2()

    @cached_property
    def place_I(self) -> Tensor:
        """Each item's place by popularity, from 0; of equally popular ones the lower index comes first."""
        order_I = self.popularity_I.argsort(descending=True, stable=True)
        return torch.empty_like(order_I).scatter_(0, order_I, torch.arange(len(order_I), device=order_I.device))

    def to(self, device: torch.device | str) -> Items:
        """The same on another device."""
        vectors_ID = None if self.vectors_ID is None else self.vectors_ID.to(device)
        return Items(self.popularity_I.to(device), self.num_users, vectors_ID)

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics of one list, in the order of `measure`."""
        return ("popularity", "novelty", "serendipity", *(() if self.vectors_ID is None else ("diversity",)))


def measure(item_idx_BK: Tensor, hits_BK: Tensor, items: Items, k: Sequence[int]) -> Tensor:
    """The metrics of `items.names` at every cut-off, float64 [B, names * C]."""
    known_BK = item_idx_BK >= 0
    safe_BK = item_idx_BK.clamp(min=0)
    rows_BC = sums_within(known_BK.double(), k).clamp(min=1)
    popularity_BK = items.popularity_I.double()[safe_BK] * known_BK
    novelty_BK = items.information_I[safe_BK] * known_BK
    cuts_C = torch.tensor(list(k), device=item_idx_BK.device)
    surprise_BKC = (hits_BK & known_BK)[..., None] & (items.place_I[safe_BK][..., None] >= cuts_C)
    within_KC = torch.arange(item_idx_BK.shape[1], device=item_idx_BK.device)[:, None] < cuts_C
    found = [
        sums_within(popularity_BK, k) / rows_BC,
        sums_within(novelty_BK, k) / rows_BC,
        (surprise_BKC & within_KC).sum(1) / cuts_C.double(),
    ]
    if items.vectors_ID is not None:
        found.append(diversity(item_idx_BK, items.vectors_ID, k))
    return torch.cat(found, dim=1)


def diversity(item_idx_BK: Tensor, vectors_ID: Tensor, k: Sequence[int]) -> Tensor:
    """Mean of 1 - cosine over the pairs of each list, float64 [B, C]: from the length of the sum of directions."""
    directions_BKD = torch.nn.functional.normalize(vectors_ID[item_idx_BK.clamp(min=0)].double(), dim=2)
    known_BK = item_idx_BK >= 0
    directions_BKD = directions_BKD * known_BK[..., None]
    found = []
    for cut in k:
        part_BKD = directions_BKD[:, :cut]
        n_B = known_BK[:, :cut].sum(1)
        cosines_B = part_BKD.sum(1).square().sum(1) - part_BKD.square().sum((1, 2))
        found.append(torch.where(n_B > 1, 1 - cosines_B / (n_B * (n_B - 1)).clamp(min=1), 0.0))
    return torch.stack(found, dim=1)


def exposure(item_idx_BK: Tensor, num_items: int, k: Sequence[int]) -> Tensor:
    """How often each item stands in the first K ranks, int64 [C, I]."""
    found = []
    for cut in k:
        idx = item_idx_BK[:, :cut].flatten()
        found.append(torch.bincount(idx[idx >= 0], minlength=num_items))
    return torch.stack(found)


def spread(exposure_CI: Tensor, candidates_I: Tensor, k: Sequence[int]) -> dict[str, float]:
    """coverage and gini of the candidates by what `exposure` counted."""
    counts_CN = exposure_CI[:, candidates_I].double().sort(1).values
    size = counts_CN.shape[1]
    rank_N = torch.arange(1, size + 1, dtype=torch.float64, device=counts_CN.device)
    total_C = counts_CN.sum(1).clamp(min=1)
    gini_C = 2 * (counts_CN @ rank_N) / (size * total_C) - (size + 1) / size
    found = {f"coverage@{cut}": float(n) / size for cut, n in zip(k, (counts_CN > 0).sum(1), strict=True)}
    return found | {f"gini@{cut}": float(value) for cut, value in zip(k, gini_C, strict=True)}


def history_popularity(history: Interactions, items: Items) -> Tensor:
    """Mean share of the items of each history, float64 [B]; NaN without one."""
    total_B = torch.zeros(history.num_rows, dtype=torch.float64, device=history.item_idx.device)
    total_B.index_add_(0, history.row_idx(), items.popularity_I.double()[history.item_idx])
    return total_B / history.row_counts()
