"""The text of docs/results.md: what the result files say, in words. Every figure is an expression over the files."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from statistics import mean
from typing import Any

from claims import chosen, rank, span, values

from recsys.benching import Result

FUNNEL = 1000  # candidates of the funnel that is told of
NAMES = {
    "popularity": "popularity", "knn": "ItemKNN", "ease": "EASE", "als": "iALS", "mf": "MF (softmax)",
    "item2vec": "item2vec", "lightgcn": "LightGCN", "neumf": "NeuMF", "tags": "tags (features)",
    "sasrec": "SASRec (features)", "two_tower": "two towers (features)", "LightGBM": "LightGBM",
    "logistic": "logistic regression", "bayes_logistic": "Bayesian logistic regression", "fm": "FM",
    "deepfm": "DeepFM", "dcn": "DCN-v2", "dlrm": "DLRM", "mlp": "MLP", "mmoe": "MMoE",
}  # fmt: skip


def text(results: Sequence[Result], folder: str = "../benchmarks/results") -> str:
    """Markdown.

    Args:
        folder: of the result files, as the text links to it.

    Raises:
        ValueError: a figure is in no file; the message names it.
    """

    results = sorted(results, key=lambda result: (not result.on_gpu, rank(result)), reverse=True)

    def every(benchmark: str, pattern: str) -> list[float]:
        return values(chosen(results, benchmark, pattern), pattern)

    def v(benchmark: str, pattern: str) -> float:
        return every(benchmark, pattern)[0]

    def between(form: str, benchmark: str, pattern: str) -> str:
        return span(form, every(benchmark, pattern))

    def row(benchmark: str, table: str = "rows", **where: Any) -> dict[str, Any]:
        for result in results:
            if result.benchmark == benchmark:
                for found in result.figures.get(table, []):
                    if all(found.get(key) == value for key, value in where.items()):
                        return found
        raise ValueError(f"no result file of {benchmark} has {where} in {table}: run benchmarks/bench_{benchmark}.py")

    def link(benchmark: str, pattern: str = "*") -> str:
        path = chosen(results, benchmark, pattern).path
        return f"[{path.name}]({folder}/{path.name})"

    def page(benchmark: str) -> str:
        path = chosen(results, benchmark, "*").path.with_suffix(".md")
        return f"[{path.name}]({folder}/{path.name})"

    def apart(found: Sequence[float], form: str = "+.3f") -> str:
        return f"{found[0]:{form}} [{found[1]:{form}}, {found[2]:{form}}]"

    def retriever(part: str, metric: str, label: str) -> dict[str, Any]:
        return row("retrievers", part=part, metric=metric, label=label)

    def ranker(log: str, model: str, metric: str) -> float:
        found = every("rankers", f"rows/{log}, {model}{'' if model == 'LightGBM' else ', seed *'}/{metric}")
        return mean(found)

    def beside(log: str, model: str, form: str) -> str:
        rows = [r for result in results if result.benchmark == "rankers" for r in result.figures["rows"]]
        found = next(r for r in rows if (r["log"], r["model"]) == (log, model) and r.get("log_loss_minus_lightgbm"))
        return apart(found["log_loss_minus_lightgbm"], form)

    def real(log: str, split: str, label: str) -> float:
        return row("real_logs", log=log, split=f"split={split}", label=label, metric="recall@20")["value"]

    def statistic(world: str, start: str) -> float:
        rows = chosen(results, "defaults", f"statistics/{world}/*").figures["statistics"][world]
        return next(r["measured"] for r in rows if r["statistic"].startswith(start))

    als = row("defaults", model="als")
    hashed = row("defaults", "collisions", num_buckets=(videos := _videos(results)))
    tenfold = row("defaults", "collisions", num_buckets=10 * videos)
    plain = row("defaults", "collisions", num_buckets=None)
    debiased = {e: row("answer_key", "debiasing", model="model=als", estimator=e, k=20) for e in ("naive", "snips")}
    leak = row("answer_key", "leakage", split="leave_last_out")
    small = [retriever("small", "ndcg@20", name) for name in ("two towers", "iALS", "SASRec")]
    cold = [retriever("small, cold items", "recall@100", name) for name in ("two towers", "SASRec")]
    click = [retriever("small, next in session", "recall@20", name) for name in ("SASRec", "iALS", "two towers")]
    kuairand = {
        name: retriever("kuairand", "recall@20", name)
        for name in ("two towers", "iALS", "SASRec", "EASE", "popularity, last day")
    }
    by_chance = {name: retriever("ml100k_random", "recall@20", name) for name in ("iALS", "two towers", "EASE")}
    by_last = [retriever("ml100k_last", "recall@20", name) for name in ("SASRec", "iALS")]
    log_q = [retriever("log_q", "recall@20", name) for name in ("with logQ", "without logQ")]
    stages = {
        stage: row("loss_budget", stage=stage, candidates=None if stage in ("best", "whole catalogue") else FUNNEL)
        for stage in ("best", "whole catalogue", "retrieval", "index", "re-ranking", "exploration")
    }
    tested = chosen(results, "abtest", "same/*").figures
    logs = chosen(results, "offpolicy", "policies/*").figures
    judged = {name: p for name, p in logs["policies"].items() if p["ips"]["share"] >= 0.05}
    greedy = logs["policies"]["greedy"]["ips_given_above"]
    evaluated = chosen(results, "evaluation", "ratios@*").figures
    memory = evaluated.get("memory")
    promised = chosen(results, "index", "promise/*").figures["promise"]["tries"]
    tuned, naive = (
        [sum(r[key] for r in promised if r["picked_by"] == way) for key in ("kept", "of")] for way in ("tuned", "naive")
    )
    paged = chosen(results, "funnel", "runs/1000/*").figures
    day = chosen(results, "simulator", "mf/*").figures
    streamed = chosen(results, "training", "stream/*").figures["stream"]
    table = chosen(results, "training", "table/*").figures["table"]
    world = chosen(results, "world", "stream_large/*").figures
    features = chosen(results, "features", "world/*").figures
    lightning = chosen(results, "training", "mf/lightning_cost/*").figures["mf"]["lightning_cost"]

    few, many = sorted(int(key.partition("@")[2]) for key in evaluated if "@" in key and key.startswith("seconds"))
    return _wrapped(f"""\
