"""The log that a world leaves: what each visit was shown and how the user responded, as tensors or as a frame.

What is per user, visit or video is prepared here by `population` and `behaviour`; what is per impression is computed in
visit.cu, one text for CPU and GPU. Any day of any users can be made alone. Shapes: B users, Z impressions, N videos,
W of a record.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recsys.native import Native
from recsys.threads import in_order
from recsys.world import noise
from recsys.world.behaviour import (
    LONG_VIEW_SECONDS,
    MAX_SESSIONS,
    RESPONSE,
    SESSION_IDS,
    SHOWN,
    Columns,
    burst_probability,
    bursts,
    country_language,
    examination,
    fresh_range,
    length,
    log_watch_bias,
    sessions,
)
from recsys.world.constants import World
from recsys.world.population import (
    ROTATION,
    TABLE_LIMIT,
    TAKES,
    VIDEO_IDS,
    Users,
    Videos,
    drifted,
    subseed,
    user_ids,
    users,
    videos,
)

USERS_AT_ONCE = 4096  # some 80,000 rows a day, in cache
USERS_AT_ONCE_ON_A_GPU = 2**18  # some 5 million rows a day: launches cost as much as few users do

# What visit.cu knows as Constants and as Video.
WHOLE = (
    "num_places", "num_topics", "num_favourites", "num_new", "num_days", "fresh_days", "day", "fresh_low", "fresh_high",
    "num_bursts", "num_bursting", "feed", "by_row", "takes_bits", "shown_stream", "response_stream", "step_us",
    "rotation_key",
)  # fmt: skip
REAL = (
    "explore_share", "popularity_share", "taste_share", "burst_share", "fresh_share", "wander", "zipf_power", "head",
    "top", "inner_head", "inner_top", "taste_gain", "language_penalty", "freshness_gain", "freshness_days",
    "context_gain", "intent_gain", "click_bias", "watch_bias", "watch_gain", "long_view", "reaction_gain",
    "reaction_watch", "like_bias", "share_bias", "dislike_bias",
)  # fmt: skip
KEYS = ("takes_keys", "item_keys")
RECORD = (
    "topic", "second_topic", "second_share", "language", "popularity", "topic_popularity", "upload_day", "replaced_day",
    "duration", "length", "appeal", "stretch",
)  # fmt: skip
DECLARATIONS = (
    f"struct Constants {{ i64 {', '.join(WHOLE)}; double {', '.join(REAL)}; "
    f"u64 {', '.join(f'{name}[{noise.ROUNDS}]' for name in KEYS)}; }};\n"
    f"struct Video {{ double {', '.join(RECORD)}; }};\n"
)
LAYOUT = np.dtype(
    [(name, np.int64) for name in WHOLE]
    + [(name, np.float64) for name in REAL]
    + [(name, np.int64, (noise.ROUNDS,)) for name in KEYS]
)
visit = Native(Path(__file__).with_name("visit.cu"), DECLARATIONS)
# The columns that visit.cu fills, in its order.
DTYPES = {
    "user_id": torch.int64, "item_id": torch.int64, "timestamp": torch.int64, "session_id": torch.int64,
    "relevance": torch.float64, "propensity": torch.float32, "watch_seconds": torch.float32,
    "position": torch.int16, "label": torch.int8, "liked": torch.int8, "disliked": torch.int8,
    "shared": torch.int8,
}  # fmt: skip


def record(world: World, what: Videos) -> Tensor:
    """What visit.cu needs of videos, float64 [N, W]."""
    columns = {name: getattr(what, name) for name in RECORD if hasattr(what, name)}
    columns["length"] = length(world, what)
    columns["appeal"] = world.quality_gain * what.quality + what.bias
    columns["stretch"] = (what.duration / world.typical_duration) ** world.watch_length
    return torch.stack([columns[name].double() for name in RECORD], 1)


@lru_cache(maxsize=4)
def _all_records(world: World, device: str) -> Tensor:
    return record(world, videos(world, torch.arange(world.num_videos, device=device)))


@lru_cache(maxsize=64)
def _day_tables(world: World, day: int, device: str) -> tuple[Tensor, ...]:
    """Constants for visit.cu, the bursts as (video, edge) to draw from and (video, share) to look up, examination."""
    low, high = fresh_range(world, day)
    bits = noise.half_bits(world.num_places)
    video, share = bursts(world, day)
    bursting = video.unique()
    head = world.popularity_head
    power = 1 - world.popularity_exponent
    power = 0.0 if abs(power) < 1e-9 else power
    inner = world.num_places // world.num_topics

    def top(size: int) -> float:  # as in population.zipf_cdf
        ratio = torch.tensor(size / (head * size), dtype=torch.float64)
        return float(torch.log1p(ratio)) if power == 0 else (1 + size / (head * size)) ** power - 1

    own = {
        "day": day, "fresh_low": low, "fresh_high": high, "num_bursts": len(video), "num_bursting": len(bursting),
        "feed": world.is_feed, "by_row": world.num_videos > TABLE_LIMIT, "takes_bits": bits,
        "shown_stream": SHOWN, "response_stream": RESPONSE, "step_us": int(world.seconds_per_impression * 1_000_000),
        "rotation_key": int(noise.key(world.seed, ROTATION)), "zipf_power": power,
        "head": head * world.num_places, "top": top(world.num_places), "inner_head": head * inner,
        "inner_top": top(inner), "long_view": LONG_VIEW_SECONDS,
        "watch_bias": log_watch_bias(world),
        "takes_keys": noise.round_keys(subseed(world, TAKES)), "item_keys": noise.round_keys(subseed(world, VIDEO_IDS)),
    }  # fmt: skip
    constants = np.zeros((), LAYOUT)
    for name in LAYOUT.names or ():
        constants[name] = own[name] if name in own else getattr(world, name)
    packed = torch.from_numpy(np.frombuffer(constants.tobytes(), np.int64).copy())
    tables = (packed, video, share.cumsum(0), bursting, burst_probability(world, day, bursting), examination(world))
    return tuple(table.to(device).contiguous() for table in tables)


def impressions(world: World, day: int, who: Users, noise_seed: Tensor | int | None = None) -> Columns:
    """The rows of one day in the order of (user, start of visit, position): what was shown and what came of it.

    A day's visits are those that start on it; a late one may end after midnight.

    Args:
        who: users at rest; their taste is taken to the day here.
        noise_seed: int64 [B] or one number; world.noise_seed if None. Another seed is another month.

    Returns: user_id, item_id, timestamp, session_id (int64); relevance (float64); propensity, watch_seconds (float32,
    whole milliseconds); position (int16); label, liked, disliked, shared (int8); and what no platform knows: video
    (number), session (row of the day's visits), row (of `who`), intent; all [Z].
    """
    today = drifted(world, who, day)
    visits = sessions(world, day, today, noise_seed)
    return respond(world, day, today, visits, show(world, day, today, visits))


def show(world: World, day: int, today: Users, visits: Columns) -> Tensor:
    """What the logging policy shows: numbers of videos, int64 [Z], the first `depth` of each visit.

    today: with the taste of the day, see `drifted`. visits: row (of `today`), key and depth of `sessions`.
    """
    drawn = _drawn(world, day, visits)
    _, burst_video, burst_edge, *_ = _day_tables(world, day, str(visits["key"].device))
    shown = torch.empty(int(visits["depth"].sum()), dtype=torch.int64, device=visits["key"].device)
    taste = today.favourite.contiguous(), today.weight.contiguous()
    visit("show", len(visits["row"]), *drawn, *taste, burst_video, burst_edge, shown)
    return shown


def propensities(world: World, day: int, today: Users, visits: Columns, shown: Tensor) -> Tensor:
    """The logging policy's probability of each row given the rows above it in the visit, float32 [Z], as it is logged.
    The arguments are those of `show`, and what it showed."""
    drawn = _drawn(world, day, visits)
    *_, bursting, burst_share, _ = _day_tables(world, day, str(shown.device))
    found = torch.empty(shown.shape, dtype=torch.float32, device=shown.device)
    taste = today.favourite.contiguous(), today.weight.contiguous()
    visit(
        "propensities", len(visits["row"]), *drawn, *taste, _records(world, shown), bursting, burst_share, shown, found
    )  # fmt: skip
    return found


def respond(
    world: World, day: int, today: Users, visits: Columns, shown: Tensor, tired: Tensor | None = None
) -> Columns:
    """What comes of showing videos to the visits of a day.

    Args:
        today: users with the taste of the day, see `drifted`. visits: of `sessions`; `depth` may be another.
        shown: numbers of videos, int64 [Z], `depth` of them a visit, all there on that day.
        tired: what topics have lost of each user's interest, float64 [B, topics].

    Returns: the columns of `impressions`. `propensity` is the logging policy's, whoever chose.
    """
    depth, device, rows, total = visits["depth"], shown.device, visits["row"], len(shown)
    drawn = _drawn(world, day, visits)
    *_, bursting, burst_share, examined = _day_tables(world, day, str(device))
    out = {name: torch.empty(total, dtype=dtype, device=device) for name, dtype in DTYPES.items()}
    session = (today.number[rows] * 1024 + day) * (MAX_SESSIONS + 1) + visits["visit"]
    ids = user_ids(world, today.number)[rows], noise.permute(session, 1 << 48, SESSION_IDS)
    of_visit = visits["intent"], visits["start"], visits["evening"], *ids
    of_user = today.favourite.contiguous(), today.weight.contiguous(), today.bias, country_language(today.country)
    fatigue = (0, today.bias) if tired is None else (tired.numel(), tired)
    visit(
        "respond", rows.numel(), *drawn, *of_visit, *of_user, _records(world, shown), bursting, burst_share, examined,
        *fatigue, shown, *out.values(),
    )  # fmt: skip
    out["video"], out["session"] = shown, torch.repeat_interleave(depth, output_size=total)
    out["row"], out["intent"] = rows[out["session"]], visits["intent"][out["session"]]
    return out


def _drawn(world: World, day: int, visits: Columns) -> tuple[Tensor, ...]:
    """What every entry of visit.cu takes first: constants, keys, rows of users, offsets and depths."""
    depth = visits["depth"]
    constants = _day_tables(world, day, str(depth.device))[0]
    return constants, visits["key"], visits["row"], depth.cumsum(0) - depth, depth


def _records(world: World, shown: Tensor) -> Tensor:
    """`record` of all videos, or of the rows where there are too many."""
    if world.num_videos <= TABLE_LIMIT:
        return _all_records(world, str(shown.device))
    return record(world, videos(world, shown))


COLUMNS = {
    "user_id": "who, a random-looking number below 2**40",
    "item_id": "what was shown, a random-looking number below 2**40",
    "timestamp": "when it was shown, UTC",
    "label": "1 = the positive: a click on the homepage, a long view on the feed",
    "position": "place in the visit, from 0",
    "propensity": "the logging policy's probability of this video here, given the rows above it in the visit",
    "watch_seconds": "how long it was watched, to the millisecond",
    "liked": "whether the user pressed like",
    "disliked": "whether the user pressed dislike",
    "shared": "whether the user shared it",
    "session_id": "the visit, a random-looking number below 2**48",
}


def frame(rows: Columns) -> pl.DataFrame:
    """`impressions` as the log that a platform would keep: nothing latent. COLUMNS says what each one is."""
    columns = {name: pl.Series(name, rows[name].cpu().numpy()) for name in COLUMNS}
    columns["timestamp"] = columns["timestamp"].cast(pl.Datetime("us", "UTC"))
    for name in ("liked", "disliked", "shared"):
        columns[name] = columns[name].cast(pl.Boolean)
    return pl.DataFrame(columns)


def blocks(
    world: World, days: range | None = None, numbers: range | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[int, range]]:
    """Days and runs of users by number (all by default), in the order of the log, of a size that suits the device."""
    numbers = range(world.num_users) if numbers is None else numbers
    size = USERS_AT_ONCE if torch.device(device).type == "cpu" else USERS_AT_ONCE_ON_A_GPU
    for day in range(world.num_days) if days is None else days:
        for low in range(numbers.start, numbers.stop, size):
            yield day, range(low, min(low + size, numbers.stop))


def of_block(world: World, day: int, numbers: range, device: torch.device | str = "cpu") -> Columns:
    """`impressions` of a run of users by number."""
    return impressions(world, day, users(world, torch.arange(numbers.start, numbers.stop, device=device)))


def stream(
    world: World,
    days: range | None = None,
    numbers: range | None = None,
    device: torch.device | str = "cpu",
    workers: int | None = None,
) -> Iterator[Columns]:
    """The rows of the log as tensors on a device, one of `blocks` after the other, never held together.

    Args:
        days, numbers: which days, which users by number; all by default.
        workers: as in `in_order`.

    Yields: the columns of `impressions`.
    """
    whole = blocks(world, days, numbers, device)
    return in_order(lambda block: of_block(world, *block, device), whole, _workers(workers, device))


def log(
    world: World,
    days: range | None = None,
    numbers: range | None = None,
    workers: int | None = None,
    device: torch.device | str = "cpu",
) -> pl.DataFrame:
    """The log of the given days and users (all by default) in the order of (day, user, start of visit, position).

    Args:
        workers: as in `in_order`. The rows do not depend on it.
        device: where they are made.
    """
    whole = blocks(world, days, numbers, device)
    made = in_order(lambda block: frame(of_block(world, *block, device)), whole, _workers(workers, device))
    return pl.concat(made)


def positives(world: World, workers: int | None = None, device: torch.device | str = "cpu") -> pl.DataFrame:
    """The rows of the log with label 1, in its order; the others are never held."""
    found = []
    for rows in stream(world, device=device, workers=workers):
        hits = (rows["label"] == 1).nonzero()[:, 0]
        found.append(frame({name: rows[name][hits] for name in COLUMNS}))
    return pl.concat(found)


def _workers(workers: int | None, device: torch.device | str) -> int | None:
    """A GPU is kept busy by two threads; blocks that more of them hold would take its memory."""
    return 2 if workers is None and torch.device(device).type != "cpu" else workers
