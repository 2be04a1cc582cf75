"""Losses of implicit feedback, as pure functions of logits. Each returns one value a positive: loss_B.

Those of rows with labels return one value a row, and those that compare rows of a group their mean.

Shapes in names: B positives of a batch (or rows), N negatives, I items, G groups, P positive rows, Z pairs of a
positive and a negative row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def bpr(positive_B: Tensor, negative_BN: Tensor) -> Tensor:
    """-log sigmoid(positive - negative), mean over the negatives (Rendle et al. 2009)."""
    return F.softplus(negative_BN - positive_B[:, None]).mean(1)


def bce(positive_B: Tensor, negative_BN: Tensor) -> Tensor:
    """Binary cross-entropy of the positive (label 1) and of each negative (label 0), summed (NCF, 2017)."""
    return F.softplus(-positive_B) + F.softplus(negative_BN).sum(1)


def full_softmax(logits_BI: Tensor, target_B: Tensor) -> Tensor:
    """-log softmax(logits)[target] over every column. target_B: int64 columns of the positives."""
    return F.cross_entropy(logits_BI, target_B, reduction="none")


def sampled_softmax(
    positive_B: Tensor, negative_BN: Tensor, log_q_N: Tensor, hit_BN: Tensor, num_draws: int | None = None
) -> Tensor:
    """Softmax whose sum over the other items is estimated from draws (Bengio and Senécal 2008).

    A negative drawn with probability q stands for 1 / (N q) items, hence the logQ correction
    logit - log(N q). The positive takes part for certain and is not corrected (Khrylchenko et al. 2025).
    Draws that hit the positive itself count in N and add nothing: they are masked.

    Args:
        negative_BN: logits of the draws, shared by the batch or not.
        log_q_N: log probability of each draw, broadcast against negative_BN.
        hit_BN: bool, where the draw is the row's own positive.
        num_draws: N, if other than the number of columns.
    """
    count = negative_BN.shape[1] if num_draws is None else num_draws
    corrected_BN = negative_BN - (log_q_N + math.log(max(count, 1)))
    # A finite floor: the gradient of logsumexp over nothing but -inf would be NaN.
    corrected_BN.masked_fill_(hit_BN, torch.finfo(corrected_BN.dtype).min)
    return torch.logaddexp(positive_B, corrected_BN.logsumexp(1)) - positive_B


def in_batch_softmax(logits_BB: Tensor, item_idx_B: Tensor, log_q_B: Tensor) -> Tensor:
    """Sampled softmax whose negatives are the other positives of the batch (Yi et al. 2019).

    logits_BB: [user row, item column]. item_idx_B: the items; a column that holds the row's own positive
    (itself, or an accidental hit elsewhere in the batch) is masked. log_q_B: each item's share of the
    training pairs.
    """
    hit_BB = item_idx_B[:, None] == item_idx_B[None, :]
    return sampled_softmax(logits_BB.diagonal(), logits_BB, log_q_B, hit_BB, num_draws=len(item_idx_B) - 1)


def log_loss(logits_B: Tensor, label_B: Tensor) -> Tensor:
    """-log of the probability that sigmoid(logits) gives to the labels 0 and 1 (or shares between)."""
    return F.binary_cross_entropy_with_logits(logits_B, label_B, reduction="none")


def focal(logits_B: Tensor, label_B: Tensor, gamma: float = 2.0) -> Tensor:
    """The log loss times (1 - p)**gamma, p the probability of the row's own class (Lin et al. 2017)."""
    loss_B = log_loss(logits_B, label_B)
    return (-torch.expm1(-loss_B)).clamp(min=1e-30).pow(gamma) * loss_B


def pairwise(logits_B: Tensor, label_B: Tensor, group_B: Tensor) -> Tensor:
    """-log sigmoid(positive - negative), mean over all pairs of a positive and a negative row of one group: RankNet
    (Burges et al. 2005). 0 where there are none.

    label_B: above 0 is positive. group_B: int64, equal within a group. Memory goes with the pairs.
    """
    group_B = group_B.unique(return_inverse=True)[1]
    positive_B = label_B > 0
    order_B = (2 * group_B + positive_B).argsort(stable=True)  # group by group, negatives first
    rows_G = group_B.bincount()
    negatives_G = group_B[~positive_B].bincount(minlength=len(rows_G))
    positive_P = positive_B.nonzero().squeeze(1)
    count_P = negatives_G[group_B[positive_P]]
    start_P = (rows_G.cumsum(0) - rows_G)[group_B[positive_P]] - (count_P.cumsum(0) - count_P)
    positive_Z = positive_P.repeat_interleave(count_P)
    place_Z = start_P.repeat_interleave(count_P) + torch.arange(len(positive_Z), device=start_P.device)
    # index_select: on a CPU the gradient of brackets is summed by many threads in any order.
    above_Z = logits_B.index_select(0, order_B[place_Z]) - logits_B.index_select(0, positive_Z)
    return F.softplus(above_Z).sum() / max(len(above_Z), 1)


def listwise(logits_B: Tensor, label_B: Tensor, group_B: Tensor) -> Tensor:
    """-log softmax(logits of the group)[positive], mean over a group's positives, then over groups: ListNet with the
    probability of the first place (Cao et al. 2007). 0 where no group counts.

    Only groups with rows of both classes count: in others there is nothing to order. label_B: above 0 is positive.
    group_B: int64, equal within a group.
    """
    group_B = group_B.unique(return_inverse=True)[1]
    positive_B = label_B > 0
    rows_G = group_B.bincount()
    positives_G = group_B[positive_B].bincount(minlength=len(rows_G))
    counts_G = (positives_G > 0) & (positives_G < rows_G)
    weight_B = (positive_B & counts_G[group_B]).to(logits_B.dtype) / positives_G.clamp(min=1)[group_B]
    zeros_G = logits_B.new_zeros(len(rows_G))
    top_B = zeros_G.scatter_reduce(0, group_B, logits_B.detach(), "amax", include_self=False)[group_B]
    below_B = logits_B - top_B
    mass_G = zeros_G.index_add(0, group_B, below_B.exp())
    loss_B = mass_G.log().index_select(0, group_B) - below_B
    return (weight_B * loss_B).sum() / counts_G.sum().clamp(min=1)


def pinball(prediction_B: Tensor, target_B: Tensor, quantile: float) -> Tensor:
    """A miss from below costs the quantile, one from above 1 - quantile: least at the quantile of the target's
    distribution (Koenker and Bassett 1978)."""
    missed_B = target_B - prediction_B
    return torch.maximum(quantile * missed_B, (quantile - 1) * missed_B)
