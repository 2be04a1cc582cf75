"""Every notebook runs from top to bottom, and its figures lie where they should."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def execute(name: str, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook in a folder of its own; a cell that raises fails the test."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def metrics(folder: Path, run: str) -> dict[str, float]:
    return json.loads((folder / "runs" / run / "metrics.json").read_text())


def charts(notebook: nbformat.NotebookNode) -> list[str]:
    """The HTML of every chart that was drawn, its data in it."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pages = [output.get("data", {}).get("text/html", "") for output in outputs]
    return [page for page in pages if "vegaEmbed" in page]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_quickstart(tmp_path: Path) -> None:
    notebook = execute("01_quickstart.ipynb", tmp_path)
    found = {model: metrics(tmp_path, f"quickstart_{model}") for model in ("popularity", "als", "mf")}
    share = {model: m["test/recall@20"] / m["oracle/recall@20"] for model, m in found.items()}
    assert 0.15 < share["popularity"] < 0.45
    assert 0.50 < share["als"] < 0.80
    assert 0.45 < share["mf"] < 0.80
    # The intervals of the personal models do not touch popularity's.
    for model in ("als", "mf"):
        assert found[model]["test/recall@20/low"] > found["popularity"]["test/recall@20/high"]
        assert found[model]["utility/clicks@20"] > found["popularity"]["utility/clicks@20"]
    assert all(m["utility/clicks@20"] < m["best/clicks@20"] for m in found.values())
    assert metrics(tmp_path, "quickstart_mine")["test/recall@5"] > 0.1
    drawn = charts(notebook)
    assert len(drawn) == 2
    assert all(model in chart for chart in drawn for model in ("ALS", "MatrixFactorization"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_world(tmp_path: Path) -> None:
    notebook = execute("02_world.ipynb", tmp_path)
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
    figures = json.loads(next(text for text in printed if text.startswith('{"impressions')))
    assert 550 < figures["impressions_per_user"] < 610
    assert 0.019 < figures["ctr"] < 0.021
    assert 0.8 < figures["burst_exponent"] < 2.5
    assert 1_700 < figures["catalogue_by_propensity"] < 2_100
    assert 18 < figures["feed_watch_seconds"] < 23
    assert 1.10 < figures["weekend_over_weekday"] < 1.20  # the world says 1.15
    assert 0.33 < figures["evening_share"] < 0.45  # of the visits, in five hours of 24
    assert 0.35 < figures["homepage_completed"] < 0.50
    assert 0.25 < figures["feed_completed"] < 0.35
    for measure in ("recall", "clicks"):
        found = figures[measure]
        assert 1.5 * found["popularity"] < found["iALS"] < 0.8 * found["bound"]
    assert len(charts(notebook)) == 7
