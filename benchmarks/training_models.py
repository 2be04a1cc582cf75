"""Every gradient-trained model of configs/model: through the engine, in a plain loop, and with a loader of single rows.

Part of bench_training.py, which sets the thread counts before this is imported. On a synthetic log (that of training_mf
with timestamps) or synthetic rows of eleven columns, with each model's own settings; a repeat is so many chunks of 32
steps as take about a second.

engine: `recsys.fitting.fit`, from the start of the epoch to the end of training.
plain: the same steps without Lightning.
row_loader: what Lightning's tutorials do: a TensorDataset, a DataLoader that collates single rows, automatic
    optimisation. The arithmetic of a step is ours, so the ratio is that of the loops alone.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from training_mf import make_log

from recsys import benching, config, tracking
from recsys.data import batches
from recsys.fitting import Trainer, fit
from recsys.models.base import Ranker, Solver
from recsys.schema import Column, Schema
from recsys.watch import Watch

USERS, ITEMS, LENGTH, ROWS = 100_000, 20_000, 20, 1 << 16
COLUMNS = (
    Column("user_id", "user_feature", "int64", USERS),
    Column("item_id", "item_feature", "int64", ITEMS),
    Column("country", "user_feature", "int64", 200),
    Column("topic", "item_feature", "int64", 500),
    Column("hour", "context", "int64", 26),
    Column("age", "user_feature", "float32"),
    Column("duration", "item_feature", "float32"),
    Column("history", "context", "int64", ITEMS, LENGTH, table="item_id"),
    Column("history_length", "context", "int64"),
    Column("label", "label", "float32"),
    Column("watch_seconds", "label", "float32"),
)
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def bench(repeats: int = 5, seconds: float = 1.0) -> dict[str, Any]:
    """Interleaved repeats; rates are medians, ratios medians over pairs of neighbouring repeats."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bandwidth = copy_bandwidth(device)
    log = make_log()
    log = replace(log, timestamp=torch.arange(len(log)))
    rows = make_rows()
    found, left_out = {}, {}
    for path in sorted((config.config_dir() / "model").glob("*.yaml")):
        target: Any = config.target(config.load(path))
        if issubclass(target, Solver):
            continue
        try:
            loops = Loops(path.stem, issubclass(target, Ranker), log, rows, device, seconds)
        except ValueError as error:  # not a model of such a log, or not trained by gradient
            left_out[path.stem] = str(error)
            continue
        found[path.stem] = loops.measured(repeats) | loops.traffic(bandwidth)
        print(path.stem, found[path.stem], file=sys.stderr, flush=True)
    return {
        "device": str(device),
        "copy_gigabytes_per_second": round(bandwidth / 1e9, 2),
        "models": found,
        "least_engine_over_plain": min(model["engine_over_plain"] for model in found.values()),
        "left_out": left_out,
    }


def make_rows() -> dict[str, Tensor]:
    """Rows as a feature pipeline makes them; of indices the small ones are frequent, as in logs."""
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, Tensor] = {}
    for column in COLUMNS:
        size = (ROWS,) if column.width is None else (ROWS, column.width)
        u = torch.rand(size, generator=generator)
        if column.cardinality is not None:
            rows[column.name] = (2 + (column.cardinality - 2) * u**3).long()
        else:
            rows[column.name] = u if column.dtype == "float32" else (u * LENGTH).long()
    outside = torch.arange(LENGTH) >= rows["history_length"][:, None]
    rows["history"].masked_fill_(outside, 0)
    rows["label"] = (rows["label"] < 0.1).float()
    return rows


