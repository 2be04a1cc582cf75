"""Plots hold the numbers they are given; those of runs are in test_run.py."""

from typing import Any

import altair as alt
import polars as pl
import pytest
import torch

from recsys import pictures
from recsys.evaluation.calibration import reliability
from recsys.plots import plot_agreement, plot_loss_budget, plot_reliability, plot_vectors

TRUTH = torch.logspace(-3, -0.5, 4000, dtype=torch.float64)
LABELS = torch.bernoulli(TRUTH, generator=torch.Generator().manual_seed(0))
BINS = ("bin", "rows", "predicted", "observed", "low", "high", "model")


def rows_with(chart: Any, *columns: str) -> pl.DataFrame:
    """The data set of a chart that has these columns and no others."""
    (found,) = (rows for rows in chart.to_dict()["datasets"].values() if set(rows[0]) == set(columns))
    return pl.DataFrame(found)


def test_a_chart_is_a_picture_that_needs_no_network() -> None:
    chart = plot_vectors(torch.eye(3), ["a", "b", "c"], ["a"])
    with alt.renderers.enable("default"):
        pictures.use()
        assert alt.renderers.active == pictures.NAME
        found = chart._repr_mimebundle_()
        assert found["image/svg+xml"].startswith("<svg")
        assert "http" not in found["image/svg+xml"].replace("http://www.w3.org/", "")
        assert found[f"application/vnd.vegalite.v{alt.SCHEMA_VERSION[1]}+json"]["data"]
        assert "text/html" not in found
    with alt.renderers.enable("json"):
        pictures.use()
        assert alt.renderers.active == "json"  # somebody's choice


@pytest.mark.parametrize("num_bins", [20, 7])
def test_reliability_is_that_of_each_model(num_bins: int) -> None:
    logits = {"right": TRUTH.logit(), "tripled": TRUTH.logit() + 1.1}
    chart = plot_reliability(logits, LABELS, num_bins)
    drawn = rows_with(chart, *BINS)
    for name, values in logits.items():
        expected, found = reliability(values, LABELS, num_bins), drawn.filter(model=name)
        assert found["predicted"].to_list() == pytest.approx(expected["predicted"].to_list())
        assert found["high"].to_list() == pytest.approx(expected["high"].to_list())
        for point, rate in zip(found["observed"], expected["observed"], strict=True):
            assert point == pytest.approx(rate) if rate else point is None
    # No point and no rule lies outside the axes, where a logarithm could not put it.
    (domain,) = {tuple(layer["encoding"]["y"]["scale"]["domain"]) for layer in chart.to_dict()["layer"]}
    assert 0 < domain[0] <= drawn["low"].min() < drawn["predicted"].max() <= domain[1] <= 1


def test_a_bin_without_a_positive_has_a_rule_and_no_point() -> None:
    labels = (TRUTH > 0.1).long()
    drawn = rows_with(plot_reliability({"m": TRUTH.logit()}, labels, 4), *BINS)
    assert drawn["observed"].is_null().to_list() == [True, True, True, False]
    assert (drawn["low"] > 0).all()


def test_reliability_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_reliability({}, LABELS)


def test_agreement_counts_every_row_where_it_lies() -> None:
    predicted = TRUTH.flip(0)
    chart = plot_agreement(predicted, TRUTH, num_bins=10)
    cells = rows_with(chart, "truth", "predicted", "rows", "truth_end", "predicted_end")
    assert cells["rows"].sum() == len(TRUTH)
    for cell in cells.iter_rows(named=True):
        inside = [
            (values >= cell[name] * (1 + 1e-9)) & (values < cell[f"{name}_end"] * (1 - 1e-9))
            for name, values in {"truth": TRUTH, "predicted": predicted}.items()
        ]
        # The outermost cells also hold what lies beyond the ends.
        assert cell["rows"] >= int((inside[0] & inside[1]).sum())
    bands = rows_with(chart, "bin", "truth", "q25", "q50", "q75")
    twentieths = predicted.view(20, -1)  # in the order of the truth
    expected = twentieths.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=1, interpolation="nearest")
    assert torch.allclose(bands.select("q25", "q50", "q75").to_torch().T, expected, rtol=0.01)


