"""What every retriever in configs/model promises: it learns a planted pattern, survives a checkpoint, repeats
itself, stops and goes on exactly, and bad numbers do not pass."""

from collections.abc import Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import safetensors.torch
import torch
from torch import Tensor

from recsys import config
from recsys.data import batches
from recsys.evaluation.ranking import evaluate
from recsys.models.base import Retriever, Solver, UserBatch
from recsys.schema import NUM_RESERVED, Column, Interactions, Queries, Schema

YAMLS = sorted((config.config_dir() / "model").glob("*.yaml"))
MODELS = [path.stem for path in YAMLS if issubclass(config.target(config.load(path)), Retriever)]
BLOCKS, USERS, ITEMS = 4, 160, 96
SCHEMA = Schema.of(USERS + NUM_RESERVED, ITEMS + NUM_RESERVED)
# What models that take features are told of items beside: their block, which is a feature's index from 2 on.
BLOCK = Column("block", "item_feature", "int64", BLOCKS + NUM_RESERVED)
DESCRIBED = Schema((*SCHEMA.columns, BLOCK))
BLOCK_OF_ITEMS = torch.cat([torch.zeros(NUM_RESERVED, dtype=torch.int64), torch.arange(ITEMS) % BLOCKS + NUM_RESERVED])
K = 10


def planted_world() -> Queries:
    """Users of block b like items of block b, the first of them the most; a third is held out.

    Half of the users belong to block 0, so that a ranking by popularity beats chance; but only one that
    knows the user finds the other blocks.
    """
    generator = torch.Generator().manual_seed(7)
    user, item = torch.meshgrid(torch.arange(USERS), torch.arange(ITEMS), indexing="ij")
    rank_in_block = item // BLOCKS
    likes = 0.9 - 0.6 * rank_in_block / (ITEMS // BLOCKS)
    block = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])[user % 8]
    liked = (block == item % BLOCKS) & (torch.rand(likes.shape, generator=generator) < likes)
    held_out = torch.rand(likes.shape, generator=generator) < 1 / 3
    history, relevant = (pairs_of(liked & chosen) for chosen in (~held_out, held_out))
    return Queries(
        user_idx=torch.arange(USERS) + NUM_RESERVED,
        user_key=torch.arange(USERS),
        history=history,
        relevant=relevant,
        num_cold_relevant=torch.zeros(USERS, dtype=torch.int64),
        warm=history.row_counts() > 0,
        candidates=torch.arange(ITEMS + NUM_RESERVED) >= NUM_RESERVED,
    )


def pairs_of(chosen: Tensor) -> Interactions:
    """The true cells of bool [USERS, ITEMS]: row = user, items shifted behind the reserved indices."""
    row, item = chosen.nonzero().unbind(1)
    return Interactions.from_pairs(row, item + NUM_RESERVED, num_rows=USERS, num_items=ITEMS + NUM_RESERVED)


def training_set(queries: Queries) -> Interactions:
    """The histories as rows by user_idx."""
    history = queries.history
    return Interactions.from_pairs(
        queries.user_idx[history.row_idx()],
        history.item_idx,
        num_rows=SCHEMA.num_users,
        num_items=SCHEMA.num_items,
    )


WORLD = planted_world()
TRAIN = training_set(WORLD)


def build(name: str, seed: int = 0, **overrides: Any) -> Retriever:
    """The model with its defaults, but for the batches and epochs of gradient training: this log is tiny."""
    cfg = config.compose(f"model={name}", f"seed={seed}").model
    overrides = {"batch_size": 128, "max_epochs": 20} | overrides
    pl.seed_everything(seed, verbose=False)
    described = config.target(cfg).takes_features
    overrides = {k: v for k, v in overrides.items() if k in cfg}
    model = config.partial(cfg)(schema=DESCRIBED if described else SCHEMA, **overrides)
    assert isinstance(model, Retriever)
    if described:
        model.describe({}, {"block": BLOCK_OF_ITEMS})
    return model


class Epochs:
    """The chunks of a batch source, a new epoch each time they are iterated."""

    def __init__(self, source: Any) -> None:
        self.source, self.epoch = source, -1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.epoch += 1
        return self.source.chunks(self.epoch)


def train(model: Retriever, interactions: Interactions, seed: int = 0) -> Retriever:
    """Fit, or the plainest loop that Lightning has."""
    model.observe(interactions)
    if isinstance(model, Solver):
        model.fit(interactions)
        return model.eval()
    source_of = getattr(batches, model.batches)
    source = source_of(interactions, batch_size=model.batch_size, seed=seed, **model.batch_options)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=model.max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, Epochs(source))
    return model.eval()


def reloaded(name: str, model: Retriever) -> Retriever:
    """A fresh model with the state that went through safetensors."""
    stored = safetensors.torch.save(model.state_dict())
    fresh = build(name, seed=1)
    fresh.load_state_dict(safetensors.torch.load(stored))
    return fresh.eval()


