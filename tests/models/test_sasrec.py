"""SASRec: a naive forward pass, causality, padding, losses, what it learns, determinism, resuming, refusals."""

import itertools
import os
import signal

import numpy as np
import polars as pl
import pytest
import torch
from resuming import check_resuming
from scipy.special import erf

from recsys import config
from recsys.data.batches import SequenceBatches
from recsys.models import negatives as draws
from recsys.models.attention import last_items
from recsys.models.optimizers import RowAdagrad
from recsys.models.sasrec import SASRec, gbce, gbce_beta
from recsys.schema import NUM_RESERVED, PADDING, Column, Interactions, Schema
from recsys.training import train
from recsys.watch import Interrupted, Watch

USERS, ITEMS, LENGTH = 60, 20, 6
SCHEMA = Schema.of(USERS + NUM_RESERVED, ITEMS + NUM_RESERVED)
SMALL = {"embedding_dim": 16, "num_blocks": 2, "num_heads": 2, "length": LENGTH, "num_negatives": 8}
SMALL |= {"lr": 0.001, "weight_decay": 0.0, "batch_size": 16, "max_epochs": 3}
LOSSES = ["softmax", "sampled_softmax", "gbce", "bce"]


def rows_of(*rows, schema=SCHEMA, first_row=0, num_rows=None):
    """Histories as Interactions, in the order given."""
    row = torch.tensor([first_row + r for r, items in enumerate(rows) for _ in items], dtype=torch.int64)
    item = torch.tensor([i for items in rows for i in items], dtype=torch.int64)
    num_rows = num_rows or len(rows)
    return Interactions.from_pairs(
        row, item, num_rows=num_rows, num_items=schema.num_items, timestamp=torch.arange(len(row))
    )


@pytest.fixture(scope="module")
def cycle():
    """Every user walks the circle of items from an own start: 5 to 15 steps, always the next one."""
    walks = [[NUM_RESERVED + (7 * user + k) % ITEMS for k in range(5 + user % 11)] for user in range(USERS)]
    return rows_of(*walks, first_row=NUM_RESERVED, num_rows=SCHEMA.num_users)


def make(cycle, seed=0, **arguments):
    torch.manual_seed(seed)
    model = SASRec(SCHEMA, **SMALL | arguments)
    model.observe(cycle)
    return model


def fit(model, interactions, seed=0):
    source = SequenceBatches(interactions, model.batch_size, seed, **model.batch_options, steps_per_chunk=3)
    optimizers = model.configure_optimizers()
    for epoch in range(model.max_epochs):
        for chunk in source.chunks(epoch):
            model.train_steps(chunk, optimizers)
    return model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# Forward


def test_a_forward_pass_is_its_definition(cycle):
    """Head by head and place by place, in float64."""
    model = make(cycle, num_blocks=2, num_heads=2).double()
    sequence = [5, 3, 9, 4]
    got = model.encode(torch.tensor([[*sequence, PADDING], [9, 9, 9, 9, 9]]))[:4].detach().numpy()
    w = {name: p.detach().numpy() for name, p in model.state_dict().items()}

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["items.weight"][sequence] + w["positions.weight"][[3, 2, 1, 0]]
    for b in ("blocks.0", "blocks.1"):
        query, key, value = np.split(linear(norm(x, f"{b}.attention_norm"), f"{b}.project_in"), 3, axis=1)
        seen = np.zeros_like(x)
        for place, head in itertools.product(range(4), (slice(0, 8), slice(8, 16))):
            weight = np.exp(key[: place + 1, head] @ query[place, head] / np.sqrt(8))
            seen[place, head] = weight / weight.sum() @ value[: place + 1, head]
        x = x + linear(seen, f"{b}.project_out")
        wide = linear(norm(x, f"{b}.feed_norm"), f"{b}.widen")
        x = x + linear(wide * (1 + erf(wide / np.sqrt(2))) / 2, f"{b}.narrow")
    np.testing.assert_allclose(got, norm(x, "norm"), rtol=1e-10)


def test_attention_is_causal(cycle):
    model = make(cycle)
    before, after = torch.tensor([[4, 5, 6, 7, 8]]), torch.tensor([[4, 5, 6, 12, 3]])
    a_LD, b_LD = model.encode(before), model.encode(after)
    assert torch.equal(a_LD[:3], b_LD[:3])
    assert not torch.isclose(a_LD[3:], b_LD[3:]).all(1).any()


def test_only_the_last_items_count_and_padding_does_not(cycle):
    model = make(cycle)
    long, short, none = [9, 8, 7, 6, 5, 4, 3, 2], [12, 3], []
    together = model.score({"history": rows_of(long, short, none)})
    assert together.isfinite().all()
    alone = model.score({"history": rows_of(short)})
    torch.testing.assert_close(together[1:2], alone)
    cut = model.score({"history": rows_of(long[-LENGTH:])})
    torch.testing.assert_close(together[:1], cut)
    reversed_ = model.score({"history": rows_of(long[-LENGTH:][::-1])})
    assert not torch.allclose(cut, reversed_)
    assert model.score({"history": Interactions.empty(2, SCHEMA.num_items)}).isfinite().all()
    assert model.score({"history": Interactions.empty(0, SCHEMA.num_items)}).shape == (0, SCHEMA.num_items)


