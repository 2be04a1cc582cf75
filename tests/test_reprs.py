"""What a notebook shows of runs, logs, splits, worlds and comparisons is valid, escaped and small, and holds their
numbers."""

import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import recsys
from recsys import config, reprs, tracking
from recsys.data.datamodule import RecDataModule
from recsys.data.log import Log
from recsys.data.readers import frame
from recsys.verdicts import MOST_ROWS

SMALL = ("trainer=cpu", "evaluation.k=[3,10,20]", "evaluation.num_replicates=100", "trainer.max_epochs=2")
WORLD = ("world.num_users=200", "world.num_videos=400")
EVIL = "<script>alert('x')</script> & \"more\""


def parsed(shown: Any) -> ET.Element:
    """The HTML of an object as a tree, which valid HTML of this kind is; no script, no network, a few kB."""
    html = shown._repr_html_()
    assert len(html) < 14_000
    assert "http" not in html
    tree = ET.fromstring(html)
    assert not {"script", "style", "img", "link"} & {node.tag for node in tree.iter()}
    return tree


def text(tree: ET.Element) -> str:
    return " ".join("".join(tree.itertext()).split())


def cells(tree: ET.Element) -> dict[str, list[str]]:
    """Rows of the first table by their first cell."""
    table = next(tree.iter("table"))
    rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    return {row[0]: row[1:] for row in rows}


def nasty_frame() -> pl.DataFrame:
    """60 users whose group of ten items they like, in ids that are no HTML."""
    rows = [
        (
            f"u{user}{EVIL}",
            f"{user % 3}<i>{(user + step) % 10}",
            datetime(2024, 1, 1, tzinfo=UTC) + timedelta(step, user),
        )
        for user in range(60)
        for step in range(6)
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, recsys.Run]:
    folder = tmp_path_factory.mktemp("runs")
    words = {
        "als": ["model=als", "model.embedding_dim=8"],
        "als again": ["model=als", "model.embedding_dim=8", "seed=1"],
        "popularity": ["model=popularity"],
        "popularity again": ["model=popularity", "seed=1"],
        "ranker": ["model=logistic", "features=world"],
    }
    found = {
        name: recsys.train(*more, *WORLD, *SMALL, f"hydra.run.dir={folder / name}") for name, more in words.items()
    }
    mine = recsys.train(*words["als"], *SMALL, f"hydra.run.dir={folder / 'mine'}", data=nasty_frame())
    return found | {"frame": recsys.load(mine.path.rename(folder / "mine & <yours>"))}


@pytest.mark.parametrize("name", ["als", "ranker", "frame"])
def test_a_run_shows_the_numbers_of_its_metrics(runs: dict[str, recsys.Run], name: str) -> None:
    run = runs[name]
    tree, metrics = parsed(run), run.metrics
    found = cells(tree)
    shown = [metric for metric in found if f"test/{metric}" in metrics]
    assert len(shown) > 4
    for metric in shown:
        assert found[metric][0] == f"{metrics[f'test/{metric}']:.4f}"
        if f"test/{metric}/low" in metrics:
            assert found[metric][1] == f"[{metrics[f'test/{metric}/low']:.4f}, {metrics[f'test/{metric}/high']:.4f}]"
    assert text(tree).startswith(f"{run.name}, test, ")
    assert str(run.path) in text(tree)
    assert f"seed {run.manifest['seed']}" in text(tree)
    if not run.is_ranker:
        assert all(metric.endswith("@10") for metric in shown)
    (points,) = [node.get("points") for node in tree.iter() if node.tag == "polyline"]
    assert points is not None
    assert len(points.split()) == len(run.curves)
    # The last point is at the height that its value has between the least and the greatest.
    monitor = {"als": "val/ndcg@10", "ranker": "val/auc", "frame": "val/ndcg@10"}[name]
    values = run.curves[monitor].to_list()
    y = float(points.split()[-1].split(",")[1])
    share = (values[-1] - min(values)) / ((max(values) - min(values)) or 1)
    assert y == pytest.approx(25 - 22 * share, abs=0.06)


