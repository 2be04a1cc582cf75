"""A log as tensors on disk, from Python and from the command line."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch

from recsys import cli, config, feature_files
from recsys.data.datamodule import RecDataModule
from recsys.data.rows import joined
from recsys.features import FeaturePipeline
from recsys.features.sampling import NegativeSampling

SMALL = ("world=tiny", "world.num_users=150", "world.num_videos=500")


@pytest.fixture(scope="module")
def module() -> RecDataModule:
    cfg = config.compose(*SMALL)
    return RecDataModule(config.build(cfg.data), config.partial(cfg.split))


def pipeline() -> FeaturePipeline:
    return config.build(config.compose("features=world").features)


def whole(path: Path, part: str) -> dict[str, torch.Tensor]:
    files = list(feature_files.read(path, part))
    return {name: torch.cat([file[name] for file in files]) for name in files[0]}


def test_parts_are_the_rows_of_the_split(module: RecDataModule, tmp_path: Path) -> None:
    found = feature_files.write(pipeline(), module, tmp_path / "f", rows_a_file=5000)
    saved = FeaturePipeline.load(tmp_path / "f" / "pipeline")
    for part in ("train", "validation", "test"):
        rows = getattr(module.split, part)
        tensors = whole(tmp_path / "f", part)
        assert found["parts"][part]["rows"] == rows.height == len(tensors["label"])
        assert torch.equal(tensors["label"], torch.from_numpy(rows["label"].to_numpy()).float())
        # As of the test cut the saved pipeline sees what each row saw: histories are looked up by time.
        again = saved.transform(joined(module.log, rows), roles=feature_files.ROLES)
        differ = [name for name in again if not torch.equal(again[name], tensors[name])]
        assert part == "validation" or not differ
    assert found["parts"]["train"]["files"] == -(-module.split.train.height // 5000)
    assert feature_files.describe(tmp_path / "f") == json.loads((tmp_path / "f" / "features.json").read_text()) == found
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_test_rows_know_validation_and_no_row_of_test(module: RecDataModule, tmp_path: Path) -> None:
    feature_files.write(pipeline(), module, tmp_path / "f")
    rows = module.split.test
    known = pl.concat([module.split.train, module.split.validation]).filter(pl.col("label") == 1)
    before = known.group_by("user_id").len("before")
    expected = rows.join(before, on="user_id", how="left", maintain_order="left")["before"].fill_null(0).clip(0, 50)
    assert whole(tmp_path / "f", "test")["history_length"].tolist() == expected.to_list()


def test_fewer_negatives_of_train_and_their_rate(module: RecDataModule, tmp_path: Path) -> None:
    negatives = NegativeSampling(0.2, seed=1)
    found = feature_files.write(pipeline(), module, tmp_path / "f", negatives=negatives)
    assert NegativeSampling.from_dict(found["negatives"]) == negatives
    train, labels = module.split.train, whole(tmp_path / "f", "train")["label"]
    assert int(labels.sum()) == train["label"].sum()
    assert len(labels) - labels.sum() == pytest.approx(0.2 * (train["label"] == 0).sum(), rel=0.1)
    assert found["parts"]["test"]["rows"] == module.split.test.height
    everything = feature_files.write(pipeline(), module, tmp_path / "g")
    assert everything["pipeline"] == found["pipeline"]  # fitted on all rows either way


def test_nothing_is_left_of_a_write_that_fails(module: RecDataModule, tmp_path: Path) -> None:
    wrong = FeaturePipeline(user={"country": config.build(config.compose("features=world").features.user.user_id)})
    wrong.features["country"].column = "contry"
    with pytest.raises(ValueError, match="no column 'contry': did you mean country"):
        feature_files.write(wrong, module, tmp_path / "f")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ValueError, match="is not an empty folder"):
        feature_files.write(pipeline(), module, tmp_path)
    assert (tmp_path / "mine").read_text() == "x"


def test_folders_that_hold_no_features(module: RecDataModule, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no features: features.json is missing"):
        next(feature_files.read(tmp_path))
    feature_files.write(pipeline(), module, tmp_path / "f")
    with pytest.raises(ValueError, match="has no part dev: it has train, validation, test"):
        next(feature_files.read(tmp_path / "f", "dev"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(
        "_target_: recsys.features.FeaturePipeline\n"
        "user:\n  country: {_target_: recsys.features.Category}\n"
        "context:\n  hour: {_target_: recsys.features.Category}\n"
        "label:\n  label: {_target_: recsys.features.Plain}\n"
        "derive: {hour: extract(hour from timestamp)}\n"
    )
    cli.COMMANDS["features"]([f"features={own}", f"path={tmp_path / 'f'}", "negatives=0.5", *SMALL])
    assert "country" in capsys.readouterr().out
    assert feature_files.describe(tmp_path / "f")["negatives"]["rate"] == 0.5
    assert set(next(feature_files.read(tmp_path / "f"))) == {"country", "hour", "label"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["features=world"], "path is required"),
        (["features=wrld", "path=x"], "unknown option features=wrld: did you mean world"),
        (["features=nowhere.yaml", "path=x"], "nowhere.yaml"),
        (["features=world", "path=x", "negatives=2"], "rate=2.0: expected the share of negatives"),
        (["features=world", "path=x", "features.user.country.mn=2"], "features.user.country.mn"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message) as error:
        cli.COMMANDS["features"]([*words, *SMALL])
    assert "\n" not in str(error.value)


def test_kuairand_in_one_command(kuairand: Path, tmp_path: Path) -> None:
    words = ["features=kuairand", "data=kuairand", f"data.path={kuairand}", f"path={tmp_path / 'f'}"]
    cli.COMMANDS["features"](words)
    found = feature_files.describe(tmp_path / "f")
    assert sum(part["rows"] for part in found["parts"].values()) == 166_939
    train = whole(tmp_path / "f", "train")
    assert train["history"].shape[1] == 50
    assert all(torch.isfinite(tensor).all() for tensor in train.values() if tensor.is_floating_point())
    # Every category of train is known there, and a third of test's rows have a past.
    assert all(int((train[c["name"]] == 1).sum()) == 0 for c in found["columns"] if c["name"] in ("user_id", "item_id"))
    assert (whole(tmp_path / "f", "test")["history_length"] > 0).float().mean() > 0.3
