"""The evaluator on several processes against one: the same bits, work that is shared, and errors that reach all."""

import dataclasses
import math
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive import make_queries, scorer_of
from torch import Tensor, distributed

from recsys.evaluation import beyond, evaluate, rank, ranking
from recsys.evaluation.ranking import Evaluation, evaluate_lists
from recsys.schema import Queries, UserBatch

NUM_ITEMS, PART, SECONDS = 40, 16, 120
Case = tuple[Queries, dict[str, Any]]


def cases() -> dict[str, Case]:
    rng = np.random.default_rng(0)

    def case(num_queries: int, size: dict[str, Any] | None = None, **arguments: Any) -> Case:
        queries = make_queries(rng, num_queries, NUM_ITEMS, **(size or {}))
        return queries, {"k": (3, 10), "num_replicates": 40} | arguments

    popularity_I, vectors_ID = torch.from_numpy(rng.random(NUM_ITEMS)), torch.from_numpy(rng.random((NUM_ITEMS, 3)))
    found = {
        "seven parts": case(100),
        "beyond": case(100, items=beyond.Items(popularity_I, 50)),
        "beyond, with vectors": case(70, items=beyond.Items(popularity_I, 50, vectors_ID)),
        "lists": case(100, {"listed": 15}),
        "cold items alone": case(60, {"relevant": 0, "cold": 2}),
        "parts without a relevant item": case(100, {"relevant": 0.1, "cold": 0}),
        "no history, nothing masked": case(50, {"history": 0}, mask_history=False, num_replicates=0),
        "one part": case(10, items=beyond.Items(popularity_I, 50)),
        "one query": case(1, {"relevant": 9}),
    }
    queries, arguments = case(100, items=beyond.Items(popularity_I, 50))
    several = {"query_key": torch.arange(100) * 7, "user_key": queries.user_key[torch.arange(100) // 3]}
    return found | {"several queries a user": (dataclasses.replace(queries, **several), arguments)}


def scores_of(queries: Queries) -> Tensor:
    return torch.rand(len(queries), NUM_ITEMS, generator=torch.Generator().manual_seed(1))


def measured(queries: Queries, arguments: dict[str, Any]) -> tuple[Evaluation, list[int], list[tuple[int, int]]]:
    """What was found, how many queries this process has scored, and its progress."""
    scored: list[int] = []
    reports: list[tuple[int, int]] = []
    ranked = scorer_of(scores_of(queries))

    def score(batch: UserBatch) -> Tensor:
        scored.append(len(batch["user_idx"]))
        return ranked(batch)

    found = evaluate(score, queries, **arguments, progress=lambda done, total: reports.append((done, total)))
    return found, scored, reports


def equals_one_process(process: int, processes: int, expected: dict[str, Any]) -> None:
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, (queries, arguments) in cases().items():
            (one, _, reports), (found, scored, seen) = expected[name], measured(queries, arguments)
            for field in ("metrics", "intervals", "warm", "counts"):
                assert getattr(found, field) == getattr(one, field), (name, field)
            assert found.per_user.equals(one.per_user), name
            assert seen == reports, name
            own = range(process * PART, len(queries), processes * PART)
            assert sum(scored) == sum(min(PART, len(queries) - start) for start in own), name
    torch.set_num_threads(1)


def raises(queries: Queries, scorer: Callable[[UserBatch], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(scorer, queries, k=(3,), num_replicates=0)
    said = [""] * distributed.get_world_size()
    distributed.all_gather_object(said, str(caught.value))
    assert len(set(said)) == 1


def errors_reach_all(process: int) -> None:
    queries = make_queries(np.random.default_rng(0), 100, NUM_ITEMS, history=0, candidates=1.0)
    scores = scores_of(queries)
    for users in ([PART], [PART + 3, 2 * PART, 99], [99], [0]):
        bad = scores.clone()
        bad[users] = math.nan
        first = int(queries.user_idx[users[0]])
        raises(queries, scorer_of(bad), rf"^the score of user_idx {first} \(user_key -?\d+\) is NaN")

    def broken(batch: UserBatch) -> Tensor:
        raise RuntimeError("broken")

    raises(queries, broken if process == 1 else scorer_of(scores), "^RuntimeError: broken$")
    raises(queries, scorer_of(scores[:, 1:]), "one score for each")
    for other in (queries.rows(0, 0), queries.rows(0, 90), queries.about(queries.candidates), flipped(queries)):
        raises(other if process == 1 else queries, scorer_of(scores), "every rank must evaluate the same queries")
    raises(queries.rows(0, 0), scorer_of(scores), "none of 0 queries")
    evaluate(scorer_of(scores), queries, k=(3,))  # still in step
    if process == 0:  # these ask nothing of the others
        found = evaluate_lists(rank(scorer_of(scores), queries, 20), queries, k=(20,))
        assert found.counts["queries"] == len(found.per_user) > 90


def flipped(queries: Queries) -> Queries:
    return dataclasses.replace(queries, user_key=queries.user_key.flip(0))


def work(process: int, folder: str) -> None:
    """All comparisons by three processes, then by two of them: starting them takes far longer than the rest."""
    ranking._PART = {"cpu": PART}, PART
    torch.set_num_threads(1)
    expected = {name: measured(*case) for name, case in cases().items()}
    for processes in (3, 2):
        if process < processes:
            distributed.init_process_group(
                "gloo",
                init_method=f"file://{folder}/{processes}",
                rank=process,
                world_size=processes,
                timeout=timedelta(seconds=SECONDS / 2),
            )
            equals_one_process(process, processes, expected)
            errors_reach_all(process)
            distributed.destroy_process_group()


def test_several_processes_equal_one_and_fail_together(tmp_path: Path) -> None:
    started = torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=3, join=False)
    end = time.monotonic() + SECONDS
    try:
        while not started.join(timeout=1):
            assert time.monotonic() < end, "the processes wait for one another"
    finally:
        for process in started.processes:
            process.kill()
