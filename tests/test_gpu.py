"""On a GPU: what is learnt, ranked and generated there is what a CPU learns, ranks and generates.

Integers, draws and hashes agree to the bit. Sums of floating point do not, since a GPU adds in another order.
"""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import test_contract as retrievers
import test_ranker_contract as rankers
import torch

import recsys
from recsys import config
from recsys.data import batches, readers
from recsys.evaluation import evaluate
from recsys.funnel import Funnel
from recsys.models.base import Solver
from recsys.schema import NUM_RESERVED, Interactions, Queries
from recsys.training import evaluate as measured_again
from recsys.world import logs, oracle
from recsys.world.population import user_ids, users, video_ids

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

QUIET: dict[str, Any] = {
    "accelerator": "gpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.mark.parametrize("name", retrievers.MODELS)
def test_a_retriever_learns_there_and_answers_here(name: str) -> None:
    model = retrievers.build(name).to("cuda")
    train = retrievers.TRAIN.to("cuda")
    model.observe(train)
    if isinstance(model, Solver):
        model.fit(train)
    else:
        source_of = getattr(batches, model.batches)
        source = source_of(train, batch_size=model.batch_size, seed=0, device="cuda", **model.batch_options)
        trainer = lightning.Trainer(max_epochs=model.max_epochs, **QUIET)
        trainer.fit(model, retrievers.Epochs(source))
        model.to("cuda")  # Lightning brings it back
    model.eval()
    assert all(tensor.is_cuda for tensor in model.state_dict().values())
    there = model.score(retrievers.WORLD.to("cuda").batch())
    assert there.is_cuda
    found = evaluate(model.scorer_with_fallback(), retrievers.WORLD, k=[10], num_replicates=50, device="cuda")
    here = model.to("cpu")
    torch.testing.assert_close(there.cpu(), here.score(retrievers.WORLD.batch()), rtol=1e-3, atol=1e-4)
    again = evaluate(here.scorer_with_fallback(), retrievers.WORLD, k=[10], num_replicates=50)
    assert found.metrics["recall@10"] == pytest.approx(again.metrics["recall@10"], abs=2e-3)
    assert found.intervals["recall@10"] == pytest.approx(again.intervals["recall@10"], abs=3e-3)
    chance = retrievers.recall(retrievers.constant)
    assert found.metrics["recall@10"] > (0.55 if retrievers.is_personal(here) else 1.5 * chance)


@pytest.mark.parametrize("name", rankers.MODELS)
def test_a_ranker_learns_there_and_answers_here(name: str) -> None:
    """From rows in the order of a CPU's: whether a network finds the interaction in so few steps hangs on it."""
    model = rankers.build(name)
    lightning.Trainer(max_epochs=1, **QUIET).fit(model, iter(rankers.chunks(model, rankers.TRAIN)))
    here = model.to("cpu").eval()
    assert rankers.log_loss(here) < rankers.entropy() - (0.01 if name in rankers.ADDITIVE else 0.04)
    expected = {task: logits.detach() for task, logits in here(rankers.TEST).items()}
    rows = {column: values.cuda() for column, values in rankers.TEST.items()}
    with torch.no_grad():
        for task, logits_B in here.to("cuda")(rows).items():
            torch.testing.assert_close(logits_B.cpu(), expected[task], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mask_history", [True, False])
def test_ties_and_intervals_are_those_of_a_cpu(mask_history: bool) -> None:
    """Whole numbers as scores: all sums are exact, and most scores are tied."""
    generator = torch.Generator().manual_seed(0)
    num_users, num_items = 3000, 2000
    left, right = (torch.randint(-2, 3, (n, 4), generator=generator).float() for n in (num_users, num_items))
    pairs = torch.randint(num_items - NUM_RESERVED, (2, num_users, 5), generator=generator) + NUM_RESERVED
    rows = torch.arange(num_users).repeat_interleave(5)
    seen, relevant = (
        Interactions.from_pairs(rows, item.flatten(), num_rows=num_users, num_items=num_items) for item in pairs
    )
    queries = Queries(
        user_idx=torch.arange(num_users) + NUM_RESERVED,
        user_key=torch.arange(num_users),
        history=seen,
        relevant=relevant,
        num_cold_relevant=torch.zeros(num_users, dtype=torch.int64),
        warm=torch.ones(num_users, dtype=torch.bool),
        candidates=torch.arange(num_items) >= NUM_RESERVED,
    )

    def score(batch: dict[str, Any]) -> torch.Tensor:
        device = batch["user_idx"].device
        return left.to(device)[batch["user_idx"] - NUM_RESERVED] @ right.to(device).T

    here, there = (
        evaluate(score, queries, k=[1, 20, 100], mask_history=mask_history, device=device) for device in ("cpu", "cuda")
    )
    assert there.per_user.equals(here.per_user)
    for name, ends in here.intervals.items():
        assert there.intervals[name] == pytest.approx(ends, rel=1e-6), name


@pytest.mark.parametrize("surface", ["homepage", "feed"])
def test_a_world_is_the_same(surface: str) -> None:
    world = config.build(config.compose("data=world", "world=small", f"world.surface={surface}").world)
    number = torch.arange(4000)
    here = logs.impressions(world, 3, users(world, number))
    there = {name: values.cpu() for name, values in logs.impressions(world, 3, users(world, number.cuda())).items()}
    assert len(here["label"]) > 50_000
    assert len(there["label"]) == len(here["label"])
    for name in ("user_id", "item_id", "session_id", "timestamp", "position", "intent", "row"):
        assert float((there[name] == here[name]).double().mean()) > 0.9999, name
    same = there["item_id"] == here["item_id"]
    for name in ("label", "liked", "disliked", "shared"):  # a threshold may fall between two roundings of a logarithm
        assert float((there[name] == here[name])[same].double().mean()) > 0.9999, name
    for name in ("relevance", "propensity", "watch_seconds"):
        close = torch.isclose(there[name], here[name], rtol=1e-4, atol=2e-3)[same]
        assert float(close.double().mean()) > 0.9999, name


def test_a_log_made_on_a_gpu_is_all_but_the_same() -> None:
    world = config.build(config.compose("data=world", "world=tiny").world)
    here, there = (readers.world(world, stream=True, device=device) for device in ("cpu", "cuda"))
    pairs = [log.events.collect().select("user_id", "item_id", "timestamp") for log in (here, there)]
    assert pairs[0].join(pairs[1], on=pairs[0].columns, how="semi").height > 0.999 * pairs[0].height
    assert pairs[1].height == pytest.approx(pairs[0].height, rel=1e-3)


def test_the_answer_key_is_the_same() -> None:
    world = config.build(config.compose("data=world", "world=tiny").world)
    number = torch.arange(300)
    user_id, item_id = user_ids(world, number % 100), video_ids(world, number)
    here, there = (oracle.relevance(world, user_id.to(device), item_id.to(device)) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-6, atol=1e-9)
    here, there = (oracle.utility(world, user_id[:20].to(d), item_id.view(20, 15).to(d)) for d in ("cpu", "cuda"))
    for mine, other in zip(here, there, strict=True):
        torch.testing.assert_close(other.cpu(), mine, rtol=1e-5, atol=1e-7)


RUNS = [
    ("als",),
    ("ease",),
    ("knn",),
    ("mf",),
    ("two_tower", "features=world", "trainer.max_epochs=3"),
    ("sasrec", "features=world", "trainer.max_epochs=3"),
    ("lightgcn", "trainer.max_epochs=30"),
    ("dcn", "features=world", "trainer.max_epochs=1"),
]


@pytest.mark.parametrize("words", RUNS, ids=lambda words: words[0])
def test_a_run_is_measured_alike_on_both(words: tuple[str, ...], tmp_path: Path) -> None:
    """The whole way: features, training, evaluation, the answer key; then the same weights measured on the CPU."""
    model, *more = words
    run = recsys.train(
        f"model={model}", "data=world", "trainer=gpu", "evaluation.num_replicates=0", *more,
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert run.manifest["hardware"]["gpu"]
    again = measured_again(tmp_path / "run", ["trainer.accelerator=cpu"])
    measured = {name: value for name, value in again.items() if name.startswith("test/")}
    assert measured
    for name, value in measured.items():
        assert run.metrics[name] == pytest.approx(value, abs=3e-3, rel=1e-2), name
    if not run.is_ranker:
        assert run.metrics["test/recall@20"] > 0.18  # popularity has 0.14
        assert 0.5 < run.metrics["oracle/recall@20"] < 0.6
        answer = run.recommend(run.users.ids[:5], k=10)
        assert answer.group_by("user_id").len()["len"].to_list() == [10] * 5
        assert run.similar_items(run.items.ids[0]).height == 10


@pytest.mark.parametrize("options", [(), ("trainer.precision=bf16",), ("trainer.resident_bytes=0",)], ids=str)
def test_a_run_repeats_itself_closely(options: tuple[str, ...], tmp_path: Path) -> None:
    first, second = (
        recsys.train(
            "model=two_tower", "data=world", "features=world", "trainer=gpu", "trainer.max_epochs=2", *options,
            "evaluation.num_replicates=0", f"hydra.run.dir={tmp_path / str(number)}",
        ).metrics["test/recall@20"]
        for number in range(2)
    )  # fmt: skip
    assert first == pytest.approx(second, abs=0.01)
    assert first > 0.18


def test_a_page_comes_from_a_gpu(tmp_path: Path) -> None:
    trained = {
        name: recsys.train(
            f"model={name}", "data=world", "trainer=gpu", "trainer.max_epochs=1", *more,
            "evaluation.num_replicates=0", f"hydra.run.dir={tmp_path / name}",
        )
        for name, more in (("als", ()), ("tags", ("features=world",)), ("dcn", ("features=world",)))
    }  # fmt: skip
    log = config.build(config.compose("data=world").data)
    funnel = Funnel.of_runs({"als": trained["als"], "tags": trained["tags"]}, trained["dcn"], log)
    page = funnel.recommend(trained["als"].users.ids[:20], k=50)
    assert page.group_by("user_id").len()["len"].to_list() == [50] * 20
    assert page["item_id"].null_count() == 0
    assert funnel.recommend([999_999_999_999], k=20)["item_id"].n_unique() == 20
    assert not funnel.failures
