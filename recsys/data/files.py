"""From a path to raw rows: which files are meant, and what their columns hold before any typing."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from recsys.data.checks import DataError, Rows, nearest, one_line
from recsys.schema import ITEM_ID, USER_ID

FORMATS = {
    ".parquet": "Parquet", ".pq": "Parquet", ".csv": "CSV", ".tsv": "TSV", ".ndjson": "NDJSON",
    ".jsonl": "NDJSON",
}  # fmt: skip
PACKED = (".gz", ".zst")


def format_of(file: Path) -> str | None:
    """Parquet, CSV, TSV or NDJSON by the suffix; .gz and .zst after a text suffix are read through."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def find_files(path: str | Path) -> tuple[list[Path], Path | None]:
    """The files a path, folder or glob stands for, sorted, and the folder that partitions start from.

    Raises:
        DataError: nothing there (the nearest name is said), no data in the folder, several formats at once,
            a file that is empty or may not be read.
    """
    path = Path(path).expanduser()
    root: Path | None = None
    if path.is_dir():
        root = path
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        files = [file for file in inside if format_of(file)]
        if not files:
            raise DataError(f"{path}: a folder without {', '.join(FORMATS)} files; name a file or another folder")
    elif glob.has_magic(str(path)) and not path.exists():
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not files:
            raise DataError(f"{path}: no file matches; check the pattern")
        root = Path(*path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))])
    else:
        files = [existing(path)]
    kinds = {format_of(file): file for file in reversed(files)}
    if None in kinds:
        raise DataError(f"{kinds[None]}: its format is unknown; the suffix should be one of {', '.join(FORMATS)}")
    if len(kinds) > 1:
        (one, first), (other, second), *_ = sorted((str(kind), file) for kind, file in kinds.items())
        raise DataError(f"{path}: mixes {one} ({first.name}) and {other} ({second.name}); name one format only")
    for file in files:
        check_readable(file)
    return files, root


def existing(path: Path) -> Path:
    """The path, or an error with the nearest name beside the first part that is missing."""
    if path.exists():
        return path
    missing = path
    while not missing.parent.exists() and missing.parent != missing:
        missing = missing.parent
    names = os.listdir(missing.parent) if missing.parent.is_dir() else []
    raise DataError(f"{missing}: no such file or folder{nearest(missing.name, names)}")


def check_readable(file: Path) -> None:
    """Raise where a file is a folder, may not be read, or has no bytes."""
    existing(file)
    if file.is_dir():
        raise DataError(f"{file}: a folder; name a file")
    if not os.access(file, os.R_OK):
        raise DataError(f"{file}: may not be read by this user; change its permissions")
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty")


def scan(file: Path, separator: str | None = None) -> pl.LazyFrame:
    """One file lazily. CSV columns come as text: `checks` decides what they are."""
    kind = format_of(file)
    if kind == "Parquet":
        return pl.scan_parquet(file, hive_partitioning=False)
    if kind == "NDJSON":
        return pl.scan_ndjson(file, infer_schema_length=None)
    return pl.scan_csv(file, separator=separator or ("\t" if kind == "TSV" else ","), infer_schema=False)


def guarded(file: Path, read: Callable[[], pl.DataFrame | pl.Schema]) -> pl.DataFrame | pl.Schema:
    """What `read` returns; what it raises becomes one line that names the file."""
    try:
        return read()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError) as error:
        kind = format_of(file) or "text"
        if "more fields" in str(error) and (row := _longest(file)):
            raise DataError(f"{file}: row {row} has more fields than the header; quote or correct it") from None
        raise DataError(f"{file}: not readable as {kind}: {one_line(error)}; is it complete?") from None


def collect(file: Path, lazy: pl.LazyFrame) -> pl.DataFrame:
    """Run a query over one file, in chunks; rows keep their order."""
    frame = guarded(file, lambda: lazy.collect(engine="streaming"))
    assert isinstance(frame, pl.DataFrame)
    return frame


def collect_text(file: Path, lazy: pl.LazyFrame) -> pl.DataFrame:
    """The same for columns of text, where those whose every value is a plain integer become Int64.

    "7" is plain; "07", "+7" and "7.0" are not, so that the text can be had back exactly. Two passes, as text
    takes several times the memory of numbers.
    """
    plain = pl.all().str.contains(r"^(0|-?[1-9][0-9]{0,17})$")
    found = collect(file, lazy.select(plain.all() & pl.all().is_not_null().any()))
    numbers = [name for name in found.columns if found[name].item()]
    return collect(file, lazy.with_columns(pl.col(numbers).cast(pl.Int64)))


def _longest(file: Path) -> int | None:
    """The first data row of a CSV or TSV file with more fields than the header, quotes aside."""
    separators = pl.col("line").str.count_matches("\t" if format_of(file) == "TSV" else ",", literal=True)
    counts = pl.scan_lines(file, name="line").select(separators).collect()["line"]
    longer = counts > counts[0]
    return longer.arg_max() if longer.any() else None


