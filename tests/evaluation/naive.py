"""A naive float64 evaluation, written with Python loops and integers, and cases to compare on."""

import math

import numpy as np
import torch

from recsys.schema import Interactions, Queries

MASK = 2**64 - 1


def mix64(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def tie_hash(seed, user_key, item):
    stream = mix64((user_key & MASK) ^ mix64((seed * 0x9E3779B97F4A7C15 + 1) & MASK))
    return mix64((stream + mix64(item)) & MASK) & (2**63 - 1)


def best_items(scores, k, seed, user_key, allowed):
    """Item indices of the K best, -1 where there are fewer, in plain Python."""
    items = [i for i in range(len(scores)) if allowed[i] and scores[i] > -math.inf]
    items.sort(key=lambda i: (-float(scores[i]), tie_hash(seed, user_key, i)))
    return (items + [-1] * k)[:k]


def metrics_of(items, relevant, num_relevant, k):
    """Every metric at one cut-off, written from the definitions."""
    ranks = [rank + 1 for rank, item in enumerate(items[:k]) if item in relevant]
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, num_relevant) + 1))
    return {
        f"precision@{k}": len(ranks) / k,
        f"recall@{k}": len(ranks) / num_relevant,
        f"hit@{k}": float(len(ranks) > 0),
        f"ndcg@{k}": sum(1 / math.log2(rank + 1) for rank in ranks) / ideal,
        f"map@{k}": sum((n + 1) / rank for n, rank in enumerate(ranks)) / min(k, num_relevant),
        f"mrr@{k}": 1 / ranks[0] if ranks else 0.0,
    }


def reference(scores, queries, ks, seed, mask_history=True):
    """(metrics, warm metrics, per-user rows) of the whole evaluation, or None without any relevant item."""
    users, warm_users = [], []
    for row in range(len(queries)):
        seen = set(queries.history.rows(row, row + 1).item_idx.tolist()) if mask_history else set()
        lists = queries.lists
        listed = range(len(scores[row])) if lists is None else lists.rows(row, row + 1).item_idx.tolist()
        allowed = [bool(ok) and i not in seen and i in listed for i, ok in enumerate(queries.candidates)]
        relevant = set(queries.relevant.rows(row, row + 1).item_idx.tolist()) - seen
        key = int(queries.user_key[row])
        items = best_items(scores[row], max(ks), seed, key, allowed)
        num_relevant = len(relevant) + int(queries.num_cold_relevant[row])
        for rows, size, counts in (
            (users, num_relevant, True),
            (warm_users, len(relevant), bool(queries.warm[row])),
        ):
            if size and counts:
                rows.append({"user_key": key, "num_relevant": size})
                for k in ks:
                    rows[-1] |= metrics_of(items, relevant, size, k)

    def mean(rows):
        return {name: float(np.mean([r[name] for r in rows])) for name in rows[0] if "@" in name} if rows else {}

    return mean(users), mean(warm_users), users


def make_queries(rng, num_queries, num_items, *, history=4, relevant=4, cold=1, candidates=0.9, listed=None):
    """Random queries; history and relevant overlap, and either with the list, some users have none of them."""

    def pairs(mean):
        count = rng.poisson(mean, num_queries)
        row = np.repeat(np.arange(num_queries), count)
        item = rng.integers(2, num_items, count.sum())
        return Interactions.from_pairs(
            torch.from_numpy(row), torch.from_numpy(item), num_rows=num_queries, num_items=num_items
        )

    known = torch.from_numpy(rng.random(num_items) < candidates)
    known[:2] = False
    known[2] = True
    return Queries(
        user_idx=torch.arange(2, num_queries + 2),
        user_key=torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, num_queries)),
        history=pairs(history),
        relevant=pairs(relevant),
        num_cold_relevant=torch.from_numpy(rng.poisson(cold, num_queries)),
        warm=torch.from_numpy(rng.random(num_queries) < 0.7),
        candidates=known,
        lists=None if listed is None else pairs(listed),
    )


def scorer_of(scores):
    """A scorer that looks users up: user_idx starts at 2."""
    return lambda batch: scores[batch["user_idx"] - 2]
