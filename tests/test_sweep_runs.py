"""Sweeps beyond one process and one terminal: trials side by side, their runs in W&B, and a sweep in a notebook."""

from pathlib import Path

import pytest
from test_sweep import SWEEP, TINY, call, started
from wandb_files import OfflineRun, offline_runs

import recsys
from recsys import atomic
from recsys.sweeping import plot, trials
from recsys.sweeping.study import _Alike

UNEQUAL = ("seconds", "path")


@pytest.mark.slow
def test_trials_side_by_side_are_the_same_again_after_a_kill(tmp_path: Path) -> None:
    words = (*SWEEP, "model=ease", "hydra.sweeper.n_trials=4", "hydra.sweeper.startup_trials=1")
    words = (*words, "hydra.sweeper.n_jobs=2")
    killed = tmp_path / "killed"
    process = started(*words, f"hydra.sweep.dir={killed}", until=lambda: [*killed.glob("[23]_*")])
    process.kill()
    process.communicate()
    assert trials(killed)["trial"].to_list() == [0, 1]
    code, _, err = call(*words, f"hydra.sweep.dir={killed}")
    assert code == 0, err
    code, _, err = call(*words, f"hydra.sweep.dir={tmp_path / 'whole'}")
    assert code == 0, err
    found = trials(killed)
    assert found.drop(UNEQUAL).equals(trials(tmp_path / "whole").drop(UNEQUAL))
    assert set(found["state"]) == {"complete"}
    assert found["model.ridge"].n_unique() == 4
    code, _, err = call(*SWEEP, *words[-4:-1], "hydra.sweeper.n_jobs=3", f"hydra.sweep.dir={killed}")
    assert code == 2
    assert "holds a sweep with n_jobs=2, not 3" in err


@pytest.mark.slow
def test_every_trial_is_a_run_of_wandb_through_a_kill_and_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    directory = tmp_path / "search"
    # Trials of iALS but the first fail before there is a run.
    words = (
        *SWEEP, "logger=wandb", "hydra.sweeper.n_trials=4", "model=als,ease", f"hydra.sweep.dir={directory}",
        "hydra.sweeper.space.als.model.embedding_dim=[-8,-9]",
    )  # fmt: skip
    process = started(*words, until=lambda: [*directory.glob("1_*/wandb/id")])
    process.kill()
    process.communicate()
    code, _, err = call(*words)
    assert code == 0, err
    found, listed = trials(directory), recsys.runs(directory)
    assert found["state"].to_list() == ["complete", "complete", "failed", "complete"]
    assert sorted(listed["trial"]) == [*range(4)] == found["trial"].to_list()
    by_trial: dict[str, list[OfflineRun]] = {}
    for run in offline_runs(directory):
        by_trial.setdefault(run.name, []).append(run)
    assert by_trial.keys() == {Path(path).name for path in found["path"]}
    assert len({run.id for runs in by_trial.values() for run in runs}) == 4
    for row in found.iter_rows(named=True):
        runs = by_trial[Path(row["path"]).name]
        assert {run.group for run in runs} == {"search"}
        assert len({run.id for run in runs}) == 1
        assert runs[-1].exit_code == {"complete": 0, "failed": 1}[row["state"]]
        assert runs[-1].summary["state"] == {"complete": "finished", "failed": "failed"}[row["state"]]
        assert runs[-1].summary.get("val/ndcg@10") == row["value"]
        assert runs[-1].summary.get("reason") == row["reason"]


def test_a_sweep_in_a_notebook_is_that_of_the_command_line(tmp_path: Path) -> None:
    words = ("model=als,ease", *TINY, "hydra.sweeper.startup_trials=3")
    first = recsys.sweep(*words, n_trials=3, dir=tmp_path / "a")
    assert first.trials["trial"].to_list() == [0, 1, 2]
    code, out, err = call(
        "train", "-m", "sweep=optuna", *words, "hydra.sweeper.n_trials=4", f"hydra.sweep.dir={first.dir}"
    )
    assert code == 0, err
    sweep = recsys.sweep(*words, n_trials=4, dir=tmp_path / "a")  # it is done: nothing is trained
    assert len(sweep.trials) == 4
    before = first.trials.drop("best")
    assert sweep.trials.head(3).select(before.columns).equals(before)
    assert sweep.best.metrics["val/ndcg@10"] == sweep.trials["value"].max()
    assert sweep.command in out
    assert f"plot: {sweep.dir / 'sweep.svg'}" in out
    assert repr(sweep) == (
        f"Sweep({str(sweep.dir)!r}): 4 trials, best val/ndcg@10 {sweep.trials['value'].max():.4f} by "
        f"{sweep.trials.filter('best')['model'].item()}, trial {sweep.trials.filter('best')['trial'].item()}"
    )
    html = sweep._repr_html_()
    assert html.count("<tr>") == 1 + 4
    assert "<svg" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    with pytest.raises(ValueError, match="did you mean"):
        recsys.sweep("model=alss", dir=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_the_picture_shows_every_complete_trial_and_the_keys_that_mattered(tmp_path: Path) -> None:
    drawn = [
        {"model": "mf", "model.lr": lr, "model.history": way} for lr, way in zip((0.001, 0.1, 1.0), "aab", strict=True)
    ]
    rows = [
        {
            "trial": n, "state": "complete", "value": float(n), "defaults": False, "model": "mf", "seconds": 1.0,
            "parameters": parameters, "path": str(n), "reason": None, "test": {},
        }
        for n, parameters in enumerate(drawn)
    ]  # fmt: skip
    rows.append(rows[0] | {"trial": 3, "state": "failed", "value": None})
    importance = {"mf/model.history": 0.7, "mf/model.lr": 0.3}
    found = {"metric": "val/log_loss", "direction": "minimize", "best": 0, "command": "", "importance": importance}
    atomic.write_json(tmp_path / "sweep.json", found | {"trials": rows})
    over_trials, panels = plot.chart(tmp_path).to_dict()["vconcat"]
    datasets = plot.chart(tmp_path).to_dict()["datasets"]
    line, points = (datasets[layer["data"]["name"]] for layer in over_trials["layer"])
    assert [row["value"] for row in line] == [0.0, 0.0, 0.0]  # less is better
    assert [row["x"] for row in points] == [0, 1, 2]
    history, lr = (panel["encoding"]["x"] for panel in panels["concat"])
    assert (history["title"], history["type"]) == ("model.history", "nominal")
    assert (lr["title"], lr["scale"]["type"]) == ("model.lr", "log")
    plot.write(tmp_path)
    assert (tmp_path / "sweep.svg").read_text().startswith("<svg")


def test_a_pruner_sees_nothing_of_what_runs_beside() -> None:
    import optuna

    study = optuna.create_study()
    asked = [study.ask() for _ in range(3)]
    for trial in asked:
        trial.set_user_attr("model", "mf")
    study.tell(asked[0], 1.0)
    seen = _Alike(study, study.trials[2]).get_trials()
    assert [trial.number for trial in seen] == [0, 2]
