"""A search for the best values of keys, by validation: what is drawn, the study, the trials and what came of them.

A sweep's folder holds study.db (the study, in SQLite), sweep.json (what came of it, written after every trial),
sweep.svg (its picture, drawn at the end) and a run directory a trial. What trial n draws follows from (seed, n) and the
trials before it, so that a sweep that was killed and started again draws what an undisturbed one would. Of n_jobs
trials side by side, each follows those that were finished before the first of them.
"""

from recsys.sweeping.result import Sweep, sweep
from recsys.sweeping.summary import show, trials

__all__ = ["Sweep", "show", "sweep", "trials"]
