"""A notebook in a real JupyterLab and a real browser: run to its end, checked, photographed. Not run by pytest.

    python3 -m venv /tmp/lab && /tmp/lab/bin/pip install playwright    # not into .venv
    apt-get install chromium                                           # or: /tmp/lab/bin/playwright install chromium
    /tmp/lab/bin/python tests/lab.py [notebook=01_quickstart.ipynb] [out=/tmp/lab/shots] [seconds=300]

JupyterLab is that of the checkout's `.venv`, on a free port, behind a token, over a copy of notebooks/ and with
settings of its own. Ends in 0 where every code cell has a number and none an error, and leaves pictures of the
whole page, OUT/<notebook>-1.png …, and OUT/<notebook>.ipynb, what JupyterLab saved.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
NO_NEWS = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
ALL_IN_THE_PAGE = {"windowingMode": "none"}  # or cells out of sight have no outputs to photograph
WIDTH, HEIGHT, SCREEN, MOST = 1280, 900, 1300, 16_000  # pixels: of the window, of a picture, of all pictures


def main() -> None:
    """Run one notebook; what is wrong is a line, and exit code 1."""
    options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    name = options.get("notebook", "01_quickstart.ipynb")
    out = Path(options.get("out", "/tmp/lab/shots"))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        work = Path(folder) / "notebooks"
        shutil.copytree(CHECKOUT / "notebooks", work, ignore=shutil.ignore_patterns("runs", "multirun", ".ipynb*"))
        with jupyter_lab(Path(folder), work) as (address, token):
            problems = run(
                f"{address}/lab/tree/{name}?token={token}", work / name, out, float(options.get("seconds", 300))
            )
        shutil.copy(work / name, out / name)
    sys.stdout.write("".join(f"{name}: {problem}\n" for problem in problems) or f"{name}: ran to its end, see {out}\n")
    sys.exit(1 if problems else 0)


@contextmanager
def jupyter_lab(folder: Path, work: Path) -> Iterator[tuple[str, str]]:
    """JupyterLab over a folder of notebooks: its address and token, while it runs.

    Raises:
        RuntimeError: it does not answer within a minute; the message is the end of what it wrote.
    """
    for plugin, settings in {
        "apputils-extension/notification": NO_NEWS, "notebook-extension/tracker": ALL_IN_THE_PAGE,
    }.items():  # fmt: skip
        file = folder / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    port, token, log = free_port(), secrets.token_hex(16), folder / "jupyter.log"
    command = [
        str(CHECKOUT / ".venv/bin/jupyter"), "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={work}",
    ]  # fmt: skip
    own = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "OMP_NUM_THREADS": "1"}
    with log.open("w") as lines:
        server = subprocess.Popen(command, stdout=lines, stderr=lines, cwd=work, env={**os.environ, **own})
    try:
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while not answers(f"{address}/api/status?token={token}"):
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"JupyterLab does not answer: {log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield address, token
    finally:
        server.terminate()  # it ends its kernels first
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def run(url: str, file: Path, out: Path, seconds: float) -> list[str]:
    """Open a notebook, run all its cells, save it until all are done; what is wrong with it, nothing if all is well."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(url, wait_until="domcontentloaded")
        try:
            page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
            page.get_by_text("| Idle").wait_for(timeout=60_000)  # of the kernel; without one nothing is run
            page.wait_for_timeout(1000)
            run_all(page)
            problems = wait(page, file, time.monotonic() + seconds)
            page.wait_for_timeout(3000)  # plots are drawn after their cell is done
            broken = page.get_by_text("Error loading script").count()
            problems += [f"{broken} plots are not drawn: their scripts come from the network"] * bool(broken)
        finally:
            photograph(page, out, file.stem)
            browser.close()
    return problems


def wait(page: Any, file: Path, until: float) -> list[str]:
    """Save the notebook every second until its cells are done or one fails; what is wrong with them."""
    while True:
        if accepted(page):  # what was asked to run went with the dialogue
            run_all(page)
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
        errors = [
            f"cell In [{cell['execution_count']}] {output['ename']}: {output['evalue']}"
            for cell in cells
            for output in cell["outputs"]
            if output["output_type"] == "error"
        ]
        waiting = [cell for cell in cells if "".join(cell["source"]).strip() and cell["execution_count"] is None]
        if errors or not waiting:
            return errors
        if time.monotonic() > until:
            return [
                f"{len(waiting)} of {len(cells)} cells are not done, the first: {''.join(waiting[0]['source'])[:80]}"
            ]


def photograph(page: Any, out: Path, name: str) -> None:
    """The whole notebook as OUT/NAME-1.png, OUT/NAME-2.png, …, each of a screen that the eye can read."""
    panel = page.locator(".jp-WindowedPanel-outer").first
    hidden = panel.evaluate("panel => panel.scrollHeight - panel.clientHeight") if panel.count() else 0
    page.set_viewport_size({"width": WIDTH, "height": min(HEIGHT + hidden, MOST)})
    page.wait_for_timeout(1000)
    if panel.count():
        panel.evaluate("panel => panel.scrollTo(0, 0)")
        page.wait_for_timeout(1000)
    whole = page.viewport_size["height"]
    for i, top in enumerate(range(0, whole, SCREEN), start=1):
        clip = {"x": 0, "y": top, "width": WIDTH, "height": min(SCREEN, whole - top)}
        page.screenshot(path=str(out / f"{name}-{i}.png"), clip=clip)


def run_all(page: Any) -> None:
    """Run > Run All Cells."""
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()


def accepted(page: Any) -> bool:
    """Whether there was a dialogue, such as which kernel to take; its default button is pressed."""
    button = page.locator(".jp-Dialog button.jp-mod-accept")
    if not button.count():
        return False
    button.first.click()
    page.wait_for_timeout(2000)
    return True


def answers(url: str) -> bool:
    """Whether a server answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
