"""Arguments of the form key=value."""

from __future__ import annotations

TRACKERS = ("logger=", "logger.")  # how the words that choose and set trackers begin


def parsed(arguments: list[str], required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> dict[str, str]:
    """key=value arguments as a dict; an unknown or a missing key is an error that names the right one."""
    from recsys.config import ConfigError, nearest

    options: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in required + optional or not equals:
            raise ConfigError(f"unknown option {argument}: {nearest(key, [f'{o}=' for o in required + optional])}")
        options[key] = value
    for key in required:
        if key not in options:
            raise ConfigError(f"{key} is required: give {key}=…")
    return options


def whole(options: dict[str, str], name: str) -> int | None:
    """The whole number of an option that was given; None for one that was not."""
    if name not in options:
        return None
    if not options[name].removeprefix("-").isdigit():
        raise ValueError(f"{name}={options[name]}: expected a whole number")
    return int(options[name])


def parted(arguments: list[str], prefixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The arguments that begin with one of the prefixes, and the others."""
    chosen = [argument for argument in arguments if argument.startswith(prefixes)]
    return chosen, [argument for argument in arguments if not argument.startswith(prefixes)]
