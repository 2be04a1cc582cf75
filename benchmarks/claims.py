"""What the result files claim: each claim a ratio to a peer or to a limit, by the name that the files give it."""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from recsys.benching import QUARTILES, Result, flat
from recsys.regressions import kind

TIMES, SHARE = "×", "%"


class Claim(NamedTuple):
    """A claim of one benchmark.

    ratio, ours: patterns of paths as `recsys.benching.flat` gives them; several that match are shown by their range.
    written: how the ratio is written, and in which words; ours_written likewise, for the absolute figure.
    """

    benchmark: str
    what: str
    against: str
    ratio: str
    written: str
    ours: str = ""
    ours_written: str = ""
    in_readme: bool = False

    @property
    def of_cpu(self) -> bool:
        """Whether the figure is the processor's, whatever else the file was measured on."""
        return self.ratio.startswith(("int64/", "text/", "writing/", "als/", "mf/"))


class Found(NamedTuple):
    """A claim in one file: values of what matches, and the spread of repeats (quartiles) or interval, where known."""

    claim: Claim
    result: Result
    values: list[float]
    spread: list[tuple[float, float] | None]
    ours: list[float]


CLAIMS = [
    Claim("defaults", "Recall@20 of iALS on the built-in world", "the log oracle, which knows the true probabilities",
          "rows/als/of_oracle", "{:.0%} of", "rows/als/recall@20", "{:.3f}", True),
    Claim("defaults", "Clicks a visit from the lists of iALS, if shown", "the lists by true relevance",
          "rows/als/of_best", "{:.0%} of", "rows/als/clicks", "{:.2f}", True),
    Claim("defaults", "Recall@20 of all retrievers, from popularity up", "the log oracle", "rows/*/of_oracle",
          "{:.0%} of"),
    Claim("evaluation", "All users ranked, top 20, seen items masked, six metrics", "implicit's recommend and ranx",
          "ratios@20/peers_to_evaluation", "{:.1f} × as fast as", "seconds@20/evaluation", "{:.2f} s", True),
    Claim("evaluation", "The same with 1,000 bootstrap replicates", "implicit's recommend and ranx, without them",
          "ratios@20/peers_to_evaluation_with_intervals", "{:.1f} × as fast as",
          "seconds@20/evaluation_with_intervals", "{:.2f} s"),
    Claim("evaluation", "The same, and what the lists are like", "implicit's recommend and ranx, without it",
          "ratios@20/peers_to_evaluation_with_lists", "{:.1f} × as fast as",
          "seconds@20/evaluation_with_lists", "{:.2f} s"),
    Claim("evaluation", "Top 100", "implicit's recommend and ranx", "ratios@100/peers_to_evaluation",
          "{:.1f} × as fast as", "seconds@100/evaluation", "{:.2f} s"),
    Claim("evaluation", "Top 20 and all metrics", "the bare matrix product", "ratios@20/to_product",
          "{:.1f} × as long as", "seconds@20/evaluation", "{:.2f} s", True),
    Claim("hashing", "XXH64 of int64", "a plain copy of the same bytes", "int64/ours_over_copy",
          "{:.2f} × as fast as", "int64/rows_per_second/ours", "{:,.0f} rows/s", True),
    Claim("hashing", "XXH64 of int64", "pandas.util.hash_array", "int64/ours_over_pandas", "{:.1f} × as fast as",
          "int64/rows_per_second/ours", "{:,.0f} rows/s", True),
    Claim("hashing", "XXH64 of text", "polars-hash called by hand", "text/ours_over_polars_hash_by_hand",
          "{:.2f} × as fast as", "text/rows_per_second/ours", "{:,.0f} rows/s"),
    Claim("hashing", "XXH64 of text", "scikit-learn's FeatureHasher", "text/ours_over_feature_hasher",
          "{:.0f} × as fast as", "text/rows_per_second/ours", "{:,.0f} rows/s"),
    Claim("hashing", "XXH64 kernels on the GPU", "a copy on the device, by bytes moved", "gpu/share_of_copy/*",
          "{:.0%} of", "gpu/bytes_per_second/*", "{:.3g} bytes/s", True),
    Claim("gpu", "Exact top 100 of everyone, seen items masked", "the bare matrix product",
          "evaluation/*/over_product/rank", "{:.2f} × as long as", "evaluation/*/seconds/rank", "{:.3g} s", True),
    Claim("gpu", "Exact top 100 of everyone, seen items masked", "product, mask and torch.topk by hand",
          "evaluation/*/speed_up_over_by_hand", "{:.2f} × as fast as", "evaluation/*/seconds/rank", "{:.3g} s", True),
    Claim("gpu", "All metrics at two cut-offs", "the bare matrix product", "evaluation/*/over_product/evaluate",
          "{:.2f} × as long as", "evaluation/*/seconds/evaluate", "{:.3g} s"),
    Claim("gpu", "All metrics at two cut-offs", "what operations or bytes alone would take",
          "evaluation/*/seconds/evaluate ÷ evaluation/*/floor_seconds", "{:.2f} × as long as",
          "evaluation/*/floor_seconds", "{:.3g} s"),
    Claim("gpu", "Values of a world's log that a CPU makes to the bit", "all of 1.75 million rows",
          "world/share_alike/[!r]*", "{:.2%} of", "world/rows_per_second", "{:,.0f} rows/s made", True),
    Claim("gpu", "Search through ItemIndex", "the same faiss object called by hand", "index/*/over_faiss_by_hand",
          "{:.2f} × as long as", "index/*/queries_per_second", "{:,.0f} queries/s"),
    Claim("youtube_scale", "Exact ranking of 16.7 million videos with all metrics", "the bare matrix product",
          "share_of_product", "{:.0%} of", "scores_per_second", "{:.3g} scores/s", True),
    Claim("index", "Search through ItemIndex", "the same faiss object called by hand", "overhead/*/ratio",
          "{:.2f} × as long as", "overhead/*/ours_ms", "{:,.0f} ms", True),
    Claim("training", "iALS to the loss of implicit's 15 sweeps", "implicit", "als/speed/ours_cg2/ratio",
          "{:.2f} × as long as", "als/speed/ours_cg2/seconds", "{:.1f} s", True),
    Claim("training", "BPR samples a second", "LensKit", "mf/bpr_over_peer/lenskit", "{:.1f} × as fast as",
          "mf/million_samples_per_second/bpr/lightning", "{:.2f} million/s", True),
    Claim("training", "BPR samples a second", "Cornac", "mf/bpr_over_peer/cornac", "{:.1f} × as fast as",
          "mf/million_samples_per_second/bpr/lightning", "{:.2f} million/s"),
    Claim("training", "BPR samples a second", "implicit", "mf/bpr_over_peer/implicit", "{:.2f} × as fast as",
          "mf/million_samples_per_second/bpr/lightning", "{:.2f} million/s"),
    Claim("training", "Every model through the engine", "the same steps in a plain loop",
          "models/models/*/engine_over_plain", "{:.2f} × as fast as", "models/models/*/samples_per_second",
          "{:,.0f} samples/s", True),
    Claim("training", "Every model through the engine", "a loader of single rows",
          "models/models/*/engine_over_row_loader", "{:.1f} × as fast as"),
    Claim("training", "Impressions learnt from while they are generated: waiting for them", "the time it takes",
          "stream/data_wait_share", "{:.0%} of", "stream/seconds", "{:.0f} s"),
    Claim("features", "Fitted pipeline over Parquet, to tensors", "Polars streaming the same columns past",
          "world/transform_over_polars", "{:.1f} × as long as", "world/transform_seconds", "{:.0f} s", True),
    Claim("world", "Writing a part of a world's log", "Polars writing the same frame", "writing/ratio",
          "{:.2f} × as long as", "writing/seconds", "{:.2f} s", True),
    Claim("funnel", "A page of 100 from 1,000 candidates, p50", "the ranker's bare forward pass",
          "runs/1000/one_by_one/p50_ms ÷ runs/1000/forward_ms/bfloat16", "{:.1f} × as long as",
          "runs/1000/one_by_one/p50_ms", "{:.0f} ms"),
    Claim("funnel", "A page of 100 from 10,000 candidates, p50", "the ranker's bare forward pass",
          "runs/10000/one_by_one/p50_ms ÷ runs/10000/forward_ms/bfloat16", "{:.1f} × as long as",
          "runs/10000/one_by_one/p50_ms", "{:.0f} ms", True),
    Claim("simulator", "Impressions a second, served by iALS through an index", "the world's own policy",
          "mf/impressions_per_second ÷ logging/impressions_per_second", "{:.2f} × as fast as",
          "mf/impressions_per_second", "{:,.0f}"),
    Claim("simulator", "Clicks a visit from the lists of iALS", "the world's own policy",
          "mf/clicks_per_visit ÷ logging/clicks_per_visit", "{:.1f} × as many as", "mf/clicks_per_visit", "{:.2f}"),
    Claim("comparison", "Equal models called different at 95%", "the nominal 5%", "*/told_apart",
          "{:.1%}, to be held against"),
    Claim("abtest", "Equal arms called different at 95%", "the nominal 5%", "same/*/once/share",
          "{:.1%}, to be held against", "", "", True),
    Claim("abtest", "The same by always-valid intervals, at any look", "the nominal 5%, not to be passed",
          "same/*/sequential/share", "{:.1%}, to be held against"),
    Claim("abtest", "The same by a t test at each look", "the nominal 5%", "same/*/naive_peeking/share",
          "{:.0%}, to be held against"),
    Claim("abtest", "Intervals that cover the true effect", "the nominal 95%", "coverage/*/share",
          "{:.1%}, to be held against"),
    Claim("abtest", "Power that was planned", "the nominal 80%", "power/*/once/share", "{:.1%}, to be held against"),
    Claim("offpolicy", "Error of the doubly robust estimate, effective sample above 5%", "SNIPS, root mean square",
          "policies/[!g]*/dr/rmse ÷ policies/[!g]*/snips/rmse", "{:.2f} × as large as"),
    Claim("offpolicy", "The same", "the naive figure, root mean square",
          "policies/[!g]*/dr/rmse ÷ policies/[!g]*/naive/rmse", "{:.2f} × as large as"),
    Claim("rankers", "DCN-v2 on world small, log loss", "LightGBM, settings of both chosen on validation",
          "rows/world small, dcn/log_loss_minus_lightgbm", "{:+.4f} against", "rows/world small, dcn, seed */log_loss",
          "{:.4f}", True),
    Claim("rankers", "DCN-v2 on KuaiRand's long views, log loss", "LightGBM",
          "rows/KuaiRand, long_view, dcn/log_loss_minus_lightgbm", "{:+.3f} against",
          "rows/KuaiRand, long_view, dcn, seed */log_loss", "{:.3f}", True),
    Claim("rankers", "DCN-v2 on world small, the gap in log loss", "the gap from the base rate to Bayes' own",
          "rows/world small, dcn, seed */gap_closed", "{:.0%} closed of"),
    Claim("rankers", "LightGBM on world small, the same", "the gap from the base rate to Bayes' own",
          "rows/world small, LightGBM/gap_closed", "{:.0%} closed of"),
    Claim("rankers", "DCN-v2 on world tiny, log loss, all defaults", "LightGBM",
          "rows/world tiny, dcn*/log_loss_minus_lightgbm", "{:+.4f} against", "rows/world tiny, dcn, seed */log_loss",
          "{:.4f}"),
    Claim("retrievers", "EASE on ml-100k, ndcg@20 of the last of each user",
          "iALS, settings of both chosen on validation", "rows/ndcg@20, EASE, ml100k_last/minus iALS",
          "{:+.4f} against", "rows/ndcg@20, EASE, ml100k_last/value", "{:.3f}"),
    Claim("retrievers", "Two towers on world small, ndcg@20", "iALS, settings of both chosen on validation",
          "rows/ndcg@20, two towers, small/minus iALS", "{:+.4f} against", "rows/ndcg@20, two towers, small/value",
          "{:.3f}"),
    Claim("retrievers", "SASRec on world small, recall@20 of the next click", "iALS",
          "rows/small, next in session, recall@20, SASRec/minus iALS", "{:+.3f} against",
          "rows/small, next in session, recall@20, SASRec/value", "{:.3f}", True),
    Claim("retrievers", "Two towers on KuaiRand, recall@20", "iALS", "rows/recall@20, two towers, kuairand/minus iALS",
          "{:+.3f} against", "rows/recall@20, two towers, kuairand/value", "{:.3f}", True),
    Claim("real_logs", "iALS on ml-100k by random split, recall@20, all defaults", "popularity",
          "rows/recall@20, iALS, ml-100k, split=random/value ÷ rows/recall@20, popularity, ml-100k, split=random/value",
          "{:.1f} × as high as", "rows/recall@20, iALS, ml-100k, split=random/value", "{:.3f}"),
    Claim("answer_key", "What leave-last-out of ml-100k adds to the recall@20 of iALS, in points",
          "the same without rows from after test begins",
          "leakage/ml-100k, leave_last_out, iALS, future_rows/inflation", "{:+.1f} against", "", "", True),
    Claim("answer_key", "Pairs of models of which recall@20 picks the better", "the truth",
          "agreement/global_time, recall@20/agreement",
          "{:.0%}, by"),
    Claim("loss_budget", "Clicks a visit of a funnel of 1,000 candidates, diversity, caps and exploration paid",
          "ranking the whole catalogue", "rows/exploration, candidates 1000/kept", "{:.0%} of"),
]  # fmt: skip


