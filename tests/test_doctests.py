"""The examples in the docstrings of the public names run, on runs that they share."""

import doctest
import inspect
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest

import recsys
from recsys.data.rows import joined

WORLD = ("world.num_users=200", "world.num_videos=400")
QUICK = ("trainer=cpu", "trainer.max_epochs=1", "evaluation.num_replicates=100")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


def documented() -> Iterator[tuple[str, Any]]:
    """Every public function and class, and what a Run has of its own: methods and properties."""
    for name in recsys.__all__:
        yield name, getattr(recsys, name)
    for name, member in vars(recsys.Run).items():
        if not name.startswith("_") and not isinstance(member, staticmethod):
            yield f"Run.{name}", member


EXAMPLES = {
    name: found
    for name, what in documented()
    if (found := doctest.DocTestParser().get_examples(inspect.getdoc(what) or ""))
}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What examples may speak of."""
    folder = tmp_path_factory.mktemp("runs")
    words = {
        "run": ["model=als", "model.embedding_dim=8"],
        "other": ["model=popularity"],
        "ranker": ["model=logistic", "features=world"],
    }
    log = recsys.load_data("data=world", *WORLD)
    runs = {name: recsys.train(*more, *WORLD, *QUICK, f"hydra.run.dir={folder / name}") for name, more in words.items()}
    rows = joined(log, log.events.head(10)).collect()
    return {"recsys": recsys, "pl": pl, "folder": folder, "path": runs["run"].path, "log": log, "rows": rows, **runs}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(names["folder"])
    test = doctest.DocTest(EXAMPLES[name], dict(names), name, None, None, None)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert result.attempted > 0
    assert not result.failed, "".join(said)


def test_every_public_name_has_an_example() -> None:
    assert [name for name, _ in documented() if name not in EXAMPLES] == []
