"""Whole runs: what they leave behind, and that a stopped and resumed run ends in the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import recsys
from recsys import config, tasks, tracking
from recsys.data.datamodule import RecDataModule
from recsys.training import train
from recsys.watch import Interrupted, Watch

COMMON = ("data=table", "trainer=cpu", "evaluation.k=[5,10]", "evaluation.num_replicates=200")
MF = (
    "model=mf",
    "model.batch_size=256",
    "model.num_negatives=32",
    "trainer.max_epochs=4",
    "checkpoint_seconds=0",
)


def compose(log_file: Path, *overrides: str) -> object:
    return config.compose(*COMMON, f"data.path={log_file}", *overrides)


@pytest.fixture(scope="module")
def finished(log_file: Path, tmp_path_factory: pytest.TempPathFactory) -> recsys.Run:
    return train(compose(log_file, *MF), tmp_path_factory.mktemp("runs") / "run")


def test_a_run_directory_holds_what_it_promises(finished: recsys.Run) -> None:
    names = {str(p.relative_to(finished.path)) for p in finished.path.rglob("*") if p.is_file()}
    assert {
        tracking.CONFIG, tracking.METRICS, tracking.MANIFEST, tracking.PER_USER, tracking.MODEL, tracking.USERS,
        tracking.ITEMS, tracking.HISTORY,
    } <= names  # fmt: skip
    assert tracking.LAST not in names
    assert not [name for name in names if "tmp" in name]
    for metric in ("precision", "recall", "hit", "ndcg", "map", "mrr"):
        for k in (5, 10):
            value = finished.metrics[f"test/{metric}@{k}"]
            assert finished.metrics[f"test/{metric}@{k}/low"] <= value <= finished.metrics[f"test/{metric}@{k}/high"]
            assert 0 < value < 1
            assert finished.per_user[f"{metric}@{k}"].mean() == pytest.approx(value, abs=1e-6)
    assert finished.metrics["train/samples_per_second"] > 0
    assert finished.manifest["seed"] == 0
    assert len(finished.manifest["data"]["fingerprint"]) == 64
    assert finished.curves["epoch"].to_list() == [1, 2, 3, 4]
    assert {"train/loss", "val/ndcg@10"} <= set(finished.curves.columns)
    assert finished.curves["train/loss"][-1] < finished.curves["train/loss"][0]


def test_a_finished_run_is_never_overwritten(finished: recsys.Run, log_file: Path) -> None:
    before = (finished.path / tracking.METRICS).read_bytes()
    with pytest.raises(ValueError, match="holds a finished run"):
        train(compose(log_file, *MF), finished.path)
    assert (finished.path / tracking.METRICS).read_bytes() == before


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    finished: recsys.Run, log_file: Path, tmp_path: Path
) -> None:
    torch.manual_seed(99)  # global state must not matter
    again = train(compose(log_file, *MF), tmp_path / "again")
    other = train(compose(log_file, *MF, "seed=1", "trials=8"), tmp_path / "other")
    assert (again.manifest["trials"], other.manifest["trials"]) == (None, 8)
    assert weights(again.path) == weights(finished.path)
    assert weights(other.path) != weights(finished.path)
    assert measured(again.path) == measured(finished.path)


@pytest.mark.parametrize("stop_after", [1, 5, 7])
def test_interrupted_and_resumed_equals_never_stopped(
    finished: recsys.Run, log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    calls = 0
    chunk_done = Watch.chunk_done

    def interrupt(self: Watch, chunks: int, epochs: int) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
        chunk_done(self, chunks, epochs)

    monkeypatch.setattr(Watch, "chunk_done", interrupt)
    path = tmp_path / "run"
    with pytest.raises(Interrupted, match=r"to go on: recsys resume run="):
        train(compose(log_file, *MF), path)
    assert (path / tracking.LAST).exists()
    assert not (path / tracking.METRICS).exists()
    with pytest.raises(ValueError, match=r"unfinished run with seed=0, not 3"):
        train(compose(log_file, *MF, "seed=3"), path)
    run = train(compose(log_file, *MF), path)
    assert weights(path) == weights(finished.path)
    assert measured(path) == measured(finished.path)
    assert run.curves["epoch"].to_list() == [1, 2, 3, 4]


@pytest.mark.parametrize("model", ["mf", "als"])
def test_killed_and_resumed_equals_never_stopped(log_file: Path, tmp_path: Path, model: str) -> None:
    words = [*MF, "model.batch_size=64"] if model == "mf" else ["model=als", "checkpoint_seconds=0"]
    whole = train(compose(log_file, *words), tmp_path / "whole").path
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "recsys.cli"]
    words = [*COMMON, f"data.path={log_file}", *words, f"hydra.run.dir={killed}"]
    process = subprocess.Popen([*command, "train", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed / tracking.LAST).exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (killed / tracking.METRICS).exists(), "finished before it could be killed"
    subprocess.run([*command, "resume", f"run={killed}"], check=True, capture_output=True)
    assert weights(killed) == weights(whole)
    assert measured(killed) == measured(whole)
    assert not list(killed.rglob("*.tmp"))


def test_patience_stops_and_keeps_the_best(log_file: Path, tmp_path: Path) -> None:
    run = train(compose(log_file, *MF, "trainer.max_epochs=40", "patience=2", "model.lr=1.0"), tmp_path / "run")
    curve = run.curves["val/ndcg@10"].to_list()
    best = max(range(len(curve)), key=lambda epoch: (curve[epoch], -epoch)) + 1
    assert len(curve) < 40
    assert len(curve) == best + 2
    assert run.metrics["train/best_epoch"] == best
    assert run.metrics["val/ndcg@10"] == curve[best - 1]


def test_patience_without_validation_is_refused(log_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"patience needs a validation set"):
        train(compose(log_file, *MF, "patience=2", "split.validation=0"), tmp_path / "run")


@pytest.mark.parametrize("monitor", ["ndcg", "ndgc@10", "ndcg@0", "auc"])
def test_an_unknown_monitor_is_refused_before_any_work(log_file: Path, tmp_path: Path, monitor: str) -> None:
    with pytest.raises(ValueError, match=f"monitor={monitor} is no metric of the model's: (did you mean|choose from)"):
        train(compose(log_file, *MF, f"monitor={monitor}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_metric_of_ones_own_may_be_the_monitor(log_file: Path, tmp_path: Path) -> None:
    own = "evaluation.metrics={mine: {_target_: recsys.evaluation.metrics.hit, _partial_: true}}"
    run = train(compose(log_file, *MF, own, "monitor=mine@5", "patience=1"), tmp_path / "run")
    assert run.curves["val/mine@5"].to_list() == run.curves["val/hit@5"].to_list()
    assert run.metrics["val/mine@5"] == max(run.curves["val/mine@5"])


def weights(path: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path / tracking.MODEL).items()}


def measured(path: Path) -> dict[str, float]:
    """Every metric that does not depend on the clock."""
    metrics = json.loads((path / tracking.METRICS).read_text())
    return {name: value for name, value in metrics.items() if "second" not in name and "wait" not in name}


@pytest.mark.parametrize("words", [("model=mf", "model.max_epochs=2", "model.batch_size=256"), ("model=als",)])
def test_a_model_trained_for_a_study_has_the_weights_of_a_run(
    words: tuple[str, ...], log_file: Path, tmp_path: Path
) -> None:
    cfg = compose(log_file, *words)
    run = train(cfg, tmp_path / "run")
    data = RecDataModule(config.build(cfg.data), config.partial(cfg.split), cfg.seed)
    task = tasks.trained(cfg, data, torch.device("cpu"), cfg.seed)
    kept = run.model.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in task.model.state_dict().items())
    assert task.measure()[1].equals(run.per_user)
