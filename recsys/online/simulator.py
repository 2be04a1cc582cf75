"""Policies at work in the world: who comes, what a policy shows them, what they do with it, day after day.

Users and visits are the world's, and the response to a video in a visit is a function of (noise seed, user, day, visit,
video), whoever shows it: two policies are compared under common random numbers.

A policy can only show what is there: a video not yet uploaded on the day is an error, as it would be a leak.

Shapes: B users of a block, S visits, K positions, Z impressions, U users.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from recsys.online.reactions import Feelings, Reactions
from recsys.online.slates import Policy, Slates, Visits, check, refusal, update_of
from recsys.world import logs, noise, population
from recsys.world.behaviour import Columns, fresh_range, sessions
from recsys.world.constants import World
from recsys.world.population import DAY_US, ID_SPACE, VIDEO_IDS, Users

# What is counted, all sums, so that a user's row is the sum of the user's days.
METRICS = {
    "visits": "how often they came",
    "impressions": "what they were shown",
    "clicks": "positives: clicks on the homepage, long views on the feed",
    "watch_seconds": "how long they watched",
    "likes": "how often they pressed like",
    "dislikes": "how often they pressed dislike",
    "shares": "how often they shared",
    "session_seconds": "from the first impression of a visit to the end of its last: seconds_per_impression later, and "
    "on the feed its watching",
    "topics": "different topics (the videos' first) in a visit, summed over visits",
    "creators": "different creators in a visit, summed over visits",
}
SECONDS = ("watch_seconds", "session_seconds")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a policy. METRICS says what is counted.

    users: one row a user, in the order given, also for those who never came: user_id and METRICS.
    days: one row a user and day with a visit, by day: user_id, day, METRICS.
    rows: the log, as `logs.frame`; None unless kept. Null propensities: the policy did not state them.
    seconds: of this machine's time, by part: visits, policy, response, update.
    """

    users: pl.DataFrame
    days: pl.DataFrame
    rows: pl.DataFrame | None
    seconds: dict[str, float]


class LoggingPolicy:
    """The world's own logging policy, with its propensities: it shows the log."""

    def __init__(self, world: World) -> None:
        self.world = world

    def act(self, visits: Visits) -> Slates:
        """What the log would have shown, had the visit scrolled so far. Raises ValueError: a user of another world."""
        world, device = self.world, visits.user_id.device
        day_S = (visits.timestamp - world.start_us) // DAY_US
        item_SK = torch.full((len(visits), visits.k), -1, device=device)
        propensity_SK = torch.zeros(item_SK.shape, dtype=torch.float32, device=device)
        for day in day_S.unique().tolist():
            rows = (day_S == day).nonzero()[:, 0]
            user_id, row = visits.user_id[rows].unique(return_inverse=True)
            who = population.users(world, population.user_numbers(world, user_id))
            today = population.drifted(world, who, day)
            asked = {"row": row, "key": visits.key[rows], "depth": torch.full_like(row, visits.k)}
            shown = logs.show(world, day, today, asked)
            item_SK[rows] = population.video_ids(world, shown).view(-1, visits.k)
            propensity_SK[rows] = logs.propensities(world, day, today, asked, shown).view(-1, visits.k)
        return Slates(item_SK, propensity_SK)


