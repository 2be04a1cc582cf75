"""Who is shown what, who clicks, how long they watch, on either surface.

Each day a user opens the platform a Poisson number of times. A visit has a latent **intent** (one topic, drawn from
the user's taste), scrolls down to a depth, and sees that many different videos, drawn one after the other by the
logging policy, which knows the user's taste but not the intent. With A videos there on that day

    p(video) = explore / A + popularity * p(place) + taste * sum_k taste(k) p(place within topic k)
             + burst * p(viral) + fresh [fresh] / F

and the propensity of a row is p / (1 - sum of p over the rows above it in the visit). The policy's index is rebuilt at
midnight: a video is there on its upload day from 00:00 UTC.

What a user wants from a video is one number, the **interest**: taste, intent, quality, freshness, context (long videos
are for the evening), language, biases. On the `homepage` attention falls with position and an examined video is clicked
with probability sigmoid(click_bias + interest); a click is watched. On the `feed` every video plays, and the label is
KuaiRand's long_view: watched to the end or for 18 seconds. Watching is log-logistic, P(wish > t) = m / (m + t) with
log m linear in interest and in log duration, cut at the duration: hence the spike at completion, and
relevance = m / (m + min(18, duration)) on the feed. Like, share and dislike follow interest and the share watched.

Noise is keyed by (noise_seed, user, day, visit) and then by draw or by video, so that any day and any set of users
can be regenerated alone. Reactions of users to what they were shown are no part of a log.

These are the formulas, one user, visit or pair a row; impressions are drawn by them in visit.cu, see `logs`. Shapes:
B users, S visits, Z impressions, N videos.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from recsys.world import noise
from recsys.world.constants import World
from recsys.world.population import BURST, COUNTRIES, DAY_US, LANGUAGES, SPEECHLESS, Users, Videos

MAX_SESSIONS = 63  # a day, of one user; at 24 expected ones the cut takes 1e-11 of them
# Streams of randomness of a visit.
VISITS, START, DEPTH, INTENT, SHOWN, RESPONSE, SESSION_IDS = range(7)
LONG_VIEW_SECONDS = 18  # a video of the feed watched for so long, or to its end, is a positive
EVENING_HOUR = 21  # local time at which long videos are wanted most

Columns = dict[str, Tensor]


# --- visits -----------------------------------------------------------------------------------------


def season(world: World, day: int) -> float:
    """Visits of a day against those of a weekday."""
    weekend = (world.start_us // DAY_US + day + 3) % 7 >= 5  # 1970-01-01 was a Thursday
    return world.weekend_gain if weekend else 1.0


def session_rate(world: World, who: Users, day: int) -> Tensor:
    """Expected visits of each user on this day, float64 [B]; none before the day of signing up."""
    return torch.where(who.sign_up_day <= day, who.rate * season(world, day), 0.0)


@lru_cache(maxsize=8)
def hour_cdf(world: World) -> Tensor:
    """Share of a user's visits that start before hour 0, 1, ... 24 UTC, by peak hour: float64 [24, 25].

    The hours follow a discretised von Mises density around the peak; within the hour the start is uniform.
    """
    hours = torch.arange(24, dtype=torch.float64)
    angle = (hours[None, :] - hours[:, None]) * (2 * torch.pi / 24)
    density = torch.exp(world.hour_concentration * torch.cos(angle))
    cdf = torch.cumsum(density / density.sum(1, keepdim=True), 1)
    return torch.cat([torch.zeros(24, 1, dtype=torch.float64), cdf[:, :-1], torch.ones(24, 1).double()], 1)


@lru_cache(maxsize=8)
def reach(world: World) -> Tensor:
    """P(a visit scrolls at least to position 0, 1, ...), float64 [max_depth]: (position + 1) ** -depth_exponent."""
    return torch.arange(1, world.max_depth + 1, dtype=torch.float64) ** -world.depth_exponent


@lru_cache(maxsize=8)
def examination(world: World) -> Tensor:
    """P(examined | shown at position 0, 1, ...), float64 [max_depth]: 1 / (1 + position / examination_scale) on the
    homepage, 1 on the feed."""
    if world.is_feed:
        return torch.ones(world.max_depth, dtype=torch.float64)
    return 1 / (1 + torch.arange(world.max_depth, dtype=torch.float64) / world.examination_scale)


def evening(hour: Tensor, country: Tensor) -> Tensor:
    """How much of an evening it is, float64 in [-1, 1], by hour UTC and country: a cosine that peaks at 21 h local."""
    offset = torch.tensor([row[2] for row in COUNTRIES], device=country.device)[country]
    return torch.cos((hour + offset - EVENING_HOUR) * (2 * torch.pi / 24))


def sessions(world: World, day: int, who: Users, noise_seed: Tensor | int | None = None) -> Columns:
    """The visits of one day, in the order of (user, start).

    who: with the taste of the day, see `drifted`.

    Returns: row (which of `who`), visit (int64, this user's 0, 1, … of the day), key (noise of the visit), start
    (microseconds since 1970), evening, depth (impressions), intent (topic); all [S].
    """
    device = who.number.device
    seed = world.noise_seed if noise_seed is None else noise_seed
    of_day = noise.extend(noise.key(seed).to(device), who.number, day)
    count = noise.poisson(session_rate(world, who, day), noise.extend(of_day, VISITS), MAX_SESSIONS)
    row = torch.repeat_interleave(count)
    number = torch.arange(row.numel(), device=device) - (count.cumsum(0) - count)[row]
    keys = noise.extend(of_day[row], START, number)

    peak = who.peak_hour[row]
    cdf = hour_cdf(world).to(device)
    steps = (cdf + torch.arange(24, device=device)[:, None]).flatten()  # all peaks one above the other: one search
    u = noise.uniform(noise.extend(keys, START))
    hour = (torch.searchsorted(steps, u + peak, right=True) - 1 - 25 * peak).clamp_(0, 23)
    low, high = cdf[peak, hour], cdf[peak, hour + 1]
    hours = hour + ((u - low) / (high - low)).clamp_(0, 1)
    start = world.start_us + day * DAY_US + (hours * 3_600_000_000).long().clamp_(0, DAY_US - 1)

    reached = reach(world).to(device)
    u = noise.uniform(noise.extend(keys, DEPTH))
    depth = torch.searchsorted(-reached, -u, right=False).clamp_(min=1)
    topic = draw_topic(world, who, row, noise.uniform(noise.extend(keys, INTENT)))
    order = torch.argsort(row * (2 * DAY_US) + start - (world.start_us + day * DAY_US), stable=True)
    columns = {"row": row, "visit": number, "key": keys, "start": start, "evening": evening(hours, who.country[row])}
    columns |= {"depth": depth, "intent": topic}
    return {name: column[order] for name, column in columns.items()}


def draw_topic(world: World, who: Users, row: Tensor, u: Tensor) -> Tensor:
    """Topics with the probabilities of `taste`, from uniforms u of users who[row]."""
    anything = u < world.wander
    rest = ((u - world.wander) / (1 - world.wander)).clamp_(min=0) if world.wander < 1 else torch.zeros_like(u)
    choice = torch.zeros_like(row)
    edges = who.weight.cumsum(1)
    for j in range(world.num_favourites - 1):
        choice += rest >= edges[row, j]
    wandering = (u / world.wander * world.num_topics).long().clamp_(max=world.num_topics - 1)
    return torch.where(anything, wandering, who.favourite[row, choice])


# --- what is shown ----------------------------------------------------------------------------------


def fresh_range(world: World, day: int) -> tuple[int, int]:
    """The new videos of the last `fresh_days` days, as numbers [low, high)."""
    return (
        world.num_places + world.uploaded_by(day - world.fresh_days),
        world.num_places + world.uploaded_by(day),
    )


def is_fresh(world: World, day: int, number: Tensor) -> Tensor:
    """Which videos by number are among the new ones of the last `fresh_days` days, bool."""
    low, high = fresh_range(world, day)
    return (number >= low) & (number < high)


def burst_videos(world: World, day: int) -> Tensor:
    """The videos that go viral on a day, largest burst first, int64 [bursts_per_day].

    Any video may, out of nowhere: one of the last `fresh_days` with probability burst_fresh_share, else any that is
    there. Days before the month have their bursts too.
    """
    low, high = fresh_range(world, day)
    keys = noise.key(world.seed, BURST, day + world.burst_days, torch.arange(world.bursts_per_day))
    u, v = noise.uniform(keys), noise.uniform(noise.mix(keys))
    strikes_fresh = (u < world.burst_fresh_share) & (high > low)
    return torch.where(strikes_fresh, low + (v * (high - low)).long(), (v * high).long())


@lru_cache(maxsize=256)
def bursts(world: World, day: int, since: int | None = None) -> tuple[Tensor, Tensor]:
    """The bursts of a day with their shares of the viral draws: videos int64 [R], shares float64 [R].

    A burst relaxes as a power law, (1 + age in days) ** -burst_exponent (Crane and Sornette, PNAS 2008), and lasts
    burst_days; the r-th largest of a day has size 1 / r. All shares of a day sum to 1; with `since`, only bursts
    that broke out before that day are returned.
    """
    age = torch.arange(world.burst_days, dtype=torch.float64)
    relaxed = (1 + age) ** -world.burst_exponent
    size = 1 / torch.arange(1, world.bursts_per_day + 1, dtype=torch.float64)
    share = relaxed[:, None] * size / (relaxed.sum() * size.sum())
    ages = [a for a in range(world.burst_days) if since is None or day - a < since]
    if not ages:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    return torch.cat([burst_videos(world, day - a) for a in ages]), torch.cat([share[a] for a in ages])


def burst_probability(world: World, day: int, number: Tensor, since: int | None = None) -> Tensor:
    """Share of a day's viral draws that falls on videos by number, float64 of their shape."""
    video, share = (column.to(number.device) for column in bursts(world, day, since))
    bursting, place = torch.unique(video, return_inverse=True)
    if not bursting.numel():
        return torch.zeros(number.shape, dtype=torch.float64, device=number.device)
    total = torch.zeros(bursting.numel(), dtype=torch.float64, device=number.device).index_add_(0, place, share)
    at = torch.searchsorted(bursting, number).clamp_(max=bursting.numel() - 1)
    return torch.where(bursting[at] == number, total[at], 0.0)


def probability(world: World, day: int, affinity: Tensor, what: Videos) -> Tensor:
    """p(video) of the logging policy, float64: the chance to be drawn, before the rows above are excluded.

    affinity: the user's `taste` for each video's topic, [Z] for rows or [B, N] for all pairs with N videos.
    """
    low, high = fresh_range(world, day)
    there = what.upload_day <= day
    holds = there & (day < what.replaced_day)
    known = world.popularity_share * what.popularity + world.taste_share * affinity * what.topic_popularity
    p = there * (world.explore_share / high) + holds * known
    p = p + is_fresh(world, day, what.number) * (world.fresh_share / max(high - low, 1))
    return p + world.burst_share * burst_probability(world, day, what.number)


# --- what is wanted ---------------------------------------------------------------------------------


def log_taste(world: World, share: Tensor) -> Tensor:
    """Taste as log-odds beside an even taste: log(num_topics * share)."""
    return torch.log(world.num_topics * share)


def country_language(country: Tensor) -> Tensor:
    """The language of a country, int64 row of LANGUAGES."""
    return torch.tensor([LANGUAGES.index(row[3]) for row in COUNTRIES], device=country.device)[country]


def speaks(country: Tensor, language: Tensor) -> Tensor:
    """Whether users of a country understand videos of a language, bool."""
    return (country_language(country) == language) | (language == LANGUAGES.index(SPEECHLESS))


def length(world: World, what: Videos) -> Tensor:
    """How long a video is beside the usual: standard deviations of log duration, cut at 2 either way."""
    spread = max(world.feed_duration_sigma if world.is_feed else world.duration_sigma, 1e-9)
    return (torch.log(what.duration / world.typical_duration) / spread).clamp(-2, 2)


def interest(
    world: World, first: Tensor, second: Tensor, understood: Tensor, bias: Tensor, what: Videos, day: float
) -> Tensor:
    """Interest in a video on a day, before intent and context.

    first, second: `log_taste` for the video's two topics; understood: `speaks`. Rows, or [B, N] with N videos and
    bias [B, 1].
    """
    affinity = (1 - what.second_share) * first + what.second_share * second
    age = (day - what.upload_day).clamp(min=0).to(affinity.dtype)
    return (
        world.taste_gain * affinity
        + world.quality_gain * what.quality
        + what.bias
        + bias
        - world.language_penalty * ~understood
        + world.freshness_gain * torch.exp(-age / world.freshness_days)
    )


def intent_interest(world: World, intent: Tensor, what: Videos) -> Tensor:
    """What the intent of a visit adds to the interest."""
    share = (1 - what.second_share) * (intent == what.topic) + what.second_share * (intent == what.second_topic)
    return world.intent_gain * share


def log_watch(world: World, interest: Tensor, what: Videos) -> Tensor:
    """log of the median of the seconds that a user would like to watch."""
    stretch = world.watch_length * torch.log(what.duration / world.typical_duration)
    return log_watch_bias(world) + world.watch_gain * interest + stretch


def log_watch_bias(world: World) -> float:
    """The constant of `log_watch`, the usual duration included."""
    return (world.feed_watch_bias if world.is_feed else world.watch_bias) + math.log(world.typical_duration)


def positive(world: World, interest: Tensor, what: Videos) -> Tensor:
    """P(positive | examined): of a click on the homepage, of a long view on the feed."""
    if not world.is_feed:
        return torch.sigmoid(world.click_bias + interest)
    return torch.sigmoid(log_watch(world, interest, what) - torch.log(what.duration.clamp(max=LONG_VIEW_SECONDS)))


def expected_watch(world: World, interest: Tensor, what: Videos) -> Tensor:
    """Seconds to expect of a video once it plays: the mean of min(wish, duration), m log(1 + duration / m)."""
    middle = torch.exp(log_watch(world, interest, what))
    return middle * torch.log1p(what.duration / middle)
