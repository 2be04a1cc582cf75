from dataclasses import replace
from datetime import UTC, datetime

import polars as pl
import pytest
import torch
from scipy import stats

from recsys.world import World, behaviour, logs, population
from recsys.world.log_oracle import LogOracle
from recsys.world.oracle import RelevanceScorer, attention, relevance, row_probability, utility, utility_by_position
from recsys.world.population import DAY_US, users, videos

HOUR_US = DAY_US // 24


def catalogue(world: World) -> torch.Tensor:
    """item_ids of all videos by number, after the two reserved indices."""
    ids = population.video_ids(world, torch.arange(world.num_videos))
    return torch.cat([torch.zeros(2, dtype=torch.int64), ids])


def batch(world: World, number: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"user_key": population.user_ids(world, number)}


def frequencies(world: World, number: int, cut: int, end: int, times: int) -> torch.Tensor:
    """How often the user clicks each video at least once in [cut, end), over fresh months."""
    who = users(world, torch.full((times,), number))
    clicked = torch.zeros(times, world.num_videos, dtype=torch.bool)
    for day in range(world.num_days):
        rows = logs.impressions(world, day, who, torch.arange(times) + 10**9)
        first = (rows["position"] == 0).nonzero()[:, 0]
        start = rows["timestamp"][first][rows["session"]]
        hits = (rows["label"] == 1) & (start >= cut) & (start < end)
        clicked[rows["row"][hits], rows["video"][hits]] = True
    return clicked.double().mean(0)


def test_relevance_is_the_mean_over_intents(tiny: World) -> None:
    number = torch.arange(200)
    user, item = population.user_ids(tiny, number), population.video_ids(tiny, number * 7)
    who = users(tiny, number)
    mean = torch.zeros(200, dtype=torch.float64)
    for topic in range(tiny.num_topics):
        intent = torch.full((200,), topic)
        share = population.taste(tiny, population.drifted(tiny, who, 0), intent)
        mean += share * relevance(tiny, user, item, intent=intent)
    assert torch.allclose(relevance(tiny, user, item), mean)
    assert relevance(tiny, user, item).max() > 20 * relevance(tiny, user, item).min()


@pytest.mark.parametrize("surface", ["homepage", "feed"])
def test_relevance_is_what_impressions_are_drawn_with(tiny: World, surface: str) -> None:
    world = replace(tiny, surface=surface)
    rows = logs.impressions(world, 2, users(world, torch.arange(100)))
    first = (rows["position"] == 0).nonzero()[:, 0]
    for z in first[:30].tolist():
        some = slice(z, z + 1)
        at = int(rows["timestamp"][z])
        stated = relevance(world, rows["user_id"][some], rows["item_id"][some], at, intent=rows["intent"][some])
        assert torch.allclose(stated, rows["relevance"][some], rtol=1e-6)


def test_relevance_scorer_agrees_with_relevance(tiny: World) -> None:
    scores = RelevanceScorer(tiny, catalogue(tiny)[:500]).score(batch(tiny, torch.tensor([3, 1500, 3])))
    assert scores.shape == (3, 500)
    item = catalogue(tiny)[2:500]
    user = population.user_ids(tiny, torch.tensor([1500])).expand(498)
    assert torch.allclose(scores[1, 2:].double(), relevance(tiny, user, item), rtol=1e-4)
    assert torch.allclose(scores[0], scores[2], rtol=1e-5)


