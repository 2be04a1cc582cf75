"""XXH64 of integers and of text against what else hashes columns, and against a plain copy of the same bytes.

    python benchmarks/bench_hashing.py [--rows 10000000] [--texts 2000000] [--size small] [--out FILE]

The methods of a group run in turns, in an order drawn anew each time; each figure is the median. Text is of 10 to 16
bytes, as ids and tags are. scikit-learn's FeatureHasher counts buckets besides, and pandas hashes Python objects: both
get fewer rows, and rates are compared. A peer that is not installed is named and left out. Where there is a GPU, the
kernels are timed by CUDA events beside a copy on the device, by bytes read and written, and their bits are compared
with the CPU's.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import torch

from recsys import backend, benching
from recsys.features.hashing import P1, P2, P3, P4, P5_AND_SIZE, hash_column, kernels, pack_text, xxh64

PEERS = {"pandas": "pandas", "polars-hash": "polars_hash", "scikit-learn": "sklearn"}


def in_turns(methods: dict[str, tuple[int, Callable[[], object]]], repeats: int) -> dict[str, list[float]]:
    """Rows a second of each method (rows, call) in each of the repeats, after a first one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    names, order = list(methods), random.Random(0)
    for _ in range(repeats + 1):
        order.shuffle(names)  # what runs before a method leaves it a cold cache or a warm one
        for name in names:
            start = time.perf_counter()
            methods[name][1]()
            seconds[name].append(time.perf_counter() - start)
    return {name: [rows / taken for taken in seconds[name][1:]] for name, (rows, _) in methods.items()}


def naive(values: np.ndarray) -> np.ndarray:
    """XXH64 of eight bytes as one writes it first: a new array for every step."""

    def rotate(x: np.ndarray, bits: int) -> np.ndarray:
        return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))

    h = rotate(values.view(np.uint64) * P2, 31) * P1 ^ np.uint64(P5_AND_SIZE)
    h = rotate(h, 27) * P1 + P4
    h = (h ^ (h >> np.uint64(33))) * P2
    h = (h ^ (h >> np.uint64(29))) * P3
    return h ^ (h >> np.uint64(32))


def integers(rows: int, repeats: int) -> dict[str, Any]:
    """int64 columns, and the ratios to the others."""
    values = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, rows)
    target = np.empty_like(values)
    assert np.array_equal(naive(values), xxh64(values))
    methods: dict[str, tuple[int, Callable[[], object]]] = {
        "ours": (rows, lambda: xxh64(values)),
        "naive_numpy": (rows, lambda: naive(values)),
        "copy": (rows, lambda: np.copyto(target, values)),
    }
    if backend.installed("pandas"):
        import pandas as pd

        methods["pandas"] = rows, lambda: pd.util.hash_array(values)
    return compared(in_turns(methods, repeats), rows)


def ids(rows: int) -> pl.Series:
    """Text of 10 to 16 bytes."""
    numbers = 10 ** np.random.default_rng(0).uniform(4, 11, rows)
    return ("user_" + pl.Series(numbers.astype(np.int64)).cast(pl.String)).rename("id")


def text(rows: int, repeats: int) -> dict[str, Any]:
    """Columns of text, and the ratios to the others."""
    column = ids(rows)
    size = int(column.str.len_bytes().sum())
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    methods: dict[str, tuple[int, Callable[[], object]]] = {
        "ours": (rows, lambda: xxh64(column)),
        "copy": (rows, lambda: np.copyto(target, source)),
    }
    if backend.installed("polars_hash"):
        import polars_hash

        frame, hashed = column.to_frame(), polars_hash.col("id").nchash.xxhash64(seed=0)
        methods["polars_hash_by_hand"] = rows, lambda: frame.select(hashed).to_series().to_numpy()
    if backend.installed("pandas"):
        import pandas as pd

        objects = np.array(column.head(rows // 4).to_list(), object)
        methods["pandas"] = len(objects), lambda: pd.util.hash_array(objects)
    if backend.installed("sklearn"):
        from sklearn.feature_extraction import FeatureHasher

        hasher = FeatureHasher(input_type="string", alternate_sign=False)
        lists = [[value] for value in column.head(rows // 10)]
        methods["feature_hasher"] = len(lists), lambda: hasher.transform(lists)
    return compared(in_turns(methods, repeats), rows) | {"bytes": size}


def compared(rates: dict[str, list[float]], rows: int) -> dict[str, Any]:
    """The rates and ours divided by each of the others: medians, and quartiles of the repeats."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    found: dict[str, Any] = {"rows": rows, "rows_per_second": medians}
    found["rows_per_second_quartiles"] = {name: benching.quartiles(values) for name, values in rates.items()}
    for name in rates.keys() - {"ours"}:
        each = [ours / theirs for ours, theirs in zip(rates["ours"], rates[name], strict=True)]
        found |= {f"ours_over_{name}": medians["ours"] / medians[name]}
        found |= {f"ours_over_{name}_quartiles": benching.quartiles(each)}
    return found


def on_gpu(rows: int, repeats: int) -> dict[str, Any]:
    """Bytes a second, read and written, of the kernels and of a copy on the device; and whether the bits agree."""
    values = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, rows))
    column = ids(rows // 4)
    words, (starts, packed) = values.cuda(), pack_text(column, "cuda")
    copied, hashes, of_text = torch.empty_like(words), torch.empty_like(words), torch.empty_like(starts[1:])
    methods = {
        "copy": (2 * words.nbytes, lambda: copied.copy_(words)),
        "int64": (2 * words.nbytes, lambda: kernels("hash_words", len(words), words, 0, hashes)),
        "int64_seed_a_row": (3 * words.nbytes, lambda: kernels("hash_words_seeded", rows, words, copied, hashes)),
        "text": (
            starts.nbytes + packed.nbytes + of_text.nbytes,
            lambda: kernels("hash_text", len(of_text), starts, packed, 0, of_text),
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats + 3):
        for name, (_, call) in methods.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) / 1e3)
    rates = {name: size / statistics.median(times[name][3:]) for name, (size, _) in methods.items()}
    start = time.perf_counter()
    whole = hash_column(column, 0, "cuda").cpu()
    seconds = time.perf_counter() - start
    return {
        "rows": rows,
        "bytes_per_second": rates,
        "share_of_copy": {name: rate / rates["copy"] for name, rate in rates.items() if name != "copy"},
        "rows_per_second": {
            "int64": rates["int64"] / 16,
            "text": len(column) * rates["text"] / methods["text"][0],
            "text_from_polars_and_back": len(column) / seconds,
        },
        "same_bits_as_cpu": {
            "int64": bool(torch.equal(xxh64(words).cpu().view(torch.int64), xxh64(values).view(torch.int64))),
            "text": bool(torch.equal(whole, hash_column(column, 0)) and torch.equal(whole, of_text.cpu())),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--texts", type=int, default=2_000_000)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = benching.arguments(parser, small={"rows": 2_000_000, "texts": 400_000, "repeats": 9})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {
        "threads": {"torch_and_ours": torch.get_num_threads(), "polars": pl.thread_pool_size()},
        "left_out": [package for package, module in PEERS.items() if not backend.installed(module)],
        "int64": integers(arguments.rows, arguments.repeats),
    }
    if backend.installed("polars_hash"):
        result["text"] = text(arguments.texts, arguments.repeats)
    if device.type == "cuda":
        result["gpu"] = on_gpu(1 << 26, arguments.repeats)
    benching.publish("hashing", result, arguments, device)


if __name__ == "__main__":
    main()
