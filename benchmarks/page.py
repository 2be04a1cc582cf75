"""What the result files say, as pages: a table and a chart a benchmark, the table of README, and docs/results.md.

    python benchmarks/page.py [--folder benchmarks/results]

In any other folder than benchmarks/results, which is what `make bench` asks for, the page of tables and charts alone is
made, README.md and *.svg in that folder. Nothing is measured, and no figure is typed: all come from the JSON files.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import claims
import prose
from claims import Found

from recsys import atomic
from recsys.benching import Result, read_all

if TYPE_CHECKING:
    import altair as alt

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
BLUE, GREY = "#0072B2", "#8a8a8a"
HEAD = """\
# Benchmarks

Made by `make results` from the JSON files of this folder alone; [docs/results.md]({root}/docs/results.md) says in words
what was measured. Ratios come first, as they travel between machines; seconds do not. Brackets are the quartiles of the
repeats of a speed, and the 95% interval of a metric; "to" is the range over models, policies or settings. A point left
of the line at 1 is less than what it is held against, right of it more.

`make bench` runs all of it small on your machine, into runs/bench, `make bench SIZE=full` as it was run for this page.
`recsys bench compare A B` holds two such folders, or files, against each other: what is worse in B beyond noise. A file
is named for its benchmark and for the hardware it ran on: `cpu2-xeon` is two cores of a Xeon, `h100` a GPU; plain `cpu`
are files from before that was the rule, each of two shared cores.
"""


def texts(folder: Path) -> dict[Path, str]:
    """Every page that is made from a folder of result files, by where it goes; nothing is written.

    Raises:
        ValueError: a file is damaged, or a figure is in none.
    """
    results = read_all(folder)
    pages = {folder / "README.md": page(results, folder)}
    if folder.resolve() == RESULTS:
        readme = ROOT / "README.md"
        pages[readme] = replaced(readme.read_text(encoding="utf-8"), block(results))
        pages[ROOT / "docs" / "results.md"] = prose.text(results)
    return pages


def write(folder: Path) -> Path:
    """Write the pages and charts of a folder, and return the page that lies in it."""
    for path, text in texts(folder).items():
        atomic.write_text(path, text)
    drawn = charts(read_all(folder))
    for old in folder.glob("*.svg"):
        if old.stem not in drawn:
            old.unlink()
    for name, chart in drawn.items():
        chart.save(folder / f"{name}.svg")
    return folder / "README.md"


def page(results: Sequence[Result], folder: Path = RESULTS) -> str:
    """Markdown: a section a benchmark, each with its question, chart, ratios and where they were measured."""
    root = Path(os.path.relpath(ROOT, folder)).as_posix()
    lines = [HEAD.format(root=root)]
    for benchmark, found in by_benchmark(results).items():
        files = [result for result in results if result.benchmark == benchmark]
        lines += [f"## {benchmark}", "", question(benchmark, root), ""]
        if found:
            lines += [f"![Ratios of {benchmark}]({benchmark}.svg)", "", *table(found, len(files) > 1), ""]
        lines += [f"- {about(result)}" for result in files] + [""]
    return "\n".join(lines)


def block(results: Sequence[Result]) -> str:
    """The results of README: one row a claim, of CPUs and then of GPUs."""
    lines = []
    for on_gpu in (False, True):
        chosen: dict[Any, Found] = {}
        for found in claims.found(results):
            if found.claim.in_readme and found.result.on_gpu == on_gpu and not (on_gpu and found.claim.of_cpu):
                best = chosen.get(found.claim)
                chosen[found.claim] = max((f for f in (best, found) if f), key=lambda f: claims.rank(f.result))
        if chosen:
            lines += ["On a GPU:", ""] if on_gpu else []
            lines += ["| what | ratio | against | ours | file |", "|---|---|---|---|---|"]
            for found in chosen.values():
                path = found.result.path.name
                where = f"[{path.removesuffix('.json')}](benchmarks/results/{path})"
                lines.append(
                    f"| {found.claim.what} | {measured(found)} | {found.claim.against} | {ours(found)} | {where} |"
                )
            lines.append("")
    return "\n".join([*lines, prose.of_gpus(results, "benchmarks/results")])


def replaced(readme: str, text: str) -> str:
    """README with the block between its two markers.

    Raises:
        ValueError: a marker is missing.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md: the markers {BEGIN} and {END} are missing: put them where the results belong")
    return f"{head}{begin}\n{text}\n{end}{tail}"


def by_benchmark(results: Sequence[Result]) -> dict[str, list[Found]]:
    """Claims of each benchmark, and of files of which no claim speaks the ratios that they hold."""
    every = list(claims.found(results))
    groups: dict[str, list[Found]] = {}
    for result in sorted(results, key=lambda result: (result.benchmark, result.on_gpu)):
        found = [one for one in every if one.result is result]
        groups.setdefault(result.benchmark, []).extend(found or claims.unclaimed(result))
    return groups


def question(benchmark: str, root: str) -> str:
    """What a benchmark asks: the first paragraph of its script, which is one sentence."""
    path = ROOT / "benchmarks" / f"bench_{benchmark}.py"
    if not path.exists():
        return ""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return f"{' '.join(said.split(chr(10) * 2)[0].split())} ([{path.name}]({root}/benchmarks/{path.name}))"