# Results

What was measured, in words; the ratios alone are in [benchmarks/results]({folder}/README.md), with the machines. This
page is made from the result files by `make results`; a figure that is in no file is not here. Brackets are 95%
intervals.

## The built-in world and its answer key

World tiny, iALS with its defaults, seed 0 (`make demo`): recall@20 {als["recall@20"]:.3f} [{als["low"]:.3f},
{als["high"]:.3f}], {als["of_oracle"]:.0%} of the log oracle's {als["oracle"]:.3f}; popularity reaches
{row("defaults", model="popularity")["recall@20"]:.3f}. Shown the iALS list, a visit is expected to bring
{als["clicks"]:.2f} clicks, {als["of_best"]:.0%} of what the list by true relevance would ({link("defaults")}).

Every retriever with its defaults, seed 0:

| model | recall@20 | of the oracle | clicks a visit | of the best |
|---|---|---|---|---|
{_retrievers(chosen(results, "defaults", "rows/*").figures["rows"])}

The presets meet published statistics of video platforms (`recsys world validate world=medium`, same file): CTR
{statistic("medium", "homepage: CTR"):.1%}, {statistic("medium", "homepage: clicks a user"):.1f} clicks a user and
month, concentration of exposure as in KuaiRand, mean watch time of the feed
{statistic("medium", "feed: watch seconds"):.0f} s, likes {statistic("medium", "feed: like rate"):.1%}, bursts relaxing
with exponent {statistic("medium", "homepage: exponent of a burst"):.1f}; of world youtube
{statistic("youtube", "expected lifetime views: videos below 100"):.0%} of the videos expect few views (fewer than a
hundred), and the {statistic("youtube", "expected lifetime views: videos above"):.1%} above ten thousand hold
{statistic("youtube", "expected lifetime views: share held"):.0%}.

