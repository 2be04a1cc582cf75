"""Chunks made ahead by a thread, and copied to the device beside its work."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

_END = object()


def prefetch(
    chunks: Iterable[dict[str, Any]], device: torch.device | str = "cpu", depth: int = 2
) -> Iterator[dict[str, Any]]:
    """The same chunks in the same order, their tensors on `device`, made by one thread up to `depth` ahead.

    On a GPU they go through pinned memory on a stream of their own, and a chunk is handed over when its copy is done,
    so that waiting for it is time in `next`. Closing the iterator ends the thread once the chunk it is at is made.
    What making a chunk raises is raised in its place.

    Args:
        chunks: dicts of tensors, dicts of tensors and plain values; iterated in the thread.

    Raises:
        ValueError: depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    return _ahead(chunks, torch.device(device), depth)


def _ahead(chunks: Iterable[dict[str, Any]], device: torch.device, depth: int) -> Iterator[dict[str, Any]]:
    made: SimpleQueue[Any] = SimpleQueue()
    free, stop = threading.Semaphore(depth), threading.Event()
    side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def make() -> None:
        try:
            with nullcontext() if side is None else torch.cuda.stream(side):
                for chunk in chunks:
                    chunk = _moved(chunk, device)
                    if side is not None:
                        side.synchronize()
                    made.put(chunk)
                    del chunk  # or the device would hold one more than was asked for
                    free.acquire()
                    if stop.is_set():
                        return
            made.put(_END)
        except BaseException as error:  # of any kind: the consumer is who can say it
            made.put(error)

    thread = threading.Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        while (chunk := made.get()) is not _END:
            if isinstance(chunk, BaseException):
                raise chunk
            free.release()
            if side is not None:
                _used_here(chunk)
            yield chunk
    finally:
        stop.set()
        free.release()
        thread.join()


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    if not isinstance(value, Tensor) or value.device.type == device.type:
        return value
    return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)


def _used_here(value: Any) -> None:
    """Keep the memory of tensors of another stream until the work of this one on them is done."""
    if isinstance(value, dict):
        for part in value.values():
            _used_here(part)
    elif isinstance(value, Tensor) and value.device.type == "cuda":
        value.record_stream(torch.cuda.current_stream(value.device))
