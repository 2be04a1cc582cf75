"""Multi-gate mixture of experts: two tasks, one set of experts, a gate for each task.

Ma, Zhao, Yi, Chen, Hong & Chi, "Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts" (KDD 2018). The weighted logistic is of Covington, Adams & Sargin, "Deep Neural Networks for
YouTube Recommendations" (RecSys 2016), section 4.2.
Shapes in names: B rows, W numbers of all fields, E experts, H an expert's last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.models import losses
from recsys.models.base import Ranker, RowBatch
from recsys.models.layers import Dense, FieldEmbeddings
from recsys.schema import LABEL, Column

WATCH = "watch_seconds"


class MMoE(Ranker):
    """logits of a task = its tower of the experts' vectors, weighted by the softmax of its gate (equations 6-8).

    Tasks: "label", by the loss that `Ranker` is told, and "watch_seconds". `watch_loss` says what the logit of that is:
        squared: log(1 + seconds), by the squared error over all rows; its inverse is nearer a median than a mean.
        quantile: the watch_quantile of log(1 + seconds) over all rows (Koenker and Bassett 1978); its inverse is that
            of the seconds, for a quantile goes with every rising function.
        weighted_logistic: the log loss of the label in which a positive weighs its seconds; the odds exp(logit) are
            seconds of positives per negative, and so the expected seconds while positives are few.
    `predict_seconds` says each in seconds.
    experts, towers: widths of the layers of each. label_weight, watch_weight: of the two losses in their sum.
    training: see `Ranker`.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        embedding_dim: int = 16,
        num_experts: int = 4,
        experts: Sequence[int] = (64, 32),
        towers: Sequence[int] = (32,),
        dropout: float = 0.0,
        watch_loss: Literal["squared", "quantile", "weighted_logistic"] = "squared",
        watch_quantile: float = 0.5,
        label_weight: float = 1.0,
        watch_weight: float = 0.1,
        **training: Any,
    ) -> None:
        super().__init__(columns, **training)
        if num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {num_experts}")
        if watch_loss not in ("squared", "quantile", "weighted_logistic"):
            raise ValueError(f"watch_loss={watch_loss}: expected squared, quantile or weighted_logistic")
        if not 0 < watch_quantile < 1:
            raise ValueError(f"watch_quantile must lie between 0 and 1, got {watch_quantile}")
        for name, weight in {"label_weight": label_weight, "watch_weight": watch_weight}.items():
            if not weight >= 0:
                raise ValueError(f"{name} must not be below 0, got {weight}")
        self.watch_loss, self.watch_quantile = watch_loss, watch_quantile
        self.label_weight, self.watch_weight = label_weight, watch_weight
        self.fields = FieldEmbeddings(self.columns, embedding_dim)
        width = self.fields.width
        self.experts = nn.ModuleList(Dense(width, experts, dropout) for _ in range(num_experts))
        self.gates, self.towers = nn.ModuleDict(), nn.ModuleDict()
        for task in (LABEL, WATCH):
            tower = Dense(experts[-1] if experts else width, towers, dropout)
            self.gates[task] = nn.Linear(width, num_experts, bias=False)
            self.towers[task] = nn.Sequential(tower, nn.Linear(tower.out_features, 1))

    def forward(self, batch: RowBatch) -> dict[str, Tensor]:
        x_BW = self.fields(batch).flatten(1)
        found_BEH = torch.stack([expert(x_BW) for expert in self.experts], 1)
        logits = {}
        for task, tower in self.towers.items():
            gate_BE = self.gates[task](x_BW).softmax(1)
            logits[task] = tower(torch.einsum("be,beh->bh", gate_BE, found_BEH)).squeeze(1)
        return logits

    def compute_loss(self, logits: dict[str, Tensor], batch: RowBatch) -> Tensor:
        """The weighted sum of both tasks' mean losses."""
        if WATCH not in batch:
            raise ValueError(f"the batch has no {WATCH}, which MMoE learns too: add it to the labels of the features")
        seconds_B = batch[WATCH].float()
        if self.watch_loss == "squared":
            loss_B = F.mse_loss(logits[WATCH], seconds_B.log1p(), reduction="none")
        elif self.watch_loss == "quantile":
            loss_B = losses.pinball(logits[WATCH], seconds_B.log1p(), self.watch_quantile)
        else:
            weight_B = torch.where(batch[LABEL] > 0, seconds_B, 1.0)
            loss_B = weight_B * losses.log_loss(logits[WATCH], batch[LABEL])
        return self.label_weight * super().compute_loss(logits, batch) + self.watch_weight * loss_B.mean()

    def predict_seconds(self, logits: dict[str, Tensor]) -> Tensor:
        """The watch time that the logits mean, in seconds, float [B]."""
        return logits[WATCH].exp() if self.watch_loss == "weighted_logistic" else logits[WATCH].expm1().clamp(min=0)
