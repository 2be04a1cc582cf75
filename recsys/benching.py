"""Result files of benchmarks: how a script takes its arguments, what it writes, and how any of them is read again.

A file is one JSON object: `benchmark`, `manifest` (date, command, arguments, size, seconds, versions, git commit,
hardware, load) and the figures beside them. A figure measured several times may have `<name>_quartiles` beside it, the
first and third quartile of its repeats. Files are named `<benchmark>_<hardware>.json`; the hardware is short for what
the figures were measured on: `cpu2-epyc` (cores, processor) or `h100`. Files written before there was a manifest are
read as well, with what they know.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recsys import atomic, backend, tracking

QUARTILES = "_quartiles"
SIZES = ("full", "small")
PACKAGES = ("faiss-cpu", "faiss-gpu", "implicit", "cornac", "lenskit", "lightgbm", "ranx", "pandas", "scikit-learn")
_CPU = torch.device("cpu")
_HARDWARE = re.compile(r"^(cpu(\d+(-[a-z0-9-]+)?)?|gpu|[a-z]{1,4}\d{1,4}[a-z0-9-]*)$")
_SAYINGS = ("verdict", "advice", "example")  # words of a row that do not name it
_OLD = ("environment", "hardware", "versions", "platform", "processor", "torch_threads", "device", "machine", "torch",
        "load_before", "load_after")  # fmt: skip


class Result(NamedTuple):
    """A result file: where it lies, what it is called, what is known of its run, and its figures."""

    path: Path
    stem: str  # of its name, without the hardware: several files of one benchmark may lie side by side
    benchmark: str
    hardware: str
    manifest: dict[str, Any]
    figures: dict[str, Any]

    @property
    def on_gpu(self) -> bool:
        return not self.hardware.startswith("cpu")


def arguments(
    parser: argparse.ArgumentParser, small: Mapping[str, Any], argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse the arguments of a benchmark script, with those that all of them have.

    --out: a file, or a folder, in which the file gets its name. --size: full is the parser's own defaults, small those
    of `small`; an argument that is given goes before either.
    """
    parser.add_argument("--out", type=Path, help="the JSON file, or a folder for it; printed alone if not given")
    parser.add_argument("--size", choices=SIZES, default="full", help=f"small: {_as_words(small)}")
    if parser.parse_args(argv).size == "small":
        parser.set_defaults(**small)
    found = parser.parse_args(argv)
    found.started, found.load_before = datetime.now(UTC), _load()
    return found


def _as_words(values: Mapping[str, Any]) -> str:
    words = (
        f"--{k.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in values.items()
    )
    return " ".join(words)


def publish(
    benchmark: str,
    figures: Mapping[str, Any],
    given: argparse.Namespace,
    device: torch.device = _CPU,
    page: str | None = None,
) -> None:
    """Write the result file where --out says, and print it as one line of JSON, which is the last.

    A file that holds figures of another machine is left alone: the new one gets a number, and that is said.

    Args:
        given: what `arguments` returned.
        device: what the figures were measured on.
        page: Markdown, for a file beside the result, of the same name.
    """
    result = {"benchmark": benchmark, "manifest": manifest(given, device), **figures}
    if given.out is not None:
        ours = result["manifest"]["hardware"]
        wanted = given.out if given.out.suffix == ".json" else given.out / f"{benchmark}_{ours['name']}.json"
        path = next(p for p in _names(wanted) if not p.exists() or _is_of(p, ours))
        if path != wanted:
            sys.stdout.write(f"{wanted} holds figures of another machine and stays as it is\n")
        atomic.write_json(path, result)
        if page is not None:
            atomic.write_text(path.with_suffix(".md"), page)
        sys.stdout.write(f"{path}\n")
    sys.stdout.write(json.dumps(result, default=str) + "\n")


def _names(path: Path) -> Iterator[Path]:
    yield path
    for number in itertools.count(2):
        yield path.with_stem(f"{path.stem}-{number}")


def _is_of(path: Path, ours: Mapping[str, Any]) -> bool:
    """Whether a file holds figures of this machine; one that cannot be read is somebody else's."""
    try:
        theirs = read(path).manifest.get("hardware", {})
    except ValueError:
        return False
    alike = all(theirs.get(key) == ours[key] for key in ("processor", "cores", "gpu"))
    return alike and abs(theirs.get("memory_gb", 0) - ours["memory_gb"]) < 0.05 * ours["memory_gb"]


def manifest(given: argparse.Namespace, device: torch.device = _CPU) -> dict[str, Any]:
    """What a run of a script was: when, with which words, on what."""
    own = {k: v for k, v in vars(given).items() if k not in ("out", "size", "started", "load_before")}
    found = tracking.environment(device)
    found["packages"] |= {name: known for name in PACKAGES if (known := backend.version(name)) is not None}
    return {
        "date": given.started.isoformat(timespec="seconds"),
        "command": _command(),
        "arguments": json.loads(json.dumps(own, default=str)),
        "size": given.size,
        "seconds": round((datetime.now(UTC) - given.started).total_seconds(), 1),
        **found,
        "hardware": hardware(device),
        "load_before": given.load_before,
        "load_after": _load(),
    }


