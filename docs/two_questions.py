"""Draw docs/two_questions.svg: what models foretell of a log, and what their lists would bring if they were shown.

python docs/two_questions.py        # world tiny, defaults, seed 0; about a minute
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import altair as alt
import polars as pl

import recsys

MODELS = {
    "popularity": [], "knn": [], "ease": [], "als": [], "mf": [], "item2vec": [], "tags": ["features=world"],
}  # fmt: skip


def main() -> None:
    """Train, measure, draw."""
    rows = []
    with TemporaryDirectory() as folder:
        for model, words in MODELS.items():
            found = recsys.train(
                f"model={model}",
                *words,
                "evaluation.k=[20]",
                "evaluation.num_replicates=0",
                f"hydra.run.dir={folder}/{model}",
            ).metrics
            rows.append(
                {
                    "model": model,
                    "log": found["test/recall@20"] / found["oracle/recall@20"],
                    "shown": found["utility/clicks@20"] / found["best/clicks@20"],
                }
            )
    points = alt.Chart(pl.DataFrame(rows)).encode(
        alt.X("log:Q", title="recall@20, share of the log oracle's", axis=alt.Axis(format="%")).scale(
            domain=[0.2, 0.62]
        ),
        alt.Y("shown:Q", title="clicks if shown, share of the best list's", axis=alt.Axis(format="%")),
    )
    names = points.mark_text(align="left", dx=8, fontSize=12).encode(text="model:N")
    chart = (points.mark_circle(size=90, color="#1f6f8b", opacity=1) + names).properties(width=420, height=260)
    chart.configure_axis(labelFontSize=11, titleFontSize=12).save(Path(__file__).with_suffix(".svg"))


if __name__ == "__main__":
    main()
