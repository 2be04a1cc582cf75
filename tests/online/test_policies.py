"""Policies: naive references, exact propensities, what they learn, and that no batch matters."""

import copy
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from recsys.index import ItemIndex
from recsys.models.als import ALS
from recsys.models.bayes_logistic import BayesLogistic
from recsys.online.linucb import LinUCB
from recsys.online.policies import EpsilonGreedy, FromFunnel, FromLists, FromRun, Popularity
from recsys.online.simulator import LoggingPolicy, simulate
from recsys.online.slates import Slates, Visits
from recsys.online.thompson import Thompson
from recsys.online.vectors import FromVectors, from_retriever
from recsys.schema import Column, Interactions, Schema
from recsys.world import World, logs, population

DAY_US = 86_400_000_000


def visits(count: int, k: int, users: int = 7, seed: int = 0) -> Visits:
    generator = torch.Generator().manual_seed(seed)
    key = torch.randint(-(1 << 62), 1 << 62, (count,), generator=generator)
    return Visits(torch.randint(0, users, (count,), generator=generator), torch.full((count,), DAY_US), key, k)


def rows(user_id: list, item_id: list, label: list, day: int = 0) -> dict[str, torch.Tensor]:
    columns = {"user_id": torch.tensor(user_id), "item_id": torch.tensor(item_id)}
    return columns | {"label": torch.tensor(label), "timestamp": torch.full((len(label),), day * DAY_US)}


def assert_no_batch_matters(policy, asked: Visits) -> Slates:
    """Slates of all at once, in parts and the other way round."""
    whole = policy.act(asked)
    parts = [policy.act(asked[low : low + 5]) for low in range(0, len(asked), 5)]
    back = torch.arange(len(asked) - 1, -1, -1)
    turned = policy.act(asked[back])
    assert torch.equal(whole.item_id, torch.cat([part.item_id for part in parts]))
    assert torch.equal(whole.item_id[back], turned.item_id)
    if whole.propensity is not None:
        assert torch.equal(whole.propensity, torch.cat([part.propensity for part in parts]))
    for row in whole.item_id.tolist():
        shown = [item for item in row if item >= 0]
        assert len(set(shown)) == len(shown)
    return whole


# --- popularity -------------------------------------------------------------------------------------


def test_popularity_counts_positives_and_goes_on_counting() -> None:
    log = pl.DataFrame({"item_id": [5, 5, 9, 7, 7, 7, 3], "label": [1, 1, 1, 0, 0, 1, 0]})
    policy = Popularity(log)
    found = policy.act(visits(3, 5))
    assert found.item_id[0, 0] == 5
    assert found.item_id.tolist() == [[*found.item_id[0, :4].tolist(), -1]] * 3
    assert set(found.item_id[0, 1:3].tolist()) == {7, 9}
    assert found.item_id[0, 3] == 3
    assert found.propensity is not None
    assert found.propensity[0].tolist() == [1, 1, 1, 1, 0]
    policy.update(rows([0] * 3, [3, 3, 3], [1, 1, 1]))
    assert policy.act(visits(1, 2)).item_id[0, 0] == 3
    at_once = Popularity(pl.concat([log, pl.DataFrame({"item_id": [3, 3, 3], "label": [1, 1, 1]})]))
    assert torch.equal(at_once.ranked, policy.ranked)
    assert Popularity().act(visits(2, 3)).item_id.tolist() == [[-1] * 3] * 2
    positives = Popularity(log.filter(label=1).select("item_id"))
    assert set(positives.ranked.tolist()) == {5, 7, 9}


def test_a_window_forgets_and_smoothing_doubts_what_is_seldom_shown() -> None:
    policy = Popularity(window=2)
    policy.update(rows([0] * 4, [1, 1, 1, 2], [1] * 4, day=0))
    policy.update(rows([0] * 3, [2, 3, 3], [1] * 3, day=1))
    assert policy.ranked[0] == 1
    policy.update(rows([0], [4], [1], day=2))
    assert policy.ranked[0] == 3
    assert 1 not in policy.ranked.tolist()
    # 1 of 1 against 60 of 100, the mean being 61 of 201: (1 + 10 m) / 11 = .367 < (60 + 10 m) / 110 = .573.
    shown = pl.DataFrame({"item_id": [1] + [2] * 100 + [3] * 100, "label": [1] + [1] * 60 + [0] * 140})
    smoothed = Popularity(shown, smoothing=10.0).ranked.tolist()
    assert smoothed == [2, 1, 3]
    assert Popularity(shown, smoothing=1e-9).ranked.tolist() == [1, 2, 3]