def test_a_run_stands_beside_its_answer_key_where_there_is_one(runs: dict[str, recsys.Run]) -> None:
    metrics = runs["als"].metrics
    oracle = metrics["oracle/recall@10"]
    assert cells(parsed(runs["als"]))["recall@10"][2] == f"{metrics['test/recall@10'] / oracle:.1%} of {oracle:.4f}"
    clicks = cells(parsed(runs["als"]))["expected clicks@10"]
    assert clicks[0] == f"{metrics['utility/clicks@10']:.4f}"
    bayes = runs["ranker"].metrics["bayes/auc"]
    assert cells(parsed(runs["ranker"]))["auc"][2] == f"{bayes:.4f}"
    assert "oracle" not in text(parsed(runs["frame"]))
    assert f"{metrics['test/recall@10'] / oracle:.0%} of the oracle" in repr(runs["als"])
    assert f"Bayes {bayes:.4f}" in repr(runs["ranker"])
    assert "\n" not in repr(runs["frame"])


def test_metrics_are_a_dict_with_every_figure(runs: dict[str, recsys.Run]) -> None:
    metrics = runs["als"].metrics
    found = cells(parsed(metrics))
    assert {f"test/{name}" for name in found if f"test/{name}" in metrics} >= {
        f"test/{name}@{k}" for name in ("recall", "ndcg", "precision", "map", "mrr", "hit") for k in (3, 10, 20)
    }
    assert f"{metrics['test/gini@3']:.4f}" in text(parsed(metrics))
    assert repr(metrics) == repr(dict(metrics))


def test_a_damaged_run_can_still_be_named(runs: dict[str, recsys.Run], tmp_path: Path) -> None:
    (tmp_path / tracking.METRICS).write_text("{}")
    assert repr(recsys.load(tmp_path)) == f"Run({str(tmp_path)!r})"


def test_a_log_shows_sizes_head_and_days() -> None:
    log = frame(nasty_frame())
    tree = parsed(log)
    assert "360 rows · 60 users · 30 items · all positive · 2024-01-01 to 2024-01-06" in text(tree)
    assert EVIL in text(tree)
    bars = [float(node.get("height") or 0) for node in tree.iter("rect")]
    assert len(bars) == 6
    assert len(set(bars)) == 1
    assert next(iter(cells(tree))) == "user_idString"
    assert repr(log) == f"Log({log.name}: 360 rows, 360 positives, 60 users, 30 items)"


def test_a_log_of_world_shows_its_answer_key_and_share_of_positives() -> None:
    log = recsys.load_data("data=world", *WORLD)
    events = log.events.collect()
    tree = parsed(log)
    assert f"{events['label'].mean():.2%} positive" in text(tree)
    assert f"answer key: {log.world!r}" in text(tree)
    by_day = events.group_by(pl.col("timestamp").dt.date()).len().sort("timestamp")["len"]
    bars = [float(node.get("height") or 0) for node in tree.iter("rect")]
    assert bars == pytest.approx((by_day / by_day.max() * 39).to_list(), abs=0.06)


def test_a_log_without_times_or_labels_and_with_many_days(tmp_path: Path) -> None:
    rows = pl.DataFrame({"user_id": [1, 2], "item_id": [3, 4]})
    bare = Log(EVIL, rows.lazy(), files=(tmp_path / "<a>.csv",))
    tree = parsed(bare)
    assert EVIL in text(tree)
    assert "2 rows · 2 users · 2 items · all positive" in text(tree)
    assert not list(tree.iter("svg"))
    assert repr(bare) == f"Log({EVIL})"
    times = [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(day) for day in (0, 0, 999)]
    long = Log("long", pl.LazyFrame({"user_id": [1, 2, 3], "item_id": [1, 2, 3], "timestamp": times}))
    assert "rows every 10 days, at most 2" in text(parsed(long))
    assert len(list(parsed(long).iter("rect"))) == 2


