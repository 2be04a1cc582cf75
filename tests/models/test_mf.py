"""Matrix factorisation: gradients, what it learns, determinism, resuming, indexing, refusals."""

import itertools

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from resuming import check_resuming

from recsys.data.batches import PairBatches
from recsys.models.mf import MatrixFactorization
from recsys.models.optimizers import RowAdagrad
from recsys.schema import NUM_RESERVED, Interactions, Schema

GROUPS, USERS, ITEMS = 4, 60, 40
SCHEMA = Schema.of(USERS + NUM_RESERVED, ITEMS + NUM_RESERVED)
LEARNS = {"embedding_dim": 8, "batch_size": 50, "max_epochs": 20}
COMBINATIONS = [
    *itertools.product(["softmax", "bpr", "bce"], ["uniform", "popularity", "in_batch"]),
    ("softmax", "all"),
]


@pytest.fixture(scope="module")
def planted():
    """Users and items fall into groups; a user likes 6 of the 10 items of the own group."""
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (user + NUM_RESERVED, GROUPS * int(place) + user % GROUPS + NUM_RESERVED)
        for user in range(USERS)
        for place in torch.randperm(ITEMS // GROUPS, generator=generator)[:6]
    ]
    user, item = torch.tensor(pairs).T
    return Interactions.from_pairs(user, item, num_rows=SCHEMA.num_users, num_items=SCHEMA.num_items)


def make(planted, seed=0, **arguments):
    torch.manual_seed(seed)
    model = MatrixFactorization(SCHEMA, **LEARNS | arguments)
    model.observe(planted)
    return model


