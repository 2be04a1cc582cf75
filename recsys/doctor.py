"""What works on this machine: a real kernel on every backend that is there, and how to get the others."""

from __future__ import annotations

from collections.abc import Callable

import torch

from recsys import backend

State = tuple[str, str, str]  # what, ok | missing | broken, detail

_KERNEL = r"""
extern "C" __global__ void square(const float* x, float* y, int n) {
    int i = blockDim.x * blockIdx.x + threadIdx.x;
    if (i < n) y[i] = x[i] * x[i];
}
"""


def examine() -> list[State]:
    """Versions, then one line a backend: what it is, whether a kernel ran, and what to install if not."""
    states: list[State] = []
    for package in ("recsys", "torch", "pytorch-lightning", "hydra-core", "polars", "wandb", "jupyterlab"):
        found = backend.version(package)
        states.append((package, "ok" if found else "missing", found or f"pip install {package}"))
    states.append(_try("torch on CPU", _torch_cpu))
    if torch.cuda.is_available():
        states.append(_try("torch on CUDA", _torch_cuda))
    else:
        build = "is a CPU build" if torch.version.cuda is None else "sees no device (driver?)"
        states.append(("torch on CUDA", "missing", f"this torch {build}: see docs/install.md"))
    states.append(_try("CuPy kernel", _cupy) if backend.installed("cupy") else _missing("CuPy", "gpu"))
    if backend.installed("faiss"):
        states += [_try("faiss on CPU", _faiss_cpu), _try("faiss on GPU", _faiss_gpu)]
    else:
        states.append(_missing("faiss", "cpu"))
    return states


def _missing(what: str, extra: str) -> State:
    return (what, "missing", f"pip install 'recsys[{extra}]'")


def _try(what: str, check: Callable[[], str]) -> State:
    try:
        return (what, "ok", check())
    except _Absent as absent:
        return (what, "missing", str(absent))
    except Exception as error:  # whatever a driver or a library does here is the finding
        lines = str(error).splitlines() or [type(error).__name__]
        return (what, "broken", lines[0][:160])


class _Absent(Exception):
    """The backend is not there, and the text says how to get it."""


def _torch_cpu() -> str:
    x = torch.arange(64.0).reshape(8, 8)
    _expect(float((x @ x.T)[0, 1]), float((x[0] * x[1]).sum()))
    return f"matrix product right, {torch.get_num_threads()} threads"


def _torch_cuda() -> str:
    x = torch.arange(64.0, device="cuda").reshape(8, 8)
    _expect(float((x @ x.T)[0, 1]), float((x[0] * x[1]).sum()))
    gigabytes = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"matrix product right on {torch.cuda.get_device_name(0)}, {gigabytes:.0f} GiB"


def _cupy() -> str:
    import cupy

    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        devices = 0
    if not devices:
        from cupy.cuda import nvrtc

        program = nvrtc.createProgram(_KERNEL, "square.cu", [], [])
        nvrtc.compileProgram(program, ["--gpu-architecture=sm_90"])
        raise _Absent(f"CuPy {cupy.__version__} compiles a kernel, but there is no GPU to run it on")
    x = cupy.arange(1000, dtype=cupy.float32)
    y = cupy.empty_like(x)
    cupy.RawKernel(_KERNEL, "square")((8,), (128,), (x, y, 1000))
    _expect(float(y[999]), 999.0**2)
    return f"CuPy {cupy.__version__}, kernel launched on {devices} device(s)"


def _faiss_cpu() -> str:
    import faiss
    import numpy as np

    points = np.eye(16, dtype=np.float32)
    index = faiss.IndexFlatIP(16)
    index.add(points)
    _expect(float(index.search(points[3:4], 1)[1][0, 0]), 3.0)
    return f"faiss {faiss.__version__}, search right"


def _faiss_gpu() -> str:
    import faiss
    import numpy as np

    if not hasattr(faiss, "StandardGpuResources"):
        raise _Absent("this is faiss-cpu: pip uninstall faiss-cpu, then pip install 'recsys[gpu]'")
    if not faiss.get_num_gpus():
        raise _Absent("faiss-gpu is installed and sees no device")
    points = np.eye(16, dtype=np.float32)
    index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.IndexFlatIP(16))
    index.add(points)
    _expect(float(index.search(points[3:4], 1)[1][0, 0]), 3.0)
    return f"faiss {faiss.__version__}, search right on the GPU"


def _expect(found: float, right: float) -> None:
    if found != right:
        raise ArithmeticError(f"the kernel ran and its result is wrong: {found}, expected {right}")
