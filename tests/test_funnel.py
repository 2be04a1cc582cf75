"""The funnel: what it finds, that one by one is as in a batch, and that a list comes whatever fails."""

import time
from datetime import UTC, datetime

import polars as pl
import pytest
import torch

from recsys import config
from recsys.candidate_ranker import CandidateRanker
from recsys.data.datamodule import RecDataModule
from recsys.features import Category, FeaturePipeline, Hashed, Plain
from recsys.features.serving import FeatureStore
from recsys.features.vocabulary import Vocabulary
from recsys.funnel import Funnel
from recsys.schema import NUM_RESERVED, Interactions
from recsys.sources import everybody

NUM_ITEMS, NUM_USERS = 60, 20
ITEMS = Vocabulary(list(range(1000, 1000 + NUM_ITEMS)))
ITEM_ROWS = pl.DataFrame(
    {
        "item_id": [None, None, *ITEMS.ids],
        "topic": [None, None, *(n % 6 for n in range(NUM_ITEMS))],
        "duration": [None, None, *(10.0 * n for n in range(NUM_ITEMS))],
    }
)
USERS = pl.DataFrame({"user_id": list(range(NUM_USERS)), "country": [["DE", "US"][n % 2] for n in range(NUM_USERS)]})
LIKED = Interactions.from_pairs(
    torch.arange(2, 2 + NUM_USERS).repeat_interleave(3), torch.arange(3 * NUM_USERS) % NUM_ITEMS + 2,
    num_rows=2 + NUM_USERS, num_items=2 + NUM_ITEMS,
)  # fmt: skip
NOW = datetime(2026, 1, 5, tzinfo=UTC)
RISING, FALLING = torch.arange(2, 2 + NUM_ITEMS), torch.arange(1 + NUM_ITEMS, 1, -1)


def ranker(score=None, draw=None):
    """Users of DE want topic 1, others topic 2; then by id."""
    rows = pl.DataFrame(
        {"user_id": [0, 1] * 30, "country": ["DE", "US"] * 30, "item_id": ITEMS.ids, "topic": ITEM_ROWS["topic"][2:]}
    ).with_columns(label=pl.lit(1))
    pipeline = FeaturePipeline(
        user={"country": Category()},
        item={"item_id": Category(), "topic": Category()},
        context={"both": Hashed(100, columns=["country", "topic"])},
        label={"label": Plain()},
    ).fit(rows)

    def prefers(batch):
        assert batch["country"].shape == (1,)
        wanted = torch.where(batch["country"] == 2, 3, 4)  # DE and US are 2 and 3, topics 0, 1, … are 2, 3, …
        return (batch["topic"] == wanted).float() + batch["item_id"] / 1000

    return CandidateRanker(FeatureStore(pipeline, ITEM_ROWS), score or prefers, draw)


def funnel(sources=None, **options):
    sources = {"up": everybody(RISING[:30]), "down": everybody(FALLING[:30])} if sources is None else sources
    settings = {"users": USERS, "history": LIKED, "now": NOW, "ranker": ranker(), "popular": RISING}
    return Funnel(sources, ITEMS, ITEM_ROWS, **(settings | options))


def raises(*arguments, **options):
    raise RuntimeError("out of order")


def sleeps(*arguments):
    time.sleep(1)


def full(frame, k, users):
    """Every list is of length k, without repeats and without what was liked."""
    assert frame.group_by("user_id").len()["len"].to_list() == [k] * users
    assert frame.select("user_id", "item_id").is_unique().all()
    assert frame["rank"].to_list() == list(range(1, k + 1)) * users


def test_lists_are_what_the_ranker_wants_of_what_was_found():
    found = funnel().recommend(range(NUM_USERS), 10)
    full(found, 10, NUM_USERS)
    topics = found.join(ITEM_ROWS, on="item_id", maintain_order="left")["topic"].to_numpy().reshape(NUM_USERS, 10)
    liked = LIKED.select(torch.arange(2, 2 + NUM_USERS))
    for user in range(NUM_USERS):
        mine = set((liked.rows(user, user + 1).item_idx - 2).tolist())
        wanted = [n for n in range(NUM_ITEMS) if n % 6 == 1 + user % 2 and n not in mine]
        expected = sorted(wanted, reverse=True)[:10]
        rest = [n for n in range(NUM_ITEMS - 1, -1, -1) if n not in mine and n not in expected]
        ids = found.filter(pl.col("user_id") == user)["item_id"].to_list()
        assert [i - 1000 for i in ids] == (expected + rest)[:10]
        assert (topics[user, : len(expected)] == 1 + user % 2).all()
    assert set(found["source"]) == {"up", "down"}
    assert found["degraded"].null_count() == found.height
    assert (found["propensity"] == 1).all()


