"""The collision report against a naive count, and against what chance gives."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
import xxhash

from recsys.features import FeatureError
from recsys.features.collisions import collisions


def log(n: int = 4000, items: int = 500) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "item_id": (items * rng.random(n) ** 2).astype(np.int64),
            "country": pl.Series(["US", "DE", None, "FR"] * (n // 4)),
            "label": (rng.random(n) < 0.1).astype(np.int8),
        }
    )


def bucket(item: int, num_buckets: int, seed: int) -> int:
    return xxhash.xxh64(item.to_bytes(8, "little"), seed).intdigest() * num_buckets >> 64


@pytest.mark.parametrize("num_hashes", [1, 2])
def test_the_report_is_a_naive_count(num_hashes):
    rows = log()
    report = collisions(rows, "item_id", [16, 64, 1000, 1], num_hashes=num_hashes, seed=3)
    for row in report.iter_rows(named=True):
        m = row["num_buckets"]
        places = {i: tuple(bucket(i, m, 3 + k) for k in range(num_hashes)) for i in set(rows["item_id"])}
        shared = Counter(places.values())
        collide = {item for item, place in places.items() if shared[place] > 1}
        hit = rows.filter(pl.col("item_id").is_in(list(collide)))
        assert row["values"] == len(places)
        assert row["used"] == len({place[0] for place in places.values()})
        assert row["colliding"] == len(collide)
        assert row["rows_affected"] == pytest.approx(hit.height / rows.height)
        assert row["positives_affected"] == pytest.approx(hit["label"].sum() / rows["label"].sum())


def test_what_is_expected_is_what_chance_gives():
    rows = pl.DataFrame({"item_id": np.arange(3000)})
    reports = [collisions(rows, "item_id", [1000, 20_000], seed=seed, label=None) for seed in range(30)]
    seen = pl.concat(reports).group_by("num_buckets").mean().sort("num_buckets")
    # Over 30 seeds the mean of `colliding` has a standard error of some 5, that of `used` of 3.
    assert seen["colliding"].to_list() == pytest.approx(reports[0]["expected_colliding"].to_list(), abs=20)
    assert seen["used"].to_list() == pytest.approx(reports[0]["expected_used"].to_list(), abs=10)
    assert reports[0]["positives_affected"].to_list() == [None, None]


def test_crosses_lazy_frames_and_the_order_of_rows():
    rows = log()
    one = collisions(rows, ["country", "item_id"], [256, 4096])
    assert one.equals(
        collisions(rows.sample(fraction=1, shuffle=True, seed=1).lazy(), ["country", "item_id"], [256, 4096])
    )
    assert one["values"][0] == rows.select("country", "item_id").n_unique()
    assert not one.equals(collisions(rows, ["item_id", "country"], [256, 4096]))


def test_a_null_alone_has_a_place_of_its_own():
    report = collisions(pl.DataFrame({"c": ["a", None, None], "label": [1, 0, 1]}), "c", [10])
    assert report.row(0, named=True) | {"expected_used": 0} == {
        "num_buckets": 10, "values": 1, "used": 1, "expected_used": 0, "colliding": 0, "expected_colliding": 0.0,
        "rows_affected": 0.0, "positives_affected": 0.0,
    }  # fmt: skip


def test_errors():
    with pytest.raises(FeatureError, match="no values of item_id to hash"):
        collisions(log().head(0), "item_id", [10])
    with pytest.raises(FeatureError, match="no column 'item': did you mean item_id"):
        collisions(log(), "item", [10])
    with pytest.raises(ValueError, match="num_buckets=0"):
        collisions(log(), "item_id", [0])
