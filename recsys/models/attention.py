"""Causal self-attention over the last items of a history, as SASRec and two-tower models use it.

Shapes in names: B sequences, L their columns, T items in all of them, D embedding dim, H heads. Items stand from column
0 on in order of time, padding behind them. Only attention looks at [B, L]: all else is computed for the T places that
hold an item.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.schema import PADDING, Interactions


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); causal, with dropout on what is added."""

    def __init__(self, embedding_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(embedding_dim)
        self.project_in = nn.Linear(embedding_dim, 3 * embedding_dim)
        self.project_out = nn.Linear(embedding_dim, embedding_dim)
        self.feed_norm = nn.LayerNorm(embedding_dim)
        self.widen = nn.Linear(embedding_dim, 4 * embedding_dim)
        self.narrow = nn.Linear(4 * embedding_dim, embedding_dim)

    def forward(
        self, x_TD: Tensor, there_BL: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """[T, D] -> [T, D]. Padding stands behind the items, so causality alone hides it from them."""
        wide_TD = self.project_in(self.attention_norm(x_TD))
        wide_BLD = wide_TD.new_zeros(*there_BL.shape, wide_TD.shape[1])
        wide_BLD[there_BL] = wide_TD
        # [B, H, L, D / H] each
        query, key, value = wide_BLD.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen_BHLD = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        seen_TD = seen_BHLD.transpose(1, 2).flatten(2)[there_BL]
        x_TD = x_TD + drop(self.project_out(seen_TD), dropout, generator)
        fed_TD = self.narrow(F.gelu(self.widen(self.feed_norm(x_TD))))
        return x_TD + drop(fed_TD, dropout, generator)


def drop(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Dropout by a generator, which torch's own cannot take; without one, x as it is."""
    if generator is None or share == 0:
        return x
    return x * torch.empty_like(x).bernoulli_(1 - share, generator=generator).div_(1 - share)


def last_items(history: Interactions, length: int) -> Tensor:
    """The last items of each row in their order, padding behind them: int64 [B, L], L at most `length`, at least 1."""
    count_B = history.row_counts().clamp(max=length)
    column_L = torch.arange(max(int(count_B.max()) if len(count_B) else 0, 1), device=history.device)
    place_BL = (history.indptr[1:] - count_B)[:, None] + column_L
    there_BL = column_L < count_B[:, None]
    item_Z = F.pad(history.item_idx, (0, 1))  # a place to point to where there are no items at all
    return item_Z[place_BL.where(there_BL, len(history))].masked_fill(~there_BL, PADDING)
