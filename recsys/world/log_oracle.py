"""The log oracle: what a log will show, for who knows the people and the policy but not the noise.

How the log oracle integrates. Visits are Poisson, so with x the expected number of visits in which the
video is clicked, P = 1 - exp(-x) exactly, and x = sum over days of rate * attention(p) * relevance, where
relevance is averaged over the visit's intent (the policy does not know it) and attention(p) = E[reach *
examination at its position] for a video of draw probability p. Drawing different videos one after the other
is the order of independent exponential arrivals of rates p, so attention(p) = integral of p exp(-p t)
E[g(1 + N(t))] dt with N(t) the number of other videos arrived by t: a Poisson binomial. Its expectation is
taken at the Poisson one with the corrections -sum(q^2) D^2 / 2 + sum(q^3) D^3 / 3 + sum(q^2)^2 D^4 / 8
(Barbour, Holst and Janson, Poisson Approximation, 1992), the integral as a Gauss-Legendre sum over log(1 + t), and
attention(p) / p from a grid of p. Against redrawn months the sum of the probabilities is within 2%.

Shapes: B users, I items, N videos, K topics, J nodes, G and S grids, P positions, R differences.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from recsys.schema import NUM_RESERVED, UserBatch
from recsys.world.behaviour import (
    Columns,
    burst_probability,
    bursts,
    evening,
    examination,
    fresh_range,
    hour_cdf,
    intent_interest,
    is_fresh,
    positive,
    session_rate,
)  # fmt: skip
from recsys.world.constants import World
from recsys.world.oracle import (
    PAIRS_AT_ONCE,
    When,
    attention,
    in_blocks,
    microseconds,
    narrow,
    plain_interest,
    relevance_BN,
)
from recsys.world.population import DAY_US, Users, Videos, drifted, tastes, user_numbers, users, video_numbers, videos

NODES = 64  # of the integral over t
ORDER = 7  # differences of g that the corrections need
GRID = 64  # points over p, and over the taste for a topic
LEAST_PROBABILITY = 1e-9


class LogOracle:
    """Ranks by P(at least one click in [cut, end) under the logging policy), knowing the people and the policy
    but not the noise.

    A visit counts by its start. Videos that went viral before the cut are known; bursts to come are spread over all
    that they could hit. Approximations beside those of the module's head: taste, freshness and the number of other
    videos arrived by t are those of one day, the middle of the window.

    Args:
        item_ids: int64 [num_items], the raw id of every item index; the first two are ignored.
        cut, end: the test window; end defaults to the end of the month.

    Raises ValueError: an empty window, or an id that is not of this world.
    """

    def __init__(self, world: World, item_ids: Tensor, cut: When, end: When | None = None) -> None:
        self.world = world
        month_end = world.start_us + world.num_days * DAY_US
        low = max(microseconds(cut), world.start_us)
        high = min(month_end if end is None else microseconds(end), month_end)
        if low >= high:
            raise ValueError(
                f"the test window [{cut}, {end}) holds no moment of world {world.name}, which lasts "
                f"from {world.start} for {world.num_days} days"
            )
        days = range((low - world.start_us) // DAY_US, (high - 1 - world.start_us) // DAY_US + 1)
        self.window = (low, high)
        self.days = days
        self.middle = days[len(days) // 2]
        # From this day on bursts are unknown: they break out at midnight.
        self.unknown = days[0] + int(low > world.start_us + days[0] * DAY_US)
        self.what = narrow(videos(world, video_numbers(world, item_ids[NUM_RESERVED:])))

        self.viral_N = _viral(world, days, self.unknown, self.what.number)

        # A video waits, holds a place, holds one and is fresh, or has lost it: by state the days and the videos.
        device = item_ids.device
        day = torch.tensor(list(days), device=device)[:, None]
        there = self.what.upload_day <= day
        holding = there & (day < self.what.replaced_day)
        fresh = torch.stack([is_fresh(world, d, self.what.number) for d in days])
        self.states = []
        for in_state_DI, holds, new in (
            (there & ~holding, False, False),
            (holding & ~fresh, True, False),
            (holding & fresh, True, True),
        ):
            columns = in_state_DI.any(0).nonzero()[:, 0]
            if columns.numel():
                base_N, slope_N = _draw(world, self.middle, self.what[columns], holds, new)
                base_N = (base_N + self.viral_N[columns]).float()
                days_DN = in_state_DI[:, columns].float()
                self.states.append((columns, days_DN, base_N, slope_N, self.what.topic[columns]))

        self.t_J, self.dt_J = _nodes(world, device)
        g = torch.cat([attention(world), torch.zeros(ORDER, dtype=torch.float64)])
        steps = [g]
        for _ in range(ORDER):
            steps.append(steps[-1].diff())
        self.steps_PR = torch.stack([step[: world.max_depth] for step in steps], 1).to(device)
        self.p_G = torch.logspace(np.log10(LEAST_PROBABILITY), 0, GRID, dtype=torch.float64, device=device)
        self.share_S = _shares(world, device)
        self.arrived_KSJ3 = _arrived_by_topic(world, days, self.unknown, device)

    def score(self, batch: UserBatch) -> Tensor:
        """scores_BI from batch["user_key"], the raw user ids: the probability, float32 [B, num_items]."""
        return in_blocks(self.world, batch["user_key"], self.what.number.numel(), lambda who, rows: self._block(who))

    __call__ = score

    def next_in_visit(self, user_id: Tensor, intents_BK: Tensor) -> Tensor:
        """scores_BI of a further positive in a visit whose intent is k with probability intents_BK[:, k], float32
        [B, num_items]: see `intent_posterior`. With the user's taste as intents, the order is that of `score`."""
        return in_blocks(
            self.world, user_id, self.what.number.numel(), lambda who, rows: self._block(who, intents_BK[rows].float())
        )

    def visits(self, who: Users) -> Tensor:
        """Expected visits that start in the window, by day: float64 [B, days]."""
        world, (low, high) = self.world, self.window
        cdf = hour_cdf(world).to(who.number.device)[who.peak_hour]
        rates = []
        for day in self.days:
            midnight = world.start_us + day * DAY_US
            share = _before(cdf, (high - midnight) / DAY_US) - _before(cdf, (low - midnight) / DAY_US)
            rates.append(session_rate(world, who, day) * share)
        return torch.stack(rates, 1)

    def _block(self, who: Users, intents_BK: Tensor | None = None) -> Tensor:
        share_BK = tastes(self.world, drifted(self.world, who, self.middle))
        visits_BD = self.visits(who).float()
        attention_BG = self._attention_per_probability(share_BK)
        share_BK = share_BK.float()
        expected_BI = torch.zeros(who.number.numel(), self.what.number.numel(), device=who.number.device)
        for columns, days_DN, base_N, slope_N, topic_N in self.states:
            p_BN = base_N + share_BK[:, topic_N] * slope_N
            below_BN, part_BN = _on_grid(p_BN, self.p_G)
            low_BN, high_BN = attention_BG.gather(1, below_BN), attention_BG.gather(1, below_BN + 1)
            expected_BI[:, columns] += p_BN * torch.lerp(low_BN, high_BN, part_BN) * (visits_BD @ days_DN)
        return -torch.expm1(-expected_BI * relevance_BN(self.world, who, share_BK, self.what, self.middle, intents_BK))

    def _attention_per_probability(self, share_BK: Tensor) -> Tensor:
        """attention(p) / p of each user on the grid of p, float32 [B, G]."""
        below_BK, part_BK = _on_grid(share_BK, self.share_S)
        topic = torch.arange(self.world.num_topics, device=share_BK.device)
        low, high = self.arrived_KSJ3[topic, below_BK], self.arrived_KSJ3[topic, below_BK + 1]
        mean_BJ, square_BJ, cube_BJ = torch.lerp(low, high, part_BK[..., None, None]).sum(1).unbind(2)

        n_P = torch.arange(self.world.max_depth, dtype=torch.float64, device=mean_BJ.device)
        log_pmf_BJP = n_P * torch.log(mean_BJ)[..., None] - mean_BJ[..., None] - torch.lgamma(n_P + 1)
        g_BJR = torch.exp(log_pmf_BJP) @ self.steps_PR
        second, third, fourth = -square_BJ / 2, cube_BJ / 3, square_BJ**2 / 8
        e_GJ = torch.exp(-self.p_G[:, None] * self.t_J) * self.dt_J
        q_GJ = -torch.expm1(-self.p_G[:, None] * self.t_J)
        attention_BG = torch.zeros(share_BK.shape[0], GRID, dtype=torch.float64, device=share_BK.device)
        for r in range(ORDER - 3):  # without the video itself: 1 / (1 + q D) = 1 - q D + q^2 D^2 - ...
            near = g_BJR[..., r] + second * g_BJR[..., r + 2]
            near = near + third * g_BJR[..., r + 3] + fourth * g_BJR[..., r + 4]
            attention_BG += near @ (e_GJ * (-q_GJ) ** r).T
        return attention_BG.float()


