"""What all tests share: where real logs are, and quiet defaults."""

import os
from pathlib import Path

import numpy as np
import polars as pl
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


@pytest.fixture(scope="session")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 users, 120 items in 6 blocks; users of a block like its items; times in order of rows."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, 300, 6000)
    item = rng.integers(0, 20, 6000) * 6 + np.where(rng.random(6000) < 0.9, user % 6, rng.integers(0, 6, 6000))
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    pl.DataFrame({"user_id": user, "item_id": item, "timestamp": 1_600_000_000 + np.arange(6000)}).write_parquet(path)
    return path