Hashing the {videos:,} videos of world tiny into as many buckets (`recsys study collisions`, same file) makes
{hashed["rows_affected"]:.0%} of the impressions share theirs: iALS falls from {plain["share_of_oracle"]:.0%} of the log
oracle to {hashed["share_of_oracle"]:.0%}, and its lists from {plain["share_of_best_clicks@20"]:.0%} of the best
possible clicks to {hashed["share_of_best_clicks@20"]:.0%}. With ten buckets a video {tenfold["rows_affected"]:.0%}
collide, and the shares are {tenfold["share_of_oracle"]:.0%} and {tenfold["share_of_best_clicks@20"]:.0%}.

Clicks tell what was shown. Of what users of world tiny would like, iALS' lists of {debiased["naive"]["k"]} hold
{debiased["naive"]["truth"]:.0%}; of the logged clicks they hold {debiased["naive"]["value"]:.0%}; weighed by the
propensities that the log carries (SNIPS) {debiased["snips"]["value"]:.0%} [{debiased["snips"]["low"]:.0%},
{debiased["snips"]["high"]:.0%}] (`recsys study debiasing`). Of
{row("answer_key", "agreement", split="global_time", metric="recall@20")["pairs"]} pairs of seven models, logged
recall@20 picks the one whose lists would truly bring more clicks in
{v("answer_key", "agreement/global_time, recall@20/agreement"):.0%}, recall@100 in
{v("answer_key", "agreement/global_time, recall@100/agreement"):.0%}. Leave-last-out of ml-100k adds
{leak["inflation"]:.1f} points [{leak["low"]:.1f}, {leak["high"]:.1f}] to the recall@20 of iALS ({link("answer_key")}).

## Retrievers

With settings that validation chose (`experiment=…`; every trial is in
[tuning_retrievers.json]({folder}/tuning_retrievers.json)), {small[0]["seeds"]} seeds, differences paired by user and
seed ({page("retrievers")}).

- World small, ndcg@20: two towers {small[0]["value"]:.3f}, iALS {small[1]["value"]:.3f} (difference
  {apart(small[0]["minus iALS"])}), SASRec {small[2]["value"]:.3f}.
- Of what nobody had liked before the cut the two towers' first hundred hold {cold[0]["value"]:.1%} (SASRec's
  {cold[1]["value"]:.1%}), iALS' {retriever("small, cold items", "recall@100", "iALS")["value"]:.1%}; in the first
  twenty two towers have no lead that can be told from none
  ({apart(retriever("small, cold items", "recall@20", "two towers")["minus iALS"])}).
- Of the next click of a visit, recall@20: SASRec {click[0]["value"]:.3f}, iALS {click[1]["value"]:.3f}
  ({apart(click[0]["minus iALS"])}), two towers {click[2]["value"]:.3f}.
- KuaiRand's long views by global time, recall@20: two towers {kuairand["two towers"]["value"]:.3f}, iALS
  {kuairand["iALS"]["value"]:.3f} ({apart(kuairand["two towers"]["minus iALS"])}), SASRec
  {kuairand["SASRec"]["value"]:.3f}, EASE {kuairand["EASE"]["value"]:.3f}, and the popularity of the last day
  {kuairand["popularity, last day"]["value"]:.3f}.
- ml-100k by random split, recall@20: iALS {by_chance["iALS"]["value"]:.3f}, two towers
  {by_chance["two towers"]["value"]:.3f} ({apart(by_chance["two towers"]["minus iALS"])}), EASE
  {by_chance["EASE"]["value"]:.3f}; by leave-last-out SASRec {by_last[0]["value"]:.3f}, iALS {by_last[1]["value"]:.3f}
  ({apart(by_last[0]["minus iALS"])}).
- In-batch negatives without the logQ correction take two towers on world tiny from {log_q[0]["value"]:.3f} to
  {log_q[1]["value"]:.3f}, and their lists from {log_q[0]["clicks@20"]:.2f} expected clicks to
  {log_q[1]["clicks@20"]:.2f} alone: what is lost is what is logged.

