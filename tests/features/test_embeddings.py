"""Embedding tables: widths, precomputed vectors in files, and their rows by a vocabulary."""

import math
import random

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from recsys.features import FeaturePipeline, Pretrained, embeddings
from recsys.features.embeddings import align, embedding_dim, load_embeddings, save_embeddings
from recsys.features.vocabulary import Vocabulary

FORMATS = ["parquet", "pq", "safetensors"]
IDS = {
    "text": ["b", "", "żółw 🐢", "naïve", "7", "名前"],
    "integers": [7, 0, -(2**63), 2**63 - 1, 3, 2**53 + 1],
}


def vectors(n, dim=4, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


# --- width ----------------------------------------------------------------------------------------------------


def test_the_width_is_six_times_the_fourth_root():
    assert [embedding_dim(n) for n in (1, 2, 16, 17, 10_000, 10**8)] == [6, 8, 12, 13, 60, 600]
    assert [embedding_dim(n, factor=1) for n in (1, 2, 16, 17, 81, 82)] == [1, 2, 2, 3, 3, 4]
    assert embedding_dim(5, factor=1e-9) == 1


@settings(deadline=None)
@given(st.integers(1, 5000))
def test_fourth_powers_have_an_exact_root(root):
    assert embedding_dim(root**4, factor=1) == root
    assert embedding_dim(root**4 + 1, factor=1) in (root, root + 1)  # past 2**53 a double cannot tell


@settings(deadline=None)
@given(st.integers(1, 10**9), st.floats(0.1, 20), st.integers(1, 64), st.integers(64, 500))
def test_the_width_is_the_next_multiple_within_the_maximum(n, factor, multiple, maximum):
    plain, dim = embedding_dim(n, factor), embedding_dim(n, factor, multiple)
    assert dim % multiple == 0
    assert plain <= dim < plain + multiple
    capped = embedding_dim(n, factor, multiple, maximum)
    assert capped == (dim if dim <= maximum else maximum - maximum % multiple)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_categories": 0}, "num_categories=0: expected 1 or more"),
        ({"num_categories": 9, "multiple_of": 0}, "multiple_of=0: expected 1 or more"),
        ({"num_categories": 9, "factor": 0.0}, "factor=0.0: expected a number above 0"),
        ({"num_categories": 9, "factor": math.nan}, "factor=nan"),
        ({"num_categories": 9, "multiple_of": 8, "maximum": 7}, "maximum=7: expected at least multiple_of=8"),
    ],
)
def test_the_width_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        embedding_dim(**arguments)


# --- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", IDS)
def test_ids_and_vectors_come_back_to_the_bit(suffix, kind, tmp_path):
    ids, given_vectors = IDS[kind], vectors(6)
    given_vectors[0] = torch.tensor([-0.0, 1e-45, -3.4e38, 0.1])
    path = tmp_path / "new folder" / f"items*.{suffix}"
    save_embeddings(path, pl.Series("anything", ids), given_vectors)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    loaded, table = load_embeddings(str(path))
    assert loaded.to_list() == ids
    assert loaded.dtype == (pl.String if kind == "text" else pl.Int64)
    assert torch.equal(table.view(torch.int32), given_vectors.view(torch.int32))
    table[0] = 0  # its own memory
    assert torch.equal(load_embeddings(path)[1].view(torch.int32), given_vectors.view(torch.int32))


@pytest.mark.parametrize("suffix", FORMATS)
def test_other_floats_views_and_types_of_ids(suffix, tmp_path):
    path, wide = tmp_path / f"items.{suffix}", vectors(3, 8)
    save_embeddings(path, pl.Series(["a", "b", "c"], dtype=pl.Categorical), wide.double()[:, ::2].requires_grad_())
    assert torch.equal(load_embeddings(path)[1], wide[:, ::2])
    save_embeddings(path, pl.Series([3, 1, 2], dtype=pl.UInt64), wide.bfloat16().t().contiguous().t())
    ids, table = load_embeddings(path)
    assert ids.to_list() == [3, 1, 2]
    assert torch.equal(table, wide.bfloat16().float())


