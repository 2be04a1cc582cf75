"""The retrievers of configs/experiment beside iALS and EASE: five seeds, paired intervals, from the command line.

    python benchmarks/bench_retrievers.py [--parts small kuairand …] [--seeds 5] [--runs DIR] [--size small]
        [--out FILE]

small: world small by global time; what nobody had liked before the cut; and the next click of a visit, which the same
    weights answer. kuairand: long views by global time. ml100k_random, ml100k_last: ratings of 4 and more.
log_q: two towers on world tiny with in-batch negatives, with and without the logQ correction.
Every run is a `recsys train -m …`; settings were chosen on validation (tune_retrievers.py). Real logs are found through
RECSYS_DATA (default: ../shared/data). The last line is one JSON object; --out writes it and a page of tables, a .md
with the same name.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl
import torch

from recsys import benching, config, tasks
from recsys.comparison import compare
from recsys.data.datamodule import RecDataModule
from recsys.evaluation.estimates import estimate
from recsys.run import Run

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("RECSYS_DATA", ROOT.parent / "shared" / "data"))
METRICS = ("recall@20", "ndcg@20")
ML = f"data.path={DATA / 'ml-100k'}"
KUAIRAND = f"data.path={DATA / 'kuairand_pure'}"
IN_BATCH = "world=tiny features=world model=two_tower model.negatives=in_batch model.max_epochs=12"
PARTS: dict[str, dict[str, str]] = {
    "small": {
        "iALS": "experiment=small_als",
        "two towers": "experiment=small_two_tower",
        "SASRec": "experiment=small_sasrec",
        "tags": "world=small model=tags features=world",
        "popularity, last 7 days": "world=small model=popularity model.window_days=7",
    },
    "kuairand": {
        "iALS": f"experiment=kuairand_als {KUAIRAND}",
        "EASE": f"experiment=kuairand_ease {KUAIRAND}",
        "two towers": f"experiment=kuairand_two_tower {KUAIRAND}",
        "SASRec": f"experiment=kuairand_sasrec {KUAIRAND}",
        "popularity, last 7 days": f"data=kuairand {KUAIRAND} model=popularity model.window_days=7",
        "popularity, last day": f"data=kuairand {KUAIRAND} model=popularity model.window_days=1",
    },
    "ml100k_random": {
        "iALS": f"experiment=ml100k_als {ML}",
        "EASE": f"experiment=ml100k_ease {ML}",
        "two towers": f"experiment=ml100k_two_tower {ML}",
        "popularity": f"data=movielens {ML} data.min_rating=4 split=random model=popularity",
    },
    "ml100k_last": {
        "iALS": f"experiment=ml100k_last_als {ML}",
        "EASE": f"experiment=ml100k_last_ease {ML}",
        "SASRec": f"experiment=ml100k_last_sasrec {ML}",
        "popularity": f"data=movielens {ML} data.min_rating=4 split=leave_last_out model=popularity",
    },
    "log_q": {"with logQ": IN_BATCH, "without logQ": f"{IN_BATCH} model.log_q=none"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, help="keep the runs here, and go on with those that are finished")
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="MODEL")
    parser.add_argument("--only", nargs="+", help="train these models alone, and write nothing")
    quick = {"parts": ["ml100k_random", "ml100k_last"], "seeds": 2, "leave_out": ["SASRec", "two towers"]}
    arguments = benching.arguments(parser, small=quick)
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as temporary:
        for part in arguments.parts:
            paths = {words.partition("data.path=")[2].partition(" ")[0] for words in PARTS[part].values()} - {""}
            if missing := [path for path in paths if not Path(path).exists()]:
                print(f"{part}: {missing[0]} is not there, left out (set RECSYS_DATA)")
                continue
            folder = (arguments.runs or Path(temporary)) / part
            groups = {
                name: trained(words, folder / name, arguments.seeds)
                for name, words in PARTS[part].items()
                if name in (arguments.only or PARTS[part]) and name not in arguments.leave_out
            }
            if not arguments.only:
                rows += measured(part, groups)
    if arguments.only:
        return
    result = {"seeds": arguments.seeds, "rows": rows}
    page = markdown(rows)
    print(page)
    benching.publish("retrievers", result, arguments, page=page)


def trained(words: str, sweep: Path, seeds: int) -> list[Run]:
    """The runs of one model; those that are there are not trained again."""
    missing = [seed for seed in range(seeds) if not (sweep / str(seed) / "metrics.json").exists()]
    if missing:
        command = [sys.executable, "-m", "recsys.cli", "train", "-m", *words.split(), "trainer=cpu"]
        command += [f"seed={','.join(map(str, missing))}", f'hydra.sweep.dir="{sweep}"', "hydra.sweep.subdir=${seed}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [Run(sweep / str(seed)) for seed in range(seeds)]


def measured(part: str, groups: dict[str, list[Run]]) -> list[dict]:
    """What a page's table shows of one part, and of what else its runs are asked."""
    runs = [run for group in groups.values() for run in group]
    names = [name for name, group in groups.items() for _ in group]
    rows = []
    for beside in list(groups)[:2]:
        found = compare(runs, METRICS, baseline=beside, names=names).to_dicts()
        for row, other in zip(rows or found, found, strict=True):
            if other["difference"] is not None:
                ends = other["difference_low"], other["difference_high"]
                row[f"minus {beside}"] = (other["difference"], *ends)
        rows = rows or found
    for row in rows:
        group = groups[row["label"]]
        row["part"] = part
        row |= {
            key: sum(run.metrics[name] for run in group) / len(group)
            for key, name in (("clicks@20", "utility/clicks@20"), ("samples/s", "train/samples_per_second"))
            if name in group[0].metrics
        }
    if part == "small":
        log = config.build(runs[0].config.data)
        rows += again(f"{part}, cold items", groups, log, "users", cold=True)
        rows += again(f"{part}, next in session", groups, log, "next_in_session")
    return rows


