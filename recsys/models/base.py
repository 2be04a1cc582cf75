"""The two contracts. A retriever scores the whole catalogue for a user; a ranker scores given pairs.

Shapes in names: B batch, I items, N some items, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from torch import Tensor

from recsys.models import losses
from recsys.models import negatives as draws
from recsys.models.layers import num_rows
from recsys.models.optimizers import RowAdagrad
from recsys.schema import LABEL, NUM_RESERVED, USER_ID, Column, Interactions, Schema, UserBatch

# report(done, total, measured): called after every step of a fit, e.g. report(3, 16, {"train/loss": 0.2}).
# It may raise to stop the fit; the model is then in the state that `done` steps leave.
Report = Callable[[int, int, dict[str, float]], None]

RowBatch = dict[str, Tensor]  # what a FeaturePipeline makes of rows: tensors [B] or [B, width] by name

_SLAB = 4096  # items multiplied at a time on a CPU
ROWS_AT_ONCE = 1 << 13  # that a ranker scores


def no_report(done: int, total: int, measured: dict[str, float]) -> None:
    """The default: tell nobody."""


@runtime_checkable
class Solver(Protocol):
    """A retriever that is not trained by gradient: a closed form, or alternating sweeps."""

    def fit(self, interactions: Interactions, report: Report = ...) -> None:
        """Solve for a training set whose rows are user_idx, telling `report` of every step."""


class Model(pl.LightningModule):
    """What both contracts share: how a model that is trained by gradient takes its steps.

    Such a model implements `configure_optimizers` (a list), `train_steps`, and has batch_size, max_epochs and
    the name of its source of `batches`.
    """

    # Names of methods of a training step that are worth compiling: dense, and without steps of their own.
    compilable: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        # What the model asks of its source of batches beside what every source takes.
        self.batch_options: dict[str, Any] = {}

    def train_steps(self, chunk: dict[str, Any], optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
        """All optimiser steps of a chunk, which leave no gradient; the mean of their losses, without a sync."""
        raise NotImplementedError(f"{type(self).__name__} is not trained by gradient")

    def training_step(self, chunk: dict[str, Any], chunk_idx: int) -> None:
        """The steps of a chunk, as Lightning asks for them. The trainer's global_step counts chunks."""
        wrappers: Any = self.optimizers()
        wrappers = wrappers if isinstance(wrappers, list) else [wrappers]
        self.log("train/loss", self.train_steps(chunk, [wrapper.optimizer for wrapper in wrappers]))
        for wrapper in wrappers[:1]:  # moves nothing, as no gradient is left: it is what counts global_step
            wrapper.step()


