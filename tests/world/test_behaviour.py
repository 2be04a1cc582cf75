from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import reference
import torch
from polars.testing import assert_frame_equal
from scipy import stats

from recsys.data import readers
from recsys.world import World, behaviour, logs, population
from recsys.world.population import users, videos


def repeated(world: World, number: int, times: int) -> population.Users:
    """One user, many times: with a noise seed each, as many months of the same life."""
    return users(world, torch.full((times,), number))


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """The p-value, with everything expected less than ten times in one class."""
    common = expected >= 10
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    keep = expected > 1e-9
    assert observed[~keep].sum() == 0
    return float(stats.chisquare(observed[keep], expected[keep] * observed.sum() / expected.sum()).pvalue)


def test_any_day_and_users_alone_equal_the_full_run(tiny: World, log: pl.DataFrame) -> None:
    ids = population.user_ids(tiny, torch.arange(150, 700)).tolist()
    number = pl.col("session_id")
    sessions = logs.log(tiny, range(7, 9), range(150, 700))
    assert sessions.height > 5000
    same = log.filter(number.is_in(sessions["session_id"].unique().implode()))
    assert_frame_equal(sessions, same, check_exact=True)
    start = pl.col("timestamp").min().over("session_id").dt.date() - pl.date(2026, 1, 5)
    in_days = start.dt.total_days().is_between(7, 8)
    assert log.filter(in_days & pl.col("user_id").is_in(ids)).height == sessions.height
    # Nor do the block size or the order of the users matter.
    mixed = logs.impressions(tiny, 3, users(tiny, torch.tensor([9, 2, 1])))
    alone = logs.impressions(tiny, 3, users(tiny, torch.tensor([2])))
    for name, column in alone.items():
        if name not in ("row", "session"):
            assert torch.allclose(column, mixed[name][mixed["row"] == 1], rtol=1e-14), name


def test_seeds(micro: World) -> None:
    first = logs.log(micro)
    assert_frame_equal(first, logs.log(micro), check_exact=True)
    month, people = replace(micro, noise_seed=1), replace(micro, seed=1)
    assert not first.equals(logs.log(month))
    assert population.user_table(micro).equals(population.user_table(month))
    assert population.video_table(micro).equals(population.video_table(month))
    assert not population.video_table(micro).equals(population.video_table(people))
    assert not set(first["item_id"]) & set(logs.log(people)["item_id"])


def test_the_log_is_well_formed(tiny: World, log: pl.DataFrame) -> None:
    assert log.columns == [
        "user_id", "item_id", "timestamp", "label", "position", "propensity", "watch_seconds", "liked", "disliked",
        "shared", "session_id",
    ]  # fmt: skip
    assert log.schema["timestamp"] == pl.Datetime("us", "UTC")
    assert log.null_count().sum_horizontal().item() == 0
    assert not log.select("session_id", "item_id").is_duplicated().any()
    shape = log.group_by("session_id").agg(
        pl.col("user_id").n_unique().alias("users"),
        (pl.col("position") == pl.int_range(pl.len())).all().alias("in_order"),
        pl.col("timestamp").is_sorted().alias("later"),
        pl.len(),
    )
    assert (shape["users"] == 1).all()
    assert shape["in_order"].all()
    assert shape["later"].all()
    assert shape["len"].max() <= tiny.max_depth
    assert log["propensity"].is_between(0, 1, closed="right").all()
    joined = log.join(population.video_table(tiny), on="item_id")
    assert joined.height == log.height
    assert (joined["uploaded"] <= joined["timestamp"]).all()
    assert (joined["watch_seconds"] <= joined["duration"]).all()
    assert ((joined["watch_seconds"] > 0) == (joined["label"] == 1)).all()
    joined = log.join(population.user_table(tiny), on="user_id")
    assert joined.height == log.height
    assert (joined["sign_up"] <= joined["timestamp"]).all()


def test_tiny_meets_its_rates(tiny: World, log: pl.DataFrame) -> None:
    assert log.height / tiny.num_users == pytest.approx(577, rel=0.05)
    assert log["label"].mean() == pytest.approx(0.02, abs=0.001)
    clicks = log.filter(pl.col("label") == 1)["user_id"].value_counts()["count"]
    assert clicks.max() > 8 * clicks.mean()


