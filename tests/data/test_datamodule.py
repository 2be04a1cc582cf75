"""RecDataModule: indices and queries against a naive implementation with dicts."""

from collections import defaultdict
from functools import partial
from pathlib import Path

import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from test_splits import any_rows, log_of, make, split_kinds

from recsys.data import readers, splits
from recsys.data.checks import DataError
from recsys.data.datamodule import RecDataModule
from recsys.features.vocabulary import id_keys
from recsys.schema import NUM_RESERVED, Interactions, Queries


def naive_queries(before, after, module, items_known):
    """{raw user: (history ids, relevant ids, number of cold ids)}; rows are (user, item, time, label)."""
    history, tested = defaultdict(set), defaultdict(set)
    for rows, into in ((before, history), (after, tested)):
        for user, item, _, label in rows:
            if label:
                into[user].add(item)
    return {user: (history[user], items & items_known, len(items - items_known)) for user, items in tested.items()}


def decoded(module, queries):
    """The same from Queries, users in their order."""
    found = []
    for query in range(len(queries)):
        one = queries.rows(query, query + 1)
        history, relevant = (set(module.items.decode(csr.item_idx)) for csr in (one.history, one.relevant))
        assert len(history) == len(one.history)
        assert len(relevant) == len(one.relevant)
        found.append((history, relevant, int(one.num_cold_relevant)))
    return found


@settings(max_examples=80, deadline=None)
@given(any_rows, split_kinds, st.sampled_from([0, 0.3]))
def test_queries_against_dicts(rows, kind, validation):
    log = log_of(rows)
    try:
        split = make(kind, log, validation)
    except DataError:
        return
    module = RecDataModule(log, split)
    train = split.train.rows()
    middle = [] if split.validation is None else split.validation.rows()
    train_users = {user for user, _, _, label in train if label}
    asked = [("test", train + middle, split.test.rows(), module.test)]
    if split.validation is not None:
        asked.append(("validation", train, middle, module.validation))
    else:
        assert module.validation is None
    for _, before, after, queries in asked:
        known_items = {row[1] for row in before}
        known_users = {row[0] for row in before}
        expected = naive_queries(before, after, module, known_items)
        users = sorted(expected)
        assert decoded(module, queries) == [expected[user] for user in users]
        assert queries.user_key.tolist() == id_keys(pl.Series(users)).tolist()
        assert queries.warm.tolist() == [user in train_users for user in users]
        assert [u > 1 for u in queries.user_idx.tolist()] == [user in known_users for user in users]
        assert module.users.decode(queries.user_idx).to_list() == [u if u in known_users else None for u in users]
        candidates = torch.nonzero(queries.candidates).flatten()
        assert set(module.items.decode(candidates)) == known_items
        assert candidates.numel() == len(known_items)
    pairs = {(u, i) for u, i, _, label in train if label}
    users = module.users.decode(module.train.row_idx())
    assert set(zip(users, module.items.decode(module.train.item_idx), strict=True)) == pairs
    assert len(module.train) == len(pairs)


