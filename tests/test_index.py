"""Item indexes against a sort of float64 products, whatever was added, updated, removed or excluded before."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from torch import Tensor

from recsys import backend
from recsys.faiss_factory import check_factory
from recsys.index import ItemIndex
from recsys.schema import NUM_RESERVED, Interactions

D = 8
EXACT = ["Flat", "exact"]
# Whatever is searched in full, or nearly so: (factory, search, the least recall of ten).
FACTORIES = [
    ("Flat", "", 1.0),
    ("exact", "", 1.0),
    ("IVF8,Flat", "nprobe=8", 1.0),
    ("PCAR8,Flat", "", 1.0),
    ("IVF8,PQ4x4fs,RFlat", "nprobe=8,k_factor_rf=40", 0.98),
    ("HNSW16", "efSearch=200", 0.98),
    ("SQ8", "", 0.9),
    ("RR8,IVF8,SQ8,RFlat", "nprobe=8,k_factor_rf=4", 0.98),
]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def vectors(num: int, seed: int = 0, dim: int = D) -> Tensor:
    """With a mean, so that what subtracts it is found out."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32) + 0.3)


def scores_of(items: dict[int, Tensor], queries_BD: Tensor, metric: str) -> dict[int, np.ndarray]:
    """float64 scores [B] of every id, one by one."""
    queries = queries_BD.double().numpy()
    found = {}
    for item, vector in items.items():
        y = vector.double().numpy()
        if metric == "cosine":
            y = y / (np.linalg.norm(y) or 1)
        found[item] = queries @ y
        if metric == "cosine":
            norms = np.linalg.norm(queries, axis=1)
            found[item] = found[item] / np.where(norms == 0, 1, norms)
    return found


def check(
    index: ItemIndex,
    items: dict[int, Tensor],
    queries_BD: Tensor,
    k: int,
    excluded: list[set[int]] | None = None,
    *,
    recall: float = 1.0,
    tolerance: float = 1e-5,
) -> None:
    """Against the best of all by a sort; scores, order, padding and what must not be there."""
    pairs = None
    if excluded is not None:
        row = torch.tensor([b for b, ids in enumerate(excluded) for _ in ids], dtype=torch.int64)
        item = torch.tensor([i for ids in excluded for i in ids], dtype=torch.int64)
        pairs = Interactions.from_pairs(row, item, num_rows=len(excluded), num_items=10**6)
    scores_BK, ids_BK = index.search(queries_BD, k, exclude=pairs)
    assert scores_BK.dtype == torch.float32
    assert ids_BK.dtype == torch.int64
    assert scores_BK.shape == ids_BK.shape == (len(queries_BD), k)
    expected = scores_of(items, queries_BD, index.metric)
    hits = total = 0
    for b in range(len(queries_BD)):
        allowed = {i: expected[i][b] for i in items if excluded is None or i not in excluded[b]}
        best = sorted(allowed.values(), reverse=True)[:k]
        ids, scores = ids_BK[b].tolist(), scores_BK[b].tolist()
        found = [i for i in ids if i >= 0]
        assert ids == found + [-1] * (k - len(found))
        assert scores[len(found) :] == [-np.inf] * (k - len(found))
        assert len(set(found)) == len(found)
        assert set(found) <= set(allowed)
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(scores[: len(found)], [allowed[i] for i in found], rtol=tolerance, atol=tolerance)
        if recall == 1:
            assert len(found) == len(best)
            np.testing.assert_allclose(scores[: len(best)], best, rtol=1e-5, atol=1e-5)
        hits += sum(allowed[i] >= best[-1] - 1e-5 for i in found)
        total += len(best)
    assert hits >= recall * total


# Search


