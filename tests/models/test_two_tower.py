"""Two towers against naive references: vectors, losses, what is drawn and corrected, and rows that have no id."""

from typing import Any

import faiss
import numpy as np
import pytest
import torch
from resuming import check_resuming
from torch import Tensor

from recsys.data.batches import HistoryBatches
from recsys.models.base import RowBatch
from recsys.models.negatives import generator_at
from recsys.models.two_tower import TwoTower
from recsys.schema import NUM_RESERVED, PADDING, UNKNOWN, Column, Interactions, Schema

USERS, ITEMS, D = 40, 30, 8
U, M = USERS + NUM_RESERVED, ITEMS + NUM_RESERVED  # rows of the tables
AGE = Column("age", "user_feature", "int64", 5)
TOPIC = Column("topic", "item_feature", "int64", 7)
TAGS = Column("tags", "item_feature", "int64", 6, 2)
LENGTH = Column("length", "item_feature", "float32")
PLAIN = Schema.of(U, M)
RICH = Schema((*PLAIN.columns, AGE, TOPIC, TAGS, LENGTH))


def features() -> tuple[RowBatch, RowBatch]:
    generator = torch.Generator().manual_seed(1)
    users = {"age": torch.randint(5, (U,), generator=generator)}
    tags = torch.randint(6, (M, 2), generator=generator)
    topic = torch.arange(M) % 5 + NUM_RESERVED
    return users, {"topic": topic, "tags": tags, "length": torch.randn(M, generator=generator)}


def pairs(per_user: int = 5, last: int = M - 4) -> Interactions:
    """Users like items of one residue of the index modulo 5; the last items nobody likes."""
    generator = torch.Generator().manual_seed(2)
    user, item = [], []
    for u in range(NUM_RESERVED, U):
        liked = torch.arange(u % 5 + NUM_RESERVED, last, 5)
        chosen = liked[torch.randperm(len(liked), generator=generator)[:per_user]]
        user += [u] * len(chosen)
        item += chosen.tolist()
    time = torch.randperm(len(user), generator=generator)
    return Interactions.from_pairs(
        torch.tensor(user), torch.tensor(item), num_rows=U, num_items=M, timestamp=time.long()
    )


TRAIN = pairs()


def build(schema: Schema = RICH, train: Interactions = TRAIN, **arguments: Any) -> TwoTower:
    torch.manual_seed(0)
    model = TwoTower(schema, **({"embedding_dim": D, "batch_size": 16, "max_epochs": 3} | arguments))
    if schema is RICH:
        model.describe(*features())
    model.observe(train)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter)))
    return model


def train(model: TwoTower, epochs: int | None = None) -> TwoTower:
    source = HistoryBatches(TRAIN, model.batch_size, 0, **model.batch_options)
    optimizers = model.configure_optimizers()
    for epoch in range(model.max_epochs if epochs is None else epochs):
        for chunk in source.chunks(epoch):
            model.train_steps(chunk, optimizers)
    return model.eval()


def batch_of(user: Tensor, train: Interactions = TRAIN) -> dict[str, Any]:
    return {"user_idx": user, "user_key": user, "history": train.select(user)}


# Vectors


def naive_items(model: TwoTower) -> np.ndarray:
    """Every item's vector and bias, float64 [I, D + 1]: an id where train has a positive, and its features' vectors."""
    fields = model.items.features.fields
    _, rows = features()
    with torch.no_grad():
        vectors = fields(rows).double().sum(1).numpy()  # type: ignore[misc]
        ids = model.items.ids.double().numpy()  # type: ignore[union-attr]
    known = (TRAIN.item_counts() > 0).numpy()
    return np.asarray(vectors + ids * known[:, None])


def naive_user(model: TwoTower, user: int, items: list[int]) -> np.ndarray:
    users, _ = features()
    with torch.no_grad():
        x = model.users.features.fields(users).double().sum(1)[user].numpy()  # type: ignore[misc]
        if int(TRAIN.row_counts()[user]):
            x = x + model.users.ids.double()[user].numpy()  # type: ignore[union-attr]
    if items:
        said = naive_items(model)[items, :D].sum(0) / (len(items) + 10.0)
        x = x + model.read.weight.detach().double().numpy() @ said
    return np.asarray(x)


