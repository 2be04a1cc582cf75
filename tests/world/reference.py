"""The draws of the logging policy, vectorised and one formula at a time: what visit.cu is compared with."""

import torch
from torch import Tensor

from recsys.world import World, behaviour, noise, population
from recsys.world.population import Users


def zipf_place(world: World, u: Tensor, size: int) -> Tensor:
    """The place at which `zipf_cdf` reaches u in (0, 1): int64 in [0, size)."""
    head, power = world.popularity_head * size, 1 - world.popularity_exponent
    if abs(power) < 1e-9:
        x = head * torch.expm1(u * torch.log1p(torch.tensor(size / head, dtype=torch.float64)))
    else:
        x = head * ((1 + u * ((1 + size / head) ** power - 1)) ** (1 / power) - 1)
    return x.long().clamp_(0, size - 1)


def place_of(world: World, topic: Tensor, block: Tensor) -> Tensor:
    """The place of a topic within a block: the inverse of `place_topic`."""
    return block * world.num_topics + (topic - population._rotation(world, block)) % world.num_topics


def holder(world: World, place: Tensor, day: int) -> Tensor:
    """The video that holds each place on this day."""
    successor, since = population._next_day(world, place)
    return torch.where(since <= day, successor, place)


def draw_video(world: World, day: int, who: Users, row: Tensor, keys: Tensor) -> Tensor:
    """One draw of the logging policy for each key (int64 [Z]) and user who[row]."""
    low, high = behaviour.fresh_range(world, day)
    u, v = noise.uniform(keys), noise.uniform(noise.mix(keys))
    video, share = behaviour.bursts(world, day)
    within = ((u - world.explore_share - world.popularity_share) / world.taste_share).clamp(0, 1 - 2**-53)
    topic = behaviour.draw_topic(world, who, row, within)
    of_topic = place_of(world, topic, zipf_place(world, v, world.num_places // world.num_topics))
    edge = torch.tensor([world.explore_share, world.popularity_share, world.taste_share, world.burst_share]).double()
    by_part = (
        (v * high).long(),
        holder(world, zipf_place(world, v, world.num_places), day),
        holder(world, of_topic, day),
        video[torch.searchsorted(share.cumsum(0), v, right=True).clamp(max=len(video) - 1)],
        low + (v * (high - low)).long(),
    )
    return torch.stack(by_part).gather(0, torch.searchsorted(edge.cumsum(0), u, right=True)[None])[0]


def shown(world: World, day: int, who: Users, visits: dict[str, Tensor], visit: int) -> list[int]:
    """The list of one visit: the first different videos of its draws."""
    depth = int(visits["depth"][visit])
    draws = torch.arange(40 * depth + 400)
    keys = noise.extend(noise.extend(visits["key"][visit], behaviour.SHOWN), draws)
    found = draw_video(world, day, who, visits["row"][visit].expand(len(draws)), keys).tolist()
    return list(dict.fromkeys(found))[:depth]
