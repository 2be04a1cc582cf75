"""recsys: a research lab for recommender systems, with an answer key.

    run = recsys.train("model=als", "data=world")
    run.metrics["test/recall@20"]
    run.recommend([17, 42], k=10)
    recsys.compare([run, other])
    recsys.evaluate(predictions, truth, seen=log)  # frames of any other tool
    recsys.Funnel.of_runs({"als": run, "tags": other}, ranker, log).recommend([17, 42])

The names below are loaded when they are first used, so that `import recsys` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.comparison import agreement, compare
    from recsys.funnel import Funnel
    from recsys.listing import runs
    from recsys.notebook import plot_curves, plot_metrics, train
    from recsys.predictions import evaluate
    from recsys.run import Run
    from recsys.run import Run as load

__version__ = "0.1.0"
__all__ = ["Funnel", "Run", "agreement", "compare", "evaluate", "load", "plot_curves", "plot_metrics", "runs", "train"]

_HOMES = {
    "Funnel": ("recsys.funnel", "Funnel"),
    "Run": ("recsys.run", "Run"),
    "agreement": ("recsys.comparison", "agreement"),
    "compare": ("recsys.comparison", "compare"),
    "evaluate": ("recsys.predictions", "evaluate"),
    "load": ("recsys.run", "Run"),
    "plot_curves": ("recsys.notebook", "plot_curves"),
    "plot_metrics": ("recsys.notebook", "plot_metrics"),
    "runs": ("recsys.listing", "runs"),
    "train": ("recsys.notebook", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recsys' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
