"""item2vec: sessions and contexts, the loss, what a user is, planted sessions, resuming, refusals."""

import numpy as np
import pytest
import torch
from resuming import check_resuming

from recsys.data.batches import PairBatches
from recsys.models.item2vec import MICROSECONDS, Item2Vec, Sessions
from recsys.models.negatives import generator_at
from recsys.schema import NUM_RESERVED, Interactions, Schema

USERS, ITEMS, GROUPS = 40, 24, 3
LEARNS = {"batch_size": 120, "max_epochs": 30}
SCHEMA = Schema.of(USERS + NUM_RESERVED, ITEMS + NUM_RESERVED)


@pytest.fixture(scope="module")
def pairs():
    """Users see 2 to 9 items at random minutes; one has a single item and one none."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        count = {0: 0, 1: 1}.get(user, rng.integers(2, 10))
        minutes = rng.choice(600, count, replace=False)
        rows += [(user, item, m) for item, m in zip(rng.choice(ITEMS, count, replace=False), minutes, strict=True)]
    user, item, minute = torch.tensor(rows).T
    return log(user, item, minute * MICROSECONDS)


@pytest.fixture(scope="module")
def planted():
    """Each user visits all groups, one session each of 5 of its 8 items."""
    rng = np.random.default_rng(1)
    rows = []
    for user in range(USERS):
        for session, group in enumerate(rng.permutation(GROUPS)):
            items = group + GROUPS * rng.choice(ITEMS // GROUPS, 5, replace=False)
            rows += [(user, item, 1000 * session + place) for place, item in enumerate(items)]
    user, item, minute = torch.tensor(rows).T
    return log(user, item, minute * MICROSECONDS)


def log(user, item, timestamp=None):
    return Interactions.from_pairs(
        user + NUM_RESERVED,
        item + NUM_RESERVED,
        num_rows=SCHEMA.num_users,
        num_items=SCHEMA.num_items,
        timestamp=timestamp,
    )


def without_times(pairs):
    return log(pairs.row_idx() - NUM_RESERVED, pairs.item_idx - NUM_RESERVED)


def make(pairs, seed=0, **arguments):
    torch.manual_seed(seed)
    model = Item2Vec(SCHEMA, **{"embedding_dim": 8, "batch_size": 32, "max_epochs": 3} | arguments)
    model.observe(pairs)
    return model


def fit(model, pairs):
    optimizer, batches = model.configure_optimizers(), PairBatches(pairs, model.batch_size, seed=0)
    for epoch in range(model.max_epochs):
        for chunk in batches.chunks(epoch):
            model.train_steps(chunk, optimizer)
    return model.eval()


def naive_sessions(pairs, minutes):
    """Lists of items, a loop over users and their pairs."""
    sessions = []
    for user in range(pairs.num_rows):
        row = pairs.rows(user, user + 1)
        before = None
        for item, time in zip(row.item_idx.tolist(), row.timestamp.tolist(), strict=True):
            if before is None or (minutes is not None and time - before > minutes * MICROSECONDS):
                sessions.append((user, []))
            sessions[-1][1].append(item)
            before = time
    return sessions


@pytest.mark.parametrize("minutes", [None, 30, 0.5])
@pytest.mark.parametrize("window", [1, 3])
def test_window_pairs_are_those_of_a_loop(pairs, window, minutes):
    expected = sorted(
        (user, session[place], session[other])
        for user, session in naive_sessions(pairs, minutes)
        for place in range(len(session))
        for other in range(max(place - window, 0), min(place + window + 1, len(session)))
        if other != place
    )
    sessions = Sessions.of(pairs, minutes)
    order = torch.randperm(len(pairs))
    user_B, item_B = pairs.row_idx()[order], pairs.item_idx[order]
    place_B = sessions.places(user_B, item_B)
    assert torch.equal(place_B, order)
    context_BC, there_BC = sessions.window(place_B, window)
    centre, column = there_BC.nonzero().unbind(1)
    found = torch.stack([user_B[centre], item_B[centre], context_BC[centre, column]], 1)
    assert sorted(map(tuple, found.tolist())) == expected


@pytest.mark.parametrize("minutes", [None, 30])
def test_drawn_contexts_are_the_others_of_the_session_alike(pairs, minutes):
    sessions = Sessions.of(pairs, minutes)
    places = torch.arange(len(pairs))
    context_BC, there_BC = sessions.draw(places, 600, generator_at(0, 0))
    place = 0
    for _, session in naive_sessions(pairs, minutes):
        for item in session:
            assert bool(there_BC[place].all()) == bool(there_BC[place].any()) == (len(session) > 1)
            others = set(session) - {item}
            if others:
                drawn, counts = context_BC[place].unique(return_counts=True)
                assert set(drawn.tolist()) == others
                assert counts.min() > 0.5 * 600 / len(others)
            place += 1
    assert place == len(pairs)


def test_contexts_follow_the_timestamps(pairs):
    assert make(pairs).ordered
    assert not make(without_times(pairs)).ordered
    assert not make(pairs, contexts="session").ordered
    with pytest.raises(ValueError, match="session_minutes=30 needs timestamps"):
        make(without_times(pairs), session_minutes=30)


def test_gradients_are_those_of_the_naive_loss(pairs):
    model = make(pairs, num_negatives=3).double()
    with torch.no_grad():
        model.item_table.normal_()
        model.context_table.normal_()
    item_B, place_B = pairs.item_idx[::5], torch.arange(len(pairs))[::5]
    context_BC, there_BC = model.sessions.window(place_B, 2)
    negative_N = torch.randint(NUM_RESERVED, SCHEMA.num_items, (40,))
    mean = model.compute_gradients(item_B, context_BC, there_BC, negative_N)
    x, c = (table.detach().clone().requires_grad_() for table in (model.item_table, model.context_table))
    total, count = torch.zeros((), dtype=torch.float64), 0
    for item, contexts, there in zip(item_B, context_BC, there_BC, strict=True):
        for context in contexts[there]:
            total = total - torch.log(torch.sigmoid(x[item] @ c[context] - np.log(3)))
            total = total - 3 * sum(torch.log(torch.sigmoid(np.log(3) - x[item] @ c[n])) for n in negative_N) / 40
            count += 1
    assert mean.item() == pytest.approx(total.item() / count)
    for table, expected in zip(
        (model.item_table, model.context_table), torch.autograd.grad(total, [x, c]), strict=True
    ):
        torch.testing.assert_close(table.grad.to_dense(), expected)


def test_negatives_come_by_count_to_the_power(pairs):
    model = make(pairs, popularity_power=0.75)
    weight = model.item_counts.double() ** 0.75
    torch.testing.assert_close(model.cdf_I, (weight / weight.sum()).cumsum(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("length", "recency"), [(None, 1.0), (3, 1.0), (4, 0.5)])
@pytest.mark.parametrize("score", ["cosine", "inner", "context"])
def test_scores_are_the_stated_formula(pairs, score, length, recency):
    model = make(pairs, score=score, length=length, recency=recency)
    with torch.no_grad():
        model.item_table.normal_()
        model.context_table.normal_()
        model.item_counts[7] = 0
    users = torch.arange(SCHEMA.num_users)
    got = model.score({"user_idx": users, "history": pairs})
    x, c = model.item_table.detach().double().numpy(), model.context_table.detach().double().numpy()
    if score == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    count = model.item_counts.numpy()
    target = (c if score == "context" else x) * (count > 0)[:, None]
    log_q = 0.75 * np.log(np.maximum(count, 1)) if score == "context" else 0
    for user in users.tolist():
        history = pairs.rows(user, user + 1).item_idx.tolist()[::-1][:length]
        known = [(recency**age, item) for age, item in enumerate(history) if model.item_counts[item] > 0]
        total = sum(weight for weight, _ in known)
        mean = sum((weight * x[item] for weight, item in known), np.zeros(8)) / (total or 1)
        np.testing.assert_allclose(got[user], target @ mean + log_q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("contexts", ["window", "session"])
def test_items_of_planted_sessions_are_nearest_neighbours(planted, contexts):
    """All users like items of all groups: only sessions tell them apart."""
    cut = fit(make(planted, contexts=contexts, session_minutes=60, **LEARNS), planted)
    for score in ("context", "inner"):
        cut.similarity = score
        assert share_of_own_group(cut) > 0.95, score


def test_without_sessions_the_planted_groups_are_one(planted):
    whole = fit(make(planted, contexts="session", **LEARNS), planted)
    assert share_of_own_group(whole) < 0.6


def test_context_logits_are_log_ratios(planted):
    """At the optimum <x_j, c_i> is log(P(i | j) / q(i)); for groups of equal size log(3) within, low between."""
    model = fit(make(planted, contexts="session", session_minutes=60, **LEARNS), planted)
    items = torch.arange(NUM_RESERVED, SCHEMA.num_items)
    ratio = (model.item_table @ model.context_table.T).detach()[NUM_RESERVED:, NUM_RESERVED:]
    same = ((items[:, None] - items) % GROUPS == 0) & (items[:, None] != items)
    assert ratio[same].mean().item() == pytest.approx(np.log(24 / 8), abs=0.25)
    assert ratio[items[:, None] % GROUPS != items % GROUPS].max() < 0


def share_of_own_group(model):
    """Of the 7 items most like each, the share from its group; 7 / 23 by chance."""
    items = torch.arange(NUM_RESERVED, SCHEMA.num_items)
    vectors = torch.nn.functional.normalize(model.encode_items(items).detach(), dim=1)
    near = (vectors @ vectors.T).fill_diagonal_(-2).topk(7, 1).indices
    return (near % GROUPS == (items - NUM_RESERVED)[:, None] % GROUPS).float().mean().item()


@pytest.mark.parametrize("contexts", ["window", "session"])
def test_resuming_at_any_chunk_is_exact(pairs, contexts):
    batches = PairBatches(pairs, 32, seed=7, steps_per_chunk=3)
    check_resuming(lambda seed: make(pairs, seed=seed, contexts=contexts), lambda _: batches)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim must be at least 1"),
        ({"window": 0}, "window must be at least 1"),
        ({"length": 0}, "length must be at least 1"),
        ({"recency": 0.0}, "recency must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"popularity_power": -1.0}, "popularity_power must not be below 0"),
        ({"session_minutes": 0.0}, "session_minutes must be above 0"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        Item2Vec(SCHEMA, **arguments)
    assert "\n" not in str(error.value)
