"""The file layouts of MovieLens: which release a folder holds, its ratings as raw rows, users and films."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recsys.data.checks import DataError, Rows
from recsys.data.files import check_readable, collect, collect_text, existing, scan
from recsys.schema import ITEM_ID, TIMESTAMP, USER_ID

RATING = "rating"
FIELDS = [USER_ID, ITEM_ID, RATING, TIMESTAMP]
# u.item marks genres by 19 columns of 0 and 1; later releases write them "Comedy|Drama".
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
Layout = tuple[str, Rows, pl.LazyFrame | None, pl.LazyFrame | None, tuple[Path, ...]]


def read_layout(path: Path) -> Layout:
    """Name, ratings as text, users, films and files of the release in a folder (or one folder below it).

    Raises:
        DataError: none of u.data, ratings.dat and ratings.csv is there, or a file cannot be read.
    """
    path = existing(path.expanduser())
    folder = path if path.is_dir() else path.parent
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        for ratings, read in (("u.data", _hundred_thousand), ("ratings.dat", _dat), ("ratings.csv", _csv)):
            if (place / ratings).exists():
                check_readable(place / ratings)
                return read(place)
    raise DataError(f"{path}: no MovieLens layout here; it should hold u.data, ratings.dat or ratings.csv")


def _hundred_thousand(folder: Path) -> Layout:
    users, films = _lines(folder / "u.user", "|"), _lines(folder / "u.item", "|")
    marked = [["|".join(g for g, flag in zip(GENRES, film[5:], strict=False) if flag == "1")] for film in films or []]
    items = _films(folder / "u.item", films and [film[:2] + genres for film, genres in zip(films, marked, strict=True)])
    people = _frame(folder / "u.user", users, [USER_ID, "age", "gender", "occupation", "zip_code"], ["age"])
    file = folder / "u.data"
    lazy = pl.scan_csv(file, separator="\t", has_header=False, infer_schema=False)
    return "movielens-100k", _rows(file, lazy, [0, 1, 2, 3]), people, items, _files(file, "u.user", "u.item")


def _dat(folder: Path) -> Layout:
    users, films = _lines(folder / "users.dat", "::"), _lines(folder / "movies.dat", "::")
    people = _frame(
        folder / "users.dat",
        users,
        [USER_ID, "gender", "age", "occupation", "zip_code"],
        ["age", "occupation"],
    )
    file = folder / "ratings.dat"
    # "::" is no separator for the CSV parser; ":" is, with an empty field between.
    lazy = pl.scan_csv(file, separator=":", has_header=False, infer_schema=False, quote_char=None)
    name = "movielens-1m" if users else "movielens-10m"
    items = _films(folder / "movies.dat", films)
    return name, _rows(file, lazy, [0, 2, 4, 6]), people, items, _files(file, "users.dat", "movies.dat")


def _csv(folder: Path) -> Layout:
    file, films = folder / "ratings.csv", folder / "movies.csv"
    items = None
    if films.exists():
        check_readable(films)
        table = collect(films, scan(films))
        if not {"movieId", "title", "genres"} <= set(table.columns):
            raise DataError(f"{films}: wanted columns movieId, title, genres, found {', '.join(table.columns)}")
        items = _films(films, table.select("movieId", "title", "genres").rows())
    lazy = scan(file)
    names = lazy.collect_schema().names()
    wanted = ["userId", "movieId", "rating", "timestamp"]
    if names[:4] != wanted:
        raise DataError(f"{file}: wanted columns {', '.join(wanted)}, found {', '.join(names)}")
    return (
        f"movielens-{folder.resolve().name}",
        _rows(file, lazy, [0, 1, 2, 3]),
        None,
        items,
        _files(file, "movies.csv"),
    )


def _rows(file: Path, lazy: pl.LazyFrame, positions: list[int]) -> Rows:
    names = lazy.collect_schema().names()
    if len(names) <= positions[-1]:
        raise DataError(f"{file}: row 1 has {len(names)} fields, wanted {', '.join(FIELDS)}")
    renamed = [pl.col(names[at]).alias(field) for at, field in zip(positions, FIELDS, strict=True)]
    frame = collect_text(file, lazy.select(renamed))
    if frame.is_empty():
        raise DataError(f"{file}: no rows")
    return Rows(frame, [str(file)], [frame.height], text=True)


def _lines(file: Path, separator: str) -> list[list[str]] | None:
    """Fields of a small file; the older ones are Latin-1. None where there is no such file."""
    if not file.exists():
        return None
    check_readable(file)
    data = file.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return [line.split(separator) for line in text.splitlines() if line]


def _films(file: Path, lines: list | None) -> pl.LazyFrame | None:
    return _frame(file, lines, [ITEM_ID, "title", "genres"], [])


def _frame(file: Path, lines: list | None, names: list[str], numeric: list[str]) -> pl.LazyFrame | None:
    if lines is None:
        return None
    for number, fields in enumerate(lines, 1):
        if len(fields) != len(names):
            raise DataError(f"{file}: row {number} has {len(fields)} fields, wanted {', '.join(names)}")
        if not str(fields[0]).isdigit():
            raise DataError(f"{file}: column {names[0]!r}, row {number}: id {fields[0]!r} is not a whole number")
    frame = pl.DataFrame(lines, schema=dict.fromkeys(names, pl.String), orient="row")
    return frame.with_columns(pl.col(names[0]).cast(pl.Int64), pl.col(numeric).cast(pl.Int64, strict=False)).lazy()


def _files(ratings: Path, *others: str) -> tuple[Path, ...]:
    beside = (ratings.parent / other for other in others)
    return (ratings, *(file for file in beside if file.exists()))
