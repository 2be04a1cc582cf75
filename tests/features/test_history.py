"""History: the past of a row against a naive loop, and never anything else."""

import datetime

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.features import Category, FeatureError, FeaturePipeline, History

EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def moments(seconds):
    return pl.Series([EPOCH + datetime.timedelta(seconds=int(s)) for s in seconds], dtype=pl.Datetime("us", "UTC"))


def frame(rows):
    """rows of (user, item, second, label)"""
    user, item, second, label = zip(*rows, strict=True) if rows else ((), (), (), ())
    return pl.DataFrame(
        {
            "user_id": pl.Series(user, dtype=pl.Int64),
            "item_id": pl.Series(item, dtype=pl.Int64),
            "timestamp": moments(second),
            "label": pl.Series(label, dtype=pl.Int8),
        }
    )


def pipeline(length=3, **options):
    return FeaturePipeline(item={"item_id": Category()}, context={"history": History(length=length, **options)})


def naive(rows, row, length, index):
    """Items before a row, latest last: of equal times the smaller index first."""
    user, _, second, _ = row
    past = sorted((s, index[i]) for u, i, s, label in rows if u == user and label and s < second)
    items = [i for _, i in past][-length:]
    gaps = [float(second - s) for s, _ in past][-length:]
    return [0] * (length - len(items)) + items, [0.0] * (length - len(gaps)) + gaps, len(items)


logs = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 12), st.integers(0, 1)), min_size=1, max_size=40
)


@given(logs, st.integers(1, 5))
def test_histories_are_those_of_a_naive_loop(rows, length):
    fitted = pipeline(length).fit(frame(rows))
    found = fitted.transform(frame(rows))
    index = {item: number for number, item in enumerate(sorted({row[1] for row in rows}), 2)}
    for number, row in enumerate(rows):
        items, gaps, count = naive(rows, row, length, index)
        assert found["history"][number].tolist() == items
        assert found["history_gap_seconds"][number].tolist() == gaps
        assert int(found["history_length"][number]) == count


@given(logs, st.data())
def test_no_row_sees_its_future(rows, data):
    """What happens at a row's time or later is replaced by anything: its features stay, all of them."""
    row = data.draw(st.sampled_from(rows))
    now = row[2]
    past = [r for r in rows if r[2] < now]
    other = data.draw(
        st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(now, 30), st.integers(0, 1)))
    )
    known = [(9, item, 0, 0) for item in range(1, 10)]  # the same vocabulary whatever the future holds
    one = pipeline().fit(frame([*past, row, *other, *known])).transform(frame([row]))
    two = pipeline().fit(frame([*known, *rows])).transform(frame([row]))
    assert all(torch.equal(one[name], two[name]) for name in one)


@given(logs, st.randoms())
def test_the_order_of_rows_does_not_show(rows, random):
    shuffled = rows.copy()
    random.shuffle(shuffled)
    assert pipeline().fit(frame(rows)).fingerprint == pipeline().fit(frame(shuffled)).fingerprint


def test_after_the_cut_the_state_is_that_of_the_cut_until_it_is_updated():
    fitted = pipeline().fit(frame([(1, 10, 0, 1), (1, 11, 5, 1), (1, 12, 6, 0), (2, 11, 7, 1)]))
    later = frame([(1, 10, 100, 1), (1, 11, 200, 1), (3, 11, 200, 1)])
    assert fitted.transform(later)["history"].tolist() == [[0, 2, 3], [0, 2, 3], [0, 0, 0]]
    fitted.update(later)
    assert fitted.transform(later)["history"].tolist() == [[0, 2, 3], [2, 3, 2], [0, 0, 0]]
    assert fitted.transform(frame([(3, 10, 201, 0)]))["history"].tolist() == [[0, 0, 3]]


def test_a_past_before_the_log_and_items_unknown_to_train():
    past = frame([(1, 99, -10, 1), (1, 10, -5, 1)]).drop("label")
    fitted = pipeline().fit(frame([(1, 10, 0, 1), (2, 11, 1, 0)]), past=past)
    assert fitted.transform(frame([(1, 11, 1, 0)]))["history"].tolist() == [[1, 2, 2]]