def test_what_the_files_hold(tmp_path):
    save_embeddings(tmp_path / "a.parquet", ["x", "y"], vectors(2))
    frame = pl.read_parquet(tmp_path / "a.parquet")
    assert dict(frame.schema) == {"id": pl.String(), "vector": pl.Array(pl.Float32, 4)}
    save_embeddings(tmp_path / "a.safetensors", ["x", "yé"], vectors(2))
    tensors = load_file(tmp_path / "a.safetensors")
    assert bytes(tensors["id_bytes"].tolist()).decode() == "xyé"
    assert tensors["id_offsets"].tolist() == [0, 1, 4]
    save_embeddings(tmp_path / "a.safetensors", [5, 6], vectors(2))
    assert load_file(tmp_path / "a.safetensors").keys() == {"ids", "vectors"}


@pytest.mark.parametrize("dtype", [pl.List(pl.Float32), pl.List(pl.Int16), pl.Array(pl.Float64, 2)])
def test_parquet_of_other_makers(dtype, tmp_path):
    path = tmp_path / "other.parquet"
    lists = pl.Series([[1, 2], [3, 4]], dtype=dtype)
    for ids in (pl.Series([4, 5], dtype=pl.UInt32), pl.Series(["p", "q"], dtype=pl.Categorical)):
        pl.DataFrame({"embedding": lists, "movie": ids}).write_parquet(path)
        loaded, table = load_embeddings(path)
        assert loaded.to_list() == ids.to_list()
        assert table.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    # Names decide where types do not.
    frame = pl.DataFrame({"n": [1, 2], "id": ["p", "q"], "old": lists, "vector": lists.reverse()})
    frame.write_parquet(path)
    loaded, table = load_embeddings(path)
    assert loaded.to_list() == ["p", "q"]
    assert table.tolist() == [[3.0, 4.0], [1.0, 2.0]]
    frame.rename({"id": "key"}).write_parquet(path)
    with pytest.raises(ValueError, match=r"other.parquet: expected a column 'id' of integers or text, or one alone"):
        load_embeddings(path)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"id": [1, None], "vector": [[1.0], [2.0]]}, "the id in row 1 is missing"),
        ({"id": [1, 1], "vector": [[1.0], [2.0]]}, "id 1 occurs a second time in row 1: keep one vector"),
        ({"id": [1, 2], "vector": [[1.0], [2.0, 3.0]]}, "the vector in row 1 has 2 numbers, in row 0 it has 1"),
        ({"id": [1, 2], "vector": [[1.0], None]}, "the vector in row 1 has 0 numbers"),
        ({"id": [1, 2], "vector": [None, [1.0]]}, "the vector in row 0 has 0 numbers"),
        ({"id": ["a", "b"], "vector": [[1.0], [math.nan]]}, r"the vector of id 'b' \(row 1\) has a value missing, NaN"),
        ({"id": ["a", "b"], "vector": [[None], [1.0]]}, r"the vector of id 'a' \(row 0\) has a value missing"),
        ({"id": [2**63], "vector": [[1.0]]}, "id 9223372036854775808 exceeds 64 signed bits: give ids as text"),
        ({"id": [0.5], "vector": [[1.0]]}, "expected a column 'id' of integers or text.* found id Float64"),
        ({"id": [1], "vector": [["a"]]}, "expected a column 'vector' of lists of numbers"),
        ({"id": [1], "vector": [1.0]}, "expected a column 'vector' of lists of numbers"),
    ],
)
def test_parquet_refuses_bad_rows(frame, message, tmp_path):
    path = tmp_path / "bad.parquet"
    pl.DataFrame(frame).write_parquet(path)
    with pytest.raises(ValueError, match=f"bad.parquet: {message}") as raised:
        load_embeddings(path)
    assert "\n" not in str(raised.value)


