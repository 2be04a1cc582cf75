"""A ranker over the candidates of requests: its inputs made where they are needed, its scores one request at a time.

Shapes: B requests, N candidates of each, `PADDING` where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Self

import polars as pl
import torch
from torch import Tensor

from recsys.features.sampling import NegativeSampling
from recsys.features.serving import FeatureStore, Rows
from recsys.run import Run
from recsys.schema import LABEL, PADDING

Precision = Literal["float32", "bfloat16"]
ROWS_AT_ONCE = 1024  # what a layer makes of so many stays in a core's cache


@dataclass(frozen=True, eq=False)
class Inputs:
    """Of requests, [B, ...]; of their candidates, request after request; and how many each has."""

    requests: Rows
    candidates: Rows
    counts: list[int]


class CandidateRanker:
    """Scores of candidates by a ranker.

    Args:
        store: makes the inputs.
        score: of inputs in which what is known of the request stands once; float [N] by candidate.
        draw: the same under weights drawn from a posterior by a seed, for Thompson sampling; None: there is none.
    """

    def __init__(
        self,
        store: FeatureStore,
        score: Callable[[Rows], Tensor],
        draw: Callable[[Rows, int], Tensor] | None = None,
    ) -> None:
        self.store, self.score, self.draw = store, score, draw

    @classmethod
    def of_run(cls, run: Run, item_rows: pl.DataFrame, precision: Precision = "float32") -> Self:
        """The ranker of a finished run: probabilities of a positive, corrected for left-out negatives.

        Args:
            item_rows: raw columns of items, row = item_idx.
            precision: in which it computes; bfloat16 is faster where the processor has it.

        Raises:
            ValueError: the run holds a retriever, or an unknown precision.
        """
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision={precision}: expected float32 or bfloat16")
        if not run.is_ranker:
            raise ValueError(f"{run.path} holds a retriever: name a ranker's run")
        model: Any = run.model
        negatives, device = NegativeSampling(run.config.negatives), model.device

        def score(rows: Rows) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext():
                logits = model(_on(device, rows))[LABEL]
            return negatives.correct_logits(logits.float()).sigmoid().cpu()

        def draw(rows: Rows, seed: int) -> Tensor:
            generator = torch.Generator(device).manual_seed(seed & (2**63 - 1))
            return model.sample(_on(device, rows), generator).cpu()

        return cls(FeatureStore(run.pipeline.trimmed(), item_rows), score, draw if hasattr(model, "sample") else None)

    def inputs(self, requests: pl.DataFrame, item_BN: Tensor) -> Inputs:
        """What the ranker is given. requests: raw columns, B rows.

        Raises:
            FeatureError: a column that does not fit.
        """
        row, place = (item_BN != PADDING).nonzero(as_tuple=True)
        candidates = self.store.of_candidates(requests, row, item_BN[row, place])
        counts = torch.bincount(row, minlength=len(item_BN)).tolist()
        return Inputs(self.store.of_requests(requests), candidates, counts)

    def scores(self, inputs: Inputs, item_BN: Tensor) -> Tensor:
        """float32 [B, N], -inf where there is no candidate.

        Raises:
            ValueError: the ranker gives a score that is not a number.
        """
        return self._each(inputs, item_BN, lambda rows, b: self.score(rows))

    def drawn(self, inputs: Inputs, item_BN: Tensor, seed_B: Tensor) -> Tensor:
        """`scores` under weights drawn anew for each request."""
        draw, seeds = self.draw, seed_B.tolist()
        if draw is None:
            raise ValueError("this ranker has no posterior to draw from")
        return self._each(inputs, item_BN, lambda rows, b: draw(rows, seeds[b]))

    @staticmethod
    def _each(inputs: Inputs, item_BN: Tensor, score: Callable[[Rows, int], Tensor]) -> Tensor:
        found, low = [torch.zeros(0)], 0
        for b, count in enumerate(inputs.counts):
            of_request = {name: values[b : b + 1] for name, values in inputs.requests.items()}
            for start in range(low, low + count, ROWS_AT_ONCE):
                part = slice(start, min(start + ROWS_AT_ONCE, low + count))
                own = {name: values[part] for name, values in inputs.candidates.items()}
                found.append(score(of_request | own, b).float())
            low += count
        scores = torch.cat(found)
        if bool(scores.isnan().any()):
            raise ValueError("the ranker gives NaN")
        score_BN = torch.full(item_BN.shape, -torch.inf)
        score_BN[item_BN != PADDING] = scores
        return score_BN


def _on(device: torch.device, rows: Rows) -> Rows:
    return {name: values.to(device) for name, values in rows.items()}
