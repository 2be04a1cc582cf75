"""The pipeline as a whole: one request equals a batch, saved equals fitted, and every mistake is named."""

import datetime
import json
import math
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.features import (
    Buckets,
    Category,
    FeatureError,
    FeaturePipeline,
    Hashed,
    History,
    Numeric,
    Plain,
)

EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def rows(n: int, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    some = rng.random(n) < 0.15
    names = np.array(["US", "DE", "ü", ""])[rng.integers(0, 4, n)]
    return pl.DataFrame(
        {
            "user_id": rng.integers(0, 30, n),
            "item_id": rng.integers(0, 60, n),
            "country": pl.Series([None if skip else name for skip, name in zip(some, names, strict=True)]),
            "tag": pl.Series([None if i % 9 == 0 else ",".join(map(str, range(i % 4))) for i in range(n)]),
            "age": np.where(rng.random(n) < 0.2, -124, rng.integers(13, 80, n)),
            "seconds": np.where(some, math.nan, rng.lognormal(3, 1, n)),
            "premium": rng.random(n) < 0.5,
            "timestamp": pl.Series([EPOCH + datetime.timedelta(seconds=int(s)) for s in rng.integers(0, 500_000, n)]),
            "label": rng.integers(0, 2, n),
        }
    )


def everything() -> FeaturePipeline:
    """A pipeline with every feature and every output there is."""
    return FeaturePipeline(
        user={
            "country": Category(min_count=3),
            "country_hot": Category("country", one_hot=True),
            "age": Numeric(scale="standard"),
            "age_range": Numeric("age", scale="min_max", low=-1, impute=30.0),
            "age_bucket": Buckets("age", num_buckets=5),
            "premium": Category(),
        },
        item={
            "item_id": Category(max_size=50),
            "item_hash": Hashed(97, columns=["item_id"], num_hashes=2, sign=True),
            "seconds": Numeric(scale="power_law", clip_quantiles=[0.01, 0.99]),
            "tags": Category("tag_list", length=3),
            "tag_hash": Hashed(31, columns=["tag_list"], length=2, sign=True),
        },
        context={
            "hour": Category(),
            "country_hour": Hashed(1000, columns=["country", "hour"]),
            "history": History(length=4),
        },
        label={
            "label": Plain(),
            "seen": Plain("timestamp", dtype="int64"),
            "days": Plain(dtype="float64"),
            "log_id": Plain(dtype="float64"),
        },
        derive={
            "hour": "extract(hour from timestamp)",
            "age": "nullif(age, -124)",
            "tag_list": "string_to_array(tag, ',')",
            "late": "hour > 18",
            "days": "extract(epoch from timestamp) / 86400 - 20000",
            "log_id": "ln(1 + user_id) / 3",
        },
    )


ALL = ("user_feature", "item_feature", "context", "label")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


@pytest.fixture(scope="module")
def fitted() -> FeaturePipeline:
    return everything().fit(rows(400))


def test_outputs_are_as_described(fitted: FeaturePipeline) -> None:
    found = fitted.transform(rows(50, 1), roles=ALL)
    assert list(found) == [column.name for column in fitted.columns]
    for column in fitted.columns:
        tensor = found[column.name]
        assert tensor.dtype == getattr(torch, column.dtype)
        assert tensor.shape == ((50,) if column.width is None else (50, column.width))
        if column.cardinality is not None:
            assert 0 <= int(tensor.min()) <= int(tensor.max()) < column.cardinality
        elif tensor.is_floating_point():
            assert torch.isfinite(tensor).all()
    roles = {column.name: column.role for column in fitted.columns}
    assert (roles["age_missing"], roles["tag_hash_sign"], roles["label"]) == ("user_feature", "item_feature", "label")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_one_request_is_a_row_of_a_batch(fitted: FeaturePipeline, seed: int, n: int) -> None:
    some = rows(n, seed)
    batch = fitted.transform(some, roles=ALL)
    requests = some.to_dicts()
    assert same(fitted.transform(requests, roles=ALL), batch)
    for number, request in enumerate(requests):
        one = fitted.transform(request, roles=ALL)
        assert all(torch.equal(one[name][0], batch[name][number]) for name in batch)


@pytest.mark.parametrize("num_rows", [1, 7, 100, 1000])
def test_batches_are_the_whole(fitted: FeaturePipeline, num_rows: int, tmp_path: Path) -> None:
    some = rows(200, 2)
    some.write_parquet(tmp_path / "rows.parquet", row_group_size=33)
    whole = fitted.transform(some, roles=ALL)
    for source in (some, some.lazy(), pl.scan_parquet(tmp_path / "rows.parquet")):
        parts = list(fitted.batches(source, num_rows, ALL))
        assert all(len(part["label"]) <= num_rows for part in parts)
        assert same({name: torch.cat([part[name] for part in parts]) for name in whole}, whole)
        assert same(fitted.transform(source, roles=ALL), whole)


def test_fitting_does_not_depend_on_chunks_or_the_order_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    some = rows(400)
    expected = everything().fit(some).fingerprint
    assert everything().fit(some.sample(fraction=1, shuffle=True, seed=4)).fingerprint == expected
    monkeypatch.setattr("recsys.features.pipeline.ROWS_AT_ONCE", 37)
    assert everything().fit(some).fingerprint == expected
    assert everything().fit(some.lazy()).fingerprint == expected


def test_what_comes_after_the_cut_changes_nothing() -> None:
    """Fitted before the cut: rows after it may be anything, in any order, and no row before it changes."""
    some = rows(400).sort("timestamp")
    past, future = some.head(300), some.tail(100)
    fitted = everything().fit(past)
    before = fitted.transform(past, roles=ALL)
    shuffled = future.with_columns(pl.col("item_id", "label", "age").shuffle(seed=1)).sample(
        fraction=1, shuffle=True, seed=2
    )
    found = fitted.update(shuffled).transform(pl.concat([shuffled, past]), roles=ALL)
    assert same({name: tensor[100:] for name, tensor in found.items()}, before)


def test_saved_and_loaded_is_the_same(fitted: FeaturePipeline, tmp_path: Path) -> None:
    fitted.save(tmp_path / "p")
    loaded = FeaturePipeline.load(tmp_path / "p")
    some = rows(80, 5)
    assert same(loaded.transform(some, roles=ALL), fitted.transform(some, roles=ALL))
    assert loaded.columns == fitted.columns
    assert loaded.fingerprint == fitted.fingerprint
    assert loaded.fit(rows(400)).fingerprint == fitted.fingerprint  # and can be fitted again
    files = sorted(os.listdir(tmp_path / "p"))
    assert "pipeline.json" in files
    assert all(name.endswith((".json", ".parquet")) for name in files)


def test_saving_over_another_leaves_nothing_of_it(fitted: FeaturePipeline, tmp_path: Path) -> None:
    everything().fit(rows(300, 9)).save(tmp_path)
    (tmp_path / "mine.own.file.parquet").write_text("not the pipeline's")
    fitted.save(tmp_path)
    assert FeaturePipeline.load(tmp_path).fingerprint == fitted.fingerprint
    listed = {entry["file"] for entry in json.loads((tmp_path / "pipeline.json").read_text())["tables"].values()}
    assert set(os.listdir(tmp_path)) == listed | {"pipeline.json", "mine.own.file.parquet"}


def test_a_save_that_fails_leaves_the_one_before(
    fitted: FeaturePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted.save(tmp_path)
    other = everything().fit(rows(300, 9))

    def full(path: Path, values: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recsys.atomic.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        other.save(tmp_path)
    assert FeaturePipeline.load(tmp_path).fingerprint == fitted.fingerprint


def test_damaged_missing_and_newer_files_are_named(fitted: FeaturePipeline, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"pipeline.json: no such file; name the folder"):
        FeaturePipeline.load(tmp_path)
    fitted.save(tmp_path)
    description = tmp_path / "pipeline.json"
    text = description.read_text()

    def loading(changed: str, message: str) -> None:
        description.write_text(changed)
        with pytest.raises(FeatureError, match=message) as error:
            FeaturePipeline.load(tmp_path)
        assert "\n" not in str(error.value)
        description.write_text(text)

    loading(text[:100], "pipeline.json: cannot be read")
    loading("[]", "pipeline.json: not a saved pipeline")
    loading('{"format": "something else"}', "pipeline.json: not a saved pipeline")
    loading(text.replace('"version": 1', '"version": 2'), "written in format version 2, this recsys reads 1; upgrade")
    loading(text.replace('"min_count": 3', '"min_count": 4'), "pipeline.json: damaged, its checksum does not fit")
    loading(text.replace('"version": 1,', ""), "format version None")
    table = next(tmp_path.glob("country.vocabulary.*.parquet"))
    data = table.read_bytes()
    table.write_bytes(data[:-1] + b"x")
    with pytest.raises(FeatureError, match=r"country.vocabulary.*: damaged"):
        FeaturePipeline.load(tmp_path)
    table.unlink()
    with pytest.raises(FeatureError, match=r"country.vocabulary.*: cannot be read \(No such file"):
        FeaturePipeline.load(tmp_path)


def test_roles_ask_only_for_their_columns(fitted: FeaturePipeline) -> None:
    some = rows(20, 3)
    whole = fitted.transform(some)
    assert not {"label", "seen", "days", "log_id"} & set(whole)
    users = fitted.transform(some.select("age", "country", "premium"), roles=["user_feature"])
    assert set(users) < set(whole)
    assert all(torch.equal(users[name], whole[name]) for name in users)
    items = fitted.transform({"item_id": 3, "seconds": None, "tag": "1,2"}, roles=["item_feature"])
    assert items["seconds_missing"].tolist() == [1]
    with pytest.raises(FeatureError, match="unknown role item: did you mean item_feature"):
        fitted.transform(some, roles=["item"])  # type: ignore[list-item]


def test_no_rows_give_tensors_without_rows(fitted: FeaturePipeline) -> None:
    empty = fitted.transform(rows(0), roles=ALL)
    for column in fitted.columns:
        assert empty[column.name].shape == ((0,) if column.width is None else (0, column.width))
    assert same(fitted.transform([], roles=ALL), empty)


def test_unseen_categories_and_missing_values_have_their_documented_index(fitted: FeaturePipeline) -> None:
    request = rows(1).to_dicts()[0] | {"country": "Atlantis", "item_id": 10**12, "age": None, "seconds": math.inf}
    found = fitted.transform(request)
    assert (int(found["country"]), int(found["item_id"]), int(found["age_bucket"])) == (1, 1, 1)
    assert (float(found["age_missing"]), float(found["seconds_missing"])) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop("age"), r"no column 'age', which this pipeline was fitted on: did you mean tag\?|choose"),
        (lambda d: d.rename({"country": "countri"}), "no column 'country'.*: did you mean countri"),
        (lambda d: d.with_columns(age=pl.lit("old")), r"column 'age' should be integers, it is text \('old'\)"),
        (lambda d: d.with_columns(country=pl.lit(3)), r"column 'country' should be text, it is integers \(3\)"),
        (lambda d: d.with_columns(item_id=pl.lit(1.5)), "column 'item_id' holds integers, row 0 has 1.5"),
        (lambda d: d.with_columns(timestamp=pl.lit("2026-01-01")), "column 'timestamp' should be times, it is text"),
        (lambda d: d.with_columns(label=pl.lit(None, dtype=pl.Int64)), "'label': column 'label' has no value in row 0"),
    ],
)
def test_columns_that_changed_are_named(fitted: FeaturePipeline, change, message: str) -> None:
    with pytest.raises(FeatureError, match=message) as error:
        fitted.transform(change(rows(5)), roles=ALL)
    assert "\n" not in str(error.value)


