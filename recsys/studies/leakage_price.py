"""What leaks of a split are worth: the same model with each of them and without, measured on the same queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace
from datetime import datetime
from typing import Any

import polars as pl

from recsys.data.datamodule import RecDataModule
from recsys.data.log import row_hashes
from recsys.data.splits import PAIR, positives
from recsys.evaluation.estimates import estimate
from recsys.evaluation.significance import key_columns
from recsys.features import FeaturePipeline
from recsys.features.vocabulary import mix64
from recsys.schema import LABEL, TIMESTAMP
from recsys.studies.leakage import MOMENT, Finding, Parts, known_parts, lint, once_only

Measure = Callable[[RecDataModule], pl.DataFrame]
Sides = tuple[RecDataModule | None, RecDataModule | None]  # with the leak and without it


def study(
    data: RecDataModule, measure: Measure, pipeline: FeaturePipeline | None = None, metric: str = "recall@20"
) -> pl.DataFrame:
    """What leaks and what that is worth, one row a finding: kind, rows, share, example, with_leak, without, inflation
    (points), low, high, advice. See `lint` and `price`, also for errors. Findings of one kind share a price.

    Without a finding it is empty and nothing is trained.
    """
    findings = lint(data, pipeline)
    schema = {"kind": pl.String, "rows": pl.Int64, "share": pl.Float64, "example": pl.String, "advice": pl.String}
    table = pl.DataFrame([astuple(finding) for finding in findings], schema=schema, orient="row")
    prices = price(data, measure, findings, metric=metric).rename({"inflation_points": "inflation"})
    priced = table.join(prices.drop("rows", "metric", "queries"), on="kind", how="left", maintain_order="left")
    return priced.select(pl.exclude("advice"), "advice")


def price(
    data: RecDataModule, measure: Measure, findings: list[Finding] | None = None, *, metric: str = "recall@20"
) -> pl.DataFrame:
    """What each kind of leak adds to a metric: the same model with it and without it, on the same queries.

    future_rows: test is what lies at or after the median moment of the test positives, less pairs that train or
        validation hold. With: all rows of train and validation; without: those before that moment. The difference
        holds what fewer rows cost, too: at that moment there were no more.
    duplicate_pairs: train and validation with the duplicated rows and without. On both sides these pairs are asked
        for, whereas the evaluator masks them if it sees them in the history.
    tied_timestamps: the split as it is, and each tie dealt out anew by a hash. The queries are the same users, not
        the same relevant items; under next_in_session, where each query is an event, it is not priced.
    vocabulary_saw_test: the module as it is, and with the vocabularies of what was known.
    statistics_saw_test, history_sees_label: not priced (null). They lie in the pipeline or the queries, not in rows
        that could be left out: put them right and train again. Where future_rows comes with it, its price holds both.

    Args:
        measure: trains a model on a module's train and gives `Evaluation.per_user` of its test.
        findings: of `lint`; None: of the module without a pipeline.
        metric: a column of what `measure` gives.

    Returns: one row a kind: kind, rows, metric, with_leak and without (means), inflation_points (100 times their
        difference) and low, high (its paired 95 % interval over users), queries. Nulls where there is no price, as
        when nothing is left to learn from.
    Raises:
        ValueError: `measure` gives no such metric.
    """
    findings = lint(data) if findings is None else findings
    table = []
    for kind in dict.fromkeys(finding.kind for finding in findings):
        rows = sum(finding.rows for finding in findings if finding.kind == kind)
        leaky, clean = _SIDES[kind](data) if kind in _SIDES else (None, None)
        table.append((kind, rows, metric, *_compared(leaky, clean, measure, metric)))
    return pl.DataFrame(table, schema=_PRICE, orient="row")


def _from_the_median(data: RecDataModule) -> Sides:
    known, moments = known_parts(data), positives(data.split.test)[TIMESTAMP].drop_nulls().sort()
    cut = moments[moments.len() // 2]
    # A pair that the leaky history masks would leave the relevant set on that side alone.
    masked = pl.concat([positives(part).select(PAIR) for part in known.values()])
    test = data.split.test.filter(pl.col(TIMESTAMP) >= cut).join(masked, on=PAIR, how="anti")
    before = {name: part.filter(pl.col(TIMESTAMP) < cut) for name, part in known.items()}
    return _module(data, {**known, "test": test}, cut), _module(data, {**before, "test": test}, cut)


def _without_duplicates(data: RecDataModule) -> Sides:
    test, on = once_only(data)
    honest = {name: part.join(test, on=on, how="anti") for name, part in known_parts(data).items()}
    leaky, clean = (_module(data, {**known, "test": data.split.test}) for known in (known_parts(data), honest))
    if leaky is not None:
        # Asked for, and masked, is what would be without them.
        split = data.split
        leaky.test = leaky._queries(list(honest.values()), split.test, split.test_cut, data.log.candidates)
    return leaky, clean


def _ties_by_hash(data: RecDataModule) -> Sides:
    if data.queries != "users":
        return None, None
    parts = {**known_parts(data), "test": data.split.test}
    rows = pl.concat(
        [part.with_columns(part=pl.lit(n)) for n, part in enumerate(parts.values())], how="diagonal_relaxed"
    )
    # Mixed once more: sums of hashes would order the same two items alike for most users.
    rows = rows.with_columns(key=mix64(row_hashes(rows.select(PAIR), 0))).sort("key")
    hit = pl.col(LABEL) == 1 if LABEL in rows.columns else pl.lit(True)
    # The positives of a tie keep their number in each part: the first by hash go to train, the last to test.
    dealt = pl.col("part").sort().over(*MOMENT, hit)
    rows = rows.with_columns(part=pl.when(hit & pl.col(TIMESTAMP).is_not_null()).then(dealt).otherwise("part"))
    dealt_out = {name: rows.filter(pl.col("part") == n).drop("part", "key") for n, name in enumerate(parts)}
    return _module(data, parts), _module(data, dealt_out)


def _without_test_ids(data: RecDataModule) -> Sides:
    return data, _module(data, {**known_parts(data), "test": data.split.test})


_SIDES: dict[str, Callable[[RecDataModule], Sides]] = {
    "future_rows": _from_the_median,
    "duplicate_pairs": _without_duplicates,
    "tied_timestamps": _ties_by_hash,
    "vocabulary_saw_test": _without_test_ids,
}
_PRICE = {"kind": pl.String, "rows": pl.Int64, "metric": pl.String, "with_leak": pl.Float64, "without": pl.Float64}
_PRICE |= {"inflation_points": pl.Float64, "low": pl.Float64, "high": pl.Float64, "queries": pl.Int64}


def _module(data: RecDataModule, parts: Parts, test_cut: datetime | None = None) -> RecDataModule | None:
    """The same protocol over other parts; None where train or test is left without a positive."""
    if any(positives(parts[name]).is_empty() for name in ("train", "test")):
        return None
    validation = parts.get("validation")
    if validation is not None and positives(validation).is_empty():
        validation = None
    split = replace(
        data.split, train=parts["train"], validation=validation, test=parts["test"], report={},
        test_cut=test_cut or data.split.test_cut,
    )  # fmt: skip
    return RecDataModule(
        data.log, split, data.seed, queries=data.queries, session=data.session, num_sampled=data.num_sampled
    )


def _compared(
    leaky: RecDataModule | None, clean: RecDataModule | None, measure: Measure, metric: str
) -> tuple[Any, ...]:
    """The figures of a price, over the queries that both sides have; nulls where a side is missing."""
    if leaky is None or clean is None:
        return (None,) * 6
    a, b = measure(leaky), measure(clean)
    if missing := next((side.columns for side in (a, b) if metric not in side.columns), None):
        raise ValueError(f"metric={metric}: measure gave {', '.join(missing)}; name one of them")
    keys = key_columns(a)
    a, b = a.join(b, on=keys, how="semi"), b.join(a, on=keys, how="semi")
    if a.is_empty():
        return (*(None,) * 5, 0)
    found = estimate([a], metric, [b])
    ends = (None, None, None) if found is None else (100 * found.value, 100 * found.low, 100 * found.high)
    return (a[metric].mean(), b[metric].mean(), *ends, a.height)
