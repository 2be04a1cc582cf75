"""What all tests share: where real logs are, and quiet defaults."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("WANDB_SILENT", "true")
# Test sizes are small: one thread is fastest, and on a shared machine spinning threads cost 100 times.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)


def real_data() -> Path:
    """Folder of the real logs: RECSYS_DATA, else ../shared/data beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("RECSYS_DATA", default))


@pytest.fixture(scope="session")
def ml_100k() -> Path:
    """The folder of MovieLens 100K."""
    path = real_data() / "ml-100k"
    if not path.is_dir():
        pytest.skip(f"no MovieLens 100K at {path}: set RECSYS_DATA")
    return path


@pytest.fixture(scope="session")
def kuairand() -> Path:
    """The folder of the KuaiRand slice."""
    path = real_data() / "kuairand_pure"
    if not path.is_dir():
        pytest.skip(f"no KuaiRand slice at {path}: set RECSYS_DATA")
    return path
