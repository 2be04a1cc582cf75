"""Conditions that every item of a list has to meet, in SQL, over columns of the item and of the request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl
import torch
from torch import Tensor

from recsys.config import nearest
from recsys.schema import NUM_RESERVED, PADDING


class Rules:
    """What may be shown to whom.

    allowed_I: bool [I], which items meet the rules about items alone; the reserved ones never do.

    Args:
        rules: SQL conditions: "duration < 3600", "topic != 7 OR age_band != '13-17'". One that is null is not met.
        item_rows: raw columns of items, row = item_idx; of a name that requests have too, the item's is meant.
        dtypes: columns of requests.

    Raises:
        ValueError: a rule that cannot be read, that names no column, or that is no condition.
    """

    def __init__(self, rules: Sequence[str], item_rows: pl.DataFrame, dtypes: Mapping[str, pl.DataType]) -> None:
        self.allowed_I = torch.arange(item_rows.height) >= NUM_RESERVED
        known = {**dtypes, **item_rows.schema}
        both: list[pl.Expr] = []
        for rule in rules:
            try:
                condition = pl.sql_expr(rule)
                names = condition.meta.root_names()
                for name in names:
                    if name not in known:
                        raise ValueError(f"rule {rule!r}: no column {name!r}: {nearest(name, known)}")
                kind = pl.DataFrame(schema={name: known[name] for name in names}).select(condition).dtypes[0]
            except pl.exceptions.PolarsError as error:
                raise ValueError(f"rule {rule!r}: {str(error).splitlines()[0]}") from None
            if kind != pl.Boolean:
                raise ValueError(f"rule {rule!r} gives {kind}: write a condition, such as duration < 3600")
            if set(names) <= set(item_rows.columns):
                met = item_rows.select(condition.fill_null(False)).to_series()
                self.allowed_I &= torch.from_numpy(met.to_numpy(writable=True))
            else:
                both.append(condition)
        used = {name for condition in both for name in condition.meta.root_names()}
        self._both = pl.all_horizontal(both).fill_null(False) if both else None
        self._items = item_rows.select(name for name in item_rows.columns if name in used)
        self._requests = sorted(used - set(item_rows.columns))

    @property
    def about_both(self) -> bool:
        """Whether some rule is about item and request."""
        return self._both is not None

    def met(self, requests: pl.DataFrame, item_BN: Tensor) -> Tensor:
        """item_idx of candidates [B, N], `PADDING` in the place of those that break a rule about both."""
        if self._both is None:
            return item_BN
        row, column = (item_BN != PADDING).nonzero(as_tuple=True)
        rows = requests.select(self._requests)[row.numpy()].hstack(self._items[item_BN[row, column].numpy()])
        met = rows.select(self._both).to_series().to_numpy(writable=True)
        found_BN = item_BN.clone()
        found_BN[row, column] = item_BN[row, column].masked_fill(~torch.from_numpy(met), PADDING)
        return found_BN
