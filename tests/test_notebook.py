"""What a notebook calls in one line, and what a kernel shows meanwhile."""

from pathlib import Path

import nbformat
import polars as pl
import pytest
import torch
from nbclient import NotebookClient
from omegaconf import OmegaConf

import recsys
from recsys import config
from recsys.config import ConfigError
from recsys.world import logs, oracle

WORLD = ("world.num_users=200", "world.num_videos=400")
QUICK = ("trainer=cpu", "evaluation.k=[3,10]", "evaluation.num_replicates=0")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> recsys.Run:
    return recsys.train("model=popularity", *WORLD, *QUICK, f"hydra.run.dir={tmp_path_factory.mktemp('runs') / 'run'}")


def test_evaluate_measures_a_run_again_or_what_others_predicted(run: recsys.Run) -> None:
    before = run.metrics["test/recall@3"]
    assert recsys.evaluate(run)["test/recall@3"] == before
    again = recsys.evaluate(str(run.path), "evaluation.k=[5]", "evaluation.num_replicates=0")
    assert before <= again["test/recall@5"] <= run.metrics["test/recall@10"]
    assert "test/recall@3" not in again
    truth = pl.DataFrame({"user_id": [1, 2], "item_id": [7, 8]})
    lists = pl.DataFrame({"user_id": [1, 2], "item_id": [7, 9], "score": [1.0, 1.0]})
    assert recsys.evaluate(lists, truth=truth, k=[1]).metrics["recall@1"] == 0.5
    with pytest.raises(ValueError, match="data is for runs"):
        recsys.evaluate(lists, truth, data=truth)
    with pytest.raises(ConfigError, match=r"unknown key evaluation\.kk: did you mean evaluation\.k\?"):
        recsys.evaluate(run, "evaluation.kk=[5]")


def test_evaluate_takes_the_frame_that_a_run_was_trained_on(tmp_path: Path) -> None:
    rows = pl.DataFrame({"user_id": [u for u in range(40) for _ in range(5)], "item_id": [*range(10)] * 20})
    rows = rows.with_columns(timestamp=pl.int_range(pl.len()) + 1_600_000_000)
    mine = recsys.train("model=popularity", "split=random", *QUICK, f"hydra.run.dir={tmp_path / 'mine'}", data=rows)
    assert recsys.evaluate(mine, data=rows)["test/hit@3"] == mine.metrics["test/hit@3"]
    with pytest.raises(ValueError, match="holds a finished run"):
        recsys.resume(mine.path, data=rows)
    with pytest.raises(ValueError, match="holds no run to resume"):
        recsys.resume(tmp_path)


def test_load_data_is_what_train_learns_from(run: recsys.Run) -> None:
    log = recsys.load_data(*WORLD)
    for name in ("rows", "positives", "users", "items"):
        assert log.counts[name] == run.manifest["data"][name]
    mine = recsys.load_data(data=pl.DataFrame({"user_id": [1, 1], "item_id": [3, 4]}))
    assert mine.counts["rows"] == 2
    with pytest.raises(ConfigError, match="unknown option data=movilens: did you mean movielens"):
        recsys.load_data("data=movilens")


def test_a_world_in_one_line() -> None:
    world = recsys.make_world("tiny", num_users=200, num_videos=400, start="2026-03-02", surface="feed")
    assert world == config.build(config.compose(*WORLD, "world.start=2026-03-02", "world.surface=feed").world)
    log = world.log(days=range(2))
    assert log.equals(logs.log(world, range(2)))
    assert set(world.users()["user_id"]) >= set(log["user_id"])
    assert set(world.videos()["item_id"]) >= set(log["item_id"])
    some = log.head(20)
    expected = oracle.relevance(world, some["user_id"].to_torch(), some["item_id"].to_torch())
    for kind in (pl.Series.to_list, pl.Series.to_numpy, pl.Series.to_torch, pl.Series.clone):
        assert torch.equal(world.relevance(kind(some["user_id"]), kind(some["item_id"])), expected)
    with pytest.raises(ConfigError, match=r"unknown key world\.num_usrs: did you mean world\.num_users\?"):
        recsys.make_world(num_usrs=3)
    with pytest.raises(ConfigError, match="unknown option world=tny: did you mean tiny"):
        recsys.make_world("tny")


def test_settings_are_shown_as_yaml_and_stay_a_configuration(run: recsys.Run) -> None:
    cfg = recsys.settings("model=als", "seed=3")
    assert OmegaConf.create(repr(cfg)) == cfg
    assert cfg.model.seed == 3
    assert repr(run.config) == str(run.config) == (run.path / "config.yaml").read_text()
    assert config.update(run.config, ["seed=4"]).seed == 4
    with pytest.raises(ConfigError, match="unknown option model=alz"):
        recsys.settings("model=alz")


def test_choices_are_those_of_the_folder() -> None:
    files = sorted((config.config_dir() / "model").glob("*.yaml"))
    models = recsys.choices("model")
    assert models["option"].to_list() == [file.stem for file in files]
    assert models["about"].str.len_chars().min() > 20
    assert set(recsys.choices()["group"]) >= {"data", "model", "split", "world", "trainer"}
    tiny = recsys.choices("world=tiny")
    cfg = config.compose("world=tiny")
    assert {f"world.{key}" for key in cfg.world if not key.startswith("_")} == set(tiny["key"])
    assert tiny.filter(key="world.burst_share").rows() == [
        ("world.burst_share", "0.02", "videos that went viral in the last burst_days (0: none do)")
    ]
    assert "data.columns.user_id" in recsys.choices("data=table")["key"].to_list()
    with pytest.raises(ConfigError, match="unknown group modl: did you mean model"):
        recsys.choices("modl")
    with pytest.raises(ConfigError, match="unknown option model=alz: did you mean als"):
        recsys.choices("model=alz")


CELLS = [
    """import os, signal, warnings
warnings.simplefilter("error")
import recsys
from recsys import tracking, watch
words = ("model=mf", "trainer.max_epochs=4", "world.num_users=200", "world.num_videos=400", "trainer=cpu")""",
    "never = recsys.train(*words, 'hydra.run.dir=never'); never",
    """report = watch.Watch.report
def interrupted(self, done, total, measured):
    if done == 2:
        os.kill(os.getpid(), signal.SIGINT)
    report(self, done, total, measured)
watch.Watch.report = interrupted
recsys.train(*words, "hydra.run.dir=stopped")""",
    "watch.Watch.report = report; run = recsys.resume('stopped')",
    "print(run.metrics['test/recall@20'] == never.metrics['test/recall@20'], run.curves.height)",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's own machinery
def test_a_kernel_shows_a_line_an_interrupt_and_goes_on(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, allow_errors=True, resources=resources).execute()
    imported, trained, stopped, resumed, same = (cell.outputs for cell in notebook.cells)
    assert imported == []
    line, shown = trained
    assert dict(line.data) == {"text/plain": line.data["text/plain"]}
    assert line.data["text/plain"].startswith("MatrixFactorization: 4 of 4, ")
    assert "val/ndcg@10 0." in line.data["text/plain"]
    assert "<table" in shown.data["text/html"]
    line, said, error = stopped
    assert line.data["text/plain"].startswith("MatrixFactorization: 2 of 4, ")
    assert said.data["text/plain"].startswith("Stopping at the next step")
    assert error.ename == "Interrupted"
    assert error.traceback == [error.evalue]
    assert "recsys.resume('stopped')" in error.evalue
    assert [output.data["text/plain"][:27] for output in resumed] == ["MatrixFactorization: 4 of 4"]
    assert same[0].text.split() == ["True", "4"]