def again(part: str, groups: dict[str, list[Run]], log: object, queries: str, cold: bool = False) -> list[dict]:
    """The same weights asked other questions, beside the first group and the second."""
    split = config.partial(next(iter(groups.values()))[0].config.split)  # of all of them
    module = RecDataModule(log, split, 0, queries=queries)  # type: ignore[arg-type]
    asked = module.test.about(module.history.item_counts() == 0) if cold else module.test
    frames: dict[str, list[pl.DataFrame]] = {}
    for name, group in groups.items():
        for run in group:
            task = tasks.Retrieval(run.config, module, torch.device("cpu"), run.manifest["seed"])
            score = run.model.to("cpu").scorer_with_fallback()
            found = task.evaluate(score=score, queries=asked, k=[20, 100], num_replicates=0)
            frames.setdefault(name, []).append(found.per_user)
    rows = []
    for metric in (*METRICS, "recall@100") if cold else METRICS:
        for name, ours in frames.items():
            value = sum(frame[metric].mean() for frame in ours) / len(ours)  # type: ignore[misc]
            row = {"part": part, "metric": metric, "label": name, "value": value, "seeds": len(ours)}
            for beside in list(frames)[:2]:
                if beside != name:
                    found = estimate(ours, metric, frames[beside])
                    row[f"minus {beside}"] = found and found[:3]
            rows.append(row)
    return rows


def markdown(rows: list[dict]) -> str:
    """One table a part."""
    lines = ["# Retrievers, settings chosen on validation", ""]
    for part in dict.fromkeys(row["part"] for row in rows):
        chosen = [row for row in rows if row["part"] == part]
        lines += [f"## {part}, {chosen[0]['seeds']} seeds", ""]
        first, second = list(dict.fromkeys(row["label"] for row in chosen))[:2]
        lines += [f"| metric | model | value | − {first} | − {second} | of the oracle | clicks@20 | samples/s |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for row in chosen:
            interval = f" [{row['low']:.4f}, {row['high']:.4f}]" if row.get("low") is not None else ""
            beside = [row.get(f"minus {name}") for name in dict.fromkeys(r["label"] for r in chosen)][:2]
            cells = ["" if d is None else f"{d[0]:+.4f} [{d[1]:+.4f}, {d[2]:+.4f}]" for d in beside]
            share = f"{row['share']:.0%}" if row.get("share") else ""
            clicks = f"{row['clicks@20']:.3f}" if "clicks@20" in row else ""
            speed = f"{row['samples/s']:,.0f}" if "samples/s" in row else ""
            cells = [row["metric"], row["label"], f"{row['value']:.4f}{interval}", *cells, share, clicks, speed]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines.append("Intervals are 95% over users and seeds; differences are paired by user and seed.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
