"""Trials as jobs of a cluster: submitit's own `local`, which runs them on this machine as Slurm would elsewhere."""

from pathlib import Path

import optuna
import pytest
import submitit
from test_sweep import SWEEP, TINY, call

import recsys
from recsys import backend
from recsys.sweeping import trials
from recsys.sweeping.study import attached, opened, start_of

METRIC = """
import os
from recsys.evaluation.metrics import hit

def dies_once(*arguments):
    try:
        os.close(os.open(os.environ["DIED"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return hit(*arguments)
    os._exit(3)
"""


@pytest.mark.slow
def test_trials_are_jobs_and_one_that_dies_is_a_trial_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("DIED", str(tmp_path / "died"))
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 1)  # for the answer of a job that has ended
    own = "evaluation.metrics={mine: {_target_: mine.dies_once, _partial_: true}}"
    words = (*SWEEP, "model=als,ease", own, "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2")
    code, out, err = call(*words, "hydra.sweeper.submitit={cluster: local}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert code == 0, err
    found = trials(tmp_path / "sweep")
    assert sorted(found["state"]) == ["complete", "failed"]
    (reason,) = found.filter(state="failed")["reason"]
    assert reason.startswith("job ")
    assert Path(reason.rpartition("see ")[2]).parent == tmp_path / "sweep" / "jobs"
    (row,) = found.filter(state="complete").iter_rows(named=True)
    assert recsys.load(row["path"]).metrics["val/ndcg@10"] == row["value"]
    assert "best: trial" in out


def test_a_job_of_a_sweep_that_was_started_again_does_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, {"seed": 0}, less_is_better=False) as study:
        trial = study.ask()
        first = start_of(tmp_path)
    with opened(tmp_path, {"seed": 0}, less_is_better=False):
        second = start_of(tmp_path)
        pruner = optuna.pruners.NopPruner()
        with attached(tmp_path, second, trial._trial_id, pruner) as again:
            assert again.number == trial.number
        with (
            pytest.raises(ValueError, match="the sweep was started again"),
            attached(tmp_path, first, trial._trial_id, pruner),
        ):
            pass


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("{cluster: slurmm}", "hydra.sweeper.submitit: AutoExecutor doesn't know any executor named slurmm"),
        ("{cluster: local, timeout_minn: 3}", "hydra.sweeper.submitit: Unknown executor 'timeout' in parameter"),
        ("{cluster: local, timeout_min: soon}", 'hydra.sweeper.submitit: Parameter "timeout_min" expected type'),
        ("slurm", "hydra.sweeper.submitit=slurm: expected"),
        ("missing", "needs the package submitit: pip install 'recsys[submitit]'"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(
    options: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options == "missing":
        monkeypatch.setattr(backend, "installed", lambda name: name != "submitit")
        options = "{cluster: slurm}"
    words = ("train", "-m", "sweep=optuna", "model=als", *TINY, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    code, _, err = call(*words, f"hydra.sweeper.submitit={options}")
    assert code == 2
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "sweep").exists()
