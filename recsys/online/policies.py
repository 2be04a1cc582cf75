"""Policies that need no model: what is popular, some chance, and lists made elsewhere.

They know tables and logs, and nothing of a world. Shapes: S visits, K positions, U users, L list length.
"""

from __future__ import annotations

from typing import Any

import polars as pl
import torch
from torch import Tensor

from recsys.online.slates import STREAM, Policy, Rows, Slates, Visits, padded, update_of
from recsys.schema import ITEM_ID, LABEL, TIMESTAMP, USER_ID
from recsys.world import noise
from recsys.world.population import DAY_US

EXPLORES, ITEM = range(2)  # streams of EpsilonGreedy


class Popularity:
    """Shows everybody the items with the most positives, and learns from each day.

    score = positives, or with smoothing (positives + smoothing * rate) / (rows + smoothing), rate = all positives /
    all rows: the mean of a Beta posterior. Equal scores come in the order of a hash of (seed, item).

    Args:
        log: item_id, label, timestamp (or a frame of positives, without label); None: nothing is known at first.
        window: days (UTC) that count, up to the last one seen; None: all.
        smoothing: rows that the mean counts as; None: by count.
    """

    deterministic = True

    def __init__(
        self,
        log: pl.DataFrame | None = None,
        *,
        window: int | None = None,
        smoothing: float | None = None,
        seed: int = 0,
    ) -> None:
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 day, got {window}")
        if smoothing is not None and not smoothing > 0:
            raise ValueError(f"smoothing must be above 0, got {smoothing}")
        self.window, self.smoothing, self.seed = window, smoothing, seed
        empty = {"day": pl.Int64, ITEM_ID: pl.Int64, "positives": pl.Int64, "rows": pl.Int64}
        self.counts = pl.DataFrame(schema=empty)
        self.ranked = torch.zeros(0, dtype=torch.int64)
        if log is not None:
            self._count(log)

    def act(self, visits: Visits) -> Slates:
        """The same slate for all."""
        best = padded(self.ranked[None], visits.k).to(visits.user_id.device)
        return Slates(best.expand(len(visits), -1), _certain(best).expand(len(visits), -1))

    def update(self, rows: Rows) -> None:
        """Count a day."""
        self._count(pl.DataFrame({name: rows[name].cpu().numpy() for name in (ITEM_ID, LABEL, TIMESTAMP)}))

    def _count(self, log: pl.DataFrame) -> None:
        day = pl.lit(0, dtype=pl.Int64)
        if self.window is not None:
            day = pl.col(TIMESTAMP).cast(pl.Datetime("us")).cast(pl.Int64) // DAY_US
        label = pl.col(LABEL).cast(pl.Int64) if LABEL in log.columns else pl.lit(1, dtype=pl.Int64)
        rows = log.select(pl.col(ITEM_ID), day=day, positives=label, rows=pl.lit(1, dtype=pl.Int64))
        counts = pl.concat([self.counts, rows.select(self.counts.columns)])
        self.counts = counts.group_by("day", ITEM_ID).agg(pl.col("positives", "rows").sum())
        if self.window is not None and self.counts.height:
            self.counts = self.counts.filter(pl.col("day") > pl.col("day").max() - self.window)
        item = self.counts.group_by(ITEM_ID).agg(pl.col("positives", "rows").sum()).sort(ITEM_ID)
        item_id, positives, shown = (torch.from_numpy(item[name].to_numpy(writable=True)) for name in item.columns)
        score = positives.double()
        if self.smoothing is not None:
            rate = float(score.sum()) / max(int(shown.sum()), 1)
            score = (score + self.smoothing * rate) / (shown + self.smoothing)
        order = noise.key(self.seed, item_id).argsort()
        self.ranked = item_id[order[score[order].argsort(descending=True, stable=True)]]