@settings(max_examples=30, deadline=None)
@given(any_rows, split_kinds, st.randoms(use_true_random=False))
def test_row_order_changes_nothing(rows, kind, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    try:
        one, two = (RecDataModule(log_of(part), partial(make, kind, validation=0.3)) for part in (rows, shuffled))
    except DataError:
        return
    assert one.log.fingerprint == two.log.fingerprint
    assert one.report == two.report
    assert (one.users, one.items, one.schema) == (two.users, two.items, two.schema)
    assert one.train_events.equals(two.train_events)
    for a, b in (
        (one.train, two.train),
        (one.test.history, two.test.history),
        (one.test.relevant, two.test.relevant),
    ):
        assert torch.equal(a.indptr, b.indptr)
        assert torch.equal(a.item_idx, b.item_idx)
        assert torch.equal(a.timestamp, b.timestamp)


def test_history_is_in_order_of_time():
    log = log_of([(1, 30, 1, 1), (1, 10, 2, 1), (1, 20, 3, 1), (1, 10, 4, 1), (1, 40, 9, 1)])
    module = RecDataModule(log, partial(splits.global_time, test="1970-01-01T00:00:05", validation=0))
    assert module.items.decode(module.test.history.item_idx).to_list() == [30, 10, 20]
    assert module.test.history.timestamp.tolist() == [1_000_000, 2_000_000, 3_000_000]
    assert int(module.test.num_cold_relevant) == 1


def test_an_item_that_was_only_shown_is_a_candidate_and_no_interaction():
    log = log_of([(1, 1, 0, 1), (1, 2, 1, 0), (1, 3, 9, 1), (1, 2, 9, 1)])
    module = RecDataModule(log, partial(splits.global_time, test="1970-01-01T00:00:05", validation=0))
    assert module.items.ids.to_list() == [1, 2]
    assert module.test.candidates.tolist() == [False, False, True, True]
    assert len(module.train) == 1
    assert module.train_events["label"].to_list() == [1, 0]
    assert module.items.decode(module.test.relevant.item_idx).to_list() == [2]


def test_an_item_already_liked_stays_relevant_for_the_evaluator_to_judge():
    log = log_of([(1, 1, 0, 1), (1, 1, 9, 1)])
    module = RecDataModule(log, partial(splits.global_time, test="1970-01-01T00:00:05", validation=0))
    assert module.test.history.item_idx.tolist() == module.test.relevant.item_idx.tolist() == [2]


def test_a_listed_item_is_known_from_its_date():
    events = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [0, 9]})
    items = pl.DataFrame({"item_id": [2, 3, 4], "since": [4, 4, 6]})
    log = readers.frame(events)
    dated = items.rename({"since": "timestamp"}).with_columns(
        pl.from_epoch("timestamp").dt.cast_time_unit("us").dt.replace_time_zone("UTC")
    )
    split = partial(splits.global_time, test="1970-01-01T00:00:05", validation=0)
    log = readers.Log("log", log.events, items=dated.lazy())
    assert RecDataModule(log, split).items.ids.to_list() == [1, 2, 3]
    # A table without dates does not say when.
    log = readers.Log("log", log.events, items=items.lazy())
    assert RecDataModule(log, split).items.ids.to_list() == [1]


def test_users_and_items_of_a_given_test_part_stay_unknown(tmp_path):
    (tmp_path / "train.txt").write_text("0 1 2\n1 2\n2\n")
    (tmp_path / "test.txt").write_text("0 3 1\n7 2\n1\n")
    module = RecDataModule(
        readers.adjacency(tmp_path / "train.txt", tmp_path / "test.txt"), partial(splits.given, validation=0)
    )
    assert module.users.ids.to_list() == [0, 1]
    assert module.test.user_idx.tolist() == [2, 1]
    assert module.test.num_cold_relevant.tolist() == [1, 0]
    assert module.test.warm.tolist() == [True, False]
    assert module.report["test_items_unseen_in_train"] == 1
    assert module.report["test_queries"] == 2


def test_the_fingerprint_is_of_content_alone(tmp_path):
    data = pl.DataFrame({"user_id": ["a", "b", "b"], "item_id": [1, 2, 3], "timestamp": [5, 6, 7], "x": [0.5, None, 1]})
    data.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "parts").mkdir()
    data[2:].write_csv(tmp_path / "parts" / "0.csv")
    data[:2].write_csv(tmp_path / "parts" / "1.csv")
    base = readers.frame(data, keep=["x"]).fingerprint
    assert readers.table(tmp_path / "log.parquet", keep=["x"]).fingerprint == base
    assert readers.table(tmp_path / "parts", keep=["x"]).fingerprint == base
    others = [
        data.with_columns(item_id=pl.Series([1, 2, 4])),
        data.with_columns(timestamp=pl.Series([6, 5, 7])),
        data.with_columns(user_id=pl.Series(["a", "b", "c"])),
        data.with_columns(x=pl.Series([0.5, 0.0, 1.0])),
        data.with_columns(x=pl.Series([0.5, 1.0, None])),
        data[:2],
    ]
    prints = [readers.frame(other, keep=["x"]).fingerprint for other in others]
    assert len({base, *prints}) == len(others) + 1
    assert readers.frame(data, keep=["x"], test=data).fingerprint != base
    pairs, swapped = ({"user_id": [1, 2], "item_id": items} for items in ([1, 2], [2, 1]))
    assert readers.frame(pl.DataFrame(pairs)).fingerprint != readers.frame(pl.DataFrame(swapped)).fingerprint


