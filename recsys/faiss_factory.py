"""What faiss' factory strings need and allow: checked before any work, with the nearest legal value in the message."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from recsys import backend

FETCHED = 2048  # positions that are fetched for one query at most; faiss' limit on a GPU
POINTS = 39, 256  # vectors for each centroid: below the first faiss warns, beyond the second it takes a sample
_GPU_CODES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
_GPU_FACTORY = r"Flat|IVF\d+,(Flat|SQ\w+|PQ\d+(x8)?(np)?)"


def faiss_module() -> Any:
    return importlib.import_module("faiss")


def check_factory(factory: str, *, dim: int, num_vectors: int, metric: str, on_gpu: bool) -> None:
    """Whether an index can be built of so many vectors, before any work is done.

    k-means wants 39 vectors a centroid. faiss warns of fewer and fails below one; here fewer are refused, for the lists
    of IVF and for the 2 ** bits centroids of PQ (9,984 vectors for the 8 bits of PQ and OPQ, 624 for 4).

    Raises:
        ValueError: it cannot; the message names the nearest legal value.
    """
    if metric not in ("inner_product", "cosine"):
        raise ValueError(f"metric={metric}: expected inner_product or cosine")
    if factory == "exact":
        return
    if not backend.installed("faiss"):
        if factory == "Flat":
            return
        raise ValueError(f"factory={factory} needs faiss: pip install 'recsys[cpu]', or factory=exact")
    faiss = faiss_module()
    if factory == "CAGRA":
        if not hasattr(faiss, "GpuIndexCagra"):
            raise ValueError("factory=CAGRA needs faiss-gpu-cuvs: pip install 'recsys[cuvs]' in place of 'recsys[gpu]'")
        if not on_gpu:
            raise ValueError("factory=CAGRA runs on a GPU alone: device=cuda, or factory=HNSW32")
        return
    width, body = dim, list[str]()
    for token in re.split(r",(?![^(]*\))", factory):
        width, is_transform = _check_token(factory, token, width, num_vectors, on_gpu)
        body += [] if is_transform else [token]
    if on_gpu and not re.fullmatch(_GPU_FACTORY, ",".join(body)):
        legal = "Flat, IVF…,Flat, IVF…,SQ8, IVF…,PQ… of 8 bits and CAGRA do"
        raise ValueError(f"factory={factory} does not run on a GPU: device=cpu, or another; {legal}")
    try:
        made = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(f"factory={factory}: faiss cannot build it ({reason(error)}); try Flat or HNSW32") from None
    if made.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(f"factory={factory}: faiss builds it for Euclidean distance alone; try HNSW32 or HNSW32,SQ8")


def _check_token(factory: str, token: str, width: int, num_vectors: int, on_gpu: bool) -> tuple[int, bool]:
    """What one part of a factory string needs of the vectors; their dimension after it, and whether it transforms."""
    said, fewest = f"factory={factory}", POINTS[0]
    if match := re.match(r"L2norm|PCAWR?|NSG", token):
        instead = {"L": "metric=cosine", "P": "PCAR", "N": "HNSW"}[token[0]]
        why = "takes no further items" if match[0] == "NSG" else "changes inner products"
        raise ValueError(f"{said}: {match[0]} {why}, use {instead}")
    if match := re.match(r"IVF(\d+)", token):
        lists, most = int(match[1]), num_vectors // fewest
        if lists < 1 or lists > most:
            nearest = f"the nearest is IVF{min(max(lists, 1), most)}" if most else "use Flat"
            needed = f"{lists} lists need {fewest * max(lists, 1)} vectors, there are {num_vectors}"
            raise ValueError(f"{said}: {needed}; {nearest}")
    if (match := re.search(r"HNSW(\d+)", token)) and int(match[1]) < 2:
        raise ValueError(f"{said}: HNSW needs at least 2 neighbours, the nearest is HNSW2")
    transform = re.fullmatch(r"(OPQ|PCAR?|RR)(\d+)(?:_(\d+))?", token)
    if transform and transform[1] == "OPQ":
        width = int(transform[3] or width)
    elif transform:
        out, most = int(transform[2]), min(width, num_vectors) if transform[1] != "RR" else width
        if not 0 < out <= most:
            given = f"{num_vectors} vectors of {width} dimensions"
            raise ValueError(f"{said}: {given} cannot become {out} wide, the most is {transform[1]}{most}")
        width = out
    for name, parts, bits in re.findall(r"(?<![A-Z])(O?PQ|RQ|LSQ)(\d+)(?:x(\d+))?", token):
        _check_codes(said, name, int(parts), int(bits or 8), width, num_vectors, on_gpu and name == "PQ")
    return width, transform is not None


def _check_codes(said: str, name: str, parts: int, bits: int, width: int, num_vectors: int, on_gpu: bool) -> None:
    most = min(16, (num_vectors // POINTS[0]).bit_length() - 1)
    if not 1 <= bits <= most:
        needed = f"{bits} bits need {POINTS[0] * 2**bits} vectors, there are {num_vectors}"
        nearest = f"the nearest is {name}{parts}x{min(max(bits, 1), most)}" if most > 0 else "use SQ8"
        raise ValueError(f"{said}: {needed}; {'use PQ without the O' if name == 'OPQ' else nearest}")
    if name in ("PQ", "OPQ"):
        legal = [m for m in range(1, width + 1) if width % m == 0 and (not on_gpu or m in _GPU_CODES)]
        if parts not in legal:
            closest = min(legal, key=lambda m: abs(m - parts))
            where = f"divide the dimension {width}" + (f" and be one of {_GPU_CODES} on a GPU" if on_gpu else "")
            raise ValueError(f"{said}: the parts of {name}{parts} must {where}, the nearest is {name}{closest}")


def gpus_of(device: str | Sequence[int], factory: str) -> list[int]:
    """The numbers of the GPUs that a device means; none for the CPU."""
    if device == "cpu":
        return []
    if isinstance(device, str) and device != "cuda":
        raise ValueError(f"device={device}: expected cpu, cuda or a list of numbers of GPUs")
    gpus = [0] if device == "cuda" else [int(gpu) for gpu in device]
    by_torch = factory == "exact" or not backend.installed("faiss")
    if not by_torch and not hasattr(faiss_module(), "StandardGpuResources"):
        raise ValueError(f"device={device}: this faiss has no GPU; pip install 'recsys[gpu]', or device=cpu")
    there = torch.cuda.device_count() if by_torch else faiss_module().get_num_gpus()
    if not gpus or len(set(gpus)) < len(gpus) or not all(0 <= gpu < there for gpu in gpus):
        raise ValueError(f"device={device}: expected distinct GPUs of the {there} that are there, or device=cpu")
    if len(gpus) > 1 and (by_torch or factory == "CAGRA"):
        raise ValueError(f"device={device}: factory={factory} uses one GPU; device={gpus[:1]}")
    return gpus


def parameters(search: str, known: dict[str, float], most: dict[str, int], factory: str) -> dict[str, float]:
    """Search parameters by name."""
    values: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in search.split(","))):
        name, _, text = part.partition("=")
        if name not in known:
            raise ValueError(f"search={search}: factory={factory} takes {', '.join(known) or 'nothing'}, not {name}")
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        if not 1 <= value <= most.get(name, 2**31 - 1) or (name != "k_factor_rf" and value != int(value)):
            upper = f" and at most {most[name]}" if name in most else ""
            kind = "a number" if name == "k_factor_rf" else "a whole number"
            raise ValueError(f"search={search}: {name} must be {kind}, at least 1{upper}, got {text or 'nothing'}")
        values[name] = value
    return values


def seed_all(index: Any, seed: int) -> None:
    """Seed every k-means and graph of an index, and of those inside it."""
    faiss = faiss_module()
    index = faiss.downcast_index(index)
    if hasattr(index, "cp"):
        index.cp.seed = seed
    if hasattr(index, "pq"):
        index.pq.cp.seed = seed
    if hasattr(index, "hnsw"):
        index.hnsw.rng = faiss.RandomGenerator(seed)
    for place in range(index.chain.size() if hasattr(index, "chain") else 0):
        transform = faiss.downcast_VectorTransform(index.chain.at(place))
        if isinstance(transform, faiss.PCAMatrix):
            transform.have_bias = False
    for name in ("index", "base_index", "refine_index", "quantizer", "storage"):
        if isinstance(getattr(index, name, None), faiss.Index):
            seed_all(getattr(index, name), seed)


def reason(error: RuntimeError) -> str:
    """What faiss says, without where in its sources it says so."""
    return re.split(r"Error: |\.cpp:\d+: ", " ".join(str(error).split()))[-1]
