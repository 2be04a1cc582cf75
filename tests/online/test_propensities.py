"""Propensities of a world's other policies: those that its log holds, and those that its log shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from recsys.online.offpolicy import evaluate_policy
from recsys.online.propensities import above, draw_probability, exposures, first_rows, next_expectation, next_propensity
from recsys.world import World, logs
from recsys.world.behaviour import examination
from recsys.world.oracle import attention
from recsys.world.population import user_ids, users, video_ids

OTHER = {"popularity_share": 0.80, "taste_share": 0.08}


@pytest.fixture(scope="module")
def micro(tiny: World) -> World:
    """So few videos that a visit uses up what is likely."""
    return replace(
        tiny, name="micro", num_users=40, num_videos=60, num_days=6, num_topics=5, new_video_share=0.25, fresh_days=2,
        max_depth=6, examination_scale=3.0, click_bias=-1.5, sessions_per_day=6.0, videos_per_creator=3,
        new_user_share=0.0,
    )  # fmt: skip


def ids(world: World) -> tuple[torch.Tensor, torch.Tensor]:
    return user_ids(world, torch.arange(world.num_users)), video_ids(world, torch.arange(world.num_videos))


def test_the_logging_policy_gives_the_propensities_of_its_log(tiny: World) -> None:
    rows = logs.log(tiny, days=range(12, 15), numbers=range(300))
    again = next_propensity(tiny, rows).numpy()
    assert again == pytest.approx(rows["propensity"].cast(pl.Float64).to_numpy(), rel=2e-6)
    other = replace(tiny, **OTHER)
    theirs = logs.log(other, days=range(12, 15), numbers=range(300))
    assert next_propensity(other, theirs).numpy() == pytest.approx(theirs["propensity"].to_numpy(), rel=2e-6)
    weights = next_propensity(other, rows).numpy() / again
    assert weights.std() > 0.3
    assert weights.mean() == pytest.approx(1, abs=4 * weights.std() / len(weights) ** 0.5)


def test_draws_add_up_and_the_next_is_renormalised(micro: World) -> None:
    user, item = ids(micro)
    p_UN = draw_probability(micro, user, item, 3)
    assert p_UN.sum(1).numpy() == pytest.approx(1, abs=1e-8)
    rows = logs.log(micro, days=range(3, 4))
    first_Z = first_rows(rows)
    who, video = (
        torch.from_numpy(np.searchsorted(np.sort(known.numpy()), rows[name].to_numpy()))
        for name, known in (("user_id", user), ("item_id", item))
    )
    who, video = user.argsort()[who], item.argsort()[video]
    value_UN = torch.rand(p_UN.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p_Z, value_Z = p_UN[who, video], value_UN[who, video]
    assert (p_Z / (1 - above(p_Z, first_Z))).numpy() == pytest.approx(next_propensity(micro, rows).numpy(), rel=1e-10)
    found_Z = next_expectation(p_Z, value_Z, (p_UN * value_UN).sum(1)[who], first_Z)
    for row in range(0, 200, 7):
        left_N = torch.ones(micro.num_videos, dtype=torch.bool)
        left_N[video[first_Z[row] : row]] = False
        p_N = p_UN[who[row]] * left_N
        assert float(found_Z[row]) == pytest.approx(float((p_N * value_UN[who[row]]).sum() / p_N.sum()), rel=1e-7)


@pytest.mark.parametrize("shares", [{}, OTHER])
def test_exposures_are_those_of_simulated_visits(micro: World, shares: dict[str, float]) -> None:
    world, day = replace(micro, **shares), 3
    user, item = ids(world)
    told_UN = exposures(world, user, item, day)
    assert told_UN.sum(1).numpy() == pytest.approx(float(attention(world).sum()), rel=0.02)
    seen_UN, visits_U = torch.zeros_like(told_UN), torch.zeros(world.num_users)
    who, looked = users(world, torch.arange(world.num_users)), examination(world)
    for month in range(150):
        rows = logs.impressions(world, day, who, month)
        seen_UN.index_put_((rows["row"], rows["video"]), looked[rows["position"].long()], accumulate=True)
        visits_U += torch.bincount(rows["row"][rows["position"] == 0], minlength=world.num_users)
    expected_UN = told_UN * visits_U[:, None]
    p_UN = draw_probability(world, user, item, day)
    assert (seen_UN[p_UN == 0] == 0).all()
    assert (told_UN[p_UN == 0] == 0).all()
    # By how likely they are: sums over a twelfth of the pairs each.
    for pairs in p_UN.flatten().argsort().chunk(12):
        assert float(expected_UN.flatten()[pairs].sum() / seen_UN.flatten()[pairs].sum()) == pytest.approx(1, abs=0.05)


def test_position_based_weights_lack_the_bias_of_those_given_the_rows_above(micro: World) -> None:
    """Expected clicks for clicks, so that 60 months show the difference."""
    other, day = replace(micro, **OTHER), 3
    user, item = ids(micro)
    logged_UN, target_UN = exposures(micro, user, item, day), exposures(other, user, item, day)
    who, looked = users(micro, torch.arange(micro.num_users)), examination(micro)

    def month(world: World, seed: int) -> pl.DataFrame:
        rows = logs.impressions(world, day, who, seed)
        pair = rows["row"], rows["video"]
        frame = logs.frame(rows).with_columns(seed=pl.lit(seed))
        return frame.with_columns(
            label=pl.Series((rows["relevance"] * looked[rows["position"].long()]).numpy()),
            seen=pl.Series(logged_UN[pair].numpy()),
            seen_target=pl.Series(target_UN[pair].numpy()),
            target=pl.Series(next_propensity(other, frame).numpy()),
        )

    ours = pl.concat([month(micro, seed) for seed in range(60)])
    theirs = pl.concat([month(other, 1000 + seed) for seed in range(60)])
    truth = theirs["label"].sum() / theirs.select("seed", "session_id").n_unique()
    ours = ours.with_columns(visit=pl.format("{}-{}", "seed", "session_id"))
    table = evaluate_policy(ours, visit="visit", position_based=("seen", "seen_target"))
    value = dict(zip(table["estimator"], table["value"], strict=True))
    assert value["position_based"] == pytest.approx(truth, rel=0.015)
    assert value["ips"] < truth * 0.97
    assert value["naive"] > truth * 1.1


def test_torn_visits_are_refused(tiny: World) -> None:
    rows = logs.log(tiny, days=range(1), numbers=range(50)).filter(pl.len().over("session_id") > 3)
    for torn in (rows.tail(-1), rows.filter(pl.col("position") != 2), rows.reverse()):
        with pytest.raises(ValueError, match=r"position \d+ of session_id \d+ \(row \d+\) does not follow"):
            next_propensity(tiny, torn)
    with pytest.raises(ValueError, match="not of this world"):
        next_propensity(tiny, rows.with_columns(item_id=pl.lit(3)))
