"""Baselines beside a run: trained on the same data, measured on the same queries, compared user by user."""

from pathlib import Path

import polars as pl
import pytest

import recsys
from recsys import tracking
from recsys.baselines import BASELINES
from recsys.comparison import beside

SMALL = (
    "world=tiny", "world.num_users=300", "world.num_videos=400", "trainer=cpu", "evaluation.k=[5,20]",
    "evaluation.num_replicates=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> recsys.Run:
    path = tmp_path_factory.mktemp("runs") / "run"
    return recsys.train("model=als", "evaluation.baselines=true", *SMALL, f"hydra.run.dir={path}")


def test_each_baseline_is_what_a_run_of_its_own_would_be(run: recsys.Run, tmp_path: Path) -> None:
    assert {name.split("/")[1] for name in run.metrics if name.startswith("baselines/")} == set(BASELINES)
    # iALS beside iALS is the same model.
    assert run.metrics["baselines/als/recall@20"] == pytest.approx(run.metrics["test/recall@20"], abs=1e-6)
    words = "model=popularity", "model.window_days=7", *SMALL, f"hydra.run.dir={tmp_path / 'popularity'}"
    alone = recsys.train(*words)
    kept = pl.read_parquet(run.path / tracking.BASELINES).filter(baseline="popularity").drop("baseline")
    assert kept.equals(alone.per_user)


def test_the_run_is_compared_with_each(run: recsys.Run) -> None:
    table = beside(run)
    assert table["label"].to_list() == [*BASELINES, *BASELINES]
    assert table["metric"].unique(maintain_order=True).to_list() == ["recall@20", "ndcg@20"]
    rows = {row["label"]: row for row in table.filter(metric="recall@20").to_dicts()}
    assert rows["als"]["difference"] == pytest.approx(0)
    assert rows["als"]["verdict"] == "not told apart"
    for name, row in rows.items():
        expected = run.metrics["test/recall@20"] - run.metrics[f"baselines/{name}/recall@20"]
        assert row["difference"] == pytest.approx(expected, abs=1e-6)
    assert rows["popularity"]["verdict"] == "better"
    with pytest.raises(ValueError, match="metric recal@5 was not measured: did you mean recall@5"):
        beside(run, ["recal@5"])


def test_what_has_none_says_how_to_get_them(run: recsys.Run, tmp_path: Path) -> None:
    other = recsys.train("model=popularity", *SMALL, f"hydra.run.dir={tmp_path / 'other'}")
    with pytest.raises(ValueError, match=r"has no baselines: train with evaluation\.baselines=true"):
        beside(other)
    with pytest.raises(ValueError, match=r"evaluation\.baselines=true is for retrievers"):
        recsys.train("model=dcn", "features=world", "evaluation.baselines=true", *SMALL)


def test_a_baseline_that_cannot_be_had_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from recsys.models.ease import EASE

    def refuse(*_: object) -> None:
        raise ValueError("the inverse would take 90 GB")

    monkeypatch.setattr(EASE, "fit", refuse)
    words = "model=popularity", "evaluation.baselines=true", *SMALL, f"hydra.run.dir={tmp_path / 'run'}"
    run = recsys.train(*words)
    assert {name.split("/")[1] for name in run.metrics if name.startswith("baselines/")} == set(BASELINES) - {"ease"}
    said = capsys.readouterr()
    assert "baseline ease left out: the inverse would take 90 GB" in said.err + said.out
