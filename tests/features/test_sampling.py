"""Training on imbalanced clicks: class weights, negative sampling and its correction, SMOTE."""

import json
import math
import struct
import sys
from datetime import date

import numpy as np
import polars as pl
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from recsys.features.sampling import NegativeSampling, class_weights, smote


def clicks(n=20_000, seed=0, positive=0.02):
    """A log with 2% positives, all rows distinct."""
    draw = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user_id": draw.integers(0, 500, n),
            "item_id": draw.integers(0, 300, n),
            "timestamp": pl.Series(1_700_000_000_000_000 + 1_000_000 * np.arange(n)).cast(pl.Datetime("us", "UTC")),
            "label": pl.Series(draw.random(n) < positive).cast(pl.Int8),
            "row": np.arange(n),
        }
    )


# --- class weights --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=50).filter(lambda labels: len(set(labels)) == 2))
def test_class_weights_are_those_of_scikit_learn_in_every_type_of_label(labels):
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=np.array(labels, dtype=int))
    given_as = [torch.tensor(labels), torch.tensor(labels).long(), torch.tensor(labels).float()]
    given_as += [pl.Series(labels), pl.Series(labels).cast(pl.UInt8), pl.Series(labels).cast(pl.Float64)]
    for one in given_as:
        weights = class_weights(one)
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights, torch.tensor(expected).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3), "labels have no 1 among 3: weights need rows of both classes"),
        (pl.Series([True]), "labels have no 0 among 1"),
        (torch.zeros(0), "labels have no 0 among 0"),
        (torch.tensor([0, 1, 4]), r"labels: 4 is neither 0 nor 1: say what is a positive"),
        (torch.tensor([0.0, math.nan]), "labels: nan is neither"),
        (pl.Series([0.0, math.nan, 1.0]), "labels: nan is neither"),
        (pl.Series([0, None, 1]), "labels: a label is missing: fill it or drop its row"),
        (pl.Series(["0", "1"]), "labels: labels are String, expected 0 and 1: convert them"),
        (torch.zeros(2, 1), r"labels: expected one dimension, got shape \[2, 1\]"),
    ],
)
def test_class_weights_refuse_what_is_no_pair_of_classes(labels, message):
    with pytest.raises(ValueError, match=message) as raised:
        class_weights(labels)
    assert "\n" not in str(raised.value)


# --- which negatives stay -------------------------------------------------------------------------------------


def naive_uniform(values: list[int], seed: int) -> float:
    """One row's number in [0, 1): XXH64 of each value, chained through the seed."""
    hashed = [xxhash.xxh64_intdigest(struct.pack("<q", value), seed) for value in values]
    combined = hashed[0]
    for one in hashed[1:]:
        combined = xxhash.xxh64_intdigest(struct.pack("<Q", one), combined)
    return (combined >> 11) / 2**53


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_a_negative_stays_where_its_own_hash_lies_below_the_rate(seed):
    rows = clicks(2_000)
    keys = rows.select("user_id", "item_id", pl.col("timestamp").to_physical(), "label").rows()
    expected = [label == 1 or naive_uniform(key, seed) < 0.3 for *key, label in keys]
    assert NegativeSampling(0.3, seed).keep(rows).equals(rows.filter(pl.Series(expected)))


def test_all_positives_and_the_share_of_negatives_stay():
    rows, rate = clicks(), 0.1
    kept = NegativeSampling(rate).keep(rows)
    assert kept.filter(label=1).equals(rows.filter(label=1))
    n = rows.filter(label=0).height
    assert abs(kept.filter(label=0).height - rate * n) < 5 * math.sqrt(n * rate * (1 - rate))
    assert NegativeSampling(1.0).keep(rows).equals(rows)


