"""What a new user gets wrong first: each is one line that says what to do, exit code 2, and no traceback."""

import importlib.abc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recsys import cli, tracking

Say = Callable[..., tuple[int, str]]
QUICK = "model=als", "model.embedding_dim=8", "evaluation.k=[5]", "evaluation.num_replicates=0"


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Say:
    """say(words) runs the command line in this process: its exit code and the last line of what it said."""
    monkeypatch.chdir(tmp_path)

    def said(*words: str) -> tuple[int, str]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", ["recsys", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return code, error.rstrip("\n").rpartition("\n")[2]

    return said


def a_run(say: Say, log_file: Path, path: Path, *more: str) -> Path:
    code, error = say("train", "data=table", f"data.path={log_file}", *QUICK, f"hydra.run.dir={path}", *more)
    assert code == 0, error
    return path


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["evaluation.k=[0]"], "k must be one or more numbers of at least 1, got [0]"),
        (["evaluation.k=[-1]"], "k must be one or more numbers of at least 1, got [-1]"),
        (["evaluation.k=[ten]"], "evaluation.k=['ten']: expected a valid integer"),
        (["evaluation.k=20"], "evaluation.k=20: expected a list, as [20]"),
        (["evaluation.k=[10,20"], "evaluation.k=[10,20 cannot be read: write key=value, as model=als, with quotes"),
        (["model=lighgcn"], "unknown option model=lighgcn: did you mean lightgcn?"),
        (["model=resnet"], "unknown option model=resnet: did you mean ease? There are als, bayes_logistic, dcn"),
        (["model", "mf"], "model is no key=value: write key=value, as model=als"),
        (["--model", "mf"], "unknown flag --model: keys have no dashes, write model=…"),
        (["data=table", "data.path=log.csv"], "log.csv: no such file or folder"),
        (["model=mf", "model.lr=fast"], "model.lr=fast: expected a valid number"),
        (["model=mf", "model.max_epochs=0", "world.num_users=100"], "max_epochs must be at least 1, got 0"),
        (["model=mf", "trainer.max_epochs=-1", "world.num_users=100"], "max_epochs=-1: expected at least 1"),
        (["model=dcn"], "recsys.models.dcn.DCN is a ranker and needs columns: give features=… (as features=world)"),
        (["split.test=2"], "split.test=2: wanted a share between 0 and 1"),
    ],
)
def test_a_slip_on_the_command_line(words: list[str], line: str, say: Say, tmp_path: Path) -> None:
    code, error = say("train", *words)
    assert (code, error[: len(line) + 8]) == (2, f"recsys: {line}")
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(say: Say) -> None:
    code, error = say("train", "trainer=gpu")
    assert code == 2
    assert "torch sees none: use trainer=cpu (see `recsys doctor`)" in error


class NoFaiss(importlib.abc.MetaPathFinder):
    """As if faiss were not installed."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.partition(".")[0] == "faiss":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_no_faiss(say: Say, log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(say, log_file, tmp_path / "run")
    for name in [name for name in sys.modules if name.partition(".")[0] == "faiss"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoFaiss(), *sys.meta_path])
    needed = "recsys: factory=IVF4,Flat needs faiss: pip install 'recsys[cpu]', or factory=exact"
    assert say("funnel", f"retrievers={run}", "users=1,2", "k=3", "factory=IVF4,Flat") == (2, needed)
    assert say("index", "sweep", f"run={run}", "factories=[IVF4,Flat]") == (2, needed)
    assert say("funnel", f"retrievers={run}", "users=1,2", "k=3")[0] == 0
    assert say("doctor")[0] == 0


@pytest.mark.parametrize("name", [tracking.LAST, tracking.PER_USER, tracking.METRICS])
def test_a_full_disk(name: str, say: Say, log_file: Path, tmp_path: Path) -> None:
    """A write that the system refuses: /dev/full lies where the file is written before it gets its name."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.symlink_to("/dev/full")
    words = "train", "data=table", f"data.path={log_file}", *QUICK, f"hydra.run.dir={tmp_path / 'run'}"
    code, error = say(*words, "checkpoint_seconds=0")
    go_on = f"recsys resume run={tmp_path / 'run'}"
    assert (code, error) == (2, f"recsys: cannot write {file}: No space left on device; to go on: {go_on}")
    assert not file.exists()
    assert not temporary.is_symlink()
    assert say("resume", f"run={tmp_path / 'run'}")[0] == 0
    assert (tmp_path / "run" / tracking.METRICS).exists()


