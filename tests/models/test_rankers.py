"""Rankers and their layers against naive float64 loops."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from recsys.models import losses
from recsys.models.dcn import DCN, Cross
from recsys.models.deepfm import DeepFM
from recsys.models.dlrm import DLRM
from recsys.models.fm import FactorizationMachine
from recsys.models.layers import Dense, FieldEmbeddings, Lookups, Numbers, pairwise_products
from recsys.models.logistic import Logistic
from recsys.models.mlp import MLP
from recsys.models.mmoe import MMoE
from recsys.models.optimizers import RowAdagrad
from recsys.schema import LABEL, Column

B, D = 9, 4
COLUMNS = (
    Column("tags", "item_feature", "int64", 6, 3),
    Column("item_id", "item_feature", "int64", 11),
    Column("age", "user_feature", "float32"),
    Column("history", "context", "int64", 11, 5, table="item_id"),
    Column("gaps", "context", "float32", None, 5),
    Column("length", "context", "int64"),
    Column("user_id", "user_feature", "int64", 7),
    Column("price", "item_feature", "float64"),
)
INDEXED = ["item_id", "user_id", "tags", "history"]
NUMBERS = ["age", "price", "length", "gaps"]


def rows(seed=0):
    """Empty lists, full ones, and holes in the middle; index 0 as a value of its own in a column of one index."""
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "tags": torch.randint(0, 6, (B, 3), generator=generator),
        "item_id": torch.randint(0, 11, (B,), generator=generator),
        "age": torch.randn(B, generator=generator),
        "history": torch.randint(0, 11, (B, 5), generator=generator),
        "gaps": torch.randn(B, 5, generator=generator) * 1000,
        "length": torch.randint(0, 50, (B,), generator=generator),
        "user_id": torch.randint(0, 7, (B,), generator=generator),
        "price": torch.randn(B, generator=generator, dtype=torch.float64),
        "label": torch.randint(0, 2, (B,), generator=generator).float(),
        "watch_seconds": torch.rand(B, generator=generator) * 100,
    }
    batch["tags"][0] = 0
    batch["history"][1:3] = 0
    batch["history"][3] = torch.tensor([4, 0, 4, 4, 2])
    batch["item_id"][0] = 0
    return batch


def value(parameter):
    return parameter.detach().double().numpy()


def linear(x, layer):
    y = value(layer.weight) @ x
    return y if layer.bias is None else y + value(layer.bias)


def dense(x, layers):
    """An MLP of linear layers with ReLU (or sigmoid) behind them; dropout is off."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = linear(x, layer)
        elif isinstance(layer, nn.ReLU):
            x = np.maximum(x, 0)
        elif isinstance(layer, nn.Sigmoid):
            x = 1 / (1 + np.exp(-x))
        elif isinstance(layer, nn.Sequential):
            x = dense(x, layer)
    return x


def naive_lookups(module, batch, b):
    """Vectors of row b, each table cut out of the parameter by hand: tables in the order of their first column."""
    table = value(module.table)
    start = {"item_id": 0, "history": 0, "user_id": 11, "tags": 18}
    found = []
    for name in INDEXED:
        if batch[name].dim() == 1:
            found.append(table[start[name] + int(batch[name][b])])
            continue
        filled = [int(i) for i in batch[name][b] if i != 0]
        vectors = [table[start[name] + i] for i in filled]
        found.append(np.mean(vectors, 0) if vectors else np.zeros(table.shape[1]))
    return found


def naive_numbers(batch, b):
    """The numbers of row b, column by column."""
    found = []
    for name in NUMBERS:
        values = batch[name][b].reshape(-1).tolist()
        if name in ("length", "gaps"):
            values = [math.copysign(math.log(1 + abs(x)), x) for x in values]
        found.append(values)
    return found


def naive_fields(module, batch, b):
    found, vectors, first = naive_lookups(module.lookups, batch, b), value(module.number_vectors), 0
    for values in naive_numbers(batch, b):
        own = vectors[first : first + len(values)]
        found.append(sum(x * v for x, v in zip(values, own, strict=True)) / math.sqrt(len(values)))
        first += len(values)
    return found


