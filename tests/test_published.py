"""What is published. Protocols from files to numbers: NCF with the candidates it gives, SASRec with sequences and drawn
ones. And our own results: that every figure of the pages comes from a result file."""

import ast
import html
import importlib
import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
import torch

from recsys import Run, cli, config, tables
from recsys.benching import read, read_all
from recsys.comparison import compare
from recsys.data import readers, splits
from recsys.data.checks import DataError
from recsys.data.datamodule import RecDataModule
from recsys.evaluation import evaluate
from recsys.training import train

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
USERS, ITEMS, NEGATIVES = 40, 60, 20
KEEP_ALL = partial(splits.given, validation=0)


def taste(user: int) -> list[int]:
    """What a user likes, in order of time: the last one is tested."""
    return [(user * 7 + step * step) % ITEMS for step in range(8)]


@pytest.fixture
def ncf(tmp_path: Path) -> Path:
    """Three files as they come with NCF: ids from 0, tabs, the user's last item held out."""
    train, test, negative = [], [], []
    for user in range(USERS):
        *known, last = items = list(dict.fromkeys(taste(user)))
        train += [f"{user}\t{item}\t5\t{978300000 + n}\n" for n, item in enumerate(known)]
        test.append(f"{user}\t{last}\t4\t978400000\n")
        others = [item for item in range(ITEMS) if item not in items][:NEGATIVES]
        negative.append(f"({user},{last})\t" + "\t".join(map(str, others)) + "\n")
    for part, lines in (("train.rating", train), ("test.rating", test), ("test.negative", negative)):
        (tmp_path / f"tiny.{part}").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def beauty(tmp_path: Path) -> Path:
    """Lines "user item" as they come with SASRec: ids from 1, one user after the other, each in order of time."""
    path = tmp_path / "Beauty.txt"
    lines = [f"{user + 1} {item + 1}\n" for user in range(USERS) for item in dict.fromkeys(taste(user))]
    path.write_text("".join(lines))
    return path


def refused(read, *args, **options) -> str:
    with pytest.raises(DataError) as caught:
        read(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Files


def test_the_files_of_ncf(ncf: Path) -> None:
    (ncf / "tiny.train.rating").write_text((ncf / "tiny.train.rating").read_text() + "3\t59\t0\t978300009\n\n")
    log = readers.ncf(ncf, "tiny")
    events, candidates = log.events.collect(), log.candidates.collect()
    assert events.columns == ["user_id", "item_id", "timestamp"]
    assert events.filter(pl.col("user_id") == 3)["item_id"].to_list() == list(dict.fromkeys(taste(3)))[:-1]
    assert log.counts["rows_below_threshold"] == 1
    assert log.test.collect().height == USERS
    assert candidates.group_by("user_id").len()["len"].to_list() == [NEGATIVES] * USERS
    assert log.counts["candidates"] == USERS * NEGATIVES
    assert len(log.files) == 3
    whole = readers.ncf(ncf, "tiny", candidates=False)
    assert whole.candidates is None
    assert whole.fingerprint != log.fingerprint


@pytest.mark.parametrize(
    ("part", "line", "message"),
    [
        ("train.rating", "1\t2", "line {} has 2 fields, wanted user_id, item_id, rating, timestamp"),
        ("train.rating", "1\t-2\t5\t9", "column 'item_id', line {}: id '-2' is negative"),
        ("train.rating", "1\t2\tfive\t9", "column 'rating', line {}: 'five' is not a number"),
        ("test.rating", "1\t2\t5\tnow", "column 'timestamp', line {}: time 'now' cannot be parsed"),
        ("test.negative", "(1 2)\t3", "column 'user_id', line {}: '(1' is no test pair; write it as (user,item)"),
        ("test.negative", "(1,58)\t3", "column 'user_id', line {}: '(1,58)' is no row of "),
        ("test.negative", "(0,49)\t3\t-4", "column 'item_id', line {}: id '-4' is negative"),
    ],
)
def test_a_malformed_line_of_ncf_is_named(ncf: Path, part: str, line: str, message: str) -> None:
    path = ncf / f"tiny.{part}"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, line]) + "\n")
    assert refused(readers.ncf, ncf, "tiny").startswith(f"{path}: {message.format(len(lines) + 1)}")


def test_a_missing_file_of_ncf_is_named(ncf: Path) -> None:
    assert "tinny.train.rating: no such file or folder; did you mean 'tiny.train.rating'?" in refused(
        readers.ncf, ncf, "tinny"
    )