def fit(model, planted, *, seed=0, steps_per_chunk=3):
    """Through Lightning, as training does it."""
    batches = PairBatches(planted, model.batch_size, seed, steps_per_chunk=steps_per_chunk)

    class Position(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            batches.set_position(trainer.current_epoch)

    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=model.max_epochs,
        callbacks=[Position()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(model, batches)
    return trainer


def unseen_group_share(model, planted):
    """Of the unseen items of a user's own group, the share among the four best unseen ones."""
    users = torch.arange(NUM_RESERVED, SCHEMA.num_users)
    scores = model.score({"user_idx": users}).detach().clone()
    scores[:, :NUM_RESERVED] = -torch.inf
    seen = planted.select(users)
    scores[seen.row_idx(), seen.item_idx] = -torch.inf
    top = scores.topk(4, 1).indices
    return ((top - NUM_RESERVED) % GROUPS == (users - NUM_RESERVED)[:, None] % GROUPS).float().mean().item()


@pytest.mark.parametrize(("loss", "negatives"), COMBINATIONS)
def test_every_combination_learns_the_planted_groups(planted, loss, negatives):
    model = make(planted, loss=loss, negatives=negatives)
    assert unseen_group_share(model, planted) < 0.5  # chance is 0.12
    trainer = fit(model, planted)
    assert unseen_group_share(model, planted) > 0.8
    assert trainer.global_step == model.max_epochs * 4  # 8 batches: chunks of 3, 3, 1 and the short one


@pytest.mark.parametrize(
    "arguments",
    [
        {"normalize": True, "temperature": 0.3, "weight_decay": 0.0},
        {"biases": False},
        {"optimizer": "adam", "lr": 0.05, "weight_decay": 0.0},
        {"num_negatives": 3},
    ],
)
@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_variants_learn_too(planted, loss, arguments):
    model = make(planted, loss=loss, **arguments)
    fit(model, planted)
    assert unseen_group_share(model, planted) > 0.8


def test_sgd_learns(planted):
    model = make(planted, loss="bpr", normalize=False, optimizer="sgd", lr=0.2, weight_decay=0.0)
    fit(model, planted)
    assert unseen_group_share(model, planted) > 0.9


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_scores_are_the_stated_formula(planted, normalize, biases):
    model = make(planted, normalize=normalize, biases=biases, temperature=0.3)
    with torch.no_grad():
        model.user_table[:, :8].normal_()
        model.item_table[:, :8].normal_()
        model.user_table[:, 8:9].normal_()
        model.item_table[:, 9:].normal_()
    x, y = model.user_table.detach().double().numpy(), model.item_table.detach().double().numpy()
    bx, by = (x[:, 8], y[:, 9]) if biases else (np.zeros(len(x)), np.zeros(len(y)))
    x, y = x[:, :8], y[:, :8]
    if normalize:
        x = x / np.linalg.norm(x, axis=1, keepdims=True) / 0.3
        y = y / np.linalg.norm(y, axis=1, keepdims=True)
    users = torch.tensor([2, 9, 30])
    got = model.score({"user_idx": users}).detach()
    np.testing.assert_allclose(got, x[users] @ y.T + bx[users, None] + by, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(("loss", "negatives"), COMBINATIONS)
def test_gradients_are_those_of_the_dense_loss(planted, loss, negatives, biases):
    """The sparse gradients, summed by row, against autograd through whole tables and scores."""
    model = make(planted, loss=loss, negatives=negatives, biases=biases, weight_decay=0.3, prior_count=5).double()
    chunk = next(PairBatches(planted, 20, seed=0).chunks(0))
    user, item = chunk["user_idx"][0], chunk["item_idx"][0]
    mean = model.compute_gradients(user, model._with_negatives(item, 5, 6))
    sparse = [table.grad.to_dense() for table in (model.user_table, model.item_table)]
    total = dense_loss(model, user, item, seed=5, step=6)
    assert mean.item() == pytest.approx(total.item() / 20)
    squares_B = [
        (1 + 5 / counts[row]) * table[row, :8].square().sum(1)
        for table, counts, row in (
            (model.user_table, model.user_counts, user),
            (model.item_table, model.item_counts, item),
        )
    ]
    penalty = (squares_B[0] + squares_B[1]).sum()
    penalized = total + 0.3 / 2 * penalty
    dense = torch.autograd.grad(penalized, [model.user_table, model.item_table])
    if biases:
        dense[0][:, 9] = dense[1][:, 8] = 0  # the ones that meet the other side's bias stay ones
    for got, expected in zip(sparse, dense, strict=True):
        torch.testing.assert_close(got, expected)


def dense_loss(model, user, item, seed, step):
    from recsys.models import losses
    from recsys.models.negatives import generator_at

    scores = model.encode_users({"user_idx": user}) @ model.encode_items(torch.arange(SCHEMA.num_items)).T
    positive = scores.gather(1, item[:, None])[:, 0]
    drawn = model._draw(item, generator_at(seed, step))
    if model.loss == "softmax" and model.negatives == "all":
        return losses.full_softmax(scores[:, NUM_RESERVED:], item - NUM_RESERVED).sum()
    if model.loss == "softmax":
        in_batch = model.negatives == "in_batch"
        drawn = item if in_batch else drawn
        return losses.sampled_softmax(
            positive,
            scores[:, drawn],
            model.log_q_I[drawn].double(),
            item[:, None] == drawn,
            num_draws=len(item) - 1 if in_batch else len(drawn),
        ).sum()
    negative = scores.gather(1, drawn.view(len(item), -1))
    return getattr(losses, model.loss)(positive, negative).sum()


def test_row_adagrad_is_its_definition():
    table = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = RowAdagrad([table], lr=0.5)
    expected, square = np.ones((4, 2)), np.zeros(4)
    rng = np.random.default_rng(0)
    for rows in ([0, 2, 2], [2, 3]):
        gradient = rng.normal(size=(len(rows), 2))
        index = torch.tensor(rows)[None]
        values = torch.tensor(gradient).float()
        table.grad = torch.sparse_coo_tensor(index, values, table.shape, check_invariants=False)
        optimizer.step()
        for row, g in zip(rows, gradient, strict=True):
            square[row] += np.mean(g**2)
        for row, g in zip(rows, gradient, strict=True):
            expected[row] -= 0.5 * g / np.sqrt(square[row])
    np.testing.assert_allclose(table.detach(), expected, rtol=1e-5)
    assert table[1].tolist() == [1, 1]


def weights(model):
    return torch.cat([model.user_table.flatten(), model.item_table.flatten()]).detach()


@pytest.mark.parametrize("optimizer", ["adagrad", "adam", "sgd"])
@pytest.mark.parametrize(("loss", "negatives"), [("softmax", "uniform"), ("softmax", "in_batch"), ("bpr", "uniform")])
def test_resuming_at_any_chunk_is_exact(planted, optimizer, loss, negatives):
    arguments = {"optimizer": optimizer, "loss": loss, "negatives": negatives, "max_epochs": 3, "lr": 0.05}
    batches = PairBatches(planted, 50, seed=7, steps_per_chunk=3)
    check_resuming(lambda seed: make(planted, seed=seed, **arguments), lambda _: batches)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("num_negatives", [1, 3])
@pytest.mark.parametrize("loss", ["bpr", "bce"])
def test_the_compiled_step_is_that_of_the_losses_and_the_optimizer(planted, loss, num_negatives, biases):
    arguments = {"loss": loss, "num_negatives": num_negatives, "biases": biases, "weight_decay": 0.1}
    compiled, plain = make(planted, **arguments), make(planted, **arguments)
    plain._kernel = lambda: None
    chunks = list(PairBatches(planted, 50, seed=7).chunks(0))
    found = []
    for model in (compiled, plain):
        optimizer = model.configure_optimizers()
        found.append(sum(model.train_steps(chunk, optimizer) for chunk in chunks))
        found.append(optimizer[0].square(model.item_table))
    assert compiled._kernel() is not None
    assert torch.get_num_threads() == 1  # as conftest sets it
    torch.testing.assert_close(found[0], found[2], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[1], found[3], rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_lightning_and_the_plain_loop_are_equal_and_seeds_differ(planted, loss):
    through_lightning = make(planted, max_epochs=4, loss=loss)
    fit(through_lightning, planted, seed=2)
    plain = make(planted, max_epochs=4, loss=loss)
    batches, optimizer = PairBatches(planted, 50, seed=2, steps_per_chunk=3), plain.configure_optimizers()
    for epoch in range(4):
        for chunk in batches.chunks(epoch):
            plain.train_steps(chunk, optimizer)
    assert torch.equal(weights(through_lightning), weights(plain))
    other = make(planted, max_epochs=4, loss=loss)
    fit(other, planted, seed=3)
    assert not torch.equal(weights(other), weights(plain))


def test_the_learning_rate_falls_to_zero(planted):
    model = make(planted, max_epochs=5, lr=0.4)
    steps = 5 * PairBatches(planted, 50, seed=0).steps_per_epoch
    assert model.lr_at(0) == 0.4
    assert model.lr_at(steps // 2) == pytest.approx(0.2)
    assert model.lr_at(steps) == model.lr_at(steps + 7) == 0


def test_reserved_rows_stay_zero_and_ones_stay_ones(planted):
    model = make(planted, max_epochs=2, negatives="all")
    fit(model, planted)
    assert not model.user_table[:NUM_RESERVED, :9].any()
    assert not model.item_table[:NUM_RESERVED, [*range(8), 9]].any()
    assert (model.user_table[:, 9] == 1).all()
    assert (model.item_table[:, 8] == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "bpr", "negatives": "all"}, "negatives=all is the exact softmax"),
        ({"negatives": "all", "num_negatives": 5}, "negatives=all takes no num_negatives"),
        ({"negatives": "in_batch", "num_negatives": 5}, "negatives=in_batch takes no num_negatives"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"embedding_dim": 0}, "embedding_dim must be at least 1"),
        ({"max_epochs": 0}, "max_epochs must be at least 1"),
        ({"weight_decay": -1.0}, "weight_decay must not be below 0"),
        ({"prior_count": -1.0}, "prior_count must not be below 0"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        MatrixFactorization(SCHEMA, **arguments)
    assert "\n" not in str(error.value)
