"""The run directory: what a run leaves behind, written so that a crash leaves nothing half done.

config.yaml        the resolved configuration, written first
logs/version_*/    learning curves (CSV), one folder for the first start and one for every resume
checkpoints/       last.pt to resume from while training; model.safetensors, users.parquet, items.parquet,
                   history.safetensors when done; of a ranker pipeline/ in place of the last three
per_user.parquet   one row a test user (a query, where users have several), one column a metric
manifest.json      versions, git commit, device, seed, data fingerprint, split and leakage report
metrics.json       flat numbers, and which queries were asked, written last: a directory that has it is a finished run
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recsys import backend
from recsys.atomic import write

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

CONFIG = "config.yaml"
METRICS = "metrics.json"
MANIFEST = "manifest.json"
PER_USER = "per_user.parquet"
BASELINES = "baselines.parquet"  # as PER_USER, for each model that stands beside the run
LAST = "checkpoints/last.pt"
MODEL = "checkpoints/model.safetensors"
USERS = "checkpoints/users.parquet"
ITEMS = "checkpoints/items.parquet"
HISTORY = "checkpoints/history.safetensors"
PIPELINE = "checkpoints/pipeline"
WANDB = "wandb"  # the folder of Weights & Biases


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> None:
    """Write tensors as safetensors, with text beside them."""
    from safetensors.torch import save_file

    dense = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write(path, lambda temporary: save_file(dense, temporary, metadata or None))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What `write_tensors` wrote: tensors and metadata.

    Raises:
        ValueError: the file is missing or is no safetensors file.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """The text beside the tensors of a file; raises as `read_tensors`."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Generator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the run did not finish, or was moved in part") from None
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error


def files_below(folder: Path) -> dict[str, Path]:
    """All files below a folder, by their path in it."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def unfinished(run_dir: Path) -> bool:
    """Whether a run began in a folder and has not come to its end."""
    return (run_dir / CONFIG).exists() and not (run_dir / METRICS).exists()


def csv_logger(run_dir: Path) -> Logger:
    """Learning curves as CSV files under the run directory; a resume adds a version and keeps the old."""
    from pytorch_lightning.loggers import CSVLogger

    return CSVLogger(save_dir=run_dir, name="logs")


def print_line(text: str) -> None:
    """Say one line to the person at the terminal, or in the notebook."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, with "+changes" if it differs; None elsewhere."""
    folder = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder, capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changes else commit


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for manifests and result files."""
    packages = ("recsys", "torch", "pytorch-lightning", "hydra-core", "polars", "numpy", "scipy")
    return {
        "python": platform.python_version(),
        "packages": {name: backend.version(name) for name in packages},
        "git_commit": git_commit(),
        "hardware": backend.hardware(device),
    }