def test_columns_that_only_look_different_are_taken(fitted: FeaturePipeline) -> None:
    some = rows(40, 6)
    other = some.with_columns(
        pl.col("item_id").cast(pl.Float64),
        pl.col("user_id").cast(pl.UInt16),
        pl.col("country").cast(pl.Categorical()),
        pl.col("seconds").cast(pl.Float64),
        pl.col("timestamp").dt.convert_time_zone("Asia/Shanghai"),
        pl.col("label").cast(pl.Boolean),
        extra=pl.lit("is ignored"),
    ).select(pl.all().reverse().reverse())
    assert same(fitted.transform(other, roles=ALL), fitted.transform(some, roles=ALL))
    assert same(fitted.transform(pl.concat([some.head(20), some.tail(20)], rechunk=False)), fitted.transform(some))


def test_requests_with_a_wrong_value_or_without_one(fitted: FeaturePipeline) -> None:
    request = rows(1).to_dicts()[0]
    with pytest.raises(FeatureError, match="request 1 has no 'age': give it, or None for a missing value"):
        fitted.transform([request, {k: v for k, v in request.items() if k != "age"}])
    with pytest.raises(FeatureError, match="column 'age' should be integers, it is text"):
        fitted.transform(request | {"age": "old"})
    with pytest.raises(FeatureError, match="request 0 is 'u': give a dict"):
        fitted.transform("user")  # type: ignore[arg-type]
    with pytest.raises(FeatureError, match="column 'country' should be text"):
        fitted.transform(request | {"country": ["US"]})
    found = [fitted.transform(request | {"item_id": value})["item_id"] for value in (7, np.int64(7), 7.0)]
    assert found[0].tolist() == found[1].tolist() == found[2].tolist() != [1]


