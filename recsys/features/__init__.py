"""Raw columns to model inputs, the same bits on CPU and GPU. `FeaturePipeline` holds them together."""

from recsys.features.base import Feature, FeatureError, Plain
from recsys.features.crosses import Hashed
from recsys.features.embeddings import Pretrained
from recsys.features.history import History
from recsys.features.numeric import Buckets, Numeric
from recsys.features.pipeline import FeaturePipeline
from recsys.features.vocabulary import Category, Vocabulary

__all__ = [
    "Buckets", "Category", "Feature", "FeatureError", "FeaturePipeline", "Hashed", "History", "Numeric", "Plain",
    "Pretrained", "Vocabulary",
]  # fmt: skip
