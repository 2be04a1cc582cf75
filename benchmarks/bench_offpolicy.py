"""What a log says of other policies, beside what they bring in truth: 200 logs of world tiny by every estimator.

    python benchmarks/bench_offpolicy.py [--logs 200] [--months 500] [--users 2000] [--day 14] [--size small]
        [--out FILE]

A log is a day of all users, told anew for each log by another noise seed; its value is the clicks a visit. Target
policies are the same world with other shares of what is shown, and `greedy`, which shows each user the best video that
is left. Their truth is the mean over --months more days under the policy itself, drawn with noise seeds of its own:
probabilities stand for clicks, and the rows examined a visit for their known mean, so that little noise is left.

ips, snips, dr and switch_dr weigh by the probability of a video to be seen in a visit, at any place (the position-based
model, which is true of this world). Those with _given_above, and rips, weigh by p(video | rows above), as the log's
propensity is: their bias is the price. q is cross-fitted by user on the log itself, from what a platform knows: the
policy's taste, language, age, and the clicks of days before.

The last line is one JSON object. Of each policy: truth, its standard error, and of each estimator the effective sample
(median share of rows), how many of the logs were answered, of those the bias with its standard error, rmse, the share
of intervals that hold the truth and their mean half width, and verdicts. `pairs`: the differences of squared error
DR - SNIPS and SNIPS - naive over the same logs, with standard errors. `bar`: whether, for policies with an effective
sample of 5%, rmse of dr <= snips <= naive and ips, snips and dr hold the truth nine times in ten.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recsys import benching
from recsys.config import build, compose
from recsys.online.crossfit import Attraction, CrossFit, cross_fit
from recsys.online.offpolicy import ENOUGH, evaluate_policy
from recsys.online.propensities import above, draw_probability, exposures, first_rows, next_expectation
from recsys.world import World, logs
from recsys.world.behaviour import Columns, examination, log_taste, session_rate, speaks
from recsys.world.oracle import RelevanceScorer, attention, utility
from recsys.world.population import DAY_US, drifted, taste, user_ids, users, video_ids, videos

POLICIES = {
    "taste": {"popularity_share": 0.15, "taste_share": 0.73},
    "taste_most": {"popularity_share": 0.02, "taste_share": 0.86},
    "popular": {"popularity_share": 0.65, "taste_share": 0.23},
    "explore": {"explore_share": 0.30, "popularity_share": 0.25, "taste_share": 0.38},
    "fresh": {"fresh_share": 0.25, "popularity_share": 0.25, "taste_share": 0.43},
    "viral": {"burst_share": 0.22, "popularity_share": 0.25, "taste_share": 0.43},
}
FEATURES = ["taste", "understood", "age", "draw", "item_clicks", "user_clicks"]
TRUTH_SEED, LOG_SEED = 1_000_000, 1_000
ABOVE = "_given_above"
SHARED = ("naive", "ips", "snips", "dr", "switch_dr")
ESTIMATORS = (*SHARED, *(name + ABOVE for name in SHARED[1:]), "rips")


class Setting(NamedTuple):
    """What all logs share: tables of users by videos, float64 [U, N] unless said."""

    world: World
    day: int
    draw_UN: Tensor
    features_UNF: np.ndarray  # float32
    policies: dict[str, Tensor]  # draw probabilities
    logged_UN: Tensor  # exposures under the logging policy
    seen: dict[str, Tensor]  # and under the others
    best_UN: Tensor  # rank by relevance


def clicks_before(world: World, day: int, num_users: int) -> tuple[np.ndarray, np.ndarray]:
    """How often users and videos were clicked against how often they were examined by then, smoothed logs [U], [N]."""
    looked = examination(world)
    counts = {"row": torch.zeros(num_users, 2).double(), "video": torch.zeros(world.num_videos, 2).double()}
    for rows in logs.stream(world, range(day), range(num_users), workers=1):
        pair = torch.stack([rows["label"].double(), looked[rows["position"].long()]], 1)
        for name, count in counts.items():  # one block a day: `row` counts users from 0
            count.index_add_(0, rows[name], pair)
    rate = float(counts["row"][:, 0].sum() / counts["row"][:, 1].sum())
    return tuple(((c[:, 0] + 2) / (c[:, 1] + 2 / rate)).log().numpy() for c in counts.values())


def setting(world: World, day: int, num_users: int) -> Setting:
    number = torch.arange(num_users)
    who, what = users(world, number), videos(world, torch.arange(world.num_videos))
    user, item = user_ids(world, number), video_ids(world, torch.arange(world.num_videos))
    draw_UN = draw_probability(world, user, item, day)
    of_user, of_item = clicks_before(world, day, num_users)
    share_UN = taste(world, drifted(world, who, day), what.topic.expand(num_users, -1))
    columns = [
        log_taste(world, share_UN),
        speaks(who.country[:, None], what.language).double(),
        torch.exp(-(day - what.upload_day).clamp(min=0) / 7.0).expand(num_users, -1),
        torch.log(draw_UN.clamp(min=1e-9)),
        torch.from_numpy(of_item).expand(num_users, -1),
        torch.from_numpy(of_user)[:, None].expand(-1, world.num_videos),
    ]
    targets = {name: replace(world, **shares) for name, shares in POLICIES.items()}
    seen = {name: exposures(target, user, item, day) for name, target in targets.items()}
    ids = torch.cat([torch.zeros(2, dtype=torch.int64), item])
    relevance_UN = RelevanceScorer(world, ids, world.start_us + day * DAY_US).score({"user_key": user})[:, 2:]
    relevance_UN = torch.where(what.upload_day <= day, relevance_UN, -1.0)
    rank_UN = relevance_UN.argsort(1, descending=True).argsort(1)
    shown = torch.cat([attention(world), torch.zeros(world.num_videos - world.max_depth)])
    seen["greedy"] = shown[rank_UN]
    return Setting(
        world,
        day,
        draw_UN,
        np.stack([column.float().numpy() for column in columns], 2),
        {name: draw_probability(target, user, item, day) for name, target in targets.items()},
        exposures(world, user, item, day),
        seen,
        rank_UN,
    )


def truth(world: World, day: int, num_users: int, months: int) -> tuple[float, float]:
    """Clicks a visit under a policy, and the standard error."""
    who, looked = users(world, torch.arange(num_users)), examination(world)
    sums = np.empty((months, 2))
    for month in range(months):
        rows = logs.impressions(world, day, who, TRUTH_SEED + month)
        looked_Z = looked[rows["position"].long()]
        sums[month] = float((rows["relevance"] * looked_Z).sum()), float(looked_Z.sum())
    ratio = sums[:, 0].sum() / sums[:, 1].sum()
    share = (sums[:, 0] - ratio * sums[:, 1]) / sums[:, 1].mean()
    scale = float(attention(world).sum())
    return ratio * scale, float(share.std(ddof=1) / months**0.5) * scale


def greedy_truth(given: Setting, num_users: int) -> float:
    """Clicks a visit of the lists of the most relevant videos, by the answer key."""
    world, number = given.world, torch.arange(num_users)
    lists_UK = given.best_UN.argsort(1)[:, : world.max_depth]
    item = video_ids(world, torch.arange(world.num_videos))
    clicks_U, _ = utility(world, user_ids(world, number), item[lists_UK], world.start_us + given.day * DAY_US)
    rate_U = session_rate(world, users(world, number), given.day)
    return float((clicks_U * rate_U).sum() / rate_U.sum())


def log_frame(given: Setting, rows: Columns) -> pl.DataFrame:
    """The log as a platform has it, with features of the logged videos."""
    who, video = rows["row"].numpy(), rows["video"].numpy()
    features = given.features_UNF[who, video].astype(np.float64)
    frame = pl.DataFrame({name: rows[name].numpy() for name in ("user_id", "session_id", "position", "label")})
    frame = frame.with_columns(pl.Series("propensity", rows["propensity"].double().numpy()))
    looked = examination(given.world)[rows["position"].long()].numpy()
    frame = frame.with_columns(pl.Series("seen", given.logged_UN[who, video].numpy()), pl.Series("examination", looked))
    return frame.with_columns(pl.Series(name, features[:, f].copy()) for f, name in enumerate(FEATURES))


def attractions(given: Setting, model: CrossFit, user_id: np.ndarray, number: Tensor) -> Tensor:
    """P(click | examined) by the models that have not seen the user, float32 [U, N] for users by number."""
    fold_U = model.fold(pl.Series(user_id))
    found = torch.empty(len(number), given.world.num_videos)
    for f, one in enumerate(model.models):
        assert isinstance(one, Attraction)
        of_fold = np.flatnonzero(fold_U == f)
        found[of_fold] = torch.from_numpy(one.attraction(given.features_UNF[number[of_fold].numpy()]))
    return found


def estimates(given: Setting, rows: Columns) -> dict[str, pl.DataFrame]:
    """By target policy the table of estimators from one log."""
    frame = log_frame(given, rows)
    model = cross_fit(frame, FEATURES, examination="examination")
    frame = frame.with_columns(pl.Series("q", model(frame)))
    first_Z, who, video = first_rows(frame), rows["row"], rows["video"]
    number, inverse = who.unique(return_inverse=True)
    attraction_UN = attractions(given, model, user_ids(given.world, number).numpy(), number)
    looked_Z = torch.from_numpy(frame["examination"].to_numpy().copy())
    value_Z = attraction_UN[inverse, video].double()
    depth_Z = torch.bincount(rows["session"])[rows["session"]]
    shared = {"q": "q", "visit": "session_id", "cluster": "user_id", "examination": "examination"}
    found = {}
    for name, seen_UN in given.seen.items():
        clicks_U = torch.einsum("un,un->u", seen_UN[number].float(), attraction_UN).double()  # a visit, by the model
        columns = {"seen_target": seen_UN[who, video], "visit_target": clicks_U[inverse] / depth_Z}
        if name == "greedy":
            columns["target"], columns["next_target"] = greedy(given, rows, first_Z)
            columns["next_target"] = looked_Z * attraction_UN[inverse, columns["next_target"]].double()
        else:
            p_UN = given.policies[name]
            p_Z = p_UN[who, video]
            mean_U = torch.einsum("un,un->u", p_UN[number].float(), attraction_UN).double()
            columns["target"] = p_Z / (1 - above(p_Z, first_Z))
            columns["next_target"] = looked_Z * next_expectation(p_Z, value_Z, mean_U[inverse], first_Z)
        whole = frame.with_columns(pl.Series(key, column.numpy()) for key, column in columns.items())
        table = evaluate_policy(whole, propensity="seen", target="seen_target", q_target="visit_target", **shared)
        given_above = evaluate_policy(whole, q_target="next_target", position="position", **shared)
        renamed = pl.when(pl.col("estimator") == "rips").then("estimator").otherwise(pl.col("estimator") + ABOVE)
        found[name] = pl.concat([table, given_above.with_columns(estimator=renamed)])
    return found


def greedy(given: Setting, rows: Columns, first_Z: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each row shows the best video that is left, 1.0 or 0.0, and the number of that video."""
    rank_Z = given.best_UN[rows["row"], rows["video"]].tolist()
    best_Z, used, left = torch.empty(len(rank_Z), dtype=torch.int64), set(), 0
    for row, (rank, first) in enumerate(zip(rank_Z, first_Z.tolist(), strict=True)):
        if first == row:
            used, left = set(), 0
        best_Z[row] = left
        used.add(rank)
        while left in used:
            left += 1
    return (best_Z == torch.tensor(rank_Z)).double(), given.best_UN.argsort(1)[rows["row"], best_Z]


