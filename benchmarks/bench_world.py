"""The synthetic world: impressions a second in memory and as a stream, writing against Polars, and peak memory.

    python benchmarks/bench_world.py [--world small] [--rows 100000000] [--size small] [--out FILE]

Writing is compared with Polars on the same ready frame: zstd, statistics, to the same disk, in turns; the difference is
the digest of the content, fsync and the rename. Peak memory is that of a process of its own which streams --rows
impressions of world large, and of one that writes --write-rows of world youtube. The GPU figure, where there is a
GPU, stands beside the bandwidth of a device copy.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from recsys import benching, config
from recsys.world import World, logs, writer
from recsys.world.population import users

MEMORY = """
import sys, tempfile, time
from recsys import config
from recsys.world import logs, writer
name, rows, write = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "write"
world = config.build(config.compose("data=world", f"world={name}").world)
start, count = time.perf_counter(), 0
if write:
    with tempfile.TemporaryDirectory() as folder:
        count = writer.generate(world, folder + "/log", rows=rows)["rows"]
else:
    for block in logs.stream(world):
        count += len(block["label"])
        if count >= rows:
            break
seconds = time.perf_counter() - start
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss counts the parent's
print(count, seconds, int(peak.split()[1]) * 1024)
"""


def preset(name: str) -> World:
    return config.build(config.compose("data=world", f"world={name}").world)


def rate(world: World, repeats: int) -> list[float]:
    """Rows a second of the whole log as a frame, all columns, of each repeat."""
    logs.log(world, days=range(1))
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        rows = logs.log(world).height
        rates.append(rows / (time.perf_counter() - start))
    return rates


def writing(world: World, repeats: int) -> dict[str, Any]:
    """Seconds to write one part of ours, and by Polars alone, in turns."""
    rows = logs.log(world, days=range(1), numbers=range(min(world.num_users, writer.USERS_A_PART)))
    seconds: dict[str, list[float]] = {"ours": [], "polars": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(2 * repeats + 2):
            which = ("ours", "polars")[turn % 2]
            path = Path(folder) / f"{turn}.parquet"
            start = time.perf_counter()
            if which == "ours":
                writer.write_frame(path, rows)
            else:
                rows.write_parquet(path, compression="zstd", statistics=True)
            if turn > 1:
                seconds[which].append(time.perf_counter() - start)
            path.unlink()
    ours, polars = (statistics.median(seconds[name]) for name in ("ours", "polars"))
    each = [a / b for a, b in zip(seconds["ours"], seconds["polars"], strict=True)]
    found = {"rows": rows.height, "seconds": ours, "seconds_polars": polars, "ratio": ours / polars}
    return found | {"ratio_quartiles": benching.quartiles(each)}


def memory(name: str, rows: int, how: str) -> dict[str, float]:
    """Rows, rows a second and peak bytes of a process of its own."""
    command = [sys.executable, "-c", MEMORY, name, str(rows), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, seconds, peak = done.stdout.split()
    return {"rows": int(count), "rows_per_second": int(count) / float(seconds), "peak_bytes": int(peak)}


def on_gpu(world: World) -> dict[str, float]:
    """Rows a second streamed into device memory, beside the bandwidth of a copy."""
    who = users(world, torch.arange(min(world.num_users, 1 << 20), device="cuda"))
    logs.impressions(world, 0, who)
    torch.cuda.synchronize()
    start, count = time.perf_counter(), 0
    for day in range(world.num_days):
        count += len(logs.impressions(world, day, who)["label"])
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    block = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    other = torch.empty_like(block)
    other.copy_(block)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        other.copy_(block)
    torch.cuda.synchronize()
    return {"rows_per_second": count / seconds, "copy_bytes_per_second": 20 * 2**30 / (time.perf_counter() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="small")
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--write-rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = benching.arguments(parser, small={"rows": 5_000_000, "write_rows": 1_000_000, "repeats": 3})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = rate(preset(arguments.world), arguments.repeats)
    result: dict[str, Any] = {
        "world": arguments.world,
        "rows_per_second": statistics.median(rates),
        "rows_per_second_quartiles": benching.quartiles(rates),
        "writing": writing(preset("large"), arguments.repeats),
        "stream_large": memory("large", arguments.rows, "stream"),
        "write_youtube": memory("youtube", arguments.write_rows, "write"),
    }
    if device.type == "cuda":
        result["gpu"] = on_gpu(preset("large"))
    benching.publish("world", result, arguments, device)


if __name__ == "__main__":
    main()
