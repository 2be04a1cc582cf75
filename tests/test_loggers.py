"""Trackers beside the CSV: what W&B and TensorBoard hold in the end, and that nothing they do stops training."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from wandb_files import OfflineRun, offline_runs

import recsys
from recsys import backend, config, tracker, wandb_tracker
from recsys.training import train
from recsys.watch import Interrupted, Pruned

WORDS = (
    "world.num_users=150", "world.num_videos=300", "world.num_topics=8", "world.max_depth=40", "trainer=cpu",
    "evaluation.num_replicates=0", "evaluation.k=[10]", "model=mf", "model.max_epochs=3", "model.embedding_dim=8",
)  # fmt: skip
Progress = Callable[[int, int, dict[str, float]], None]


@pytest.fixture(autouse=True)
def without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    tracker.say.cache_clear()


def trained(run_dir: Path, *words: str, progress: Progress | None = None) -> recsys.Run:
    return train(config.compose(*WORDS, *words), run_dir, progress=progress)


def test_a_run_is_one_run_of_wandb_with_all_that_it_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "lab")
    run = trained(tmp_path / "one", "logger=[csv,wandb,tensorboard]", "logger.wandb.tags=[a,b]")
    assert capsys.readouterr().err.count("no API key found, recording offline") == 1
    (found,) = offline_runs(tmp_path)
    assert (found.project, found.name, found.group, found.job_type) == ("lab", "one", "", "train")
    assert (found.tags, found.exit_code) == (["a", "b"], 0)
    assert found.config["model"]["embedding_dim"] == 8
    about = found.config["about"]
    assert about["packages"] == run.manifest["packages"]
    assert about["data"]["fingerprint"] == run.manifest["data"]["fingerprint"]
    assert about["hardware"]["device"] == "cpu"
    assert found.summary.items() >= {**run.metrics, "state": "finished"}.items()
    rows = [row for row in found.history if "train/loss" in row]
    assert [row["epoch"] for row in rows] == [1, 2, 3] == run.curves["epoch"].to_list()
    assert [row["val/ndcg@10"] for row in rows] == pytest.approx(run.curves["val/ndcg@10"].to_list())
    picture = found.file.parent / "files" / found.summary["curves/path"]
    assert picture.read_bytes().startswith(b"\x89PNG")

    kinds = {artifact.type: artifact for artifact in found.artifacts.values()}
    assert kinds.keys() == {"dataset", "model", "schema"}
    files = {entry.path: entry for entry in kinds["model"].manifest.contents}
    assert {"config.yaml", "metrics.json", "checkpoints/model.safetensors", "checkpoints/items.parquet"} <= {*files}
    for name, entry in files.items():
        assert Path(entry.local_path) == run.path / name  # nothing is copied
    assert run.manifest["data"]["fingerprint"] in kinds["dataset"].metadata
    assert [entry.path for entry in kinds["schema"].manifest.contents] == ["schema.json"]

    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = events.EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3]
    assert board.Scalars("test/recall@10")[0].value == pytest.approx(run.metrics["test/recall@10"])


def test_data_are_a_reference_and_a_finished_run_is_recorded_again_by_phase(log_file: Path, tmp_path: Path) -> None:
    from recsys import cli
    from recsys.studies import frontier

    words = ("data=table", f"data.path={log_file}", "model=als", "model.num_sweeps=2", "evaluation.k=[10]")
    run = train(config.compose(*words, "evaluation.num_replicates=0", "logger=wandb"), tmp_path / "run")
    frame = frontier.of_run(run, factories=["Flat"], k=10)
    frontier.record(run, frame, frame.row(0, named=True), ["logger=wandb", "logger.wandb.group=mine"])
    cli.COMMANDS["evaluate"]([f"run={run.path}", "evaluation.k=[5]", "logger=wandb"])
    phases = {found.job_type: found for found in offline_runs(tmp_path)}
    assert phases.keys() == {"train", "index", "evaluate"}
    assert len({found.id for found in phases.values()}) == 3
    (data,) = [artifact for artifact in phases["train"].artifacts.values() if artifact.type == "dataset"]
    assert f"file://{log_file}" in [entry.ref for entry in data.manifest.contents]
    for found in phases.values():
        assert [a.digest for a in found.artifacts.values() if a.type == "dataset"] == [data.digest]
    index = phases["index"]
    assert index.group == "mine"
    assert index.summary["index/recall"] == frame["recall"][0]
    assert (index.file.parent / "files" / index.summary["frontier/path"]).exists()
    (kept,) = [artifact for artifact in index.artifacts.values() if artifact.type == "index"]
    assert {"index.json", "vectors.safetensors", "frontier.parquet"} <= {e.path for e in kept.manifest.contents}
    assert "test/recall@5" in phases["evaluate"].summary
    assert phases["evaluate"].config["about"]["evaluate"] == {"changes": ["evaluation.k=[5]"]}

    with pytest.raises(ValueError, match="no setting is sure to keep it"):  # what was measured is recorded all the same
        cli.COMMANDS["index"](["sweep", f"run={run.path}", "recall=1", "k=10", "factories=PQ2x1", "logger=wandb"])
    (again,) = (found for found in offline_runs(tmp_path) if found.id not in {found.id for found in phases.values()})
    assert (again.job_type, again.exit_code) == ("index", 0)
    assert "frontier/path" in again.summary
    assert "index/recall" not in again.summary


@pytest.mark.slow
def test_every_end_has_its_state_and_a_resumed_run_goes_on_in_the_same_one(tmp_path: Path) -> None:
    def fail(done: int, total: int, values: dict[str, float]) -> None:
        raise RuntimeError("a defect")

    def stop(done: int, total: int, values: dict[str, float]) -> None:
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    def prune(done: int, total: int, values: dict[str, float]) -> None:
        raise Pruned("too little")

    for progress, error in ((fail, RuntimeError), (stop, Interrupted), (prune, Pruned)):
        with pytest.raises(error):
            trained(tmp_path / "run", "logger=wandb", progress=progress)
    trained(tmp_path / "run", "logger=wandb")
    found = offline_runs(tmp_path)
    assert len(found) == 4
    assert len({run.id for run in found}) == 1
    assert [run.exit_code for run in found] == [1, 130, 0, 0]
    assert [run.summary["state"] for run in found] == ["failed", "interrupted", "pruned", "finished"]
    assert found[0].summary["reason"] == "a defect"


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_loggers import trained

def kill(done, total, values):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

trained(Path(sys.argv[1]), "logger=wandb", progress=kill)
"""