def simulate(
    world: World,
    policy: Policy,
    *,
    days: range | None = None,
    users: Tensor | None = None,
    k: int | None = None,
    noise_seed: int | None = None,
    reactions: Reactions | None = None,
    keep_rows: bool = False,
    users_at_once: int = logs.USERS_AT_ONCE,
    device: torch.device | str = "cpu",
) -> Outcome:
    """Let a policy serve users for some days.

    Args:
        days: consecutive; all of the world by default. A policy that learns has seen each day before the next.
        users: by number, int64 [U], no two alike; all by default.
        k: positions that the policy fills and that a visit can scroll; world.max_depth by default.
        noise_seed: of the month, world.noise_seed by default: the month of the log.
        reactions: how users react to what they were shown, starting afresh; None: as in the log, not at all.
        users_at_once: how many are held at a time; changes no result.

    Raises:
        ValueError: an argument out of range, or a slate that cannot be shown; the message names the visit.
    """
    days = range(world.num_days) if days is None else days
    if days.step != 1 or (len(days) and not 0 <= days[0] <= days[-1] < world.num_days):
        raise ValueError(f"days must be consecutive ones of 0 .. {world.num_days - 1}, got {days}")
    numbers_U = torch.arange(world.num_users) if users is None else users
    if numbers_U.dtype != torch.int64 or numbers_U.ndim != 1 or len(numbers_U.unique()) != len(numbers_U):
        raise ValueError("users must be an int64 vector of different numbers of users")
    if len(numbers_U) and not 0 <= int(numbers_U.min()) <= int(numbers_U.max()) < world.num_users:
        raise ValueError(f"users must lie in 0 .. {world.num_users - 1}: world {world.name} has no others")
    k = world.max_depth if k is None else k
    if not 1 <= k <= world.max_depth:
        raise ValueError(f"k must lie in 1 .. {world.max_depth}, world.max_depth, got {k}")
    if users_at_once < 1:
        raise ValueError(f"users_at_once must be at least 1, got {users_at_once}")

    numbers_U = numbers_U.to(device)
    feelings = Feelings(world, reactions or Reactions(), len(numbers_U), k, device)
    update = update_of(policy)
    clock = dict.fromkeys(("visits", "policy", "response", "update"), 0.0)
    total_U = {name: torch.zeros(len(numbers_U), dtype=torch.float64, device=device) for name in METRICS}
    daily, kept = [], []
    for day in days:
        logged = []
        for low in range(0, len(numbers_U), users_at_once):
            at = slice(low, min(low + users_at_once, len(numbers_U)))
            who = population.users(world, numbers_U[at])
            counted_B, log = _serve(world, day, who, at, policy, k, noise_seed, feelings, clock)
            for name, sums_B in counted_B.items():
                total_U[name][at] += sums_B
            daily.append(_frame(world, who.number, counted_B, day))
            if update is not None or keep_rows:
                logged.append({name: log[name] for name in logs.COLUMNS})
        if not logged:
            continue
        rows = {name: torch.cat([part[name] for part in logged]) for name in logs.COLUMNS}
        if keep_rows:
            kept.append(logs.frame(rows).with_columns(pl.col("propensity").fill_nan(None)))
        if update is not None:
            began = time.perf_counter()
            update(rows)
            clock["update"] += time.perf_counter() - began
    return Outcome(
        _frame(world, numbers_U, total_U),
        pl.concat(daily) if daily else _frame(world, numbers_U[:0], {name: total_U[name][:0] for name in METRICS}, 0),
        pl.concat(kept) if kept else None,
        clock,
    )


def _serve(
    world: World, day: int, who: Users, at: slice, policy: Policy, k: int, noise_seed: int | None, feelings: Feelings,
    clock: dict[str, float],
) -> tuple[dict[str, Tensor], Columns]:  # fmt: skip
    """One day of a block of users: METRICS of each, float64 [B], and the rows of `logs.respond`."""
    moments = [time.perf_counter()]
    today = population.drifted(world, feelings.coming(who, at), day)
    visits = sessions(world, day, today, noise_seed)
    user_id = population.user_ids(world, who.number)
    asked = Visits(user_id[visits["row"]], visits["start"], visits["key"], k)
    moments.append(time.perf_counter())
    slates = policy.act(asked) if len(asked) else Slates(torch.full((0, k), -1, device=user_id.device))
    moments.append(time.perf_counter())

    number_SK = _numbers(world, day, slates, asked)
    held_S = (number_SK >= 0).sum(1)
    visits["depth"] = torch.minimum(visits["depth"], held_S)
    scrolls_S = visits["depth"]
    if feelings.reactions.of_depth:  # to know when a visit ends, all that it could see is answered
        visits["depth"] = held_S
    here_SK = torch.arange(k, device=held_S.device) < visits["depth"][:, None]
    log = logs.respond(world, day, today, visits, number_SK[here_SK], feelings.tired(at))
    if slates.propensity is None:
        log["propensity"].fill_(math.nan)
    else:
        log["propensity"] = slates.propensity[here_SK].to(log["propensity"])
    if feelings.reactions.of_depth:
        visits["depth"] = feelings.depth(scrolls_S, log)
        seen = log["position"] < visits["depth"][log["session"]]
        log = {name: column[seen] for name, column in log.items()}
    counted = _counted(world, visits, log, len(who.number))
    feelings.remember(at, counted["visits"], log)
    moments.append(time.perf_counter())
    for name, began, ended in zip(("visits", "policy", "response"), moments, moments[1:], strict=False):
        clock[name] += ended - began
    return counted, log