def test_equally_popular_items_stand_in_no_order_of_ids() -> None:
    same = pl.DataFrame({"item_id": np.arange(2000), "label": 1})
    orders = [Popularity(same, seed=seed).ranked.double() for seed in (0, 1)]
    for order in (*orders, orders[0][orders[1].argsort()]):
        assert abs(float(torch.corrcoef(torch.stack([order, torch.arange(2000).double()]))[0, 1])) < 0.1


# --- epsilon greedy ---------------------------------------------------------------------------------


def lists_for_all(item_id: list[int], users: int = 7) -> FromLists:
    row = [(user, rank, item) for user in range(users) for rank, item in enumerate(item_id)]
    return FromLists(pl.DataFrame(row, schema=["user_id", "rank", "item_id"], orient="row"))


def test_slates_come_as_often_as_their_propensities_say() -> None:
    """All slates of three from a catalogue of five, counted."""
    policy = EpsilonGreedy(lists_for_all([10, 20, 30]), pl.DataFrame({"item_id": [10, 20, 30, 40, 50]}), epsilon=0.4)
    found = policy.act(visits(60_000, 3))
    assert found.propensity is not None
    stated: dict[tuple, float] = {}
    for slate, p in zip(found.item_id.tolist(), found.propensity.double().prod(1).tolist(), strict=True):
        assert stated.setdefault(tuple(slate), p) == p
    assert sum(stated.values()) == pytest.approx(1)
    assert len(stated) == 60
    slates, counts = found.item_id.unique(dim=0, return_counts=True)
    expected = np.array([stated[tuple(slate)] for slate in slates.tolist()]) * 60_000
    assert stats.chisquare(counts.numpy(), expected * counts.sum().item() / expected.sum()).pvalue > 1e-3


def test_epsilon_greedy_at_its_ends_and_over_time() -> None:
    base = lists_for_all([10, 20])
    items = pl.DataFrame({"item_id": [10, 20, 30, 40], "uploaded": [0, 0, 0, 5 * DAY_US]}).with_columns(
        pl.col("uploaded").cast(pl.Datetime("us", "UTC"))
    )
    asked = visits(4000, 4)
    never = EpsilonGreedy(base, items, 0.0).act(asked)
    assert torch.equal(never.item_id, base.act(asked).item_id)
    assert torch.equal(never.propensity, base.act(asked).propensity)
    always = EpsilonGreedy(base, items, 1.0).act(asked)
    assert (always.item_id[:, 2:] == -1).all()  # as long as the base's
    share = torch.bincount(always.item_id[:, 0], minlength=41)[[10, 20, 30, 40]] / len(asked)
    assert share[:3].tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert share[3] == 0  # not uploaded yet
    assert always.propensity[0].tolist() == pytest.approx([1 / 3, 1 / 2, 0, 0])
    later = Visits(asked.user_id, asked.timestamp + 9 * DAY_US, asked.key, 4)
    assert (EpsilonGreedy(base, items, 1.0).act(later).item_id == 40).any()
    few = EpsilonGreedy(lists_for_all([10, 20, 30]), items.head(3), 1.0).act(visits(50, 3))
    assert (few.item_id.sort(1).values == torch.tensor([10, 20, 30])).all()  # the last is all that is left
    assert_no_batch_matters(EpsilonGreedy(base, items, 0.3), visits(23, 4))
    other = EpsilonGreedy(base, items, 0.3, seed=1).act(asked)
    assert not torch.equal(other.item_id, EpsilonGreedy(base, items, 0.3).act(asked).item_id)
    assert EpsilonGreedy(EpsilonGreedy(base, items), items).act(asked).propensity is None
    with pytest.raises(ValueError, match=r"epsilon must lie in \[0, 1\], got 2"):
        EpsilonGreedy(base, items, 2)
    with pytest.raises(ValueError, match="items must have each item_id once: 10"):
        EpsilonGreedy(base, pl.concat([items, items]))


