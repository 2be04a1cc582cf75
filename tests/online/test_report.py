"""The page is one whole file: well formed, escaped, without a script or an address, and says when not to trust."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.online.abtest import analyse
from recsys.online.guardrails import guard
from recsys.online.planning import plan
from recsys.online.report import report
from recsys.online.sequential import watch

CTR = ("clicks", "impressions")
EVIL = '<b onload="x">&\'ctr'


def users(lost: bool = False) -> pl.DataFrame:
    generator = np.random.default_rng(0)
    count = 2000
    treated = generator.random(count) < (0.4 if lost else 0.5)
    shown = generator.poisson(20, count) + 1
    return pl.DataFrame(
        {
            "user_id": range(count),
            "group": np.where(treated, "new <&>", "control"),
            "country": generator.choice(["FR", "<US>"], count),
            "seconds": generator.gamma(2, 10, count),
            "impressions": shown,
            "clicks": generator.binomial(shown, 0.1 + 0.02 * treated),
            "clicks_before": generator.binomial(shown, 0.1),
        }
    )


class Outline(HTMLParser):
    """Tags in their order, their attributes, and the text; a tag that closes another than the last is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_holds_all_parts_and_escapes_all_text(tmp_path: Path) -> None:
    frame = users()
    metrics = {EVIL: CTR, "seconds": "seconds"}
    covariates = {EVIL: ["clicks_before"]}
    analysis = analyse(frame, metrics, covariates=covariates, shares={"control": 0.5, "new <&>": 0.5})
    path = report(
        analysis,
        tmp_path / "deep" / "page.html",
        title="A <script>",
        plan=plan(frame, metrics, 0.05, covariates=covariates),
        guardrails=guard(frame, metrics, 0.1, by="country", gap=0.2),
        sequential={EVIL: watch(frame, CTR, order="user_id", planned=2000)},
    )
    page = path.read_text(encoding="utf-8")
    outline = Outline(page)
    assert outline.text.count(EVIL) >= 6
    for text in ("A <script>", "new <&>", "country = <US>", "Plan", "Assignment", "Guardrails", "While it ran", "holm"):
        assert text in outline.text
    assert not {"script", "b", "link", "img", "iframe", "object"} & set(outline.tags)
    assert not {"href", "src", "onload"} & {name for name, _ in outline.attributes}
    assert not re.search(r"url\(|@import|https?:", page)
    assert outline.tags.count("svg") == 2
    assert "must not" not in outline.text
    one = analysis.effects.row(1, named=True)
    for value in (f"{one['relative']:+.2%}", f"{one['relative_low']:.2%}", f"{one['p_corrected']:.4g}", "better"):
        assert value in outline.text
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_intervals_are_drawn_in_proportion(tmp_path: Path) -> None:
    analysis = analyse(users(), {"ctr": CTR, "seconds": "seconds"})
    page = report(analysis, tmp_path / "page.html").read_text(encoding="utf-8")
    lines = re.findall(r'<line class="mark" stroke-width="2" x1="([\d.]+)" x2="([\d.]+)"', page)
    middles = re.findall(r'<circle class="mark" cx="([\d.]+)"', page)
    drawn = np.array([[float(a), float(m), float(b)] for (a, b), m in zip(lines, middles, strict=True)])
    values = analysis.effects.select("relative_low", "relative", "relative_high").to_numpy()
    scale, offset = np.polyfit(values.ravel(), drawn.ravel(), 1)
    assert scale > 0
    assert drawn == pytest.approx(scale * values + offset, abs=0.1)


def test_a_mismatch_stands_first(tmp_path: Path) -> None:
    analysis = analyse(users(lost=True), {"ctr": CTR}, shares={"control": 0.5, "new <&>": 0.5})
    page = report(analysis, tmp_path / "page.html").read_text(encoding="utf-8")
    text = Outline(page).text
    assert "Effects must not be trusted" in text
    assert text.index("must not be trusted") < text.index("Metrics")
    assert "not trusted" in text
    assert "better" not in text


def test_what_is_not_known_is_drawn_as_that(tmp_path: Path) -> None:
    frame = users().with_columns(constant=1.0, centred=pl.col("seconds") - pl.col("seconds").mean())
    frame = frame.with_columns(zero=0.0)
    analysis = analyse(frame, {"constant": "constant", "centred": "centred", "zero": "zero"})
    looks = watch(frame, "constant", order="user_id", planned=2000)
    page = report(analysis, tmp_path / "page.html", sequential={"constant": looks}).read_text(encoding="utf-8")
    text = Outline(page).text
    assert "–" in text
    assert "∞" in text
    assert "Nothing varied at any look" in text
    assert "nan" not in page
    only = report(analyse(frame, {"zero": "zero"}), tmp_path / "zero.html").read_text(encoding="utf-8")
    assert "nan" not in only


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    analysis = analyse(users(), {"ctr": CTR})
    (tmp_path / "file").write_text("old", encoding="utf-8")
    with pytest.raises(OSError, match="cannot write"):
        report(analysis, tmp_path / "file" / "page.html")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "old"
