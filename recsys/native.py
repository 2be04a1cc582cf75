"""One C++ text for CPU and GPU: built by the machine's compiler for the one, by NVRTC through CuPy for the other.

A source under recsys/ holds entries that loop over their rows by the macro EACH: on a CPU a plain loop, on a GPU one
thread a row. HEAD below defines the macros. Entries take int64 numbers and pointers to the memory of tensors.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HEAD = """\
typedef long long i64;
typedef unsigned long long u64;
typedef signed char i8;
typedef short i16;
#ifdef __CUDACC__
#define INNER static __device__ inline
#define ENTRY extern "C" __global__ void
#define EACH(i, n) for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (i64)blockDim.x)
#else
#include <cmath>
#define INNER static inline
#define ENTRY extern "C" void
#define EACH(i, n) for (i64 i = 0; i < n; i++)
#endif
"""
# Products and sums stay apart on both sides: fused, they would differ between machines in the last bit.
CPU_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno")
GPU_FLAGS = ("--std=c++17", "--fmad=false")
THREADS_A_BLOCK = 128


class Native:
    """The entries of one source, called as native("name", rows, *arguments)."""

    def __init__(self, source: Path, declarations: str = "") -> None:
        """declarations: C++ text to put in front of the source, such as a struct that Python fills."""
        self.source, self.declarations = source, declarations

    @cached_property
    def text(self) -> str:
        """The whole program, as either compiler gets it."""
        return HEAD + self.declarations + self.source.read_text(encoding="utf-8")

    def __call__(self, entry: str, rows: int, *arguments: Tensor | int) -> None:
        """Run an entry over `rows` rows, on the device of the tensors. They must be contiguous.

        Raises:
            OSError: no compiler on this machine, or the source does not compile.
        """
        if rows == 0:
            return
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        assert all(tensor.is_contiguous() for tensor in tensors)
        if tensors[0].is_cuda:
            self._launch(entry, rows, *arguments)
            return
        values = [
            ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_longlong(a) for a in (rows, *arguments)
        ]
        getattr(_library(self.text, self.source.stem), entry)(*values)

    def _launch(self, entry: str, rows: int, *arguments: Tensor | int) -> None:
        import cupy

        blocks = max(1, min(-(-rows // THREADS_A_BLOCK), 1 << 16))
        where = next(argument.device for argument in arguments if isinstance(argument, Tensor))
        with torch.cuda.device(where), cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            values = [cupy.from_dlpack(a) if isinstance(a, Tensor) else cupy.int64(a) for a in (rows, *arguments)]
            _module(self.text).get_function(entry)((blocks,), (THREADS_A_BLOCK,), values)


@lru_cache(maxsize=8)
def _module(text: str) -> Any:
    import cupy

    return cupy.RawModule(code=text, options=GPU_FLAGS)


@lru_cache(maxsize=8)
def _library(text: str, stem: str) -> ctypes.CDLL:
    """The shared library of a source, compiled once and kept in the user's cache."""
    compiler = _compiler()
    digest = hashlib.sha256("\0".join((text, compiler, *CPU_FLAGS)).encode()).hexdigest()[:20]
    built = _cache() / f"{stem}-{digest}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            fresh = Path(folder) / built.name
            command = [compiler, *CPU_FLAGS, "-x", "c++", "-", "-o", str(fresh)]
            done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
            if done.returncode:
                raise OSError(f"{compiler} cannot compile {stem}: {' '.join(done.stderr.split())[:500]}")
            fresh.replace(built)
    return ctypes.CDLL(str(built))


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise OSError(
        "no C++ compiler found, which code for this CPU is built with: install g++ "
        "(apt install g++, or conda install cxx-compiler), or name one in CXX"
    )


def _cache() -> Path:
    """Where built libraries are kept: RECSYS_CACHE, else the user's cache, else a folder of this process's user."""
    home = os.environ.get("RECSYS_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    for folder in (Path(home) / "recsys", Path(tempfile.gettempdir()) / f"recsys-{os.getuid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return folder
    raise OSError("no folder to keep compiled code in: name one that can be written in RECSYS_CACHE")