def summary(tables: list[pl.DataFrame], true: float) -> dict[str, object]:
    """Of one policy: how estimators did over the logs."""
    result: dict[str, object] = {}
    error: dict[str, np.ndarray] = {}
    for name in ESTIMATORS:
        rows = pl.concat([table.filter(pl.col("estimator") == name) for table in tables])
        if not rows.height:
            continue
        kinds = Counter(text.split(":")[0].split(" (")[0].split(" above")[0] for text in rows["verdict"])
        one: dict[str, object] = {"share": round(float(np.median(rows["share"])), 5), "answered": rows["value"].count()}
        told = rows.drop_nulls("value")
        if told.height > 1:
            wrong = told["value"].to_numpy() - true
            if told.height == rows.height:
                error[name] = wrong
            one["bias"] = round(float(wrong.mean()), 5)
            one["bias_error"] = round(float(wrong.std(ddof=1) / told.height**0.5), 5)
            one["rmse"] = round(float((wrong**2).mean() ** 0.5), 5)
            one["covered"] = round(float(((told["low"] <= true) & (told["high"] >= true)).mean()), 4)
            one["half_width"] = round(float((told["high"] - told["low"]).mean()) / 2, 5)
        result[name] = one | {"verdicts": dict(kinds)}
    if "dr" in error:
        pairs = {}
        for ours, theirs in (("dr", "snips"), ("snips", "naive")):
            apart = error[ours] ** 2 - error[theirs] ** 2
            pairs[f"{ours} - {theirs}"] = [float(apart.mean()), float(apart.std(ddof=1) / len(apart) ** 0.5)]
        result["pairs"] = pairs
    return result


