"""A finished run answers: recommendations, similar items, comparisons, plots, from frames in a notebook."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

import recsys
from recsys.comparison import compare, labels
from recsys.plots import plot_shares
from recsys.run import read_user_ids
from recsys.training import evaluate

QUIET = ("trainer=cpu", "evaluation.k=[3]", "evaluation.num_replicates=100")


def frame(num_users: int = 120) -> pl.DataFrame:
    """Text ids; users of a group like the ten items of their group, six each, at their own times."""
    rng = np.random.default_rng(1)
    rows = []
    for user in range(num_users):
        for step, item in enumerate(rng.permutation(10)[:6]):
            rows.append((f"u{user:03d}", f"g{user % 4}-{item}", 1_600_000_000 + step * 86_400 + user))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, recsys.Run]:
    folder = tmp_path_factory.mktemp("runs")
    words = {
        "popularity": ["model=popularity"],
        "als": ["model=als", "model.embedding_dim=8"],
        "als_long": ["model=als", "model.embedding_dim=8", "model.num_sweeps=3"],
        "als_seed": ["model=als", "model.embedding_dim=8", "seed=1"],
    }
    return {
        name: recsys.train(*more, *QUIET, f"hydra.run.dir={folder / name}", data=frame())
        for name, more in words.items()
    }


def test_recommend_knows_groups_masks_history_and_declares_the_fallback(runs: dict[str, recsys.Run]) -> None:
    answer = runs["als"].recommend(["u004", "stranger", "u005"], k=4)
    assert answer.columns == ["user_id", "rank", "item_id", "source"]
    known = answer.filter(user_id="u004")
    assert known["source"].unique().to_list() == ["model"]
    assert all(item.startswith("g0-") for item in known["item_id"])
    seen = frame().filter(user_id="u004")["item_id"].to_list()
    liked_before_the_cut = set(seen) - set(known["item_id"])
    assert len(liked_before_the_cut) >= 3
    assert answer.filter(user_id="stranger")["source"].unique().to_list() == ["fallback"]
    popular = runs["popularity"].recommend(["stranger"], k=4)["item_id"].to_list()
    assert answer.filter(user_id="stranger")["item_id"].to_list() == popular


def test_recommend_to_everyone_and_beyond_the_catalogue(runs: dict[str, recsys.Run]) -> None:
    answer = runs["als"].recommend(k=1000)
    per_user = answer.group_by("user_id").agg(pl.len(), pl.col("item_id").n_unique().alias("distinct"))
    assert per_user.height == 120
    assert (per_user["len"] == per_user["distinct"]).all()
    assert per_user["len"].max() < 40
    with pytest.raises(ValueError, match="k must be at least 1"):
        runs["als"].recommend(["u004"], k=0)
    with pytest.raises(ValueError, match="ids here are text"):
        runs["als"].recommend([4], k=1)


def test_similar_items_come_from_the_same_group(runs: dict[str, recsys.Run]) -> None:
    similar = runs["als"].similar_items("g2-3", k=5)
    assert all(item.startswith("g2-") for item in similar["item_id"])
    assert "g2-3" not in similar["item_id"].to_list()
    with pytest.raises(ValueError, match="item 'g2-33' is unknown: did you mean g2-3"):
        runs["als"].similar_items("g2-33")
    with pytest.raises(ValueError, match="knows no similarity"):
        runs["popularity"].similar_items("g2-3")


def test_a_loaded_run_answers_like_the_one_that_trained(runs: dict[str, recsys.Run]) -> None:
    again = recsys.load(runs["als"].path)
    assert again.recommend(k=3).equals(runs["als"].recommend(k=3))
    assert again.metrics == runs["als"].metrics
    with pytest.raises(ValueError, match="holds no run"):
        recsys.load(runs["als"].path.parent / "nothing")


def test_folders_that_hold_no_finished_run_say_what_they_hold(runs: dict[str, recsys.Run], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"als_sed holds no run, there is no such folder: did you mean als_seed\?"):
        recsys.load(runs["als"].path.parent / "als_sed")
    with pytest.raises(ValueError, match=r"holds no run: metrics\.json is missing; recsys\.runs\('.*'\) lists"):
        recsys.load(runs["als"].path.parent)
    shutil.copy(runs["als"].path / "config.yaml", tmp_path)
    with pytest.raises(ValueError, match=r"holds an unfinished run: .*; recsys\.resume\('.*'\) goes on"):
        recsys.load(tmp_path)
    (tmp_path / "pruned.json").write_text("{}")
    with pytest.raises(ValueError, match=r"was pruned: .*; pruned\.json says why"):
        recsys.load(tmp_path)


NO_FIT = r"config\.yaml was written by recsys 0\.1\.0 and no longer fits.*: unknown key model\.num_sweep: did you mean"


@pytest.mark.parametrize(
    ("file", "content", "what", "message"),
    [
        ("manifest.json", None, "manifest", r"manifest\.json is missing: the run was moved in part"),
        ("manifest.json", '{"model": "a.B"}', "manifest", r"manifest\.json has no seed: another version"),
        ("metrics.json", "{", "metrics", r"metrics\.json holds no JSON \(Expecting"),
        ("metrics.json", "3", "metrics", "holds no keys and values"),
        ("per_user.parquet", None, "per_user", r"per_user\.parquet is missing"),
        ("checkpoints/model.safetensors", None, "model", r"model\.safetensors is missing"),
        ("config.yaml", "model: {_target_: recsys.models.als.ALS, num_sweep: 2}", "model", NO_FIT),
    ],
)
def test_a_run_of_another_version_or_moved_in_part_says_so_in_one_line(
    runs: dict[str, recsys.Run], tmp_path: Path, file: str, content: str | None, what: str, message: str
) -> None:
    path = shutil.copytree(runs["als"].path, tmp_path / "old")
    (path / file).unlink()
    if content is not None:
        (path / file).write_text(content)
    run = recsys.load(path)
    with pytest.raises(ValueError, match=message) as raised:
        getattr(run, what)
    assert "\n" not in str(raised.value)


def test_compare_labels_what_differs_and_aggregates_seeds(runs: dict[str, recsys.Run]) -> None:
    everyone = list(runs.values())
    assert labels(everyone) == ["Popularity", "ALS num_sweeps=16", "ALS num_sweeps=3", "ALS num_sweeps=16"]
    table = compare(everyone, ["recall@3"])
    rows = {row["label"]: row for row in table.iter_rows(named=True)}
    assert rows["ALS num_sweeps=16"]["seeds"] == 2
    assert rows["ALS num_sweeps=16"]["trials"] is None
    mean = np.mean([runs[name].metrics["test/recall@3"] for name in ("als", "als_seed")])
    assert rows["ALS num_sweeps=16"]["value"] == pytest.approx(mean)
    for row in rows.values():
        assert row["low"] <= row["value"] <= row["high"]
    better = rows["ALS num_sweeps=3"]
    assert rows["Popularity"]["difference"] is None
    assert better["difference"] == pytest.approx(better["value"] - rows["Popularity"]["value"])
    assert 0 < better["difference_low"] < better["difference"] < better["difference_high"]
    assert better["verdict"] == "better"
    assert better["p"] <= better["p_corrected"] < 0.05
    assert 0 < better["detectable"] < better["difference"]
    assert better["effect"] > 0


@pytest.mark.parametrize(("correction", "verdicts"), [("holm", 1), ("benjamini_hochberg", 3)])
def test_verdicts_survive_the_correction_over_all_that_are_compared(
    runs: dict[str, recsys.Run], tmp_path: Path, correction: str, verdicts: int
) -> None:
    """Nine runs whose users differ from the baseline's ever less: alone four would be told apart."""
    rng, users = np.random.default_rng(0), len(runs["als"].per_user)
    noise = rng.standard_normal(users)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    found = []
    for number, t in enumerate([0.0, 4.0, 2.6, 2.5, 2.0, *[0.5] * 5]):
        run = recsys.load(shutil.copytree(runs["als"].path, tmp_path / str(number)))
        values = runs["als"].per_user["recall@3"].cast(pl.Float64)
        values = values + (noise + t / users**0.5) * (number > 0)
        run.per_user = run.per_user.with_columns(values.alias("recall@3"))
        run.metrics = {**run.metrics, "test/recall@3": values.mean()}
        found.append(run)
    table = compare(found, ["recall@3"], names=[str(n) for n in range(len(found))], correction=correction)
    assert table["p"].drop_nulls().lt(0.05).sum() == 4
    assert table["verdict"].eq("better").sum() == verdicts
    assert table["verdict"].eq("not told apart").sum() == 9 - verdicts


