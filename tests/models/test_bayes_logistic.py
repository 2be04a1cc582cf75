"""Bayesian logistic regression: a naive float64 reference, what it knows it does not know, drift, exact repetition."""

import math
import os
import signal

import numpy as np
import pytest
import pytorch_lightning as pl
import safetensors.torch
import torch
from scipy.integrate import quad
from scipy.optimize import minimize

from recsys import config
from recsys.data.batches import RowBatches
from recsys.models.bayes_logistic import BayesLogistic, posterior_mode
from recsys.models.losses import log_loss
from recsys.schema import LABEL, Column
from recsys.training import train
from recsys.watch import Interrupted, Watch

COLUMNS = (
    Column("tags", "item_feature", "int64", 6, 3),
    Column("item_id", "item_feature", "int64", 11),
    Column("age", "user_feature", "float32"),
    Column("history", "context", "int64", 11, 5, table="item_id"),
    Column("gaps", "context", "float32", None, 5),
    Column("user_id", "user_feature", "int64", 7),
    Column("label", "label", "float32"),
)
START = {"item_id": 0, "user_id": 11, "tags": 18, "history": 24, "age": 35, "gaps": 36, "bias": 41}
ITEM = (Column("item_id", "item_feature", "int64", 2000),)


def rows(num_rows=60, seed=0):
    """Empty lists, holes, an index twice in one list, and index 0 as a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "tags": torch.randint(0, 6, (num_rows, 3), generator=generator),
        "item_id": torch.randint(0, 11, (num_rows,), generator=generator),
        "age": torch.randn(num_rows, generator=generator),
        "history": torch.randint(0, 4, (num_rows, 5), generator=generator),
        "gaps": torch.randn(num_rows, 5, generator=generator) * 1000,
        "user_id": torch.randint(0, 7, (num_rows,), generator=generator),
        "label": torch.randint(0, 2, (num_rows,), generator=generator).float(),
    }


def some(batch, low, high):
    return {name: values[low:high] for name, values in batch.items()}


def matrix(batch):
    """The values of all weights, row by row and column by column."""
    found = np.zeros((len(batch[LABEL]), 42))
    for b, x in enumerate(found):
        for name in ("item_id", "user_id"):
            x[START[name] + int(batch[name][b])] += 1
        for name in ("tags", "history"):
            filled = [int(i) for i in batch[name][b] if i != 0]
            for i in filled:
                x[START[name] + i] += 1 / math.sqrt(len(filled))
        x[START["age"]] = float(batch["age"][b])
        for v, gap in enumerate(batch["gaps"][b].tolist()):
            x[START["gaps"] + v] = math.copysign(math.log(1 + abs(gap)), gap) / math.sqrt(5)
        x[START["bias"]] = 1
    return found


def objective(w, x, y, mean, precision):
    z = x @ w
    return (precision * (w - mean) ** 2).sum() / 2 + (np.logaddexp(0, z) - y * z).sum()


def gradient(w, x, y, mean, precision):
    return precision * (w - mean) + x.T @ (1 / (1 + np.exp(-x @ w)) - y)


def numbers(tensor):
    return tensor.detach().double().numpy()


def randomised(columns=COLUMNS, seed=0, **options):
    """A model that knows something of every weight."""
    model = BayesLogistic(columns, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.mean_J.copy_(torch.randn(len(model.mean_J), generator=generator))
        model.precision_J.copy_(0.5 + 5 * torch.rand(len(model.mean_J), generator=generator))
    return model


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


# --- one batch ---


@pytest.mark.parametrize("forgetting", [1.0, 0.7])
def test_an_update_equals_its_definition(forgetting):
    """Two batches, the mode of each found by scipy; fading makes old rows count for less."""
    model = BayesLogistic(COLUMNS, prior_variance=0.5, forgetting=forgetting, batch_size=40)
    batch = rows(80)
    model.update(batch)
    mean, precision = np.zeros(42), np.full(42, 2.0)
    for part in (some(batch, 0, 40), some(batch, 40, 80)):
        faded = forgetting * precision + (1 - forgetting) * 2.0
        mean, precision = forgetting * precision * mean / faded, faded
        x, y = matrix(part), numbers(part[LABEL])
        found = minimize(objective, mean, (x, y, mean, precision), "BFGS", gradient, options={"gtol": 1e-8})
        p = 1 / (1 + np.exp(-x @ found.x))
        mean, precision = found.x, precision + (x**2).T @ (p * (1 - p))
    np.testing.assert_allclose(numbers(model.mean_J), mean, atol=2e-3)
    np.testing.assert_allclose(numbers(model.precision_J), precision, rtol=1e-3)
    assert int(model.num_updates) == 2


def test_fading_equals_rows_that_count_for_less():
    """Of a batch without rows of a weight, that weight fades to the prior by the share that is forgotten."""
    model = randomised(ITEM, prior_variance=0.5, forgetting=0.9)
    before = state(model)
    model.update({"item_id": torch.tensor([5]), LABEL: torch.ones(1)})
    precision_J = 0.9 * before["precision_J"] + 0.1 * 2
    others = torch.arange(2000) != 5
    torch.testing.assert_close(model.precision_J[:2000][others], precision_J[:2000][others])
    mean_J = 0.9 * before["precision_J"] * before["mean_J"] / precision_J
    torch.testing.assert_close(model.mean_J.detach()[:2000][others], mean_J[:2000][others])


@pytest.mark.parametrize("hard", [False, True])
def test_the_objective_never_rises(hard):
    """Also from where sigmoids are flat and a whole Newton step leads astray."""
    model, batch = BayesLogistic(COLUMNS), rows(200)
    x, y, precision = matrix(batch), numbers(batch[LABEL]), np.full(42, 1e-3)
    mean = np.random.default_rng(0).normal(size=42) * (20 if hard else 0.1)
    design, label_B = model.design(batch), batch[LABEL].double()
    start, q = torch.from_numpy(mean), torch.from_numpy(precision)
    path = [mean] + [posterior_mode(design, label_B, start, q, steps).numpy() for steps in range(1, 25)]
    values = np.array([objective(w, x, y, mean, precision) for w in path])
    assert (np.diff(values) <= 1e-9 * values[0]).all()
    best = minimize(objective, mean, (x, y, mean, precision), "BFGS", gradient, options={"maxiter": 2000})
    assert values[-1] < best.fun + 1e-3
    if hard:
        p = 1 / (1 + np.exp(-x @ mean))
        hessian = np.diag(precision) + x.T @ (x * (p * (1 - p))[:, None])
        step = -np.linalg.solve(hessian, gradient(mean, x, y, mean, precision))
        assert objective(mean + step, x, y, mean, precision) > values[0]


def test_a_weight_that_is_not_met_is_left_alone():
    model = randomised()
    before = state(model)
    model.update(rows())
    assert torch.equal(model.mean_J[START["history"] + 4 : START["age"]], before["mean_J"][28:35])
    assert torch.equal(model.precision_J[28:35], before["precision_J"][28:35])
    assert (model.precision_J[START["age"] :] > before["precision_J"][START["age"] :]).all()


# --- predictions ---


def test_the_distribution_equals_its_definition():
    model, batch = randomised(), rows()
    mean_B, variance_B = model.distribution(batch)
    x = matrix(batch)
    np.testing.assert_allclose(numbers(mean_B), x @ numbers(model.mean_J), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(numbers(variance_B), x**2 @ (1 / numbers(model.precision_J)), rtol=1e-6)


@pytest.mark.parametrize("mean", [-3.0, -1.0, 0.0, 2.0])
@pytest.mark.parametrize("variance", [0.01, 0.5, 2.0])
def test_moderation_is_near_the_integral(mean, variance):
    """One weight, whose Gaussian the sigmoid is averaged over; plugging in the mean alone is further off."""
    model = BayesLogistic([Column("age", "user_feature", "float32")])
    with torch.no_grad():
        model.mean_J[0], model.precision_J[0], model.precision_J[1] = mean, 1 / variance, 1e12
    got = float(model({"age": torch.ones(1)})[LABEL].sigmoid().detach())
    scale = math.sqrt(variance)
    exact = quad(lambda e: math.exp(-(e**2) / 2) / math.sqrt(2 * math.pi) / (1 + math.exp(-mean - scale * e)), -9, 9)[0]
    assert got == pytest.approx(exact, abs=0.02)
    assert abs(got - exact) <= abs(1 / (1 + math.exp(-mean)) - exact) + 1e-6


def test_draws_have_the_mean_and_the_variance_of_the_distribution():
    model, batch = randomised(), rows(8)
    generator = torch.Generator().manual_seed(0)
    draws_NB = torch.stack([model.sample(batch, generator) for _ in range(3000)]).double()
    mean_B, variance_B = model.distribution(batch)
    error_B = (variance_B / len(draws_NB)).sqrt()
    assert ((draws_NB.mean(0) - mean_B).abs() < 5 * error_B).all()
    torch.testing.assert_close(draws_NB.var(0), variance_B.detach(), rtol=0.15, atol=0)


def test_a_draw_gives_each_weight_one_value():
    """What two items differ by is the same for both users, and the same where the rows come one at a time."""
    model = randomised()
    batch = {name: values[:1].repeat_interleave(4, 0) for name, values in rows().items()}
    batch["user_id"], batch["item_id"] = torch.tensor([2, 2, 3, 3]), torch.tensor([4, 5, 4, 5])
    logits_B = model.sample(batch, torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits_B[0] - logits_B[1], logits_B[2] - logits_B[3])
    for b in range(4):
        one = model.sample(some(batch, b, b + 1), torch.Generator().manual_seed(1))
        torch.testing.assert_close(one, logits_B[b : b + 1])
    assert not torch.equal(model.sample(batch, torch.Generator().manual_seed(2)), logits_B)


def planted(weight_T2000, item, generator):
    """Rows of items, in order; row t has the weights that hold at t."""
    logits = weight_T2000[torch.arange(len(item)) * len(weight_T2000) // len(item), item]
    return {"item_id": item, LABEL: (torch.rand(len(item), generator=generator) < logits.sigmoid()).float()}


def test_intervals_cover_what_they_claim():
    """The truth is drawn from the prior: nine of ten logits lie in the middle 90 %, with few rows and with many."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 2000, generator=generator, dtype=torch.float64)
    model = BayesLogistic(ITEM, prior_variance=1.0)
    for num_rows in (10_000, 90_000):
        model.update(planted(weight, torch.randint(2000, (num_rows,), generator=generator), generator))
        mean_B, variance_B = model.distribution({"item_id": torch.arange(2000)})
        inside = (weight[0] - mean_B).abs() < 1.6449 * variance_B.sqrt()
        assert float(inside.double().mean()) == pytest.approx(0.9, abs=0.03)


