"""NeuMF: a naive forward pass, the whole catalogue, the loss, its draws, resuming, refusals."""

import numpy as np
import pytest
import torch
from resuming import check_resuming

from recsys.data.batches import PairBatches
from recsys.models import neumf
from recsys.models.negatives import generator_at
from recsys.models.neumf import NeuMF
from recsys.schema import NUM_RESERVED, Interactions, Schema

USERS, ITEMS = 30, 20
SCHEMA = Schema.of(USERS + NUM_RESERVED, ITEMS + NUM_RESERVED)


@pytest.fixture(scope="module")
def pairs():
    liked = torch.rand(SCHEMA.num_users, SCHEMA.num_items, generator=torch.Generator().manual_seed(0)) < 0.2
    liked[:NUM_RESERVED] = liked[:, :NUM_RESERVED] = False
    user, item = liked.nonzero().unbind(1)
    return Interactions.from_pairs(user, item, num_rows=SCHEMA.num_users, num_items=SCHEMA.num_items)


def make(pairs, seed=0, **arguments):
    torch.manual_seed(seed)
    model = NeuMF(SCHEMA, **{"factors": 5, "layers": (12, 8, 6, 4), "init_std": 0.7, "batch_size": 16} | arguments)
    with torch.no_grad():
        for layer in (model.user_hidden, *model.hidden, model.prediction):
            layer.bias.normal_()
    model.observe(pairs)
    return model


def naive(model, user, item):
    """Equations 8 to 12 for one pair: the perceptron's first layer is one matrix over [p ; q]."""
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    (x, p), (y, q) = (np.split(row, [model.factors]) for row in (w["user_table"][user], w["item_table"][item]))
    first = np.concatenate([w["user_hidden.weight"], w["item_hidden.weight"]], axis=1)
    hidden = np.maximum(first @ np.concatenate([p, q]) + w["user_hidden.bias"], 0)
    for n in range(len(model.hidden)):
        hidden = np.maximum(w[f"hidden.{n}.weight"] @ hidden + w[f"hidden.{n}.bias"], 0)
    return w["prediction.weight"][0] @ np.concatenate([x * y, hidden]) + w["prediction.bias"][0]


@pytest.mark.parametrize("layers", [(12, 8, 6, 4), (4, 3)])
def test_a_forward_pass_is_its_definition(pairs, layers):
    model = make(pairs, layers=layers)
    user, item = torch.arange(2, 32), torch.arange(30) % 22
    expected = [naive(model, u, i) for u, i in zip(user.tolist(), item.tolist(), strict=True)]
    np.testing.assert_allclose(model(user, item).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden", [1, 300, 2**22])
def test_the_whole_catalogue_is_every_pair(pairs, monkeypatch, hidden):
    monkeypatch.setattr(neumf, "_HIDDEN", hidden)  # how many numbers a block may hold
    model = make(pairs)
    user = torch.tensor([2, 9, 31, 9])
    scores_BI = model.score({"user_idx": user})
    assert not scores_BI.requires_grad
    torch.testing.assert_close(scores_BI, model(user[:, None], torch.arange(SCHEMA.num_items)).detach())
    assert model.score({"user_idx": user[:0]}).shape == (0, SCHEMA.num_items)


def test_a_step_is_the_naive_one(pairs):
    """The loss by loops in float64, then Adam's first step: lr against the sign of the gradient."""
    model = make(pairs, num_negatives=3, lr=0.01)
    user_B, item_B = pairs.row_idx()[::7], pairs.item_idx[::7]
    negative_BN = model.unobserved.draw(user_B, 3, generator_at(5, 6))

    def loss():
        total = 0.0
        for u, i, drawn in zip(user_B.tolist(), item_B.tolist(), negative_BN.tolist(), strict=True):
            total += np.log1p(np.exp(-naive(model, u, i)))
            total += sum(np.log1p(np.exp(naive(model, u, j))) for j in drawn)
        return total / (4 * len(user_B))

    expected = loss()
    assert model.compute_loss(user_B, item_B, negative_BN).item() == pytest.approx(expected, rel=1e-5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    slopes = {}
    places = {"user_table": (int(user_B[0]), 1), "item_table": (int(item_B[0]), 7), "prediction.weight": (0, 2)}
    places |= {"user_hidden.weight": (1, 2), "hidden.0.weight": (0, 0), "prediction.bias": (0,)}
    for name, place in places.items():
        parameter = dict(model.named_parameters())[name].data
        with torch.no_grad():
            parameter[place] += 1e-3
            slopes[name] = (loss() - expected) / 1e-3
            parameter.copy_(before[name])
    chunk = {"user_idx": user_B[None], "item_idx": item_B[None], "seed": 5, "step": 6}
    assert model.train_steps(chunk, model.configure_optimizers()).item() == pytest.approx(expected, rel=1e-5)
    checked = 0
    for name, place in places.items():
        if abs(slopes[name]) > 1e-3:
            moved = (dict(model.named_parameters())[name].detach() - before[name])[place].item()
            assert moved == pytest.approx(-0.01 * np.sign(slopes[name]), rel=1e-2), name
            checked += 1
    assert checked >= 4


def test_reserved_rows_stay_zero_and_draws_are_no_positives(pairs):
    model = make(pairs)
    optimizer = model.configure_optimizers()
    for chunk in PairBatches(pairs, 16, seed=0).chunks(0):
        model.train_steps(chunk, optimizer)
    for table in (model.user_table, model.item_table):
        assert not table[:NUM_RESERVED].any()
        assert table[NUM_RESERVED:].any()
    user = torch.arange(NUM_RESERVED, SCHEMA.num_users)
    drawn = model.unobserved.draw(user, 400, generator_at(0, 0))
    assert model.unobserved.observed(user[:, None], drawn).float().mean() < 0.01
    assert set(drawn.flatten().tolist()) == set(range(NUM_RESERVED, SCHEMA.num_items))


def test_resuming_at_any_chunk_is_exact(pairs):
    check_resuming(lambda seed: make(pairs, seed=seed), lambda _: PairBatches(pairs, 16, seed=7, steps_per_chunk=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factors": 0}, "factors must be at least 1, got 0"),
        ({"num_negatives": 0}, "num_negatives must be at least 1"),
        ({"layers": (8,)}, r"layers must be two or more widths, the first an even one, got \[8\]"),
        ({"layers": (7, 4)}, "the first an even one"),
        ({"layers": (8, 0)}, "layers must be"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"init_std": 0.0}, "init_std must be above 0"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        NeuMF(SCHEMA, **arguments)
    assert "\n" not in str(error.value)
