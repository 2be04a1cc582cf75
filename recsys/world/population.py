"""Users and videos: attributes and latent taste as pure functions of (world.seed, number).

A user or a video is a number 0 .. n - 1 inside this package; what leaves it is an id, the image of the
number under a bijection, so that ids say nothing about popularity or age.

The catalogue has places, in order of popularity: place r is recommended with a probability that falls
like a shifted power law of r. Videos 0 .. num_places - 1 hold their own place at first; each later video is
new, and from its upload day on holds the place of an older one, which from then on is only explored.
So the policy's probabilities are always normalised in closed form, whatever the size.

Left out so far: drifting taste, viral bursts, like, dislike and share, creators with an audience of
their own, languages in the policy, places that change hands more than once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import datetime
from functools import lru_cache
from typing import Self

import polars as pl
import torch
from torch import Tensor

from recsys.world import noise

# code, share of users, hours from UTC, language
COUNTRIES = (
    ("US", 0.30, -5, "en"),
    ("IN", 0.20, 5, "hi"),
    ("BR", 0.15, -3, "pt"),
    ("MX", 0.10, -6, "es"),
    ("GB", 0.10, 0, "en"),
    ("JP", 0.08, 9, "ja"),
    ("DE", 0.07, 1, "de"),
)
SPEECHLESS = "zxx"  # ISO 639-2: no linguistic content
LANGUAGES = (SPEECHLESS, "de", "en", "es", "hi", "ja", "pt")
AGE_BANDS = (("13-17", 0.1), ("18-24", 0.25), ("25-34", 0.28), ("35-49", 0.22), ("50+", 0.15))
DEVICES = (("phone", 0.62), ("computer", 0.2), ("tv", 0.12), ("tablet", 0.06))
LOCAL_PEAK_HOURS = (8, 12, 17, 19, 20, 21, 22, 23)

ID_SPACE = 1 << 40
TABLE_LIMIT = 1 << 21  # up to here the attributes of all videos are kept in a table
FOREVER = 1 << 20  # a day that never comes
DAY_US = 86_400_000_000

# Streams of randomness; a new attribute takes a new number, so that the old ones stay as they are.
(
    ACTIVITY, COUNTRY, AGE, DEVICE, SIGN_UP, HOURS, FAVOURITE, WEIGHT, USER_BIAS, USER_IDS,
    VIDEO_IDS, TAKES, ROTATION, SECOND_TOPIC, SECOND_SHARE, CREATOR, SPEAKS, DURATION, QUALITY, AGED,
) = range(20)  # fmt: skip


@dataclass(frozen=True)
class World:
    """All constants of a world. configs/world/*.yaml holds presets, each line with what it means.

    Raises ValueError, in one line, where a constant makes no sense.
    """

    name: str
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
    # videos
    new_video_share: float
    popularity_exponent: float
    popularity_head: float
    videos_per_creator: float
    speechless_share: float
    duration_median: float
    duration_sigma: float
    quality_of_popular: float
    # what is shown
    explore_share: float
    popularity_share: float
    taste_share: float
    fresh_share: float
    fresh_days: int
    max_depth: int
    depth_exponent: float
    seconds_per_impression: float
    # who clicks
    examination_scale: float
    click_bias: float
    taste_gain: float
    intent_gain: float
    quality_gain: float
    language_penalty: float
    # how long they watch
    watch_bias: float
    watch_taste_gain: float
    watch_length_penalty: float
    completion: float

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
            "weekend_gain", "wander",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"world.{name} must be greater than 0, got {getattr(self, name)}")
        for name in (
            "seed", "noise_seed", "activity_sigma", "user_bias_sigma", "duration_sigma", "depth_exponent",
            "popularity_share", "taste_share", "fresh_share", "seconds_per_impression", "hour_concentration",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ValueError(f"world.{name} must not be negative, got {getattr(self, name)}")
        for name in (
            "new_user_share", "speechless_share", "wander", "completion", "quality_of_popular",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"world.{name} is a share and must lie in [0, 1], got {getattr(self, name)}")
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
        shares = self.explore_share + self.popularity_share + self.taste_share + self.fresh_share
        if abs(shares - 1) > 1e-9:
            raise ValueError(
                "world.explore_share, popularity_share, taste_share and fresh_share must add up to 1, "
                f"they add up to {shares:.6g}"
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
    def start_us(self) -> int:
        """Midnight UTC of day 0 in microseconds since 1970."""
        return int((datetime.fromisoformat(self.start) - datetime(1970, 1, 1)).total_seconds()) * 1_000_000

    def uploaded_by(self, day: int) -> int:
        """How many of the new videos are uploaded up to and including this day, the first being -fresh_days."""
        span = self.num_days + self.fresh_days
        return self.num_new * min(max(day + self.fresh_days + 1, 0), span) // span


def subseed(world: World, stream: int) -> int:
    """The seed of one stream of the population."""
    return int(noise.key(world.seed, stream))


@dataclass(frozen=True, eq=False)
class _Table:
    """Equally long tensors, selected together."""

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to(self, device: torch.device | str) -> Self:
        """The same rows on another device."""
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True, eq=False)
class Users(_Table):
    """Users by number, B rows. `favourite` and `weight` are [B, J], the rest [B]."""

    number: Tensor  # int64
    rate: Tensor  # float64, expected sessions on a weekday
    country: Tensor  # int64, row of COUNTRIES
    age_band: Tensor  # int64, row of AGE_BANDS
    device: Tensor  # int64, row of DEVICES
    sign_up_day: Tensor  # int64; negative: before the month
    peak_hour: Tensor  # int64, 0 .. 23 UTC
    bias: Tensor  # float64, log-odds of clicking beside the average
    favourite: Tensor  # int64, topics; the same topic may come twice
    weight: Tensor  # float64, sums to 1


@dataclass(frozen=True, eq=False)
class Videos(_Table):
    """Videos by number, N rows."""

    number: Tensor  # int64
    place: Tensor  # int64, 0 = the most popular
    topic: Tensor  # int64
    second_topic: Tensor  # int64; may equal the topic
    second_share: Tensor  # float64 in (0, 0.5): how much of the video is about the second topic
    creator: Tensor  # int64
    language: Tensor  # int64, row of LANGUAGES
    duration: Tensor  # float64, seconds
    quality: Tensor  # float64, standard normal over videos, higher for the popular
    upload_day: Tensor  # int64; negative: before the month
    replaced_day: Tensor  # int64, the day from which another video holds the place; FOREVER if never
    popularity: Tensor  # float64, probability of its place among all places
    topic_popularity: Tensor  # float64, the same among the places of its topic


def users(world: World, number: Tensor) -> Users:
    """The users with these numbers (int64 [B], 0 <= number < num_users)."""
    keys = noise.extend(torch.tensor(subseed(world, 0), device=number.device), number)

    def own(stream: int, *parts: Tensor | int) -> Tensor:
        return noise.extend(keys, stream, *parts)

    sigma = world.activity_sigma
    rate = world.sessions_per_day * torch.exp(sigma * noise.normal(own(ACTIVITY)) - sigma * sigma / 2)
    country = noise.categorical(own(COUNTRY), tuple(row[1] for row in COUNTRIES))
    offset = torch.tensor([row[2] for row in COUNTRIES], device=number.device)[country]
    peaks = torch.tensor(LOCAL_PEAK_HOURS, device=number.device)
    peak = peaks[(noise.uniform(own(HOURS)) * len(peaks)).long()]
    sign_up = noise.uniform(own(SIGN_UP))  # below the share: within the month; above: up to ten years ago
    within = sign_up / max(world.new_user_share, 1e-300) * world.num_days
    before = -1 - torch.exp(noise.uniform(own(SIGN_UP, 1)) * 8.2)
    favourites = torch.arange(world.num_favourites, device=number.device)
    skewed = noise.uniform(noise.extend(own(FAVOURITE)[:, None], favourites)) ** world.topic_skew
    weight = -torch.log(noise.uniform(noise.extend(own(WEIGHT)[:, None], favourites)))
    return Users(
        number=number,
        rate=rate.clamp(max=world.max_sessions_per_day),
        country=country,
        age_band=noise.categorical(own(AGE), tuple(row[1] for row in AGE_BANDS)),
        device=noise.categorical(own(DEVICE), tuple(row[1] for row in DEVICES)),
        sign_up_day=torch.where(sign_up < world.new_user_share, within, before).floor().long(),
        peak_hour=(peak - offset) % 24,
        bias=world.user_bias_sigma * noise.normal(own(USER_BIAS)),
        favourite=(skewed * world.num_topics).long(),
        weight=weight / weight.sum(1, keepdim=True),
    )


def taste(world: World, who: Users, topic: Tensor) -> Tensor:
    """How much of a user's interest goes to a topic, float64: sums to 1 over the topics.

    topic: int64 [B] (one topic for each user) or [B, N].
    """
    share = torch.zeros(topic.shape, dtype=torch.float64, device=topic.device)
    for j in range(world.num_favourites):
        favourite, weight = who.favourite[:, j], who.weight[:, j]
        if topic.ndim == 2:
            favourite, weight = favourite[:, None], weight[:, None]
        share += weight * (favourite == topic)
    return (1 - world.wander) * share + world.wander / world.num_topics


def zipf_cdf(world: World, x: Tensor, size: int) -> Tensor:
    """Share of the `size` places that come before place x: a power law (h + x) ** -popularity_exponent,
    cut at `size`, with h = popularity_head * size. float64; exact at whole numbers, so that the probability of
    place r is zipf_cdf(r + 1) - zipf_cdf(r)."""
    head, power = world.popularity_head * size, 1 - world.popularity_exponent
    x = x.double()
    if abs(power) < 1e-9:
        return torch.log1p(x / head) / torch.log1p(torch.tensor(size / head, dtype=torch.float64))
    return ((1 + x / head) ** power - 1) / ((1 + size / head) ** power - 1)


def zipf_place(world: World, u: Tensor, size: int) -> Tensor:
    """The place at which `zipf_cdf` reaches u in (0, 1): int64 in [0, size)."""
    head, power = world.popularity_head * size, 1 - world.popularity_exponent
    if abs(power) < 1e-9:
        x = head * torch.expm1(u * torch.log1p(torch.tensor(size / head, dtype=torch.float64)))
    else:
        x = head * ((1 + u * ((1 + size / head) ** power - 1)) ** (1 / power) - 1)
    return x.long().clamp_(0, size - 1)


def _rotation(world: World, block: Tensor) -> Tensor:
    return (noise.uniform(noise.key(world.seed, ROTATION, block)) * world.num_topics).long()


def place_topic(world: World, place: Tensor) -> Tensor:
    """The topic of a place. Each block of `num_topics` consecutive places has every topic once."""
    return (place + _rotation(world, place // world.num_topics)) % world.num_topics


def place_of(world: World, topic: Tensor, block: Tensor) -> Tensor:
    """The place of a topic within a block: the inverse of `place_topic`."""
    return block * world.num_topics + (topic - _rotation(world, block)) % world.num_topics


def _upload_day(world: World, new: Tensor) -> Tensor:
    """Day from which the new videos 0, 1, ... are there: the least d with uploaded_by(d) > new."""
    span = world.num_days + world.fresh_days
    return ((new + 1) * span - 1) // max(world.num_new, 1) - world.fresh_days


def _next_day(world: World, place: Tensor) -> tuple[Tensor, Tensor]:
    """For each place the new video that takes it (-1: none) and from which day."""
    new = noise.unpermute(place, world.num_places, subseed(world, TAKES))
    taken = new < world.num_new
    day = torch.where(taken, _upload_day(world, new), FOREVER)
    return torch.where(taken, new + world.num_places, -1), day


def holder(world: World, place: Tensor, day: int) -> Tensor:
    """The video that holds each place on this day."""
    if world.num_videos <= TABLE_LIMIT:
        successor, since = (column.to(place.device)[place] for column in _successors(world))
    else:
        successor, since = _next_day(world, place)
    return torch.where(since <= day, successor, place)


@lru_cache(maxsize=4)
def _successors(world: World) -> tuple[Tensor, Tensor]:
    return _next_day(world, torch.arange(world.num_places))


def videos(world: World, number: Tensor) -> Videos:
    """The videos with these numbers (int64 [N], 0 <= number < num_videos)."""
    if world.num_videos <= TABLE_LIMIT:
        return _all_videos(world).to(number.device)[number]
    return _videos(world, number)


@lru_cache(maxsize=4)
def _all_videos(world: World) -> Videos:
    return _videos(world, torch.arange(world.num_videos))


def _videos(world: World, number: Tensor) -> Videos:
    keys = noise.extend(torch.tensor(subseed(world, 1), device=number.device), number)

    def own(stream: int, *parts: Tensor | int) -> Tensor:
        return noise.extend(keys, stream, *parts)

    places, topics = world.num_places, world.num_topics
    new = number - places
    taken = noise.permute(new.clamp(min=0), places, subseed(world, TAKES))
    place = torch.where(new < 0, number, taken)
    topic, block = place_topic(world, place), place // topics
    age = torch.exp(noise.uniform(own(AGED)) * 7.5) + world.fresh_days  # log-uniform, up to five years
    upload = torch.where(new < 0, -age.long() - 1, _upload_day(world, new))
    replaced = torch.where(new < 0, _next_day(world, place)[1], FOREVER)

    # A creator keeps to one topic and one language; within a topic creators are of unequal size.
    creators = max(1, int(world.num_videos / world.videos_per_creator / topics))
    creator = topic + topics * (noise.uniform(own(CREATOR)) ** 2 * creators).long()
    speaks = noise.key(world.seed, SPEAKS, creator)
    spoken = noise.categorical(noise.extend(speaks, 1), tuple(row[1] for row in COUNTRIES))
    language = torch.tensor([LANGUAGES.index(row[3]) for row in COUNTRIES], device=number.device)[spoken]
    speechless = noise.uniform(speaks) < world.speechless_share

    midst = (place.double() + 0.5) / places
    fame = torch.special.ndtri(1 - midst) * world.quality_of_popular
    quality = fame + (1 - world.quality_of_popular**2) ** 0.5 * noise.normal(own(QUALITY))
    inner = places // topics
    return Videos(
        number=number,
        place=place,
        topic=topic,
        second_topic=(noise.uniform(own(SECOND_TOPIC)) * topics).long(),
        second_share=noise.uniform(own(SECOND_SHARE)) / 2,
        creator=creator,
        language=torch.where(speechless, LANGUAGES.index(SPEECHLESS), language),
        duration=(world.duration_median * torch.exp(world.duration_sigma * noise.normal(own(DURATION))))
        .clamp(5, 14400)
        .round(),
        quality=quality,
        upload_day=upload,
        replaced_day=replaced,
        popularity=zipf_cdf(world, place + 1, places) - zipf_cdf(world, place, places),
        topic_popularity=zipf_cdf(world, block + 1, inner) - zipf_cdf(world, block, inner),
    )


def user_ids(world: World, number: Tensor) -> Tensor:
    """Random-looking ids (int64, 0 <= id < 2**40) of users by number."""
    return _ids(subseed(world, USER_IDS), number, world.num_users)


def video_ids(world: World, number: Tensor) -> Tensor:
    """Random-looking ids (int64, 0 <= id < 2**40) of videos by number."""
    return _ids(subseed(world, VIDEO_IDS), number, world.num_videos)


def _ids(keys: int, number: Tensor, size: int) -> Tensor:
    if number.numel() > size and size <= TABLE_LIMIT:
        return _ids(keys, torch.arange(size, device=number.device), size)[number]
    return noise.permute(number, ID_SPACE, keys)


def _numbers(ids: Tensor, keys: int, size: int, what: str) -> Tensor:
    number = torch.where((ids >= 0) & (ids < ID_SPACE), noise.unpermute(ids % ID_SPACE, ID_SPACE, keys), size)
    if bool((number >= size).any()):
        row = int((number >= size).nonzero()[0, 0])
        raise ValueError(f"{what} {int(ids[row])} (row {row}) is not of this world; are seed and preset the same?")
    return number


def user_numbers(world: World, ids: Tensor) -> Tensor:
    """The inverse of `user_ids`. Raises ValueError for an id that is not of this world."""
    return _numbers(ids, subseed(world, USER_IDS), world.num_users, "user_id")


def video_numbers(world: World, ids: Tensor) -> Tensor:
    """The inverse of `video_ids`. Raises ValueError for an id that is not of this world."""
    return _numbers(ids, subseed(world, VIDEO_IDS), world.num_videos, "item_id")


def user_table(world: World) -> pl.DataFrame:
    """What a platform knows of its users: one row each, no latent column."""
    who = users(world, torch.arange(world.num_users))
    return pl.DataFrame(
        {
            "user_id": user_ids(world, who.number).numpy(),
            "country": _named(who.country, [row[0] for row in COUNTRIES]),
            "language": _named(who.country, [row[3] for row in COUNTRIES]),
            "age_band": _named(who.age_band, [row[0] for row in AGE_BANDS]),
            "device": _named(who.device, [row[0] for row in DEVICES]),
            "sign_up": _dates(world, who.sign_up_day),
        }
    )


def video_table(world: World) -> pl.DataFrame:
    """What a platform knows of its videos: one row each, no latent column."""
    what = videos(world, torch.arange(world.num_videos))
    return pl.DataFrame(
        {
            "item_id": video_ids(world, what.number).numpy(),
            "topic": what.topic.numpy(),
            "creator": what.creator.numpy(),
            "language": _named(what.language, list(LANGUAGES)),
            "duration": what.duration.numpy(),
            "uploaded": _dates(world, what.upload_day),
        }
    )


def _named(rows: Tensor, names: list[str]) -> pl.Series:
    return pl.Series(names)[rows.numpy()]


def _dates(world: World, day: Tensor) -> pl.Series:
    return pl.Series(world.start_us + day.numpy() * DAY_US).cast(pl.Datetime("us", "UTC"))
