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
    """The specification of every chart that was drawn, its data in it; each is shown as a picture."""
    bundles = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not any("vegaEmbed" in bundle.get("text/html", "") for bundle in bundles)  # which needs the network
    return [json.dumps(spec) for bundle in bundles for mime, spec in bundle.items() if "vegalite" in mime]


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
    assert len(drawn) == 3
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_features(tmp_path: Path) -> None:
    notebook = execute("03_features.ipynb", tmp_path)
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
    figures = json.loads(next(text for text in printed if text.startswith('{"other_rows')))
    assert 0.05 < figures["other_rows"] < 0.3 < figures["other_videos"] < 0.8
    assert 0.4 < figures["rows_named_by_a_tenth"] < 0.7
    assert (figures["null_goes_to"], figures["fr_goes_to"]) == ("null", "other")
    equal_mass, equal_width = figures["largest_bucket"]
    assert equal_mass < 0.12 < 0.7 < equal_width
    assert figures["missing"] == pytest.approx(0.2, abs=0.001)
    # A Poisson variable's variance is its mean; over 10,000 buckets the ratio has a standard deviation of 0.014.
    assert figures["load_variance_over_mean"] == pytest.approx(1, abs=0.06)
    assert figures["collisions_error"] < 0.04
    for measure in ("recall", "clicks"):
        exact, hashed = figures[f"{measure}_exact"], figures[f"{measure}_hashed"]
        assert 0 < hashed["0.25"] < hashed["1"] < hashed["4"] < hashed["16"] < exact < 1
        assert hashed["16"] > 0.85 * exact
    assert figures["recall_hashed"]["1"] < 0.67 * figures["recall_exact"]
    assert figures["clicks_hashed"]["1"] < 0.5 * figures["clicks_exact"]
    assert figures["pairs"] == 168
    assert 8 < figures["pairs_colliding"] < 45  # 26 are expected
    assert figures["order_agrees"] < 0.05
    assert figures["seen_too_late"] == 0
    assert figures["mean_history"]["after the cut"] > 1.3 * figures["mean_history"]["before the cut"]
    assert figures["rows_kept"] == pytest.approx(0.118, abs=0.01)
    errors = figures["calibration_error"]
    assert errors["a tenth of the negatives"] > 0.08
    assert errors["corrected"] < 0.004
    assert errors["all rows"] < 0.004
    assert figures["synthetic"] > 50  # imbalanced-learn is there wherever tests run
    assert figures["request_equal"]
    assert figures["request_ms"] < 1000
    assert figures["rows_per_second"] > 10_000
    assert all(speed > 0.01 for speed in figures["hash_gb_per_second_cpu"].values())
    assert figures.get("gpu_equal", True)
    assert len(charts(notebook)) == 11


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_retrieval(tmp_path: Path) -> None:
    notebook = execute("04_retrieval.ipynb", tmp_path)
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
    figures = json.loads(next(text for text in printed if text.startswith('{"recall')))
    recall, clicks = figures["recall"], figures["clicks"]
    assert all(0 < share < 1 for share in (*recall.values(), *clicks.values()))
    for name in ("als", "two_tower", "in_batch, logQ"):
        assert recall[name] > 0.45 > 0.35 > recall["popularity"]
    assert recall["tags"] > 1.3 * recall["popularity"]
    assert all(share > 2 * clicks["popularity"] for name, share in clicks.items() if name != "popularity")
    # Corrected, the batch's negatives do what all videos do; uncorrected they cost recall and push down the popular.
    head = {name: of["the head"] for name, of in figures["popular"].items()}
    assert abs(recall["in_batch, logQ"] - recall["two_tower"]) < 0.08
    assert abs(head["in_batch, logQ"] - head["two_tower"]) < 0.1
    assert recall["in_batch, no logQ"] < 0.85 * recall["in_batch, logQ"]
    assert head["in_batch, no logQ"] < 0.5 * head["in_batch, logQ"]
    near = figures["neighbours"]
    assert near["two_tower"] > near["als"] > 10 * near["chance"]
    assert near["two_tower, cold"] > 0.8
    cold = figures["cold"]
    assert cold["als"]["length, cold"] == 0 < cold["two_tower"]["length, cold"]
    assert cold["als"]["cold clicks found"] == 0
    assert cold["log oracle"]["cold clicks found"] > 0.2 * cold["log oracle"]["of"]
    assert all(0.2 < figures["next"][name] < 1 for name in ("tags", "als", "two_tower"))
    assert figures["next"]["popularity"] < 0.2
    assert len(charts(notebook)) == 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ranking(tmp_path: Path) -> None:
    notebook = execute("05_ranking.ipynb", tmp_path)
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
    figures = json.loads(next(text for text in printed if text.startswith('{"rate')))
    assert 0.015 < figures["rate"] < 0.025
    bayes, rankers = figures["bayes"], figures["metrics"]
    for found in rankers.values():
        assert bayes["log_loss"] < found["log_loss"] < figures["base_log_loss"]
        assert 0.6 < found["auc"] < bayes["auc"]
    closed = {name: found["gap_closed"] for name, found in rankers.items()}
    assert 0.05 < closed["logistic"] < closed["dcn"] < closed["dcn, position"] < 0.7
    assert metrics(tmp_path, "ranking_dcn")["test/gap_closed"] == closed["dcn"]
    # What a tenth of the negatives, a weight and focal loss do to the mean of the predictions, and what puts it right.
    shift = figures["calibration"]
    for name in ("a tenth of the negatives", "positive_weight=10"):
        assert 5 < shift[name] < 10
    for name in ("corrected", "positive_weight=10, odds / 10", "true probability"):
        assert 0.8 < shift[name] < 1.2
    assert shift["loss=focal"] > 1.6
    known = figures["knowledge"]
    assert 0.2 < known["dcn"]["correlation"] < known["dcn, position"]["correlation"] < 0.8
    assert all(figures["watch"]["mmoe"][of] < figures["watch"]["mean"][of] for of in ("mape", "smape"))
    assert abs(figures["order"]["listwise"]["grouped_auc"] - figures["order"]["bce"]["grouped_auc"]) < 0.05
    assert figures["drift"]["updated"] < figures["drift"]["left alone"]
    assert len(charts(notebook)) == 7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_evaluation(tmp_path: Path) -> None:
    notebook = execute("06_evaluation.ipynb", tmp_path)
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
    figures = json.loads(next(text for text in printed if text.startswith('{"sampled')))
    # Among a few candidates a worse model wins, and both intervals leave out zero.
    for few, whole in (("popularity - ease, 50", "popularity - ease, 1968"), ("tags - als, 200", "tags - als, 1968")):
        assert figures["sampled"][few][0] > 0 > figures["sampled"][whole][1]
    recall, clicks, tagged = figures["recall"], figures["clicks"], figures["baselines"]
    for name in ("knn", "ease"):  # one comparison would call these worse, four do not
        assert tagged[name]["difference_high"] < 0
        assert tagged[name]["verdict"] == "not told apart"
    assert (tagged["popularity"]["verdict"], tagged["als"]["verdict"]) == ("better", "worse")
    assert recall["ease"] > 1.7 * recall["popularity"]
    assert all(sampled == pytest.approx(deep, abs=0.03) for sampled, deep in figures["depth"].values())
    assert figures["clean"]
    inflation, low, _ = figures["prices"]["leave_last_out"]
    assert 3 < inflation < 7
    assert low > 0
    all_time = figures["popularity"]["popularity"]
    assert all_time["recall@100"] == pytest.approx(0.7, abs=0.05)
    assert all_time["clicks a visit"] == pytest.approx(0.2, abs=0.05)
    assert figures["window"]["low"] < 0 < figures["window"]["high"]
    assert figures["head"]["of the videos"] < 0.3 < 0.75 < figures["head"]["of the clicks in test"] < 0.85
    parts = figures["slices"]
    assert parts["popularity"][:3] == [0, 0, 0]
    assert parts["als"][3] > 4 * parts["als"][2]
    assert parts["tags"][1] > parts["als"][1] + 0.03
    assert parts["tags"][2] > 2 * parts["als"][2]
    strangers = figures["strangers"]
    assert strangers["popularity"][0] > 1.3 * strangers["popularity"][3]
    assert strangers["als"][3] > 1.1 * strangers["als"][0]
    assert strangers["popularity"][4] == pytest.approx(strangers["als"][4])
    assert recall["tags"] < recall["als"]
    assert clicks["tags"] > clicks["als"]
    # Of six pairs two are ordered otherwise at the top: those of tags with als and with ease.
    assert figures["pairs"] == 6
    agreement = figures["agreement"]["global_time"]
    assert agreement["recall@100"] == 1
    assert all(0.6 < agreement[f"{name}@20"] < 0.85 for name in ("recall", "precision", "hit", "ndcg", "map", "mrr"))
    assert all(0.6 < agreement[f"{name}@100"] < 0.85 for name in ("map", "mrr"))
    estimates = figures["debiasing"]
    for name in ("als", "ease", "tags"):
        naive, snips = estimates[name]["naive"], estimates[name]["snips"]
        assert naive["value"] > 2 * naive["truth"]
        assert naive["low"] > naive["truth"]
        assert snips["low"] < snips["truth"] < snips["high"]
        assert 0.05 < snips["effective"] < 0.15
    assert estimates["als"]["naive"]["value"] == pytest.approx(0.35, abs=0.02)
    assert estimates["als"]["naive"]["truth"] == pytest.approx(0.11, abs=0.01)
    assert estimates["popularity"]["naive"]["value"] > 5 * estimates["popularity"]["naive"]["truth"]
    assert estimates["als"]["naive"]["value"] > estimates["tags"]["naive"]["value"]
    order = {
        name: sorted(("als", "ease", "tags"), key=lambda model: estimates[model]["snips"][name])
        for name in ("value", "truth")
    }
    assert order["value"] == order["truth"]
    compared = figures["compared"]
    assert compared["als, 32 dimensions"]["verdict"] == "not told apart"
    assert compared["als, 32 dimensions"]["seeds"] == 1
    assert compared["als, 32 dimensions"]["detectable"] < 0.015
    assert all(compared[name]["verdict"] == "worse" for name in ("ease", "tags", "popularity"))
    # 400 pairs at 5% have a standard deviation of 1.1%, 40 tens at 40% and 5% of 7.7% and 3.4%.
    assert figures["equal"]["told apart"] == pytest.approx(0.05, abs=0.03)
    assert 0.2 < figures["equal"]["one of ten"] < 0.6
    assert figures["equal"]["one of ten, Holm"] < 0.14
    assert all(found == pytest.approx(own, abs=1e-6) for own, found in figures["outside"].values())
    assert len(charts(notebook)) == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ann(tmp_path: Path) -> None:
    notebook = execute("07_ann.ipynb", tmp_path)
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
    figures = json.loads(next(text for text in printed if text.startswith('{"same')))
    assert figures["same"] > 0.999  # sums in another order may swap two that are all but equal
    changes = figures["changes"]
    assert changes["added"] == changes["before"]
    assert changes["removed"][:3] == changes["updated"][:3] == changes["before"][1:]
    exact = figures["exact"]
    assert exact["recall"] == 1
    assert exact["recall@20"] == pytest.approx(exact["evaluated"], abs=2e-4)
    # A list loses less than the index; what it loses depends on whom the index favours.
    flat, *others = figures["run"]
    assert all(0.4 < row["recall"] < min(row["recall@20 kept"], row["clicks@20 kept"]) for row in others)
    found = {f"{row['factory']} {row['search']}": row for row in others}
    few, walk, codes = found["IVF32,Flat nprobe=4"], found["HNSW4 efSearch=64"], found["PQ8x4 "]
    assert few["recall"] < 0.9
    assert few["recall@20 kept"] > 1 - 1 / 30
    for probes in (1, 2, 4):
        row = found[f"IVF32,Flat nprobe={probes}"]
        assert row["head"] < flat["head"] - 0.03
        assert row["clicks@20 kept"] > 1.01
    assert found["IVF32,Flat nprobe=1"]["recall@20 kept"] < 0.8
    assert walk["head"] > flat["head"] + 0.03
    assert walk["clicks@20 kept"] < walk["recall@20 kept"] - 0.02
    assert walk["recall@20 kept"] > 0.9
    assert max(codes["recall@20 kept"], codes["clicks@20 kept"]) < 0.95
    # Overlapping clusters need many lists, separate ones one.
    hard = [row for row in figures["hard"] if row["factory"] == "IVF512,Flat"]
    assert hard[0]["recall"] < 0.4 < 0.95 < figures["easy"][0]
    assert [row["recall"] for row in hard] == sorted(row["recall"] for row in hard)
    assert all(row["recall_low"] <= row["recall"] for row in figures["hard"])
    assert all(row["recall_low"] <= row["fresh"] + 1e-4 for row in figures["hard"])
    picked, kept = figures["picked"], figures["kept_word"]
    assert picked["bound"]["fresh"] >= 0.9 <= picked["bound"]["recall_low"]
    assert kept["mean"] <= 2 / 3 * kept["of"] < 0.95 * kept["of"] <= kept["bound"]
    # What was seen never comes back; beyond 2,048 fetched the answer is exact.
    seen = {(row["seen"], row["number"], row["nprobe"]): row["recall"] for row in figures["exclusions"]}
    assert not any(row["seen again"] for row in figures["exclusions"])
    assert all(recall == 1 for (_, number, _), recall in seen.items() if number > 2028)
    for nprobe in (16, 64):
        assert seen["the nearest", 300, nprobe] < seen["the nearest", 0, nprobe] - 0.15
        assert seen["the nearest", 2028, nprobe] < seen["the nearest", 300, nprobe] - 0.1
        assert seen["anywhere", 2028, nprobe] == pytest.approx(seen["anywhere", 0, nprobe], abs=0.03)
    assert figures["same_again"]
    key, damaged = figures["refusals"]
    assert "not 'another model'" in key
    assert "vectors.safetensors is damaged" in damaged
    assert len(charts(notebook)) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_funnel(tmp_path: Path) -> None:
    notebook = execute("08_funnel.ipynb", tmp_path)
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
    figures = json.loads(next(text for text in printed if text.startswith('{"known')))
    known = figures["known"]
    assert all(found["videos"] == 100 for found in known.values())
    assert known["unknown id"]["als or tags"] == known["new, from Germany"]["als or tags"] == 0
    assert known["new, with three likes"]["als or tags"] > 0.8
    assert known["new, from Germany"]["understood"] > known["unknown id"]["understood"] + 0.04
    assert known["new, with three likes"]["of topic 3"] > 2 * known["new, from Germany"]["of topic 3"]
    both, *others = (figures["sources"][n] for n in ("als and tags", "als, not tags", "tags, not als", "only popular"))
    assert all(both["true"] > 3 * of["true"] and both["promised"] < 1.5 * of["promised"] for of in others)
    assert figures["rule"]["the rule"]["breaks the rule"] == 0
    assert figures["rule"]["no rule"]["breaks the rule"] == pytest.approx(1 / 7, abs=0.05)
    assert figures["rule"]["the rule"]["clicks"] == pytest.approx(figures["rule"]["no rule"]["clicks"], rel=0.03)
    forms = figures["forms"]
    assert all(form["low"] > 0 for name, form in forms.items() if name != "as ranked")
    assert all(forms[f"{most} a topic"]["largest topic"] <= most for most in (20, 5))
    assert forms["diversity 0.1"]["topics"] == pytest.approx(forms["5 a topic"]["topics"], abs=1.5)
    assert forms["diversity 0.1"]["lost"] < 0.4 * forms["5 a topic"]["lost"]
    assert forms["diversity 0.1"]["largest topic"] > 0.9 * forms["as ranked"]["largest topic"]
    # 10,000 places at 2% have a standard deviation of 0.14 points.
    exploration = figures["exploration"]
    assert exploration["share"] == pytest.approx(0.02, abs=0.005)
    assert exploration["propensity, others"] == pytest.approx(0.98)
    assert 0.02 / 103 < exploration["propensity, explored"] < 0.02 / 90  # one of the hundred that are not listed
    assert 0 < exploration["low"] < exploration["high"] < 0.03
    # Candidates win clicks and recall; the ranker costs most.
    budget = figures["budget"]
    assert budget["retrieval"]["high"] < 0
    assert budget["retrieval"]["recall"] > 1.3 * budget["whole catalogue"]["recall"]
    assert budget["re-ranking"]["low"] > 0
    assert budget["whole catalogue"]["lost"] > 0.5 * budget["best"]["clicks"]
    shown, found, topic = figures["why"].values()
    assert shown["rarest third"]["promised"] < 1.15 * shown["rarest third"]["true"]
    assert shown["most shown third"]["promised"] > shown["most shown third"]["true"]
    never, often = topic["never clicked"], topic["3 or more clicks"]
    assert never["promised"] > 0.6 * often["promised"]
    assert never["true"] < 0.15 * often["true"]
    assert found["did not find it"]["promised"] > 2 * found["did not find it"]["true"]
    assert found["found it"]["promised"] < found["found it"]["true"]
    ladder = figures["ladder"]
    kept, ideal = ([row[name] for row in ladder] for name in ("kept", "a ranker that knows"))
    assert kept == sorted(kept, reverse=True)
    assert ideal == sorted(ideal)
    assert all(row["a ranker that knows"] > row["ranked"] for row in ladder)
    assert ladder[0]["ranked"] > 1.1 * ladder[0]["order of retrieval"]
    assert ladder[-1]["ranked"] < 0.95 * ladder[-1]["order of retrieval"]
    assert ladder[1]["a ranker that knows"] > 1.7 * ladder[1]["ranked"]
    doors = figures["doors"]
    everyone = doors.pop("als, tags, recent, popular")
    assert everyone["100 ranked"] > everyone["200 ranked"] > everyone["not ranked"]
    for own in doors.values():
        assert own["not ranked"] > 1.05 * own["100 ranked"] > 1.2 * own["200 ranked"]
    assert all(spent > 0 for stages in figures["milliseconds"].values() for spent in stages.values())
    faults = figures["faults"]
    assert all(fault["videos"] == 100 for fault in faults.values())
    assert [fault["counted"] for fault in faults.values()] == [0, 1, 1, 1, 4]
    assert faults["none"]["degraded"] is None
    assert "took longer than 1000 ms" in faults["the ranker sleeps"]["degraded"]
    assert faults["the ranker sleeps"]["seconds"] < 5  # as long as it would sleep
    assert faults["none"]["clicks"] > faults["the ranker fails"]["clicks"] > faults["all sources fail"]["clicks"] > 0
    assert len(charts(notebook)) == 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ab_test(tmp_path: Path) -> None:
    notebook = execute("09_ab_test.ipynb", tmp_path)
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
    figures = json.loads(next(text for text in printed if text.startswith('{"plan')))
    raw, cuped = figures["plan"]["clicks"]
    assert cuped < 2_000 < raw
    # The true effect lies in the interval, whatever the contrast, the metric and the method.
    for found in (*figures["effects"].values(), *figures["metrics"].values()):
        assert found["relative_low"] < found["truth"] < found["relative_high"]
    effects = figures["effects"]
    truth = {pair: effects[f"{pair}, cuped"]["truth"] for pair in ("large against small", "exploring against large")}
    assert truth["large against small"] == pytest.approx(0.15, abs=0.02)
    assert truth["exploring against large"] == pytest.approx(-0.012, abs=0.003)
    verdicts = [effects[f"{pair}, cuped"]["verdict"] for pair in ("large against popularity", *truth)]
    assert verdicts == ["better", "better", "not told apart"]
    assert effects["large against small, cuped"]["variance_left"] == pytest.approx(0.46, abs=0.06)
    detectable, needed = figures["unseen"]
    assert detectable == pytest.approx(0.11, abs=0.01)
    assert 100_000 < needed < 250_000
    # 3,000 experiments at a half have a standard deviation of 0.9 points; CUPED is planned a few points too low.
    for row in figures["power"]:
        least, most = (-0.035, 0.045) if row["method"] == "raw" else (-0.02, 0.06)
        assert least < row["realised"] - row["planned"] < most
    assert figures["peeking"]["one test at the end"] == pytest.approx(0.05, abs=0.015)
    assert 0.2 < figures["peeking"]["a test every day"] < 0.3
    assert figures["peeking"]["always-valid interval every day"] < 0.05
    assert figures["found"]["always-valid interval every day"] == pytest.approx(0.73, abs=0.06)
    assert figures["found"]["one test at the end"] == pytest.approx(0.94, abs=0.03)
    assert figures["taken"] == pytest.approx(0.69, abs=0.05)
    for left in figures["remaining"].values():
        assert left["planned"] == pytest.approx(left["stated"], abs=0.04)
        assert left["planned"] == pytest.approx(left["spread"], abs=0.07)
    assert figures["remaining"]["clicks"]["planned"] == pytest.approx(0.49, abs=0.05)
    assert figures["remaining"]["watch"]["planned"] > 0.9
    assert all(figures["remaining"][metric]["same policy"] < 0.67 for metric in ("ctr", "watch"))
    guards, by_device = figures["guards"], figures["by_device"]
    assert guards["large against popularity, topics a visit"]["effect"] == pytest.approx(-0.32, abs=0.04)
    assert guards["large against popularity, topics a visit"]["verdict"] == "fails"
    assert guards["large against popularity, visits"]["low"] > 0  # of a true 0: the draw of the groups
    assert guards["large against small, topics a visit"]["verdict"] == "passes"
    assert by_device["device = tablet"]["verdict"] == "cannot tell"
    assert figures["mismatch"] < 1e-6
    damaged = figures["damaged"]
    assert damaged["raw"]["relative_high"] < 0 < damaged["cuped"]["relative"] < truth["large against small"]
    assert damaged["cuped"]["verdict"] == "not trusted"
    usual, felt = (
        {name: figures["returning"][f"{name}, {who}"] for name in ("visits a user", "clicks a visit", "clicks a user")}
        for who in ("as in the log", "who come back if satisfied")
    )
    assert usual["visits a user"] == 0
    assert felt["visits a user"] == pytest.approx(0.05, abs=0.015)
    assert felt["clicks a visit"] < usual["clicks a visit"] + 0.005
    assert felt["clicks a user"] > felt["clicks a visit"] + 0.03
    before = figures["beforehand"]
    width = {name: row["high"] - row["low"] for name, row in before.items() if row["value"] is not None}
    for policy in ("more taste", "more popular", "large"):
        naive = before[f"{policy}, naive"]
        assert not naive["low"] < naive["truth"] < naive["high"]
        for estimator in ("ips", "snips", "dr"):
            found = before[f"{policy}, {estimator}"]
            assert found["low"] < found["truth"] < found["high"]
        assert width[f"{policy}, dr"] < width[f"{policy}, snips"]
    assert before["large, ips"]["share"] == pytest.approx(0.07, abs=0.02)
    for estimator in ("ips", "snips"):
        asked = before[f"large, place by place, {estimator}"]
        assert asked["value"] is None
        assert asked["verdict"].startswith("not identifiable")
    page = (tmp_path / figures["page"]).read_text()
    assert "http" not in page  # it needs no network
    assert all(part in page for part in ("Plan", "Assignment", "Metrics", "Guardrails", "While it ran"))
    assert len(charts(notebook)) == 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_youtube_scale(tmp_path: Path) -> None:
    notebook = execute("10_youtube_scale.ipynb", tmp_path)
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
    figures = json.loads(next(text for text in printed if text.startswith('{"same')))
    assert figures["same"]
    youtube, tables, learning, ranking = (figures[name] for name in ("youtube", "tables", "learning", "ranking"))
    assert 300_000 < youtube["rows"] < 350_000
    assert 0.018 < youtube["ctr"] < 0.022
    assert all(speed > 0 for speed in (youtube["rows_per_second"], *figures["machine"].values()))
    # 66 floats and an accumulator, a count, a decay; of items what negatives are drawn by.
    assert 280 < tables["bytes_per_row"] < 282
    assert tables["share_that_fits"] < 1
    for row in figures["memory"]:
        assert row["gigabytes"] * 1e9 == pytest.approx(tables["bytes_per_row"] * row["rows"], rel=0.03)
    assert 40_000 < learning["clicks"] < 48_000
    assert learning["last_loss"] < learning["first_loss"] - 0.1
    assert 0 < learning["wait_share"] < 1
    assert 0.005 < ranking["of_the_product"] < 1
    assert ranking["scores_per_second"] * ranking["whole_years"] * 31_557_600 == pytest.approx(1.3e9 * 1e8)
    assert 10 * 100 / tables["videos"] < ranking["low"] < ranking["recall"] < ranking["high"] < 0.4
    # What a sample of users loses is noise and known, what a sample of items adds is neither.
    half_width = ranking["half_width_of_10000"] * (10_000 / ranking["counted"]) ** 0.5
    assert (ranking["high"] - ranking["low"]) / 2 == pytest.approx(half_width, rel=0.15)
    assert ranking["by_sample"]["a thousand drawn"] > 2 * ranking["by_sample"]["all videos"]
    flat, *others = figures["served"]
    assert flat["recall"] == 1
    assert [row["recall"] for row in others] == sorted(row["recall"] for row in others)
    assert others[0]["recall"] < 0.95 < others[-1]["recall"]
    assert others[0]["queries a second"] > 2 * flat["queries a second"]
    exact = {row["videos"]: row["seconds"] for row in figures["costs"] if row["of"] == "exact list"}
    assert exact[10_000] > 2 * exact[400] > 0
    assert len(charts(notebook)) == 1
