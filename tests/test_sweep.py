"""Sweeps: what is drawn, that they go on after anything, and what they leave behind."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import polars as pl
import pytest
import torch
from omegaconf import OmegaConf

import recsys
from recsys import cli, config, tracking
from recsys.sweeping import trials
from recsys.sweeping.space import Range, distribution, draw, holds, space, text
from recsys.watch import Watch

TINY = (
    "world.num_users=150", "world.num_videos=300", "world.num_topics=8", "world.max_depth=40",
    "evaluation.num_replicates=0", "trainer=cpu",
)  # fmt: skip
SWEEP = ("train", "-m", "sweep=optuna", *TINY)
WORDS = ("model=als,ease", "hydra.sweeper.n_trials=5", "hydra.sweeper.startup_trials=3")


def call(*words: str) -> tuple[int, str, str]:
    """What `recsys` with these words gives: exit code, output and errors."""
    out, err = StringIO(), StringIO()
    environment = {"HYDRA_FULL_ERROR": "0"}
    said = mock.patch.object(sys, "argv", ["recsys", *words]), mock.patch.dict(os.environ, environment)
    with said[0], said[1], redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def started(*words: str, until: Callable[[], object]) -> subprocess.Popen[str]:
    """A process of `recsys` with these words, as soon as something is so."""
    process = subprocess.Popen(
        [sys.executable, "-m", "recsys.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    give_up = time.monotonic() + 120
    while not until():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.005)
    return process


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a sweep that nothing disturbed, and what it printed."""
    directory = tmp_path_factory.mktemp("sweeps") / "whole"
    code, out, err = call(*SWEEP, *WORDS, f"hydra.sweep.dir={directory}")
    assert code == 0, err
    return directory, out


def test_a_sweep_chooses_by_validation_and_never_loses_to_the_defaults(swept: tuple[Path, str]) -> None:
    directory, out = swept
    found = trials(directory)
    assert found["trial"].to_list() == [*range(5)]
    assert set(found["state"]) == {"complete"}
    assert found["model"].to_list()[:2] == ["als", "ease"]
    assert found.row(0, named=True)["model.embedding_dim"] == 64
    assert found.row(0, named=True)["model.regularization"] is None  # the default follows from the log
    assert found.filter(model="ease")["model.embedding_dim"].is_null().all()
    assert found.filter("best")["value"].item() == found["value"].max()
    for row in found.iter_rows(named=True):
        run = recsys.load(row["path"])
        assert run.metrics["val/ndcg@10"] == row["value"]
        assert run.metrics["test/ndcg@10"] == row["test/ndcg@10"]
        for key in ("model.embedding_dim", "model.regularization", "model.ridge"):
            assert row.get(key) in (None, config.flat(run.config).get(key))
    assert f"best: trial {found.filter('best')['trial'].item()}" in out


def test_the_command_line_of_the_best_gives_what_it_promises(swept: tuple[Path, str], tmp_path: Path) -> None:
    directory, out = swept
    command = out.rstrip().splitlines()[-1]
    words = shlex.split(command)
    assert words[0] == "recsys"
    assert "trials=5" in words
    code, _, err = call(*words[1:], f"hydra.run.dir={tmp_path / 'best'}")
    assert code == 0, err
    run = recsys.load(tmp_path / "best")
    assert run.metrics["val/ndcg@10"] == trials(directory)["value"].max()
    assert run.manifest["trials"] == 5


def test_killed_and_started_again_it_ends_as_if_undisturbed(swept: tuple[Path, str], tmp_path: Path) -> None:
    words = (*SWEEP, *WORDS, f"hydra.sweep.dir={tmp_path}")
    process = started(*words, until=lambda: [*tmp_path.glob("2_*/config.yaml")])
    process.kill()
    process.communicate()
    ended = {path: path.stat().st_mtime_ns for path in tmp_path.glob("[01]_*/metrics.json")}
    assert len(ended) == 2
    assert trials(tmp_path).height == 2
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path / 'study.db'}")
    assert study.n_trials == 3
    code, _, err = call(*words)
    assert code == 0, err
    assert ended == {path: path.stat().st_mtime_ns for path in ended}  # none of them was trained again
    unequal = ("seconds", "path")
    assert trials(tmp_path).drop(unequal).equals(trials(swept[0]).drop(unequal))
    code, _, _ = call(*(w.replace("n_trials=5", "n_trials=6") for w in words))  # asked for more, it goes on
    assert code == 0
    assert trials(tmp_path).drop(unequal).head(5).select(pl.exclude("best")).equals(
        trials(swept[0]).drop(unequal).select(pl.exclude("best"))
    )  # fmt: skip