def test_what_explores_learns_through_its_base() -> None:
    items = pl.DataFrame({"item_id": [1, 2]})
    policy = EpsilonGreedy(Popularity(pl.DataFrame({"item_id": [1]})), items, 0.0)
    copied = copy.deepcopy(policy)
    policy.update(rows([0, 0], [2, 2], [1, 1]))
    assert policy.act(visits(1, 1)).item_id.tolist() == [[2]]
    assert copied.act(visits(1, 1)).item_id.tolist() == [[1]]
    copied.update(rows([0, 0], [2, 2], [1, 1]))  # the copy's own base learns
    assert copied.act(visits(1, 1)).item_id.tolist() == [[2]]
    assert not hasattr(EpsilonGreedy(lists_for_all([1]), items), "update")


# --- lists ------------------------------------------------------------------------------------------


class Recommends:
    """What a run or a funnel answers."""

    def recommend(self, user_ids, k: int = 100) -> pl.DataFrame:
        user_ids = [4, 2] if user_ids is None else user_ids
        row = [(user, rank + 1, 100 * user + rank) for user in user_ids for rank in range(min(k, 3))]
        return pl.DataFrame(row, schema=["user_id", "rank", "item_id"], orient="row").reverse()


def test_lists_are_shown_and_strangers_get_what_is_popular() -> None:
    popular = Popularity(pl.DataFrame({"item_id": [7, 7, 8]}))
    asked = Visits(torch.tensor([2, 3, 4, 2]), torch.zeros(4).long(), torch.arange(4), 4)
    for policy in (FromRun(Recommends(), fallback=popular), FromFunnel(Recommends(), [2, 4], fallback=popular)):
        found = policy.act(asked)
        assert found.item_id.tolist() == [[200, 201, 202, -1], [7, 8, -1, -1], [400, 401, 402, -1], [200, 201, 202, -1]]
        assert found.propensity is not None
        assert torch.equal(found.propensity, (found.item_id >= 0).float())
    alone = FromRun(Recommends(), k=2)
    assert alone.act(asked).item_id.tolist() == [[200, 201, -1, -1], [-1] * 4, [400, 401, -1, -1], [200, 201, -1, -1]]
    assert not hasattr(alone, "update")
    assert FromRun(Recommends()).act(Visits(*(x[:1] for x in (asked.user_id,) * 3), 2)).item_id.tolist() == [[200, 201]]
    learns = FromRun(Recommends(), fallback=popular)
    learns.update(rows([0] * 3, [8] * 3, [1] * 3))
    assert learns.act(asked).item_id[1].tolist() == [8, 7, -1, -1]
    with pytest.raises(ValueError, match="lists have no column rank, got user_id, item_id"):
        FromLists(pl.DataFrame({"user_id": [1], "item_id": [1]}))


def test_vectors_are_searched_once_without_what_was_seen() -> None:
    generator = torch.Generator().manual_seed(1)
    users_UD, items_ID = (torch.randn(n, 6, generator=generator) for n in (50, 200))
    user_id, item_id = torch.randperm(1000, generator=generator)[:50], torch.arange(200) * 7 + 3
    row, item = torch.arange(50).repeat_interleave(4), torch.randint(0, 200, (200,), generator=generator)
    seen = Interactions.from_pairs(row, item, num_rows=50, num_items=200)
    index = ItemIndex(items_ID, factory="exact")
    asked = Visits(
        user_id[torch.randint(0, 50, (90,), generator=generator)], torch.zeros(90).long(), torch.arange(90), 5
    )
    policy = FromVectors(user_id, users_UD, item_id, index, seen=seen, k=8, fallback=lists_for_all([1, 2]))
    found = assert_no_batch_matters(policy, asked)
    scores = users_UD @ items_ID.T
    scores[seen.row_idx(), seen.item_idx] = -torch.inf
    where = {int(user): u for u, user in enumerate(user_id)}
    for user, slate in zip(asked.user_id.tolist(), found.item_id.tolist(), strict=True):
        assert slate == item_id[scores[where[user]].topk(5).indices].tolist()
    strangers = policy.act(
        Visits(torch.tensor([2000, int(user_id[0])]), torch.zeros(2).long(), torch.zeros(2).long(), 2)
    )
    assert strangers.item_id[0].tolist() == [-1, -1]
    assert strangers.item_id[1].tolist() == item_id[scores[0].topk(2).indices].tolist()
    policy.index = None  # type: ignore[assignment]  # all lists are there
    assert torch.equal(policy.act(asked).item_id, found.item_id)
    with pytest.raises(ValueError, match="k=9 is more than the 8 items of a list"):
        policy.act(Visits(asked.user_id, asked.timestamp, asked.key, 9))
    with pytest.raises(ValueError, match="vectors must be one a user: 49 users"):
        FromVectors(user_id[:49], users_UD, item_id, index)


