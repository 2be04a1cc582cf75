"""Two sets of benchmark results: what became worse beyond noise.

A figure is compared where both files have it and its name says which way is better: ratios to peers and limits,
seconds, rates, memory. Seconds, rates and memory are compared on one hardware alone, ratios on any.

The rule: a change counts that is larger than 5% and than the interquartile ranges of the repeats of both together;
where a file does not say how its repeats spread, that is larger than 10%. What was measured at another size is named
and left out.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recsys.benching import QUARTILES, Result, labelled, read, read_all

LEAST, UNKNOWN = 0.05, 0.10  # changes below which nothing counts: spread known, and not

# Patterns of parts of a path, the last before those above it: whether more is better. The first that fits decides.
RATIOS = {
    "*peers_to_*": True, "ours_over_*": True, "*engine_over_*": True, "bpr_over_peer": True, "speed_up_*": True,
    "share_of_cop*": True,
    "lightning_cost": False, "to_product": False, "over_product": False, "over_faiss_by_hand": False,
    "*_over_polars": False, "loss_over_*": False, "ratio": False, "cpu_ratio": False, "data_wait_share": False,
}  # fmt: skip
ABSOLUTE = {
    "*per_second*": True, "*_qps": True, "per_second": True,
    "seconds": False, "seconds_*": False, "seconds@*": False, "*_seconds": False, "*_ms": False, "*_ms_p*": False,
    "ms": False, "milliseconds": False, "*_mb": False, "megabytes": False, "peak_bytes": False, "*_bytes": False,
}  # fmt: skip
# Parts of paths that tell of others, peers and limits of the machine: ratios are made of them, and they are not ours.
OTHERS = ("*implicit*", "ranx", "product", "copy", "copy_*", "naive_numpy", "pandas", "polars_*", "*_polars", "polars",
          "feature_hasher", "by_hand*", "floor_seconds", "peer", "*LightGBM*", "plain", "forward_ms", "logging",
          "watch_seconds")  # fmt: skip
# Sizes of what was measured; figures beside two that differ by more than a hundredth are of different things.
SIZES = ("rows", "users", "items", "videos", "vectors", "dim", "queries", "k", "world", "pairs", "positives", "tests",
         "logs", "seeds", "threads", "columns", "factory", "search", "precision", "requests", "texts")  # fmt: skip


Pairs = dict[str, tuple[Any, Any]]  # what both files have, by path


class Change(NamedTuple):
    """One figure in two files. change: of B against A, positive is more; noise: what it must exceed to count."""

    file: str
    figure: str
    a: float
    b: float
    change: float
    noise: float
    verdict: str  # worse, better or same


def compare(a: Path, b: Path) -> tuple[list[Change], list[str]]:
    """Compare B with A.

    Args:
        a, b: two result files, or two folders of them. In folders a file meets the one of its name, else the only one
            of its benchmark.

    Returns: the changes, worse first, then better, each from the largest; and what to know first: other hardware, other
        arguments, what only one side has.

    Raises:
        ValueError: a path is missing, one is a file and the other a folder, a file is damaged, nothing can be compared.
    """
    for path in (a, b):
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder of benchmark results")
    if a.is_dir() != b.is_dir():
        raise ValueError(f"{a} and {b}: compare two files, or two folders")
    if a.is_dir():
        pairs, notes = _paired(read_all(a), read_all(b))
    else:
        pairs, notes = [(read(a), read(b))], []
        if pairs[0][0].stem != pairs[0][1].stem:
            raise ValueError(f"{a} and {b} are results of different benchmarks: {pairs[0][0].stem}, {pairs[0][1].stem}")
    changes: list[Change] = []
    machines: dict[str, list[str]] = {}
    for one, other in pairs:
        if not _same_machine(one, other):
            machines.setdefault(f"{_machine(one)} in A, {_machine(other)} in B", []).append(one.stem)
        found, said = _changes(one, other)
        changes += found
        notes += said
    hardware = [f"other hardware, {text}: only ratios are compared ({', '.join(of)})" for text, of in machines.items()]
    notes = hardware + notes
    if not changes:
        raise ValueError(f"{a} and {b} share no figure that can be compared" + "".join(f"; {n}" for n in notes))
    order = {"worse": 0, "better": 1, "same": 2}
    return sorted(changes, key=lambda c: (order[c.verdict], -abs(c.change))), notes


def _paired(ours: Sequence[Result], theirs: Sequence[Result]) -> tuple[list[tuple[Result, Result]], list[str]]:
    """Files of two folders that belong together, and a note on each that is left."""
    pairs, left = [], {result.path.name: result for result in theirs}
    alone = []
    for result in ours:
        same = [result.path.name] if result.path.name in left else [n for n, r in left.items() if r.stem == result.stem]
        if len(same) == 1:
            pairs.append((result, left.pop(same[0])))
        else:
            alone.append(f"{result.path.name}: {'several' if same else 'none'} to compare it with in B, left out")
    return pairs, alone + [f"{name}: none to compare it with in A, left out" for name in left]


def _changes(a: Result, b: Result) -> tuple[list[Change], list[str]]:
    """Of one pair of files."""
    notes, same_machine = [], _same_machine(a, b)
    theirs = b.manifest.get("arguments", {})
    for name, value in a.manifest.get("arguments", {}).items():
        if name in theirs and theirs[name] != value and name not in SIZES:
            notes.append(f"{a.stem}: other arguments, {name} {value} and {theirs[name]}")
    for side, result in (("A", a), ("B", b)):
        load, cores = result.manifest.get("load_before"), result.manifest.get("hardware", {}).get("cores")
        if isinstance(load, int | float) and cores is not None and load > cores / 2:
            notes.append(f"{a.stem}: {side} was measured beside other work, a load of {load:.1f} on {cores} cores")
    pairs: Pairs = {}
    _meet(a.figures, b.figures, "", pairs, notes, a.stem)
    changes = []
    for path, (old, new) in pairs.items():
        measured = kind(path)
        if measured is None or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in (old, new)):
            continue
        is_ratio, more_is_better = measured
        if not is_ratio and not same_machine:
            continue
        # A cost is a share that may be zero or below: what counts is what it adds to the whole.
        base, change = abs(old), new - old
        if "lightning_cost" in path:
            base = 1 + old
        if not base:
            continue
        change /= base
        spreads = [pairs[other][side] for side in (0, 1) if (other := _spread_of(path, pairs))]
        known = len(spreads) == 2
        noise = max(LEAST, sum(high - low for low, high in spreads) / base) if known else UNKNOWN
        verdict = "same" if abs(change) <= noise else "better" if (change > 0) == more_is_better else "worse"
        changes.append(Change(a.stem, path, float(old), float(new), change, noise, verdict))
    return changes, notes


def _meet(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    path: str,
    pairs: dict[str, tuple[Any, Any]],
    notes: list[str],
    stem: str,
) -> None:
    """Collect what both have by path, without what was measured at another size."""
    for name in SIZES:
        if name in a and name in b and _differ(a[name], b[name]):
            notes.append(f"{stem}: {path or 'all'} left out, {name} {a[name]} and {b[name]}")
            return
    for key, old in a.items():
        new, place = b.get(key), f"{path}/{key}" if path else key
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            _meet(old, new, place, pairs, notes, stem)
        elif _is_table(old) and _is_table(new):
            rows = dict(labelled(new))  # type: ignore[arg-type]
            for label, row in labelled(old):
                if label in rows:
                    _meet(row, rows[label], f"{place}/{label}", pairs, notes, stem)
        elif key in b:
            pairs[place] = old, new


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) > 0.01 * max(abs(a), abs(b))
    return type(a) is type(b) and not isinstance(a, Mapping | list) and a != b


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def kind(path: str) -> tuple[bool, bool] | None:
    """(is a ratio, more is better), or None for what is no measurement."""
    parts = path.split("/")[::-1]
    if any(part.endswith(QUARTILES) for part in parts):
        return None
    for names, is_ratio in ((RATIOS, True), (ABSOLUTE, False)):
        for part in parts:
            for pattern, more_is_better in names.items():
                if fnmatch.fnmatchcase(part, pattern):
                    return None if not is_ratio and _of_others(path) else (is_ratio, more_is_better)
    return None


def _of_others(path: str) -> bool:
    return any(fnmatch.fnmatchcase(part, pattern) for part in path.split("/") for pattern in OTHERS)


def _spread_of(path: str, pairs: Mapping[str, object]) -> str | None:
    """Where the quartiles of a figure are: beside it, or beside the group that it is in."""
    above, _, last = path.rpartition("/")
    return next((p for p in (f"{path}{QUARTILES}", f"{above}{QUARTILES}/{last}") if p in pairs), None)


def _same_machine(a: Result, b: Result) -> bool:
    """Whether nothing that both say of their machines differs, and they say something."""
    ours, theirs = (result.manifest.get("hardware", {}) for result in (a, b))
    shared = [k for k in ("processor", "device", "gpu", "cores", "threads") if k in ours and k in theirs]
    return bool(shared) and all(ours[k] == theirs[k] for k in shared)


def _machine(result: Result) -> str:
    facts = result.manifest.get("hardware", {})
    name = facts.get("gpu") if result.on_gpu else facts.get("processor")
    counts = [f"{k} {facts[k]}" for k in ("cores", "threads") if k in facts]
    return (name or "unknown") + (f" ({', '.join(counts)})" if counts else "")