def test_an_interrupt_is_one_line_and_its_trial_is_kept(tmp_path: Path) -> None:
    begun = threading.Event()

    def interrupt() -> None:
        give_up = time.monotonic() + 60
        while not begun.is_set() and time.monotonic() < give_up:
            if [*tmp_path.glob("0_*/config.yaml")] and signal.getsignal(signal.SIGINT) is not before:
                begun.set()
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.005)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    code, _, err = call(*SWEEP, "model=als", "model.num_sweeps=3000", f"hydra.sweep.dir={tmp_path}")
    begun.set()
    thread.join()
    assert code == 130
    assert signal.getsignal(signal.SIGINT) is before
    last = err.rstrip().splitlines()[-1]
    assert last == (
        "recsys: stopped with 0 of 20 trials done; to go on: the same words with hydra.sweep.dir=" + str(tmp_path)
    )
    assert "Traceback" not in err
    (row,) = recsys.runs(tmp_path).iter_rows(named=True)
    assert (row["state"], row["trial"]) == ("unfinished", None)
    assert json.loads((tmp_path / "sweep.json").read_text())["trials"] == []


def test_a_failed_trial_is_recorded_with_its_reason(tmp_path: Path) -> None:
    keys = ("model=als", "model.embedding_dim=-3,8", "model.num_sweeps=2", "hydra.sweeper.n_trials=4")
    code, out, err = call(*SWEEP, *keys, f"hydra.sweep.dir={tmp_path}")
    assert code == 0, err
    found = trials(tmp_path)
    assert found["state"][0] == "failed"
    assert found["reason"][0] == "embedding_dim must be positive, got -3"
    assert set(found["state"]) == {"failed", "complete"}
    assert (found.filter(state="failed")["model.embedding_dim"] == "-3").all()
    assert "embedding_dim must be" in out
    keys = ("model=als", "model.embedding_dim=-3,-8", "hydra.sweeper.n_trials=2")
    code, _, err = call(*SWEEP, *keys, f"hydra.sweep.dir={tmp_path / 'none'}")
    assert code == 2
    assert err.rstrip().splitlines()[-1] == (
        "recsys: none of 2 trials came to its end, the first with: embedding_dim must be positive, got -3"
    )


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_pruned_trial_leaves_a_directory_that_says_so(pruner: str, tmp_path: Path) -> None:
    # Nothing is learnt at the second rate, so it falls behind; the default comes first and to its end.
    keys = ("model=mf", "model.lr=0.6,1e-9", "model.max_epochs=10", "hydra.sweeper.n_trials=4")
    still = ("embedding_dim", "weight_decay", "prior_count", "popularity_power")
    null = [f"hydra.sweeper.space.mf.model.{key}=null" for key in still]
    sweeper = (f"hydra.sweeper.pruner={pruner}", "hydra.sweeper.warmup_trials=1", *null)
    code, _, err = call(*SWEEP, *keys, *sweeper, f"hydra.sweep.dir={tmp_path}")
    assert code == 0, err
    found = trials(tmp_path)
    assert found["state"][0] == "complete"
    pruned = found.filter(state="pruned")
    assert pruned.height >= 1
    assert (pruned["model.lr"] == "1e-09").all()
    row = pruned.row(0, named=True)
    path = Path(row["path"])
    assert json.loads((path / "pruned.json").read_text())["epoch"] == 2  # a fifth of ten, the share of warming up
    assert not (path / tracking.LAST).exists()
    with pytest.raises(ValueError, match="holds a run that was pruned"):
        recsys.load(path)
    listed = recsys.runs(tmp_path)
    assert dict(zip(listed["path"], listed["state"], strict=True))[str(path)] == "pruned"
    assert listed.filter(pl.col("state") != "finished")["finished"].any() is False
    assert found.filter("best")["state"].item() == "complete"


