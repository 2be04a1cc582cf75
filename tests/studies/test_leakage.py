"""Planted leaks are found and named, clean splits are silent, and a price is what the leak is worth."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch

from recsys import config
from recsys.data import readers, splits
from recsys.data.datamodule import RecDataModule
from recsys.data.log import Log
from recsys.data.rows import joined
from recsys.data.splits import Split
from recsys.evaluation.ranking import evaluate
from recsys.features import Buckets, Category, FeaturePipeline, History, Numeric, Plain
from recsys.features.base import Feature
from recsys.features.vocabulary import Vocabulary
from recsys.models.popularity import Popularity
from recsys.schema import Column, Prefixes
from recsys.studies.leakage import Finding, lint
from recsys.studies.leakage_price import price, study

START = datetime(2024, 1, 1, tzinfo=UTC)
EVENT = ["user_id", "item_id", "timestamp"]


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def events(
    n: int = 600, seed: int = 0, *, text: bool = False, seconds: int = 10_000, again: bool = True
) -> pl.DataFrame:
    """Impressions with labels, ages, countries and sessions; user 0 to 29, item 0 to 49."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 30, n), rng.integers(0, 50, n)
    moment = np.sort(rng.integers(0, seconds, n))
    rows = pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in user] if text else user,
            "item_id": [f"i{i}" for i in item] if text else item,
            "timestamp": [at(int(s)) for s in moment],
            "label": (rng.random(n) < 0.6).astype(np.int8),
            "age": rng.normal(30, 5, n) + moment / 1000,
            "country": np.array(["de", "fr", "us"])[rng.integers(0, 3, n)],
            "session_id": moment // (seconds // 20),
        }
    )
    return rows if again else rows.unique(["user_id", "item_id"], keep="first", maintain_order=True)


def frame(rows: pl.DataFrame, **options: object) -> Log:
    there = [name for name in ("age", "country", "session_id") if name in rows.columns]
    columns = {name: name for name in ("timestamp", "label") if name in rows.columns}
    return readers.frame(rows, columns=columns, keep=there, **options)


def given(train: pl.DataFrame, test: pl.DataFrame, validation: pl.DataFrame | None = None, **cuts: object) -> Split:
    split = Split(train, validation, test, None, None, {"kind": "by hand"})
    return replace(split, **cuts)


def module(
    rows: pl.DataFrame, split: Callable[..., Split] | Split = splits.global_time, **options: object
) -> RecDataModule:
    return RecDataModule(frame(rows), split, **options)


def pipeline(**context: Feature) -> FeaturePipeline:
    return FeaturePipeline(
        user={"user_id": Category(), "country": Category()},
        item={"item_id": Category()},
        context={"age": Numeric(), "age_range": Buckets("age", num_buckets=4), "past": History(length=5), **context},
        label={"label": Plain()},
    )


def fitted(data: RecDataModule, made: FeaturePipeline | None = None) -> FeaturePipeline:
    """As a ranker fits it."""
    made = (made or pipeline()).fit(joined(data.log, data.split.train))
    return made if data.split.validation is None else made.update(joined(data.log, data.split.validation))


def found(findings: list[Finding], kind: str) -> Finding:
    (one,) = (finding for finding in findings if finding.kind == kind)
    assert 0 < one.share <= 1
    assert one.rows >= 1
    assert one.advice
    return one


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings}


def swap(data: RecDataModule, from_test: pl.DataFrame, into: str = "train") -> RecDataModule:
    """The module with rows of test in an earlier part as well."""
    part = pl.concat([getattr(data.split, into), from_test])
    return RecDataModule(data.log, replace(data.split, **{into: part}))


# --- planted: rows ---


