"""What is installed on this machine. The only module that tries an import to see whether it works."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

import torch


def version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of a parent, or by what stands in its way
        return False


def device(accelerator: str = "auto") -> torch.device:
    """The device that a Lightning accelerator name means here: auto, cpu, gpu or cuda.

    Raises:
        ValueError: a GPU is asked for and none is there.
    """
    if accelerator in ("gpu", "cuda"):
        if not torch.cuda.is_available():
            raise ValueError(
                "trainer.accelerator asks for a GPU, torch sees none: use trainer=cpu (see `recsys doctor`)"
            )
        return torch.device("cuda")
    if accelerator == "auto" and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "cpu"):
        return torch.device("cpu")
    raise ValueError(f"trainer.accelerator={accelerator}: expected auto, cpu or gpu")


def hardware(where: torch.device) -> dict[str, str | int]:
    """What a figure was measured on, for manifests and result files."""
    facts: dict[str, str | int] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "torch_threads": torch.get_num_threads(),
        "device": str(where),
    }
    if where.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(where)
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
