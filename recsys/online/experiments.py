"""Two policies against each other in the world: an experiment on groups of users, and the truth that it estimates.

Users do not meet, so that a policy serves its own users as if it were alone, and the truth of an experiment is what all
users would do under either arm, with the same visits and the same noise: common random numbers.

Shapes: A arms (control, treatment), R noise seeds, U users.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl
import torch
from torch import Tensor

from recsys.online.simulator import METRICS, Outcome, simulate
from recsys.online.slates import Policy, update_of
from recsys.world.constants import World


def experiment(
    world: World, policies: Mapping[str, Policy], groups: Tensor, *, users: Tensor | None = None, **options: Any
) -> Outcome:
    """Several policies at once, each serving its own users and learning from them alone.

    Args:
        policies: by the name of their group.
        groups: of each user, int64 [U]: which of the policies, in their order.
        options: of `simulate`.

    Returns: frames with a column `group`; users in the order given, days and rows group by group.
    Raises ValueError: groups that are none, or what `simulate` refuses.
    """
    numbers_U = torch.arange(world.num_users) if users is None else users
    if groups.shape != numbers_U.shape or groups.dtype != torch.int64:
        raise ValueError(f"groups must be int64, one a user: {len(numbers_U)}, got {groups.dtype} {list(groups.shape)}")
    if len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < len(policies):
        raise ValueError(
            f"groups must lie in 0 .. {len(policies) - 1}, got {int(groups.min())} .. {int(groups.max())}: "
            f"policies are {', '.join(policies)}"
        )
    found, places = [], []
    for group, policy in enumerate(policies.values()):
        places.append((groups == group).nonzero()[:, 0].cpu())
        found.append(simulate(world, policy, users=numbers_U[places[-1]], **options))

    def joined(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
        named = zip(frames, policies, strict=True)
        return pl.concat([frame.with_columns(group=pl.lit(name, dtype=pl.String)) for frame, name in named])

    logged = [one.rows for one in found if one.rows is not None]
    return Outcome(
        joined([one.users for one in found])[torch.cat(places).argsort().numpy()],
        joined([one.days for one in found]),
        joined(logged) if len(logged) == len(found) else None,
        {part: sum(one.seconds[part] for one in found) for part in found[0].seconds},
    )


class TrueEffect(NamedTuple):
    """treatment - control over the same users, visits and noise; errors are standard errors over months.

    relative: value / control, with its error to first order. per_user: user_id, effect, the mean over seeds; for a
    ratio what the user adds to it (linearised), so that its mean is the value either way.
    """

    value: float
    error: float
    relative: float
    relative_error: float
    treatment: float
    control: float
    users: int
    seeds: int
    per_user: pl.DataFrame


def true_effect(
    world: World,
    treatment: Policy,
    control: Policy,
    metric: str = "clicks",
    *,
    per: str | None = None,
    noise_seeds: Sequence[int] = range(1, 5),
    **options: Any,
) -> TrueEffect:
    """What changing the policy for everybody does to a metric, by living the same months twice.

    The users are given, only what happens to them is random. Where neither policy learns, a user's months are
    independent of the others', and the error is that of the users' own variances over seeds; otherwise it is that of
    the R values. Policies that learn are copied as they are before every month.

    Args:
        metric: one of METRICS, a user. per: another: the ratio of both sums instead of the mean of users.
        noise_seeds: of the months, at least two, other than the one that policies were trained on.
        options: of `simulate`: days, users, k, reactions, users_at_once, device.

    Raises ValueError: an unknown metric, fewer than two seeds, or what `simulate` refuses.
    """
    for name in (metric, *([] if per is None else [per])):
        if name not in METRICS:
            raise ValueError(f"metric {name} is unknown: choose from {', '.join(METRICS)}")
    if len(set(noise_seeds)) != len(noise_seeds) or len(noise_seeds) < 2:
        raise ValueError(f"noise_seeds must be at least two different ones, got {list(noise_seeds)}")
    learns = any(update_of(policy) is not None for policy in (treatment, control))
    above: list[list[Tensor]] = [[], []]
    below: list[list[Tensor]] = [[], []]
    for seed in noise_seeds:
        for arm, policy in enumerate((control, treatment)):
            own = copy.deepcopy(policy) if update_of(policy) is not None else policy
            lived = simulate(world, own, noise_seed=seed, **options).users
            above[arm].append(_column(lived, metric))
            below[arm].append(torch.ones_like(above[arm][-1]) if per is None else _column(lived, per))
    user_id = lived["user_id"]
    above_ARU, below_ARU = (torch.stack([torch.stack(arm) for arm in both]) for both in (above, below))
    value_A = above_ARU.sum((1, 2)) / below_ARU.sum((1, 2))
    scale_A = below_ARU.mean((1, 2))
    share_ARU = (above_ARU - value_A[:, None, None] * below_ARU) / scale_A[:, None, None]

    def error(share_RU: Tensor) -> float:
        num_seeds, num_users = share_RU.shape
        if learns:
            return math.sqrt(float(share_RU.mean(1).var()) / num_seeds)
        return math.sqrt(float(share_RU.var(0).sum()) / num_seeds) / num_users

    low, high = value_A.tolist()
    effect_U = (share_ARU[1] - share_ARU[0]).mean(0) + (high - low)
    return TrueEffect(
        high - low,
        error(share_ARU[1] - share_ARU[0]),
        high / low - 1 if low else math.nan,
        error(share_ARU[1] / low - share_ARU[0] * high / low**2) if low else math.nan,
        high,
        low,
        len(user_id),
        len(noise_seeds),
        pl.DataFrame({"user_id": user_id, "effect": effect_U.numpy()}),
    )


def _column(frame: pl.DataFrame, name: str) -> Tensor:
    return torch.from_numpy(frame[name].cast(pl.Float64).to_numpy(writable=True))