Real logs, every model with its defaults, five seeds, by global time and by random split: {page("real_logs")}. By random
split of ml-100k (ratings of four and more) recall@20 is iALS {real("ml-100k", "random", "iALS"):.3f}, MF
{real("ml-100k", "random", "MF (softmax)"):.3f}, EASE {real("ml-100k", "random", "EASE"):.3f}, MF-BPR
{real("ml-100k", "random", "MF (BPR)"):.3f}, ItemKNN {real("ml-100k", "random", "ItemKNN"):.3f}, popularity
{real("ml-100k", "random", "popularity"):.3f}. By global time it has
{row("real_logs", log="ml-100k", split="split=global_time")["warm_test_users"]} warm users and all recall intervals
overlap: no winner can be named. On KuaiRand iALS leads by either split, and ItemKNN and EASE lose to popularity.

## Rankers

Beside LightGBM on the same columns, differences in log loss by user and seed. KuaiRand
({link("rankers", "rows/KuaiRand, long_view, dcn, seed 1/auc")}): DCN-v2 of long views AUC
{ranker("KuaiRand, long_view", "dcn", "auc"):.3f} and log loss {ranker("KuaiRand, long_view", "dcn", "log_loss"):.3f},
LightGBM {ranker("KuaiRand, long_view", "LightGBM", "auc"):.3f} and
{ranker("KuaiRand, long_view", "LightGBM", "log_loss"):.3f} (difference {beside("KuaiRand, long_view", "dcn", "+.3f")});
of clicks {ranker("KuaiRand, is_click", "dcn", "auc"):.3f} and {ranker("KuaiRand, is_click", "dcn", "log_loss"):.3f}
against {ranker("KuaiRand, is_click", "LightGBM", "auc"):.3f} and
{ranker("KuaiRand, is_click", "LightGBM", "log_loss"):.3f} ({beside("KuaiRand, is_click", "dcn", "+.3f")}).

World small, settings that validation chose ({link("rankers", "rows/world small, dcn*")}): DCN-v2 closes
{between("{:.0%}", "rankers", "rows/world small, dcn, seed */gap_closed")} of the gap in log loss between the base rate
and the true probabilities, LightGBM {ranker("world small", "LightGBM", "gap_closed"):.0%} (log loss
{beside("world small", "dcn", "+.4f")}), FM over the same columns
{between("{:.0%}", "rankers", "rows/world small, fm, seed */gap_closed")}, factorisation of ids alone
{between("{:.0%}", "rankers", "rows/world small, mf, seed */gap_closed")}. The gap counts the position of an impression,
which Bayes knows and these columns do not.

Every ranker with its defaults, world tiny, one seed ({link("rankers", "rows/world tiny, dcn, seed 0/auc")}); one thread
beside other load, so that the speeds are only an order:

| model | log loss | AUC | gap to Bayes closed | samples/s |
|---|---|---|---|---|
{_rankers(chosen(results, "rankers", "rows/world tiny, dcn, seed 0/auc").figures["rows"])}

## Funnel

World small (two towers, iALS, tags, recent popularity and what is new, behind IVF indexes; DCN-v2 ranks;
{link("loss_budget")}): ranking the whole catalogue brings {stages["whole catalogue"]["clicks"]:.2f} clicks a visit,
ranking {stages["retrieval"]["candidates"]:,} candidates {stages["retrieval"]["clicks"]:.2f} (the retrievers know what
this ranker does not), found by indexes {stages["index"]["clicks"]:.2f}, with diversity and caps
{stages["re-ranking"]["clicks"]:.2f}, with exploration {stages["exploration"]["clicks"]:.2f}:
{stages["exploration"]["kept"]:.0%} of the whole catalogue's. The best list would bring {stages["best"]["clicks"]:.2f}.

A page of {paged["k"]} out of {paged["videos"]:,} videos, one request at a time, from the request to the list: four
sources of candidates, features on the spot, DCN-v2 in {paged["precision"]} on all candidates, diversity, exploration
({link("funnel")}):

| candidates | p50 | p99 | the bare forward pass | pages a second, in batches |
|---|---|---|---|---|
{_pages(paged["runs"])}

## Online lab

