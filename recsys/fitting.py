"""Training by gradient on Lightning: precision, compilation, chunks, and what happens when memory is short."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from recsys.models.layers import Lookups, Numbers
from recsys.tracking import print_line
from recsys.watch import Watch

SMALLEST_BATCH = 16  # below which less memory is not a matter of the batch
_SHORT = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class Trainer(pl.Trainer):
    """Lightning's trainer, with what this engine adds.

    precision: 32, or "bf16": training steps under autocast to bfloat16. Weights, optimisers, evaluation stay float32.
    compile: torch.compile for what a model names in `compilable`, while it trains.
    resident_bytes: of the device's memory for training rows; larger ones stream from the CPU (see `data.batches`).
    """

    def __init__(
        self,
        *,
        precision: Literal[32, "bf16"] = 32,
        compile: bool = False,
        resident_bytes: int | None = None,
        **lightning: Any,
    ) -> None:
        super().__init__(precision="bf16-mixed" if precision == "bf16" else "32-true", **lightning)
        self.compiles, self.resident_bytes = compile, resident_bytes


def fit(
    model: Any,
    source: Callable[..., Any],
    watch: Watch,
    *,
    trainer: Callable[..., Trainer],
    observe: Callable[[], None],
    device: torch.device,
) -> None:
    """Train until the model's last epoch, from where the watch stands.

    If a step runs out of memory, training goes on with half the batch from the last checkpoint, or from the start where
    there is none yet (see `same_place`).

    Args:
        source: source(resident_bytes=…) makes the batches of model.batch_size.
        trainer: a `Trainer` but for the arguments that are given here.
        observe: tells the model what it learns from, its batch size being another.

    Raises:
        ValueError: memory is short whatever the batch, training diverges, or the compiler fails.
    """
    watch.remember_start()
    while True:
        callback = _Lightning(watch, model.max_epochs)
        lightning = trainer(
            devices=1,
            max_epochs=model.max_epochs - watch.epoch,
            logger=False,  # the watch logs, an epoch at a time, for all kinds of models alike
            callbacks=[callback],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
        )
        batches = source(resident_bytes=lightning.resident_bytes)
        if not _runs_short(model, batches, watch, lightning, callback):
            return
        batch_size = model.batch_size // 2
        if batch_size < SMALLEST_BATCH:
            raise ValueError(
                f"out of memory with batch_size={model.batch_size}, and a smaller batch would not help: "
                f"make {type(model).__name__} smaller, or free memory on {device}"
            )
        print_line(f"out of memory with batch_size={model.batch_size}: going on with batch_size={batch_size}")
        watch.restart(batch_size, partial(same_place, num_rows=batches.num_rows, steps=batches.steps_per_chunk))
        model.zero_grad(set_to_none=True)
        del lightning, batches
        gc.collect()  # what the failed step held went with its traceback
        if device.type == "cuda":
            torch.cuda.empty_cache()
        model.to(device)
        observe()


def _runs_short(model: Any, batches: Any, watch: Watch, lightning: Trainer, callback: _Lightning) -> bool:
    """Train to the end, or to a step that runs out of memory: whether one did."""
    chunks, callback.num_chunks = _Chunks(batches, watch), len(batches)
    try:
        with compiled(model) if lightning.compiles else nullcontext():
            lightning.fit(model, datamodule=chunks)
    except (RuntimeError, MemoryError) as error:
        if callback.in_step and is_out_of_memory(error):
            return True
        raise
    finally:
        chunks.rest.close()
    return False


def same_place(chunk: int, before: int, after: int, *, num_rows: int, steps: int) -> int:
    """The number of the chunk to go on with when batches become smaller, `after` for `before` rows, at chunk `chunk`.

    The order of rows stays, and none is left out. None comes again either where the old batch is a multiple of the new
    one, unless the last chunk before was a shorter one.
    """
    done = min(chunk * steps * before, num_rows // before * before)
    return done // (steps * after)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory is short, of the GPU or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORT)


@contextmanager
def compiled(model: Any) -> Generator[None]:
    """Within it, the methods that the model names in `compilable` are compiled while it is in training mode.

    Modules and their names stay as they are, and so does the state dict. Looking up sparse tables is left as it is: its
    shapes depend on the data.

    Raises:
        ValueError: compilation fails; the text names trainer.compile.
    """
    names = model.compilable
    if not names:
        print_line(f"trainer.compile: {type(model).__name__} names nothing to compile and stays as it is")
        yield
        return
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InvalidCxxCompiler

    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # it reports every place where it leaves off
    skipped: list[Any] = [module for module in model.modules() if isinstance(module, Lookups | Numbers)]
    for module in skipped:
        module.forward = torch.compiler.disable(module.forward)
    for name in names:
        setattr(model, name, _while_training(model, getattr(model, name)))
    try:
        yield
    except (TorchDynamoException, InvalidCxxCompiler) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ValueError(
            f"trainer.compile=true: {type(model).__name__} cannot be compiled here ({lines[0][:160]}): install a C++ "
            "compiler, on a GPU Triton as well, or leave trainer.compile=false"
        ) from error
    finally:
        for module in skipped:
            del module.forward
        for name in names:
            delattr(model, name)


def _while_training(model: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    """A method, compiled; as it is in evaluation, whose batches have other shapes."""
    fast = torch.compile(plain)
    return lambda *args, **kwargs: (fast if model.training else plain)(*args, **kwargs)


class _Chunks(pl.LightningDataModule):
    """Hands Lightning the chunks of the current epoch that are still to come."""

    def __init__(self, source: Any, watch: Watch) -> None:
        super().__init__()
        self.rest = _Rest(source, watch)

    def train_dataloader(self) -> Any:
        return self.rest


class _Rest:
    """The chunks that are still to come. Without a length: Lightning ends an epoch when they do."""

    def __init__(self, source: Any, watch: Watch) -> None:
        self.source, self.watch = source, watch
        self.chunks: Generator[dict[str, Any]] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.close()
        self.chunks = self.source.chunks(self.watch.epoch, self.watch.chunk)
        while True:
            begin = time.perf_counter()
            chunk = next(self.chunks, None)
            self.watch.waited += time.perf_counter() - begin
            if chunk is None:
                return
            yield chunk

    def close(self) -> None:
        """End what makes chunks ahead."""
        if self.chunks is not None:
            self.chunks.close()


class _Lightning(pl.Callback):
    """Tells the watch what Lightning has done, and refuses what is no number.

    num_chunks: of an epoch, set when they are known. in_step: whether a step is under way.
    """

    num_chunks: int

    def __init__(self, watch: Watch, epochs: int) -> None:
        self.watch, self.epochs = watch, epochs
        self.in_step = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watch.optimizers = trainer.optimizers
        self.watch.load_optimizers()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.in_step = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.in_step = False
        if not bool(trainer.callback_metrics["train/loss"].isfinite()):
            raise ValueError(diverged(pl_module, batch))
        self.watch.samples += batch["samples"]
        self.watch.chunk_done(self.num_chunks, self.epochs)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.watch.report(self.watch.epoch + 1, self.epochs, measured)


def diverged(model: pl.LightningModule, chunk: dict[str, Any]) -> str:
    """What is not finite by the end of a chunk, and what to do about it."""
    broken = [name for name, parameter in model.named_parameters() if not bool(parameter.isfinite().all())]
    what = f"parameter {broken[0]}" if broken else "the loss"
    tensors = (value for value in chunk.get("rows", chunk).values() if isinstance(value, torch.Tensor))
    step = chunk["step"] + len(next(tensors)) - 1
    rates = " or ".join(name for name in ("lr", "table_lr") if hasattr(model, name))
    return f"{what} is not finite by step {step} of training: lower {rates}"
