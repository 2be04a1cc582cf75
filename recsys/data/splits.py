"""Train, validation and test. By time unless told otherwise: what is tested lies after what was learnt from.

Every split takes a Log and returns a `Split` whose parts hold each row exactly once, and a report of what a
reader of the result should know: rows of test older than train, pairs on both sides, ties, strangers. The
order of rows in the files plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import polars as pl

from recsys.data.checks import DataError
from recsys.data.log import Log, moment, row_hashes
from recsys.features.vocabulary import id_keys, mix64
from recsys.schema import ITEM_ID, LABEL, TIMESTAMP, USER_ID

TRAIN, VALIDATION, TEST = 0, 1, 2
PAIR = [USER_ID, ITEM_ID]


@dataclass(frozen=True, eq=False)
class Split:
    """The parts, the moments that divide them where time does, and what was seen while splitting."""

    train: pl.DataFrame
    validation: pl.DataFrame | None
    test: pl.DataFrame
    validation_cut: datetime | None
    test_cut: datetime | None
    report: dict[str, Any]


def positives(events: pl.DataFrame) -> pl.DataFrame:
    """The rows with label 1; all of them in a log without labels."""
    return events.filter(pl.col(LABEL) == 1) if LABEL in events.columns else events


def global_time(
    log: Log, *, test: float | str | date = 0.2, validation: float | str | date = 0.1, seed: int = 0
) -> Split:
    """One moment for all: rows at or after the cut are test.

    Args:
        test: the fraction of rows that lie in test, or the cut itself ("2022-05-03"). Rows of one timestamp
            stay together, so that a fraction may come out a little larger.
        validation: likewise, of the rows before the test cut; 0 for none.
        seed: unused, as nothing is drawn.

    Raises:
        DataError: no timestamps, a fraction outside (0, 1), or a cut that leaves a part empty.
    """
    _needs_time(log, "global_time")
    events = log.events.collect()
    test_cut = _cut(log, events[TIMESTAMP], test, "test")
    known = events.filter(pl.col(TIMESTAMP) < test_cut)
    validation_cut = None
    if validation != 0 and known[TIMESTAMP].n_unique() > 1:
        validation_cut = _cut(log, known[TIMESTAMP], validation, "validation")
    time = pl.col(TIMESTAMP)
    # A row lies past none, one or both cuts; without a validation cut the two fall together.
    part = (time >= (validation_cut or test_cut)).cast(pl.Int8) + (time >= test_cut).cast(pl.Int8)
    return _split(log, "global_time", events.with_columns(part=part), validation_cut, test_cut)


def leave_last_out(log: Log, *, test: int = 1, validation: int = 1, seed: int = 0) -> Split:
    """Each user's last positives are test, those before them validation, all earlier rows train.

    Ties in a user's time are broken by a hash of user and item, then of the whole row. Rows that are no positives
    go with the positive they precede, trailing ones with the last. A user with too few positives to leave one in
    train gives up validation first, then test. Note that test rows of one user may be older than train rows of
    another: the report counts them.

    Args:
        test, validation: positives of each user; validation may be 0.
        seed: unused, as nothing is drawn.

    Raises:
        DataError: no timestamps, or counts that are no whole numbers.
    """
    _needs_time(log, "leave_last_out")
    for name, count, least in (("test", test, 1), ("validation", validation, 0)):
        if count != int(count) or count < least:
            raise DataError(f"split.{name}={count}: leave_last_out takes whole numbers of rows from {least} up")
    test, validation = int(test), int(validation)
    events = log.events.collect()
    events = events.with_columns(key=_pair_keys(events, seed=0), row=pl.Series(row_hashes(events, 0)))
    events = events.sort([USER_ID, TIMESTAMP, "key", *([LABEL] if LABEL in events.columns else []), "row"])
    hit = pl.col(LABEL) == 1 if LABEL in events.columns else pl.lit(True)
    # left: positives of the user from this row to the end, so that the last one has 1.
    events = events.with_columns(hit=hit.cast(pl.Int64)).with_columns(
        total=pl.col("hit").sum().over(USER_ID),
        left=(pl.col("hit").sum().over(USER_ID) - pl.col("hit").cum_sum().over(USER_ID) + pl.col("hit")),
    )
    part = (
        pl.when((pl.col("left") <= test) & (pl.col("total") > test))
        .then(TEST)
        .when((pl.col("left") <= test + validation) & (pl.col("total") > test + validation))
        .then(VALIDATION)
        .otherwise(TRAIN)
    )
    return _split(log, "leave_last_out", events.with_columns(part=part).drop("key", "row", "hit", "total", "left"))


def random(log: Log, *, test: float = 0.2, validation: float = 0.1, seed: int = 0) -> Split:
    """Of each user's (user, item) pairs a random share is test. Needs no timestamps, and leaks the future.

    Every pair goes to one part with all its rows; positives and pairs that were only shown are drawn apart.
    The number drawn is rounded up or down at random, so that the share is met in the mean, and one pair of
    each user always stays in train. A pair's lot is a hash of (seed, user, item): no order, no chunk size and
    no other user changes it.

    Args:
        test: the share of pairs.
        validation: the share of the pairs not in test; 0 for none.

    Raises:
        DataError: a share outside (0, 1).
    """
    events = log.events.collect()
    part = _draw(events, _share(test, "test"), _share(validation, "validation"), seed)
    return _split(log, "random", part)


def given(log: Log, *, test: None = None, validation: float | str | date = 0.1, seed: int = 0) -> Split:
    """The test part that came with the log. Validation is the last of train where train has timestamps, else
    a random share of each user's pairs.

    Raises:
        DataError: the log brings no test part.
    """
    if log.test is None:
        raise DataError(f"{log.name}: brings no test part; name one (data.test=FILE) or take split=global_time")
    events, held_out = log.events.collect(), log.test.collect()
    validation_cut = None
    if validation == 0:
        events = events.with_columns(part=pl.lit(TRAIN))
    elif TIMESTAMP in events.columns:
        validation_cut = _cut(log, events[TIMESTAMP], validation, "validation")
        late = pl.col(TIMESTAMP) >= validation_cut
        events = events.with_columns(part=pl.when(late).then(VALIDATION).otherwise(TRAIN))
    else:
        share = _share(validation, "validation")
        # What _draw calls test is drawn first and to the whole share: it is the validation part here.
        drawn = pl.when(pl.col("part") == TEST).then(VALIDATION).otherwise(TRAIN)
        events = _draw(events, share, 0.0, seed).with_columns(part=drawn)
    rows = pl.concat([events, held_out.with_columns(part=pl.lit(TEST))], how="diagonal_relaxed")
    return _split(log, "given", rows, validation_cut)


def _needs_time(log: Log, kind: str) -> None:
    if TIMESTAMP not in log.events.collect_schema():
        raise DataError(f"{log.name}: split={kind} needs timestamps; say columns.timestamp=NAME or split=random")


def _share(value: Any, name: str) -> float:
    least = "0 (none) or " if name == "validation" else ""
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not (0 < share < 1 or (share == 0 and least)):
        raise DataError(f"split.{name}={value}: wanted {least}a share between 0 and 1")
    return share


def _cut(log: Log, timestamps: pl.Series, wanted: float | str | date, name: str) -> datetime:
    """The moment from which on rows lie in the later part; at least one row lies on either side."""
    ordered = timestamps.sort()
    oldest, newest = ordered[0], ordered[-1]
    if oldest == newest:
        raise DataError(f"{log.name}: all rows have one timestamp, nothing can be cut off; take split=random")
    if isinstance(wanted, str | date):
        stated = moment(wanted, f"split.{name}")
        if not oldest < stated <= newest:
            raise DataError(f"split.{name}={wanted}: the cut must lie after {oldest} and not after {newest}")
        return stated
    share = _share(wanted, name)
    cut: datetime = ordered[ordered.len() - max(1, int(share * ordered.len() + 1e-9))]
    # Where the oldest timestamp holds so many rows that nothing would lie before the cut, take the next.
    return cut if cut > oldest else ordered.filter(ordered > oldest)[0]


def _pair_keys(events: pl.DataFrame, seed: int) -> np.ndarray:
    """A hash of (seed, user, item), uint64 [n]."""
    users, items = id_keys(events[USER_ID]), id_keys(events[ITEM_ID])
    return mix64(mix64(users, seed) ^ mix64(items, seed + 1))


def _draw(events: pl.DataFrame, test: float, validation: float, seed: int) -> pl.DataFrame:
    """Adds `part`: random shares of each user's pairs."""
    hit = (pl.col(LABEL) == 1).any() if LABEL in events.columns else pl.lit(True)
    pairs = events.group_by(PAIR).agg(hit=hit)
    pairs = pairs.with_columns(key=_pair_keys(pairs, seed)).sort(USER_ID, "hit", "key", ITEM_ID)
    coin = mix64(id_keys(pairs[USER_ID]) * 2 + pairs["hit"].to_numpy(), seed + 2) / 2.0**64
    group = [USER_ID, "hit"]
    size, room = pl.len().over(group), pl.col("size") - 1
    pairs = pairs.with_columns(place=pl.int_range(pl.len()).over(group), size=size, coin=coin).with_columns(
        test=pl.min_horizontal((test * pl.col("size") + pl.col("coin")).floor(), room)
    )
    left = pl.col("size") - pl.col("test")
    other_coin = (pl.col("coin") * 2**20) % 1
    validated = pl.min_horizontal((validation * left + other_coin).floor(), left - 1)
    part = (
        pl.when(pl.col("place") < pl.col("test"))
        .then(TEST)
        .when(pl.col("place") < pl.col("test") + validated)
        .then(VALIDATION)
        .otherwise(TRAIN)
    )
    return events.join(pairs.select(*PAIR, part=part), on=PAIR, how="left", maintain_order="left")


