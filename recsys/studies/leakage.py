"""A linter for leakage: what a model could know of its test. What that is worth to its figures says `leakage_price`.

It looks at the rows, vocabularies and queries of a module and at the state and behaviour of a pipeline, never at what
a split is called. A later click on an item that a user had before is no leak: the evaluator masks it.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs
import torch
from torch import Tensor

from recsys.data.datamodule import RecDataModule
from recsys.data.log import row_hashes
from recsys.data.rows import joined
from recsys.data.splits import PAIR, positives
from recsys.features import FeaturePipeline
from recsys.features.base import FeatureError
from recsys.features.history import History
from recsys.features.pipeline import ROLES
from recsys.features.vocabulary import Vocabulary, id_keys
from recsys.schema import ITEM_ID, LABEL, NUM_RESERVED, TIMESTAMP, USER_ID, Prefixes

EVENT, MOMENT = [*PAIR, TIMESTAMP], [USER_ID, TIMESTAMP]
SURE = 1e-3  # two-sided p below which ties count as ordered; eleven of eleven are
SAMPLE = 10_000  # test rows that a pipeline is tried on
CLOSE = 1e-9  # relative: sums over other chunks differ in their last bits

Parts = dict[str, pl.DataFrame]


@dataclass(frozen=True)
class Finding:
    """One leak.

    kind, rows and share, by kind:
        future_rows: rows of train and validation at or after the moment that test begins (of train also validation,
            where its cut is declared); share of all their rows.
        duplicate_pairs: test rows that train or validation hold too, of the test rows; without timestamps positive
            pairs on both sides, of the test positives.
        tied_timestamps: test positives at the moment of a known positive of their user, where it follows an order
            which of them went to test; of the test positives.
        vocabulary_saw_test: ids in a vocabulary that only test holds, of the vocabulary.
        statistics_saw_test: values, table rows and events that a fit on train does not give, of those of the feature.
        history_sees_label: queries, or up to SAMPLE test rows, that see their own outcome, of those looked at.
    example: one row, id or feature by name.
    advice: what to do.
    """

    kind: str
    rows: int
    share: float
    example: str
    advice: str


def lint(data: RecDataModule, pipeline: FeaturePipeline | None = None) -> list[Finding]:
    """What leaks from test, as far as the data shows it; nothing where all is well.

    Args:
        pipeline: as it stands when test rows are transformed: fitted on train, or on train and validation, with the
            histories of both. To look at it a copy is fitted.

    Raises:
        ValueError: the pipeline is not fitted, or it cannot be fitted on train or transform test.
    """
    found = [*_future_rows(data), *_duplicate_pairs(data), *_tied_timestamps(data), *_vocabulary_saw_test(data)]
    if pipeline is not None:
        if not pipeline.columns:
            raise ValueError("the pipeline is not fitted: call fit on the rows of train")
        found += _statistics_saw_test(data, pipeline)
    return found + _history_sees_label(data, pipeline)


def _future_rows(data: RecDataModule) -> list[Finding]:
    if not _timed(data):
        return []
    split, late = data.split, []
    begun: dict[str, Any] = {"test": split.test[TIMESTAMP].min(), "validation": split.validation_cut}
    begun["test"] = min(begun["test"], split.test_cut or begun["test"])
    for name, part in known_parts(data).items():
        where = pl.lit(None, pl.String)
        for later, moment in begun.items():
            if later != name and moment is not None:
                said = pl.lit(f"is in {name}, {later} begins at {moment.isoformat()}")
                where = pl.coalesce(where, pl.when(pl.col(TIMESTAMP) >= moment).then(said))
        late.append(part.select(*EVENT, where=where).drop_nulls("where"))
    rows = pl.concat(late).sort(TIMESTAMP, *PAIR, descending=[True, False, False])
    total = sum(part.height for part in known_parts(data).values())
    advice = "split at one moment (split=global_time), or keep no row at it or after it"
    return [_finding("future_rows", rows, total, f"{_named(rows)} {rows['where'][0]}", advice)] if len(rows) else []


def _duplicate_pairs(data: RecDataModule) -> list[Finding]:
    test, on = once_only(data)
    known = [part.select(*on, where=pl.lit(name)) for name, part in known_parts(data).items()]
    rows = test.select(on).join(pl.concat(known).unique(on, keep="first", maintain_order=True), on=on).sort(on)
    advice = "take these rows out of train and validation: labels are learnt there, and masking hides what it costs"
    example = f"{_named(rows)} is in test and in {rows['where'][0]}" if len(rows) else ""
    return [_finding("duplicate_pairs", rows, test.height, example, advice)] if len(rows) else []


def once_only(data: RecDataModule) -> tuple[pl.DataFrame, list[str]]:
    """The test rows that no other part may hold, and the columns in which it would: without timestamps a pair that is
    shown again tells nothing, and positives alone count."""
    test = data.split.test if _timed(data) else positives(data.split.test)
    return test, [*(EVENT if _timed(data) else PAIR), *([LABEL] if LABEL in test.columns else [])]


def _tied_timestamps(data: RecDataModule) -> list[Finding]:
    """A sign test: in how many ties the places of what went to test lie above the middle of the tie, and in how many
    below. A hash draws both alike, whatever the ids are."""
    if not _timed(data):
        return []
    tested = positives(data.split.test).select(EVENT)
    known = pl.concat([positives(part).select(EVENT) for part in known_parts(data).values()])
    rows = pl.concat([known.with_columns(test=False), tested.with_columns(test=True)]).drop_nulls().unique()
    rows = rows.filter(pl.col("test").any().over(MOMENT) & ~pl.col("test").all().over(MOMENT)).sort(EVENT)
    for order, places in _orders(data, rows).items():
        rank = pl.col("place").rank().over(MOMENT)
        ties = rows.with_columns(place=places).with_columns(above=rank - (pl.len().over(MOMENT) + 1) / 2)
        ties = ties.with_columns(side=pl.col("above").filter(pl.col("test")).sum().sign().over(MOMENT))
        sides = ties.unique(MOMENT)["side"]
        smaller, larger = int((sides < 0).sum()), int((sides > 0).sum())
        if _sign_test(smaller, larger) >= SURE:
            continue
        side, what = (1, "larger") if larger > smaller else (-1, "smaller")
        one = ties.filter(pl.col("side") == side).sort(*MOMENT, pl.col("above") * side)
        one = one.join(one[:1], on=MOMENT, how="semi", maintain_order="left")
        test, other = one.filter(pl.col("test"))[-1:], one.filter(~pl.col("test"))[ITEM_ID][0]
        example = f"{_named(test)} is in test, item {other} of the same moment is not"
        times = f"the {what} went to test in {max(larger, smaller)} of {larger + smaller} ties"
        advice = f"ordered by {order} ({times}): break ties by a hash, or take split=global_time"
        return [_finding("tied_timestamps", rows.filter(pl.col("test")), tested.height, example, advice)]
    return []


def _orders(data: RecDataModule, rows: pl.DataFrame) -> dict[str, pl.Series]:
    """What ties may have been broken by: a place for each row, where all have one."""
    orders, events = {"item id": rows[ITEM_ID]}, data.log.events
    if TIMESTAMP in events.collect_schema():
        lines = events.select(EVENT).with_row_index("line").unique(EVENT, keep="first").collect()
        orders["file order"] = rows.join(lines, on=EVENT, how="left", maintain_order="left")["line"]
    return {order: places for order, places in orders.items() if not places.null_count()}


def _sign_test(smaller: int, larger: int) -> float:
    from scipy.special import bdtr  # scipy takes long to import

    return 2 * float(bdtr(min(smaller, larger), smaller + larger, 0.5))


def _vocabulary_saw_test(data: RecDataModule) -> list[Finding]:
    found = []
    for role, vocabulary in ((USER_ID, data.users), (ITEM_ID, data.items)):
        known = [part[role].unique() for part in known_parts(data).values()]
        before = Vocabulary(pl.concat([*known, _dated(data)] if role == ITEM_ID else known))
        ids = data.split.test.select(role).unique().sort(role)
        there, earlier = (each.encode(ids[role]) >= NUM_RESERVED for each in (vocabulary, before))
        alone = ids.filter(pl.Series((there & ~earlier).numpy()))
        if len(alone):
            example = f"{_named(alone)} is in the vocabulary, and in no row before test"
            advice = "make the vocabulary from train and validation, and items that are dated before test"
            found.append(_finding("vocabulary_saw_test", alone, vocabulary.ids.len(), example, advice))
    return found


def _dated(data: RecDataModule) -> pl.Series:
    """Items that the item table dates before test."""
    items, cut = data.log.items, data.split.test_cut or (data.split.test[TIMESTAMP].min() if _timed(data) else None)
    if items is None or cut is None or TIMESTAMP not in items.collect_schema():
        return data.split.train[ITEM_ID].clear()
    return items.filter(pl.col(TIMESTAMP) < cut).select(ITEM_ID).collect()[ITEM_ID]


def _statistics_saw_test(data: RecDataModule, pipeline: FeaturePipeline) -> list[Finding]:
    """Features that hold something else than a fresh fit gives, on train, or on train and validation together."""
    log, train, validation = data.log, data.split.train, data.split.validation
    honest = [_fresh(pipeline).fit(joined(log, train), past=log.past)]
    if validation is not None and any(_beyond(pipeline, honest[0], name)[0] for name in pipeline.features):
        both = pl.concat([train, validation], how="diagonal_relaxed")
        honest = [honest[0].update(joined(log, validation)), _fresh(pipeline).fit(joined(log, both), past=log.past)]
    found = []
    for name in pipeline.features:
        count, held, example = min(_beyond(pipeline, fit, name) for fit in honest)
        if count:
            advice = "fit the pipeline on train alone, and give update no row of test"
            share = min(1.0, count / max(held, 1))
            found.append(Finding("statistics_saw_test", count, share, f"feature {name!r}: {example}", advice))
    return found


def _fresh(pipeline: FeaturePipeline) -> FeaturePipeline:
    """The same features and arguments, unfitted."""
    user, item, context, label = (
        {name: feature for name, feature in pipeline.features.items() if pipeline.roles[name] == role} for role in ROLES
    )
    return FeaturePipeline(user=user, item=item, context=context, label=label, derive=pipeline.derive)


def _beyond(pipeline: FeaturePipeline, honest: FeaturePipeline, name: str) -> tuple[int, int, str]:
    """In how many values and rows a feature differs from an honest one, how many it holds, and the first in words.
    A history may lack events, as a trimmed one does, but have no other ones."""
    ours, theirs = pipeline.features[name], honest.features[name]
    learnt, fitted = (dict(_leaves(feature.state())) for feature in (ours, theirs))
    wrong = [key for key in learnt | fitted if not _agree(learnt.get(key), fitted.get(key))]
    words = [f"{key} is {learnt.get(key)}, a fit on train gives {fitted.get(key)}" for key in wrong[:1]]
    count, held = len(wrong), len(learnt)
    for kind, table in ours.tables().items():
        other, lacking = theirs.tables()[kind], table.clear()
        if not isinstance(ours, History):
            lacking = _only_in(other, table)
        elif _beyond(pipeline, honest, ours.of)[0]:  # other vocabularies give other indices
            table, other = table.drop("item_idx"), other.drop("item_idx")
        extra = _only_in(table, other)
        count, held = count + max(extra.height, lacking.height), held + table.height
        for rows, said in ((extra, "not in"), (lacking, "only in")):
            words += [f"{kind}: {_words(row)} is {said} a fit on train" for row in rows[:1].rows(named=True)]
    return count, held, "".join(words[:1])


def _agree(a: Any, b: Any) -> bool:
    return a == b or (all(isinstance(v, int | float) for v in (a, b)) and math.isclose(a, b, rel_tol=CLOSE))


def _only_in(table: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    """The rows that the other table lacks, numbers taken to nine digits."""
    ours, theirs = (row_hashes(part.with_columns(cs.float().round_sig_figs(9)), 0) for part in (table, other))
    return table.filter(~np.isin(ours, theirs))


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """The plain values of nested dicts and lists, each with the way to it."""
    if not isinstance(value, dict | list | tuple):
        return [(path, value)]
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for key, inner in pairs for leaf in _leaves(inner, f"{path}.{key}".strip("."))]


def _history_sees_label(data: RecDataModule, pipeline: FeaturePipeline | None) -> list[Finding]:
    """Queries whose history goes on after what they ask for; inputs of test rows that change when their labels are
    flipped or gone, or when the row's own event is given to the histories."""
    found = _queries_see_their_future(data)
    if pipeline is None:
        return found
    inputs = [name for name in pipeline.features if pipeline.roles[name] != "label"]
    targets = [pipeline.features[name] for name in pipeline.features if name not in inputs]
    rows = joined(data.log, data.split.test.gather_every(-(-data.split.test.height // SAMPLE))).collect()
    read = {LABEL, *(column for feature in targets for column in feature.inputs)}
    labels = [column for column in rows.columns if column in read]
    flipped = pipeline.transform(rows.with_columns(_flipped(rows[column]) for column in labels))
    changed = _changed(pipeline, rows, flipped, inputs, "changes with its own label")
    try:
        pipeline.transform(rows.drop(labels))
    except FeatureError as error:
        example, advice = f"{_named(rows)} cannot do without its label: {error}", "take the label out of the inputs"
        changed = changed or [_finding("history_sees_label", rows, rows.height, example, advice)]
    for name in inputs:
        feature = pipeline.features[name]
        if isinstance(feature, History):
            # One row a user, so that no row is given the event of another.
            who = feature.user if feature.user in rows.columns else USER_ID
            one = rows.unique(who, keep="first", maintain_order=True)
            own = one if feature.positive is None else one.with_columns(pl.lit(1).alias(feature.positive))
            after = deepcopy(pipeline).update(own).transform(one)
            changed += _changed(pipeline, one, after, [name], "changes once it is given the row's own event")
    return found + changed


def _changed(
    pipeline: FeaturePipeline, rows: pl.DataFrame, after: dict[str, Tensor], names: list[str], said: str
) -> list[Finding]:
    """A finding for each feature of these names that was another before."""
    before, found = pipeline.transform(rows), []
    for name in names:
        outputs = [column.name for column in pipeline.features[name].outputs(name, pipeline.roles[name])]
        differ = torch.stack([(before[o] != after[o]).reshape(len(rows), -1).any(1) for o in outputs]).any(0)
        bad = rows.filter(pl.Series(differ.numpy()))
        if len(bad):
            advice = "give a row what was known before its outcome: history strictly before its time, and no label"
            example = f"feature {name!r} of {_named(bad)} {said}"
            found.append(_finding("history_sees_label", bad, rows.height, example, advice))
    return found


def _flipped(column: pl.Series) -> pl.Series:
    """Another value everywhere, 1 for 0 and 0 for 1; text stays."""
    return ~column if column.dtype == pl.Boolean else 1 - column if column.dtype.is_numeric() else column


def _queries_see_their_future(data: RecDataModule) -> list[Finding]:
    """Rows of histories and relevant sets are in order of time, so the last pair of one is compared with the first of
    the other. At one moment they are tied, unless the query is an event, to be found from what came before it. What is
    in both is no leak: the evaluator drops it."""
    queries, relevant, history = data.test, data.test.relevant, data.test.history
    prefixes = isinstance(history, Prefixes)
    pairs = history.pairs if isinstance(history, Prefixes) else history
    if pairs.timestamp is None or relevant.timestamp is None:
        return []
    length_Q = history.length if isinstance(history, Prefixes) else history.row_counts()
    start_Q = pairs.indptr[history.row] if isinstance(history, Prefixes) else pairs.indptr[:-1]
    asked = ((length_Q > 0) & (relevant.row_counts() > 0)).nonzero()[:, 0]
    last, first = (start_Q + length_Q)[asked] - 1, relevant.indptr[asked]
    ahead = pairs.timestamp[last] - relevant.timestamp[first]
    count = int(((ahead >= 0) if prefixes else (ahead > 0)).sum())
    if not count:
        return []
    worst, users = int(ahead.argmax()), data.split.test[USER_ID]
    user = users.filter(pl.Series(id_keys(users) == int(queries.user_key[asked[worst]])))[0]
    places = ((relevant, first[worst]), (pairs, last[worst]))
    items = data.items.decode(torch.stack([part.item_idx[place] for part, place in places]))
    due, seen = (f"item {i} at {_time(int(p.timestamp[z]))}" for i, (p, z) in zip(items, places, strict=True))  # type: ignore[index]
    example = f"user {user} is asked for {due}, with {seen} in the history"
    advice = "end each history before what is to be found: split=global_time, or prefixes up to the event"
    return [Finding("history_sees_label", count, count / len(queries), example, advice)]


def known_parts(data: RecDataModule) -> Parts:
    """What is known at test, by name."""
    parts = {"train": data.split.train, "validation": data.split.validation}
    return {name: part for name, part in parts.items() if part is not None}


def _timed(data: RecDataModule) -> bool:
    parts = [*known_parts(data).values(), data.split.test]
    return all(TIMESTAMP in part.columns and part[TIMESTAMP].null_count() < part.height for part in parts)


def _finding(kind: str, rows: pl.DataFrame, total: int, example: str, advice: str) -> Finding:
    return Finding(kind, rows.height, rows.height / total, example, advice)


def _named(rows: pl.DataFrame) -> str:
    """The first row by its user, item and moment, as far as it has them."""
    row = rows.row(0, named=True)
    who = [f"{name.removesuffix('_id')} {row[name]}" for name in PAIR if name in row]
    at = row.get(TIMESTAMP)
    return ", ".join(who) + ("" if at is None else f" at {at.isoformat()}")


def _words(row: dict[str, Any]) -> str:
    return ", ".join(f"{k} {_time(v) if k == TIMESTAMP and isinstance(v, int) else v}" for k, v in row.items())


def _time(micros: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)).isoformat()