def table(found: Sequence[Found], with_file: bool) -> list[str]:
    """A row a claim and file: the ratio first, the absolute figure last."""
    head = ["what", "ratio", "against", "ours", *(["file"] if with_file else [])]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for one in found:
        cells = [one.claim.what, measured(one), one.claim.against, ours(one)]
        lines.append("| " + " | ".join([*cells, *([one.result.path.stem] if with_file else [])]) + " |")
    return lines


def measured(found: Found) -> str:
    """The ratio in words, with its spread where one is known."""
    text, spread = claims.written(found.claim.written, found.values), found.spread[0]
    if len(found.values) > 1 or spread is None:
        return text
    field = re.search(r"\{[^}]*\}", found.claim.written)
    assert field is not None
    number = claims.span(field[0], found.values)
    return text.replace(number, f"{number} [{field[0].format(spread[0])}, {field[0].format(spread[1])}]", 1)


def ours(found: Found) -> str:
    return claims.written(found.claim.ours_written, found.ours) if found.ours else ""


def about(result: Result) -> str:
    """One line: file, machine, date, commit and command."""
    facts, known = result.manifest.get("hardware", {}), result.manifest
    machine = facts.get("gpu") if result.on_gpu else facts.get("processor", facts.get("platform"))
    words = [machine or "machine not recorded"]
    words += [_count(facts["cores"], "core")] if "cores" in facts else []
    words += [_count(facts["threads"], "thread")] if "threads" in facts else []
    words += [f"{facts['memory_gb']} GB"] if "memory_gb" in facts else []
    words.append(f"{known['date'][:10]}" if "date" in known else "date not recorded")
    if known.get("size") == "small":
        words.append("small")
    if commit := known.get("git_commit"):
        words.append(f"commit {commit[:7]}{' with changes' if commit.endswith('+changes') else ''}")
    command = f": `{known['command']}`" if "command" in known else ""
    return f"[{result.path.name}]({result.path.name}): {', '.join(words)}{command}"


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'s' * (number != 1)}"


def charts(results: Sequence[Result]) -> dict[str, alt.VConcatChart]:
    """A chart a benchmark, by the name of its file."""
    return {name: chart(found) for name, found in by_benchmark(results).items() if found}


def chart(found: Sequence[Found]) -> alt.VConcatChart:
    """Claims as points with their spread: ratios on a logarithmic scale, shares and differences on a plain one."""
    import altair as alt
    import polars as pl

    several = len({one.result.path for one in found}) > 1
    groups: dict[str, list[dict[str, Any]]] = {}
    for number, one in enumerate(found):
        groups.setdefault(_kind(one), []).append(_point(one, number, several))
    parts = []
    for kind, rows in groups.items():
        frame = pl.DataFrame(rows)
        ends = [*frame["low"], *frame["high"]]
        if kind == "ratio":
            domain = [min([*ends, 1]) / 1.15, max([*ends, 1]) * 1.15]
            scale, reference = alt.Scale(type="log", domain=domain, nice=False), 1.0
        elif kind == "share":
            scale, reference = alt.Scale(domain=[0, max([1, 1.05 * max(ends)])], nice=False), None
        else:
            least, most = min([*ends, 0]), max([*ends, 0])
            margin = 0.08 * (most - least)
            scale, reference = alt.Scale(domain=[least - margin, most + margin], nice=False), 0.0
        base = alt.Chart(frame).encode(
            alt.Y("what:N", sort=None, title=None, axis=alt.Axis(labelLimit=430, ticks=False, domain=False))
        )
        axis = alt.Axis(format="%" if kind == "share" else "~g", tickCount=5, grid=True)
        x = alt.X("middle:Q", scale=scale, axis=axis, title=None)
        layers = [
            base.mark_rule(color=BLUE, strokeWidth=3, opacity=0.45).encode(
                alt.X("low:Q", scale=scale, axis=axis), alt.X2("high:Q")
            ),
            base.mark_point(color=BLUE, filled=True, size=70, opacity=1).encode(x),
        ]
        if reference is not None:
            line = alt.Chart(pl.DataFrame({"x": [reference]})).mark_rule(color=GREY, strokeDash=[4, 3])
            layers.insert(0, line.encode(alt.X("x:Q", scale=scale)))
        right = base.mark_text(align="left", color="#333333", limit=330).encode(alt.Text("said:N"), x=alt.value(430))
        parts.append(alt.layer(*layers, right).properties(width=420, height=26 * len(rows) + 6))
    return (
        alt.vconcat(*parts, background="white", padding={"left": 8, "top": 8, "right": 12, "bottom": 8})
        .configure_axis(labelFontSize=11.5, labelColor="#333333", gridColor="#ececec", domainColor="#bbbbbb")
        .configure_view(stroke=None)
        .configure_text(fontSize=11.5)
    )


def _kind(found: Found) -> str:
    return "ratio" if "×" in found.claim.written else "share" if "%" in found.claim.written else "difference"


def _point(found: Found, number: int, several: bool) -> dict[str, Any]:
    """A row of a chart's data."""
    values, spread = found.values, found.spread[0]
    low, high = spread if spread is not None and len(values) == 1 else (min(values), max(values))
    label = found.claim.what.strip("`") + (f" ({found.result.hardware})" if several and found.result.on_gpu else "")
    said = claims.written(found.claim.written, values)
    return {
        "what": f"{label}{chr(0x200B) * number}",  # claims of one name are rows of their own
        "low": low, "high": high, "middle": claims.middle(values), "said": f"{said} {found.claim.against}",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    print(write(parser.parse_args().folder))


if __name__ == "__main__":
    main()
