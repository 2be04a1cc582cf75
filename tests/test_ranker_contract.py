"""What every ranker in configs/model promises: it learns a planted pattern, survives a checkpoint, repeats itself,
stops and goes on exactly, and bad numbers do not pass."""

import io
from collections.abc import Iterable
from typing import Any

import pytest
import pytorch_lightning as pl
import safetensors.torch
import torch
from torch import Tensor

from recsys import config
from recsys.data.batches import RowBatches
from recsys.models import losses
from recsys.models.base import Ranker, RowBatch, score
from recsys.schema import LABEL, Column


def is_ranker(path: Any) -> bool:
    return issubclass(config.target(config.load(path)), Ranker)


MODELS = sorted(path.stem for path in (config.config_dir() / "model").glob("*.yaml") if is_ranker(path))
ADDITIVE = ["bayes_logistic", "logistic"]  # see no interaction
ONE_PASS = ["bayes_logistic"]  # see a row once, and are no surer than that allows
USERS, ITEMS, LENGTH = 42, 32, 8
COLUMNS = (
    Column("user_id", "user_feature", "int64", USERS),
    Column("item_id", "item_feature", "int64", ITEMS),
    Column("country", "user_feature", "int64", 8),
    Column("topic", "item_feature", "int64", 8),
    Column("age", "user_feature", "float32"),
    Column("age_missing", "user_feature", "float32"),
    Column("history", "context", "int64", ITEMS, LENGTH, table="item_id"),
    Column("history_gap_seconds", "context", "float32", None, LENGTH),
    Column("history_length", "context", "int64"),
    Column("label", "label", "float32"),
    Column("watch_seconds", "label", "float32"),
)


def planted_rows(num_rows: int, seed: int) -> RowBatch:
    """A tenth are clicked. Countries like the topics of their own parity, which no sum over columns can say; beside
    that, user, age and history count each for itself."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high, (num_rows, *size), generator=generator)

    user, item, country, topic = integers(2, USERS), integers(2, ITEMS), integers(2, 8), integers(2, 8)
    length = integers(0, LENGTH + 1)
    outside = torch.arange(LENGTH) >= length[:, None]
    history = integers(2, ITEMS, LENGTH).masked_fill(outside, 0)
    age = torch.randn(num_rows, generator=generator)
    parity = 1.0 - 2 * ((country + topic) % 2)
    large = (history >= ITEMS // 2).sum(1) / length.clamp(min=1)
    logits = -4.0 + 1.8 * parity + (user < 12) + 0.6 * age + large
    label = (torch.rand(num_rows, generator=generator) < logits.sigmoid()).float()
    return {
        "user_id": user,
        "item_id": item,
        "country": country,
        "topic": topic,
        "age": age,
        "age_missing": torch.zeros(num_rows),
        "history": history,
        "history_gap_seconds": torch.rand(num_rows, LENGTH, generator=generator).mul(1e5).masked_fill(outside, 0),
        "history_length": length,
        "label": label,
        "watch_seconds": label * torch.rand(num_rows, generator=generator) * 200,
    }


TRAIN, TEST = planted_rows(20_000, seed=1), planted_rows(20_000, seed=2)


def some(rows: RowBatch, stop: int) -> RowBatch:
    return {name: values[:stop] for name, values in rows.items()}


def build(name: str, seed: int = 0, **overrides: Any) -> Ranker:
    """The model with its defaults, but for batches, epochs and rates: these rows are few."""
    cfg = config.compose(f"model={name}").model
    pl.seed_everything(seed, verbose=False)
    overrides = {"batch_size": 256, "max_epochs": 4, "lr": 0.01, "table_lr": 0.1} | overrides
    model = config.partial(cfg)(columns=COLUMNS, **{k: v for k, v in overrides.items() if k in cfg})
    assert isinstance(model, Ranker)
    return model


def chunks(model: Ranker, rows: RowBatch, seed: int = 0) -> list[dict[str, Any]]:
    """All chunks of all epochs."""
    model.observe(len(rows[LABEL]))
    source = RowBatches(rows, model.batch_size, seed, steps_per_chunk=4, **model.batch_options)
    return [chunk for epoch in range(model.max_epochs) for chunk in source.chunks(epoch)]


def fit(model: Ranker, source: Iterable[dict[str, Any]]) -> pl.Trainer:
    """The plainest loop that Lightning has."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, iter(source))
    return trainer


