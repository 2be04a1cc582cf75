"""The homepage: who is shown what, who clicks, and how long they watch.

Each day a user opens the homepage a Poisson number of times. A visit has a latent **intent** (one topic,
drawn from the user's taste), scrolls down to a depth, and sees that many different videos, drawn one after the other
by the logging policy, which knows the user's taste but not the intent. With A videos there on that day

    p(video) = explore / A + popularity * p(place) + taste * sum_k taste(k) p(place within topic k) + fresh [fresh] / F

and the propensity of a row is p / (1 - sum of p over the rows above it in the visit). Attention falls with
position; an examined video is clicked with the sigmoid of its utility. The policy's index is rebuilt at
midnight: a video is there on its upload day from 00:00 UTC.

Noise is keyed by (noise_seed, user, day, visit) and then by draw or by video, so that any day and any set of users
can be regenerated alone. Left out so far: the surface `feed`, like, dislike and share, reactions to what was shown.

Shapes: B users, S sessions, Z impressions, N videos.
"""

from __future__ import annotations

from functools import lru_cache

import polars as pl
import torch
from torch import Tensor

from recsys.world import noise
from recsys.world.constants import World
from recsys.world.population import (
    COUNTRIES,
    DAY_US,
    LANGUAGES,
    SPEECHLESS,
    Users,
    Videos,
    holder,
    place_of,
    taste,
    user_ids,
    users,
    video_ids,
    videos,
    zipf_place,
)

USERS_AT_ONCE = 512  # some 10,000 rows a day: in cache, and below the size from which torch splits its work
ONE = 1 << 52
MAX_SESSIONS = 63  # a day, of one user; at 24 expected ones the cut takes 1e-11 of them
VISITS, START, DEPTH, INTENT, SHOWN, CLICK, WATCH, COMPLETE, SESSION_IDS = range(9)

Columns = dict[str, Tensor]


# --- visits -----------------------------------------------------------------------------------------