def _command() -> str:
    """As it was typed, without where the file went."""
    words = [os.path.relpath(sys.argv[0]), *sys.argv[1:]]
    if "--out" in words:
        at = words.index("--out")
        del words[at : at + 2]
    return shlex.join(["python", *(w for w in words if not w.startswith("--out="))])


def hardware(device: torch.device = _CPU) -> dict[str, Any]:
    """The machine: `name` is that of the device in use, `gpu` that of the one that is there, or None."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    found: dict[str, Any] = backend.hardware(device) | {"cores": cores(), "gpu": gpu}
    found["memory_gb"] = memory_gb()
    found["threads"] = found.pop("torch_threads")
    name = f"cpu{found['cores']}-{_slug(found['processor'])}" if device.type == "cpu" or gpu is None else _slug(gpu)
    return {"name": name.rstrip("-"), **found}


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb() -> float:
    """Of the machine."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _slug(device: str) -> str:
    """The model of a processor or GPU: "NVIDIA H100 80GB HBM3" is h100, "AMD EPYC 7763 64-Core Processor" epyc-7763."""
    text = re.sub(r"\((r|tm|c)\)|@.*", " ", device.lower())
    drop = r"nvidia|geforce|tesla|quadro|amd|intel|apple|processor|cpu|gpu|with|radeon|graphics|\d+-core|\d+gb"
    words = [word for word in re.split(r"[^a-z0-9-]+", text) if word and not re.fullmatch(drop, word)]
    if "nvidia" in text:
        words = [word for word in words if not re.fullmatch(r"hbm\w*|pcie|nvl|sxm\w*", word)]
        return "".join(words) or "gpu"
    return "-".join(words[:3])


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def quartiles(values: Sequence[float]) -> list[float]:
    """First and third quartile, of repeats."""
    if len(values) < 2:
        return [values[0]] * 2
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def read(path: Path) -> Result:
    """A result file, of today or before.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged, no JSON ({error}): run its benchmark again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object: expected the result of a benchmark")
    stem, _, last = path.stem.rpartition("_")
    if not _HARDWARE.match(last):
        stem, last = path.stem, "cpu"
    own = dict(found.get("manifest") or _of_old(found))
    last = own.get("hardware", {}).get("name", last)
    figures = {k: v for k, v in found.items() if k not in ("benchmark", "bench", "manifest")}
    if "manifest" not in found:
        figures = {k: v for k, v in figures.items() if k not in _OLD}
    return Result(path, stem, found.get("benchmark") or found.get("bench") or stem, last, own, figures)


def _of_old(found: Mapping[str, Any]) -> dict[str, Any]:
    """What files without a manifest say of their run, in its words."""
    known = dict(found.get("environment", {}))
    facts = known.get("hardware") or found.get("hardware") or {k: found[k] for k in _OLD if k in found}
    words = {"torch_threads": "threads", "machine": "platform"}
    of_machine = ("platform", "processor", "device", "gpu", *words)
    known["hardware"] = {words.get(k, k): v for k, v in facts.items() if k in of_machine}
    if "versions" in found:
        known["packages"] = known.get("packages", {}) | found["versions"]
    return known | {k: found[k] for k in ("load_before", "load_after", "command") if k in found}


def read_all(folder: Path) -> list[Result]:
    """Every result file of a folder, by name.

    Raises:
        ValueError: there is none, or one is damaged.
    """
    paths = sorted(p for p in folder.glob("*.json") if not p.stem.startswith("tuning_"))
    if not paths:
        raise ValueError(f"{folder} holds no result files: run `make bench`, or name another folder")
    return [read(path) for path in paths]


def flat(figures: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Figures by path, as "seconds@20/product"; rows of a table by the words they hold, "rows/world tiny, dcn/auc"."""
    if isinstance(figures, Mapping):
        for key, value in figures.items():
            yield from flat(value, f"{path}/{key}" if path else str(key))
    elif isinstance(figures, list) and figures and all(isinstance(row, Mapping) for row in figures):
        for label, row in labelled(figures):
            yield from flat(row, f"{path}/{label}")
    else:
        yield path, figures


def labelled(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows with what they are called: their words, seeds and lengths; what several rows share is numbered."""
    used: dict[str, int] = {}
    for row in rows:
        words = [v for k, v in row.items() if isinstance(v, str) and v and k not in _SAYINGS]
        words += [f"{k} {row[k]}" for k in ("seed", "k", "users", "candidates", "wanted") if row.get(k) is not None]
        label = ", ".join(words)
        used[label] = used.get(label, 0) + 1
        yield label if used[label] == 1 else f"{label}, {used[label]}", row
