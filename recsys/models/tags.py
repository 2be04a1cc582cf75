"""An inverted index over tags: recommend what carries the tags of the history, the popular first.

The vector space model of Salton, Wong & Yang (CACM 1975) with users as queries; the static rank of search engines
(Manning, Raghavan & Schütze, "Introduction to Information Retrieval", 7.1.4) tells items of equal tags apart.
Shapes in names: B batch, I items, T tags (0: none), W places of an item's tags, Z pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.config import nearest
from recsys.models.attention import last_items
from recsys.models.base import Report, Retriever, RowBatch, no_report
from recsys.schema import NUM_RESERVED, PADDING, Interactions, Schema, UserBatch


class Tags(Retriever):
    """score(u, i) = cos(profile_u, tags_i) * (1 + positives of i) ** popularity_power.

    Every value of an indexed item feature is a tag (its reserved indices are none), and weighs its inverse document
    frequency ln(1 + I / items that carry it). profile_u is the sum of the last `length` items of the history, each of
    length one.

    columns: which item features; None: all that are indices.

    Raises:
        ValueError: no item feature that is an index, an unknown column, a length below 1, a power below 0.
    """

    scores_from_history = True
    takes_features = True
    tag_IW: Tensor
    weight_IW: Tensor
    static_I: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        columns: Sequence[str] | None = None,
        length: int = 100,
        popularity_power: float = 0.5,
    ) -> None:
        super().__init__(schema)
        indexed = {c.name: c for c in schema.columns if c.role == "item_feature" and c.cardinality is not None}
        if not indexed:
            raise ValueError("tags are indexed item features, and there are none: give features=… (as features=world)")
        for name in columns or ():
            if name not in indexed:
                raise ValueError(f"columns: no item feature {name} that is an index: {nearest(name, indexed)}")
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if not popularity_power >= 0:
            raise ValueError(f"popularity_power must not be below 0, got {popularity_power}")
        self.columns = [indexed[name] for name in columns or indexed]
        self.length, self.popularity_power = length, popularity_power
        self.num_tags = sum(c.cardinality or 0 for c in self.columns)
        shape = schema.num_items, sum(c.width or 1 for c in self.columns)
        self.register_buffer("tag_IW", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("weight_IW", torch.zeros(shape))
        self.register_buffer("static_I", torch.ones(schema.num_items))

    def describe(self, users: RowBatch, items: RowBatch) -> None:
        """Keep the tags of all items, tensors by column [I, ...]; users are known by their history alone."""
        places, start = [], 0
        for c in self.columns:
            idx_Iw = items[c.name].view(self.schema.num_items, -1).long()
            places.append((idx_Iw + start).masked_fill(idx_Iw < NUM_RESERVED, PADDING))
            start += c.cardinality or 0
        self.tag_IW.copy_(torch.cat(places, 1))
        self.tag_IW[:NUM_RESERVED] = PADDING

    def fit(self, interactions: Interactions, report: Report = no_report) -> None:
        """Weigh the tags by the catalogue, and items by their positives. One step."""
        self.observe(interactions)
        carried_T = torch.bincount(self.tag_IW.flatten(), minlength=self.num_tags)
        idf_T = torch.log1p((len(self.tag_IW) - NUM_RESERVED) / carried_T.clamp(min=1))
        self.weight_IW.copy_(F.normalize(idf_T[self.tag_IW].masked_fill(self.tag_IW == PADDING, 0), dim=1))
        self.static_I.copy_((1 + self.item_counts).float().pow(self.popularity_power))
        report(1, 1, {"train/tags": float((carried_T[NUM_RESERVED:] > 0).sum())})

    def score(self, batch: UserBatch) -> Tensor:
        """float32 [B, I]."""
        history_BL = last_items(batch["history"], self.length)
        tag_BLW, weight_BLW = self.tag_IW[history_BL], self.weight_IW[history_BL]
        profile_BT = weight_BLW.new_zeros(len(history_BL), self.num_tags)
        profile_BT.scatter_add_(1, tag_BLW.flatten(1), weight_BLW.flatten(1))
        # A row of postings for each tag: an item reads those of its own.
        profile_TB = F.normalize(profile_BT, dim=1).T.contiguous()
        scores_IB = F.embedding_bag(self.tag_IW, profile_TB, mode="sum", per_sample_weights=self.weight_IW)
        return (scores_IB * self.static_I[:, None]).T

    def personal(self, batch: UserBatch) -> Tensor:
        """Users with a history that carries a tag."""
        history: Interactions = batch["history"]
        told = (self.tag_IW.index_select(0, history.item_idx) != PADDING).any(1).long()
        return torch.zeros_like(history.indptr[1:]).index_add_(0, history.row_idx(), told) > 0
