"""Item neighbourhoods: recommend what resembles the history.

Deshpande & Karypis, "Item-based top-N recommendation algorithms" (TOIS 2004); shrinkage and feature
weighting as in Dacrema et al., "Are we really making much progress?" (RecSys 2019).
Shapes in names: B batch, I items, N neighbours of an item, Z pairs.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from torch import Tensor

from recsys.models.base import Report, Retriever, no_report
from recsys.schema import Interactions, Schema, UserBatch

Weighting = Literal["none", "tfidf", "bm25"]

BM25_K1, BM25_B = 1.2, 0.75  # the customary constants of Robertson & Zaragoza (2009)
MAX_EXPANDED_PAIRS = 1 << 22  # history pairs times neighbours expanded at a time while scoring
MAX_PRODUCTS = 1 << 25  # multiplications, and so at most entries, of one block of the similarity product


class ItemKNN(Retriever):
    """Sums the similarity of an item to the items of the history over their nearest neighbours.

    similarity(i, j) = <x_i, x_j> / (|x_i| |x_j| + shrinkage), x_i being the weighted column of item i.

    Args:
        schema: the sizes.
        num_neighbours: how many of the most similar items every item keeps.
        shrinkage: holds the similarity of rare items down; in users, whatever the weighting.
        weighting: how a user counts in x_i: "none" (1), "tfidf" or "bm25" (active users count less, and
            BM25 also saturates with the length of the column).
    """

    scores_from_history = True
    neighbour_idx_IN: Tensor
    similarity_IN: Tensor
    items_done: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        num_neighbours: int = 200,
        shrinkage: float = 20.0,
        weighting: Weighting = "tfidf",
    ) -> None:
        super().__init__(schema)
        if num_neighbours < 1:
            raise ValueError(f"num_neighbours must be at least 1, got {num_neighbours}")
        if shrinkage < 0:
            raise ValueError(f"shrinkage must not be negative, got {shrinkage}")
        if weighting not in get_args(Weighting):
            raise ValueError(f"weighting must be one of {', '.join(get_args(Weighting))}, got {weighting!r}")
        self.num_neighbours = min(num_neighbours, schema.num_items)
        self.shrinkage = shrinkage
        self.weighting = weighting
        shape = (schema.num_items, self.num_neighbours)
        # Short lists are filled with padding at similarity 0, which adds nothing to no item.
        self.register_buffer("neighbour_idx_IN", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("similarity_IN", torch.zeros(shape))
        self.register_buffer("items_done", torch.zeros((), dtype=torch.int64))

    def fit(self, interactions: Interactions, report: Report = no_report) -> None:
        """The nearest neighbours of every item, a block of items a step, in bounded memory.

        A block is as many items as `MAX_PRODUCTS` multiplications allow, so popular items come in
        small blocks.
        """
        self.observe(interactions)
        columns_UI = weighted(interactions.to_scipy(), self.weighting)
        rows_IU = csr_array(columns_UI.T)
        norm_I = np.sqrt(np.asarray(rows_IU.power(2).sum(axis=1), dtype=np.float64))
        user_counts = np.diff(columns_UI.indptr)
        products_I = np.concatenate([[0], np.cumsum(user_counts[rows_IU.indices], dtype=np.int64)])
        products_I = products_I[rows_IU.indptr]  # multiplications before each item's row
        num_items = self.schema.num_items
        while (start := int(self.items_done)) < num_items:
            last = np.searchsorted(products_I, products_I[start] + MAX_PRODUCTS, side="right") - 1
            stop = min(max(int(last), start + 1), num_items)
            block = csr_array(rows_IU[start:stop] @ columns_UI)
            self._keep_nearest(block, norm_I, start)
            self.items_done.fill_(stop)
            report(stop, num_items, {})

    def _keep_nearest(self, products: csr_array, norm_I: np.ndarray, start: int) -> None:
        """Turn one block of inner products into similarities and keep the largest of each row."""
        row = np.repeat(np.arange(products.shape[0]) + start, np.diff(products.indptr))
        similarity_Z = products.data / (norm_I[row] * norm_I[products.indices] + self.shrinkage)
        similarity_Z[row == products.indices] = 0.0  # an item is not its own neighbour
        neighbour_BN = np.zeros((products.shape[0], self.num_neighbours), dtype=np.int32)
        similarity_BN = np.zeros((products.shape[0], self.num_neighbours), dtype=np.float32)
        for r in range(products.shape[0]):
            begin, end = products.indptr[r : r + 2]
            similarity, neighbour = similarity_Z[begin:end], products.indices[begin:end]
            if len(similarity) > self.num_neighbours:
                nearest = np.argpartition(similarity, -self.num_neighbours)[-self.num_neighbours :]
                similarity, neighbour = similarity[nearest], neighbour[nearest]
            neighbour_BN[r, : len(neighbour)] = neighbour
            similarity_BN[r, : len(similarity)] = similarity
        stop = start + products.shape[0]
        self.neighbour_idx_IN[start:stop] = torch.from_numpy(neighbour_BN)
        self.similarity_IN[start:stop] = torch.from_numpy(similarity_BN)

    def score(self, batch: UserBatch) -> Tensor:
        """Summed similarities, float32 [B, I]."""
        history: Interactions = batch["history"]
        num_items = self.schema.num_items
        scores = torch.zeros(history.num_rows * num_items, device=self.device)
        chunk = max(1, MAX_EXPANDED_PAIRS // self.num_neighbours)
        for row, item_idx in zip(history.row_idx().split(chunk), history.item_idx.split(chunk), strict=True):
            cell_ZN = row[:, None] * num_items + self.neighbour_idx_IN.index_select(0, item_idx)
            similarity_ZN = self.similarity_IN.index_select(0, item_idx)
            scores.index_add_(0, cell_ZN.flatten(), similarity_ZN.flatten())
        return scores.view(history.num_rows, num_items)


def weighted(counts_UI: csr_array, weighting: Weighting) -> csr_array:
    """Item columns over users with the given weighting; items are the documents and users the terms.

    tfidf: ln(1 + I / items of the user). bm25: that times (k1 + 1) / (1 + k1 (1 - b + b |i| / mean |i|)).
    Both are scaled to a mean square of one over the pairs, so that norms stay in units of users.
    """
    if weighting == "none":
        return counts_UI
    num_items = len(np.unique(counts_UI.indices))
    user_counts = np.maximum(np.diff(counts_UI.indptr), 1)
    idf_U = np.log1p(num_items / user_counts)
    result = diags_array(idf_U) @ counts_UI
    if weighting == "bm25":
        length_I = np.bincount(counts_UI.indices, minlength=counts_UI.shape[1])
        mean = len(counts_UI.indices) / max(num_items, 1)
        saturation_I = (BM25_K1 + 1) / (1 + BM25_K1 * (1 - BM25_B + BM25_B * length_I / max(mean, 1e-9)))
        result = result @ diags_array(saturation_I)
    result = csr_array(result).astype(np.float32)
    result.data /= np.sqrt(np.mean(np.square(result.data))) if len(result.data) else 1.0
    return result
