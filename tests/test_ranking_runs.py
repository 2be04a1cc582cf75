"""Runs of rankers: what they leave behind, exact resuming, and what they can be asked."""

import os
import shutil
import signal
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import recsys
from recsys import cli, config, tables, tracking
from recsys.data.rows import joined
from recsys.models.logistic import Logistic
from recsys.training import evaluate, train
from recsys.watch import Interrupted, Watch

SMALL = (
    "world=tiny", "world.num_users=300", "features=world", "features.context.history.length=10", "trainer=cpu",
    "evaluation.num_replicates=100", "checkpoint_seconds=0", "trainer.max_epochs=2", "model.batch_size=512",
)  # fmt: skip


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / tracking.MODEL)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> recsys.Run:
    return train(config.compose("model=logistic", *SMALL), tmp_path_factory.mktemp("runs") / "run")


def test_a_run_measures_probabilities_beside_the_truth(finished: recsys.Run) -> None:
    found = finished.metrics
    assert found["test/auc/low"] <= found["test/auc"] <= found["test/auc/high"]
    assert found["test/auc"] > 0.55
    assert found["bayes/auc"] > found["test/auc"]
    assert found["bayes/log_loss"] < found["test/log_loss"]
    assert found["test/gap_closed"] < 1
    assert finished.per_user["rows"].sum() == finished.manifest["evaluation"]["rows"]
    assert {"train/loss", "val/auc", "val/log_loss"} <= set(finished.curves.columns)
    names = {str(p.relative_to(finished.path)) for p in finished.path.rglob("*") if p.is_file()}
    assert {tracking.CONFIG, tracking.METRICS, tracking.MANIFEST, tracking.PER_USER, tracking.MODEL} <= names
    assert f"{tracking.PIPELINE}/pipeline.json" in names
    assert tracking.LAST not in names


def test_predictions_are_those_that_were_measured(finished: recsys.Run) -> None:
    cfg = finished.config
    log = config.build(cfg.data)
    split = config.partial(cfg.split)(log, seed=cfg.seed)
    rows = joined(log, split.test).collect()
    p = finished.predict(rows)
    loss = torch.nn.functional.binary_cross_entropy(p.double(), torch.from_numpy(rows["label"].to_numpy()).double())
    assert float(loss) == pytest.approx(finished.metrics["test/log_loss"], rel=1e-6)
    one = finished.predict(rows.drop("label").row(7, named=True))
    assert float(one[0]) == pytest.approx(float(p[7]), rel=1e-6)
    again = evaluate(finished.path)
    assert again["test/auc"] == finished.metrics["test/auc"]