@pytest.mark.parametrize("into", ["train", "validation"])
def test_one_row_of_the_future_is_named(into: str) -> None:
    data = module(events())
    late = data.split.test.filter(label=0).sort("timestamp")[-1:]
    moved = data.split.test.join(late, on=EVENT, how="anti")
    data = swap(RecDataModule(data.log, replace(data.split, test=moved, test_cut=None)), late, into)
    (one,) = lint(data)
    user, item, moment, *_ = late.row(0)
    assert (one.kind, one.rows) == ("future_rows", 1)
    begins = moved["timestamp"].min().isoformat()
    assert one.example == f"user {user}, item {item} at {moment.isoformat()} is in {into}, test begins at {begins}"
    assert one.share == pytest.approx(1 / (data.split.train.height + data.split.validation.height))


def test_a_declared_cut_counts_whatever_test_holds() -> None:
    rows = events()
    train, validation, test = (
        rows.filter(pl.col("timestamp").is_between(at(a), at(b), closed="left"))
        for a, b in ((0, 5000), (5000, 7000), (8000, 10_000))
    )
    kept = {"validation": validation, "validation_cut": at(5000)}
    assert not lint(module(rows, given(train, test, **kept, test_cut=at(8000))))
    early = found(lint(module(rows, given(train, test, **kept, test_cut=at(6000)))), "future_rows")
    assert early.rows == validation.filter(pl.col("timestamp") >= at(6000)).height
    assert "is in validation, test begins at 2024-01-01T01:40:00" in early.example
    kept["validation_cut"] = at(4900)
    late = found(lint(module(rows, given(train, test, **kept, test_cut=at(8000)))), "future_rows")
    assert late.rows == train.filter(pl.col("timestamp") >= at(4900)).height
    assert "is in train, validation begins at 2024-01-01T01:21:40" in late.example


@pytest.mark.parametrize("split", [splits.random, splits.leave_last_out, partial(splits.random, validation=0)])
def test_splits_that_are_not_by_time_leak_the_future(split: Callable[..., Split]) -> None:
    data = module(events(), split)
    one = found(lint(data), "future_rows")
    known = pl.concat([part for part in (data.split.train, data.split.validation) if part is not None])
    assert one.rows == known.filter(pl.col("timestamp") >= data.split.test["timestamp"].min()).height
    # Of one user nothing of the future is in leave-last-out's history, of a random split's much.
    assert ("history_sees_label" in kinds(lint(data))) == (split is not splits.leave_last_out)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("into", ["train", "validation"])
def test_a_duplicated_row_is_named(label: int, into: str) -> None:
    data = module(events(text=True))
    twice = data.split.test.filter(pl.col("label") == label)[3:4]
    one = found(lint(swap(data, twice, into)), "duplicate_pairs")
    user, item, moment, *_ = twice.row(0)
    assert one.rows == 1
    assert one.example == f"user {user}, item {item} at {moment.isoformat()} is in test and in {into}"


def test_duplicated_pairs_without_timestamps() -> None:
    rows = events(again=False).drop("timestamp", "session_id")
    data = module(rows, splits.random)
    assert not lint(data)
    twice = data.split.test.filter(label=1)[:2].sort("user_id", "item_id")
    unseen = data.split.test.filter(label=0)[:2]  # shown twice without a click: no label of the test is lost by it
    (one,) = lint(swap(data, pl.concat([twice, unseen])))
    assert (one.kind, one.rows) == ("duplicate_pairs", 2)
    assert one.example == f"user {twice[0, 0]}, item {twice[0, 1]} is in test and in train"
    assert one.share == pytest.approx(2 / data.split.test.filter(label=1).height)
    heights = []
    row = price(
        swap(data, pl.concat([twice, unseen])),
        lambda part: heights.append(part.split.train.height) or measure(part),
        metric="recall@5",
    ).row(0, named=True)
    assert heights == [data.split.train.height + 4, data.split.train.height + 2]  # without a click they are no label
    assert row["queries"] == len(data.test.user_idx.unique()) - int(
        (data.test.relevant.row_counts() + data.test.num_cold_relevant == 0).sum()
    )


def last_of_each(rows: pl.DataFrame, by: str, descending: bool = False) -> Split:
    """Leave-last-out that breaks ties by a column."""
    rows = rows.sort("user_id", "timestamp", by, descending=[False, False, descending])
    test = rows.group_by("user_id", maintain_order=True).tail(1)
    return given(rows.join(test, on=EVENT, how="anti"), test)


