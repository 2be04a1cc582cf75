"""Five retrievers on two real logs, by global time and by random split, five seeds: one table.

    python benchmarks/bench_real_logs.py [--models iALS …] [--seeds 5] [--runs DIR] [--size small] [--out FILE]

Every run is a `recsys train -m …` of the command line with the models' defaults, nothing tuned. Logs are found through
RECSYS_DATA (default: ../shared/data); those that are not there are named and left out.
The last line is one JSON object; --out writes it and a page of tables, a .md with the same name.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

from recsys import benching
from recsys.comparison import compare
from recsys.run import Run

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("recall@20", "precision@20", "ndcg@20", "recall@100")
MODELS = {
    "popularity": "model=popularity",
    "popularity, last 7 days": "model=popularity model.window_days=7",
    "ItemKNN": "model=knn",
    "EASE": "model=ease",
    "iALS": "model=als",
    "MF (softmax)": "model=mf",
    "MF (BPR)": "model=mf model.loss=bpr",
}


def logs(data: Path) -> dict[str, list[str]]:
    """The overrides that read each log."""
    kuairand = data / "kuairand_pure" / "log_standard_20220425_20220504.parquet"
    return {
        "ml-100k": ["data=movielens", f"data.path={data / 'ml-100k'}"],
        "KuaiRand": ["data=table", f"data.path={kuairand}", "data.columns.label=long_view"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, help="keep the runs here, and go on with those that are finished")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = benching.arguments(parser, small={"seeds": 2, "models": ["popularity", "EASE", "iALS"]})
    data = Path(os.environ.get("RECSYS_DATA", ROOT.parent / "shared" / "data"))
    tables = []
    with tempfile.TemporaryDirectory() as temporary:
        for log, reader in logs(data).items():
            if not Path(reader[1].partition("=")[2]).exists():
                print(f"{log}: not found under {data}, left out (set RECSYS_DATA)")
                continue
            for split in ("global_time", "random"):
                folder = (arguments.runs or Path(temporary)) / f"{log}_{split}"
                words = [*reader, f"split={split}"]
                tables.append(measure(log, words, folder, arguments.seeds, arguments.models))
    result = {
        "seeds": arguments.seeds,
        "rows": pl.concat(tables).to_dicts() if tables else [],
    }
    page = markdown(tables)
    print(page)
    benching.publish("real_logs", result, arguments, page=page)


def measure(log: str, reader: list[str], folder: Path, seeds: int, models: list[str]) -> pl.DataFrame:
    """Models on one log and split, beside iALS."""
    runs, names = [], []
    for name in models:
        sweep = folder / name
        missing = [seed for seed in range(seeds) if not (sweep / str(seed) / "metrics.json").exists()]
        if missing:
            words = [*reader, *MODELS[name].split(), f"seed={','.join(map(str, missing))}", "trainer=cpu"]
            words += [f'hydra.sweep.dir="{sweep}"', "hydra.sweep.subdir=${seed}"]
            command = [sys.executable, "-m", "recsys.cli", "train", "-m", *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = [Run(sweep / str(seed)) for seed in range(seeds)]
        runs += found
        names += [name] * seeds
        mean = sum(run.metrics["test/recall@20"] for run in found) / seeds
        seconds = sum(run.metrics["train/seconds"] for run in found) / seeds
        print(f"{log:10} {reader[-1]:20} {name:24} recall@20 {mean:.4f}  train {seconds:.1f} s", flush=True)
    warm = runs[0].manifest["evaluation"]["warm_queries"]
    table = compare(runs, METRICS, baseline="iALS", names=names)
    return table.with_columns(log=pl.lit(log), split=pl.lit(reader[-1]), warm_test_users=pl.lit(warm))


def markdown(tables: list[pl.DataFrame]) -> str:
    """One table a log and split: mean over seeds, 95% interval, paired difference to iALS."""
    lines = ["# Real logs, defaults untouched", ""]
    for table in tables:
        head = table.row(0, named=True)
        lines += [
            f"## {head['log']}, {head['split']}: {head['warm_test_users']} warm users, {head['seeds']} seeds",
            "",
            "| model | " + " | ".join(f"{metric} | − iALS" for metric in METRICS) + " |",
            "|---" * (1 + 2 * len(METRICS)) + "|",
        ]
        for label in table["label"].unique(maintain_order=True):
            cells = [label]
            for metric in METRICS:
                row = table.row(by_predicate=(pl.col("label") == label) & (pl.col("metric") == metric), named=True)
                cells.append(f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]")
                cells.append(
                    ""
                    if row["difference"] is None
                    else f"{row['difference']:+.4f} [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
                )
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines.append(
        "Values are means over seeds. Intervals are 95% and combine the bootstrap over users with the t interval over "
        "seeds; differences are paired by user and seed."
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
