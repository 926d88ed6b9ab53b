"""The documentation is true: generated parts current, links lead somewhere, commands parse, examples run."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from make_docs import filled

from escc.cli import root
from escc.isa.program import Program

ROOT = Path(__file__).resolve().parents[2]
HAND_WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def command_lines(text: str) -> list[list[str]]:
    """Every `escc ...` line in an indented block, without its comment, split as a shell would."""
    found: list[list[str]] = []
    for line in re.findall(r"^    (escc .*)$", text, re.MULTILINE):
        for part in line.split(" && "):
            found.append(shlex.split(part, comments=True)[1:])
    return found


COMMAND_LINES = [line for page in HAND_WRITTEN for line in command_lines(page.read_text(encoding="utf-8"))]


def test_generated_parts_are_current() -> None:
    # in a process of its own, as `make docs` is: click keeps the first help option it makes, whoever made it
    command = [sys.executable, str(ROOT / "tools/make_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_block_is_replaced_and_the_rest_is_kept() -> None:
    begin = "<!-- begin file docs/examples/cap_relu/pyproject.toml -->"
    new = filled(f"a\n{begin}\nold\n<!-- end -->\nb\n")
    assert new.startswith(f"a\n{begin}\n```toml\n[build-system]")
    assert new.endswith("```\n<!-- end -->\nb\n")
    assert "old" not in new
    assert filled(new) == new
    with pytest.raises(ValueError, match="does not exist: complie"):
        filled("<!-- begin help complie -->\n<!-- end -->")


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https://)([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{named(page)} links to {target}"


@pytest.mark.parametrize("line", COMMAND_LINES, ids=" ".join)
def test_commands_are_ones_that_escc_takes(line: list[str]) -> None:
    top = click.Context(root, info_name="escc")
    command = root.get_command(top, line[0])
    assert command is not None
    command.make_context(line[0], line[1:], parent=top)


def test_there_are_commands_to_check() -> None:
    assert {"compile", "sim", "ops", "verify", "opt", "asm", "dis", "inspect"} <= {
        line[0] for line in COMMAND_LINES
    }


def test_python_blocks_parse() -> None:
    for page in HAND_WRITTEN:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            ast.parse(code, named(page))


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    example = ROOT / "docs" / "examples" / "own_model.py"
    command = [sys.executable, "-W", "error", example]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"classes \[\d \d \d \d\]\ncycles \d+ energy \d+\.\d\d uJ\n", done.stdout)
    assert np.load(tmp_path / "images.npy").shape == (64, 3, 32, 32)
    assert (tmp_path / "model.pt2").stat().st_size > 0
    assert Program.load(tmp_path / "prog.bin").inputs[0].torch_shape == (3, 32, 32)
