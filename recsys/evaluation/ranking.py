"""Exact top-K over the whole catalogue, and the metrics of it in one pass and bounded memory.

The K best of a row lie in the K chunks of highest maximum: one pass over the scores takes the maximum of
every chunk, then only K chunks are looked at. Scores are made in blocks of users small enough to stay in
cache (CPU) or large enough to fill the device, and never leave it.

"Exact" means the order of the scores that the scorer returns, bit by bit: nothing is rounded here. A float32
scorer may itself swap two items whose float64 scores differ by less than its rounding error, for an inner
product of D terms about D * 2**-24 * sum |x_d y_d|. Evaluation switches TF32 off while it runs.

Equal scores are ordered by a hash of (seed, user, item): never by id, and not by one permutation shared by
all users, so a constant model scores as chance.

Shapes: B users of a block, Q queries, I items (the two reserved ones included), K list length.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from recsys.evaluation import metrics as ranking_metrics
from recsys.evaluation.significance import intervals, key_streams, mix64
from recsys.schema import NUM_RESERVED, Interactions, Queries, UserBatch

Scorer = Callable[[UserBatch], Tensor]
Progress = Callable[[int, int], None]

_NEVER = -math.inf
_STEP = 4096  # queries whose lists are held at once
_TIED_SCORES = {"cpu": 2**18}  # scores searched for ties at a time, by device type
_BLOCK_BYTES = {"cpu": 2**24}  # largest useful block of scores: beyond it the cache misses
_LARGE = 2**28  # both of the above on accelerators
_BYTES_A_SCORE = 6  # memory of a block, in blocks of scores: the scorer's temporaries and ours


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one pass over the queries measured.

    metrics: {"recall@20": 0.18, …}, means over the users with at least one relevant item.
    intervals: the same keys, (low, high) by bootstrap over users; empty with num_replicates=0.
    warm: the same keys over warm users alone, cold items left out of their relevant set; empty when no
        warm user has a relevant item.
    per_user: one row an evaluated query: user_idx, user_key, num_relevant, warm, and a Float32 column a
        metric.
    counts: queries (evaluated), warm_queries, empty_relevant (users left out), cold_relevant (items),
        cold_users (evaluated and unseen in train), candidates, k_beyond_catalogue (how many cut-offs).
    seconds: of the whole evaluation.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    warm: dict[str, float]
    per_user: pl.DataFrame
    counts: dict[str, int]
    seconds: float


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
    scores_BI[:, (~candidates).nonzero()[:, 0]] = _NEVER
    if history is not None:
        scores_BI[history.row_idx(), history.item_idx] = _NEVER
    item_idx, values = _best(scores_BI, k, user_key, seed)
    bad_B = values[:, 0].isnan()
    if bool(bad_B.any()):
        raise ValueError(f"the score of row {int(bad_B.nonzero()[0])} is NaN: scores must be numbers")
    return item_idx, values


def rank(
    score: Scorer,
    queries: Queries,
    k: int,
    *,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    mask_history: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """The K best candidates of every query, as `top_k` orders them.

    Args:
        score: maps `queries.batch()` on `device` to scores_BI over all items. On a CPU it is called from
            torch.get_num_threads() threads at once, each with blocks of its own.
        memory_bytes: what the blocks may take beside the model, the queries and the result; None: a
            quarter of what is free, and no more than is of use.
        mask_history: whether items of the history are left out.
        progress: called as progress(queries_done, num_queries) after every block.

    Returns:
        int64 [Q, K] on the CPU; -1 where a query has fewer candidates than K.

    Raises:
        ValueError: k < 1, scores of another shape than [B, I], or a NaN score; the message names the user.
    """
    (k,) = _cut_offs([k])
    parts = [
        item_idx.cpu() for _, item_idx in _lists(score, queries, k, memory_bytes, device, seed, mask_history, progress)
    ]
    return torch.cat(parts) if parts else torch.empty(0, k, dtype=torch.int64)


def evaluate(
    score: Scorer,
    queries: Queries,
    *,
    k: Sequence[int] = (10, 20, 100),
    seed: int = 0,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    mask_history: bool = True,
    num_replicates: int = 1000,
    confidence: float = 0.95,
    progress: Progress | None = None,
) -> Evaluation:
    """Rank the whole catalogue for every query and measure every metric at every K in the same pass.

    Args:
        score, memory_bytes, device, progress: as in `rank`.
        k: cut-offs, in any order; duplicates count once.
        seed: of ties and bootstrap weights.
        mask_history: False is the repeat-consumption switch: items of the history may be recommended, and
            stay relevant.
        num_replicates: bootstrap replicates; 0: no intervals.

    Raises:
        ValueError: as in `rank`, or no query has a relevant item.
    """
    began = time.perf_counter()
    cuts = _cut_offs(k)
    names = ranking_metrics.names(cuts)
    num_candidates = int(queries.candidates.sum())
    beyond = [cut for cut in cuts if cut > num_candidates]
    if beyond:
        warnings.warn(
            f"k={beyond[-1]} is beyond the catalogue of {num_candidates} candidates: the missing ranks count as misses",
            stacklevel=2,
        )
    depth = max(1, min(cuts[-1], num_candidates))
    counts = dict.fromkeys(("queries", "warm_queries", "empty_relevant", "cold_relevant", "cold_users"), 0)
    total = torch.zeros(len(names), dtype=torch.float64, device=device)
    warm_total = torch.zeros_like(total)
    columns: list[tuple[Tensor, ...]] = []
    for part, item_idx in _lists(score, queries, depth, memory_bytes, device, seed, mask_history, progress):
        relevant_key, num_known = _relevant(part, mask_history)
        num_relevant = num_known + part.num_cold_relevant
        keep = num_relevant > 0
        warm = part.warm & (num_known > 0)
        hits = _hits(item_idx, relevant_key, part.num_items)
        values = ranking_metrics.measure(hits[keep], num_relevant[keep], cuts)
        total += values.sum(0)
        warm_total += ranking_metrics.measure(hits[warm], num_known[warm], cuts).sum(0)
        counts["queries"] += int(keep.sum())
        counts["warm_queries"] += int(warm.sum())
        counts["empty_relevant"] += int((~keep).sum())
        counts["cold_relevant"] += int(part.num_cold_relevant.sum())
        counts["cold_users"] += int((keep & ~part.warm).sum())
        kept = (part.user_idx[keep], part.user_key[keep], num_relevant[keep], part.warm[keep], values.float())
        columns.append(tuple(column.cpu() for column in kept))
    if counts["queries"] == 0:
        raise ValueError(f"none of {len(queries)} queries has a relevant item: there is nothing to measure")
    user_idx, user_key, num_relevant, warm, values = map(torch.cat, zip(*columns, strict=True))
    ends = torch.empty(0, 2)
    if num_replicates:
        ends = intervals(
            values.to(device),
            user_key.to(device),
            num_replicates=num_replicates,
            confidence=confidence,
            seed=seed,
        )
    per_user = {"user_idx": user_idx, "user_key": user_key, "num_relevant": num_relevant, "warm": warm}
    per_user |= dict(zip(names, values.T.contiguous(), strict=True))
    return Evaluation(
        metrics=dict(zip(names, (total / counts["queries"]).tolist(), strict=True)),
        intervals=dict(zip(names, map(tuple, ends.tolist()), strict=False)),
        warm=dict(zip(names, (warm_total / counts["warm_queries"]).tolist(), strict=True))
        if counts["warm_queries"]
        else {},
        per_user=pl.DataFrame({name: column.numpy() for name, column in per_user.items()}),
        counts=counts | {"candidates": num_candidates, "k_beyond_catalogue": len(beyond)},
        seconds=time.perf_counter() - began,
    )


def _cut_offs(k: Sequence[int]) -> list[int]:
    """Ascending and without duplicates."""
    cuts = sorted({int(cut) for cut in k})
    if not cuts or cuts[0] < 1:
        raise ValueError(f"k must be one or more numbers of at least 1, got {list(k)}")
    return cuts


def _lists(
    score: Scorer,
    queries: Queries,
    k: int,
    memory_bytes: int | None,
    device: torch.device | str,
    seed: int,
    mask_history: bool,
    progress: Progress | None,
) -> Iterator[tuple[Queries, Tensor]]:
    """Consecutive parts of the queries, on the device, with the top-K of each: int64 [rows, K]."""
    device = torch.device(device)
    workers = torch.get_num_threads() if device.type == "cpu" else 1
    block = _block_rows(queries.num_items, device, memory_bytes, workers)
    never = (~queries.candidates).nonzero()[:, 0].to(device)

    def best(rows: Queries) -> Tensor:
        with torch.no_grad():
            return _list(score, rows, k, seed, never, mask_history)

    done = 0
    with _spread(workers) as spread, _full_precision():
        for start in range(0, len(queries), _STEP):
            part = queries.rows(start, min(start + _STEP, len(queries))).to(device)
            lists = []
            for item_idx in spread(best, part.blocks(block)):
                lists.append(item_idx)
                done += len(item_idx)
                if progress is not None:
                    progress(done, len(queries))
            yield part, torch.cat(lists)


@contextmanager
def _spread(workers: int) -> Iterator[Callable[..., Iterator[Tensor]]]:
    """`map` over blocks, on so many threads that each take whole blocks.

    A block's operations are too small to share: threads that meet after each of them wait for one another,
    on a busy machine for most of the time.
    """
    if workers == 1:
        yield map
        return
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(workers)


def _list(score: Scorer, rows: Queries, k: int, seed: int, never: Tensor, mask_history: bool) -> Tensor:
    """The top-K of one block. Scores are masked in place and put back: the scorer may own them."""
    scores_BI = score(rows.batch())
    if scores_BI.shape != (len(rows), rows.num_items):
        raise ValueError(
            f"a scorer must return one score for each of {len(rows)} users and {rows.num_items} items, "
            f"got shape {tuple(scores_BI.shape)}"
        )
    if not scores_BI.is_floating_point():
        scores_BI = scores_BI.double()
    elif scores_BI.is_inference() and not torch.is_inference_mode_enabled():
        scores_BI = scores_BI.clone()
    if not scores_BI.T.is_contiguous():
        scores_BI = scores_BI.contiguous()
    row, item = rows.history.row_idx(), rows.history.item_idx
    if not mask_history:
        row, item = row[:0], item[:0]
    lent, lent_seen = scores_BI[:, never], scores_BI[row, item]
    scores_BI[:, never] = _NEVER
    scores_BI[row, item] = _NEVER
    item_idx, values = _best(scores_BI, k, rows.user_key, seed)
    scores_BI[row, item] = lent_seen
    scores_BI[:, never] = lent
    bad_B = values[:, 0].isnan()
    if bool(bad_B.any()):
        bad = int(bad_B.nonzero()[0])
        raise ValueError(
            f"the score of user_idx {int(rows.user_idx[bad])} (user_key {int(rows.user_key[bad])}) is NaN: "
            "the model diverged or divides by zero"
        )
    return item_idx


def _best(scores_BI: Tensor, k: int, user_key: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The K best of each row of masked scores, ties by hash; a row with a NaN has it first."""
    num_items = scores_BI.shape[1]
    values, item_idx = _largest(scores_BI, min(k + 1, num_items))
    missing = k + 1 - values.shape[1]
    if missing > 0:
        values = torch.nn.functional.pad(values, (0, missing), value=_NEVER)
        item_idx = torch.nn.functional.pad(item_idx, (0, missing), value=-1)
    equal = (values[:, 1:] == values[:, :-1]) & (values[:, 1:] > _NEVER)
    last_tied = equal[:, -1].nonzero()[:, 0]
    tied = equal.any(1).nonzero()[:, 0]
    values, item_idx = values[:, :k], item_idx[:, :k].masked_fill(values[:, :k] == _NEVER, -1)
    if len(tied) == 0:
        return item_idx, values
    streams = key_streams(seed, user_key)
    step = max(1, _TIED_SCORES.get(scores_BI.device.type, _LARGE) // num_items)
    for row in last_tied.split(step):
        item_idx[row] = _settle_last(scores_BI[row], values[row], item_idx[row], streams[row])
    # Inside the list: by hash first, then stably by score.
    order = _tie_hash(streams[tied, None], item_idx[tied]).argsort(dim=1, stable=True)
    by_score = values[tied].gather(1, order).argsort(dim=1, descending=True, stable=True)
    item_idx[tied] = item_idx[tied].gather(1, order.gather(1, by_score))
    return item_idx, values


def _largest(scores_BI: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n largest of each row: the values are exact, of equal ones it returns any. n <= I.

    The items are cut so that maxima are taken over whole vectors: where the scores of an item lie side by
    side chunk c holds the items c * width, c * width + 1, …, where those of a user do c, c + C, c + 2C, …
    """
    num_rows, num_items = scores_BI.shape
    width = max(8, min(64, 2 ** round(math.log2(math.sqrt(num_items / n)))))
    num_chunks = num_items // width
    if num_chunks < 2 * n:
        values, item_idx = scores_BI.topk(n, dim=1)
        return values, item_idx
    whole = num_chunks * width
    if scores_BI.T.is_contiguous():
        maxima_BC = scores_BI.T[:whole].view(num_chunks, width, num_rows).amax(1).T.contiguous()
        first, step = width, 1
    else:
        maxima_BC = scores_BI[:, :whole].unflatten(1, (width, num_chunks)).amax(1)
        first, step = 1, num_chunks
    chunk = maxima_BC.topk(n, dim=1, sorted=False).indices
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


def _relevant(part: Queries, mask_history: bool) -> tuple[Tensor, Tensor]:
    """Sorted keys row * I + item of the relevant items, and how many each row has, int64 [rows]."""
    key = (part.relevant.row_idx() * part.num_items + part.relevant.item_idx).sort().values
    if mask_history and len(key):
        seen = part.history.row_idx() * part.num_items + part.history.item_idx
        place = torch.searchsorted(key, seen).clamp(max=len(key) - 1)
        dropped = torch.zeros_like(key, dtype=torch.bool)
        dropped[place[key[place] == seen]] = True
        key = key[~dropped]
    rows = torch.div(key, part.num_items, rounding_mode="floor")
    return key, torch.bincount(rows, minlength=len(part))


def _hits(item_idx_BK: Tensor, relevant_key: Tensor, num_items: int) -> Tensor:
    """Which of the recommended are relevant, bool [B, K]."""
    if len(relevant_key) == 0:
        return torch.zeros_like(item_idx_BK, dtype=torch.bool)
    row = torch.arange(len(item_idx_BK), device=item_idx_BK.device)[:, None]
    key = row * num_items + item_idx_BK
    place = torch.searchsorted(relevant_key, key).clamp(max=len(relevant_key) - 1)
    return (relevant_key[place] == key) & (item_idx_BK >= 0)


def _block_rows(num_items: int, device: torch.device, memory_bytes: int | None, workers: int) -> int:
    """Users to score at a time, by each of the workers."""
    if memory_bytes is None:
        memory_bytes = _free_bytes(device) // 4
    block_bytes = min(_BLOCK_BYTES.get(device.type, 4 * _LARGE), memory_bytes // (_BYTES_A_SCORE * workers))
    rows = block_bytes // (4 * num_items)
    return rows // 32 * 32 if rows > 32 else max(1, rows)  # whole vectors: products are far faster


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32, not TF32, whatever the session has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
