"""The answer key: what a user would click, and what a list is worth.

Three questions that are never mixed up:
- `relevance`: P(positive | examined), the truth about a pair;
- `utility`: clicks and seconds to expect of a list if it were shown;
- `recsys.world.log_oracle.LogOracle`: P(at least one click in the test window under the logging policy), which is what
  logged recall rewards: an upper bound for every model that is measured on the log.

Shapes: B users, I items, N videos or rows, K topics or list length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import torch
from torch import Tensor

from recsys.schema import NUM_RESERVED, UserBatch
from recsys.world.behaviour import (
    evening,
    examination,
    expected_watch,
    hour_cdf,
    intent_interest,
    interest,
    length,
    log_taste,
    positive,
    reach,
    speaks,
)
from recsys.world.constants import World
from recsys.world.population import (
    DAY_US,
    Users,
    Videos,
    drifted,
    taste,
    tastes,
    user_numbers,
    users,
    video_numbers,
    videos,
)

PAIRS_AT_ONCE = 1 << 17

When = datetime | int


def microseconds(when: When) -> int:
    """A moment as microseconds since 1970; a datetime without a time zone is UTC."""
    if isinstance(when, int):
        return when
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return round(when.timestamp() * 1_000_000)


def day_of(world: World, time: When | None) -> int:
    """The day of the month on which a moment lies; the first without one."""
    return 0 if time is None else (microseconds(time) - world.start_us) // DAY_US


# --- relevance --------------------------------------------------------------------------------------


def relevance(
    world: World, user_id: Tensor, item_id: Tensor, time: When | None = None, intent: Tensor | None = None
) -> Tensor:
    """P(positive | examined) of pairs of raw ids, averaged over intents or under the given ones: of a click on the
    homepage, of a long view on the feed.

    Args:
        user_id, item_id: int64 [N].
        time: a moment, whose day decides on taste and freshness and whose hour on the context; without one the first
            day of the month, at the hours at which the user comes.
        intent: topics, int64 [N].

    Returns: float64 [N]. Raises ValueError for an id that is not of this world.
    """
    who, what = _people(world, user_id), _videos(world, item_id)
    if time is None:
        context, spread = usual_evening(world, who)
        return _relevance(world, who, what, 0, context, spread, intent)
    hours = (microseconds(time) - world.start_us) % DAY_US / 3_600_000_000
    hour = torch.full(who.number.shape, hours, dtype=torch.float64, device=user_id.device)
    return _relevance(world, who, what, day_of(world, time), evening(hour, who.country), None, intent)


def row_probability(world: World, user_id: Tensor, item_id: Tensor, timestamp: Tensor, position: Tensor) -> Tensor:
    """P(positive | shown) of rows of a log, which nobody can know better beforehand: averaged over the visit's intent,
    and over whether the position is examined.

    Args:
        user_id, item_id: raw ids, int64 [N]. timestamp: microseconds, int64 [N]. position: from 0, int64 [N].

    Returns: float64 [N]. Raises ValueError for an id that is not of this world.
    """
    who, what = _people(world, user_id), _videos(world, item_id)
    since = timestamp - world.start_us
    day_N, context = since // DAY_US, evening(since % DAY_US / 3_600_000_000, who.country)
    found = torch.empty(len(user_id), dtype=torch.float64, device=user_id.device)
    for day in day_N.unique().tolist():
        rows = (day_N == day).nonzero()[:, 0]
        found[rows] = _relevance(world, who[rows], what[rows], day, context[rows])
    return found * examination(world).to(found.device)[position]


def _people(world: World, user_id: Tensor) -> Users:
    """The users of rows, each made once however many rows it has."""
    ids, place = user_id.unique(return_inverse=True)
    return users(world, user_numbers(world, ids))[place]


def _videos(world: World, item_id: Tensor) -> Videos:
    """The videos of rows, or of lists, each made once."""
    ids, place = item_id.unique(return_inverse=True)
    return videos(world, video_numbers(world, ids))[place]


def _relevance(
    world: World,
    who: Users,
    what: Videos,
    day: int,
    context: Tensor,
    spread: Tensor | None = None,
    intent: Tensor | None = None,
) -> Tensor:
    """Relevance of rows, float64 [N]; context, spread: mean and variance of `evening`, no variance at one moment."""
    who = drifted(world, who, day)
    share, second = taste(world, who, what.topic), taste(world, who, what.second_topic)
    wanted = plain_interest(world, who.bias, who.country, share, second, what, day, context)
    if intent is not None:
        return _over_hours(world, positive(world, wanted + intent_interest(world, intent, what), what), what, spread)
    return over_intents(world, wanted, share, second, what, spread)


def plain_interest(
    world: World, bias: Tensor, country: Tensor, share: Tensor, second: Tensor, what: Videos, day: int, context: Tensor
) -> Tensor:
    """Interest without the intent. bias, country: of the user; share, second: `taste` for the video's two topics."""
    understood = speaks(country, what.language)
    plain = interest(world, log_taste(world, share), log_taste(world, second), understood, bias, what, day)
    return plain + world.context_gain * length(world, what) * context


