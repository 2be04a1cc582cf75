"""The joined view: rows of a log, each with what is known of its user and its item."""

from __future__ import annotations

from collections import Counter

import polars as pl
import torch
from torch import Tensor

from recsys.config import nearest
from recsys.data.checks import DataError
from recsys.data.log import Log
from recsys.schema import ITEM_ID, LABEL, NUM_RESERVED, TIMESTAMP, USER_ID

MOST_VALUES = 4096  # that a column may have which says of what kind an item is


def joined(log: Log, rows: pl.LazyFrame | pl.DataFrame) -> pl.LazyFrame:
    """Rows, in their order, with the columns of their user and of their item; null where an id has no row there.

    A column of a table whose name the other table, the log's events or the rows have too is told apart by `user_` or
    `item_` before it, whatever rows are asked for. So an item table's `timestamp` is `item_timestamp`.

    Args:
        rows: events of the log, a part of a split, or any others with a user_id and an item_id.

    Raises:
        DataError: ids are text on one side and integers on the other, an id is missing from the rows, or two columns
            would have one name.
    """
    view = rows.lazy()
    schema = view.collect_schema()
    tables = {role: table for role, table in ((USER_ID, log.users), (ITEM_ID, log.items)) if table is not None}
    columns = {role: table.collect_schema() for role, table in tables.items()}
    apart = Counter([name for found in columns.values() for name in found])
    apart.update({USER_ID, ITEM_ID, TIMESTAMP, LABEL, *log.events.collect_schema(), *schema})
    names = list(schema)
    for role, table in tables.items():
        if role not in schema:
            raise DataError(f"{log.name}: the rows have no column {role!r} (they have {', '.join(schema)})")
        if (schema[role] == pl.String) != (columns[role][role] == pl.String):
            there = f"{columns[role][role]} in the table of features"
            raise DataError(f"{log.name}: {role} is {schema[role]} in the rows and {there}; convert one of them")
        prefix = role.removesuffix("id")
        renamed = {name: prefix + name for name in columns[role] if name != role and apart[name] > 1}
        names += [renamed.get(name, name) for name in columns[role] if name != role]
        view = view.join(table.rename(renamed), on=role, how="left", maintain_order="left")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{log.name}: column {twice[0]!r} comes twice once tables are joined; rename one of them")
    return view


def table_rows(log: Log, role: str, ids: pl.Series) -> pl.LazyFrame:
    """What is known of users (role USER_ID) or items (ITEM_ID) alone: `joined` for rows of these ids whose other id is
    null, and before them a row of nulls for each reserved index."""
    nulls = pl.Series(role, [None] * NUM_RESERVED, dtype=ids.dtype)
    rows = pl.concat([nulls, ids.alias(role)]).to_frame()
    other = ITEM_ID if role == USER_ID else USER_ID
    return joined(log, rows.with_columns(pl.lit(None, log.events.collect_schema()[other]).alias(other)))


def own_rows(log: Log, role: str, ids: pl.Series) -> pl.DataFrame:
    """`table_rows` with the columns of that role alone, named as `joined` names them: its id, and what
    its table says."""
    table = log.users if role == USER_ID else log.items
    rows, prefix = table_rows(log, role, ids).collect(), role.removesuffix("id")
    own = [] if table is None else [n if n in rows.columns else prefix + n for n in table.collect_schema() if n != role]
    return rows.select(role, *own)


def item_kinds(log: Log, ids: pl.Series, column: str) -> Tensor:
    """Of what kinds items are, float32 [I, D]: 1 for each value that a column of the item table has for them, reserved
    indices first. A text is split at | and commas, a list has its members as values; null is no kind.

    Raises:
        DataError: there is no such column, it holds fractions, or more than 4,096 values: it names items, not kinds.
    """
    known = {} if log.items is None else dict(log.items.collect_schema())
    if column not in known:
        raise DataError(f"{log.name}: the items have no column {column!r}: {nearest(column, known)}")
    if known[column].is_float():
        raise DataError(f"{log.name}: column {column!r} of the items holds fractions, not kinds; name another")
    rows = table_rows(log, ITEM_ID, ids).select(value=pl.col(column)).collect().with_row_index("item_idx")
    if known[column] == pl.String:
        rows = rows.with_columns(pl.col("value").str.replace_all(",", "|").str.split("|"))
    if isinstance(rows["value"].dtype, pl.List):
        rows = rows.explode("value", empty_as_null=True)
    rows = rows.drop_nulls().with_columns(pl.col("value").cast(pl.String).str.strip_chars())
    rows = rows.filter(pl.col("value") != "").with_columns(kind=pl.col("value").rank("dense") - 1)
    size = rows["kind"].max()
    if size is None or int(size) >= MOST_VALUES:  # type: ignore[arg-type]
        what = "no value" if size is None else f"more than {MOST_VALUES:,} values"
        raise DataError(
            f"{log.name}: column {column!r} of the items has {what}; name one that says of what kind they are"
        )
    found_ID = torch.zeros(len(ids) + NUM_RESERVED, int(size) + 1)  # type: ignore[arg-type]
    found_ID[rows["item_idx"].to_numpy().astype("int64"), rows["kind"].to_numpy().astype("int64")] = 1
    return found_ID