def copy_bandwidth(device: torch.device, num_bytes: int = 1 << 28) -> float:
    """Bytes read and written a second when a tensor is copied: the median of nine copies."""
    source = torch.ones(num_bytes // 4, device=device)
    copy, times = torch.empty_like(source), []
    for _ in range(10):
        begin = now(device)
        copy.copy_(source)
        times.append(now(device) - begin)
    return 2 * num_bytes / statistics.median(times[1:])


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Some:
    """So many whole chunks of a source of batches, of as many epochs as they take."""

    def __init__(self, source: Any, count: int) -> None:
        self.source, self.count = source, count

    def __len__(self) -> int:
        return self.count

    def chunks(self, epoch: int = 0, start: int = 0) -> Iterator[dict[str, Any]]:
        full = max(self.source.num_rows // self.source.batch_size // self.source.steps_per_chunk, 1)
        epochs = (itertools.islice(self.source.chunks(epoch), full) for epoch in itertools.count())
        yield from itertools.islice(itertools.chain.from_iterable(epochs), self.count)


class Loops:
    """One model and three ways to train it, each on an instance of its own."""

    def __init__(
        self, name: str, is_ranker: bool, log: Any, rows: dict[str, Tensor], device: torch.device, seconds: float
    ) -> None:
        self.device = device
        make = config.partial(config.compose(f"model={name}").model)

        def build() -> Any:
            pl.seed_everything(0, verbose=False)
            model = make(columns=COLUMNS) if is_ranker else make(schema=Schema.of(log.num_rows, log.num_items))
            model.to(device)
            self.observe = partial(model.observe, ROWS if is_ranker else log)
            self.observe()
            return model.train()

        self.engine, self.model = build(), build()
        options = {"batch_size": self.model.batch_size, "seed": 0, "device": device, **self.model.batch_options}
        self.source = getattr(batches, self.model.batches)(rows if is_ranker else log, **options)
        self.optimizers: Any = self.model.configure_optimizers()
        if not self.optimizers:
            raise ValueError("has no optimisers")
        self.chunks = Some(self.source, 1)
        self.plain()  # first pages
        self.chunks = Some(self.source, max(round(seconds / self.plain()), 1))
        chunk = next(self.source.chunks(0))
        self.names = list(chunk.get("rows", chunk))
        self.names = [n for n in self.names if isinstance(chunk.get("rows", chunk)[n], Tensor)]
        self.nested, self.like = "rows" in chunk, chunk
        self.steps = len(self.tensors(chunk)[0])
        self.batches = min(8, self.steps)

    def tensors(self, chunk: dict[str, Any]) -> list[Tensor]:
        part = chunk["rows"] if self.nested else chunk
        return [part[name] for name in self.names]

    def plain(self) -> float:
        """Seconds of all chunks without Lightning."""
        begin = now(self.device)
        for chunk in self.chunks.chunks():
            self.model.train_steps(chunk, self.optimizers)
        return now(self.device) - begin

    def by_engine(self) -> float:
        """Seconds of all chunks through `fit`."""
        clock = Clock(self.device)

        def trainer(**given: Any) -> Trainer:
            given["callbacks"] = [clock, *given["callbacks"]]
            return Trainer(accelerator="gpu" if self.device.type == "cuda" else "cpu", **given)

        with tempfile.TemporaryDirectory() as folder:
            watch = Watch(
                Path(folder), self.engine, tracking.csv_logger(Path(folder)), validate=None, monitor="", patience=None,
                checkpoint_seconds=1e9, resume_from=None,
            )  # fmt: skip
            watch.epoch = self.engine.max_epochs - 1  # one epoch, and rates as at the start of training
            with watch:
                some = self.chunks
                fit(
                    self.engine, lambda resident_bytes: some, watch, trainer=trainer, observe=lambda: None,
                    device=self.device,
                )  # fmt: skip
        return clock.seconds

    def by_rows(self) -> float:
        """Seconds of `batches` batches of single rows, with automatic optimisation."""
        chunk = self.like
        rows = TensorDataset(*(tensor[: self.batches].flatten(0, 1).cpu() for tensor in self.tensors(chunk)))
        loader = DataLoader(rows, self.source.batch_size, shuffle=True)
        clock = Clock(self.device)
        trainer = pl.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu", max_epochs=1, callbacks=[clock], **QUIET
        )
        trainer.fit(OneBatch(self), loader)
        return clock.seconds

    def measured(self, repeats: int) -> dict[str, Any]:
        """Samples a second and ratios of `repeats` interleaved repeats."""
        samples = sum(chunk["samples"] for chunk in self.chunks.chunks())
        few = self.like["samples"] * self.batches / self.steps
        self.by_engine()
        times = [(self.plain(), self.by_engine(), self.by_rows()) for _ in range(repeats)]
        middle = statistics.median
        self.plain_seconds = middle(plain for plain, _, _ in times)
        over_plain = [plain / engine for plain, engine, _ in times]
        over_loader = [slow / few * samples / engine for _, engine, slow in times]
        return {
            "samples_per_second": round(samples / middle(engine for _, engine, _ in times)),
            "engine_over_plain": round(middle(over_plain), 4),
            "engine_over_plain_quartiles": benching.quartiles(over_plain),
            "engine_over_row_loader": round(middle(over_loader), 2),
            "engine_over_row_loader_quartiles": benching.quartiles(over_loader),
        }

    def traffic(self, bandwidth: float) -> dict[str, float]:
        """Bytes that the steps of the plain loop move at least, a second, and as a share of copying.

        A sparse gradient of n rows of W numbers is (5 W + 2 a) n: the row read forward, the gradient written and read,
        the row read and written, and the optimiser's `a` numbers of a row read and written. A dense parameter of P
        numbers is (6 + 2 a) P: read forward and backward, the gradient written and read, the parameter read and
        written, and `a` numbers of state a number. Inputs, activations and what gets no gradient are not counted, so
        this says how near to memory's speed a model is that looks up rows and does little else.
        """
        total = 0.0

        def count(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            nonlocal total
            for parameter in itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups):
                if parameter.grad is None:
                    continue
                tensors = [s for s in optimizer.state.get(parameter, {}).values() if isinstance(s, Tensor)]
                state = sum(s.nbytes for s in tensors)
                if parameter.grad.is_sparse:
                    n = parameter.grad._values().shape[0]
                    total += n * (5 * parameter[0].nbytes + 2 * state / len(parameter))
                else:
                    total += 6 * parameter.nbytes + 2 * state

        handles = [optimizer.register_step_pre_hook(count) for optimizer in self.optimizers]
        self.model.train_steps(self.like, self.optimizers)
        for handle in handles:
            handle.remove()
        a_second = total * len(self.chunks) / self.plain_seconds
        return {"gigabytes_per_second": round(a_second / 1e9, 3), "share_of_copying": round(a_second / bandwidth, 4)}


class OneBatch(pl.LightningModule):
    """A batch of rows as Lightning's tutorials train on it. Its own parameter moves nothing: the model's steps do."""

    def __init__(self, loops: Loops) -> None:
        super().__init__()
        self.loops = [loops]  # in a list, or the model would be a part of this one
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (loops,) = self.loops
        tensors = dict(zip(loops.names, (tensor[None] for tensor in batch), strict=True))
        rest = {"seed": 0, "step": batch_idx, "samples": len(batch[0])}
        loops.model.train_steps({"rows": tensors, **rest} if loops.nested else {**tensors, **rest}, loops.optimizers)
        return self.nothing * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Clock(pl.Callback):
    """seconds: from the start of the first epoch to the end of training."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin = now(self.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = now(self.device) - self.begin
