"""The guides in docs/, followed to the letter in a copy of the checkout: every file written, every command typed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(bash|python|yaml)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDED = "recsys", "hydra_plugins", "configs", "tests", "pyproject.toml"
# What each page says one will see.
GUIDES = {
    "own_data": ["recall@20", "u1", "2 runs", "log_loss"],
    "own_model": ["PureSVD", "2 runs", "passed", "normalised_cross_entropy"],
    "own_metric": ["rbp@10", "rbp@20", "rbp@100"],
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The checkout's files, those that are not committed yet included."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *NEEDED],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("this is no git checkout")
    for name in listed.stdout.splitlines():
        if (CHECKOUT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, tmp_path / name)
    return tmp_path


def script(page: str) -> str:
    """A page as one bash script. Python blocks that follow one another are one program."""
    lines, program = ["set -euo pipefail"], list[str]()

    def end_program() -> None:
        if program:
            lines.append(f"python - <<'END_OF_BLOCK'\n{''.join(program)}END_OF_BLOCK")
            program.clear()

    for language, file, text in BLOCK.findall(page):
        if file:
            lines.append(f"mkdir -p $(dirname {file})\ncat > {file} <<'END_OF_BLOCK'\n{text}END_OF_BLOCK")
        elif language == "python":
            program.append(text)
        else:
            end_program()
            lines.append(text)
    end_program()
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_works_as_written(name: str, clone: Path) -> None:
    text = script((CHECKOUT / "docs" / f"{name}.md").read_text(encoding="utf-8"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(clone), "COLUMNS": "160"}
    found = subprocess.run(
        ["bash", "-c", text], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    assert [line for line in GUIDES[name] if line not in found.stdout + found.stderr] == []
    where = subprocess.run(
        [sys.executable, "-c", "import recsys; print(recsys.__file__)"],
        cwd="/", env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(clone)
