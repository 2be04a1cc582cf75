"""From millions of items to a list: retrieve, filter, rank, re-rank; for known, unknown and new users alike.

    funnel = Funnel.of_runs({"two_tower": run, "tags": other}, ranker, log)
    funnel.recommend([17, 42], k=100)
    funnel.recommend([{"country": "DE", "age_band": "18-24"}])

A stage that fails, or takes longer than its budget, is gone without: the list is then what the other stages give, or
what is popular, says so (`degraded`), and is counted (`failures`). Shapes: B users of a block, I items, N candidates,
P of them that are re-ranked, K list length.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import polars as pl
import torch
from torch import Tensor

from recsys.audience import Asked, Audience, Requests
from recsys.candidate_ranker import CandidateRanker, Inputs, Precision
from recsys.config import nearest
from recsys.data.log import Log
from recsys.data.rows import own_rows
from recsys.evaluation.significance import key_streams
from recsys.features.vocabulary import Vocabulary
from recsys.reranking import diversified, explored
from recsys.rules import Rules
from recsys.run import Run
from recsys.schema import ITEM_ID, NUM_RESERVED, PADDING, TIMESTAMP, USER_ID, Interactions
from recsys.sources import Source, everybody, fresh, fused, most_popular, names_of, of_run

POPULAR = "popular"  # the source of what fills up a list
STAGES = ("retrieve", "features", "rank", "rerank")


@dataclass(eq=False)
class Answer:
    """Lists for B users, and how they came about.

    item_idx, score, explored, propensity: [B, K], `PADDING` behind a list that is short; propensity: of each item at
    its place given those above, NaN where it is not known. source: of each place, row by row. retrieved, ranked:
    item_idx [B, N] as the ranker was given them and [B, K] as it ordered them. milliseconds: by stage, of all users
    together. degraded: why the lists are not what they should be, None where they are.
    """

    user_id: pl.Series
    item_idx: Tensor
    score: Tensor
    explored: Tensor
    propensity: Tensor
    source: list[str]
    retrieved: Tensor
    ranked: Tensor
    milliseconds: dict[str, float]
    degraded: str | None


class Funnel:
    """Retrievers, a ranker and the rules of a page behind one `recommend`.

    failures: how often each stage failed and with what, since the funnel was made.

    >>> funnel = recsys.Funnel.of_runs({"als": run, "popularity": other}, ranker, log)
    >>> funnel.recommend(run.users.ids.head(1).to_list(), k=3)["rank"].to_list()
    [1, 2, 3]

    Args:
        sources: where candidates come from, by name; see `sources`.
        items: what item_idx means. item_rows: raw columns of the items, row = item_idx (`data.rows.own_rows`).
        users, history, now: see `Audience`. What a user liked is left out of the list.
        ranker: None: candidates stay in the order of retrieval.
        popular: item_idx of what is left where nothing else is, best first; None: all in their order.
        num_candidates: that are ranked for each user.
        rules: see `Rules`.
        diversity, caps, vectors_ID: see `reranking.diversified`; caps by column of the items ({"creator": 5}). Without
            vectors, items are as alike as they have capped columns in common.
        pool: how many of the ranker's first are re-ranked.
        exploration: the share of places that go to other candidates, drawn by the ranker's posterior where it has one
            (Thompson sampling), else uniformly.
        budget_ms: how long a stage (`STAGES`; retrieve: each source) may take for one user; those not named may take as
            long as they will. The budgets of the users of a block add up.
        users_at_once: of a block.
        seed: of exploration, with the user and the time of the request.

    Raises:
        ValueError: an argument that cannot be; the message names it.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        items: Vocabulary,
        item_rows: pl.DataFrame,
        *,
        users: pl.DataFrame | None = None,
        history: Interactions | None = None,
        now: datetime | None = None,
        ranker: CandidateRanker | None = None,
        popular: Tensor | None = None,
        num_candidates: int = 1000,
        rules: Sequence[str] = (),
        diversity: float = 0.0,
        caps: Mapping[str, int] | None = None,
        vectors_ID: Tensor | None = None,
        pool: int = 500,
        exploration: float = 0.0,
        budget_ms: Mapping[str, float] | None = None,
        users_at_once: int = 64,
        seed: int = 0,
    ) -> None:
        if not 1 <= len(sources) <= 60:
            raise ValueError(f"a funnel takes 1 to 60 sources of candidates, got {len(sources)}")
        if item_rows.height != len(items):
            raise ValueError(f"item_rows has {item_rows.height} rows for {len(items)} item indices: see own_rows")
        for name, count in {"num_candidates": num_candidates, "pool": pool, "users_at_once": users_at_once}.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        for name, share in {"diversity": diversity, "exploration": exploration}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")
        for name, limit in (budget_ms or {}).items():
            if name not in STAGES:
                raise ValueError(f"budget_ms: no stage {name}: {nearest(name, STAGES)}")
            if not limit > 0:
                raise ValueError(f"budget_ms: {name} must be above 0, got {limit}")
        for name, most in (caps or {}).items():
            if name not in item_rows.columns:
                raise ValueError(f"caps: items have no column {name!r}: {nearest(name, item_rows.columns)}")
            if most < 1:
                raise ValueError(f"caps: {name} must be at least 1, got {most}")
        if diversity > 0 and vectors_ID is None and not caps:
            raise ValueError(f"diversity={diversity} needs vectors_ID, or caps whose columns say what is alike")
        self.sources, self.items, self.ranker = dict(sources), items, ranker
        self.audience = Audience(users, history, items, now=now, dtypes=ranker.store.dtypes if ranker else None)
        self.rules = Rules(rules, item_rows, self.audience.dtypes)
        self.popular = torch.arange(NUM_RESERVED, len(items)) if popular is None else popular
        self.num_forbidden = int((~self.rules.allowed_I[self.popular]).sum())
        self.num_candidates, self.users_at_once, self.seed = num_candidates, users_at_once, seed
        self.pool, self.diversity, self.exploration = pool, diversity, exploration
        self.category_IG, self.most_G = _codes(item_rows, list(caps or {})), torch.tensor([*(caps or {}).values()])
        self.vectors_ID = vectors_ID
        if diversity > 0 and vectors_ID is None:
            self.vectors_ID = torch.cat([_one_hot(code_I) for code_I in self.category_IG.T], 1)
        self.budget_ms = dict(budget_ms or {})
        self.failures: Counter[str] = Counter()
        self._worker = ThreadPoolExecutor(1)

    @classmethod
    def of_runs(
        cls,
        retrievers: Mapping[str, Run],
        ranker: Run | None,
        log: Log,
        *,
        with_popular: bool = True,
        with_fresh: bool = False,
        now: datetime | None = None,
        factory: str = "Flat",
        search: str = "",
        precision: Precision = "float32",
        **options: Any,
    ) -> Self:
        """The funnel of finished runs on one log.

        Args:
            retrievers: runs by name; the users, items and histories of the first are the funnel's.
            ranker: None: candidates stay in the order of retrieval.
            log: whose tables say what is known of users and items.
            with_popular, with_fresh: whether the items with most positives in train and the newest ones are sources
                too; for the latter the item table has to say when they came.
            now: None: the test cut of the first run, up to which histories go.
            factory, search: of the retrievers' indexes, see `ItemIndex`. precision: see `CandidateRanker.of_run`.
            options: see `Funnel`.

        Raises:
            ValueError: no retriever, a run of the other kind, or items of which nobody knows when they came.
        """
        if not retrievers:
            raise ValueError("a funnel needs the run of at least one retriever")
        for name, run in retrievers.items():
            if run.is_ranker:
                raise ValueError(f"{name}: {run.path} holds a ranker, a funnel retrieves with retrievers")
        first = next(iter(retrievers.values()))
        item_rows = own_rows(log, ITEM_ID, first.items.ids)
        sources = {n: of_run(r, first.items, factory=factory, search=search) for n, r in retrievers.items()}
        most = most_popular(first.model.item_counts.cpu())
        if with_popular:
            sources.setdefault(POPULAR, everybody(most))
        if with_fresh:
            came = next((c for c in (f"item_{TIMESTAMP}", TIMESTAMP) if c in item_rows.columns), None)
            if came is None:
                raise ValueError(f"{log.name}: no item has a timestamp, so none is the newest")
            times = item_rows[came].cast(pl.Datetime("us", "UTC")).to_physical().fill_null(-1)
            sources["fresh"] = fresh(torch.from_numpy(times.to_numpy(writable=True)))
        cut = first.manifest["split"].get("test_cut")
        options.setdefault("popular", most)
        return cls(
            sources, first.items, item_rows, history=first.history,
            users=own_rows(log, USER_ID, first.users.ids)[NUM_RESERVED:],
            now=datetime.fromisoformat(cut) if now is None and cut else now,
            ranker=None if ranker is None else CandidateRanker.of_run(ranker, item_rows, precision), **options,
        )  # fmt: skip

    def recommend(self, users: Requests, k: int = 100) -> pl.DataFrame:
        """The list of each user, best first.

        Args:
            users: raw ids; or requests as dicts: columns of the user and of the request by name, such as user_id,
                country or timestamp, and `history`, ids of items that were liked, the latest last. What a request says
                counts instead of what is known of its user; what nobody says is missing. A `history` that is given is
                for retrieval and the filter: the ranker's histories are those of its pipeline.
            k: items a user; fewer come back only where all sources and the popular together have fewer.

        Returns:
            user_id (null for a new one), rank (from 1), item_id, score, source (what retrieved it, joined by +; or
            "popular"), explored, propensity (null where it is not known), degraded (null where nothing went wrong).

        Raises:
            ValueError: k below 1, or a request that cannot be read. What goes wrong inside is no error.
        """
        return pl.concat([self._frame(answer) for answer in self.answers(users, k)])

    def answers(self, users: Requests, k: int = 100) -> list[Answer]:
        """`recommend`, a block of users at a time, with what each stage found and took."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        asked = self.audience.asked(users)
        starts = range(0, max(len(asked), 1), self.users_at_once)
        return [_Request(self, asked.part(low, low + self.users_at_once), k).answer() for low in starts]

    def _frame(self, answer: Answer) -> pl.DataFrame:
        num_rows, width = answer.item_idx.shape
        row = torch.arange(num_rows).repeat_interleave(width).numpy()
        return pl.DataFrame(
            {
                "user_id": answer.user_id.gather(row),
                "rank": torch.arange(1, width + 1).repeat(num_rows).numpy(),
                "item_id": self.items.decode(answer.item_idx.flatten()),
                "score": answer.score.flatten().numpy(),
                "source": pl.Series(answer.source, dtype=pl.String),
                "explored": answer.explored.flatten().numpy(),
                "propensity": pl.Series(answer.propensity.flatten().numpy()).fill_nan(None),
                "degraded": pl.Series([answer.degraded] * len(row), dtype=pl.String),
            }
        ).filter(pl.col("item_id").is_not_null())


class _Request:
    """One block of users on its way through a funnel: what it took, and what went wrong."""

    def __init__(self, funnel: Funnel, asked: Asked, k: int) -> None:
        self.funnel, self.asked, self.k = funnel, asked, k
        self.milliseconds = dict.fromkeys(STAGES, 0.0)
        self.reasons: list[str] = []

    def answer(self) -> Answer:
        """The lists, whatever happens."""
        try:
            return self._staged()
        except Exception as error:  # of no stage in particular: what is popular needs next to nothing
            self._failed("funnel", error)
            item_BK = self.funnel.popular[: self.k].expand(len(self.asked), -1)
            nothing_BK = torch.zeros_like(item_BK)
            certain = nothing_BK.bool(), torch.ones(item_BK.shape)
            return self._lists(item_BK, nothing_BK.float(), nothing_BK, *certain, item_BK, item_BK)

    def _staged(self) -> Answer:
        funnel, k = self.funnel, self.k
        item_BN, value_BN, bit_BN = self._retrieved()
        score_BN, inputs = value_BN, None
        if funnel.ranker is not None and item_BN.numel():
            inputs = self._within("features", funnel.ranker.inputs, self.asked.rows, item_BN)
            ranked_BN = None if inputs is None else self._within("rank", funnel.ranker.scores, inputs, item_BN)
            score_BN = value_BN if ranked_BN is None else ranked_BN
        score_BN, order = score_BN.masked_fill(item_BN == PADDING, -torch.inf).sort(dim=1, descending=True, stable=True)
        retrieved_BN, item_BN, bit_BN = item_BN, item_BN.gather(1, order), bit_BN.gather(1, order)
        place_BK = torch.arange(min(k, item_BN.shape[1])).expand(len(item_BN), -1)
        if funnel.diversity > 0 or len(funnel.most_G):
            place_BK = self._or("rerank", place_BK, self._diversified, item_BN, score_BN)
        item_BK = item_BN.gather(1, place_BK)
        certain = torch.zeros(item_BK.shape, dtype=torch.bool), torch.ones(item_BK.shape)
        if funnel.exploration > 0:
            work = self._explored, item_BK, item_BN, order, inputs, retrieved_BN
            item_BK, *certain = self._or("rerank", (item_BK, *certain), *work)
            sorted_BN, of_sorted_BN = item_BN.sort(dim=1)
            place_BK = of_sorted_BN.gather(1, torch.searchsorted(sorted_BN, item_BK.contiguous()))
        score_BK, bit_BK = score_BN.gather(1, place_BK), bit_BN.gather(1, place_BK)
        return self._lists(item_BK, score_BK, bit_BK, *certain, retrieved_BN, item_BN[:, :k])

    def _retrieved(self) -> tuple[Tensor, Tensor, Tensor]:
        """`fused` of all sources, without what breaks a rule, filled up with what is popular."""
        funnel, asked = self.funnel, self.asked
        num_seen = int(asked.history.row_counts().max()) if len(asked) else 0
        none_B0 = torch.zeros(len(asked), 0, dtype=torch.int64)
        lists = {
            name: self._or("retrieve", none_B0, source, asked, funnel.num_candidates + num_seen, of=name)
            for name, source in funnel.sources.items()
        }
        began = time.perf_counter()
        found = fused(lists, funnel.num_candidates, asked.history, funnel.rules.allowed_I)
        item_BN, value_BN, bit_BN = funnel.rules.met(asked.rows, found[0]), *found[1:]
        missing_B1 = self.k - (item_BN != PADDING).sum(1, keepdim=True)
        if bool((missing_B1 > 0).any()):
            # So many may fall out: what is a candidate already, was seen, or breaks a rule about items alone.
            enough = None if funnel.rules.about_both else self.k + num_seen + item_BN.shape[1] + funnel.num_forbidden
            more = funnel.popular[:enough].expand(len(asked), -1)
            more_BN = fused({POPULAR: more}, more.shape[1], asked.history, funnel.rules.allowed_I)[0]
            more_BN = funnel.rules.met(asked.rows, more_BN)
            row_B1 = torch.arange(len(asked))[:, None] * len(funnel.items)
            is_more_BN = (more_BN != PADDING) & ~torch.isin(row_B1 + more_BN, row_B1 + item_BN)
            is_more_BN &= is_more_BN.cumsum(1) <= missing_B1
            more_BN = more_BN.masked_fill(~is_more_BN, PADDING)[:, is_more_BN.any(0)]
            behind_BN = -torch.arange(1.0, more_BN.shape[1] + 1).expand(more_BN.shape)
            item_BN, value_BN = torch.cat([item_BN, more_BN], 1), torch.cat([value_BN, behind_BN], 1)
            bit_BN = torch.cat([bit_BN, torch.zeros_like(more_BN)], 1)
        self.milliseconds["retrieve"] += 1e3 * (time.perf_counter() - began)
        return item_BN, value_BN, bit_BN

    def _diversified(self, item_BN: Tensor, score_BN: Tensor) -> Tensor:
        """Places of the list, [B, K]. Candidates come best first."""
        funnel, size = self.funnel, max(self.funnel.pool, self.k)
        item_BP = item_BN[:, :size]
        place_BK = diversified(
            score_BN[:, :size], self.k, diversity=funnel.diversity,
            vector_BPD=None if funnel.vectors_ID is None else funnel.vectors_ID[item_BP],
            category_BPG=funnel.category_IG[item_BP], most_G=funnel.most_G,
        )  # fmt: skip
        # A list that ends early ends in padding, which is last among the candidates.
        return place_BK.masked_fill(place_BK < 0, item_BN.shape[1] - 1)

    def _explored(
        self, item_BK: Tensor, item_BN: Tensor, order: Tensor, inputs: Inputs | None, retrieved_BN: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `explored`. Candidates come best first, as `order` places them; inputs: in the order of retrieval."""
        funnel, drawn_BN = self.funnel, None
        if funnel.ranker is not None and funnel.ranker.draw is not None and inputs is not None:
            seed_B = key_streams(funnel.seed, self.asked.key)
            drawn_BN = funnel.ranker.drawn(inputs, retrieved_BN, seed_B).gather(1, order)
        return explored(item_BK, item_BN, funnel.exploration, self.asked.key, funnel.seed, drawn_BN)

    def _lists(
        self, item_BK: Tensor, score_BK: Tensor, bit_BK: Tensor, explored_BK: Tensor, propensity_BK: Tensor,
        retrieved: Tensor, ranked: Tensor,
    ) -> Answer:  # fmt: skip
        names = [name or POPULAR for name in names_of(bit_BK.flatten(), list(self.funnel.sources))]
        reasons = "; ".join(dict.fromkeys(self.reasons)) or None
        return Answer(
            self.asked.user_id, item_BK, score_BK, explored_BK, propensity_BK, names, retrieved, ranked,
            self.milliseconds, reasons,
        )  # fmt: skip

    # --- what may go wrong ---

    def _or(self, stage: str, instead: Any, work: Callable[..., Any], *arguments: Any, of: str = "") -> Any:
        found = self._within(stage, work, *arguments, of=of)
        return instead if found is None else found

    def _within(self, stage: str, work: Callable[..., Any], *arguments: Any, of: str = "") -> Any:
        """What a stage gives, or None where it fails or is late. Its time is noted."""
        began, funnel = time.perf_counter(), self.funnel
        try:
            if stage not in funnel.budget_ms:
                return _without_gradients(work, *arguments)
            limit = funnel.budget_ms[stage] * max(len(self.asked), 1)
            future: Future[Any] = funnel._worker.submit(_without_gradients, work, *arguments)
            try:
                return future.result(limit / 1e3)
            except TimeoutError as error:
                if future.done():  # it raised that itself
                    raise
                # What runs cannot be stopped: it ends by itself, and what comes next has another thread.
                funnel._worker.shutdown(wait=False)
                funnel._worker = ThreadPoolExecutor(1)
                raise TimeoutError(f"took longer than {limit:g} ms") from error
        except Exception as error:
            self._failed(f"{stage} {of}".strip(), error)
            return None
        finally:
            self.milliseconds[stage] += 1e3 * (time.perf_counter() - began)

    def _failed(self, stage: str, error: Exception) -> None:
        self.reasons.append(f"{stage}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        self.funnel.failures[f"{stage}: {type(error).__name__}"] += 1


def _without_gradients(work: Callable[..., Any], *arguments: Any) -> Any:
    """Each thread has to say so for itself."""
    with torch.inference_mode():
        return work(*arguments)


def _codes(rows: pl.DataFrame, columns: list[str]) -> Tensor:
    """Values of columns as numbers, int64 [I, G], -1 for null."""
    if not columns:
        return torch.zeros(rows.height, 0, dtype=torch.int64)
    codes = (rows[name].rank("dense").cast(pl.Int64).fill_null(-1).to_numpy(writable=True) for name in columns)
    return torch.stack([torch.from_numpy(code) for code in codes], 1)


def _one_hot(code_I: Tensor) -> Tensor:
    """float32 [I, D], zeros for a negative code."""
    code_I = code_I.clamp(min=0)  # codes begin at 1
    return torch.nn.functional.one_hot(code_I, int(code_I.max()) + 1)[:, 1:].float()
