"""A world as a notebook shows it: sizes, seeds and constants, with what they mean."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from recsys import config, reprs
from recsys.overrides import described

if TYPE_CHECKING:
    from recsys.world.constants import World

MAIN = (
    "explore_share", "popularity_share", "taste_share", "fresh_share", "burst_share", "taste_drift", "click_bias",
    "taste_gain", "intent_gain", "quality_gain", "examination_scale",
)  # fmt: skip
NAMED = ("name", "surface", "seed", "noise_seed", "num_users", "num_videos", "num_days", "start")  # in the title


def title(world: World) -> str:
    """A world on one line: preset, surface, sizes and seeds."""
    sizes = f"{world.num_users:,} users x {world.num_videos:,} videos x {world.num_days} days from {world.start}"
    return f"{world.name}, {world.surface}: {sizes}, seed {world.seed}, noise_seed {world.noise_seed}"


def html(world: World) -> str:
    """A world as HTML: what differs from its preset, the main constants, and all others folded."""
    file = config.config_dir() / "world" / f"{world.name}.yaml"
    meaning, changed = dict[str, str](), list[str]()
    if file.exists():
        meaning = {key: about for key, _, about in described(file) if key}
        preset = config.load(file)
        changed = [
            f"{field.name}={getattr(world, field.name)} (preset {preset[field.name]})"
            for field in fields(world)
            if field.name in preset and preset[field.name] != getattr(world, field.name)
        ]
    rows = {
        field.name: (field.name, getattr(world, field.name), meaning.get(field.name, "")) for field in fields(world)
    }
    main = reprs.table(["constant", "value", "meaning"], [rows[name] for name in MAIN], left=3)
    others = reprs.folded("all others", [row for name, row in rows.items() if name not in (*MAIN, *NAMED)])
    return reprs.page(f"World {title(world)}", reprs.line(changed), main, others)
