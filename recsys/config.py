"""Compose a configuration and build what it names: the only module that knows Hydra.

Whatever a user gets wrong in a key, an option or a type comes out as a ConfigError of one line that
names the nearest right one.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

MAIN_CONFIG = "train"


class ConfigError(ValueError):
    """A key, an option or a value that does not fit. Always one line."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback."""
        return [str(self)]


class UnknownKey(ConfigError):
    """A key that what is built does not take: a slip of the pen, or a file of another version."""


def config_dir() -> Path:
    """The configs folder: the checkout's where there is one, else the one in the wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "configs"
    if checkout.is_dir() and (package.parent / "pyproject.toml").is_file():
        return checkout
    return package / "configs"


def nearest(word: str, choices: Iterable[str]) -> str:
    """The hint at the end of an error: the choice most like the word, and all of them where few and none is near."""
    choices = sorted(set(choices))
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    listed = ", ".join(choices[:20])
    if not close:
        return f"choose from {listed}" if choices else "there is none to choose"
    sure = len(choices) > 20 or difflib.SequenceMatcher(None, close[0], word).ratio() >= 0.65
    return f"did you mean {close[0]}?" + ("" if sure else f" There are {listed}")


def compose(*overrides: str) -> DictConfig:
    """The training configuration with overrides as on the command line: compose("model=als", "seed=1").

    Raises:
        ConfigError: an override names no key or option, or cannot be read.
    """
    return compose_run(*overrides)[0]


def compose_run(*overrides: str) -> tuple[DictConfig, Path]:
    """The training configuration and the run directory that hydra.run.dir means.

    Raises:
        ConfigError: an override names no key or option, or cannot be read.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    before = HydraConfig.instance().cfg
    with one_line_errors(), hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = hydra.compose(MAIN_CONFIG, list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)  # hydra.run.dir names the chosen model through it
        try:
            run_dir = Path(cfg.hydra.run.dir)
        finally:
            HydraConfig.instance().cfg = before
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]), run_dir


def load(path: Path) -> DictConfig:
    """Read a configuration that a run, or a user, wrote.

    Raises:
        ConfigError: the file holds no YAML, or no keys and values.
        OSError: it cannot be read.
    """
    from yaml import YAMLError

    try:
        loaded = OmegaConf.load(path)
    except YAMLError as error:
        raise ConfigError(f"{path} holds no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path} holds no configuration: expected keys and values")
    return loaded


def to_yaml(cfg: DictConfig) -> str:
    """The resolved configuration as YAML text."""
    return OmegaConf.to_yaml(cfg, resolve=True)


def flat(cfg: DictConfig) -> dict[str, Any]:
    """Every resolved leaf of a configuration under its dotted key."""
    resolved = OmegaConf.to_container(cfg, resolve=True)

    def leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict) and node:
            for key, child in node.items():
                yield from leaves(child, f"{prefix}.{key}" if prefix else str(key))
        else:
            yield prefix, node

    return dict(leaves(resolved, ""))


def update(cfg: DictConfig, assignments: Iterable[str]) -> DictConfig:
    """A copy with key=value assignments applied to keys that exist.

    Raises:
        ConfigError: a key is unknown; names the nearest.
    """
    known = set(_keys(cfg))
    changed = cfg.copy()
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if key not in known:
            raise ConfigError(f"unknown key {key}: {nearest(key, known)}")
        OmegaConf.update(changed, key, OmegaConf.create(f"value: {value}").value)
    return changed


def with_value(cfg: DictConfig, key: str, value: Any) -> DictConfig:
    """A copy in which one node is replaced."""
    changed = cfg.copy()
    OmegaConf.set_struct(changed, False)
    changed[key] = value
    return changed


def build(node: DictConfig, **runtime: Any) -> Any:
    """Instantiate a node; what is only known at run time is passed beside what the yaml knows.

    Raises:
        ConfigError: the node names an unknown argument, or a value of the wrong type.
    """
    return partial(node)(**runtime)


