"""A page of 100 videos out of a million: milliseconds from request to list, one by one and in batches.

    python benchmarks/bench_funnel.py [--world large] [--candidates 1000 10000] [--requests 2000] [--batched 256]
        [--precision auto] [--factory IVF4096,Flat] [--search nprobe=512] [--size small] [--out FILE]

The catalogue and the users are those of the world. Candidates come from two retrievers of inner products (64
dimensions, a mixture that is hard for inverted lists, each behind an index of all videos), from what is popular and
from what is new; each is asked for as many as are ranked. What a user liked is left out, features are made on the spot
(24 fields, some of them crosses of user and video, a history of 50), DCN-v2 ranks all candidates (3 cross layers,
512-256, 16 dimensions a field), maximal marginal relevance with at most 10 videos of a creator re-ranks 200, and 2% of
the places explore. Weights are drawn, not learnt: they cost the same. precision: auto takes that of float32 and
bfloat16 in which the bare forward pass is faster here.

one by one: a request after the other, each of another user; p50, p95, p99 of all, the first 50 left out. batched: users
at once, per second. stages: the median of each, one by one. index_recall: of the first retriever's index, of as many as
are ranked. forward: the same DCN's cross layers, MLP and head alone on
as many ready vectors, which is what no funnel can be faster than. Two threads. The last line is one JSON object.
"""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2"))
os.environ["POLARS_MAX_THREADS"] = "1"  # of so few rows: other threads would only wait for each other

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import polars as pl
import torch
from torch import Tensor

from recsys import backend, benching, config
from recsys.candidate_ranker import CandidateRanker
from recsys.data.log import Log
from recsys.data.rows import own_rows
from recsys.features import Category, FeaturePipeline, Hashed, History, Numeric, Plain
from recsys.features.serving import FeatureStore
from recsys.features.vocabulary import Vocabulary
from recsys.funnel import POPULAR, STAGES, Answer, Funnel
from recsys.index import ItemIndex
from recsys.models.dcn import DCN
from recsys.schema import ITEM_ID, LABEL, NUM_RESERVED, TIMESTAMP, USER_ID, Column, Interactions
from recsys.sources import Source, everybody, fresh, searched
from recsys.world import World
from recsys.world.population import user_table, video_table

K, DIM, FIELDS, WARM, LIKED = 100, 64, 24, 50, 30
Recall = Callable[[int], float]


def pipeline() -> FeaturePipeline:
    """24 fields: as configs/features/world.yaml, and five crosses more."""
    own = config.load(config.config_dir() / "features" / "world.yaml")
    crosses = {
        "country_topic": ["country", "topic"], "device_hour": ["device", "hour"],
        "country_language": ["country", "item_language"], "age_creator": ["age_band", "creator"],
        "device_topic": ["device", "topic"],
    }  # fmt: skip
    return FeaturePipeline(
        user={name: Category() for name in own.user},
        item={
            "item_id": Category(), "topic": Category(), "creator": Category(min_count=10), "item_language": Category(),
            "log_duration": Numeric(clip_quantiles=[0.01, 0.99], flag=False),
        },
        context={
            "hour": Category(), "weekday": Category(), "log_account_days": Numeric(flag=False),
            "log_video_days": Numeric(flag=False), "country_hour": Hashed(1000, columns=["country", "hour"]),
            "age_topic": Hashed(10_000, columns=["age_band", "topic"]), "history": History(of="item_id", length=50),
            **{name: Hashed(10_000, columns=columns) for name, columns in crosses.items()},
        },
        label={LABEL: Plain()},
        derive=dict(own.derive),
    )  # fmt: skip


