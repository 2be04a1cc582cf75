"""LightGCN: embeddings smoothed over the graph of users and items, and nothing else.

He, Deng, Wang, Li, Zhang & Wang, "LightGCN: Simplifying and Powering Graph Convolution Network for
Recommendation" (SIGIR 2020, arXiv 2002.02126).
Shapes in names: U users, I items, Z training pairs, B positives of a step, N negatives, M item rows of a step,
D embedding dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.models import losses
from recsys.models import negatives as draws
from recsys.models.als import csr, per_pair, with_values
from recsys.models.base import Retriever
from recsys.schema import NUM_RESERVED, Interactions, Schema, UserBatch


@dataclass(frozen=True, eq=False)
class Graph:
    """The symmetrically normalised bipartite graph, both directions as sparse CSR.

    Edge (u, i) weighs 1 / sqrt(positives of u * positives of i); who has none has no edge.
    """

    users_UI: Tensor
    items_IU: Tensor
    pairs: draws.Unobserved

    @classmethod
    def of(cls, interactions: Interactions) -> Graph:
        """Of a training set whose rows are user_idx, on its device."""
        scale_U, scale_I = (
            counts.clamp(min=1).float().rsqrt() for counts in (interactions.row_counts(), interactions.item_counts())
        )

        def normalised(pairs: Interactions, rows: Tensor, columns: Tensor) -> Tensor:
            matrix = csr(pairs)
            return with_values(matrix, per_pair(matrix, rows) * columns[pairs.item_idx])

        return cls(
            normalised(interactions, scale_U, scale_I),
            normalised(interactions.transpose(), scale_I, scale_U),
            draws.Unobserved(interactions),
        )

    def propagate(self, users_UD: Tensor, items_ID: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
        """The mean of layers 0..num_layers, layer k + 1 being the graph times layer k. Carries no gradient."""
        # By Horner's rule, E + A (E + A (E + ...)), which keeps one layer at a time and not all of them.
        x_UD, y_ID = users_UD, items_ID
        with torch.autocast(users_UD.device.type, enabled=False):  # no sparse product has bfloat16 everywhere
            for _ in range(num_layers):
                x_UD, y_ID = torch.addmm(users_UD, self.users_UI, y_ID), torch.addmm(items_ID, self.items_IU, x_UD)
        return x_UD / (num_layers + 1), y_ID / (num_layers + 1)


class _Propagation(torch.autograd.Function):
    """`Graph.propagate` with its gradient: the map is linear and symmetric, so it is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, graph: Graph, num_layers: int, users_UD: Tensor, items_ID: Tensor) -> tuple[Tensor, Tensor]:
        ctx.graph, ctx.num_layers = graph, num_layers
        return graph.propagate(users_UD, items_ID, num_layers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, Tensor]:
        return None, None, *ctx.graph.propagate(*gradients, ctx.num_layers)