def usual_evening(world: World, who: Users) -> tuple[Tensor, Tensor]:
    """Mean and variance of `evening` over the hours at which users come, float64 [B] each."""
    share = hour_cdf(world).to(who.number.device).diff(dim=1)[who.peak_hour]
    hours = (torch.arange(24, dtype=torch.float64, device=who.number.device) + 0.5).expand(share.shape)
    value = evening(hours, who.country[:, None])
    mean = (share * value).sum(1)
    return mean, (share * value * value).sum(1) - mean * mean


def _over_hours(world: World, p: Tensor, what: Videos, spread: Tensor | None) -> Tensor:
    """The mean of a sigmoid whose argument varies with the context, from its value p at the mean: second order."""
    if spread is None or world.context_gain == 0:
        return p
    lift = world.context_gain * length(world, what) * (world.watch_gain if world.is_feed else 1.0)
    return p + p * (1 - p) * (1 - 2 * p) * (lift * lift * spread / 2)


def _intents(
    world: World, wanted: Tensor, first: Tensor, second: Tensor, what: Videos
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a visit can have come for, as (probability, interest): the first topic, the second, or neither.

    wanted: interest without the intent; first, second: `taste` for the topics.
    """
    weight = torch.where(what.topic == what.second_topic, 0.0, second)
    yield first, wanted + intent_interest(world, what.topic, what)
    yield weight, wanted + intent_interest(world, what.second_topic, what)
    yield 1 - first - weight, wanted


def over_intents(
    world: World, wanted: Tensor, first: Tensor, second: Tensor, what: Videos, spread: Tensor | None = None
) -> Tensor:
    """P(positive | examined), the mean over intents, and over hours where the variance of `evening` is given."""
    mean = torch.zeros_like(wanted)
    for probability, now in _intents(world, wanted, first, second, what):
        mean = mean + probability * _over_hours(world, positive(world, now, what), what, spread)
    return mean


def relevance_BN(
    world: World, who: Users, share_BK: Tensor, what: Videos, day: int, intents_BK: Tensor | None = None
) -> Tensor:
    """Relevance of all pairs on a day, float32, averaged over hours and over intents: the user's taste for the topics
    that day, share_BK, or other shares."""
    first, second = share_BK[:, what.topic], share_BK[:, what.second_topic]
    context, spread = (column[:, None].float() for column in usual_evening(world, who))
    bias, country = who.bias[:, None].float(), who.country[:, None]
    wanted = plain_interest(world, bias, country, first, second, what, day, context)
    if intents_BK is not None:
        first, second = intents_BK[:, what.topic], intents_BK[:, what.second_topic]
    return over_intents(world, wanted, first, second, what, spread)


# --- utility ----------------------------------------------------------------------------------------


def attention(world: World) -> Tensor:
    """P(a visit reaches position 0, 1, ... and examines it), float64 [max_depth]."""
    return reach(world) * examination(world)


def utility(world: World, user_id: Tensor, lists: Tensor, time: When | None = None) -> tuple[Tensor, Tensor]:
    """Positives and seconds of watching to expect of one visit, were these lists shown.

    Args:
        time: a moment of the visit's day; the first of the month without one. The hour is averaged over.
        user_id: int64 [B]. lists: raw item ids, int64 [B, K], first position first, K <= max_depth.

    Returns: (clicks, watch_seconds), float64 [B] each.
    Raises ValueError: a list longer than max_depth, or an id that is not of this world.
    """
    clicks_BK, seconds_BK = utility_by_position(world, user_id, lists, time)
    return clicks_BK.sum(1), seconds_BK.sum(1)


def utility_by_position(
    world: World, user_id: Tensor, lists: Tensor, time: When | None = None
) -> tuple[Tensor, Tensor]:
    """What each position adds to `utility`, float64 [B, K] each; it does not depend on the positions below, so that the
    first k columns are those of lists cut at k."""
    K = lists.shape[1]
    if world.max_depth < K:
        raise ValueError(f"lists of {K} are longer than a visit can be: world.max_depth={world.max_depth}")
    day = day_of(world, time)
    who, what = drifted(world, _people(world, user_id), day), _videos(world, lists)
    context, spread = (column[:, None] for column in usual_evening(world, who))
    share, second = taste(world, who, what.topic), taste(world, who, what.second_topic)
    wanted = plain_interest(world, who.bias[:, None], who.country[:, None], share, second, what, day, context)

    # By intent: what is clicked for is also watched for.
    clicks, seconds = torch.zeros_like(wanted), torch.zeros_like(wanted)
    for probability, now in _intents(world, wanted, share, second, what):
        hit = _over_hours(world, positive(world, now, what), what, spread)
        clicks += probability * hit
        seconds += probability * expected_watch(world, now, what) * (1.0 if world.is_feed else hit)
    shown = attention(world)[:K].to(lists.device)
    return clicks * shown, seconds * shown


# --- scorers ----------------------------------------------------------------------------------------


class RelevanceScorer:
    """Ranks by relevance at a moment, averaged over intents: the best list, and not the best logged recall.

    Args:
        item_ids: int64 [num_items], the raw id of every item index; the first two are ignored.
        time: the cut, whose day decides on taste and freshness; hours and intents are averaged over.
    """

    def __init__(self, world: World, item_ids: Tensor, time: When | None = None) -> None:
        self.world = world
        self.day = day_of(world, time)
        self.what = narrow(videos(world, video_numbers(world, item_ids[NUM_RESERVED:])))

    def score(self, batch: UserBatch) -> Tensor:
        """scores_BI from batch["user_key"], the raw user ids: P(positive | examined), float32 [B, num_items]."""
        return in_blocks(self.world, batch["user_key"], self.what.number.numel(), lambda who, rows: self._block(who))

    __call__ = score

    def _block(self, who: Users) -> Tensor:
        share_BK = tastes(self.world, drifted(self.world, who, self.day)).float()
        return relevance_BN(self.world, who, share_BK, self.what, self.day)


def narrow(what: Videos) -> Videos:
    """Float columns as float32: enough for scores, and half the memory of all pairs."""
    columns = {name: column.float() if column.is_floating_point() else column for name, column in vars(what).items()}
    return Videos(**columns)


def in_blocks(world: World, user_id: Tensor, num_videos: int, score: Callable[[Users, slice], Tensor]) -> Tensor:
    """Score users in blocks that fit a cache, with the reserved columns at 0."""
    who = users(world, user_numbers(world, user_id))
    size = max(1, PAIRS_AT_ONCE // num_videos)
    scores_BI = torch.zeros(user_id.numel(), num_videos + NUM_RESERVED, device=user_id.device)
    for start in range(0, user_id.numel(), size):
        rows = slice(start, start + size)
        scores_BI[rows, NUM_RESERVED:] = score(who[rows], rows)
    return scores_BI