def test_vectors_are_the_sums_that_the_docstring_says() -> None:
    model = build(length=3)
    torch.testing.assert_close(model.encode_items(torch.arange(M)), torch.from_numpy(naive_items(model)).float())
    user = torch.tensor([UNKNOWN, 3, 9, 3])
    history = Interactions.from_pairs(
        torch.tensor([1, 2, 2, 2, 2]), torch.tensor([4, 5, 6, 7, 31]), num_rows=4, num_items=M
    )
    found = model.encode_users({"user_idx": user, "user_key": user, "history": history})
    for b, items in enumerate([[], [4], [6, 7, 31], []]):
        expected = naive_user(model, int(user[b]), items)
        torch.testing.assert_close(found[b, :D], torch.from_numpy(expected).float())
    assert bool((found[:, D] == 1).all())


def test_cosine_lies_between_the_temperatures_inverses() -> None:
    model = build(normalize=True, temperature=0.2)
    vectors = model.encode_items(torch.arange(M))[:, :D]
    torch.testing.assert_close(vectors.norm(dim=1), torch.full((M,), 0.2**-0.5))
    users = model.encode_users(batch_of(torch.arange(U)))
    torch.testing.assert_close(users[:, :D].norm(dim=1), torch.full((U,), 0.2**-0.5))


def test_attention_sees_the_order_and_an_empty_history_says_nothing() -> None:
    model = build(history="attention", length=4)
    stranger = torch.full((3,), UNKNOWN)
    order = [torch.tensor([4, 5, 6]), torch.tensor([6, 5, 4])]
    history = Interactions(torch.tensor([0, 3, 6, 6]), torch.cat(order), M)
    found = model.encode_users({"user_idx": stranger, "user_key": stranger, "history": history})
    assert not torch.allclose(found[0], found[1])
    alone = build(history="none").encode_users({"user_idx": stranger, "user_key": stranger, "history": history})
    torch.testing.assert_close(found[2], alone[2])


def test_history_dropout_leaves_no_gap() -> None:
    """Dropped items are as if they had never been there, with attention too."""
    model = build(history="attention", length=6, history_dropout=0.5)
    row_M, sequence = torch.arange(M), torch.tensor([[4, 5, 6, 7, 8, 9]] * 20)
    y_MD = model.encode_items(row_M)[:, :D]
    found = model._read(sequence, row_M, y_MD, torch.Generator().manual_seed(0))
    kept = torch.empty(sequence.shape).bernoulli_(0.5, generator=torch.Generator().manual_seed(0)) > 0
    for b in range(20):
        left = sequence[b][kept[b]][None]
        expected = model._read(left, row_M, y_MD, None) if left.numel() else torch.zeros(1, D)
        torch.testing.assert_close(found[b], expected[0], msg=f"row {b}")


def test_a_new_item_is_its_features() -> None:
    model = build()
    _, rows = features()
    cold = torch.arange(M - 4, M)
    assert int(TRAIN.item_counts()[cold].sum()) == 0
    new = model.encode_new_items({name: values[cold] for name, values in rows.items()})
    torch.testing.assert_close(new, model.encode_items(cold).detach())
    with pytest.raises(ValueError, match="without features of items"):
        build(PLAIN).encode_new_items({})


# Losses