# Beside a plain micro world one where a visit shows half of what there is, mostly from one topic.
@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({}, 4),
        ({}, 1),
        ({"max_depth": 15, "depth_exponent": 0.2}, 4),
        ({"surface": "feed", "feed_watch_bias": -4.0}, 4),
    ],
)
def test_log_oracle_states_the_frequencies_of_redrawn_months(micro: World, changes: dict, number: int) -> None:
    # No bursts: those to come are unknown to the oracle, and the months are all of one population.
    world = replace(micro, burst_share=0.0, taste_share=micro.taste_share + micro.burst_share, **changes)
    times = 4_000 if "max_depth" in changes else 16_000
    cut = world.start_us + 3 * DAY_US + 17 * HOUR_US + 12345
    end = world.start_us + 5 * DAY_US + 9 * HOUR_US
    stated = LogOracle(world, catalogue(world), cut, end)(batch(world, torch.tensor([number])))[0, 2:].double()
    seen = frequencies(world, number, cut, end, times)
    z = (seen - stated) / (stated * (1 - stated) / times).sqrt().clamp(min=1e-9)
    common = stated * times > 10
    assert common.sum() > 30
    assert stats.chi2.sf(float(z[common].square().sum()), int(common.sum())) > 1e-4
    assert float(seen.sum()) == pytest.approx(float(stated.sum()), rel=0.03)
    assert ((stated == 0) == (videos(world, torch.arange(world.num_videos)).upload_day > 5)).all()


def test_log_oracle_on_tiny_is_within_two_percent(tiny: World) -> None:
    times, cut = 2_000, tiny.start_us + 27 * DAY_US + 5 * HOUR_US
    active = int((users(tiny, torch.arange(2000)).rate - 3).abs().argmin())
    world = replace(tiny, burst_share=0.0, taste_share=tiny.taste_share + tiny.burst_share)
    stated = LogOracle(world, catalogue(world), cut)(batch(world, torch.tensor([active])))[0, 2:].double()
    seen = frequencies(world, active, cut, world.start_us + 30 * DAY_US, times)
    z = (seen - stated) / (stated * (1 - stated) / times).sqrt().clamp(min=1e-9)
    common = stated * times > 10
    assert common.sum() > 50
    assert stats.chi2.sf(float(z[common].square().sum()), int(common.sum())) > 1e-4
    assert float(seen.sum()) == pytest.approx(
        float(stated.sum()), rel=0.05
    )  # 6,000 windows of three users: 0.3% to 1.4%


def test_log_oracle_spreads_the_bursts_to_come(micro: World) -> None:
    """Known bursts are seen in the probabilities; those to come make the sum right, not the single video."""
    world, number, times = replace(micro, burst_share=0.1, taste_share=0.4), 4, 8_000
    cut = world.start_us + 3 * DAY_US
    stated = LogOracle(world, catalogue(world), cut)(batch(world, torch.tensor([number])))[0, 2:].double()
    seen = frequencies(world, number, cut, world.start_us + 6 * DAY_US, times)
    assert float(seen.sum()) == pytest.approx(float(stated.sum()), rel=0.1)
    calm = replace(world, burst_share=0.0, explore_share=world.explore_share + 0.1)
    without = LogOracle(calm, catalogue(world), cut)(batch(world, torch.tensor([number])))[0, 2:].double()
    largest = int(behaviour.burst_videos(world, 2)[0])
    assert float(stated[largest]) > float(without[largest])


def test_log_oracle_does_not_depend_on_order_or_blocks(tiny: World) -> None:
    cut = datetime(2026, 1, 27, 8, tzinfo=UTC)
    number = torch.tensor([5, 1700, 33])
    whole = LogOracle(tiny, catalogue(tiny), cut).score(batch(tiny, number))
    some = torch.tensor([0, 1, 900, 30, 1999])
    part = LogOracle(tiny, catalogue(tiny)[some], cut).score(batch(tiny, number.flip(0)))
    assert torch.allclose(part, whole[:, some].flip(0), rtol=1e-5)
    assert (whole[:, :2] == 0).all()
    micros = int(cut.timestamp() * 1_000_000)
    assert torch.equal(LogOracle(tiny, catalogue(tiny), micros).score(batch(tiny, number)), whole)