def test_movielens_by_every_split(ml_100k):
    log = readers.movielens(ml_100k)
    for split in (splits.global_time, splits.leave_last_out, splits.random):
        module = RecDataModule(log, split, seed=1)
        assert module.report["test_queries"] == len(module.test) > 100
        total = len(module.train) + len(module.validation.relevant) + len(module.test.relevant)
        cold = int(module.validation.num_cold_relevant.sum() + module.test.num_cold_relevant.sum())
        assert total + cold == 55_375


CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize(
    ("overrides", "target"),
    [
        ([], "global_time"),
        (["split=random"], "random"),
        (["split=leave_last_out", "split.validation=0"], "leave_last_out"),
        (["split.test='1970-01-01T00:00:08'", "split.validation=0"], "global_time"),
    ],
)
def test_a_table_from_the_config(tmp_path, overrides, target):
    path = tmp_path / "log.csv"
    path.write_text("uid,sku,when,stars\n" + "".join(f"{u},{i},{i},5\n" for u in range(4) for i in range(10)))
    columns = {"user_id": "uid", "item_id": "sku", "timestamp": "when", "label": "stars"}
    overrides = [
        "data=table", f"data.path={path}", "data.label_threshold=4",
        *(f"data.columns.{role}={name}" for role, name in columns.items()), *overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=overrides)
    assert config.split._target_.endswith(f".{target}")
    module = RecDataModule(instantiate(config.data), instantiate(config.split), seed=0)
    assert module.schema.num_users == 6
    assert len(module.test) == 4


def test_adjacency_from_the_config_takes_the_given_split(tmp_path):
    (tmp_path / "train.txt").write_text("0 1 2\n1 2\n")
    (tmp_path / "test.txt").write_text("0 3\n")
    files = [f"data.train={tmp_path}/train.txt", f"data.test={tmp_path}/test.txt"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=["data=adjacency", *files, "split.validation=0"])
        other = compose("train", overrides=["data=adjacency", *files, "split=random"])
    module = RecDataModule(instantiate(config.data), instantiate(config.split), seed=0)
    assert module.test.num_cold_relevant.tolist() == [1]
    assert other.split._target_.endswith(".random")


def test_queries_about_some_items_have_nothing_else_relevant() -> None:
    queries = Queries(
        user_idx=torch.tensor([2, 3, 4]),
        user_key=torch.tensor([20, 30, 40]),
        history=Interactions.from_pairs(torch.tensor([0, 2, 2]), torch.tensor([2, 3, 4]), num_rows=3, num_items=9),
        relevant=Interactions.from_pairs(
            torch.tensor([0, 0, 1, 2, 2]), torch.tensor([5, 6, 7, 6, 8]), num_rows=3, num_items=9
        ),
        num_cold_relevant=torch.tensor([1, 0, 2]),
        warm=torch.tensor([True, False, True]),
        candidates=torch.arange(9) >= NUM_RESERVED,
    )
    items = torch.zeros(9, dtype=torch.bool)
    items[[6, 8]] = True
    found = queries.about(items)
    assert found.user_key.tolist() == [20, 40]
    assert found.relevant.indptr.tolist() == [0, 1, 3]
    assert found.relevant.item_idx.tolist() == [6, 6, 8]
    assert found.history.rows(1, 2).item_idx.tolist() == [3, 4]
    assert found.num_cold_relevant.tolist() == [0, 0]
    assert len(queries.about(torch.zeros(9, dtype=torch.bool))) == 0