def test_lines_of_a_sequence_are_in_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "Video.txt"
    path.write_text("1 9\n1 3\n1 7\n2 3\n2 9\n\n2 7\n2 1\n")
    log = readers.sequences(path)
    assert log.name == "Video"
    module = RecDataModule(log, splits.leave_last_out)
    assert module.items.decode(module.train.select(module.users.encode([1, 2])).item_idx).to_list() == [9, 3, 9]
    assert module.items.decode(module.test.relevant.item_idx).to_list() == [7]
    assert module.test.num_cold_relevant.tolist() == [0, 1]
    path.write_text("1 9\n1 3 5\n")
    assert refused(readers.sequences, path) == f"{path}: line 2 has 3 fields, wanted user_id, item_id"
    path.write_text("1 9\n1 3.5\n")
    assert refused(readers.sequences, path).startswith(f"{path}: column 'item_id', line 2: id '3.5' is a decimal")


def test_a_table_of_candidates(tmp_path: Path) -> None:
    pl.DataFrame({"uid": [1, 1, 2, 2], "item_id": [1, 2, 2, 3]}).write_csv(tmp_path / "train.csv")
    pl.DataFrame({"uid": [1, 2], "item_id": [3, 1]}).write_csv(tmp_path / "test.csv")
    pl.DataFrame({"uid": [1, 2, 2], "item_id": ["2", "3", "x"]}).write_csv(tmp_path / "asked.csv")
    files = {"test": tmp_path / "test.csv", "candidates": tmp_path / "asked.csv", "columns": {"user_id": "uid"}}
    log = readers.table(tmp_path / "train.csv", **files)
    assert log.candidates.collect().rows() == [(1, "2"), (2, "3"), (2, "x")]
    assert log.events.collect()["item_id"].dtype == pl.String
    lists = RecDataModule(log, KEEP_ALL).test.lists
    assert lists.row_counts().tolist() == [2, 2]  # the own positive beside the list; x is unknown


# Lists


def test_a_user_without_a_list_is_named(ncf: Path) -> None:
    path = ncf / "tiny.test.negative"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    said = refused(RecDataModule, readers.ncf(ncf, "tiny"), KEEP_ALL)
    assert said.startswith(f"tiny: user {USERS - 1} of the test part has no candidates")
    said = refused(RecDataModule, readers.ncf(ncf, "tiny"), KEEP_ALL, num_sampled=5)
    assert said.startswith("tiny: brings its own candidates, num_sampled=5 would draw others: leave one of them out")


def test_sampled_candidates_are_others_and_belong_to_the_user(beauty: Path) -> None:
    log = readers.sequences(beauty)
    test = RecDataModule(log, splits.leave_last_out, num_sampled=10).test
    for q in range(len(test)):
        items = test.lists.rows(q, q + 1).item_idx
        relevant, history = (pairs.rows(q, q + 1).item_idx for pairs in (test.relevant, test.history))
        assert len(items) == 10 + len(relevant)
        assert bool(torch.isin(relevant, items).all())
        assert not bool(torch.isin(history, items).any())
        assert bool(test.candidates[items].all())
    again = RecDataModule(log, splits.leave_last_out, num_sampled=10).test.lists
    other = RecDataModule(log, splits.leave_last_out, seed=1, num_sampled=10).test.lists
    assert torch.equal(again.item_idx, test.lists.item_idx)
    assert not torch.equal(other.item_idx, test.lists.item_idx)
    every = RecDataModule(log, splits.leave_last_out, num_sampled=10**6).test
    assert torch.equal(every.lists.row_counts() + every.history.row_counts(), every.candidates.sum().expand(len(every)))
    with pytest.raises(ValueError, match="num_sampled must be at least 1, got 0"):
        RecDataModule(log, splits.leave_last_out, num_sampled=0)


def test_draws_are_uniform_over_what_is_left(beauty: Path) -> None:
    log, more = readers.sequences(beauty), 0
    for seed in range(60):
        test = RecDataModule(log, splits.leave_last_out, seed=seed, num_sampled=10).test
        open_QI = test.candidates.repeat(len(test), 1).double()
        for pairs in (test.history, test.relevant):
            open_QI[pairs.row_idx(), pairs.item_idx] = 0
        expected_I = (10 * open_QI / open_QI.sum(1, keepdim=True)).sum(0)
        more = more + test.lists.item_counts() - test.relevant.item_counts() - expected_I
    assert more.abs().max() < 5 * (60 * expected_I.max()).sqrt()


# Experiments