@pytest.mark.parametrize(
    ("derive", "message"),
    [
        ({"hour": "extract(hour frm timestamp)"}, "derive.hour=extract.hour frm timestamp"),
        ({"hour": "avg(age)"}, r"derive.hour=avg\(age\) depends on other rows than its own"),
        ({"hour": "lag(age) over (order by timestamp)"}, "depends on other rows"),
        ({"hour": "row_number() over (order by timestamp desc)"}, "depends on other rows"),
        ({"hour": "timestamp - timestamp"}, "gives Duration.*features know integers"),
        ({"hour": "country * 2"}, "derive.hour=country"),
        ({"hour": "extract(hour from times)"}, "feature 'hour': no column 'times': did you mean timestamp"),
    ],
)
def test_expressions_that_cannot_be_derived(derive: dict[str, str], message: str) -> None:
    with pytest.raises(FeatureError, match=message) as error:
        FeaturePipeline(context={"hour": Category()}, derive=derive).fit(rows(50))
    assert "\n" not in str(error.value)


def test_derived_columns_build_on_each_other() -> None:
    declared = FeaturePipeline(
        context={"evening": Category()}, derive={"hour": "extract(hour from timestamp)", "evening": "hour > 17"}
    ).fit(rows(100))
    assert declared.inputs == {"timestamp": "times"}
    found = declared.transform({"timestamp": EPOCH.replace(hour=18)})["evening"]
    assert found.tolist() == [3]