def test_last_items_stand_from_the_left():
    history = rows_of([2, 3, 4, 5], [], [6])
    assert last_items(history, 3).tolist() == [[3, 4, 5], [0, 0, 0], [6, 0, 0]]
    assert last_items(history, 9).tolist() == [[2, 3, 4, 5], [0] * 4, [6, 0, 0, 0]]
    assert last_items(history.rows(1, 2), 3).tolist() == [[0]]


def test_it_is_an_inner_product_of_tied_embeddings(cycle):
    model = make(cycle)
    batch = {"history": rows_of([2, 3], [9])}
    assert model.factored
    expected = model.encode_users(batch) @ model.items.weight.T
    torch.testing.assert_close(model.score(batch), expected.detach())


# Losses


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_their_definitions(cycle, loss):
    """Target by target, with the draws of the step, in float64; and the loss has a gradient for every weight."""
    model = make(cycle, loss=loss, dropout=0.0).double()
    sequence = torch.tensor([[4, 5, 6, 7, 0, 0, 0], [9, 10, 0, 0, 0, 0, 0]])
    got = model.compute_loss(sequence, draws.generator_at(3, 4))
    got.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    drawn = draws.draw_by(model.cdf_I, (4, 8) if loss == "bce" else (8,), draws.generator_at(3, 4)).expand(4, 8)
    values = []
    inputs = model.encode(torch.tensor([[4, 5, 6], [9, 0, 0]]))
    for x_D, target, drawn_N in zip(inputs, (5, 6, 7, 10), drawn, strict=True):
        scores = (x_D @ model.items.weight.T).detach().numpy()
        others = [int(n) for n in drawn_N if n != target]
        if loss == "softmax":
            values.append(np.log(np.exp(scores[NUM_RESERVED:]).sum()) - scores[target])
        elif loss == "sampled_softmax":
            q = model.item_counts.double().sqrt().numpy()
            q /= q.sum()
            rest = sum(np.exp(scores[n]) / (8 * q[n]) for n in others)
            values.append(np.log(np.exp(scores[target]) + rest) - scores[target])
        else:
            beta = model.beta if loss == "gbce" else 1
            sigmoid = 1 / (1 + np.exp(-scores) * (8 / beta if loss == "gbce" else 1))  # of the score plus log(beta / N)
            rest = sum(np.log(1 - sigmoid[n]) for n in others)
            values.append(-beta * np.log(sigmoid[target]) - rest)
    assert got.item() == pytest.approx(np.mean(values), rel=1e-6)


def test_beta_runs_from_plain_to_calibrated():
    """Petrov and Macdonald 2023, eq. 12: t = 0 is BCE, t = 1 has beta equal to the sampling rate."""
    assert gbce_beta(0, 256, 3417) == pytest.approx(1)
    assert gbce_beta(1, 256, 3417) == pytest.approx(256 / 3416)
    assert gbce_beta(0.75, 256, 3417) == pytest.approx(0.25 + 0.75 * 256 / 3416)
    assert gbce_beta(0.5, 300, 50) == 1  # more draws than items: nothing to calibrate


def test_full_calibration_gives_the_probabilities_of_all_negatives():
    """At t = 1 the best score of a positive of probability p is logit(p), however few negatives are drawn."""
    num_items, num_negatives, p = 101, 10, 0.02
    beta = gbce_beta(1, num_negatives, num_items)
    score = torch.linspace(-8, 2, 2001, dtype=torch.float64)
    none = torch.zeros(len(score), 0)
    positive = gbce(score, none, beta, none.bool())
    negative = torch.nn.functional.softplus(score)
    # The item is the target with probability p, else one of the draws with probability N / (I - 1).
    risk = p * positive + (1 - p) * num_negatives / (num_items - 1) * negative
    assert score[risk.argmin()].sigmoid() == pytest.approx(p, rel=0.01)


# Learning


@pytest.mark.parametrize("loss", LOSSES)
def test_learns_a_circle(cycle, loss):
    model = fit(make(cycle, loss=loss, lr=0.01, max_epochs=40, dropout=0.1), cycle)
    walks = [[NUM_RESERVED + (start + k) % ITEMS for k in range(5)] for start in range(ITEMS)]
    scores = model.score({"history": rows_of(*walks)})
    scores[:, :NUM_RESERVED] = -torch.inf
    best = scores.argmax(1).tolist()
    assert best == [NUM_RESERVED + (start + 5) % ITEMS for start in range(ITEMS)]


# Determinism


