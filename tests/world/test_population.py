from dataclasses import fields, replace

import pytest
import reference
import torch
from conftest import PRESETS
from scipy import stats

from recsys.world import World, population
from recsys.world.population import users, videos


def test_every_preset_is_a_world() -> None:
    import yaml

    for path in PRESETS.glob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        del values["_target_"]
        assert World(**values).name == path.stem


def test_attributes_are_functions_of_seed_and_number(tiny: World) -> None:
    some = torch.tensor([1999, 3, 700, 3])
    for table, of in ((users(tiny, torch.arange(2000)), users), (videos(tiny, torch.arange(2000)), videos)):
        alone, other = of(tiny, some), of(replace(tiny, seed=1), some)
        for field in fields(table):
            assert torch.equal(getattr(alone, field.name), getattr(table, field.name)[some]), field.name
        assert not torch.equal(getattr(alone, fields(table)[1].name), getattr(other, fields(table)[1].name))
        same = of(replace(tiny, noise_seed=1), some)
        assert all(torch.equal(getattr(alone, f.name), getattr(same, f.name)) for f in fields(table))
    # The table of all videos is a short cut, not another arithmetic.
    direct, table = population._videos(tiny, some), videos(tiny, some)
    assert all(torch.allclose(getattr(direct, f.name), getattr(table, f.name)) for f in fields(table))


def test_ids_are_a_bijection_that_says_nothing(tiny: World) -> None:
    number = torch.arange(2000)
    for ids_of, numbers_of in (
        (population.user_ids, population.user_numbers),
        (population.video_ids, population.video_numbers),
    ):
        ids = ids_of(tiny, number)
        assert ids.unique().numel() == 2000
        assert ids.min() >= 0
        assert torch.equal(numbers_of(tiny, ids), number)
        assert torch.equal(ids_of(tiny, number[5:9]), ids[5:9])
        assert abs(stats.spearmanr(number, ids).statistic) < 0.1
        assert not torch.equal(ids, ids_of(replace(tiny, seed=1), number))
    place = videos(tiny, number).place
    assert abs(stats.spearmanr(place, population.video_ids(tiny, number)).statistic) < 0.1
    stranger = torch.tensor([int(population.user_ids(tiny, torch.tensor([1]))[0]), 17])
    with pytest.raises(ValueError, match=r"user_id 17 \(row 1\) is not of this world"):
        population.user_numbers(tiny, stranger)
    with pytest.raises(ValueError, match="item_id -1"):
        population.video_numbers(tiny, torch.tensor([-1]))


