"""What can be said in overrides, and what a configuration then is: both before anything runs, from configs/ alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
from omegaconf import DictConfig, OmegaConf

from recsys import config, reprs


class Settings(DictConfig):
    """A configuration that is shown as YAML; else a DictConfig."""

    def __repr__(self) -> str:
        return config.to_yaml(self)

    __str__ = __repr__


class Choices(pl.DataFrame):
    """What can be chosen: a Polars DataFrame whose texts a notebook shows at length."""

    def _repr_html_(self, *, _from_series: bool = False) -> str:
        rows = [[reprs.shortened(cell, 120) for cell in row] for row in self.iter_rows()]
        return reprs.page("", reprs.table(self.columns, rows, left=self.width))


def settings(*overrides: str) -> Settings:
    """The configuration that overrides mean, resolved, as `recsys.train` would take it. Shown as YAML.

    >>> cfg = recsys.settings("model=als", "model.embedding_dim=32")
    >>> cfg.model
    {'_target_': 'recsys.models.als.ALS', '_partial_': True, 'embedding_dim': 32, ...}
    >>> print(cfg)
    world:
      _target_: recsys.world.World
      name: tiny
    ...

    Raises:
        ConfigError: an override names no key or option, or cannot be read; the message names the nearest.
    """
    cfg = Settings(config.compose(*overrides))
    OmegaConf.resolve(cfg)
    return cfg


def choices(word: str | None = None) -> Choices:
    """What overrides can say.

    >>> recsys.choices("split")["option"].to_list()
    ['given', 'global_time', 'leave_last_out', 'random']
    >>> recsys.choices("model=als").head(2)["key"].to_list()
    ['model.embedding_dim', 'model.num_sweeps']

    Args:
        word: None: every group and option; a group, as "model": its options; or one option, as "model=als": its keys.

    Returns:
        group, option, about; of one option key, value, about.

    Raises:
        ConfigError: no such group or option; the message names the nearest.
    """
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(config.config_dir().glob("*/*.yaml")):
        found.setdefault(file.parent.name, {})[file.stem] = file
    group, chosen, option = (word or "").partition("=")
    if word and group not in found:
        raise config.ConfigError(f"unknown group {group}: {config.nearest(group, found)}")
    if chosen and option not in found[group]:
        raise config.ConfigError(f"unknown option {word}: {config.nearest(option, found[group])}")
    if chosen:
        head = f"{group}." if "_global_" not in found[group][option].read_text(encoding="utf-8").split("\n")[0] else ""
        rows = [(head + key, value, about) for key, value, about in described(found[group][option]) if key and value]
        rows = [row for row in rows if not row[0].removeprefix(head).startswith(("_", "defaults"))]
        return Choices(rows, schema=["key", "value", "about"], orient="row")
    rows = [
        (name, stem, _about(file))
        for name, files in found.items() if not word or name == group
        for stem, file in files.items()
    ]  # fmt: skip
    return Choices(rows, schema=["group", "option", "about"], orient="row")


def described(file: Path) -> Iterator[tuple[str, str, str]]:
    """The keys of a file of configs/, dotted, with the text of their value and the comment behind it; first "", "" and
    the comment at its head."""
    lines = file.read_text(encoding="utf-8").splitlines()
    head = [line.lstrip("# ") for line in _while_comment(lines) if "@package" not in line]
    yield "", "", " ".join(head)
    above: list[tuple[int, str]] = []
    for number, line in enumerate(lines):
        if not (found := re.match(r"( *)(\w+):(?: +(?!#)(.*?))?(?:\s+#\s*(.*))?$", line)):
            continue
        depth, key, value, about = len(found[1]), found[2], found[3] or "", found[4] or ""
        above = [*(each for each in above if each[0] < depth), (depth, key)]
        more = [line.lstrip("# ") for line in _while_comment(lines[number + 1 :])] if about else []
        yield ".".join(name for _, name in above), value, " ".join([about, *more])


def _while_comment(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("#"):
            return
        yield line


def _about(file: Path) -> str:
    """The comment at the head of an option, or what the class or function that it builds says of itself."""
    if about := next(described(file))[2]:
        return about
    node = config.load(file)
    doc = config.target(node).__doc__ if "_target_" in node else None
    return " ".join((doc or "").strip().split("\n\n")[0].split())