@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
@pytest.mark.parametrize(("factory", "search", "recall"), FACTORIES)
def test_an_index_equals_a_sort_through_every_change(factory: str, search: str, recall: float, metric: Any) -> None:
    rng = np.random.default_rng(3)
    ids = torch.from_numpy(rng.permutation(100_000)[:700])
    given = vectors(700)
    index = ItemIndex(given[:640], ids[:640], factory=factory, search=search, metric=metric)
    items = dict(zip(ids[:640].tolist(), given[:640], strict=True))
    queries_BD = vectors(6, seed=1)
    tolerance = 0.1 if factory == "SQ8" else 1e-4
    for step in range(4):
        assert len(index) == len(items)
        assert sorted(index.ids.tolist()) == sorted(items)
        known = sorted(items)
        excluded = [set(rng.choice(known, n).tolist()) | {999_999} for n in (0, 3, 40, 0, 100, 1)]
        check(index, items, queries_BD, 10, recall=recall, tolerance=tolerance)
        check(index, items, queries_BD, 10, excluded, recall=recall, tolerance=tolerance)
        check(index, items, queries_BD, 10, [set()] * 6, recall=recall, tolerance=tolerance)
        if step == 0:
            gone = torch.tensor(known)[::11]
            index.remove(gone)
            items = {i: y for i, y in items.items() if i not in set(gone.tolist())}
        elif step == 1:
            index.add(given[640:], ids[640:])
            items |= dict(zip(ids[640:].tolist(), given[640:], strict=True))
        elif step == 2:
            some, other = torch.tensor(known)[::13], vectors(len(known[::13]), seed=8)
            index.update(other, some)
            items |= dict(zip(some.tolist(), other, strict=True))
    tombstones = len(index._alive_P) - len(index)
    assert 0 < tombstones <= len(index) // 4
    index.compact()
    assert len(index._alive_P) == len(index) == len(items)
    check(index, items, queries_BD, 10, excluded, recall=recall, tolerance=tolerance)


