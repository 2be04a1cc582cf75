"""A run on a synthetic world beside its truth: the log oracle's metrics, and what the lists are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor

from recsys.data.datamodule import RecDataModule
from recsys.evaluation import calibration
from recsys.evaluation.ranking import Evaluation, rank
from recsys.models.base import Retriever
from recsys.schema import ITEM_ID, LABEL, NUM_RESERVED, TIMESTAMP, USER_ID
from recsys.world.log_oracle import LogOracle
from recsys.world.oracle import RelevanceScorer, row_probability, utility_by_position


def answer_key(
    data: RecDataModule,
    model: Retriever,
    evaluate: Callable[..., Evaluation],
    *,
    k: Sequence[int],
    seed: int,
) -> dict[str, float]:
    """Metrics that only a synthetic world can give.

    Returns:
        oracle/recall@20 …: the log oracle, measured as the model was: the bound of logged metrics where each user
            has one query. Within sessions it knows the user and what is masked, but not what the visit is about:
            a model may do better. None where the split has no cut in time.
        utility/clicks@20, utility/watch_seconds@20 …: what one visit is expected to bring if the model's
            list is shown; best/clicks@20 …: likewise for the list by true relevance. Users of the test
            queries, lists of the largest cut-off that a visit can hold and shorter; on the day of the cut, or of the
            last row where there is none. None within sessions.
    """
    world, cut = data.log.world, data.split.test_cut
    if world is None:
        return {}
    device = model.device
    item_ids = raw_item_ids(data).to(device)
    metrics: dict[str, float] = {}
    if cut is not None:
        found = evaluate(score=LogOracle(world, item_ids, cut).score, queries=data.test, num_replicates=0)
        metrics = {f"oracle/{name}": value for name, value in found.metrics.items()}
    moment: Any = cut or data.split.test[TIMESTAMP].max()

    cuts = [n for n in sorted(set(k)) if n <= min(world.max_depth, int(data.test.candidates.sum()))]
    if not cuts or data.queries != "users" or data.test.lists is not None:
        return metrics
    scorers = {
        "utility": model.scorer_with_fallback(),
        "best": RelevanceScorer(world, item_ids, moment).score,
    }
    for prefix, score in scorers.items():
        list_QK = item_ids[rank(score, data.test, cuts[-1], device=device, seed=seed).to(device)]
        parts = utility_by_position(world, data.test.user_key.to(device), list_QK, moment)
        for n in cuts:
            clicks, seconds = (float(part_QK[:, :n].sum(1).mean()) for part_QK in parts)
            metrics[f"{prefix}/clicks@{n}"] = clicks
            metrics[f"{prefix}/watch_seconds@{n}"] = seconds
    return metrics


def raw_item_ids(data: RecDataModule) -> Tensor:
    """The id of each item_idx of a world's log, int64 [I]; 0 for the reserved ones."""
    reserved = torch.zeros(NUM_RESERVED, dtype=torch.int64)
    return torch.cat([reserved, torch.from_numpy(data.items.ids.to_numpy(writable=True))])


def bayes(data: RecDataModule) -> dict[str, float]:
    """What a ranker that knows the true probability of each row of the test part would reach: auc, log_loss and the
    other metrics of `calibration.measure`; nothing without an answer key or without positions."""
    world, rows = data.log.world, data.split.test
    if world is None or "position" not in rows.columns:
        return {}
    user_id, item_id, timestamp, position = (
        torch.from_numpy(rows[name].to_physical().cast(pl.Int64).to_numpy(writable=True))
        for name in (USER_ID, ITEM_ID, TIMESTAMP, "position")
    )
    logits = torch.special.logit(row_probability(world, user_id, item_id, timestamp, position))
    labels = torch.from_numpy(rows[LABEL].to_numpy(writable=True))
    return calibration.measure(logits, labels, user_id, num_replicates=0).metrics
