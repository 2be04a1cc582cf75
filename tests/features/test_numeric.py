"""Numeric and Buckets against NumPy, the sketch against all values, the logarithm against arbitrary precision."""

import math

import mpmath
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features import Buckets, FeatureError, FeaturePipeline, Numeric
from recsys.features.numeric import Sketch, log1p

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def fitted(feature, values):
    return FeaturePipeline(context={"x": feature}).fit(pl.DataFrame({"x": values}))


def transformed(pipeline, values, name="x"):
    return pipeline.transform(pl.DataFrame({"x": values}))[name]


def draws(size=20_000):
    return np.random.default_rng(3).lognormal(2, 1.5, size)


@given(st.lists(st.lists(finite, max_size=30), min_size=1, max_size=4))
def test_the_sketch_agrees_with_all_values(chunks):
    values = np.array([v for chunk in chunks for v in chunk], dtype=np.float64)
    sketch = Sketch()
    for chunk in chunks:
        sketch.add(np.array(chunk, dtype=np.float64))
    seen = sketch.finish()
    assert len(seen) == len(values)
    if not len(values):
        return
    size = np.abs(values).max()
    mean, deviation = seen.moments()
    assert mean == pytest.approx(values.mean(), abs=1e-9 * size + 1e-300)
    assert deviation == pytest.approx(values.std(), abs=1e-6 * size + 1e-300)
    for q in (0.0, 0.25, 0.5, 0.77, 1.0):
        low, high = np.quantile(values, q, method="lower"), np.quantile(values, q, method="higher")
        slack = 2**-12 * max(abs(low), abs(high))
        assert low - slack <= seen.quantile(q) <= high + slack


def test_quantiles_of_integers_are_exact_and_of_reals_close():
    whole = np.random.default_rng(0).integers(0, 5000, 20_001).astype(float)
    sketch = Sketch()
    for part in np.array_split(whole, 5):
        sketch.add(part)
    seen = sketch.finish()
    for q in (0, 0.1, 0.333, 0.5, 0.9, 1):
        assert seen.quantile(q) == pytest.approx(np.quantile(whole, q), rel=1e-12)
    values = draws()
    sketch = Sketch()
    sketch.add(values)
    seen = sketch.finish()
    for q in (0.001, 0.1, 0.5, 0.99):
        assert seen.quantile(q) == pytest.approx(np.quantile(values, q), rel=2**-12)


def test_a_sketch_stays_small_over_many_chunks():
    sketch, values = Sketch(), np.random.default_rng(1)
    for _ in range(60):
        sketch.add(values.normal(size=5_000))
    assert sum(part.height for part in sketch._parts) < 150_000
    assert sketch.finish().moments()[1] == pytest.approx(1, abs=0.01)


def test_variance_of_small_numbers_far_from_zero():
    values = 1.65e12 + np.random.default_rng(2).normal(size=10_000)
    sketch = Sketch()
    sketch.add(values)
    # The values themselves are rounded to 2.4e-4 out there.
    assert sketch.finish().moments()[1] == pytest.approx(values.std(), rel=1e-3)


def test_log1p_is_right_to_the_last_bits():
    mpmath.mp.prec = 120
    powers = torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 200 - 100
    x = torch.cat(
        [torch.tensor([0.0, 5e-324, 1e-300, 1e-16, 0.5, 1, 1e300, 1.7e308], dtype=torch.float64), powers.exp()]
    )
    exact = [float(mpmath.log1p(mpmath.mpf(value))) for value in x.tolist()]
    for found, right in zip(log1p(x.clone()).tolist(), exact, strict=True):
        assert found == pytest.approx(right, rel=1e-15, abs=5e-324)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_min_max_maps_train_to_the_interval_and_beyond_it_to_the_ends(low):
    values = draws()
    pipeline = fitted(Numeric(scale="min_max", low=low), values)
    expected = (values - values.min()) / (values.max() - values.min()) * (1 - low) + low
    np.testing.assert_allclose(transformed(pipeline, values), expected, atol=1e-6)
    assert transformed(pipeline, [-5.0, 1e9]).tolist() == [low, 1.0]


def test_standard_and_power_law_and_none():
    values = draws()
    standard = (values - values.mean()) / values.std()
    np.testing.assert_allclose(transformed(fitted(Numeric(), values), values), standard, rtol=1e-5, atol=1e-6)
    power_law = np.log1p(values) / (1 + np.median(values))
    np.testing.assert_allclose(transformed(fitted(Numeric(scale="power_law"), values), values), power_law, rtol=2e-4)
    np.testing.assert_array_equal(transformed(fitted(Numeric(scale="none"), values), values), values.astype(np.float32))
    assert transformed(fitted(Numeric(scale="power_law"), values), [-3.0]).tolist() == [0.0]


def test_clipping_by_value_and_by_quantile_comes_before_the_scale():
    values = draws()
    clipped = values.clip(2, 50)
    by_value = transformed(fitted(Numeric(clip=[2, 50]), values), values)
    np.testing.assert_allclose(by_value, (clipped - clipped.mean()) / clipped.std(), rtol=1e-5, atol=1e-6)
    ends = np.quantile(values, 0.05), np.quantile(values, 0.95)
    clipped = values.clip(*ends)
    by_quantile = transformed(fitted(Numeric(clip_quantiles=[0.05, 0.95]), values), values)
    np.testing.assert_allclose(by_quantile, (clipped - clipped.mean()) / clipped.std(), atol=2e-3)
    above = transformed(fitted(Numeric(scale="none", clip=[None, 3]), values), [1.0, 9.0])
    assert above.tolist() == [1.0, 3.0]


