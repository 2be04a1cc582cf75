"""The command line as a person types it."""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from recsys import cli


def recsys(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recsys.cli", *words],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    rows = [
        (user, (user * 7 + step * step) % 40, 1_600_000_000 + step * 90 + user)
        for user in range(60)
        for step in range(12)
    ]
    pl.DataFrame(rows, schema=["uid", "vid", "when"], orient="row").write_csv(path)
    return path


@pytest.fixture(scope="module")
def run_dir(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    found = recsys(
        "train", "data=table", f"data.path={table}", "data.columns.user_id=uid", "data.columns.item_id=vid",
        "data.columns.timestamp=when", "model=popularity", f"hydra.run.dir={path}", "evaluation.k=[5]",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "recall@5" in found.stdout
    assert f"recsys recommend run={path}" in found.stdout
    return path


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "recsys: unknown command trian: did you mean train?"),
        (["train", "model=alz"], "recsys: unknown option model=alz: did you mean als?"),
        (["train", "model.widht=3"], "recsys: unknown key model.widht: "),
        (
            ["train", "seed=one", "data=table", "data.path=x.csv"],
            "recsys: seed=one: expected a valid integer",
        ),
        (["train", "data=table"], "recsys: data.path is required: give data.path=…"),
        (["train", "data=table", "data.path=/nowhere/log.csv"], "recsys: /nowhere: no such file or folder"),
        (["evaluate"], "recsys: run is required: give run=…"),
        (["evaluate", "ran=x"], "recsys: unknown option ran=x: did you mean run=?"),
        (["evaluate", "run=/nowhere"], "recsys: /nowhere holds no run"),
        (["resume", "run=/nowhere"], "recsys: /nowhere holds no run to resume"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_right_word(
    words: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["recsys", *words])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith(line)
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [] or not list((tmp_path / "runs").glob("*"))


def test_help_and_completion_answer_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['recsys', 'train', '--help']\n"
        "from recsys import cli\n"
        "try: cli.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "model: als" in found.stdout
    for line, expected in {
        "recsys tr": "train",
        "recsys train model=e": "model=ease",
        "recsys train split=glo": "split=global_time",
    }.items():
        answer = recsys("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
        assert expected in answer.stdout.split(), answer.stderr


def test_import_is_light() -> None:
    code = "import sys, recsys; assert not {'torch', 'polars', 'hydra', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_evaluate_measures_again_and_says_the_same(run_dir: Path) -> None:
    import recsys as package

    before = package.load(run_dir).metrics
    found = recsys("evaluate", f"run={run_dir}", "evaluation.k=[5,7]")
    assert found.returncode == 0, found.stderr
    assert f"{before['test/recall@5']:.4f}" in found.stdout
    assert "recall@7" in found.stdout


def test_recommend_for_known_and_unknown_users(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    users = tmp_path / "users.csv"
    pl.DataFrame({"user_id": [3, 999]}).write_csv(users)
    found = recsys("recommend", f"run={run_dir}", f"users={users}", "k=4", f"out={out}")
    assert found.returncode == 0, found.stderr
    answer = pl.read_parquet(out)
    assert answer.columns == ["user_id", "rank", "item_id", "source"]
    assert answer["user_id"].to_list() == [3] * 4 + [999] * 4
    assert answer["rank"].to_list() == [1, 2, 3, 4] * 2
    found = recsys("recommend", f"run={run_dir}", "users=3,bob")
    assert found.returncode == 2
    assert "'bob' is not an id of this log" in found.stderr


def test_a_funnel_of_runs_answers_as_recommend_does(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.parquet"
    found = recsys("funnel", f"retrievers={run_dir}", "users=3,999", "k=4", "candidates=50", f"out={out}")
    assert found.returncode == 0, found.stderr
    page = pl.read_parquet(out)
    assert page["user_id"].to_list() == [3] * 4 + [999] * 4
    assert page["rank"].to_list() == [1, 2, 3, 4] * 2
    assert page["degraded"].null_count() == 8
    wrong = recsys("funnel", f"retrievers={run_dir}", "users=3", "caps=topic:2")
    assert wrong.returncode == 2
    assert "items have no column 'topic'" in wrong.stderr
    wrong = recsys("study", "loss_budget", f"retrievers={run_dir}", f"ranker={run_dir}")
    assert wrong.returncode == 2
    assert "holds a retriever: name a ranker's run" in wrong.stderr


def test_a_grid_makes_a_run_for_every_cell_and_one_table(table: Path, tmp_path: Path) -> None:
    found = recsys(
        "train", "-m", "model=popularity,knn", "seed=0,1", "data=table", f"data.path={table}",
        "data.columns.user_id=uid", "data.columns.item_id=vid", "data.columns.timestamp=when",
        f"hydra.sweep.dir={tmp_path}", "evaluation.k=[5]", "evaluation.num_replicates=50",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert len(list(tmp_path.glob("*/metrics.json"))) == 4
    assert "4 runs" in found.stdout
    compared = recsys("compare", "runs=" + ",".join(str(p) for p in sorted(tmp_path.glob("*_seed*"))))
    assert compared.returncode == 0, compared.stderr
    assert "Popularity" in compared.stdout


def test_a_leak_is_named_and_priced(table: Path, tmp_path: Path) -> None:
    words = (
        "data=table", f"data.path={table}", "data.columns.user_id=uid", "data.columns.item_id=vid",
        "data.columns.timestamp=when", "evaluation.k=[5]", "metric=recall@5", f"out={tmp_path / 'leaks.parquet'}",
    )  # fmt: skip
    found = recsys("study", "leakage", *words, "split=random")
    assert found.returncode == 0, found.stderr
    assert "future_rows" in found.stdout
    report = pl.read_parquet(tmp_path / "leaks.parquet")
    row = report.filter(kind="future_rows").row(0, named=True)
    assert row["inflation"] == pytest.approx(100 * (row["with_leak"] - row["without"]))
    clean = recsys("study", "leakage", *words)
    assert "nothing leaks" in clean.stderr + clean.stdout
    assert pl.read_parquet(tmp_path / "leaks.parquet").is_empty()
    wrong = recsys("study", "leaks")
    assert "expected one of collisions, leakage" in wrong.stderr


def test_a_run_is_measured_for_parts_of_its_users(run_dir: Path) -> None:
    found = recsys("evaluate", f"run={run_dir}", "slices=[activity,item_popularity]", "metrics=[recall@5]")
    assert found.returncode == 0, found.stderr
    assert "test by activity" in found.stdout
    assert "test by item_popularity" in found.stdout
    wrong = recsys("evaluate", f"run={run_dir}", "slices=[activty]")
    assert "cannot be sliced by activty: did you mean activity?" in wrong.stderr
    wrong = recsys("evaluate", f"run={run_dir}", "slices=[activity]", "metrics=[recal@5]")
    assert "metric recal@5 was not measured: did you mean recall@5?" in wrong.stderr
