"""All constants of a world, checked. Presets with every line explained are in configs/world."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.world import overview

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

SURFACES = ("homepage", "feed")


@dataclass(frozen=True)
class World:
    """All constants of a world. configs/world/*.yaml holds presets, each line with what it means.

    Raises ValueError, in one line, where a constant makes no sense.
    """

    name: str
    surface: str  # homepage or feed
    seed: int  # the population: who they are
    noise_seed: int  # the month: what happened
    num_users: int
    num_videos: int
    num_days: int
    start: str
    # users
    num_topics: int
    num_favourites: int
    topic_skew: float
    wander: float
    sessions_per_day: float
    activity_sigma: float
    max_sessions_per_day: float
    weekend_gain: float
    hour_concentration: float
    new_user_share: float
    user_bias_sigma: float
    taste_drift: float
    taste_period: float
    # videos
    new_video_share: float
    popularity_exponent: float
    popularity_head: float
    videos_per_creator: float
    speechless_share: float
    duration_median: float
    duration_sigma: float
    feed_duration_median: float
    feed_duration_sigma: float
    quality_of_popular: float
    video_bias_sigma: float
    # what is shown
    explore_share: float
    popularity_share: float
    taste_share: float
    fresh_share: float
    fresh_days: int
    burst_share: float
    bursts_per_day: int
    burst_days: int
    burst_exponent: float
    burst_fresh_share: float
    max_depth: int
    depth_exponent: float
    seconds_per_impression: float
    # who clicks
    examination_scale: float
    click_bias: float
    taste_gain: float
    intent_gain: float
    quality_gain: float
    freshness_gain: float
    freshness_days: float
    context_gain: float
    language_penalty: float
    # how long they watch, what else they do
    watch_bias: float
    feed_watch_bias: float
    watch_gain: float
    watch_length: float
    like_bias: float
    share_bias: float
    dislike_bias: float
    reaction_gain: float
    reaction_watch: float

    def log(self, days: range | None = None) -> pl.DataFrame:
        """Its log: one row an impression, in the columns of `recsys.world.logs.COLUMNS`; all days by default."""
        from recsys.world import logs

        return logs.log(self, days)

    def users(self) -> pl.DataFrame:
        """What a platform knows of its users, one row each."""
        from recsys.world import population

        return population.user_table(self)

    def videos(self) -> pl.DataFrame:
        """What a platform knows of its videos, one row each."""
        from recsys.world import population

        return population.video_table(self)

    def relevance(self, user_id: Any, item_id: Any, time: datetime | None = None) -> Tensor:
        """P(positive | examined) of pairs of raw ids, float64 [N]; see `recsys.world.oracle.relevance`.

        Args:
            user_id, item_id: whole numbers [N]: a list, an array, a column of a frame or a tensor.
        """
        from recsys.world import oracle

        return oracle.relevance(self, _int64(user_id), _int64(item_id), time)

    def __repr__(self) -> str:
        return f"World({overview.title(self)})"

    def _repr_html_(self) -> str:
        return overview.html(self)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"world.{field.name} must be a whole number, got {value!r}")
            if field.type == "float" and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"world.{field.name} must be a number, got {value!r}")
            if field.type != "str" and not math.isfinite(value):
                raise ValueError(f"world.{field.name} must be a finite number, got {value!r}")
        for name in (
            "num_users", "num_videos", "num_days", "num_topics", "num_favourites", "fresh_days", "max_depth",
            "sessions_per_day", "max_sessions_per_day", "videos_per_creator", "duration_median",
            "explore_share", "popularity_head", "popularity_exponent", "examination_scale", "topic_skew",
            "weekend_gain", "wander", "feed_duration_median", "taste_period", "freshness_days", "burst_days",
            "bursts_per_day",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"world.{name} must be greater than 0, got {getattr(self, name)}")
        for name in (
            "seed", "noise_seed", "activity_sigma", "user_bias_sigma", "duration_sigma", "depth_exponent",
            "popularity_share", "taste_share", "fresh_share", "burst_share", "seconds_per_impression",
            "hour_concentration", "taste_drift", "feed_duration_sigma", "video_bias_sigma", "burst_exponent",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ValueError(f"world.{name} must not be negative, got {getattr(self, name)}")
        for name in (
            "new_user_share", "speechless_share", "wander", "quality_of_popular", "burst_fresh_share", "watch_length",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"world.{name} is a share and must lie in [0, 1], got {getattr(self, name)}")
        if self.surface not in SURFACES:
            raise ValueError(f"world.surface={self.surface} is unknown; surfaces are {' and '.join(SURFACES)}")
        if self.max_sessions_per_day > 24:
            raise ValueError(f"world.max_sessions_per_day must be at most 24, got {self.max_sessions_per_day}")
        if self.num_users >= 1 << 31 or self.num_videos >= 1 << 31 or self.num_days >= 1 << 10:
            raise ValueError("world: at most 2**31 users, 2**31 videos and 1023 days can be addressed")
        if self.num_topics > self.num_videos:
            raise ValueError(
                f"world.num_topics={self.num_topics} is more than world.num_videos={self.num_videos}; "
                "every topic needs a video"
            )
        if 2 * self.num_topics > self.num_videos:
            raise ValueError(
                f"world.num_videos={self.num_videos} must be at least twice world.num_topics={self.num_topics}"
            )
        if 4 * self.max_depth > self.num_videos:
            raise ValueError(
                f"world.max_depth={self.max_depth} must be at most a quarter of world.num_videos={self.num_videos}"
            )
        shares = self.explore_share + self.popularity_share + self.taste_share + self.fresh_share + self.burst_share
        if abs(shares - 1) > 1e-9:
            raise ValueError(
                "world.explore_share, popularity_share, taste_share, fresh_share and burst_share must add up to 1, "
                f"they add up to {shares:.6g}"
            )
        if self.bursts_per_day * self.burst_days > 1 << 20:
            raise ValueError(
                f"world.bursts_per_day={self.bursts_per_day} for world.burst_days={self.burst_days} are more than "
                "2**20 bursts at once; lower one of them"
            )
        if not 0 <= self.new_video_share < 1 or self.num_new > self.num_places:
            raise ValueError(
                f"world.new_video_share={self.new_video_share} must lie in [0, 0.5) and leave at least as many "
                "older videos, in whole rounds of the topics, as there are new ones; lower it"
            )
        if self.fresh_share > 0 and self.num_new < self.num_days + self.fresh_days:
            raise ValueError(
                f"world.fresh_share > 0 needs a new video every day: {self.num_new} new videos for "
                f"{self.num_days + self.fresh_days} days; raise world.new_video_share or set fresh_share to 0"
            )
        try:
            midnight = datetime.fromisoformat(self.start)
        except (TypeError, ValueError):
            raise ValueError(f"world.start must be a date like 2026-01-05, got {self.start!r}") from None
        if midnight.time() != datetime.min.time() or midnight.tzinfo is not None:
            raise ValueError(f"world.start must be a date without a time, got {self.start!r}")

    @property
    def num_places(self) -> int:
        """Places of the catalogue: a multiple of the topics, so that every topic has equally many."""
        return int(self.num_videos * (1 - self.new_video_share)) // self.num_topics * self.num_topics

    @property
    def num_new(self) -> int:
        """Videos uploaded in the month or in the `fresh_days` before it."""
        return self.num_videos - self.num_places

    @property
    def is_feed(self) -> bool:
        """Whether videos play by themselves, one after the other, instead of waiting for a click."""
        return self.surface == "feed"

    @property
    def typical_duration(self) -> float:
        """The median duration on this surface, seconds."""
        return self.feed_duration_median if self.is_feed else self.duration_median

    @property
    def start_us(self) -> int:
        """Midnight UTC of day 0 in microseconds since 1970."""
        return int((datetime.fromisoformat(self.start) - datetime(1970, 1, 1)).total_seconds()) * 1_000_000

    def uploaded_by(self, day: int) -> int:
        """How many of the new videos are uploaded up to and including this day, the first being -fresh_days."""
        span = self.num_days + self.fresh_days
        return self.num_new * min(max(day + self.fresh_days + 1, 0), span) // span


def _int64(ids: Any) -> Tensor:
    import torch

    return ids if isinstance(ids, torch.Tensor) else torch.from_numpy(np.array(ids, np.int64))