def tied(users: int = 40, text: bool = False) -> pl.DataFrame:
    """Four items at the last moment of each user, in a file in no order of items."""
    rng = np.random.default_rng(1)
    item = np.concatenate([rng.permutation(60)[:6] for _ in range(users)])
    rows = pl.DataFrame({"user_id": np.repeat(np.arange(users), 6), "item_id": item})
    rows = rows.with_columns(timestamp=pl.Series([at(0), at(1), at(2), at(2), at(2), at(2)] * users))
    return rows.with_columns(pl.col("item_id").cast(pl.String)) if text else rows


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("descending", [False, True])
def test_ties_in_the_order_of_items(text: bool, descending: bool) -> None:
    rows = tied(text=text)
    one = found(lint(module(rows, last_of_each(rows, "item_id", descending))), "tied_timestamps")
    there = rows.filter(user_id=0, timestamp=at(2))["item_id"].sort(descending=descending)
    assert (one.rows, one.share) == (40, 1.0)
    assert (
        one.example
        == f"user 0, item {there[3]} at {at(2).isoformat()} is in test, item {there[0]} of the same moment is not"
    )
    assert (
        f"ordered by item id (the {'smaller' if descending else 'larger'} went to test in 40 of 40 ties)" in one.advice
    )


def test_ties_in_the_order_of_the_file() -> None:
    rows = tied().with_row_index("line")
    split = last_of_each(rows, "line")
    split = replace(split, train=split.train.drop("line"), test=split.test.drop("line"))
    one = found(lint(module(rows.drop("line"), split)), "tied_timestamps")
    assert "ordered by file order (the larger went to test in 40 of 40 ties)" in one.advice


@pytest.mark.parametrize("test", [1, 2])
def test_ties_that_a_hash_broke_are_silent(test: int) -> None:
    assert "tied_timestamps" not in kinds(lint(module(tied(150), partial(splits.leave_last_out, test=test))))
    # Nor do a few ordered ties say anything.
    rows = tied(10)
    assert "tied_timestamps" not in kinds(lint(module(rows, last_of_each(rows, "item_id"))))


# --- planted: vocabularies and queries ---


def stranger() -> pl.DataFrame:
    """A log whose last row has a user and an item of its own."""
    rows = events()
    own = rows[-1:].with_columns(
        user_id=pl.lit(777), item_id=pl.lit(888), timestamp=pl.lit(at(10_000)), label=pl.lit(1, pl.Int8)
    )
    return pl.concat([rows, own.select(rows.columns).cast(dict(rows.schema))])


@pytest.mark.parametrize(("which", "name"), [("items", "item 888"), ("users", "user 777")])
def test_a_vocabulary_of_all_rows(which: str, name: str) -> None:
    data = module(stranger())
    assert not lint(data)
    column = which[:-1] + "_id"
    setattr(data, which, Vocabulary(data.log.events.collect()[column]))
    one = found(lint(data), "vocabulary_saw_test")
    assert (one.rows, one.share) == (1, 1 / getattr(data, which).ids.len())
    assert one.example == f"{name} is in the vocabulary, and in no row before test"


def test_a_history_that_ends_with_what_it_is_asked_for() -> None:
    data = module(events(), queries="next_in_session")
    assert not lint(data)
    history, relevant = data.test.history, data.test.relevant
    assert isinstance(history, Prefixes)
    row = int((relevant.row_counts() > 0).nonzero()[3])
    length = history.length.clone()
    length[row] += 1
    data.test = replace(data.test, history=replace(history, length=length))
    (one,) = lint(data)
    item = data.items.decode(relevant.item_idx[relevant.indptr[row]][None])[0]
    assert (one.kind, one.rows) == ("history_sees_label", 1)
    assert f"is asked for item {item} at " in one.example


# --- planted: pipelines ---