def test_agreement_counts_pairs_that_a_metric_orders_as_the_truth_does(
    runs: dict[str, recsys.Run], tmp_path: Path
) -> None:
    found = []
    figures = [(1, 0.2, 0.5, "a"), (2, 0.3, 0.4, "a"), (3, 0.3, 0.3, "a"), (1, 0.2, 0.1, "b"), (2, 0.1, 0.2, "b")]
    for number, (truth, recall, hit, split) in enumerate(figures):
        run = recsys.load(shutil.copytree(runs["als"].path, tmp_path / str(number)))
        run.metrics = {"test/recall@3": recall, "test/hit@3": hit, "test/gini@3": 0.5, "utility/clicks@3": truth}
        run.manifest["split"]["kind"] = split
        run.config.model.num_sweeps = number + 1  # another configuration each
        found.append(run)
    table = recsys.agreement(found, "utility/clicks@3")
    rows = {(row["split"], row["metric"]): (row["pairs"], row["agreement"]) for row in table.to_dicts()}
    # Of the pairs of a, recall orders two rightly and ties one; hit none.
    assert rows == {
        ("a", "recall@3"): (3, pytest.approx(2.5 / 3)), ("a", "hit@3"): (3, 0.0),
        ("b", "recall@3"): (1, 0.0), ("b", "hit@3"): (1, 1.0),
    }  # fmt: skip
    assert table["agreement"].is_sorted(descending=True)
    with pytest.raises(ValueError, match=r"has no utility/click@3: did you mean utility/clicks@3"):
        recsys.agreement(found, "utility/click@3")
    with pytest.raises(ValueError, match="metric recal@3 was not measured in every run"):
        recsys.agreement(found, "utility/clicks@3", ["recal@3"])
    with pytest.raises(ValueError, match="no two models were measured by one split"):
        recsys.agreement(found[:1], "utility/clicks@3")