def found(results: Sequence[Result]) -> Iterator[Found]:
    """Each claim in each file that holds its ratio."""
    figures = [(result, dict(flat(result.figures))) for result in results]
    for claim in CLAIMS:
        for result, known in figures:
            if result.benchmark == claim.benchmark and (hits := _ratios(known, claim.ratio)):
                ours = [value for value, _ in _ratios(known, claim.ours)] if claim.ours else []
                yield Found(claim, result, [value for value, _ in hits], [spread for _, spread in hits], ours)


def unclaimed(result: Result) -> Iterator[Found]:
    """The ratios of a file that no claim speaks of, by the names that the file gives them."""
    known = dict(flat(result.figures))
    said = {
        path for claim in CLAIMS for path in known for part in claim.ratio.split(" ÷ ") if fnmatch.fnmatch(path, part)
    }
    for path in known:
        measured = kind(path)
        if path not in said and measured is not None and measured[0] and (hits := _ratios(known, path)):
            claim = Claim(
                result.benchmark, f"`{path}`", "more is better" if measured[1] else "less is better", path, "{:.2f},"
            )
            yield Found(claim, result, [value for value, _ in hits], [spread for _, spread in hits], [])


def _ratios(known: dict[str, Any], pattern: str) -> list[tuple[float, tuple[float, float] | None]]:
    """Values of a pattern, or of "pattern ÷ pattern" in the same order, with their spread."""
    above, _, below = pattern.partition(" ÷ ")
    if below:
        pairs = zip(_ratios(known, above), _ratios(known, below), strict=False)
        return [(a / b, None) for (a, _), (b, _) in pairs]
    hits = []
    for path, value in known.items():
        if not fnmatch.fnmatchcase(path, above):
            continue
        folder, _, last = path.rpartition("/")
        if isinstance(value, list) and len(value) == 3:  # a difference and its interval
            hits.append((value[0], (value[1], value[2])))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            spread = known.get(path + QUARTILES) or known.get(f"{folder}{QUARTILES}/{last}")
            if (
                spread is None
                and last in ("inflation", "recall@20", "value")
                and known.get(f"{folder}/low") is not None
            ):
                spread = known[f"{folder}/low"], known[f"{folder}/high"]
            hits.append((value, spread and (spread[0], spread[1])))
    return hits