@dataclass(eq=False)
class Rate(Feature):
    """The share of positives of each value of a column, as of the rows it was fitted on."""

    column: str | None = None
    learned: dict[str, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._seen: list[pl.DataFrame] = []

    @property
    def inputs(self) -> tuple[str, ...]:
        return (str(self.column),)

    @property
    def fit_inputs(self) -> tuple[str, ...]:
        return (str(self.column), "label")

    def observe(self, rows: pl.DataFrame) -> None:
        self._seen.append(rows.select(*self.fit_inputs))

    def finish(self) -> None:
        rates = pl.concat(self._seen).group_by(self.column).agg(pl.col("label").mean()).sort(self.column)
        self.learned = {str(value): rate for value, rate in rates.rows()}

    def state(self) -> dict[str, float]:
        return self.learned

    def transform(self, rows: pl.DataFrame, device: torch.device | str) -> dict[str, torch.Tensor]:
        return {"": torch.tensor([self.learned.get(str(value), 0.0) for value in rows[self.column]])}

    def outputs(self, name: str, role: str) -> tuple[Column, ...]:
        return (Column(name, role, "float32"),)


@dataclass(eq=False)
class LateHistory(History):
    """A history that holds what happens within the second of its row."""

    def transform(self, rows: pl.DataFrame, device: torch.device | str) -> dict[str, torch.Tensor]:
        return super().transform(rows.with_columns(pl.col(self.timestamp).dt.offset_by("1s")), device)


def test_a_pipeline_that_was_fitted_on_test_too() -> None:
    data = module(stranger())
    everything = pl.concat([data.split.train, data.split.validation, data.split.test])
    findings = lint(data, pipeline(rate=Rate("country")).fit(everything))
    assert kinds(findings) == {"statistics_saw_test"}
    said = {finding.example.split("'")[1]: finding for finding in findings}
    assert set(said) == {"user_id", "item_id", "age", "age_range", "rate", "past"}  # all but the three countries
    assert said["item_id"].example == "feature 'item_id': vocabulary: id 888 is not in a fit on train"
    assert said["item_id"].rows == 1
    mean = data.split.train["age"].mean()
    assert said["age"].example.startswith("feature 'age': ")
    low = min(data.split.train["age"].min(), data.split.validation["age"].min())
    assert mean > low
    assert said["past"].rows == data.split.test.filter(label=1).height
    assert "timestamp 2024-01-01T" in said["past"].example


def test_a_statistic_of_labels_that_saw_test() -> None:
    data = module(events())
    honest, everything = fitted(data, pipeline(rate=Rate("country"))), data.log.events.collect()
    assert not lint(data, honest)
    learned = honest.features["rate"].learned
    leaky = everything.filter(pl.col("country") == "fr")["label"].mean()
    train = learned["fr"]
    learned["fr"] = leaky
    (one,) = lint(data, honest)
    assert (one.kind, one.rows, one.share) == ("statistics_saw_test", 1, 1 / 3)
    assert one.example == f"feature 'rate': fr is {leaky}, a fit on train gives {train}"


def test_a_history_that_was_given_test() -> None:
    data = module(events())
    row = data.split.test.filter(label=1)[5:6]
    (one,) = lint(data, fitted(data).update(row))
    user, _, moment, *_ = row.row(0)
    assert (one.kind, one.rows) == ("statistics_saw_test", 1)
    assert one.example.startswith(f"feature 'past': events: user {user}, timestamp {moment.isoformat()}, item_idx")


@pytest.mark.parametrize("derive", [None, {"clicked": "label + 1"}])
def test_an_input_that_reads_the_label(derive: dict[str, str] | None) -> None:
    data = module(events())
    made = FeaturePipeline(
        user={"user_id": Category()},
        context={"hint": Numeric("clicked" if derive else "label", flag=False)},
        label={"target": Plain("label")},
        derive=derive,
    )
    (one,) = lint(data, fitted(data, made))
    user, item, moment, *_ = data.split.test.row(0)
    assert (one.kind, one.rows, one.share) == ("history_sees_label", data.split.test.height, 1.0)
    assert (
        one.example == f"feature 'hint' of user {user}, item {item} at {moment.isoformat()} changes with its own label"
    )


def test_an_input_that_needs_the_label_and_ignores_it() -> None:
    data = module(events())
    made = FeaturePipeline(context={"hint": Numeric("nothing")}, derive={"nothing": "label * 0"})
    (one,) = lint(data, fitted(data, made))
    assert one.kind == "history_sees_label"
    assert "cannot do without its label: no column 'label'" in one.example


def test_a_history_up_to_and_with_its_own_row() -> None:
    data = module(events())
    one = found(lint(data, fitted(data, pipeline(late=LateHistory(length=50)))), "history_sees_label")
    assert one.rows == data.split.test["user_id"].n_unique()
    assert one.example.startswith("feature 'late' of user ")
    assert one.example.endswith("changes once it is given the row's own event")


def test_a_pipeline_that_was_not_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="the pipeline is not fitted: call fit on the rows of train"):
        lint(module(events()), pipeline())


