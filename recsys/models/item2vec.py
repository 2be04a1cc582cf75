"""item2vec: skip-gram with negative sampling over the sequences of items that users liked.

Barkan & Koenigstein, "Item2Vec: Neural Item Embedding for Collaborative Filtering" (arXiv 1603.04259, 2016), the
skip-gram of Mikolov et al. (NIPS 2013) on items; sessions as in Grbovic & Cheng, "Real-time Personalization using
Embeddings for Search Ranking at Airbnb" (KDD 2018).
Shapes in names: I items, Z training pairs, B centres of a step, C contexts of a centre, N negatives of a step,
M rows of the context table of a step, D embedding dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.models import negatives as draws
from recsys.models.als import csr, per_pair, with_values
from recsys.models.base import Retriever
from recsys.models.optimizers import RowAdagrad
from recsys.schema import NUM_RESERVED, Interactions, Schema, UserBatch

MICROSECONDS = 60_000_000  # of a minute
# What an item's log count meets in every user's vector: large, so that it takes little room in the item's, whose
# cosines are what similar items are found by.
LEVER = 64.0


@dataclass(frozen=True, eq=False)
class Sessions:
    """Where each training pair stands: pairs lie user by user, in chronological order, so a session is a range.

    Contexts are looked up when their centre is: a table of all (centre, context) pairs would be 2 * window logs long.
    """

    item_Z: Tensor
    start_Z: Tensor  # place of the first pair of the session of each pair
    length_Z: Tensor  # pairs in that session
    pair_Z: Tensor  # user_idx * num_items + item_idx, ascending
    place_Z: Tensor  # the place of each of those
    num_items: int

    @classmethod
    def of(cls, interactions: Interactions, minutes: float | None = None) -> Sessions:
        """The users' sequences, cut where more than so many minutes pass between two pairs.

        Raises:
            ValueError: minutes are given and there are no timestamps.
        """
        row_Z = interactions.row_idx()
        first_Z = torch.ones_like(row_Z, dtype=torch.bool)
        first_Z[1:] = row_Z[1:] != row_Z[:-1]
        if minutes is not None:
            if interactions.timestamp is None:
                raise ValueError(f"session_minutes={minutes} needs timestamps, which this log does not have")
            first_Z[1:] |= interactions.timestamp.diff() > minutes * MICROSECONDS
        start_S = first_Z.nonzero()[:, 0]
        length_S = torch.diff(start_S, append=start_S.new_tensor([len(row_Z)]))
        session_Z = first_Z.cumsum(0) - 1
        pair_Z, place_Z = torch.sort(row_Z * interactions.num_items + interactions.item_idx)
        return cls(
            interactions.item_idx, start_S[session_Z], length_S[session_Z], pair_Z, place_Z, interactions.num_items
        )

    def places(self, user_B: Tensor, item_B: Tensor) -> Tensor:
        """The place of each training pair, int64 [B]."""
        return self.place_Z[torch.searchsorted(self.pair_Z, user_B * self.num_items + item_B)]

    def window(self, place_B: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """The up to `window` items before and after each place in its session: (item_BC, there_BC)."""
        offset_C = torch.arange(-window, window + 1, device=place_B.device)
        place_BC = place_B[:, None] + offset_C[offset_C != 0]
        start_B1, length_B1 = self.start_Z[place_B, None], self.length_Z[place_B, None]
        there_BC = (place_BC >= start_B1) & (place_BC < start_B1 + length_B1)
        return self.item_Z[torch.where(there_BC, place_BC, place_B[:, None])], there_BC

    def draw(self, place_B: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """So many items of each place's session, uniformly from the others: (item_BC, there_BC)."""
        start_B1, length_B1 = self.start_Z[place_B, None], self.length_Z[place_B, None]
        u_BC = torch.rand(len(place_B), count, generator=generator, device=place_B.device, dtype=torch.float64)
        place_BC = start_B1 + (u_BC * (length_B1 - 1)).long()
        place_BC += place_BC >= place_B[:, None]  # past the place itself
        there_BC = (length_B1 > 1).expand_as(place_BC)
        return self.item_Z[torch.where(there_BC, place_BC, place_B[:, None])], there_BC


