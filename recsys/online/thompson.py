"""Thompson sampling: each visit is ranked by one draw of what a Bayesian logistic regression holds possible.

Chapelle and Li, "An Empirical Evaluation of Thompson Sampling" (NeurIPS 2011). Shapes: S visits, C candidates, K
positions, n places of the design that are filled.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import torch
from torch import Tensor

from recsys.models.base import RowBatch
from recsys.models.bayes_logistic import BayesLogistic
from recsys.online.policies import catalogue
from recsys.online.slates import STREAM, Policy, Rows, Slates, Visits, padded
from recsys.schema import ITEM_ID, LABEL, TIMESTAMP, USER_ID
from recsys.world import noise

_PAIRS = 1 << 18  # held at a time


class Thompson:
    """Shows the candidates of highest logit under weights drawn once a visit, and learns from each day's rows.

    The draw of a weight is a function of (visit, weight): what candidates share they share in the draw, and no batch
    matters. Of an all-zero start only the prior speaks.

    Args:
        model: learns by `update`; `forgetting` below 1 follows what changes.
        features: a frame of user_id, item_id and timestamp (UTC) as the model's inputs, row by row, such as a
            pipeline's `transform`.
        candidates: a policy whose slates of `num_candidates` are ranked; or a frame of the whole small catalogue:
            item_id, and `uploaded` where items come later.
    """

    deterministic = False

    def __init__(
        self,
        model: BayesLogistic,
        features: Callable[[pl.DataFrame], RowBatch],
        candidates: Policy | pl.DataFrame,
        *,
        num_candidates: int = 100,
        seed: int = 0,
    ) -> None:
        self.model, self.features, self.seed, self.num_candidates = model, features, seed, num_candidates
        self.policy = None if isinstance(candidates, pl.DataFrame) else candidates
        if isinstance(candidates, pl.DataFrame):
            self.item_id, self.uploaded = catalogue(candidates)

    def act(self, visits: Visits) -> Slates:
        """Slates without propensities: they are integrals over the posterior."""
        width = len(self.item_id) if self.policy is None else max(self.num_candidates, visits.k)
        step = max(1, _PAIRS // max(1, width))
        found = [self._ranked(visits[low : low + step]) for low in range(0, len(visits), step)]
        return Slates(torch.cat(found).to(visits.user_id.device))

    @torch.no_grad()
    def update(self, rows: Rows) -> None:
        """Learn from rows of a log in their order."""
        batch = self.features(_frame(*(rows[name] for name in (USER_ID, ITEM_ID, TIMESTAMP))))
        self.model.update({**batch, LABEL: rows[LABEL].cpu()})

    def _ranked(self, visits: Visits) -> Tensor:
        if self.policy is None:
            item_SC = self.item_id.expand(len(visits), -1)
            there_SC = self.uploaded <= visits.timestamp.cpu()[:, None]
        else:
            wanted = Visits(visits.user_id, visits.timestamp, visits.key, max(self.num_candidates, visits.k))
            item_SC = self.policy.act(wanted).item_id.cpu()
            there_SC = item_SC >= 0
        visit, column = there_SC.nonzero(as_tuple=True)
        logits_SC = torch.full(item_SC.shape, -torch.inf, dtype=torch.float64)
        if len(visit):
            rows = _frame(visits.user_id.cpu()[visit], item_SC[visit, column], visits.timestamp.cpu()[visit])
            keys = noise.extend(visits.key.cpu(), STREAM, self.seed)
            logits_SC[visit, column] = self._drawn(self.features(rows), keys, visit)
        order = logits_SC.sort(dim=1, descending=True, stable=True).indices[:, : visits.k]
        return padded(torch.where(there_SC.gather(1, order), item_SC.gather(1, order), -1), visits.k)

    @torch.no_grad()
    def _drawn(self, batch: RowBatch, key_S: Tensor, visit: Tensor) -> Tensor:
        """Logits of rows under their visit's draw of the weights, float64 [rows]."""
        model = self.model
        design = model.design({name: column.to(model.device) for name, column in batch.items()})
        spread_J = model.precision_J.rsqrt()
        key_S, visit = key_S.to(model.device), visit.to(model.device)
        drawn_n = noise.normal(noise.extend(key_S[visit[design.row_n]], design.weight_n))
        logits = design.times(model.mean_J)
        logits = logits.index_add(0, design.row_n, design.x_n * drawn_n * spread_J[design.weight_n])
        number_J = torch.arange(design.num_indices, len(spread_J), device=model.device)
        drawn_SV = noise.normal(noise.extend(key_S[:, None], number_J)) * spread_J[number_J]
        return (logits + (design.numbers_BV * drawn_SV[visit]).sum(1)).cpu()


def _frame(user_id: Tensor, item_id: Tensor, timestamp: Tensor) -> pl.DataFrame:
    ids = {name: column.cpu().numpy() for name, column in ((USER_ID, user_id), (ITEM_ID, item_id))}
    when = pl.Series(timestamp.cpu().numpy()).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame({**ids, TIMESTAMP: when})
