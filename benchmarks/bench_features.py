"""Feature pipelines: fit and transform of KuaiRand and of a world larger than memory, and the time of one request.

    python benchmarks/bench_features.py [--rows 100000000] [--log DIR] [--size small] [--out FILE]

The world's log is generated as Parquet first (--log keeps it), which is not measured. Then a process of its own scans
it, joins users and videos, fits the pipeline of configs/features/world.yaml and turns every row into tensors, batch by
batch: seconds, rows a second and peak memory, beside the time that Polars alone needs to stream the same columns past.
KuaiRand is found through RECSYS_DATA (default: ../shared/data) and left out, by name, where it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from recsys import benching, config
from recsys.data import readers
from recsys.data.rows import joined
from recsys.features import FeaturePipeline
from recsys.world import writer

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("RECSYS_DATA", ROOT.parent / "shared" / "data"))

STREAM = """
import json, sys, time
import polars as pl
from recsys import config
from recsys.data.log import Log
from recsys.data.rows import joined

folder, tables = sys.argv[1:]
pipeline = config.build(config.compose("features=world").features)
log = Log(
    "world", pl.scan_parquet(folder + "/day=*/*.parquet", hive_partitioning=False),
    users=pl.scan_parquet(tables + "/users.parquet"),
    items=pl.scan_parquet(tables + "/items.parquet").rename({"uploaded": "timestamp"}),
)
rows = joined(log, log.events)
start = time.perf_counter()
pipeline.fit(rows)
fitted = time.perf_counter()
count, size = 0, 0
for batch in pipeline.batches(rows):
    count += len(batch["item_id"])
    size += sum(tensor.nbytes for tensor in batch.values())
done = time.perf_counter()
for chunk in rows.select(*pipeline.inputs).collect_batches(chunk_size=1 << 17, engine="streaming"):
    pass
alone = time.perf_counter() - done
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({
    "rows": count, "tensor_bytes": size, "columns": len(pipeline.columns), "fit_seconds": fitted - start,
    "transform_seconds": done - fitted, "rows_per_second": count / (done - start), "polars_alone_seconds": alone,
    "transform_over_polars": (done - fitted) / alone, "peak_bytes": int(peak.split()[1]) * 1024,
}))
"""


def world(name: str, rows: int, folder: Path) -> dict[str, float]:
    """Fit and transform the first rows of a world's log from disk, in a process of its own."""
    preset = config.build(config.compose("data=world", f"world={name}").world)
    print(f"world {name}: {rows:,} rows to {folder}", file=sys.stderr)
    writer.generate(preset, folder / "log", rows=rows, tables=folder / "tables")
    command = [sys.executable, "-c", STREAM, str(folder / "log"), str(folder / "tables")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {"world": name, **json.loads(done.stdout)}


def kuairand(path: Path, repeats: int) -> dict[str, float]:
    """Fit and transform the whole log, in memory; then one request at a time."""
    log = readers.kuairand(path)
    rows = joined(log, log.events).collect()
    pipeline: FeaturePipeline = config.build(config.compose("features=kuairand").features)
    fit, transform = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        pipeline.fit(rows, past=log.past)
        fitted = time.perf_counter()
        pipeline.transform(rows)
        fit.append(fitted - start)
        transform.append(time.perf_counter() - fitted)
    requests, one = rows.sample(300, seed=0).to_dicts(), []
    serving = pipeline.trimmed()
    for request in requests:
        start = time.perf_counter()
        serving.transform(request)
        one.append(time.perf_counter() - start)
    return {
        "rows": rows.height,
        "columns": len(pipeline.columns),
        "fit_seconds": statistics.median(fit),
        "transform_seconds": statistics.median(transform),
        "request_ms_p50": 1e3 * statistics.median(one),
        "request_ms_p99": 1e3 * sorted(one)[int(0.99 * len(one))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="large")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--log", type=Path, help="keep the world's log here, and go on with one that is there")
    arguments = benching.arguments(parser, small={"rows": 1_000_000})
    result: dict[str, Any] = {}
    if (DATA / "kuairand_pure").is_dir():
        result["kuairand"] = kuairand(DATA / "kuairand_pure", arguments.repeats)
    else:
        print(f"kuairand: not found under {DATA}, left out (set RECSYS_DATA)", file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:
        result["world"] = world(arguments.world, arguments.rows, arguments.log or Path(temporary))
    benching.publish("features", result, arguments)


if __name__ == "__main__":
    main()