def trained_on(rows: RowBatch, model: Ranker, seed: int = 0) -> Ranker:
    fit(model, chunks(model, rows, seed))
    return model.eval()


@torch.no_grad()
def log_loss(model: Ranker, rows: RowBatch = TEST) -> float:
    return float(losses.log_loss(model(rows)[LABEL], rows[LABEL]).mean())


def entropy(rows: RowBatch = TEST) -> float:
    """What the base rate scores."""
    rate = rows[LABEL].mean()
    return float(-(rate * rate.log() + (1 - rate) * (1 - rate).log()))


def assert_same(left: Ranker, right: Ranker) -> None:
    for key, tensor in left.state_dict().items():
        assert torch.equal(right.state_dict()[key], tensor), key


@pytest.fixture(scope="module")
def trained() -> dict[str, Ranker]:
    """Each model once, trained when first asked for."""
    return {}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str, trained: dict[str, Ranker]) -> Ranker:
    if name not in trained:
        trained[name] = trained_on(TRAIN, build(name))
    return trained[name]


def test_there_are_models() -> None:
    assert {"logistic", "fm", "deepfm", "dcn", "dlrm", "mlp", "mmoe"} <= set(MODELS)


def test_learns_the_planted_pattern(name: str, model: Ranker) -> None:
    """Of the base rate's entropy the sums alone explain some 0.02, the interaction 0.06 more."""
    assert TEST[LABEL].mean() == pytest.approx(0.1, abs=0.02)
    assert log_loss(model) < entropy() - (0.01 if name in ADDITIVE else 0.04)


@pytest.mark.parametrize("name", ADDITIVE, indirect=True)
def test_sums_do_not_see_the_interaction(model: Ranker) -> None:
    """Else the pattern would prove nothing of the others."""
    assert log_loss(model) > entropy() - 0.035


def test_every_task_has_a_logit_of_each_row(model: Ranker) -> None:
    whole = model(TEST)
    assert LABEL in whole
    for task, logits_B in model(some(TEST, 7)).items():
        assert logits_B.shape == (7,)
        assert bool(logits_B.isfinite().all())
        assert torch.allclose(logits_B, whole[task][:7], atol=1e-5)


def test_state_survives_safetensors(name: str, model: Ranker) -> None:
    fresh = build(name, seed=1)
    fresh.load_state_dict(safetensors.torch.load(safetensors.torch.save(model.state_dict())))
    assert_same(model, fresh)
    for task, logits_B in fresh.eval()(TEST).items():
        assert torch.equal(logits_B, model(TEST)[task])


def test_same_seed_same_weights(name: str) -> None:
    few = some(TRAIN, 3000)
    first, second = (trained_on(few, build(name, max_epochs=2)) for _ in range(2))
    assert_same(first, second)
    other = trained_on(few, build(name, max_epochs=2), seed=1)
    assert log_loss(other) != log_loss(first)


def test_resumes_to_the_bit(name: str) -> None:
    """Stopped within an epoch, stored, loaded into fresh objects and finished, with dropout where there is any."""
    few = some(TRAIN, 5000)
    whole, stopped, resumed = (build(name, seed, max_epochs=2, dropout=0.3) for seed in (0, 0, 1))
    for model in (whole, stopped, resumed):
        model.observe(len(few[LABEL]))
    source = RowBatches(few, whole.batch_size, seed=0, steps_per_chunk=4)
    first = list(source.chunks(0))
    fit(whole, [*first, *source.chunks(1)])
    trainer = fit(stopped, first[:3])

    stored = io.BytesIO()
    torch.save([stopped.state_dict(), *(optimizer.state_dict() for optimizer in trainer.optimizers)], stored)
    stored.seek(0)
    state, *optimizer_states = torch.load(stored, weights_only=True)
    resumed.load_state_dict(state)
    optimizers = resumed.configure_optimizers()
    for optimizer, optimizer_state in zip(optimizers, optimizer_states, strict=True):
        optimizer.load_state_dict(optimizer_state)
    resumed.configure_optimizers = lambda: optimizers
    again = RowBatches(few, resumed.batch_size, seed=0, steps_per_chunk=4)
    fit(resumed, [*again.chunks(0, 3), *again.chunks(1)])
    assert_same(whole, resumed)