def test_clicks_happen_as_often_as_stated(tiny: World) -> None:
    stated, clicked = [], []
    for day in range(10):
        rows = logs.impressions(tiny, day, users(tiny, torch.arange(tiny.num_users)))
        stated.append(rows["relevance"] * behaviour.examination(tiny)[rows["position"].long()])
        clicked.append(rows["label"])
    p, label = torch.cat(stated).numpy(), torch.cat(clicked).numpy()
    bins = np.searchsorted(np.quantile(p, np.linspace(0, 1, 21)[1:-1]), p)
    z = [(label[bins == b].sum() - p[bins == b].sum()) / np.sqrt((p * (1 - p))[bins == b].sum()) for b in range(20)]
    assert p.max() > 20 * p.mean()
    assert stats.chi2.sf(np.square(z).sum(), 20) > 1e-4


def test_draw_probabilities_add_up_to_one(micro: World) -> None:
    who = users(micro, torch.arange(20))
    every = videos(micro, torch.arange(micro.num_videos))
    affinity = population.taste(micro, who, every.topic.expand(20, -1))
    for day in range(micro.num_days):
        p = behaviour.probability(micro, day, affinity, every)
        assert torch.allclose(p.sum(1), torch.ones(20, dtype=torch.float64))
        assert ((p > 0) == (every.upload_day <= day)).all()


def test_propensities_by_enumeration(micro: World) -> None:
    """All ordered pairs that the first two positions can show, against the visits of 60,000 days."""
    day, times = 3, 60_000
    rows = logs.impressions(micro, day, repeated(micro, 4, times), torch.arange(times))
    who, every = users(micro, torch.tensor([4])), videos(micro, torch.arange(micro.num_videos))
    who = population.drifted(micro, who, day)
    p = behaviour.probability(micro, day, population.taste(micro, who, every.topic[None]), every)[0]
    first = rows["position"] == 0
    count = torch.bincount(rows["video"][first], minlength=micro.num_videos).numpy()
    assert chi_square(count, p.numpy() * count.sum()) > 1e-4
    assert torch.allclose(rows["propensity"][first].double(), p[rows["video"][first]], rtol=1e-6)

    second = (rows["position"] == 1).nonzero()[:, 0]
    a, b = rows["video"][second - 1], rows["video"][second]
    assert torch.allclose(rows["propensity"][second].double(), p[b] / (1 - p[a]), rtol=1e-6)
    pair = (p[:, None] * p / (1 - p[:, None])).fill_diagonal_(0)
    count = torch.bincount(a * micro.num_videos + b, minlength=micro.num_videos**2).numpy()
    assert chi_square(count, pair.flatten().numpy() * count.sum()) > 1e-4

    third = (rows["position"] == 2).nonzero()[:, 0]
    above = p[rows["video"][third - 1]] + p[rows["video"][third - 2]]
    assert torch.allclose(rows["propensity"][third].double(), p[rows["video"][third]] / (1 - above), rtol=1e-6)