# --- a stream ---


def predicted_losses(model, stream, size=200):
    """Of each row, before it is learnt from."""
    found = []
    for low in range(0, len(stream[LABEL]), size):
        part = some(stream, low, low + size)
        found.append(log_loss(model(part)[LABEL].detach(), part[LABEL]))
        model.update(part)
    return torch.cat(found)


@pytest.mark.parametrize("drifts", [False, True])
def test_forgetting_follows_a_drift(drifts):
    generator = torch.Generator().manual_seed(0)
    weight_T = 1.5 * torch.randn(2, 2000, generator=generator, dtype=torch.float64)
    stream = planted(weight_T if drifts else weight_T[:1], torch.randint(20, (40_000,), generator=generator), generator)
    keeping, fading = (
        predicted_losses(BayesLogistic(ITEM, prior_variance=1.0, forgetting=forgetting, batch_size=200), stream)
        for forgetting in (1.0, 0.98)
    )
    gain = float((keeping - fading)[25_000:].mean())
    assert gain > 0.05 if drifts else -0.005 < gain < 0.001


def fit(model, source):
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, iter(source))
    return model


def test_training_is_one_pass_of_updates():
    batch = rows(1000)
    chunks = list(RowBatches(batch, 64, seed=0, steps_per_chunk=4).chunks(0))
    trained = fit(BayesLogistic(COLUMNS, batch_size=64, forgetting=0.9), chunks)
    in_order = {name: torch.cat([chunk["rows"][name].flatten(0, 1) for chunk in chunks]) for name in batch}
    online = BayesLogistic(COLUMNS, batch_size=64, forgetting=0.9)
    online.update(some(in_order, 0, 640))
    online.update(some(in_order, 640, 1000))
    assert int(online.num_updates) == 16
    assert_same(state(trained), state(online))


