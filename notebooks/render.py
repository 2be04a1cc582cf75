"""Run notebooks and write them back with outputs that read well where nothing runs.

    .venv/bin/python notebooks/render.py [01_quickstart …]    all of them where none is named

Each runs in a folder of its own, at the SIZE that stands in it. What is written is small and the same on every machine
but for what was measured: charts are pictures, tables keep their HTML, and no warning, time stamp or path is left.
Exits with 1, and names the page, where one fails or grows too large: it then stays as it was.
"""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import vl_convert
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

from recsys import atomic
from recsys.pictures import FONTS

FOLDER = Path(__file__).resolve().parent
MOST_BYTES = 300_000  # a page, so that GitHub shows it at once
SVG_BYTES = 20_000  # a chart of fewer stays sharp, even where a PNG would be smaller
PNG_SCALE, PNG_COLOURS = 1.5, 256  # enough for text and dots, and a third of the bytes
TIMEOUT = 1800  # seconds a cell
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
VEGALITE = "application/vnd.vegalite."  # and its version: a chart as a mime bundle
EMBEDDED = "vegaEmbed"  # stands in the HTML of a chart


def main(words: list[str]) -> int:
    """Render the pages named, or all; a line of each says its size, or what is wrong. Returns the exit code."""
    pages = {file.stem: file for file in sorted(FOLDER.glob("[0-9]*.ipynb"))}
    names = [Path(word).stem for word in words] or [*pages]
    if unknown := [name for name in names if name not in pages]:
        sys.stderr.write(f"no page {', '.join(unknown)}: name some of {', '.join(pages)}\n")
        return 1
    failed = 0
    for name in names:
        try:
            notebook = run(nbformat.read(pages[name], as_version=4))
            text = nbformat.writes(notebook) + "\n"
            if len(text.encode()) > MOST_BYTES:
                raise ValueError(f"{len(text.encode()) / 1000:.0f} kB, at most {MOST_BYTES / 1000:.0f}: show less")
        except (CellExecutionError, ValueError) as error:
            failed += 1
            sys.stderr.write(f"{name} is left as it was: {error}\n")
            continue
        atomic.write_text(pages[name], text)
        kinds = [mime for output in outputs(notebook) for mime in output.get("data", ()) if mime.startswith("image/")]
        said = ", ".join(f"{kinds.count(kind)} {kind[6:].removesuffix('+xml')}" for kind in sorted(set(kinds)))
        sys.stdout.write(f"{name}: {len(text.encode()) / 1000:.0f} kB{said and f', {said}'}\n")
        sys.stdout.flush()
    return int(failed > 0)


def run(notebook: NotebookNode) -> NotebookNode:
    """The notebook, run from top to bottom in an empty folder, its outputs cleaned.

    Raises:
        CellExecutionError: a cell raised.
    """
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, timeout=TIMEOUT, resources=resources, record_timing=False, coalesce_streams=True
        )
        client.execute()
        return cleaned(notebook, [folder, str(FOLDER.parent)])


def cleaned(notebook: NotebookNode, folders: list[str]) -> NotebookNode:
    """A notebook that was run, changed in place: pictures for charts, counts from 1, no stderr, no timing, minimal
    metadata, and none of the folders in its text."""
    notebook.metadata = nbformat.from_dict(METADATA)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(codes, 1):
        cell.execution_count = count
        cell.metadata.pop("execution", None)
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
            if "data" in output:
                output.data, output.metadata = pictured(output.data)
            _each_text(output, lambda text: _without(text, folders))
    return notebook


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    """What all cells put out, in order."""
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def pictured(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A mime bundle and its metadata, with a picture in place of a chart; others are left as they are."""
    spec = spec_of(data)
    if spec is None:
        return data, {}
    mime, picture, size = drawn(spec)
    return {mime: picture, "text/plain": data.get("text/plain", "a chart")}, {mime: size} if size else {}


def spec_of(data: dict[str, Any]) -> dict[str, Any] | None:
    """The Vega-Lite specification in a mime bundle, as such or in the HTML that Altair writes; None: it has none."""
    for mime, value in data.items():
        if mime.startswith(VEGALITE):
            return value
    page = data.get("text/html", "")
    if EMBEDDED not in page:
        return None
    (call,) = re.finditer(
        r"^ *\}\)\((?=\{)", page, re.MULTILINE
    )  # the function that embeds, and what it is called with
    return json.JSONDecoder().raw_decode(page, call.end())[0]


def drawn(spec: dict[str, Any]) -> tuple[str, str, dict[str, int]]:
    """A chart as SVG or, where that is large, as PNG if that is smaller: its mime type, its text,
    and the size at which a PNG is shown."""
    major_minor = re.search(r"/(v\d+\.\d+)", spec["$schema"])
    version = major_minor[1] if major_minor else None
    svg = plain(vl_convert.vegalite_to_svg(spec, vl_version=version))
    if len(svg.encode()) <= SVG_BYTES:
        return "image/svg+xml", svg, {}
    drawing = vl_convert.vegalite_to_png(spec, vl_version=version, scale=PNG_SCALE)
    image = Image.open(io.BytesIO(drawing)).convert("RGB")
    image.quantize(PNG_COLOURS).save(png := io.BytesIO(), "PNG", optimize=True)
    encoded = base64.b64encode(png.getvalue()).decode()
    if len(svg.encode()) <= len(encoded):
        return "image/svg+xml", svg, {}
    return "image/png", encoded, {"width": round(image.width / PNG_SCALE), "height": round(image.height / PNG_SCALE)}


def plain(svg: str) -> str:
    """An SVG without what the eye does not see: names and descriptions of marks, grounds without a colour, a font
    that is said again and again, thousandths of a pixel."""
    svg = re.sub(r'<path class="(?:back|fore)ground"(?![^>]* (?:fill|stroke)=)[^>]*/>', "", svg)
    svg = re.sub(r' (?:aria-[a-z]+|role|class|pointer-events|font-family)="[^"]*"', "", svg)
    svg = svg.replace("<svg ", f'<svg overflow="visible" font-family="{FONTS}" ', 1)
    coordinates = r'(?<= )(?:d|transform|x|y|x1|x2|y1|y2|width|height|points)="[^"]*"'
    return re.sub(coordinates, lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)


def _each_text(output: NotebookNode, change: Callable[[str], str]) -> None:
    """Change every text of an output that people read."""
    if "text" in output:
        output.text = change(output.text)
    for mime, value in output.get("data", {}).items():
        if isinstance(value, str) and not mime.startswith("image/png"):
            output.data[mime] = change(value)


def _without(text: str, folders: list[str]) -> str:
    for folder in folders:
        text = text.replace(f"{folder}/", "").replace(folder, ".")
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
