"""How likely a policy of a world was to show what another policy's log holds: the weights of off-policy evaluation.

A policy is a world: `dataclasses.replace(world, taste_share=..., popularity_share=...)` has the same people and videos
and another mixture of what is shown. A visit's rows are drawn one after the other without replacement, so three
probabilities can be asked for:

    next_propensity   of this video here, given the rows above: exact, and of both policies below the same rows
    exposures         of a video to be seen in a visit, summed over places and over all that may stand above: what the
                      position-based estimator of Li et al. (KDD 2018) needs; within about 1%, as the log oracle is
    draw_probability  of a video to be drawn first

Shapes: Z rows, B users, N videos.
"""

from __future__ import annotations

import polars as pl
import torch
from torch import Tensor

from recsys.schema import ITEM_ID, NUM_RESERVED, USER_ID
from recsys.world.behaviour import probability
from recsys.world.constants import World
from recsys.world.log_oracle import LogOracle
from recsys.world.oracle import RelevanceScorer
from recsys.world.population import DAY_US, drifted, taste, user_numbers, users, video_numbers, videos


def draw_probability(world: World, user_id: Tensor, item_id: Tensor, day: int) -> Tensor:
    """p(video) of all pairs on a day before anything is excluded, float64 [B, N]; sums to 1 over all videos."""
    who = drifted(world, users(world, user_numbers(world, user_id)), day)
    what = videos(world, video_numbers(world, item_id))
    return probability(world, day, taste(world, who, what.topic.expand(len(user_id), -1)), what)


def next_propensity(world: World, rows: pl.DataFrame) -> Tensor:
    """P(this video here | rows above in the visit) by the policy of `world`, float64 [Z].

    Args:
        rows: whole visits of a log of a world of the same people: user_id, item_id, timestamp, session_id, position;
            a visit's rows together and in order.

    Raises ValueError: a visit that is torn or does not start at position 0, or an id that is not of this world.
    """
    first_Z = first_rows(rows)
    user_Z, item_Z = (
        torch.from_numpy(rows[name].cast(pl.Int64).to_numpy(writable=True)) for name in (USER_ID, ITEM_ID)
    )
    time_Z = torch.from_numpy(rows["timestamp"].dt.epoch("us").to_numpy(writable=True))
    day_Z = (time_Z[first_Z] - world.start_us) // DAY_US  # a visit is of the day on which it starts
    number_Z, video_Z = user_numbers(world, user_Z), video_numbers(world, item_Z)
    p_Z = torch.empty(rows.height, dtype=torch.float64)
    for day in day_Z.unique().tolist():
        of_day = (day_Z == day).nonzero()[:, 0]
        known, which = number_Z[of_day].unique(return_inverse=True)
        who, what = drifted(world, users(world, known), day)[which], videos(world, video_Z[of_day])
        p_Z[of_day] = probability(world, day, taste(world, who, what.topic), what)
    return p_Z / (1 - above(p_Z, first_Z))


def first_rows(rows: pl.DataFrame) -> Tensor:
    """The row at which each row's visit starts, int64 [Z].

    Raises ValueError: rows of a visit that are not together, in order and from position 0.
    """
    position_Z = rows["position"].cast(pl.Int64).to_numpy()
    session_Z = rows["session_id"].to_numpy()
    torn_Z = position_Z != 0
    torn_Z[1:] &= (session_Z[1:] != session_Z[:-1]) | (position_Z[1:] != position_Z[:-1] + 1)
    if torn_Z.any():
        row = int(torn_Z.argmax())
        raise ValueError(
            f"position {position_Z[row]} of session_id {session_Z[row]} (row {row}) does not follow the row above it: "
            "keep whole visits, and sort by session_id and position"
        )
    return torch.arange(rows.height) - torch.from_numpy(position_Z.copy())


def above(value_Z: Tensor, first_Z: Tensor) -> Tensor:
    """Sums over the rows above in the same visit, float64 [Z]."""
    before_Z = torch.cat([value_Z.new_zeros(1), value_Z.cumsum(0)[:-1]])
    return before_Z - before_Z[first_Z]


def next_expectation(p_Z: Tensor, value_Z: Tensor, mean_Z: Tensor, first_Z: Tensor) -> Tensor:
    """The mean of a value of the video that a policy draws next, given the rows above, float64 [Z].

    Args:
        p_Z, value_Z: `draw_probability` and value of the logged video. mean_Z: sum of p * value over all videos.
        first_Z: see `first_rows`.
    """
    return (mean_Z - above(p_Z * value_Z, first_Z)) / (1 - above(p_Z, first_Z))


def exposures(world: World, user_id: Tensor, item_id: Tensor, day: int) -> Tensor:
    """P(a visit of the day reaches, shows and examines the video) of all pairs, float64 [B, N]; 0 before signing up.

    By the log oracle of the day: expected positives a visit over relevance.
    """
    midnight = world.start_us + day * DAY_US
    item_ids = torch.cat([item_id.new_zeros(NUM_RESERVED), item_id])
    # A microsecond after midnight the day's bursts are known.
    oracle = LogOracle(world, item_ids, midnight + 1, midnight + DAY_US)
    batch = {"user_key": user_id}
    positives_BN = -torch.log1p(-oracle.score(batch)[:, NUM_RESERVED:].double())
    relevance_BN = RelevanceScorer(world, item_ids, midnight).score(batch)[:, NUM_RESERVED:].double()
    visits_B1 = oracle.visits(users(world, user_numbers(world, user_id)))
    return torch.where(visits_B1 > 0, positives_BN / (relevance_BN * visits_B1), 0.0)
