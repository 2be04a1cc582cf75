"""A world's log on disk, by day, resumable.

A folder holds `day=2026-01-05/part-0000000000.parquet` (zstd, with column statistics; the number is that of the part's
first user; a day's visits are those that start on it), `_schema.json` from the start and `_statistics.json` at the
end. Parts depend on the world alone, never on workers or order, and a part is whole or not there, so that the same
command goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from recsys import atomic
from recsys.threads import in_order
from recsys.world.behaviour import reach, season, sessions
from recsys.world.constants import World
from recsys.world.logs import COLUMNS, DTYPES, USERS_AT_ONCE, blocks, frame, impressions, of_block, visit
from recsys.world.population import drifted, user_numbers, user_table, users, video_numbers, video_table

VERSION = 1  # of the arithmetic and the layout: another one writes other rows
SCHEMA, STATISTICS = "_schema.json", "_statistics.json"
USERS_A_PART = 12 * USERS_AT_ONCE  # some 900,000 rows
BYTES_A_ROW = 13  # compressed, as measured


@dataclass(frozen=True)
class Part:
    """One file: the rows of some users on one day, or the first of them."""

    day: int
    users: range
    path: Path
    rows: int | None = None


def expected_rows(world: World) -> float:
    """Impressions to expect of the whole log."""
    days = sum(season(world, day) for day in range(world.num_days))
    present = 1 - world.new_user_share / 2
    return world.num_users * present * world.sessions_per_day * days * float(reach(world).sum())


def generate(
    world: World,
    path: str | Path,
    *,
    rows: int | None = None,
    workers: int | None = None,
    tables: str | Path | None = None,
    report: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Write a world's log under `path`, or go on where the same call was stopped.

    Args:
        rows: only the first so many rows, in the order of (day, user, start of visit, position).
        workers: threads; as many as PyTorch uses if None. The content does not depend on it.
        tables: a folder for users.parquet and items.parquet, what a platform knows of them: of everybody, or of who
            and what is in the log where `rows` cuts it.
        report: called as report(parts done, parts in all).

    Returns: what _statistics.json holds: rows, positives, files, bytes, content_hash, rows_by_day.
    Raises:
        ValueError: rows or workers below 1; a path that holds other files, another world, or a log that another
            version began. Nothing is overwritten.
        OSError: a file cannot be written; no half of it remains, and the same call goes on later.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"world.rows={rows}: expected at least 1")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: expected at least 1")
    path = Path(path)
    _claim(path, _schema(world, rows))
    if not (path / STATISTICS).exists():
        parts = list(_parts(world, path, rows))
        left = [part for part in parts if not part.path.exists()]
        for done, _ in enumerate(in_order(partial(_write_part, world), left, workers), len(parts) - len(left) + 1):
            if report is not None:
                report(done, len(parts))
        atomic.write_json(path / STATISTICS, _statistics(path, parts))
    if tables is not None:
        _write_tables(world, path, Path(tables), whole=rows is None)
    statistics: dict[str, Any] = json.loads((path / STATISTICS).read_text(encoding="utf-8"))
    return statistics


def _schema(world: World, rows: int | None) -> dict[str, Any]:
    dtypes = frame({name: torch.empty(0, dtype=dtype) for name, dtype in DTYPES.items()}).schema
    columns = {name: {"dtype": str(dtypes[name]), "meaning": meaning} for name, meaning in COLUMNS.items()}
    return {"format": "recsys world log", "version": VERSION, "world": asdict(world), "rows": rows, "columns": columns}


def _claim(path: Path, schema: dict[str, Any]) -> None:
    """Make the folder ours, or see that it is.

    Raises: ValueError where it is another's.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: name a folder")
    present = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    mine = (SCHEMA, STATISTICS)
    strangers = [n for n in present if n not in mine and not n.startswith(("day=", f".{SCHEMA}.", f".{STATISTICS}."))]
    for folder in sorted(path.glob("day=*")):
        own = list(folder.iterdir()) if folder.is_dir() else []
        strangers += [str(f.relative_to(path)) for f in own if not f.name.lstrip(".").startswith("part-")]
    if SCHEMA not in present and any(name.startswith("day=") for name in present):
        strangers.append(next(name for name in present if name.startswith("day=")))
    if strangers:
        raise ValueError(f"{path} holds other files ({strangers[0]}): name an empty folder or one that does not exist")
    if SCHEMA not in present:
        _clear(path)
        atomic.write_json(path / SCHEMA, schema)
        return
    try:
        before = json.loads((path / SCHEMA).read_text(encoding="utf-8"))
        version, known = before["version"], {**before["world"], "rows": before["rows"]}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path / SCHEMA} is not the schema of a generated log: name another folder") from None
    if version != schema["version"]:
        raise ValueError(
            f"{path} was begun by format version {version}, this is version {schema['version']}: name another folder"
        )
    for key, value in {**schema["world"], "rows": schema["rows"]}.items():
        if known.get(key) != value:
            raise ValueError(
                f"{path} holds another log: world.{key} is {known.get(key)} there and {value} here; name another folder"
            )

    _clear(path)


