"""Training speed beside the peers' and beside a plain PyTorch loop, on two threads.

    python benchmarks/bench_training.py [--repeats 5] [--epochs 1] [--parts als mf models stream table]
        [--stream-rows 20000000] [--table-share 0.1] [--size small] [--out FILE]

als: seconds of iALS to implicit's loss at equal dimension (training_als.py).
mf: matrix factorisation through Lightning against the same steps in a plain loop, and BPR samples/s
    against implicit, Cornac and LensKit, on a synthetic log of MovieLens 1M's size (training_mf.py).
models: every gradient-trained model through the engine, against the same steps in a plain loop (bar: 0.95) and
    against a loader of single rows (bar on a GPU: 5), and bytes moved against copying (training_models.py).
stream: impressions of a synthetic world learnt from while they are made (training_scale.py).
table: the largest tables that fit, with one step of a share of them (training_scale.py).
The last three use a GPU where there is one.
Repeats are interleaved and figures are medians; only ratios of one run compare. Peers that are not
installed are named and left out: RecBole among them, whose current release does not import beside
current NumPy and pandas. The last line is one JSON object.
"""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "2"))
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as implicit advises; torch brings its own BLAS

import argparse
import logging
import sys
import warnings

import torch
import training_als
import training_mf
import training_models
import training_scale

from recsys import benching

THREADS = int(os.environ["OMP_NUM_THREADS"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1, help="of each timed fit")
    parts = ["als", "mf", "models", "stream", "table"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--stream-rows", type=int, default=20_000_000)
    parser.add_argument("--table-share", type=float, default=0.1, help="of free memory, for the table that is made")
    parser.add_argument("--als-users", type=int, default=30_000, help="of the log that iALS is timed on")
    parser.add_argument("--als-items", type=int, default=41_000)
    parser.add_argument("--seconds", type=float, default=1.0, help="about, of each repeat of part models")
    small = {"repeats": 3, "stream_rows": 3_000_000, "als_users": 5000, "als_items": 8000, "seconds": 0.3}
    arguments = benching.arguments(parser, small=small)
    torch.set_num_threads(THREADS)
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    result: dict = {"omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default")}
    if "als" in arguments.parts:
        result["als"] = training_als.bench(arguments.als_users, arguments.als_items)
    if "mf" in arguments.parts:
        result["mf"] = training_mf.bench(arguments.repeats, arguments.epochs, THREADS)
    if "models" in arguments.parts:
        result["models"] = training_models.bench(arguments.repeats, arguments.seconds)
    if "stream" in arguments.parts:
        result["stream"] = training_scale.stream(arguments.stream_rows)
    if "table" in arguments.parts:
        result["table"] = training_scale.table(arguments.table_share)
    on_device = {"models", "stream", "table"}.intersection(arguments.parts)
    benching.publish("training", result, arguments, training_scale.where() if on_device else torch.device("cpu"))


if __name__ == "__main__":
    sys.exit(main())