@pytest.mark.parametrize("options", [{}, {"caps": {"topic": 2}, "diversity": 0.2, "exploration": 0.3}])
def test_one_by_one_is_as_in_a_batch_of_any_size(options):
    users = list(range(NUM_USERS))
    whole = funnel(users_at_once=7, **options).recommend(users, 12)
    each = pl.concat(funnel(**options).recommend([user], 12) for user in users)
    assert whole.drop("score").equals(each.drop("score"))
    assert whole["score"].to_list() == pytest.approx(each["score"].to_list())


def test_new_and_unknown_users_get_lists_too():
    found = funnel().recommend([{"country": "US"}, {"user_id": 12345}, {"user_id": 4, "country": "US"}], 10)
    assert found["user_id"].to_list() == [None] * 10 + [12345] * 10 + [4] * 10
    first = found["item_id"].to_numpy().reshape(3, 10)
    assert (first[0] % 6 == (1000 + 2) % 6)[:9].all()
    assert (first[2] % 6 == (1000 + 2) % 6)[:9].all()
    assert funnel().recommend([777], 5).height == 5


def test_a_history_that_is_given_is_left_out():
    found = funnel().recommend([{"history": list(range(1000, 1055))}], 10)
    assert sorted(found["item_id"].to_list()) == list(range(1055, 1060))  # all that is left


def test_rules_hold_for_what_fills_up_as_well():
    rules = ["duration < 300", "topic <> 1 OR country <> 'DE'"]
    found = funnel({"few": everybody(RISING[:4])}, rules=rules, num_candidates=5).recommend(range(NUM_USERS), 12)
    rows = found.join(ITEM_ROWS, on="item_id", maintain_order="left").join(USERS, on="user_id", maintain_order="left")
    assert (rows["duration"] < 300).all()
    assert rows.filter((pl.col("country") == "DE") & (pl.col("topic") == 1)).is_empty()
    assert "popular" in set(found["source"])
    full(found, 12, NUM_USERS)


def test_caps_and_diversity_spread_topics():
    found = funnel(caps={"topic": 2}).recommend(range(NUM_USERS), 12)
    counts = found.join(ITEM_ROWS, on="item_id").group_by("user_id", "topic").len()["len"]
    assert counts.to_list() == [2] * (NUM_USERS * 6)
    diverse = funnel(diversity=0.9, caps={"topic": 60}).recommend([0], 6)
    assert diverse.join(ITEM_ROWS, on="item_id")["topic"].n_unique() == 6


def test_exploration_says_where_and_with_what_probability():
    found = funnel(exploration=0.2, users_at_once=5).recommend(
        [{"user_id": n % 20, "timestamp": datetime(2026, 1, 1 + n % 28, n % 24, tzinfo=UTC)} for n in range(600)], 10
    )
    assert found["explored"].mean() == pytest.approx(0.2, abs=0.02)
    plain = found.filter(~pl.col("explored"))
    assert plain["propensity"].to_list() == pytest.approx([0.8] * plain.height)
    assert found.filter("explored")["propensity"].max() < 0.2 / 40


def test_thompson_explores_by_the_posterior():
    drawn = ranker(draw=lambda batch, seed: -batch["item_id"].float())
    found = funnel(ranker=drawn, exploration=0.5).recommend(range(NUM_USERS), 10)
    first = found.filter("explored").group_by("user_id", maintain_order=True).first()
    assert (first["item_id"] <= 1003).all()  # the lowest that was not liked
    assert found.filter("explored")["propensity"].null_count() == found["explored"].sum()