# --- clean ---


def of_item_dates() -> RecDataModule:
    """Items 0 to 59 are dated, the last ten of them after everything; some are in test alone."""
    items = pl.DataFrame({"item_id": np.arange(60), "timestamp": [at(200 * i) for i in range(60)]}).lazy()
    rows = events().with_columns(
        item_id=pl.when(pl.col("timestamp") >= at(9900)).then(39).otherwise(pl.col("item_id") % 35)
    )
    return RecDataModule(replace(frame(rows), items=items), splits.global_time)


def in_order(rows: pl.DataFrame) -> RecDataModule:
    log = frame(rows.filter(pl.col("timestamp") < at(8000)), test=rows.filter(pl.col("timestamp") >= at(8000)))
    return RecDataModule(log, splits.given)


CLEAN = {
    "global_time": lambda: module(events()),
    "no validation": lambda: module(events(seed=1), partial(splits.global_time, validation=0)),
    "clicked again and again": lambda: module(events(3000, seed=2).with_columns(pl.col("item_id") % 5)),
    "ties at the cut": lambda: module(events(2000, seed=3, seconds=60)),
    "a day for a time": lambda: module(events(2000, seed=4).with_columns(pl.col("timestamp").dt.truncate("1h"))),
    "no labels": lambda: module(events(seed=5).drop("label")),
    "no timestamps": lambda: module(events(again=False).drop("timestamp", "session_id"), splits.random),
    "given in order": lambda: in_order(events(seed=6)),
    "next in session": lambda: module(events(seed=7), queries="next_in_session"),
    "dated items": of_item_dates,
    "text ids": lambda: module(events(seed=8, text=True)),
    "sampled candidates": lambda: module(events(seed=9), num_sampled=10),
}


@pytest.mark.parametrize("name", CLEAN)
def test_what_is_clean_is_silent(name: str) -> None:
    data = CLEAN[name]()
    assert lint(data) == []
    if {"label", "timestamp"} <= set(data.split.train.columns):
        assert lint(data, fitted(data)) == []
    assert study(data, lambda _: pytest.fail("nothing is to be trained")).shape == (0, 10)


@pytest.mark.parametrize("fit", ["train", "train and validation", "trimmed", "saved"])
def test_a_pipeline_that_did_not_see_test_is_silent(fit: str, tmp_path) -> None:
    data = module(stranger())
    parts = [data.split.train, data.split.validation]
    made = pipeline().fit(pl.concat(parts if fit == "train and validation" else parts[:1]))
    if fit in ("trimmed", "saved"):
        made.update(parts[1])
    if fit == "saved":
        made.save(tmp_path / "pipeline")
        made = FeaturePipeline.load(tmp_path / "pipeline")
    assert lint(data, made.trimmed() if fit == "trimmed" else made) == []


