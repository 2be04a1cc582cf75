"""LightGCN: propagation, gradients, steps, what scoring needs, resuming, the published protocol."""

import numpy as np
import pytest
import torch
from resuming import check_resuming

from recsys import config
from recsys.data.batches import PairBatches
from recsys.models.lightgcn import Graph, LightGCN, _Propagation
from recsys.models.negatives import generator_at
from recsys.schema import NUM_RESERVED, Interactions, Schema
from recsys.training import train

USERS, ITEMS = 30, 20
SCHEMA = Schema.of(USERS + NUM_RESERVED, ITEMS + NUM_RESERVED)
LONELY_USER, LONELY_ITEM, LONER = 9, 11, 13  # LONER: an item whose only user has no other


@pytest.fixture(scope="module")
def pairs():
    """Random pairs; one user and one item have none, and one pair hangs together with nothing else."""
    generator = torch.Generator().manual_seed(0)
    liked = torch.rand(SCHEMA.num_users, SCHEMA.num_items, generator=generator) < 0.2
    liked[:NUM_RESERVED] = liked[:, :NUM_RESERVED] = False
    liked[LONELY_USER] = liked[:, LONELY_ITEM] = liked[:, LONER] = liked[LONER] = False
    liked[LONER, LONER] = True
    user, item = liked.nonzero().unbind(1)
    return Interactions.from_pairs(user, item, num_rows=SCHEMA.num_users, num_items=SCHEMA.num_items)


def make(pairs, seed=0, **arguments):
    torch.manual_seed(seed)
    model = LightGCN(SCHEMA, **{"embedding_dim": 8, "batch_size": 16, "max_epochs": 3} | arguments)
    model.observe(pairs)
    return model


