"""recsys: a research lab for recommender systems, with an answer key.

    run = recsys.train("model=als", "data=world")
    run.metrics["test/recall@20"]
    run.recommend([17, 42], k=10)
    recsys.compare([run, other])
    recsys.evaluate(run, "evaluation.k=[5]")
    recsys.evaluate(predictions, truth, seen=log)  # frames of any other tool
    recsys.settings("model=als"), recsys.choices("model")  # what a run would be, and what it could be
    recsys.load_data("data=movielens", "data.path=…"), recsys.make_world("tiny").log()
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
    from recsys.notebook import evaluate, load_data, make_world, resume, train
    from recsys.overrides import choices, settings
    from recsys.plots import plot_curves, plot_metrics
    from recsys.run import Run
    from recsys.run import Run as load
    from recsys.sweeping.result import sweep

__version__ = "0.1.0"
__all__ = [
    "Funnel",
    "Run",
    "agreement",
    "choices",
    "compare",
    "evaluate",
    "load",
    "load_data",
    "make_world",
    "plot_curves",
    "plot_metrics",
    "resume",
    "runs",
    "settings",
    "sweep",
    "train",
]

_HOMES = {
    "Funnel": ("recsys.funnel", "Funnel"),
    "Run": ("recsys.run", "Run"),
    "agreement": ("recsys.comparison", "agreement"),
    "choices": ("recsys.overrides", "choices"),
    "compare": ("recsys.comparison", "compare"),
    "evaluate": ("recsys.notebook", "evaluate"),
    "load": ("recsys.run", "Run"),
    "load_data": ("recsys.notebook", "load_data"),
    "make_world": ("recsys.notebook", "make_world"),
    "plot_curves": ("recsys.plots", "plot_curves"),
    "plot_metrics": ("recsys.plots", "plot_metrics"),
    "resume": ("recsys.notebook", "resume"),
    "runs": ("recsys.listing", "runs"),
    "settings": ("recsys.overrides", "settings"),
    "sweep": ("recsys.sweeping.result", "sweep"),
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