class LightGCN(Retriever):
    """score(u, i) = <x_u, y_i>, the tables propagated over the graph of the training set.

    What is learned is layer 0, one row a user and item; x and y are the means of layers 0..num_layers. A step costs
    4 * num_layers sparse products of Z * D multiplications each (half of them the gradient) and one pass of Adam over
    both tables, whatever its batch. So an epoch costs Z**2 / batch_size, and the batch is the first thing to
    raise where that hurts.

    Scoring needs no graph: the propagated tables are buffers, as of the last `eval()`, where they are derived anew
    if the training set was observed. So a model that goes back to training needs `eval()` before it scores.

    loss: bpr, as in the paper: its negatives are uniform over the items that are no positive of the user (see
        `negatives.Unobserved`). softmax: sampled over uniform draws that the batch shares,
        with logQ correction.
    num_negatives: with bpr the draws a positive, with softmax those of a step. None: 1 with bpr, 1024 with softmax.
    weight_decay: weight_decay / 2 * |row|**2, of the layer-0 rows of the batch's users, positives and bpr negatives,
        divided by the batch's positives as in the authors' code.

    Raises:
        ValueError: an argument out of range.
    """

    batches = "PairBatches"
    user_vectors_UD: Tensor
    item_vectors_ID: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 64,
        num_layers: int = 3,
        loss: Literal["bpr", "softmax"] = "bpr",
        num_negatives: int | None = None,
        lr: float = 5e-3,
        weight_decay: float = 1e-3,
        init_std: float = 0.1,
        batch_size: int = 2048,
        max_epochs: int = 100,
    ) -> None:
        super().__init__(schema)
        if num_negatives is None:
            num_negatives = 1 if loss == "bpr" else 1024
        counts = {"embedding_dim": embedding_dim, "num_negatives": num_negatives}
        for name, count in (counts | {"batch_size": batch_size, "max_epochs": max_epochs}).items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        for name, value in {"lr": lr, "init_std": init_std}.items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name, value in {"num_layers": num_layers, "weight_decay": weight_decay}.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be below 0, got {value}")
        self.num_layers, self.loss, self.num_negatives = num_layers, loss, num_negatives
        self.lr, self.weight_decay = lr, weight_decay
        self.batch_size, self.max_epochs = batch_size, max_epochs
        self.interactions: Interactions | None = None
        self._graph: Graph | None = None
        self.user_table = torch.nn.Parameter(torch.randn(schema.num_users, embedding_dim).mul_(init_std))
        self.item_table = torch.nn.Parameter(torch.randn(schema.num_items, embedding_dim).mul_(init_std))
        with torch.no_grad():
            for table in (self.user_table, self.item_table):
                table[:NUM_RESERVED] = 0
        self.register_buffer("user_vectors_UD", torch.zeros_like(self.user_table))
        self.register_buffer("item_vectors_ID", torch.zeros_like(self.item_table))

    # Scores

    def encode_users(self, batch: UserBatch) -> Tensor:
        """Propagated vectors of the users, float [B, D]."""
        return self.user_vectors_UD[batch["user_idx"]]

    def encode_items(self, item_idx: Tensor) -> Tensor:
        """Propagated vectors of the items, float [N, D]."""
        return self.item_vectors_ID[item_idx]

    def train(self, mode: bool = True) -> LightGCN:
        """As of any module; on the way to `eval()` the tables that scores come from are propagated."""
        if not mode and self.interactions is not None:
            with torch.no_grad():
                users_UD, items_ID = self.graph.propagate(self.user_table, self.item_table, self.num_layers)
                self.user_vectors_UD.copy_(users_UD)
                self.item_vectors_ID.copy_(items_ID)
        super().train(mode)
        return self

    # Training

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam([self.user_table, self.item_table], lr=self.lr, fused=True)]

    def observe(self, interactions: Interactions) -> None:
        """Keep the training set as well: its graph is built where the model is when it is first needed."""
        super().observe(interactions)
        self.interactions, self._graph = interactions, None

    @property
    def graph(self) -> Graph:
        """The graph of the training set, on the device of the model.

        Raises:
            ValueError: no training set was observed.
        """
        if self.interactions is None:
            raise ValueError("there is no training set: call observe(interactions) first")
        device = self.user_table.device
        if self._graph is None or self._graph.pairs.pair_Z.device != device:
            self._graph = Graph.of(self.interactions.to(device))
        return self._graph

    def train_steps(self, chunk: dict[str, Any], optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
        (optimizer,) = optimizers
        loss = torch.zeros((), device=chunk["user_idx"].device)
        for s, (user_B, item_B) in enumerate(zip(chunk["user_idx"], chunk["item_idx"], strict=True)):
            negative_N = self.draw(user_B, draws.generator_at(chunk["seed"], chunk["step"] + s, user_B.device))
            mean, penalty = self.compute_losses(user_B, item_B, negative_N)
            (mean + penalty).backward()
            optimizer.step()
            optimizer.zero_grad()
            loss += mean.detach()
        return loss / len(chunk["user_idx"])

    def compute_losses(self, user_B: Tensor, item_B: Tensor, negative_N: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss of the positives and the L2 penalty of their step; both carry gradients.

        negative_N: with bpr the draws for each positive in turn, with softmax those that all share.
        """
        B = len(user_B)
        item_M = torch.cat([item_B, negative_N])
        users_UD, items_ID = _Propagation.apply(self.graph, self.num_layers, self.user_table, self.item_table)
        # F.embedding and not users_UD[user_B]: its gradient is the same bits every time, also on a GPU.
        x_BD, y_MD = F.embedding(user_B, users_UD), F.embedding(item_M, items_ID)
        positive_B = torch.linalg.vecdot(x_BD, y_MD[:B])
        if self.loss == "softmax":
            hit_BN = item_B[:, None] == negative_N
            log_q_I = draws.uniform_log_q(self.schema.num_items, item_B.device)
            loss_B = losses.sampled_softmax(positive_B, x_BD @ y_MD[B:].T, log_q_I[negative_N], hit_BN)
            item_M = item_B
        else:
            negative_BN = torch.linalg.vecdot(x_BD[:, None], y_MD[B:].view(B, self.num_negatives, -1))
            loss_B = losses.bpr(positive_B, negative_BN)
        squares = F.embedding(user_B, self.user_table).square().sum()
        squares = squares + F.embedding(item_M, self.item_table).square().sum()
        return loss_B.mean(), self.weight_decay / (2 * B) * squares

    def draw(self, user_B: Tensor, generator: torch.Generator) -> Tensor:
        """Negatives of a step, flat: N for each positive in turn (bpr), or N that all share (softmax)."""
        if self.loss == "softmax":
            return draws.draw_uniform((self.num_negatives,), self.schema.num_items, generator)
        return self.graph.pairs.draw(user_B, self.num_negatives, generator).flatten()
