"""Users and videos: attributes and latent taste as pure functions of (world.seed, number).

A user or a video is a number 0 .. n - 1 inside this package; what leaves it is an id, the image of the
number under a bijection, so that ids say nothing about popularity or age.

The catalogue has places, in order of popularity: place r is recommended with a probability that falls
like a shifted power law of r. Videos 0 .. num_places - 1 hold their own place at first; each later video is
new, and from its upload day on holds the place of an older one, which from then on is only explored.
So the policy's probabilities are always normalised in closed form, whatever the size.

Taste drifts: the weight of a favourite topic swings around its mean with a period and a phase of its own. The path
is part of the person, a function of (seed, id, day) like everything here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Self

import polars as pl
import torch
from torch import Tensor

from recsys.world import noise
from recsys.world.constants import World

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
    PHASE, VIDEO_BIAS, BURST,
) = range(23)  # fmt: skip


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
    """Users by number, B rows. `favourite`, `weight` and `phase` are [B, J], the rest [B]."""

    number: Tensor  # int64
    rate: Tensor  # float64, expected sessions on a weekday
    country: Tensor  # int64, row of COUNTRIES
    age_band: Tensor  # int64, row of AGE_BANDS
    device: Tensor  # int64, row of DEVICES
    sign_up_day: Tensor  # int64; negative: before the month
    peak_hour: Tensor  # int64, 0 .. 23 UTC
    bias: Tensor  # float64, log-odds of clicking beside the average
    favourite: Tensor  # int64, topics; the same topic may come twice
    weight: Tensor  # float64, sums to 1; at rest, see `drifted`
    phase: Tensor  # float64 in (0, 1), of the swing of the weight


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
    bias: Tensor  # float64, log-odds of being clicked beside what quality and taste say
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
        phase=noise.uniform(noise.extend(own(PHASE)[:, None], favourites)),
    )


def drifted(world: World, who: Users, day: float) -> Users:
    """The same users with the taste of a day: weight * exp(taste_drift * sin(2 pi (day / taste_period + phase))),
    made to sum to 1 again."""
    if world.taste_drift == 0:
        return who
    swing = torch.sin((day / world.taste_period + who.phase) * (2 * torch.pi))
    weight = who.weight * torch.exp(world.taste_drift * swing)
    return replace(who, weight=weight / weight.sum(1, keepdim=True))


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


def tastes(world: World, who: Users) -> Tensor:
    """`taste` of each user for every topic, float64 [B, num_topics]."""
    return taste(world, who, torch.arange(world.num_topics, device=who.number.device).expand(who.number.numel(), -1))


def zipf_cdf(world: World, x: Tensor, size: int) -> Tensor:
    """Share of the `size` places that come before place x: a power law (h + x) ** -popularity_exponent,
    cut at `size`, with h = popularity_head * size. float64; exact at whole numbers, so that the probability of
    place r is zipf_cdf(r + 1) - zipf_cdf(r)."""
    head, power = world.popularity_head * size, 1 - world.popularity_exponent
    x = x.double()
    if abs(power) < 1e-9:
        return torch.log1p(x / head) / torch.log1p(torch.tensor(size / head, dtype=torch.float64))
    return ((1 + x / head) ** power - 1) / ((1 + size / head) ** power - 1)


def _rotation(world: World, block: Tensor) -> Tensor:
    return (noise.uniform(noise.key(world.seed, ROTATION, block)) * world.num_topics).long()


def place_topic(world: World, place: Tensor) -> Tensor:
    """The topic of a place. Each block of `num_topics` consecutive places has every topic once."""
    return (place + _rotation(world, place // world.num_topics)) % world.num_topics


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
    spread = world.feed_duration_sigma if world.is_feed else world.duration_sigma
    return Videos(
        number=number,
        place=place,
        topic=topic,
        second_topic=(noise.uniform(own(SECOND_TOPIC)) * topics).long(),
        second_share=noise.uniform(own(SECOND_SHARE)) / 2,
        creator=creator,
        language=torch.where(speechless, LANGUAGES.index(SPEECHLESS), language),
        duration=(world.typical_duration * torch.exp(spread * noise.normal(own(DURATION)))).clamp(5, 14400).round(),
        quality=quality,
        bias=world.video_bias_sigma * noise.normal(own(VIDEO_BIAS)),
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


def user_table(world: World, number: Tensor | None = None) -> pl.DataFrame:
    """What a platform knows of its users (all, or those with these numbers): one row each, no latent column."""
    who = users(world, torch.arange(world.num_users) if number is None else number)
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


def video_table(world: World, number: Tensor | None = None) -> pl.DataFrame:
    """What a platform knows of its videos (all, or those with these numbers): one row each, no latent column."""
    what = videos(world, torch.arange(world.num_videos) if number is None else number)
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
