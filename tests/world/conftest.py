"""Worlds for the tests: the tiny preset, and a micro world that saturates so that approximations would show."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import yaml

from recsys.world import World, logs

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "world"


def preset(name: str) -> World:
    values = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    assert values.pop("_target_") == "recsys.world.World"
    return World(**values)


@pytest.fixture(scope="session")
def tiny() -> World:
    return preset("tiny")


@pytest.fixture(scope="session")
def micro(tiny: World) -> World:
    return replace(
        tiny, name="micro", num_users=60, num_videos=60, num_days=6, num_topics=5, new_video_share=0.25,
        fresh_days=2, max_depth=6, examination_scale=3.0, click_bias=-1.5, new_user_share=0.2,
        fresh_share=0.1, taste_share=0.48, sessions_per_day=1.5, videos_per_creator=3,
    )  # fmt: skip


@pytest.fixture(scope="session")
def log(tiny: World) -> pl.DataFrame:
    """The whole month of world tiny."""
    return logs.log(tiny)