def step_of(model: TwoTower, count: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    source = HistoryBatches(TRAIN, count, 0, **model.batch_options)
    chunk = next(iter(source.chunks(0)))
    return chunk["user_idx"][0], chunk["item_idx"][0], chunk["history"][0]


def quiet(**arguments: Any) -> TwoTower:
    """A model whose loss draws nothing but negatives."""
    return build(id_dropout=0.0, history_dropout=0.0, **arguments)


def logits_of(model: TwoTower, user_B: Tensor, history_BL: Tensor) -> np.ndarray:
    scores = [
        naive_items(model) @ np.append(naive_user(model, int(u), [i for i in h.tolist() if i != PADDING]), 1.0)
        for u, h in zip(user_B, history_BL, strict=True)
    ]
    return np.stack(scores)


@pytest.mark.parametrize("multi_positive", [False, True])
def test_full_softmax_is_the_naive_one(multi_positive: bool) -> None:
    model = quiet(negatives="all", multi_positive=multi_positive)
    user_B, item_B, history_BL = step_of(model)
    loss_B = model.compute_loss(user_B, item_B, history_BL, 0, 0)[0].detach()
    logits = logits_of(model, user_B, history_BL)[:, NUM_RESERVED:]
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for b, (u, i) in enumerate(zip(user_B.tolist(), item_B.tolist(), strict=True)):
        liked = TRAIN.select(torch.tensor([u])).item_idx.tolist() if multi_positive else [i]
        expected = -np.mean([logp[b, j - NUM_RESERVED] for j in liked])
        assert float(loss_B[b]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("multi_positive", [False, True])
@pytest.mark.parametrize("log_q", ["counts", "none"])
@pytest.mark.parametrize("negatives", ["in_batch", "mixed", "uniform"])
def test_sampled_softmax_is_the_naive_one(negatives: str, log_q: str, multi_positive: bool) -> None:
    model = quiet(negatives=negatives, num_negatives=6, log_q=log_q, multi_positive=multi_positive)
    user_B, item_B, history_BL = step_of(model)
    loss_B = model.compute_loss(user_B, item_B, history_BL, 5, 7)[0].detach()
    drawn = model._draw(item_B, generator_at(5, 7)).tolist()
    if negatives != "in_batch":
        assert len(drawn) == 6 + 16 * (negatives == "mixed")
    counts = TRAIN.item_counts().double().numpy()
    expected_count = {"in_batch": 15 * counts / counts.sum(), "uniform": np.full(M, 6 / ITEMS)}
    expected_count["mixed"] = expected_count["in_batch"] + expected_count["uniform"]
    logits = logits_of(model, user_B, history_BL)
    for b, (u, own) in enumerate(zip(user_B.tolist(), item_B.tolist(), strict=True)):
        column = {}
        for place, j in enumerate(drawn):
            if j != own:
                correction = 0.0 if log_q == "none" else np.log(expected_count[negatives][j])
                column[place] = logits[b, j] - correction
        norm = np.log(np.exp(logits[b, own]) + np.exp(list(column.values())).sum())
        likes = set(TRAIN.select(torch.tensor([u])).item_idx.tolist())
        targets = [logits[b, own]]
        if multi_positive:
            targets += [value for place, value in column.items() if drawn[place] in likes]
        assert float(loss_B[b]) == pytest.approx(norm - np.mean(targets), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("negatives", ["mixed", "uniform"])
def test_the_correction_makes_the_sum_over_others_unbiased(negatives: str) -> None:
    """Over many draws exp(corrected logits) add up to the others' exp(logits), as the full softmax has them."""
    model = quiet(negatives=negatives, num_negatives=8)
    weight_I = torch.linspace(0.5, 1.5, M)
    share_I = TRAIN.item_counts().double() / len(TRAIN)
    total, generator = 0.0, torch.Generator().manual_seed(0)
    for _ in range(4000):
        item_B = torch.multinomial(share_I, model.batch_size - 1, replacement=True, generator=generator)
        drawn = model._draw(item_B, generator)
        total += float((weight_I[drawn].log() - model._log_expected(drawn)).exp().sum()) / 4000
    assert total == pytest.approx(float(weight_I[NUM_RESERVED:].sum()), rel=0.02)


def test_streaming_shares_follow_what_comes() -> None:
    model = build(log_q="streaming", negatives="in_batch", streaming_rate=0.02)
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(M, dtype=torch.float64)
    truth[NUM_RESERVED:] = torch.linspace(1, 4, ITEMS)
    for step in range(4000):
        if step == 2000:
            truth = truth.flip(0).roll(NUM_RESERVED)
        model._count(torch.multinomial(truth, 16, replacement=True, generator=generator), step)
        if step in (1999, 3999):
            share = truth / truth.sum()
            # The chance that a batch holds the item is what a gap tells; per draw it is a little less.
            expected = (1 - (1 - share) ** 16) / 16
            ratio = model.shares(torch.arange(NUM_RESERVED, M)).double() / expected[NUM_RESERVED:]
            assert float(ratio.log().abs().mean()) < 0.15


# Hard negatives


def faiss_index(vectors_ID: Tensor) -> Any:
    """What any index does: it is built from vectors and answers queries."""
    index = faiss.IndexFlatIP(vectors_ID.shape[1])
    index.add(vectors_ID[NUM_RESERVED:].numpy())
    return lambda x_BD, k: torch.from_numpy(index.search(x_BD.numpy(), k)[1]) + NUM_RESERVED


@pytest.mark.parametrize("build_index", [None, faiss_index])
def test_hard_negatives_score_highest_and_are_not_liked(build_index: Any) -> None:
    model = quiet(negatives="in_batch", num_hard=3, hard_pool=10)
    if build_index is not None:
        model.build_index = build_index
    user_B, _, history_BL = step_of(model)
    hard_BH = model._mine(user_B, history_BL, 0, torch.Generator().manual_seed(0))
    assert hard_BH.shape == (16, 3)
    logits = logits_of(model, user_B, history_BL)
    for b, u in enumerate(user_B.tolist()):
        best = np.argsort(-logits[b, NUM_RESERVED:])[:10] + NUM_RESERVED
        likes = set(TRAIN.select(torch.tensor([u])).item_idx.tolist())
        mined = [i for i in hard_BH[b].tolist() if i != PADDING]
        assert mined
        assert set(mined) <= set(best.tolist()) - likes


def test_hard_negatives_join_the_sum_uncorrected() -> None:
    plain, hard = (quiet(negatives="in_batch", num_hard=n, hard_pool=10) for n in (0, 3))
    user_B, item_B, history_BL = step_of(hard)
    without_B, with_B = (model.compute_loss(user_B, item_B, history_BL, 0, 0)[0] for model in (plain, hard))
    again = quiet(negatives="in_batch", num_hard=3, hard_pool=10)
    mined_BH = again._mine(user_B, history_BL, 0, generator_at(0, 0))
    logits = torch.from_numpy(logits_of(hard, user_B, history_BL))
    added_B = (logits.gather(1, mined_BH) - logits.gather(1, item_B[:, None])).exp()
    added_B = added_B.masked_fill(mined_BH == PADDING, 0).sum(1)
    torch.testing.assert_close(with_B.double().exp(), without_B.double().exp() + added_B, rtol=1e-4, atol=1e-5)


# Training


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"negatives": "in_batch", "log_q": "streaming"},
        {"negatives": "mixed", "num_negatives": 8, "num_hard": 2, "hard_pool": 8},
        {"history": "attention", "dropout": 0.2},
        {"hidden": [16], "history_of": "others"},
    ],
)
def test_a_stopped_training_goes_on_in_the_same_bits(arguments: dict[str, Any]) -> None:
    check_resuming(
        lambda _: build(**arguments),
        lambda model: HistoryBatches(TRAIN, 16, 0, steps_per_chunk=3, **model.batch_options),
    )


