"""Rank the whole catalogue for every user and measure it, in one pass and bounded memory.

Scores are made in blocks of users, small enough to stay in cache on a CPU, and never leave their block: see
`topk` for what is done with them. On a CPU every thread takes whole blocks, because the operations on one
are too small to share. Products of float32 are kept from TF32 while this runs.

Shapes: B users of a block, Q queries, I items (the two reserved ones included), K list length, M metrics,
R replicates.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import polars as pl
import torch
from torch import Tensor, distributed

from recsys.evaluation import beyond
from recsys.evaluation.beyond import Items
from recsys.evaluation.metrics import Metric, measure, names, with_own
from recsys.evaluation.significance import percentile_ends, replicate_sums
from recsys.evaluation.topk import NEVER, best, top_k
from recsys.schema import Queries, UserBatch

__all__ = ["Evaluation", "evaluate", "rank", "top_k"]

Scorer = Callable[[UserBatch], Tensor]
Progress = Callable[[int, int], None]
Result = TypeVar("Result")

# By device type, the latter for accelerators.
_PART = {"cpu": 1024}, 8192  # queries that are measured together: sums do not depend on memory or threads
_BLOCK_BYTES = {"cpu": 2**24}, 2**30  # largest useful block of scores: beyond it a CPU's cache misses
_FEWEST_ROWS = 32  # of a block that memory allows: for each block all item vectors are read
_BYTES_A_SCORE = 6  # memory of a block, in blocks of scores: the scorer's temporaries and ours


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one pass over the queries measured.

    metrics: {"recall@20": 0.18, …}, means over the queries with at least one relevant item; with `items` what `beyond`
        says of their lists as well.
    intervals: the same keys, (low, high) by bootstrap over users; empty with num_replicates=0.
    warm: the same keys over warm users alone, cold items left out of their relevant set; empty when no
        warm user has a relevant item.
    per_user: one row an evaluated query: user_idx, user_key, num_relevant, warm, query_key where users have several
        queries, and a Float32 column a metric.
    counts: queries (evaluated), warm_queries, empty_relevant (queries left out), cold_relevant (items),
        cold_users (evaluated and unseen in train), candidates, k_beyond_catalogue (how many cut-offs); where the
        queries bring lists, list_shortest and list_longest.
    seconds: of the whole evaluation.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    warm: dict[str, float]
    per_user: pl.DataFrame
    counts: dict[str, int]
    seconds: float


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
        progress: called as progress(queries_done, num_queries) now and then.

    Returns:
        int64 [Q, K] on the CPU; -1 where a query has fewer candidates than K.

    Raises:
        ValueError: k < 1, scores of another shape than [B, I], or a NaN score; the message names the user.
    """
    (k,) = cut_offs([k])
    lists = _ranker(score, queries, k, memory_bytes, device, seed, mask_history)
    parts = list(_spread(lambda part: lists(part).cpu(), queries, device, progress))
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
    items: Items | None = None,
    metrics: Mapping[str, Metric] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Rank the whole catalogue (or the list of each query that brings one) and measure every metric at every K in the
    same pass.

    Where torch.distributed is in use every rank must call this, with the same arguments: the queries are shared between
    the ranks, and each returns the whole, to the bit what one process would (but for its own `seconds`). What fails on
    one rank is a ValueError on all of them. With NCCL set the CUDA device of the process first, as always.

    Args:
        score, memory_bytes, device, progress: as in `rank`.
        k: cut-offs, in any order; duplicates count once.
        seed: of ties and bootstrap weights.
        mask_history: False is the repeat-consumption switch: items of the history may be recommended, and
            stay relevant.
        num_replicates: bootstrap replicates; 0: no intervals.
        items: what is known of them; None: nothing beyond accuracy is measured.
        metrics: others by name, beside those of `evaluation.metrics` and functions of the same kind.

    Raises:
        ValueError: as in `rank`, or no query has a relevant item, or ranks were given different queries.
    """
    cuts, depth = _depth(k, queries, confidence)
    functions = with_own(metrics)
    lists = _ranker(score, queries, depth, memory_bytes, device, seed, mask_history)
    items = items and items.to(device)

    def measured(part: Queries) -> _Measured:
        return _measured(part, lists(part), cuts, functions, mask_history, num_replicates, seed, items)

    began = time.perf_counter()
    parts = _spread(measured, queries, device, progress, *_process())
    return _evaluation(parts, queries, cuts, functions, confidence if num_replicates else None, items, began)


def evaluate_lists(
    lists_QK: Tensor,
    queries: Queries,
    *,
    k: Sequence[int] = (10, 20, 100),
    seed: int = 0,
    mask_history: bool = True,
    num_replicates: int = 1000,
    confidence: float = 0.95,
    items: Items | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Evaluation:
    """Measure lists that are there already, wherever they came from. Each process measures what it is given, alone.

    Args:
        lists_QK: int64 [Q, K], the items for each query, best first, no item twice; -1 where a rank is missing. What
            the history holds must not be in them if it is masked.
        others: as in `evaluate`.

    Raises:
        ValueError: other than one list a query, or no query has a relevant item.
    """
    if len(lists_QK) != len(queries):
        raise ValueError(f"one list a query is needed: got {len(lists_QK)} lists for {len(queries)} queries")
    began = time.perf_counter()
    cuts, _ = _depth(k, queries, confidence)
    functions = with_own(metrics)
    starts = iter(range(0, len(queries), _PART[0]["cpu"]))

    def measured(part: Queries) -> _Measured:
        start = next(starts)
        lists = lists_QK[start : start + len(part)]
        return _measured(part, lists, cuts, functions, mask_history, num_replicates, seed, items)

    parts = map(measured, queries.blocks(_PART[0]["cpu"]))
    return _evaluation(parts, queries, cuts, functions, confidence if num_replicates else None, items, began)


def _depth(k: Sequence[int], queries: Queries, confidence: float) -> tuple[list[int], int]:
    """Cut-offs, and how long lists must be for them; warns where there are not so many candidates."""
    cuts, num_candidates = cut_offs(k), int(queries.candidates.sum())
    if cuts[-1] > num_candidates:
        warnings.warn(
            f"k={cuts[-1]} is beyond the catalogue of {num_candidates} candidates: the missing ranks count as misses",
            stacklevel=3,
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return cuts, max(1, min(cuts[-1], num_candidates))


def _evaluation(
    parts: Iterable[_Measured],
    queries: Queries,
    cuts: list[int],
    functions: Mapping[str, Metric],
    confidence: float | None,
    items: Items | None,
    began: float,
) -> Evaluation:
    """What parts of the queries give together; confidence: of the intervals, None for none."""
    counts = dict.fromkeys(("queries", "warm_queries", "empty_relevant", "cold_relevant", "cold_users"), 0)
    total = warm_total = replicates = exposure = popularity = torch.zeros(())
    columns = []
    for part in parts:
        total, warm_total = total + part.sum_M, warm_total + part.warm_sum_M
        replicates = replicates + part.replicate_sums
        exposure, popularity = exposure + part.exposure, popularity + part.popularity_sums
        counts = {name: count + part.counts[name] for name, count in counts.items()}
        columns.append(part.columns)
    if counts["queries"] == 0:
        raise ValueError(f"none of {len(queries)} queries has a relevant item: there is nothing to measure")
    keys = names(cuts, functions if items is None else (*functions, *items.names))
    user_idx, user_key, num_relevant, warm, values, *query_key = map(torch.cat, zip(*columns, strict=True))
    per_user = {"user_idx": user_idx, "user_key": user_key, "num_relevant": num_relevant, "warm": warm}
    per_user |= dict(zip(("query_key",), query_key, strict=False))
    per_user |= dict(zip(keys, values.T.contiguous(), strict=True))
    metrics = dict(zip(keys, (total / counts["queries"]).tolist(), strict=True))
    if items is not None:
        metrics |= beyond.spread(exposure, queries.candidates, cuts)
        if float(popularity[-1]) > 0:
            lifts = (popularity[:-1] / popularity[-1] - 1).tolist()
            metrics |= {f"popularity_lift@{cut}": lift for cut, lift in zip(cuts, lifts, strict=True)}
    warm_metrics = (warm_total / counts["warm_queries"]).tolist() if counts["warm_queries"] else []
    ends = percentile_ends(replicates, confidence).tolist() if confidence is not None else []
    num_candidates = int(queries.candidates.sum())
    catalogue = {"candidates": num_candidates, "k_beyond_catalogue": sum(cut > num_candidates for cut in cuts)}
    return Evaluation(
        metrics=metrics,
        intervals={key: (low, high) for key, (low, high) in zip(keys, ends, strict=False)},
        warm=dict(zip(keys, warm_metrics, strict=False)),
        per_user=pl.DataFrame({name: column.numpy() for name, column in per_user.items()}),
        counts=counts | catalogue | _list_lengths(queries),
        seconds=time.perf_counter() - began,
    )


class _Measured(NamedTuple):
    """What is kept of one part of the queries."""

    sum_M: Tensor
    warm_sum_M: Tensor
    replicate_sums: Tensor  # [M + 1, R]
    exposure: Tensor  # [C, I]; nothing without items
    popularity_sums: Tensor  # [C + 1], of lists at every cut-off and of histories, where there is one
    counts: dict[str, int]
    columns: tuple[Tensor, ...]  # user_idx, user_key, num_relevant, warm, float32 [queries, M] and any query_key


def _measured(
    part: Queries,
    item_idx: Tensor,
    cuts: list[int],
    functions: Mapping[str, Metric],
    mask_history: bool,
    num_replicates: int,
    seed: int,
    items: Items | None,
) -> _Measured:
    """Metrics of the lists of one part."""
    relevant_key, num_known = _relevant(part, mask_history)
    num_relevant = num_known + part.num_cold_relevant
    hits = _hits(item_idx, relevant_key, part.num_items)
    keep = num_relevant > 0
    warm = part.warm & (num_known > 0)
    values, user_key = measure(hits[keep], num_relevant[keep], cuts, functions), part.user_key[keep]
    warm_values = measure(hits[warm], num_known[warm], cuts, functions)
    exposure = popularity_sums = torch.zeros(())
    if items is not None:
        found = beyond.measure(item_idx, hits, items, cuts)
        values, warm_values = (torch.cat(pair, 1) for pair in ((values, found[keep]), (warm_values, found[warm])))
        exposure = beyond.exposure(item_idx[keep], part.num_items, cuts)
        liked = beyond.history_popularity(part.seen, items)
        told = keep & ~liked.isnan()
        popularity_sums = torch.cat([found[told, : len(cuts)], liked[told, None]], 1).sum(0)
    columns = [part.user_idx[keep], user_key, num_relevant[keep], part.warm[keep], values.float()]
    columns += [] if part.query_key is None else [part.query_key[keep]]
    return _Measured(
        sum_M=values.sum(0).cpu(),
        warm_sum_M=warm_values.sum(0).cpu(),
        replicate_sums=replicate_sums(values, user_key, num_replicates=num_replicates, seed=seed).cpu(),
        exposure=exposure.cpu(),
        popularity_sums=popularity_sums.cpu(),
        counts={
            "queries": int(keep.sum()),
            "warm_queries": int(warm.sum()),
            "empty_relevant": int((~keep).sum()),
            "cold_relevant": int(part.num_cold_relevant.sum()),
            "cold_users": int((keep & ~part.warm).sum()),
        },
        columns=tuple(column.cpu() for column in columns),
    )


def _list_lengths(queries: Queries) -> dict[str, int]:
    if queries.lists is None:
        return {}
    length_Q = queries.lists.row_counts()
    return {"list_shortest": int(length_Q.min()), "list_longest": int(length_Q.max())}


def cut_offs(k: Sequence[int]) -> list[int]:
    """Cut-offs ascending and without duplicates.

    Raises:
        ValueError: there is none, or one below 1.
    """
    cuts = sorted({int(cut) for cut in k})
    if not cuts or cuts[0] < 1:
        raise ValueError(f"k must be one or more numbers of at least 1, got {list(k)}")
    return cuts


def _spread(
    function: Callable[[Queries], Result],
    queries: Queries,
    device: torch.device | str,
    progress: Progress | None,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Result]:
    """function(part) for consecutive parts of the queries, in order, on as many threads as PyTorch has. Of
    several processes each does every so many-th part, and gets the results of all.

    Each thread takes whole parts. Threads that share every operation wait for one another after each of
    them, on a busy machine for most of the time.
    """
    device, done = torch.device(device), 0
    workers = _workers(device)
    size = _PART[0].get(device.type, _PART[1])

    def run(part: Queries) -> Result:
        with torch.no_grad():
            return function(part.to(device))

    starts = range(process * size, len(queries), processes * size)
    parts = (queries.rows(start, min(start + size, len(queries))) for start in starts)
    with _full_precision(), _threads(workers) as apply:
        results = apply(run, parts)
        for result in results if processes == 1 else _gathered(results, queries, size, processes):
            done = min(done + size, len(queries))
            if progress is not None:
                progress(done, len(queries))
            yield result


def _process() -> tuple[int, int]:
    """The rank of this process, and how many processes there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _gathered(results: Iterator[Result], queries: Queries, size: int, processes: int) -> Iterator[Result]:
    """The results of all processes in the order of their parts, from those of this one.

    They are exchanged as they come, one of each process at a time: whoever adds them up does so in the order of one
    process, and holds no more than one round. An error is exchanged like a result: where a process just stopped, the
    others would wait for it.
    """
    same = len(queries), size, int(queries.user_key.cumsum(0).sum())  # wraps; differs by the order of the users, too
    for _ in range(0, max(1, len(queries)), processes * size):
        result, wrong, cause = None, None, None
        try:
            result = next(results, None)
        except Exception as error:
            wrong, cause = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}", error
        found: list[Any] = [None] * processes
        distributed.all_gather_object(found, (same, result, wrong))
        if any(theirs != same for theirs, _, _ in found):
            raise ValueError("every rank must evaluate the same queries, in one order and on the same kind of device")
        for _, result, wrong in found:
            if wrong is not None:
                raise ValueError(wrong) from cause
            if result is not None:
                yield result