def test_a_retriever_serves_the_world_better_than_what_is_popular(tiny: World) -> None:
    log = logs.log(tiny, range(12))
    likes = log.filter(label=1)
    users, items = (likes[name].unique().sort() for name in ("user_id", "item_id"))
    user_idx = torch.from_numpy(np.searchsorted(users.to_numpy(), likes["user_id"].to_numpy())) + 2
    item_idx = torch.from_numpy(np.searchsorted(items.to_numpy(), likes["item_id"].to_numpy())) + 2
    history = Interactions.from_pairs(user_idx, item_idx, num_rows=len(users) + 2, num_items=len(items) + 2)
    model = ALS(Schema.of(len(users) + 2, len(items) + 2), embedding_dim=16, num_sweeps=4)
    model.fit(history)
    ids = [torch.from_numpy(column.to_numpy(writable=True)) for column in (users, items)]
    popular = Popularity(likes)
    policy = from_retriever(model, history, *ids, fallback=popular, factory="exact")
    clicks = {}
    for name, one in (("als", policy), ("popular", popular), ("logging", LoggingPolicy(tiny))):
        found = simulate(tiny, one, days=range(12, 14), keep_rows=name == "als")
        clicks[name] = found.users["clicks"].sum()
        if found.rows is not None:
            again = found.rows.join(likes.select("user_id", "item_id").unique(), ["user_id", "item_id"])
            strangers = set(found.rows["user_id"]) - set(users)
            assert strangers
            assert set(again["user_id"]) <= strangers  # nobody is shown again what they liked
    assert clicks["als"] > 1.4 * clicks["popular"]


# --- LinUCB -----------------------------------------------------------------------------------------


def paper_bounds(users, items, log, alpha: float, hybrid: bool) -> np.ndarray:
    """Algorithms 1 and 2 as printed, a row at a time: upper bounds of all items for all users."""
    (num_items, num_e), d = items.shape, users.shape[1]
    k = d * num_e
    A0, b0 = np.eye(k), np.zeros(k)
    A, B, b = [np.eye(d) for _ in items], [np.zeros((d, k)) for _ in items], [np.zeros(d) for _ in items]
    for u, a, r in log:
        x, z = users[u], np.outer(users[u], items[a]).ravel()
        if hybrid:
            inverse = np.linalg.inv(A[a])
            A0, b0 = A0 + B[a].T @ inverse @ B[a], b0 + B[a].T @ inverse @ b[a]
        A[a], B[a], b[a] = A[a] + np.outer(x, x), B[a] + np.outer(x, z), b[a] + r * x
        if hybrid:
            inverse = np.linalg.inv(A[a])
            A0 = A0 + np.outer(z, z) - B[a].T @ inverse @ B[a]
            b0 = b0 + r * z - B[a].T @ inverse @ b[a]
    found = np.zeros((len(users), num_items))
    A0_, beta = np.linalg.inv(A0), np.linalg.inv(A0) @ b0
    for u, x in enumerate(users):
        for a in range(num_items):
            A_, z = np.linalg.inv(A[a]), np.outer(x, items[a]).ravel()
            if hybrid:
                theta = A_ @ (b[a] - B[a] @ beta)
                s = z @ A0_ @ z - 2 * z @ A0_ @ B[a].T @ A_ @ x + x @ A_ @ x
                s += x @ A_ @ B[a] @ A0_ @ B[a].T @ A_ @ x
                found[u, a] = z @ beta + x @ theta + alpha * math.sqrt(s)
            else:
                found[u, a] = x @ A_ @ b[a] + alpha * math.sqrt(x @ A_ @ x)
    return found


