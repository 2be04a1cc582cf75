"""Hashed items: without collisions nothing changes, with them quality falls, and no list tells equals apart."""

from functools import partial

import pytest
import torch

from recsys import config
from recsys.data.datamodule import RecDataModule
from recsys.evaluation.ranking import evaluate
from recsys.models.als import ALS
from recsys.models.knn import ItemKNN
from recsys.models.mf import MatrixFactorization
from recsys.studies.collisions import HashedItems, study


@pytest.fixture(scope="module")
def data() -> RecDataModule:
    cfg = config.compose("world=tiny", "world.num_users=600", "world.num_videos=600")
    return RecDataModule(config.build(cfg.data), config.partial(cfg.split))


@pytest.mark.parametrize("make", [partial(ALS, num_sweeps=4), ItemKNN])
def test_buckets_that_are_the_items_change_nothing(data: RecDataModule, make) -> None:
    identity = torch.arange(data.schema.num_items)
    hashed = HashedItems(data.schema, make, identity, data.schema.num_items - 2)
    plain = make(schema=data.schema)
    for model in (hashed, plain):
        torch.manual_seed(0)
        model.observe(data.train)
        model.fit(data.train)
        model.eval()
    batch = data.test.rows(0, 40).batch()
    torch.testing.assert_close(hashed.scorer()(batch), plain.scorer()(batch))


def test_items_of_one_bucket_share_a_score(data: RecDataModule) -> None:
    halves = torch.cat([torch.arange(2), 2 + torch.arange(data.schema.num_items - 2) // 2])
    model = HashedItems(data.schema, partial(ALS, num_sweeps=2), halves, data.schema.num_items // 2)
    model.observe(data.train)
    model.fit(data.train)
    scores = model.scorer()(data.test.rows(0, 9).batch())
    assert torch.equal(scores[:, 2:-1:2], scores[:, 3::2])


@pytest.mark.slow
def test_quality_falls_with_the_buckets(data: RecDataModule) -> None:
    found = study(data, partial(ALS, num_sweeps=6), partial(evaluate, num_replicates=200), [None, 6000, 300, 30])
    recall, clicks = found["recall@20"], found["share_of_best_clicks@20"]
    assert recall[0] > recall[2] > recall[3]
    assert clicks[0] > clicks[2] > clicks[3] > 0
    assert found["low"][0] <= recall[0] <= found["high"][0]
    assert abs(recall[0] - recall[1]) < 0.05
    assert found["colliding"].to_list() == sorted(found["colliding"].to_list())
    assert found["rows_affected"][3] > 0.99
    again = study(data, partial(ALS, num_sweeps=6), partial(evaluate, num_replicates=200), [300])
    assert again["recall@20"][0] == recall[2]


def test_a_model_trained_by_gradient_is_refused(data: RecDataModule) -> None:
    with pytest.raises(ValueError, match="MatrixFactorization has no fit: choose a model that solves"):
        study(data, MatrixFactorization, evaluate, [10])
