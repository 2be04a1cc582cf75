import shutil
from pathlib import Path

import pytest
import torch

from recsys import native
from recsys.features import hashing
from recsys.world import logs


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("source", "entry"), [(logs.visit, b"show"), (hashing.kernels, b"hash_text")])
def test_the_same_text_compiles_for_a_gpu(source: native.Native, entry: bytes, architecture: str) -> None:
    try:
        from cupy.cuda import nvrtc
    except ImportError:
        pytest.skip("no CuPy with NVRTC: the CUDA side is not compiled")
    program = nvrtc.createProgram(source.text, source.source.name, [], [])
    try:
        nvrtc.compileProgram(program, [*native.GPU_FLAGS, f"--gpu-architecture={architecture}"])
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    assert entry in nvrtc.getPTX(program)
    nvrtc.destroyProgram(program)


def test_a_missing_compiler_and_a_wrong_source_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "wrong.cu"
    source.write_text("ENTRY half(i64 n, double *x) { EACH(i, n) x[i] /= 2; }")
    x = torch.tensor([4.0, 6.0], dtype=torch.float64)
    native.Native(source)("half", 2, x)
    assert x.tolist() == [2.0, 3.0]
    built = list((tmp_path / "cache" / "recsys").iterdir())
    assert [file.suffix for file in built] == [".so"]
    source.write_text("ENTRY half(i64 n) { nonsense }")
    with pytest.raises(OSError, match=r"cannot compile wrong: .*nonsense") as error:
        native.Native(source)("half", 2, x)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    source.write_text("ENTRY other(i64 n) {}")
    with pytest.raises(OSError, match="no C\\+\\+ compiler found"):
        native.Native(source)("other", 2, x)