def test_ncf_from_its_files_to_its_numbers(ncf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=ncf_ml1m", f"data.path={ncf}", "data.name=tiny", "trainer=cpu", "trainer.max_epochs=2"]
    cfg = config.compose(*words)
    assert (cfg.model.factors, list(cfg.model.layers), cfg.model.max_epochs) == (8, [64, 32, 16, 8], 20)
    assert (cfg.model.num_negatives, cfg.model.lr, cfg.split.validation) == (4, 0.001, 0)
    run = train(cfg, tmp_path / "run")
    assert run.metrics["candidates"] == run.manifest["candidates"] == "given candidates"
    counts = run.manifest["evaluation"]
    assert (counts["list_shortest"], counts["list_longest"]) == (NEGATIVES + 1, NEGATIVES + 1)
    assert run.metrics["test/hit@10"] >= run.metrics["test/ndcg@10"] > 0
    assert not any(name.startswith("val/") for name in run.metrics)
    tables.show_metrics(run.metrics)
    assert "test, given candidates ranked" in capsys.readouterr().out

    # Their own measure: where the positive stands among the scores of its line.
    hits = 0
    for line in (ncf / "tiny.test.negative").read_text().splitlines():
        pair, *others = line.split("\t")
        user, item = pair.strip("()").split(",")
        batch = {"user_idx": run.users.encode([int(user)])}
        scores = run.model.cpu().score(batch)[0, run.items.encode([int(item), *map(int, others)])]
        hits += int((scores[1:] > scores[0]).sum()) < 10
    assert run.metrics["test/hit@10"] == pytest.approx(hits / USERS)

    whole = train(config.compose(*words, "data.candidates=false"), tmp_path / "whole")
    assert whole.metrics["candidates"] == "whole catalogue"
    assert whole.metrics["test/hit@10"] < run.metrics["test/hit@10"]
    with pytest.raises(ValueError, match="measured on other data"):
        compare([run, whole])


def test_sasrec_from_its_file_to_its_numbers(beauty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=sasrec_beauty", f"data.path={beauty}", "trainer=cpu", "trainer.max_epochs=2"]
    cfg = config.compose(*words)
    assert (cfg.model.embedding_dim, cfg.model.num_blocks, cfg.model.num_heads, cfg.model.length) == (50, 2, 1, 50)
    assert (cfg.model.loss, cfg.model.num_negatives, cfg.model.dropout, cfg.model.max_epochs) == ("bce", 1, 0.5, 201)
    whole = train(cfg, tmp_path / "whole")
    assert whole.metrics["candidates"] == whole.manifest["candidates"] == "whole catalogue"
    assert "list_longest" not in whole.manifest["evaluation"]
    assert "val/ndcg@10" in whole.metrics
    sampled = train(config.compose(*words, "num_sampled=12"), tmp_path / "sampled")
    assert sampled.metrics["candidates"] == sampled.manifest["candidates"] == "12 sampled candidates"
    assert sampled.manifest["evaluation"]["list_longest"] == 13
    assert sampled.metrics["test/hit@10"] > whole.metrics["test/hit@10"]
    with pytest.raises(ValueError, match=r"ranked the 12 sampled candidates, .* the whole catalogue"):
        compare([whole, sampled])
    assert {name: p.tolist() for name, p in whole.model.state_dict().items()} == {
        name: p.tolist() for name, p in sampled.model.state_dict().items()
    }
    cli._evaluate([f"run={tmp_path / 'whole'}", "num_sampled=12"])
    assert "test, 12 sampled candidates ranked" in capsys.readouterr().out
    assert Run(tmp_path / "whole").metrics == whole.metrics


def test_lists_and_validation_do_not_mix(ncf: Path) -> None:
    """What is held out of train to validate on has no list: it is ranked in the whole catalogue."""
    module = RecDataModule(readers.ncf(ncf, "tiny"), partial(splits.given, validation=0.2))
    assert module.validation.lists is None
    assert module.test.lists is not None
    found = evaluate(lambda batch: torch.zeros(len(batch["user_idx"]), module.schema.num_items), module.test, k=[10])
    assert found.counts["list_longest"] == NEGATIVES + 1


# Results


@pytest.fixture(scope="module")
def pages() -> Iterator[dict[str, ModuleType]]:
    """The modules that make pages from result files."""
    sys.path.insert(0, str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in ("claims", "page", "prose")}
    sys.path.remove(str(BENCHMARKS))


def test_pages_are_what_the_result_files_say(pages: dict[str, ModuleType]) -> None:
    """After a change of a result file, a claim or the prose: `make results`."""
    made = pages["page"].texts(BENCHMARKS / "results")
    assert [path.relative_to(BENCHMARKS.parent).as_posix() for path in made] == [
        "benchmarks/results/README.md",
        "README.md",
        "docs/results.md",
    ]
    for path, text in made.items():
        assert path.read_text() == text, f"{path} is not what the result files say: run `make results`"


def test_charts_hold_the_ratios_of_the_page(pages: dict[str, ModuleType]) -> None:
    results = read_all(BENCHMARKS / "results")
    groups = pages["page"].by_benchmark(results)
    drawn = {path.stem: html.unescape(path.read_text()) for path in (BENCHMARKS / "results").glob("*.svg")}
    assert drawn.keys() == {name for name, found in groups.items() if found}
    for name, found in groups.items():
        for one in found:
            assert pages["claims"].written(one.claim.written, one.values) in drawn[name], (name, one.claim.what)


def test_every_claim_is_in_a_file_and_every_file_on_the_page(pages: dict[str, ModuleType]) -> None:
    results = read_all(BENCHMARKS / "results")
    held = {found.claim for found in pages["claims"].found(results)}
    assert [c.ratio for c in pages["claims"].CLAIMS if c not in held and "gpu" not in (c.benchmark, c.ratio[:3])] == []
    page = pages["page"].page(results)
    for result in results:
        assert f"]({result.path.name})" in page


def test_no_figure_is_typed(pages: dict[str, ModuleType]) -> None:
    """Of the prose every digit is in an expression, or in a name."""
    names = r"@\d+|ml-100k|DCN-v2|sm_\d\d|int64|p\d\d|seed 0|95% intervals"
    tree = ast.parse((BENCHMARKS / "prose.py").read_text())
    (text,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "text")
    (said,) = (node for node in ast.walk(text) if isinstance(node, ast.JoinedStr) and len(node.values) > 50)
    typed = " ".join("".join(str(part.value) for part in said.values if isinstance(part, ast.Constant)).split())
    assert re.findall(r".{0,20}\d.{0,20}", re.sub(names, "", typed)) == []
    readme = (BENCHMARKS.parent / "README.md").read_text()
    block = readme[readme.index("<!-- results -->") : readme.index("<!-- /results -->")]
    assert len(re.findall(r"\d", block)) > 100


def test_figures_that_readme_names_elsewhere_are_those_of_the_files(pages: dict[str, ModuleType]) -> None:
    leak = pages["claims"].chosen(read_all(BENCHMARKS / "results"), "answer_key", "leakage/*").figures["leakage"][0]
    head = (BENCHMARKS.parent / "README.md").read_text().partition("<!-- results -->")[0]
    said = re.findall(r"(\d[\d.]*) points\s+\[(\d[\d.]*), (\d[\d.]*)\]", head)
    assert said == [tuple(f"{leak[name]:.1f}" for name in ("inflation", "low", "high"))] * len(said)


def test_a_gpu_file_is_picked_up_by_its_name(pages: dict[str, ModuleType], tmp_path: Path) -> None:
    results = read_all(BENCHMARKS / "results")
    cpu = [result for result in results if not result.on_gpu]
    assert "No figure here comes from a GPU" in pages["page"].block(cpu)
    path = tmp_path / "hashing_h100.json"
    on_cpu = {"rows": 1, "ours_over_copy": 0.5, "rows_per_second": {"ours": 1}}  # of the processor beside the GPU
    gpu = {"share_of_copy": {"int64": 0.97, "text": 0.42}, "bytes_per_second": {"int64": 2e12, "text": 9e11}}
    path.write_text(json.dumps({"hardware": {"device": "cuda", "gpu": "NVIDIA H100"}, "gpu": gpu, "int64": on_cpu}))
    both = [*cpu, read(path)]
    block = pages["page"].block(both)
    assert "No figure here comes from a GPU" not in block + pages["prose"].text(both)
    assert "`hashing_h100.json`" in block
    table = block.partition("On a GPU:")[2]
    assert "XXH64 of int64" not in table
    assert "| XXH64 kernels on the GPU | 42% to 97% of | a copy on the device, by bytes moved |" in table
    assert "- [hashing_h100.json](hashing_h100.json): NVIDIA H100, date not recorded" in pages["page"].page(both)


def test_markers_and_figures_that_are_missing_are_named(pages: dict[str, ModuleType]) -> None:
    with pytest.raises(ValueError, match=r"^README.md: the markers <!-- results --> and .* are missing"):
        pages["page"].replaced("# recsys\n", "| a |")
    assert pages["page"].replaced("a\n<!-- results -->\nold\n<!-- /results -->\nb\n", "new") == (
        "a\n<!-- results -->\nnew\n<!-- /results -->\nb\n"
    )
    with pytest.raises(ValueError, match=r"no result file of hashing holds int64/\*: run benchmarks/bench_hashing.py"):
        pages["claims"].chosen([], "hashing", "int64/*")