def test_a_lower_rate_keeps_a_part_and_another_seed_keeps_others():
    rows = clicks().filter(label=0)
    few, many = (set(NegativeSampling(rate).keep(rows)["row"]) for rate in (0.1, 0.4))
    assert few < many
    other = set(NegativeSampling(0.4, seed=1).keep(rows)["row"])
    n = rows.height
    assert abs(len(many & other) - 0.16 * n) < 5 * math.sqrt(n * 0.16 * 0.84)


def test_the_choice_depends_neither_on_order_nor_on_chunks_nor_on_the_engine(tmp_path):
    rows, sampling = clicks(), NegativeSampling(0.2, seed=3)
    kept = sampling.keep(rows)
    shuffled = sampling.keep(rows.sample(fraction=1, shuffle=True, seed=0))
    assert shuffled.sort("row").equals(kept)
    assert not shuffled.equals(kept)
    assert pl.concat([sampling.keep(part) for part in rows.iter_slices(777)]).equals(kept)
    assert sampling.keep(pl.concat(list(rows.iter_slices(777)), rechunk=False)).equals(kept)
    rows.write_parquet(tmp_path / "log.parquet", row_group_size=1000)
    for lazy in (rows.lazy(), pl.scan_parquet(tmp_path / "log.parquet")):
        lazily = sampling.keep(lazy)
        assert isinstance(lazily, pl.LazyFrame)
        for engine in ("streaming", "in-memory"):
            assert lazily.collect(engine=engine).equals(kept)
            # Also where the engine moves filters and columns around it.
            after = lazily.filter(pl.col("row") > 5_000).select("row").collect(engine=engine)
            assert after.equals(kept.filter(pl.col("row") > 5_000).select("row"))


def test_rows_alike_in_all_columns_that_decide_share_their_fate():
    users = pl.DataFrame({"user_id": np.arange(1000) % 50, "label": 0})
    kept = NegativeSampling(0.5, by=("user_id",)).keep(users)
    assert 0 < kept["user_id"].n_unique() < 50
    assert (kept["user_id"].value_counts()["count"] == 20).all()


def test_text_booleans_and_times_decide_whatever_the_unit_they_are_stored_in():
    rows = clicks(3_000).with_columns(
        pl.format("ü{}", "user_id").alias("user_id"), mobile=pl.col("item_id") % 2 == 0, day=date(2024, 1, 1)
    )
    sampling = NegativeSampling(0.5, by=("user_id", "mobile", "day", "timestamp"))
    kept = sampling.keep(rows)
    assert 0 < kept.height < rows.height
    alike = rows.with_columns(
        pl.col("user_id").cast(pl.Categorical), pl.col("timestamp").dt.cast_time_unit("ms"), pl.col("mobile").cast(int)
    )
    assert sampling.keep(alike)["row"].equals(kept["row"])


def test_labels_may_be_booleans_or_floats_and_rows_may_be_none():
    rows, sampling = clicks(2_000), NegativeSampling(0.5)
    for dtype in (pl.Boolean, pl.Float32):
        assert sampling.keep(rows.cast({"label": dtype}))["row"].equals(sampling.keep(rows)["row"])
    assert sampling.keep(rows.clear()).equals(rows.clear())
    assert sampling.keep(rows.clear().lazy()).collect(engine="streaming").equals(rows.clear())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0.0}, r"rate=0.0: expected the share of negatives to keep, above 0 and at most 1"),
        ({"rate": 1.5}, "rate=1.5"),
        ({"rate": math.nan}, "rate=nan"),
        ({"rate": 0.5, "seed": -1}, "seed=-1: expected"),
        ({"rate": 0.5, "by": "user_id"}, "by='user_id': expected the names of one or more columns"),
        ({"rate": 0.5, "by": ()}, r"by=\(\): expected the names"),
    ],
)
def test_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        NegativeSampling(**arguments)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.col("label").replace(0, None), "column 'label': a label is missing: fill it or drop its row"),
        (pl.col("label") * 3, r"column 'label': 3.0 is neither 0 nor 1"),
        (pl.lit(math.nan).alias("label"), "column 'label': nan is neither"),
        (pl.col("label").cast(pl.String), "column 'label': labels are String"),
        (pl.lit(0.5).alias("item_id"), "by='item_id' is Float64: expected integers, text, booleans or times"),
    ],
)
def test_refuses_values_it_cannot_judge(change, message, lazy):
    rows = clicks(200).with_columns(change)
    with pytest.raises(ValueError, match=message):
        NegativeSampling(0.5).keep(rows.lazy() if lazy else rows).lazy().collect(engine="streaming")