def test_compare_refuses_what_cannot_be_compared(runs: dict[str, recsys.Run], tmp_path: Path) -> None:
    other = recsys.train("model=popularity", *QUIET, f"hydra.run.dir={tmp_path / 'other'}", data=frame(80))
    with pytest.raises(ValueError, match="was measured on other data"):
        compare([runs["als"], other])
    with pytest.raises(ValueError, match=r"metric recal@3 was not measured in every run: did you mean recall@3"):
        compare([runs["als"]], ["recal@3"])
    with pytest.raises(ValueError, match="baseline=ALSO: did you mean ALS"):
        compare([runs["als"]], baseline="ALSO")
    with pytest.raises(ValueError, match="correction=hulm: did you mean holm"):
        compare([runs["als"]], correction="hulm")
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([])


def test_plots_hold_the_numbers(runs: dict[str, recsys.Run]) -> None:
    bars = recsys.plot_metrics([runs["popularity"], runs["als"]], ["recall@3"]).to_dict()
    values = {row["label"]: row["value"] for data in bars["datasets"].values() for row in data if "label" in row}
    assert values == pytest.approx(
        {"Popularity": runs["popularity"].metrics["test/recall@3"], "ALS": runs["als"].metrics["test/recall@3"]}
    )
    curves = recsys.plot_curves([runs["als"]], "train/loss").to_dict()
    (points,) = curves["datasets"].values()
    assert [point["epoch"] for point in points] == list(range(1, 17))
    with pytest.raises(ValueError, match="no run logged val/recall@7"):
        recsys.plot_curves([runs["als"]], "val/recall@7")
    with pytest.raises(ValueError, match="has no oracle/recall@3"):
        plot_shares([runs["als"]], k=3)


