"""Lists or scores that any other tool made, measured as our own are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import polars as pl
import torch

from recsys.config import nearest
from recsys.evaluation.beyond import Items
from recsys.evaluation.ranking import Evaluation, evaluate_lists
from recsys.features.vocabulary import Vocabulary, id_keys, mix64
from recsys.schema import ITEM_ID, LABEL, NUM_RESERVED, USER_ID, Interactions, Queries

if TYPE_CHECKING:
    import pandas as pd

    Frame: TypeAlias = pl.DataFrame | pl.LazyFrame | pd.DataFrame

PAIR = [USER_ID, ITEM_ID]
SCORE, RANK = "score", "rank"


def evaluate(
    predictions: Frame,
    truth: Frame,
    *,
    seen: Frame | None = None,
    catalogue: Sequence[Any] | pl.Series | None = None,
    k: Sequence[int] = (10, 20, 100),
    seed: int = 0,
    num_replicates: int = 1000,
    confidence: float = 0.95,
) -> Evaluation:
    """Measure recommendations that were made elsewhere: every metric at every K, with intervals.

    The definitions are those of a run: items of `seen` are taken out of a user's list and of what is relevant to it; a
    relevant item outside the catalogue counts as missed; a user of `truth` without a prediction counts with an empty
    list. Two of these `per_user` are compared by `recsys.evaluation.estimate`.

    Args:
        predictions: user_id, item_id, and either rank (1 is best) or score (the highest is best; ties are broken by a
            hash of seed, user and item). As many rows a user as there are: with fewer than K the rest are misses.
        truth: user_id and item_id of what each user liked afterwards; with a label the rows where it is 1.
        seen: user_id and item_id of what users had before. Without it nothing is masked, all users are strangers, and
            popularity is not known.
        catalogue: the ids that could be recommended; None: all of `predictions` and `seen`.

    Returns:
        as `recsys.evaluation.evaluate`; per_user has user_id as well, counts users_without_predictions and
        predictions_not_asked_for (rows of users that `truth` does not have).

    Raises:
        ValueError: a column is missing, ids have another type in one frame than in another, a score is missing, a
            user has an item or a rank twice, or an item is not in the catalogue; the message names frame and row.
    """
    lists, liked = _rows(predictions, "predictions"), _rows(truth, "truth")
    before = None if seen is None else _rows(seen, "seen").select(PAIR).unique()
    _same_types({"predictions": lists, "truth": liked} | ({} if before is None else {"seen": before}))
    if LABEL in liked.columns:
        liked = liked.filter(pl.col(LABEL) == 1)
    liked = liked.select(PAIR).unique()
    users = Vocabulary(liked[USER_ID].unique())
    items = Vocabulary(_catalogue(lists, before, catalogue))
    num_users, num_items = len(users.ids), len(items)

    def pairs(rows: pl.DataFrame) -> Interactions:
        row, item_idx = users.encode(rows[USER_ID]), items.encode(rows[ITEM_ID])
        kept = (row >= NUM_RESERVED) & (item_idx >= NUM_RESERVED)
        return Interactions.from_pairs(
            row[kept] - NUM_RESERVED, item_idx[kept], num_rows=num_users, num_items=num_items
        )

    history = Interactions.empty(num_users, num_items) if before is None else pairs(before)
    cold = users.encode(liked.filter(pl.Series((items.encode(liked[ITEM_ID]) < NUM_RESERVED).numpy()))[USER_ID])
    queries = Queries(
        user_idx=torch.arange(num_users) + NUM_RESERVED,
        user_key=torch.from_numpy(id_keys(users.ids).copy()),
        history=history,
        relevant=pairs(liked),
        num_cold_relevant=torch.bincount(cold - NUM_RESERVED, minlength=num_users),
        warm=history.row_counts() > 0,
        candidates=torch.arange(num_items) >= NUM_RESERVED,
    )
    is_asked = pl.Series((users.encode(lists[USER_ID]) >= NUM_RESERVED).numpy())
    ranked = _in_order(lists.filter(is_asked), before, seed).filter(pl.col("place") < max(k))
    lists_QK = torch.full((num_users, max(k)), -1)
    place = torch.from_numpy(ranked["place"].to_numpy().astype(np.int64))
    lists_QK[users.encode(ranked[USER_ID]) - NUM_RESERVED, place] = items.encode(ranked[ITEM_ID])
    found = evaluate_lists(
        lists_QK, queries, k=k, seed=seed, num_replicates=num_replicates, confidence=confidence,
        items=None if before is None else _popularity(items, before),
    )  # fmt: skip
    ids = users.decode(torch.from_numpy(found.per_user["user_idx"].to_numpy().copy()))
    counts = {
        "users_without_predictions": num_users - lists.filter(is_asked)[USER_ID].n_unique(),
        "predictions_not_asked_for": int((~is_asked).sum()),
    }
    return replace(found, per_user=found.per_user.insert_column(0, ids.alias(USER_ID)), counts=found.counts | counts)


def _rows(given: Any, name: str) -> pl.DataFrame:
    """A frame in Polars, its ids there and none of them missing."""
    rows = given.collect() if isinstance(given, pl.LazyFrame) else given
    rows = rows if isinstance(rows, pl.DataFrame) else pl.from_pandas(rows)
    for column in PAIR:
        if column not in rows.columns:
            raise ValueError(f"{name} has no column {column}: {nearest(column, rows.columns)}")
        if rows[column].null_count():
            raise ValueError(f"{name}: {column} is missing in row {rows[column].is_null().arg_max()}")
        if not (rows[column].dtype.is_integer() or rows[column].dtype == pl.String):
            raise ValueError(f"{name}: {column} is {rows[column].dtype}; ids are integers or text")
    return rows


def _same_types(frames: dict[str, pl.DataFrame]) -> None:
    for column in PAIR:
        (one, first), *others = ((name, rows[column].dtype) for name, rows in frames.items())
        for name, dtype in others:
            if dtype.is_integer() != first.is_integer():
                raise ValueError(f"{column} is {first} in {one} and {dtype} in {name}: convert one of them")


def _catalogue(lists: pl.DataFrame, before: pl.DataFrame | None, catalogue: Any) -> pl.Series:
    """The ids of all that could be recommended."""
    if catalogue is None:
        parts = [lists[ITEM_ID], *([] if before is None else [before[ITEM_ID].cast(lists[ITEM_ID].dtype)])]
        return pl.concat(parts).unique()
    ids = pl.Series(ITEM_ID, catalogue).unique()
    if ids.dtype.is_integer() != lists[ITEM_ID].dtype.is_integer():
        raise ValueError(f"the catalogue is {ids.dtype}, item_id is {lists[ITEM_ID].dtype}: convert one of them")
    outside = lists.filter(~pl.col(ITEM_ID).is_in(ids.implode()))
    if len(outside):
        user, item = outside.row(0, named=True)[USER_ID], outside.row(0, named=True)[ITEM_ID]
        raise ValueError(f"predictions: item {item}, of user {user}, is not in the catalogue")
    return ids


def _in_order(lists: pl.DataFrame, before: pl.DataFrame | None, seed: int) -> pl.DataFrame:
    """user_id, item_id and place, from 0, of what is recommended, without what was seen."""
    by = [name for name in (RANK, SCORE) if name in lists.columns]
    if not by:
        raise ValueError(f"predictions have neither rank nor score: {nearest(SCORE, lists.columns)}")
    bad = lists.filter(pl.col(by[0]).cast(pl.Float64).is_nan() | pl.col(by[0]).is_null())
    twice = lists.filter(pl.struct(PAIR).is_duplicated())
    if by[0] == RANK and twice.is_empty():
        twice = lists.filter(pl.struct(USER_ID, RANK).is_duplicated())
    for rows, what in ((bad, f"has no {by[0]}"), (twice, "stands twice, or shares its rank")):
        if len(rows):
            row = rows.row(0, named=True)
            raise ValueError(f"predictions: item {row[ITEM_ID]} of user {row[USER_ID]} {what}")
    if before is not None:
        lists = lists.join(before.cast({name: lists[name].dtype for name in PAIR}), on=PAIR, how="anti")
    keys = mix64(mix64(id_keys(lists[USER_ID]), seed) ^ mix64(id_keys(lists[ITEM_ID]), seed + 1))
    ordered = lists.with_columns(tie=keys).sort(USER_ID, by[0], "tie", descending=[False, by[0] == SCORE, False])
    return ordered.select(*PAIR, place=pl.int_range(pl.len()).over(USER_ID))


def _popularity(items: Vocabulary, before: pl.DataFrame) -> Items:
    """Which share of the users had each item."""
    count, everyone = before.group_by(ITEM_ID).len(), before[USER_ID].n_unique()
    share_I = torch.zeros(len(items))
    share_I[items.encode(count[ITEM_ID])] = torch.from_numpy(count["len"].to_numpy().astype(np.float32)) / everyone
    share_I[:NUM_RESERVED] = 0
    return Items(share_I, everyone)
