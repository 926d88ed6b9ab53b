"""The benchmarks of speed: measuring processes, the page, peers that cannot be installed, drawn layers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.layers import layer_images, layer_program
from benchmarks.linear import fit
from benchmarks.page import BEGIN, END, render, replace_section
from benchmarks.peers import environments
from benchmarks.peers.__main__ import Line, table
from benchmarks.processes import Usage, measured
from benchmarks.sampling import IMPORTS, OTHER, area
from benchmarks.shapes import Layer
from benchmarks.stalls import stalls

from escc.backend_sim.simulator import simulate
from escc.errors import EsccError


def usage(cpu: float) -> dict[str, float]:
    return Usage(2 * cpu, cpu, 100.0, 1.5).to_dict()


def result() -> dict[str, Any]:
    row = {
        "network": "net",
        "input": [3, 32, 32],
        "compile": usage(4.0),
        "numpy": usage(0.5),
        "cycles": 1000,
        "predicted_cycles": 1100,
        "passes": {"calibrate": 1.0, "schedule": 2.0},
        "profile": {"engine": "numpy", "seconds": {"imports": 0.3, "escc.cli": 0.1}},
    }
    return {
        "machine": {"processor": "cpu", "cores": 2, "system": "Linux", "python": "3.11"},
        "threads": 1,
        "repeat": 3,
        "command": "python -m benchmarks.table net",
        "cold_start": {"escc --help": usage(0.1)},
        "networks": [row],
    }


def test_a_process_is_measured_and_its_failure_is_told() -> None:
    work = "import sys; data = bytearray(64 << 20); print(sum(range(10**6)))"
    found = measured([sys.executable, "-c", work])
    assert found.cpu > 0
    assert found.wall > 0
    assert found.mib >= 64
    with pytest.raises(EsccError, match=r"ended with 3: what went wrong"):
        measured([sys.executable, "-c", "print('what went wrong'); raise SystemExit(3)"])
    with pytest.raises(EsccError, match="cannot start"):
        measured(["/no/such/program"])


def test_the_page_keeps_what_people_wrote(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    text = render(result())
    replace_section(page, text)
    replace_section(page, text)
    assert page.read_text() == f"before\n{BEGIN}\n\n{text}\n\n{END}\nafter\n"
    assert "| net | 3x32x32 | 8.00 (4.00) | 100 |  |  | 1.00 (0.50) | 100 | 1,000 | +10.0% |" in text
    assert "schedule 2.0, calibrate 1.0; start, imports, capture, lowering and writing 5.0" in text
    assert "| imports | 0.300 | 75% |" in text
    for content in ("no marks", f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"):
        page.write_text(content)
        with pytest.raises(EsccError, match="no place"):
            replace_section(page, text)
        assert page.read_text() == content


def test_the_innermost_module_of_escc_gets_the_time() -> None:
    assert area(None) == OTHER
    assert area(named_frame("escc.isa.verify")) == "escc.isa.verify"
    assert area(named_frame("importlib._bootstrap")) == IMPORTS


def named_frame(name: str) -> Any:
    names: dict[str, Any] = {"__name__": name, "sys": sys}
    exec("def call():\n return sys._getframe()", names)
    return names["call"]()


def test_lines_are_fitted() -> None:
    start, slope, distance = fit([1.0, 2.0, 4.0], [5.0, 7.0, 11.0])
    assert (start, slope) == pytest.approx((3.0, 2.0))
    assert distance == pytest.approx(0.0, abs=1e-12)
    assert fit([1.0, 2.0, 3.0], [1.0, 4.0, 9.0])[2] > 0.05


def test_ratios_are_per_mac_of_the_same_layer() -> None:
    lines = [
        Line("a", "Other 1.0", 2_000_000, Usage(9.0, 8.0, 500.0, 1.0), 77),
        Line("a", "escc (numpy)", 1_000_000, Usage(1.0, 0.5, 60.0, 1.0), 5),
    ]
    _, other, own = table(lines)
    assert other.split() == ["a", "Other", "1.0", "2.0", "8.00", "500", "4000.00", "8.0", "77"]
    assert own.split()[-2:] == ["1.0", "5"]


def test_a_peer_that_cannot_be_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def run(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        failed = "pip" in command
        return subprocess.CompletedProcess(command, int(failed), "ERROR: no matching distribution\n", "")

    monkeypatch.setattr(environments.subprocess, "run", run)
    with pytest.raises(EsccError, match=r"cannot install SCALE-Sim 3.0.0: ERROR: no matching .*network"):
        environments.environment("scalesim", tmp_path)
    assert "scalesim==3.0.0" in calls[-1]
    # half an environment is not taken for a whole one
    assert not (tmp_path / "scalesim" / "installed.txt").exists()


@pytest.mark.parametrize("bases", [0, 3])
def test_drawn_layers_have_the_densities_asked_for(bases: int) -> None:
    layer = Layer(32, 32, 9, stride=2, bases=bases, coefficients=0.1, activations=0.25)
    images = layer_images(layer, 2)
    assert np.count_nonzero(images) / images.size == pytest.approx(0.25, abs=0.03)
    result = simulate(layer_program(layer), images)
    (conv,) = [found for found in result.layers if found.figure("dense_macs").any()]
    assert int(conv.figure("dense_macs")[0]) == layer.macs
    assert conv.density("coefficients") == (pytest.approx(0.1, abs=0.02) if bases else None)


def test_denser_codes_starve_the_macs() -> None:
    """Both parts of the array have all their row cycles attributed; the MACs wait longer for denser codes."""
    shares = [stalls(Layer(256, 64, 6, coefficients=density))[1] for density in (0.02, 0.8)]
    for found in shares:
        for part in ("lc_", "mac_"):
            assert sum(share for name, share in found.items() if name.startswith(part)) == pytest.approx(1)
    starved = [found["mac_wait_lc"] / (found["mac_busy"] + found["mac_wait_lc"]) for found in shares]
    assert starved[0] < starved[1]
