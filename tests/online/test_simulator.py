"""The simulator: the log by its own policy, common random numbers, the answer key's expectations, reactions, errors."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from recsys.online.experiments import experiment, true_effect
from recsys.online.policies import EpsilonGreedy, Popularity
from recsys.online.reactions import PRIOR, SATIATED, Feelings, Reactions, expectation
from recsys.online.simulator import METRICS, LoggingPolicy, simulate
from recsys.online.slates import Slates, Visits
from recsys.world import World, logs, oracle, population
from recsys.world.behaviour import sessions

DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def micro(tiny: World) -> World:
    """So few videos, so often clicked, that what is stated can be counted."""
    return replace(
        tiny, name="micro", num_users=300, num_videos=60, num_days=12, num_topics=5, new_video_share=0.25,
        fresh_days=2, max_depth=8, examination_scale=3.0, click_bias=-1.5, new_user_share=0.0,
        fresh_share=0.1, taste_share=0.48, sessions_per_day=1.5, videos_per_creator=3,
    )  # fmt: skip


class Fixed:
    """The same numbers of videos for everybody, or a row for each user by number."""

    def __init__(self, world: World, numbers: torch.Tensor, propensity: float | None = None) -> None:
        self.world, self.propensity = world, propensity
        self.items = population.video_ids(world, numbers.flatten()).view(numbers.shape)

    def act(self, visits) -> Slates:
        if self.items.ndim == 1:
            slate = self.items.expand(len(visits), -1)
        else:
            slate = self.items[population.user_numbers(self.world, visits.user_id)]
        item_id = torch.full((len(visits), visits.k), -1)
        item_id[:, : slate.shape[1]] = slate[:, : visits.k]
        return Slates(item_id, None if self.propensity is None else torch.full(item_id.shape, self.propensity))


def best_lists(world: World, k: int, worst: bool = False) -> torch.Tensor:
    """For each user the most relevant videos among those that were there before the month, int64 [U, k]."""
    number = torch.arange(world.num_places)
    ids = torch.cat([torch.zeros(2, dtype=torch.int64), population.video_ids(world, number)])
    users = population.user_ids(world, torch.arange(world.num_users))
    scores = oracle.RelevanceScorer(world, ids).score({"user_key": users})[:, 2:]
    return (-scores if worst else scores).topk(k).indices


@pytest.mark.parametrize("surface", ["homepage", "feed"])
def test_the_logging_policy_leaves_the_log(tiny: World, surface: str) -> None:
    world = replace(tiny, surface=surface)
    found = simulate(world, LoggingPolicy(world), days=range(3, 6), keep_rows=True)
    assert found.rows is not None
    assert_frame_equal(found.rows, logs.log(world, range(3, 6)), check_exact=True)
    some = simulate(world, LoggingPolicy(world), days=range(1), users=torch.arange(50, 90), keep_rows=True, k=10)
    assert some.rows is not None
    whole = logs.log(world, range(1), range(50, 90))
    assert_frame_equal(some.rows, whole.filter(pl.col("position") < 10), check_exact=True)
    other = simulate(world, LoggingPolicy(world), days=range(1), noise_seed=5, keep_rows=True)
    assert other.rows is not None
    assert_frame_equal(other.rows, logs.log(replace(world, noise_seed=5), range(1)), check_exact=True)


def test_a_visit_of_several_days_at_once_is_the_log_too(tiny: World) -> None:
    """Visits come from blocks of one day; the policy does not rely on it."""
    policy, seen = LoggingPolicy(tiny), []

    class Collects:
        def act(self, visits) -> Slates:
            seen.append((visits, policy.act(visits)))
            return seen[-1][1]

    simulate(tiny, Collects(), days=range(2), users=torch.arange(40))
    both = seen[0][0]
    for name in ("user_id", "timestamp", "key"):
        object.__setattr__(both, name, torch.cat([getattr(visits, name) for visits, _ in seen]))
    assert torch.equal(policy.act(both).item_id, torch.cat([slates.item_id for _, slates in seen]))


@pytest.mark.parametrize(
    "reactions", [None, Reactions(returning=0.5, fatigue=1.0, patience=2.0, impatience=0.05)], ids=["none", "all"]
)
def test_the_block_size_changes_nothing(micro: World, reactions: Reactions | None) -> None:
    def lived(users_at_once: int):
        policy = EpsilonGreedy(Popularity(window=2, smoothing=5.0), population.video_table(micro), 0.3)
        policy.update({name: torch.from_numpy(start[name].to_numpy().copy()) for name in ("item_id", "label")} | when)
        return simulate(
            micro, policy, days=range(2, 7), keep_rows=True, reactions=reactions, users_at_once=users_at_once
        )

    start = logs.log(micro, range(2))
    when = {"timestamp": torch.from_numpy(start["timestamp"].cast(pl.Int64).to_numpy().copy())}
    one, other = lived(4096), lived(17)
    for name in ("users", "rows"):
        assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)
    assert_frame_equal(one.days, other.days, check_exact=True)


def test_metrics_are_those_of_the_rows(micro: World) -> None:
    for world in (micro, replace(micro, surface="feed")):
        found = simulate(world, LoggingPolicy(world), days=range(4), keep_rows=True)
        assert found.rows is not None
        videos = population.video_table(world).select("item_id", "topic", "creator")
        end = pl.col("timestamp").last().cast(pl.Int64) / 1e6 + world.seconds_per_impression
        if world.is_feed:
            end = end + pl.col("watch_seconds").last()
        visits = found.rows.join(videos, "item_id", maintain_order="left").group_by("user_id", "session_id").agg(
            start=pl.col("timestamp").first(), impressions=pl.len(), clicks=pl.col("label").cast(pl.Int64).sum(),
            watch_seconds=pl.col("watch_seconds").cast(pl.Float64).sum(), likes=pl.col("liked").sum(),
            dislikes=pl.col("disliked").sum(), shares=pl.col("shared").sum(), topics=pl.col("topic").n_unique(),
            creators=pl.col("creator").n_unique(), visits=pl.lit(1),
            session_seconds=end - pl.col("timestamp").first().cast(pl.Int64) / 1e6,
        )  # fmt: skip
        day = ((pl.col("start").cast(pl.Int64) - world.start_us) // DAY_US).alias("day")
        by_day = visits.group_by("user_id", day).agg(pl.col(list(METRICS)).sum())
        assert_frame_equal(by_day, found.days, check_row_order=False, check_column_order=False, check_dtypes=False)
        by_user = visits.group_by("user_id").agg(pl.col(list(METRICS)).sum())
        came = found.users.filter(pl.col("visits") > 0)
        assert_frame_equal(by_user, came, check_row_order=False, check_column_order=False, check_dtypes=False)
        assert found.users["user_id"].to_list() == population.user_ids(world, torch.arange(world.num_users)).tolist()


def test_the_same_video_in_the_same_place_gets_the_same_response(micro: World) -> None:
    """Whoever shows it, and whatever stands below."""
    lists = torch.tensor([3, 9, 4, 20, 31, 12, 40, 8])
    one = simulate(micro, Fixed(micro, lists), days=range(3), keep_rows=True)
    same = simulate(micro, Fixed(micro, lists, propensity=0.25), days=range(3), keep_rows=True)
    assert one.rows is not None
    assert same.rows is not None
    assert_frame_equal(one.users, same.users, check_exact=True)
    assert one.rows["propensity"].null_count() == one.rows.height
    assert (same.rows["propensity"] == 0.25).all()
    assert_frame_equal(one.rows.drop("propensity"), same.rows.drop("propensity"), check_exact=True)
    other = simulate(
        micro, Fixed(micro, torch.cat([lists[:4], torch.tensor([1, 2, 5, 6])])), days=range(3), keep_rows=True
    )
    assert other.rows is not None
    above = pl.col("position") < 4
    assert_frame_equal(one.rows.filter(above), other.rows.filter(above), check_exact=True)
    below = one.rows.filter(~above)["item_id"]
    assert not below.is_in(other.rows.filter(~above)["item_id"].unique().implode()).any()


def test_common_random_numbers_take_the_noise_out_of_a_difference(micro: World) -> None:
    lists = best_lists(micro, 8)
    near = lists.clone()
    near[:, 7] = torch.where((lists == 0).any(1), lists[:, 7], 0)
    clicks = np.array([
        [
            simulate(micro, Fixed(micro, one), days=range(1), noise_seed=seed).users["clicks"].sum()
            for one in (lists, near)
        ]
        for seed in range(24)
    ])  # fmt: skip
    paired = (clicks[:, 0] - clicks[:, 1]).var(ddof=1)
    apart = clicks[:, 0].var(ddof=1) + clicks[:, 1].var(ddof=1)
    assert paired < apart / 10
    assert clicks.var(axis=0).min() > 0


def test_clicks_are_those_that_the_answer_key_expects(micro: World) -> None:
    """A list for each user, over many months of a day: by row with the hour known, and by visit."""
    lists = best_lists(micro, 8)[:, [3, 1, 7, 0, 2, 5, 4, 6]]
    day, policy = 2, Fixed(micro, lists)
    users = population.user_ids(micro, torch.arange(micro.num_users))
    worth, watched = oracle.utility(micro, users, policy.items, micro.start_us + day * DAY_US)
    found, stated = [], []
    for seed in range(40):
        lived = simulate(micro, policy, days=range(day, day + 1), noise_seed=seed, keep_rows=True)
        assert lived.rows is not None
        columns = (lived.rows[name].cast(pl.Int64) for name in ("user_id", "item_id", "timestamp", "position"))
        p = oracle.row_probability(micro, *(torch.from_numpy(column.to_numpy(writable=True)) for column in columns))
        came = torch.from_numpy(lived.users["visits"].to_numpy(writable=True)).double()
        clicks, seconds = lived.users["clicks"].sum(), lived.users["watch_seconds"].sum()
        found.append((clicks, clicks, seconds))
        stated.append((float(p.sum()), float((came * worth).sum()), float((came * watched).sum())))
    off, mean = np.array(found) - np.array(stated), np.mean(stated, axis=0)
    error = off.std(axis=0, ddof=1) / math.sqrt(len(off))
    assert (error < [0.01 * mean[0], 0.01 * mean[1], 0.04 * mean[2]]).all()
    # The answer key takes the hour to second order in `utility`: half a percent is left for that.
    assert (abs(off.mean(axis=0)) < 4 * error + [0, 0.005 * mean[1], 0.005 * mean[2]]).all()


def test_what_is_short_is_shown_short(micro: World) -> None:
    full, short, empty = (
        simulate(micro, Fixed(micro, torch.arange(n)), days=range(2), keep_rows=True) for n in (8, 3, 0)
    )
    assert full.rows is not None
    assert short.rows is not None
    assert_frame_equal(full.rows.filter(pl.col("position") < 3), short.rows, check_exact=True)
    assert empty.users["visits"].sum() == full.users["visits"].sum() > 0
    assert empty.users.select("impressions", "clicks", "session_seconds", "topics").sum().row(0) == (0, 0, 0, 0)
    nobody = simulate(micro, Fixed(micro, torch.arange(3)), days=range(0))
    assert nobody.days.height == 0
    assert nobody.users.height == micro.num_users


def test_a_policy_sees_each_day_before_the_next(micro: World) -> None:
    seen: list[tuple[str, int]] = []

    class Watches:
        def act(self, visits) -> Slates:
            day = (visits.timestamp - micro.start_us) // DAY_US
            seen.append(("act", int(day.unique())))
            return Fixed(micro, torch.arange(8)).act(visits)

        def update(self, rows) -> None:
            assert list(rows) == list(logs.COLUMNS)
            assert bool(torch.isin(rows["user_id"], mine).all())
            assert bool((rows["position"] < 8).all())
            day = int((rows["timestamp"].min() - micro.start_us) // DAY_US)
            seen.append(("update", day))

    mine = population.user_ids(micro, torch.arange(100, 220))
    simulate(micro, Watches(), days=range(1, 4), users=torch.arange(100, 220), users_at_once=60)
    assert seen == [(what, day) for day in (1, 2, 3) for what in ("act", "act", "update")]


# --- reactions --------------------------------------------------------------------------------------


def test_reactions_switched_off_change_no_bit(tiny: World) -> None:
    plain = simulate(tiny, LoggingPolicy(tiny), days=range(2), keep_rows=True)
    off = simulate(tiny, LoggingPolicy(tiny), days=range(2), keep_rows=True, reactions=Reactions())
    for name in ("users", "days", "rows"):
        assert_frame_equal(getattr(plain, name), getattr(off, name), check_exact=True)


def test_users_tire_of_one_topic_and_not_of_many(tiny: World) -> None:
    world = replace(tiny, num_users=500)
    one = (population.videos(world, torch.arange(world.num_places)).topic == 0).nonzero()[:, 0]
    clicks = {}
    for name, numbers in (("one", one), ("many", torch.arange(len(one)))):
        for gain in (0.0, 2.0):
            lived = simulate(world, Fixed(world, numbers), days=range(8), reactions=Reactions(fatigue=gain)).days
            by_day = lived.group_by("day").agg(pl.col("clicks").sum()).sort("day")["clicks"]
            clicks[name, gain] = by_day[0], by_day[1:].sum()
    assert clicks["one", 0.0][0] == clicks["one", 2.0][0]  # the first day knows no yesterday
    lost = {name: 1 - clicks[name, 2.0][1] / clicks[name, 0.0][1] for name in ("one", "many")}
    assert lost["one"] > 2 * lost["many"] > 0


def test_fatigue_is_what_is_stated(micro: World) -> None:
    """Two days of one user by hand, and recovery in between."""
    reactions = Reactions(fatigue=1.5, recovery=3.0)
    feelings = Feelings(micro, reactions, 2, 8, "cpu")
    what = population.videos(micro, torch.tensor([0, 1, 2]))
    log = {"row": torch.tensor([1, 1, 1]), "video": torch.tensor([0, 1, 2]), "label": torch.zeros(3)}
    feelings.remember(slice(0, 2), torch.tensor([0.0, 1.0]), log)
    quiet = {name: column[:0] for name, column in log.items()}
    feelings.remember(slice(0, 2), torch.tensor([0.0, 0.0]), quiet)
    shown = torch.zeros(micro.num_topics, dtype=torch.float64)
    for v in range(3):
        shown[what.topic[v]] += 1 - what.second_share[v]
        shown[what.second_topic[v]] += what.second_share[v]
    tired = feelings.tired(slice(0, 2))
    assert tired is not None
    assert (tired[0] == 0).all()
    assert torch.allclose(tired[1], 1.5 * (1 - torch.exp(-shown * math.exp(-1 / 3) / SATIATED)), atol=1e-6)
    assert Feelings(micro, Reactions(), 2, 8, "cpu").tired(slice(0, 2)) is None


def test_fatigue_takes_the_stated_log_odds(micro: World) -> None:
    """By the latent relevance of the rows themselves."""
    who = population.users(micro, torch.arange(60))
    today = population.drifted(micro, who, 1)
    visits = sessions(micro, 1, today)
    shown = logs.show(micro, 1, today, visits)
    tired = torch.rand(60, micro.num_topics, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fresh, weary = (logs.respond(micro, 1, today, visits, shown, lost) for lost in (None, tired))
    what, row = population.videos(micro, shown), fresh["row"]
    lost = (1 - what.second_share) * tired[row, what.topic] + what.second_share * tired[row, what.second_topic]
    assert torch.allclose(torch.logit(fresh["relevance"]) - torch.logit(weary["relevance"]), lost, atol=1e-9)
    assert ((weary["label"] == 1) <= (fresh["label"] == 1)).all()


def test_a_better_policy_is_visited_more_often_later(micro: World) -> None:
    reactions = Reactions(returning=1.0)
    good, bad = (
        simulate(micro, Fixed(micro, best_lists(micro, 8, worst)), days=range(10), reactions=reactions, keep_rows=True)
        for worst in (False, True)
    )
    days = [found.days.group_by("day").agg(pl.col("visits").sum()).sort("day")["visits"] for found in (good, bad)]
    assert days[0][0] == days[1][0]
    assert days[0][5:].sum() > 1.3 * days[1][5:].sum()
    # Visits are nested: of two counts of one user and day the lesser is the beginning of the other.
    sets = []
    for found in (good, bad):
        assert found.rows is not None
        start = ((pl.col("timestamp").min().cast(pl.Int64) - micro.start_us) // DAY_US).alias("day")
        visits = found.rows.group_by("user_id", "session_id").agg(start)
        sets.append(visits)
    shared = sets[0].join(sets[1], ["user_id", "session_id", "day"]).group_by("user_id", "day").len()
    counts = [one.group_by("user_id", "day").len() for one in sets]
    both = counts[0].join(counts[1], ["user_id", "day"], suffix="_bad").join(
        shared.rename({"len": "len_shared"}), ["user_id", "day"], how="left"
    )  # fmt: skip
    assert both.height > 500
    assert (both["len_shared"] == both.select(pl.min_horizontal("len", "len_bad")).to_series()).all()


def test_who_gets_what_they_expect_comes_as_often(tiny: World) -> None:
    """The logging policy's own visitors neither grow nor dwindle by much, and expectations are its clicks."""
    plain, felt = (
        simulate(tiny, LoggingPolicy(tiny), days=range(14), reactions=reactions).users.sum()
        for reactions in (None, Reactions(returning=0.5))
    )
    assert felt["visits"][0] == pytest.approx(plain["visits"][0], rel=0.03)
    assert felt["visits"][0] != plain["visits"][0]
    who = population.users(tiny, torch.arange(tiny.num_users))
    expected = (expectation(tiny, who.bias, tiny.max_depth) * who.rate).sum() / who.rate.sum()
    assert float(expected) == pytest.approx(plain["clicks"][0] / plain["visits"][0], rel=0.08)