Experiments, {tested["tests"]:,} simulated tests of {tested["users"]:,} heavy-tailed users ({link("abtest")}): equal
arms are called different in {between("{:.1%}", "abtest", "same/*/once/share")}, by the always-valid interval at any of
{tested["same"]["looks"]} looks in {between("{:.1%}", "abtest", "same/*/sequential/share")}, by a t test at each look in
{between("{:.0%}", "abtest", "same/*/naive_peeking/share")}; intervals cover the true effect in
{between("{:.1%}", "abtest", "coverage/*/share")}; a planned power of four in five is met with
{between("{:.1%}", "abtest", "power/*/once/share")}; CUPED needs
{1 - v("abtest", "power/watch_seconds/cuped/users") / v("abtest", "power/watch_seconds/raw/users"):.0%} fewer users.

Other policies judged from {logs["logs"]} logs of world tiny ({link("offpolicy")}), {len(judged)} with an effective
sample of {span("{:.0%}", [p["ips"]["share"] for p in judged.values()])}: the root mean square error of DR is
{mean(p["dr"]["rmse"] / p["snips"]["rmse"] for p in judged.values()):.1f} of SNIPS', and
{mean(p["dr"]["rmse"] / p["naive"]["rmse"] for p in judged.values()):.0%} of the naive figure's on average; intervals
hold the truth in {span("{:.0%}", [p[e]["covered"] for p in judged.values() for e in ("ips", "snips", "dr")])}; of a
greedy policy, effective sample {greedy["share"]:.1%}, the answer is "not identifiable"
{greedy["verdicts"]["not identifiable"]} times in {logs["logs"]}.

A simulated day of world {day["world"]}, {day["users"]:,} users who make {day["mf"]["visits"]:,} visits, served by iALS
through an index: {day["mf"]["seconds"]:.0f} s ({link("simulator")}), {day["mf"]["impressions_per_second"]:,.0f}
impressions a second; the world's own policy {day["logging"]["seconds"]:.0f} s.

## Speed and memory

Ratios of one run.

- The evaluator, {evaluated["users"]:,} users x {evaluated["items"]:,} items x {evaluated["dim"]}
  ({link("evaluation")}): top-{few} of everyone with seen items masked and all metrics take
  {v("evaluation", f"ratios@{few}/to_product"):.1f} times the bare matrix product and are
  {v("evaluation", f"ratios@{few}/peers_to_evaluation"):.1f} times as fast as implicit's `recommend` plus ranx
  ({v("evaluation", f"ratios@{few}/peers_to_evaluation_with_intervals"):.1f} times with bootstrap intervals,
  {v("evaluation", f"ratios@{few}/peers_to_evaluation_with_lists"):.1f} with what the lists are like as well); at K =
  {many} {v("evaluation", f"ratios@{many}/to_product"):.1f} times the product, and
  {v("evaluation", f"ratios@{many}/peers_to_evaluation"):.1f},
  {v("evaluation", f"ratios@{many}/peers_to_evaluation_with_intervals"):.2f} and
  {v("evaluation", f"ratios@{many}/peers_to_evaluation_with_lists"):.1f} times as fast.{_memory(memory)}
- Indexes ({link("index")}): `ItemIndex` takes {between("{:.2f}", "index", "overhead/*/ratio")} times as long as faiss
  called by hand; the frontier of {len(chosen(results, "index", "frontier/*").figures["frontier"]["frontier"])} settings
  over {v("index", "vectors"):,.0f} vectors of {v("index", "dim"):.0f} takes {v("index", "frontier/seconds"):.0f} s; a
  recall that was promised from a sample of queries was kept over fresh ones in {tuned[0]} of {tuned[1]} tries, where
  choosing by the mean keeps it in {naive[0]}.
- Two equal models, {v("comparison", "pairs"):,.0f} pairs of them ({link("comparison")}), are called different in
  {v("comparison", "one_run/told_apart"):.1%} with one run each, in {v("comparison", "several_runs/told_apart"):.1%}
  with several seeds; by the bootstrap alone in {v("comparison", "bootstrap/told_apart"):.1%}.