def test_tombstones_are_compacted_when_they_are_many() -> None:
    given, queries_BD = vectors(300), vectors(3, seed=1)
    index = ItemIndex(given, factory="HNSW8", search="efSearch=300")
    for start in range(0, 280, 20):
        index.remove(torch.arange(start, start + 20))
        assert len(index._alive_P) - len(index) <= max(0, len(index) // 4)
        check(index, {i: given[i] for i in range(start + 20, 300)}, queries_BD, 5, recall=0.95)
    index.remove(torch.arange(280, 300))
    assert len(index) == 0
    scores_BK, ids_BK = index.search(queries_BD, 4)
    assert bool((ids_BK == -1).all())
    assert bool((scores_BK == -np.inf).all())
    index.add(given[:5], torch.arange(5) + 7)
    check(index, {i + 7: given[i] for i in range(5)}, queries_BD, 8)


@pytest.mark.parametrize("factory", ["Flat", "exact", "IVF8,Flat"])
def test_rows_that_need_more_than_2048_are_answered_exactly(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, queries_BD = vectors(4000, dim=4), vectors(4, seed=1, dim=4)
    index = ItemIndex(given, factory=factory, search="" if factory in EXACT else "nprobe=8")
    items = dict(enumerate(given))
    index.remove(torch.arange(0, 4000, 8))
    items = {i: y for i, y in items.items() if i % 8}
    fetched: list[tuple[int, int]] = []
    fetch = index._fetch
    monkeypatch.setattr(index, "_fetch", lambda q, f: fetched.append((len(q), f)) or fetch(q, f))
    expected = scores_of(items, queries_BD, "inner_product")
    best = [sorted(items, key=lambda i: -expected[i][b])[:n] for b, n in enumerate((5, 1600, 0, 2500))]
    check(index, items, queries_BD, 20, [set(ids) for ids in best])
    assert fetched == ([] if factory == "exact" else [(2, 525)])
    check(index, items, queries_BD, 3000, [set(ids) for ids in best])


def test_k_beyond_the_catalogue_and_beyond_2048() -> None:
    given, queries_BD = vectors(30), vectors(2, seed=1)
    for factory in ("Flat", "exact", "HNSW8"):
        index = ItemIndex(given, factory=factory, search="efSearch=30" if factory == "HNSW8" else "")
        check(index, dict(enumerate(given)), queries_BD, 50)
        check(index, dict(enumerate(given)), queries_BD, 50, [{0, 1, 2}, set(range(30))])
        check(index, dict(enumerate(given)), queries_BD, 2500)


def test_lists_that_run_short_are_padded() -> None:
    index = ItemIndex(vectors(400), factory="IVF10,Flat")
    scores_BK, ids_BK = index.search(vectors(5, seed=1), 300)
    assert bool((ids_BK[:, -1] == -1).all())
    assert bool(((scores_BK == -np.inf) == (ids_BK == -1)).all())


@pytest.mark.parametrize("factory", EXACT)
def test_equal_scores_fill_a_list(factory: str) -> None:
    index = ItemIndex(torch.ones(50, D), factory=factory)
    check(index, dict.fromkeys(range(50), torch.ones(D)), torch.ones(3, D), 20, [set(), {1, 2}, set(range(40))])


@pytest.mark.parametrize("factory", EXACT)
def test_cosine_of_zeros_and_of_the_largest_and_smallest_floats(factory: str) -> None:
    given = vectors(40)
    given[3] = 0
    given[4] *= 1e37
    given[5] *= 1e-37
    queries_BD = torch.cat([vectors(2, seed=1), torch.zeros(1, D), vectors(1, seed=2) * 1e37])
    index = ItemIndex(given, factory=factory, metric="cosine")
    check(index, dict(enumerate(given)), queries_BD, 40)
    assert index.search(queries_BD, 40)[0].abs().max() <= 1 + 1e-5


def test_queries_of_any_layout_and_dtype() -> None:
    given, queries_BD = vectors(60), vectors(8, seed=1)
    index = ItemIndex(given.double(), torch.arange(60, dtype=torch.int32))
    expected = index.search(queries_BD, 5)
    layouts = [queries_BD.double(), queries_BD.T.contiguous().T, queries_BD.repeat(1, 2)[:, :D]]
    for other in [*layouts, queries_BD.clone().requires_grad_()]:
        before = other.detach().clone()
        assert all(torch.equal(a, b) for a, b in zip(index.search(other, 5), expected, strict=True))
        assert torch.equal(other, before)
    assert torch.equal(index.search(queries_BD.half(), 5)[1], index.search(queries_BD.half().float(), 5)[1])
    assert index.search(queries_BD[:0], 5)[1].shape == (0, 5)
    assert index.search(queries_BD[:0], 5, exclude=Interactions.empty(0, 9))[1].shape == (0, 5)


def test_the_callers_tensors_are_not_shared() -> None:
    given, queries_BD = vectors(20), vectors(2, seed=1)
    index = ItemIndex(given, factory="exact")
    expected = index.search(queries_BD, 5)[0]
    given.zero_()
    assert torch.equal(index.search(queries_BD, 5)[0], expected)


# Building


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,PQ4x4fs,RFlat", "PQ4x4", "PCAR4,IVF8,SQ8", "HNSW8"])
def test_one_seed_builds_one_index(factory: str) -> None:
    given = vectors(800)
    first, again, other = (ItemIndex(given, factory=factory, seed=seed) for seed in (5, 5, 6))
    content = [faiss.serialize_index(index._index).tobytes() for index in (first, again, other)]
    assert content[0] == content[1] != content[2]
    assert first.num_bytes == len(content[0])


def test_training_takes_a_sample_of_what_is_many() -> None:
    index = ItemIndex(vectors(70_000, dim=2), factory="IVF2,Flat")
    assert len(index._sample()) == 256 * 256
    assert len(np.unique(index._sample(), axis=0)) == 256 * 256
    assert np.array_equal(index._sample(), index._sample())
    index.factory = "SQ8"
    assert len(index._sample()) == 70_000


def test_parameters_change_without_building() -> None:
    given, queries_BD = vectors(800), vectors(20, seed=1)
    index = ItemIndex(given, factory="IVF16,SQ8,RFlat")
    few = index.search(queries_BD, 10)[1]
    index.set_search("nprobe=16,k_factor_rf=20")
    check(index, dict(enumerate(given)), queries_BD, 10)
    index.set_search("")
    assert torch.equal(index.search(queries_BD, 10)[1], few)


def test_memory_is_told() -> None:
    given = vectors(1000)
    plain, small = (ItemIndex(given, factory=factory).num_bytes for factory in ("Flat", "SQ8"))
    assert ItemIndex(given, factory="exact").num_bytes == 4 * 1000 * D
    assert 4 * 1000 * D < plain < 4 * 1000 * D + 1000
    assert 1000 * D < small < 1000 * D + 1000


def test_a_two_tower_model_can_mine_through_it() -> None:
    vectors_ID, queries_BD = vectors(50), vectors(3, seed=1)
    vectors_ID[:NUM_RESERVED, -1] = -torch.inf
    search = partial(ItemIndex.search_of, factory="HNSW8", search="efSearch=64")(vectors_ID)
    expected = (queries_BD @ vectors_ID[NUM_RESERVED:].T).topk(7).indices + NUM_RESERVED
    assert torch.equal(search(queries_BD, 7), expected)
    assert set(search(queries_BD, 60)[:, 48:].flatten().tolist()) == {0}


# What is refused

FEW = {"dim": 32, "num_vectors": 3000, "metric": "inner_product", "on_gpu": False}


@pytest.mark.parametrize(
    ("factory", "changes", "message"),
    [
        ("PQ5x4", {}, "factory=PQ5x4: the parts of PQ5 must divide the dimension 32, the nearest is PQ4"),
        ("OPQ7,PQ4x4", {"num_vectors": 20_000}, "nearest is OPQ8"),
        ("PQ0x4", {}, "nearest is PQ1"),
        ("PCAR12,PQ8x4", {}, "divide the dimension 12, the nearest is PQ6"),
        ("OPQ4_24,PQ7x4", {"num_vectors": 20_000}, "divide the dimension 24, the nearest is PQ6"),
        ("IVF128,Flat", {}, "128 lists need 4992 vectors, there are 3000; the nearest is IVF76"),
        ("IVF0,Flat", {}, "nearest is IVF1"),
        ("IVF1,Flat", {"num_vectors": 38}, "use Flat"),
        ("IVF99999999999,Flat", {}, "nearest is IVF76"),
        ("PQ4", {}, "8 bits need 9984 vectors, there are 3000; the nearest is PQ4x6"),
        ("PQ4x0", {}, "nearest is PQ4x1"),
        ("RQ4x0", {}, "nearest is RQ4x1"),
        ("PQ4x24", {}, "nearest is PQ4x6"),
        ("PQ4x4fs", {"num_vectors": 70}, "use SQ8"),
        ("OPQ4,PQ4x4", {}, "use PQ without the O"),
        ("HNSW1", {}, "nearest is HNSW2"),
        ("IVF16_HNSW0,Flat", {}, "nearest is HNSW2"),
        ("HNSW8_PQ4x4", {}, "Euclidean distance alone"),
        ("HNSW-1", {}, "faiss cannot build it"),
        ("PCAR64,Flat", {}, "3000 vectors of 32 dimensions cannot become 64 wide, the most is PCAR32"),
        ("PCAR16,Flat", {"num_vectors": 9}, "the most is PCAR9"),
        ("PCAW16,Flat", {}, "changes inner products, use PCAR"),
        ("L2norm,Flat", {}, "use metric=cosine"),
        ("NSG32", {}, "use HNSW"),
        ("LSH", {}, "faiss cannot build it"),
        ("nonsense", {}, r"could not parse index string nonsense\); try Flat"),
        ("", {}, "could not parse"),
        ("Flat,", {}, "could not parse"),
        ("Flat", {"metric": "euclidean"}, "metric=euclidean: expected inner_product or cosine"),
        ("CAGRA", {}, r"pip install 'recsys\[cuvs\]'"),
        ("HNSW32", {"on_gpu": True}, "does not run on a GPU"),
        ("IVF16,PQ8x4fs", {"on_gpu": True}, "does not run on a GPU"),
        ("IVF16,Flat,RFlat", {"on_gpu": True}, "does not run on a GPU"),
        ("IVF16,PQ30", {"on_gpu": True, "dim": 120, "num_vectors": 20_000}, "nearest is PQ24"),
    ],
)
def test_a_factory_that_cannot_be_is_refused_with_the_nearest(factory: str, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        check_factory(factory, **(FEW | changes))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "factory", ["Flat", "exact", "IVF76,Flat", "PQ32x4fs", "IVF16,PQ32x4fs,RFlat", "OPQ8_16,IVF64,PQ16", "SQfp16"]
)
def test_a_factory_that_can_be_is_not_refused(factory: str) -> None:
    check_factory(factory, **(FEW | {"num_vectors": 20_000 if "O" in factory else 3000}))
    if factory.startswith("IVF76"):
        check_factory("IVF76,Flat", **(FEW | {"on_gpu": True}))


@pytest.mark.parametrize(
    ("factory", "search", "message"),
    [
        ("IVF4,Flat", "nprobe=0", "search=nprobe=0: nprobe must be a whole number, at least 1 and at most 4, got 0"),
        ("IVF4,Flat", "nprobe=5", "at most 4, got 5"),
        ("IVF4,Flat", "nprobe=1.5", "whole number"),
        ("IVF4,Flat", "nprobe=inf", "whole number"),
        ("IVF4,Flat", "nprobe", "got nothing"),
        ("IVF4,Flat", "nprobe=many", "got many"),
        ("IVF4,Flat", "efSearch=4", "factory=IVF4,Flat takes nprobe, not efSearch"),
        ("IVF4,SQ8,RFlat", "ef=4", "takes k_factor_rf, nprobe, not ef"),
        ("IVF4,SQ8,RFlat", "k_factor_rf=0.5", "k_factor_rf must be a number, at least 1, got 0.5"),
        ("HNSW8", "efSearch=0", "efSearch must be a whole number, at least 1, got 0"),
        ("IVF4_HNSW8,Flat", "quantizer_efSearch=0", "at least 1"),
        ("Flat", "nprobe=1", "takes nothing, not nprobe"),
        ("exact", "nprobe=1", "takes nothing, not nprobe"),
    ],
)
def test_search_parameters_that_cannot_be_are_refused(factory: str, search: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ItemIndex(vectors(200), factory=factory, search=search)


def with_value(value: float) -> Tensor:
    given = vectors(4)
    given[2, 1] = value
    return given


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda index: ItemIndex(with_value(np.nan), torch.tensor([5, 6, 77, 8])), "vector of id 77 holds NaN"),
        (lambda index: index.add(with_value(np.inf), torch.tensor([50, 60, 77, 80])), "vector of id 77 holds NaN"),
        (lambda index: ItemIndex(torch.zeros(4)), r"shape \[N, D\], got \[4\]"),
        (lambda index: ItemIndex(torch.zeros(4, 0)), r"got \[4, 0\]"),
        (lambda index: ItemIndex(vectors(4), torch.tensor([1, 2, 2, 3])), "id 2 is given twice"),
        (lambda index: ItemIndex(vectors(4), torch.tensor([1, -2, 2, 3])), "id -2 is negative"),
        (lambda index: ItemIndex(vectors(4), torch.arange(3)), r"integers \[4\], one a vector"),
        (lambda index: ItemIndex(vectors(4), torch.arange(4.0)), "got torch.float32"),
        (lambda index: ItemIndex(vectors(4), device="tpu"), "device=tpu: expected cpu, cuda or a list"),
        (lambda index: index.add(vectors(2), torch.tensor([50, 3])), "id 3 is in the index: update it"),
        (lambda index: index.add(vectors(2, dim=3), torch.tensor([50, 51])), r"shape \[N, 8\], got \[2, 3\]"),
        (lambda index: index.update(vectors(2), torch.tensor([3, 50])), "id 50 is not in the index: add it"),
        (lambda index: index.update(with_value(np.nan), torch.arange(4)), "vector of id 2 holds"),
        (lambda index: index.remove(torch.tensor([3, 50])), "id 50 is not in the index"),
        (lambda index: index.remove(torch.tensor([3, 3])), "id 3 is given twice"),
        (lambda index: index.search(vectors(2), 0), "k=0 must be at least 1$"),
        (lambda index: index.search(vectors(2, dim=3), 1), r"queries must have the shape \[B, 8\], got \[2, 3\]"),
        (lambda index: index.search(vectors(2)[0], 1), r"got \[8\]"),
        (lambda index: index.search(with_value(np.nan), 1), "query in row 2 holds NaN"),
        (lambda index: index.search(vectors(2), 1, exclude=Interactions.empty(3, 9)), "exclude has 3 rows for 2"),
    ],
)
@pytest.mark.parametrize("factory", EXACT)
def test_what_cannot_be_is_refused_and_changes_nothing(act: Any, message: str, factory: str) -> None:
    given = vectors(40)
    index = ItemIndex(given, factory=factory)
    with pytest.raises(ValueError, match=message):
        act(index)
    check(index, dict(enumerate(given)), vectors(2, seed=1), 40)


