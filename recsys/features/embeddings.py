"""Embedding tables: how wide they should be, and vectors computed elsewhere as files and as rows of a table."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys import atomic
from recsys.features.base import Device, Feature, FeatureError, first
from recsys.features.vocabulary import Vocabulary, categories
from recsys.schema import NUM_RESERVED, PADDING, Column, Role

Ids = pl.Series | Sequence[int] | Sequence[str]

PARQUET, SAFETENSORS = (".parquet", ".pq"), ".safetensors"
ID, VECTOR = "id", "vector"


def embedding_dim(num_categories: int, factor: float = 6.0, multiple_of: int = 1, maximum: int | None = None) -> int:
    """A width for the embedding of a column: ceil(factor * num_categories ** 0.25).

    The fourth root is the guideline of "Introducing TensorFlow feature columns" (Google developers blog, 2017), the
    factor 6 that of Wang et al., "Deep & Cross Network for ad click predictions", ADKDD 2017, section 4.2.

    Args:
        num_categories: how many distinct values, 1 or more.
        multiple_of: the width is rounded up to a multiple, as 8 for tensor cores.
        maximum: the widest allowed; the largest multiple not above it is never exceeded.

    Raises:
        FeatureError: an argument out of range.
    """
    for name, value in (("num_categories", num_categories), ("multiple_of", multiple_of)):
        if value < 1:
            raise FeatureError(f"{name}={value}: expected 1 or more")
    if not (factor > 0 and math.isfinite(factor)):
        raise FeatureError(f"factor={factor}: expected a number above 0")
    if maximum is not None and maximum < multiple_of:
        raise FeatureError(f"maximum={maximum}: expected at least multiple_of={multiple_of}")
    # Two square roots, as these are exact for fourth powers, where ** 0.25 need not be.
    steps = math.ceil(math.ceil(factor * math.sqrt(math.sqrt(num_categories))) / multiple_of)
    return multiple_of * (steps if maximum is None else min(steps, maximum // multiple_of))


def save_embeddings(path: str | os.PathLike[str], ids: Ids, vectors: Tensor) -> None:
    """Write vectors as float32 to Parquet or safetensors, by the suffix; the file is whole or not there.

    Parquet has the columns `id` and `vector` (an array of fixed size). safetensors has `vectors` [N, D] and `ids`
    [N]; text ids are there as UTF-8, `id_bytes`, in which id i is id_offsets[i]:id_offsets[i + 1].

    Args:
        ids: integers or text, each once, [N].
        vectors: floats [N, D], finite as float32.

    Raises:
        FeatureError: ids are null, repeated or neither integers nor text; vectors are not finite or do not fit the ids;
            an unknown suffix.
        OSError: the file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    save = _save_safetensors if _is_safetensors(path) else _save_parquet
    series, table = _checked(pl.Series(ID, ids), vectors.detach().cpu().float(), f"{path}: ")
    atomic.write(path, lambda beside: save(beside, series, table))


def load_embeddings(path: str | os.PathLike[str]) -> tuple[pl.Series, Tensor]:
    """Ids, Int64 or String [N], and vectors, float32 [N, D], in the order of the file.

    Takes what `save_embeddings` writes. In Parquet the columns may have other names where one alone holds integers or
    text and one alone holds lists or arrays of numbers, each as long as the others.

    Raises:
        FileNotFoundError: no such file.
        FeatureError: the file cannot be read, has no such columns or tensors, or see `save_embeddings`.
    """
    path = Path(path)
    load = _load_safetensors if _is_safetensors(path) else _load_parquet
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; write one with save_embeddings, or correct the path")
    try:
        ids, vectors = load(path)
    except FeatureError:
        raise
    except (Exception, pl.exceptions.PanicException) as e:  # readers raise many types over a damaged file
        said = (str(e).strip() or type(e).__name__).splitlines()[0].rstrip(".")
        raise FeatureError(f"{path}: not readable as {path.suffix[1:]}: {said}; is it complete?") from None
    return _checked(ids, vectors, f"{path}: ")