- iALS, {v("training", "als/speed/pairs"):,.0f} pairs, {v("training", "als/dim"):.0f} dims
  ({link("training", "als/*")}): the loss of implicit's sweeps in {v("training", "als/speed/ours_cg2/ratio"):.2f} of its
  time.
- BPR training (same file): {v("training", "mf/bpr_over_peer/lenskit"):.1f} times LensKit's samples/s,
  {v("training", "mf/bpr_over_peer/cornac"):.1f} times Cornac's, {v("training", "mf/bpr_over_peer/implicit"):.2f} times
  implicit's; Lightning adds {lightning["bpr"]:+.0%} to a plain loop of BPR, {lightning["softmax"]:+.0%} to one of
  softmax.
- The engine against the same steps in a plain loop ({link("training", "models/*")}): every model keeps
  {between("{:.2f}", "training", "models/models/*/engine_over_plain")} of its samples/s; against a loader of single rows
  {between("{:.1f}", "training", "models/models/*/engine_over_row_loader")} times.
- {streamed["rows"]:,} impressions of world {streamed["world"]}, learnt from by BPR while they are generated, on no disk
  ({link("training", "stream/*")}): {streamed["seconds"]:.0f} s. The tables of {table["rows_that_fit"] / 1e6:.0f}
  million users and items fit in {table["free_gigabytes"]:.0f} GB with all that training needs
  ({table["verified"]["rows"] / 1e6:.0f} million were made and took a step).
- The world ({link("world")}): {world["rows_per_second"] / 1e6:.1f} million impressions a second as a frame with all
  columns; {world["stream_large"]["rows"] / 1e6:.0f} million streamed in {world["stream_large"]["peak_bytes"] / 1e9:.1f}
  GB; writing a part costs {world["writing"]["ratio"]:.1f} times what Polars takes for the same frame;
  {world["write_youtube"]["rows"] / 1e6:.0f} million rows of world youtube in
  {world["write_youtube"]["peak_bytes"] / 1e9:.2f} GB.
- Hashing ({link("hashing", "int64/*")}): {v("hashing", "int64/rows_per_second/ours") / 1e6:.0f} million int64 a second,
  {v("hashing", "int64/ours_over_pandas"):.1f} times `pandas.util.hash_array` and
  {v("hashing", "int64/ours_over_copy"):.2f} of a plain copy; text
  {v("hashing", "text/ours_over_polars_hash_by_hand"):.2f} of polars-hash called by hand and
  {v("hashing", "text/ours_over_feature_hasher"):.0f} times scikit-learn's `FeatureHasher`.
- Features ({link("features")}): {features["world"]["rows"] / 1e6:.0f} million rows of world
  {features["world"]["world"]} from Parquet, {features["world"]["columns"]} inputs with a history, fitted and
  transformed in {features["world"]["fit_seconds"] + features["world"]["transform_seconds"]:.0f} s with
  {features["world"]["peak_bytes"] / 1e9:.1f} GB; KuaiRand's {features["kuairand"]["rows"]:,} rows and
  {features["kuairand"]["columns"]} inputs in
  {features["kuairand"]["fit_seconds"] + features["kuairand"]["transform_seconds"]:.1f} s; one request of those in
  {features["kuairand"]["request_ms_p50"]:.0f} ms.