def test_declarations_that_cannot_be() -> None:
    with pytest.raises(FeatureError, match="feature 'a' stands twice, as user_feature and context"):
        FeaturePipeline(user={"a": Category()}, context={"a": Category()})
    with pytest.raises(FeatureError, match="at least one feature"):
        FeaturePipeline()
    with pytest.raises(FeatureError, match="feature 'a' is 3: expected a feature"):
        FeaturePipeline(user={"a": 3})  # type: ignore[dict-item]
    with pytest.raises(FeatureError, match="a name is made of letters"):
        FeaturePipeline(user={"a/b": Category()})
    with pytest.raises(FeatureError, match="two features have an output 'age_missing'"):
        FeaturePipeline(user={"age": Numeric(), "age_missing": Category("age")}).fit(rows(20))
    with pytest.raises(FeatureError, match=r"not fitted: call fit\(train\) or load one"):
        everything().transform(rows(2))
    with pytest.raises(FeatureError, match="not fitted"):
        everything().save("/nowhere")


def test_pandas_frames_and_what_is_no_frame(fitted: FeaturePipeline) -> None:
    some = rows(30, 7)
    assert same(fitted.transform(some.to_pandas(), roles=ALL), fitted.transform(some, roles=ALL))
    with pytest.raises(FeatureError, match="rows are a int: give a Polars frame"):
        fitted.transform(3)
    with pytest.raises(FeatureError, match="rows are a list: give a Polars frame"):
        everything().fit([{"a": 1}])


def test_no_rows_to_fit_on() -> None:
    with pytest.raises(FeatureError, match="no rows to fit on"):
        everything().fit(rows(9).head(0))


def test_a_fit_that_failed_leaves_nothing_behind() -> None:
    declared = FeaturePipeline(user={"a": Numeric(), "b": Numeric()})
    with pytest.raises(FeatureError, match="feature 'b'"):
        declared.fit(pl.DataFrame({"a": [100.0, 200.0], "b": pl.Series([None, None], dtype=pl.Float64)}))
    with pytest.raises(FeatureError, match="not fitted"):
        declared.transform({"a": 1.0, "b": 1.0})
    declared.fit(pl.DataFrame({"a": [0.0, 2.0], "b": [0.0, 2.0]}))
    assert declared.transform({"a": 2.0, "b": 2.0})["a"].tolist() == [1.0]


def test_declared_features_are_not_shared_between_pipelines() -> None:
    shared = Category("country")
    one = FeaturePipeline(user={"c": shared}).fit(pl.DataFrame({"country": ["a"]}))
    two = FeaturePipeline(user={"c": shared}).fit(pl.DataFrame({"country": ["b"]}))
    assert [int(p.transform({"country": "a"})["c"]) for p in (one, two)] == [2, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_bits(fitted: FeaturePipeline) -> None:
    some = rows(5000, 8)
    there = fitted.transform(some, roles=ALL, device="cuda")
    assert all(tensor.is_cuda for tensor in there.values())
    assert same({name: tensor.cpu() for name, tensor in there.items()}, fitted.transform(some, roles=ALL))