def test_oracle_beats_popularity_beats_chance(tiny: World, log: pl.DataFrame) -> None:
    log = log.filter(pl.col("label") == 1)
    cut = tiny.start_us + 23 * DAY_US
    before, after = (
        torch.zeros(2000, 2000, dtype=torch.bool),
        torch.zeros(2000, 2000, dtype=torch.bool),
    )
    late = torch.tensor(log["timestamp"].dt.epoch("us").to_numpy() >= cut)
    user = population.user_numbers(tiny, torch.tensor(log["user_id"].to_numpy()))
    item = population.video_numbers(tiny, torch.tensor(log["item_id"].to_numpy()))
    before[user[~late], item[~late]] = True
    after[user[late], item[late]] = True
    after &= ~before

    def recall(scores: torch.Tensor) -> float:
        top = scores.masked_fill(before, -1).topk(20).indices
        asked = after.any(1)
        return float((after.gather(1, top).sum(1)[asked] / after.sum(1)[asked]).mean())

    everybody = batch(tiny, torch.arange(2000))
    oracle = recall(LogOracle(tiny, catalogue(tiny), cut).score(everybody)[:, 2:])
    truth = recall(RelevanceScorer(tiny, catalogue(tiny), cut).score(everybody)[:, 2:])
    popularity = recall(before.sum(0).float().expand(2000, -1))
    chance = recall(torch.rand(2000, 2000, generator=torch.Generator().manual_seed(0)))
    assert oracle > 1.15 * truth > 2 * popularity > 8 * chance


def test_utility_is_what_a_shown_list_earns(micro: World) -> None:
    """One user, one list, 200,000 visits drawn step by step."""
    times, number = 200_000, 9
    random = torch.Generator().manual_seed(0)
    item = torch.tensor([3, 50, 17, 8])
    user = population.user_ids(micro, torch.tensor([number]))
    ids = population.video_ids(micro, item)
    topics = torch.arange(micro.num_topics)
    who = users(micro, torch.tensor([number]))
    share = population.taste(micro, population.drifted(micro, who, 0), topics[None])[0]
    intent = torch.multinomial(share, times, replacement=True, generator=random)
    u = torch.rand(3, times, 4, generator=random, dtype=torch.float64)
    reached = u[0, :, :1] < torch.arange(1, 5) ** -micro.depth_exponent
    examined = u[1] < 1 / (1 + torch.arange(4) / micro.examination_scale)
    truth = torch.stack(
        [relevance(micro, user.expand(4), ids, intent=torch.full((4,), k)) for k in range(micro.num_topics)]
    )
    clicked = (reached & examined & (u[2] < truth[intent])).double()
    clicks, seconds = utility(micro, user, ids[None])
    assert float(clicked.sum(1).mean()) == pytest.approx(
        float(clicks[0]), abs=4 * float(clicked.sum(1).std()) / times**0.5
    )
    # Seconds follow the interest, which the intent is part of.
    assert float(seconds[0]) > float(clicks[0])
    assert utility(micro, user, ids[None], micro.start_us + 5 * DAY_US)[0] != clicks


def test_seconds_of_a_list_are_those_of_its_intents(tiny: World) -> None:
    for world in (tiny, replace(tiny, surface="feed")):
        number, item = torch.tensor([7]), torch.tensor([11])
        user, ids = population.user_ids(world, number), population.video_ids(world, item)
        who, what = population.drifted(world, users(world, number), 0), videos(world, item)
        share = [population.taste(world, who, topic) for topic in (what.topic, what.second_topic)]
        first, second = (behaviour.log_taste(world, s) for s in share)
        plain = behaviour.interest(
            world, first, second, behaviour.speaks(who.country, what.language), who.bias, what, 0
        )
        clicks = seconds = 0.0
        for hour in range(24):
            cdf = behaviour.hour_cdf(world)[who.peak_hour[0]]
            at = behaviour.evening(torch.tensor([hour + 0.5]).double(), who.country)
            for topic in range(world.num_topics):
                wanted = plain + world.context_gain * behaviour.length(world, what) * at
                wanted = wanted + behaviour.intent_interest(world, torch.tensor([topic]), what)
                chance = float(cdf.diff()[hour]) * float(population.taste(world, who, torch.tensor([topic])))
                hit = float(behaviour.positive(world, wanted, what))
                clicks += chance * hit
                seconds += chance * float(behaviour.expected_watch(world, wanted, what)) * (1 if world.is_feed else hit)
        stated = utility(world, user, ids[None])
        assert float(stated[0]) == pytest.approx(clicks, rel=0.01)
        assert float(stated[1]) == pytest.approx(seconds, rel=0.01)


