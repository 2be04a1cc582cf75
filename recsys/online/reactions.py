"""How users react to what they were shown: they come back or not, tire of topics, stay longer or leave.

The log's users do none of this. All gains are 0 by default, and then nothing changes. With day d, user u:

returning   Visits of the day are Poisson of rate * exp(returning * s), s = (m - e) / (m + e) in [-1, 1], with
            e    positives of a visit that u expects: what the logging policy brings a user of this bias;
            m    those that u had: (sum of w * positives + PRIOR * e) / (sum of w * visits + PRIOR) over earlier days,
                 w = exp(-(d - 1 - day) / memory). Twice what is expected gives s = 1/3.
            The same uniform is turned into the count, so that more satisfied users make the same visits and further.
fatigue     A video's interest (log-odds of a click) falls by fatigue * sum over its two topics of
            share * (1 - exp(-f / SATIATED)), f the impressions of the topic on earlier days, each counted by the
            video's share of the topic and by exp(-(d - 1 - day) / recovery).
patience    A visit that would scroll to a depth ends after the first n positions with
            n >= depth + patience * positives - impatience * (others among the n).

Returning and fatigue hold for whole days: what a day brings is felt from the next. Memory: 16 bytes a user with
`returning`, 4 bytes a user and topic with `fatigue`. Shapes: B users of a block, U users, K topics, Z impressions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import Tensor

from recsys.world import logs, population
from recsys.world.behaviour import Columns
from recsys.world.constants import World
from recsys.world.population import Users, videos

PRIOR = 5.0  # visits that the expectation counts as
SATIATED = 20.0  # impressions of a topic after which 63% of what can be lost is lost
_USERS, _DAYS = 4096, 7  # from which is known what the logging policy brings


@dataclass(frozen=True)
class Reactions:
    """How strongly users react; see the module's head. All gains at 0: not at all.

    Raises ValueError: a gain below 0 or not finite, impatience of 1 or more, a time that is not above 0.
    """

    returning: float = 0.0
    memory: float = 14.0  # days
    fatigue: float = 0.0
    recovery: float = 7.0  # days
    patience: float = 0.0  # positions that a positive adds
    impatience: float = 0.0  # positions that each other one takes

    def __post_init__(self) -> None:
        for field in fields(self):
            value, is_time = getattr(self, field.name), field.name in ("memory", "recovery")
            if not math.isfinite(value) or value < 0 or (is_time and value == 0):
                raise ValueError(f"{field.name} must be {'above' if is_time else 'at least'} 0 and finite, got {value}")
        if self.impatience >= 1:
            raise ValueError(f"impatience must be below 1, got {self.impatience}")

    @property
    def of_depth(self) -> bool:
        """Whether the length of a visit depends on what it is shown."""
        return self.patience > 0 or self.impatience > 0


class Feelings:
    """What U users remember of the days before, updated a day at a time; k: positions that are shown at most."""

    def __init__(self, world: World, reactions: Reactions, num_users: int, k: int, device: torch.device | str) -> None:
        self.world, self.reactions, self.k = world, reactions, k
        if reactions.returning > 0:
            self.positives_U, self.visits_U = (
                torch.zeros(num_users, dtype=torch.float64, device=device) for _ in range(2)
            )
        if reactions.fatigue > 0:
            self.shown_UK = torch.zeros(num_users, world.num_topics, device=device)

    def coming(self, who: Users, at: slice) -> Users:
        """Users of the rows `at` with the rate at which they now come."""
        if self.reactions.returning == 0:
            return who
        expected_B = expectation(self.world, who.bias, self.k)
        had_B = (self.positives_U[at] + PRIOR * expected_B) / (self.visits_U[at] + PRIOR)
        satisfied_B = (had_B - expected_B) / (had_B + expected_B)
        return replace(who, rate=who.rate * torch.exp(self.reactions.returning * satisfied_B))

    def tired(self, at: slice) -> Tensor | None:
        """What topics have lost of the interest of the rows `at`, float64 [B, K]."""
        if self.reactions.fatigue == 0:
            return None
        return self.reactions.fatigue * -torch.expm1(-self.shown_UK[at].double() / SATIATED)

    def depth(self, depth_S: Tensor, log: Columns) -> Tensor:
        """How far visits go that would scroll to depth_S, int64 [S], by the labels of all that could be shown."""
        session, n_Z = log["session"], log["position"].long() + 1
        count_S = torch.bincount(session, minlength=len(depth_S))
        hits_Z = torch.nn.functional.pad(log["label"].long().cumsum(0), (1, 0))
        hits_Z = hits_Z[1:] - hits_Z[count_S.cumsum(0) - count_S][session]
        wanted_Z = depth_S[session] + self.reactions.patience * hits_Z - self.reactions.impatience * (n_Z - hits_Z)
        ended = n_Z >= wanted_Z
        return count_S.scatter_reduce(0, session[ended], n_Z[ended], "amin")

    def remember(self, at: slice, visits_B: Tensor, log: Columns) -> None:
        """Add the day of the rows `at`: visits a user, and what they were shown (row: of them)."""
        if self.reactions.returning > 0:
            kept = math.exp(-1 / self.reactions.memory)
            hits_B = torch.zeros_like(self.positives_U[at]).index_add_(0, log["row"], log["label"].double())
            self.positives_U[at] = kept * self.positives_U[at] + hits_B
            self.visits_U[at] = kept * self.visits_U[at] + visits_B
        if self.reactions.fatigue > 0:
            what, num_topics = videos(self.world, log["video"]), self.world.num_topics
            shown_BK = self.shown_UK[at].mul_(math.exp(-1 / self.reactions.recovery)).view(-1)
            for topic, share in ((what.topic, 1 - what.second_share), (what.second_topic, what.second_share)):
                shown_BK.index_add_(0, log["row"] * num_topics + topic, share.float())


def expectation(world: World, bias_B: Tensor, k: int) -> Tensor:
    """Positives that users of these biases expect of a visit of at most k positions, float64 [B]."""
    logit, scale = _usual(world, k)
    gain = world.watch_gain if world.is_feed else 1.0
    return scale * torch.sigmoid(logit + gain * bias_B)


@lru_cache(maxsize=8)
def _usual(world: World, k: int) -> tuple[float, float]:
    """Of the logging policy: log-odds of a positive, and the factor that makes users expect on average what it brings
    a visit, over the first users and days."""
    numbers = range(min(world.num_users, _USERS))
    positives = impressions = visits = 0
    for rows in logs.stream(world, range(min(world.num_days, _DAYS)), numbers, workers=1):
        near = rows["position"] < k
        positives += int(rows["label"][near].sum())
        impressions += int(near.sum())
        visits += int((rows["position"] == 0).sum())
    if not 0 < positives < impressions:
        raise ValueError(f"world {world.name}: {positives} of {impressions} impressions are positive: no expectation")
    logit = math.log(positives / (impressions - positives))
    who = population.users(world, torch.arange(len(numbers)))
    gain = world.watch_gain if world.is_feed else 1.0
    mean = (who.rate * torch.sigmoid(logit + gain * who.bias)).sum() / who.rate.sum()
    return logit, positives / visits / float(mean)
