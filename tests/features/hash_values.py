"""Values for the tests of hashing, on the CPU and on a GPU."""

import numpy as np
import torch

LAST = 2**64 - 1
SEEDS = (0, 1, 2**63, LAST)


def bits(hashes: torch.Tensor) -> np.ndarray:
    return hashes.cpu().view(torch.uint64).numpy()


def integers(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, n, endpoint=True)


def texts(short: int, long: int) -> list[str]:
    """Short ones of 0 to 40 characters, of one to four bytes each in the odd rows; long ones of 41 to 10,000 bytes."""
    rng = np.random.default_rng(0)
    plain = "".join(map(chr, rng.integers(32, 127, 20_000)))
    mixed = "".join(map(chr, rng.choice([0, 0x61, 0x7F, 0xE9, 0x6F22, 0xFFFF, 0x1F600, 0x10FFFF], 20_000)))
    start, size = rng.integers(0, 10_000, short).tolist(), rng.integers(0, 41, short).tolist()
    values = [(plain, mixed)[i % 2][a : a + k] for i, (a, k) in enumerate(zip(start, size, strict=True))]
    return values + [plain[k : 2 * k] for k in np.linspace(41, 10_000, long).astype(int).tolist()]