@pytest.mark.parametrize("negatives", ["all", "mixed"])
def test_items_that_nobody_has_seen_are_found_by_their_features(negatives: str) -> None:
    """Of items that differ in their features alone each user gets those of its own residue."""
    model = train(build(negatives=negatives, num_negatives=32, max_epochs=40, batch_size=32, id_dropout=0.3))
    topic = torch.arange(5) + NUM_RESERVED
    rows = {"topic": topic, "tags": torch.zeros(5, 2, dtype=torch.int64), "length": torch.zeros(5)}
    user = torch.arange(NUM_RESERVED, U)
    best = (model.encode_users(batch_of(user)) @ model.encode_new_items(rows).T).argmax(1)
    # Items of residue u % 5 + 2 are of topic (u % 5 + 2) % 5 + 2.
    assert float((topic[best] == (user % 5 + 2) % 5 + NUM_RESERVED).float().mean()) > 0.9


def test_a_user_without_positives_is_known_by_history_or_features() -> None:
    batch = batch_of(torch.tensor([UNKNOWN, UNKNOWN, 3]))
    history = Interactions(torch.tensor([0, 0, 1, 1]), torch.tensor([4]), M)
    assert build(PLAIN).personal(batch | {"history": history}).tolist() == [False, True, True]
    assert build(PLAIN, history="none").personal(batch | {"history": history}).tolist() == [False, False, True]
    empty = Interactions.from_pairs(torch.tensor([2]), torch.tensor([4]), num_rows=U, num_items=M)
    empty = Interactions(empty.indptr, empty.item_idx, M, torch.zeros(1, dtype=torch.int64))
    described = build(train=empty, history="none")
    assert described.personal(batch | {"history": history}).tolist() == [False, False, True]


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"embedding_dim": 0}, "embedding_dim must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must not be below 0"),
        ({"id_dropout": 1.0}, r"id_dropout must lie in \[0, 1\)"),
        ({"streaming_rate": 0.0}, "streaming_rate must lie in"),
        ({"negatives": "none"}, "negatives=none: expected one of all, in_batch, mixed, uniform"),
        ({"num_heads": 3}, "cannot be divided among num_heads=3"),
        ({"history": "attention", "history_of": "others"}, "needs an order"),
        ({"num_hard": 5, "negatives": "all"}, "are all there are"),
        ({"num_hard": 5, "hard_pool": 4, "negatives": "mixed"}, "cannot come from a hard_pool of 4"),
        ({"history": "none", "user_ids": False}, "nothing would be known of a user"),
        ({"item_ids": False}, "nothing would be known of an item"),
    ],
)
def test_arguments_that_mean_nothing_are_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TwoTower(PLAIN, **({"embedding_dim": D} | arguments))


