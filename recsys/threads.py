"""Work on several threads, in order and a few items ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
S = TypeVar("S")


def in_order(work: Callable[[T], S], items: Iterable[T], workers: int | None = None) -> Iterator[S]:
    """work(item) of each item, in their order, by threads that run a few items ahead.

    Each thread has one thread of PyTorch's: several would wait for each other by spinning, which beside other load has
    cost tens of times the work. Where the work fails, or nobody asks further, what has not begun is not begun.

    Args:
        workers: threads; as many as PyTorch uses if None.
    """
    threads = torch.get_num_threads()
    workers = workers or threads
    ahead: deque[Future[S]] = deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
            torch.set_num_threads(threads)
