"""Queries within sessions against a naive implementation, and what cannot be asked."""

from functools import partial

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_splits import make, split_kinds

from recsys.data import readers, splits
from recsys.data.checks import DataError
from recsys.data.datamodule import RecDataModule
from recsys.evaluation.ranking import evaluate
from recsys.features.vocabulary import id_keys

COLUMNS = ["user_id", "item_id", "timestamp", "label", "visit"]


def log_of(rows):
    """A log of (user, item, second, label, visit) rows."""
    data = pl.DataFrame(rows, schema=COLUMNS, orient="row")
    return readers.frame(data, columns={"label": "label"}, keep=["visit"], timestamp_unit="s")


def naive(before, after, known):
    """(user, time, item, history, relevant, number of cold items) of every query, in order."""
    liked = [(user, item, time, visit) for user, item, time, label, visit in before + after if label]
    found = set()
    for user, item, time, label, visit in after:
        earlier = [t for u, _, t, v in liked if u == user and v == visit and t < time]
        if label and visit is not None and earlier:
            found.add((user, time, item))
    queries = []
    for user, time, item in sorted(found):
        history = {i for u, i, t, _ in liked if u == user and t < time}
        cold = item not in known and item not in history
        queries.append((user, time, item, history & known, {item} & known, int(cold)))
    return queries


def some(one, module):
    """History and relevant item of one query as raw ids."""
    history, relevant = (module.items.decode(csr.item_idx).to_list() for csr in (one.history, one.relevant))
    assert len(set(history)) == len(history)
    return set(history), set(relevant), int(one.num_cold_relevant)


rows_with_visits = st.lists(
    st.tuples(
        st.integers(0, 4), st.integers(0, 8), st.integers(0, 20), st.sampled_from([1, 1, 1, 0]),
        st.sampled_from(["a", "b", "c", None]),
    ),
    min_size=12,
    max_size=60,
)  # fmt: skip
text = rows_with_visits.map(lambda rows: [(f"u{u}", f"i{i}", t, y, visit) for u, i, t, y, visit in rows])


@settings(max_examples=150, deadline=None)
@given(st.one_of(rows_with_visits, text), split_kinds, st.sampled_from([0, 0.3]), st.randoms(use_true_random=False))
def test_queries_against_loops(rows, kind, validation, random):
    log = log_of(rows)
    try:
        split = make(kind, log, validation)
    except DataError:
        return
    parts = [[] if part is None else part.with_columns(pl.col("timestamp").dt.epoch("s")).select(COLUMNS).rows()
             for part in (split.train, split.validation, split.test)]  # fmt: skip
    train, middle, test = parts
    if not naive(train + middle, test, set()):
        with pytest.raises(DataError, match=r"no session of test has a positive after its first.*queries=users"):
            RecDataModule(log, split, queries="next_in_session", session="visit")
        return
    module = RecDataModule(log, split, queries="next_in_session", session="visit")
    for before, after, queries in ((train + middle, test, module.test), (train, middle, module.validation)):
        expected = naive(before, after, known := {row[1] for row in before})
        if queries is None:
            assert not expected
            continue
        assert [some(queries.rows(q, q + 1), module) for q in range(len(queries))] == [found[3:] for found in expected]
        users = [found[0] for found in expected]
        assert queries.user_key.tolist() == id_keys(pl.Series(users)).tolist()
        assert queries.query_key.unique().numel() == len(queries)
        known_users = {row[0] for row in before}
        assert module.users.decode(queries.user_idx).to_list() == [u if u in known_users else None for u in users]
        assert queries.warm.tolist() == [any(row[0] == u and row[3] for row in train) for u in users]
        assert set(module.items.decode(queries.candidates.nonzero().flatten())) == known
        for q in range(len(queries)):
            times = queries.rows(q, q + 1).history.timestamp
            assert bool((times[1:] >= times[:-1]).all())
    random.shuffle(rows)
    again = RecDataModule(log_of(rows), partial(make, kind, validation=validation), queries="next_in_session",
                          session="visit").test  # fmt: skip
    assert torch.equal(again.query_key, module.test.query_key)
    assert torch.equal(again.seen.item_idx, module.test.seen.item_idx)
    assert torch.equal(again.to("cpu").rows(1, len(again)).seen.item_idx, module.test.rows(1, len(again)).seen.item_idx)