def test_a_split_shows_its_parts() -> None:
    cfg = config.compose()
    module = RecDataModule(frame(nasty_frame()), config.partial(cfg.split))
    found = cells(parsed(module))
    assert list(found) == ["", "train", "validation", "test"]
    assert sum(int(found[part][0]) for part in ("train", "validation", "test")) == 360
    assert found["test"][4].startswith("2024-01-0")
    assert f"test {int(found['test'][0])} rows" in repr(module)


def test_a_world_shows_constants_with_what_they_mean() -> None:
    world = recsys.make_world("small", num_users=500, intent_gain=4.5)
    tree = parsed(world)
    assert cells(tree)["intent_gain"] == ["4.5", "the video is about what the user came for"]
    assert "num_users=500 (preset 10000) · intent_gain=4.5 (preset 5.5)" in text(tree)
    for name in ("video_bias_sigma", "reaction_watch"):
        assert f"{name} {getattr(world, name)}" in text(tree)
    assert "500 users x 10,000 videos x 30 days" in repr(world)


def test_a_comparison_shows_verdicts_and_stays_a_frame(runs: dict[str, recsys.Run]) -> None:
    table = recsys.compare([runs[n] for n in ("popularity", "popularity again", "als", "als again")], ["recall@20"])
    assert isinstance(table, pl.DataFrame)
    tree = parsed(table)
    als = table.row(1, named=True)
    shown = text(tree)
    assert f"{als['value']:.4f}[{als['low']:.4f}, {als['high']:.4f}]" in shown
    assert f"{als['difference']:+.4f}" in shown
    assert f"{als['verdict']}p {als['p_corrected']:.2g}" in shown
    assert "differences to Popularity" in shown
    assert len(list(tree.iter("circle"))) == 3  # two values, one difference
    # The last whisker is the difference's, on an axis that holds 0 and its interval.
    ends = als["difference_low"], als["difference_high"], 0.0
    whisker = [node for node in tree.iter("path") if node.get("stroke-width") == "2"][-1]
    low, high = (float(x) for x in re.findall(r"[MH]([\d.]+)", whisker.get("d") or ""))
    for x, value in ((low, ends[0]), (high, ends[1])):
        assert x == pytest.approx(4 + 72 * (value - min(ends)) / (max(ends) - min(ends)), abs=0.06)
    # What Polars makes of it is drawn by Polars.
    for other in (table.drop("verdict"), table.filter(metric="recall@20"), table.head(0)):
        assert "dataframe" in other._repr_html_()
    assert table.equals(pl.DataFrame(table.to_dicts(), schema=table.schema))


def test_a_comparison_of_all_metrics_is_cut_off(runs: dict[str, recsys.Run]) -> None:
    table = recsys.compare([runs["popularity"], runs["als"]])
    html = table._repr_html_()
    rows = list(ET.fromstring(html).iter("tr"))
    assert len(rows) == MOST_ROWS + 1
    assert f"{len(table) - MOST_ROWS} more rows" in html
    alone = parsed(recsys.compare([runs["frame"]], ["recall@3"], names=[EVIL]))
    assert EVIL in text(alone)
    assert "oracle" not in text(alone)


def test_choices_are_shown_at_length() -> None:
    found = recsys.choices("model=als")
    for key, value, about in found.iter_rows():
        assert cells(parsed(found))[key] == [value, about]
    assert all(len(row[-1]) <= 120 for row in cells(parsed(recsys.choices("experiment"))).values())


def test_drawings_of_one_value_and_of_none_but_zeros() -> None:
    for drawn in (reprs.sparkline([0.5, 0.5], "flat"), reprs.sparkline([1.0], EVIL), reprs.histogram([0, 3], "few")):
        tree = ET.fromstring(drawn)
        assert all("nan" not in (value or "") for node in tree.iter() for value in node.attrib.values())
    assert ET.fromstring(reprs.whisker(1, 1, 1, (1, 1), "a point")).find("circle") is not None
