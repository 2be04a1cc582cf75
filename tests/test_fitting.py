"""The training engine: precision, compilation, streaming, memory that is short, and numbers that are none."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import test_contract as retrievers
import test_ranker_contract as rankers
import torch
from safetensors.torch import load_file

import recsys
from recsys import config, fitting, tracking
from recsys.data import batches
from recsys.models.base import Ranker, RowBatch, Solver
from recsys.models.lightgcn import LightGCN
from recsys.models.logistic import Logistic
from recsys.models.mf import MatrixFactorization
from recsys.training import train
from recsys.watch import Interrupted, Watch

LOG = ("data=table", "trainer=cpu", "evaluation.k=[10]", "evaluation.num_replicates=50", "trainer.max_epochs=2")
MF = (*LOG, "model=mf", "model.batch_size=256", "model.num_negatives=32", "checkpoint_seconds=0")
ROWS = rankers.some(rankers.TRAIN, 3000)


def run(log_file: Path, path: Path, *words: str) -> recsys.Run:
    return train(config.compose(*MF, f"data.path={log_file}", *words), path)


def weights(found: recsys.Run) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(found.path / tracking.MODEL).items()}


@pytest.fixture(scope="module")
def plain(log_file: Path, tmp_path_factory: pytest.TempPathFactory) -> recsys.Run:
    return run(log_file, tmp_path_factory.mktemp("runs") / "run")


def by_gradient(name: str) -> bool:
    target: Any = config.target(config.load(config.config_dir() / "model" / f"{name}.yaml"))
    return not isinstance(target, Solver)


MODELS = [name for name in [*retrievers.MODELS, *rankers.MODELS] if by_gradient(name)]


def prepared(name: str, rows: RowBatch = ROWS) -> tuple[Any, Any]:
    """A model with one epoch to learn, and its batches."""
    if name in rankers.MODELS:
        model: Any = rankers.build(name, max_epochs=1)
        model.observe(len(rows["label"]))
        return model, batches.RowBatches(rows, model.batch_size, seed=0, **model.batch_options)
    model = retrievers.build(name, max_epochs=1, history_of="others")  # this log has no timestamps
    model.observe(retrievers.TRAIN)
    source = getattr(batches, model.batches)
    return model, source(retrievers.TRAIN, batch_size=model.batch_size, seed=0, **model.batch_options)


def trained(name: str, precision: Any = 32, rows: RowBatch = ROWS) -> tuple[Any, float]:
    """The model after an epoch, and the loss of its last chunk."""
    model, source = prepared(name, rows)
    trainer = trainer_of(precision=precision)
    trainer.fit(model, source)
    return model.eval(), float(trainer.callback_metrics["train/loss"])


def trainer_of(**settings: Any) -> fitting.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return fitting.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet, **settings)


# bfloat16


def test_there_are_models() -> None:
    assert {"mf", "sasrec", "lightgcn", "item2vec", "two_tower", "logistic", "dcn", "mmoe"} <= set(MODELS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_learns_what_float32_learns(name: str) -> None:
    exact, loss = trained(name)
    rough, rough_loss = trained(name, "bf16")
    assert rough_loss == pytest.approx(loss, rel=0.02)
    assert [p.dtype for p in rough.parameters()] == [p.dtype for p in exact.parameters()]
    assert all(bool(p.isfinite().all()) for p in rough.parameters())


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_kernel_does_not_know_of_bfloat16() -> None:
    found = []
    for precision in (32, "bf16"):
        model = retrievers.build("mf", max_epochs=1, loss="bpr", num_negatives=1)
        model.observe(retrievers.TRAIN)
        trainer_of(precision=precision).fit(model, batches.PairBatches(retrievers.TRAIN, model.batch_size, 0))
        assert model.pairwise_steps is not None
        found.append(model.item_table.detach().clone())
    assert torch.equal(*found)


def test_evaluation_stays_float32(log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[bool]] = {"compute_gradients": set(), "encode_items": set()}

    def spied(method: str) -> Any:
        inner = getattr(MatrixFactorization, method)

        def spy(self: Any, *args: Any) -> Any:
            seen[method].add(torch.is_autocast_enabled("cpu"))
            return inner(self, *args)

        return spy

    for method in seen:
        monkeypatch.setattr(MatrixFactorization, method, spied(method))
    found = run(log_file, tmp_path / "run", "trainer.precision=bf16")
    assert seen == {"compute_gradients": {True}, "encode_items": {False}}
    assert {tensor.dtype for tensor in load_file(found.path / tracking.MODEL).values()} <= {torch.float32, torch.int64}


def test_an_unknown_precision_is_refused(log_file: Path, tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"trainer.precision=fp16: expected 32 or 'bf16'"):
        run(log_file, tmp_path / "run", "trainer.precision=fp16")


# torch.compile


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_the_same_model() -> None:
    rows = rankers.some(ROWS, 5 * 256)  # whole batches: another size would be compiled for as well
    plain, loss = trained("fm", rows=rows)
    model, source = prepared("fm", rows)
    trainer = trainer_of()
    with fitting.compiled(model):
        trainer.fit(model, source)
        assert "forward" in vars(model)
    assert not any("forward" in vars(module) for module in model.modules())
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(loss, rel=1e-4)
    assert model.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(model.state_dict()[name], tensor, atol=1e-4), name


def test_every_name_to_compile_is_a_method() -> None:
    for name in MODELS:
        model, _ = prepared(name)
        assert all(callable(getattr(model, method)) for method in model.compilable), name


def test_what_cannot_be_compiled_says_so_and_trains(log_file: Path, tmp_path: Path, capsys: Any, plain: Any) -> None:
    bpr = run(log_file, tmp_path / "bpr", "model.loss=bpr", "model.num_negatives=1", "trainer.compile=true")
    assert bpr.metrics["train/loss"] > 0
    assert "trainer.compile: MatrixFactorization names nothing to compile" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_a_missing_compiler_is_one_line(log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    torch._dynamo.reset()
    with pytest.raises(ValueError, match=r"^trainer.compile=true: MatrixFactorization cannot be compiled") as error:
        run(log_file, tmp_path / "run", "trainer.compile=true")
    torch._dynamo.reset()
    assert "\n" not in str(error.value)


# Streaming


def test_rows_that_stream_give_the_same_bits(log_file: Path, tmp_path: Path, plain: recsys.Run) -> None:
    streamed = run(log_file, tmp_path / "run", "trainer.resident_bytes=1000")
    assert weights(streamed) == weights(plain)
    assert 0 < streamed.metrics["train/data_wait_share"] < 1
    assert 0 < plain.metrics["train/data_wait_share"] < 1
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def interrupt_after(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, chunk_done = 0, Watch.chunk_done

    def interrupt(self: Watch, *args: int) -> None:
        nonlocal calls
        calls += 1
        if calls == chunks:
            os.kill(os.getpid(), signal.SIGINT)
        chunk_done(self, *args)

    monkeypatch.setattr(Watch, "chunk_done", interrupt)


def test_a_stopped_stream_goes_on(
    log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: recsys.Run
) -> None:
    words = "model.batch_size=32", "trainer.resident_bytes=0"
    whole = run(log_file, tmp_path / "whole", *words)
    interrupt_after(3, monkeypatch)
    with pytest.raises(Interrupted):
        run(log_file, tmp_path / "run", *words)
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    assert weights(run(log_file, tmp_path / "run", *words)) == weights(whole)


# Memory


def short_above(size: int, monkeypatch: pytest.MonkeyPatch, from_step: int = 0) -> list[int]:
    """Let steps of more than `size` rows run out of memory; returns the sizes of those that did."""
    failed: list[int] = []
    inner = MatrixFactorization.compute_gradients

    def compute_gradients(self: Any, user_B: torch.Tensor, item_M: torch.Tensor) -> torch.Tensor:
        monkeypatch.setattr(MatrixFactorization, "calls", getattr(self, "calls", 0) + 1, raising=False)
        if len(user_B) > size and self.calls > from_step:
            failed.append(len(user_B))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return inner(self, user_B, item_M)

    monkeypatch.setattr(MatrixFactorization, "compute_gradients", compute_gradients)
    return failed


def test_a_batch_too_large_is_halved(
    log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    half = run(log_file, tmp_path / "half", "model.batch_size=64")
    assert short_above(70, monkeypatch) == []
    found = run(log_file, tmp_path / "run", "model.batch_size=256")
    assert weights(found) == weights(half)
    assert found.metrics["train/batch_size"] == 64
    assert half.metrics["train/batch_size"] == 64
    said = capsys.readouterr().err
    assert "out of memory with batch_size=256: going on with batch_size=128" in said
    assert "out of memory with batch_size=128: going on with batch_size=64" in said


def test_what_is_learnt_before_memory_is_short_is_kept(
    log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, int]] = []
    train_steps = MatrixFactorization.train_steps

    def record(self: Any, chunk: dict[str, Any], optimizer: Any) -> Any:
        loss = train_steps(self, chunk, optimizer)
        seen.extend(zip(chunk["user_idx"].flatten().tolist(), chunk["item_idx"].flatten().tolist(), strict=True))
        return loss

    monkeypatch.setattr(MatrixFactorization, "train_steps", record)
    words = "model.batch_size=32", "trainer.max_epochs=1"
    run(log_file, tmp_path / "whole", *words)
    whole = list(seen)
    seen.clear()
    short_above(20, monkeypatch, from_step=70)  # in the third chunk of 32 steps
    found = run(log_file, tmp_path / "run", *words)
    assert seen == whole
    assert found.metrics["train/batch_size"] == 16


def test_a_halved_batch_is_resumed_from(log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = run(log_file, tmp_path / "half", "model.batch_size=32")
    with monkeypatch.context() as context:
        short_above(40, context)
        interrupt_after(3, context)
        with pytest.raises(Interrupted):
            run(log_file, tmp_path / "run", "model.batch_size=64")
    found = run(log_file, tmp_path / "run", "model.batch_size=64")
    assert found.metrics["train/batch_size"] == 32
    assert weights(found) == weights(half)


@pytest.mark.parametrize("num_rows", [997, 1000, 1024, 40])
@pytest.mark.parametrize("batch_size", [64, 63])
def test_a_smaller_batch_leaves_out_no_row(num_rows: int, batch_size: int) -> None:
    rows, steps, half = {"row": torch.arange(num_rows)}, 3, batch_size // 2
    before, after = (batches.RowBatches(rows, size, 0, steps_per_chunk=steps) for size in (batch_size, half))
    for chunk in range(len(before)):
        place = fitting.same_place(chunk, batch_size, half, num_rows=num_rows, steps=steps)
        assert place < len(after)
        old = [c["rows"]["row"].flatten() for c in before.chunks(0)][:chunk]
        new = [c["rows"]["row"].flatten() for c in after.chunks(0, place)]
        seen = torch.cat([*old, *new])
        assert set(seen.tolist()) == set(range(num_rows))
        assert len(seen) - num_rows < steps * (batch_size + 1)
        assert (
            len(seen) == num_rows or batch_size % 2 or chunk * steps * batch_size > num_rows // batch_size * batch_size
        )


def test_memory_that_no_batch_fits_is_said(log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = short_above(0, monkeypatch)
    with pytest.raises(ValueError, match=r"out of memory with batch_size=18, and a smaller batch would not help"):
        run(log_file, tmp_path / "run", "model.batch_size=72")
    assert failed == [72, 36, 18]


def test_other_errors_are_not_taken_for_short_memory(
    log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(MatrixFactorization, "compute_gradients", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(log_file, tmp_path / "run")
    assert fitting.is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    )
    assert fitting.is_out_of_memory(MemoryError())
    assert not fitting.is_out_of_memory(ValueError("out of memory"))


# Numbers that are none


@pytest.mark.parametrize(
    ("model", "method", "parameter"),
    [("mf", "train_steps", "item_table"), ("lightgcn", "train_steps", "item_table")],
)
def test_what_is_not_finite_is_named(
    model: str, method: str, parameter: str, log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = {"mf": MatrixFactorization, "lightgcn": LightGCN}[model]
    inner = getattr(target, method)

    def poisoned(self: Any, chunk: dict[str, Any], optimizer: Any) -> torch.Tensor:
        with torch.no_grad():
            getattr(self, parameter).fill_(torch.nan)
        return inner(self, chunk, optimizer)

    monkeypatch.setattr(target, method, poisoned)
    cfg = config.compose(*LOG, f"data.path={log_file}", f"model={model}", "checkpoint_seconds=0")
    with pytest.raises(ValueError, match=r"is not finite by step \d+ of training: lower lr$") as error:
        train(cfg, tmp_path / "run")
    assert parameter in str(error.value) or "user_table" in str(error.value)
    assert not (tmp_path / "run" / tracking.LAST).exists()


def test_a_ranker_has_two_rates() -> None:
    model: Ranker = rankers.build("logistic")
    assert isinstance(model, Logistic)
    chunk = {"rows": {"label": torch.zeros(3, 2)}, "step": 4, "seed": 0}
    assert fitting.diverged(model, chunk) == "the loss is not finite by step 6 of training: lower lr or table_lr"


def test_metrics_hold_the_engine_s_figures(plain: recsys.Run) -> None:
    metrics = json.loads((plain.path / tracking.METRICS).read_text())
    assert metrics["train/batch_size"] == 256
    assert metrics["train/samples_per_second"] > 0