class Retriever(Model):
    """Scores every item for every user of a batch.

    A model whose score is an inner product implements `encode_users` and `encode_items`, and only such
    models can be indexed. Any other implements `score`. A model that is not trained by gradient
    implements `fit(interactions, report)`; its steps are counted by itself in a buffer, so that `fit`
    on a reloaded model goes on where it stopped.
    """

    item_counts: Tensor
    user_counts: Tensor
    # Set by models that know a user by the history of the batch and not by a row of their own.
    scores_from_history = False
    # Set by models that use the user and item features among the schema's columns; `describe` brings their values.
    takes_features = False

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema
        self.register_buffer("item_counts", torch.zeros(schema.num_items, dtype=torch.int64))
        self.register_buffer("user_counts", torch.zeros(schema.num_users, dtype=torch.int64))

    def observe(self, interactions: Interactions) -> None:
        """Keep what the fallback and `personal` need to know of the training set. Called before training."""
        self.item_counts.copy_(interactions.item_counts())
        self.user_counts.copy_(interactions.row_counts())

    def describe(self, users: RowBatch, items: RowBatch) -> None:
        """Keep the features of users and items, tensors by column [U, ...] and [I, ...]. Called before `observe`."""
        raise NotImplementedError(f"{type(self).__name__} takes no features")

    def date(self, came_I: Tensor, now: int) -> None:
        """Told before training and before measuring when items came, int64 [I] microseconds since 1970 (-1: not known),
        and as of when scores are asked. Models that know no time let it pass."""

    def encode_users(self, batch: UserBatch) -> Tensor:
        """User vectors, float [B, D]."""
        raise NotImplementedError(f"{type(self).__name__} is not an inner-product model")

    def encode_items(self, item_idx: Tensor) -> Tensor:
        """Item vectors, float [N, D]."""
        raise NotImplementedError(f"{type(self).__name__} is not an inner-product model")

    @property
    def factored(self) -> bool:
        """Whether the score is an inner product of `encode_users` and `encode_items`."""
        return type(self).encode_items is not Retriever.encode_items

    def score(self, batch: UserBatch) -> Tensor:
        """scores_BI over all `num_items` columns, the reserved two included (the evaluator masks them)."""
        return self.scorer()(batch)

    def scorer(self) -> Callable[[UserBatch], Tensor]:
        """`score` with all that does not depend on the user computed once. Scores carry no gradient."""
        if not self.factored:
            return self.score
        with torch.no_grad():
            items_ID = self.encode_items(torch.arange(self.schema.num_items, device=self.device))

        @torch.no_grad()
        def inner_product(batch: UserBatch) -> Tensor:
            # Items first: a product of many rows and few columns is up to twice as fast on a CPU, and a fifth
            # faster again by slabs of items that stay in its cache.
            users_DB = self.encode_users(batch).T
            if users_DB.device.type != "cpu":
                return (items_ID @ users_DB).T
            scores_IB = items_ID.new_empty(len(items_ID), users_DB.shape[1])
            for items_ND, scores_NB in zip(items_ID.split(_SLAB), scores_IB.split(_SLAB), strict=True):
                torch.mm(items_ND, users_DB, out=scores_NB)
            return scores_IB.T

        return inner_product

    def personal(self, batch: UserBatch) -> Tensor:
        """Whether the model knows each user, bool [B]. Where it does not, the fallback answers: the
        items in order of their count in train."""
        if not self.scores_from_history:
            return self.user_counts.index_select(0, batch["user_idx"]) > 0
        # A history of nothing but items that had no positive in train tells such a model nothing.
        history: Interactions = batch["history"]
        told = (self.item_counts.index_select(0, history.item_idx) > 0).long()
        return torch.zeros_like(history.indptr[1:]).index_add_(0, history.row_idx(), told) > 0

    def scorer_with_fallback(self) -> Callable[[UserBatch], Tensor]:
        """`scorer`, answered by the fallback for users the model does not know."""
        score = self.scorer()

        def answer(batch: UserBatch) -> Tensor:
            scores_BI = score(batch)
            stranger_B = ~self.personal(batch)
            if bool(stranger_B.any()):
                scores_BI = torch.where(stranger_B[:, None], self.item_counts.to(scores_BI.dtype), scores_BI)
            return scores_BI

        return answer


_OF_GROUPS = {"pairwise": losses.pairwise, "listwise": losses.listwise}


