"""What simple and strong models reach on the same data: a figure alone says little."""

from __future__ import annotations

import polars as pl
import torch
from omegaconf import DictConfig

from recsys import config, tasks
from recsys.data.datamodule import RecDataModule
from recsys.schema import TIMESTAMP
from recsys.tracking import print_line

WINDOW_DAYS = 7  # of popularity, where the log knows when
BASELINES = ("popularity", "knn", "ease", "als")  # configs/model


def measured(cfg: DictConfig, data: RecDataModule, device: torch.device, seed: int) -> pl.DataFrame:
    """The baselines with their defaults, trained and measured as the run of a configuration is: a column baseline, and
    one row a query of each (see `Evaluation.per_user`). One that cannot be had on this log, as EASE of a large
    catalogue, is left out and named."""
    frames = []
    for name in BASELINES:
        model = config.load(config.config_dir() / "model" / f"{name}.yaml")
        if name == "popularity" and TIMESTAMP in data.split.train.columns:
            model.window_days = WINDOW_DAYS
        own = config.with_value(config.with_value(cfg, "model", model), "features", None)
        try:
            per_user = tasks.trained(own, data, device, seed).measure()[1]
        except (ValueError, MemoryError) as error:
            print_line(f"baseline {name} left out: {error}")
            continue
        frames.append(per_user.with_columns(baseline=pl.lit(name)))
    return pl.concat(frames)
