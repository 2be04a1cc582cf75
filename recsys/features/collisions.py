"""What hashing into few buckets loses: values that share a bucket, and how much of the log they make up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import polars as pl
import torch

from recsys.config import nearest
from recsys.features.base import FeatureError
from recsys.features.crosses import cross
from recsys.features.hashing import buckets
from recsys.features.vocabulary import categories
from recsys.schema import LABEL


def collisions(
    rows: pl.LazyFrame | pl.DataFrame,
    columns: str | Sequence[str],
    num_buckets: Sequence[int],
    *,
    num_hashes: int = 1,
    seed: int = 0,
    label: str | None = LABEL,
) -> pl.DataFrame:
    """Collisions of a hashed column, or of a cross, for several numbers of buckets, beside what chance would give.

    Two values collide where they agree in all their indices, as `Hashed` gives them. Of n values in m buckets by k
    hashes, n (1 - (1 - m**-k)**(n - 1)) are expected to collide.

    Args:
        rows: the log; lazy ones are read in one streaming pass, in the memory of the distinct values.
        columns: one column, or those of a cross in their order.
        label: a column of 0/1 whose positives are counted apart; None where there is none.

    Returns: one row a number of buckets: num_buckets, values, used (buckets by the first hash), expected_used,
        colliding (values that share), expected_colliding, rows_affected and positives_affected (shares of all rows and
        of all positives whose value collides).
    Raises:
        FeatureError: no rows, or a column that is missing or cannot be hashed.
    """
    names = [columns] if isinstance(columns, str) else list(columns)
    present = rows.collect_schema()
    for name in (*names, *([] if label is None else [label])):
        if name not in present:
            raise FeatureError(f"no column {name!r}: {nearest(name, present)}")
    positive = pl.lit(0) if label is None else pl.col(label).cast(pl.Int64)
    counted = rows.lazy().group_by(names).agg(pl.len().alias("_rows"), positive.sum().alias("_positives"))
    found = counted.collect(engine="streaming").drop_nulls(names if len(names) == 1 else [])
    if found.is_empty():
        raise FeatureError(f"no values of {', '.join(names)} to hash: give rows")
    values = [categories(found[name]) for name in names]
    hashes = [cross(values, seed + k) for k in range(num_hashes)]
    n, total = found.height, found.select(pl.col("_rows", "_positives").sum()).row(0)
    report = []
    for m in num_buckets:
        places = torch.stack([buckets(hashed, m) for hashed in hashes], 1)
        _, place, sharing = places.unique(dim=0, return_inverse=True, return_counts=True)
        collides = pl.Series((sharing[place] > 1).numpy())
        affected = found.filter(collides).select(pl.col("_rows", "_positives").sum()).row(0)
        report.append(
            {
                "num_buckets": m,
                "values": n,
                "used": places[:, 0].unique().numel(),
                "expected_used": m * _hit(n, m),
                "colliding": int(collides.sum()),
                "expected_colliding": n * _hit(n - 1, m**num_hashes),
                "rows_affected": affected[0] / total[0],
                "positives_affected": affected[1] / total[1] if total[1] else None,
            }
        )
    schema = {"expected_colliding": pl.Float64, "positives_affected": pl.Float64}
    return pl.DataFrame(report, schema_overrides=schema)


def _hit(n: int, places: int) -> float:
    """The probability that at least one of n falls into a given place: 1 - (1 - 1 / places)**n."""
    return -math.expm1(n * math.log1p(-1 / places)) if places > 1 else float(n > 0)
