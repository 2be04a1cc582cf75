"""The sweeper of `recsys train -m sweep=optuna`: what of it is Hydra's. Hydra takes plugins from this package alone.

Hydra imports this module with every command; what is heavy is imported when a sweep begins.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="recsys_optuna",
    node={"_target_": "hydra_plugins.recsys_optuna.OptunaSweeper", "_convert_": "all"},
    provider="recsys",
)


class OptunaSweeper(Sweeper):
    """Reads the command line and composes the configuration of a trial; `recsys.sweeping` does the rest."""

    config: DictConfig

    def __init__(self, **settings: Any) -> None:
        self.settings = settings  # configs/sweep/optuna.yaml names and explains them

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.loader = config, hydra_context.config_loader

    def sweep(self, arguments: list[str]) -> None:
        from recsys import sweeping

        sweeping.show(self.search(arguments))

    def search(self, arguments: list[str]) -> Path:
        """Do the sweep, or go on with it; its folder."""
        from recsys import config
        from recsys.sweeping.search import run

        known = inspect.getfullargspec(run).kwonlyargs
        for name in self.settings.keys() - known:
            raise config.ConfigError(f"unknown key hydra.sweeper.{name}: {config.nearest(name, known)}")
        config.check_arguments(run, DictConfig(self.settings), "hydra.sweeper")
        fixed, drawn = self._read(arguments)
        directory = Path(str(self.config.hydra.sweep.dir))
        run(self._compose, directory, fixed, drawn, **self.settings)
        return directory

    def _read(self, arguments: list[str]) -> tuple[dict[str, str], dict[str, Any]]:
        """What the command line fixes, and what it leaves to the trials, by key.

        Raises:
            ConfigError: an interval's ends or tags do not fit.
        """
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.core.override_parser.types import IntervalSweep

        from recsys.sweeping.space import distribution, ranged

        fixed, drawn = dict[str, str](), dict[str, Any]()
        for override in OverridesParser.create(config_loader=self.loader).parse_overrides(arguments):
            key, value = override.get_key_element(), override.value()
            if isinstance(value, IntervalSweep):
                drawn[key] = ranged(value.start or 0, value.end or 0, key, log="log" in value.tags)
            elif override.is_sweep_override():
                drawn[key] = distribution(list(override.sweep_string_iterator()), key)
            else:
                fixed[key] = str(override.input_line).partition("=")[2]  # as it was typed
        return fixed, drawn

    def _compose(self, words: list[str], number: int) -> tuple[DictConfig, Path, str]:
        """The configuration of the trial of that number, its run directory and its model, by the words of a command
        line."""
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf, open_dict

        from recsys.config import one_line_errors

        with one_line_errors():
            cfg = self.loader.load_sweep_config(self.config, words)
            with open_dict(cfg):
                cfg.hydra.job.id = cfg.hydra.job.num = number
            HydraConfig.instance().set_config(cfg)  # hydra.sweep.subdir names the chosen model through it
            run_dir = Path(str(cfg.hydra.sweep.dir), str(cfg.hydra.sweep.subdir))
            model = str(cfg.hydra.runtime.choices.model)
        return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]), run_dir, model


def search(words: list[str]) -> Path:
    """The sweep that these words of a command line mean, without a command line; its folder.

    Raises:
        ConfigError: a word names no key or option, or cannot be read.
    """
    from hydra import initialize_config_dir
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins
    from hydra.types import RunMode

    from recsys.config import MAIN_CONFIG, config_dir, one_line_errors

    before = HydraConfig.instance().cfg
    try:
        with one_line_errors(), initialize_config_dir(str(config_dir()), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            cfg = hydra.compose_config(MAIN_CONFIG, words, RunMode.MULTIRUN)
            context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
            sweeper: Any = Plugins.instance().instantiate_sweeper(
                config=cfg, hydra_context=context, task_function=lambda _: None
            )
            return sweeper.search(list(cfg.hydra.overrides.task))
    finally:
        HydraConfig.instance().cfg = before
