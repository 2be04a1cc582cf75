from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import preset

from recsys.world import World, logs, views
from recsys.world.oracle import relevance_BN
from recsys.world.population import tastes, users, videos


def test_means_over_users_are_those_of_the_users(tiny: World) -> None:
    world = replace(tiny, taste_drift=0.0, num_users=10_000)
    who, what = users(world, torch.arange(10_000)), videos(world, torch.arange(0, 2000, 20))
    every = tastes(world, who)
    share = every[:, what.topic]
    relevance = relevance_BN(world, who, every.float(), what, views.AGED).double()
    mean, tasty = views._mean_relevance(world, what)
    for seen, stated in ((relevance.mean(0), mean), ((share * relevance).mean(0), tasty)):
        assert float((seen / stated).mean()) == pytest.approx(
            1, abs=0.04
        )  # a second topic with two favourites counts as one
        assert float((seen / stated).std()) < 0.15


def test_topic_shares(tiny: World) -> None:
    seen = torch.bincount(users(tiny, torch.arange(2000)).favourite.flatten(), minlength=tiny.num_topics)
    seen = seen / seen.sum()
    assert torch.allclose(seen.double(), views.topic_shares(tiny), atol=0.01)


def test_views_of_the_youtube_preset_are_distributed_as_published() -> None:
    """Zhou et al. and "Dialing for Videos" (McGrady et al. 2023): most videos are hardly seen, few hold it all."""
    world = preset("youtube")
    assert world.explore_share <= 0.001
    number = torch.randint(0, world.num_videos, (20_000,), generator=torch.Generator().manual_seed(1))
    count = views.lifetime_views(world, videos(world, number)).numpy()
    assert (count < 100).mean() == pytest.approx(0.65, abs=0.03)
    assert (count < 1000).mean() == pytest.approx(0.87, abs=0.03)
    assert (count > 10_000).mean() == pytest.approx(0.037, abs=0.005)
    assert count[count > 10_000].sum() / count.sum() == pytest.approx(0.94, abs=0.03)
    slope = -np.log10((count > 10_000).mean() / (count > 100).mean()) / 2
    assert 0.43 < slope < 0.55


@pytest.mark.slow
def test_the_log_of_the_youtube_preset_agrees_with_the_views() -> None:
    """Clicks of a million rows by expected views: the share of each class of videos."""
    world = preset("youtube")
    rows = logs.impressions(world, 12, users(world, torch.arange(60_000)))
    clicked = rows["video"][rows["label"] == 1]
    # Numbers of old videos are places: the head, where most views are, is sampled apart.
    random, head = torch.Generator().manual_seed(2), world.num_places // 50
    strata = [torch.randint(low, high, (15_000,), generator=random) for low, high in ((0, head), (head, 10**8))]
    weight = np.repeat([head, 10**8 - head], 15_000)
    every = views.lifetime_views(world, videos(world, torch.cat(strata))).numpy()
    seen = views.lifetime_views(world, videos(world, clicked)).numpy()
    for low, high in ((0, 1e4), (1e4, 1e6), (1e6, 1e9)):
        stated = np.average((every >= low) & (every < high), weights=weight * every)
        share = ((seen >= low) & (seen < high)).mean()
        assert share == pytest.approx(stated, abs=0.03), (low, high)
