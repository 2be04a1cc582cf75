"""The inputs of candidates, made apart, are those of the joined rows, bit for bit."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from recsys.features import Category, FeaturePipeline, Hashed, History, Numeric, Plain
from recsys.features.base import FeatureError
from recsys.features.serving import FeatureStore

START = datetime(2026, 1, 1, tzinfo=UTC)
USERS = pl.DataFrame({"user_id": [1, 2, 3], "country": ["DE", "US", None], "signed": [0.5, 2.0, None]})
ITEMS = pl.DataFrame(
    {
        "item_id": [None, None, 10, 11, 12],
        "topic": [None, None, "a", "b", "a"],
        "came": [None, None, START, START - timedelta(days=3), None],
    }
)


def pipeline():
    return FeaturePipeline(
        user={"user_id": Category(), "country": Category(), "signed": Numeric()},
        item={"item_id": Category(), "topic": Category()},
        context={
            "hour": Category(),
            "age": Numeric(),
            "country_topic": Hashed(50, columns=["country", "topic"]),
            "history": History(of="item_id", length=3),
        },
        label={"label": Plain()},
        derive={
            "hour": "extract(hour from timestamp)",
            "age": "extract(epoch from timestamp) - extract(epoch from came)",
        },
    )


def log():
    generator = np.random.default_rng(0)
    rows = pl.DataFrame(
        {
            "user_id": generator.choice([1, 2, 3], 200),
            "item_id": generator.choice([10, 11, 12], 200),
            "label": generator.integers(0, 2, 200),
            "timestamp": [START + timedelta(hours=h) for h in generator.integers(0, 200, 200).tolist()],
        }
    )
    return rows.join(USERS, on="user_id", maintain_order="left").join(
        ITEMS.drop_nulls("item_id"), on="item_id", maintain_order="left"
    )


def test_parts_are_what_the_whole_pipeline_makes_of_joined_rows():
    fitted = pipeline().fit(log())
    store = FeatureStore(fitted, ITEMS)
    now = START + timedelta(hours=250)
    stranger = {"user_id": [None], "country": ["FR"], "signed": [1.0]}
    requests = USERS.vstack(pl.DataFrame(stranger, schema=USERS.schema)).with_columns(timestamp=pl.lit(now))
    request = torch.tensor([0, 0, 1, 2, 3, 3])
    item = torch.tensor([2, 4, 3, 3, 1, 4])
    joined = requests[request.numpy()].hstack(ITEMS[item.numpy()])
    expected = fitted.transform(joined)
    once, each = store.of_requests(requests), store.of_candidates(requests, request, item)
    assert not set(once) & set(each)
    assert set(once) | set(each) == set(expected)
    assert {"age", "country_topic", "item_id", "topic"} <= set(each)
    for name, values in expected.items():
        found = once[name][request] if name in once else each[name]
        assert torch.equal(found, values), name


def test_columns_of_requests_are_those_that_no_item_has():
    store = FeatureStore(pipeline().fit(log()), ITEMS)
    assert set(store.request_columns) == {"user_id", "country", "signed", "timestamp"}
    assert store.dtypes["timestamp"] == pl.Datetime("us", "UTC")
    with pytest.raises(FeatureError, match="requests have no column 'country'"):
        store.of_requests(USERS.drop("country"))


def test_a_pipeline_of_some_features_makes_the_same_of_them():
    fitted = pipeline().fit(log())
    rows = log()
    part = fitted.only(["topic", "history"])
    assert [column.name for column in part.columns] == ["topic", "history", "history_gap_seconds", "history_length"]
    whole = fitted.transform(rows)
    for name, values in part.transform(rows.select("topic", "user_id", "timestamp")).items():
        assert torch.equal(values, whole[name])
    assert len(fitted.features) == 10
