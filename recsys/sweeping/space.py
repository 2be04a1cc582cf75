"""What the trials of a sweep draw: ranges and choices, by the key that they set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recsys.config import ConfigError

DIGITS = 4  # of a drawn number, so that a command line says what was trained with
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; whole ones where low and high are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


_NUMBER = r"([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)"
_RANGE = re.compile(rf"{_NUMBER}\.\.{_NUMBER}(?:(\s+log)|\s+step\s+{_NUMBER})?")
Choices = tuple[Value, ...]
Space = dict[str, Range | Choices]


def space(node: Mapping[str, Any], where: str) -> Space:
    """The space of a model: nested keys as dotted ones; what is null is not drawn.

    Raises:
        ConfigError: a leaf is neither a list nor a range, or does not fit; the message begins with `where`.
    """
    found: Space = {}
    for key, value in node.items():
        place = f"{where}.{key}"
        if isinstance(value, Mapping):
            found |= {f"{key}.{below}": leaf for below, leaf in space(value, place).items()}
        elif value is not None:
            found[str(key)] = distribution(value, place)
    return found


def distribution(value: Any, where: str) -> Range | Choices:
    """Choices from a list, or a range from "0.1..2.0", "0.1..2.0 log", "2..8 step 2".

    A choice that is no single value stands as its text.

    Raises:
        ConfigError: it is neither, there is no choice, one comes twice, or see `ranged`.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        choices = tuple(v if isinstance(v, Value) else text(v) for v in value)
        if not choices or len(set(map(text, choices))) < len(choices):
            raise ConfigError(f"{where}={text(value)}: expected at least one choice, and none twice")
        return choices
    found = _RANGE.fullmatch(str(value))
    if found is None:
        raise ConfigError(f"{where}={text(value)}: expected a list of choices, or a range as 0.1..2.0 log")
    low, high, log, step = found.groups()
    return ranged(_number(low), _number(high), where, log=log is not None, step=None if step is None else _number(step))


def ranged(low: float, high: float, where: str, *, log: bool = False, step: float | None = None) -> Range:
    """A range.

    Raises:
        ConfigError: it is empty, not positive where it is drawn by logarithm, or has a step that does not fit.
    """
    found = Range(low, high, log, step)
    if not low < high:
        raise ConfigError(f"{where}: {low} must be below {high}")
    if log and not low > 0:
        raise ConfigError(f"{where}: {low} must be positive where the range is drawn by logarithm")
    if step is not None and (not step > 0 or (found.whole and not isinstance(step, int))):
        raise ConfigError(f"{where}: step {step} must be positive, and whole where both ends are")
    return found


def _number(word: str) -> float:
    return int(word) if word.lstrip("+-").isdigit() else float(word)


def draw(trial: Any, name: str, of: Range | Choices) -> Value:
    """A value that an Optuna trial suggests under that name; fractions to `DIGITS` digits."""
    if not isinstance(of, Range):
        return trial.suggest_categorical(name, of)
    if of.whole:
        return trial.suggest_int(name, int(of.low), int(of.high), step=int(of.step or 1), log=of.log)
    value = trial.suggest_float(name, float(of.low), float(of.high), step=of.step, log=of.log)
    return min(max(float(f"{value:.{DIGITS}g}"), of.low), of.high)


def holds(of: Range | Choices, value: Any) -> bool:
    """Whether the value can be drawn."""
    if not isinstance(of, Range):
        return any(choice == value and type(choice) is type(value) for choice in of)
    number = isinstance(value, int | float) and not isinstance(value, bool) and of.low <= value <= of.high
    steps = 0.0 if not number or not of.step else (value - of.low) / of.step
    return number and (not of.whole or value == int(value)) and abs(steps - round(steps)) < 1e-9


def text(value: Any) -> str:
    """A value as a command line has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{text(below)}" for key, below in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(text, value))}]"
    return str(value)