def session_rate(world: World, who: Users, day: int) -> Tensor:
    """Expected visits of each user on this day, float64 [B]; none before the day of signing up."""
    weekend = (world.start_us // DAY_US + day + 3) % 7 >= 5  # 1970-01-01 was a Thursday
    rate = who.rate * (world.weekend_gain if weekend else 1.0)
    return torch.where(who.sign_up_day <= day, rate, 0.0)


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
    """P(examined | shown at position 0, 1, ...), float64 [max_depth]: 1 / (1 + position / examination_scale)."""
    return 1 / (1 + torch.arange(world.max_depth, dtype=torch.float64) / world.examination_scale)


def sessions(world: World, day: int, who: Users, noise_seed: Tensor | int | None = None) -> Columns:
    """The visits of one day, in the order of (user, start).

    Returns: row (which of `who`), visit (int64, this user's 0, 1, … of the day), key (noise of the visit), start
    (microseconds since 1970), depth (impressions), intent (topic); all [S].
    """
    device = who.number.device
    seed = world.noise_seed if noise_seed is None else noise_seed
    of_day = noise.extend(noise.key(seed).to(device), who.number, day)
    count = noise.poisson(session_rate(world, who, day), noise.extend(of_day, VISITS), MAX_SESSIONS)
    row = torch.repeat_interleave(count)
    visit = torch.arange(row.numel(), device=device) - (count.cumsum(0) - count)[row]
    keys = noise.extend(of_day[row], START, visit)

    cdf = hour_cdf(world).to(device)[who.peak_hour[row]]
    u = noise.uniform(noise.extend(keys, START))
    hour = torch.searchsorted(cdf, u[:, None], right=True)[:, 0].sub_(1).clamp_(0, 23)
    low, high = (cdf.gather(1, (hour + side)[:, None])[:, 0] for side in (0, 1))
    second = (hour + (u - low) / (high - low)) * 3600
    start = world.start_us + day * DAY_US + (second * 1_000_000).long().clamp_(0, DAY_US - 1)

    reached = reach(world).to(device)
    u = noise.uniform(noise.extend(keys, DEPTH))
    depth = torch.searchsorted(-reached, -u, right=False).clamp_(min=1)
    topic = draw_topic(world, who, row, noise.uniform(noise.extend(keys, INTENT)))
    order = torch.argsort(row * (2 * DAY_US) + start - (world.start_us + day * DAY_US), stable=True)
    columns = {"row": row, "visit": visit, "key": keys, "start": start, "depth": depth, "intent": topic}
    return {name: column[order] for name, column in columns.items()}


# --- what is shown ----------------------------------------------------------------------------------


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


def fresh_range(world: World, day: int) -> tuple[int, int]:
    """The new videos of the last `fresh_days` days, as numbers [low, high)."""
    return (
        world.num_places + world.uploaded_by(day - world.fresh_days),
        world.num_places + world.uploaded_by(day),
    )


def probability(world: World, day: int, affinity: Tensor, what: Videos) -> Tensor:
    """p(video) of the logging policy, float64: the chance to be drawn, before the rows above are excluded.

    affinity: the user's `taste` for each video's topic, [Z] for rows or [B, N] for all pairs with N videos.
    """
    low, high = fresh_range(world, day)
    there = what.upload_day <= day
    holds = there & (day < what.replaced_day)
    fresh = (what.number >= low) & (what.number < high)
    known = world.popularity_share * what.popularity + world.taste_share * affinity * what.topic_popularity
    p = there * (world.explore_share / high) + holds * known
    return p + fresh * (world.fresh_share / max(high - low, 1))


def draw_video(world: World, day: int, who: Users, row: Tensor, keys: Tensor) -> Tensor:
    """One draw of the logging policy for each key (int64 [Z]) and user who[row]."""
    low, high = fresh_range(world, day)
    u = noise.uniform(keys)
    v = noise.uniform(noise.mix(keys))
    explore, popular = world.explore_share, world.explore_share + world.popularity_share
    tasty = 1 - world.fresh_share
    if world.taste_share > 0:
        topic = draw_topic(world, who, row, ((u - popular) / world.taste_share).clamp_(0, 1 - 2**-53))
        block = zipf_place(world, v, world.num_places // world.num_topics)
        place = place_of(world, topic, block)
    else:
        place = torch.zeros_like(row)
    place = torch.where(u < popular, zipf_place(world, v, world.num_places), place)
    video = torch.where(u < explore, (v * high).long(), holder(world, place, day))
    fresh = low + (v * (high - low)).long()
    return torch.where((u >= tasty) & (high > low), fresh, video)


def slates(world: World, day: int, who: Users, visits: Columns) -> tuple[Tensor, Tensor]:
    """What each visit is shown: (session, video), int64 [Z], in the order of (session, position).

    A visit's draws are numbered; the first `depth` different videos make the list.
    """
    depth, device = visits["depth"], visits["depth"].device
    offset = depth.cumsum(0) - depth
    total = int(depth.sum())
    shown = torch.empty(total, dtype=torch.int64, device=device)
    todo = torch.arange(depth.numel(), device=device)
    tries = depth + depth // 4 + 2
    while todo.numel():
        session = torch.repeat_interleave(tries[todo])
        start = tries[todo].cumsum(0) - tries[todo]
        draw = torch.arange(session.numel(), device=device) - start[session]
        keys = noise.extend(visits["key"][todo][session], SHOWN, draw)
        video = draw_video(world, day, who, visits["row"][todo][session], keys)
        pair, order = torch.sort(session * world.num_videos + video, stable=True)
        first = torch.ones_like(pair, dtype=torch.bool)
        first[order[1:]] = pair[1:] != pair[:-1]
        seen = first.cumsum(0)
        position = seen - 1 - (seen[start] - 1)[session]
        wanted = depth[todo]
        keep = first & (position < wanted[session])
        full = torch.bincount(session[keep], minlength=todo.numel()) == wanted
        keep &= full[session]
        shown[(offset[todo][session] + position)[keep]] = video[keep]
        todo = todo[~full]
        tries = tries * 2
    return torch.repeat_interleave(depth), shown


# --- who clicks, how long they watch ----------------------------------------------------------------


def log_taste(world: World, share: Tensor) -> Tensor:
    """Taste as log-odds beside an even taste: log(num_topics * share)."""
    return torch.log(world.num_topics * share)


def speaks(country: Tensor, language: Tensor) -> Tensor:
    """Whether users of a country understand videos of a language, bool."""
    own = torch.tensor([LANGUAGES.index(row[3]) for row in COUNTRIES], device=country.device)[country]
    return (own == language) | (language == LANGUAGES.index(SPEECHLESS))


def click_logit(world: World, first: Tensor, second: Tensor, understood: Tensor, bias: Tensor, what: Videos) -> Tensor:
    """Log-odds of a click on an examined video, were it not for the intent.

    first, second: `log_taste` for the video's two topics; understood: `speaks`. Rows, or [B, N] with N videos and
    bias [B, 1].
    """
    affinity = (1 - what.second_share) * first + what.second_share * second
    return (
        world.click_bias
        + world.taste_gain * affinity
        + world.quality_gain * what.quality
        - world.language_penalty * ~understood
        + bias
    )


def intent_logit(world: World, intent: Tensor, what: Videos) -> Tensor:
    """What the intent of a visit adds to the log-odds of a click."""
    share = (1 - what.second_share) * (intent == what.topic) + what.second_share * (intent == what.second_topic)
    return world.intent_gain * share


def watch_mean(world: World, first: Tensor, what: Videos) -> Tensor:
    """Expected share of the duration that a click is watched, completion aside, float64 in (0, 1)."""
    length = torch.log(what.duration / world.duration_median)
    return torch.sigmoid(world.watch_bias + world.watch_taste_gain * first - world.watch_length_penalty * length)


def expected_watch(world: World, first: Tensor, what: Videos) -> Tensor:
    """Expected seconds watched after a click: a click plays to the end with probability completion * mean,
    else for a share of the duration with that mean."""
    mean = watch_mean(world, first, what)
    end = world.completion * mean
    return what.duration * (end + (1 - end) * mean)


def _watched(world: World, first: Tensor, what: Videos, keys: Tensor) -> Tensor:
    mean = watch_mean(world, first, what)
    share = noise.uniform(noise.extend(keys, WATCH)) ** (1 / mean - 1)  # E[u ** b] = 1 / (1 + b) = mean
    ended = noise.uniform(noise.extend(keys, COMPLETE)) < world.completion * mean
    return (what.duration * torch.where(ended, 1.0, share)).clamp(min=0.001)


# --- rows -------------------------------------------------------------------------------------------


def impressions(world: World, day: int, who: Users, noise_seed: Tensor | int | None = None) -> Columns:
    """All impressions of some users on one day, in the order of (user, start of visit, position).

    Args:
        who: `users(world, numbers)`; any subset gives the same rows as a full run.
        noise_seed: instead of the world's own; an int64 [B] gives each row of `who` a month of its own.

    Returns:
        Columns [Z] by number, not yet by id: row (of `who`), user, video, visit, intent, timestamp (microseconds since
        1970), position, propensity, relevance (P(click | examined) under the intent), label, watch_seconds.
    """
    visits = sessions(world, day, who, noise_seed)
    session, number = slates(world, day, who, visits)
    row, depth = visits["row"][session], visits["depth"]
    start = depth.cumsum(0) - depth
    position = torch.arange(number.numel(), device=number.device) - start[session]
    what = videos(world, number)
    shown = who[row]

    share = taste(world, shown, what.topic)
    p = probability(world, day, share, what)
    # Whole numbers add up to the same in any order: the sums above a row depend on its own visit alone.
    parts = (p * ONE).round_().long()
    above = parts.cumsum(0) - parts
    propensity = p / (1 - (above - above[start][session]) / ONE)

    first = log_taste(world, share)
    second = log_taste(world, taste(world, shown, what.second_topic))
    logit = click_logit(world, first, second, speaks(shown.country, what.language), shown.bias, what)
    relevance = torch.sigmoid(logit + intent_logit(world, visits["intent"][session], what))
    keys = noise.extend(visits["key"][session], CLICK, number)
    label = noise.uniform(keys) < relevance * examination(world).to(number.device)[position]

    watch = torch.zeros_like(p)
    clicked = label.nonzero()[:, 0]
    watch[clicked] = _watched(world, first[clicked], what[clicked], keys[clicked])
    step = int(world.seconds_per_impression * 1_000_000)
    return {
        "row": row,
        "user": who.number[row],
        "video": number,
        "visit": visits["visit"][session],
        "intent": visits["intent"][session],
        "timestamp": visits["start"][session] + position * step,
        "position": position,
        "propensity": propensity,
        "relevance": relevance,
        "label": label,
        "watch_seconds": watch,
    }


def frame(world: World, day: int, rows: Columns) -> pl.DataFrame:
    """`impressions` as the log that a platform would keep: ids in place of numbers, and nothing latent.

    Columns: user_id, item_id, timestamp (Datetime us UTC), label (Int8, 1 = click), position (Int16, from 0),
    propensity and watch_seconds (Float32, whole milliseconds), session_id (random-looking int64).
    """
    session = (rows["user"] * 1024 + day) * (MAX_SESSIONS + 1) + rows["visit"]
    return pl.DataFrame(
        {
            "user_id": user_ids(world, rows["user"]).cpu().numpy(),
            "item_id": video_ids(world, rows["video"]).cpu().numpy(),
            "timestamp": rows["timestamp"].cpu().numpy(),
            "label": rows["label"].cpu().numpy(),
            "position": rows["position"].cpu().numpy(),
            # Coarser than float64, so that the last bit of a vectorised pow does not matter.
            "propensity": rows["propensity"].float().cpu().numpy(),
            "watch_seconds": (rows["watch_seconds"] * 1000).round().div(1000).float().cpu().numpy(),
            "session_id": noise.permute(session, 1 << 48, SESSION_IDS).cpu().numpy(),
        }
    ).with_columns(
        pl.col("timestamp").cast(pl.Datetime("us", "UTC")),
        pl.col("label").cast(pl.Int8),
        pl.col("position").cast(pl.Int16),
    )


def log(world: World, days: range | None = None, numbers: range | None = None) -> pl.DataFrame:
    """The log of the given days and users (all by default) in the order of (day, user, start of visit, position)."""
    days = range(world.num_days) if days is None else days
    numbers = range(world.num_users) if numbers is None else numbers
    blocks = [
        users(world, torch.arange(low, min(low + USERS_AT_ONCE, numbers.stop)))
        for low in range(numbers.start, numbers.stop, USERS_AT_ONCE)
    ]
    return pl.concat([frame(world, day, impressions(world, day, who)) for day in days for who in blocks])