class EpsilonGreedy:
    """Another policy's slates, with each position given to a uniform item with probability epsilon.

    From the first position on: with probability epsilon an item drawn uniformly from those that are there and not yet
    in the slate, else the base's best that is not yet in it; as many as the base shows. Where the base is
    `deterministic`, the propensity is exact: epsilon / (items not yet in the slate), plus 1 - epsilon for the base's
    next.

    Args:
        items: what can be shown, all that the base shows among it: item_id and, where items come later, `uploaded`.

    Raises:
        ValueError: epsilon outside [0, 1], or items without item_id or with one twice.
    """

    deterministic = False

    def __init__(self, base: Policy, items: pl.DataFrame, epsilon: float = 0.02, seed: int = 0) -> None:
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must lie in [0, 1], got {epsilon}")
        self.base, self.epsilon, self.seed = base, epsilon, seed
        self.item_id, self.uploaded = catalogue(items)
        self.exact = getattr(base, "deterministic", False)
        update = update_of(base)
        if update is not None:
            self.update = update

    def act(self, visits: Visits) -> Slates:
        """Slates as long as the base's."""
        base_SK, device = self.base.act(visits).item_id, visits.user_id.device
        item_id = self.item_id.to(device)
        there_S = torch.searchsorted(self.uploaded.to(device), visits.timestamp, right=True)
        base_S1 = torch.nn.functional.pad(base_SK, (0, 1), value=-1)
        next_S = torch.zeros(len(visits), dtype=torch.int64, device=device)
        slate_SK, propensity_SK = torch.full_like(base_SK, -1), torch.zeros(base_SK.shape, device=device)
        place_K, keys_S = torch.arange(visits.k, device=device), noise.extend(visits.key, STREAM, self.seed)
        explores_SK = noise.uniform(noise.extend(keys_S[:, None], EXPLORES, place_K)) < self.epsilon
        explores_SK &= (base_SK >= 0) & (place_K < there_S[:, None])
        for k in range(visits.k):
            above_SK = slate_SK[:, :k]
            while True:  # the base's next: those that were drawn before their turn are passed over
                chosen_S = base_S1.gather(1, next_S[:, None])[:, 0]
                passed = ((above_SK == chosen_S[:, None]).any(1) & (chosen_S >= 0)).nonzero()[:, 0]
                if not len(passed):
                    break
                next_S[passed] += 1
            row = explores_SK[:, k].nonzero()[:, 0]
            drawn_R = _other(keys_S[row], k, above_SK[row], item_id, there_S[row])
            slate_SK[:, k] = torch.where(base_SK[:, k] >= 0, chosen_S, -1)
            slate_SK[row, k] = drawn_R
            chance_S = self.epsilon / (there_S - k).clamp(min=1)
            certain_S = torch.where(there_S > k, 1 - self.epsilon, 1.0)
            propensity_SK[:, k] = torch.where(there_S > k, chance_S, 0.0) + certain_S * (slate_SK[:, k] == chosen_S)
            next_S += slate_SK[:, k] == chosen_S
            next_S.clamp_(max=visits.k)
        return Slates(slate_SK, propensity_SK * (slate_SK >= 0) if self.exact else None)


def catalogue(items: pl.DataFrame) -> tuple[Tensor, Tensor]:
    """Items in the order of their upload: ids, and from when they are there (microseconds), int64 each.

    items: item_id, and `uploaded` where they come later.
    """
    if ITEM_ID not in items.columns:
        raise ValueError(f"items have no column {ITEM_ID}, got {', '.join(items.columns)}")
    if items[ITEM_ID].n_unique() < items.height:
        raise ValueError(
            f"items must have each {ITEM_ID} once: {items[ITEM_ID].filter(items[ITEM_ID].is_duplicated())[0]}"
        )
    since = pl.lit(-(1 << 62))
    if "uploaded" in items.columns:
        since = pl.col("uploaded").cast(pl.Datetime("us")).cast(pl.Int64)
    table = items.select(pl.col(ITEM_ID).cast(pl.Int64), since=since).sort("since", ITEM_ID)
    item_id, uploaded = (torch.from_numpy(table[name].to_numpy(writable=True)) for name in (ITEM_ID, "since"))
    return item_id, uploaded