def test_returning_is_what_is_stated(micro: World) -> None:
    feelings = Feelings(micro, Reactions(returning=0.7, memory=5.0), 3, 8, "cpu")
    who = population.users(micro, torch.arange(3))
    assert torch.allclose(feelings.coming(who, slice(0, 3)).rate, who.rate, rtol=1e-12)
    log = {"row": torch.tensor([0, 0, 0, 2]), "label": torch.tensor([1, 1, 0, 0])}
    feelings.remember(slice(0, 3), torch.tensor([2.0, 0.0, 1.0]), log)
    feelings.remember(
        slice(0, 3), torch.tensor([1.0, 0.0, 0.0]), {"row": torch.tensor([0]), "label": torch.tensor([1])}
    )
    kept, e = math.exp(-1 / 5), expectation(micro, who.bias, 8)
    had = torch.tensor([2 * kept + 1, 0, 0]) + PRIOR * e
    mean = had / (torch.tensor([2 * kept + 1, 0, kept]) + PRIOR)
    rate = who.rate * torch.exp(0.7 * (mean - e) / (mean + e))
    assert torch.allclose(feelings.coming(who, slice(0, 3)).rate, rate)


def test_patience_by_reading_down_each_visit(micro: World) -> None:
    reactions = Reactions(patience=1.5, impatience=0.4)
    policy = Fixed(micro, best_lists(micro, 8))
    deep = replace(micro, depth_exponent=0.0)  # everyone sees all: the labels of what could be shown
    every = simulate(deep, policy, days=range(2), keep_rows=True).rows
    plain = simulate(micro, policy, days=range(2), keep_rows=True).rows
    found = simulate(micro, policy, days=range(2), keep_rows=True, reactions=reactions).rows
    assert every is not None
    assert plain is not None
    assert found is not None
    depth = dict(plain.group_by("session_id").len().iter_rows())
    ends = dict(found.group_by("session_id").len().iter_rows())
    longer = shorter = 0
    for (session,), rows in every.group_by("session_id", maintain_order=True):
        hits = 0
        for n, label in enumerate(rows["label"], 1):
            hits += label
            if n >= depth[session] + 1.5 * hits - 0.4 * (n - hits):
                break
        assert ends[session] == n
        longer, shorter = longer + (n > depth[session]), shorter + (n < depth[session])
    assert min(longer, shorter) > 20


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"returning": -0.1}, "returning must be at least 0 and finite, got -0.1"),
        ({"fatigue": math.nan}, "fatigue must be at least 0 and finite"),
        ({"memory": 0.0}, "memory must be above 0"),
        ({"impatience": 1.0}, "impatience must be below 1"),
    ],
)
def test_reactions_that_make_no_sense(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reactions(**values)


# --- experiments ------------------------------------------------------------------------------------


def test_each_arm_serves_and_learns_from_its_own(micro: World) -> None:
    groups = torch.arange(micro.num_users) % 3 % 2
    videos = population.video_table(micro)

    def policies() -> dict:
        start = logs.log(micro, range(2))
        return {
            "control": Popularity(start.filter(label=1)),
            "treatment": EpsilonGreedy(Popularity(start.filter(label=1)), videos, 0.2),
        }

    found = experiment(micro, policies(), groups, days=range(2, 6), keep_rows=True)
    assert found.users["user_id"].to_list() == population.user_ids(micro, torch.arange(micro.num_users)).tolist()
    names = [list(policies())[g] for g in groups.tolist()]
    assert found.users["group"].to_list() == names
    for group, (name, policy) in enumerate(policies().items()):
        alone = simulate(micro, policy, users=(groups == group).nonzero()[:, 0], days=range(2, 6), keep_rows=True)
        for frame in ("users", "days", "rows"):
            mine = getattr(found, frame).filter(group=name).drop("group")
            assert_frame_equal(mine, getattr(alone, frame), check_exact=True)
    with pytest.raises(ValueError, match=r"groups must lie in 0 .. 1, got 0 .. 2: policies are control, treatment"):
        experiment(micro, policies(), torch.arange(micro.num_users) % 3)
    with pytest.raises(ValueError, match="groups must be int64, one a user: 300"):
        experiment(micro, policies(), groups[:7])


def test_a_true_effect_is_the_mean_difference_and_as_sure_as_it_says(micro: World) -> None:
    best, other = Fixed(micro, best_lists(micro, 8)), Fixed(micro, torch.arange(8))
    same = true_effect(micro, best, best, days=range(1))
    assert (same.value, same.error, same.relative) == (0, 0, 0)
    seeds = range(10, 90)
    found = [
        true_effect(
            micro, best, other, "clicks", days=range(1), noise_seeds=seeds[low : low + 2], users=torch.arange(150)
        )
        for low in range(0, len(seeds), 2)
    ]
    values, errors = np.array([one.value for one in found]), np.array([one.error for one in found])
    assert values.std(ddof=1) == pytest.approx(errors.mean(), rel=0.35)
    relative = np.array([one.relative for one in found])
    assert relative.std(ddof=1) == pytest.approx(np.mean([one.relative_error for one in found]), rel=0.4)
    options = {"days": range(1), "users": torch.arange(150)}
    both = [
        [simulate(micro, policy, noise_seed=s, **options).users["clicks"].mean() for policy in (best, other)]
        for s in seeds[:2]
    ]
    assert found[0].value == pytest.approx(np.mean([a - b for a, b in both]))
    assert found[0].relative == pytest.approx(np.sum(both, 0)[0] / np.sum(both, 0)[1] - 1)
    assert (found[0].users, found[0].seeds) == (150, 2)
    effect = found[0].per_user["effect"]
    assert float(effect.mean()) == pytest.approx(found[0].value)
    ratio = true_effect(micro, best, other, "clicks", per="impressions", days=range(1), noise_seeds=seeds[:2])
    sums = [
        [simulate(micro, p, days=range(1), noise_seed=s).users.sum() for s in seeds[:2]] for p in (best, other)
    ]  # fmt: skip
    rates = [sum(s["clicks"][0] for s in arm) / sum(s["impressions"][0] for s in arm) for arm in sums]
    assert ratio.value == pytest.approx(rates[0] - rates[1])
    assert float(ratio.per_user["effect"].mean()) == pytest.approx(ratio.value)
    assert 0 < ratio.error < ratio.value / 10


def test_policies_that_learn_are_copied_for_every_month(micro: World) -> None:
    start = logs.log(micro, range(1)).filter(label=1)
    learns, control = Popularity(start), Fixed(micro, torch.arange(8))
    before = learns.ranked.clone()
    found = true_effect(micro, learns, control, days=range(1, 5), noise_seeds=(3, 4, 5))
    assert torch.equal(learns.ranked, before)
    values = [
        simulate(micro, Popularity(start), days=range(1, 5), noise_seed=s).users["clicks"].mean()
        - simulate(micro, control, days=range(1, 5), noise_seed=s).users["clicks"].mean()
        for s in (3, 4, 5)
    ]
    assert found.value == pytest.approx(np.mean(values))
    assert found.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))


