"""Whole runs that are asked for the next positive of a session: trained, measured again and compared."""

from pathlib import Path

import polars as pl
import pytest
import torch
from test_cli import recsys as command

import recsys
from recsys.comparison import compare
from recsys.evaluation.significance import poisson_weights
from recsys.training import evaluate

SMALL = (
    "world=tiny", "world.num_users=400", "world.num_videos=400", "trainer=cpu", "evaluation.k=[5,20]",
    "evaluation.num_replicates=200",
)  # fmt: skip
NEXT = "queries=next_in_session"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, recsys.Run]:
    folder = tmp_path_factory.mktemp("runs")
    words = {
        "popularity": ["model=popularity", NEXT],
        "als": ["model=als", NEXT],
        "als_seed": ["model=als", NEXT, "seed=1"],
        "users": ["model=als"],
    }
    return {name: recsys.train(*SMALL, *more, f"hydra.run.dir={folder / name}") for name, more in words.items()}


def test_a_run_says_what_was_asked(runs: dict[str, recsys.Run]) -> None:
    run = runs["als"]
    assert run.metrics["queries"] == run.manifest["queries"] == "next_in_session"
    assert runs["users"].metrics["queries"] == runs["users"].manifest["queries"] == "users"
    assert "val/ndcg@10" in run.metrics
    assert run.metrics["evaluation/queries"] == run.per_user.height == run.per_user["query_key"].n_unique()
    assert run.metrics["evaluation/users"] == run.per_user["user_key"].n_unique() < run.per_user.height
    assert run.per_user["num_relevant"].unique().to_list() == [1]
    assert run.per_user["recall@20"].mean() == pytest.approx(run.metrics["test/recall@20"])
    assert run.metrics["test/recall@20"] == run.metrics["test/hit@20"]
    assert 0 < run.metrics["test/recall@20"] < run.metrics["oracle/recall@20"] < 1
    assert not [name for name in run.metrics if name.startswith(("utility/", "best/"))]
    assert [name for name in runs["users"].metrics if name.startswith("utility/")]


def test_a_finished_run_is_measured_by_either(runs: dict[str, recsys.Run]) -> None:
    found = evaluate(runs["users"].path, [NEXT])
    assert {name: value for name, value in runs["als"].metrics.items() if name in found and "second" not in name} == {
        name: value for name, value in found.items() if "second" not in name
    }
    assert evaluate(runs["als"].path, ["queries=users"])["test/recall@5"] == runs["users"].metrics["test/recall@5"]
    said = command("evaluate", f"run={runs['users'].path}", NEXT)
    assert said.returncode == 0, said.stderr
    assert "test, next in session, whole catalogue ranked" in said.stdout
    assert f"{runs['als'].metrics['test/recall@20']:.4f}" in said.stdout
    said = command("evaluate", f"run={runs['users'].path}", NEXT, "session=visit")
    assert said.returncode == 2
    assert "needs column 'visit'" in said.stderr
    with pytest.raises(ValueError, match=r"queries=next: expected 'users' or 'next_in_session'"):
        evaluate(runs["users"].path, ["queries=next"])


def test_a_comparison_pairs_queries_and_resamples_users(runs: dict[str, recsys.Run]) -> None:
    table = compare([runs[name] for name in ("popularity", "als", "als_seed")], ["recall@20"])
    row = table.filter(label="ALS").row(0, named=True)
    assert row["seeds"] == 2
    (row,) = compare([runs["popularity"], runs["als"]], ["recall@20"]).filter(label="ALS").rows(named=True)
    ours, theirs = (runs[name].per_user.sort("user_key", "query_key") for name in ("als", "popularity"))
    difference = torch.from_numpy((ours["recall@20"] - theirs["recall@20"]).to_numpy().copy()).double()
    weights = poisson_weights(torch.from_numpy(ours["user_key"].to_numpy().copy()), 1000).double()
    low, high = torch.quantile((difference @ weights) / weights.sum(0), torch.tensor([0.025, 0.975]).double()).tolist()
    assert row["difference"] == pytest.approx(float(difference.mean()))
    # Student's over users, whose queries count together: the bootstrap of users says the same.
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((low, high), abs=0.1 * (high - low))
    both = pl.concat([ours, theirs]).group_by("user_key", "query_key").len()["len"]
    assert both.unique().to_list() == [2]
    with pytest.raises(ValueError, match=r"was measured by queries=users, .* by queries=next_in_session"):
        compare([runs["als"], runs["users"]])


def test_rankers_are_not_asked(tmp_path: Path) -> None:
    words = (*SMALL, "model=logistic", "features=world", NEXT, f"hydra.run.dir={tmp_path / 'run'}")
    with pytest.raises(ValueError, match="queries=next_in_session is for retrievers"):
        recsys.train(*words)