def holds(policy: dict[str, dict]) -> bool | None:
    """Whether a policy meets the bar; None where its effective sample is below 5%."""
    if policy["ips"]["share"] < ENOUGH:
        return None
    ordered = policy["dr"]["rmse"] <= policy["snips"]["rmse"] <= policy["naive"]["rmse"]
    return ordered and all(policy[name]["covered"] >= 0.9 for name in ("ips", "snips", "dr"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=200)
    parser.add_argument("--months", type=int, default=500)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--day", type=int, default=14)
    arguments = benching.arguments(parser, small={"logs": 10, "months": 50})
    began = time.perf_counter()
    world = build(compose("data=world", "world=tiny").world)
    num_users, day = min(arguments.users, world.num_users), arguments.day
    given = setting(world, day, num_users)
    true = {"greedy": (greedy_truth(given, num_users), 0.0)}
    for name, shares in {"logging": {}, **POLICIES}.items():
        true[name] = truth(replace(world, **shares), day, num_users, arguments.months)
        print(f"{name}: {true[name][0]:.4f} clicks a visit ± {true[name][1]:.4f}", flush=True)
    print(f"set up in {time.perf_counter() - began:.0f} s", flush=True)
    tables: dict[str, list[pl.DataFrame]] = {name: [] for name in given.seen}
    who, num_rows = users(world, torch.arange(num_users)), 0
    for number in range(arguments.logs):
        rows = logs.impressions(world, day, who, LOG_SEED + number)
        num_rows += len(rows["label"])
        for name, table in estimates(given, rows).items():
            tables[name].append(table)
        if number % 20 == 19:
            print(f"{number + 1} logs, {time.perf_counter() - began:.0f} s", flush=True)
    result: dict[str, Any] = {
        "logs": arguments.logs,
        "users": num_users,
        "day": day,
        "rows_a_log": round(num_rows / arguments.logs),
    }
    result["logging"] = {"truth": true["logging"][0], "error": true["logging"][1]}
    policies = {}
    for name in tables:
        policies[name] = {"shares": POLICIES.get(name, {}), "truth": round(true[name][0], 5)}
        policies[name] |= {"truth_error": round(true[name][1], 5)} | summary(tables[name], true[name][0])
        print(name, policies[name], flush=True)
    result["policies"] = policies
    result["bar"] = {name: holds(policies[name]) for name in tables}
    result["seconds"] = round(time.perf_counter() - began, 1)
    benching.publish("offpolicy", result, arguments)


if __name__ == "__main__":
    main()