def assert_logits(model, reference, task=LABEL):
    """reference(batch, b): the logit of a row. Weights are drawn anew, so that nothing hides at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    batch = rows()
    got = model.eval()(batch)[task]
    assert got.shape == (B,)
    np.testing.assert_allclose(got.detach(), [reference(batch, b) for b in range(B)], rtol=2e-4, atol=2e-4)


# --- layers ---


def test_fields_equal_a_naive_loop():
    module = FieldEmbeddings(COLUMNS, D, init_std=1.0)
    batch = rows()
    assert module.fields == INDEXED + NUMBERS
    assert module.lookups.table.shape == (11 + 7 + 6, D)  # the history has no rows of its own
    got = module(batch)
    assert got.shape == (B, len(module.fields), D)
    assert module.width == len(module.fields) * D
    np.testing.assert_allclose(got.detach(), [naive_fields(module, batch, b) for b in range(B)], rtol=1e-5, atol=1e-5)


def test_gradients_of_lookups_equal_those_of_a_dense_table():
    module = Lookups(COLUMNS, D).double()
    batch, weight = rows(), torch.randn(B, 4, D, dtype=torch.float64)
    (module(batch) * weight).sum().backward()
    gradient = module.table.grad
    assert gradient.is_sparse
    row = gradient._indices()[0]
    assert len(row) == len(row.unique())  # no row twice
    expected = torch.zeros_like(module.table)
    start = {"item_id": 0, "history": 0, "user_id": 11, "tags": 18}
    for f, name in enumerate(INDEXED):
        for b in range(B):
            idx = batch[name][b].reshape(-1)
            filled = idx if batch[name].dim() == 1 else idx[idx != 0]
            for i in filled.tolist():
                expected[start[name] + i] += weight[b, f] / len(filled)
    torch.testing.assert_close(gradient.to_dense(), expected, rtol=1e-12, atol=1e-14)
    touched = (expected != 0).any(1).nonzero().squeeze(1)
    assert torch.equal(row.sort().values, touched)


def test_two_batches_may_wait_for_one_backward():
    module = Lookups(COLUMNS, D).double()
    loss = module(rows(0)).square().sum() + module(rows(1)).square().sum()
    loss.backward()
    both, module.table.grad = module.table.grad.to_dense(), None
    for seed in (0, 1):
        module(rows(seed)).square().sum().backward()
    torch.testing.assert_close(both, module.table.grad.to_dense())


def test_padding_of_a_list_is_never_moved():
    columns = (Column("tags", "item_feature", "int64", 6, 3),)
    module = Lookups(columns, D)
    before = module.table.detach().clone()
    module({"tags": torch.tensor([[0, 0, 0], [2, 0, 0]])}).square().sum().backward()
    RowAdagrad([module.table], lr=0.1).step()
    moved = (module.table.detach() != before).any(1)
    assert moved.tolist() == [False, False, True, False, False, False]


def test_lists_share_a_table_whose_own_column_is_absent():
    columns = [Column(name, "context", "int64", 5, 2, table="item_id") for name in ("liked", "seen")]
    module = Lookups(columns, D)
    assert module.table.shape == (5, D)
    idx = torch.tensor([[2, 3], [4, 0]])
    liked_BD, seen_BD = module({"liked": idx, "seen": idx}).unbind(1)
    assert torch.equal(liked_BD, seen_BD)


def test_without_indices_or_numbers_there_are_no_such_fields():
    batch = rows()
    assert Lookups(COLUMNS[2:3], D)(batch).shape == (B, 0, D)
    assert Numbers(COLUMNS[:2])(batch).shape == (B, 0)
    assert FieldEmbeddings(COLUMNS[2:3], D)(batch).shape == (B, 1, D)
    assert FieldEmbeddings(COLUMNS[:2], D)(batch).shape == (B, 2, D)
    empty = {name: values[:0] for name, values in batch.items()}
    assert FieldEmbeddings(COLUMNS, D)(empty).shape == (0, 8, D)


def test_pairwise_products_equal_the_sum_over_pairs():
    fields_BFD = torch.randn(B, 7, D, dtype=torch.float64)
    expected = [sum(float(f[i] @ f[j]) for i, j in combinations(range(7), 2)) for f in fields_BFD]
    np.testing.assert_allclose(pairwise_products(fields_BFD), expected, rtol=1e-10)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_dense_equals_its_definition(activation):
    module = Dense(5, [7, 3], dropout=0.5, activation=activation).eval()
    x_BV = torch.randn(B, 5)
    np.testing.assert_allclose(module(x_BV).detach(), [dense(value(x), module) for x in x_BV], rtol=1e-4, atol=1e-6)
    assert module.out_features == 3
    assert Dense(5, []).out_features == 5


# --- models ---


def test_logistic_equals_its_definition():
    model = Logistic(COLUMNS)
    assert not model(rows())[LABEL].any()  # begins at nothing
    assert_logits(model, lambda batch, b: float(model.bias.detach()) + np.sum(naive_fields(model.weights, batch, b)))


def naive_fm(model, batch, b):
    fields = naive_fields(model.fields, batch, b)
    pairs = sum(f @ g for f, g in combinations(fields, 2))
    return float(model.bias.detach()) + np.sum(naive_fields(model.weights, batch, b)) + pairs


def test_fm_equals_its_definition():
    model = FactorizationMachine(COLUMNS, embedding_dim=D)
    assert_logits(model, lambda batch, b: naive_fm(model, batch, b))


def test_deepfm_equals_its_definition():
    model = DeepFM(COLUMNS, embedding_dim=D, hidden=[6, 5], dropout=0.2)
    assert_logits(
        model,
        lambda batch, b: (
            naive_fm(model, batch, b) + dense(np.concatenate(naive_fields(model.fields, batch, b)), model.deep)[0]
        ),
    )


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_mlp_equals_its_definition(activation):
    model = MLP(COLUMNS, embedding_dim=D, hidden=[6, 5], activation=activation)
    assert_logits(
        model,
        lambda batch, b: linear(dense(np.concatenate(naive_fields(model.fields, batch, b)), model.deep), model.head)[0],
    )


def naive_cross(x, layers, low_rank):
    found = x
    for layer in layers:
        matrix = value(layer[1].weight) @ value(layer[0].weight) if low_rank else value(layer.weight)
        bias = value((layer[1] if low_rank else layer).bias)
        found = np.array([x[w] * (matrix[w] @ found + bias[w]) + found[w] for w in range(len(x))])
    return found


@pytest.mark.parametrize("low_rank", [None, 3])
def test_cross_equals_its_definition(low_rank):
    module = Cross(6, num_layers=3, low_rank=low_rank)
    x_BW = torch.randn(B, 6)
    expected = [naive_cross(value(x), module.layers, low_rank) for x in x_BW]
    np.testing.assert_allclose(module(x_BW).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("low_rank", [None, 3])
@pytest.mark.parametrize("structure", ["stacked", "parallel"])
def test_dcn_equals_its_definition(low_rank, structure):
    model = DCN(COLUMNS, embedding_dim=D, num_cross=2, low_rank=low_rank, structure=structure, hidden=[6])

    def reference(batch, b):
        x = np.concatenate(naive_fields(model.fields, batch, b))
        crossed = naive_cross(x, model.cross.layers, low_rank)
        if structure == "stacked":
            return linear(dense(crossed, model.deep), model.head)[0]
        return linear(np.concatenate([crossed, dense(x, model.deep)]), model.head)[0]

    # Products of products of random numbers: the tolerance is relative to the largest.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    batch = rows()
    expected = np.array([reference(batch, b) for b in range(B)])
    np.testing.assert_allclose(model(batch)[LABEL].detach(), expected, atol=1e-5 * np.abs(expected).max())


def test_dlrm_equals_its_definition():
    model = DLRM(COLUMNS, embedding_dim=D, bottom=[6], top=[5])

    def reference(batch, b):
        bottom = dense(np.concatenate(naive_numbers(batch, b)), model.bottom)
        vectors = [bottom, *naive_lookups(model.lookups, batch, b)]
        products = [f @ g for f, g in combinations(vectors, 2)]
        return linear(dense(np.concatenate([bottom, products]), model.top), model.head)[0]

    assert_logits(model, reference)


def test_dlrm_without_numbers_has_no_bottom():
    model = DLRM(COLUMNS[:2], embedding_dim=D, top=[5])
    assert model.bottom is None
    lookups_BFD = model.lookups(rows())
    products_B1 = (lookups_BFD[:, 0] * lookups_BFD[:, 1]).sum(1, keepdim=True)
    torch.testing.assert_close(model(rows())[LABEL], model.head(model.top(products_B1)).squeeze(1))


@pytest.mark.parametrize("task", ["label", "watch_seconds"])
def test_mmoe_equals_its_definition(task):
    model = MMoE(COLUMNS, embedding_dim=D, num_experts=3, experts=[6, 5], towers=[4])

    def reference(batch, b):
        x = np.concatenate(naive_fields(model.fields, batch, b))
        weight = np.exp(linear(x, model.gates[task]))
        mixed = sum(w * dense(x, e) for w, e in zip(weight / weight.sum(), model.experts, strict=True))
        return dense(mixed, model.towers[task])[0]

    assert_logits(model, reference, task)


@pytest.mark.parametrize("watch_loss", ["squared", "quantile", "weighted_logistic"])
def test_mmoe_loss_equals_its_definition(watch_loss):
    model = MMoE(
        COLUMNS, watch_loss=watch_loss, watch_quantile=0.8, label_weight=2.0, watch_weight=0.3, positive_weight=4.0
    )
    batch = rows()
    z, w = torch.randn(B, dtype=torch.float64), torch.randn(B, dtype=torch.float64)
    total = 0.0
    for b in range(B):
        y, seconds = float(batch["label"][b]), float(batch["watch_seconds"][b])
        p, q = 1 / (1 + math.exp(-float(z[b]))), 1 / (1 + math.exp(-float(w[b])))
        total += 2.0 * (-4.0 * math.log(p) if y else -math.log(1 - p))
        if watch_loss == "squared":
            total += 0.3 * (float(w[b]) - math.log(1 + seconds)) ** 2
        elif watch_loss == "quantile":
            missed = math.log(1 + seconds) - float(w[b])
            total += 0.3 * (0.8 * missed if missed > 0 else -0.2 * missed)
        else:
            total += 0.3 * (-seconds * math.log(q) if y else -math.log(1 - q))
    batch["label"] = batch["label"].double()
    got = model.compute_loss({"label": z, "watch_seconds": w}, batch)
    assert float(got) == pytest.approx(total / B, rel=1e-5)


def test_odds_of_the_weighted_logistic_are_seconds():
    """One constant logit: where its loss is least, its odds are the seconds of positives per negative."""
    model = MMoE(COLUMNS, watch_loss="weighted_logistic", label_weight=0.0, watch_weight=1.0)
    batch = {LABEL: torch.tensor([1.0, 0, 0, 0, 1]), "watch_seconds": torch.tensor([30.0, 0, 0, 0, 60])}
    logit = torch.tensor(30.0).log().requires_grad_()
    logits = {LABEL: torch.zeros(5), "watch_seconds": logit.expand(5)}
    model.compute_loss(logits, batch).backward()
    assert logit.grad.item() == pytest.approx(0, abs=1e-5)
    assert model.predict_seconds(logits)[0].item() == pytest.approx(30)
    squared = MMoE(COLUMNS).predict_seconds({"watch_seconds": torch.tensor([math.log(61), -3.0])})
    assert squared.tolist() == pytest.approx([60, 0], rel=1e-5)


@pytest.mark.parametrize("quantile", [0.2, 0.7])
def test_quantiles_of_the_logarithm_are_those_of_seconds(quantile):
    """One constant logit: its loss falls up to the quantile and rises behind it."""
    model = MMoE(COLUMNS, watch_loss="quantile", watch_quantile=quantile, label_weight=0.0, watch_weight=1.0)
    seconds = torch.tensor([0.0, 0, 2, 5, 9, 20, 31, 60, 90, 300, 1000])
    batch = {LABEL: torch.zeros(11), "watch_seconds": seconds}
    found_losses = []
    for found in seconds.unique():
        logits = {LABEL: torch.zeros(11), "watch_seconds": found.log1p().expand(11)}
        found_losses.append(model.compute_loss(logits, batch))
        assert model.predict_seconds(logits)[0].item() == pytest.approx(found.item(), rel=1e-5)
    least = seconds.unique()[torch.stack(found_losses).argmin()]
    assert least == seconds.quantile(quantile, interpolation="nearest")
    assert model.predict_seconds({"watch_seconds": torch.tensor([-3.0])}).item() == 0


@pytest.mark.parametrize(("loss", "of_groups"), [("pairwise", losses.pairwise), ("listwise", losses.listwise)])
def test_losses_of_groups_stand_beside_bce(loss, of_groups):
    model = Logistic(COLUMNS, loss=loss, rank_weight=0.7, group="user_id", positive_weight=3.0)
    assert model.batch_options == {"group": "user_id", "list_length": 8}
    batch, logits = rows(), {LABEL: torch.randn(B, generator=torch.Generator().manual_seed(0))}
    batch["user_id"] = torch.tensor([2, 2, 3, 3, 3, 0, 0, 1, 1])
    batch[LABEL] = torch.tensor([1.0, 0, 1, 0, 0, 1, 0, 1, 0])
    bce = Logistic(COLUMNS, positive_weight=3.0).compute_loss(logits, batch)
    known = slice(0, 5)  # the rest belong to padding and unknown: nobody that is known
    expected = bce + 0.7 * of_groups(logits[LABEL][known], batch[LABEL][known], batch["user_id"][known])
    torch.testing.assert_close(model.compute_loss(logits, batch), expected)


def test_a_group_may_be_no_input():
    columns = (*COLUMNS, Column("visit", "label", "int64", 9))
    model = Logistic(columns, loss="pairwise", group="visit")
    batch = rows() | {"visit": torch.tensor([2, 2, 2, 3, 3, 3, 4, 4, 4])}
    assert "visit" not in [column.name for column in model.columns]
    model.compute_loss(model(batch), batch).backward()
    assert Logistic(columns).batch_options == {}


@pytest.mark.parametrize("group", ["visit", "tags", "age", "length"])
def test_what_cannot_be_a_group_is_named(group):
    for loss in ("pairwise", "listwise"):
        message = f"group={group}: loss={loss} needs a column of one index, choose from: item_id, user_id"
        with pytest.raises(ValueError, match=message):
            Logistic(COLUMNS, loss=loss, group=group)
    with pytest.raises(ValueError, match="there is none"):
        Logistic(COLUMNS[2:3], loss="listwise")


def test_mmoe_needs_watch_seconds():
    model, batch = MMoE(COLUMNS), rows()
    del batch["watch_seconds"]
    with pytest.raises(ValueError, match=r"no watch_seconds.*add it to the labels"):
        model.compute_loss(model(batch), batch)


# --- errors ---


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (FactorizationMachine, {"embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        (DeepFM, {"hidden": [8, 0]}, "hidden layers must be at least 1 wide"),
        (MLP, {"activation": "tanh"}, "activation=tanh: expected one of relu, sigmoid"),
        (MLP, {"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        (DCN, {"structure": "beside"}, "structure=beside: expected stacked or parallel"),
        (DCN, {"num_cross": 0}, "num_cross must be at least 1"),
        (DCN, {"low_rank": 0}, "low_rank must be at least 1"),
        (MMoE, {"num_experts": 0}, "num_experts must be at least 1"),
        (MMoE, {"watch_loss": "hinge"}, "watch_loss=hinge"),
        (MMoE, {"watch_weight": -1.0}, "watch_weight must not be below 0"),
        (MMoE, {"watch_quantile": 1.0}, "watch_quantile must lie between 0 and 1"),
        (Logistic, {"loss": "lambda"}, "loss=lambda: expected bce, focal, pairwise or listwise"),
        (Logistic, {"rank_weight": -1.0}, "rank_weight must not be below 0"),
        (Logistic, {"list_length": 0}, "list_length must be at least 1, got 0"),
        (Logistic, {"lr": 0.0}, "lr must be above 0"),
    ],
    ids=lambda part: getattr(part, "__name__", None),
)
def test_wrong_arguments_are_said(model, options, message):
    with pytest.raises(ValueError, match=message):
        model(COLUMNS, **options)


def test_dlrm_needs_something_to_multiply():
    with pytest.raises(ValueError, match="two columns of indices, or numbers"):
        DLRM(COLUMNS[1:2])


@pytest.mark.parametrize(("name", "size"), [("item_id", 11), ("history", 11), ("tags", 6), ("user_id", 7)])
@pytest.mark.parametrize("bad", [-1, 11])
def test_an_index_outside_its_column_is_named(name, size, bad):
    """Also where the row exists, as another column's."""
    batch = rows()
    batch[name].view(B, -1)[4, -1] = bad
    with pytest.raises(IndexError, match=f"column '{name}': index {bad} in row 4 of the batch lies outside its {size}"):
        Lookups(COLUMNS, D)(batch)


@pytest.mark.parametrize(("name", "bad"), [("age", math.nan), ("gaps", math.inf), ("price", -math.inf)])
def test_a_number_that_is_not_finite_is_named(name, bad):
    batch = rows()
    batch[name].view(B, -1)[4, -1] = bad
    with pytest.raises(ValueError, match=f"column '{name}': {bad} in row 4"):
        FieldEmbeddings(COLUMNS, D)(batch)
