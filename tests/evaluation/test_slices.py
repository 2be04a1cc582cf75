"""Groups of users and items: every row in one, in an order that reads, and the figures of a group its own."""

import numpy as np
import polars as pl
import pytest
import torch
from naive import make_queries, scorer_of

from recsys.evaluation import calibration
from recsys.evaluation.ranking import evaluate
from recsys.evaluation.slices import by_items, by_users, groups


def counted(found: pl.Series) -> dict[str, int]:
    counts = dict(found.cast(pl.String).value_counts().iter_rows())
    return {name: counts[name] for name in found.dtype.categories if name in counts}


def test_values_keep_their_names_and_the_rare_ones_are_other() -> None:
    few = pl.Series(["b", "a", None, "a"])
    assert groups(few).to_list() == ["b", "a", "unknown", "a"]
    many = pl.Series("word", [letter for n, letter in enumerate("abcdefghijk") for _ in range(20 - n)])
    assert counted(groups(many)) == {**{letter: 20 - n for n, letter in enumerate("abcdefgh")}, "other": 12 + 11 + 10}
    assert counted(groups(pl.Series([3, 3, 1]))) == {"3": 2, "1": 1}


def test_amounts_become_quarters() -> None:
    assert counted(groups(pl.Series(range(100)))) == {"0 to 24": 25, "25 to 49": 25, "50 to 74": 25, "75 to 99": 25}
    tied = pl.Series([0] * 60 + [1] * 20 + list(range(2, 22)) + [None])
    assert counted(groups(tied, amounts=True)) == {"0": 60, "1": 20, "2 to 21": 20, "unknown": 1}
    assert counted(groups(pl.Series([0.123456, 7.5, 9.25, 11.0]))) == {"0.123": 1, "7.5": 1, "9.25": 1, "11.0": 1}
    assert counted(groups(pl.Series([None, None], dtype=pl.Float64))) == {"unknown": 2}


def test_users_of_a_group_are_measured_alone() -> None:
    queries = make_queries(np.random.default_rng(0), 80, 40)
    found = evaluate(scorer_of(torch.rand(80, 40)), queries, k=[5], num_replicates=0)
    names = groups(pl.Series(["x", "y", "y", None] * 20))
    table = by_users(found.per_user, pl.DataFrame({"user_key": queries.user_key.numpy(), "group": names}), ["recall@5"])
    assert table["group"].to_list() == ["y", "x", "unknown"]
    assert table["queries"].sum() == found.per_user.height
    weighted = (table["recall@5"] * table["queries"]).sum() / table["queries"].sum()
    assert weighted == pytest.approx(found.metrics["recall@5"])
    assert (table["recall@5/low"] < table["recall@5"]).all()
    nobody = by_users(found.per_user, pl.DataFrame({"user_key": [0], "group": groups(pl.Series(["z"]))}), ["recall@5"])
    assert nobody["group"].to_list() == ["unknown"]


def test_a_rankers_rows_are_grouped_by_user() -> None:
    generator = np.random.default_rng(1)
    user, logits = generator.integers(0, 50, 2000), generator.normal(size=2000)
    labels = (generator.random(2000) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    per_user = calibration.measure(*map(torch.from_numpy, (logits, labels, user)), num_replicates=0).per_user
    even = pl.DataFrame({"user_key": range(50), "group": groups(pl.Series(["even", "odd"] * 25))})
    table = by_users(per_user, even, ["log_loss", "grouped_auc"])
    for row in table.to_dicts():
        chosen = user % 2 == (row["group"] == "odd")
        alone = calibration.measure(*(torch.from_numpy(v[chosen]) for v in (logits, labels, user)), num_replicates=0)
        assert row["log_loss"] == pytest.approx(alone.metrics["log_loss"])
        assert row["grouped_auc"] == pytest.approx(alone.metrics["grouped_auc"])


def test_items_of_a_group_are_what_is_relevant() -> None:
    queries = make_queries(np.random.default_rng(2), 60, 30, cold=0)
    score = scorer_of(torch.rand(60, 30, generator=torch.Generator().manual_seed(0)))
    names = groups(pl.Series(["low"] * 15 + ["high"] * 15))

    def asked(**given):
        return evaluate(k=[5], **given)

    table = by_items(asked, score, queries, names, ["recall@5"])
    assert set(table["group"]) == {"low", "high"}
    low = asked(score=score, queries=queries.about(torch.arange(30) < 15), num_replicates=0)
    row = table.filter(pl.col("group") == "low").row(0, named=True)
    assert row["recall@5"] == pytest.approx(low.metrics["recall@5"])
    assert row["queries"] == low.counts["queries"]
