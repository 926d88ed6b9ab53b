"""The generated pages of the IR and the passes are what the code says today."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from escc.reference_pages import render_ir, render_passes

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(("name", "render"), [("ir.md", render_ir), ("passes.md", render_passes)])
def test_page_is_up_to_date(name: str, render: Callable[[], str]) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == render(), "run: make docs"
