"""The process that talks to Weights & Biases for one run, so that nothing W&B does or fails to do reaches training.

It reads messages, one JSON object a line, and answers with lines for a person to read. When its input ends without a
`finish`, what wrote it is gone, and the W&B run ends as failed. Messages, by "do":

start     init: arguments of wandb.init; config; pid: the process whose use of the machine is measured
log       values: a row of the history
summary   values: what stands beside the run's name in a table
picture   name, chart: a Vega-Lite specification, kept as PNG
artifact  name, type, metadata, files: {name: path}, references: [path], used: whether it is an input
use       name: of an artifact that another run logged
finish    exit_code
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

FAILED = 1  # the exit code of a W&B run whose process died


def main() -> None:
    """Read messages until there are no more; an error costs its message alone, and is said once."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what W&B prints is not for the person
    said: list[str] = []

    def say(text: str) -> None:
        if not said:
            said.append(text)
            print(text, file=answers, flush=True)

    run: Any = None
    finish: dict[str, Any] = {"exit_code": FAILED}
    for line in sys.stdin:
        message = json.loads(line)
        do = message.pop("do")
        if do == "finish":
            finish = message
            break
        try:
            if do == "start":
                run = start(say, **message)
            elif run is not None:
                ACTIONS[do](run, **message)
        except Exception as error:
            say(f"{do} failed, training goes on: {_one_line(error)}")
    try:
        if run is not None:
            run.finish(**finish)
    except Exception as error:
        say(f"finish failed: {_one_line(error)}")


def start(say: Callable[[str], None], init: dict[str, Any], config: dict[str, Any], pid: int) -> Any:
    """The W&B run; offline where it cannot be online."""
    try:
        import wandb
    except ImportError as error:
        say(f"not recorded, training goes on: {_one_line(error)}; pip install wandb")
        return None
    settings = wandb.Settings(console="off", silent=True, x_stats_pid=pid, init_timeout=30)
    try:
        run = wandb.init(config=config, settings=settings, **init)
    except Exception as error:
        if init["mode"] == "offline":
            raise
        wandb.teardown()
        run = wandb.init(config=config, settings=settings, **init | {"mode": "offline"})
        say(f"recording offline, upload later with `wandb sync`: {_one_line(error)}")
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    return run


def log(run: Any, values: dict[str, float]) -> None:
    run.log(values)


def summary(run: Any, values: dict[str, Any]) -> None:
    run.summary.update(values)


def picture(run: Any, name: str, chart: dict[str, Any]) -> None:
    import vl_convert
    import wandb
    from PIL import Image

    png = BytesIO(vl_convert.vegalite_to_png(chart, scale=2))
    run.log({name: wandb.Image(Image.open(png))})


def artifact(
    run: Any, name: str, type: str, metadata: dict[str, Any], files: dict[str, str], references: list[str], used: bool
) -> None:
    """Files stay where they are: nothing is copied, and the folder must be there when an offline run is uploaded. W&B
    refuses an input offline: there it is logged, and is of the same content and version as online."""
    import wandb

    found = wandb.Artifact(name, type=type, metadata=metadata)
    for inner, path in files.items():
        found.add_file(path, name=inner, policy="immutable", skip_cache=True)
    for path in references:
        found.add_reference(Path(path).resolve().as_uri(), checksum=False)
    if used and not run.offline:
        run.use_artifact(found)
    else:
        run.log_artifact(found)


def use(run: Any, name: str) -> None:
    if not run.offline:
        run.use_artifact(name)


ACTIONS: dict[str, Callable[..., None]] = {
    "log": log, "summary": summary, "picture": picture, "artifact": artifact, "use": use,
}  # fmt: skip


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    main()
