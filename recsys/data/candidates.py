"""Candidates drawn for each query, as in published protocols that rank a positive among random negatives."""

from __future__ import annotations

import numpy as np
import torch

from recsys.features.vocabulary import mix64
from recsys.schema import Interactions, Queries


def sampled_lists(queries: Queries, num_sampled: int, seed: int) -> Interactions:
    """Of each query its relevant items and `num_sampled` other candidates: uniform, without replacement, none of the
    history; all of them where there are fewer.

    What is drawn for a query belongs to (seed, user) or, where users have several, to (seed, query).

    Raises:
        ValueError: num_sampled below 1.
    """
    if num_sampled < 1:
        raise ValueError(f"num_sampled must be at least 1, got {num_sampled}")
    pool = queries.candidates.nonzero()[:, 0].numpy()
    keys = queries.user_key if queries.query_key is None else queries.query_key
    lists = []
    for q, key in enumerate(mix64(keys.numpy(), seed).tolist()):
        relevant, history = (pairs.rows(q, q + 1).item_idx.numpy() for pairs in (queries.relevant, queries.history))
        own = np.concatenate([relevant, history])
        # So many that enough are left once the query's own are taken out.
        size = min(num_sampled + len(own), len(pool))
        drawn = pool[np.random.default_rng(key).choice(len(pool), size, replace=False)]
        lists.append(np.concatenate([relevant, drawn[~np.isin(drawn, own)][:num_sampled]]))
    row = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    item = np.concatenate([np.zeros(0, dtype=np.int64), *lists])
    return Interactions.from_pairs(
        torch.from_numpy(row), torch.from_numpy(item), num_rows=len(lists), num_items=queries.num_items
    )