def test_a_world_is_clean_with_its_features() -> None:
    cfg = config.compose("world=tiny", "world.num_users=300", "world.num_videos=400", "features=world")
    data = RecDataModule(config.build(cfg.data), config.partial(cfg.split))
    made = fitted(data, config.build(cfg.features))
    assert lint(data, made) == []
    assert kinds(lint(data, made.update(joined(data.log, data.split.test)))) == {"statistics_saw_test"}


# --- prices ---


def measure(data: RecDataModule, k: int = 5) -> pl.DataFrame:
    model = Popularity(data.schema)
    model.fit(data.train)
    model.eval()
    return evaluate(model.scorer(), data.test, k=[k], num_replicates=0).per_user


def crowds(hot: Callable[[int], list[int]], days: int = 10, users: int = 20) -> RecDataModule:
    """Each day a new crowd clicks items of that day, the first of them most; from the fifth day on testers, who are new
    too, click the second one. The whole crowd is train, the testers are test."""
    crowd = [(1000 * d + u, item, d, 1) for d in range(days) for n, item in enumerate(hot(d)) for u in range(users - n)]
    testers = [(100_000 + 100 * d + u, hot(d)[1], d, 1) for d in range(5, days) for u in range(10)]
    schema = {"user_id": pl.Int64, "item_id": pl.Int64, "day": pl.Int64, "label": pl.Int8}
    train, test = (
        pl.DataFrame(rows, schema=schema, orient="row").select(
            "user_id", "item_id", timestamp=pl.lit(START) + pl.duration(days="day"), label="label"
        )
        for rows in (crowd, testers)
    )
    return module(pl.concat([train, test]), given(train, test))


def test_the_price_of_the_future_where_tastes_move() -> None:
    data = crowds(lambda day: [10 * day + n for n in range(5)])
    asked = []

    def spy(part: RecDataModule) -> pl.DataFrame:
        asked.append(measure(part, 30))
        return asked[-1]

    row = price(data, spy, metric="recall@30").row(0, named=True)
    assert (row["kind"], row["metric"]) == ("future_rows", "recall@30")
    assert row["rows"] == data.split.train.filter(pl.col("timestamp") >= START + timedelta(days=5)).height
    assert row["without"] == 0  # the items of those days are not known before them
    assert row["with_leak"] > 0.5
    assert row["inflation_points"] == pytest.approx(100 * row["with_leak"])
    assert 0 < row["low"] <= row["inflation_points"] <= row["high"]
    leaky, clean = (part.sort("user_key") for part in asked)
    for name in ("user_key", "num_relevant"):
        assert leaky[name].equals(clean[name])
    assert row["queries"] == len(leaky) == 30  # of the median day and later


def test_the_price_of_the_future_where_nothing_moves() -> None:
    row = price(crowds(lambda day: list(range(8))), measure, metric="recall@5").row(0, named=True)
    assert row["with_leak"] == row["without"] == 1.0
    assert row["inflation_points"] == row["low"] == row["high"] == 0


@pytest.mark.parametrize("split", [splits.random, splits.leave_last_out])
@pytest.mark.parametrize("queries", ["users", "next_in_session"])
def test_both_sides_answer_the_same_queries(split: Callable[..., Split], queries: str) -> None:
    data = module(events(1500), split, queries=queries)
    sides = []
    table = price(data, lambda part: sides.append(measure(part)) or sides[-1], metric="recall@5")
    row = table.filter(kind="future_rows").row(0, named=True)
    keys = ["user_key", *(["query_key"] if queries != "users" else []), "num_relevant"]
    leaky, clean = sides[0].select(keys), sides[1].select(keys)
    shared = leaky.join(clean, on=keys, how="inner")
    assert row["queries"] == shared.height >= 5
    if queries == "users":
        assert leaky.sort(keys).equals(clean.sort(keys))