@pytest.mark.parametrize("values", [torch.full((30,), 0.02), torch.tensor([0.02])])
def test_agreement_of_one_value(values: torch.Tensor) -> None:
    cells = rows_with(plot_agreement(values, values), "truth", "predicted", "rows", "truth_end", "predicted_end")
    assert cells["rows"].to_list() == [len(values)]


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        (torch.zeros(0), torch.zeros(0), "one value a row"),
        (torch.full((2,), 0.5), torch.full((3,), 0.5), "one value a row"),
        (torch.tensor([0.0, 0.1]), torch.tensor([0.1, 0.1]), "above 0"),
    ],
)
def test_agreement_that_cannot_be_drawn(predicted: torch.Tensor, truth: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_agreement(predicted, truth)


def test_vectors_lie_on_the_plane_of_most_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([5.0, 3.0, 1.0, 0.5])
    turn_DD = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    flat_ND = torch.randn(300, 4, generator=generator) * spread
    vectors_ND = flat_ND @ turn_DD + 7  # the plane does not depend on where the origin is
    names = [f"t{n % 5}" for n in range(300)]
    chart = plot_vectors(vectors_ND, names, ["t1", "t0"])
    (drawn,) = (pl.DataFrame(rows) for rows in chart.to_dict()["datasets"].values())
    assert dict(drawn["name"].value_counts().rows()) == {"t0": 60, "t1": 60, "other": 180}
    assert drawn["name"][:180].unique().to_list() == ["other"]  # below the others
    variance = torch.linalg.eigvalsh(torch.cov(vectors_ND.double().T)).flip(0)
    for place, (axis, component) in enumerate({"x": "first", "y": "second"}.items()):
        assert drawn[component].var() == pytest.approx(float(variance[place]))
        assert f"{float(variance[place] / variance.sum()):.0%}" in chart.to_dict()["encoding"][axis]["title"]


def test_vectors_that_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="3 names do not fit"):
        plot_vectors(torch.zeros(2, 4), ["a", "b", "c"], [])
    with pytest.raises(ValueError, match="at most 6 names"):
        plot_vectors(torch.zeros(1, 4), ["a"], [*"abcdefg"])


WATERFALL = ("stage", "milliseconds", "now", "above", "low", "high", "what", "said", "top")


def budget() -> pl.DataFrame:
    """As `studies.loss_budget.study` gives it, for two numbers of candidates."""
    return pl.DataFrame(
        {
            "stage": ["best", "whole catalogue", "retrieval", "retrieval"],
            "candidates": [None, None, 100, 500],
            "recall": [0.1, 0.4, 0.3, 0.35],
            "clicks": [2.0, 1.0, 0.75, 1.25],
            "lost": [None, 1.0, 0.25, -0.25],
            "low": [None, 0.9, 0.2, -0.3],
            "high": [None, 1.1, 0.3, -0.2],
            "milliseconds": [1.0, 50.0, 5.0, 9.0],
        }
    )


@pytest.mark.parametrize(("candidates", "clicks", "what"), [(None, 0.75, "lost"), (500, 1.25, "won")])
def test_a_waterfall_falls_from_stage_to_stage(candidates: int | None, clicks: float, what: str) -> None:
    chart = plot_loss_budget(budget(), candidates)
    steps = rows_with(chart, *WATERFALL)
    assert steps["stage"].to_list() == ["best", "whole catalogue", "retrieval"]
    assert steps["now"].to_list() == [2.0, 1.0, clicks]
    assert steps["above"].to_list() == [0.0, 2.0, 1.0]
    assert steps["what"].to_list() == ["all", "lost", what]
    assert steps["low"][2] == pytest.approx(clicks - 0.05)
    assert steps["high"][2] == pytest.approx(clicks + 0.05)


def test_a_waterfall_without_an_answer_key_is_of_recall() -> None:
    frame = budget().with_columns(clicks=pl.lit(None, pl.Float64))[1:]
    steps = rows_with(plot_loss_budget(frame), *WATERFALL)
    assert steps["now"].to_list() == [0.4, 0.3]
    with pytest.raises(ValueError, match="candidates=7: the frame has 100, 500"):
        plot_loss_budget(budget(), 7)