def _clear(path: Path) -> None:
    """Remove the temporary files of a call that was killed."""
    for leftover in [*path.glob("._s*.tmp"), *path.glob("day=*/.part-*.tmp")]:
        leftover.unlink()


def _parts(world: World, path: Path, rows: int | None) -> Iterator[Part]:
    left = rows
    for day in range(world.num_days):
        folder = path / f"day={date.fromisoformat(world.start) + timedelta(days=day)}"
        for low in range(0, world.num_users, USERS_A_PART):
            some = range(low, min(low + USERS_A_PART, world.num_users))
            file = folder / f"part-{low:010d}.parquet"
            if left is None:
                yield Part(day, some, file)
                continue
            there = _count(world, day, some)
            yield Part(day, some, file, min(there, left))
            left -= there
            if left <= 0:
                return


def _count(world: World, day: int, some: range) -> int:
    """Rows of a part, from its visits alone."""
    total = 0
    for _, block in blocks(world, range(day, day + 1), some):
        who = drifted(world, users(world, torch.arange(block.start, block.stop)), day)
        total += int(sessions(world, day, who)["depth"].sum())
    return total


def _write_part(world: World, part: Part) -> None:
    rows = pl.concat(
        frame(of_block(world, *block)) for block in blocks(world, range(part.day, part.day + 1), part.users)
    )
    write_frame(part.path, rows.head(part.rows) if part.rows is not None else rows)


def write_frame(path: Path, rows: pl.DataFrame) -> None:
    """Write one part, with the digest of its content and the number of its positives in the file's metadata."""
    about = {"digest": digest(rows), "positives": str(rows["label"].sum())}
    atomic.write(path, lambda file: rows.write_parquet(file, compression="zstd", statistics=True, metadata=about))


def digest(rows: pl.DataFrame) -> str:
    """SHA-256 hex of the content of a frame: names, types, values and their order, not how they lie in memory."""
    whole = hashlib.sha256()
    for column in rows.iter_columns():
        plain = column.to_physical() if column.dtype != pl.Boolean else column.cast(pl.UInt8)
        data = plain.to_numpy(writable=True).view(np.uint8)
        if data.size % 8:
            data = np.concatenate([data, np.zeros(-data.size % 8, np.uint8)])
        total = torch.zeros(1, dtype=torch.int64)
        visit("digest", 1, torch.from_numpy(data.view(np.int64)), data.size // 8, total)
        whole.update(repr((column.name, str(column.dtype), column.len(), int(total))).encode())
    return whole.hexdigest()


def _statistics(path: Path, parts: list[Part]) -> dict[str, Any]:
    whole, by_day = hashlib.sha256(), dict[str, int]()
    positives = 0
    for part in parts:
        about = pl.read_parquet_metadata(part.path)
        whole.update(about["digest"].encode())
        positives += int(about["positives"])
        count = pl.scan_parquet(part.path, hive_partitioning=False).select(pl.len()).collect().item()
        name = part.path.parent.name.removeprefix("day=")
        by_day[name] = by_day.get(name, 0) + count
    return {
        "rows": sum(by_day.values()),
        "positives": positives,
        "files": len(parts),
        "bytes": sum(os.path.getsize(part.path) for part in parts),
        "content_hash": whole.hexdigest(),
        "rows_by_day": by_day,
    }


def _write_tables(world: World, path: Path, folder: Path, whole: bool) -> None:
    people, what = None, None
    if not whole:
        log = pl.scan_parquet(path / "day=*/*.parquet", hive_partitioning=False)
        people, what = (
            numbers(world, torch.from_numpy(_unique(log, name).to_numpy(writable=True))).sort().values
            for name, numbers in (("user_id", user_numbers), ("item_id", video_numbers))
        )
    atomic.write(folder / "users.parquet", user_table(world, people).write_parquet)
    atomic.write(folder / "items.parquet", video_table(world, what).write_parquet)


def _unique(log: pl.LazyFrame, name: str) -> pl.Series:
    return log.select(pl.col(name).unique()).collect(engine="streaming")[name]


def estimate(world: World, rows: int | None, workers: int | None) -> tuple[float, float, float]:
    """Rows, bytes and seconds to expect of `generate`: the seconds from the rows of a few users, written nowhere."""
    total = expected_rows(world) if rows is None else min(float(rows), expected_rows(world))
    who = users(world, torch.arange(min(world.num_users, 2048)))
    impressions(world, 0, who)  # compiles, and fills the tables
    start = time.perf_counter()
    count = sum(frame(impressions(world, day, who)).height for day in range(min(world.num_days, 3)))
    a_row = (time.perf_counter() - start) / max(count, 1) + 2.5e-7
    return total, total * BYTES_A_ROW, total * a_row / (workers or torch.get_num_threads())
