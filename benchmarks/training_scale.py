"""How much: a log that is generated while it is learnt from, and the largest table that fits.

Part of bench_training.py, which sets the thread counts before this is imported.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys import config
from recsys.models.mf import MatrixFactorization
from recsys.schema import NUM_RESERVED, Schema
from recsys.threads import in_order
from recsys.world import logs, writer

DIM, BATCH, STEPS = 64, 8192, 32
SETTINGS: dict[str, Any] = {"loss": "bpr", "negatives": "uniform", "embedding_dim": DIM, "batch_size": BATCH}
A_ROW = 4 * (DIM + 2) + 4 + 24  # bytes: a row with biases, its accumulator, counts, decay and what draws are made by


def stream(rows: int) -> dict[str, Any]:
    """Impressions of a synthetic world, learnt from once as they are made, on no disk: of the smallest with so many,
    or of several months of the largest whose tables fit in half of the memory."""
    device = where()
    for name in ("small", "medium", "large", "youtube"):
        largest = config.build(config.compose("data=world", f"world={name}").world)
        if A_ROW * (largest.num_users + largest.num_videos) > free_bytes(device) / 2:
            break
        world, chosen = largest, name
        if writer.expected_rows(world) >= rows:
            break
    with device:
        model = MatrixFactorization(
            Schema.of(world.num_users + NUM_RESERVED, world.num_videos + NUM_RESERVED), **SETTINGS
        )
    model.prepare()
    model.total_steps = math.inf  # a constant rate: how many positives will come is not known
    optimizer = model.configure_optimizers()
    logs.of_block(world, 0, range(64), device)  # compiles, and fills the tables
    counts = {"rows": 0, "positives": 0, "steps": 0}
    begin, waited = time.perf_counter(), 0.0
    chunks = positives(world, rows, counts, device)
    while True:
        asked = time.perf_counter()
        chunk = next(chunks, None)
        waited += time.perf_counter() - asked
        if chunk is None:
            break
        model.train_steps({**chunk, "seed": 0, "step": counts["steps"]}, optimizer)
        counts["steps"] += len(chunk["user_idx"])
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    return {
        "world": chosen,
        **counts,
        "seconds": round(seconds, 2),
        "rows_per_second": round(counts["rows"] / seconds),
        "data_wait_share": round(waited / seconds, 3),
        "finite": bool(model.user_table.isfinite().all() & model.item_table.isfinite().all()),
    }


def positives(world: Any, rows: int, counts: dict[str, int], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Chunks of whole batches of the positives among the first `rows` impressions and the rest of their block, month
    after month; the last batch is dropped where it is not whole."""

    def made(of: tuple[Any, tuple[int, range]]) -> tuple[int, Tensor, Tensor]:
        month, block = of
        found = logs.of_block(month, *block, device)
        hit = (found["label"] == 1).nonzero()[:, 0]
        user = found["row"][hit] + block[1].start
        return len(found["label"]), user + NUM_RESERVED, found["video"][hit] + NUM_RESERVED

    kept: list[tuple[Tensor, Tensor]] = []
    months = (replace(world, noise_seed=month) for month in itertools.count(world.noise_seed))
    blocks = ((month, block) for month in months for block in logs.blocks(month, device=device))
    for count, user, item in in_order(made, blocks, 2 if device.type == "cuda" else None):
        counts["rows"] += count
        counts["positives"] += len(user)
        kept.append((user, item))
        done = counts["rows"] >= rows
        held = sum(len(part) for part, _ in kept)
        if held >= STEPS * BATCH or done:
            users, items = (torch.cat(parts) for parts in zip(*kept, strict=True))
            whole = held // BATCH * BATCH
            kept = [(users[whole:], items[whole:])]
            if whole:
                order = torch.randperm(whole, device=device)
                yield {"user_idx": users[order].view(-1, BATCH), "item_idx": items[order].view(-1, BATCH)}
        if done:
            return


def table(share: float) -> dict[str, Any]:
    """Rows of users and items, half and half, that free memory holds with all they need in training; and one step of a
    model that takes `share` of it."""
    device = where()
    free = free_bytes(device)
    side = int(share * free / A_ROW) // 2
    begin = time.perf_counter()
    with device:
        model = MatrixFactorization(Schema.of(side, side), **SETTINGS)
    model.prepare()
    model.total_steps = math.inf
    built = time.perf_counter() - begin
    optimizer = model.configure_optimizers()
    pairs = torch.randint(NUM_RESERVED, side, (2, 1, BATCH), device=device)
    before = model.user_table[pairs[0, 0]].clone()
    begin = time.perf_counter()
    loss = float(model.train_steps({"user_idx": pairs[0], "item_idx": pairs[1], "seed": 0, "step": 0}, optimizer))
    step = time.perf_counter() - begin
    return {
        "device": str(device),
        "free_gigabytes": round(free / 1e9, 2),
        "bytes_a_row": A_ROW,
        "rows_that_fit": int(0.9 * free / A_ROW),
        "verified": {
            "share": share,
            "rows": 2 * side,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds_to_build": round(built, 2),
            "seconds_of_first_step": round(step, 3),
            "learnt": math.isfinite(loss) and not torch.equal(before, model.user_table[pairs[0, 0]]),
        },
    }


def where() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else available()


def available() -> int:
    """Bytes of memory that a process can have without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/meminfo does not say how much memory is available")