def test_a_ranker_is_chosen_by_what_is_least_where_less_is_better(tmp_path: Path) -> None:
    keys = ("model=logistic", "features=world", "monitor=log_loss", "hydra.sweeper.n_trials=2")
    code, out, err = call(*SWEEP, *keys, f"hydra.sweep.dir={tmp_path}")
    assert code == 0, err
    found = trials(tmp_path)
    assert found["value"].n_unique() > 1
    assert found.filter("best")["value"].item() == found["value"].min()
    assert "val/log_loss" in out


def test_a_sweep_is_not_another(swept: tuple[Path, str], tmp_path: Path) -> None:
    where = f"hydra.sweep.dir={swept[0]}"
    for word, line in {
        "seed=1": "with seed=0, not 1",
        "hydra.sweeper.space.ease.model.ridge=[3]": "with space.ease.model.ridge=Range(low=10.0, ",
        "evaluation.mask_history=false": "with evaluation.mask_history=(not given), not false",
    }.items():
        code, _, err = call(*SWEEP, *WORDS, where, word)
        assert code == 2
        assert line in err
        assert err.count("\n") == 1
    with open(swept[0] / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = call(*SWEEP, *WORDS, where)
        assert code == 2
        assert "another sweep is running there" in err
    (tmp_path / "study.db").write_bytes(b"no database, but long enough to be read as one" * 100)
    code, _, err = call(*SWEEP, *WORDS, f"hydra.sweep.dir={tmp_path}")
    assert code == 2
    assert "study.db cannot be used as a study" in err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: expected at least 1"),
        (["hydra.sweeper.n_trials=many"], "hydra.sweeper.n_trials=many: expected a valid integer"),
        (["hydra.sweeper.pruner=medium"], "hydra.sweeper.pruner=medium: expected 'median' or 'halving'"),
        (["hydra.sweeper.warmup_share=2"], "hydra.sweeper.warmup_share=2: expected a share between 0 and 1"),
        (["+hydra.sweeper.n_job=2"], "unknown key hydra.sweeper.n_job: did you mean n_jobs?"),
        (["hydra.sweeper.n_jobs=0"], "hydra.sweeper.n_jobs=0: expected at least 1"),
        (["model=mff,als"], "unknown option model=mff: did you mean mf?"),
        (["model=popularity"], "model=popularity has nothing to draw: give lists or intervals of its keys"),
        (["model=popularity", "seed=0,1"], "model=popularity has nothing to draw"),
        (["monitor=ndgc@10"], "monitor=ndgc@10 is no metric of the model's: did you mean ndcg@10?"),
        (["monitor=auc"], "monitor=auc is no metric of the model's: "),
        (["model=als,dcn", "features=world"], "model=als is measured by ndcg@10 and model=dcn by auc: "),
        (["split.validation=0"], "a sweep chooses by the validation part: set split.validation above 0"),
        (["+hydra.sweeper.space.mf.model.lrr=[1,2]"], "unknown key model.lrr: did you mean model.lr?"),
        (["hydra.sweeper.space.mf.model.lr=7..2"], "hydra.sweeper.space.mf.model.lr: 7 must be below 2"),
        (["hydra.sweeper.space.mf.model.lr=7"], "hydra.sweeper.space.mf.model.lr=7: expected a list of choices, or"),
        (["model.lr=interval(3,1)"], "model.lr: 3"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(words: list[str], line: str, tmp_path: Path) -> None:
    code, _, err = call(*SWEEP, *words, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert code == 2
    assert err.startswith(f"recsys: {line}")
    assert err.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_every_space_fits_its_model() -> None:
    file = config.load(config.config_dir() / "sweep" / "optuna.yaml")
    spaces: Any = OmegaConf.to_container(file.hydra.sweeper.space)
    assert {
        "als",
        "mf",
        "ease",
        "knn",
        "two_tower",
        "sasrec",
        "lightgcn",
        "dcn",
        "deepfm",
        "mlp",
        "logistic",
        "fm",
    } <= {*spaces}
    for model in spaces:
        cfg = config.compose(f"model={model}")
        found = space(spaces[model], model)
        assert found
        for key, of in found.items():
            for value in (of.low, of.high) if isinstance(of, Range) else of:
                changed = config.update(cfg, [f"{key}={text(value)}"])
                config.check_arguments(config.target(changed.model), changed.model, "model")


def test_ranges_and_choices_draw_what_they_hold() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    of = space(
        {"model": {"lr": "1e-3..0.1 log", "dim": "2..8 step 2", "deep": [[64], [128, 64]]}, "a": [1, None]}, "space"
    )
    drawn: dict[str, list[Any]] = {key: [] for key in of}
    for _ in range(60):
        trial = study.ask()
        for key, ways in of.items():
            drawn[key].append(draw(trial, key, ways))
            assert holds(ways, drawn[key][-1])
    assert set(drawn["model.dim"]) == {2, 4, 6, 8}
    assert set(drawn["a"]) == {1, None}
    assert set(drawn["model.deep"]) == {"[64]", "[128,64]"}
    assert all(value == float(f"{value:.4g}") for value in drawn["model.lr"])
    assert 10 < sum(value < 1e-2 for value in drawn["model.lr"]) < 50  # half of the range lies below, by logarithm
    assert not holds(of["model.dim"], 3)
    assert not holds(of["model.lr"], 1)
    assert not holds(of["a"], True)
    assert space({"a": {"b": None}}, "space") == {}


@pytest.mark.parametrize(
    ("node", "line"),
    [
        (7, "a=7: expected a list of choices, or a range"),
        ([], r"a=\[\]: expected at least one choice"),
        ([1, 1], r"a=\[1,1\]: expected at least one choice, and none twice"),
        ("1..", "expected a list of choices, or a range"),
        ("1..2 lgo", "expected a list of choices, or a range"),
        ("x..2", "expected a list of choices, or a range"),
        ("2..1.5", r"a: 2 must be below 1\.5"),
        ("0..2 log", "a: 0 must be positive where the range is drawn by logarithm"),
        ("1..2 step 0.5", r"a: step 0\.5 must be positive, and whole where both ends are"),
    ],
)
def test_a_space_that_is_none_is_an_error(node: Any, line: str) -> None:
    with pytest.raises(config.ConfigError, match=line):
        distribution(node, "a")


def test_patience_knows_that_less_is_better(tmp_path: Path) -> None:
    values = iter([0.5, 0.4, 0.6, 0.3])
    watch = Watch(
        tmp_path, mock.Mock(wraps=torch.nn.Linear(1, 1), device=torch.device("cpu")), mock.Mock(),
        validate=lambda: {"val/log_loss": next(values)}, monitor="val/log_loss", patience=1, checkpoint_seconds=99.0,
        resume_from=None, less_is_better=True,
    )  # fmt: skip
    with watch:
        for epoch in range(1, 5):
            watch.report(epoch, 4, {})
    assert watch.latest["val/log_loss"] == 0.4
    assert watch.latest["train/best_epoch"] == 2


def test_runs_lists_what_lies_under_a_folder(swept: tuple[Path, str], tmp_path: Path) -> None:
    found = recsys.runs(swept[0].parent)
    assert found.height == 5
    assert found["finished"].all()
    assert set(found["model"]) == {"als", "ease"}
    assert sorted(found["trial"]) == [*range(5)]
    assert set(found["sweep"]) == {str(swept[0])}
    assert (found["seed"] == 0).all()
    for row in found.iter_rows(named=True):
        metrics = recsys.load(row["path"]).metrics
        assert row["test/recall@20"] == metrics["test/recall@20"]
        assert row["seconds"] == metrics["train/seconds"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text("model: {_target_: recsys.models.als.ALS}\nseed: 3\n")
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "config.yaml").write_text("a: [1\n")
    (tmp_path / "b" / "c" / "metrics.json").write_text("{")
    (tmp_path / "b" / "c" / "wandb").mkdir()
    (tmp_path / "b" / "c" / "wandb" / "config.yaml").write_text("{}")
    found = recsys.runs(tmp_path)
    assert found.select("finished", "state", "model", "seed", "trial").rows() == [
        (False, "unfinished", "als", 3, None),
        (False, "unfinished", None, None, None),
    ]
    assert recsys.runs(tmp_path / "a" / "..").height == 2
    with pytest.raises(ValueError, match="no such folder of runs"):
        recsys.runs(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no sweep: sweep\.json is missing"):
        trials(tmp_path)