def recall(score: Any, queries: Queries = WORLD, **kwargs: Any) -> float:
    return evaluate(score, queries, k=[K], num_replicates=0, **kwargs).metrics[f"recall@{K}"]


def constant(batch: UserBatch) -> Tensor:
    return torch.zeros(len(batch["user_idx"]), SCHEMA.num_items)


def is_personal(model: Retriever) -> bool:
    """Whether users get different scores at all; where not, only the skew of the world can be learned."""
    scores_BI = model.score(WORLD.batch())
    return bool((scores_BI != scores_BI[0]).any())


@pytest.fixture(scope="module")
def trained() -> dict[str, Retriever]:
    """Each model once, trained when first asked for."""
    return {}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str, trained: dict[str, Retriever]) -> Retriever:
    if name not in trained:
        trained[name] = train(build(name), TRAIN)
    return trained[name]


def test_there_are_models() -> None:
    assert {"popularity", "knn", "ease", "als"} <= set(MODELS)


def test_learns_the_planted_pattern(model: Retriever) -> None:
    chance = recall(constant)
    assert chance == pytest.approx(K / (ITEMS - len(TRAIN) / USERS), abs=0.03)
    # All of the block's unseen items make up the oracle's first ranks, about 24 - 10 of them.
    assert recall(model.scorer_with_fallback()) > (0.55 if is_personal(model) else 1.5 * chance)


def test_scores_every_item_for_every_user(model: Retriever) -> None:
    batch = WORLD.rows(0, 7).batch()
    scores_BI = model.score(batch)
    assert scores_BI.shape == (7, SCHEMA.num_items)
    assert scores_BI.is_floating_point()
    assert bool(scores_BI.isfinite().all())
    assert torch.allclose(scores_BI, model.score(WORLD.batch())[:7], atol=1e-5)


def test_strangers_get_the_fallback(model: Retriever) -> None:
    """Unknown users without a history are ranked for by popularity, whatever the model."""
    strangers = {
        "user_idx": torch.ones(3, dtype=torch.int64),
        "history": Interactions.empty(3, SCHEMA.num_items),
        "user_key": torch.arange(3),
    }
    scores_BI = model.scorer_with_fallback()(strangers)
    order = torch.argsort(model.item_counts, descending=True, stable=True)
    assert torch.equal(torch.argsort(scores_BI[2], descending=True, stable=True), order)


def test_state_survives_safetensors(name: str, model: Retriever) -> None:
    fresh = reloaded(name, model)
    assert torch.equal(fresh.score(WORLD.batch()), model.score(WORLD.batch()))
    assert torch.equal(fresh.personal(WORLD.batch()), model.personal(WORLD.batch()))


def test_same_seed_same_weights(name: str, model: Retriever) -> None:
    again = train(build(name), TRAIN).state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(again[key], tensor), key


def test_a_stopped_fit_goes_on_where_it_was(name: str, model: Retriever) -> None:
    """Stopped after the first step, stored, loaded into a fresh model, and finished: the same bits."""
    if not isinstance(model, Solver):
        pytest.skip("trained by gradient: the training loop keeps the place")

    def stop(done: int, total: int, measured: dict[str, float]) -> None:
        assert 1 <= done <= total
        raise InterruptedError

    stopped = build(name)
    assert isinstance(stopped, Solver)
    with pytest.raises(InterruptedError):
        stopped.fit(TRAIN, stop)
    resumed = reloaded(name, stopped)
    assert isinstance(resumed, Solver)
    resumed.fit(TRAIN)
    for key, tensor in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], tensor), key


def test_nan_weights_do_not_pass(name: str, model: Retriever) -> None:
    poisoned = reloaded(name, model)
    for tensor in poisoned.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        recall(poisoned.scorer_with_fallback())


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_indices_out_of_range_do_not_pass(model: Retriever, bad: int) -> None:
    if not is_personal(model):
        pytest.skip("looks at no index")
    outside = torch.tensor([0, bad, 2])
    batch = {
        "user_idx": outside,
        "history": Interactions(torch.arange(4), outside, SCHEMA.num_items),
        "user_key": torch.arange(3),
    }
    with pytest.raises((ValueError, IndexError, RuntimeError), match=r"index|range"):
        model.scorer_with_fallback()(batch)


def test_overfits_one_batch(name: str, model: Retriever) -> None:
    """A pattern without structure, a batch in size: what a gradient model cannot memorise it does not fit."""
    if isinstance(model, Solver):
        pytest.skip("not trained by gradient")
    generator = torch.Generator().manual_seed(3)
    liked = torch.rand(USERS, ITEMS, generator=generator).argsort(1) < 2  # two items each
    liked[40:] = False
    pairs = pairs_of(liked)
    queries = Queries(
        WORLD.user_idx, WORLD.user_key, pairs, pairs, WORLD.num_cold_relevant, WORLD.warm, WORLD.candidates
    )
    small = build(name, batch_size=len(pairs), max_epochs=150, weight_decay=0.0)
    train(small, training_set(queries))
    assert recall(small.scorer_with_fallback(), queries, mask_history=False) > 0.95
