"""The loss budget of a funnel on a small world and on a log without a key."""

import polars as pl
import pytest
import torch

from recsys import config
from recsys.data.datamodule import RecDataModule
from recsys.features.vocabulary import Vocabulary
from recsys.studies.loss_budget import study

SIZE = ("world.num_users=200", "world.num_videos=300", "world.num_topics=8", "world.max_depth=40")
WORLD = ("data=world", "world=tiny", *SIZE, "evaluation.num_replicates=0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    from recsys.training import train

    folder = tmp_path_factory.mktemp("runs")

    def run(name, *overrides):
        return train(config.compose(*WORLD, *overrides), folder / name)

    return {
        "als": run("als", "model=als"),
        "tags": run("tags", "model=tags", "features=world"),
        "logistic": run("logistic", "model=logistic", "features=world"),
    }


@pytest.fixture(scope="module")
def data():
    cfg = config.compose(*WORLD)
    return RecDataModule(config.build(cfg.data), config.partial(cfg.split), cfg.seed)


@pytest.fixture(scope="module")
def report(runs, data):
    retrievers = {"als": runs["als"], "tags": runs["tags"]}
    return study(
        retrievers, runs["logistic"], data, k=20, num_candidates=(60, 10_000), factory="IVF4,Flat", search="nprobe=1",
        diversity=0.2, caps={"creator": 3}, exploration=0.3, num_users=80,
    )  # fmt: skip


def test_stages_come_one_after_the_other(report):
    stages = ["retrieval", "index", "re-ranking", "exploration"]
    assert report["stage"].to_list() == ["best", "whole catalogue", *stages, *stages]
    assert report["candidates"].to_list() == [None, None, *[60] * 4, *[10_000] * 4]
    assert report["kept"][1] == 1
    assert (report["milliseconds"] > 0).all()


def test_what_is_lost_is_the_difference_of_the_clicks(report):
    clicks = report["clicks"].to_list()
    above = [None, 0, 1, 2, 3, 4, 1, 6, 7, 8]
    for row in range(1, report.height):
        assert report["lost"][row] == pytest.approx(clicks[above[row]] - clicks[row])
        assert report["low"][row] <= report["lost"][row] <= report["high"][row]
        assert report["kept"][row] == pytest.approx(clicks[row] / clicks[1])
    assert report["clicks"].max() == clicks[0]


def test_all_candidates_lose_nothing_to_the_whole_catalogue(report):
    row = report.filter(stage="retrieval", candidates=10_000)
    assert row["lost"].item() == pytest.approx(0, abs=1e-9)
    assert row["recall"].item() == report["recall"][1]


def test_stages_that_are_not_there_have_no_row(runs, data):
    found = study({"als": runs["als"]}, runs["logistic"], data, k=10, num_candidates=(50,), num_users=30)
    assert found["stage"].to_list() == ["best", "whole catalogue", "retrieval"]


def test_without_an_answer_key_recall_is_what_is_lost(runs, data, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(data, "log", replace(data.log, world=None))
    found = study({"als": runs["als"]}, runs["logistic"], data, k=10, num_candidates=(50,), num_users=30)
    assert found["stage"].to_list() == ["whole catalogue", "retrieval"]
    assert found["clicks"].null_count() == 2
    assert found["lost"][1] == pytest.approx(found["recall"][0] - found["recall"][1])


def test_runs_of_other_data_are_named(runs, data, monkeypatch):
    monkeypatch.setattr(data, "items", Vocabulary([1, 2, 3]))
    with pytest.raises(ValueError, match="knows other items than"):
        study({"als": runs["als"]}, runs["logistic"], data, k=10, num_users=30)


def test_recall_is_that_of_a_naive_count(runs, data):
    from recsys.funnel import Funnel

    found = study({"als": runs["als"]}, runs["logistic"], data, k=20, num_candidates=(50,), num_users=10_000)
    test = data.test
    rows = [q for q in range(len(test)) if len(test.relevant.rows(q, q + 1)) and test.user_idx[q] > 1]
    page = Funnel.of_runs({"als": runs["als"]}, runs["logistic"], data.log, num_candidates=50)
    lists = page.recommend(data.users.decode(test.user_idx[torch.tensor(rows)]), 20)
    recalls = []
    for q, (_, mine) in zip(rows, lists.group_by("user_id", maintain_order=True), strict=True):
        wanted = set(data.items.decode(test.relevant.rows(q, q + 1).item_idx).to_list())
        size = len(wanted) + int(test.num_cold_relevant[q])
        recalls.append(len(wanted & set(mine["item_id"].to_list())) / size)
    assert found.filter(pl.col("stage") == "retrieval")["recall"].item() == pytest.approx(sum(recalls) / len(recalls))
