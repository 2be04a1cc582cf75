"""A world's statistics beside published ones, one line each, with a verdict where a tolerance is set.

Sources: the guide behind the project (750 and 15 billion impressions and clicks of 1.3 billion users a month); VK-LSVD
(40.8 billion views); KuaiRand-Pure (Gao et al., CIKM 2022), 25 April to 4 May 2022; McGrady et al., "Dialing for
Videos" (2023); Crane and Sornette (PNAS 2008).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from recsys.schema import NUM_RESERVED
from recsys.world.behaviour import Columns, burst_videos
from recsys.world.constants import World
from recsys.world.log_oracle import LogOracle, intent_posterior
from recsys.world.logs import blocks, impressions, stream
from recsys.world.population import DAY_US, TABLE_LIMIT, users, video_ids, videos
from recsys.world.views import lifetime_views
from recsys.world.writer import expected_rows

CONCENTRATION = ((0.0016, 0.045, 0.01), (0.037, 0.38, 0.03), (0.10, 0.60, 0.03))  # share of videos, of views, tolerance
RATES_FROM_USERS = 50_000  # the tolerances of rates hold for worlds of so many users, and of a month
LOG_LIMIT = 100_000_000  # rows that a report is willing to generate
LOG_LIMIT_WITHOUT_TABLE = 5_000_000  # likewise where every row computes its video's attributes
# KuaiRand-Pure: density of the long views, and what its 20 largest singular values hold of the squared entries.
KUAIRAND_DENSITY, KUAIRAND_SPECTRUM = 7.3e-4, 0.110
KUAIRAND_NEW_USERS = 0.00018  # registered in the last 30 days, a day, of all
SMALL = 20_000  # videos up to which all pairs with users are looked at
SAMPLE = 40_000  # videos whose expected views are looked at


Line = dict[str, Any]


def validate(world: World) -> pl.DataFrame:
    """The report: statistic, measured, published, low, high, verdict, source.

    Both surfaces of a world are measured, whichever it is set to. Of a world whose log is longer than LOG_LIMIT rows
    a run of users that fits is measured, and concentration only if that is all of them or a large part; of a world that
    is larger still, the expected views of its videos.
    """
    limit = LOG_LIMIT if world.num_videos <= TABLE_LIMIT else LOG_LIMIT_WITHOUT_TABLE
    part = min(1.0, limit / expected_rows(world))
    numbers = range(max(1, int(world.num_users * part)))
    lines = [*_homepage(replace(world, surface="homepage"), numbers)]
    lines += _feed(replace(world, surface="feed"), range(min(len(numbers), 20_000)))
    if part < 0.01:
        lines += _views(replace(world, surface="homepage"))
    return pl.DataFrame(lines, infer_schema_length=None)


def _homepage(world: World, numbers: range) -> Iterator[Line]:
    exposure = np.zeros(world.num_videos, np.int64) if world.num_videos <= 1 << 24 else None
    shown, clicks = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
    reached = np.zeros(world.max_depth, np.int64)
    viral = _viral(world)
    viral_views = np.zeros((len(viral), world.num_days), np.int64)
    pairs = []
    for day, who, rows in _with_users(world, numbers):
        hit = rows["label"].numpy() == 1
        shown += np.bincount(who, minlength=len(numbers))
        clicks += np.bincount(who[hit], minlength=len(numbers))
        reached += np.bincount(rows["position"].numpy(), minlength=world.max_depth)
        video = rows["video"].numpy()
        if exposure is not None:
            exposure += np.bincount(video, minlength=world.num_videos)
        viral_views[:, day] += (video[:, None] == viral).sum(0) if len(viral) else 0
        if world.num_videos <= SMALL:
            pairs.append(np.stack([who[hit], video[hit]], 1))

    month = users(world, torch.arange(len(numbers))).sign_up_day.numpy() <= 0
    gated = len(numbers) >= RATES_FROM_USERS and world.num_days == 30
    a_month = 30 / world.num_days
    ctr = clicks[month].sum() / shown[month].sum()
    guide = "guide; users present all days"
    yield _line("homepage: CTR", ctr, 0.02, 0.001, guide, gated)
    yield _line("homepage: impressions a user and month", shown[month].mean() * a_month, 577, 0.05 * 577, guide, gated)
    yield _line("homepage: clicks a user and month", clicks[month].mean() * a_month, 11.5, 0.05 * 11.5, guide, gated)
    top = np.sort(clicks)[::-1]
    most = int(len(top) * 0.1) or 1
    yield _line("homepage: share of the clicks of the most active 10% of users", top[:most].sum() / max(top.sum(), 1))
    if exposure is not None and exposure.sum() > 20 * world.num_videos:
        seen = np.sort(exposure[exposure > 0])[::-1]
        held = np.cumsum(seen) / seen.sum()
        for share, published, tolerance in CONCENTRATION:
            at = held[max(round(share * len(seen)), 1) - 1]
            name = f"homepage: share of exposure of the top {share:.2%} of videos"
            yield _line(name, at, published, tolerance, "KuaiRand-Pure", world.num_videos >= 10_000)
    depth = reached / reached[0]
    positions = np.arange(1, world.max_depth + 1)
    slope = np.polyfit(np.log(positions), np.log(np.maximum(depth, 1e-12)), 1)[0]
    yield _line("homepage: exponent of the depth of scrolling", -slope, source="power law: arXiv 2307.14059")
    if len(viral) and viral_views.sum() > 1000:
        # All largest bursts of days 1 to 10, laid over each other; other draws of those videos go on beside.
        after = np.array([sum(viral_views[i, 1 + i + age] for i in range(len(viral))) for age in range(10)])
        before = np.mean([viral_views[i, i] for i in range(len(viral))]) * len(viral)
        excess = np.maximum(after - before, 1)
        decay = -np.polyfit(np.log(np.arange(1, 11)), np.log(excess), 1)[0]
        yield _line("homepage: exponent of a burst's relaxation", decay, 1.4, source="Crane and Sornette, exogenous")
    new_users = world.new_user_share / world.num_days
    yield _line("new users a day, share of all", new_users, KUAIRAND_NEW_USERS, source="KuaiRand-Pure")
    span = world.num_days + world.fresh_days
    yield _line("new videos a day, share of all", world.num_new / span / world.num_videos)
    if world.num_videos <= SMALL:
        held = spectrum(np.concatenate(pairs), KUAIRAND_DENSITY)
        name = "homepage: share of the clicks in 20 singular values, at KuaiRand's density"
        yield _line(name, held, KUAIRAND_SPECTRUM, source="KuaiRand-Pure, long views")
        oracle, informed = next_in_session(world)
        yield _line("next in session: recall@20 of the log oracle", oracle)
        yield _line("next in session: gain of knowing the intent's posterior", informed / oracle - 1)


def _with_users(world: World, numbers: range) -> Iterator[tuple[int, np.ndarray, Columns]]:
    """The rows of the month by block, with their day and their users' numbers; numbers starts at 0."""
    for (day, some), rows in zip(blocks(world, numbers=numbers), stream(world, numbers=numbers), strict=True):
        yield day, rows["row"].numpy() + some.start, rows


