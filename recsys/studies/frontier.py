"""What an approximate index loses and gains: recall, speed and size over its settings, and the cheapest that will do.

Shapes: N vectors, B queries, D dimension, K list length, M settings.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from recsys import atomic, loggers, tracking
from recsys.data.datamodule import RecDataModule
from recsys.evaluation.ranking import evaluate_lists
from recsys.faiss_factory import POINTS, check_factory
from recsys.index import ItemIndex, Metric
from recsys.models.base import Retriever
from recsys.run import Run
from recsys.schema import NUM_RESERVED, Interactions, Prefixes, Queries
from recsys.training import again
from recsys.world.oracle import utility

EXACT = "Flat", "exact"  # factories whose recall is 1 and need not be measured to be sure
CONFIDENCE = 0.95  # with which all lower bounds of a frame hold at once

Worth = Callable[[Tensor], Mapping[str, Tensor | float]]

_TIMES = "batch_qps", "single_qps", "p50_ms", "p99_ms"
_REPEATS = 3  # timings of all queries
_WARM_UP = 16  # single queries
_PROBES, _EFFORTS = [2**n for n in range(9)], [2**n for n in range(6, 10)]
_TAIL = 20  # random draws that lie below a bound: more would move it by less than queries do
_GATHERED = 2**24  # numbers held at a time where lists are scored anew


def settings(
    num_vectors: int, dim: int, factories: Sequence[str] | None = None, *, on_gpu: bool = False
) -> list[tuple[str, str]]:
    """(factory, search) pairs to try, those of a factory in order of effort.

    Without `factories` what is legal for so many vectors of: Flat; IVF with about 4 sqrt(N) lists of whole vectors, of
    4-bit codes that are ranked anew by whole vectors, and of 8-bit codes; HNSW. nprobe goes up to half of the lists and
    256 at most, efSearch from 64 to 512 (faiss never takes less than K).

    Raises:
        ValueError: one of `factories` cannot be built.
    """
    check = partial(check_factory, dim=dim, num_vectors=num_vectors, metric="inner_product", on_gpu=on_gpu)
    if factories is not None:
        for factory in factories:
            check(factory)
        return [pair for factory in factories for pair in _ladder(factory)]
    most = max(num_vectors // POINTS[0], 1)
    lists = 2 ** min(round(math.log2(4 * math.sqrt(max(num_vectors, 1)))), most.bit_length() - 1)
    parts = max((m for m in range(1, dim // 2 + 1) if dim % m == 0), default=0)
    found = []
    bodies = "Flat", f"PQ{parts}x4fs,RFlat", f"PQ{parts}np"  # np: trained in a fifth of the time, finds the same
    for factory in ("Flat", *(f"IVF{lists},{body}" for body in bodies if lists > 1), "HNSW32"):
        try:
            check(factory)
        except ValueError:
            continue
        found += _ladder(factory)
    return found


def _ladder(factory: str) -> list[tuple[str, str]]:
    lists = int(match[1]) if (match := re.search(r"IVF(\d+)", factory)) else 0
    refined = ",k_factor_rf=8" if ",RFlat" in factory or ",Refine" in factory else ""
    if lists:
        steps = [f"nprobe={n}" for n in _PROBES if n <= max(lists // 2, 1)]
    elif re.search(r"(^|,)HNSW", factory):
        steps = [f"efSearch={n}" for n in _EFFORTS]
    else:
        return [(factory, refined.lstrip(","))]
    return [(factory, step + refined) for step in steps]


def sweep(
    vectors_ND: Tensor,
    queries_BD: Tensor,
    chosen: Sequence[tuple[str, str]],
    *,
    ids: Tensor | None = None,
    k: int = 100,
    metric: Metric = "inner_product",
    exclude: Interactions | Prefixes | None = None,
    batch: int = 1024,
    singles: int = 300,
    seed: int = 0,
    device: str | Sequence[int] = "cpu",
    worth: Worth | None = None,
) -> pl.DataFrame:
    """Each setting beside exact search. One index is built a factory; only one is in memory at a time.

    Args:
        chosen: (factory, search) pairs, as `settings` gives them.
        ids: of the vectors; None: 0, 1, …, N - 1.
        exclude: B rows of ids that are not to be returned.
        batch: queries asked at a time for batch_qps; singles: how many queries are asked one by one.
        worth: called with the ids found, int64 [B, K], -1 where there is none; gives means, or a value a query.

    Returns: one row a pair, in the order of the factories:
        factory, search; build_seconds (0 where the index of the row before is used again), megabytes (faiss' index).
        batch_qps: queries a second in batches, median of three passes after one that does not count, taken in turn with
            the factory's other settings; single_qps, p50_ms, p99_ms: one by one.
        recall: share of the K true nearest that is returned, items as near as the K-th true one counted as found.
        recall_low: its lower bound: with 95 % confidence all of the frame hold at once (see `lower_bounds`).
        what `worth` gives by its names, and name_lost: how far it lies below that of exact search, in hundredths.
    Raises:
        ValueError: nothing is chosen, no query, batch or singles below 1, or what `ItemIndex` refuses.
    """
    for name, value in {"batch": batch, "singles": singles}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not chosen or not len(queries_BD):
        raise ValueError(f"got {len(chosen)} settings and {len(queries_BD)} queries: give at least one of each")
    ids = torch.arange(len(vectors_ND)) if ids is None else ids
    asked = Asked(queries_BD, k, exclude, batch)
    flat = ItemIndex(vectors_ND, ids, metric=metric, device=device, seed=seed)
    share = TrueShare(flat, vectors_ND, ids, asked)
    best = {} if worth is None else _means(worth(share.ids_BK))
    del flat
    rows, shares = [], []
    for factory in dict.fromkeys(factory for factory, _ in chosen):
        began = time.perf_counter()
        index = ItemIndex(vectors_ND, ids, factory=factory, metric=metric, device=device, seed=seed)
        costs = {"build_seconds": time.perf_counter() - began, "megabytes": index.num_bytes / 1e6}
        for row, ids_BK in _measured(index, [s for f, s in chosen if f == factory], asked, singles):
            shares.append(share(ids_BK))
            found = {} if worth is None else _means(worth(ids_BK))
            lost = {f"{name}_lost": 100 * (best[name] - value) for name, value in found.items()}
            told = {name: value for pair in zip(found.items(), lost.items(), strict=True) for name, value in pair}
            rows.append({"factory": factory, **row, **costs, "recall": float(shares[-1].mean()), **told})
            costs["build_seconds"] = 0.0
        del index
    low_M = lower_bounds(torch.stack(shares, 1), seed=seed)
    sure = pl.when(pl.col("factory").is_in(EXACT)).then(1.0).otherwise(pl.Series(low_M.numpy()))
    first = ["factory", "search", "build_seconds", "megabytes", *_TIMES, "recall", "recall_low"]
    return pl.DataFrame(rows).with_columns(recall_low=sure).select(*first, pl.exclude(first))


def cheapest(frame: pl.DataFrame, recall: float, by: str = "batch_qps") -> dict[str, Any]:
    """The row of the best setting whose recall is sure to be at least `recall`.

    The winner of many is one whose recall came out too high more often than not, the more so the more settings lie near
    the wanted recall. Therefore recall_low is no bound of a row alone: with 95 % confidence all of a frame hold at
    once, so any may be picked by them, for any reason, and still holds on other queries of the kind.

    Args:
        frame: of `sweep`.
        recall: in (0, 1].
        by: batch_qps or single_qps (the highest), megabytes (the lowest, of equals the one of highest batch_qps).

    Raises:
        ValueError: no setting is sure to keep it; the message names the one that comes nearest.
    """
    if by not in ("batch_qps", "single_qps", "megabytes"):
        raise ValueError(f"by={by}: expected batch_qps, single_qps or megabytes")
    check_recall(recall)
    passing = frame.filter(pl.col("recall_low") >= recall)
    if not len(passing):
        row = frame.sort("recall_low", descending=True).row(0, named=True)
        named = f"{row['factory']} {row['search']}".strip()
        raise ValueError(
            f"recall={recall}: no setting is sure to keep it, the best is {named} with at least "
            f"{row['recall_low']:.4f}; ask for less, or give more queries or settings"
        )
    order = [by, "batch_qps"] if by == "megabytes" else [by]
    return passing.sort(order, descending=[name != "megabytes" for name in order]).row(0, named=True)


def check_recall(recall: float) -> None:
    """Whether a recall can be asked for.

    Raises:
        ValueError: it cannot.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall={recall}: expected a number above 0 and at most 1")


def lower_bounds(share_BM: Tensor, confidence: float = CONFIDENCE, seed: int = 0) -> Tensor:
    """Lower bounds of the means of M columns over all queries there could be, float64 [M]; with this confidence none
    of them lies above its mean.

    Each errs with (1 - confidence) / M. It is Gaffke's bound ("Three test statistics for a nonparametric one-sided
    hypothesis on the mean of a nonnegative variable", 2005): a low quantile of the mean under random Dirichlet weights,
    one of which falls on a 0 that was not seen. It takes the values to lie in [0, 1] and nothing else: near 1, where
    most queries lose nothing and few lose much, a bound by Student's t errs far more often than it says. Of a column of
    ones it is that of Clopper and Pearson.

    Args:
        share_BM: in [0, 1], one row a query.
    """
    share_BM = share_BM.double()
    num_queries, num_columns = share_BM.shape
    draws = math.ceil(_TAIL * num_columns / (1 - confidence))
    generator = torch.Generator().manual_seed(seed)
    means = []
    for begin in range(0, draws, step := max(1, _GATHERED // (num_queries + 1))):
        weight_RB = torch.empty(min(step, draws - begin), num_queries + 1, dtype=torch.float64)
        weight_RB.exponential_(generator=generator)
        means.append(weight_RB[:, 1:] @ share_BM / weight_RB.sum(1, keepdim=True))
    return torch.cat(means).kthvalue(_TAIL, dim=0).values


class Asked:
    """Queries, and how they are asked. The arguments are those of `sweep`."""

    def __init__(
        self, queries_BD: Tensor, k: int, exclude: Interactions | Prefixes | None = None, batch: int = 1024
    ) -> None:
        self.queries_BD, self.k, self.exclude, self.batch = queries_BD, k, exclude, batch

    def part(self, begin: int, end: int) -> tuple[Tensor, Interactions | None]:
        """Queries begin..end, and what they exclude."""
        exclude = None if self.exclude is None else self.exclude.rows(begin, end)
        return self.queries_BD[begin:end], exclude

    def answers(self, index: ItemIndex) -> Tensor:
        """ids [B, K]."""
        found, num_queries = [], len(self.queries_BD)
        for begin in range(0, num_queries, self.batch):
            queries_BD, exclude = self.part(begin, min(begin + self.batch, num_queries))
            found.append(index.search(queries_BD, self.k, exclude=exclude)[1])
        return torch.cat(found)

    def latencies(self, index: ItemIndex, singles: int) -> np.ndarray:
        """Seconds of single queries."""
        parts = [self.part(row, row + 1) for row in range(min(singles, len(self.queries_BD)))]
        for queries_BD, exclude in parts[:_WARM_UP]:
            index.search(queries_BD, self.k, exclude=exclude)
        clock = [time.perf_counter()]
        for queries_BD, exclude in parts:
            index.search(queries_BD, self.k, exclude=exclude)
            clock.append(time.perf_counter())
        return np.diff(clock)


def _measured(
    index: ItemIndex, searches: Sequence[str], asked: Asked, singles: int
) -> list[tuple[dict[str, Any], Tensor]]:
    """Timings and answers of each search setting."""
    answers, seconds_RM = [], np.zeros((_REPEATS, len(searches)))
    for search in searches:  # these warm up
        index.set_search(search)
        answers.append(asked.answers(index))
    for repeat in range(_REPEATS):
        for place, search in enumerate(searches):
            index.set_search(search)
            began = time.perf_counter()
            asked.answers(index)
            seconds_RM[repeat, place] = time.perf_counter() - began
    rows = []
    for search, seconds in zip(searches, np.median(seconds_RM, 0), strict=True):
        index.set_search(search)
        single_S = asked.latencies(index, singles)
        middle, late = 1e3 * np.quantile(single_S, [0.5, 0.99])
        times = len(asked.queries_BD) / seconds, 1 / single_S.mean(), middle, late
        rows.append({"search": search, **dict(zip(_TIMES, map(float, times), strict=True))})
    return list(zip(rows, answers, strict=True))


class TrueShare:
    """What share of the true nearest a list holds. `ids_BK` are the true ones, as exact search found them.

    Scores are made anew in float64, the same way for both, so that what ties with the last of the true ones counts as
    found, whichever of equals either search returned.
    """

    def __init__(self, exact: ItemIndex, vectors_ND: Tensor, ids: Tensor, asked: Asked) -> None:
        self.ids_BK = asked.answers(exact).cpu()
        vectors_ND = vectors_ND.detach().cpu()
        self._vectors_ND = F.normalize(vectors_ND, dim=1) if exact.metric == "cosine" else vectors_ND
        self._queries_BD = asked.queries_BD.detach().cpu().double()
        self._sorted_ids, self._row_of = ids.cpu().sort()
        there_BK = self.ids_BK >= 0
        self._count_B = there_BK.sum(1)
        self._lowest_B = self._scores(self.ids_BK).masked_fill(~there_BK, torch.inf).amin(1)

    def __call__(self, ids_BK: Tensor) -> Tensor:
        """float64 [B]; 1 where there is nothing to find."""
        ids_BK = ids_BK.cpu()
        near_BK = (self._scores(ids_BK) >= self._lowest_B[:, None]) & (ids_BK >= 0)
        return torch.where(self._count_B > 0, near_BK.sum(1) / self._count_B.clamp(min=1).double(), 1.0)

    def _scores(self, ids_BK: Tensor) -> Tensor:
        scores_BK = torch.empty(ids_BK.shape, dtype=torch.float64)
        row_BK = self._row_of[torch.searchsorted(self._sorted_ids, ids_BK.clamp(min=int(self._sorted_ids[0])))]
        step = max(1, _GATHERED // (ids_BK.shape[1] * self._vectors_ND.shape[1]))
        for part_B in torch.arange(len(ids_BK)).split(step):
            vectors_BKD = self._vectors_ND[row_BK[part_B]].double()
            scores_BK[part_B] = (vectors_BKD * self._queries_BD[part_B, None]).sum(-1)
        return scores_BK


def _means(found: Mapping[str, Tensor | float]) -> dict[str, float]:
    return {name: float(torch.as_tensor(value).double().mean()) for name, value in found.items()}


@torch.no_grad()
def of_run(
    run: Run,
    data: RecDataModule | None = None,
    factories: Sequence[str] | None = None,
    *,
    k: int = 100,
    at: int = 20,
    most: int = 5000,
    seed: int = 0,
    **options: Any,
) -> pl.DataFrame:
    """What indexes of a run's items lose and gain on its test queries.

    Queries that the fallback answers are left out. What the model may not recommend again is excluded, as the run's
    evaluation does.

    Args:
        data: the run's own; None: they are read again, as `recsys.training.evaluate` does.
        factories: None: the default `settings`.
        at: cut-off of recall@20, precision@20 (the evaluator's, of those lists) and, on a world, clicks@20 (what one
            visit is expected to bring, see `recsys.answer_key`). Items of equal score come in an order of the index's.
        most: queries; of more so many are drawn.
        options: of `sweep`.

    Raises:
        ValueError: the model's score is no inner product, it knows no test user, queries bring lists of their own, or
            as `sweep`.
    """
    model = run.model
    if not isinstance(model, Retriever) or not model.factored:
        what = f"{type(model).__name__} does not score by an inner product"
        raise ValueError(f"{run.path} cannot be indexed: {what}; train one that does, as model=als or two_tower")
    data = again(run.path)[1].data if data is None else data
    if data.test.lists is not None:
        raise ValueError(f"{run.path}: its queries bring their own lists, an index searches all items: evaluate it")
    queries = _known(model, data.test, most, seed)
    parts = [model.encode_users(part.to(model.device).batch()).float().cpu() for part in queries.blocks(1024)]
    item_idx = queries.candidates.nonzero()[:, 0]
    vectors_ND = model.encode_items(torch.arange(queries.num_items, device=model.device))[item_idx.to(model.device)]
    chosen = settings(len(item_idx), vectors_ND.shape[1], factories, on_gpu=options.get("device", "cpu") != "cpu")
    exclude = queries.history if run.config.evaluation.mask_history else None
    return sweep(
        vectors_ND.float().cpu(), torch.cat(parts), chosen, ids=item_idx, k=k, exclude=exclude, seed=seed,
        worth=_worth(run, data, queries, min(at, k, len(item_idx))), **options,
    )  # fmt: skip


@torch.no_grad()
def record(run: Run, frame: pl.DataFrame, best: Mapping[str, Any] | None, words: list[str]) -> None:
    """Give the trackers that `words` choose, as "logger=wandb", the frontier: its picture, the figures of the best
    setting and, as an artifact, the index of all items by that setting, beside the frame.

    Args:
        frame: of `of_run`. best: a row of it; None: none is good enough, and there is no index.

    Raises:
        ValueError: a word does not fit.
    """
    from recsys.plots import plot_frontier

    folder = run.path / tracking.WANDB / "index"  # it stays: what is recorded offline is uploaded from there
    if best is not None:
        item_idx = torch.arange(NUM_RESERVED, len(run.items))
        vectors_ND = run.model.encode_items(item_idx.to(run.model.device)).float().cpu()
        index = ItemIndex(vectors_ND, item_idx, factory=best["factory"], search=best["search"], seed=run.config.seed)
        index.save(folder, key=run.manifest["data"]["fingerprint"])
    atomic.write(folder / "frontier.parquet", frame.write_parquet)
    charts = {}
    with suppress(ValueError):  # more factories than colours
        charts["frontier"] = plot_frontier(frame)
    metrics = {f"index/{name}": value for name, value in (best or {}).items()}
    loggers.record_phase(run, "index", words, metrics, charts, {"index": folder})


def _known(model: Retriever, queries: Queries, most: int, seed: int) -> Queries:
    """The queries that the model itself answers, at most so many."""
    known_Q = torch.cat([model.personal(part.to(model.device).batch()).cpu() for part in queries.blocks(1024)])
    row_B = known_Q.nonzero()[:, 0]
    if not len(row_B):
        raise ValueError(f"the model knows none of {len(queries)} test users: there is nothing to ask an index")
    generator = torch.Generator().manual_seed(seed)
    row_B = row_B[torch.randperm(len(row_B), generator=generator)[:most].sort().values]
    names = ("user_idx", "user_key", "num_cold_relevant", "warm", "query_key")
    chosen: dict[str, Any] = {n: getattr(queries, n)[row_B] for n in names if getattr(queries, n) is not None}
    return replace(queries, history=queries.history.select(row_B), relevant=queries.relevant.select(row_B), **chosen)


def _worth(run: Run, data: RecDataModule, queries: Queries, at: int) -> Worth:
    """What lists of these queries are worth, by the evaluator and, on a world, by its truth."""
    world, cut = data.log.world, data.split.test_cut
    on_world = world is not None and cut is not None and data.queries == "users" and at <= world.max_depth
    options = {"seed": run.config.seed, "mask_history": run.config.evaluation.mask_history, "num_replicates": 0}

    def worth(ids_BK: Tensor) -> dict[str, Tensor | float]:
        metrics = evaluate_lists(ids_BK[:, :at], queries, k=[at], **options).metrics
        found: dict[str, Tensor | float] = {f"{name}@{at}": metrics[f"{name}@{at}"] for name in ("recall", "precision")}
        if on_world:
            found[f"clicks@{at}"] = _clicks(data, queries.user_key, ids_BK[:, :at])
        return found

    return worth


def _clicks(data: RecDataModule, user_id: Tensor, item_idx_BK: Tensor) -> Tensor:
    """Clicks to expect of each list, float64 [B]; a short one ends where nothing more was found."""
    clicks_B = torch.zeros(len(item_idx_BK), dtype=torch.float64)
    world: Any = data.log.world
    item_ids = torch.from_numpy(data.items.ids.to_numpy(writable=True))
    length_B = (item_idx_BK >= 0).sum(1)
    for length in filter(None, length_B.unique().tolist()):
        row = (length_B == length).nonzero()[:, 0]
        lists = item_ids[item_idx_BK[row, :length] - NUM_RESERVED]
        clicks_B[row] = utility(world, user_id[row], lists, data.split.test_cut)[0]
    return clicks_B
