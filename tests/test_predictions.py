"""Predictions of other tools: the same figures as a run's, whatever frame they come in; what does not fit is named."""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

import recsys
from recsys.evaluation import estimate

SEEN = pl.DataFrame({"user_id": [1, 1, 2, 3, 3], "item_id": [10, 11, 10, 12, 13]})
TRUTH = pl.DataFrame({"user_id": [1, 1, 2, 4, 1], "item_id": [12, 99, 11, 10, 10]})
LISTS = pl.DataFrame(
    {"user_id": [1, 1, 1, 2, 2, 3], "item_id": [10, 12, 13, 13, 11, 10], "score": [0.9, 0.5, 0.7, 0.2, 0.1, 1.0]}
)


def test_every_user_of_the_truth_counts_and_seen_items_do_not() -> None:
    """User 1: 10 was seen and leaves both sides, so 13, 12 against {12, 99}; 2: 13, 11 against 11; 4: an empty list."""
    found = recsys.evaluate(LISTS, TRUTH, seen=SEEN, k=[1, 2], num_replicates=0)
    rows = {row["user_id"]: row for row in found.per_user.to_dicts()}
    assert set(rows) == {1, 2, 4}
    assert [rows[u]["recall@2"] for u in (1, 2, 4)] == [0.5, 1.0, 0.0]
    assert [rows[u]["mrr@2"] for u in (1, 2, 4)] == [0.5, 0.5, 0.0]
    assert [rows[u]["num_relevant"] for u in (1, 2, 4)] == [2, 1, 1]
    assert found.metrics["recall@2"] == pytest.approx(0.5)
    assert found.metrics["precision@1"] == 0
    assert found.counts["users_without_predictions"] == 1
    assert found.counts["predictions_not_asked_for"] == 1
    assert found.counts["cold_relevant"] == 1
    assert found.counts["candidates"] == 4
    assert found.metrics["coverage@2"] == pytest.approx(3 / 4)
    # Two thirds of the users had 10, a third each of 11, 12 and 13.
    assert rows[1]["popularity@2"] == pytest.approx(1 / 3)
    assert found.warm["recall@2"] == pytest.approx(1.0)  # of users with a past, cold items left out


def test_ranks_pandas_text_ids_and_lazy_frames_say_the_same() -> None:
    plain = recsys.evaluate(LISTS, TRUTH, seen=SEEN, k=[2], num_replicates=50)
    ranks = LISTS.with_columns(rank=pl.col("score").rank("ordinal", descending=True).over("user_id")).drop("score")
    text = [frame.with_columns(pl.col("user_id", "item_id").cast(pl.String)) for frame in (LISTS, TRUTH, SEEN)]
    labelled = pl.concat(
        [TRUTH.with_columns(label=1), pl.DataFrame({"user_id": [2], "item_id": [13], "label": [0]})],
        how="vertical_relaxed",
    )
    for lists, truth, seen in (
        (ranks, TRUTH, SEEN),
        (LISTS.to_pandas(), TRUTH.to_pandas(), SEEN.to_pandas()),
        (LISTS.lazy().reverse(), labelled, SEEN.lazy()),
        text,
    ):
        assert recsys.evaluate(lists, truth, seen=seen, k=[2], num_replicates=50).metrics == pytest.approx(
            plain.metrics
        )


def test_lists_of_a_run_get_the_figures_of_the_run(tmp_path: Path) -> None:
    words = "world=tiny", "world.num_users=300", "world.num_videos=400", "trainer=cpu", "evaluation.num_replicates=100"
    run = recsys.train("model=als", "model.num_sweeps=4", *words, f"hydra.run.dir={tmp_path / 'run'}")
    from recsys import config
    from recsys.data.datamodule import RecDataModule
    from recsys.data.splits import positives

    data = RecDataModule(config.build(run.config.data), config.partial(run.config.split), 0)
    before = pl.concat([positives(part) for part in (data.split.train, data.split.validation)])
    truth = positives(data.split.test)
    lists = run.recommend(truth["user_id"].unique(), k=100)
    found = recsys.evaluate(lists, truth, seen=before, catalogue=run.items.ids, num_replicates=100)
    for name, value in found.metrics.items():
        if name.partition("@")[0] not in ("popularity", "novelty", "serendipity", "popularity_lift"):
            assert value == pytest.approx(run.metrics[f"test/{name}"], abs=1e-6), name  # these are of train alone
    difference = estimate([found.per_user], "recall@20", [run.per_user])
    assert difference is not None
    assert difference.value == pytest.approx(0, abs=1e-9)


def test_ties_are_broken_by_no_order_of_ids() -> None:
    users = np.arange(2000)
    lists = pl.DataFrame({"user_id": np.repeat(users, 2), "item_id": np.tile([1, 2], 2000), "score": 1.0})
    truth = pl.DataFrame({"user_id": users, "item_id": 1})
    first = recsys.evaluate(lists, truth, k=[1], num_replicates=0).metrics["hit@1"]
    assert first == pytest.approx(0.5, abs=0.05)
    assert recsys.evaluate(lists.reverse(), truth, k=[1], num_replicates=0).metrics["hit@1"] == first
    assert recsys.evaluate(lists, truth, k=[1], num_replicates=0, seed=1).metrics["hit@1"] != first


@pytest.mark.parametrize(
    ("lists", "truth", "more", "message"),
    [
        (LISTS.drop("score"), TRUTH, {}, "predictions have neither rank nor score"),
        (LISTS.rename({"item_id": "item"}), TRUTH, {}, "predictions has no column item_id: did you mean item"),
        (
            LISTS,
            TRUTH.with_columns(pl.col("user_id").cast(pl.String)),
            {},
            "user_id is Int64 in predictions and String",
        ),
        (pl.concat([LISTS, LISTS[1:2]]), TRUTH, {}, "item 12 of user 1 stands twice"),
        (LISTS.with_columns(score=float("nan")), TRUTH, {}, "item 10 of user 1 has no score"),
        (LISTS.with_columns(rank=pl.lit(1)), TRUTH, {}, "item 10 of user 1 stands twice, or shares its rank"),
        (LISTS, TRUTH, {"catalogue": [10, 11, 12]}, "item 13, of user 1, is not in the catalogue"),
        (LISTS, TRUTH, {"catalogue": ["10"]}, "the catalogue is String, item_id is Int64"),
        (LISTS, pd.DataFrame({"user_id": [1.5], "item_id": [1]}), {}, "truth: user_id is Float64; ids are integers or"),
        (LISTS, TRUTH.with_columns(user_id=None), {}, "truth: user_id is missing in row 0"),
        (LISTS, TRUTH, {"k": [0]}, "k must be one or more numbers of at least 1"),
    ],
)
def test_what_does_not_fit_is_named(lists, truth, more, message) -> None:
    with pytest.raises(ValueError, match=message):
        recsys.evaluate(lists, truth, **more)