def dense_propagation(pairs, users, items, num_layers):
    """Eq. 7 and 8 of the paper, by loops over the layers of one dense float64 adjacency matrix."""
    adjacency = np.zeros((len(users) + len(items),) * 2)
    for user, item in zip(pairs.row_idx().tolist(), pairs.item_idx.tolist(), strict=True):
        adjacency[user, len(users) + item] = adjacency[len(users) + item, user] = 1
    degree = adjacency.sum(1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
    layers = [np.concatenate([users, items])]
    for _ in range(num_layers):
        layers.append(scale[:, None] * adjacency * scale @ layers[-1])
    mean = sum(layers) / len(layers)
    return mean[: len(users)], mean[len(users) :]


@pytest.mark.parametrize("num_layers", [0, 1, 2, 3])
def test_propagation_is_the_mean_of_dense_layers(pairs, num_layers):
    model = make(pairs, num_layers=num_layers).eval()
    users, items = (table.detach().double().numpy() for table in (model.user_table, model.item_table))
    x, y = dense_propagation(pairs, users, items, num_layers)
    np.testing.assert_allclose(model.user_vectors_UD, x, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.item_vectors_ID, y, rtol=1e-5, atol=1e-7)
    some = torch.tensor([2, 9, 30])
    np.testing.assert_allclose(model.score({"user_idx": some}), x[some] @ y.T, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_autograd(pairs):
    """Of both inputs, through autograd's own rule for the dense product, in float64."""
    graph = Graph.of(pairs)
    graph = Graph(graph.users_UI.double(), graph.items_IU.double(), graph.pairs)
    generator = torch.Generator().manual_seed(1)
    tables = [
        torch.randn(rows, 4, dtype=torch.float64, generator=generator, requires_grad=True)
        for rows in (SCHEMA.num_users, SCHEMA.num_items)
    ]
    weights = [torch.randn(table.shape, dtype=torch.float64, generator=generator) for table in tables]

    def gradients(x, y):
        loss = (x * weights[0]).sum() + (y * weights[1]).square().sum()
        return torch.autograd.grad(loss, tables)

    dense = graph.users_UI.to_dense()
    x, y = tables
    layers = [(x, y)]
    for _ in range(3):
        x, y = dense @ y, dense.T @ x
        layers.append((x, y))
    expected = gradients(*(sum(side) / 4 for side in zip(*layers, strict=True)))
    for got, want in zip(gradients(*_Propagation.apply(graph, 3, *tables)), expected, strict=True):
        torch.testing.assert_close(got, want)
    assert torch.autograd.gradcheck(lambda x, y: _Propagation.apply(graph, 2, x, y), tables)


@pytest.mark.parametrize("num_negatives", [1, 3])
def test_a_bpr_step_is_the_naive_one(pairs, num_negatives):
    """Loss and penalty by loops in float64, then Adam's first step: lr against the sign of the gradient."""
    model = make(pairs, num_negatives=num_negatives, weight_decay=0.3, lr=0.01)
    users, items = (table.detach().double().numpy().copy() for table in (model.user_table, model.item_table))
    user_B, item_B = pairs.row_idx()[::7], pairs.item_idx[::7]
    negative_N = model.draw(user_B, generator_at(5, 6))
    mean, penalty = model.compute_losses(user_B, item_B, negative_N)

    def naive(users, items):
        x, y = dense_propagation(pairs, users, items, 3)
        loss = squares = 0.0
        for u, i, drawn in zip(user_B, item_B, negative_N.view(-1, num_negatives), strict=True):
            loss += np.mean([np.log1p(np.exp(x[u] @ y[j] - x[u] @ y[i])) for j in drawn.tolist()])
            squares += sum(float(row @ row) for row in (users[u], items[i], *items[drawn.tolist()]))
        return loss / len(user_B), 0.3 / 2 * squares / len(user_B)

    expected = naive(users, items)
    assert mean.item() == pytest.approx(expected[0], rel=1e-5)
    assert penalty.item() == pytest.approx(expected[1], rel=1e-5)
    before = model.user_table.detach().clone()
    chunk = {"user_idx": user_B[None], "item_idx": item_B[None], "seed": 5, "step": 6}
    assert model.train_steps(chunk, model.configure_optimizers()).item() == pytest.approx(expected[0], rel=1e-5)
    moved = (model.user_table - before).detach()
    for row, column in [(int(user_B[0]), 0), (int(user_B[3]), 5), (LONER, 2)]:
        shifted = users.copy()
        shifted[row, column] += 1e-5
        slope = (sum(naive(shifted, items)) - sum(expected)) / 1e-5
        if abs(slope) > 1e-6:
            assert moved[row, column].item() == pytest.approx(-0.01 * np.sign(slope), rel=1e-3)


def test_the_softmax_is_the_sampled_one(pairs):
    model = make(pairs, loss="softmax", num_negatives=50, weight_decay=0.3)
    user_B, item_B = pairs.row_idx()[::7], pairs.item_idx[::7]
    negative_N = model.draw(user_B, generator_at(5, 6))
    assert negative_N.shape == (50,)
    mean, penalty = model.compute_losses(user_B, item_B, negative_N)
    users, items = (table.detach().double().numpy() for table in (model.user_table, model.item_table))
    x, y = dense_propagation(pairs, users, items, 3)
    loss = squares = 0.0
    for u, i in zip(user_B, item_B, strict=True):
        others = sum(np.exp(x[u] @ y[j]) for j in negative_N if j != i) * ITEMS / 50
        loss += np.log(np.exp(x[u] @ y[i]) + others) - x[u] @ y[i]
        squares += users[u] @ users[u] + items[i] @ items[i]
    assert mean.item() == pytest.approx(loss / len(user_B), rel=1e-5)
    assert penalty.item() == pytest.approx(0.15 * squares / len(user_B), rel=1e-5)


def test_negatives_are_no_positives_of_the_user(pairs):
    model = make(pairs)
    user = torch.arange(NUM_RESERVED, SCHEMA.num_users).repeat_interleave(400)
    drawn = model.draw(user, generator_at(0, 0))
    hits = model.graph.pairs.observed(user, drawn).float().mean().item()
    assert hits < 0.01  # four tries, each a hit with probability 0.2 or so
    assert torch.equal(drawn, model.draw(user, generator_at(0, 0)))
    assert not torch.equal(drawn, model.draw(user, generator_at(0, 1)))
    free = drawn[~model.graph.pairs.observed(user, drawn)]
    assert set(free.tolist()) == set(range(NUM_RESERVED, SCHEMA.num_items))
    dense = torch.zeros(SCHEMA.num_users, SCHEMA.num_items, dtype=torch.bool)
    dense[pairs.row_idx(), pairs.item_idx] = True
    all_users, all_items = torch.arange(SCHEMA.num_users), torch.arange(SCHEMA.num_items)
    assert torch.equal(model.graph.pairs.observed(all_users[:, None], all_items), dense)


def test_who_has_no_edge_keeps_a_share_of_the_own_row(pairs):
    model = make(pairs).eval()
    torch.testing.assert_close(model.user_vectors_UD[LONELY_USER], model.user_table[LONELY_USER].detach() / 4)
    torch.testing.assert_close(model.item_vectors_ID[LONELY_ITEM], model.item_table[LONELY_ITEM].detach() / 4)
    # A component of two: half of what comes out is each side's own, half the other's.
    mean = (model.user_table[LONER] + model.item_table[LONER]).detach() / 2
    torch.testing.assert_close(model.user_vectors_UD[LONER], mean)
    batch = {"user_idx": torch.tensor([LONELY_USER, 2])}
    assert model.personal(batch).tolist() == [False, True]
    fallback = model.scorer_with_fallback()(batch)[0]
    assert torch.equal(fallback, model.item_counts.float())


def test_reserved_rows_stay_zero_through_training(pairs):
    model = make(pairs)
    optimizer = model.configure_optimizers()
    for chunk in PairBatches(pairs, 16, seed=0).chunks(0):
        model.train_steps(chunk, optimizer)
    model.eval()
    for table in (model.user_table, model.item_table, model.user_vectors_UD, model.item_vectors_ID):
        assert not table[:NUM_RESERVED].any()
        assert table[NUM_RESERVED:].any()


def test_scores_are_as_of_the_last_eval_and_need_no_training_set(pairs):
    model = make(pairs).eval()
    batch = {"user_idx": torch.arange(2, 12)}
    before = model.score(batch)
    with torch.no_grad():
        model.train().item_table.mul_(2)
    assert torch.equal(model.score(batch), before)
    after = model.eval().score(batch)
    assert not torch.equal(after, before)
    torch.manual_seed(9)
    fresh = LightGCN(SCHEMA, embedding_dim=8)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval().score(batch), after)
    with pytest.raises(ValueError, match="call observe"):
        fresh.compute_losses(batch["user_idx"], batch["user_idx"], batch["user_idx"])


@pytest.mark.parametrize("loss", ["bpr", "softmax"])
def test_resuming_at_any_chunk_is_exact(pairs, loss):
    batches = PairBatches(pairs, 16, seed=7, steps_per_chunk=3)
    check_resuming(lambda seed: make(pairs, seed=seed, loss=loss), lambda _: batches)


def test_the_published_protocol_runs(tmp_path):
    """experiment=lightgcn_gowalla on two small files in the authors' layout."""
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train.txt", 8), ("test.txt", 2)):
        lines = [[user, *torch.randperm(40, generator=generator)[:count].tolist()] for user in range(50)]
        (tmp_path / name).write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
    cfg = config.compose(
        "experiment=lightgcn_gowalla",
        f"data.train={tmp_path / 'train.txt'}",
        f"data.test={tmp_path / 'test.txt'}",
        "trainer=cpu",
        "trainer.max_epochs=2",
        "evaluation.k=[20]",
    )
    assert (cfg.model.embedding_dim, cfg.model.num_layers, cfg.model.max_epochs) == (64, 3, 1000)
    run = train(cfg, tmp_path / "run")
    assert {"test/recall@20", "test/ndcg@20"} <= run.metrics.keys()
    assert not any(name.startswith("val/") for name in run.metrics)
    assert torch.equal(run.model.user_vectors_UD, run.model.eval().user_vectors_UD)
    assert run.model.user_vectors_UD.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim must be at least 1"),
        ({"num_negatives": 0}, "num_negatives must be at least 1"),
        ({"num_layers": -1}, "num_layers must not be below 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must not be below 0"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        LightGCN(SCHEMA, **arguments)
    assert "\n" not in str(error.value)