def test_a_run_of_another_version(say: Say, log_file: Path, tmp_path: Path) -> None:
    run = a_run(say, log_file, tmp_path / "run")
    written = (run / tracking.CONFIG).read_text()

    def asked(command: str, old: str, new: str, *more: str) -> str:
        assert old in written
        (run / tracking.CONFIG).write_text(written.replace(old, new))
        code, error = say(command, f"run={run}", *more)
        assert code == 2
        assert f"{run / tracking.CONFIG}" in error or f"{run / tracking.MODEL}" in error
        return error

    error = asked("recommend", "  num_sweeps:", "  old_sweeps:", "users=1")
    assert "unknown key model.old_sweeps: did you mean num_sweeps?" in error
    error = asked("evaluate", "  num_replicates:", "  replicates:")
    assert "(mend it, or train the run again): unknown key evaluation.replicates: did you mean num_replicates?" in error
    assert "Missing key seed" in asked("evaluate", "\nseed: 0", "")
    error = asked("recommend", "embedding_dim: 8", "embedding_dim: 16", "users=1")
    assert "size mismatch for user_factors_UD" in error
    (run / tracking.CONFIG).write_text(written)
    (run / tracking.USERS).write_bytes(b"PAR1")
    code, error = say("recommend", f"run={run}", "users=1")
    assert code == 2
    assert f"{run / tracking.USERS} is no table of ids" in error
    (run / tracking.USERS).unlink()
    assert f"{run / tracking.USERS} is missing: copy it again" in say("recommend", f"run={run}", "users=1")[1]


def test_control_c(say: Say, log_file: Path, tmp_path: Path) -> None:
    """One line, 130, and on it goes: whenever it comes after the run has begun."""
    run = tmp_path / "run"
    words = (
        "train", "data=table", f"data.path={log_file}", "model=mf", "trainer.max_epochs=60", "evaluation.k=[5]",
        "evaluation.num_replicates=0", f"hydra.run.dir={run}",
    )  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "recsys.cli", *words], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (run / tracking.CONFIG).exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == cli.EXIT_INTERRUPTED, error
    assert "Traceback" not in error
    last = error.rstrip("\n").rpartition("\n")[2]
    assert last.startswith("recsys: stopped")
    assert last.endswith(f"to go on: recsys resume run={run}")
    assert not (run / tracking.METRICS).exists()
    assert say("resume", f"run={run}")[0] == 0
    assert (run / tracking.METRICS).exists()


def test_no_wandb_key(say: Say, log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on without the network, and says so."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    said: list[str] = []
    monkeypatch.setattr(tracking, "print_line", said.append)
    a_run(say, log_file, tmp_path / "run", "logger=wandb")
    assert len([line for line in said if "offline" in line]) == 1
    assert (tmp_path / "run" / tracking.METRICS).exists()


def test_a_log_that_does_not_fit(say: Say, tmp_path: Path) -> None:
    def asked(text: str, *words: str) -> str:
        (tmp_path / "log.csv").write_text(text)
        code, error = say("train", "data=table", "data.path=log.csv", *QUICK, *words)
        assert code == 2
        return error

    assert "log.csv" in (error := asked("who,what\n1,2\n"))
    assert "no column 'user_id' among who, what; say columns.user_id=NAME" in error
    error = asked("user_id,item_id,rating\n1,2,5\n", "data.columns.label=rating")
    assert "label_threshold" in error
    error = asked("user_id,item_id\n1,2\n2,3\n")
    assert "timestamp" in error
    assert "split" in error


def test_a_folder_that_holds_a_finished_run(say: Say, log_file: Path, tmp_path: Path) -> None:
    run = a_run(say, log_file, tmp_path / "run")
    code, error = say("train", "data=table", f"data.path={log_file}", *QUICK, f"hydra.run.dir={run}")
    assert (code, error) == (
        2, f"recsys: {run} holds a finished run: choose another hydra.run.dir, or remove it",
    )  # fmt: skip
