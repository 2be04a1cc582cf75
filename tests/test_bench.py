"""Result files of benchmarks: what scripts write, what is read again, and what counts as a regression."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys import benching, cli
from recsys.regressions import Change, compare

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.glob("bench_*.py"))
EPYC = {"name": "cpu2-epyc", "processor": "AMD EPYC", "cores": 2, "threads": 2, "device": "cpu", "gpu": None}
XEON = EPYC | {"name": "cpu2-xeon", "processor": "Intel Xeon"}


def result(folder: Path, name: str, figures: dict[str, Any], hardware: dict[str, Any] = EPYC, **manifest: Any) -> Path:
    """A made-up result file."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}_{hardware['name']}.json"
    path.write_text(json.dumps({"benchmark": name, "manifest": {"hardware": hardware, **manifest}, **figures}))
    return path


def only(a: Path, b: Path) -> Change:
    (change,) = compare(a, b)[0]
    return change


# Files


def test_small_is_other_defaults_and_an_argument_goes_before_it() -> None:
    def given(*words: str) -> tuple[int, list[str]]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--rows", type=int, default=1000)
        parser.add_argument("--parts", nargs="+", default=["a", "b"])
        found = benching.arguments(parser, small={"rows": 10, "parts": ["a"]}, argv=words)
        return found.rows, found.parts

    assert given() == (1000, ["a", "b"])
    assert given("--size", "full") == (1000, ["a", "b"])
    assert given("--size", "small") == (10, ["a"])
    assert given("--rows", "7", "--size", "small") == (7, ["a"])


def test_a_file_says_what_its_run_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rows", "3", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "bench_x.py"), *words])
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int)
    given = benching.arguments(parser, small={}, argv=words)
    benching.publish("x", {"seconds": 2.0}, given, page="# x\n")
    path = tmp_path / f"x_{benching.hardware()['name']}.json"
    written = json.loads(path.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == written
    assert path.with_suffix(".md").read_text() == "# x\n"
    manifest = written["manifest"]
    assert manifest["arguments"] == {"rows": 3}
    assert manifest["command"].endswith("bench_x.py --rows 3")
    assert {"date", "size", "seconds", "python", "packages", "git_commit", "load_before"} <= manifest.keys()
    assert {"processor", "cores", "memory_gb", "gpu", "threads"} <= manifest["hardware"].keys()
    found = benching.read(path)
    assert (found.stem, found.benchmark, found.figures) == ("x", "x", {"seconds": 2.0})
    assert found.hardware == manifest["hardware"]["name"]


def test_a_file_of_another_machine_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = benching.arguments(argparse.ArgumentParser(), small={}, argv=["--out", str(tmp_path / "x_cpu.json")])
    old = json.dumps({"benchmark": "x", "manifest": {"hardware": EPYC | {"memory_gb": -1}}, "seconds": 1})
    (tmp_path / "x_cpu.json").write_text(old)
    benching.publish("x", {"seconds": 2}, given)
    assert (tmp_path / "x_cpu.json").read_text() == old
    assert "holds figures of another machine and stays as it is" in capsys.readouterr().out
    benching.publish("x", {"seconds": 3}, given)  # its own it writes again
    assert benching.read(tmp_path / "x_cpu-2.json").figures == {"seconds": 3}
    (tmp_path / "x_cpu-2.json").write_text("{")
    benching.publish("x", {"seconds": 4}, given)  # nor is a damaged one lost
    assert benching.read(tmp_path / "x_cpu-3.json").figures == {"seconds": 4}
    assert len(list(tmp_path.glob("*.json"))) == 3


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("AMD EPYC 7763 64-Core Processor", "epyc-7763"),
        ("Intel(R) Xeon(R) Processor", "xeon"),
        ("Intel(R) Core(TM) i7-9700K CPU @ 3.60GHz", "core-i7-9700k"),
    ],
)
def test_hardware_in_a_name(device: str, name: str) -> None:
    assert benching._slug(device) == name


def test_a_gpu_names_what_ran_on_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: "NVIDIA H100 80GB HBM3")
    on_cpu, on_gpu = (benching.hardware(torch.device(name)) for name in ("cpu", "cuda"))
    assert on_gpu["name"] == "h100"
    assert on_cpu["name"].startswith("cpu")
    assert on_cpu["gpu"] == on_gpu["gpu"] == "NVIDIA H100 80GB HBM3"


def test_the_published_files_are_read_old_and_new() -> None:
    found = {result.path.name: result for result in benching.read_all(BENCHMARKS / "results")}
    old = found["hashing_cpu.json"]
    assert (old.stem, old.benchmark, old.hardware) == ("hashing", "hashing", "cpu")
    assert old.manifest["hardware"]["threads"] == 2
    assert "hardware" not in old.figures
    assert found["training_models_cpu.json"].benchmark == "training"
    assert found["real_logs.json"].stem == "real_logs"
    assert found["funnel_cpu.json"].manifest["git_commit"] is None
    for result in found.values():
        assert result.manifest.get("hardware"), result.path


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x_cpu.json"
    path.write_text('{"seconds": 1')
    with pytest.raises(ValueError, match=rf"^{path} is damaged, no JSON .*: run its benchmark again$"):
        benching.read(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="holds no JSON object"):
        benching.read(path)
    with pytest.raises(ValueError, match="holds no result files: run `make bench`"):
        benching.read_all(tmp_path / "none")


# Scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_shares_the_envelope_and_says_its_question(script: Path) -> None:
    text = script.read_text()
    assert "benching.arguments(" in text
    assert f'benching.publish("{script.stem.removeprefix("bench_")}"' in text
    assert f"python benchmarks/{script.name}" in text
    assert "write_json" not in text


def test_a_script_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "bench_comparison.py", "--size", "small", "--pairs", "2", "--users", "20"]
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True, check=True)
    (path,) = tmp_path.glob("comparison_*.json")
    written = json.loads(done.stdout.splitlines()[-1])
    assert written == json.loads(path.read_text())
    assert written["manifest"]["size"] == "small"
    assert written["manifest"]["arguments"] == {"pairs": 2, "users": 20, "seeds": 5}
    assert 0 <= written["one_run"]["told_apart"] <= 1


def test_quartiles_of_repeats() -> None:
    assert benching.quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == [2.0, 4.0]
    assert benching.quartiles([7.0]) == [7.0, 7.0]


def test_one_failing_script_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import run_all

    last = {"benchmark": "z", "manifest": {"hardware": EPYC}, "ratio": 1.25}
    (tmp_path / "bench_a.py").write_text("raise SystemExit('no')")
    (tmp_path / "bench_z.py").write_text(
        f"import pathlib, sys\npathlib.Path(sys.argv[2], 'z_cpu2-epyc.json').write_text({json.dumps(last)!r})\n"
    )
    monkeypatch.setattr(run_all, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--out", str(tmp_path / "out")])
    monkeypatch.setitem(run_all.PEERS, "a peer", "not_a_module_of_anyone")
    with pytest.raises(SystemExit, match=r"failed: a$"):
        run_all.main()
    said = capsys.readouterr().out
    (left_out,) = (line for line in said.splitlines() if line.startswith("not installed and left out: "))
    assert "a peer" in left_out
    assert (tmp_path / "out" / "a.log").read_text() == "no\n"
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| `ratio` | 1.25, | less is better |" in page
    assert (tmp_path / "out" / "z.svg").read_text().startswith("<svg")


# Regressions


def test_a_regression_is_flagged_and_an_improvement_is_told(tmp_path: Path) -> None:
    figures = {
        "seconds": 10.0,
        "seconds_quartiles": [9.9, 10.1],
        "ours_over_copy": 2.0,
        "ours_over_copy_quartiles": [1.98, 2.02],
    }
    a = result(tmp_path / "a", "x", figures)
    b = result(tmp_path / "b", "x", figures | {"seconds": 11.0, "ours_over_copy": 2.2})
    changes, notes = compare(a, b)
    assert [(c.figure, c.verdict, round(c.change, 3)) for c in changes] == [
        ("seconds", "worse", 0.1),
        ("ours_over_copy", "better", 0.1),
    ]
    assert notes == []
    assert [c.verdict for c in compare(b, a)[0]] == ["worse", "better"]  # seen from the other side


def test_noise_is_the_spread_of_both_and_a_tenth_where_it_is_not_known(tmp_path: Path) -> None:
    def verdict(old: dict[str, Any], new: dict[str, Any]) -> str:
        return only(result(tmp_path / "a", "x", old), result(tmp_path / "b", "x", new)).verdict

    wide, narrow = {"ratio": 1.0, "ratio_quartiles": [0.9, 1.1]}, {"ratio": 1.0, "ratio_quartiles": [0.99, 1.01]}
    assert verdict(wide, {"ratio": 1.2, "ratio_quartiles": [1.19, 1.21]}) == "same"
    assert verdict(narrow, {"ratio": 1.2, "ratio_quartiles": [1.1, 1.3]}) == "same"
    assert verdict(narrow, {"ratio": 1.2, "ratio_quartiles": [1.19, 1.21]}) == "worse"
    assert verdict(narrow, {"ratio": 1.04, "ratio_quartiles": [1.03, 1.05]}) == "same"  # a twentieth never counts
    assert verdict({"ratio": 1.0}, {"ratio": 1.09}) == "same"
    assert verdict({"ratio": 1.0}, {"ratio": 1.11}) == "worse"
    assert verdict({"ratio": 1.0}, {"ratio": 0.85}) == "better"
    assert verdict({"lightning_cost": {"mf": -0.01}}, {"lightning_cost": {"mf": 0.05}}) == "same"
    assert verdict({"lightning_cost": {"mf": -0.01}}, {"lightning_cost": {"mf": 0.2}}) == "worse"


def test_seconds_of_other_hardware_are_not_compared_and_that_comes_first(tmp_path: Path) -> None:
    figures = {"seconds": 1.0, "peak_bytes": 5, "rows_per_second": 4, "ours_over_copy": 2.0}
    result(tmp_path / "a", "x", figures)
    b = result(
        tmp_path / "b", "x", {"seconds": 9.0, "peak_bytes": 9, "rows_per_second": 1, "ours_over_copy": 1.0}, XEON
    )
    result(tmp_path / "a", "y", {"ratio": 1})
    (change,), notes = compare(tmp_path / "a", tmp_path / "b")
    assert (change.figure, change.verdict) == ("ours_over_copy", "worse")
    assert notes[0].startswith(
        "other hardware, AMD EPYC (cores 2, threads 2) in A, Intel Xeon (cores 2, threads 2) in B"
    )
    assert notes[1] == "y_cpu2-epyc.json: none to compare it with in B, left out"
    result(tmp_path / "b", "x", figures, EPYC)  # the file of the same name goes before that of the same benchmark
    changes, notes = compare(tmp_path / "a", tmp_path / "b")
    assert [c.verdict for c in changes] == ["same"] * 4
    assert f"{b.name}: none to compare it with in A, left out" in notes


def test_what_was_measured_at_another_size_is_left_out(tmp_path: Path) -> None:
    old = {
        "int64": {"rows": 100, "ours_over_copy": 1.0},
        "parts": [{"model": "a", "ratio": 1.0}, {"model": "b", "ratio": 1}],
    }
    new = {
        "int64": {"rows": 10, "ours_over_copy": 0.1},
        "parts": [{"model": "b", "ratio": 2}, {"model": "c", "ratio": 9}],
    }
    changes, notes = compare(
        result(tmp_path / "a", "x", old, arguments={"parts": ["p"]}),
        result(tmp_path / "b", "x", new, arguments={"parts": ["q"]}),
    )
    assert [(c.figure, c.verdict) for c in changes] == [("parts/b/ratio", "worse")]
    assert notes == ["x: other arguments, parts ['p'] and ['q']", "x: int64 left out, rows 100 and 10"]


def test_a_busy_machine_is_said(tmp_path: Path) -> None:
    a, b = (result(tmp_path / n, "x", {"ratio": 1}, load_before=load) for n, load in (("a", 0.4), ("b", 3.5)))
    assert compare(a, b)[1] == ["x: B was measured beside other work, a load of 3.5 on 2 cores"]


def test_a_peer_that_became_slower_is_no_regression(tmp_path: Path) -> None:
    old = {"seconds@20": {"ours": 1.0, "implicit": 1.0, "product": 1.0}, "rows_per_second": {"ours": 5, "pandas": 5}}
    new = {"seconds@20": {"ours": 1.0, "implicit": 2.0, "product": 2.0}, "rows_per_second": {"ours": 5, "pandas": 2}}
    changes, _ = compare(result(tmp_path / "a", "x", old), result(tmp_path / "b", "x", new))
    assert [(c.figure, c.verdict) for c in changes] == [("seconds@20/ours", "same"), ("rows_per_second/ours", "same")]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["recsys", "bench", *map(str, words)])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        return code, *capsys.readouterr()

    a, b = result(tmp_path / "a", "x", {"ratio": 1.0}), result(tmp_path / "b", "x", {"ratio": 1.5})
    code, out, error = said("compare", tmp_path / "a", tmp_path / "b")
    assert (code, error) == (1, f"recsys: 1 of 1 figures worse in {tmp_path / 'b'}, beyond noise\n")
    assert "+50.0%" in out
    code, out, error = said("compare", b, a)
    assert (code, error) == (0, "")
    assert "better" in out
    code, out, error = said("compare", a, a)
    assert (code, error) == (0, "")
    assert out.startswith("1 figures compared, 1 the same within noise")
    y = result(tmp_path / "b", "y", {"ratio": 1})
    (tmp_path / "b" / "z_cpu.json").write_text("{")
    for words, message in {
        (): "recsys bench: expected `recsys bench compare A B`, two files or folders of results",
        ("compare", a): "recsys bench: expected `recsys bench compare A B`",
        ("compare", a, tmp_path / "no"): f"{tmp_path / 'no'}: no such file or folder of benchmark results",
        ("compare", a, tmp_path): f"{a} and {tmp_path}: compare two files, or two folders",
        ("compare", a, y): f"{a} and {y} are results of different benchmarks: x, y",
        ("compare", tmp_path / "a", tmp_path / "b"): f"{tmp_path / 'b' / 'z_cpu.json'} is damaged, no JSON",
    }.items():
        code, out, error = said(*words)
        assert (code, out) == (2, "")
        assert error.startswith(f"recsys: {message}")
        assert error.count("\n") == 1
