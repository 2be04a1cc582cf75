"""Retrievers that read features, from tables to lists: what is known of users and items reaches the model."""

from pathlib import Path

import polars as pl
import pytest
import torch

import recsys
from recsys import Run, config
from recsys.data.datamodule import RecDataModule
from recsys.data.rows import table_rows
from recsys.schema import ITEM_ID, NUM_RESERVED, USER_ID

WORLD = ["world.num_users=150", "world.num_videos=400", "world.num_days=8", "features=world", "logger=csv"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("two_tower") / "run"
    words = ["model=two_tower", "model.max_epochs=2", "model.age=true", "evaluation.num_replicates=50"]
    return recsys.train(*WORLD, *words, f"hydra.run.dir={folder}")


def data_of(run: Run) -> RecDataModule:
    return RecDataModule(config.build(run.config.data), config.partial(run.config.split), 0)


def test_a_run_answers_from_what_it_kept(run: Run) -> None:
    assert not run.is_ranker
    lists = run.recommend(k=5)
    assert lists["source"].unique().to_list() == ["model"]  # users without positives are known by their features
    assert lists.equals(Run(run.path).recommend(k=5))
    assert run.similar_items(run.items.ids[0], k=3).height == 3
    model = run.model
    columns = {c.name for c in model.schema.columns}
    assert {"country", "topic"} <= columns
    assert not {"hour", "label", "history"} & columns


def test_the_features_in_the_model_are_those_of_the_tables(run: Run) -> None:
    data, model = data_of(run), run.model
    rows = pl.concat([data.split.train, data.split.test]).unique(ITEM_ID).join(
        data.log.items.collect(), on=ITEM_ID, suffix="_of_item"
    )  # fmt: skip
    item_idx = data.items.encode(rows[ITEM_ID])
    place = [c.name for c in model.items.features.columns].index("topic")
    kept = getattr(model.items.features, f"values_{place}").cpu()[item_idx]
    expected = run.pipeline.features["topic"].transform(rows, "cpu")[""]
    known = item_idx >= NUM_RESERVED
    assert torch.equal(kept[known], expected[known])


def test_items_are_as_old_as_the_cut_says(run: Run) -> None:
    data, model = data_of(run), run.model
    assert data.split.test_cut is not None
    assert int(model.now) == int(data.split.test_cut.timestamp() * 1_000_000)
    assert data.came is not None
    assert torch.equal(model.came_I.cpu(), data.came)
    assert bool((data.came[NUM_RESERVED:] >= 0).all())


def test_a_video_that_is_new_to_the_catalogue_gets_a_vector(run: Run) -> None:
    data = data_of(run)
    new = data.log.items.collect().sample(3, seed=1).with_columns(item_id=pl.Series([1, 2, 3]))
    columns = run.pipeline.transform(
        new.rename({"language": "item_language", "timestamp": "item_timestamp"}), ["item_feature"]
    )
    vectors = run.model.encode_new_items(columns)
    assert vectors.shape == (3, run.model.embedding_dim + 1)
    assert bool(vectors.isfinite().all())


def test_what_had_no_positive_is_measured_apart(run: Run) -> None:
    assert 0 <= run.metrics["test/cold_items/recall@100"] <= 1
    data = data_of(run)
    cold = data.test.about(data.history.item_counts() == 0)
    assert run.manifest["evaluation"]["cold_item_queries"] == len(cold) > 0


def test_rows_of_a_table_begin_with_nulls() -> None:
    log = config.build(config.compose(*WORLD).data)
    ids = log.users.collect()[USER_ID].head(4)
    rows = table_rows(log, USER_ID, ids).collect()
    assert rows[USER_ID].to_list() == [None, None, *ids.to_list()]
    assert rows["country"].null_count() == NUM_RESERVED
    assert rows["topic"].null_count() == rows.height  # of no item


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=als"], "ALS uses no features: leave features out"),
        (["model=two_tower", "model.age=true", "split=random"], "age=true needs a split by time"),
    ],
)
def test_what_does_not_fit_is_said(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        recsys.train(*WORLD, *words, f"hydra.run.dir={tmp_path}/run")


def test_tags_need_features(tmp_path: Path) -> None:
    words = [word for word in WORLD if not word.startswith("features")]
    with pytest.raises(ValueError, match="give features="):
        recsys.train(*words, "model=tags", f"hydra.run.dir={tmp_path}/run")