@contextmanager
def _threads(workers: int) -> Iterator[Callable[..., Iterator]]:
    """`map`, on threads with one PyTorch thread each."""
    if workers == 1:
        yield map
        return
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(workers)


def _workers(device: torch.device) -> int:
    return torch.get_num_threads() if device.type == "cpu" else 1


def _ranker(
    score: Scorer,
    queries: Queries,
    k: int,
    memory_bytes: int | None,
    device: torch.device | str,
    seed: int,
    mask_history: bool,
) -> Callable[[Queries], Tensor]:
    """What gives the top-K of a part of the queries, int64 [rows, K], block by block."""
    device = torch.device(device)
    size = _block_rows(queries.num_items, device, memory_bytes)
    never = (~queries.candidates).nonzero()[:, 0].to(device)

    def lists(part: Queries) -> Tensor:
        blocks = [_list(score, rows, k, seed, never, mask_history) for rows in part.blocks(size)]
        return torch.cat(blocks)

    return lists


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
    if rows.lists is not None:
        row, item = rows.lists.row_idx(), rows.lists.item_idx
        listed_Z = scores_BI[row, item]
        scores_BI = torch.full_like(scores_BI, NEVER)
        scores_BI[row, item] = listed_Z
    row, item = rows.seen.row_idx(), rows.seen.item_idx
    if not mask_history:
        row, item = row[:0], item[:0]
    lent, lent_seen = scores_BI[:, never], scores_BI[row, item]
    scores_BI[:, never] = NEVER
    scores_BI[row, item] = NEVER
    item_idx, values = best(scores_BI, k, rows.user_key, seed)
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


def _relevant(part: Queries, mask_history: bool) -> tuple[Tensor, Tensor]:
    """Sorted keys row * I + item of the relevant items, and how many each row has, int64 [rows]."""
    key = (part.relevant.row_idx() * part.num_items + part.relevant.item_idx).sort().values
    if mask_history and len(key):
        seen = part.seen.row_idx() * part.num_items + part.seen.item_idx
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


def _block_rows(num_items: int, device: torch.device, memory_bytes: int | None) -> int:
    """Users to score at a time, by each of the threads."""
    if memory_bytes is None:
        memory_bytes = _free_bytes(device) // 4
    largest = max(_BLOCK_BYTES[0].get(device.type, _BLOCK_BYTES[1]), 4 * num_items * _FEWEST_ROWS)
    rows = min(largest, memory_bytes // (_BYTES_A_SCORE * _workers(device))) // (4 * num_items)
    return 2 ** (rows.bit_length() - 1) if rows > 1 else 1  # whole vectors: products are far faster


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
