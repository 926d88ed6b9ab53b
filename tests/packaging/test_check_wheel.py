"""The wheel check (which .ci/run runs in full) notices what it is there to notice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from check_wheel import LIBRARIES, compare, expected_files, run


def test_missing_and_stray_files_are_named() -> None:
    shipped = {"escc/__init__.py", "escc/stray.py", *LIBRARIES, "escc-1.dist-info/RECORD"}
    assert compare({"escc/__init__.py", "escc/isa/arch_files/default.toml"}, shipped) == [
        "missing from the wheel: escc/isa/arch_files/default.toml",
        "in the wheel but not a tracked file: escc/stray.py",
    ]
    assert compare({"escc/__init__.py"}, {"escc/__init__.py", "escc-1.dist-info/RECORD"}) == []


def test_linked_folders_are_expected_under_the_package() -> None:
    expected = expected_files()
    assert {
        "escc/__init__.py",
        "escc/py.typed",
        "escc/isa/arch.py",
        "escc/passes/math/__init__.py",
    } <= expected
    assert not [name for name in expected if not name.startswith("escc/")]
    assert not [name for name in expected if name.endswith((".cpp", ".h"))]


def test_a_failing_step_ends_the_check(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="the reason"):
        run(sys.executable, "-c", "import sys; sys.exit('the reason')", folder=tmp_path)
