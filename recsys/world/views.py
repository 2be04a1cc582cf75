"""How often a video is watched over its life, in expectation: a closed form over all users of a world.

A video of draw probability p is examined attention * p times a visit, as long as p is small beside 1 over the depth
of a visit: so for all but the head of small worlds. Its views are that, times relevance, over all visits while it
holds its place. The mean over users needs the law of taste alone: a user has `num_favourites` favourites drawn with
known probabilities and a flat Dirichlet law of their weights, so that the weight of a topic with n of them has the
law Beta(n, num_favourites - n); biases are normal. Gauss quadrature over both; drift is left out, since its mean is 1.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from scipy.special import roots_hermitenorm, roots_jacobi
from torch import Tensor

from recsys.world.behaviour import (
    interest,
    length,
    log_taste,
    session_rate,
)
from recsys.world.constants import World
from recsys.world.oracle import attention, over_intents, usual_evening
from recsys.world.population import COUNTRIES, LANGUAGES, SPEECHLESS, Videos, users

NODES = 4
MOST_FAVOURITES = 4  # of one topic that are told apart
AGED = 1 << 15  # a day by which every video is old


def lifetime_days(world: World) -> float:
    """Days for which a place is held, by the rate at which new videos take places."""
    return (world.num_days + world.fresh_days) * world.num_places / max(world.num_new, 1)


def lifetime_views(world: World, what: Videos) -> Tensor:
    """Expected positives of videos while they hold their place, float64 [N].

    From the upload to the day of being replaced, at the mean number of visits a day; see the module's head.
    """
    mean, tasty = _mean_relevance(world, what)
    days = lifetime_days(world)
    per_day = world.num_new / (world.num_days + world.fresh_days)
    anywhere = world.explore_share + world.burst_share * (1 - world.burst_fresh_share)
    newcomer = world.fresh_share + world.burst_share * world.burst_fresh_share
    p_mean = anywhere / world.num_videos + newcomer / max(per_day, 1) / days + world.popularity_share * what.popularity
    drawn = p_mean * mean + world.taste_share * what.topic_popularity * tasty
    return drawn * float(attention(world).sum()) * _visits_a_day(world) * days


def _visits_a_day(world: World) -> float:
    weekend = (5 + 2 * world.weekend_gain) / 7
    return world.num_users * (1 - world.new_user_share / 2) * world.sessions_per_day * weekend


def topic_shares(world: World) -> Tensor:
    """P(a favourite is topic k), float64 [K]."""
    edges = (torch.arange(world.num_topics + 1, dtype=torch.float64) / world.num_topics) ** (1 / world.topic_skew)
    return edges.diff()


@lru_cache(maxsize=8)
def _weights(num_favourites: int, of_topic: int) -> list[tuple[float, float]]:
    """Nodes (weight, probability) of the total weight of so many favourites."""
    if of_topic == 0:
        return [(0.0, 1.0)]
    if of_topic >= num_favourites:
        return [(1.0, 1.0)]
    x, w = roots_jacobi(NODES, num_favourites - of_topic - 1, of_topic - 1)
    return [(float((1 + a) / 2), float(b / w.sum())) for a, b in zip(x, w, strict=True)]


def _mean_relevance(world: World, what: Videos) -> tuple[Tensor, Tensor]:
    """E[relevance] and E[taste for the topic * relevance] over users, float64 [N] each."""
    J, even = world.num_favourites, world.wander / world.num_topics
    q_first, q_second = (topic_shares(world).to(t.device)[t] for t in (what.topic, what.second_topic))
    speakers = torch.tensor(
        [1.0 if name == SPEECHLESS else sum(row[1] for row in COUNTRIES if row[3] == name) for name in LANGUAGES],
        dtype=torch.float64, device=what.number.device,
    )[what.language]  # fmt: skip
    hermite = list(zip(*roots_hermitenorm(NODES + 1), strict=True))
    total = float(np.sqrt(2 * np.pi))
    context = world.context_gain * length(world, what) * _usual(world)
    mean, tasty = torch.zeros_like(what.duration), torch.zeros_like(what.duration)
    for n, m in product(range(MOST_FAVOURITES + 1), range(2)):
        if n + m > J:
            continue
        chance = _binomial(J, n, q_first) * (_binomial(J - n, 0, q_second) if m == 0 else 1 - (1 - q_second) ** (J - n))
        for (first, a), (second, b) in product(_weights(J, n), _weights(max(J - n, 1), m)):
            share = torch.full_like(mean, (1 - world.wander) * first + even)
            rest = torch.full_like(mean, (1 - world.wander) * second * (1 - first) + even)
            rest = torch.where(what.topic == what.second_topic, share, rest)
            for understood, (x, c) in product((True, False), hermite):
                knows = torch.full_like(mean, float(understood)).bool()
                bias = torch.full_like(mean, world.user_bias_sigma * float(x))
                wanted = interest(
                    world, log_taste(world, share), log_taste(world, rest), knows, bias, what, AGED
                ) + context  # fmt: skip
                relevance = over_intents(world, wanted, share, rest, what)
                p = chance * a * b * float(c) / total * (speakers if understood else 1 - speakers)
                mean += p * relevance
                tasty += p * share * relevance
    return mean, tasty


def _binomial(n: int, k: int, q: Tensor) -> Tensor:
    """P(k of n), the last k that is told apart holding all above it."""
    if k < MOST_FAVOURITES:
        return math.comb(n, k) * q**k * (1 - q) ** (n - k)
    return 1 - sum((_binomial(n, i, q) for i in range(k)), torch.zeros_like(q))


@lru_cache(maxsize=8)
def _usual(world: World) -> float:
    """The mean of `evening` over visits."""
    who = users(world, torch.arange(min(world.num_users, 4096)))
    rate = session_rate(world, who, world.num_days)
    return float((usual_evening(world, who)[0] * rate).sum() / rate.sum())