def intent_posterior(world: World, day: int, rows: Columns, query: Tensor) -> Tensor:
    """What the rows above say of a visit's intent: P(intent = k | labels above), float64 [Q, K], by Bayes' rule.

    The policy does not know the intent, so that only positives and their absence speak, and a video speaks of its two
    topics alone.

    Args:
        rows: `logs.impressions` of the day; query: int64 [Q], rows whose visit is asked about, as of before them.
    """
    above = query - rows["position"][query].long()  # the first row of the visit
    count = query - above
    owner = torch.repeat_interleave(count)
    row = above[owner] + torch.arange(owner.numel(), device=query.device) - (count.cumsum(0) - count)[owner]

    who = drifted(world, users(world, user_numbers(world, rows["user_id"][query])), day)
    share_QK = tastes(world, who)
    what = videos(world, rows["video"][row])
    first, second = share_QK[owner, what.topic], share_QK[owner, what.second_topic]
    hour = (rows["timestamp"][above][owner] - world.start_us) % DAY_US / 3_600_000_000
    context = evening(hour.double(), who.country[owner])
    wanted = plain_interest(world, who.bias[owner], who.country[owner], first, second, what, day, context)
    examined = examination(world).to(query.device)[rows["position"][row].long()]

    def log_likelihood(topic: Tensor | None) -> Tensor:
        lift = 0.0 if topic is None else intent_interest(world, topic, what)
        p = positive(world, wanted + lift, what) * examined
        return torch.log(torch.where(rows["label"][row] == 1, p, 1 - p))

    other = log_likelihood(None)
    log_QK = torch.log(share_QK).flatten()
    same = what.topic == what.second_topic
    log_QK.index_add_(0, owner * world.num_topics + what.topic, log_likelihood(what.topic) - other)
    extra = torch.where(same, 0.0, log_likelihood(what.second_topic) - other)
    log_QK.index_add_(0, owner * world.num_topics + what.second_topic, extra)
    return torch.softmax(log_QK.view(-1, world.num_topics), 1)


