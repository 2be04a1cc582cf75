"""Training on imbalanced clicks: class weights, fewer negatives with honest probabilities, synthetic positives.

All of it is for training rows only. Validation and test keep the rows they have.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import polars as pl
import torch
from torch import Tensor

from recsys.config import nearest
from recsys.features.base import FeatureError, as_kind, kind_of
from recsys.features.crosses import cross
from recsys.schema import ITEM_ID, LABEL, TIMESTAMP, USER_ID

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


def class_weights(labels: Tensor | pl.Series) -> Tensor:
    """Weights of class 0 and class 1 under which both count the same, float32 [2]: n / (2 n_c).

    King and Zeng, "Logistic regression in rare events data", Political Analysis 2001. A model trained with them
    overstates the probability of the rarer class and has to be calibrated.

    Args:
        labels: 0 or 1, [n].

    Raises:
        FeatureError: a class does not occur, a label is missing or neither 0 nor 1.
    """
    positive = _positive(labels, "labels")
    counts = torch.stack([(~positive).sum(), positive.sum()])
    if not bool(counts.all()):
        absent = int(counts.argmin())
        raise FeatureError(f"labels have no {absent} among {positive.numel()}: weights need rows of both classes")
    return (positive.numel() / (2 * counts.double())).float()


@dataclass(frozen=True)
class NegativeSampling:
    """Keep every positive and a share of the negatives, and know the share, so that probabilities can be corrected.

    He et al., "Practical lessons from predicting clicks on ads at Facebook", ADKDD 2014.

    Args:
        rate: the probability that a negative stays, in (0, 1].
        seed: another seed keeps other negatives; in [0, 2**63).
        by: the columns that decide over a negative: integers, text, booleans or times. Negatives that agree in all
            of them stay or go together, so they should tell rows apart. A null is a value like others.
        label: the column of labels 0 and 1.

    Raises:
        FeatureError: a rate or seed out of range, no columns.
    """

    rate: float
    seed: int = 0
    by: tuple[str, ...] = (USER_ID, ITEM_ID, TIMESTAMP)
    label: str = LABEL

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise FeatureError(f"rate={self.rate}: expected the share of negatives to keep, above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise FeatureError(f"seed={self.seed}: expected 0 <= seed < 2**63")
        if isinstance(self.by, str) or not self.by:
            raise FeatureError(f"by={self.by!r}: expected the names of one or more columns, as ({USER_ID!r},)")
        object.__setattr__(self, "by", tuple(self.by))  # JSON brings a list

    def keep(self, rows: Frame) -> Frame:
        """The rows that stay, in their order.

        A 64-bit hash of the seed and the `by` columns of a negative decides over it, so its fate depends on neither
        the order of rows nor how they come in chunks, and a lower rate keeps a part of what a higher one keeps. A
        lazy frame stays lazy and runs on the streaming engine; what is wrong with a label shows when it is collected.

        Raises:
            FeatureError: a column is missing or of a wrong type, a label is missing or neither 0 nor 1.
        """
        schema = rows.collect_schema()
        for name in (self.label, *self.by):
            if name not in schema:
                raise FeatureError(f"negative sampling needs the column {name!r}: {nearest(name, schema)}")
        for name in self.by:
            if kind_of(schema[name]) not in ("integers", "large integers", "text", "booleans", "times"):
                raise FeatureError(f"by={name!r} is {schema[name]}: expected integers, text, booleans or times")
        if isinstance(rows, pl.DataFrame):
            return rows.filter(self._stays(rows))
        columns = pl.struct(list(dict.fromkeys((self.label, *self.by))))
        stays = columns.map_batches(
            lambda chunk: self._stays(chunk.struct.unnest()), return_dtype=pl.Boolean, is_elementwise=True
        )
        return rows.filter(stays)

    def _stays(self, rows: pl.DataFrame) -> pl.Series:
        uniform = uniform_of(cross([_hashable(rows[name]) for name in self.by], self.seed))
        return pl.Series((_positive(rows[self.label], f"column {self.label!r}") | (uniform < self.rate)).numpy())

    def correct(self, probabilities: Tensor) -> Tensor:
        """Probabilities of a model trained on the kept rows as they are among all rows: p / (p + (1 - p) / rate).

        Close to 1 a probability has lost digits that its logit still has: prefer `correct_logits` where there is one.

        Args:
            probabilities: floats in [0, 1] of any shape.

        Raises:
            FeatureError: a value outside [0, 1] or NaN.
        """
        inside = (probabilities >= 0) & (probabilities <= 1)
        if not bool(inside.all()):
            worst = float(probabilities[~inside][0])
            raise FeatureError(f"probabilities must lie in [0, 1], found {worst}: give logits to correct_logits")
        # Times rate above and below: sums of what is not negative, so nothing cancels, and no division by the rate.
        odds = probabilities * self.rate
        return odds / (odds + (1 - probabilities))

    def correct_logits(self, logits: Tensor) -> Tensor:
        """The same for logits: logits + log(rate), as with fewer negatives the odds came out 1 / rate times too high.

        Args:
            logits: floats of any shape.
        """
        return logits + math.log(self.rate)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and a list, for JSON."""
        return {**asdict(self), "by": list(self.by)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NegativeSampling:
        """The inverse of `to_dict`."""
        return cls(**values)


def smote(
    features_BF: Tensor, labels_B: Tensor, *, seed: int = 0, num_neighbors: int = 5, ratio: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The rows as given, followed by synthetic positives until there are ratio positives to a negative.

    A synthetic positive lies between a positive and one of its nearest positives. Chawla et al., "SMOTE: synthetic
    minority over-sampling technique", JAIR 2002, by imbalanced-learn. The same seed gives the same rows. Where there
    are enough positives already nothing is added.

    Never apply it to validation or test rows, nor before the split. A model trained on the result overstates
    probabilities and has to be recalibrated on untouched rows.

    Args:
        features_BF: floats, finite. Numbers only: between two categories or ids there is nothing.
        labels_B: 0 or 1.
        num_neighbors: how many nearest positives a synthetic one may lie towards.
        ratio: positives to negatives afterwards, in (0, 1].

    Returns:
        Features [B + S, F] and labels [B + S], of the given types and on the given devices.

    Raises:
        FeatureError: a feature is no number, a label neither 0 nor 1, shapes disagree, too few positives, an argument
            out of range.
        ImportError: imbalanced-learn is not installed.
    """
    if features_BF.dim() != 2 or labels_B.shape != features_BF.shape[:1]:
        raise FeatureError(f"smote takes [B, F] and [B], got {list(features_BF.shape)} and {list(labels_B.shape)}")
    if not features_BF.is_floating_point():
        raise FeatureError(f"smote takes numbers to interpolate, got {features_BF.dtype}: leave ids and categories out")
    if not 0 < ratio <= 1:
        raise FeatureError(f"ratio={ratio}: expected positives to negatives, above 0 and at most 1")
    if num_neighbors < 1:
        raise FeatureError(f"num_neighbors={num_neighbors}: expected 1 or more")
    positive = _positive(labels_B, "labels")
    bad = ~features_BF.isfinite()
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise FeatureError(f"feature {column} is {float(features_BF[row, column])} in row {row}: fill it or drop it")
    num_positives = int(positive.sum())
    wanted = int(ratio * (positive.numel() - num_positives))
    if wanted <= num_positives:
        return features_BF, labels_B
    if num_positives <= num_neighbors:
        remedy = f"set num_neighbors={num_positives - 1}" if num_positives > 1 else "give more rows"
        raise FeatureError(f"{num_positives} positives are too few for num_neighbors={num_neighbors}: {remedy}")
    try:
        from imblearn.over_sampling import SMOTE
    except ImportError:
        raise ImportError("smote needs imbalanced-learn: pip install 'recsys[smote]'") from None

    # What NumPy cannot hold (bfloat16) is interpolated in float32.
    values = features_BF.detach().cpu()
    values = values if values.dtype == torch.float64 else values.float()
    sampler = SMOTE(sampling_strategy={1: wanted}, k_neighbors=num_neighbors, random_state=seed)
    resampled, _ = sampler.fit_resample(values.numpy(), positive.cpu().numpy().astype("int8"))
    synthetic = torch.from_numpy(resampled[len(positive) :]).to(features_BF)
    ones = labels_B.new_ones(len(synthetic))
    return torch.cat([features_BF, synthetic]), torch.cat([labels_B, ones])


def uniform_of(hashes: Tensor) -> Tensor:
    """The upper 53 bits of int64 hashes as float64 in [0, 1), without rounding."""
    return (hashes >> 11 & 2**53 - 1).double() * 2.0**-53


def _positive(labels: Tensor | pl.Series, name: str) -> Tensor:
    """Where labels are 1, bool [n]."""
    if isinstance(labels, pl.Series):
        if labels.null_count():
            raise FeatureError(f"{name}: a label is missing: fill it or drop its row")
        if kind_of(labels.dtype) not in ("integers", "large integers", "numbers", "booleans"):
            raise FeatureError(f"{name}: labels are {labels.dtype}, expected 0 and 1: convert them")
        labels = torch.from_numpy(labels.cast(pl.Float64).to_numpy(writable=True))
    if labels.dim() != 1:
        raise FeatureError(f"{name}: expected one dimension, got shape {list(labels.shape)}")
    bad = (labels != 0) & (labels != 1)
    if bool(bad.any()):
        value = labels[bad][0].item()
        raise FeatureError(f"{name}: {value} is neither 0 nor 1: say what is a positive (label >= 4, say)")
    return labels == 1


def _hashable(column: pl.Series) -> pl.Series:
    """Integers or text; times as microseconds, so that the unit they are stored in does not matter."""
    kind = kind_of(column.dtype)
    return as_kind(column, "integers" if kind == "booleans" else str(kind)).to_physical()
