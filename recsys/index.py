"""The items nearest to a query by inner product or cosine, through any index that faiss' factory makes.

Ids are the caller's own. An item has a position, the order in which faiss was given its vector: positions are only
ever appended, `_table` maps them to ids, and a removed one is a tombstone that is filtered out of what faiss finds.

Shapes: N vectors given, P positions, B queries, D dimension, K list length, F positions fetched, Z excluded pairs.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from recsys import atomic, backend
from recsys.faiss_factory import FETCHED, POINTS, check_factory, faiss_module, gpus_of, parameters, reason, seed_all
from recsys.schema import PADDING, Interactions

Metric = Literal["inner_product", "cosine"]

INDEX, VECTORS, DESCRIPTION = "index.faiss", "vectors.safetensors", "index.json"

_TOMBSTONES = 1024  # beyond so many, or a quarter of the items, the index is compacted
_SCORES = 2**24  # exact search: scores held at a time
_PARAMETERS = {"nprobe": 1.0, "efSearch": 16.0, "k_factor_rf": 1.0, "itopk_size": 64.0}  # and their defaults


class ItemIndex:
    """Nearest items by inner product or cosine.

    Beside what faiss holds, the float32 vectors (of unit length for cosine) stay in memory, 4 * N * D bytes, for exact
    answers and compaction; on a GPU the host keeps faiss' index too, and sends it again after every change.

    Building twice from the same vectors and seed, with as many threads, gives the same index; not so HNSW on several
    threads, nor what is built on a GPU. Equal scores come in any order.

    Args:
        vectors_ND: real, finite. A vector of zeros has cosine 0 with everything.
        ids: int64 [N], distinct, >= 0; None: 0, 1, …, N - 1.
        factory: as faiss.index_factory takes it (see `check_factory`); "CAGRA"; or "exact", which is torch alone, as
            "Flat" is where faiss is not installed. PCA is used without its mean, which would change inner products.
        search: parameters as faiss' ParameterSpace takes them: "nprobe=32,k_factor_rf=8".
        device: cpu; cuda, which is GPU 0; or numbers of GPUs, over which the vectors are spread.
        seed: of the training sample and of k-means.

    Raises:
        ValueError: an argument that cannot be; the message names it.
    """

    _index: Any  # faiss', on the CPU; None where torch answers
    _searched: Any = None  # what answers: the same, or its copy on GPUs; None: it is yet to be made
    _resources: Any = None  # of faiss on a GPU: they must live as long as what uses them

    def __init__(
        self,
        vectors_ND: Tensor,
        ids: Tensor | None = None,
        *,
        factory: str = "Flat",
        metric: Metric = "inner_product",
        search: str = "",
        device: str | Sequence[int] = "cpu",
        seed: int = 0,
    ) -> None:
        if vectors_ND.ndim != 2 or vectors_ND.shape[1] < 1:
            raise ValueError(f"vectors must have the shape [N, D], got {list(vectors_ND.shape)}")
        self.factory, self.metric, self.seed, self.dim = factory, metric, seed, vectors_ND.shape[1]
        self._gpus = gpus_of(device, factory)
        self._num_trained = len(vectors_ND)
        self._check()
        ids_N = torch.arange(len(vectors_ND)) if ids is None else ids
        self._vectors_PD, ids_P = self._checked(vectors_ND, ids_N)
        self._keep(ids_P, torch.ones(len(ids_P), dtype=torch.bool))
        self._build()
        self.set_search(search)

    @classmethod
    def search_of(cls, vectors_ID: Tensor, **options: Any) -> Callable[[Tensor, int], Tensor]:
        """search(x_BD, k) -> item_idx_BK through the rows of vectors_ID, where none is -inf, padding where too few are
        found: with `functools.partial` and the options of an index the `build_index` of a two-tower model."""
        row_N = (~vectors_ID.isneginf().any(1)).nonzero()[:, 0]
        index = cls(vectors_ID[row_N], row_N, **options)
        return lambda x_BD, k: index.search(x_BD, k)[1].clamp(min=PADDING)

    def __len__(self) -> int:
        return self._num_alive

    @property
    def ids(self) -> Tensor:
        """The ids that can be found, int64, in the order of their positions."""
        return torch.from_numpy(self._table[:-1])[self._alive_P]

    @property
    def num_bytes(self) -> int:
        """Memory of faiss' index, the kept vectors not counted; of exact search that of the vectors."""
        if self._index is None:
            return self._vectors_PD.nbytes
        if self.factory == "CAGRA":  # an estimate: vectors and 64 neighbours
            return self._vectors_PD.nbytes + 4 * 64 * len(self._vectors_PD)
        sizes: list[int] = []
        faiss = faiss_module()
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(lambda part: sizes.append(len(part)), 2**20))
        return sum(sizes)

    def search(self, queries_BD: Tensor, k: int, *, exclude: Interactions | None = None) -> tuple[Tensor, Tensor]:
        """The K best items of each query, best first.

        As many more are fetched as the query excludes and as there are tombstones. Where that passes 2,048 (and the
        items are more), and for those queries only, the answer is exact, by torch.

        Args:
            queries_BD: real, finite, on any device.
            exclude: B rows of ids that are not to be returned; unknown ones do no harm.

        Returns:
            scores float32 [B, K], cosines with that metric, and ids int64 [B, K], on the device of the queries; -inf
            and -1 where fewer than K are found.

        Raises:
            ValueError: k < 1 (or > 2048 on a GPU), a wrong shape, or a query that is not finite.
        """
        if k < 1 or (self._gpus and self._index is not None and k > FETCHED):
            most = f" and at most {FETCHED} on a GPU" if k > 0 else ""
            raise ValueError(f"k={k} must be at least 1{most}")
        if queries_BD.ndim != 2 or queries_BD.shape[1] != self.dim:
            raise ValueError(f"queries must have the shape [B, {self.dim}], got {list(queries_BD.shape)}")
        if exclude is not None and exclude.num_rows != len(queries_BD):
            raise ValueError(f"exclude has {exclude.num_rows} rows for {len(queries_BD)} queries: give one a query")
        where = queries_BD.device
        queries_BD = queries_BD.detach().to("cpu" if self._index is not None else self._vectors_PD.device).float()
        # A sum is much faster than to look at each; it may have overflowed. By NumPy on a CPU: a thread of PyTorch's
        # would spin on beside those of faiss.
        total = queries_BD.sum() if queries_BD.is_cuda else queries_BD.numpy().sum()
        if not math.isfinite(float(total)):
            bad_B = (~queries_BD.isfinite().all(1)).nonzero()[:, 0]
            if len(bad_B):
                raise ValueError(f"the query in row {int(bad_B[0])} holds NaN or infinity: queries must be finite")
        queries_BD = (_unit(queries_BD) if self.metric == "cosine" else queries_BD).contiguous()
        if self._num_alive == len(self._alive_P) > 0 and self._index is not None and not exclude:
            scores_BK, position_BK = self._fetch(queries_BD.numpy(), k)
        else:
            scores_BK, position_BK = self._filtered(queries_BD, k, exclude)
        ids_BK = torch.from_numpy(self._table.take(position_BK))  # the last of the table is the id of position -1
        return torch.from_numpy(scores_BK).to(where), ids_BK.to(where)

    def _fetch(self, queries_BD: np.ndarray, fetched: int) -> tuple[np.ndarray, np.ndarray]:
        """What faiss finds: scores and positions [B, F], -inf and -1 where it finds fewer."""
        if self._searched is None:
            self._upload()
        options: dict[str, Any] = {}
        if self.factory == "CAGRA":  # wants a multiple of 32, and no fewer than are fetched
            options["params"] = faiss_module().SearchParametersCagra()
            options["params"].itopk_size = -(-max(int(self._parameters["itopk_size"]), fetched) // 32) * 32
        most = min(fetched, len(self._alive_P))
        scores_BF, position_BF = self._searched.search(queries_BD, most, **options)
        if position_BF.size and position_BF.min() < 0:
            scores_BF[position_BF < 0] = -np.inf
        if most < fetched:
            more = (0, 0), (0, fetched - most)
            scores_BF = np.pad(scores_BF, more, constant_values=-np.inf)
            position_BF = np.pad(position_BF, more, constant_values=-1)
        return scores_BF, position_BF

    def _filtered(self, queries_BD: Tensor, k: int, exclude: Interactions | None) -> tuple[np.ndarray, np.ndarray]:
        """As `_fetch`, without tombstones and what is excluded."""
        num_rows, num_positions = len(queries_BD), len(self._alive_P)
        pairs = Interactions.empty(num_rows, 1) if exclude is None else exclude.to("cpu")
        position_Z = self._positions(pairs.item_idx)
        row_Z, position_Z = pairs.row_idx()[position_Z >= 0], position_Z[position_Z >= 0]
        needed_B = k + torch.bincount(row_Z, minlength=num_rows) + num_positions - self._num_alive
        needed_B = needed_B.clamp(max=num_positions)
        exact_B = needed_B > (max(k, FETCHED) if self._index is not None and num_positions else -1)
        scores_BK = np.full((num_rows, k), -np.inf, dtype=np.float32)
        position_BK = np.full((num_rows, k), -1)
        row_B = (~exact_B).nonzero()[:, 0]
        if len(row_B):
            chosen_BD = queries_BD if len(row_B) == num_rows else queries_BD[row_B]
            scores_BF, position_BF = self._fetch(chosen_BD.numpy(), int(needed_B[row_B].max()))
            keep_BF = (position_BF >= 0) & self._alive_P.numpy()[position_BF]
            if len(row_Z):
                key_Z = np.sort((row_Z * num_positions + position_Z).numpy())
                key_BF = row_B.numpy()[:, None] * num_positions + position_BF
                keep_BF &= key_Z[np.searchsorted(key_Z, key_BF).clip(max=len(key_Z) - 1)] != key_BF
            place_BF = keep_BF.cumsum(1) - 1
            row, column = (keep_BF & (place_BF < k)).nonzero()
            into = row_B.numpy()[row], place_BF[row, column]
            scores_BK[into], position_BK[into] = scores_BF[row, column], position_BF[row, column]
        row_B = exact_B.nonzero()[:, 0]
        for part_B in row_B.split(max(1, _SCORES // max(1, num_positions))):
            place_B = torch.full((num_rows,), -1)
            place_B[part_B] = torch.arange(len(part_B))
            scores_BP = queries_BD[part_B.to(queries_BD.device)] @ self._vectors_PD.T
            scores_BP[:, (~self._alive_P).to(scores_BP.device)] = -torch.inf
            among_Z = place_B[row_Z] >= 0
            scores_BP[place_B[row_Z[among_Z]], position_Z[among_Z]] = -torch.inf
            best_BK, best_position_BK = (found.cpu() for found in scores_BP.topk(min(k, num_positions)))
            scores_BK[part_B, : best_BK.shape[1]] = best_BK
            position_BK[part_B, : best_BK.shape[1]] = best_position_BK.masked_fill(best_BK == -torch.inf, -1)
        return scores_BK, position_BK

    def add(self, vectors_ND: Tensor, ids: Tensor) -> None:
        """Add items; nothing is trained again.

        Raises:
            ValueError: an id that is there already, or what the constructor refuses; nothing is added.
        """
        vectors_ND, ids = self._checked(vectors_ND, ids)
        known_N = self._positions(ids) >= 0
        if bool(known_N.any()):
            raise ValueError(f"id {int(ids[known_N][0])} is in the index: update it, or remove it first")
        self._append(vectors_ND, ids)

    def update(self, vectors_ND: Tensor, ids: Tensor) -> None:
        """Give items other vectors; the old ones become tombstones.

        Raises:
            ValueError: an id that is not there, or what the constructor refuses; nothing is changed.
        """
        vectors_ND, ids = self._checked(vectors_ND, ids)
        self._bury(ids)
        self._append(vectors_ND, ids)

    def remove(self, ids: Tensor) -> None:
        """Remove items: they become tombstones, until those are more than a quarter of the items or 1,024: then the
        index is compacted. So a search of K <= 1,024 that excludes nothing never fetches more than 2,048.

        Raises:
            ValueError: an id that is not there, or twice; nothing is removed.
        """
        self._bury(_distinct(ids, len(ids)))
        self._compact_if_many()

    def compact(self) -> None:
        """Give faiss the vectors anew without the tombstones. What it was trained to stays as it is: build a new index
        when the vectors are no longer like those it was built of."""
        ids_P, alive_P = self.ids, self._alive_P
        self._vectors_PD = self._vectors_PD[alive_P.to(self._vectors_PD.device)]
        self._keep(ids_P, alive_P[alive_P])
        if self.factory == "CAGRA" and self._index is not None:
            self._build()
        elif self._index is not None:
            self._index.reset()
            self._index.add(self._vectors_PD.numpy())
            self._searched = None

    def set_search(self, search: str) -> None:
        """Change the search parameters; those not named return to faiss' defaults. Nothing is built again.

        Raises:
            ValueError: a name that this factory does not know, or a value out of its range.
        """
        if self._index is None:  # exact: parameters of an index would change nothing
            known: dict[str, float] = {}
        elif self.factory == "CAGRA":
            known = {"itopk_size": _PARAMETERS["itopk_size"]}
        else:
            faiss = faiss_module()
            space = faiss.ParameterSpace()
            space.initialize(self._index)
            names = [space.parameter_ranges.at(n).name for n in range(space.parameter_ranges.size())]
            base = {name: name.removeprefix("quantizer_") for name in names}
            known = {name: _PARAMETERS[base[name]] for name in names if base[name] in _PARAMETERS}
        most = {}
        if "nprobe" in known:
            lists = faiss.extract_index_ivf(self._index).nlist
            most["nprobe"] = min(lists, FETCHED) if self._gpus else lists
        self._parameters = known | parameters(search, known, most, self.factory)
        self.search_parameters = search
        if self._index is not None and self.factory != "CAGRA":
            for name, value in self._parameters.items():
                faiss.ParameterSpace().set_index_parameter(self._index, name, value)
            self._upload()

    def save(self, path: str | Path, *, key: str = "") -> None:
        """Write a folder: index.faiss (none for exact search and CAGRA, which `load` builds again),
        vectors.safetensors and index.json, which has their checksums. It is written beside and renamed.

        Args:
            key: what the vectors belong to, as the checksum of a model or of a schema.

        Raises:
            ValueError: there is something else at `path`.
        """
        from safetensors.torch import save_file

        path = Path(path)
        if path.exists() and not (path / DESCRIPTION).exists():
            raise ValueError(f"{path} is there and is no saved index: give another path")
        beside, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
        beside.mkdir(parents=True)
        try:
            tensors = {"vectors": self._vectors_PD.cpu(), "ids": torch.from_numpy(self._table[:-1].copy())}
            tensors["alive"] = self._alive_P
            atomic.write(beside / VECTORS, lambda file: save_file(tensors, file))
            if self._index is not None and self.factory != "CAGRA":
                atomic.write(beside / INDEX, lambda file: faiss_module().write_index(self._index, str(file)))
            checksums = {file.name: _checksum(file) for file in sorted(beside.iterdir())}
            description = {"format": "recsys index", "version": 1, "key": key}
            description |= {name: getattr(self, name) for name in ("factory", "metric", "seed", "dim")}
            counts = {"num_items": len(self), "num_positions": len(self._alive_P), "num_trained": self._num_trained}
            description |= {"search": self.search_parameters, **counts, "sha256": checksums}
            atomic.write_json(beside / DESCRIPTION, description)
            if path.exists():
                path.rename(old)
            beside.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(cls, path: str | Path, *, device: str | Sequence[int] = "cpu", key: str | None = None) -> ItemIndex:
        """What `save` wrote, with the search parameters it had.

        Args:
            key: the `key` it must have been saved with; None: any.

        Raises:
            ValueError: a file is missing or damaged, or the key is another; the message names the file.
        """
        from safetensors.torch import load_file

        path = Path(path)
        found = _description(path / DESCRIPTION)
        if key is not None and found["key"] != key:
            raise ValueError(f"{path} was built for key {found['key']!r}, not {key!r}: build it again")
        for name, checksum in found["sha256"].items():
            if not (path / name).is_file():
                raise ValueError(f"{path / name} is missing: copy the whole folder, or build it again")
            if _checksum(path / name) != checksum:
                raise ValueError(f"{path / name} is damaged: its checksum does not fit; build it again")
        index = cls.__new__(cls)
        index.factory, index.metric, index.seed, index.dim = (found[n] for n in ("factory", "metric", "seed", "dim"))
        index._num_trained = found["num_trained"]
        index._gpus = gpus_of(device, index.factory)
        index._check()
        tensors = load_file(path / VECTORS)
        index._vectors_PD = tensors["vectors"]
        index._keep(tensors["ids"], tensors["alive"])
        if INDEX in found["sha256"] and backend.installed("faiss"):
            index._index = faiss_module().read_index(str(path / INDEX))
        else:
            index._build()
        index.set_search(found["search"])
        return index

    def _check(self) -> None:
        check_factory(
            self.factory, dim=self.dim, num_vectors=self._num_trained, metric=self.metric, on_gpu=bool(self._gpus)
        )

    def _checked(self, vectors_ND: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors as they are kept, and their ids; whatever cannot be is refused."""
        if vectors_ND.ndim != 2 or vectors_ND.shape[1] != self.dim:
            raise ValueError(f"vectors must have the shape [N, {self.dim}], got {list(vectors_ND.shape)}")
        ids = _distinct(ids, len(vectors_ND))
        vectors_ND = vectors_ND.detach().to("cpu", torch.float32, copy=True).contiguous()
        bad_N = ~vectors_ND.isfinite().all(1)
        if bool(bad_N.any()):
            raise ValueError(f"the vector of id {int(ids[bad_N][0])} holds NaN or infinity: vectors must be finite")
        return _unit(vectors_ND) if self.metric == "cosine" else vectors_ND, ids

    def _keep(self, ids_P: Tensor, alive_P: Tensor) -> None:
        """Set what belongs to each position, and what follows from it."""
        self._table = np.append(ids_P.numpy(), -1)
        self._alive_P, self._num_alive = alive_P, int(alive_P.sum())
        position_N = alive_P.nonzero()[:, 0]
        self._sorted_ids, order = ids_P[position_N].sort()
        self._sorted_positions = position_N[order]

    def _positions(self, ids: Tensor) -> Tensor:
        """The positions of ids, -1 where there is none."""
        if not len(self._sorted_ids):
            return torch.full_like(ids, -1)
        place = torch.searchsorted(self._sorted_ids, ids.contiguous()).clamp(max=len(self._sorted_ids) - 1)
        return torch.where(self._sorted_ids[place] == ids, self._sorted_positions[place], -1)

    def _append(self, vectors_ND: Tensor, ids: Tensor) -> None:
        self._vectors_PD = torch.cat([self._vectors_PD, vectors_ND.to(self._vectors_PD.device)])
        ids_P = torch.cat([torch.from_numpy(self._table[:-1]), ids])
        self._keep(ids_P, torch.cat([self._alive_P, torch.ones(len(ids), dtype=torch.bool)]))
        if self.factory == "CAGRA" and self._index is not None:
            self._build()
        elif self._index is not None:
            self._index.add(vectors_ND.numpy())
            self._searched = None
        self._compact_if_many()

    def _bury(self, ids: Tensor) -> None:
        position_N = self._positions(ids)
        if bool((position_N < 0).any()):
            raise ValueError(f"id {int(ids[position_N < 0][0])} is not in the index: add it first")
        self._alive_P[position_N] = False
        self._keep(torch.from_numpy(self._table[:-1]), self._alive_P)

    def _compact_if_many(self) -> None:
        if len(self._alive_P) - self._num_alive > min(_TOMBSTONES, self._num_alive // 4):
            self.compact()

    def _build(self) -> None:
        """Make faiss' index of all positions; leave it None where torch answers."""
        self._index = self._searched = None
        if self.factory == "exact" or not backend.installed("faiss"):
            self._vectors_PD = self._vectors_PD.to(f"cuda:{self._gpus[0]}" if self._gpus else "cpu")
            return
        faiss = faiss_module()
        if self.factory == "CAGRA":
            config = faiss.GpuIndexCagraConfig()
            config.device = self._gpus[0]
            resources = faiss.StandardGpuResources()
            self._index = faiss.GpuIndexCagra(resources, self.dim, faiss.METRIC_INNER_PRODUCT, config)
            self._index.train(self._vectors_PD.numpy())
            self._searched, self._resources = self._index, resources
            return
        index = faiss.index_factory(self.dim, self.factory, faiss.METRIC_INNER_PRODUCT)
        seed_all(index, self.seed % 2**31)
        try:
            if not index.is_trained and self._gpus:
                self._resources = faiss.StandardGpuResources()
                there = faiss.index_cpu_to_gpu(self._resources, self._gpus[0], index, self._gpu_options(faiss))
                there.train(self._sample())
                there.add(self._vectors_PD.numpy())  # on a CPU finding the lists of millions takes minutes
                index = faiss.index_gpu_to_cpu(there)
            else:
                if not index.is_trained:
                    index.train(self._sample())
                index.add(self._vectors_PD.numpy())
        except RuntimeError as error:
            given = f"{len(self._vectors_PD)} vectors of {self.dim} dimensions"
            raise ValueError(f"factory={self.factory}: faiss cannot build it of {given} ({reason(error)})") from None
        self._index = index

    def _sample(self) -> np.ndarray:
        """The vectors to train with: at most as many as faiss' k-means would use, all where there is none."""
        centroids = [int(lists) for lists in re.findall(r"IVF(\d+)", self.factory)]
        centroids += [2 ** int(bits or 8) for bits in re.findall(r"(?:P|R|LS)Q\d+(?:x(\d+))?", self.factory)]
        most = POINTS[1] * max(256, *centroids) if centroids else len(self._vectors_PD)
        if len(self._vectors_PD) <= most:
            return self._vectors_PD.numpy()
        generator = torch.Generator().manual_seed(self.seed)
        return self._vectors_PD[torch.randperm(len(self._vectors_PD), generator=generator)[:most]].numpy()

    def _gpu_options(self, faiss: Any) -> Any:
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True
        # The float32 tables of so many parts do not fit a block's memory.
        options.useFloat16 = any(int(parts) > 48 for parts in re.findall(r",PQ(\d+)", self.factory))
        return options

    def _upload(self) -> None:
        """Make `_searched`: the index itself, or a copy on the GPUs."""
        if not self._gpus or self.factory == "CAGRA":
            self._searched = self._index
            return
        faiss, self._searched = faiss_module(), None  # the old copy goes first
        options = self._gpu_options(faiss)
        if len(self._gpus) == 1:
            self._resources = faiss.StandardGpuResources()
            self._searched = faiss.index_cpu_to_gpu(self._resources, self._gpus[0], self._index, options)
        else:
            self._searched = faiss.index_cpu_to_gpus_list(self._index, options, self._gpus)


def _distinct(ids: Tensor, num_vectors: int) -> Tensor:
    """Ids as int64 on the CPU: one a vector, >= 0, none twice."""
    if ids.ndim != 1 or len(ids) != num_vectors or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"ids must be integers [{num_vectors}], one a vector, got {ids.dtype} {list(ids.shape)}")
    ids = ids.detach().to("cpu", torch.int64)
    if len(ids) and int(ids.min()) < 0:
        raise ValueError(f"id {int(ids.min())} is negative: ids must be at least 0")
    ordered = ids.sort().values
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ValueError(f"id {int(twice[0])} is given twice: ids must be distinct")
    return ids


def _unit(vectors_ND: Tensor) -> Tensor:
    """Vectors of length one, zeros left as they are."""
    norm_N1 = vectors_ND.norm(dim=1, keepdim=True)
    if len(norm_N1) and not (float(norm_N1.min()) > 1e-15 and float(norm_N1.max()) < 1e15):
        # Squares of the smallest and largest floats leave the range.
        largest_N1 = vectors_ND.abs().amax(1, keepdim=True)
        vectors_ND = vectors_ND / largest_N1.masked_fill(largest_N1 == 0, 1)
        norm_N1 = vectors_ND.norm(dim=1, keepdim=True).clamp(min=1)
    return vectors_ND / norm_N1


def _checksum(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _description(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing: name the folder of a saved index") from None
    except ValueError:
        raise ValueError(f"{file} is damaged: it is not JSON; build it again") from None
    if not isinstance(found, dict) or (found.get("format"), found.get("version")) != ("recsys index", 1):
        raise ValueError(f"{file} is no index that this recsys reads: build it again")
    return found