def rows_of(people: pl.DataFrame, videos: pl.DataFrame, world: World, generator: torch.Generator) -> pl.DataFrame:
    """As many likes of each user as LIKED, and every video once with somebody, so that all have a vector."""
    num_rows = max(len(people) * LIKED // 20, len(videos))
    user = torch.randint(len(people) // 20, (num_rows,), generator=generator)
    item = torch.arange(num_rows) % len(videos)
    at = torch.randint(world.num_days * 86_400_000_000, (num_rows,), generator=generator) + world.start_us
    return pl.DataFrame(
        {
            USER_ID: people[USER_ID].gather(user.numpy()),
            ITEM_ID: videos[ITEM_ID].gather(item.numpy()),
            TIMESTAMP: pl.Series(at.numpy()).cast(pl.Datetime("us", "UTC")),
            LABEL: pl.Series([1], dtype=pl.Int8).new_from_index(0, num_rows),
        }
    )


def mixture(count: int, generator: torch.Generator) -> Tensor:
    """Vectors of 2,000 clusters as wide as their centres are apart."""
    centres_CD = torch.randn(min(2000, count), DIM, generator=generator) / math.sqrt(DIM)
    noise_ND = torch.randn(count, DIM, generator=generator) / math.sqrt(DIM)
    return noise_ND + centres_CD[torch.randint(len(centres_CD), (count,), generator=generator)]


def retriever(items: Vocabulary, users: Vocabulary, factory: str, search: str, seed: int) -> tuple[Source, Recall]:
    """Drawn vectors of all users and videos behind an index, and what share of the true nearest it finds."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.arange(NUM_RESERVED, len(items))
    vectors_ND = mixture(len(ids), generator)
    index = ItemIndex(vectors_ND, ids, factory=factory, search=search)
    vectors_UD = mixture(len(users), generator)

    def recall(num: int) -> float:
        found = index.search(vectors_UD[:20], num)[1]
        true = ids[(vectors_UD[:20] @ vectors_ND.T).topk(num).indices]
        return float(torch.stack([torch.isin(t, f).float().mean() for t, f in zip(true, found, strict=True)]).mean())

    return searched(index, lambda asked: vectors_UD[users.encode(asked.user_id)]), recall


def build(world: World, factory: str, search: str, precision: str) -> tuple[Any, list[int], DCN, Recall]:
    """A funnel for a number of candidates, users to ask for, its ranker, and the recall of an index."""
    generator = torch.Generator().manual_seed(0)
    people, videos = user_table(world), video_table(world).rename({"uploaded": TIMESTAMP})
    rows = rows_of(people, videos, world, generator)
    log = Log(world.name, rows.lazy(), users=people.lazy(), items=videos.lazy())
    items, users = Vocabulary(videos[ITEM_ID]), Vocabulary(people[USER_ID])
    item_rows, user_rows = own_rows(log, ITEM_ID, items.ids), own_rows(log, USER_ID, users.ids)
    joined = rows.join(user_rows.drop_nulls(USER_ID), on=USER_ID, maintain_order="left")
    joined = joined.join(item_rows.drop_nulls(ITEM_ID), on=ITEM_ID, maintain_order="left")
    fitted = pipeline().fit(joined)
    torch.manual_seed(0)
    model = DCN(fitted.columns, num_cross=3, hidden=(512, 256)).eval()
    assert len(model.fields.fields) == FIELDS, model.fields.fields

    def score(batch: dict[str, Tensor]) -> Tensor:
        if precision == "float32":
            return model(batch)[LABEL].sigmoid()
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch)[LABEL].float().sigmoid()

    history = Interactions.from_pairs(
        users.encode(rows[USER_ID]), items.encode(rows[ITEM_ID]), num_rows=len(users), num_items=len(items)
    )
    most = history.item_counts()[NUM_RESERVED:].argsort(descending=True, stable=True) + NUM_RESERVED
    came = item_rows["item_timestamp" if "item_timestamp" in item_rows.columns else TIMESTAMP]
    two_tower, recall = retriever(items, users, factory, search, 1)
    sources = {
        "two_tower": two_tower,
        "als": retriever(items, users, factory, search, 2)[0],
        POPULAR: everybody(most),
        "fresh": fresh(torch.from_numpy(came.to_physical().fill_null(-1).to_numpy(writable=True))),
    }
    store = FeatureStore(fitted.trimmed(), item_rows)
    now = rows[TIMESTAMP].max()

    def funnel(num_candidates: int) -> Funnel:
        return Funnel(
            sources, items, item_rows, users=user_rows[NUM_RESERVED:], history=history, now=now, popular=most,
            ranker=CandidateRanker(store, score), num_candidates=num_candidates, caps={"creator": 10}, diversity=0.1,
            vectors_ID=mixture(len(items), generator), pool=200, exploration=0.02,
        )  # fmt: skip

    asked = people[USER_ID].gather(torch.randperm(len(people) // 20, generator=generator).numpy()).to_list()
    return funnel, asked, model, recall


def one_by_one(funnel: Funnel, users: list[int], requests: int) -> dict[str, Any]:
    seconds: list[float] = []
    answers: list[Answer] = []
    for number in range(WARM + requests):
        user = users[number % len(users)]
        start = time.perf_counter()
        answer = funnel.answers([user], K)[0]
        funnel._frame(answer)
        seconds.append(time.perf_counter() - start)
        answers.append(answer)
    assert not funnel.failures, funnel.failures
    assert all((answer.item_idx > 1).sum() == K for answer in answers)
    ms = sorted(1e3 * s for s in seconds[WARM:])
    stages = {n: round(statistics.median(a.milliseconds[n] for a in answers[WARM:]), 2) for n in STAGES}
    p50, p95, p99 = (round(ms[min(int(len(ms) * share), len(ms) - 1)], 2) for share in (0.5, 0.95, 0.99))
    return {"requests": requests, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "stages_ms": stages}


def batched(funnel: Funnel, users: list[int], requests: int) -> dict[str, Any]:
    funnel.recommend(users[:64], K)
    some = [users[number % len(users)] for number in range(requests)]
    start = time.perf_counter()
    frame = funnel.recommend(some, K)
    seconds = time.perf_counter() - start
    assert frame.height == requests * K
    assert not funnel.failures, funnel.failures
    return {"requests": requests, "users_at_once": funnel.users_at_once, "per_second": round(requests / seconds, 2)}


def forward(model: DCN, num_candidates: int, precision: str, repeats: int = 50) -> float:
    """Milliseconds of the dense layers alone, the median."""
    x_NW = torch.randn(num_candidates, model.fields.width)
    seconds = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        for _ in range(repeats):
            start = time.perf_counter()
            model.head(model.deep(model.cross(x_NW)))
            seconds.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(seconds), 2)


def faster() -> str:
    """The precision in which this machine multiplies 2,000 rows faster."""
    columns = [Column(f"c{number}", "context", "int64", 10) for number in range(FIELDS)]
    model = DCN(columns, num_cross=3, hidden=(512, 256)).eval()
    forward(model, 2000, "bfloat16", 5)
    return min(("float32", "bfloat16"), key=lambda name: forward(model, 2000, name, 20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="large", help="a preset of configs/world")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--batched", type=int, default=256)
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--factory", default="IVF4096,Flat", help="of both indexes, of fewer lists for a small world")
    parser.add_argument("--search", default="nprobe=512")
    small = {"world": "small", "candidates": [1000], "requests": 200, "factory": "IVF64,Flat", "search": "nprobe=16"}
    arguments = benching.arguments(parser, small=small)
    torch.set_num_threads(2)
    world = config.build(config.compose("data=world", f"world={arguments.world}").world)
    start = time.perf_counter()
    precision = faster() if arguments.precision == "auto" else arguments.precision
    funnel_of, users, model, recall = build(world, arguments.factory, arguments.search, precision)
    gc.collect()
    gc.freeze()
    print(f"{world.num_videos:,} videos, {FIELDS} fields, built in {time.perf_counter() - start:.0f} s", flush=True)
    result: dict[str, Any] = {
        "faiss": backend.version("faiss-cpu"), "videos": world.num_videos,
        "factory": arguments.factory, "search": arguments.search, "precision": precision, "k": K, "runs": {},
    }  # fmt: skip
    for num in arguments.candidates:
        funnel = funnel_of(num)
        bare = {name: forward(model, num, name) for name in ("float32", "bfloat16")}
        alone = one_by_one(funnel, users, arguments.requests)
        found = {"forward_ms": bare, "one_by_one": alone, "batched": batched(funnel, users, arguments.batched)}
        found["index_recall"] = round(recall(min(num, world.num_videos)), 3)
        print(f"{num:,} candidates: {json.dumps(found)}", flush=True)
        result["runs"][num] = found
        result[f"p99_ms/{num}"] = alone["p99_ms"]
        result[f"per_second/{num}"] = found["batched"]["per_second"]
    benching.publish("funnel", result, arguments)


if __name__ == "__main__":
    main()