@pytest.mark.parametrize("loss", LOSSES)
def test_resuming_at_any_chunk_is_exact(cycle, loss):
    batches = SequenceBatches(cycle, 16, seed=7, length=LENGTH, steps_per_chunk=2)
    check_resuming(lambda seed: make(cycle, seed=seed, loss=loss), lambda _: batches)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_seeds_give_equal_weights_and_others_do_not(cycle, loss):
    model = fit(make(cycle, loss=loss), cycle)
    assert torch.equal(weights(fit(make(cycle, loss=loss), cycle)), weights(model))
    assert not torch.equal(weights(fit(make(cycle, loss=loss), cycle, seed=8)), weights(model))


def test_a_run_that_is_interrupted_goes_on_in_the_same_bits(tmp_path, monkeypatch):
    """Through the whole of `train`, stopped in the middle of the second epoch."""
    user = np.arange(2000) % 40  # so many that an epoch has two chunks
    item = (np.arange(2000) // 40 * 7 + user) % 90
    table = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": np.arange(2000)})
    words = ["model=sasrec", "trainer=cpu", "evaluation.num_replicates=0", "evaluation.k=[10]", "checkpoint_seconds=0"]
    words += ["model.length=3", "model.batch_size=8", "model.max_epochs=3", "model.embedding_dim=8"]

    def run(name):
        cfg = config.compose(*words)
        return train(cfg, tmp_path / name, data=table)

    whole = run("whole")
    chunk_done, calls = Watch.chunk_done, itertools.count(1)

    def interrupt(self, chunks, epochs):
        assert chunks > 1
        if next(calls) == chunks + 1:
            os.kill(os.getpid(), signal.SIGINT)
        chunk_done(self, chunks, epochs)

    monkeypatch.setattr(Watch, "chunk_done", interrupt)
    with pytest.raises(Interrupted, match="stopped after 1 epochs and 1 chunks"):
        run("stopped")
    stopped = run("stopped")
    assert torch.equal(weights(stopped.model), weights(whole.model))
    assert stopped.metrics["test/ndcg@10"] == whole.metrics["test/ndcg@10"]


def test_the_global_random_state_is_left_alone(cycle):
    model = make(cycle)
    before = torch.random.get_rng_state()
    fit(model, cycle)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_learning_rate_rises_and_falls_to_zero_over_the_steps_of_the_source(cycle):
    model = make(cycle, max_epochs=50, lr=0.1)
    steps = 50 * SequenceBatches(cycle, 16, seed=0, length=LENGTH).steps_per_epoch
    assert model.total_steps == steps
    rates = [0.1 * model.share_at(step) for step in range(steps + 1)]
    assert 0 < rates[0] < max(rates) == pytest.approx(0.1, rel=0.06)
    assert rates.index(max(rates)) == pytest.approx(steps / 20, abs=2)
    assert rates[steps // 2] == pytest.approx(0.05)
    assert rates[-1] == 0


def test_padding_stays_zero(cycle):
    assert not fit(make(cycle), cycle).items.weight[PADDING].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        ({"embedding_dim": 16, "num_heads": 3}, "embedding_dim=16 cannot be divided among num_heads=3"),
        ({"num_blocks": 0}, "num_blocks must be at least 1"),
        ({"length": 0}, "length must be at least 1"),
        ({"num_negatives": 0}, "num_negatives must be at least 1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"gbce_t": 1.5}, r"gbce_t must lie in \[0, 1\]"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"init_std": 0.0}, "init_std must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must not be below 0"),
        ({"popularity_power": -1.0}, "popularity_power must not be below 0"),
        ({"loss": "hinge"}, "loss must be softmax, sampled_softmax, gbce or bce, got hinge"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        SASRec(SCHEMA, **arguments)
    assert "\n" not in str(error.value)


def test_with_features_an_items_vector_is_its_ids_and_theirs(cycle):
    """An item that nobody has liked is its features alone; and a checkpoint holds them."""
    topic = Column("topic", "item_feature", "int64", 5)
    schema = Schema((*Schema.of(cycle.num_rows, cycle.num_items).columns, topic))
    values = torch.arange(cycle.num_items) % 5
    cold = Interactions.from_pairs(
        cycle.row_idx(), cycle.item_idx.clamp(max=NUM_RESERVED + 5), num_rows=cycle.num_rows, num_items=cycle.num_items
    )
    torch.manual_seed(0)
    model = SASRec(schema, embedding_dim=8, length=LENGTH)
    model.describe({}, {"topic": values})
    model.observe(cold)
    ids = model.items.weight * (cold.item_counts() > 0)[:, None]
    expected = ids + model.features.fields({"topic": values}).sum(1)
    torch.testing.assert_close(model.encode_items(torch.arange(cycle.num_items)), expected)
    again = SASRec(schema, embedding_dim=8, length=LENGTH)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.encode_items(torch.arange(9)), model.encode_items(torch.arange(9)))
    loss = model.compute_loss(torch.tensor([[4, 5, 6, 7]]), draws.generator_at(0, 0))
    loss.backward()
    assert model.features.fields.lookups.table.grad is not None
    first, second = model.configure_optimizers()
    assert isinstance(first, torch.optim.AdamW)
    assert isinstance(second, RowAdagrad)
