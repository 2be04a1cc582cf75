"""Matrix factorisation: what Lightning costs over a plain loop, and BPR samples/s beside the peers'.

Part of bench_training.py, which sets the thread counts before this is imported.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from recsys import benching
from recsys.data.batches import PairBatches
from recsys.models.mf import MatrixFactorization
from recsys.schema import NUM_RESERVED, Interactions, Schema

# Of MovieLens 1M with ratings >= 3 and a random 80%.
USERS, ITEMS, POSITIVES, DIM = 6040, 3706, 670_000, 64
SETTINGS: dict[str, dict[str, Any]] = {
    "softmax": {},
    # What the peers train: no biases, uniform negatives; in LensKit's batches.
    "bpr": {"loss": "bpr", "biases": False, "negatives": "uniform", "batch_size": 8192},
}


def bench(repeats: int = 5, epochs: int = 1, threads: int = 2) -> dict[str, Any]:
    """Interleaved repeats, medians. A sample is one positive with its negative."""
    interactions = make_log()
    loops = {}
    for name, settings in SETTINGS.items():
        loops[f"{name}/plain"] = plain_loop(interactions, settings)
        loops[f"{name}/lightning"] = lightning_loop(interactions, settings)
    peers = {"implicit": implicit_bpr, "cornac": cornac_bpr, "lenskit": lenskit_bpr}
    left_out = [name for name in peers if importlib.util.find_spec(name) is None]
    for name, make in peers.items():
        if name not in left_out:
            loops[f"peer/{name}"] = make(interactions, threads)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for loop in loops.values():
        loop(1)  # compilation, first pages
    for _ in range(repeats):
        for name, loop in loops.items():
            torch.set_num_threads(threads)  # LensKit takes one, and leaves it at that
            seconds[name].append(loop(epochs))
    rate = {name: epochs * len(interactions) / statistics.median(values) for name, values in seconds.items()}
    bpr = rate["bpr/lightning"]
    return {
        "log": {"users": USERS, "items": ITEMS, "positives": len(interactions), "embedding_dim": DIM},
        "repeats": repeats,
        "million_samples_per_second": {name: round(value / 1e6, 3) for name, value in rate.items()},
        # By pairs of neighbouring repeats: load on the machine then weighs on both alike.
        "lightning_cost": {name: round(statistics.median(costs(seconds, name)), 4) for name in SETTINGS},
        "lightning_cost_quartiles": {name: benching.quartiles(costs(seconds, name)) for name in SETTINGS},
        "bpr_over_peer": {name: round(bpr / rate[f"peer/{name}"], 2) for name in peers if name not in left_out},
        "bpr_over_peer_quartiles": {
            name: benching.quartiles(
                [a / b for a, b in zip(seconds[f"peer/{name}"], seconds["bpr/lightning"], strict=True)]
            )
            for name in peers
            if name not in left_out
        },
        "peers_left_out": left_out,
    }


def costs(seconds: dict[str, list[float]], name: str) -> list[float]:
    """What Lightning adds to the plain loop, as a share of it, in each of the repeats."""
    pairs = zip(seconds[f"{name}/lightning"], seconds[f"{name}/plain"], strict=True)
    return [ours / plain - 1 for ours, plain in pairs]


def make_log() -> Interactions:
    """Pairs whose users and items are drawn by bounded power laws."""
    rng = np.random.default_rng(0)
    user_weight = rng.pareto(1.5, USERS) + 0.3
    item_weight = 1 / (np.arange(ITEMS) + 20)
    draws = int(POSITIVES * 1.8)
    user = rng.choice(USERS, draws, p=user_weight / user_weight.sum())
    item = rng.choice(ITEMS, draws, p=item_weight / item_weight.sum())
    pairs = rng.permutation(np.unique(user * ITEMS + item))[:POSITIVES]
    return Interactions.from_pairs(
        torch.from_numpy(pairs // ITEMS + NUM_RESERVED),
        torch.from_numpy(pairs % ITEMS + NUM_RESERVED),
        num_rows=USERS + NUM_RESERVED,
        num_items=ITEMS + NUM_RESERVED,
    )


def make_model(interactions: Interactions, settings: dict[str, Any]) -> tuple[MatrixFactorization, PairBatches]:
    schema = Schema.of(interactions.num_rows, interactions.num_items)
    model = MatrixFactorization(schema, embedding_dim=DIM, max_epochs=1000, **settings)
    model.observe(interactions)
    return model, PairBatches(interactions, model.batch_size, seed=0)


def plain_loop(interactions: Interactions, settings: dict[str, Any]) -> Callable[[int], float]:
    """The same steps without Lightning."""
    model, batches = make_model(interactions, settings)
    optimizer = model.configure_optimizers()

    def run(epochs: int) -> float:
        begin = time.perf_counter()
        for epoch in range(epochs):
            for chunk in batches.chunks(epoch):
                model.train_steps(chunk, optimizer)
        return time.perf_counter() - begin

    return run


def lightning_loop(interactions: Interactions, settings: dict[str, Any]) -> Callable[[int], float]:
    """Through Trainer.fit, from the start of the first epoch to the end of the last."""
    model, batches = make_model(interactions, settings)

    class Clock(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 0:
                self.begin = time.perf_counter()

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.seconds = time.perf_counter() - self.begin

    def run(epochs: int) -> float:
        clock = Clock()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, batches)
        return clock.seconds

    return run


def implicit_bpr(interactions: Interactions, threads: int) -> Callable[[int], float]:
    from implicit.bpr import BayesianPersonalizedRanking
    from scipy.sparse import csr_matrix

    matrix = csr_matrix(interactions.to_scipy())

    def run(epochs: int) -> float:
        def fit(iterations: int) -> None:
            model = BayesianPersonalizedRanking(factors=DIM, iterations=iterations, num_threads=threads, random_state=0)
            model.fit(matrix, show_progress=False)

        return net(fit, epochs)

    return run


def cornac_bpr(interactions: Interactions, threads: int) -> Callable[[int], float]:
    import cornac

    pairs = zip(interactions.row_idx().tolist(), interactions.item_idx.tolist(), strict=True)
    data = cornac.data.Dataset.build([(user, item, 1.0) for user, item in pairs], seed=0)

    def run(epochs: int) -> float:
        def fit(iterations: int) -> None:
            cornac.models.BPR(k=DIM, max_iter=iterations, num_threads=threads, seed=0).fit(data)

        return net(fit, epochs)

    return run


def lenskit_bpr(interactions: Interactions, threads: int) -> Callable[[int], float]:
    import pandas as pd
    from lenskit.data import from_interactions_df
    from lenskit.flexmf import FlexMFImplicitScorer

    frame = pd.DataFrame({"user_id": interactions.row_idx().numpy(), "item_id": interactions.item_idx.numpy()})
    data = from_interactions_df(frame)

    def run(epochs: int) -> float:
        def fit(iterations: int) -> None:
            FlexMFImplicitScorer(preset="bpr", embedding_size=DIM, epochs=iterations).train(data)

        return net(fit, epochs)

    return run


def net(fit: Callable[[int], None], epochs: int, extra: int = 5) -> float:
    """Seconds of `epochs` epochs without the preparation around them: from fits of 1 and of 1 + extra."""
    times = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for iterations in (1, 1 + extra):
            begin = time.perf_counter()
            fit(iterations)
            times.append(time.perf_counter() - begin)
    return epochs * (times[1] - times[0]) / extra