def chosen(results: Sequence[Result], benchmark: str, pattern: str, on_gpu: bool = False) -> Result:
    """The newest file of a benchmark that holds a figure.

    Raises:
        ValueError: none does.
    """
    files = [
        result
        for result in results
        if result.benchmark == benchmark
        and result.on_gpu == on_gpu
        and any(fnmatch.fnmatchcase(path, pattern) for path, _ in flat(result.figures))
    ]
    if not files:
        raise ValueError(f"no result file of {benchmark} holds {pattern}: run benchmarks/bench_{benchmark}.py")
    return max(files, key=rank)


def rank(result: Result) -> tuple[bool, str]:
    """Of several files that hold a figure the greatest is told of: of full size before small, the newest."""
    return result.manifest.get("size") != "small", result.manifest.get("date", "")


def values(result: Result, pattern: str) -> list[float]:
    """What matches a pattern in one file."""
    return [value for value, _ in _ratios(dict(flat(result.figures)), pattern)]


def span(form: str, values: Sequence[float]) -> str:
    """One value, or the range of several."""
    return " to ".join(dict.fromkeys(form.format(value) for value in (min(values), max(values))))


def middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def written(form: str, values: Sequence[float]) -> str:
    """Values by a form as "{:.2f} × as long as": one, or their range."""
    field = form[form.index("{") : form.index("}") + 1]
    return form.replace(field, span(field, values))
