"""Measuring recommendations: exact rankings of the whole catalogue, metrics, and how sure they are."""

from recsys.evaluation.ranking import Evaluation, evaluate, rank, top_k
from recsys.evaluation.significance import intervals, paired_interval, seeds_interval

__all__ = ["Evaluation", "evaluate", "intervals", "paired_interval", "rank", "seeds_interval", "top_k"]