@pytest.mark.parametrize("hybrid", [False, True])
def test_linucb_is_the_papers_a_row_at_a_time(hybrid: bool) -> None:
    generator = np.random.default_rng(0)
    users, items = generator.normal(size=(12, 3)), generator.normal(size=(9, 2))
    log = [(generator.integers(12), generator.integers(7), int(generator.random() < 0.4)) for _ in range(150)]
    ids = torch.arange(12) * 5 + 1, torch.arange(9) * 3 + 2
    features = torch.from_numpy(items) if hybrid else None
    policy = LinUCB(ids[0], torch.from_numpy(users), ids[1], features, alpha=0.8)
    for part in (log[:1], log[1:80], log[80:]):
        u, a, r = (torch.tensor([row[c] for row in part]) for c in range(3))
        policy.update({"user_id": ids[0][u], "item_id": ids[1][a], "label": r})
    strangers = rows([0, 1], [2, 1], [1, 1])
    policy.update(strangers)  # of an unknown user and an unknown item: passed over
    expected = paper_bounds(users, items, log, 0.8, hybrid)
    assert policy.bounds(torch.from_numpy(users)).numpy() == pytest.approx(expected, abs=1e-9)
    some = torch.tensor([[3, 0], [8, 1]])
    found = policy.bounds(torch.from_numpy(users[:2]), some).numpy()
    assert found == pytest.approx(np.take_along_axis(expected[:2], some.numpy(), 1), abs=1e-9)
    asked = Visits(ids[0][torch.arange(30) % 12], torch.zeros(30).long(), torch.arange(30), 4)
    slates = assert_no_batch_matters(policy, asked)
    best = np.argsort(-expected, axis=1)[:, :4]
    assert torch.equal(slates.item_id, ids[1][torch.from_numpy(best)[torch.arange(30) % 12]])


def test_linucb_ranks_what_candidates_bring_and_refuses_what_is_none() -> None:
    users, items = torch.eye(3).double(), torch.tensor([5, 6, 7, 8])
    policy = LinUCB(torch.arange(3), users, items, alpha=0.1, candidates=lists_for_all([8, 99, 6], 3), num_candidates=3)
    policy.update(rows([0] * 20 + [1] * 20, [6] * 20 + [6] * 20, [1] * 20 + [0] * 20))
    asked = Visits(torch.tensor([0, 1, 2, 9]), torch.zeros(4).long(), torch.arange(4), 3)
    found = assert_no_batch_matters(policy, asked).item_id.tolist()
    assert found[:2] == [[6, 8, -1], [8, 6, -1]]
    assert found[3] == [-1, -1, -1]  # the base has no list
    wrong = users.clone()
    wrong[1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"features of users must be finite: row 1 \(1\) is not"):
        LinUCB(torch.arange(3), wrong, items)
    with pytest.raises(ValueError, match=r"features of items must be one row each, 4, got \[3, 3\]"):
        LinUCB(torch.arange(3), users, items, users)
    with pytest.raises(ValueError, match="ridge must be above 0"):
        LinUCB(torch.arange(3), users, items, ridge=0.0)


# --- Thompson ---------------------------------------------------------------------------------------

COLUMNS = (Column("user", "user_feature", "int64", 7), Column("item", "item_feature", "int64", 60))


def features(frame: pl.DataFrame) -> dict[str, torch.Tensor]:
    user, item = (torch.from_numpy(frame[name].to_numpy(writable=True)) for name in ("user_id", "item_id"))
    return {"user": user % 7, "item": item % 60}


def test_a_visit_draws_its_weights_from_the_posterior() -> None:
    model = BayesLogistic(COLUMNS, prior_variance=0.5)
    generator = torch.Generator().manual_seed(0)
    user, item = (torch.randint(0, high, (400,), generator=generator) for high in (7, 60))
    learnt = {"user": user, "item": item, "label": (item % 3 == 0).float()}
    model.update(learnt)
    policy = Thompson(model, features, pl.DataFrame({"item_id": np.arange(60)}))
    visit = torch.arange(20_000).repeat_interleave(3)
    batch = {"user": torch.full_like(visit, 2), "item": torch.tensor([4, 9, 4]).repeat(20_000)}
    drawn = policy._drawn(batch, visits(20_000, 1).key, visit).view(-1, 3)
    assert torch.equal(drawn[:, 0], drawn[:, 2])  # one draw a visit: equal rows are equal
    mean, variance = model.distribution({name: column[:2] for name, column in batch.items()})
    error = (variance / 20_000).sqrt()
    assert ((drawn[:, :2].mean(0) - mean).abs() < 4 * error).all()
    assert drawn[:, :2].var(0).tolist() == pytest.approx(variance.tolist(), rel=0.05)
    common = float(1 / model.precision_J[2] + 1 / model.precision_J[-1])  # the user's weight and the bias
    assert float(torch.cov(drawn[:, :2].T)[0, 1]) == pytest.approx(common, rel=0.1)


