"""Where a funnel loses: stage by stage, in logged recall and in what a page would bring, beside the time it takes.

Each row adds a stage to the one above, for the same users; what it loses, or wins, is the difference:

    best             the list by true relevance; the answer key's, on a synthetic world alone
    whole catalogue  the ranker over everything: what no choice of candidates can improve on for this ranker
    retrieval        the ranker over the candidates of exact retrieval
    index            over those of an approximate index
    re-ranking       with diversity and caps
    exploration      with a share of places given away

Shapes: U users, K list length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor

from recsys.answer_key import raw_item_ids
from recsys.data.datamodule import RecDataModule
from recsys.evaluation.ranking import rank
from recsys.funnel import Funnel
from recsys.run import Run
from recsys.schema import NUM_RESERVED, PADDING, UNKNOWN, Queries
from recsys.sources import everybody
from recsys.world import World
from recsys.world.oracle import RelevanceScorer, utility

BEST, WHOLE = "best", "whole catalogue"
Z = 1.959963984540054  # 95%, two-sided


def study(
    retrievers: Mapping[str, Run],
    ranker: Run | None,
    data: RecDataModule,
    *,
    k: int = 100,
    num_candidates: Sequence[int] = (1000,),
    factory: str = "Flat",
    search: str = "",
    diversity: float = 0.0,
    caps: Mapping[str, int] | None = None,
    exploration: float = 0.0,
    num_users: int = 1000,
    seed: int = 0,
    **options: Any,
) -> pl.DataFrame:
    """The loss budget of a funnel, for users of the test part.

    Args:
        retrievers, ranker, options: see `Funnel.of_runs`.
        num_candidates: several, to see what more of them buy back: the stages below repeat for each.
        num_users: drawn from the known ones who have something relevant; all if there are fewer.

    Returns:
        one row a stage: stage, candidates, recall (of logged positives in the first K), clicks and watch_seconds (that
        a visit shown the list is expected to bring; null without an answer key), kept (of the clicks of the whole
        catalogue; of its recall without an answer key), lost with low and high (clicks, or recall, against the row
        above that it is a stage below of; 95%, paired by user), and milliseconds a user.

    Raises:
        ValueError: a run of the other kind or of other data, or no user with something relevant.
    """
    for run in retrievers.values():
        if not run.is_ranker and run.items != data.items:
            raise ValueError(f"{run.path} knows other items than {data.log.name}: was it trained on other data?")
    queries = _sample(data.test, num_users, seed)
    ids = data.users.decode(queries.user_idx)
    plain = {"seed": seed, **options}
    whole: dict[str, Any] = {"num_candidates": len(data.items), "with_popular": False, "with_fresh": False}
    stages: list[tuple[str, int | None, dict[str, Any], str]] = [(WHOLE, None, whole, BEST)]
    for size in num_candidates:
        settings: dict[str, Any] = {"num_candidates": size}
        above = WHOLE
        steps: list[tuple[str, dict[str, Any], bool]] = [
            ("retrieval", {}, True),
            ("index", {"factory": factory, "search": search}, factory != "Flat"),
            ("re-ranking", {"diversity": diversity, "caps": caps}, diversity > 0 or bool(caps)),
            ("exploration", {"exploration": exploration}, exploration > 0),
        ]
        for name, change, is_used in steps:
            if is_used:
                settings = settings | change
                stages.append((name, size, settings, above))
                above = name
    rows: list[dict[str, Any]] = []
    by_user: dict[str, Tensor] = {}
    world = data.log.world
    if world is not None:
        began = time.perf_counter()
        lists_UK = _best(world, data, queries, k)
        seconds = time.perf_counter() - began
        worth = _worth(data, queries, lists_UK)
        by_user[BEST] = worth[1]
        rows.append(_row(BEST, None, worth, seconds))
    for name, num, settings, above in stages:
        page = Funnel.of_runs(retrievers, ranker, data.log, **(plain | settings))
        if name == WHOLE:
            page.sources = {"all": everybody(torch.arange(NUM_RESERVED, len(page.items)))}
        began = time.perf_counter()
        answers = page.answers(ids, k)
        seconds = time.perf_counter() - began
        if page.failures:
            raise ValueError(f"{name}: {next(iter(page.failures))}; {answers[0].degraded}")
        width = max(answer.item_idx.shape[1] for answer in answers)
        lists_UK = torch.cat([torch.nn.functional.pad(a.item_idx, (0, width - a.item_idx.shape[1])) for a in answers])
        worth = _worth(data, queries, lists_UK)
        row, worth_U = _row(name, num, worth, seconds), worth[0 if world is None else 1]
        if above in by_user:
            lost_U = by_user[above] - worth_U
            mean, half = float(lost_U.mean()), Z * float(lost_U.std()) / math.sqrt(len(lost_U))
            row |= {"lost": mean, "low": mean - half, "high": mean + half}
        by_user[name] = worth_U
        row["kept"] = float(worth_U.mean() / by_user[WHOLE].mean())
        rows.append(row)
    return pl.DataFrame(rows, schema=SCHEMA)


SCHEMA = {
    "stage": pl.String, "candidates": pl.Int64, "recall": pl.Float64, "clicks": pl.Float64,
    "watch_seconds": pl.Float64, "kept": pl.Float64, "lost": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "milliseconds": pl.Float64,
}  # fmt: skip


def _row(stage: str, num: int | None, worth: tuple[Tensor, Tensor, Tensor], seconds: float) -> dict[str, Any]:
    recall_U, clicks_U, watch_U = worth
    return {
        "stage": stage, "candidates": num, "recall": float(recall_U.mean()),
        "clicks": float(clicks_U.mean()) if len(clicks_U) else None,
        "watch_seconds": float(watch_U.mean()) if len(watch_U) else None, "kept": None, "lost": None, "low": None,
        "high": None, "milliseconds": 1e3 * seconds / len(recall_U),
    }  # fmt: skip


def _sample(queries: Queries, num_users: int, seed: int) -> Queries:
    some = ((queries.relevant.row_counts() > 0) & (queries.user_idx > UNKNOWN)).nonzero()[:, 0]
    if not len(some):
        raise ValueError(
            "no known user of the test part has a relevant item: does the split's test part begin too late?"
        )
    if len(some) > num_users:
        chosen = torch.randperm(len(some), generator=torch.Generator().manual_seed(seed))[:num_users]
        some = some[chosen.sort().values]
    return queries.select(some)


def _worth(data: RecDataModule, queries: Queries, lists_UK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each list: the share of what is relevant, and on a world the clicks and the watched seconds to expect."""
    size = len(data.items)
    row_U1 = torch.arange(len(queries))[:, None]
    wanted = queries.relevant.row_idx() * size + queries.relevant.item_idx
    hits_U = torch.isin(row_U1 * size + lists_UK, wanted).sum(1)
    recall_U = hits_U / (queries.relevant.row_counts() + queries.num_cold_relevant)
    world = data.log.world
    if world is None:
        return recall_U.double(), torch.zeros(0), torch.zeros(0)
    held = min(lists_UK.shape[1], world.max_depth)
    clicks_U, watch_U = utility(world, queries.user_key, raw_item_ids(data)[lists_UK[:, :held]], data.split.test_cut)
    return recall_U.double(), clicks_U.double(), watch_U.double()


def _best(world: World, data: RecDataModule, queries: Queries, k: int) -> Tensor:
    """Lists by true relevance, of what may be recommended."""
    return rank(RelevanceScorer(world, raw_item_ids(data), data.split.test_cut).score, queries, k).clamp(min=PADDING)