def _draw(world: World, day: int, what: Videos, holds: Tensor | bool, new: Tensor | bool) -> tuple[Tensor, Tensor]:
    """`probability` on a day, without bursts, as base + slope * taste for the topic, float32 [N] each."""
    low, high = fresh_range(world, day)
    base = world.explore_share / high + new * (world.fresh_share / max(high - low, 1))
    return (
        base + holds * world.popularity_share * what.popularity,
        holds * world.taste_share * what.topic_popularity,
    )


def _viral(world: World, days: range, unknown: int, number: Tensor) -> Tensor:
    """Share of the draws that bursts give to videos by number, the mean over days, [N]; bursts from the day `unknown`
    on may hit any video."""
    viral = torch.zeros(number.shape, dtype=torch.float64, device=number.device)
    if world.burst_share == 0:
        return viral
    for day in days:
        viral += burst_probability(world, day, number, since=unknown)
        to_come = 1 - float(bursts(world, day, unknown)[1].sum())
        low, high = fresh_range(world, day)
        anywhere = 1 - world.burst_fresh_share * (high > low)
        viral += to_come * anywhere / high
        viral += is_fresh(world, day, number) * (to_come * (1 - anywhere) / max(high - low, 1))
    return viral * (world.burst_share / len(days))


def _nodes(world: World, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the integral over t, float64 [J] each."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    longest = float(np.log1p(30.0 * world.max_depth))
    s = torch.tensor((x + 1) / 2 * longest)
    return torch.expm1(s).to(device), (torch.exp(s) * torch.tensor(w) * longest / 2).to(device)


def _shares(world: World, device: torch.device) -> Tensor:
    """The grid over the taste for a topic, float64 [S]."""
    least = min(world.wander / world.num_topics, 0.5)
    return torch.logspace(np.log10(least), 0, GRID, dtype=torch.float64, device=device)


@lru_cache(maxsize=2)  # for all models that are measured on one split; of world youtube one is 200 MB
def _arrived_by_topic(world: World, days: range, unknown: int, device: torch.device) -> Tensor:
    """Sums over the videos of a topic of q, q^2 and q^3, with q = 1 - exp(-p t), by the user's share of interest
    for the topic and by t: float64 [K, S, J, 3]."""
    day = days[len(days) // 2]
    t_J, _ = _nodes(world, device)
    what = videos(world, torch.arange(world.num_videos, device=device))
    there = what.upload_day <= day
    base_N, slope_N = _draw(world, day, what, there & (day < what.replaced_day), is_fresh(world, day, what.number))
    base_N = base_N + _viral(world, days, unknown, what.number)
    tables = []
    for share in _shares(world, device):
        p_N = there * (base_N + share * slope_N)
        sums = torch.zeros(3, world.num_topics, NODES, dtype=torch.float64, device=device)
        for rows in range(0, world.num_videos, PAIRS_AT_ONCE // NODES):
            part = slice(rows, rows + PAIRS_AT_ONCE // NODES)
            q_NJ = -torch.expm1(-p_N[part, None] * t_J)
            square_NJ = q_NJ * q_NJ
            for power, values_NJ in enumerate((q_NJ, square_NJ, square_NJ * q_NJ)):
                sums[power].index_add_(0, what.topic[part], values_NJ)
        tables.append(sums.movedim(0, 2))
    return torch.stack(tables, 1)


def _on_grid(values: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Where values lie on a grid even in the logarithm: the point below, and the part of the way to the next."""
    first, last = float(grid[0].log()), float(grid[-1].log())
    place = (torch.log(values) - first).mul_((grid.numel() - 1) / (last - first)).clamp_(0, grid.numel() - 1)
    below = place.long().clamp_(max=grid.numel() - 2)
    return below, place - below


def _before(cdf: Tensor, part: float) -> Tensor:
    """Share of the visits of a day that start in its first `part`, [B]; cdf: [B, 25]."""
    hour = min(max(part, 0.0), 1.0) * 24
    whole = min(int(hour), 23)
    return cdf[:, whole] + (hour - whole) * (cdf[:, whole + 1] - cdf[:, whole])
