"""Composition and building: what a user gets wrong comes out as one line that names the right word."""

from pathlib import Path
from typing import Literal

import pytest
from omegaconf import OmegaConf

from recsys import config


class Thing:
    def __init__(
        self,
        schema: object,
        *,
        width: int = 3,
        kind: Literal["red", "green"] = "red",
        tags: list[str] | None = None,
    ):
        self.schema, self.width, self.kind, self.tags = schema, width, kind, tags


def node(**values: object) -> OmegaConf:
    return OmegaConf.create({"model": {"_target_": f"{__name__}.Thing", "_partial_": True, **values}}).model


def test_defaults_compose_to_the_built_in_world() -> None:
    cfg = config.compose()
    assert cfg.data._target_.startswith("recsys.data.")
    assert cfg.seed == 0
    assert list(cfg.evaluation.k) == [10, 20, 100]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model=alz", "unknown option model=alz: did you mean als?"),
        ("modell=als", "unknown key modell: did you mean model?"),
        ("evaluation.kk=[5]", "unknown key evaluation.kk: did you mean evaluation.k?"),
        ("sed=1", "unknown key sed: did you mean seed?"),
        ("features=wrld", "unknown option features=wrld: did you mean world?"),
        ("experiment=lightgcn", "unknown option experiment=lightgcn: did you mean lightgcn_gowalla?"),
        ("model.num_sweeps=3", "unknown key model.num_sweeps: the chosen model has none, only others do"),
    ],
)
def test_unknown_words_name_the_nearest(override: str, expected: str) -> None:
    with pytest.raises(config.ConfigError) as error:
        config.compose(override)
    assert str(error.value).startswith(expected)


@pytest.mark.parametrize("override", ["model=", "[", "a=b=c}", "split.validation=[1"])
def test_an_override_that_cannot_be_read_is_one_line(override: str) -> None:
    with pytest.raises(config.ConfigError) as error:
        config.compose(override)
    assert "\n" not in str(error.value)


def test_build_passes_runtime_arguments_untouched() -> None:
    schema = object()
    built = config.build(node(width=5, tags=["a"]), schema=schema)
    assert built.schema is schema
    assert (built.width, built.tags) == (5, ["a"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"widht": 5}, "unknown key model.widht: did you mean width?"),
        ({"width": "five"}, "model.width=five: expected a valid integer"),
        ({"width": 2.5}, "model.width=2.5: expected a valid integer, got a number with a fractional part"),
        ({"kind": "gren"}, "model.kind=gren: expected 'red' or 'green' (did you mean green?)"),
    ],
)
def test_build_holds_arguments_against_the_signature(values: dict[str, object], expected: str) -> None:
    with pytest.raises(config.ConfigError) as error:
        config.build(node(**values), schema=None)
    assert str(error.value).startswith(expected)


def test_update_changes_a_copy_and_refuses_unknown_keys() -> None:
    cfg = config.compose()
    changed = config.update(cfg, ["evaluation.k=[3]", "seed=4"])
    assert list(changed.evaluation.k) == [3]
    assert changed.seed == 4
    assert cfg.seed == 0
    with pytest.raises(config.ConfigError, match="did you mean evaluation"):
        config.update(cfg, ["evaluation.kk=[3]"])


def test_every_option_of_every_group_composes() -> None:
    for file in sorted(config.config_dir().glob("*/*.yaml")):
        cfg = config.compose(f"{file.parent.name}={file.stem}")
        # An experiment changes other groups; of loggers csv is no file of settings.
        assert file.parent.name in ("experiment", "sweep", "logger") or cfg[file.parent.name]


def test_every_yaml_argument_exists_in_what_it_builds() -> None:
    checked = 0
    for file in sorted(file for file in config.config_dir().glob("*/*.yaml") if file.parent.name != "sweep"):
        cfg = config.compose(f"{file.parent.name}={file.stem}")
        node = cfg.model if file.parent.name == "experiment" else cfg[file.parent.name]
        if "_target_" in node and "???" not in Path(file).read_text():
            config.partial(node)
            checked += 1
    assert checked > 8


def test_a_wrong_word_deep_in_a_node_is_named_with_its_place() -> None:
    cfg = config.compose("features=world")
    cfg.features.user.country = {"_target_": "recsys.features.Category", "min_cuont": 2}
    with pytest.raises(config.ConfigError, match=r"features.user.country.min_cuont: did you mean min_count"):
        config.partial(cfg.features)
    cfg.features.user.country = {"_target_": "recsys.features.Category", "min_count": "many"}
    with pytest.raises(config.ConfigError, match=r"features.user.country.min_count=many: expected a valid integer"):
        config.partial(cfg.features)


def test_a_file_that_is_no_configuration_is_named(tmp_path: Path) -> None:
    for text, message in (("a: [", "holds no YAML"), ("- a", "holds no configuration")):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(config.ConfigError, match=rf"own.yaml {message}") as error:
            config.load(tmp_path / "own.yaml")
        assert "\n" not in str(error.value)