@pytest.mark.parametrize("stop_after", [1, 4])
def test_interrupted_and_resumed_equals_never_stopped(
    finished: recsys.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    calls, chunk_done = 0, Watch.chunk_done

    def interrupt(self: Watch, chunks: int, epochs: int) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
        chunk_done(self, chunks, epochs)

    monkeypatch.setattr(Watch, "chunk_done", interrupt)
    cfg = config.compose("model=logistic", *SMALL)
    with pytest.raises(Interrupted):
        train(cfg, tmp_path / "run")
    resumed = train(cfg, tmp_path / "run")
    assert same(weights(resumed.path), weights(finished.path))
    assert resumed.metrics["test/log_loss"] == finished.metrics["test/log_loss"]


def test_fewer_negatives_and_probabilities_put_right(finished: recsys.Run, tmp_path: Path) -> None:
    run = train(config.compose("model=logistic", "negatives=0.2", *SMALL), tmp_path / "run")
    assert run.metrics["train/samples_per_second"] > 0
    assert 0.7 < run.metrics["test/calibration"] < 1.5
    assert run.metrics["test/log_loss"] == pytest.approx(finished.metrics["test/log_loss"], rel=0.1)
    rows = joined(config.build(run.config.data), config.build(run.config.data).events.head(2000)).collect()
    assert float(run.predict(rows).mean()) < 0.06


def test_a_run_learns_the_order_of_each_users_rows(tmp_path: Path) -> None:
    small = *SMALL, "world.num_users=100", "trainer.max_epochs=1", "evaluation.num_replicates=0"
    words = "model=logistic", "model.loss=listwise", *small
    run = train(config.compose("model.rank_weight=0.1", *words), tmp_path / "run")
    assert run.metrics["test/auc"] > 0.5
    assert 0.5 < run.metrics["test/calibration"] < 2  # bce stands beside it
    rows = joined(config.build(run.config.data), config.build(run.config.data).events.head(5)).collect()
    assert len(run.predict(rows)) == 5
    with pytest.raises(ValueError, match="group=visit: loss=listwise needs a column of one index, choose from: user_i"):
        train(config.compose("model.group=visit", *words), tmp_path / "other")


def test_rankers_are_compared_user_by_user(finished: recsys.Run, tmp_path: Path) -> None:
    other = train(config.compose("model=logistic", "model.table_lr=0.5", *SMALL), tmp_path / "run")
    found = recsys.compare([finished, other])
    rows = {row["metric"]: row for row in found.filter(pl.col("label").str.contains("0.5")).to_dicts()}
    for metric in ("auc", "log_loss", "calibration", "grouped_auc", "normalised_cross_entropy"):
        row = rows[metric]
        assert row["difference"] == pytest.approx(other.metrics[f"test/{metric}"] - finished.metrics[f"test/{metric}"])
        assert row["difference_low"] < row["difference"] < row["difference_high"]
        # The interval over users is that of the run's own measurement, and a paired one is narrower than two.
        low, high = (other.metrics[f"test/{metric}/{end}"] for end in ("low", "high"))
        assert row["high"] - row["low"] == pytest.approx(high - low, rel=0.35)
        assert row["difference_high"] - row["difference_low"] < 1.5 * (row["high"] - row["low"])
    assert rows["calibration_error"]["difference_low"] is None  # no sum over users
    assert rows["calibration_error"]["verdict"] is None
    assert rows["calibration"]["verdict"] in ("higher", "lower", "not told apart")
    told = [row for row in rows.values() if row["verdict"] in ("better", "worse")]
    for row in told:
        grew, less_is_better = row["difference"] > 0, row["metric"] in ("log_loss", "normalised_cross_entropy")
        assert (row["verdict"] == "better") == (grew != less_is_better)
    assert told
    same = recsys.compare([finished, finished], names=["one", "two"], metrics=["log_loss"])
    assert same["difference_high"][1] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=logistic",), "is a ranker and needs columns: give features="),
        (("model=als", "features=world"), "recsys.models.als.ALS uses no features: leave features out"),
        (("model=als", "negatives=0.5"), "negatives=0.5 is for rankers"),
        (("model=logistic", "features=world", "negatives=0"), "rate=0.0: expected"),
        (
            ("model=logistic", "features=world", "monitor=recall"),
            "monitor=recall is no metric of the model's: ",
        ),
        (("model=logistic", "features=world", "model.dropout=1"), "unknown key model.dropout"),
        (("model=logistic", "features=world", "~features.label.label"), "no feature 'label' among the labels"),
        (("model=logistic", "features=world", "data.stream=true"), "train has not both"),
    ],
)
def test_what_does_not_fit_is_one_line(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    small = [word for word in SMALL if not word.startswith(("features", "model."))]
    with pytest.raises(ValueError, match=message) as error:
        train(config.compose(*small, *words), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_each_kind_of_run_says_what_it_cannot(finished: recsys.Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot recommend: Logistic is a ranker, ask it to predict"):
        finished.recommend([1])
    with pytest.raises(ValueError, match="cannot recommend: it holds a ranker, ask it to predict"):
        cli.COMMANDS["recommend"]([f"run={finished.path}", "users=1"])
    rows = pl.DataFrame({"user_id": [1, 2, 1, 3], "item_id": [7, 7, 8, 9], "timestamp": [1, 2, 3, 4]})
    words = "model=popularity", "split=random", "evaluation.k=[1]", "monitor=ndcg@1", f"hydra.run.dir={tmp_path / 'r'}"
    other = recsys.train(*words, data=rows)
    with pytest.raises(ValueError, match="cannot predict: Popularity is a retriever, ask it to recommend"):
        other.predict(rows)


def test_the_command_line_shows_a_ranker(finished: recsys.Run, capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_run(finished)
    out = capsys.readouterr().out
    assert "rows as shown" in out
    assert "Bayes" in out
    assert ".predict(rows)" in out


def test_a_training_that_breaks_down_names_what_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Logistic.forward

    def poisoned(self: Logistic, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.bias.data.fill_(torch.inf)
        return forward(self, batch)

    monkeypatch.setattr(Logistic, "forward", poisoned)
    with pytest.raises(ValueError, match=r"parameter bias is not finite by step \d+ of training: lower lr or table_lr"):
        train(config.compose("model=logistic", *SMALL), tmp_path / "run")


def test_a_label_of_other_values_is_named(tmp_path: Path) -> None:
    cfg = config.compose("model=logistic", *SMALL, "+features.label.label.column=position")
    with pytest.raises(ValueError, match=r"feature 'label' is .* in row .*, neither 0 nor 1"):
        train(cfg, tmp_path / "run")


def test_weights_of_another_model_are_named(finished: recsys.Run, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    file = tmp_path / "run" / tracking.MODEL
    tensors, metadata = tracking.read_tensors(file)
    name = sorted(tensors)[0]
    tracking.write_tensors(file, {f"{name}_other": tensors.pop(name), **tensors}, **metadata)
    with pytest.raises(ValueError, match=rf"model.safetensors is no Logistic of this run's config.yaml: .*{name}"):
        _ = recsys.Run(tmp_path / "run").model
