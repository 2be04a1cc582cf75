"""Two-tower retrieval: a vector of the user's id, features and history, a vector of the item's id and features.

Covington, Adams & Sargin, "Deep Neural Networks for YouTube Recommendations" (RecSys 2016); Yi et al., "Sampling-Bias-
Corrected Neural Modeling for Large Corpus Item Recommendations" (RecSys 2019); Yang et al., "Mixed Negative Sampling
for Learning Two-tower Neural Networks in Recommendations" (WWW 2020).
Shapes in names: U users, I items, B positives of a step, L columns of a history, N shared negatives, H hard negatives
of a positive, M items of a step, D embedding dim, W = D + 1: an item's vector and its bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.models import losses
from recsys.models import negatives as draws
from recsys.models.attention import Block, drop, last_items
from recsys.models.base import Retriever, RowBatch
from recsys.models.layers import Dense, RowFeatures, directions
from recsys.models.optimizers import RowAdagrad
from recsys.schema import NUM_RESERVED, PADDING, UNKNOWN, Column, Interactions, Schema, UserBatch

# search(x_BD, k) -> item_idx_BK: the k items of highest inner product, in any order, as an index of the items answers.
Search = Callable[[Tensor, int], Tensor]

_WARMUP = 0.05  # of all steps
_DAY = 24 * 60 * 60 * 1_000_000  # microseconds
_AGES = (1, 2, 3, 4, 5, 6, 7, 10, 14, 21, 30, 60, 120, 365)  # days, where a bias ends
_AGE_RATE = 10.0  # their learning rate in lr: a bias has further to go than a matrix's entries, by steps as small
_NOT_YET = -20.0  # what is added to the logit of an item that is yet to come


class TwoTower(Retriever):
    """score(u, i) = <x_u, y_i> + bias_i, or cos(x_u, y_i) / temperature + bias_i with `normalize`.

    y_i = id_i + the sum of its features' vectors, and bias_i alike (Kula, "Metadata Embeddings", 2015: LightFM); an
    item without a positive in train has no id_i, so that a new one is as good as its features. x_u = id_u + features +
    what the history says. `hidden` layers add a non-linear part of either sum to it.

    history: none; mean (the sum of the item vectors over (their number + `history_prior`) ** `history_power`, through
        a matrix); attention (SASRec's blocks over them; the vector behind the last item).
    history_of: what stands in a training pair's history: past (the last items before it) or others (any of the user's
        but its own, earlier or later: for splits that know no time); None: past where train has timestamps.
    age: whether a bias of the item's age is added, as of each pair in training and as of the cut in scores (the example
        age of Covington et al., section 3.3): what is fresh gets shown more, and what came late has had little time to
        gather positives. Needs timestamps of pairs and of items.
    length: items of a history.
    history_dropout: share of its items left out at a step. id_dropout: of the ids, whole; so features and histories
        learn to speak for rows that have no id. dropout: of single numbers of the user's vector.
    negatives: all (the exact softmax over the catalogue); in_batch (the other positives of the batch); mixed (these and
        `num_negatives` uniform ones); uniform.
    log_q: the correction of what is drawn: counts (each item's share of train), streaming (estimated from how many
        steps pass between an item's batches; Yi et al., algorithm 2), none.
    multi_positive: whether all items of a step that the user likes are targets, in equal shares, and not the row's own
        alone.
    num_hard: negatives of each positive, from the `hard_pool` items that score highest for it and that the user does
        not like in train. They are searched with the item vectors of the epoch's beginning, by `build_index`.
    weight_decay, prior_count: L2 on the id rows of each positive, as in `MatrixFactorization`. feature_decay: on its
        features' vectors.
    table_lr: of ids and features' vectors, row-wise Adagrad; lr, dense_decay: of all else, AdamW. Both rates fall
        linearly to 0 over max_epochs, lr after a rise over the first twentieth.

    build_index: makes a `Search` of the vectors of all items [I, D]; exact search unless another is set, as that of an
        approximate index.

    Raises:
        ValueError: an argument out of range, or a combination that means nothing.
    """

    batches = "HistoryBatches"
    takes_features = True
    searched_ID: Tensor
    last_step_I: Tensor
    came_I: Tensor
    now: Tensor
    gap_I: Tensor
    compilable = ("_full_softmax",)

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 64,
        hidden: Sequence[int] = (),
        user_ids: bool = True,
        item_ids: bool = True,
        age: bool = False,
        history: Literal["none", "mean", "attention"] = "mean",
        history_of: Literal["past", "others"] | None = None,
        length: int = 50,
        num_blocks: int = 1,
        num_heads: int = 1,
        history_power: float = 1.0,
        history_prior: float = 10.0,
        history_dropout: float = 0.2,
        id_dropout: float = 0.1,
        dropout: float = 0.0,
        negatives: Literal["all", "in_batch", "mixed", "uniform"] = "all",
        num_negatives: int = 1024,
        log_q: Literal["counts", "streaming", "none"] = "counts",
        streaming_rate: float = 0.05,
        multi_positive: bool = False,
        num_hard: int = 0,
        hard_pool: int = 100,
        normalize: bool = False,
        temperature: float = 0.1,
        table_lr: float = 0.3,
        weight_decay: float = 0.12,
        prior_count: float = 20.0,
        feature_decay: float = 0.5,
        lr: float = 0.003,
        dense_decay: float = 1.0,
        init_std: float = 0.1,
        batch_size: int = 256,
        max_epochs: int = 15,
    ) -> None:
        super().__init__(schema)
        counts = {"embedding_dim": embedding_dim, "num_blocks": num_blocks, "num_heads": num_heads, "length": length}
        counts |= {"num_negatives": num_negatives, "batch_size": batch_size, "max_epochs": max_epochs}
        for name, count in (counts | {"hard_pool": hard_pool}).items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        for name, value in {"temperature": temperature, "table_lr": table_lr, "lr": lr, "init_std": init_std}.items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        decays = {"weight_decay": weight_decay, "prior_count": prior_count, "dense_decay": dense_decay}
        decays |= {"feature_decay": feature_decay, "history_power": history_power, "history_prior": history_prior}
        for name, value in (decays | {"num_hard": num_hard}).items():
            if not value >= 0:
                raise ValueError(f"{name} must not be below 0, got {value}")
        for name, share in {"history_dropout": history_dropout, "id_dropout": id_dropout, "dropout": dropout}.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {share}")
        if not 0 < streaming_rate <= 1:
            raise ValueError(f"streaming_rate must lie in (0, 1], got {streaming_rate}")
        for name, chosen, known in (
            ("history", history, ("none", "mean", "attention")),
            ("history_of", history_of, (None, "past", "others")),
            ("negatives", negatives, ("all", "in_batch", "mixed", "uniform")),
            ("log_q", log_q, ("counts", "streaming", "none")),
        ):
            if chosen not in known:
                raise ValueError(f"{name}={chosen}: expected one of {', '.join(filter(None, known))}")
        if embedding_dim % num_heads:
            raise ValueError(f"embedding_dim={embedding_dim} cannot be divided among num_heads={num_heads}")
        if history == "attention" and history_of == "others":
            raise ValueError("history=attention needs an order of the items: take history_of=past")
        if negatives == "all" and num_hard:
            raise ValueError(f"negatives=all are all there are: num_hard={num_hard} cannot add any")
        if num_hard > hard_pool:
            raise ValueError(f"num_hard={num_hard} negatives cannot come from a hard_pool of {hard_pool}")
        user_columns, item_columns = (
            [c for c in schema.columns if c.role == role] for role in ("user_feature", "item_feature")
        )
        if history == "none" and not user_ids and not user_columns:
            raise ValueError("nothing would be known of a user: set user_ids=true, a history, or give features")
        if not item_ids and not item_columns:
            raise ValueError("nothing would be known of an item: set item_ids=true, or give features")
        self.batch_options = {"length": length, "kind": "past" if history == "attention" else history_of}
        self.history, self.length = history, length
        self.history_power, self.history_prior = history_power, history_prior
        self.scores_from_history = history != "none"
        self.history_dropout, self.id_dropout, self.dropout = history_dropout, id_dropout, dropout
        self.negatives, self.num_negatives, self.log_q = negatives, num_negatives, log_q
        self.streaming_rate, self.multi_positive = streaming_rate, multi_positive
        self.num_hard, self.hard_pool = num_hard, hard_pool
        self.normalize, self.temperature = normalize, temperature
        self.table_lr, self.lr = table_lr, lr
        self.weight_decay, self.prior_count, self.feature_decay = weight_decay, prior_count, feature_decay
        self.dense_decay = dense_decay
        self.batch_size, self.max_epochs = batch_size, max_epochs
        D = self.embedding_dim = embedding_dim
        self.users = Tower(schema.num_users, user_columns, D, hidden, init_std, user_ids)
        self.items = Tower(schema.num_items, item_columns, D + 1, hidden, init_std, item_ids)
        with torch.no_grad():
            for name, table in self.items.named_parameters():
                if name in ("ids", "features.fields.lookups.table"):
                    table[:, D] = 0  # every item begins with the same bias
        if history != "none":
            self.read = nn.Linear(D, D, bias=False)
            nn.init.eye_(self.read.weight)
        if history == "attention":
            self.positions = nn.Parameter(init_std * torch.randn(length, D))
            self.blocks = nn.ModuleList(Block(D, num_heads) for _ in range(num_blocks))
            self.norm = nn.LayerNorm(D)
        if age:
            self.age_bias = nn.Parameter(torch.zeros(len(_AGES) + 2))  # of unknown age, then by age
            self.register_buffer("came_I", torch.full((schema.num_items,), -1, dtype=torch.int64))
            self.register_buffer("now", torch.zeros((), dtype=torch.int64))
        self.age = age
        self.build_index: Callable[[Tensor], Search] = exact_search
        self.search: Search | None = None
        if num_hard:
            self.register_buffer("searched_ID", torch.zeros(schema.num_items, D + 1))
        if log_q == "streaming":
            # The step of an item's last batch, and the mean number of steps between two; -1: not seen yet.
            self.register_buffer("last_step_I", torch.full((schema.num_items,), -1, dtype=torch.int64))
            self.register_buffer("gap_I", torch.ones(schema.num_items))

    # Scores

    def describe(self, users: RowBatch, items: RowBatch) -> None:
        """Keep the features of all users and items, tensors by column [U, ...] and [I, ...]. Called before training."""
        self.users.features.describe(users)
        self.items.features.describe(items)

    def date(self, came_I: Tensor, now: int) -> None:
        """Keep when items came and as of when they are scored, in microseconds; -1: not known."""
        if self.age:
            self.came_I.copy_(came_I)
            self.now.fill_(now)

    def personal(self, batch: UserBatch) -> Tensor:
        """Users with a positive in train, with a history that tells something, or known by features."""
        known_B = self.user_counts.index_select(0, batch["user_idx"]) > 0
        if self.users.features.columns:
            known_B |= batch["user_idx"] > UNKNOWN
        return known_B | super().personal(batch) if self.scores_from_history else known_B

    def encode_users(self, batch: UserBatch) -> Tensor:
        """[B, W]: the vector, and a one that meets the item's bias."""
        return self._encode(batch["user_idx"], last_items(batch["history"], self.length))

    def encode_items(self, item_idx: Tensor) -> Tensor:
        """[N, W]: the vector and the bias."""
        y_NW = self._finished(self._items(item_idx)[0])
        if not self.age:
            return y_NW
        return self._older(y_NW, self._age_bias(self.now, self.came_I[item_idx], even_yet_to_come=True))

    def _older(self, y_NW: Tensor, bias_N: Tensor) -> Tensor:
        return torch.cat([y_NW[:, :-1], y_NW[:, -1:] + bias_N[:, None]], 1)

    def _age_bias(self, time: Tensor, came: Tensor, even_yet_to_come: bool = False) -> Tensor:
        """The bias of items that came at `came` (-1: not known) at a time; both in microseconds. Ages are whole days of
        the calendar, and so the same for all pairs of a day."""
        age = time // _DAY - came // _DAY
        edges = torch.tensor(_AGES, device=age.device)
        bucket = (torch.bucketize(age, edges, right=True) + 1).masked_fill(came < 0, 0)
        to_come = (age < 0) & (came >= 0) & (not even_yet_to_come)
        return self.age_bias[bucket].masked_fill(to_come, _NOT_YET)

    def _aged(self, time_B: Tensor | None, item: Tensor) -> Tensor:
        """The biases of items' ages at the time of each pair, [B, N]; 0 of all without `age`. item: int64 [N], or
        [B, N]."""
        if not self.age or time_B is None:
            return torch.zeros((), device=item.device)
        came = self.came_I[item]
        if came.dim() == 2:
            return self._age_bias(time_B[:, None], came)
        day_G, group_B = (time_B // _DAY).unique(return_inverse=True)
        return self._age_bias(day_G[:, None] * _DAY, came).index_select(0, group_B)

    @torch.no_grad()
    def encode_new_items(self, rows: RowBatch) -> Tensor:
        """[N, W] of items that are not in the catalogue, by features alone. rows: features by column, on any device.

        Raises:
            ValueError: the model has no features of items.
        """
        if (fields := self.items.features.fields) is None:
            raise ValueError("this model was trained without features of items: give features=… to train")
        rows = {name: values.to(self.device) for name, values in rows.items()}
        y_NW = self._finished(self.items.deepen(fields(rows).sum(1)))
        return self._older(y_NW, self.age_bias[1].expand(len(y_NW))) if self.age else y_NW

    def _encode(self, user_B: Tensor, history_BL: Tensor) -> Tensor:
        """User vectors, [B, W]."""
        row_M, local_BL = history_BL.unique(return_inverse=True)
        y_MD = self._items(row_M)[0][:, : self.embedding_dim]
        return self._users(user_B, local_BL, row_M, y_MD)[0]

    def _users(
        self, user_B: Tensor, local_BL: Tensor, row_M: Tensor, y_MD: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """User vectors, [B, W], and what the tower summed up. local_BL: places in row_M, whose vectors are y_MD."""
        x_BD, *parts = self.users(user_B, self._known(self.user_counts[user_B], generator))
        if self.history != "none":
            x_BD = x_BD + self._read(local_BL, row_M, y_MD, generator)
        x_BD = drop(self.users.deepen(x_BD), self.dropout, generator)
        if self.normalize:
            x_BD = F.normalize(x_BD, dim=1) / math.sqrt(self.temperature)
        return F.pad(x_BD, (0, 1), value=1.0), parts

    def _items(self, row_M: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, list[Tensor]]:
        """Item vectors and biases before `_finished`, [M, W], and what the tower summed up."""
        y_MW, *parts = self.items(row_M, self._known(self.item_counts[row_M], generator))
        return self.items.deepen(y_MW), parts

    def _known(self, count_N: Tensor, generator: torch.Generator | None) -> Tensor:
        """Whose id takes part, bool: of rows that train has a positive of, some dropped with a generator."""
        if generator is None or not self.id_dropout:
            return count_N > 0
        kept_N = torch.empty(len(count_N), device=count_N.device)
        return (count_N > 0) & (kept_N.bernoulli_(1 - self.id_dropout, generator=generator) > 0)

    def _read(self, local_BL: Tensor, row_M: Tensor, y_MD: Tensor, generator: torch.Generator | None) -> Tensor:
        """What histories say, [B, D]."""
        there_BL = row_M[local_BL] != PADDING
        if generator is not None and self.history_dropout:
            kept_BL = torch.empty(there_BL.shape, device=there_BL.device)
            there_BL = there_BL & (kept_BL.bernoulli_(1 - self.history_dropout, generator=generator) > 0)
        count_B = there_BL.sum(1)
        if self.history == "mean":
            # An item that stands at no place, and so is added to none.
            nowhere_BL = local_BL.masked_fill(~there_BL, len(y_MD))
            sum_BD = F.embedding_bag(nowhere_BL, F.pad(y_MD, (0, 0, 0, 1)), mode="sum", padding_idx=len(y_MD))
            return self.read(sum_BD / (count_B + self.history_prior).clamp(min=1).pow(self.history_power)[:, None])
        # Items that were dropped leave no gap: those there come first, in their order.
        order_BL = (~there_BL).byte().argsort(dim=1, stable=True)
        there_BL, local_BL = there_BL.gather(1, order_BL), local_BL.gather(1, order_BL)
        left_BL = count_B[:, None] - 1 - torch.arange(there_BL.shape[1], device=there_BL.device)
        x_TD = y_MD[local_BL[there_BL]] + self.positions[left_BL[there_BL]]
        for block in self.blocks:
            x_TD = block(x_TD, there_BL, self.dropout, generator)
        some_B = count_B > 0
        said_BD = self.read(self.norm(x_TD[count_B.cumsum(0)[some_B] - 1]))
        return y_MD.new_zeros(len(count_B), y_MD.shape[1]).index_put((some_B.nonzero()[:, 0],), said_BD)

    def _finished(self, y_NW: Tensor) -> Tensor:
        return directions(y_NW, self.embedding_dim, self.temperature) if self.normalize else y_NW

    # Training

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        tables = [p for name, p in self.named_parameters() if name.rpartition(".")[2] in ("ids", "table")]
        rest = [p for name, p in self.named_parameters() if name.rpartition(".")[2] not in ("ids", "table", "age_bias")]
        groups: list[dict[str, Any]] = [{"params": rest}] if rest else []
        if self.age:
            groups.append({"params": [self.age_bias], "weight_decay": 0.0, "rate": _AGE_RATE})
        found: list[torch.optim.Optimizer] = [RowAdagrad(tables, lr=self.table_lr)] if tables else []
        return [*found, torch.optim.AdamW(groups, self.lr, weight_decay=self.dense_decay)] if groups else found

    def observe(self, interactions: Interactions) -> None:
        super().observe(interactions)
        if self.age and (interactions.timestamp is None or not int(self.now)):
            raise ValueError("age=true needs a split by time, timestamps of the log, and of items in their table")
        self.pairs = draws.Unobserved(interactions)
        self.prepare()

    def on_train_start(self) -> None:
        self.prepare()

    def prepare(self) -> None:
        """Derive the length of training, the decay of rows and the shares of items from the observed counts."""
        self.pairs.pair_Z = self.pairs.pair_Z.to(self.device)
        self.steps_per_epoch = -(-int(self.user_counts.sum()) // self.batch_size)
        self.total_steps = self.max_epochs * self.steps_per_epoch
        self.user_decay_U, self.item_decay_I = (
            self.weight_decay * (1 + self.prior_count / counts.clamp(min=1).float())
            for counts in (self.user_counts, self.item_counts)
        )
        self.share_I = draws.popularity_log_q(self.item_counts).exp()

    def train_steps(self, chunk: dict[str, Any], optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
        total = torch.zeros((), device=self.device)
        pairs = zip(chunk["user_idx"], chunk["item_idx"], chunk["history"], strict=True)
        for s, (user_B, item_B, history_BL) in enumerate(pairs):
            step = chunk["step"] + s
            fall = max(1 - step / self.total_steps, 0.0)
            for optimizer in optimizers:
                is_tables = isinstance(optimizer, RowAdagrad)
                rise = 1.0 if is_tables else min((step + 1) / max(_WARMUP * self.total_steps, 1), 1.0)
                for group in optimizer.param_groups:
                    rate = self.table_lr if is_tables else self.lr * group.get("rate", 1.0)
                    group["lr"] = min(rise, fall) * rate
            time_B = chunk["timestamp"][s] if "timestamp" in chunk else None
            loss_B, decay = self.compute_loss(user_B, item_B, history_BL, chunk["seed"], step, time_B)
            (loss_B.sum() + decay).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            total += loss_B.detach().mean()
        return total / len(chunk["user_idx"])

    def compute_loss(
        self,
        user_B: Tensor,
        item_B: Tensor,
        history_BL: Tensor,
        seed: int,
        step: int,
        time_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """loss_B of a step, and the summed decay of the rows of its positives. step is the global number; time_B: of
        the pairs, microseconds."""
        generator = draws.generator_at(seed, step, item_B.device)
        if self.log_q == "streaming":
            self._count(item_B, step)
        # Every item of the step goes through its tower once.
        if self.negatives == "all":
            row_M, own_B, local_BL = torch.arange(self.schema.num_items, device=item_B.device), item_B, history_BL
        else:
            parts = item_B, self._draw(item_B, generator), self._mine(user_B, history_BL, step, generator), history_BL
            row_M, place = torch.cat([part.flatten() for part in parts]).unique(return_inverse=True)
            places = place.split([part.numel() for part in parts])
            own_B, shared_N, hard_BH, local_BL = (p.view(q.shape) for p, q in zip(places, parts, strict=True))
        y_MW, item_parts = self._items(row_M, generator)
        x_BW, user_parts = self._users(user_B, local_BL, row_M, y_MW[:, : self.embedding_dim], generator)
        times_M = torch.bincount(own_B, minlength=len(row_M)).float()
        decay = self._decay(torch.ones_like(user_B).float(), self.user_decay_U[user_B], *user_parts)
        decay = decay + self._decay(times_M, self.item_decay_I[row_M], *item_parts)
        y_MW = self._finished(y_MW)
        if self.negatives == "all":
            return self._full_softmax(x_BW, y_MW, user_B, item_B, time_B), decay
        return self._sampled_softmax(x_BW, y_MW, user_B, row_M, (own_B, shared_N, hard_BH), time_B), decay

    def _decay(self, times_N: Tensor, id_decay_N: Tensor, ids_NW: Tensor, fields_NFW: Tensor) -> Tensor:
        """What the vectors of rows pay that are positives so many times; biases pay nothing."""
        D = self.embedding_dim
        ids = (times_N * id_decay_N) @ ids_NW[:, :D].square().sum(1)
        return (ids + self.feature_decay * (times_N @ fields_NFW[:, :, :D].square().sum((1, 2)))) / 2

    def _full_softmax(
        self, x_BW: Tensor, y_IW: Tensor, user_B: Tensor, item_B: Tensor, time_B: Tensor | None
    ) -> Tensor:
        """loss_B over the whole catalogue."""
        item_I = torch.arange(NUM_RESERVED, len(y_IW), device=item_B.device)
        logits_BI = x_BW @ y_IW[NUM_RESERVED:].T + self._aged(time_B, item_I)
        if not self.multi_positive:
            return losses.full_softmax(logits_BI, item_B - NUM_RESERVED)
        liked_BI = self.pairs.observed(user_B[:, None], item_I)
        return -logits_BI.log_softmax(1).masked_fill(~liked_BI, 0).sum(1) / liked_BI.sum(1)

    def _sampled_softmax(
        self,
        x_BW: Tensor,
        y_MW: Tensor,
        user_B: Tensor,
        row_M: Tensor,
        places: tuple[Tensor, Tensor, Tensor],
        time_B: Tensor | None,
    ) -> Tensor:
        """loss_B. places in row_M, the item indices whose vectors are y_MW: of positives [B], of shared negatives [N],
        of hard ones [B, H]."""
        own_B, shared_N, hard_BH = places
        # A positive takes part for certain, and so does a hard negative: what is drawn is corrected, they are not.
        item_N = row_M[shared_N]
        logits_BN = x_BW @ y_MW[shared_N].T + self._aged(time_B, item_N)
        positive_B = torch.linalg.vecdot(x_BW, y_MW[own_B])
        if self.age and time_B is not None:
            positive_B = positive_B + self._aged(time_B, row_M[own_B][:, None])[:, 0]
        if self.log_q != "none":
            logits_BN = logits_BN - self._log_expected(item_N)
        hit_BN = own_B[:, None] == shared_N
        liked_BN = self.pairs.observed(user_B[:, None], item_N) & ~hit_BN if self.multi_positive else None
        others_B = 0 if liked_BN is None else (logits_BN - positive_B[:, None]).masked_fill(~liked_BN, 0).sum(1)
        if hard_BH.shape[1]:
            hard_logits_BH = torch.einsum("bw,bhw->bh", x_BW, y_MW[hard_BH]) + self._aged(time_B, row_M[hard_BH])
            logits_BN = torch.cat([logits_BN, hard_logits_BH], 1)
            hit_BN = torch.cat([hit_BN, row_M[hard_BH] == PADDING], 1)
        rest_B = logits_BN.masked_fill_(hit_BN, torch.finfo(logits_BN.dtype).min).logsumexp(1)
        loss_B = torch.logaddexp(positive_B, rest_B) - positive_B
        # Minus the mean log probability of all that the user likes among the items of the step.
        return loss_B if liked_BN is None else loss_B - others_B / (1 + liked_BN.sum(1))

    def _draw(self, item_B: Tensor, generator: torch.Generator) -> Tensor:
        """The negatives that a step shares, int64 [N]."""
        if self.negatives == "in_batch":
            return item_B
        uniform_N = draws.draw_uniform((self.num_negatives,), self.schema.num_items, generator)
        return uniform_N if self.negatives == "uniform" else torch.cat([item_B, uniform_N])

    def _log_expected(self, item_N: Tensor) -> Tensor:
        """The log of how often each item is expected among the shared negatives of a step: of the positives one is the
        row's own; with mixed negatives either source counts (Yang et al., section 4)."""
        uniform = self.num_negatives / (self.schema.num_items - NUM_RESERVED)
        if self.negatives == "uniform":
            return torch.full(item_N.shape, math.log(uniform), device=item_N.device)
        expected_N = self.shares(item_N) * max(self.batch_size - 1, 1)
        return (expected_N + uniform * (self.negatives == "mixed")).log()

    def shares(self, item_N: Tensor) -> Tensor:
        """The probability that a positive is each item, as `log_q` knows it."""
        if self.log_q == "streaming":
            return 1 / (self.gap_I[item_N] * self.batch_size)
        return self.share_I[item_N]

    @torch.no_grad()
    def _count(self, item_B: Tensor, step: int) -> None:
        """Yi et al., algorithm 2: gap <- (1 - rate) gap + rate * (steps since the item's last batch). An item's first
        gap is the steps until it came."""
        item_M = item_B.unique()
        last_M, gap_M = self.last_step_I[item_M], self.gap_I[item_M]
        since_M = (step - last_M).float()
        self.gap_I[item_M] = torch.where(last_M < 0, since_M, gap_M.lerp(since_M, self.streaming_rate))
        self.last_step_I[item_M] = step

    @torch.no_grad()
    def _mine(self, user_B: Tensor, history_BL: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """Hard negatives, int64 [B, num_hard]; padding where the pool holds too few that the user does not like."""
        if not self.num_hard:
            return user_B.new_zeros(len(user_B), 0)
        if step % self.steps_per_epoch == 0:
            self.searched_ID.copy_(self.encode_items(torch.arange(self.schema.num_items, device=self.device)))
            self.searched_ID[:NUM_RESERVED, -1] = -torch.inf
            self.search = None
        if self.search is None:
            self.search = self.build_index(self.searched_ID)
        depth = min(self.hard_pool, self.schema.num_items - NUM_RESERVED)
        pool_BK = self.search(self._encode(user_B, history_BL), depth)
        lot_BK = torch.rand(pool_BK.shape, generator=generator, device=pool_BK.device)
        liked_BK = self.pairs.observed(user_B[:, None], pool_BK)
        chosen_BH = lot_BK.masked_fill(liked_BK, -1).topk(min(self.num_hard, pool_BK.shape[1])).indices
        return pool_BK.masked_fill(liked_BK, PADDING).gather(1, chosen_BH)


class Tower(nn.Module):
    """Rows of a table of ids, plus the sum of the vectors of their features. `deepen` adds the non-linear part."""

    def __init__(
        self, num_rows: int, columns: Sequence[Column], width: int, hidden: Sequence[int], init_std: float, ids: bool
    ) -> None:
        super().__init__()
        self.ids = nn.Parameter(torch.randn(num_rows, width).mul_(init_std)) if ids else None
        self.features = RowFeatures(num_rows, columns, width)
        self.deep = nn.Sequential(Dense(width, hidden), nn.Linear(hidden[-1], width)) if hidden else None

    def forward(self, row_N: Tensor, known_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of id and features, [N, width]; the ids in them, zeros where not known; and the features' vectors in
        them, [N, F, width]."""
        fields_NFD = self.features(row_N)
        ids_ND = torch.zeros(len(row_N), self.features.width, device=row_N.device)
        if self.ids is not None:
            place_n = known_N.nonzero()[:, 0]
            ids_ND = ids_ND.index_add(0, place_n, F.embedding(row_N[place_n], self.ids, sparse=True))
        return ids_ND + fields_NFD.sum(1), ids_ND, fields_NFD

    def deepen(self, x_ND: Tensor) -> Tensor:
        """x plus what the hidden layers make of it."""
        return x_ND if self.deep is None else x_ND + self.deep(x_ND)


def exact_search(vectors_ID: Tensor) -> Search:
    """A `Search` through all items."""
    return lambda x_BD, k: (x_BD @ vectors_ID.T).topk(k, sorted=False).indices
