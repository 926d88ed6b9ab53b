"""``escc asm``, ``escc dis``, ``escc inspect`` and the reference page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.isa.programs import small_program

from escc import cli
from escc.errors import EsccError
from escc.isa.encoding import encode
from escc.isa.program import Program
from escc.isa.reference_page import render
from escc.isa.summary import summarise

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "prog.bin"
    small_program().save(path)
    return path


def escc(*args: object) -> Result:
    return CliRunner().invoke(cli.root, [str(arg) for arg in args])


def test_dis_and_asm_give_the_identical_file(program: Path) -> None:
    text, again = program.with_suffix(".s"), program.with_name("again.bin")
    assert escc("dis", program, "-o", text).exit_code == 0
    assert escc("dis", program).output == text.read_text()
    assert escc("asm", text, "-o", again).exit_code == 0
    assert again.read_bytes() == program.read_bytes()
    program.unlink()
    assert escc("asm", text).exit_code == 0
    assert again.read_bytes() == program.read_bytes()


def test_dis_with_a_side_file_and_code_only(program: Path) -> None:
    text = program.with_suffix(".s")
    assert escc("dis", program, "-o", text, "--data-file", "prog.data").exit_code == 0
    assert (program.parent / "prog.data").stat().st_size == 54
    assert escc("asm", text, "-o", program.with_name("b.bin")).exit_code == 0
    assert program.with_name("b.bin").read_bytes() == program.read_bytes()
    code = escc("dis", program, "--code").output
    assert code.startswith("  mark 0\n  ; word 1, features.0\n  set dma.sram")
    assert ".data" not in code
    assert escc("dis", program, "--data-file", "../x").exit_code == 2


def test_asm_checks_unless_told_not_to(program: Path) -> None:
    text = program.with_suffix(".s")
    escc("dis", program, "-o", text)
    text.write_text(text.read_text().replace("  wait dma, 1\n", "").replace("[0, 56, 0]", "[0, 55, 0]"))
    result = escc("asm", text)
    assert isinstance(result.exception, EsccError)
    assert "prog.s: word 54 (store_map), layer features.0: race: " in str(result.exception)
    assert "--no-check" in str(result.exception)
    assert escc("asm", text, "--no-check").exit_code == 0
    assert len(Program.load(program).code) == 56


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.s", None, "No such file"),
        ("b.s", b"\xff\x00", "not a text file"),
        ("c.s", b"hello", "c.s:1:1: unexp"),
    ],
)
def test_asm_of_something_else(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert message in str(escc("asm", tmp_path / name).exception)


def test_asm_does_not_replace_its_source(program: Path) -> None:
    source = program.with_name("text.bin")
    escc("dis", program, "-o", source)
    assert "would replace its source" in str(escc("asm", source).exception)


def test_inspect_tells_what_is_inside(program: Path) -> None:
    result = escc("inspect", program, "--check")
    assert result.exit_code == 0
    for piece in (
        "1008 multipliers",
        "code 456 B",
        "57 words",
        "features.0",
        "net.py:12",
        "6x4x5",
        "are in order",
    ):
        assert piece in result.output
    facts = json.loads(escc("inspect", program, "--json").output)
    assert facts["sections"]["data"] == 54
    assert facts["outputs"][0]["torch_shape"] == [3, 4, 5]
    layer = facts["layers"][0]
    assert layer["instructions"] == {"dma": 3, "blk": 1, "vec": 0}
    assert (layer["stream_bytes"], layer["map_bytes"], layer["tokens"]) == (54, 180, 4)
    assert "not an escc program" in str(escc("inspect", __file__).exception)


def test_inspect_without_debug_information(program: Path) -> None:
    small_program().stripped().save(program)
    assert "layer 0" in escc("inspect", program).output
    code = np.array([encode("vec_fill"), encode("halt")], np.uint64)
    bare = Program(small_program().arch, code, b"", [], [], 0)
    assert summarise(bare).layers[0].name == "(before any layer)"


def test_the_reference_page_is_up_to_date() -> None:
    hint = "run: python -m escc.isa.reference_page > docs/isa.md"
    assert (ROOT / "docs" / "isa.md").read_text(encoding="utf-8") == render(), hint


def test_isa_needs_neither_torch_nor_xdsl() -> None:
    modules = [f"escc.isa.{path.stem}" for path in (ROOT / "isa").glob("*.py") if path.stem != "__init__"]
    code = (
        f"import sys, {', '.join(modules)}; print([m for m in ('torch', 'xdsl', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