def test_places_and_topics_fit(tiny: World) -> None:
    place = torch.arange(tiny.num_places)
    topic = population.place_topic(tiny, place)
    assert torch.equal(reference.place_of(tiny, topic, place // tiny.num_topics), place)
    assert (torch.bincount(topic) == tiny.num_places // tiny.num_topics).all()
    old = videos(tiny, place)
    assert float(old.popularity.sum()) == pytest.approx(1, abs=1e-12)
    within = torch.zeros(tiny.num_topics, dtype=torch.float64).index_add_(0, old.topic, old.topic_popularity)
    assert torch.allclose(within, torch.ones_like(within))
    assert (old.popularity[:-1] >= old.popularity[1:]).all()


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.3])
def test_drawn_places_follow_their_probabilities(tiny: World, exponent: float) -> None:
    world = replace(tiny, popularity_exponent=exponent)
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    share = torch.bincount(reference.zipf_place(world, u, 300), minlength=300) / 400_000
    edges = population.zipf_cdf(world, torch.arange(301), 300)
    assert torch.allclose(share.double(), edges.diff(), atol=6e-6)


@pytest.mark.parametrize("share", [0.1, 0.33, 0.45])
def test_each_place_has_one_holder_every_day(tiny: World, share: float) -> None:
    world = replace(tiny, new_video_share=share)
    every = videos(world, torch.arange(world.num_videos))
    assert world.uploaded_by(world.num_days - 1) == world.num_new
    for day in (0, 1, 15, world.num_days - 1):
        held = reference.holder(world, torch.arange(world.num_places), day)
        holds = (every.upload_day <= day) & (day < every.replaced_day)
        assert torch.equal(held.sort().values, every.number[holds])
        assert torch.equal(every.place[held], torch.arange(world.num_places))
        assert world.uploaded_by(day) == int((every.upload_day[world.num_places :] <= day).sum())
    assert (every.upload_day[: world.num_places] < -world.fresh_days).all()


def test_taste_is_a_distribution(tiny: World) -> None:
    who = users(tiny, torch.arange(50))
    topics = torch.arange(tiny.num_topics)
    share = population.taste(tiny, who, topics.expand(50, -1))
    assert torch.allclose(share.sum(1), torch.ones(50, dtype=torch.float64))
    assert torch.equal(population.taste(tiny, who, topics[7].expand(50)), share[:, 7])
    assert share.max(1).values.median() > 0.2


def test_users_are_unequal(tiny: World) -> None:
    who = users(tiny, torch.arange(2000))
    assert float(who.rate.mean()) == pytest.approx(tiny.sessions_per_day, rel=0.07)
    top = who.rate.sort(descending=True).values
    assert 0.2 < float(top[:200].sum() / top.sum()) < 0.5
    assert float((who.sign_up_day >= 0).double().mean()) == pytest.approx(tiny.new_user_share, abs=0.02)
    assert int(who.sign_up_day.max()) < tiny.num_days


def test_attributes_of_a_huge_world_need_no_table(tiny: World) -> None:
    world = replace(tiny, num_users=1_300_000_000, num_videos=100_000_000, num_topics=2000)
    who = users(world, torch.tensor([0, 1_299_999_999]))
    last = torch.tensor([0, 5, world.num_places, 99_999_999])
    what = videos(world, last)
    assert torch.equal(population.video_numbers(world, population.video_ids(world, last)), last)
    assert torch.equal(population.user_numbers(world, population.user_ids(world, who.number)), who.number)
    assert (what.upload_day[2:] >= -world.fresh_days).all()
    assert torch.equal(reference.holder(world, what.place[2:], 30), last[2:])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_users", 0, "num_users must be greater than 0"),
        ("num_videos", -5, "num_videos must be greater than 0"),
        ("num_users", 2.5, "num_users must be a whole number"),
        ("num_users", 1 << 31, "at most 2\\*\\*31 users"),
        ("num_topics", 5000, "num_topics=5000 is more than world.num_videos=2000"),
        ("num_topics", 1500, "at least twice"),
        ("max_depth", 600, "at most a quarter"),
        ("sessions_per_day", -1.0, "sessions_per_day must be greater than 0"),
        ("sessions_per_day", float("nan"), "sessions_per_day must be"),
        ("click_bias", float("inf"), "click_bias must be a finite number"),
        ("click_bias", "low", "click_bias must be a number"),
        ("new_user_share", 1.5, "must lie in \\[0, 1\\]"),
        ("new_video_share", 0.9, "must lie in \\[0, 0.5\\)"),
        ("new_video_share", -0.1, "must lie in \\[0, 0.5\\)"),
        ("taste_share", 0.2, "must add up to 1"),
        ("fresh_share", -0.05, "fresh_share must not be negative"),
        ("explore_share", 0.0, "explore_share must be greater than 0"),
        ("new_video_share", 0.0, "needs a new video every day"),
        ("max_sessions_per_day", 100, "at most 24"),
        ("surface", "tv", "surfaces are homepage and feed"),
        ("bursts_per_day", 1 << 18, "more than 2\\*\\*20 bursts"),
        ("start", "soon", "must be a date like"),
        ("start", "2026-01-05T12:00", "without a time"),
    ],
)
def test_constants_that_make_no_sense(tiny: World, field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        replace(tiny, **{field: value})
    assert "\n" not in str(error.value)