class Item2Vec(Retriever):
    """score(u, i) = the mean over the last items j of u's history of how much i is like j.

    Every training pair is a centre once an epoch, and its own context too: else negatives alone would teach it that
    it is unlike itself, which tells where histories are not masked. A centre j with a context i costs
        -log sigmoid(l(j, i)) - num_negatives * E[log sigmoid(-l(j, n))],  l(j, i) = <x_j, c_i> - log(num_negatives),
    n drawn by q ~ count ** popularity_power. The best <x_j, c_i> is then log(P(i | j) / q(i)): the constant in l, which
    word2vec does not have, lets vectors start from independence and not from num_negatives times as much, which rare
    items would keep. The expectation is estimated by the mean over num_draws negatives that the batch shares: one
    product of matrices, and a smaller variance than num_negatives draws of each pair's own.

    contexts: window: the items up to `window` places before and after (skip-gram). session: 2 * window draws from
        the other items of the session (item2vec, which takes histories as sets). None: window where the log has
        timestamps, session elsewhere, as there the order means nothing.
    session_minutes: a longer pause between two pairs of a user begins a new session. None: a user is one session.
    score: context: log P(i | j) but for a constant, <x_j, c_i> + popularity_power * log(count of i). inner: <x_j, x_i>.
        cosine: of x_i and x_j, as in the paper: alike, but blind to popularity, and far behind in ranking.
    length: how many items of the history speak, from the last on; None: all. The one p places before the
        last weighs recency ** p; 1: a plain mean. Items without a positive in train do not count.
    lr: falls linearly to 0 over max_epochs.

    Raises:
        ValueError: an argument out of range.
    """

    batches = "PairBatches"
    scores_from_history = True

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 64,
        contexts: Literal["window", "session"] | None = None,
        window: int = 5,
        session_minutes: float | None = None,
        num_negatives: int = 5,
        num_draws: int = 512,
        popularity_power: float = 0.75,
        score: Literal["context", "cosine", "inner"] = "context",
        length: int | None = None,
        recency: float = 1.0,
        lr: float = 0.05,
        batch_size: int = 1024,
        max_epochs: int = 10,
    ) -> None:
        super().__init__(schema)
        counts = {"embedding_dim": embedding_dim, "window": window, "num_negatives": num_negatives}
        counts |= {"num_draws": num_draws, "batch_size": batch_size, "max_epochs": max_epochs}
        for name, count in (counts if length is None else counts | {"length": length}).items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if session_minutes is not None and not session_minutes > 0:
            raise ValueError(f"session_minutes must be above 0, got {session_minutes}")
        if not popularity_power >= 0:
            raise ValueError(f"popularity_power must not be below 0, got {popularity_power}")
        if not 0 < recency <= 1:
            raise ValueError(f"recency must be above 0 and at most 1, got {recency}")
        if not lr > 0:
            raise ValueError(f"lr must be above 0, got {lr}")
        self.contexts, self.window, self.session_minutes = contexts, window, session_minutes
        self.num_negatives, self.num_draws, self.popularity_power = num_negatives, num_draws, popularity_power
        self.similarity, self.length, self.recency = score, length, recency
        self.lr, self.batch_size, self.max_epochs = lr, batch_size, max_epochs
        # As in word2vec: x small, c zero.
        self.item_table = torch.nn.Parameter((torch.rand(schema.num_items, embedding_dim) - 0.5) / embedding_dim)
        self.context_table = torch.nn.Parameter(torch.zeros(schema.num_items, embedding_dim))
        with torch.no_grad():
            self.item_table[:NUM_RESERVED] = 0

    # Scores

    def encode_users(self, batch: UserBatch) -> Tensor:
        """The weighted mean of the history's items, float [B, D]; zero where none of them was in train. With
        score=context [B, D + 1]: a constant meets the item's log count."""
        history: Interactions = batch["history"]
        known_Z = self.item_counts.index_select(0, history.item_idx) > 0
        matrix_BI = csr(history)
        last_Z = per_pair(matrix_BI, history.indptr[1:] - 1)
        age_Z = last_Z - torch.arange(len(history), device=history.device)
        weight_Z = known_Z * self.recency ** age_Z.to(self.item_table.dtype)
        if self.length is not None:
            weight_Z = weight_Z * (age_Z < self.length)
        matrix_BI = with_values(matrix_BI, weight_Z)
        total_B1 = matrix_BI @ torch.ones_like(self.item_table[:, :1])
        vectors_ID = self._unit(self.item_table) if self.similarity == "cosine" else self.item_table
        mean_BD = (matrix_BI @ vectors_ID.detach()) / torch.where(total_B1 > 0, total_B1, 1)
        return F.pad(mean_BD, (0, 1), value=LEVER) if self.similarity == "context" else mean_BD

    def encode_items(self, item_idx: Tensor) -> Tensor:
        """What a history's mean meets, float [N, D], or [N, D + 1] with score=context; zero for items without a
        positive in train."""
        count_N = self.item_counts[item_idx]
        table = self.context_table if self.similarity == "context" else self.item_table
        vectors_ND = table[item_idx] * (count_N > 0)[:, None]
        if self.similarity == "context":
            log_q_N = self.popularity_power * count_N.clamp(min=1).to(table.dtype).log()
            return torch.cat([vectors_ND, log_q_N[:, None] / LEVER], 1)
        return self._unit(vectors_ND) if self.similarity == "cosine" else vectors_ND

    @staticmethod
    def _unit(vectors_ND: Tensor) -> Tensor:
        return F.normalize(vectors_ND, dim=1)

    # Training

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [RowAdagrad([self.item_table, self.context_table], lr=self.lr)]

    def observe(self, interactions: Interactions) -> None:
        """Find the sessions as well; they are moved to the model's device when training starts."""
        super().observe(interactions)
        self.interactions = interactions
        self.prepare()

    def on_train_start(self) -> None:
        self.prepare()

    def prepare(self) -> None:
        """Derive sessions, length of training and the distribution of negatives, on the device of the model."""
        interactions = self.interactions.to(self.item_table.device)
        self.ordered = self.contexts == "window" or (self.contexts is None and interactions.timestamp is not None)
        self.sessions = Sessions.of(interactions, self.session_minutes)
        self.total_steps = self.max_epochs * -(-len(interactions) // self.batch_size)
        self.cdf_I = draws.cumulative(draws.popularity_log_q(self.item_counts, self.popularity_power))

    def lr_at(self, step: int) -> float:
        """The learning rate of a global optimiser step."""
        return self.lr * max(1 - step / self.total_steps, 0.0)

    def train_steps(self, chunk: dict[str, Any], optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
        (optimizer,) = optimizers
        loss = torch.zeros((), device=chunk["user_idx"].device)
        for s, (user_B, item_B) in enumerate(zip(chunk["user_idx"], chunk["item_idx"], strict=True)):
            step = chunk["step"] + s
            generator = draws.generator_at(chunk["seed"], step, user_B.device)
            place_B = self.sessions.places(user_B, item_B)
            if self.ordered:
                context_BC, there_BC = self.sessions.window(place_B, self.window)
            else:
                context_BC, there_BC = self.sessions.draw(place_B, 2 * self.window, generator)
            context_BC, there_BC = torch.cat([context_BC, item_B[:, None]], 1), F.pad(there_BC, (0, 1), value=True)
            negative_N = draws.draw_by(self.cdf_I, (self.num_draws,), generator)
            for group in optimizer.param_groups:
                group["lr"] = self.lr_at(step)
            loss += self.compute_gradients(item_B, context_BC, there_BC, negative_N)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss / len(chunk["user_idx"])

    def compute_gradients(self, item_B: Tensor, context_BC: Tensor, there_BC: Tensor, negative_N: Tensor) -> Tensor:
        """Leave sparse gradients of the summed loss in both tables; returns the mean loss of a context.

        there_BC: bool, which contexts there are; the others cost nothing.
        """
        item_M = torch.cat([context_BC.flatten(), negative_N])
        x_BD = F.embedding(item_B, self.item_table.detach()).requires_grad_()
        c_MD = F.embedding(item_M, self.context_table.detach()).requires_grad_()
        found_MD, negative_ND = c_MD.split([context_BC.numel(), len(negative_N)])
        positive_BC = torch.linalg.vecdot(x_BD[:, None], found_MD.view(*context_BC.shape, -1))
        offset = math.log(self.num_negatives)
        found_B = (F.softplus(offset - positive_BC) * there_BC).sum(1)
        drawn_B = F.softplus(x_BD @ negative_ND.T - offset).mean(1)
        num_contexts_B = there_BC.sum(1)
        total = (found_B + self.num_negatives * num_contexts_B * drawn_B).sum()
        gradients = torch.autograd.grad(total, [x_BD, c_MD])
        for table, row, gradient in zip(
            (self.item_table, self.context_table), (item_B, item_M), gradients, strict=True
        ):
            table.grad = torch.sparse_coo_tensor(row[None], gradient, table.shape, check_invariants=False)
        return total.detach() / num_contexts_B.sum().clamp(min=1)