def test_the_most_relevant_list_has_the_best_utility(tiny: World) -> None:
    number = torch.arange(100)
    cut = tiny.start_us + 23 * DAY_US
    user = population.user_ids(tiny, number)
    lists = [
        catalogue(tiny)[scorer(tiny, catalogue(tiny), cut).score(batch(tiny, number)).topk(20).indices]
        for scorer in (RelevanceScorer, LogOracle)
    ]
    best, logged = (utility(tiny, user, shown, cut)[0] for shown in lists)
    worse = utility(tiny, user, lists[0].flip(1), cut)[0]
    assert (best >= logged - 1e-6).all()
    assert (best > worse).all()
    assert (attention(tiny).diff() < 0).all()


def test_a_position_is_worth_the_same_whoever_asks_and_whatever_is_below(tiny: World) -> None:
    user = population.user_ids(tiny, torch.tensor([7, 3, 7]))
    lists = catalogue(tiny)[torch.randint(2, 500, (3, 9), generator=torch.Generator().manual_seed(1))]
    lists[2] = lists[0]
    for whole_BK, cut_B in zip(utility_by_position(tiny, user, lists), utility(tiny, user, lists[:, :4]), strict=True):
        assert whole_BK.shape == (3, 9)
        torch.testing.assert_close(whole_BK[:, :4].sum(1), cut_B)
        torch.testing.assert_close(whole_BK[0], whole_BK[2])
    one_by_one = torch.stack([utility(tiny, user[row : row + 1], lists[row : row + 1])[0][0] for row in range(3)])
    torch.testing.assert_close(utility(tiny, user, lists)[0], one_by_one)


def test_questions_without_an_answer(micro: World) -> None:
    ids, last = catalogue(micro), micro.start_us + micro.num_days * DAY_US
    with pytest.raises(ValueError, match=r"holds no moment of world micro"):
        LogOracle(micro, ids, last)
    with pytest.raises(ValueError, match="item_id 5"):
        LogOracle(micro, torch.tensor([0, 0, 5]), micro.start_us)
    with pytest.raises(ValueError, match="user_id 5"):
        RelevanceScorer(micro, ids).score({"user_key": torch.tensor([5])})
    with pytest.raises(ValueError, match="lists of 7 are longer"):
        utility(micro, population.user_ids(micro, torch.tensor([0])), ids[None, 2:9])


@pytest.mark.parametrize("surface", ["homepage", "feed"])
def test_row_probability_is_how_often_rows_are_positive(tiny: World, surface: str) -> None:
    """By decile of the probability and by position, the positives of a month deviate as coin flips would."""
    world = replace(tiny, surface=surface, num_users=1000)
    rows = logs.log(world)
    names = ("user_id", "item_id", "timestamp", "position")
    columns = (rows[name].to_physical().cast(pl.Int64).to_numpy() for name in names)
    p = row_probability(world, *(torch.from_numpy(column.copy()) for column in columns))
    assert 0 < float(p.min()) < float(p.max()) < 1
    label = torch.from_numpy(rows["label"].to_numpy().copy()).double()
    decile = torch.bucketize(p, torch.quantile(p[:: max(len(p) // 100_000, 1)], torch.linspace(0.1, 0.9, 9).double()))
    position = torch.from_numpy(rows["position"].to_numpy().copy()).long().clamp(max=9)
    for group in (decile, position):
        for value in range(10):
            mine = group == value
            # Rows of a visit share its intent, so they vary somewhat more than coins of their own.
            z = (label[mine] - p[mine]).sum() / (p[mine] * (1 - p[mine])).sum().sqrt()
            assert abs(float(z)) < 5, (surface, value, float(z))