@pytest.mark.parametrize("loss", ["bce", "focal", "pairwise", "listwise"])
def test_overfits_one_batch(name: str, loss: str) -> None:
    """Labels without a pattern, a batch in size: what a model cannot memorise it does not fit."""
    if loss != "bce" and "loss" not in config.compose(f"model={name}").model:
        pytest.skip("has a loss of its own")
    if name in ONE_PASS:
        pytest.skip("must not memorise")
    few = some(TRAIN, 40)
    few[LABEL] = torch.randint(2, (40,), generator=torch.Generator().manual_seed(3)).float()
    model = build(name, loss=loss, group="country", batch_size=40, max_epochs=150, lr=0.02, table_lr=0.3)
    assert log_loss(trained_on(few, model), few) < (0.3 if loss == "focal" else 0.1)
    with torch.no_grad():
        logits_B = model(few)[LABEL]
    assert float(losses.pairwise(logits_B, few[LABEL], few["country"])) < (0.3 if loss == "focal" else 0.1)


def test_nan_does_not_pass(name: str, model: Ranker) -> None:
    bad = some(TEST, 7)
    bad["age"] = bad["age"].index_fill(0, torch.tensor([3]), torch.nan)
    with pytest.raises(ValueError, match="column 'age': nan in row 3 of the batch is not finite"):
        model(bad)
    poisoned = build(name)
    with torch.no_grad():
        for parameter in poisoned.parameters():
            parameter.fill_(torch.nan)
    assert bool(poisoned(TEST)[LABEL].isnan().all())


@pytest.mark.parametrize("bad", [-1, ITEMS])
@pytest.mark.parametrize("column", ["item_id", "history"])
def test_indices_out_of_range_do_not_pass(model: Ranker, column: str, bad: int) -> None:
    rows = some(TEST, 7)
    rows[column] = rows[column].clone()
    rows[column].view(7, -1)[5, -1] = bad
    with pytest.raises(IndexError, match=f"column '{column}': index {bad} in row 5"):
        model(rows)


@pytest.mark.parametrize("place", [0, 4, 6, 7, 8], ids=lambda place: COLUMNS[place].name)
def test_any_one_column_will_do(name: str, place: int) -> None:
    """An index, a number, a list of either: all other columns may be missing."""
    column = COLUMNS[place]
    if name == "dlrm" and column.cardinality is not None:
        pytest.skip("multiplies pairs")
    model = config.partial(config.compose(f"model={name}").model)(columns=[column])
    rows = {key: values for key, values in some(TEST, 7).items() if key in (column.name, LABEL, "watch_seconds")}
    logits = model(rows)
    assert logits[LABEL].shape == (7,)
    model.compute_loss(logits, rows).backward()


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0}, {"table_lr": -1}, {"batch_size": 0}, {"max_epochs": 0}, {"embedding_dim": 0}, {"dropout": 1.5}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_arguments_do_not_pass(name: str, wrong: dict[str, float]) -> None:
    (argument,) = wrong
    if argument not in config.compose(f"model={name}").model:
        pytest.skip(f"has no {argument}")
    with pytest.raises(ValueError, match=f"{argument} must"):
        build(name, **wrong)


def test_no_columns_do_not_pass(name: str) -> None:
    with pytest.raises(ValueError, match="at least one input column"):
        config.partial(config.compose(f"model={name}").model)(columns=COLUMNS[-2:])


def test_unknown_arguments_do_not_pass(name: str) -> None:
    with pytest.raises(config.ConfigError, match="batch_size"):
        config.compose(f"model={name}", "model.batch_sise=3")
    with pytest.raises(TypeError, match="batch_sise"):
        config.partial(config.compose(f"model={name}").model)(columns=COLUMNS, batch_sise=3)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_known_of_the_user_may_be_given_once(name):
    model = build(name)
    fit(model, chunks(model, some(TRAIN, 512)))
    model.eval()
    rows = some(TEST, 40)
    user = {column.name for column in COLUMNS if column.role in ("user_feature", "context")}
    once = {column: values[:1] if column in user else values for column, values in rows.items()}
    repeated = {
        column: values[:1].repeat_interleave(40, 0) if column in user else values for column, values in rows.items()
    }
    with torch.no_grad():
        torch.testing.assert_close(model(once)[LABEL], model(repeated)[LABEL], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(score(model, once), score(model, repeated), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(score(model, once), score(model, rows))