FAULTS = {
    "the ranker raises": ({"ranker": ranker(raises)}, "rank: RuntimeError: out of order"),
    "the ranker gives NaN": ({"ranker": ranker(lambda b: b["item_id"] * torch.nan)}, "rank: ValueError: .*NaN"),
    "a source raises": ({"sources": {"up": everybody(RISING), "bad": raises}}, "retrieve bad: RuntimeError"),
    "all sources raise": ({"sources": {"bad": raises}}, "retrieve bad: RuntimeError: out of order"),
    "a source sleeps": (
        {"sources": {"up": everybody(RISING), "slow": sleeps}, "budget_ms": {"retrieve": 300}},
        "retrieve slow: TimeoutError: took longer than 300 ms",
    ),
    "the ranker sleeps": (
        {"ranker": ranker(sleeps), "budget_ms": {"rank": 300}}, "rank: TimeoutError: took longer than 300 ms",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_full_list_comes_whatever_fails(fault):
    options, reason = FAULTS[fault]
    page = funnel(**options)
    started = time.perf_counter()
    with_budget = "budget_ms" in options
    found = page.recommend([3], 20)
    assert not with_budget or time.perf_counter() - started < 0.9
    full(found, 20, 1)
    assert found["degraded"].str.contains(reason).all()
    assert page.failures == {": ".join(reason.split(": ")[:2]): 1}
    again = page.recommend([3], 20)
    full(again, 20, 1)
    assert sum(page.failures.values()) == 2


def test_a_missing_index_and_an_empty_feature_store_are_gone_without():
    page = funnel()
    page.sources["up"] = None  # type: ignore[assignment]
    page.ranker.store._made = {}
    page.ranker.store._items = pl.DataFrame()
    found = page.recommend([3, 4], 20)
    full(found, 20, 2)
    assert found["degraded"].str.contains("retrieve up: TypeError").all()
    assert found["degraded"].str.contains("features: ").all()
    assert {name.split(":")[0] for name in page.failures} == {"retrieve up", "features"}


def test_re_ranking_that_fails_leaves_the_order_of_the_ranker(monkeypatch):
    monkeypatch.setattr("recsys.funnel.diversified", raises)
    monkeypatch.setattr("recsys.funnel.explored", raises)
    found = funnel(caps={"topic": 1}, exploration=0.5).recommend([3], 10)
    assert found["item_id"].equals(funnel().recommend([3], 10)["item_id"])
    assert (found["degraded"] == "rerank: RuntimeError: out of order").all()


def test_what_fails_in_no_stage_brings_what_is_popular(monkeypatch):
    monkeypatch.setattr("recsys.funnel.fused", raises)
    page = funnel()
    found = page.recommend([3, 9], 10)
    assert found["item_id"].to_list() == list(range(1000, 1010)) * 2
    assert set(found["source"]) == {"popular"}
    assert page.failures == {"funnel: RuntimeError": 1}


def test_a_late_stage_does_not_hold_up_the_next_request():
    slow = {"first": True}

    def once(asked, num):
        if slow.pop("first", False):
            time.sleep(0.5)
        return RISING[:num].expand(len(asked), -1)

    page = funnel({"slow": once}, budget_ms={"retrieve": 200})
    assert page.recommend([1], 5)["degraded"].null_count() == 0
    assert page.recommend([1], 5)["degraded"].null_count() == 5


def test_milliseconds_are_told_by_stage():
    answer = funnel().answers([1, 2], 5)[0]
    assert set(answer.milliseconds) == {"retrieve", "features", "rank", "rerank"}
    assert answer.milliseconds["rank"] > 0
    assert answer.retrieved.shape[1] > answer.item_idx.shape[1] == answer.ranked.shape[1] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": {}}, "a funnel takes 1 to 60 sources of candidates, got 0"),
        ({"num_candidates": 0}, "num_candidates must be at least 1, got 0"),
        ({"exploration": 2}, r"exploration must lie in \[0, 1\], got 2"),
        ({"budget_ms": {"ranks": 5}}, "budget_ms: no stage ranks: did you mean rank"),
        ({"budget_ms": {"rank": 0}}, "budget_ms: rank must be above 0"),
        ({"caps": {"topics": 5}}, "caps: items have no column 'topics': did you mean topic"),
        ({"caps": {"topic": 0}}, "caps: topic must be at least 1"),
        ({"diversity": 0.5}, "diversity=0.5 needs vectors_ID, or caps"),
        ({"rules": ["durations > 1"]}, "no column 'durations'"),
    ],
)
def test_arguments_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        funnel(**options)