def _split(
    log: Log,
    kind: str,
    rows: pl.DataFrame,
    validation_cut: datetime | None = None,
    test_cut: datetime | None = None,
) -> Split:
    """Divide rows by their `part`. Validation without a positive goes back to train."""
    train, validation, test = (rows.filter(pl.col("part") == part).drop("part") for part in range(3))
    held_out: pl.DataFrame | None = validation
    if positives(validation).is_empty():
        train, held_out, validation_cut = pl.concat([train, validation]), None, None
    for name, part in (("train", train), ("test", test)):
        if positives(part).is_empty():
            raise DataError(f"{log.name}: split={kind} leaves {name} without a positive; move the cut or the share")
    report = _report(kind, log, train, held_out, test)
    report |= {"validation_cut": _iso(validation_cut), "test_cut": _iso(test_cut)}
    return Split(train, held_out, test, validation_cut, test_cut, report)


def _report(
    kind: str, log: Log, train: pl.DataFrame, validation: pl.DataFrame | None, test: pl.DataFrame
) -> dict[str, Any]:
    """What goes into the manifest: JSON values only."""
    before = train if validation is None else pl.concat([train, validation])
    report: dict[str, Any] = {"kind": kind, "read": log.counts, "train": _part(train)}
    report["validation"] = None if validation is None else _part(validation)
    report["test"] = _part(test)
    pairs = positives(before).select(PAIR).unique()
    tested = positives(test).select(PAIR).unique()
    report["pairs_on_both_sides"] = tested.join(pairs, on=PAIR, how="semi").height
    for role, name in ((USER_ID, "users"), (ITEM_ID, "items")):
        for known, what in ((train, "train"), (before, "train_and_validation")):
            unseen = test.select(role).unique().join(known, on=role, how="anti").height
            report[f"test_{name}_unseen_in_{what}"] = unseen
    if TIMESTAMP in train.columns and test[TIMESTAMP].null_count() == 0:
        newest = before[TIMESTAMP].max()
        report["test_rows_older_than_newest_train_row"] = int((test[TIMESTAMP] < newest).sum())
        everything = pl.concat([before.select(USER_ID, TIMESTAMP), test.select(USER_ID, TIMESTAMP)])
        report["timestamp_ties_broken"] = everything.height - everything.unique().height
    return report


def _part(part: pl.DataFrame) -> dict[str, Any]:
    time = part[TIMESTAMP] if TIMESTAMP in part.columns else None
    return {
        "rows": part.height,
        "positives": positives(part).height,
        "users": part[USER_ID].n_unique(),
        "items": part[ITEM_ID].n_unique(),
        "first": None if time is None else _iso(time.min()),
        "last": None if time is None else _iso(time.max()),
    }


def _iso(at: Any) -> str | None:
    return None if at is None else at.isoformat()