class Ranker(Model):
    """Scores rows, each a user, an item and what is known when it is shown.

    A model implements `forward(batch) -> {task: logits_B}`. Embedding tables (`layers.FieldEmbeddings`) get sparse
    gradients and row-wise Adagrad, all else AdamW; both rates fall linearly to 0 over max_epochs. Dropout belongs to
    (seed, step), so that a resumed training ends in the same bits.

    Args:
        columns: inputs as `FeaturePipeline.columns` describes them; labels among them are left out.
        loss: "bce", or "focal" (Lin et al. 2017), which weighs rows by (1 - p of their class) ** focal_gamma; or
            "pairwise" or "listwise" (see `losses`): bce + rank_weight * that loss of each group's rows, for order alone
            says nothing of probabilities (Sculley, KDD 2010; Li et al., KDD 2015).
        rank_weight: at a low base rate bce is far the smaller of the two: 0.1 keeps probabilities better than 1.
        group: of pairwise and listwise: a column of one index, such as the user's or a visit's; among the labels it is
            no input. Rows of padding or unknown are in no group.
        list_length: rows of a group that batches then keep together; None: all. Whole groups that fill much of a batch
            cost accuracy: its gradient is that of a few users.
        positive_weight: of rows with label 1; other than 1 it biases probabilities.
        lr, weight_decay: of AdamW. table_lr: of the tables.
    """

    batches = "RowBatches"
    compilable: tuple[str, ...] = ("forward",)

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        loss: Literal["bce", "focal", "pairwise", "listwise"] = "bce",
        focal_gamma: float = 2.0,
        rank_weight: float = 1.0,
        group: str = USER_ID,
        list_length: int | None = 8,
        positive_weight: float = 1.0,
        lr: float = 1e-3,
        table_lr: float = 0.05,
        weight_decay: float = 0.0,
        batch_size: int = 1024,
        max_epochs: int = 3,
    ) -> None:
        super().__init__()
        for name, value in {"lr": lr, "table_lr": table_lr, "positive_weight": positive_weight}.items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        weights = {"weight_decay": weight_decay, "focal_gamma": focal_gamma, "rank_weight": rank_weight}
        for name, value in weights.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be below 0, got {value}")
        for name, count in {"batch_size": batch_size, "max_epochs": max_epochs}.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if loss not in ("bce", "focal", *_OF_GROUPS):
            raise ValueError(f"loss={loss}: expected bce, focal, pairwise or listwise")
        indexed = [column.name for column in columns if column.cardinality is not None and column.width is None]
        if loss in _OF_GROUPS and group not in indexed:
            known = ", ".join(indexed) or "there is none"
            raise ValueError(f"group={group}: loss={loss} needs a column of one index, choose from: {known}")
        if list_length is not None and list_length < 1:
            raise ValueError(f"list_length must be at least 1, got {list_length}")
        self.columns = tuple(column for column in columns if column.role != "label")
        if not self.columns:
            raise ValueError("a ranker needs at least one input column")
        self.loss, self.focal_gamma, self.positive_weight = loss, focal_gamma, positive_weight
        self.rank_weight, self.group = rank_weight, group
        if loss in _OF_GROUPS:
            self.batch_options = {"group": group, "list_length": list_length}
        self.lr, self.table_lr, self.weight_decay = lr, table_lr, weight_decay
        self.batch_size, self.max_epochs = batch_size, max_epochs
        self.total_steps = 1

    def forward(self, batch: RowBatch) -> dict[str, Tensor]:
        """Logits of each task, float [B]."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def compute_loss(self, logits: dict[str, Tensor], batch: RowBatch) -> Tensor:
        """The mean loss of a batch."""
        label_B = batch[LABEL].float()
        weight_B = 1 + (self.positive_weight - 1) * label_B
        if self.loss == "focal":
            return (weight_B * losses.focal(logits[LABEL], label_B, self.focal_gamma)).mean()
        loss = (weight_B * losses.log_loss(logits[LABEL], label_B)).mean()
        if self.loss in _OF_GROUPS:
            known_B = batch[self.group] >= NUM_RESERVED
            rows = (values_B[known_B] for values_B in (logits[LABEL], label_B, batch[self.group]))
            loss = loss + self.rank_weight * _OF_GROUPS[self.loss](*rows)
        return loss

    def observe(self, num_rows: int) -> None:
        """Learn how long training will be. Called before it."""
        self.total_steps = self.max_epochs * -(-num_rows // self.batch_size)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        tables = [p for name, p in self.named_parameters() if name.rpartition(".")[2] == "table"]
        rest = [p for name, p in self.named_parameters() if name.rpartition(".")[2] != "table"]
        found: list[torch.optim.Optimizer] = []
        if rest:
            found.append(torch.optim.AdamW(rest, self.lr, weight_decay=self.weight_decay))
        if tables:
            found.append(RowAdagrad(tables, lr=self.table_lr))
        return found

    def train_steps(self, chunk: dict[str, Any], optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
        rates = [self.table_lr if isinstance(optimizer, RowAdagrad) else self.lr for optimizer in optimizers]
        total = torch.zeros((), device=self.device)
        num_steps = len(chunk["rows"][LABEL])
        with draws.seeded(self.device) as seed:
            for s in range(num_steps):
                step = chunk["step"] + s
                seed(draws.seed_of(chunk["seed"], step))
                batch = {name: rows[s] for name, rows in chunk["rows"].items()}
                loss = self.compute_loss(self(batch), batch)
                loss.backward()
                for optimizer, lr in zip(optimizers, rates, strict=True):
                    optimizer.param_groups[0]["lr"] = lr * max(1 - step / self.total_steps, 0.0)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                total += loss.detach()
        return total / num_steps


@torch.no_grad()
def score(model: Ranker, rows: RowBatch, task: str = LABEL) -> Tensor:
    """Logits of rows in their order, float [N] on the CPU, block by block. A column of one row holds for all."""
    found, size = [torch.zeros(0)], num_rows(rows)
    for low in range(0, size, ROWS_AT_ONCE):
        part = slice(low, low + ROWS_AT_ONCE)
        block = {name: (v[part] if len(v) == size else v).to(model.device) for name, v in rows.items()}
        found.append(model(block)[task].float().cpu())
    return torch.cat(found)