def test_features_of_another_shape_are_named() -> None:
    users, items = features()
    model = build()
    with pytest.raises(ValueError, match="'topic' should be a tensor of shape"):
        model.describe(users, items | {"topic": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"'age' should be a tensor of shape .* got nothing"):
        model.describe({}, items)


# Age

DAY = 24 * 60 * 60 * 1_000_000


def dated(**arguments: Any) -> TwoTower:
    """Items come a day apart from day 10 on, the first three at a time that is not known; asked on day 30."""
    torch.manual_seed(0)
    model = TwoTower(PLAIN, **({"embedding_dim": D, "batch_size": 16, "age": True, "id_dropout": 0.0} | arguments))
    came_I = (torch.arange(M) + 10 - NUM_RESERVED) * DAY
    came_I[: NUM_RESERVED + 3] = -1
    model.date(came_I, 30 * DAY)
    model.observe(Interactions(TRAIN.indptr, TRAIN.item_idx, M, torch.full((len(TRAIN),), 40 * DAY)))
    with torch.no_grad():
        model.age_bias.copy_(torch.arange(len(model.age_bias)) + 1.0)
    return model


def bias_of_age(days: float | None) -> float:
    """The plainest reading of which bias an age has."""
    edges = [1, 2, 3, 4, 5, 6, 7, 10, 14, 21, 30, 60, 120, 365]
    return 1.0 if days is None else 2.0 + sum(days >= edge for edge in edges)


def test_an_items_score_has_the_bias_of_its_age() -> None:
    model = dated()
    item = torch.arange(NUM_RESERVED, M)
    plain = model._items(item)[0][:, -1]
    added = model.encode_items(item)[:, -1] - plain
    ages = [None] * 3 + [max(30 - (10 + i), 0) for i in range(3, ITEMS)]
    torch.testing.assert_close(added, torch.tensor([bias_of_age(age) for age in ages]))


@pytest.mark.parametrize("negatives", ["all", "uniform"])
def test_a_pair_is_learnt_from_with_the_ages_of_its_moment(negatives: str) -> None:
    model = dated(history="none", negatives=negatives, num_negatives=7, log_q="none")
    user_B, item_B, history_BL = step_of(model)
    time_B = (torch.arange(16) // 2 + 13) * DAY + torch.arange(16) * 1000  # of days that two pairs share each
    loss_B = model.compute_loss(user_B, item_B, history_BL, 0, 0, time_B)[0].detach()
    item_N = torch.arange(NUM_RESERVED, M) if negatives == "all" else model._draw(item_B, generator_at(0, 0))
    y_MW = model._finished(model._items(torch.arange(M))[0]).double()
    x_BW = model.encode_users(batch_of(user_B)).double()
    for b in range(16):

        def logit(item: int, b: int = b) -> float:
            age = None if item < NUM_RESERVED + 3 else int(time_B[b]) // DAY - (10 + item - NUM_RESERVED)
            bias = -20.0 if age is not None and age < 0 else bias_of_age(age)
            return float(x_BW[b].detach() @ y_MW[item].detach()) + bias

        own = int(item_B[b])
        others = [i for i in item_N.tolist() if i != own]
        total = np.exp(logit(own)) + sum(np.exp(logit(i)) for i in others)
        assert float(loss_B[b]) == pytest.approx(np.log(total) - logit(own), rel=1e-4, abs=1e-5)


def test_age_needs_dates() -> None:
    with pytest.raises(ValueError, match="age=true needs"):
        TwoTower(PLAIN, embedding_dim=D, age=True).observe(TRAIN)