{of_gpus(results, folder)}
""")


def _wrapped(text: str) -> str:
    """Paragraphs and items of lists in lines of 120 columns; tables and headings as they are."""
    blocks = []
    for block in text.split("\n\n"):
        if block.lstrip().startswith(("|", "#")):
            blocks.append(block.strip())
            continue
        items = re.split(r"\n(?=- )", " ".join(block.split()) if not block.startswith("- ") else block.strip())
        filled = [
            textwrap.fill(
                " ".join(item.split()), 120, subsequent_indent="  " if item.startswith("- ") else "",
                break_long_words=False, break_on_hyphens=False,
            )
            for item in items
        ]  # fmt: skip
        blocks.append("\n".join(filled))
    return "\n\n".join(blocks) + "\n"


def of_gpus(results: Sequence[Result], folder: str = "../benchmarks/results") -> str:
    """Whether any figure comes from a GPU, and from which files."""
    files = [result for result in results if result.on_gpu]
    if not files:
        return (
            "No figure here comes from a GPU: the code is device-agnostic, its kernels are compiled for sm_80 and "
            "sm_90 by the tests, and no result file holds a run on one yet."
        )
    named = ", ".join(f"`{result.path.name}`" for result in files)
    said = f"Figures from GPUs are in {named}: see [benchmarks/results]({folder}/README.md)."
    return " ".join([*_at_scale(results), said])


def _at_scale(results: Sequence[Result]) -> Iterator[str]:
    """How far a GPU goes, in sentences, of those files that there are."""

    def figures(benchmark: str, pattern: str) -> tuple[dict[str, Any], str]:
        file = chosen(results, benchmark, pattern, on_gpu=True)
        return file.figures, file.manifest["hardware"]["gpu"]

    with suppress(ValueError):
        world, gpu = figures("gpu", "world/rows_per_second")
        yield f"One {gpu} makes {world['world']['rows_per_second'] / 1e6:,.0f} million rows of world large a second."
    with suppress(ValueError):
        scale, gpu = figures("training", "stream/seconds")
        stream, table = scale["stream"], scale["table"]
        yield (
            f"On one {gpu}, {stream['rows'] / 1e9:.1f} billion impressions are generated and learnt from in "
            f"{stream['seconds']:.0f} s, and tables of {table['verified']['rows'] / 1e6:,.0f} million users and items "
            f"took a step ({table['rows_that_fit'] / 1e6:,.0f} million would fit)."
        )
    with suppress(ValueError):
        page, gpu = figures("youtube_scale", "scores_per_second")
        yield (
            f"All videos of a world of {page['users'] / 1e6:,.0f} million users and {page['videos'] / 1e6:,.1f} "
            f"million videos are ranked exactly, with all metrics, at {page['scores_per_second'] / 1e9:,.0f} billion "
            f"scores a second, {page['share_of_product']:.0%} of the bare product ({gpu})."
        )


def _videos(results: Sequence[Result]) -> int:
    rows = chosen(results, "defaults", "collisions/*").figures["collisions"]
    return sorted(row["num_buckets"] for row in rows if row["num_buckets"])[1]


def _retrievers(rows: Sequence[dict[str, Any]]) -> str:
    return "\n".join(
        f"| {NAMES[row['model']]} | {row['recall@20']:.3f} | {row['of_oracle']:.0%} | {row['clicks']:.2f} "
        f"| {row['of_best']:.0%} |"
        for row in rows
    )


def _rankers(rows: Sequence[dict[str, Any]]) -> str:
    """LightGBM's share of the gap is its log loss against those of the base rate and of Bayes in the other rows."""
    bayes = next(row["bayes_log_loss"] for row in rows if row.get("bayes_log_loss"))
    lines = []
    for row in rows:
        if row["log"] != "world tiny" or row.get("auc") is None or row["model"] == "mf":
            continue
        base = row["log_loss"] / row["normalised_cross_entropy"]
        gap = (base - row["log_loss"]) / (base - bayes)
        speed = f"{row['samples_per_second']:,.0f}" if "samples_per_second" in row else ""
        lines.append(f"| {NAMES[row['model']]} | {row['log_loss']:.4f} | {row['auc']:.3f} | {gap:.0%} | {speed} |")
    return "\n".join(lines)


def _pages(runs: dict[str, Any]) -> str:
    return "\n".join(
        f"| {int(number):,} | {run['one_by_one']['p50_ms']:.0f} ms | {run['one_by_one']['p99_ms']:.0f} ms "
        f"| {min(run['forward_ms'].values()):.0f} ms | {run['batched']['per_second']:.0f} |"
        for number, run in runs.items()
    )


def _memory(rows: Sequence[dict[str, Any]] | None) -> str:
    """What the evaluator adds at its peak, where the file says it."""
    if not rows:
        return ""
    few, many = rows
    times = many["users"] // few["users"]
    return f" At its peak it adds {few['added_mb']:.0f} MB, for {times} times as many users {many['added_mb']:.0f} MB."
