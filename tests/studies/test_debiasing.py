"""Weighed clicks come near the truth where counted ones do not, and what is counted is what the definition says."""

from dataclasses import replace

import polars as pl
import pytest
import torch

from recsys import config, tasks
from recsys.data.datamodule import RecDataModule
from recsys.evaluation.ranking import rank
from recsys.schema import NUM_RESERVED
from recsys.studies.debiasing import _rows, study


@pytest.fixture(scope="module")
def data() -> RecDataModule:
    cfg = config.compose("world=tiny")
    return RecDataModule(config.build(cfg.data), config.partial(cfg.split), 0)


@pytest.mark.parametrize("model", ["als", "ease", "popularity"])
def test_the_truth_lies_within_the_weighed_intervals_and_not_in_the_counted_one(
    data: RecDataModule, model: str
) -> None:
    task = tasks.trained(config.compose("world=tiny", f"model={model}"), data, torch.device("cpu"))
    found = {
        (row["estimator"], row["k"]): row
        for row in study(data, task.model.scorer_with_fallback(), [20, 100]).to_dicts()
    }
    for k in (20, 100):
        naive, snips, ips = (found[name, k] for name in ("naive", "snips", "ips"))
        assert naive["low"] > naive["truth"]
        assert snips["low"] < snips["truth"] < snips["high"]
        assert ips["low"] < ips["truth"] < ips["high"]
        assert abs(snips["error"]) < abs(naive["error"]) / 4
        assert naive["effective"] == 1
        assert 0 < snips["effective"] == ips["effective"] < 1
        assert snips["truth"] == naive["truth"] < 1 < k * ips["truth"]


def test_what_is_counted_is_what_the_definition_says(data: RecDataModule) -> None:
    score = torch.rand(data.schema.num_users, data.schema.num_items, generator=torch.Generator().manual_seed(0))
    scorer = lambda batch: score[batch["user_idx"]].clone()  # noqa: E731
    found = study(data, scorer, [50]).filter(estimator="naive").row(0, named=True)
    rows, queries = _rows(data)
    lists = {int(u): set(items) for u, items in zip(queries.user_idx, rank(scorer, queries, 50).tolist(), strict=True)}
    test = data.split.test
    users, items = data.users.encode(test["user_id"]).tolist(), data.items.encode(test["item_id"]).tolist()
    liked = {u: set(data.history.rows(u, u + 1).item_idx.tolist()) for u in set(users) if u >= NUM_RESERVED}
    hits = total = places = 0
    for user, item, label in zip(users, items, test["label"], strict=True):
        if user < NUM_RESERVED:
            continue
        places += 1
        if label == 1 and item >= NUM_RESERVED and bool(data.test.candidates[item]) and item not in liked[user]:
            total += 1
            hits += item in lists[user]
    assert rows.height == places
    assert rows["positive"].sum() == total
    assert found["value"] == pytest.approx(hits / total)
    # Lists at random hold their share of all relevance.
    assert found["truth"] == pytest.approx(50 / int(data.test.candidates.sum()), rel=0.15)


def test_what_a_log_must_have_is_said(data: RecDataModule) -> None:
    bare = RecDataModule(data.log, replace(data.split, test=data.split.test.drop("propensity")), 0)
    scorer = lambda batch: torch.zeros(len(batch["user_idx"]), data.schema.num_items)  # noqa: E731
    with pytest.raises(ValueError, match="no column propensity"):
        study(bare, scorer)
    timeless = RecDataModule(data.log, replace(data.split, test_cut=None), 0)
    with pytest.raises(ValueError, match="take split=global_time"):
        study(timeless, scorer)
    unlabelled = replace(data.split, test=data.split.test.filter(pl.col("label") == 1).drop("label"))
    with pytest.raises(ValueError, match="no column label"):
        study(RecDataModule(data.log, unlabelled, 0), scorer)