@pytest.mark.slow
def test_a_killed_run_is_failed_in_wandb(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)], check=False)
    assert killed.returncode == -signal.SIGKILL
    give_up = time.monotonic() + 60
    while not (found := _read(tmp_path)) or found[0].exit_code is None:
        assert time.monotonic() < give_up
        time.sleep(0.2)
    assert found[0].exit_code == 1
    assert [row["epoch"] for row in found[0].history] == [1, 2][: len(found[0].history)] != []


def _read(folder: Path) -> list[OfflineRun]:
    try:
        return offline_runs(folder)
    except AssertionError:  # it is being written
        return []


def test_the_service_killed_in_the_middle_costs_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    killed: list[int] = []

    def kill(done: int, total: int, values: dict[str, float]) -> None:
        give_up = time.monotonic() + 60
        while done == 2 and not killed:
            assert time.monotonic() < give_up
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):  # it may end while it is looked at
                    if process.name().startswith("wandb-core") and [*tmp_path.rglob("run-*.wandb")]:
                        process.kill()
                        killed.append(process.pid)
            time.sleep(0.02)

    run = trained(tmp_path, "logger=wandb", progress=kill)
    assert killed
    assert run.curves.height == 3
    assert _lines(capsys).count("W&B") == 1, capsys


FAKE = """
import os, time
DO = os.environ["FAKE"]
if DO == "import":
    raise ImportError("no such library")

def act(where):
    if DO == where + " raises":
        raise RuntimeError("two\\nlines")
    if DO == where + " hangs":
        time.sleep(600)

class Run:
    offline = True
    summary = {}
    def define_metric(self, *a, **k): pass
    def log(self, values): act("log")
    def log_artifact(self, artifact): pass
    def finish(self, exit_code): act("finish")

class Artifact:
    def __init__(self, *a, **k): pass
    def add_file(self, *a, **k): pass

def Settings(**k): return k
def teardown(): pass

def init(mode, **k):
    act("init")
    if DO == "online raises" and mode == "online":
        raise RuntimeError("no network")
    return Run()
"""


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("import", "W&B: not recorded, training goes on: ImportError: no such library; pip install wandb"),
        ("init raises", "W&B: start failed, training goes on: RuntimeError: two lines"),
        ("log raises", "W&B: log failed, training goes on: RuntimeError: two lines"),
        ("finish raises", "W&B: finish failed: RuntimeError: two lines"),
        ("online raises", "W&B: recording offline, upload later with `wandb sync`: RuntimeError: no network"),
        ("init hangs", "W&B: not done within 1 s and left; `wandb sync` uploads what is in "),
        ("log hangs", "W&B: not done within 1 s and left; `wandb sync` uploads what is in "),
        ("finish hangs", "W&B: not done within 1 s and left; `wandb sync` uploads what is in "),
    ],
)
def test_wandb_failing_or_hanging_costs_one_line(
    what: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fake" / "wandb").mkdir(parents=True)
    (tmp_path / "fake" / "wandb" / "__init__.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("FAKE", what)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(wandb_tracker.Wandb, "_keep_run", lambda *_: None)  # pictures are drawn elsewhere
    before = psutil.Process().children()
    wait = 1 if "hangs" in what else 30
    began = time.monotonic()
    run = trained(tmp_path / "run", "logger=wandb", f"logger.wandb.timeout={wait}")
    assert time.monotonic() - began < 15
    assert run.metrics["test/recall@10"] > 0
    assert run.curves.height == 3
    lines = [text for text in _lines(capsys).splitlines() if "W&B" in text]
    assert len(lines) == 1, lines
    assert lines[0].startswith(line)
    children = [child for child in psutil.Process().children() if child not in before]
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_tracker_that_fails_here_costs_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    run = trained(tmp_path, "logger=tensorboard")
    assert run.curves.height == 3
    found = [text for text in _lines(capsys).splitlines() if "tensorboard failed" in text]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("mode", "key", "expected", "said"),
    [
        (None, False, "offline", 1),
        ("online", False, "offline", 1),
        ("offline", True, "offline", 0),
        ("dryrun", False, "offline", 0),
        ("disabled", True, "disabled", 0),
        ("online", True, "online", 0),
        (None, True, "online", 0),
    ],
)
def test_where_wandb_records(
    mode: str | None, key: bool, expected: str, said: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if mode is not None:
        monkeypatch.setenv("WANDB_MODE", mode)
    if key:
        (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert [wandb_tracker._mode() for _ in range(3)] == [expected] * 3
    assert len(re.findall("`wandb login`", capsys.readouterr().err)) == said


def test_a_mistake_is_one_line_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"logger\.wandb\.timeout=soon: expected a valid number"):
        trained(tmp_path / "run", "logger=wandb", "logger.wandb.timeout=soon")
    monkeypatch.setattr(backend, "version", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package tensorboard: pip install 'recsys\[tensorboard\]'"):
        trained(tmp_path / "run", "logger=tensorboard")
    old: Any = config.with_value(config.compose(*WORDS), "logger", {"_target_": "recsys.tracking.csv_logger"})
    with pytest.raises(ValueError, match=r"logger\._target_=recsys.*: expected the settings of a tracker"):
        train(old, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_group_is_the_folder_of_a_sweep_or_grid(tmp_path: Path) -> None:
    assert wandb_tracker.sweep_of(tmp_path / "a") is None
    (tmp_path / "multirun.yaml").touch()
    assert wandb_tracker.sweep_of(tmp_path / "a") == tmp_path.name


def _lines(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said, without the line that there is no key."""
    return "\n".join(text for text in capsys.readouterr().err.splitlines() if "no API key" not in text)
