"""What a notebook calls in one line: train, resume, evaluate, load a log, make a world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import polars as pl

from recsys import config, predictions, training
from recsys.data.log import Log
from recsys.data.readers import frame
from recsys.run import Run
from recsys.scorecard import Metrics

if TYPE_CHECKING:
    from recsys.evaluation.ranking import Evaluation
    from recsys.predictions import Frame
    from recsys.world import World


def train(*overrides: str, data: object | None = None) -> Run:
    """Train and measure, as `recsys train` does with the same words.

    >>> small = ("world.num_users=200", "world.num_videos=400")
    >>> run = recsys.train("model=knn", *small, f"hydra.run.dir={folder}/knn")
    >>> 0 < run.metrics["test/recall@20"] < run.metrics["oracle/recall@20"]
    True

    Args:
        overrides: "model=als", "data=movielens", "data.path=…", "hydra.run.dir=…", …; `recsys.choices()` lists them.
        data: a Polars or pandas DataFrame, or a Log, in place of the configured data. Columns are
            user_id, item_id and, where known, timestamp and label.

    Raises:
        ValueError: an override, the data or the run directory does not fit; the message says what does.
        Interrupted: the kernel was interrupted; `resume` goes on.
    """
    cfg, run_dir = config.compose_run(*overrides)
    return training.train(cfg, run_dir, data=data)


def resume(run_dir: Path | str, data: object | None = None) -> Run:
    """Go on with a run that was stopped; it ends in the same bits as one that never was.

    >>> recsys.resume(path)
    Traceback (most recent call last):
    ValueError: ... holds a finished run: ...

    Args:
        data: the data frame or Log that it was trained on, where it was one.

    Raises:
        ValueError: the directory holds no run, or a finished one, or the data are not those of the run.
    """
    return training.resume(Path(run_dir), data)


@overload
def evaluate(what: Run | Path | str, *changes: str, data: object | None = None) -> Metrics: ...
@overload
def evaluate(
    what: Frame,
    truth: Frame,
    *,
    seen: Frame | None = None,
    catalogue: Sequence[Any] | pl.Series | None = None,
    k: Sequence[int] = (10, 20, 100),
    seed: int = 0,
    num_replicates: int = 1000,
    confidence: float = 0.95,
) -> Evaluation: ...
def evaluate(what: Any, *given: Any, data: object | None = None, **options: Any) -> Metrics | Evaluation:
    """Measure a finished run again, or what any other tool predicted.

    >>> recsys.evaluate(run, "evaluation.k=[5]")["test/hit@5"] <= run.metrics["test/hit@20"]
    True
    >>> lists = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [7, 8, 9], "rank": [1, 2, 1]})
    >>> truth = pl.DataFrame({"user_id": [1, 2], "item_id": [8, 7]})
    >>> recsys.evaluate(lists, truth, k=[2]).metrics["recall@2"]
    0.5

    Args:
        what: a run or its directory; or the predictions, see `recsys.predictions.evaluate`.
        given: of a run changes, such as "evaluation.k=[5]" or "queries=next_in_session"; of predictions the truth.
        data: the data frame or Log that a run was trained on, where it was one.
        options: of predictions: seen, catalogue, k, seed, num_replicates, confidence.

    Raises:
        ValueError: there is no finished run, a change names no key, the data are not those of the run; or as
            `recsys.predictions.evaluate`.
    """
    if isinstance(what, Run | Path | str):
        path = what.path if isinstance(what, Run) else Path(what)
        return Metrics(training.evaluate(path, given, data, **options))
    if data is not None:
        raise ValueError("data is for runs: give the truth, and what was seen before as seen=…")
    return predictions.evaluate(what, *given, **options)


def load_data(*overrides: str, data: object | None = None) -> Log:
    """The log that `train` would learn from with the same words.

    >>> log = recsys.load_data("data=world", "world.num_users=200", "world.num_videos=400")
    >>> log
    Log(tiny: ... rows, ... positives, ... users, ... items)
    >>> log.events.collect().columns[:4]
    ['user_id', 'item_id', 'timestamp', 'label']

    Args:
        data: a Polars or pandas DataFrame, in place of the configured data.

    Raises:
        ValueError: an override or the data do not fit.
    """
    if data is not None:
        return frame(data)
    return config.build(config.compose(*overrides).data)


def make_world(preset: str = "tiny", **constants: Any) -> World:
    """A world whose truth is known: a preset of configs/world with some constants changed.

    >>> world = recsys.make_world("tiny", num_users=200, num_videos=400)
    >>> world
    World(tiny, homepage: 200 users x 400 videos x 30 days from 2026-01-05, seed 0, noise_seed 0)
    >>> world.users().height, world.videos().columns[:2]
    (200, ['item_id', 'topic'])
    >>> one = world.log(days=range(1)).head(1)
    >>> float(world.relevance(one["user_id"], one["item_id"])[0]) < 1
    True

    Args:
        constants: see `recsys.choices("world=tiny")`.

    Raises:
        ValueError: no such preset or constant, or one that makes no sense.
    """
    words = [f"world={preset}", *(f"world.{name}={value}" for name, value in constants.items())]
    return config.build(config.compose("data=world", *words).world)