def read_rows(
    path: str | Path,
    choose: Callable[[list[str], str], list[str]],
    separator: str | None = None,
) -> tuple[Rows, tuple[Path, ...]]:
    """The chosen columns of all files a path stands for.

    Args:
        choose: from the columns of a file and its name to those wanted; raises where one is missing.

    Raises:
        DataError: see `find_files`; or a file that cannot be parsed, files that disagree, no rows at all.
    """
    files, root = find_files(path)
    frames: list[pl.DataFrame] = []
    text = format_of(files[0]) in ("CSV", "TSV")
    for file in files:
        lazy = scan(file, separator)
        schema = guarded(file, lazy.collect_schema)
        partitions = _partitions(file, root)
        added = {key: value for key, value in partitions.items() if key not in schema}
        wanted = choose([*schema, *added], str(file))
        extra = [pl.lit(str(added[name]) if text else added[name]).alias(name) for name in wanted if name in added]
        chosen = lazy.with_columns(extra).select(wanted)
        frames.append((collect_text if text else collect)(file, chosen))
        if frames[-1].columns != frames[0].columns:
            raise DataError(f"{file}: has columns {frames[-1].columns}, {files[0]} has {frames[0].columns}")
    heights = [frame.height for frame in frames]
    rows = Rows(_stack(frames, files, text), [str(file) for file in files], heights, text)
    if rows.frame.is_empty():
        raise DataError(f"{path}: no rows")
    return rows, tuple(files)


def read_fields(path: str | Path, names: Sequence[str], least: int | None = None) -> Rows:
    """Lines of fields without a header, white space between them, as rows of text under the given names.

    Args:
        least: how many fields there must be, of the names in their order; None: all. Every line has as many as the
            first.

    Errors about a row name the line it came from.
    """
    file = Path(path).expanduser()
    check_readable(file)
    lazy = pl.scan_lines(file, name="line").with_row_index("number", offset=1)
    fields = pl.col("line").str.extract_all(r"\S+").alias("fields")
    lines = collect(file, lazy.select("number", fields).filter(pl.col("fields").list.len() > 0))
    if lines.is_empty():
        raise DataError(f"{file}: no rows")
    counts = lines["fields"].list.len()
    wanted = min(max(counts[0], len(names) if least is None else least), len(names))
    wrong = counts != wanted
    if wrong.any():
        row = wrong.arg_max()
        what = f"line {lines['number'][row]} has {counts[row]} fields, wanted {', '.join(names[:wanted])}"
        raise DataError(f"{file}: {what}")
    columns = [pl.col("fields").list.get(at).alias(name) for at, name in enumerate(names[:wanted])]
    return Rows(lines.select(columns), [str(file)], [lines.height], text=True, numbers=lines["number"])


def read_lines(path: str | Path) -> tuple[Rows, int, Path]:
    """Adjacency lines "user item item …" as rows of two texts; how many lines have no item; the file.

    Errors about a row name the line it came from.
    """
    file = Path(path).expanduser()
    check_readable(file)
    words = pl.col("line").str.extract_all(r"\S+")
    lazy = pl.scan_lines(file, name="line").with_row_index("number", offset=1).with_columns(words.alias("words"))
    items = pl.col("words").list.slice(1).alias(ITEM_ID)
    users = pl.col("words").list.first().alias(USER_ID)
    lines = collect(file, lazy.select("number", users, items).drop_nulls(USER_ID))
    if lines.is_empty():
        raise DataError(f"{file}: no rows")
    bare = lines[ITEM_ID].list.len() == 0
    pairs = lines.filter(~bare).explode(ITEM_ID)
    rows = Rows(pairs.select(USER_ID, ITEM_ID), [str(file)], [pairs.height], text=True, numbers=pairs["number"])
    return rows, int(bare.sum()), file


def _stack(frames: list[pl.DataFrame], files: list[Path], text: bool) -> pl.DataFrame:
    if text:
        mixed = [name for name in frames[0].columns if any(frame[name].dtype == pl.String for frame in frames)]
        return pl.concat([frame.with_columns(pl.col(mixed).cast(pl.String)) for frame in frames])
    for frame, file in zip(frames, files, strict=True):
        for name, dtype in frame.schema.items():
            first = frames[0].schema[name]
            alike = first == dtype or pl.Null in (first, dtype)
            # Left to itself Polars would turn numbers into text where one file holds text.
            if not (alike or (dtype.is_numeric() and first.is_numeric())):
                what = f"column {name!r} is {dtype}, in {files[0]} it is {first}"
                raise DataError(f"{file}: {what}; convert one of them")
    return pl.concat(frames, how="vertical_relaxed")


def _partitions(file: Path, root: Path | None) -> dict[str, str | int]:
    """The key=value folders between the root and a file."""
    if root is None:
        return {}
    found: dict[str, str | int] = {}
    for part in file.relative_to(root).parts[:-1]:
        key, equals, value = part.partition("=")
        if equals:
            plain = value.isascii() and value.isdigit() and str(int(value)) == value
            found[key] = int(value) if plain else value
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)
