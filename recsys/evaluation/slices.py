"""The same figures for parts of the users, or for parts of what is relevant to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import torch

from recsys.evaluation.estimates import estimate
from recsys.evaluation.ranking import Evaluation
from recsys.schema import Queries

MOST_GROUPS, MOST_VALUES = 8, 64
UNKNOWN, OTHER = "unknown", "other"


def groups(values: pl.Series, *, amounts: bool = False) -> pl.Series:
    """A group for each of n rows by its value, Enum [n], whose categories are in the order of a table.

    Amounts (all fractions are, and whole numbers of more than 64 values) become quarters of the rows, named by their
    ends; of other values the eight most frequent keep their names and the rest is "other". Null is "unknown".
    """
    distinct = values.n_unique()
    if values.dtype.is_float() or amounts or (values.dtype.is_integer() and distinct > MOST_VALUES):
        return _quarters(values)
    text = values.cast(pl.String)
    counts = text.drop_nulls().value_counts().sort("count", text.name, descending=[True, False])
    kept = counts.head(MOST_GROUPS)[:, 0].to_list()
    order = [*kept, *([OTHER] if counts.height > len(kept) else []), UNKNOWN]
    named = pl.DataFrame({"t": text}).select(
        pl.when(pl.col("t").is_null()).then(pl.lit(UNKNOWN)).when(pl.col("t").is_in(kept)).then("t").otherwise(
            pl.lit(OTHER)
        ).alias("group")
    )  # fmt: skip
    return named["group"].cast(pl.Enum(list(dict.fromkeys(order))))


def _quarters(values: pl.Series) -> pl.Series:
    """Quarters of the rows, fewer where values are tied."""
    ends = [values.quantile(share, interpolation="lower") for share in (0.25, 0.5, 0.75)]
    above = [pl.col("v") > end for end in sorted({end for end in ends if end is not None})]
    rows = pl.DataFrame({"v": values}).with_columns(place=pl.sum_horizontal(pl.lit(0), *above))
    rows = rows.with_columns(place=pl.when(pl.col("v").is_null()).then(None).otherwise("place"))
    found = rows.drop_nulls().group_by("place").agg(low=pl.col("v").min(), high=pl.col("v").max()).sort("place")
    low, high = (pl.col(c) if values.dtype.is_integer() else pl.col(c).round_sig_figs(3) for c in ("low", "high"))
    name = (
        pl.when(pl.col("low") == pl.col("high")).then(pl.format("{}", low)).otherwise(pl.format("{} to {}", low, high))
    )
    found = found.select("place", group=name)
    joined = rows.join(found, on="place", how="left", maintain_order="left")["group"].fill_null(UNKNOWN)
    return joined.cast(pl.Enum([*found["group"], UNKNOWN]))


def by_users(per_user: pl.DataFrame, group: pl.DataFrame, metrics: Sequence[str]) -> pl.DataFrame:
    """Metrics of groups of users.

    Args:
        per_user: what was measured, one row a query or, of a ranker, a user.
        group: user_key and group, of `groups`; users that it does not have are "unknown".
        metrics: columns such as recall@20; of a ranker log_loss, calibration or grouped_auc.

    Returns: one row a group: group, queries, and of each metric its value and <metric>/low and
        <metric>/high, the 95% interval over users; null where one user has no interval.
    """
    rows = per_user.join(group.select("user_key", "group").unique("user_key"), on="user_key", how="left")
    rows = rows.with_columns(pl.col("group").fill_null(UNKNOWN))
    return _table({name: rows.filter(pl.col("group") == name) for name in _order(rows["group"])}, metrics)


def by_items(
    evaluate: Callable[..., Evaluation], score: Callable[..., Any], queries: Queries, group: pl.Series,
    metrics: Sequence[str],
) -> pl.DataFrame:  # fmt: skip
    """Metrics where only the items of one group are relevant, to the queries that have such; lists stay what they are.

    Args:
        evaluate: `recsys.evaluation.evaluate` with its options bound.
        group: of each item, of `groups`, [I].

    Returns: as `by_users`.
    """
    parts = {}
    for name in _order(group):
        about = queries.about(torch.from_numpy((group == name).to_numpy(writable=True)))
        if len(about):
            parts[name] = evaluate(score=score, queries=about, num_replicates=0).per_user
    return _table(parts, metrics)


def _order(group: pl.Series) -> list[str]:
    there = set(group.unique().to_list())
    assert isinstance(group.dtype, pl.Enum)
    return [name for name in group.dtype.categories if name in there]


def _table(parts: dict[str, pl.DataFrame], metrics: Sequence[str]) -> pl.DataFrame:
    table = []
    for name, part in parts.items():
        row: dict[str, Any] = {"group": name, "queries": part.height}
        for metric in metrics:
            found = estimate([part], metric)
            single = part[metric].mean() if metric in part.columns and "@" in metric else None
            row[metric] = single if found is None else found.value
            row[f"{metric}/low"], row[f"{metric}/high"] = found and found.low, found and found.high
        table.append(row)
    return pl.DataFrame(table, infer_schema_length=None)