def test_parquet_without_rows(tmp_path):
    schema = {"id": pl.Int64, "vector": pl.Array(pl.Float32, 2)}
    pl.DataFrame(schema=schema).write_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"none.parquet: no rows"):
        load_embeddings(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"vectors": torch.ones(2, 2)}, "no tensor 'ids' among vectors"),
        ({"ids": torch.arange(2)}, "no tensor 'vectors' among ids"),
        ({"ids": torch.arange(2).int(), "vectors": torch.ones(2, 2)}, "tensor 'ids' should be torch.int64 of one dim"),
        ({"ids": torch.arange(3), "vectors": torch.ones(2, 2)}, r"expected N ids .* got 3 ids and float32 vectors"),
        ({"ids": torch.tensor([4, 4]), "vectors": torch.ones(2, 2)}, "id 4 occurs a second time in row 1"),
        ({"ids": torch.tensor([4, 5]), "vectors": torch.full((2, 2), torch.inf)}, r"the vector of id 4 \(row 0\)"),
        (
            {"id_bytes": torch.ones(2).byte(), "id_offsets": torch.tensor([0, 1, 9]), "vectors": torch.ones(2, 2)},
            "not readable as safetensors: .*; is it complete",
        ),
        (
            {"id_bytes": torch.full((2,), 255).byte(), "id_offsets": torch.arange(3), "vectors": torch.ones(2, 2)},
            "not readable as safetensors: .*UTF",
        ),
    ],
)
def test_safetensors_refuses_bad_tensors(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=f"bad.safetensors: {message}") as raised:
        load_embeddings(tmp_path / "bad.safetensors")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", IDS)
def test_a_damaged_file_is_one_line_that_names_it(suffix, kind, tmp_path):
    path = tmp_path / f"items.{suffix}"
    save_embeddings(path, IDS[kind], vectors(6))
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 20, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"items.{suffix}: not readable as {suffix}: .*; is it complete\?"):
            load_embeddings(path)
    draw = random.Random(0)
    for _ in range(100):  # a changed byte may go unseen, as in a vector of safetensors, or be one line
        at = draw.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ draw.randrange(1, 256)]) + whole[at + 1 :])
        said = f"{path}: "
        try:
            load_embeddings(path)
        except ValueError as error:
            said = str(error)
        assert said.startswith(f"{path}: ")
        assert len(said.splitlines()) == 1


def test_missing_files_and_unknown_suffixes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.parquet: no such file"):
        load_embeddings(tmp_path / "none.parquet")
    for name, said in (("a.npy", "not .npy"), ("a", "not without a suffix")):
        with pytest.raises(ValueError, match=rf"{name}: embeddings are .parquet or .safetensors, {said}"):
            load_embeddings(tmp_path / name)
        with pytest.raises(ValueError, match=said):
            save_embeddings(tmp_path / name, [1], vectors(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("ids", "table", "message"),
    [
        ([1, 2], vectors(3), r"expected N ids and float vectors \[N, D\], none empty; got 2 ids and .* \[3, 4\]"),
        ([1], torch.ones(1), r"float32 vectors \[1\]"),
        ([1], torch.ones(1, 0), r"float32 vectors \[1, 0\]"),
        ([1, 1], vectors(2), "id 1 occurs a second time in row 1"),
        (["a", None], vectors(2), "the id in row 1 is missing"),
        ([0.5], vectors(1), "ids should be integers or text, they are Float64"),
        ([1], torch.tensor([[1e39]], dtype=torch.float64), r"the vector of id 1 \(row 0\)"),
    ],
)
def test_saves_nothing_that_could_not_be_loaded(suffix, ids, table, message, tmp_path):
    with pytest.raises(ValueError, match=rf"a.{suffix}: .*{message}"):
        save_embeddings(tmp_path / f"a.{suffix}", ids, table)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("suffix", "writer"), [("parquet", "_save_parquet"), ("safetensors", "_save_safetensors")])