def test_a_missing_column_is_named_with_the_nearest():
    rows = clicks(10)
    with pytest.raises(ValueError, match=r"needs the column 'item_id': did you mean itemid\?"):
        NegativeSampling(0.5).keep(rows.rename({"item_id": "itemid"}))
    with pytest.raises(ValueError, match=r"needs the column 'label': choose from item_id, row, timestamp, user_id"):
        NegativeSampling(0.5).keep(rows.drop("label").lazy())


def test_goes_through_json():
    sampling = NegativeSampling(0.05, seed=2**62, by=("a", "b"), label="click")
    assert NegativeSampling.from_dict(json.loads(json.dumps(sampling.to_dict()))) == sampling


# --- corrected probabilities ----------------------------------------------------------------------------------


def fit_logistic(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intercept and slope by Newton's method, and their covariance."""
    design, beta = np.stack([np.ones_like(x), x], 1), np.zeros(2)
    for _ in range(30):
        p = 1 / (1 + np.exp(-design @ beta))
        information = design.T @ (design * (p * (1 - p))[:, None])
        beta = beta + np.linalg.solve(information, design.T @ (y - p))
    return beta, np.linalg.inv(information)


def test_a_model_of_the_kept_rows_is_corrected_to_the_model_of_all_rows():
    draw, n, rate = np.random.default_rng(5), 200_000, 0.1
    x = draw.normal(size=n)
    true = 1 / (1 + np.exp(4.5 - x))
    rows = pl.DataFrame({"row": np.arange(n), "x": x, "label": (draw.random(n) < true).astype(np.int8)})
    sampling = NegativeSampling(rate, by=("row",))
    kept = sampling.keep(rows)
    everything, _ = fit_logistic(x, rows["label"].to_numpy())
    beta, covariance = fit_logistic(kept["x"].to_numpy(), kept["label"].to_numpy())
    logits = torch.from_numpy(beta[0] + beta[1] * x)
    corrected = sampling.correct_logits(logits)
    deviation = math.sqrt(covariance.max())
    intercept = float(sampling.correct_logits(torch.tensor(beta[0], dtype=torch.float64)))
    assert abs(intercept - everything[0]) < 4 * deviation < 0.15
    assert abs(beta[1] - everything[1]) < 4 * deviation
    assert abs(beta[0] - everything[0]) > 2  # what an uncorrected model is off by, about log(10)
    probabilities = sampling.correct(torch.sigmoid(logits))
    torch.testing.assert_close(probabilities, torch.sigmoid(corrected), rtol=1e-12, atol=0)
    assert abs(float(probabilities.mean()) - true.mean()) < 0.05 * true.mean()
    assert np.abs(probabilities.numpy() - true).max() < 0.05


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(1e-6, 1))
def test_correct_is_the_formula_to_the_last_digits(p, rate):
    sampling = NegativeSampling(rate)
    for dtype in (torch.float32, torch.float64):
        given_p = torch.tensor([p], dtype=dtype)
        corrected = sampling.correct(given_p)
        exact = float(given_p)
        # Float64 reference; where it is below the smallest normal number of the type only absolute digits count.
        expected = torch.tensor([exact / (exact + (1 - exact) / rate)], dtype=torch.float64)
        info = torch.finfo(dtype)
        assert corrected.dtype == dtype
        torch.testing.assert_close(corrected.double(), expected, rtol=6 * info.eps, atol=info.tiny)
    assert sampling.correct(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_correct_refuses_what_is_no_probability():
    for value in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\], found .*: give logits to correct_logits"):
            NegativeSampling(0.5).correct(torch.tensor([0.5, value]))


