"""Measuring recommendations: exact rankings of the whole catalogue, metrics, and how sure they are."""

from recsys.evaluation.estimates import Estimate, estimate
from recsys.evaluation.ranking import Evaluation, evaluate, rank, top_k
from recsys.evaluation.significance import intervals, paired_interval

__all__ = ["Estimate", "Evaluation", "estimate", "evaluate", "intervals", "paired_interval", "rank", "top_k"]