def test_visits_follow_rate_hour_depth_and_taste(micro: World) -> None:
    world = replace(micro, new_user_share=0.0)
    for day in (2, 5):  # a weekday and a Saturday
        who = repeated(world, 7, 40_000)
        visits = behaviour.sessions(world, day, who, torch.arange(40_000))
        rate = float(behaviour.session_rate(world, who[:1], day)[0])
        assert rate == pytest.approx(float(who.rate[0]) * (1.15 if day == 5 else 1))
        count = np.bincount(torch.bincount(visits["row"], minlength=40_000).numpy(), minlength=64)
        assert chi_square(count, stats.poisson.pmf(np.arange(64), rate) * 40_000) > 1e-4

        total = visits["row"].numel()
        second = (visits["start"] - world.start_us) // 1_000_000 - day * 86_400
        hours = np.bincount(second.numpy() // 3600, minlength=24)
        cdf = behaviour.hour_cdf(world)[who.peak_hour[0]]
        assert chi_square(hours, cdf.diff().numpy() * total) > 1e-4
        assert hours.argmax() == int(who.peak_hour[0])

        reached = np.append(np.arange(1, world.max_depth + 1) ** -world.depth_exponent, 0)
        depth = np.bincount(visits["depth"].numpy(), minlength=world.max_depth + 1)[1:]
        assert chi_square(depth, -np.diff(reached) * total) > 1e-4

        topics = torch.arange(world.num_topics)
        share = population.taste(world, who[:1], topics[None])[0].numpy()
        assert chi_square(np.bincount(visits["intent"].numpy(), minlength=world.num_topics), share * total) > 1e-4


def test_nobody_comes_before_signing_up(micro: World) -> None:
    who = users(micro, torch.arange(micro.num_users))
    late = who.sign_up_day > 2
    assert late.any()
    assert (behaviour.session_rate(micro, who, 2)[late] == 0).all()


@pytest.mark.parametrize("surface", ["homepage", "feed"])
def test_responses_are_those_that_the_formulas_state(tiny: World, surface: str) -> None:
    """The compiled rows against the vectorised formulas that the answer key uses."""
    world = replace(tiny, surface=surface)
    seconds, expected, squares = 0.0, 0.0, 0.0
    for day in (1, 6, 12, 20):
        everybody = users(world, torch.arange(world.num_users))
        rows = logs.impressions(world, day, everybody)
        today = population.drifted(world, everybody, day)
        shown, what = today[rows["row"]], videos(world, rows["video"])
        share, second = (population.taste(world, shown, topic) for topic in (what.topic, what.second_topic))
        wanted = behaviour.interest(
            world, behaviour.log_taste(world, share), behaviour.log_taste(world, second),
            behaviour.speaks(shown.country, what.language), shown.bias, what, day,
        ) + behaviour.intent_interest(world, rows["intent"], what)  # fmt: skip
        visits = behaviour.sessions(world, day, today)
        wanted += world.context_gain * behaviour.length(world, what) * visits["evening"][rows["session"]]
        assert torch.allclose(rows["relevance"], behaviour.positive(world, wanted, what), rtol=1e-9)
        p = behaviour.probability(world, day, share, what)
        first = rows["position"] == 0
        assert torch.allclose(rows["propensity"][first].double(), p[first], rtol=1e-6)

        plays = torch.ones_like(rows["label"], dtype=torch.bool) if world.is_feed else rows["label"] == 1
        watched, mean = rows["watch_seconds"].double(), behaviour.expected_watch(world, wanted, what)
        assert (watched[~plays] == 0).all()
        seconds, expected = seconds + float(watched[plays].sum()), expected + float(mean[plays].sum())
        squares += float((watched - mean)[plays].square().sum())
        assert 0.05 < float((watched == what.duration)[plays].double().mean()) < 0.6
        for name, sign, bias in (("liked", 1, world.like_bias), ("shared", 1, world.share_bias)):
            x = sign * (world.reaction_gain * wanted + world.reaction_watch * watched / what.duration)
            stated = torch.sigmoid(bias + x)[plays]
            z = (rows[name][plays].sum() - stated.sum()) / (stated * (1 - stated)).sum().sqrt()
            assert abs(float(z)) < 4.5, name
        assert not (rows["liked"] & rows["disliked"]).any()
        assert not (rows["liked"] | rows["disliked"] | rows["shared"])[~plays].any()
        if world.is_feed:
            long = (watched >= what.duration.clamp(max=18)) == (rows["label"] == 1)
            assert long.all()
    assert abs(seconds - expected) < 4 * squares**0.5


@pytest.mark.parametrize("changes", [{}, {"popularity_exponent": 1.0}, {"new_video_share": 0.4}])
def test_lists_are_those_of_the_plain_formulas(tiny: World, changes: dict) -> None:
    world = replace(tiny, **changes)
    for day in (0, 13):
        everybody = population.drifted(world, users(world, torch.arange(world.num_users)), day)
        visits = behaviour.sessions(world, day, everybody)
        rows = logs.impressions(world, day, users(world, torch.arange(world.num_users)))
        for visit in range(0, len(visits["row"]), 40):
            compiled = rows["video"][rows["session"] == visit].tolist()
            assert compiled == reference.shown(world, day, everybody, visits, visit)


def test_draws_follow_ten_million_probabilities(tiny: World) -> None:
    """Clicks, first positions and examined positions of ten million rows against what was stated."""
    world = replace(tiny, sessions_per_day=9.0, max_sessions_per_day=24, new_user_share=0.0)
    everybody = users(world, torch.arange(world.num_users))
    labels, stated = torch.zeros(100, dtype=torch.float64), torch.zeros(100, dtype=torch.float64)
    shown, drawn = (torch.zeros(world.num_videos, dtype=torch.float64) for _ in range(2))
    every = videos(world, torch.arange(world.num_videos))
    total, variance = 0, torch.zeros(100, dtype=torch.float64)
    for day in range(30):
        rows = logs.impressions(world, day, everybody)
        total += rows["video"].numel()
        position = rows["position"].long()
        p = rows["relevance"] * behaviour.examination(world)[position]
        labels.index_add_(0, position, rows["label"].double())
        stated.index_add_(0, position, p)
        variance.index_add_(0, position, p * (1 - p))
        today = population.drifted(world, everybody, day)
        first = torch.bincount(rows["row"][position == 0], minlength=world.num_users).double()
        shown += torch.bincount(rows["video"][position == 0], minlength=world.num_videos)
        share = population.taste(world, today, torch.arange(world.num_topics).expand(world.num_users, -1))
        p_BN = behaviour.probability(world, day, share[:, every.topic], every)
        drawn += first @ p_BN
    assert total > 10_000_000
    z = (labels - stated) / variance.sqrt()
    assert stats.chi2.sf(float(z.square().sum()), 100) > 1e-4
    assert chi_square(shown.numpy(), drawn.numpy()) > 1e-4


def test_a_burst_relaxes_as_a_power_law(tiny: World) -> None:
    world = replace(tiny, burst_share=0.2, taste_share=0.35, bursts_per_day=2)
    video = int(behaviour.burst_videos(world, 10)[0])
    share = [float(behaviour.burst_probability(world, day, torch.tensor(video))) for day in range(9, 26)]
    assert share[0] < share[1] / 5
    assert share[3] / share[1] == pytest.approx(3**-world.burst_exponent, rel=0.3)
    assert float(behaviour.bursts(world, 12)[1].sum()) == pytest.approx(1)
    assert float(behaviour.bursts(world, 12, since=12)[1].sum()) < 0.8
    assert len(behaviour.bursts(world, 30, since=2)[0]) == 0
    views = [logs.impressions(world, day, users(world, torch.arange(2000)))["video"] for day in (9, 10, 14)]
    before, peak, after = (int((shown == video).sum()) for shown in views)
    assert peak > 3 * before
    assert before <= after < peak / 2
    none = replace(tiny, burst_share=0.0, taste_share=0.55)
    assert (videos(none, torch.tensor([video])).number == video).all()
    affinity = torch.full((world.num_videos,), 0.1).double()
    with_bursts, without = (
        behaviour.probability(w, 10, affinity, videos(w, torch.arange(w.num_videos)))[video] for w in (world, none)
    )
    assert float(with_bursts) > 5 * float(without)


def test_seasons_drift_and_bursts_can_be_switched_off(tiny: World) -> None:
    flat = replace(tiny, weekend_gain=1.0, hour_concentration=0.0, taste_drift=0.0)
    who = users(flat, torch.arange(200))
    assert torch.equal(behaviour.session_rate(flat, who, 28), behaviour.session_rate(flat, who, 29))
    assert torch.allclose(behaviour.hour_cdf(flat).diff(dim=1), torch.full((24, 24), 1 / 24).double())
    assert population.drifted(flat, who, 9) is who
    moved = population.drifted(tiny, who, 20).weight - population.drifted(tiny, who, 0).weight
    assert float(moved.abs().max()) > 0.1
    assert torch.allclose(moved.sum(1), torch.zeros(200).double(), atol=1e-12)


def test_the_number_of_workers_does_not_matter(micro: World) -> None:
    assert_frame_equal(logs.log(micro, workers=1), logs.log(micro, workers=3), check_exact=True)


def test_a_huge_world_needs_no_table(tiny: World) -> None:
    world = replace(tiny, num_users=1_300_000_000, num_videos=100_000_000, num_topics=2000)
    who = users(world, torch.arange(1_299_999_900, 1_300_000_000))
    rows = logs.impressions(world, 20, who)
    assert rows["video"].max() > 10_000_000
    assert (videos(world, rows["video"]).upload_day <= 20).all()
    assert (rows["propensity"] > 0).all()


def test_the_world_as_a_log(micro: World) -> None:
    log = readers.world(micro)
    events = log.events.collect()
    assert log.world is micro
    assert log.counts["rows"] == events.height
    assert log.counts["positives"] == events["label"].sum()
    assert log.items is not None
    assert log.items.collect_schema()["timestamp"] == pl.Datetime("us", "UTC")
