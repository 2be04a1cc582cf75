"""What a sweep sets out to do, read from the command line and the spaces before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recsys import config, tasks
from recsys.sweeping.space import Choices, Range, Space, holds, space, text

GROUPS = ("model", "experiment")  # may choose the model, and have a trial with the defaults for every option
# compose(words, number): configuration, run directory and model of the trial of that number
Compose = Callable[[list[str], int], tuple[DictConfig, Path, str]]
Composed = Callable[..., tuple[DictConfig, Path, str]]  # the same before there are trials: composed(*words)


def plan(
    composed: Composed, fixed: Mapping[str, str], drawn: Mapping[str, Range | Choices], spaces: Mapping[str, Any]
) -> tuple[dict[str, Space], str]:
    """The space of each model that trials may draw, and the metric; every option of the command line is tried once."""
    firsts = {key: of.low if isinstance(of, Range) else of[0] for key, of in drawn.items()}
    cells = [firsts | {key: v} for key, of in drawn.items() if not isinstance(of, Range) for v in of] or [firsts]
    own = {key for key in drawn if key not in (*GROUPS, "seed")}
    kinds: dict[str, Space] = {}
    monitors: dict[str, str] = {}
    for cell in cells:
        cfg, _, model = composed(*words(fixed, cell))
        if cfg.split.get("validation") == 0:
            raise ValueError("a sweep chooses by the validation part: set split.validation above 0")
        monitor = tasks.monitor_of(cfg)
        if other := next((m for m, of in monitors.items() if of != monitor), None):
            raise ValueError(
                f"model={other} is measured by {monitors[other]} and model={model} by {monitor}: "
                "sweep them apart, or give one monitor=…"
            )
        monitors[model] = monitor
        found = space(spaces.get(model) or {}, f"hydra.sweeper.space.{model}")
        config.update(cfg, [f"{key}=null" for key in found])  # an unknown key is said before any work is done
        said = {key.lstrip("+~") for key in (*fixed, *drawn)}
        kinds[model] = {key: of for key, of in found.items() if key not in said}
        if not kinds[model] and not own:
            raise ValueError(
                f"model={model} has nothing to draw: give lists or intervals of its keys, or +hydra.sweeper.space."
                f"{model}; of the models with a space, {config.nearest(model, [m for m in spaces if m != model])}"
            )
    return kinds, monitors[model]


def defaults_of(
    composed: Composed,
    fixed: Mapping[str, str],
    drawn: Mapping[str, Range | Choices],
    kinds: Mapping[str, Space],
) -> list[dict[str, Any]]:
    """For each model the parameters of a trial with its defaults; those that cannot be drawn are left out."""
    firsts = {key: of[0] for key, of in drawn.items() if not isinstance(of, Range)}
    group = next((key for key in GROUPS if key in firsts), None)
    options = drawn[group] if group else ()
    cells = [firsts | {group: v} for v in options] if group and not isinstance(options, Range) else [firsts]
    found = []
    for cell in cells:
        cfg, _, model = composed(*words(fixed, cell))
        ranges = {key: of for key, of in drawn.items() if isinstance(of, Range)}
        for prefix, keys in (("", ranges), (f"{model}/", kinds[model])):
            for key, of in keys.items():
                value = OmegaConf.select(cfg, key.lstrip("+"))
                value = text(value) if OmegaConf.is_config(value) else value
                if holds(of, value):
                    cell = cell | {prefix + key: value}
        found.append(cell)
    return found


def words(*said: Mapping[str, Any]) -> list[str]:
    """Keys and values as words of a command line, later ones over earlier; a key that is taken away (~key) has no
    value."""
    merged = {key: text(value) for of in said for key, value in of.items()}
    return [key if key.startswith("~") and not value else f"{key}={value}" for key, value in merged.items()]