def partial(node: DictConfig) -> Callable[..., Any]:
    """What a node would build, still to be called with the runtime arguments, which Hydra never touches.

    Raises:
        ConfigError: the node names an unknown argument, or a value of the wrong type.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    where = node._get_full_key(None) or "configuration"
    target(node)
    try:
        _check_targets(node, where)
        return instantiate(node, _partial_=True, _convert_="all")
    except ImportError as error:  # of a nested node
        raise ConfigError(f"{where}: {_first_line(error)}") from error
    except InstantiationException as error:
        # Hydra wraps what a constructor of a nested node raised; that is what there is to say.
        cause = error.__cause__ or error
        raise ConfigError(f"{where}: {_first_line(cause)}") from error


def evaluator(cfg: DictConfig) -> Callable[..., Any]:
    """The evaluator of a configuration: `partial` of its group, without what it says to others."""
    own = {key: value for key, value in cfg.evaluation.items() if key != "baselines"}
    return partial(with_value(cfg, "evaluation", own).evaluation)


def target(node: DictConfig) -> Any:
    """The class or function that a node names.

    Raises:
        ConfigError: it names none, or one that cannot be imported.
    """
    from hydra.utils import get_object

    where = node._get_full_key(None) or "configuration"
    name = node.get("_target_")
    if name is None:
        raise ConfigError(f"{where} has no _target_ to build")
    logging.getLogger("hydra.utils").disabled = True  # it would say the same, in lines of its own
    try:
        return get_object(name)
    except ImportError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        hint = "PYTHONPATH=. recsys … finds modules of the folder you are in"
        raise ConfigError(f"{where}._target_={name}: {_first_line(cause)}; {hint}") from error


def _check_targets(node: DictConfig, where: str) -> None:
    """Hold every node that names a target against that target's signature."""
    if "_target_" in node:
        check_arguments(target(node), node, where)
    for key in node:
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            _check_targets(node[key], f"{where}.{key!s}")


def _is_built(value: Any) -> bool:
    """Whether a value, or one inside it, will be built and is not yet what a signature asks for."""
    return isinstance(value, DictConfig) and ("_target_" in value or any(map(_is_built, value.values())))


def check_arguments(target: Callable[..., Any], node: DictConfig, where: str) -> None:
    """Hold a node's keys and values against the signature of what it builds."""
    known, hints, takes_any = _signature(target)
    for key in node:
        if str(key).startswith("_"):
            continue
        if key not in known and not takes_any:
            raise UnknownKey(f"unknown key {where}.{key!s}: {nearest(str(key), known)}")
        if OmegaConf.is_missing(node, key):
            raise ConfigError(f"{where}.{key!s} is required: give {where}.{key!s}=…")
        value = node[key]
        if key in hints and not _is_built(value):
            check_type(value, hints[key], f"{where}.{key}")