def test_what_is_removed_can_neither_be_updated_nor_removed_but_added() -> None:
    given = vectors(40)
    index = ItemIndex(given)
    index.remove(torch.tensor([4]))
    for act in (index.remove, partial(index.update, given[:1])):
        with pytest.raises(ValueError, match="id 4 is not in the index"):
            act(torch.tensor([4]))
    index.add(given[5:6], torch.tensor([4]))
    check(index, dict(enumerate(given)) | {4: given[5]}, vectors(2, seed=1), 40)


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this faiss has a GPU")
@pytest.mark.parametrize("device", ["cuda", [0, 1]])
def test_a_faiss_without_gpu_says_so(device: Any) -> None:
    with pytest.raises(ValueError, match=r"this faiss has no GPU; pip install 'recsys\[gpu\]'"):
        ItemIndex(vectors(4), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_exact_search_wants_a_gpu_that_is_there() -> None:
    with pytest.raises(ValueError, match="of the 0 that are there"):
        ItemIndex(vectors(4), factory="exact", device="cuda")


def test_without_faiss_flat_is_exact_and_others_name_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given, queries_BD = vectors(60), vectors(3, seed=1)
    ItemIndex(given).save(tmp_path / "with")
    ItemIndex(given, factory="HNSW8").save(tmp_path / "graph")
    monkeypatch.setattr(backend, "installed", lambda module: module != "faiss")
    index = ItemIndex(given)
    assert index._index is None
    check(index, dict(enumerate(given)), queries_BD, 9, [{1, 2}, set(), {5}])
    check(ItemIndex.load(tmp_path / "with"), dict(enumerate(given)), queries_BD, 9)
    index.save(tmp_path / "without")
    for act in (partial(ItemIndex, given, factory="HNSW8"), partial(ItemIndex.load, tmp_path / "graph")):
        with pytest.raises(ValueError, match=r"HNSW8 needs faiss: pip install 'recsys\[cpu\]', or factory=exact"):
            act()
    monkeypatch.undo()
    assert ItemIndex.load(tmp_path / "without")._index is not None


# Files


@pytest.mark.parametrize("factory", ["Flat", "exact", "IVF8,SQ8,RFlat", "PCAR4,IVF8,Flat", "HNSW8"])
@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
def test_what_is_saved_answers_the_same(factory: str, metric: Any, tmp_path: Path) -> None:
    given, queries_BD = vectors(400), vectors(5, seed=1)
    search = {"IVF8,SQ8,RFlat": "nprobe=3,k_factor_rf=2", "HNSW8": "efSearch=50"}.get(factory, "")
    index = ItemIndex(given, torch.arange(400) * 3, factory=factory, metric=metric, search=search)
    index.remove(torch.arange(20) * 3)
    index.save(tmp_path / "deep" / "index")
    loaded = ItemIndex.load(tmp_path / "deep" / "index")
    names = ("factory", "metric", "seed", "dim", "search_parameters", "num_bytes")
    assert [getattr(loaded, name) for name in names] == [getattr(index, name) for name in names]
    assert torch.equal(loaded.ids, index.ids)
    for one in (index, loaded):
        one.update(vectors(3, seed=4), torch.tensor([300, 303, 306]))
        one.add(vectors(3, seed=5), torch.tensor([1, 2, 4]))
    exclude = Interactions.from_pairs(torch.tensor([0, 2]), torch.tensor([63, 300]), num_rows=5, num_items=1200)
    for options in ({}, {"exclude": exclude}):
        pairs = zip(index.search(queries_BD, 9, **options), loaded.search(queries_BD, 9, **options), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_folder_is_replaced_as_a_whole_and_only_if_it_is_an_index(tmp_path: Path) -> None:
    ItemIndex(vectors(40)).save(tmp_path / "index", key="first")
    ItemIndex(vectors(30), factory="exact").save(tmp_path / "index", key="second")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == ["index.json", "vectors.safetensors"]
    assert len(ItemIndex.load(tmp_path / "index", key="second")) == 30
    with pytest.raises(ValueError, match="built for key 'second', not 'first': build it again"):
        ItemIndex.load(tmp_path / "index", key="first")
    with pytest.raises(ValueError, match="is no saved index: give another path"):
        ItemIndex(vectors(40)).save(tmp_path)


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ItemIndex(vectors(40)).save(tmp_path / "index")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp":
            raise OSError("no space")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no space"):
        ItemIndex(vectors(30)).save(tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert len(ItemIndex.load(tmp_path / "index")) == 40


@pytest.mark.parametrize("name", ["index.faiss", "vectors.safetensors"])
@pytest.mark.parametrize("damage", ["byte", "short", "gone"])
def test_damage_is_found_before_anything_is_read(
    name: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ItemIndex(vectors(300), factory="IVF4,Flat").save(tmp_path / "index")
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("a damaged file was read"))
    file = tmp_path / "index" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "byte" else content[:-9])
    with pytest.raises(ValueError, match=rf"index/{name} is {'missing' if damage == 'gone' else 'damaged'}: .*again"):
        ItemIndex.load(tmp_path / "index")


def test_a_description_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"index.json is missing: name the folder of a saved index"):
        ItemIndex.load(tmp_path / "none")
    ItemIndex(vectors(30)).save(tmp_path / "index")
    file = tmp_path / "index" / "index.json"
    newer = json.dumps(json.loads(file.read_text()) | {"version": 2})
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "is no index"),
        (newer, "is no index"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            ItemIndex.load(tmp_path / "index")


# GPU


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and hasattr(faiss, "StandardGpuResources")), reason="needs CUDA and faiss-gpu"
)
@pytest.mark.parametrize("factory", ["exact", "Flat", "IVF8,Flat", "PCAR8,IVF8,SQ8", "IVF8,PQ4"])
def test_a_gpu_finds_what_a_cpu_finds(factory: str, tmp_path: Path) -> None:
    given, queries_BD = vectors(12_000), vectors(5, seed=1)
    search = "nprobe=8" if "IVF" in factory else ""
    index = ItemIndex(given, factory=factory, device="cuda", search=search)
    index.remove(torch.arange(10))
    index.save(tmp_path / "index")
    scores_BK, ids_BK = index.search(queries_BD.cuda(), 20)
    assert ids_BK.is_cuda
    expected_BK, expected_ids_BK = ItemIndex.load(tmp_path / "index").search(queries_BD, 20)
    torch.testing.assert_close(scores_BK.cpu(), expected_BK, rtol=1e-3, atol=1e-3)
    assert float((ids_BK.cpu() == expected_ids_BK).float().mean()) > 0.95
    if factory != "exact":
        with pytest.raises(ValueError, match="at most 2048 on a GPU"):
            index.search(queries_BD, 3000)
