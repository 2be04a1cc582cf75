"""The files that come with "Neural Collaborative Filtering" (He et al., WWW 2017): train and test pairs, and for each
test pair the items that it is ranked among."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recsys.data.checks import Rows
from recsys.data.files import existing, read_fields, read_lines
from recsys.schema import ITEM_ID, TIMESTAMP, USER_ID

RATING = "rating"
FIELDS = (USER_ID, ITEM_ID, RATING, TIMESTAMP)  # the last may be missing
PARTS = ("train.rating", "test.rating", "test.negative")


def read_layout(folder: Path, name: str) -> tuple[Rows, Rows, Rows, tuple[Path, ...]]:
    """Train and test as rows of text, candidates as rows of user_id and item_id, and the files.

    Raises:
        DataError: a file is missing or a line malformed; the message names it.
    """
    train, test, negative = files = tuple(existing(folder.expanduser() / f"{name}.{part}") for part in PARTS)
    tested = read_fields(test, FIELDS, least=3)
    return read_fields(train, FIELDS, least=3), tested, _candidates(negative, tested), files


def _candidates(file: Path, tested: Rows) -> Rows:
    """Lines "(user,item) item item …", of which the first is a test pair and the others are its negatives."""
    rows, _, _ = read_lines(file)
    pair = rows.frame[USER_ID].str.extract_groups(r"^\(([^,()]+),([^,()]+)\)$").struct.unnest()
    pair.columns = [USER_ID, ITEM_ID]
    rows.refuse(pair[USER_ID].is_null(), USER_ID, "{} is no test pair", "write it as (user,item)")
    known = tested.frame.select(pl.concat_str(pl.col(USER_ID, ITEM_ID).cast(pl.String), separator=",")).to_series()
    named = pair.select(pl.concat_str(USER_ID, ITEM_ID, separator=",")).to_series()
    rows.refuse(~named.is_in(known.implode()), USER_ID, f"{{}} is no row of {tested.files[0]}", "take files of one set")
    return Rows(rows.frame.with_columns(pair[USER_ID]), rows.files, rows.heights, text=True, numbers=rows.numbers)