def test_shares_are_those_of_a_world(tmp_path: Path) -> None:
    small = ("data=world", "world.num_users=200", "world.num_videos=400", *QUIET)
    words = {"popularity": ("model=popularity",), "als": ("model=als",), "als again": ("model=als", "seed=1")}
    runs = [recsys.train(*more, *small, f"hydra.run.dir={tmp_path / name}") for name, more in words.items()]
    drawn = plot_shares(runs, ["popularity", "als", "als"], k=3).to_dict()
    rows = [row for data in drawn["datasets"].values() for row in data]
    bars = {(row["label"], row["of"]): row for row in rows}
    assert len(bars) == len(rows) == 4
    found = [
        {"recall": m["test/recall@3"] / m["oracle/recall@3"], "clicks": m["utility/clicks@3"] / m["best/clicks@3"]}
        for m in (run.metrics for run in runs)
    ]
    for name, of in (("popularity", found[:1]), ("als", found[1:])):
        recall, clicks = bars[name, "recall, of the oracle's"], bars[name, "clicks, of the best lists'"]
        assert recall["share"] == pytest.approx(sum(each["recall"] for each in of) / len(of))
        assert recall["low"] < recall["share"] < recall["high"]
        assert clicks["share"] == pytest.approx(sum(each["clicks"] for each in of) / len(of))
        assert clicks["low"] is None


def test_pandas_and_polars_frames_give_the_same_run(tmp_path: Path) -> None:
    frames = {"pandas": pd.DataFrame(frame().to_dict(as_series=False)), "polars": frame()}
    found = [
        recsys.train("model=knn", *QUIET, f"hydra.run.dir={tmp_path / kind}", data=data)
        for kind, data in frames.items()
    ]
    assert found[0].manifest["data"]["fingerprint"] == found[1].manifest["data"]["fingerprint"]
    assert found[0].metrics["test/ndcg@3"] == found[1].metrics["test/ndcg@3"]


def test_a_run_on_a_frame_remembers_which(runs: dict[str, recsys.Run], tmp_path: Path) -> None:
    path = runs["als"].path
    with pytest.raises(ValueError, match="was trained on a data frame"):
        evaluate(path)
    again = evaluate(path, ["evaluation.k=[3]"], data=frame())
    assert again["test/recall@3"] == runs["als"].metrics["test/recall@3"]
    with pytest.raises(ValueError, match="has changed since"):
        evaluate(path, data=frame(80))


def test_user_ids_from_files_and_lists(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1, 2], "x": [0, 0]}).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("user_id\n3\n4\n")
    (tmp_path / "c.txt").write_text("5\n6\n")
    for text, expected in {"a.parquet": [1, 2], "b.csv": [3, 4], "c.txt": [5, 6]}.items():
        assert read_user_ids(str(tmp_path / text), pl.Int64()).to_list() == expected
    assert read_user_ids("7,8", pl.String()).to_list() == ["7", "8"]
    with pytest.raises(ValueError, match=r"nowhere\.csv: there is no such file"):
        read_user_ids("nowhere.csv", pl.Int64())
    pl.DataFrame({"usr": [1], "x": [0]}).write_csv(tmp_path / "d.csv")
    with pytest.raises(ValueError, match=r"d\.csv has no column user_id"):
        read_user_ids(str(tmp_path / "d.csv"), pl.Int64())


def test_public_names_are_what_they_say_after_every_module_is_loaded() -> None:
    for name in recsys.__all__:
        assert callable(getattr(recsys, name)), name