# --- SMOTE ----------------------------------------------------------------------------------------------------


def imbalanced(n=200, num_positives=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    labels = (torch.arange(n) % (n // num_positives) == 0).long()
    return torch.randn(n, 3, generator=generator, dtype=torch.float64).to(dtype), labels


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_synthetic_rows_lie_between_a_positive_and_one_of_its_neighbours(ratio):
    features, labels = imbalanced()
    before = features.clone()
    more, more_labels = smote(features, labels, num_neighbors=4, ratio=ratio)
    assert torch.equal(features, before)
    assert torch.equal(more[: len(features)], features)
    assert torch.equal(more_labels[: len(labels)], labels)
    negatives = int((labels == 0).sum())
    assert int(more_labels.sum()) == int(ratio * negatives)
    assert int((more_labels == 0).sum()) == negatives
    positives = features[labels == 1]
    distance = torch.cdist(positives, positives)
    neighbours = distance.argsort(1)[:, 1:5]
    for row in more[len(features) :]:
        to = (positives - row).norm(dim=1)
        detour = to[:, None] + to[neighbours] - distance.gather(1, neighbours)
        assert detour.min() < 1e-9


def test_smote_follows_the_seed_and_keeps_types():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        features, labels = imbalanced(dtype=dtype)
        one, other = smote(features, labels, seed=3), smote(features, labels, seed=3)
        assert torch.equal(one[0], other[0])
        assert one[0].dtype == dtype
        assert not torch.equal(one[0], smote(features, labels, seed=4)[0])
        for kind in (torch.bool, torch.float32, torch.int32):
            assert smote(features, labels.to(kind))[1].dtype == kind


def test_smote_adds_nothing_where_positives_are_enough():
    features, labels = imbalanced()
    for enough in (1 - labels, torch.ones_like(labels)):
        same, same_labels = smote(features, enough)
        assert torch.equal(same, features)
        assert torch.equal(same_labels, enough)
    assert len(smote(features, labels, ratio=0.01)[0]) == len(features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features_BF": torch.ones(5)}, r"smote takes \[B, F\] and \[B\], got \[5\] and \[200\]"),
        ({"labels_B": torch.ones(3)}, r"got \[200, 3\] and \[3\]"),
        ({"features_BF": torch.ones(200, 3).long()}, "smote takes numbers to interpolate, got torch.int64"),
        ({"labels_B": torch.full((200,), 2)}, "labels: 2 is neither 0 nor 1"),
        ({"ratio": 0.0}, "ratio=0.0: expected"),
        ({"ratio": 2.0}, "ratio=2.0: expected"),
        ({"num_neighbors": 0}, "num_neighbors=0: expected 1 or more"),
        ({"num_neighbors": 13}, "13 positives are too few for num_neighbors=13: set num_neighbors=12"),
        ({"labels_B": (torch.arange(200) == 5).long()}, "1 positives are too few for .*: give more rows"),
        ({"labels_B": torch.zeros(200)}, "0 positives are too few for num_neighbors=5: give more rows"),
    ],
)
def test_smote_refuses_what_it_cannot_do(change, message):
    features, labels = imbalanced()
    with pytest.raises(ValueError, match=message):
        smote(**{"features_BF": features, "labels_B": labels, **change})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_smote_names_the_feature_that_is_not_finite(value):
    features, labels = imbalanced()
    features[17, 2] = value
    with pytest.raises(ValueError, match=f"feature 2 is {value} in row 17: fill it or drop it"):
        smote(features, labels)


def test_smote_says_how_to_install_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "imblearn.over_sampling", None)
    with pytest.raises(ImportError, match=r"smote needs imbalanced-learn: pip install 'recsys\[smote\]'"):
        smote(*imbalanced())