def test_a_failed_write_leaves_what_was_there(suffix, writer, tmp_path, monkeypatch):
    path = tmp_path / f"items.{suffix}"
    save_embeddings(path, [1, 2], vectors(2))
    before = path.read_bytes()

    def full(beside, *_):
        beside.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embeddings, writer, full)
    with pytest.raises(OSError, match=rf"cannot write .*items.{suffix}: No space left on device"):
        save_embeddings(path, [1, 2], vectors(2, seed=1))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


# --- alignment ------------------------------------------------------------------------------------------------


def naive_align(ids, table, vocabulary):
    rows, own = [], []
    for index in range(len(vocabulary)):
        raw = vocabulary.decode(torch.tensor([index]))[0]
        own.append(raw is not None and raw in ids)
        vector = table[ids.index(raw)] if own[-1] else table.double().mean(0).to(table.dtype)
        rows.append(torch.zeros_like(vector) if index == 0 else vector)
    return torch.stack(rows), torch.tensor(own)


numbers = st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=20)
texts = st.lists(st.text("aé🐢", max_size=2), unique=True, min_size=1, max_size=10)


@settings(deadline=None)
@given(st.one_of(st.tuples(numbers, numbers), st.tuples(texts, texts)), st.booleans())
def test_align_is_a_lookup_with_the_mean_for_what_has_no_vector(both, null):
    known, ids = both
    vocabulary = Vocabulary(known, null=null)
    for table in (vectors(len(ids)), vectors(len(ids)).double()):
        aligned, own = align(pl.Series(ids), table, vocabulary)
        expected, expected_own = naive_align(ids, table, vocabulary)
        assert aligned.dtype == table.dtype
        assert torch.equal(own, expected_own)
        assert torch.equal(aligned[own], expected[own])
        assert not aligned[0].any()
        torch.testing.assert_close(aligned, expected, rtol=1e-6, atol=1e-7)


def test_align_refuses_ids_of_another_kind_and_repeats():
    with pytest.raises(ValueError, match="ids here are text, got integers: 7"):
        align(pl.Series([7]), vectors(1), Vocabulary(["7"]))
    with pytest.raises(ValueError, match="ids here are integers, got text: '7'"):
        align(pl.Series(["7"]), vectors(1), Vocabulary([7]))
    with pytest.raises(ValueError, match="id 7 occurs a second time in row 1"):
        align(pl.Series([7, 7]), vectors(2), Vocabulary([7]))
    with pytest.raises(ValueError, match="got 1 ids and float32 vectors"):
        align(pl.Series([7]), vectors(2), Vocabulary([7]))


@pytest.mark.parametrize("suffix", FORMATS)
def test_from_a_file_to_a_table(suffix, tmp_path):
    path = tmp_path / f"items.{suffix}"
    save_embeddings(path, ["c", "a", "z"], torch.tensor([[3.0], [1.0], [5.0]]))
    table, own = align(*load_embeddings(path), Vocabulary(["a", "b", "c"]))
    assert table.tolist() == [[0.0], [3.0], [1.0], [3.0], [3.0]]
    assert own.tolist() == [False, False, True, False, True]


def test_pretrained_vectors_are_a_feature_that_is_saved_with_its_pipeline(tmp_path):
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    save_embeddings(tmp_path / "v.parquet", ["b", "a"], vectors)
    rows = pl.DataFrame({"id": ["a", "b", "c", None]})
    fitted = FeaturePipeline(item={"v": Pretrained(str(tmp_path / "v.parquet"), column="id")}).fit(rows)
    expected = [[3.0, 4.0], [1.0, 2.0], [2.0, 3.0], [2.0, 3.0]]
    assert fitted.transform(rows)["v"].tolist() == expected
    fitted.save(tmp_path / "p")
    (tmp_path / "v.parquet").unlink()
    loaded = FeaturePipeline.load(tmp_path / "p")
    assert loaded.transform(rows)["v"].tolist() == expected
    assert (loaded.columns[0].width, loaded.fingerprint) == (2, fitted.fingerprint)
    with pytest.raises(FileNotFoundError, match=r"v.parquet: no such file"):
        loaded.fit(rows)