def spectrum(pairs: np.ndarray, density: float, rank: int = 20) -> float:
    """What the largest singular values of a 0/1 matrix hold of its squared entries, once it is thinned at random to a
    density. pairs: the (row, column) of its ones, int64 [N, 2], repeats allowed."""
    pairs = np.unique(pairs, axis=0)
    cells = len(np.unique(pairs[:, 0])) * len(np.unique(pairs[:, 1]))
    keep = np.random.default_rng(0).random(len(pairs)) < min(1.0, density * cells / len(pairs))
    kept = pairs[keep]
    matrix = csr_matrix((np.ones(len(kept)), (kept[:, 0], kept[:, 1])))
    values = svds(matrix, k=rank, return_singular_vectors=False, rng=np.random.default_rng(0))
    return float((values**2).sum() / matrix.nnz)


def _viral(world: World) -> np.ndarray:
    """The largest burst of each of the days 1 to 10."""
    if world.burst_share == 0 or world.num_days < 21:
        return np.zeros(0, np.int64)
    return np.array([int(burst_videos(world, day)[0]) for day in range(1, 11)])


def _feed(world: World, numbers: range) -> Iterator[Line]:
    month = users(world, torch.arange(len(numbers))).sign_up_day.numpy() <= 0
    names = ("label", "liked", "shared", "disliked", "watch_seconds")
    sums, total, complete = dict.fromkeys(names, 0.0), 0, 0.0
    for _, who, rows in _with_users(world, numbers):
        here = torch.from_numpy(month[who])
        total += int(here.sum())
        for name in names:
            sums[name] += float(rows[name][here].double().sum())
        some = here.nonzero()[:2000, 0]
        duration = videos(world, rows["video"][some]).duration
        complete += int((rows["watch_seconds"][some] == duration.float()).sum()) / max(len(some), 1) * int(here.sum())
    mean = {name: value / total for name, value in sums.items()}
    gated = world.num_users >= RATES_FROM_USERS
    source = "VK-LSVD; users present all days"
    yield _line("feed: watch seconds an impression", mean["watch_seconds"], 21, 2.1, source, gated)
    yield _line("feed: like rate", mean["liked"], 0.029, 0.0029, source, gated)
    yield _line("feed: share rate", mean["shared"], 0.006, 0.0006, source, gated)
    yield _line("feed: dislike rate", mean["disliked"], 0.0003, 0.00003, source, gated)
    yield _line("feed: long views", mean["label"])
    yield _line("feed: watched to the end", complete / total, source="a spike: arXiv 2406.07932")


