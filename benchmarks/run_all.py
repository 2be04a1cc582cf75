"""Run every bench_*.py of this folder, one after the other, and write a page of what they found.

    python benchmarks/run_all.py [--size small] [--out runs/bench] [--only hashing index …]

What `make bench` runs. small takes about a quarter of an hour on two cores; full is what the published files were made
with and takes hours. Each script writes <benchmark>_<hardware>.json into --out, and its output to a .log beside it.
Peers that are not installed are named and left out. A script that fails does not stop the others: it is named in the
end, and the exit status is 1. The published files are in benchmarks/results: write there only what is to be published.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import page
import torch

from recsys import backend, benching

FOLDER = Path(__file__).resolve().parent
PEERS = {
    "implicit": "implicit", "cornac": "cornac", "lenskit": "lenskit", "lightgbm": "lightgbm", "ranx": "ranx",
    "pandas": "pandas", "polars-hash": "polars_hash", "scikit-learn": "sklearn", "threadpoolctl": "threadpoolctl",
}  # fmt: skip
LEAST_FOR_FULL = 20.0  # GB of memory: a table of training, and a world of a million users behind an index


def run(script: Path, size: str, out: Path) -> bool:
    """Whether a script succeeded; what it said is in its log."""
    name, began = script.stem.removeprefix("bench_"), time.perf_counter()
    print(f"{name:12} ", end="", flush=True)
    command = [sys.executable, str(script), "--out", str(out), "--size", size]
    with open(out / f"{name}.log", "w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    print(f"{time.perf_counter() - began:6.0f} s{'' if code == 0 else f'  failed, see {out / name}.log'}", flush=True)
    return code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="small")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    scripts = {path.stem.removeprefix("bench_"): path for path in sorted(FOLDER.glob("bench_*.py"))}
    parser.add_argument("--only", nargs="+", choices=scripts, default=list(scripts), metavar="BENCHMARK")
    arguments = parser.parse_args()
    machine = benching.hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"{machine['name']}: {machine['cores']} cores, {machine['memory_gb']} GB, {machine['gpu'] or 'no GPU'}")
    if arguments.size == "full" and machine["memory_gb"] < LEAST_FOR_FULL:
        parser.error(f"--size full needs {LEAST_FOR_FULL:.0f} GB of memory: say --size small")
    missing = [name for name, module in PEERS.items() if not backend.installed(module)]
    if missing:
        print(f"not installed and left out: {', '.join(missing)} (pip install -e '.[bench]')")
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = [name for name in arguments.only if not run(scripts[name], arguments.size, arguments.out)]
    if list(arguments.out.glob("*.json")):
        print(page.write(arguments.out))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
