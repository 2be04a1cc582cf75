"""Reads what W&B writes offline: run-*.wandb, a LevelDB log of protobuf records.

It comes in blocks of 32 KiB; a record, or the part of one that fits a block, is a checksum, a length, a type and bytes.
"""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(file: Path) -> list[Any]:
    """The records of one offline run, each held against its checksum; a cut-off end is left out."""
    data, place, parts, found = file.read_bytes(), HEADER, b"", []
    assert data[:4] == b":W&B"
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # the padding of a block
            place += BLOCK - place % BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        body = data[place + HEADER : place + HEADER + length]
        if kind == 0 or len(body) < length:
            break
        assert checksum == zlib.crc32(bytes([kind]) + body), f"{file} is damaged at {place}"
        place += HEADER + length
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            record = pb.Record()
            record.ParseFromString(parts)
            found.append(record)
    return found


class OfflineRun:
    """One offline run.

    Attributes:
        id, group, job_type, name, project, tags; config, summary: by key; history: a dict a row; exit_code: None where
        the run was cut off; artifacts: name to record.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.exit_code: int | None = None
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.artifacts: dict[str, Any] = {}
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run = record.run
                self.id, self.group, self.job_type = run.run_id, run.run_group, run.job_type
                self.name, self.project, self.tags = run.display_name, run.project, [*run.tags]
                self.config |= _items(run.config.update)
            elif kind == "config":
                self.config |= _items(record.config.update)
            elif kind == "summary":
                self.summary |= _items(record.summary.update)
            elif kind == "history":
                self.history.append(_items(record.history.item))
            elif kind == "exit":
                self.exit_code = record.exit.exit_code
            elif kind == "artifact":
                self.artifacts[record.artifact.name] = record.artifact
            elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
                self.artifacts[record.request.log_artifact.artifact.name] = record.request.log_artifact.artifact


def offline_runs(folder: Path) -> list[OfflineRun]:
    """All offline runs under a folder, in order of their start."""
    files = folder.rglob("wandb/offline-run-*/run-*.wandb")
    return [OfflineRun(file) for file in sorted(files, key=lambda file: (file.parent.name[:27], str(file)))]


def _items(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
