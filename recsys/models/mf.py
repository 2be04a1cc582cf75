"""Matrix factorisation trained by gradient, with softmax, pairwise and pointwise losses.

Shapes in names: U users, I items, B positives of a step, N negatives, M item rows of a step, S optimiser
steps of a chunk, D embedding dim, W width of a table row (D, and two columns more with biases).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.models import losses
from recsys.models import negatives as draws
from recsys.models.base import Retriever
from recsys.models.layers import directions
from recsys.models.optimizers import RowAdagrad
from recsys.schema import NUM_RESERVED, Interactions, Schema, UserBatch


class MatrixFactorization(Retriever):
    """score(u, i) = cos(x_u, y_i) / temperature, or <x_u, y_i> without `normalize`, plus biases if asked.

    loss: softmax (Wu et al. 2022, arXiv 2201.02327, argue for it; here with the logQ correction, so that
        it estimates the softmax over the whole catalogue), bpr (Rendle et al. 2009), bce (He et al. 2017).
    negatives: uniform; popularity (count ** popularity_power); in_batch (the items of the batch);
        all (the whole catalogue: the exact softmax, for small ones). Drawn on the device from (seed, step).
    num_negatives: with softmax the draws of a step, shared by its batch (in_batch and all need none);
        with bpr and bce the draws a positive. None: 1024 with softmax, 1 otherwise.
    weight_decay, prior_count: L2 on the user and the item of each positive. A row with n positives pays
        weight_decay * (n + prior_count) / 2 * |row|**2 an epoch: scaled by frequency (Rendle et al. 2021),
        and rows that are seldom seen stay close to zero, where the biases speak. Biases pay nothing.
        weight_decay=None: 0.12 with softmax, 0.05 otherwise.
    lr: falls linearly to 0 over max_epochs.

    Raises:
        ValueError: an argument out of range, or a combination that means nothing.
    """

    batches = "PairBatches"

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 64,
        loss: Literal["softmax", "bpr", "bce"] = "softmax",
        negatives: Literal["uniform", "popularity", "in_batch", "all"] = "popularity",
        num_negatives: int | None = None,
        popularity_power: float = 0.5,
        normalize: bool = False,
        temperature: float = 0.1,
        biases: bool = True,
        optimizer: Literal["adagrad", "adam", "sgd"] = "adagrad",
        lr: float = 0.6,
        weight_decay: float | None = None,
        prior_count: float = 20.0,
        init_std: float = 0.3,
        batch_size: int = 1024,
        max_epochs: int = 30,
    ) -> None:
        super().__init__(schema)
        if negatives == "all" and loss != "softmax":
            raise ValueError(f"negatives=all is the exact softmax; with loss={loss} take uniform or popularity")
        if loss == "softmax" and negatives in ("in_batch", "all") and num_negatives is not None:
            raise ValueError(f"negatives={negatives} takes no num_negatives with loss=softmax, got {num_negatives}")
        if num_negatives is None:
            num_negatives = 1024 if loss == "softmax" else 1
        if weight_decay is None:
            weight_decay = 0.12 if loss == "softmax" else 0.05
        counts = {"embedding_dim": embedding_dim, "num_negatives": num_negatives}
        for name, count in (counts | {"batch_size": batch_size, "max_epochs": max_epochs}).items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        for name, value in {"temperature": temperature, "lr": lr, "init_std": init_std}.items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name, value in {
            "weight_decay": weight_decay,
            "prior_count": prior_count,
            "popularity_power": popularity_power,
        }.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be below 0, got {value}")
        self.embedding_dim, self.biases = embedding_dim, biases
        self.loss, self.negatives, self.num_negatives = loss, negatives, num_negatives
        self.popularity_power, self.prior_count = popularity_power, prior_count
        self.normalize, self.temperature = normalize, temperature
        self.optimizer, self.lr, self.weight_decay = optimizer, lr, weight_decay
        self.batch_size, self.max_epochs = batch_size, max_epochs
        self.pairwise_steps: Any = None
        self.compilable = ("_softmax",) if loss == "softmax" else ()
        width = embedding_dim + 2 * biases
        # Scaled in place: a table may take most of the memory.
        self.user_table = torch.nn.Parameter(torch.randn(schema.num_users, width).mul_(init_std))
        self.item_table = torch.nn.Parameter(torch.randn(schema.num_items, width).mul_(init_std))
        # With biases a user's row is [vector, own bias, 1] and an item's is [vector, 1, own bias]: their inner
        # product is the score, and the ones get no gradient.
        self.user_one, self.item_one = embedding_dim + 1, embedding_dim
        with torch.no_grad():
            for table, one in ((self.user_table, self.user_one), (self.item_table, self.item_one)):
                table[:NUM_RESERVED] = 0
                table[:, embedding_dim:] = 0
                table[:, one : one + biases] = 1

    # Scores

    def encode_users(self, batch: UserBatch) -> Tensor:
        """[B, D], or [B, D + 2] with biases: the user's own bias, and a one that meets the item's."""
        return self._vectors(self.user_table[batch["user_idx"]])

    def encode_items(self, item_idx: Tensor) -> Tensor:
        """[N, D], or [N, D + 2] with biases."""
        return self._vectors(self.item_table[item_idx])

    def _vectors(self, row_NW: Tensor) -> Tensor:
        """What the inner product is taken of: the rows, with `normalize` at length 1 / sqrt(temperature)."""
        return directions(row_NW, self.embedding_dim, self.temperature) if self.normalize else row_NW

    # Training

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        tables = [self.user_table, self.item_table]
        if self.optimizer == "adagrad":
            return [RowAdagrad(tables, lr=self.lr)]
        if self.optimizer == "adam":
            return [torch.optim.SparseAdam(tables, lr=self.lr)]
        return [torch.optim.SGD(tables, lr=self.lr)]

    def observe(self, interactions: Interactions) -> None:
        super().observe(interactions)
        self.prepare()

    def on_train_start(self) -> None:
        self.prepare()

    def prepare(self) -> None:
        """Derive the length of training and the distribution of negatives from the observed counts."""
        self.total_steps = self.max_epochs * -(-int(self.user_counts.sum()) // self.batch_size)
        # A row of n positives pays weight_decay * (n + prior_count) an epoch, in n instalments.
        self.user_decay_U, self.item_decay_I = (
            self.weight_decay * (1 + self.prior_count / counts.clamp(min=1).float())
            for counts in (self.user_counts, self.item_counts)
        )
        if self.negatives in ("uniform", "all"):
            self.log_q_I = draws.uniform_log_q(self.schema.num_items, self.device)
        else:
            power = self.popularity_power if self.negatives == "popularity" else 1.0
            self.log_q_I = draws.popularity_log_q(self.item_counts, power)
        self.cdf_I = draws.cumulative(self.log_q_I)

    def lr_at(self, step: int) -> float:
        """The learning rate of a global optimiser step."""
        return self.lr * max(1 - step / self.total_steps, 0.0)

    def train_steps(self, chunk: dict[str, Any], optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
        optimizer: Any
        (optimizer,) = optimizers
        loss = torch.zeros((), device=chunk["user_idx"].device)
        kernel = self._kernel()
        if kernel is not None:
            tables, decays = (self.user_table, self.item_table), (self.user_decay_U, self.item_decay_I)
            squares, eps = tuple(map(optimizer.square, tables)), optimizer.param_groups[0]["eps"]
        for s, (user_B, item_B) in enumerate(zip(chunk["user_idx"], chunk["item_idx"], strict=True)):
            step = chunk["step"] + s
            item_M = self._with_negatives(item_B, chunk["seed"], step)
            for group in optimizer.param_groups:
                group["lr"] = self.lr_at(step)
            if kernel is not None:
                loss += kernel(tables, squares, decays, user_B, item_M, lr=self.lr_at(step), eps=eps)
            else:
                loss += self.compute_gradients(user_B, item_M)
                optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss / len(chunk["user_idx"])

    def _kernel(self) -> Any:
        """The compiled step of `pairwise`, or None where there is none for these settings."""
        if self.loss == "softmax" or self.normalize or self.optimizer != "adagrad":
            return None
        if self.device.type != "cpu" or self.user_table.dtype != torch.float32:
            return None
        if self.pairwise_steps is None:
            from recsys.models.pairwise import PairwiseSteps  # its compiler takes half a second to import

            self.pairwise_steps = PairwiseSteps(self.loss, self.num_negatives, self.embedding_dim)
        return self.pairwise_steps

    def _with_negatives(self, item_B: Tensor, seed: int, step: int) -> Tensor:
        """item_M: the positives, then the negatives of this step."""
        return torch.cat([item_B, self._draw(item_B, draws.generator_at(seed, step, item_B.device))])

    def compute_gradients(self, user_B: Tensor, item_M: Tensor) -> Tensor:
        """Leave sparse gradients of the summed loss in both tables; returns the mean loss."""
        B, D = len(user_B), self.embedding_dim
        user_BW = F.embedding(user_B, self.user_table.detach()).requires_grad_()
        item_MW = F.embedding(item_M, self.item_table.detach()).requires_grad_()
        x_BW, y_MW = self._vectors(user_BW), self._vectors(item_MW)
        if self.loss == "softmax":
            loss_B = self._softmax(x_BW, y_MW, *item_M.tensor_split([B]))
        else:
            positive_B = torch.linalg.vecdot(x_BW, y_MW[:B])
            negative_BN = torch.linalg.vecdot(x_BW[:, None], y_MW[B:].view(B, self.num_negatives, -1))
            loss_B = (losses.bpr if self.loss == "bpr" else losses.bce)(positive_B, negative_BN)
        gradients = torch.autograd.grad(loss_B.sum(), [user_BW, item_MW])
        touched = (
            (self.user_table, self.user_decay_U, user_B, user_BW, self.user_one),
            (self.item_table, self.item_decay_I, item_M, item_MW, self.item_one),
        )
        for (table, decay, row, values, one), gradient in zip(touched, gradients, strict=True):
            if self.biases:
                gradient[:, one] = 0
            # Of the positives alone, so that what a row pays does not depend on the batch or the draws.
            gradient[:B, :D].addcmul_(decay[row[:B], None], values.detach()[:B, :D])
            table.grad = torch.sparse_coo_tensor(row[None], gradient, table.shape, check_invariants=False)
        return loss_B.detach().mean()

    def _draw(self, item_B: Tensor, generator: torch.Generator) -> Tensor:
        """Negatives of a step: N of them shared (softmax), or N for each positive in turn, flat."""
        size = (self.num_negatives if self.loss == "softmax" else self.num_negatives * len(item_B),)
        if self.negatives == "all":
            return torch.arange(NUM_RESERVED, self.schema.num_items, device=item_B.device)
        if self.negatives == "in_batch":
            return item_B[:0] if self.loss == "softmax" else draws.draw_in_batch(item_B, size, generator)
        if self.negatives == "uniform":
            return draws.draw_uniform(size, self.schema.num_items, generator)
        return draws.draw_by(self.cdf_I, size, generator)

    def _softmax(self, x_BW: Tensor, y_MW: Tensor, item_B: Tensor, negative_N: Tensor) -> Tensor:
        """loss_B. y_MW: the positives' vectors, then those of the negatives."""
        y_BW, negative_NW = y_MW.tensor_split([len(item_B)])
        if self.negatives == "in_batch":
            return losses.in_batch_softmax(x_BW @ y_BW.T, item_B, self.log_q_I[item_B])
        if self.negatives == "all":
            return losses.full_softmax(x_BW @ negative_NW.T, item_B - NUM_RESERVED)
        hit_BN = item_B[:, None] == negative_N
        log_q_N = self.log_q_I[negative_N]
        return losses.sampled_softmax((x_BW * y_BW).sum(1), x_BW @ negative_NW.T, log_q_N, hit_BN)
