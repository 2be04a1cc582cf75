"""Layers that several rankers share.

Shapes in names: B rows, F fields, D embedding dim, T places of all indices of a row, n places that are filled,
R rows of a table, U of them in a batch, V numbers of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.schema import PADDING, Column

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


def num_rows(batch: dict[str, Tensor]) -> int:
    """Rows of a batch. A column of one row holds for all of them: what is known of the user whom candidates are for."""
    return max(len(values) for values in batch.values())


class Lookups(nn.Module):
    """The vectors of what is an index: forward(batch) -> fields_BFD, with F = 0 where no column is.

    A list of indices is the mean over what is not padding, zeros where it is empty. Columns whose indices are
    another's (`Column.table`) share its rows. All tables lie in one parameter, `table`, and a step is one lookup: its
    cost goes with the places that are filled. Gradients are sparse and hold a row once, however often it was looked up.

    fields: the names of the fields, in their order: columns of one index, then lists.

    Raises:
        IndexError: an index that its column does not have.
    """

    starts_T: Tensor
    sizes_T: Tensor
    scratch_R: Tensor

    def __init__(self, columns: Sequence[Column], embedding_dim: int, init_std: float = 0.02) -> None:
        super().__init__()
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}")
        indexed = sorted((c for c in columns if c.cardinality is not None), key=lambda c: c.width is not None)
        self.fields = [c.name for c in indexed]
        self.num_single = sum(c.width is None for c in indexed)
        rows: dict[str, int] = {}
        for c in indexed:
            rows[c.table or c.name] = max(rows.get(c.table or c.name, 0), c.cardinality or 0)
        starts = dict(zip(rows, accumulate(rows.values(), initial=0), strict=False))
        self.widths = [c.width or 1 for c in indexed]
        places = torch.tensor(self.widths, dtype=torch.int64)
        for name, values in {
            "starts_T": [starts[c.table or c.name] for c in indexed],
            "sizes_T": [c.cardinality for c in indexed],
        }.items():
            values_T = torch.tensor(values, dtype=torch.int64).repeat_interleave(places)
            self.register_buffer(name, values_T, persistent=False)
        self.register_buffer("scratch_R", torch.zeros(sum(rows.values()), dtype=torch.int64), persistent=False)
        self.embedding_dim = embedding_dim
        self.table = nn.Parameter(torch.randn(sum(rows.values()), embedding_dim).mul_(init_std)) if rows else None

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        size = num_rows(batch)
        if self.table is None:
            return torch.zeros(size, 0, self.embedding_dim, device=next(iter(batch.values())).device)
        every = range(len(self.fields))
        shared = [f for f in every if len(batch[self.fields[f]]) < size]
        if not shared:
            return self._means(batch, every)
        # What holds for all rows is looked up once.
        found_BFD = self.table.new_empty(size, len(self.fields), self.embedding_dim)
        found_BFD[:, shared] = self._means(batch, shared)
        if own := [f for f in every if f not in shared]:
            found_BFD[:, own] = self._means(batch, own)
        return found_BFD

    def _means(self, batch: dict[str, Tensor], chosen: Sequence[int]) -> Tensor:
        assert self.table is not None
        if not torch.is_grad_enabled() and all(f < self.num_single for f in chosen):
            idx_BF, starts_F = self._indices(batch, chosen)
            return F.embedding(idx_BF + starts_F, self.table)
        row_n, counts_BF = self._places(batch, chosen)
        means: Tensor = _Means.apply(self.table, row_n, counts_BF.view(-1), self.scratch_R)
        return means.view(*counts_BF.shape, self.embedding_dim)

    def places(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The rows of the table that are looked up, int64 [n], row by row and in each field by field, and how many of
        them each field has, int64 [B, F]."""
        size = num_rows(batch)
        whole = {name: batch[name].expand(size, *batch[name].shape[1:]) for name in self.fields}
        return self._places(whole, range(len(self.fields)))

    def _places(self, batch: dict[str, Tensor], chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """`places` of some of the fields, in their order."""
        idx_BT, starts_T = self._indices(batch, chosen)
        filled_BT = idx_BT != PADDING
        filled_BT[:, : sum(f < self.num_single for f in chosen)] = True
        counts_BF = torch.stack([part.sum(1) for part in filled_BT.split([self.widths[f] for f in chosen], 1)], 1)
        return (idx_BT + starts_T)[filled_BT], counts_BF

    def _indices(self, batch: dict[str, Tensor], chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The checked indices of some of the fields, int64 [B, T], and where their tables begin, [T]."""
        starts_T, sizes_T = self.starts_T, self.sizes_T
        if len(chosen) < len(self.fields):
            starts_T, sizes_T = (
                torch.cat([parts[f] for f in chosen])
                for parts in (starts_T.split(self.widths), sizes_T.split(self.widths))
            )
        idx_BT = torch.cat([batch[self.fields[f]].reshape(-1, self.widths[f]) for f in chosen], 1)
        self._check(idx_BT, sizes_T, [self.fields[f] for f in chosen for _ in range(self.widths[f])])
        return idx_BT, starts_T

    @staticmethod
    def _check(idx_BT: Tensor, sizes_T: Tensor, names: Sequence[str]) -> None:
        """The tables lie end to end: an index too large would be another column's row. names: of the columns [T]."""
        wrong_BT = (idx_BT < 0) | (idx_BT >= sizes_T)
        if bool(wrong_BT.any()):
            b, t = wrong_BT.nonzero()[0].tolist()
            raise IndexError(
                f"column {names[t]!r}: index {int(idx_BT[b, t])} in row {b} of the batch lies outside its "
                f"{int(sizes_T[t])} rows: is this another pipeline's batch?"
            )


class _Means(torch.autograd.Function):
    """Means of rows of a table, [bags, D]: bag after bag, each of so many rows, zeros where of none."""

    @staticmethod
    def forward(ctx: Any, table_RD: Tensor, row_n: Tensor, counts: Tensor, scratch_R: Tensor) -> Tensor:
        ctx.save_for_backward(row_n, counts)
        ctx.shape, ctx.scratch_R = table_RD.shape, scratch_R
        return F.embedding_bag(row_n, table_RD, counts.cumsum(0) - counts, mode="mean")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        row_n, counts = ctx.saved_tensors
        gradient_nD = (gradients[0] / counts.clamp(min=1)[:, None]).repeat_interleave(counts, 0, output_size=len(row_n))
        # Of the places that look up one row, one is written last and stands for all: no sort is needed.
        place_n = torch.arange(len(row_n), device=row_n.device)
        chosen_n = ctx.scratch_R.index_put_((row_n,), place_n)[row_n]
        is_chosen_n = chosen_n == place_n
        merged_UD = gradient_nD.new_zeros(int(is_chosen_n.sum()), ctx.shape[1])
        merged_UD.index_add_(0, (is_chosen_n.cumsum(0) - 1)[chosen_n], gradient_nD)
        rows_1U = row_n[is_chosen_n][None]
        return torch.sparse_coo_tensor(rows_1U, merged_UD, ctx.shape, check_invariants=False), None, None, None


class Numbers(nn.Module):
    """What is no index: forward(batch) -> numbers_BV, float32.

    Single floats (as `Numeric` scales them) stay as they are; whole numbers and lists (one-hot, pretrained vectors,
    signs, gaps) are tamed by sign(x) log(1 + |x|).

    fields: the names of the columns in their order: single floats, whole numbers, lists; widths: numbers of each.

    Raises:
        ValueError: a number that is not finite.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        found = sorted((c for c in columns if c.cardinality is None), key=_kind)
        self.num_plain = sum(_kind(c) == 0 for c in found)
        self.fields = [c.name for c in found]
        self.widths = [c.width or 1 for c in found]
        self.num_single = sum(c.width is None for c in found)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        size = num_rows(batch)
        if not self.fields:
            return torch.zeros(size, 0, device=next(iter(batch.values())).device)
        columns = zip(self.fields, self.widths, strict=True)
        x_BV = torch.cat([batch[name].view(-1, width).float().expand(size, width) for name, width in columns], 1)
        if not bool(x_BV.isfinite().all()):
            names = [name for name, w in zip(self.fields, self.widths, strict=True) for _ in range(w)]
            b, v = (~x_BV.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"column {names[v]!r}: {float(x_BV[b, v])} in row {b} of the batch is not finite: fill it")
        plain_BV, wild_BV = x_BV.tensor_split([self.num_plain], 1)
        return torch.cat([plain_BV, wild_BV.sign() * wild_BV.abs().log1p()], 1)


def _kind(column: Column) -> int:
    if column.width is not None:
        return 2
    return int(not column.dtype.startswith("float"))


class FieldEmbeddings(nn.Module):
    """One vector a field: forward(batch) -> fields_BFD.

    Indices as in `Lookups`; a number of `Numbers` is a vector of its own times the number, a list of numbers the sum of
    these over the square root of their count. fields: the names of the fields, in their order.
    """

    def __init__(self, columns: Sequence[Column], embedding_dim: int, init_std: float = 0.02) -> None:
        super().__init__()
        self.lookups = Lookups(columns, embedding_dim, init_std)
        self.numbers = Numbers(columns)
        self.fields = [*self.lookups.fields, *self.numbers.fields]
        self.number_vectors = nn.Parameter(init_std * torch.randn(sum(self.numbers.widths), embedding_dim))

    @property
    def width(self) -> int:
        """Numbers a row, F * D."""
        return len(self.fields) * self.lookups.embedding_dim

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x_BV, first = self.numbers(batch), self.numbers.num_single
        parts = [self.lookups(batch), x_BV[:, :first, None] * self.number_vectors[:first]]
        widths = self.numbers.widths[first:]
        lists = zip(x_BV[:, first:].split(widths, 1), self.number_vectors[first:].split(widths), strict=True)
        parts += [(x_BV @ vectors_VD / len(vectors_VD) ** 0.5)[:, None] for x_BV, vectors_VD in lists] if widths else []
        return torch.cat(parts, 1)


class RowFeatures(nn.Module):
    """The vectors of what is known of the rows of a table, as users or items: forward(row_N) -> fields_NFD.

    The values of all rows are kept with the model (`describe`); `fields` embeds them, and rows of another table too.
    """

    def __init__(self, num_rows: int, columns: Sequence[Column], width: int) -> None:
        super().__init__()
        self.columns, self.width = tuple(columns), width
        self.fields = FieldEmbeddings(columns, width) if columns else None
        for place, c in enumerate(columns):
            shape = (num_rows,) if c.width is None else (num_rows, c.width)
            self.register_buffer(f"values_{place}", torch.zeros(shape, dtype=getattr(torch, c.dtype)))

    def describe(self, rows: dict[str, Tensor]) -> None:
        """Keep the features of all rows, tensors by column [rows, ...].

        Raises:
            ValueError: a column is missing or not of the shape that the schema says.
        """
        for place, c in enumerate(self.columns):
            kept = getattr(self, f"values_{place}")
            if c.name not in rows or rows[c.name].shape != kept.shape:
                found = tuple(rows[c.name].shape) if c.name in rows else "nothing"
                raise ValueError(f"feature {c.name!r} should be a tensor of shape {tuple(kept.shape)}, got {found}")
            kept.copy_(rows[c.name])

    def forward(self, row_N: Tensor) -> Tensor:
        if self.fields is None:
            return torch.zeros(len(row_N), 0, self.width, device=row_N.device)
        fields_NFD: Tensor = self.fields(
            {c.name: getattr(self, f"values_{p}")[row_N] for p, c in enumerate(self.columns)}
        )
        return fields_NFD


class Dense(nn.Sequential):
    """Hidden layers of an MLP: linear, activation, dropout, again. out_features: how wide the last one is."""

    def __init__(self, width: int, hidden: Sequence[int], dropout: float = 0.0, activation: str = "relu") -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation}: expected one of {', '.join(ACTIVATIONS)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        if any(out < 1 for out in hidden):
            raise ValueError(f"hidden layers must be at least 1 wide, got {list(hidden)}")
        layers: list[nn.Module] = []
        for out in hidden:
            layers += [nn.Linear(width, out), ACTIVATIONS[activation](), nn.Dropout(dropout)]
            width = out
        super().__init__(*layers)
        self.out_features = width


def directions(row_NW: Tensor, width: int, temperature: float) -> Tensor:
    """Rows whose first `width` numbers, the vector, are brought to length 1 / sqrt(temperature): the inner product of
    two is their cosine over the temperature. What stands behind it, as biases, stays."""
    vector_ND, rest = row_NW.tensor_split([width], dim=1)
    return torch.cat([F.normalize(vector_ND, dim=1) / math.sqrt(temperature), rest], 1)


def pairwise_products(fields_BFD: Tensor) -> Tensor:
    """The summed inner products of all pairs of fields, float [B]: (|sum|^2 - sum of |.|^2) / 2 (Rendle, lemma 3.1)."""
    return (fields_BFD.sum(1).square() - fields_BFD.square().sum(1)).sum(1) / 2
