"""Files appear whole or not at all; tensors and versions are what they were."""

import resource
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from recsys import atomic, tracking


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    atomic.write_text(path, "old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"cannot write .*metrics\.json: No space left on device"):
        atomic.write(path, half)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


FILL = """
import resource, signal, sys
from pathlib import Path
import polars as pl, torch
from recsys import atomic, tracking
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
path = Path(sys.argv[2])
try:
    if sys.argv[1] == "parquet":
        frame = pl.DataFrame({"x": torch.rand(100_000).numpy()})
        atomic.write(path, frame.write_parquet)
    elif sys.argv[1] == "tensors":
        tracking.write_tensors(path, {"x": torch.rand(100_000)})
    else:
        atomic.write_text(path, "x" * 100_000)
except OSError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize("kind", ["parquet", "tensors", "text"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    found = subprocess.run([sys.executable, "-c", FILL, kind, str(path)], capture_output=True, text=True, check=False)
    assert found.returncode == 7, found.stderr
    assert str(path) in found.stdout
    assert len(found.stdout.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_tensors_round_trip_with_metadata(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5), "b": torch.rand(2, 3).T}
    tracking.write_tensors(tmp_path / "m.safetensors", tensors, schema="{}")
    read, metadata = tracking.read_tensors(tmp_path / "m.safetensors")
    assert metadata == {"schema": "{}"}
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_a_broken_or_missing_model_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match=r"m\.safetensors is missing"):
        tracking.read_tensors(path)
    path.write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"m\.safetensors cannot be read"):
        tracking.read_tensors(path)


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "m.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_environment_names_versions_and_hardware() -> None:
    found = tracking.environment(torch.device("cpu"))
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["polars"] == pl.__version__
    assert found["hardware"]["device"] == "cpu"