CUT = partial(splits.global_time, test="1970-01-01T00:00:10", validation=0)
ROWS = [
    (1, 10, 1, 1, 1), (1, 11, 9, 1, 2), (2, 12, 1, 1, 1), (2, 13, 2, 0, 1),
    (1, 12, 10, 1, 2),  # the session began before the cut
    (1, 13, 20, 1, 3),  # the first of its session
    (1, 10, 21, 0, 3),
    (1, 11, 22, 1, 3),  # liked before: nothing left to find
    (1, 99, 23, 1, 3),  # cold
    (1, 99, 24, 1, 3),  # cold, and liked before
    (1, 10, 30, 1, 4), (1, 13, 30, 1, 4),  # a tie for the first
    (7, 12, 40, 1, 3),
    (7, 10, 41, 1, 3), (7, 13, 41, 1, 3),  # a stranger; a tie: neither is in the history of the other
    (1, 12, 50, 1, None), (2, 12, 50, 1, None),
]  # fmt: skip


def test_one_pair_at_one_moment_in_two_visits_is_split_alike_in_any_order():
    rows = [(0, 0, 0, 1, "a"), (0, 0, 1, 1, "a"), (0, 0, 1, 1, "b"), (0, 1, 0, 1, "b")]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 1, 0, 3]):
        parts = splits.leave_last_out(log_of([rows[place] for place in order]), validation=0)
        (visit,) = parts.test["visit"]
        assert visit == splits.leave_last_out(log_of(rows), validation=0).test["visit"].item()


def test_first_ones_ties_repeats_strangers_and_cold_items():
    module = RecDataModule(log_of(ROWS), CUT, queries="next_in_session", session="visit")
    found = [some(module.test.rows(q, q + 1), module) for q in range(len(module.test))]
    assert found == [
        ({10, 11}, {12}, 0),
        ({10, 11, 12, 13}, {11}, 0),
        ({10, 11, 12, 13}, set(), 1),
        ({10, 11, 12, 13}, set(), 0),
        ({12}, {10}, 0),
        ({12}, {13}, 0),
    ]
    assert module.test.user_key.tolist() == [1, 1, 1, 1, 7, 7]
    assert module.test.user_idx.tolist() == [2, 2, 2, 2, 1, 1]
    assert module.report["test_queries"] == 6
    # Those of which nothing is left to find are left out and counted; a cold item is a miss.
    found = evaluate(lambda batch: torch.rand(len(batch["user_idx"]), 6), module.test, k=[4], num_replicates=10)
    assert found.counts["empty_relevant"] == 2
    assert found.per_user.height == found.counts["queries"] == 4
    assert found.metrics["recall@4"] == 3 / 4
    assert found.per_user["query_key"].n_unique() == 4
    again = evaluate(lambda batch: torch.rand(len(batch["user_idx"]), 6), module.test, k=[4], mask_history=False)
    assert again.counts["queries"] == 5


def test_session_numbers_may_repeat_between_users():
    rows = [(1, 1, 0, 1, 0), (2, 2, 0, 1, 0), (1, 2, 11, 1, 5), (2, 1, 12, 1, 5), (2, 2, 13, 1, 5)]
    module = RecDataModule(log_of(rows), CUT, queries="next_in_session", session="visit")
    assert module.test.user_key.tolist() == [2]


def test_without_validation_and_without_a_session_in_it():
    assert RecDataModule(log_of(ROWS), CUT, queries="next_in_session", session="visit").validation is None
    cut = partial(CUT, validation="1970-01-01T00:00:09")
    module = RecDataModule(log_of(ROWS), cut, queries="next_in_session", session="visit")
    assert module.split.validation is not None
    assert module.validation is None
    assert module.report["validation_queries"] == 0


def test_what_is_missing_is_named():
    with pytest.raises(
        DataError, match=r"needs column 'visits', say data\.keep=\[NAME\] session=NAME; did you mean 'visit'"
    ):
        RecDataModule(log_of(ROWS), CUT, queries="next_in_session", session="visits")
    data = pl.DataFrame(ROWS, schema=COLUMNS, orient="row").drop("timestamp")
    log = readers.frame(data, columns={"label": "label"}, keep=["visit"])
    with pytest.raises(DataError, match=r"needs column 'timestamp'.*columns\.timestamp=NAME"):
        RecDataModule(log, splits.random, queries="next_in_session", session="visit")
    timed = pl.DataFrame(ROWS, schema=COLUMNS, orient="row").drop("label")
    log = readers.frame(timed, test=timed.drop("timestamp"), keep=["visit"], timestamp_unit="s")
    with pytest.raises(DataError, match="needs a timestamp in every row"):
        RecDataModule(log, partial(splits.given, validation=0), queries="next_in_session", session="visit")