def _other(key_R: Tensor, k: int, above_RK: Tensor, item_id: Tensor, there_R: Tensor) -> Tensor:
    """Items drawn uniformly from the first there_R that are not among above_RK, int64 [R]."""
    drawn_R = torch.full_like(key_R, -1)
    left, attempt = torch.arange(len(key_R), device=key_R.device), 0
    while len(left):
        u = noise.uniform(noise.extend(key_R[left], ITEM, k, attempt))
        drawn = item_id[(u * there_R[left]).long()]
        new = ~(above_RK[left] == drawn[:, None]).any(1)
        drawn_R[left[new]] = drawn[new]
        left, attempt = left[~new], attempt + 1
    return drawn_R


class FromLists:
    """Shows each user a list made beforehand; those without one get the fallback's slate.

    Args:
        lists: user_id, rank (ascending is better) and item_id, one row a place.
        fallback: a policy, such as `Popularity`; None: they are shown nothing.
    """

    deterministic = True

    def __init__(self, lists: pl.DataFrame, fallback: Policy | None = None) -> None:
        for name in (USER_ID, "rank", ITEM_ID):
            if name not in lists.columns:
                raise ValueError(f"lists have no column {name}, got {', '.join(lists.columns)}")
        rows = lists.sort(USER_ID, "rank").with_columns(place=pl.int_range(pl.len()).over(USER_ID))
        user_id, user, item_id, place = (
            torch.from_numpy(column.cast(pl.Int64).to_numpy(writable=True))
            for column in (rows[USER_ID].unique().sort(), rows[USER_ID].rank("dense") - 1, rows[ITEM_ID], rows["place"])
        )
        self.user_id = user_id
        self.item_UL = torch.full((len(user_id), int(place.max()) + 1 if len(place) else 0), -1)
        self.item_UL[user, place] = item_id
        self.fallback = fallback
        self.deterministic = fallback is None or getattr(fallback, "deterministic", False)
        update = None if fallback is None else update_of(fallback)
        if update is not None:
            self.update = update

    def act(self, visits: Visits) -> Slates:
        """The first k of each user's list."""
        known, row = rows_of(self.user_id, visits.user_id)
        slates = torch.full((len(visits), visits.k), -1, device=visits.user_id.device)
        slates[known] = padded(self.item_UL.to(slates.device)[row[known]], visits.k)
        return completed(slates, known, visits, self.fallback)


class FromRun(FromLists):
    """Shows the lists of a finished run, without what users liked before its cut.

    Args:
        run: `recsys.run.Run`, or any object with recommend(user_ids, k=...) -> user_id, rank, item_id.
        user_ids: for whom lists are made; None: every user the run knows.
    """

    def __init__(self, run: Any, user_ids: Any = None, k: int = 100, fallback: Policy | None = None) -> None:
        super().__init__(run.recommend(user_ids, k=k), fallback)


class FromFunnel(FromLists):
    """Shows the lists of a funnel: any object with recommend(user_ids, k=...) -> user_id, rank, item_id."""

    def __init__(self, funnel: Any, user_ids: Any, k: int = 100, fallback: Policy | None = None) -> None:
        super().__init__(funnel.recommend(user_ids, k=k), fallback)


def rows_of(sorted_ids: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Which ids are among the sorted ones (bool), and where (any row for the others)."""
    if not len(sorted_ids):
        return torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids)
    sorted_ids = sorted_ids.to(ids.device)
    row = torch.searchsorted(sorted_ids, ids).clamp_(max=len(sorted_ids) - 1)
    return sorted_ids[row] == ids, row


def completed(item_SK: Tensor, known_S: Tensor, visits: Visits, fallback: Policy | None) -> Slates:
    """Slates that are certain where known_S, and the fallback's elsewhere; it may fill in what item_SK has there."""
    propensity_SK = _certain(item_SK)
    other = (~known_S).nonzero()[:, 0]
    if fallback is None or not len(other):
        return Slates(item_SK, propensity_SK)
    answer = fallback.act(visits[other])
    item_SK[other] = answer.item_id
    if answer.propensity is None:
        return Slates(item_SK)
    propensity_SK[other] = answer.propensity
    return Slates(item_SK, propensity_SK)


def _certain(item_SK: Tensor) -> Tensor:
    return (item_SK >= 0).float()