def test_the_price_of_duplicates_is_not_masked_away() -> None:
    """Items that only test asks for become popular by the duplicates."""
    rows = pl.DataFrame(
        [(u, i, s, 1) for u in range(30) for i, s in ((u % 7, 10), ((u + 1) % 7, 20))]
        + [(u, 9, 100, 1) for u in range(30)]
        + [(50, 9, 10, 1)],
        schema=["user_id", "item_id", "timestamp", "label"],
        orient="row",
    )
    rows = frame(rows, timestamp_unit="s").events.collect()
    cut = rows["timestamp"].max()
    train, test = rows.filter(pl.col("timestamp") < cut), rows.filter(pl.col("timestamp") == cut)
    data = module(rows, given(pl.concat([train, test]), test))
    table = price(
        data, partial(measure, k=1), [f for f in lint(data) if f.kind == "duplicate_pairs"], metric="recall@1"
    )
    row = table.row(0, named=True)
    assert (row["rows"], row["queries"]) == (30, 30)
    assert (row["with_leak"], row["without"], row["inflation_points"]) == (1.0, 0.0, 100.0)


def test_the_price_of_ordered_ties() -> None:
    """Everybody has a rare item and the hot one, 50, at their last moment, and the larger is always the one in test."""
    pairs = [(u, i, s) for u in range(40) for i, s in ((u % 3, 0), (10 + u % 7, 1), (50, 1))]
    pairs += [(100 + u, 50, 0) for u in range(60)]
    rows = pl.DataFrame(pairs, schema=["user_id", "item_id", "s"], orient="row")
    rows = rows.select("user_id", "item_id", timestamp=pl.lit(START) + pl.duration(seconds="s"), session_id=pl.lit(1))
    tail = last_of_each(rows.filter(pl.col("user_id") < 40), "item_id")
    split = replace(tail, train=pl.concat([tail.train, rows.filter(pl.col("user_id") >= 100)]))
    data = module(rows, split)
    row = price(data, partial(measure, k=1), metric="recall@1").filter(kind="tied_timestamps").row(0, named=True)
    assert row["queries"] == row["rows"] == 40
    assert row["with_leak"] == 1
    assert 0.3 < row["without"] < 0.7  # for half of the users the rare one is to be found
    assert 0 < row["low"] < row["inflation_points"] < row["high"]
    table = price(module(rows, split, queries="next_in_session"), partial(measure, k=1), metric="recall@1")
    assert table.filter(kind="tied_timestamps")["inflation_points"].to_list() == [None]


def test_a_study_is_findings_and_prices_in_one_table() -> None:
    data = module(stranger(), partial(splits.random, validation=0.1))
    table = study(data, measure, pipeline().fit(data.log.events.collect()), metric="recall@5")
    assert table.columns == [
        "kind",
        "rows",
        "share",
        "example",
        "with_leak",
        "without",
        "inflation",
        "low",
        "high",
        "advice",
    ]
    assert set(table["kind"]) == {"future_rows", "history_sees_label", "statistics_saw_test"}
    priced = table.filter(pl.col("inflation").is_not_null())
    assert priced["kind"].to_list() == ["future_rows"]
    assert priced["inflation"][0] == pytest.approx(100 * (priced["with_leak"][0] - priced["without"][0]), abs=1e-4)
    with pytest.raises(ValueError, match=r"metric=recall@7: measure gave user_idx, .*recall@5.*; name one of them"):
        study(data, measure, metric="recall@7")


def test_a_vocabulary_is_priced_on_the_module_made_anew() -> None:
    data = module(stranger())
    data.items = Vocabulary(data.log.events.collect()["item_id"])
    seen = []
    row = price(data, lambda part: seen.append(part) or measure(part), metric="recall@5").row(0, named=True)
    assert row["kind"] == "vocabulary_saw_test"
    assert [len(part.items) for part in seen] == [len(data.items), len(data.items) - 1]
    assert row["inflation_points"] == 0


def test_what_leaves_nothing_to_learn_from_has_no_price() -> None:
    rows = events(again=False).with_columns(label=pl.lit(1, pl.Int8))
    late, early = rows.filter(pl.col("timestamp") >= at(5000)), rows.filter(pl.col("timestamp") < at(5000))
    row = price(module(rows, given(late, early)), measure, metric="recall@5").row(0, named=True)
    assert row["rows"] == late.height
    assert row["inflation_points"] is None
