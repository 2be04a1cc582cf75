"""A sweep in a notebook: started with the words of the command line, and shown."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from recsys import reprs
from recsys.run import Run
from recsys.sweeping.summary import PLOT, drawn, number, of_test_part, read, trials

_SHOWN = 5  # trials


class Sweep:
    """What came of a sweep, read from its folder.

    Attributes:
        dir: the folder. metric: what chose, such as val/ndcg@10. command: the command line of the best trial.

    Raises:
        ValueError: the folder holds no sweep, or none of its trials has come to its end.
    """

    def __init__(self, dir: Path | str) -> None:
        self.dir = Path(dir)
        self._found = read(self.dir)
        if self._found["best"] is None:
            raise ValueError(f"{dir}: no trial of this sweep has come to its end")
        self.metric: str = self._found["metric"]
        self.command: str = self._found["command"]

    @cached_property
    def trials(self) -> pl.DataFrame:
        """One row a trial; see `recsys.sweeping.trials`."""
        return trials(self.dir)

    @cached_property
    def best(self) -> Run:
        """The run that is best by validation."""
        return Run(self.trials.filter("best")["path"].item())

    def __repr__(self) -> str:
        best = self.trials.filter("best").row(0, named=True)
        count = f"{len(self.trials)} trials, best {self.metric} {best['value']:.4f}"
        return f"Sweep({str(self.dir)!r}): {count} by {best['model']}, trial {best['trial']}"

    def _repr_html_(self) -> str:
        complete = [trial for trial in self._found["trials"] if trial["state"] == "complete"]
        sign = 1 if self._found["direction"] == "minimize" else -1
        complete.sort(key=lambda trial: (sign * trial["value"], trial["trial"]))
        test = of_test_part(self.metric)
        rows = [[t["trial"], drawn(t), *map(number, (t["value"], t["test"].get(test)))] for t in complete[:_SHOWN]]
        counts = self.trials["state"].value_counts().sort("count", descending=True)
        states = [f"{count} {state}" for state, count in counts.iter_rows()]
        parts = [reprs.line(states), reprs.table(["trial", "parameters", self.metric, test], rows, left=2)]
        parts.append(reprs.Markup(f"<code>{reprs.text(self.command)}</code>"))
        if (plot := self.dir / PLOT).exists():
            parts.append(reprs.Markup(f"<div>{plot.read_text(encoding='utf-8')}</div>"))
        return reprs.page(self.dir, *parts)


def sweep(*words: str, n_trials: int | None = None, dir: Path | str | None = None) -> Sweep:
    """Search for the best values by validation, as `recsys train -m sweep=optuna` does with the same words; one that is
    there goes on.

    >>> small = ("world.num_users=200", "world.num_videos=400", "trainer=cpu")
    >>> found = recsys.sweep("model=als", *small, n_trials=2, dir=folder / "sweep")
    >>> found.best.metrics[found.metric] == found.trials["value"].max()
    True

    Args:
        words: "model=als,mf", "model.lr=interval(0.1,1)", "hydra.sweeper.n_jobs=4", …
        n_trials: in all, those before a second start included; hydra.sweeper.n_trials.
        dir: the folder; hydra.sweep.dir.

    Raises:
        ValueError: a word, the space or the folder does not fit; the message says what does.
        Interrupted: the same call goes on.
    """
    from hydra_plugins.recsys_optuna import search

    settings: dict[str, Any] = {"hydra.sweeper.n_trials": n_trials, "hydra.sweep.dir": dir}
    given = [f"{key}={value}" for key, value in settings.items() if value is not None]
    return Sweep(search(["sweep=optuna", *words, *given]))
