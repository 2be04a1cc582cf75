"""The outputs that the notebooks are committed with read well where nothing runs. `make notebooks` writes them."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PAGES = sorted(FOLDER.glob("[0-9]*.ipynb"))
PICTURES = ("image/svg+xml", "image/png")
OF_A_MACHINE = ("/tmp", "/work", "/home/", "/root/", "/Users/", "/var/folders")  # that no output may name


@pytest.fixture(params=PAGES, ids=lambda file: file.stem)
def page(request: pytest.FixtureRequest) -> NotebookNode:
    return nbformat.read(request.param, as_version=4)


@pytest.fixture(scope="module")
def render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", FOLDER / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def codes(page: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in page.cells if cell.cell_type == "code"]


def outputs(page: NotebookNode) -> list[NotebookNode]:
    return [output for cell in codes(page) for output in cell.outputs]


def shows_a_chart(cell: NotebookNode) -> bool:
    """Whether the last line of a cell makes a chart: by a plot of the package, by Altair, or by a page's own `page`."""
    last = ast.parse(cell.source).body[-1]
    if "chart" in cell.metadata.get("tags", ()):
        return True
    return isinstance(last, ast.Expr) and bool(
        re.match(r"\(?(recsys\.plot_|plot_|page\(|alt\.)", ast.unparse(last.value))
    )


def test_there_are_pages() -> None:
    assert [file.stem[:2] for file in PAGES] == [f"{number:02d}" for number in range(1, len(PAGES) + 1)]


def test_a_page_has_one_parameter(page: NotebookNode) -> None:
    nbformat.validate(page)
    tagged = [place for place, cell in enumerate(page.cells) if "parameters" in cell.metadata.get("tags", ())]
    assert tagged == [1]
    assert page.cells[1].source.startswith('SIZE = "tiny"')
    assert len(page.cells[1].source.splitlines()) == 1


def test_a_page_was_run_from_top_to_bottom(page: NotebookNode) -> None:
    assert [cell.execution_count for cell in codes(page)] == [*range(1, len(codes(page)) + 1)]
    assert not [output for output in outputs(page) if output.output_type == "error" or output.get("name") == "stderr"]
    last = "".join(output.get("text", "") for output in codes(page)[-1].outputs)
    assert re.match(r"recsys \S+, torch \S+, \S+, \d+ s$", last)


def test_a_page_reads_without_running(page: NotebookNode) -> None:
    for cell in codes(page):
        pictures = [mime for output in cell.outputs for mime in output.get("data", ()) if mime in PICTURES]
        assert len(pictures) >= shows_a_chart(cell), cell.id
    for output in outputs(page):
        data = output.get("data", {})
        assert len(data) <= 2, [*data]  # a picture or a table, and its text
        assert "text/plain" in data or output.output_type == "stream"
        assert bool(set(data) & set(PICTURES)) == data.get("text/plain", "").startswith("alt.")
        assert not [mime for mime in data if mime.startswith("application/")]
        assert not re.search(r"vegaEmbed|<script", data.get("text/html", ""))


def test_a_page_is_small_and_the_same_anywhere(page: NotebookNode) -> None:
    assert page.metadata.keys() == {"kernelspec", "language_info"}
    assert page.metadata.language_info == {"name": "python"}
    assert all(cell.metadata.keys() <= {"tags"} for cell in page.cells)
    text = json.dumps([output for output in outputs(page) if "image/png" not in output.get("data", ())])
    assert not [folder for folder in OF_A_MACHINE if folder in text]
    assert len(nbformat.writes(page).encode()) <= 300_000


def executed(*outputs: dict) -> NotebookNode:
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.from_dict(output) for output in outputs])
    cell.metadata["execution"] = {"shell.execute_reply": "2026-01-05T00:00:00Z"}
    cell.execution_count = 7
    return nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})


def test_rendering_leaves_what_reads_well(render: ModuleType) -> None:
    notebook = render.cleaned(
        executed(
            {"output_type": "stream", "name": "stderr", "text": "a warning"},
            {"output_type": "stream", "name": "stdout", "text": "/tmp/here/runs/one in /tmp/here"},
            {
                "output_type": "execute_result", "execution_count": 7, "metadata": {},
                "data": {"text/html": "<b>/tmp/here/runs/one</b>", "text/plain": "one"},
            },
        ),
        ["/tmp/here"],
    )  # fmt: skip
    (cell,) = notebook.cells
    said, table = cell.outputs
    assert said.text == "runs/one in ."
    assert table.data == {"text/html": "<b>runs/one</b>", "text/plain": "one"}
    assert cell.execution_count == table.execution_count == 1
    assert not cell.metadata
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}


@pytest.mark.parametrize("renderer", ["html", "mimetype"])
def test_a_chart_becomes_one_picture(render: ModuleType, renderer: str) -> None:
    import altair as alt
    import polars as pl

    few = alt.Chart(pl.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0]}), title="Few: })({").mark_point()
    many = pl.DataFrame({"x": [k % 21 for k in range(4000)], "y": [k % 13 for k in range(4000)]})
    with alt.renderers.enable(renderer):
        bundles = [chart.encode(x="x:Q", y="y:Q")._repr_mimebundle_() for chart in (few, alt.Chart(many).mark_circle())]
    kinds = []
    for bundle in bundles:
        data, metadata = render.pictured(bundle[0] if isinstance(bundle, tuple) else bundle)
        (kind,) = data.keys() - {"text/plain"}
        kinds.append(kind)
        assert set(metadata) == ({kind} if kind == "image/png" else set())
    assert kinds == [*PICTURES]
    svg = render.pictured(bundles[0][0] if isinstance(bundles[0], tuple) else bundles[0])[0]["image/svg+xml"]
    assert "Few: })({" in svg
    assert not re.search(r"aria-|\.\d{3,}", svg)


def test_a_page_that_fails_stays_as_it_was(
    render: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render, "FOLDER", tmp_path)
    assert render.main(["02"]) == 1
    assert "no page 02: name some of" in capsys.readouterr().err
    large = r"print(('x' * 100 + '\n') * 4_000)"
    for name, line in {"01_good": "print(3)", "02_bad": "1 / 0", "03_large": large}.items():
        cells = [nbformat.v4.new_code_cell(line)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert render.main([]) == 1
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert [name for name in before if before[name] != after[name]] == ["01_good.ipynb"]
    assert nbformat.read(tmp_path / "01_good.ipynb", as_version=4).cells[0].outputs[0].text == "3\n"
    said = capsys.readouterr()
    assert said.out.startswith("01_good: ")
    assert "02_bad is left as it was" in said.err
    assert "ZeroDivisionError" in said.err
    assert re.search(r"03_large is left as it was: 4\d\d kB, at most 300", said.err)
