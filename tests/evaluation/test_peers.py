"""Figures beside those of libraries that others use, equal and different as docs/metrics.md says."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from naive import make_queries, scorer_of
from sklearn.metrics import log_loss, roc_auc_score
from torchmetrics.functional import mean_absolute_percentage_error, symmetric_mean_absolute_percentage_error
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_precision,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from recsys.evaluation import calibration, metrics
from recsys.evaluation.beyond import Items
from recsys.evaluation.ranking import evaluate
from recsys.evaluation.topk import top_k
from recsys.schema import NUM_RESERVED

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
CUTS = [1, 3, 10, 48]
TORCHMETRICS = {
    "precision": retrieval_precision,
    "recall": retrieval_recall,
    "hit": retrieval_hit_rate,
    "ndcg": retrieval_normalized_dcg,
    "mrr": retrieval_reciprocal_rank,
}
TOLERANCE = 1e-6


def cases(seed, num_users=30, num_items=50, most=20):
    """Scores without ties [B, I], what is relevant [B, I] and our lists [B, I - 2], the reserved items apart."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(np.stack([rng.permutation(num_items) + 1.0 for _ in range(num_users)]))
    relevant = torch.zeros(num_users, num_items, dtype=torch.bool)
    for row in relevant:
        row[rng.choice(np.arange(NUM_RESERVED, num_items), rng.integers(1, most), replace=False)] = True
    lists, _ = top_k(scores, num_items - NUM_RESERVED, user_key=torch.arange(num_users), seed=seed)
    return scores, relevant, lists


def ours(lists, relevant, cuts):
    """{metric: float64 [B, K]}"""
    found = metrics.measure(relevant.gather(1, lists), relevant.sum(1), cuts)
    return dict(zip(metrics.METRICS, found.split(len(cuts), dim=1), strict=True))


