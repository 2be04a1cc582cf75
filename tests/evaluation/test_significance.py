"""Bootstrap weights and intervals against NumPy's bootstrap and against their own definition."""

import math

import numpy as np
import polars as pl
import pytest
import torch

from recsys.evaluation import intervals, paired_interval, significance
from recsys.evaluation.significance import mix64, poisson_weights, replicate_sums


def keys(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count))


def per_user(values, user_key):
    return pl.DataFrame({"user_key": user_key.numpy(), "recall@5": np.asarray(values, dtype=np.float32)})


def test_mix64_is_splitmix64():
    """The first outputs of SplitMix64 from state 1234567, as published with the generator."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + golden * n) % 2**64 for n in range(1, 4)]
    signed = torch.tensor([state - 2**64 if state >= 2**63 else state for state in states])
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(value) % 2**64 for value in mix64(signed)] == expected


def test_weights_are_poisson_and_independent():
    weights = poisson_weights(torch.arange(3000), 400).double()  # regular keys are the hard case
    count = weights.numel()
    for number in range(6):
        share = float((weights == number).double().mean())
        expected = math.exp(-1) / math.factorial(number)
        assert abs(share - expected) < 5 * math.sqrt(expected / count) + 2**-16
    assert abs(float(weights.mean()) - 1) < 5 / math.sqrt(count) + 1e-4
    for axis in (0, 1):
        means = weights.mean(axis)
        spread = float(means.var() * weights.shape[axis])
        assert abs(spread - 1) < 5 * math.sqrt(2 / len(means))
    neighbours = (
        ((weights[1:] - 1) * (weights[:-1] - 1)).mean(),
        ((weights[:, 1:] - 1) * (weights[:, :-1] - 1)).mean(),
    )
    assert all(abs(float(value)) < 5 / math.sqrt(count) for value in neighbours)


def test_weights_belong_to_seed_user_and_replicate():
    user_key = keys(50)
    weights = poisson_weights(user_key, 100, seed=3)
    assert torch.equal(poisson_weights(user_key.flip(0), 100, seed=3), weights.flip(0))
    assert torch.equal(poisson_weights(user_key[7:8], 41, seed=3), weights[7:8, :41])
    assert not torch.equal(poisson_weights(user_key, 100, seed=4), weights)
    assert poisson_weights(user_key, 100, seed=2**70).shape == (50, 100)


def test_replicates_are_weighted_sums_whatever_the_blocks(monkeypatch):
    values, user_key = torch.rand(137, 3), keys(137)
    weights = poisson_weights(user_key, 60, seed=1).double()
    expected = torch.cat([values.double(), torch.ones(137, 1)], 1).T @ weights
    whole = replicate_sums(values, user_key, num_replicates=60, seed=1)
    assert torch.allclose(whole, expected, rtol=1e-12)
    monkeypatch.setattr(significance, "_BLOCK_WEIGHTS", 600)
    parts = (
        replicate_sums(values[rows], user_key[rows], num_replicates=60, seed=1)
        for rows in torch.randperm(137, generator=torch.Generator().manual_seed(0)).split(50)
    )
    assert torch.allclose(sum(parts), expected, rtol=1e-12)


def test_intervals_agree_with_numpys_bootstrap():
    rng = np.random.default_rng(0)
    values = rng.beta(0.3, 2, size=(400, 2))
    drawn = rng.integers(0, 400, (4000, 400))
    expected = np.quantile(values[drawn].mean(1), [0.05, 0.95], axis=0).T
    found = intervals(torch.from_numpy(values), keys(400), num_replicates=4000, confidence=0.9).numpy()
    width = expected[:, 1] - expected[:, 0]
    assert np.abs(found - expected).max() < 0.06 * width.min()


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    trials, covered = 200, 0
    for trial in range(trials):
        values = torch.from_numpy(rng.exponential(size=(200, 1)))
        low, high = intervals(values, keys(200, trial), num_replicates=200, confidence=0.8, seed=trial)[0]
        covered += bool(low <= 1 <= high)
    assert abs(covered / trials - 0.8) < 4 * math.sqrt(0.8 * 0.2 / trials)


def test_queries_of_one_user_are_resampled_together():
    """Against a loop over replicates that draws users, and a pairing in any order."""
    rng = np.random.default_rng(5)
    user_key = keys(60).repeat_interleave(torch.from_numpy(rng.integers(1, 9, 60)))
    values = np.repeat(rng.normal(size=60), torch.unique_consecutive(user_key, return_counts=True)[1].numpy())
    frame = per_user(values, user_key).with_columns(query_key=pl.Series(rng.permutation(len(values))))
    low, high = intervals(torch.from_numpy(values)[:, None], user_key, num_replicates=4000)[0].tolist()
    of_user = frame.group_by("user_key").agg(pl.col("recall@5").sum(), pl.len()).sort("user_key")[:, 1:].to_numpy()
    draws = of_user[rng.integers(0, 60, (4000, 60))].sum(1)
    naive = np.quantile(draws[:, 0] / draws[:, 1], [0.025, 0.975])
    assert [low, high] == pytest.approx(naive.tolist(), abs=0.08 * (high - low))
    one_by_one = intervals(torch.from_numpy(values)[:, None], keys(len(values)), num_replicates=4000)[0].tolist()
    assert high - low > 1.5 * (one_by_one[1] - one_by_one[0])

    other = frame.with_columns(pl.col("recall@5") - 0.25).sample(fraction=1, shuffle=True, seed=1)
    assert paired_interval(frame, other)["recall@5"] == pytest.approx((0.25, 0.25, 0.25), abs=1e-6)
    with pytest.raises(ValueError, match="by one protocol"):
        paired_interval(frame, other.drop("query_key"))
    moved = other.with_columns(query_key=pl.when(pl.col("query_key") == 0).then(-1).otherwise("query_key"))
    with pytest.raises(ValueError, match="over the same users"):
        paired_interval(frame, moved)


def test_a_paired_interval_is_narrower_and_joins_by_user():
    rng = np.random.default_rng(2)
    user_key = keys(500)
    base = rng.random(500)
    gain = 0.02 + 0.01 * rng.normal(size=500)
    a, b = per_user(base + gain, user_key), per_user(base, user_key)
    difference, low, high = paired_interval(a, b)["recall@5"]
    assert 0.015 < low < difference < high < 0.025
    assert difference == pytest.approx(gain.mean(), abs=1e-6)
    shuffled = b.sample(fraction=1, shuffle=True, seed=0)
    assert paired_interval(a, shuffled)["recall@5"] == pytest.approx((difference, low, high), abs=1e-12)
    alone_low, alone_high = intervals(torch.from_numpy(base)[:, None], user_key)[0].tolist()
    assert high - low < 0.1 * (alone_high - alone_low)
    # The same resamples: the interval of a constant shift has no width.
    shift = paired_interval(per_user(base + 0.25, user_key), b)["recall@5"]
    assert shift == pytest.approx((0.25, 0.25, 0.25), abs=1e-6)


def test_paired_runs_must_share_users_and_metrics():
    a = per_user([0.1, 0.2, 0.3], torch.tensor([5, 6, 7]))
    with pytest.raises(ValueError, match="2 rows; user_key 6 is in one of them alone"):
        paired_interval(a, a.filter(pl.col("user_key") != 6))
    with pytest.raises(ValueError, match="share no metric"):
        paired_interval(a, a.rename({"recall@5": "recall@10"}))


def test_few_users_and_bad_arguments():
    one = intervals(torch.tensor([[0.5]]), torch.tensor([9]))
    assert one.tolist() == [[0.5, 0.5]]
    with pytest.raises(ValueError, match="0 users"):
        intervals(torch.empty(0, 1), torch.empty(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="confidence"):
        intervals(torch.rand(3, 1), keys(3), confidence=95)
