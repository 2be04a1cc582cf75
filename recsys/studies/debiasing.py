"""Logged clicks weighed by how rarely the policy shows what was clicked, beside what is true.

A log holds clicks on what was shown. Each of its places was filled with video i with a known probability p (the
propensity), and is looked at with probability e; so [clicked] / (p e) at the place, where i is in a list, is an
unbiased estimate of the clicks that the list's videos would get, were each of them looked at once: inverse propensity
scoring (Horvitz and Thompson 1952; for recommendation Schnabel et al., "Recommendations as Treatments", ICML 2016).
Its self-normalised form, a share of the sum of all weights, is biased a little and varies far less (Swaminathan and
Joachims, NIPS 2015).

Shapes: Q users, K list length, I items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor

from recsys.answer_key import raw_item_ids
from recsys.data.datamodule import RecDataModule
from recsys.evaluation.estimates import ratio
from recsys.evaluation.ranking import rank
from recsys.features.vocabulary import id_keys
from recsys.schema import ITEM_ID, LABEL, NUM_RESERVED, USER_ID, Interactions, Queries
from recsys.world.behaviour import examination
from recsys.world.oracle import RelevanceScorer

PROPENSITY, POSITION = "propensity", "position"
AT_ONCE = 512  # users whose relevance is held at a time


def study(data: RecDataModule, score: Callable[..., Tensor], k: Sequence[int] = (20,), seed: int = 0) -> pl.DataFrame:
    """What a model's lists are worth by three estimators from the test part of a log, and in truth where it is known.

    Whose lists: every user known by the cut who comes afterwards, whether they click or not. What counts: videos that
    were candidates at the cut and that the user had not liked, as these alone can be recommended.
        naive: of the logged positives the share that stands in the lists;
        snips: the same, each weighed by 1 / (propensity * examination);
        ips: the sum of the weights of those in the lists over the places of the log: the clicks that a list would
            bring, were each of its videos looked at.
    The truth of naive and snips is the share of all relevance that lists hold, of ips their relevance, users counted by
    their places; relevance is that of the day of the cut.

    Args:
        score: a retriever's scorer.
        k: lengths of lists.

    Returns: one row an estimator and k: estimator, k, value, low and high (95%, over users), truth, error (value -
        truth), and effective: how many positives of equal weight would vary as much, as a share of them (Kish).
    Raises:
        ValueError: the log has no propensities, or no time divides train from test; the message says what is missing.
    """
    rows, queries = _rows(data)
    lists_QK = rank(score, queries, max(k), seed=seed)
    truth = _truth(data, queries, lists_QK, rows, k)
    where = lists_QK[torch.from_numpy(rows["query"].to_numpy().copy())]
    same = where == torch.from_numpy(rows["item_idx"].to_numpy().copy())[:, None]
    place = torch.where(same.any(1), same.int().argmax(1), max(k))
    rows = rows.with_columns(place=pl.Series(place.numpy()), one=pl.lit(1.0))
    table = []
    for cut in k:
        hit = pl.when(pl.col("place") < cut).then(pl.col("positive")).otherwise(0.0)
        for name, weight, below in (
            ("naive", pl.col("one"), pl.col("positive")),
            ("snips", pl.col("weight"), pl.col("weight") * pl.col("positive")),
            ("ips", pl.col("weight"), pl.col("one")),
        ):
            found = ratio(rows.select("user_key", above=weight * hit, below=below))
            clicked = rows.filter(pl.col("positive") > 0).select(w=weight)["w"]
            effective = float(clicked.sum()) ** 2 / float((clicked**2).sum()) / len(clicked)
            row: dict[str, Any] = {"estimator": name, "k": cut, "value": found and found.value}
            row |= {"low": found and found.low, "high": found and found.high}
            true = truth.get((name == "ips", cut))
            row |= {"truth": true, "error": None if true is None or found is None else found.value - true}
            table.append(row | {"effective": effective})
    return pl.DataFrame(table, infer_schema_length=None)


def _rows(data: RecDataModule) -> tuple[pl.DataFrame, Queries]:
    """Places of the log after the cut: query, user_key, item_idx, weight, and positive, 1.0 for what counts as one. And
    the users that they were shown to."""
    test = data.split.test
    if PROPENSITY not in test.columns or LABEL not in test.columns:
        lacking = PROPENSITY if PROPENSITY not in test.columns else LABEL
        raise ValueError(f"{data.log.name}: rows have no column {lacking}: keep it, and the rows without a click")
    if data.split.test_cut is None:
        raise ValueError(f"{data.log.name}: no moment divides train from test: take split=global_time")
    user_idx, item_idx = data.users.encode(test[USER_ID]), data.items.encode(test[ITEM_ID])
    known = pl.Series((user_idx >= NUM_RESERVED).numpy())
    test = test.with_columns(item_idx=pl.Series(item_idx.numpy()), user=pl.Series(user_idx.numpy())).filter(known)
    asked = torch.from_numpy(test["user"].unique().sort().to_numpy().copy())
    history, size = data.history.select(asked), data.schema.num_items
    query = torch.searchsorted(asked, torch.from_numpy(test["user"].to_numpy().copy()))
    seen = torch.isin(
        query * size + torch.from_numpy(test["item_idx"].to_numpy().copy()), history.row_idx() * size + history.item_idx
    )
    counts = data.test.candidates[torch.from_numpy(test["item_idx"].to_numpy().copy())] & ~seen
    world = data.log.world
    looked = torch.ones(test.height, dtype=torch.float64)
    if world is not None and POSITION in test.columns:
        looked = examination(world)[torch.from_numpy(test[POSITION].cast(pl.Int64).to_numpy().copy())]
    ids = data.users.decode(asked)
    rows = test.select(
        pl.Series("query", query.numpy()), pl.Series("user_key", torch.from_numpy(id_keys(ids).copy())[query].numpy()),
        "item_idx",
        weight=1 / (pl.col(PROPENSITY).cast(pl.Float64) * pl.Series(looked.numpy())),
        positive=((pl.col(LABEL) == 1) & pl.Series(counts.numpy())).cast(pl.Float64),
    )  # fmt: skip
    queries = Queries(
        user_idx=asked,
        user_key=torch.from_numpy(id_keys(ids).copy()),
        history=history,
        relevant=Interactions.empty(len(asked), size),
        num_cold_relevant=torch.zeros_like(asked),
        warm=data.train.row_counts()[asked] > 0,
        candidates=data.test.candidates,
    )
    return rows, queries


def _truth(
    data: RecDataModule, queries: Queries, lists_QK: Tensor, rows: pl.DataFrame, k: Sequence[int]
) -> dict[tuple[bool, int], float]:
    """By (whether as a sum, cut-off): the relevance of lists a place, and its share of that of all candidates."""
    world = data.log.world
    if world is None:
        return {}
    relevance = RelevanceScorer(world, raw_item_ids(data), data.split.test_cut)
    places_Q = torch.bincount(torch.from_numpy(rows["query"].to_numpy().copy()), minlength=len(queries)).double()
    all_Q, held_QK = torch.zeros(len(queries), dtype=torch.float64), torch.zeros(lists_QK.shape, dtype=torch.float64)
    low = 0
    for part in queries.blocks(AT_ONCE):
        rows_B = slice(low, low := low + len(part))
        true_BI = relevance.score(part.batch()).double()
        true_BI[:, ~queries.candidates] = 0
        true_BI[part.seen.row_idx(), part.seen.item_idx] = 0
        held_QK[rows_B] = true_BI.gather(1, lists_QK[rows_B].clamp(min=0)) * (lists_QK[rows_B] >= 0)
        all_Q[rows_B] = true_BI.sum(1)
    found = {}
    for cut in k:
        held = float((held_QK[:, :cut].sum(1) * places_Q).sum())
        found[True, cut] = held / float(places_Q.sum())
        found[False, cut] = held / float((all_Q * places_Q).sum())
    return found