def test_saved_and_loaded_it_goes_on_in_the_same_bits():
    model = BayesLogistic(COLUMNS, batch_size=64)
    model.update(rows(200))
    loaded = BayesLogistic(COLUMNS, batch_size=64)
    loaded.load_state_dict(safetensors.torch.load(safetensors.torch.save(model.state_dict())))
    for one in (model, loaded):
        one.update(rows(200, seed=1))
    assert_same(state(model), state(loaded))


def test_a_run_that_is_interrupted_goes_on_in_the_same_bits(tmp_path, monkeypatch):
    words = ["model=bayes_logistic", "world=tiny", "world.num_users=100", "features=world", "trainer=cpu"]
    words += ["features.context.history.length=10", "evaluation.num_replicates=0", "checkpoint_seconds=0"]
    cfg = config.compose(*words, "model.batch_size=512")
    whole = train(cfg, tmp_path / "whole")
    chunk_done = Watch.chunk_done

    def interrupt(self, chunks, epochs):
        if self.chunk == 0:
            os.kill(os.getpid(), signal.SIGINT)
        chunk_done(self, chunks, epochs)

    monkeypatch.setattr(Watch, "chunk_done", interrupt)
    with pytest.raises(Interrupted, match="stopped after 0 epochs and 1 chunks"):
        train(cfg, tmp_path / "stopped")
    stopped = train(cfg, tmp_path / "stopped")
    assert_same(state(stopped.model), state(whole.model))
    assert stopped.metrics["test/log_loss"] == whole.metrics["test/log_loss"]
    assert whole.metrics["test/auc"] > 0.55


