import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from recsys.data import readers
from recsys.data.checks import DataError
from recsys.world import World, logs, population, writer


def read(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path / "day=*/*.parquet", hive_partitioning=False)


def names(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def test_files_hold_the_log(tiny: World, log: pl.DataFrame, tmp_path: Path) -> None:
    found = writer.generate(tiny, tmp_path / "one", workers=1)
    assert_frame_equal(read(tmp_path / "one"), log, check_exact=True)
    assert found["rows"] == log.height
    assert found["positives"] == log["label"].sum()
    assert list(found["rows_by_day"])[:2] == ["2026-01-05", "2026-01-06"]
    assert found["content_hash"] == writer.generate(tiny, tmp_path / "two", workers=2)["content_hash"]
    assert names(tmp_path / "one") == names(tmp_path / "two")
    schema = json.loads((tmp_path / "one" / "_schema.json").read_text())
    assert list(schema["columns"]) == log.columns
    assert all(column["meaning"] for column in schema["columns"].values())
    # Once more: nothing is written again.
    before = {file: os.stat(tmp_path / "one" / file).st_mtime_ns for file in names(tmp_path / "one")}
    assert writer.generate(tiny, tmp_path / "one") == found
    assert before == {file: os.stat(tmp_path / "one" / file).st_mtime_ns for file in names(tmp_path / "one")}


def test_content_is_what_the_hash_says(micro: World, tmp_path: Path) -> None:
    rows = logs.log(micro)
    assert writer.digest(rows) == writer.digest(rows.clone())
    for other in (
        rows.reverse(),
        rows.head(-1),
        rows.rename({"liked": "loved"}),
        rows.with_columns(pl.col("label").cast(pl.Int16)),
        rows.with_columns(liked=~pl.col("liked")),
    ):
        assert writer.digest(rows) != writer.digest(other)
    hashes = {writer.generate(replace(micro, seed=seed), tmp_path / str(seed))["content_hash"] for seed in (0, 1)}
    assert len(hashes) == 2


def test_the_first_rows_of_a_world(tiny: World, log: pl.DataFrame, tmp_path: Path) -> None:
    for rows in (1, 50_000):
        found = writer.generate(tiny, tmp_path / str(rows), rows=rows, tables=tmp_path / f"tables{rows}")
        assert found["rows"] == rows
        assert_frame_equal(read(tmp_path / str(rows)), log.head(rows), check_exact=True)
        for table, key in (("users", "user_id"), ("items", "item_id")):
            ids = pl.read_parquet(tmp_path / f"tables{rows}" / f"{table}.parquet")[key]
            assert set(ids) == set(log.head(rows)[key])
    writer.generate(tiny, tmp_path / "1", rows=1, tables=tmp_path / "again")
    assert pl.read_parquet(tmp_path / "again" / "users.parquet").height == 1


def test_a_huge_world_is_cut_to_size(tmp_path: Path) -> None:
    from conftest import preset

    world = preset("youtube")
    found = writer.generate(world, tmp_path / "log", rows=200_000)
    assert found["rows"] == 200_000
    assert found["content_hash"] == writer.generate(world, tmp_path / "b", rows=200_000, workers=1)["content_hash"]
    ids = torch.from_numpy(read(tmp_path / "log")["item_id"].to_numpy(writable=True))
    assert int(population.video_numbers(world, ids).max()) > 50_000_000


SCRIPT = """
import sys, yaml
from recsys.world import World, writer
values = yaml.safe_load(open(sys.argv[1]).read()); values.pop("_target_")
writer.generate(World(**values), sys.argv[2], workers=2)
"""


@pytest.mark.slow
def test_killed_at_ten_moments_and_done_again(tiny: World, tmp_path: Path) -> None:
    from conftest import PRESETS

    whole = writer.generate(tiny, tmp_path / "whole")
    path, dice, killed = tmp_path / "killed", random.Random(0), 0
    for _ in range(10):
        command = [sys.executable, "-c", SCRIPT, str(PRESETS / "tiny.yaml"), str(path)]
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 60
        while not (path / "_schema.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        began = len(list(path.glob("day=*/part-*.parquet")))
        while (
            len(list(path.glob("day=*/part-*.parquet"))) <= began and process.poll() is None
        ) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(dice.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 5
    (path / "day=2026-01-05" / ".part-0000000000.parquet.17.tmp").write_bytes(b"half")
    assert writer.generate(tiny, path)["content_hash"] == whole["content_hash"]
    assert names(path) == names(tmp_path / "whole")


def test_nothing_of_others_is_touched(micro: World, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("all my work")
    with pytest.raises(ValueError, match=r"other holds other files \(thesis.txt\): name an empty folder"):
        writer.generate(micro, other)
    with pytest.raises(ValueError, match=r"thesis.txt is a file: name a folder"):
        writer.generate(micro, other / "thesis.txt")
    assert names(other) == ["thesis.txt"]

    mine = tmp_path / "mine"
    writer.generate(micro, mine)
    before = names(mine)
    with pytest.raises(ValueError, match=r"holds another log: world.num_users is 60 there and 61 here"):
        writer.generate(replace(micro, num_users=61), mine)
    with pytest.raises(ValueError, match=r"world.rows is None there and 5 here"):
        writer.generate(micro, mine, rows=5)
    schema = json.loads((mine / "_schema.json").read_text())
    (mine / "_schema.json").write_text(json.dumps({**schema, "version": 99}))
    with pytest.raises(ValueError, match="begun by format version 99"):
        writer.generate(micro, mine)
    (mine / "_schema.json").write_text("{")
    with pytest.raises(ValueError, match="is not the schema of a generated log"):
        writer.generate(micro, mine)
    assert names(mine) == before
    (mine / "day=2026-01-05" / "mine.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="holds other files"):
        writer.generate(micro, mine)
    for wrong in ({"rows": 0}, {"workers": 0}):
        with pytest.raises(ValueError, match="expected at least 1"):
            writer.generate(micro, tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_whole_files_only(micro: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: pl.DataFrame, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", full)
        with pytest.raises(OSError, match=r"cannot write .*part-0000000000.parquet: No space left on device"):
            writer.generate(micro, tmp_path / "log", workers=1)
    assert names(tmp_path / "log") == ["_schema.json"]
    assert writer.generate(micro, tmp_path / "log")["rows"] == logs.log(micro).height


def test_a_stream_gives_the_rows_of_the_log(micro: World) -> None:
    rows = logs.log(micro)
    streamed = pl.concat([logs.frame(block) for block in logs.stream(micro, workers=2)])
    assert_frame_equal(streamed, rows, check_exact=True)
    some = pl.concat([logs.frame(block) for block in logs.stream(micro, range(2, 4), range(10, 20))])
    assert_frame_equal(some, logs.log(micro, range(2, 4), range(10, 20)), check_exact=True)
    clicks = rows.filter(pl.col("label") == 1)
    assert_frame_equal(logs.positives(micro), clicks, check_exact=True)
    log = readers.world(micro, stream=True)
    assert_frame_equal(log.events.collect(), clicks)
    assert log.counts["positives"] == clicks.height
    with pytest.raises(DataError, match=r"too many to hold: use data.stream=true"):
        readers.world(replace(micro, num_users=10_000_000))
    with pytest.raises(DataError, match=r"data.device=gpu: expected cpu or cuda"):
        readers.world(micro, device="gpu")


def test_blocks_of_a_gpu_are_larger_and_cover_the_same(micro: World) -> None:
    large = replace(micro, num_users=600_000)
    for device, most in (("cpu", 4096), ("cuda", 2**18)):
        cut = list(logs.blocks(large, range(2), device=device))
        assert max(len(numbers) for _, numbers in cut) == most
        assert [day for day, _ in cut] == sorted(day for day, _ in cut)
        for day in range(2):
            assert [n for at, numbers in cut if at == day for n in numbers] == list(range(600_000))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_named(micro: World) -> None:
    with pytest.raises(DataError, match=r"data.device=cuda: torch sees no GPU, use data.device=cpu"):
        readers.world(micro, device="cuda")


def test_expected_rows(tiny: World, log: pl.DataFrame) -> None:
    assert writer.expected_rows(tiny) == pytest.approx(log.height, rel=0.07)
