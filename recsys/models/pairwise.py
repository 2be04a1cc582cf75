"""Steps of bpr and bce with row-wise Adagrad on a CPU, compiled: what `mf` does otherwise with PyTorch operations.

Those pass over the batch's vectors some twenty times, and memory is what they wait for; here a sample is read
once, which makes a step several times as fast. The arithmetic is that of `losses` and `RowAdagrad`, in the same
order: gradients of the whole batch, then all accumulators, then all rows. Results do not depend on the number of
threads.

Shapes in names: U users, I items, B positives, N negatives of each, M = B + B * N, W width of a row.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

# Sums may be reordered, so that they vectorise; nothing is assumed about infinities and NaN.
_FAST = {"reassoc", "contract", "nsz"}


class PairwiseSteps:
    """Optimiser steps on two tables of rows, in place, with scratch memory that is used again."""

    def __init__(self, loss: str, num_negatives: int, embedding_dim: int) -> None:
        """loss: "bpr" or "bce". Columns from embedding_dim on are biases: without decay, the ones left alone."""
        self.is_bpr, self.num_negatives, self.embedding_dim = loss == "bpr", num_negatives, embedding_dim
        self.scratch: tuple[np.ndarray, ...] = ()

    def __call__(
        self,
        tables: tuple[Tensor, Tensor],
        squares: tuple[Tensor, Tensor],
        decays: tuple[Tensor, Tensor],
        user_B: Tensor,
        item_M: Tensor,
        *,
        lr: float,
        eps: float,
    ) -> float:
        """One step; returns the mean loss.

        tables: users [U, W] and items [I, W]; squares: their Adagrad accumulators [U], [I]; decays: the L2 that a row
        pays for a positive, [U], [I]. item_M: B positives, then N negatives of each in turn.
        """
        B, M, W = len(user_B), len(item_M), tables[0].shape[1]
        if not self.scratch or self.scratch[0].shape[0] < B:
            empty = [np.empty(shape, np.float32) for shape in ((B, W), (M, W), (B,), (M,), (B,))]
            self.scratch = tuple(empty)
        threads = torch.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        arrays: list[Any] = [tensor.detach().numpy() for tensor in (*tables, *squares, *decays, user_B, item_M)]
        by_user_BW, by_item_MW, square_B, square_M, loss_B = self.scratch
        shape = self.is_bpr, self.num_negatives, self.embedding_dim
        _gradients(*arrays[:2], *arrays[4:], *shape, by_user_BW, by_item_MW, square_B, square_M, loss_B)
        _apply(*arrays[:4], *arrays[6:], by_user_BW, by_item_MW, square_B, square_M, np.float32(lr), np.float32(eps))
        if torch.get_num_threads() != threads:  # Numba's first launch sets OpenMP's count, which PyTorch shares
            torch.set_num_threads(threads)
        return float(loss_B[:B].mean(dtype=np.float64))


@numba.njit(fastmath=_FAST, inline="always")
def _dot(x: np.ndarray, y: np.ndarray) -> np.float32:
    total = np.float32(0)
    for w in range(len(x)):
        total += x[w] * y[w]
    return total


@numba.njit(inline="always")
def _sigmoid(x: np.float32) -> np.float32:
    return np.float32(1) / (np.float32(1) + np.exp(-x))


@numba.njit(inline="always")
def _softplus(x: np.float32) -> np.float32:
    return max(x, np.float32(0)) + np.log1p(np.exp(-abs(x)))


@numba.njit(parallel=True, fastmath=_FAST, cache=True)
def _gradients(
    users: np.ndarray,
    items: np.ndarray,
    user_decay: np.ndarray,
    item_decay: np.ndarray,
    user: np.ndarray,
    item: np.ndarray,
    is_bpr: bool,
    N: int,
    D: int,
    by_user: np.ndarray,
    by_item: np.ndarray,
    user_square: np.ndarray,
    item_square: np.ndarray,
    loss: np.ndarray,
) -> None:
    """Write the gradients of each row of the batch, their mean squares, and the loss of each positive."""
    B, W = len(user), users.shape[1]
    share = np.float32(1) / np.float32(N)
    for b in numba.prange(B):
        x, y, gx, gy = users[user[b]], items[item[b]], by_user[b], by_item[b]
        positive = _dot(x, y)
        slope_sum, loss_sum = np.float32(0), np.float32(0)
        gx[:] = np.float32(0)
        for n in range(N):
            z, gz = items[item[B + b * N + n]], by_item[B + b * N + n]
            negative = _dot(x, z)
            if is_bpr:
                slope = _sigmoid(negative - positive) * share
                loss_sum += _softplus(negative - positive) * share
                slope_sum -= slope
            else:
                slope = _sigmoid(negative)
                loss_sum += _softplus(negative)
            for w in range(W):
                gx[w] += slope * z[w]
                gz[w] = slope * x[w]
            if W > D:
                gz[D] = np.float32(0)
            item_square[B + b * N + n] = _dot(gz, gz) / np.float32(W)
        if not is_bpr:
            slope_sum = -_sigmoid(-positive)
            loss_sum += _softplus(-positive)
        pay_x, pay_y = user_decay[user[b]], item_decay[item[b]]
        for w in range(D):
            gx[w] += slope_sum * y[w] + pay_x * x[w]
            gy[w] = slope_sum * x[w] + pay_y * y[w]
        if W > D:  # a user's row ends in [own bias, 1], an item's in [1, own bias]
            gx[D] += slope_sum * y[D]
            gx[D + 1] = np.float32(0)
            gy[D] = np.float32(0)
            gy[D + 1] = slope_sum * x[D + 1]
        user_square[b] = _dot(gx, gx) / np.float32(W)
        item_square[b] = _dot(gy, gy) / np.float32(W)
        loss[b] = loss_sum


@numba.njit(fastmath=_FAST, cache=True)
def _update(
    table: np.ndarray,
    accumulated: np.ndarray,
    row: np.ndarray,
    gradient: np.ndarray,
    square: np.ndarray,
    lr: np.float32,
    eps: np.float32,
) -> None:
    """What `RowAdagrad` does with one sparse gradient."""
    for m in range(len(row)):
        accumulated[row[m]] += square[m]
    for m in range(len(row)):
        rate = lr / np.sqrt(accumulated[row[m]] + eps)
        values, by = table[row[m]], gradient[m]
        for w in range(len(values)):
            values[w] -= rate * by[w]


@numba.njit(parallel=True, cache=True)
def _apply(
    users: np.ndarray,
    items: np.ndarray,
    users_accumulated: np.ndarray,
    items_accumulated: np.ndarray,
    user: np.ndarray,
    item: np.ndarray,
    by_user: np.ndarray,
    by_item: np.ndarray,
    user_square: np.ndarray,
    item_square: np.ndarray,
    lr: np.float32,
    eps: np.float32,
) -> None:
    """Update both tables, each on one thread: no row is written by two."""
    for side in numba.prange(2):
        if side == 0:
            _update(users, users_accumulated, user, by_user, user_square, lr, eps)
        else:
            _update(items, items_accumulated, item, by_item, item_square, lr, eps)
