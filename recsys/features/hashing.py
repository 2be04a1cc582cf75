"""XXH64, the same bits on CPU and GPU, and what feature hashing makes of the bits: buckets and signs.

Yann Collet, "xxHash fast digest algorithm", the specification. An integer or boolean is hashed as the eight
little-endian bytes of its int64 (uint64 where it is one), text as its UTF-8 bytes, binary as it is. Integers run in
Numba, text in polars-hash, and on a GPU both in hashing.cu. Torch does no arithmetic on uint64: tensors of hashes are
int64 that hold the bits of the unsigned numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import numba
import numpy as np
import polars as pl
import torch
from torch import Tensor

from recsys.features.base import Device
from recsys.native import Native

NULL_HASH = 0x243F6A8885A308D3  # of a missing value, whatever the seed: the first 64 bits of the fraction of pi
MAX_BUCKETS = 2**31

kernels = Native(Path(__file__).with_name("hashing.cu"))

P1, P2 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)
P3, P4 = np.uint64(0x165667B19E3779F9), np.uint64(0x85EBCA77C2B2AE63)
P5_AND_SIZE = np.uint64(0x27D4EB2F165667C5 + 8)  # a hash of eight bytes starts from this and the seed
ALONE = 1 << 19  # integers a thread at least: with fewer, starting it takes longer than it saves


@overload
def xxh64(values: Tensor, seed: int = 0) -> Tensor: ...
@overload
def xxh64(values: pl.Series | np.ndarray | Sequence[int | str | bytes], seed: int = 0) -> np.ndarray: ...
def xxh64(values: Any, seed: int = 0) -> Any:
    """XXH64 of each value, uint64 in the shape of the values.

    Args:
        values: a Polars Series of integers, booleans, text, categories or binary; a NumPy array of integers, booleans
            or text; a list of int, str or bytes; a torch Tensor or CuPy array of integers or booleans.
        seed: 0 to 2**64 - 1.

    Returns:
        A tensor on the same device for a tensor, a CuPy array for a CuPy array (its memory shared with torch, the work
        on CuPy's current stream), else a NumPy array.

    Raises:
        ValueError: a value is null or of another type, or the seed is out of range.
        ImportError: text on the CPU without polars-hash.
    """
    seed = _checked(seed)
    if isinstance(values, Tensor):
        return _hash_tensor(_words(values), seed).view(torch.uint64)
    if type(values).__module__.partition(".")[0] == "cupy":
        return _hash_cupy(values, seed)
    if isinstance(values, np.ndarray):
        if values.dtype.kind in "biu":
            return _hash_array(values.ravel(), seed).reshape(values.shape)
        if values.size and values.dtype.kind not in "USO":
            raise _refusal(values.dtype)
        return xxh64(values.ravel().tolist(), seed).reshape(values.shape)
    column = values if isinstance(values, pl.Series) else _column(values)
    if column.null_count():
        raise ValueError(f"row {column.is_null().arg_max()} is null: fill or drop it, nothing hashes to no value")
    return hash_column(column, seed).numpy().view(np.uint64)


def xxh64_seeded(values: Tensor, seeds: Tensor) -> Tensor:
    """XXH64 of each int64 with a seed of its own, int64 [n] holding the bits, as `seeds` [n] do.

    Raises:
        ValueError: the two differ in shape or device, or are not int64.
    """
    for tensor in (values, seeds):
        if tensor.dtype != torch.int64 or tensor.shape != values.shape or tensor.device != values.device:
            raise ValueError(
                f"values and seeds must be int64 of one shape on one device, got {values.dtype} {list(values.shape)} "
                f"on {values.device} and {seeds.dtype} {list(seeds.shape)} on {seeds.device}: convert them"
            )
    return _hash_tensor(values, seeds)


def hash_column(column: pl.Series, seed: int, device: Device = "cpu") -> Tensor:
    """XXH64 of each value of a column, int64 [n] on the device holding the bits; NULL_HASH where it is null.

    Raises:
        ValueError: it holds neither integers, booleans, text, categories nor binary, or the seed is out of range.
        ImportError: text on the CPU without polars-hash.
    """
    seed, device, dtype = _checked(seed), torch.device(device), column.dtype
    if column.null_count() == column.len():
        return torch.full((column.len(),), NULL_HASH, device=device)
    if dtype in (pl.Categorical, pl.Enum):
        hashes = _hash_categories(column, seed, device)
    elif dtype in (pl.String, pl.Binary):
        hashes = _hash_text(column, seed, device)
    elif dtype == pl.Boolean or (dtype.is_integer() and dtype not in (pl.Int128, pl.UInt128)):
        values = column.fill_null(strategy="zero").to_numpy()
        if device.type == "cpu":
            hashes = torch.from_numpy(_hash_array(values, seed).view(np.int64))
        else:
            hashes = _hash_tensor(_moved(values, device), seed)
    else:
        raise _refusal(dtype)
    if column.null_count():
        hashes.masked_fill_(torch.from_numpy(column.is_null().to_numpy(writable=True)).to(device), NULL_HASH)
    return hashes


def buckets(hashes: Tensor, num_buckets: int) -> Tensor:
    """The bucket of each hash, int64 in [0, num_buckets): floor(hash * num_buckets / 2**64), the hash unsigned.

    Lemire, "Fast random integer generation in an interval", ACM TOMACS 2019. No bucket is likelier than another by
    more than num_buckets / 2**64 of its probability. The high bits decide, so that the lowest is left for `signs`.

    Raises:
        ValueError: num_buckets is not in [1, 2**31], or the hashes are not 64 bits wide.
    """
    if not 1 <= num_buckets <= MAX_BUCKETS:
        raise ValueError(f"num_buckets={num_buckets}: expected 1 to {MAX_BUCKETS}")
    bits = _bits(hashes)
    low = (bits & 0xFFFFFFFF).mul_(num_buckets).bitwise_right_shift_(32)
    high = (bits >> 32).bitwise_and_(0xFFFFFFFF).mul_(num_buckets)
    return high.add_(low).bitwise_right_shift_(32)


def signs(hashes: Tensor) -> Tensor:
    """+1 or -1 by the lowest bit of each hash, float32: collisions then cancel on average.

    Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009.

    Raises:
        ValueError: the hashes are not 64 bits wide.
    """
    return (_bits(hashes) & 1).to(torch.float32).mul_(2).sub_(1)


def pack_text(column: pl.Series, device: Device) -> tuple[Tensor, Tensor]:
    """A column of text or binary on the device, as the kernel hash_text reads it. A null has no bytes.

    Returns:
        Where the bytes of each value start and the last end, int64 [n + 1], and all bytes in their order, eight to an
        int64, with at least one more word behind the last byte.
    """
    arrow = column.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = arrow.buffers()
    ends = np.frombuffer(offsets, np.int64, column.len() + 1, 8 * arrow.offset)
    first, size = int(ends[0]), int(ends[-1] - ends[0])
    starts, words = _staged(len(ends), device), _staged(size // 8 + 2, device)
    np.subtract(ends, first, out=starts.numpy())
    words[-2:] = 0
    if size:
        words.numpy().view(np.uint8)[:size] = np.frombuffer(data, np.uint8, size, first)
    return starts.to(device, non_blocking=True), words.to(device, non_blocking=True)


# --- by kind of value -----------------------------------------------------------------------------------------


def _hash_tensor(values: Tensor, seed: int | Tensor) -> Tensor:
    """Of int64 words, with one seed or one each."""
    if not values.is_cuda:
        each = seed.numpy().view(np.uint64).ravel() if isinstance(seed, Tensor) else seed
        hashes = _hash_array(values.numpy().ravel(), each)
        return torch.from_numpy(hashes.view(np.int64)).view(values.shape)
    values = values.contiguous()
    found = torch.empty_like(values)
    if isinstance(seed, Tensor):
        kernels("hash_words_seeded", values.numel(), values, seed.contiguous(), found)
    else:
        kernels("hash_words", values.numel(), values, _signed(seed), found)
    return found


def _hash_cupy(values: Any, seed: int) -> Any:
    import cupy

    if values.dtype.kind not in "biu":
        raise _refusal(values.dtype)
    with values.device:
        stream = torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr, device=values.device.id)
        with torch.cuda.stream(stream):
            return cupy.from_dlpack(xxh64(torch.from_dlpack(values), seed))


def _hash_array(values: np.ndarray, seed: int | np.ndarray) -> np.ndarray:
    """Of integers or booleans [n], with one seed or one each (uint64 [n]): uint64 [n]."""
    if values.dtype != np.uint64 or not values.dtype.isnative:
        values = values.astype(np.int64, copy=False).view(np.uint64)
    hashes = np.empty(len(values), np.uint64)
    seeds = seed if isinstance(seed, np.ndarray) else np.array([seed], np.uint64)

    def work(begin: int, end: int) -> None:
        part = slice(begin, end)
        _hash_words(values[part], seeds if isinstance(seed, int) else seeds[part], hashes[part])

    _in_threads(work, len(values))
    return hashes


@numba.njit(nogil=True, cache=True)
def _rotate(x: np.uint64, bits: int) -> np.uint64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@numba.njit(nogil=True, cache=True)
def _hash_words(values: np.ndarray, seeds: np.ndarray, hashes: np.ndarray) -> None:
    for i in range(len(values)):
        seed = seeds[0] if len(seeds) == 1 else seeds[i]
        h = (seed + P5_AND_SIZE) ^ (_rotate(values[i] * P2, 31) * P1)
        h = _rotate(h, 27) * P1 + P4
        h = (h ^ (h >> np.uint64(33))) * P2
        h = (h ^ (h >> np.uint64(29))) * P3
        hashes[i] = h ^ (h >> np.uint64(32))


def _hash_text(column: pl.Series, seed: int, device: torch.device) -> Tensor:
    """Of text or binary; whatever where it is null."""
    if device.type != "cpu":
        hashes = torch.empty(column.len(), dtype=torch.int64, device=device)
        kernels("hash_text", column.len(), *pack_text(column, device), _signed(seed), hashes)
        return hashes
    try:
        import polars_hash
    except ImportError:
        raise ImportError("hashing text on the CPU needs polars-hash: pip install polars-hash") from None
    hashed = polars_hash.col("x").nchash.xxhash64(seed=seed)
    found = column.to_frame("x").select(hashed.fill_null(0) if column.null_count() else hashed).to_series()
    return torch.from_dlpack(found.to_arrow()).view(torch.int64)  # as it lies there; through NumPy it is read-only


def _hash_categories(column: pl.Series, seed: int, device: torch.device) -> Tensor:
    """Of the categories that occur, once each, then gathered by their codes; whatever where it is null."""
    found = column.drop_nulls().unique()
    codes = found.to_physical().to_numpy()
    table = torch.empty(int(codes.max()) + 1, dtype=torch.int64, device=device)
    table[_moved(codes, device)] = hash_column(found.cast(pl.String), seed, device)
    return table[_moved(column.to_physical().fill_null(codes[0]).to_numpy(), device)]


def _in_threads(work: Callable[[int, int], None], size: int) -> None:
    """Do work(begin, end) over [0, size) by torch's number of threads, by this one alone where it is small."""
    threads = min(torch.get_num_threads(), size // ALONE)
    if threads < 2:
        work(0, size)
        return
    edges = [size * thread // threads for thread in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))


# --- conversions ----------------------------------------------------------------------------------------------


def _column(values: Sequence[Any]) -> pl.Series:
    """A list as a Series, nulls allowed."""
    if not isinstance(values, list | tuple):
        raise _refusal(type(values).__name__)
    try:
        return pl.Series(values, strict=True)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"values must be all int, all str or all bytes: {str(error).splitlines()[0]}") from None


def _words(values: Tensor) -> Tensor:
    """Integers or booleans as int64."""
    if values.is_floating_point() or values.is_complex():
        raise _refusal(values.dtype)
    return values.view(torch.int64) if values.dtype == torch.uint64 else values.to(torch.int64)


def _bits(hashes: Tensor) -> Tensor:
    if hashes.dtype not in (torch.int64, torch.uint64):
        raise ValueError(f"hashes must be int64 or uint64, got {hashes.dtype}: take those of xxh64 or hash_column")
    return hashes.view(torch.int64)


def _staged(size: int, device: Device) -> Tensor:
    """Host memory for int64 [size], pinned where a GPU will fetch it."""
    return torch.empty(size, dtype=torch.int64, pin_memory=torch.device(device).type == "cuda")


def _moved(values: np.ndarray, device: torch.device) -> Tensor:
    """Integers or booleans [n] on the device as int64; of uint64 the bits."""
    staged = _staged(len(values), device)
    np.copyto(staged.numpy(), values, casting="unsafe")
    return staged.to(device, non_blocking=True)


def _checked(seed: int) -> int:
    if not 0 <= (seed := operator.index(seed)) < 2**64:
        raise ValueError(f"seed={seed}: expected 0 to 2**64 - 1")
    return seed


def _signed(bits: int) -> int:
    """The int64 with the bits of a uint64."""
    return bits - 2**64 if bits >= 2**63 else bits


def _refusal(found: object) -> ValueError:
    return ValueError(f"only integers, booleans, text, categories and binary can be hashed, got {found}: convert it")