# --- errors -----------------------------------------------------------------------------------------


class Wrong:
    """A policy whose slates are what `spoil` makes of good ones."""

    def __init__(self, world: World, spoil) -> None:
        self.good, self.spoil = Fixed(world, torch.arange(8), propensity=0.5), spoil

    def act(self, visits) -> Slates:
        good = self.good.act(visits)
        return self.spoil(good.item_id.clone(), good.propensity)


def put(column: str, row: int, place: int, value: float):
    def spoil(item_id, propensity):
        {"item_id": item_id, "propensity": propensity}[column][row, place] = value
        return Slates(item_id, propensity)

    return spoil


def test_slates_that_cannot_be_shown(micro: World) -> None:
    there = population.video_ids(micro, torch.arange(micro.num_videos))
    late = int(there[-1])
    day = int(population.videos(micro, torch.tensor([micro.num_videos - 1])).upload_day)
    user = simulate(micro, Fixed(micro, torch.arange(8)), days=range(1), keep_rows=True).rows
    assert user is not None
    third = user.filter(pl.col("position") == 0)["user_id"][2]
    named = rf"the slate of visit row 2 \(user_id {third}\) "
    for spoil, message in (
        (put("item_id", 2, 5, int(there[1])), named + f"shows item_id {int(there[1])} twice"),
        (put("item_id", 2, 5, 12345), named + "shows item_id 12345, which is not of this world"),
        (put("item_id", 2, 5, 1 << 45), named + f"shows item_id {1 << 45}, which is not of this world"),
        (put("item_id", 2, 5, late), named + f"shows item_id {late} on day 0: it is uploaded on day {day}, offer"),
        (put("item_id", 2, 5, -7), named + "shows item_id -7: ids are not negative"),
        (put("item_id", 2, 3, -1), named + "shows item_id .* below a position that is empty"),
        (put("propensity", 2, 0, math.nan), named + "has a propensity of nan"),
        (put("propensity", 2, 0, 0.0), named + "has a propensity of 0.0"),
        (put("propensity", 2, 0, 1.5), named + "has a propensity of 1.5"),
        (
            lambda i, p: Slates(i[:, :5]),
            r"slates must be item_id int64 \[\d+, 8\], one row a visit, got int64 \[\d+, 5\]",
        ),
        (lambda i, p: Slates(i[1:]), r"slates must be item_id int64 \[(\d+), 8\]"),
        (lambda i, p: Slates(i.double() * math.nan), r"got float64"),
        (lambda i, p: Slates(i, p[:, :2]), r"slates must have propensity float32 \[\d+, 8\], got float32 \[\d+, 2\]"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            simulate(micro, Wrong(micro, spoil), days=range(1))
        assert "\n" not in str(error.value)


def test_arguments_that_make_no_sense(micro: World) -> None:
    policy = LoggingPolicy(micro)
    for options, message in (
        ({"days": range(0, 4, 2)}, "days must be consecutive"),
        ({"days": range(5, 99)}, r"days must be consecutive ones of 0 .. 11"),
        ({"users": torch.tensor([1, 1])}, "users must be an int64 vector of different numbers"),
        ({"users": torch.tensor([300])}, r"users must lie in 0 .. 299"),
        ({"k": 9}, r"k must lie in 1 .. 8, world.max_depth, got 9"),
        ({"users_at_once": 0}, "users_at_once must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate(micro, policy, **options)
    with pytest.raises(ValueError, match="metric ctr is unknown: choose from visits"):
        true_effect(micro, policy, policy, "ctr")
    with pytest.raises(ValueError, match="noise_seeds must be at least two different"):
        true_effect(micro, policy, policy, noise_seeds=[3])
    stranger = Visits(torch.tensor([5]), torch.tensor([micro.start_us]), torch.tensor([1]), 3)
    with pytest.raises(ValueError, match="user_id 5 "):
        policy.act(stranger)