def align(ids: Ids, vectors: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Vectors as the rows of an embedding table, and which rows had a vector of their own.

    Args:
        ids: integers or text as in the vocabulary, each once, [N]. Those the vocabulary lacks are left out.
        vectors: floats [N, D].

    Returns:
        The table [len(vocabulary), D]: row r is the vector of the id with index r. Padding is zeros; unknown, null and
        ids without a vector are the mean of all given vectors. And a bool mask [len(vocabulary)].

    Raises:
        FeatureError: see `save_embeddings`.
        ValueError: integers where the vocabulary has text, or the reverse.
    """
    series, vectors = _checked(pl.Series(ID, ids), vectors.detach(), "")
    idx = vocabulary.encode(series).to(vectors.device)
    known = idx >= NUM_RESERVED
    table = vectors.mean(0, dtype=torch.float64).to(vectors.dtype).repeat(len(vocabulary), 1)
    table[PADDING] = 0
    table[idx[known]] = vectors[known]
    own = torch.zeros(len(vocabulary), dtype=torch.bool, device=vectors.device)
    own[idx[known]] = True
    return table, own


@dataclass(eq=False)
class Pretrained(Feature):
    """Vectors computed elsewhere, float32 [B, D]: of an unknown or missing id it is the mean of all.

    The vectors become part of the pipeline and are saved with it.

    Args:
        path: a file as `load_embeddings` reads.
        column: of ids; the name of the feature if None.
    """

    path: str
    column: str | None = None
    vocabulary: Vocabulary = field(init=False, repr=False)
    vectors: Tensor = field(init=False, repr=False)  # [len(vocabulary), D]

    @property
    def inputs(self) -> tuple[str, ...]:
        return (str(self.column),)

    def finish(self) -> None:
        self._hold(*load_embeddings(self.path))

    def _hold(self, ids: pl.Series, vectors: Tensor) -> None:
        self.vocabulary = Vocabulary(ids)
        self.vectors, _ = align(ids, vectors, self.vocabulary)

    def transform(self, rows: pl.DataFrame, device: Device) -> dict[str, Tensor]:
        idx = self.vocabulary.encode(categories(rows[str(self.column)]))
        return {"": self.vectors[idx].to(device)}

    def outputs(self, name: str, role: Role) -> tuple[Column, ...]:
        return (Column(name, role, "float32", None, self.vectors.shape[1]),)

    def tables(self) -> dict[str, pl.DataFrame]:
        return {"vectors": pl.DataFrame([self.vocabulary.ids, pl.Series(VECTOR, self.vectors[NUM_RESERVED:].numpy())])}

    def restore(self, state: dict[str, Any], tables: dict[str, pl.DataFrame]) -> None:
        vectors = tables["vectors"][VECTOR]
        self._hold(tables["vectors"][ID], torch.from_numpy(vectors.to_numpy().copy()))


# --- files ----------------------------------------------------------------------------------------------------


def _is_safetensors(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix != SAFETENSORS and suffix not in PARQUET:
        raise FeatureError(f"{path}: embeddings are .parquet or .safetensors, not {suffix or 'without a suffix'}")
    return suffix == SAFETENSORS


def _save_parquet(path: Path, ids: pl.Series, vectors: Tensor) -> None:
    # With checksums, and read so: Polars may end the process over a damaged page.
    pq.write_table(pl.DataFrame([ids, pl.Series(VECTOR, vectors.numpy())]).to_arrow(), path, write_page_checksum=True)


def _load_parquet(path: Path) -> tuple[pl.Series, Tensor]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        frame = pl.DataFrame(file.read())
    ids, lists = (_only(frame, path, *what) for what in ((ID, "integers or text"), (VECTOR, "lists of numbers")))
    if lists.is_empty():
        raise FeatureError(f"{path}: no rows")
    lengths = lists.cast(pl.List(lists.dtype.inner)).list.len().fill_null(0)  # type: ignore[attr-defined]
    width, bad = lengths[0], (lengths != lengths[0]) | (lengths == 0)
    if bad.any():
        row = first(bad)
        raise FeatureError(f"{path}: the vector in row {row} has {lengths[row]} numbers, in row 0 it has {width}")
    return ids, torch.from_numpy(lists.explode().cast(pl.Float32).to_numpy(writable=True).reshape(-1, width))


def _only(frame: pl.DataFrame, path: Path, name: str, what: str) -> pl.Series:
    """The column of that name, or the only one of that kind."""
    like = [column.name for column in frame if (_is_id if name == ID else _is_vector)(column.dtype)]
    if name in like:
        return frame[name]
    if len(like) != 1:
        columns = ", ".join(f"{column} {dtype}" for column, dtype in frame.schema.items())
        raise FeatureError(f"{path}: expected a column {name!r} of {what}, or one alone of that kind; found {columns}")
    return frame[like[0]]


def _is_id(dtype: pl.DataType) -> bool:
    return dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)


def _is_vector(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.List | pl.Array) and dtype.inner.is_numeric()


def _save_safetensors(path: Path, ids: pl.Series, vectors: Tensor) -> None:
    tensors = {"vectors": vectors.contiguous()}
    if ids.dtype == pl.String:
        offsets = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum(ids.str.len_bytes().to_numpy(), out=offsets[1:])
        text = np.frombuffer(bytearray("".join(ids).encode()), dtype=np.uint8)
        tensors |= {"id_bytes": torch.from_numpy(text), "id_offsets": torch.from_numpy(offsets)}
    else:
        tensors["ids"] = torch.from_numpy(ids.to_numpy(writable=True))
    save_file(tensors, path)


def _load_safetensors(path: Path) -> tuple[pl.Series, Tensor]:
    tensors = load_file(path)

    def get(name: str, dtype: torch.dtype) -> Tensor:
        if name not in tensors:
            raise FeatureError(f"{path}: no tensor {name!r} among {', '.join(sorted(tensors)) or 'none'}")
        if tensors[name].dtype != dtype or tensors[name].dim() != 1:
            raise FeatureError(f"{path}: tensor {name!r} should be {dtype} of one dimension")
        return tensors[name]

    if "id_bytes" in tensors:
        text, offsets = get("id_bytes", torch.uint8), get("id_offsets", torch.int64)
        buffers = [None, pa.py_buffer(offsets.numpy()), pa.py_buffer(text.numpy())]
        strings = pa.Array.from_buffers(pa.large_string(), max(len(offsets) - 1, 0), buffers)
        strings.validate(full=True)  # offsets within the bytes, which are UTF-8
        ids = pl.Series(ID, strings)
    else:
        ids = pl.Series(ID, get("ids", torch.int64).numpy())
    if "vectors" not in tensors:
        raise FeatureError(f"{path}: no tensor 'vectors' among {', '.join(sorted(tensors))}")
    return ids, tensors["vectors"].float()


# --- checks ---------------------------------------------------------------------------------------------------


def _checked(ids: pl.Series, vectors: Tensor, where: str) -> tuple[pl.Series, Tensor]:
    """Ids as Int64 or String and the vectors, if they belong together; `where` begins the message."""
    if not _is_id(ids.dtype):
        raise FeatureError(f"{where}ids should be integers or text, they are {ids.dtype}")
    if ids.null_count():
        raise FeatureError(f"{where}the id in row {first(ids.is_null())} is missing")
    if not vectors.is_floating_point() or vectors.dim() != 2 or 0 in vectors.shape or len(vectors) != len(ids):
        found = f"{len(ids)} ids and {str(vectors.dtype).removeprefix('torch.')} vectors {list(vectors.shape)}"
        raise FeatureError(f"{where}expected N ids and float vectors [N, D], none empty; got {found}")
    plain = ids.cast(pl.Int64 if ids.dtype.is_integer() else pl.String, strict=False).rename(ID)
    if plain.null_count():
        raise FeatureError(f"{where}id {ids.filter(plain.is_null())[0]} exceeds 64 signed bits: give ids as text")
    again = ~plain.is_first_distinct()
    if again.any():
        row = first(again)
        raise FeatureError(f"{where}id {plain[row]!r} occurs a second time in row {row}: keep one vector for each id")
    finite = vectors.isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise FeatureError(f"{where}the vector of id {plain[row]!r} (row {row}) has a value missing, NaN or infinite")
    return plain, vectors
