"""SASRec: the next item by causal self-attention over the history (Kang and McAuley, ICDM 2018).

Shapes in names: B sequences, L their columns, T items in all of them, N negatives, I items, D embedding dim, H heads,
S optimiser steps of a chunk. Items stand from column 0 on in order of time, padding behind them. Only attention
looks at [B, L]: all else is computed for the T places that hold an item.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.models import losses
from recsys.models import negatives as draws
from recsys.models.attention import Block, drop, last_items
from recsys.models.base import Retriever, RowBatch
from recsys.models.layers import RowFeatures
from recsys.models.optimizers import RowAdagrad
from recsys.schema import NUM_RESERVED, PADDING, Interactions, Schema, UserBatch

_WARMUP = 0.05  # of all steps


class SASRec(Retriever):
    """score(u, i) = <x_u, y_i>: x_u is what the blocks make of u's last items, y_i the embedding they start from.

    Blocks normalise before they attend. Positions are learned and counted from the end, so that the latest item
    always has the same one. Users are known by the history of the batch alone. With features an item's embedding is
    that of its id plus the sum of its features' vectors.

    loss: softmax (cross-entropy over the whole catalogue; Klenitskiy and Vasilev, RecSys 2023), sampled_softmax
        (the same, estimated from draws with the logQ correction), gbce (Petrov and Macdonald, RecSys 2023), bce
        (binary cross-entropy over draws of each target's own; with num_negatives=1 that of the first paper).
    length: L, how many of the last items are seen.
    num_negatives: draws of a step, shared by its targets: by count ** popularity_power with sampled_softmax,
        uniform with gbce. With bce the draws of each target, uniform. softmax needs none.
    gbce_t: calibration, from 0 (plain binary cross-entropy) to 1 (probabilities as if nothing were sampled). The
        logit is the score plus a constant, `offset`.
    lr: of AdamW; table_lr: of features' vectors, row-wise Adagrad. Both rise over the first twentieth of the steps,
        then fall linearly to 0 over max_epochs.

    Raises:
        ValueError: an argument out of range.
    """

    batches = "SequenceBatches"
    scores_from_history = True
    takes_features = True
    compilable = ("compute_loss",)

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 64,
        num_blocks: int = 1,
        num_heads: int = 1,
        length: int = 50,
        dropout: float = 0.5,
        loss: Literal["softmax", "sampled_softmax", "gbce", "bce"] = "softmax",
        num_negatives: int = 256,
        popularity_power: float = 0.5,
        gbce_t: float = 0.75,
        lr: float = 0.006,
        table_lr: float = 0.1,
        weight_decay: float = 0.3,
        init_std: float = 0.1,
        batch_size: int = 64,
        max_epochs: int = 30,
    ) -> None:
        super().__init__(schema)
        counts = {"embedding_dim": embedding_dim, "num_blocks": num_blocks, "num_heads": num_heads, "length": length}
        counts |= {"num_negatives": num_negatives, "batch_size": batch_size, "max_epochs": max_epochs}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if embedding_dim % num_heads:
            raise ValueError(f"embedding_dim={embedding_dim} cannot be divided among num_heads={num_heads}")
        if loss not in ("softmax", "sampled_softmax", "gbce", "bce"):
            raise ValueError(f"loss must be softmax, sampled_softmax, gbce or bce, got {loss}")
        for name, value in {"lr": lr, "table_lr": table_lr, "init_std": init_std}.items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name, value in {"weight_decay": weight_decay, "popularity_power": popularity_power}.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be below 0, got {value}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        if not 0 <= gbce_t <= 1:
            raise ValueError(f"gbce_t must lie in [0, 1], got {gbce_t}")
        self.batch_options = {"length": length}
        self.length, self.dropout, self.loss = length, dropout, loss
        self.num_negatives, self.popularity_power = num_negatives, popularity_power
        self.beta = gbce_beta(gbce_t, num_negatives, schema.num_items - NUM_RESERVED)
        # The logit that fits before anything is learnt: without it training lingers for long at popularity.
        self.offset = math.log(self.beta / num_negatives)
        self.lr, self.table_lr, self.weight_decay = lr, table_lr, weight_decay
        self.batch_size, self.max_epochs = batch_size, max_epochs
        self.items = nn.Embedding(schema.num_items, embedding_dim, padding_idx=PADDING)
        columns = [c for c in schema.columns if c.role == "item_feature"]
        self.features = RowFeatures(schema.num_items, columns, embedding_dim)
        self.positions = nn.Embedding(length, embedding_dim)
        self.blocks = nn.ModuleList(Block(embedding_dim, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(embedding_dim)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=init_std)
        with torch.no_grad():
            self.items.weight[PADDING] = 0

    # Scores

    def encode_users(self, batch: UserBatch) -> Tensor:
        """[B, D], from the last L items of batch["history"]; 0 where there are none."""
        sequence_BL = last_items(batch["history"], self.length)
        count_B = (sequence_BL != PADDING).sum(1)
        known_B = count_B > 0
        x_BD = self.items.weight.new_zeros(len(count_B), self.items.embedding_dim)
        x_BD[known_B] = self.encode(sequence_BL)[count_B.cumsum(0)[known_B] - 1]
        return x_BD

    def encode_items(self, item_idx: Tensor) -> Tensor:
        """[N, D]."""
        if not self.features.columns:
            return self.items(item_idx)
        # With features an item without a positive in train is what they say: its id has only ever been a negative.
        ids_ND = self.items(item_idx).masked_fill((self.item_counts[item_idx] == 0)[:, None], 0)
        return ids_ND + self.features(item_idx).sum(1)

    def describe(self, users: RowBatch, items: RowBatch) -> None:
        """Keep the features of all items, tensors by column [I, ...]; those of users are not used."""
        self.features.describe(items)

    def encode(
        self, sequence_BL: Tensor, generator: torch.Generator | None = None, y_TD: Tensor | None = None
    ) -> Tensor:
        """What is known after each item, float [T, D], row by row; under dropout with a generator. L <= length.
        y_TD: the items' vectors row by row, where they are at hand."""
        there_BL = sequence_BL != PADDING
        column_L = torch.arange(sequence_BL.shape[1], device=sequence_BL.device)
        left_BL = there_BL.sum(1, keepdim=True) - 1 - column_L  # items behind each
        y_TD = self.encode_items(sequence_BL[there_BL]) if y_TD is None else y_TD
        x_TD = y_TD + self.positions(left_BL[there_BL])
        x_TD = drop(x_TD, self.dropout, generator)
        for block in self.blocks:
            x_TD = block(x_TD, there_BL, self.dropout, generator)
        return self.norm(x_TD)

    # Training

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        tables = [p for name, p in self.named_parameters() if name.endswith(".table")]
        rest = [p for name, p in self.named_parameters() if not name.endswith(".table")]
        adam = torch.optim.AdamW(rest, self.lr, betas=(0.9, 0.98), weight_decay=self.weight_decay)
        return [adam, RowAdagrad(tables, lr=self.table_lr)] if tables else [adam]

    def observe(self, interactions: Interactions) -> None:
        super().observe(interactions)
        self.prepare()

    def on_train_start(self) -> None:
        self.prepare()

    def prepare(self) -> None:
        """Derive the length of training and the distribution of negatives from the observed counts."""
        windows = int((-(-(self.user_counts - 1).clamp(min=0) // self.length)).sum())
        self.total_steps = self.max_epochs * -(-windows // self.batch_size)
        if self.loss in ("gbce", "bce"):
            self.log_q_I = draws.uniform_log_q(self.schema.num_items, self.device)
        else:
            self.log_q_I = draws.popularity_log_q(self.item_counts, self.popularity_power)
        self.cdf_I = draws.cumulative(self.log_q_I)

    def share_at(self, step: int) -> float:
        """The share of the learning rates at a global optimiser step."""
        warmup = max(_WARMUP * self.total_steps, 1)
        return max(min((step + 1) / warmup, 1 - step / self.total_steps), 0.0)

    def train_steps(self, chunk: dict[str, Any], optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
        total = torch.zeros((), device=self.device)
        for s, sequence_BL in enumerate(chunk["sequence"]):
            step = chunk["step"] + s
            loss = self.compute_loss(sequence_BL, draws.generator_at(chunk["seed"], step, self.device))
            loss.backward()
            for optimizer in optimizers:
                lr = self.table_lr if isinstance(optimizer, RowAdagrad) else self.lr
                optimizer.param_groups[0]["lr"] = lr * self.share_at(step)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
        return total / len(chunk["sequence"])

    def compute_loss(self, sequence_BL: Tensor, generator: torch.Generator) -> Tensor:
        """The mean loss of predicting each item from those before it: L + 1 columns make L inputs and targets."""
        wide = int((sequence_BL != PADDING).sum(1).max())
        target_BL = sequence_BL[:, 1:wide]
        input_BL = sequence_BL[:, : wide - 1].masked_fill(target_BL == PADDING, PADDING)
        input_T, target_T = input_BL[input_BL != PADDING], target_BL[target_BL != PADDING]
        if self.loss == "softmax":
            items_ID = self.encode_items(torch.arange(self.schema.num_items, device=self.device))
            x_TD = self.encode(input_BL, generator, F.embedding(input_T, items_ID))
            return losses.full_softmax(x_TD @ items_ID[NUM_RESERVED:].T, target_T - NUM_RESERVED).mean()
        x_TD = self.encode(input_BL, generator)
        positive_T = torch.linalg.vecdot(x_TD, self.encode_items(target_T))
        if self.loss == "bce":
            drawn_TN = draws.draw_by(self.cdf_I, (len(target_T), self.num_negatives), generator)
            drawn_TND = self.encode_items(drawn_TN.flatten()).view(*drawn_TN.shape, -1)
            negative_TN = torch.linalg.vecdot(x_TD[:, None], drawn_TND)
            return gbce(positive_T, negative_TN, 1.0, target_T[:, None] == drawn_TN).mean()
        negative_N = draws.draw_by(self.cdf_I, (self.num_negatives,), generator)
        hit_TN = target_T[:, None] == negative_N
        negative_TN = x_TD @ self.encode_items(negative_N).T
        if self.loss == "gbce":
            return gbce(positive_T + self.offset, negative_TN + self.offset, self.beta, hit_TN).mean()
        return losses.sampled_softmax(positive_T, negative_TN, self.log_q_I[negative_N], hit_TN).mean()


def gbce_beta(t: float, num_negatives: int, num_items: int) -> float:
    """The exponent of the positive's probability; num_items: real ones. 1 at t=0, the sampling rate at t=1."""
    alpha = min(num_negatives / max(num_items - 1, 1), 1.0)
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)


def gbce(positive_T: Tensor, negative_TN: Tensor, beta: float, hit_TN: Tensor) -> Tensor:
    """-log sigmoid(positive)**beta - sum of log(1 - sigmoid(negative)); draws that hit the positive add nothing.

    Summed as `losses.bce` is; the paper's mean is N + 1 times less, and what rare items get would come near Adam's eps.
    """
    return beta * F.softplus(-positive_T) + F.softplus(negative_TN).masked_fill(hit_TN, 0).sum(1)