def _signature(target: Callable[..., Any]) -> tuple[list[str], dict[str, Any], bool]:
    """The arguments of what is called, their types, and whether it takes any others.

    A class whose **keywords go to its base class takes those of the base.
    """
    makers: list[Callable[..., Any]] = [target]
    if inspect.isclass(target):
        makers = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)]
    known, hints = list[str](), dict[str, Any]()
    for maker in makers:
        parameters = inspect.signature(maker).parameters.values()
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        known += [p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        with suppress(NameError, TypeError):  # a type that is only imported for checking: its values go unchecked
            hints = typing.get_type_hints(maker) | hints
        if not takes_any:
            return known, hints, False
    return known, hints, True


def check_type(value: Any, hint: Any, where: str) -> Any:
    """The value, if it fits the type annotation.

    Raises:
        ConfigError: it does not; the message names the key, the value and what is expected.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    if isinstance(value, DictConfig | ListConfig):
        value = OmegaConf.to_container(value, resolve=True)
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # the type brings a pydantic configuration of its own
        adapter = TypeAdapter(hint)
    except PydanticSchemaGenerationError:
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        expected = "; or ".join(dict.fromkeys(_expectation(item, value) for item in error.errors()))
        raise ConfigError(f"{where}={value}: {expected}") from None


def _expectation(item: Any, value: Any) -> str:
    message = str(item["msg"]).removeprefix("Input should be ")
    message = re.sub(r", unable to parse.*", "", message)
    if message == "an instance of Sequence" or item["type"] in ("sequence_str", "list_type", "tuple_type"):
        return f"expected a list, as [{value}]"
    if item["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        return f"expected {message} ({nearest(str(value), options)})"
    return f"expected {message}"


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a configuration or a dict, dotted, branches included."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node)
    if isinstance(node, dict):
        for key, child in node.items():
            yield prefix + str(key)
            yield from _keys(child, f"{prefix}{key!s}.")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _groups() -> dict[str, list[str]]:
    """Config groups and their options, as the folder has them."""
    root = config_dir()
    groups: dict[str, list[str]] = {}
    for file in sorted(root.glob("*/*.yaml")):
        groups.setdefault(file.parent.name, []).append(file.stem)
    return groups


def check_flags(arguments: Iterable[str]) -> None:
    """Hold what begins with dashes against the flags that Hydra knows.

    Raises:
        ConfigError: it knows none like that; keys have no dashes.
    """
    from hydra._internal.utils import get_args_parser

    known = get_args_parser()._option_string_actions
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("-") and flag not in known:
            raise ConfigError(f"unknown flag {argument}: keys have no dashes, write {flag.lstrip('-')}=…")


@contextmanager
def of_file(path: Path) -> Iterator[None]:
    """Name the file where a configuration that was read from it has a key too many or too few."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (UnknownKey, OmegaConfBaseException) as error:
        what = f"{path} does not fit this version of recsys (mend it, or train the run again)"
        raise ConfigError(f"{what}: {_first_line(error)}") from error


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise while composing into a ConfigError of one line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from error


def _unknown(key: str) -> str:
    known = set(_known_keys())
    if key in known:
        group = key.partition(".")[0]
        return f"unknown key {key}: the chosen {group} has none, only others do"
    return f"unknown key {key}: {nearest(key, known)}"


def _explain(error: BaseException) -> str:
    text = str(error)
    if (override := getattr(error, "override", None)) is not None:  # Hydra's grammar could not read it
        what = "cannot be read" if "=" in override else "is no key=value"
        return f"{override} {what}: write key=value, as model=als, with quotes around brackets: 'evaluation.k=[10,20]'"
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found.group(1).lstrip("+~")
        return _unknown(key)
    if found := re.search(r"In '[^']+': Could not find '([^']+)'", text):
        group, _, option = found.group(1).rpartition("/")
        options = _groups().get(group, [])
        return f"unknown option {group}={option}: {nearest(option, options)}"
    if found := re.search(r"Could not find '([^']+)'", text):
        return f"unknown option {found.group(1)}: {nearest(found.group(1), _groups())}"
    if found := re.search(r"[Mm]issing mandatory value: (\S+)", text):
        return f"{found.group(1)} is required: give {found.group(1)}=…"
    if found := re.search(r"Key '([^']+)' is not in struct", text):
        return _unknown(found.group(1))
    return _first_line(error)


def _known_keys() -> set[str]:
    """Every key of the default configuration, and the keys of every option of every group."""
    keys = set(_keys(compose()))
    for group, options in _groups().items():
        keys.add(group)
        for option in options:
            file = config_dir() / group / f"{option}.yaml"
            node = OmegaConf.load(file)
            if isinstance(node, DictConfig):
                prefix = "" if file.read_text(encoding="utf-8").startswith("# @package _global_") else f"{group}."
                keys |= {prefix + key for key in _keys(node) if not key.startswith("defaults")}
    return {key for key in keys if "._" not in key}