# --- errors ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior_variance": 0.0}, "prior_variance must be above 0"),
        ({"prior_variance": math.inf}, "prior_variance must be above 0 and finite"),
        ({"prior_variance": math.nan}, "prior_variance must be above 0"),
        ({"forgetting": 0.0}, r"forgetting must lie in \(0, 1\]"),
        ({"forgetting": 1.1}, r"forgetting must lie in \(0, 1\]"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_wrong_arguments_are_said(options, message):
    with pytest.raises(ValueError, match=message):
        BayesLogistic(COLUMNS, **options)


@pytest.mark.parametrize("name", ["lr", "loss", "positive_weight", "max_epochs"])
def test_arguments_of_a_gradient_are_not_taken(name):
    with pytest.raises(TypeError, match=name):
        BayesLogistic(COLUMNS, **{name: 1})


def test_rows_are_not_seen_twice():
    model = BayesLogistic(COLUMNS)
    model.max_epochs = 2
    with pytest.raises(ValueError, match="max_epochs must be 1, got 2: rows seen twice would count twice"):
        model.observe(100)


@pytest.mark.parametrize("bad", [math.nan, 0.5, -1.0])
def test_a_label_that_is_none_is_named(bad):
    model, batch = BayesLogistic(COLUMNS), rows()
    before = state(model)
    batch[LABEL][3] = bad
    with pytest.raises(ValueError, match=f"label: {bad} in row 3 of the batch is neither 0 nor 1"):
        model.update(batch)
    assert_same(state(model), before)


def test_weights_that_are_not_finite_are_named():
    model = BayesLogistic(COLUMNS)
    with torch.no_grad():
        model.mean_J[0] = math.nan
    with pytest.raises(ValueError, match="weights are not finite by update 0"):
        model.update(rows())
