"""The HTML page: sound HTML, nothing from outside, the numbers of the JSON result, harmless names."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.backend_sim.report.runs import SEEDS, random_program, random_result
from tests.backend_sim.report.strict_html import StrictPage
from tests.backend_sim.simulator.networks import network
from tests.generators.random_network import random_network

import escc
from escc.backend_sim.report import html_report
from escc.backend_sim.report.figures import RunFigures, run_figures
from escc.backend_sim.report.limits import LIMITS, limit_of
from escc.backend_sim.report.roofline import points
from escc.backend_sim.report.svg import ticks
from escc.backend_sim.report.tables import row_causes
from escc.backend_sim.report.text import count, duration, energy, escape, fitted, percent, short, size
from escc.backend_sim.simulator import SimResult, random_images, simulate
from escc.errors import EsccError
from escc.isa.instructions import Queue
from escc.isa.program import Program

HARMFUL = '</title></text></td><script>alert("1")</script><img src=x onerror=alert(2)>\'"&amp;'
LAYER_TABLES = ("limits", "path", "stalls", "work", "traffic", "energy")


def simulated(program: Program, images: int = 1) -> SimResult:
    arrays = {item.name: random_images(item, images, 0) for item in program.inputs}
    return simulate(program, arrays, timing_images=images)


def check_page(result: SimResult) -> StrictPage:
    """The page is sound, loads nothing, and every keyed column equals the JSON result."""
    page = StrictPage(html_report(result, "net.bin", "random input"))
    assert page.links
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not page.tags & {"img", "link", "iframe", "object", "embed", "image", "use", "form", "base"}
    assert not {name for name in page.attributes if name.startswith("on") or name in ("src", "srcset")}
    content = json.loads(result.to_json())
    keyed = 0
    for ident in LAYER_TABLES:
        table = page.tables[ident]
        assert [row[1][0] for row in table.rows] == [row["layer"] for row in content["layers"]]
        for key in table.keys:
            if key and key != "layer":
                keyed += 1
                cells = [row[table.keys.index(key)] for row in table.rows]
                for (text, exact), layer in zip(cells, content["layers"], strict=True):
                    shown = "" if text == "" else float(exact or text.replace(",", ""))
                    assert shown == layer[key], (ident, key, layer["layer"])
    assert keyed >= 40
    queues = page.tables["queues"]
    for cause in content["queues_cycles"]["dma"]:
        right = [causes[cause] for causes in content["queues_cycles"].values()]
        assert queues.column(cause) == pytest.approx(right, abs=1e-6)
    suffix = content["energy_table"]["unit"].lower()
    found = page.tables["components"]
    components = dict(zip((row[0][0] for row in found.rows), found.column("energy"), strict=True))
    for name, value in content[f"energy_{suffix}"].items():
        if name != "total":
            assert components[name.replace("_", " ")] == pytest.approx(value, abs=1e-6)
    return page


def check_figures(run: RunFigures) -> None:
    """Sums that must come out, and no layer above a roof."""
    total = run.cycles
    assert sum(layer.value("elapsed_cycles") for layer in run.layers) == pytest.approx(total, abs=1e-4)
    rows = total * run.arch.rows * run.arch.blocks
    for part in ("lc", "mac"):
        causes = row_causes(run, part)
        assert all(value >= -1e-3 for value in causes.values())
        assert sum(causes.values()) == pytest.approx(rows)
    for layer in run.layers:
        assert max(layer.value(f"{queue.text}_busy_cycles") for queue in Queue) <= layer.active + 1e-6
        assert layer.active <= total
        assert layer.dram_bytes <= layer.active * run.arch.bytes_per_cycle + 1e-6
        assert 0 <= layer.sram_peak <= run.arch.sram_bytes
        if layer.pairs:
            assert float(layer.pairs).is_integer()
            assert layer.value("additions_ops") <= layer.pairs
        limit = limit_of(layer, run)
        assert limit.kind in LIMITS
        assert limit.sentence.endswith(".")
    for key, roof in (("products_ops", run.arch.multipliers), ("additions_ops", run.adders)):
        for point in points(run, key):
            assert point.rate <= roof + 1e-9
            if math.isfinite(point.intensity):
                assert point.rate <= point.intensity * run.arch.bytes_per_cycle * (1 + 1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks(seed: int) -> None:
    result = random_result(seed)
    check_page(result)
    check_figures(run_figures(result))


@pytest.mark.parametrize("seed", [1, 4])
def test_random_torch_networks(seed: int) -> None:
    model, shape = random_network(seed)
    images = np.random.default_rng(seed).standard_normal((4, *shape), dtype=np.float32)
    program = escc.compile(model, example=torch.from_numpy(images[:1]), calibration=images)
    result = simulate(program, images[:1])
    check_page(result)
    check_figures(run_figures(result))


def test_the_same_result_gives_the_same_page() -> None:
    program, _ = random_program(3)
    first, second = (html_report(simulated(program), "net.bin") for _ in range(2))
    assert first == second


def test_without_a_debug_section() -> None:
    program = network()
    page = check_page(simulated(program.stripped(), 2))
    assert [row[1][0] for row in page.tables["limits"].rows][:2] == ["layer 0", "layer 1"]
    named = check_page(simulated(program, 2))
    numbers = [[row[2:-1] for row in p.tables["limits"].rows] for p in (page, named)]
    assert numbers[0] == numbers[1]


def test_names_are_only_text() -> None:
    program = network()
    assert program.debug is not None
    layers = [
        {**layer, "name": f"{HARMFUL}{i}", "op": HARMFUL} for i, layer in enumerate(program.debug["layers"])
    ]
    harmful = replace(program, debug={**program.debug, "layers": layers})
    clean = StrictPage(html_report(simulated(program), "net"))
    content = html_report(simulated(harmful), HARMFUL + "\udcff", HARMFUL)
    page = StrictPage(content)
    assert page.tags == clean.tags
    assert page.attributes == clean.attributes
    assert content.count("<script") == 1
    assert page.tables["limits"].rows[0][1][0] == f"{HARMFUL}0"
    assert any(text.startswith(f"{HARMFUL}0: computed map") for text in page.titles)
    assert content.encode()


def test_a_relative_energy_table() -> None:
    program = network()
    arrays = {item.name: random_images(item, 1, 0) for item in program.inputs}
    result = simulate(program, arrays, energy_table="eyeriss65")
    page = StrictPage(html_report(result, "net"))
    suffix = result.timed.table.suffix if result.timed else ""
    right = [row[f"total_energy_{suffix}"] for row in result.layer_rows()]
    assert page.tables["limits"].column(f"total_energy_{suffix}") == right


def test_nothing_timed() -> None:
    program = network()
    arrays = {item.name: random_images(item, 1, 0) for item in program.inputs}
    with pytest.raises(EsccError, match="nothing was timed"):
        html_report(simulate(program, arrays, timing_images=None), "net")


def test_texts() -> None:
    assert [count(v) for v in (0, 1234567, 1234.5, 0.0456)] == ["0", "1,234,567", "1,234", "0.0456"]
    assert [percent(1, 3), percent(1, 200), percent(1, 1), percent(1, 0)] == ["33 %", "0.5 %", "100 %", ""]
    assert [short(v) for v in (0, 0.05, 7, 12.34, 999.9, 1250, 17.9e6)] == [
        *("0", "0.05", "7", "12.3", "1000", "1.25k", "17.9M"),
    ]
    assert [size(12), size(98300)] == ["12 B", "98.3 kB"]
    assert [energy(28.1e6, "pJ"), energy(5, "pJ"), energy(7e12, "pJ"), energy(2e6, "MAC")] == [
        *("28.1 uJ", "5 pJ", "7 J", "2M MAC"),
    ]
    assert [duration(22.34), duration(2970), duration(3e6)] == ["22.3 us", "2.97 ms", "3 s"]
    assert fitted("features.denseblock1.conv", 10) == "\N{HORIZONTAL ELLIPSIS}ock1.conv"
    assert escape("<'\"&\ud800>") == "&lt;&#x27;&quot;&amp;?&gt;"
    assert ticks(1667, 4) == [0, 500, 1000, 1500]
    assert ticks(1.0, 4) == [0, 0.5, 1.0]