def test_thompson_shows_what_is_there_and_finds_what_is_liked() -> None:
    items = pl.DataFrame(
        {"item_id": np.arange(60), "uploaded": pl.Series([0] * 50 + [3 * DAY_US] * 10).cast(pl.Datetime("us"))}
    )
    policy = Thompson(BayesLogistic(COLUMNS, prior_variance=1.0), features, items, seed=4)
    first = assert_no_batch_matters(policy, visits(40, 5))
    assert first.item_id.max() < 50
    assert first.propensity is None
    assert len(first.item_id.unique()) > 40  # nothing is known: all are tried
    generator = torch.Generator().manual_seed(2)
    hits = []
    for day in range(8):
        asked = visits(100, 5, seed=day)
        shown = policy.act(asked).item_id
        label = ((shown % 10 == 3) & (torch.rand(shown.shape, generator=generator) < 0.7)).long()
        hits.append(float((shown % 10 == 3).double().mean()))
        policy.update(
            {
                "user_id": asked.user_id.repeat_interleave(5), "item_id": shown.flatten(), "label": label.flatten(),
                "timestamp": asked.timestamp.repeat_interleave(5),
            }
        )  # fmt: skip
    assert hits[0] < 0.3
    assert hits[-1] > 0.8
    among = Thompson(policy.model, features, lists_for_all([11, 13, 12, 3]), num_candidates=4)
    assert set(assert_no_batch_matters(among, visits(20, 2)).item_id.flatten().tolist()) == {3, 13}


def test_bandits_learn_the_world(tiny: World) -> None:
    """Days later they are clicked more than at first, beside a policy that stays as it is."""
    table = population.video_table(tiny).filter(pl.col("uploaded") < pl.datetime(2026, 1, 1, time_zone="UTC")).head(80)
    items, people = table.select("item_id"), population.user_table(tiny).sort("user_id")
    languages = sorted(people["language"].unique())
    x_UD = torch.tensor([[1.0] + [float(language == one) for one in languages] for language in people["language"]])
    y_IE = torch.tensor(
        [[1.0] + [float(language == one) for one in (*languages, "zxx")] for language in table["language"]]
    )
    ids = [torch.from_numpy(frame.to_numpy(writable=True)) for frame in (people["user_id"], table["item_id"])]
    linucb = LinUCB(ids[0], x_UD, ids[1], y_IE, alpha=0.3)
    of_item = {item: i for i, item in enumerate(table["item_id"])}
    of_user = dict(zip(people["user_id"], x_UD[:, 1:].argmax(1).tolist(), strict=True))

    def inputs(frame: pl.DataFrame) -> dict[str, torch.Tensor]:
        spoken = torch.tensor([of_user[user] for user in frame["user_id"].to_list()])
        item = torch.tensor([of_item[item] for item in frame["item_id"].to_list()])
        return {"item": item, "language": spoken}

    columns = (Column("item", "item_feature", "int64", 80), Column("language", "user_feature", "int64", 8))
    thompson = Thompson(BayesLogistic(columns, prior_variance=1.0), inputs, items)
    chance = EpsilonGreedy(FromLists(_every(people, table)), items, 1.0)
    world, late = replace(tiny, click_bias=-3.5), {}
    for name, policy in (("linucb", linucb), ("thompson", thompson), ("chance", chance)):
        days = simulate(world, policy, days=range(6), users=torch.arange(1000), k=20).days.filter(pl.col("day") >= 3)
        late[name] = days["clicks"].sum() / days["impressions"].sum()
    assert late["linucb"] > 1.3 * late["chance"]
    assert late["thompson"] > 1.3 * late["chance"]


def _every(people: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    ranked = table.select("item_id").head(20).with_row_index("rank")
    return people.select("user_id").join(ranked, how="cross")
