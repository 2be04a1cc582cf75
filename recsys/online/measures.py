"""Metrics by the columns that they are made of, and an experiment's frame as checked arrays.

A measure is a column, whose mean over users is meant, or a pair (above, below), the sum of one over the sum of the
other: ("clicks", "impressions") is a click-through rate. A frame has one row a user; `per_user` makes one of a log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import nearest
from recsys.online.effects import Floats, Places

Measure = str | tuple[str, str]


def columns_of(measures: Iterable[Measure]) -> list[str]:
    """The columns that measures are made of, each once, in the order of their mention."""
    every = [(measure,) if isinstance(measure, str) else measure for measure in measures]
    return list(dict.fromkeys(name for names in every for name in names))


def places(measure: Measure, names: Sequence[str]) -> Places:
    """Where the columns of a measure stand among names."""
    return tuple(names.index(name) for name in ((measure,) if isinstance(measure, str) else measure))


def listed(covariates: Sequence[Measure]) -> list[Measure]:
    """Several measures.

    Raises:
        ValueError: one on its own, which a pair could be as well as two.
    """
    if isinstance(covariates, str) or (isinstance(covariates, tuple) and covariates):
        raise ValueError(f"covariates are {covariates!r}: give a list of them, [{covariates!r}]")
    return list(covariates)


def per_user(
    log: pl.DataFrame,
    sums: Iterable[str],
    *,
    user_id: str = "user_id",
    keep: Iterable[str] = (),
    rows: str | None = None,
    users: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """One row a user from the rows of a log, in the order of user_id.

    Args:
        sums: columns that are summed over a user's rows.
        keep: columns that say the same in all rows of a user, such as the group.
        rows: what the number of a user's rows is to be called, such as impressions.
        users: one row for everyone in the experiment, with columns of their own, such as the group or what was
            measured before: a user without a row in the log then counts with sums of 0, one who is not here is left
            out.

    Raises:
        ValueError: an unknown column, a user whose rows differ in a column to keep, or one who is in users twice.
    """
    sums, keep = list(sums), list(keep)
    check_columns(log, [user_id, *sums, *keep])
    for name in keep:
        differ = log.group_by(user_id).agg(pl.col(name).n_unique().alias("n")).filter(pl.col("n") > 1)
        if differ.height:
            user = differ[user_id].min()
            raise ValueError(f"user {user!r} has more than one {name}: leave out users who saw several")
    wanted = [pl.col(name).sum() for name in sums] + [pl.col(name).first() for name in keep]
    found = log.group_by(user_id).agg(*wanted, *([pl.len().cast(pl.Int64).alias(rows)] if rows else []))
    if users is not None:
        check_columns(users, [user_id])
        check_unique(users, user_id)
        counted = [*sums, *([rows] if rows else [])]
        both = [name for name in users.columns if name != user_id and name in found.columns]
        if both:
            raise ValueError(f"the column {both[0]} is in the log and in users: take it from one of them")
        found = users.join(found, on=user_id, how="left").with_columns(pl.col(counted).fill_null(0))
    return found.sort(user_id)


def check_columns(frame: pl.DataFrame, names: Iterable[str]) -> None:
    """
    Raises:
        ValueError: the frame lacks one of the columns.
    """
    for name in names:
        if name not in frame.columns:
            raise ValueError(f"no column {name}: {nearest(name, frame.columns)}")


def check_unique(frame: pl.DataFrame, user_id: str, group: str | None = None) -> None:
    """
    Raises:
        ValueError: a user is missing, in two groups, or in two rows.
    """
    if frame[user_id].null_count():
        raise ValueError(f"{user_id} is null in row {frame[user_id].is_null().arg_max()}: leave such rows out")
    if frame[user_id].n_unique() == frame.height:
        return
    twice = frame.filter(frame[user_id].is_duplicated())
    user = twice[user_id].min()
    own = twice.filter(pl.col(user_id) == user)
    if group is not None and own[group].n_unique() > 1:
        groups = " and ".join(sorted(map(str, own[group].unique())))
        raise ValueError(f"user {user!r} is in {groups}: leave out users who saw several groups")
    raise ValueError(f"user {user!r} has {own.height} rows: sum a log's rows by per_user first")


def values(frame: pl.DataFrame, names: Sequence[str], measures: Iterable[Measure] = ()) -> Floats:
    """Columns as float64 [C, U].

    Raises:
        ValueError: a column is unknown, holds no numbers, or one that is null, NaN or infinite; the denominator of a
            measure is below 0 somewhere or 0 everywhere.
    """
    check_columns(frame, names)
    found = np.empty((len(names), frame.height))
    for c, name in enumerate(names):
        column = frame[name]
        if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
            raise ValueError(f"column {name} is {column.dtype}: a metric is made of numbers")
        found[c] = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        wrong = ~np.isfinite(found[c])
        if wrong.any():
            row = int(wrong.argmax())
            value = "null" if column[row] is None else str(found[c, row])
            raise ValueError(f"column {name} is {value} in row {row}: fill it, or leave that user out")
    for measure in measures:
        if isinstance(measure, tuple):
            check_denominator(found[names.index(measure[1])], measure[1])
    return found


def check_denominator(below_U: NDArray[np.float64], name: str, where: str = "") -> None:
    """
    Raises:
        ValueError: it is below 0 for a user, or 0 for all of them.
    """
    if (below_U < 0).any():
        raise ValueError(
            f"denominator {name} is below 0 in row {int((below_U < 0).argmax())}: it counts, or is no ratio"
        )
    if not below_U.any():
        raise ValueError(f"denominator {name} is 0 for all users{where}: there is no ratio to compare")


def check_denominators(sides: Mapping[str, Floats], names: Sequence[str], measures: Iterable[Measure]) -> None:
    """
    Raises:
        ValueError: the denominator of a measure is 0 for all users of a group.
    """
    for measure in measures:
        if isinstance(measure, tuple):
            for side, found_CU in sides.items():
                check_denominator(found_CU[names.index(measure[1])], measure[1], f" of {side}")


def sides(
    frame: pl.DataFrame,
    measures: Sequence[Measure],
    *,
    group: str = "group",
    control: str = "control",
    user_id: str = "user_id",
) -> tuple[list[str], dict[str, Floats]]:
    """The columns of measures, and by group, the control first, their values [C, U] in the order of rows.

    Users whose group is null take no part.

    Raises:
        ValueError: an unknown column, a value that is no number, a user in two groups or rows, no control, the control
            alone, a group of a single user, or a ratio without a denominator in some group.
    """
    names = columns_of(measures)
    check_columns(frame, [user_id, group, *names])
    frame = frame.filter(pl.col(group).is_not_null())
    check_unique(frame, user_id, group)
    label = frame[group].cast(pl.String)
    groups = label.unique().sort().to_list()
    if control not in groups:
        raise ValueError(f"{group} has no {control}: {nearest(control, groups)}")
    if len(groups) < 2:
        raise ValueError(f"{group} is {control} for everyone: there is nothing to compare it with")
    values_CU = values(frame, names, measures)
    names_of_groups = [control, *(name for name in groups if name != control)]
    found = {name: values_CU[:, (label == name).to_numpy()] for name in names_of_groups}
    for name, of_group in found.items():
        if of_group.shape[1] < 2:
            raise ValueError(f"{group} {name} has one user: a variance needs two")
    check_denominators(found, names, measures)
    return names, found