def test_a_wrong_question_is_the_callers():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        funnel().recommend([1], 0)
    with pytest.raises(ValueError, match="request 0 says 'contry'"):
        funnel().recommend([{"contry": "DE"}])
    assert funnel().recommend([], 5).is_empty()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small world, with retrievers of every kind and rankers."""
    from recsys.training import train

    folder = tmp_path_factory.mktemp("runs")
    world = (
        "data=world",
        "world=tiny",
        "world.num_users=150",
        "world.num_videos=300",
        "world.num_topics=8",
        "world.max_depth=40",
        "evaluation.num_replicates=0",
    )

    def run(name, *overrides):
        return train(config.compose(*world, *overrides), folder / name)

    made = {
        "als": run("als", "model=als"),
        "ease": run("ease", "model=ease"),
        "tags": run("tags", "model=tags", "features=world"),
        "recent": run("recent", "model=popularity", "model.window_days=7"),
        "logistic": run("logistic", "model=logistic", "features=world"),
        "bayes_logistic": run("bayes", "model=bayes_logistic", "features=world"),
    }
    cfg = config.compose(*world)
    return made, RecDataModule(config.build(cfg.data), config.partial(cfg.split), cfg.seed)


def test_finished_runs_make_a_funnel(runs):
    made, data = runs
    retrievers = {name: made[name] for name in ("als", "ease", "tags", "recent")}
    page = Funnel.of_runs(retrievers, made["logistic"], data.log, with_fresh=True, num_candidates=100)
    users = made["als"].users.ids
    found = page.recommend(users, 20)
    full(found, 20, len(users))
    assert page.failures == {}
    assert {name for source in found["source"] for name in source.split("+")} >= {*retrievers, "fresh", "popular"}
    history = made["als"].history
    liked = pl.DataFrame(
        {
            "user_id": users.gather((history.row_idx() - NUM_RESERVED).numpy()),
            "item_id": made["als"].items.decode(history.item_idx),
        }
    )
    assert found.join(liked, on=["user_id", "item_id"], how="semi").is_empty()
    # The score is what the ranker's run says of the joined row, at the cut.
    some = found.head(40)
    rows = some.select("user_id", "item_id").with_columns(
        timestamp=pl.lit(data.split.test_cut).cast(pl.Datetime("us", "UTC"))
    )
    from recsys.data.rows import joined

    expected = made["logistic"].predict(joined(data.log, rows).collect())
    assert some["score"].to_list() == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_retrievers_own_list_is_its_source(runs):
    made, data = runs
    users = made["als"].users.ids.gather(
        (made["als"].history.row_counts()[NUM_RESERVED:] > 2).nonzero()[:30, 0].numpy()
    )
    for name in ("als", "ease"):
        page = Funnel.of_runs({name: made[name]}, None, data.log, with_popular=False)
        found, own = page.recommend(users, 20), made[name].recommend(users, 20)
        assert (own["source"] == "model").all()
        # Equal scores, as of what had no positive in train, may come in another order.
        at_same_place = (found["item_id"] == own["item_id"]).to_numpy().reshape(-1, 20)
        assert at_same_place[:, :5].all()
        assert at_same_place.mean() > 0.8


def test_new_users_are_ranked_by_what_they_say(runs):
    made, data = runs
    page = Funnel.of_runs({"als": made["als"], "tags": made["tags"]}, made["logistic"], data.log)
    liked = made["als"].items.ids.head(3).to_list()
    found = page.recommend([{"country": "DE", "age_band": "18-24"}, {"country": "JP", "history": liked}], 20)
    lists = found["item_id"].to_numpy().reshape(2, 20)
    assert not set(lists[1]) & set(liked)
    assert any("tags" in source for source in found["source"][20:])
    assert not any("tags" in source for source in found["source"][:20])
    assert page.failures == {}


def test_a_bayesian_ranker_explores_by_thompson_sampling(runs):
    made, data = runs
    page = Funnel.of_runs({"als": made["als"]}, made["bayes_logistic"], data.log, exploration=0.2)
    users = made["als"].users.ids.head(20)
    found = page.recommend(users, 20)
    assert found["explored"].any()
    assert found.filter("explored")["propensity"].null_count() == found["explored"].sum()
    assert found.equals(page.recommend(users, 20))
    assert page.failures == {}


def test_runs_of_the_wrong_kind_are_named(runs):
    made, data = runs
    with pytest.raises(ValueError, match="holds a ranker, a funnel retrieves with retrievers"):
        Funnel.of_runs({"logistic": made["logistic"]}, None, data.log)
    with pytest.raises(ValueError, match="holds a retriever: name a ranker's run"):
        Funnel.of_runs({"als": made["als"]}, made["ease"], data.log)
    with pytest.raises(ValueError, match="needs the run of at least one retriever"):
        Funnel.of_runs({}, None, data.log)


def test_what_fills_up_is_as_from_the_whole_list_of_the_popular():
    """However much of it was seen, is forbidden or stands there already."""
    settings = {"rules": ["duration > 100"], "num_candidates": 5, "ranker": None}
    few = funnel({"few": everybody(RISING[20:24])}, **settings)
    for user in range(NUM_USERS):
        found = few.recommend([user], 15)["item_id"].to_list()
        liked = set((LIKED.rows(user + 2, user + 3).item_idx + 998).tolist())
        allowed = [item for item in range(1011, 1060) if item not in liked]
        first = [item for item in range(1020, 1024) if item not in liked]
        assert found == (first + [item for item in allowed if item not in first])[:15]