def test_a_trimmed_pipeline_serves_alike_and_holds_less():
    rows = [(user, item, second, 1) for second, (user, item) in enumerate([(1, 10), (2, 11)] * 20)]
    fitted = pipeline().fit(frame(rows))
    serving = fitted.trimmed()
    request = {"user_id": 2, "item_id": 10, "timestamp": EPOCH + datetime.timedelta(days=1)}
    assert all(
        torch.equal(a, b) for a, b in zip(*(p.transform(request).values() for p in (fitted, serving)), strict=True)
    )
    assert len(serving.features["history"].events.timestamp) == 6
    assert len(fitted.features["history"].events.timestamp) == 40


def test_strangers_and_users_without_an_id_have_no_past():
    fitted = pipeline().fit(frame([(1, 10, 0, 1)]))
    for user in (77, None):
        found = fitted.transform({"user_id": user, "item_id": 10, "timestamp": EPOCH + datetime.timedelta(days=1)})
        assert found["history"].tolist() == [[0, 0, 0]]
        assert found["history_length"].tolist() == [0]


def test_text_ids_every_row_a_positive_and_no_positive_at_all():
    rows = pl.DataFrame({"u": ["b", "a", "b"], "v": ["x", "y", "y"], "t": moments([0, 1, 2])})
    declared = FeaturePipeline(
        item={"video": Category("v")},
        context={"seen": History(of="video", user="u", timestamp="t", positive=None, length=2)},
    )
    assert declared.fit(rows).transform(rows)["seen"].tolist() == [[0, 0], [0, 0], [0, 2]]
    none = pipeline().fit(frame([(1, 10, 0, 0)]))
    found = none.transform(frame([(1, 10, 5, 0)]))
    assert (found["history"].tolist(), found["history_length"].tolist()) == ([[0, 0, 0]], [0])


def test_a_long_past_is_searched_exactly():
    seconds = np.sort(np.random.default_rng(0).integers(0, 3000, 5000))
    rows = pl.DataFrame({"user_id": 1, "item_id": np.arange(5000) % 50, "timestamp": moments(seconds), "label": 1})
    fitted = pipeline(4).fit(rows)
    asked = rows.with_columns(timestamp=moments(range(5000)))
    expected = np.searchsorted(seconds, np.arange(5000), side="left").clip(max=4)
    assert fitted.transform(asked)["history_length"].tolist() == expected.tolist()
    last = fitted.transform(asked)["history_gap_seconds"][:, -1].numpy()
    before = np.searchsorted(seconds, np.arange(5000), side="left") - 1
    np.testing.assert_array_equal(last, np.where(before < 0, 0, np.arange(5000) - seconds[before.clip(0)]))


def test_errors_name_what_is_wrong():
    with pytest.raises(FeatureError, match=r"feature 'history': of=items: expected a feature of the pipeline"):
        pipeline(of="items")
    with pytest.raises(FeatureError, match="length=0"):
        History(length=0)
    rows = frame([(1, 10, 0, 1)])
    with pytest.raises(FeatureError, match=r"feature 'history': no column 'label'"):
        pipeline().fit(rows.drop("label"))
    with pytest.raises(FeatureError, match=r"'label' should say 1 for a positive and 0"):
        pipeline().fit(rows.with_columns(label=pl.lit(5)))
    with pytest.raises(FeatureError, match=r"column 'timestamp' has no value in row 0"):
        pipeline().fit(rows).transform({"user_id": 1, "item_id": 10, "timestamp": None})
    with pytest.raises(FeatureError, match=r"'timestamp' is Float64: a history needs times"):
        pipeline().fit(rows.with_columns(timestamp=pl.lit(1.5)))
    with pytest.raises(FeatureError, match="a history needs one index an item"):
        FeaturePipeline(item={"item_id": Category(one_hot=True)}, context={"h": History()}).fit(rows)


def test_an_update_says_which_rows_are_positive():
    fitted = pipeline().fit(frame([(1, 10, 0, 1)]))
    with pytest.raises(FeatureError, match="no column 'label'"):
        fitted.update(frame([(1, 10, 5, 1)]).drop("label"))

    with pytest.raises(FeatureError, match="should say 1 for a positive"):
        fitted.update(pl.concat([frame([(1, 10, 6, 1)])] * 2).with_columns(label=pl.Series([1, 7])))
    fitted.update(frame([(1, 10, 8, 1)]))
    assert fitted.transform(frame([(1, 10, 9, 0)]))["history_length"].tolist() == [2]