def _numbers(world: World, day: int, slates: Slates, asked: Visits) -> Tensor:
    """The videos of slates by number, -1 where there is none. Raises ValueError for what cannot be shown."""
    check(slates, asked)
    item_SK = slates.item_id
    known = item_SK < ID_SPACE
    id_SK, seed = item_SK.clamp(0, ID_SPACE - 1), population.subseed(world, VIDEO_IDS)
    if world.num_videos < id_SK.numel():  # visits share videos: each is looked up once
        id_N, place_SK = id_SK.unique(return_inverse=True)
        number_SK = noise.unpermute(id_N, ID_SPACE, seed)[place_SK]
    else:
        number_SK = noise.unpermute(id_SK, ID_SPACE, seed)
    number_SK = torch.where(item_SK >= 0, number_SK, -1)
    there = fresh_range(world, day)[1]  # videos are numbered in the order of their upload
    wrong = ~known | (number_SK >= there)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        number, item = int(number_SK[row, column]), int(item_SK[row, column])
        if bool(known[row, column]) and number < world.num_videos:
            uploaded = int(population.videos(world, number_SK[row, column : column + 1]).upload_day)
            what = f"shows item_id {item} on day {day}: it is uploaded on day {uploaded}, offer what is there"
        else:
            what = f"shows item_id {item}, which is not of this world; are seed and preset the same?"
        raise ValueError(refusal(asked, row, what))
    return number_SK


def _counted(world: World, visits: Columns, log: Columns, num_users: int) -> dict[str, Tensor]:
    """METRICS of a day by user, float64 [B]."""
    of_visit, of_row = visits["row"], log["row"]

    def summed(row: Tensor, value: Tensor | None = None) -> Tensor:
        sums = torch.zeros(num_users, dtype=torch.float64, device=row.device)
        return sums.index_add_(0, row, torch.ones_like(row, dtype=torch.float64) if value is None else value.double())

    what = population.videos(world, log["video"])
    depth = visits["depth"]
    last = (depth.cumsum(0) - 1)[depth > 0]
    lasted = (log["timestamp"][last] - visits["start"][depth > 0]).double() / 1_000_000
    lasted += world.seconds_per_impression
    if world.is_feed:
        lasted += log["watch_seconds"][last].double()
    return {
        "visits": summed(of_visit),
        "impressions": summed(of_row),
        "clicks": summed(of_row, log["label"]),
        "watch_seconds": summed(of_row, log["watch_seconds"]),
        "likes": summed(of_row, log["liked"]),
        "dislikes": summed(of_row, log["disliked"]),
        "shares": summed(of_row, log["shared"]),
        "session_seconds": summed(of_visit[depth > 0], lasted),
        "topics": summed(of_visit[_different(log["session"], what.topic)]),
        "creators": summed(of_visit[_different(log["session"], what.creator)]),
    }


def _different(session: Tensor, kind: Tensor) -> Tensor:
    """The session of each different (session, kind)."""
    size = int(kind.max()) + 1 if kind.numel() else 1
    return (session * size + kind).unique() // size


def _frame(world: World, number: Tensor, counted: Mapping[str, Tensor], day: int | None = None) -> pl.DataFrame:
    """Users by number and what was counted; with a day those alone who came on it."""
    if day is not None:
        came = (counted["visits"] > 0).nonzero()[:, 0]
        number, counted = number[came], {name: sums[came] for name, sums in counted.items()}
    columns = {"user_id": pl.Series(population.user_ids(world, number).cpu().numpy())}
    if day is not None:
        columns["day"] = pl.repeat(day, len(number), dtype=pl.Int64, eager=True)
    for name, sums in counted.items():
        columns[name] = pl.Series((sums if name in SECONDS else sums.long()).cpu().numpy())
    return pl.DataFrame(columns)