def _views(world: World) -> Iterator[Line]:
    number = torch.randint(0, world.num_videos, (SAMPLE,), generator=torch.Generator().manual_seed(0))
    views = lifetime_views(world, videos(world, number)).numpy()
    above = {most: float((views > most).mean()) for most in (100, 1000, 10_000)}
    source = "Dialing for Videos"
    yield _line("expected lifetime views: videos below 100", 1 - above[100], 0.65, 0.03, source)
    yield _line("expected lifetime views: videos below 1,000", 1 - above[1000], 0.87, 0.03, source)
    yield _line("expected lifetime views: videos above 10,000", above[10_000], 0.037, 0.005, source)
    held = views[views > 10_000].sum() / views.sum()
    yield _line("expected lifetime views: share held by those above 10,000", held, 0.94, 0.03, source)
    slope = -np.log10(above[10_000] / above[100]) / 2
    yield _line("expected lifetime views: slope of the CCDF, 100 to 10,000", slope, 0.49, 0.06, source)


def next_in_session(world: World, cut_day: int | None = None) -> tuple[float, float]:
    """recall@20 of the log oracle and of a scorer that is given the posterior of the visit's intent, on
    next-in-session: each positive after the first of its visit is a query with that one relevant item.

    Both leave out what the user had a positive with before the query. Test: the days from cut_day on, by default
    the last fifth.
    """
    cut_day = world.num_days - max(1, world.num_days // 5) if cut_day is None else cut_day
    cut = world.start_us + cut_day * DAY_US
    ids = torch.cat([torch.zeros(NUM_RESERVED, dtype=torch.int64), video_ids(world, torch.arange(world.num_videos))])
    oracle = LogOracle(world, ids, cut)
    everybody = users(world, torch.arange(world.num_users))
    seen = torch.zeros(world.num_users, world.num_videos, dtype=torch.bool)  # before the day at hand
    for (_, some), rows in zip(blocks(world, range(cut_day)), stream(world, range(cut_day)), strict=True):
        hit = rows["label"] == 1
        seen[rows["row"][hit] + some.start, rows["video"][hit]] = True

    found = np.zeros(2)
    count = 0
    for day in range(cut_day, world.num_days):
        rows = impressions(world, day, everybody)
        hits = (rows["label"] == 1).nonzero()[:, 0]
        session = rows["session"][hits]
        query = hits[1:][session[1:] == session[:-1]]
        for some in query.split(512):
            who, target = rows["row"][some], rows["video"][some]
            plain = oracle.score({"user_key": rows["user_id"][some]})[:, NUM_RESERVED:]
            posterior = intent_posterior(world, day, rows, some)
            informed = oracle.next_in_visit(rows["user_id"][some], posterior)[:, NUM_RESERVED:]
            known = seen[who]
            for query_row, row in enumerate(some):
                today = hits[(hits < row) & (rows["row"][hits] == who[query_row])]
                known[query_row, rows["video"][today]] = True
            new = ~seen[who, target]
            for which, scores in enumerate((plain, informed)):
                top = scores.masked_fill(known, -1.0).topk(20, 1).indices
                found[which] += int(((top == target[:, None]).any(1) & new).sum())
            count += int(new.sum())
        seen[rows["row"][hits], rows["video"][hits]] = True
    return float(found[0] / count), float(found[1] / count)


def _line(
    statistic: str,
    measured: float,
    published: float | None = None,
    tolerance: float | None = None,
    source: str = "",
    gated: bool = True,
) -> Line:
    """One statistic. verdict: met or missed where a tolerance holds, else reported."""
    low, high, verdict = None, None, "reported"
    if gated and published is not None and tolerance is not None:
        low, high = published - tolerance, published + tolerance
        verdict = "met" if low <= measured <= high else "missed"
    return {
        "statistic": statistic, "measured": float(measured), "published": published, "low": low, "high": high,
        "verdict": verdict, "source": source,
    }  # fmt: skip