@pytest.mark.parametrize("impute", ["median", "mean", 7.0])
def test_what_is_missing_is_imputed_and_flagged(impute):
    values = [1.0, None, 2.0, math.nan, 12.0, math.inf, -math.inf]
    pipeline = fitted(Numeric(scale="none", impute=impute), values)
    found = pipeline.transform(pl.DataFrame({"x": values}))
    fill = {"median": 2.0, "mean": 5.0}.get(impute, impute)
    assert found["x"].tolist() == [1, fill, 2, fill, 12, fill, fill]
    assert found["x_missing"].tolist() == [0, 1, 0, 1, 0, 1, 1]
    bare = fitted(Numeric(flag=False), values).transform(pl.DataFrame({"x": values}))
    assert list(bare) == ["x"]


def test_a_constant_column_has_the_documented_value():
    for scale, value in (("standard", 0.0), ("min_max", 0.0), ("none", 4.0)):
        assert transformed(fitted(Numeric(scale=scale), [4.0, 4.0]), [4.0]).tolist() == [value]
    assert transformed(fitted(Numeric(scale="min_max", low=-1), [4, 4]), [4, 9]).tolist() == [-1.0, -1.0]
    assert fitted(Numeric(), [0.1] * 10).transform({"x": 0.1})["x"].tolist() == [0.0]


def test_results_stay_finite():
    pipeline = fitted(Numeric(scale="none"), [1.0, 1e300])
    assert torch.isfinite(transformed(pipeline, [1e300, -1e300])).all()


def test_integers_booleans_and_small_floats_are_numbers():
    for values in ([1, 2, 3], [True, False, True], pl.Series([1.5, 2.5], dtype=pl.Float32)):
        assert transformed(fitted(Numeric(scale="none"), values), values).dtype == torch.float32


@given(st.lists(finite, min_size=1, max_size=60), st.integers(2, 8))
def test_buckets_hold_equal_shares_and_keep_order(values, num_buckets):
    pipeline = fitted(Buckets(num_buckets=num_buckets), values)
    idx = transformed(pipeline, values)
    order = np.argsort(values, kind="stable")
    assert (np.diff(idx.numpy()[order]) >= 0).all()
    assert 2 <= int(idx.min()) <= int(idx.max()) < pipeline.columns[0].cardinality
    edges = pipeline.features["x"].learned.numpy()
    np.testing.assert_array_equal(
        idx.numpy(), 2 + np.searchsorted(edges, np.array(values, dtype=np.float64), side="right")
    )


def test_quantile_buckets_are_of_equal_mass():
    values = draws()
    counts = torch.bincount(transformed(fitted(Buckets(num_buckets=8), values), values), minlength=10)
    assert counts[:2].tolist() == [0, 0]
    assert (counts[2:] - 2500).abs().max() < 30


def test_given_edges_missing_values_and_a_constant():
    pipeline = fitted(Buckets(edges=[0, 10]), [1.0])
    assert transformed(pipeline, [-1.0, 0.0, 9.0, 10.0, None, math.nan, math.inf]).tolist() == [2, 3, 3, 4, 1, 1, 1]
    assert transformed(fitted(Buckets(), [5, 5, 5]), [4, 5, 6]).tolist() == [2, 3, 3]


@settings(max_examples=20)
@given(st.permutations(range(40)))
def test_the_order_of_rows_does_not_show(order):
    values = pl.DataFrame({"x": np.random.default_rng(5).lognormal(0, 2, 40)})
    pipeline = FeaturePipeline(context={"x": Numeric(clip_quantiles=[0.1, 0.9]), "b": Buckets("x")})
    assert pipeline.fit(values).fingerprint == pipeline.fit(values[order]).fingerprint


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        (Numeric(), ["a", "b"], "column 'x' should be numbers, it is text \\('a'\\)"),
        (Numeric(), [None, math.nan], "no finite value .* leave it out"),
        (Buckets(), pl.Series([None], dtype=pl.Float64), "no finite value .* leave it out"),
        (Numeric(scale="power_law"), [1.0, -124.0], "holds -124: power_law takes values from 0 on"),
    ],
)
def test_columns_that_cannot_be_fitted(feature, values, message):
    with pytest.raises(FeatureError, match=f"feature 'x': .*{message}"):
        fitted(feature, values)


def test_times_are_no_numbers():
    with pytest.raises(FeatureError, match=r"derive a number, as extract\(hour from x\)"):
        fitted(Numeric(), pl.Series([0]).cast(pl.Datetime("us")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "log"}, "scale=log: expected one of none, standard, min_max, power_law"),
        ({"low": 1.0}, "expected low < high"),
        ({"impute": "zero"}, "impute=zero: expected median, mean or a number"),
        ({"clip": [3, 1]}, r"clip=\[3, 1\]: expected low < high"),
        ({"clip": [1]}, r"expected \[low, high\]"),
        ({"clip_quantiles": [0, 2]}, r"within \[0, 1\]"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(FeatureError, match=message):
        Numeric(**arguments)
    with pytest.raises(FeatureError, match=r"ascending"):
        Buckets(edges=[2, 1])
    with pytest.raises(FeatureError, match="num_buckets=1"):
        Buckets(num_buckets=1)
