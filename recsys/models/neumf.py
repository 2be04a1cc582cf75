"""NeuMF: matrix factorisation beside a multi-layer perceptron, each with embeddings of its own.

He, Liao, Zhang, Nie, Hu & Chua, "Neural Collaborative Filtering" (WWW 2017, arXiv 1708.05031).
Shapes in names: U users, I items, B positives of a step or users to score, N negatives or items of a block, F factors,
H width of the first hidden layer, W width of a table row (F, and half of layers[0]).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.models import losses
from recsys.models import negatives as draws
from recsys.models.base import Retriever
from recsys.schema import NUM_RESERVED, Interactions, Schema, UserBatch

_HIDDEN = 2**22  # numbers of a hidden layer made at a time while scoring


class NeuMF(Retriever):
    """score(u, i) = <h, [x_u * y_i ; MLP([p_u ; q_i])]> + b, the logit of equation 12, without pre-training.

    The first hidden layer sees a user and an item: its product with either is made once, so that it costs a pair no
    more than a sum. Optimised by Adam over all rows of the tables at every step.

    factors: of x and y; those of the perceptron are the last of `layers`.
    layers: widths of the perceptron: of [p ; q], then of each hidden layer, which a ReLU follows.
    num_negatives: draws a positive, uniform over the items that are no positive of the user (see
        `negatives.Unobserved`).
    lr: of Adam, constant.
    batch_size: positives of a step. With their negatives they make 1 + num_negatives times as many of the paper's
        instances, over all of which the binary cross-entropy is averaged.

    Raises:
        ValueError: an argument out of range.
    """

    batches = "PairBatches"
    compilable = ("compute_loss",)

    def __init__(
        self,
        schema: Schema,
        *,
        factors: int = 8,
        layers: Sequence[int] = (64, 32, 16, 8),
        num_negatives: int = 4,
        lr: float = 0.002,
        init_std: float = 0.01,
        batch_size: int = 256,
        max_epochs: int = 15,
    ) -> None:
        super().__init__(schema)
        counts = {"factors": factors, "num_negatives": num_negatives}
        for name, count in (counts | {"batch_size": batch_size, "max_epochs": max_epochs}).items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if len(layers) < 2 or min(layers) < 1 or layers[0] % 2:
            raise ValueError(f"layers must be two or more widths, the first an even one, got {list(layers)}")
        for name, value in {"lr": lr, "init_std": init_std}.items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.factors, self.num_negatives = factors, num_negatives
        self.lr, self.batch_size, self.max_epochs = lr, batch_size, max_epochs
        half = layers[0] // 2
        self.user_table = nn.Parameter(torch.randn(schema.num_users, factors + half).mul_(init_std))
        self.item_table = nn.Parameter(torch.randn(schema.num_items, factors + half).mul_(init_std))
        self.user_hidden = nn.Linear(half, layers[1])
        self.item_hidden = nn.Linear(half, layers[1], bias=False)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(layers[1:]))
        self.prediction = nn.Linear(factors + layers[-1], 1)
        self._unobserved: draws.Unobserved | None = None
        self._start(layers[0] + layers[1])

    @torch.no_grad()
    def _start(self, first: int) -> None:
        """Glorot's uniform start for the hidden layers and LeCun's for the last one, as in the authors' code.

        first: inputs and outputs of the first hidden layer, which has two parts here.
        """
        for table in (self.user_table, self.item_table):
            table[:NUM_RESERVED] = 0
        for part in (self.user_hidden, self.item_hidden):
            nn.init.uniform_(part.weight, -((6 / first) ** 0.5), (6 / first) ** 0.5)
        for parameter in self.hidden.parameters():
            (nn.init.xavier_uniform_ if parameter.dim() == 2 else nn.init.zeros_)(parameter)
        limit = (3 / self.prediction.in_features) ** 0.5
        nn.init.uniform_(self.prediction.weight, -limit, limit)
        nn.init.zeros_(self.user_hidden.bias)
        nn.init.zeros_(self.prediction.bias)

    # Scores

    def forward(self, user_idx: Tensor, item_idx: Tensor) -> Tensor:
        """Logits of pairs, of the shape that the two broadcast to."""
        x, user = self._user_parts(user_idx)
        y, item = self._item_parts(item_idx)
        return (x * y).sum(-1) + self._perceptron(user + item)

    def _user_parts(self, user_idx: Tensor) -> tuple[Tensor, Tensor]:
        """Of users x weighed by h [..., F] and what they bring to the first hidden layer [..., H]."""
        # F.embedding and not table[idx]: its gradient is the same bits every time, also on a GPU.
        x, p = F.embedding(user_idx, self.user_table).tensor_split([self.factors], dim=-1)
        return x * self.prediction.weight[0, : self.factors], self.user_hidden(p)

    def _item_parts(self, item_idx: Tensor) -> tuple[Tensor, Tensor]:
        """Of items y [..., F] and what they bring to the first hidden layer [..., H]."""
        y, q = F.embedding(item_idx, self.item_table).tensor_split([self.factors], dim=-1)
        return y, self.item_hidden(q)

    def _perceptron(self, hidden: Tensor) -> Tensor:
        """The perceptron's part of the logit and the bias, from the first hidden layer before its ReLU [..., H]."""
        hidden = hidden.relu()
        for layer in self.hidden:
            hidden = layer(hidden).relu()
        return hidden @ self.prediction.weight[0, self.factors :] + self.prediction.bias

    @torch.no_grad()
    def scorer(self) -> Callable[[UserBatch], Tensor]:
        """Logits of all items, the items' parts computed once; block by block, so that memory stays bounded."""
        y_IF, item_IH = self._item_parts(torch.arange(self.schema.num_items, device=self.device))

        @torch.no_grad()
        def logits(batch: UserBatch) -> Tensor:
            x_BF, user_BH = self._user_parts(batch["user_idx"])
            scores_BI = x_BF @ y_IF.T
            block = max(1, _HIDDEN // max(1, user_BH.numel()))
            for item_NH, scores_BN in zip(item_IH.split(block), scores_BI.split(block, dim=1), strict=True):
                scores_BN += self._perceptron(user_BH[:, None] + item_NH)
            return scores_BI

        return logits

    # Training

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(self.parameters(), self.lr, fused=True)]

    def observe(self, interactions: Interactions) -> None:
        """Keep the training set as well: negatives are drawn from what is not in it."""
        super().observe(interactions)
        self.interactions, self._unobserved = interactions, None

    @property
    def unobserved(self) -> draws.Unobserved:
        """What negatives are drawn from, on the device of the model."""
        if self._unobserved is None or self._unobserved.pair_Z.device != self.device:
            self._unobserved = draws.Unobserved(self.interactions.to(self.device))
        return self._unobserved

    def train_steps(self, chunk: dict[str, Any], optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
        (optimizer,) = optimizers
        total = torch.zeros((), device=self.device)
        for s, (user_B, item_B) in enumerate(zip(chunk["user_idx"], chunk["item_idx"], strict=True)):
            generator = draws.generator_at(chunk["seed"], chunk["step"] + s, self.device)
            loss = self.compute_loss(user_B, item_B, self.unobserved.draw(user_B, self.num_negatives, generator))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
        return total / len(chunk["user_idx"])

    def compute_loss(self, user_B: Tensor, item_B: Tensor, negative_BN: Tensor) -> Tensor:
        """Binary cross-entropy, the mean over positives and negatives alike."""
        logits = self(user_B[:, None], torch.cat([item_B[:, None], negative_BN], 1))
        return losses.bce(logits[:, 0], logits[:, 1:]).sum() / logits.numel()
