from dataclasses import replace

import pytest
import torch
from conftest import preset

from recsys.world import World, behaviour, logs
from recsys.world.log_oracle import intent_posterior
from recsys.world.population import drifted, taste, users, videos
from recsys.world.validation import next_in_session, validate


@pytest.mark.slow
def test_small_meets_what_is_published_and_rewards_who_reads_the_session() -> None:
    report = validate(preset("small"))
    by_name = {row["statistic"]: row for row in report.iter_rows(named=True)}
    assert set(report["verdict"]) == {"met", "reported"}
    assert by_name["homepage: CTR"]["measured"] == pytest.approx(0.02, abs=0.001)
    assert by_name["homepage: exponent of a burst's relaxation"]["measured"] == pytest.approx(1.4, abs=0.3)
    assert by_name["next in session: gain of knowing the intent's posterior"]["measured"] > 0.2


def test_a_missed_statistic_is_called_so() -> None:
    report = validate(replace(preset("small"), popularity_head=0.2, num_users=2000))
    shares = report.filter(report["statistic"].str.contains("share of exposure"))
    assert (shares["verdict"] == "missed").all()


def test_intents_by_bayes_rule(tiny: World) -> None:
    """One visit's posterior by a loop over topics and rows, and calibration over many."""
    everybody = users(tiny, torch.arange(tiny.num_users))
    rows = logs.impressions(tiny, 4, everybody)
    hits = (rows["label"] == 1).nonzero()[:, 0]
    query = hits[rows["position"][hits] > 3]
    posterior = intent_posterior(tiny, 4, rows, query)
    assert torch.allclose(posterior.sum(1), torch.ones(len(query)).double())

    z = int(query[0])
    first = z - int(rows["position"][z])
    who = drifted(tiny, everybody[rows["row"][z : z + 1]], 4)
    visits = behaviour.sessions(tiny, 4, drifted(tiny, everybody, 4))
    likelihood = torch.zeros(tiny.num_topics, dtype=torch.float64)
    for topic in range(tiny.num_topics):
        p = taste(tiny, who, torch.tensor([topic]))
        for row in range(first, z):
            what = videos(tiny, rows["video"][row : row + 1])
            tastes = [behaviour.log_taste(tiny, taste(tiny, who, t)) for t in (what.topic, what.second_topic)]
            understood = behaviour.speaks(who.country, what.language)
            wanted = behaviour.interest(tiny, *tastes, understood, who.bias, what, 4)
            at = visits["evening"][rows["session"][row]]
            wanted = wanted + tiny.context_gain * behaviour.length(tiny, what) * at
            wanted = wanted + behaviour.intent_interest(tiny, torch.tensor([topic]), what)
            hit = behaviour.positive(tiny, wanted, what) * behaviour.examination(tiny)[row - first]
            p = p * (hit if rows["label"][row] else 1 - hit)
        likelihood[topic] = p
    assert torch.allclose(posterior[0], likelihood / likelihood.sum(), rtol=1e-6)

    truth = torch.nn.functional.one_hot(rows["intent"][query], tiny.num_topics)
    stated = (posterior * posterior).sum(1).mean()
    seen = (posterior * truth).sum(1).mean()
    # A click is itself evidence on its intent, so that visits asked about are a little surer than stated.
    assert float(seen) > 0.95 * float(stated)


def test_knowing_nothing_of_intents_gains_nothing(tiny: World) -> None:
    plain, informed = next_in_session(replace(tiny, intent_gain=0.0, click_bias=-3.5))
    assert informed == pytest.approx(plain, rel=0.02)
