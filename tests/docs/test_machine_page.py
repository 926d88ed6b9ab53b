"""The machine's page and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from escc.backend_sim.simulator.energy import EVENTS
from escc.backend_sim.simulator.timing import ConvWork, conv_timing
from escc.isa.arch import Arch

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "machine.md").read_text()


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the last table of a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    start = max(i for i, line in enumerate(lines) if set(line) <= set("|-"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 1 :]]


def test_events() -> None:
    assert rows_after("Energy") == [[e.name, e.component, e.cost, e.meaning] for e in EVENTS]


def test_links_and_headings() -> None:
    headings = {h.lower().replace(" ", "-") for h in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) == headings
    for name in re.findall(r"\]\((\w+\.md)\)", PAGE):
        assert (Path(__file__).resolve().parents[2] / "docs" / name).exists()


def test_the_worked_example() -> None:
    arch = Arch.default().replace(blocks=1, rows=1, lanes=2, policy="none", units=1)
    work = ConvWork("combine", outs=1, chans=4, height=1, width=2, y_rows=1, y_cols=2)
    x = np.ones((1, 1, 2, 4), np.bool_)
    x[0, 0, 1] = [True, False, False, False]
    mask = np.array([True, False, True, True]).reshape(1, 4, 1)
    assert conv_timing(arch, work, x, mask).cycles.tolist() == [arch.startup_cycles + 5]