def theirs(function, scores, relevant, cuts):
    rows = [
        [float(function(s[NUM_RESERVED:], r[NUM_RESERVED:], top_k=k)) for k in cuts]
        for s, r in zip(scores, relevant, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def equal(a, b):
    return torch.allclose(a, b, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TORCHMETRICS)
def test_ranking_metrics_equal_torchmetrics(name, seed):
    scores, relevant, lists = cases(seed)
    cuts = [*CUTS, 60]  # the last beyond the catalogue
    assert equal(ours(lists, relevant, cuts)[name], theirs(TORCHMETRICS[name], scores, relevant, cuts))


def test_torchmetrics_divides_average_precision_by_the_hits():
    scores, relevant, lists = cases(3)
    found, other = ours(lists, relevant, CUTS), theirs(retrieval_average_precision, scores, relevant, CUTS)
    k = torch.tensor(CUTS)
    hits = found["precision"] * k
    attainable = torch.minimum(relevant.sum(1, keepdim=True), k)
    assert equal(other, found["map"] * attainable / hits.clamp(min=1))
    assert float((other - found["map"]).max()) > 0.5
    assert equal(other[hits == attainable], found["map"][hits == attainable])


def test_torchmetrics_takes_scores_of_zero_and_less_for_misses():
    scores, relevant, lists = cases(4)
    logits = scores - 100
    moved, _ = top_k(logits, lists.shape[1], user_key=torch.arange(len(logits)), seed=0)
    assert torch.equal(moved, lists)
    found = ours(lists, relevant, CUTS)
    for name in ("precision", "recall", "mrr"):
        assert float(found[name].sum()) > 0
        assert float(theirs(TORCHMETRICS[name], logits, relevant, CUTS).sum()) == 0
    assert float(theirs(retrieval_average_precision, logits, relevant, CUTS).sum()) == 0
    for name in ("hit", "ndcg"):
        assert equal(found[name], theirs(TORCHMETRICS[name], logits, relevant, CUTS))


def test_a_constant_model_scores_as_chance_here_and_by_low_ids_elsewhere():
    num_users, num_items, k = 4000, 640, 10
    scores, relevant = torch.ones(num_users, num_items + NUM_RESERVED), torch.zeros(1, num_items + NUM_RESERVED)
    relevant[0, NUM_RESERVED : NUM_RESERVED + 3] = 1  # the lowest ids
    relevant = relevant.bool()
    lists, _ = top_k(scores, k, user_key=torch.arange(num_users), seed=0)
    found = ours(lists, relevant.expand(num_users, -1), [k])
    for name, chance in (
        ("precision", 3 / num_items),
        ("ndcg", float(theirs(retrieval_normalized_dcg, scores[:1], relevant, [k]))),  # their mean over all orders
    ):
        error = float(found[name].std()) / num_users**0.5
        assert abs(float(found[name].mean()) - chance) < 4 * error
    assert float(theirs(retrieval_precision, scores[:1], relevant, [k])) == pytest.approx(3 / k)


def test_users_without_a_relevant_item_are_left_out_here_and_zeros_there():
    rng = np.random.default_rng(0)
    queries = make_queries(rng, 60, 30, relevant=1, cold=0, candidates=1.0)
    scores = torch.from_numpy(rng.permuted(np.tile(np.arange(30.0) + 1, (60, 1)), axis=1))
    found = evaluate(scorer_of(scores), queries, k=[5], num_replicates=0)
    assert found.counts["empty_relevant"] > 5
    values = []
    for q in range(len(queries)):
        seen, relevant = (pairs.rows(q, q + 1).item_idx for pairs in (queries.seen, queries.relevant))
        kept = torch.arange(30) >= NUM_RESERVED
        kept[seen] = False
        target = torch.zeros(30, dtype=torch.bool)
        target[relevant] = True
        values.append(float(retrieval_recall(scores[q][kept], target[kept], top_k=5)))
    counted = found.counts["queries"]
    assert sum(values) / counted == pytest.approx(found.metrics["recall@5"], abs=TOLERANCE)
    assert counted + found.counts["empty_relevant"] == len(values)


def test_implicit_agrees_on_map_and_ndcg_and_pools_precision():
    evaluation = pytest.importorskip("implicit.evaluation")
    from scipy.sparse import csr_matrix

    _, relevant, lists = cases(5, num_users=80)
    relevant[:10] = False  # left out by both
    k, liked = 10, csr_matrix(relevant.float().numpy())

    class Lists:
        def recommend(self, userid, user_items, N):
            return lists[torch.from_numpy(np.array(userid)).long(), :N].int().numpy(), None

    other = evaluation.ranking_metrics_at_k(Lists(), liked * 0, liked, K=k, show_progress=False)
    found = ours(lists[10:], relevant[10:], [k])
    for name in ("map", "ndcg"):
        assert other[name] == pytest.approx(float(found[name].mean()), abs=TOLERANCE)
    pooled = found["precision"].sum() * k / relevant[10:].sum(1).clamp(max=k).sum()
    assert other["precision"] == pytest.approx(float(pooled), abs=TOLERANCE)
    assert other["precision"] - float(found["precision"].mean()) > 0.01


@pytest.mark.slow
def test_ranx_agrees_on_all_but_map():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranx = pytest.importorskip("ranx")
        scores, relevant, lists = cases(6)
        # Rows of (item, grade) and of (item, score), the best first.
        item = relevant.int().argsort(dim=1, descending=True)
        qrels = torch.stack([item, relevant.gather(1, item)], dim=2).double().numpy()
        run = torch.stack([lists, scores.gather(1, lists)], dim=2).numpy()
        functions = ("precision", "recall", "hit_rate", "ndcg", "average_precision", "reciprocal_rank")
        pairs, cuts = list(zip(metrics.METRICS, functions, strict=True)), [3, 10]
        other = {(name, k): getattr(ranx.metrics, there)(qrels, run, k=k).mean() for name, there in pairs for k in cuts}
    found, num_relevant = ours(lists, relevant, cuts), relevant.sum(1, keepdim=True)
    found["map"] = found["map"] * torch.minimum(num_relevant, torch.tensor(cuts)) / num_relevant
    for (name, k), value in other.items():
        assert value == pytest.approx(float(found[name][:, cuts.index(k)].mean()), abs=TOLERANCE)


@pytest.mark.parametrize("levels", [None, 7])
def test_auc_and_log_loss_equal_torchmetrics_and_scikit_learn(levels):
    rng = np.random.default_rng(7)
    logits = rng.normal(size=2000)
    logits = logits if levels is None else np.round(logits * 2) / 2
    labels, users = rng.random(2000) < 0.3, rng.integers(0, 40, 2000)
    probability = torch.from_numpy(logits).sigmoid()
    target, keys = torch.from_numpy(labels).long(), torch.from_numpy(users)
    found = calibration.measure(torch.from_numpy(logits), target, keys, num_replicates=0).metrics
    assert found["auc"] == pytest.approx(float(binary_auroc(probability, target)), abs=TOLERANCE)
    assert found["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=TOLERANCE)
    assert found["log_loss"] == pytest.approx(log_loss(labels, probability.numpy()), abs=TOLERANCE)
    rows = [keys == user for user in keys.unique()]
    each = [float(binary_auroc(probability[own], target[own])) * int(own.sum()) for own in rows]
    assert found["grouped_auc"] == pytest.approx(sum(each) / len(labels), abs=TOLERANCE)


def test_scikit_learn_clips_probabilities_and_we_take_logits():
    logits, labels = torch.tensor([-800.0, 0.0]), torch.tensor([1, 0])
    with pytest.warns(UserWarning, match="no user has labels of both classes"):
        found = calibration.measure(logits, labels, torch.tensor([1, 2]), num_replicates=0)
    assert found.metrics["log_loss"] == pytest.approx((800 + np.log(2)) / 2)
    assert log_loss(labels.numpy(), logits.double().sigmoid().numpy()) < 20


def test_calibration_error_is_over_bins_of_equal_mass_and_not_of_equal_width():
    rng = np.random.default_rng(8)

    def both(probabilities, observed):
        predicted = torch.tensor(probabilities, dtype=torch.float64).repeat_interleave(200)
        labels = torch.cat([torch.arange(200) < round(200 * share) for share in observed]).long()
        order = torch.from_numpy(rng.permutation(len(labels)))
        found = calibration.measure(predicted.logit()[order], labels[order], torch.zeros_like(labels), num_replicates=0)
        return found.metrics["calibration_error"], float(binary_calibration_error(predicted[order], labels[order]))

    # Levels far apart have bins of their own in either.
    here, there = both([0.1, 0.5, 0.9], [0.2, 0.45, 0.7])
    assert here == pytest.approx((0.1 + 0.05 + 0.2) / 3, abs=TOLERANCE)
    assert there == pytest.approx(here, abs=TOLERANCE)
    # Rates as of clicks share one bin of width 1 / 15, where errors cancel.
    here, there = both([0.02, 0.04], [0.04, 0.02])
    assert here == pytest.approx(0.02, abs=TOLERANCE)
    assert there == pytest.approx(0, abs=TOLERANCE)


def test_relative_errors_drop_zeros_here_and_torchmetrics_does_not():
    predicted, actual = torch.tensor([2.0, 5.0, 1.0, 0.0]), torch.tensor([4.0, 4.0, 0.0, 0.0])
    mape, dropped = calibration.mape(predicted, actual)
    assert (mape, dropped) == (pytest.approx(0.375), 2)
    assert float(mean_absolute_percentage_error(predicted, actual)) > 1e5
    assert float(mean_absolute_percentage_error(predicted[:2], actual[:2])) == pytest.approx(mape, abs=TOLERANCE)
    smape, dropped = calibration.smape(predicted, actual)
    assert dropped == 1
    assert float(symmetric_mean_absolute_percentage_error(predicted, actual)) == pytest.approx(smape * 3 / 4)


def test_the_page_names_every_metric_and_count():
    rng = np.random.default_rng(9)
    queries = make_queries(rng, 40, 30, listed=12)
    items = Items(torch.rand(30), 50, torch.rand(30, 4))
    found = evaluate(scorer_of(torch.from_numpy(rng.normal(size=(40, 30)))), queries, k=[3], items=items)
    labels = torch.from_numpy(rng.integers(0, 2, 200))
    ranker = calibration.measure(torch.randn(200), labels, torch.arange(200) % 9)
    watched = calibration.watch_time(torch.rand(9) + 1, torch.rand(9) + 1, {0.5: torch.rand(9)})
    given = [name.replace("@3", "@K").replace("@0.5", "@Q") for name in (*found.metrics, *watched.metrics)]
    given += [*ranker.metrics, *found.counts, *ranker.counts, *watched.counts]
    assert {"popularity_lift@K", "diversity@K", "normalised_cross_entropy", "pinball@Q"} <= set(given)
    named = set(re.findall(r"`([^`\n]+)`", PAGE.read_text(encoding="utf-8")))
    assert [name for name in given if name not in named] == []
