"""Small comparisons from end to end: figures that fit together, ratios by hand, files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from functools import partial

import pytest
from tests.compare.small_networks import small, stated

from escc.backend_sim.area import area
from escc.backend_sim.simulator import EnergyTable
from escc.compare.comparison import Comparison, NetworkResult, compare, headline, to_csv, to_json
from escc.compare.machines import OURS, RIVALS, find_rivals, rival_mm2
from escc.compare.measure import GROUPS, Figures, run_ours, scaled_table
from escc.compare.page import BEGIN, END, html_page, markdown, plots, write_section
from escc.compare.sensitivity import Scenario, repriced, sensitivity
from escc.compare.text import Table, times
from escc.compare.workload import synthetic_workload
from escc.errors import EsccError
from escc.isa.arch import Arch

ARCH = Arch.default()
TABLE = EnergyTable.load()


@pytest.fixture(scope="module")
def found() -> Comparison:
    networks = [small(), small("dense", statistics=stated(0.4, 0.6, 0.6, 0.7))]
    makers = [partial(synthetic_workload, network, seed=1) for network in networks]
    return compare(makers, RIVALS, arch=ARCH, table=TABLE, seed=1)


def all_figures(found: Comparison) -> list[Figures]:
    return [item for net in found.networks for item in (*net.equal, *net.areas)]


def test_every_machine_runs_every_network(found: Comparison) -> None:
    for net in found.networks:
        assert [item.machine for item in net.equal] == [OURS, *(rival.name for rival in RIVALS)]
        kept = [rival.name for rival in RIVALS if rival.kind != "reference"]
        assert [item.machine for item in net.areas] == [OURS, *kept]
        assert len({item.macs for item in net.equal}) == 1


def test_figures_add_up(found: Comparison) -> None:
    for item in all_figures(found):
        assert item.cycles == pytest.approx(sum(layer.cycles for layer in item.layers))
        assert item.energy_total == pytest.approx(sum(layer.energy for layer in item.layers))
        assert item.dram_bytes == pytest.approx(sum(layer.dram_bytes for layer in item.layers))
        assert set(item.energy) == set(GROUPS)
        assert item.energy["leakage"] < 0.2 * item.energy_total
        assert 0 < item.busy <= 1
        if item.machine != OURS:
            assert item.busy + sum(item.lost.values()) == pytest.approx(1)
            assert item.macs_per_multiplier <= 1 or found.kinds[item.machine] == "sparse"


def test_equal_multipliers_and_equal_area(found: Comparison) -> None:
    mm2 = area(ARCH).total_mm2
    for info in found.machines:
        if info.basis == "multipliers":
            assert info.multipliers == pytest.approx(ARCH.multipliers, rel=0.05)
            assert float(info.parameters.get("mhz", info.parameters.get("clock_mhz"))) == ARCH.mhz
        elif info.basis == "area":
            assert info.mm2 == pytest.approx(mm2, rel=0.1)
    chip = next(info for info in found.machines if info.name == "eyeriss-chip")
    assert (chip.basis, chip.multipliers, chip.parameters["clock_mhz"]) == ("published", 168, 200.0)


def test_denser_networks_take_the_sparse_machines_longer(found: Comparison) -> None:
    sparse, dense = found.networks
    for first, second in zip(sparse.equal, dense.equal, strict=True):
        if first.machine in (OURS, "scnn", "sparten"):
            assert second.cycles > first.cycles
        elif first.machine == "dense":
            assert second.cycles == pytest.approx(first.cycles, rel=0.02)


def test_the_machine_of_equal_area_is_not_slower(found: Comparison) -> None:
    for net in found.networks:
        equal = {item.machine: item for item in net.equal}
        for item in net.areas:
            if item.multipliers > equal[item.machine].multipliers:
                assert item.cycles <= 1.05 * equal[item.machine].cycles


def figures(machine: str, cycles: float, energy: float, mhz: float = 800.0) -> Figures:
    return Figures(machine, "multipliers", 1008, mhz, cycles, {"DRAM": energy}, 0, 0, 1, 1, 0.5, {}, ())


def result(*items: Figures) -> NetworkResult:
    return NetworkResult("n", "n", "", True, {}, {}, "", 1, 1, items, ())


def test_ratios_and_means_by_hand() -> None:
    first = result(
        figures(OURS, 100, 10),
        figures("eyeriss", 400, 80),
        figures("scnn", 200, 5),
        figures("sparten", 50, 20),
    )
    second = result(
        figures(OURS, 100, 10),
        figures("eyeriss", 900, 20),
        figures("scnn", 800, 40),
        figures("sparten", 200, 10),
    )
    assert first.ratio("eyeriss", "latency") == 4
    assert first.ratio("scnn", "energy") == 0.5
    assert first.ratio("nobody", "energy") is None
    assert first.ratio("scnn", "energy", "area") is None
    means = headline([first, second], ["scnn", "sparten"])
    assert means == {
        "latency eyeriss": pytest.approx(6.0),
        "energy eyeriss": pytest.approx(4.0),
        "latency sparse": pytest.approx((2 * 0.5 * 8 * 2) ** 0.25),
        "energy sparse": pytest.approx((0.5 * 2 * 4 * 1) ** 0.25),
    }
    slower = figures("eyeriss", 400, 80, mhz=200.0)
    assert result(figures(OURS, 100, 10), slower).ratio("eyeriss", "latency") == 16


def test_json_and_csv_hold_the_same(found: Comparison) -> None:
    content = json.loads(to_json(found))
    assert content["format"] == "escc comparison"
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    flat = [entry for net in content["networks"] for entry in net["results"]]
    assert len(rows) == len(flat) == len(all_figures(found))
    for row, entry in zip(rows, flat, strict=True):
        assert row["machine"] == entry["machine"]
        assert float(row["cycles"]) == entry["cycles"]
        assert float(row["energy"]) == pytest.approx(entry["energy"])
        # seven 3 x 3 convolutions, two shortcuts, the classifier
        assert len(entry["layers"]) >= 10
    assert all(net["synthetic"] and "synthetic" in net["origin"] for net in content["networks"])
    mean = next(
        row
        for row in content["geometric_means"]
        if (row["machine"], row["basis"]) == ("eyeriss", "multipliers")
    )
    ratios = [
        row["latency"]
        for row in content["times_better"]
        if (row["machine"], row["basis"]) == ("eyeriss", "multipliers")
    ]
    assert mean["latency"] == pytest.approx(math.sqrt(ratios[0] * ratios[1]))


def test_pages_say_what_is_synthetic_and_load_nothing(
    found: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = {net.name: small(net.name) for net in found.networks}
    monkeypatch.setattr("escc.compare.page.find_network", networks.__getitem__)
    page = html_page(found)
    assert "Synthetic: weights, activations and image are drawn" in page
    assert not re.search(r"(src|href)=[\"'](?!#)", page)
    assert page.count("<svg") == 4
    text = markdown(found, "comparison", "escc compare")
    assert text.count("**Synthetic: ") == 1
    drawn = plots(found, "comparison")
    assert set(drawn) == {"comparison-multipliers.svg", "comparison-area.svg", "comparison-energy.svg"}
    for name, svg in drawn.items():
        assert f"({name})" in text
        assert svg.startswith("<svg xmlns")
        assert "var(--" not in svg
    for net in found.networks:
        assert net.digest in text


def test_only_what_is_between_the_marks_is_written(tmp_path: pytest.TempPathFactory) -> None:
    page = tmp_path / "page.md"  # type: ignore[operator]
    write_section(page, "figures")
    assert page.read_text() == f"# Comparison\n\n{BEGIN}\n\nfigures\n\n{END}\n"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_section(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(EsccError, match="no place for the figures"):
        write_section(page, "new")


def test_costs_change_energy_and_nothing_else() -> None:
    run = run_ours(synthetic_workload(small(), seed=1))
    dearer = repriced(run, scaled_table(TABLE, dram=2.0))
    assert dearer.energy["dram"] == pytest.approx(2 * run.energy["dram"])
    assert dearer.energy["sram"] == pytest.approx(run.energy["sram"])
    assert repriced(run, TABLE).energy_pj == pytest.approx(run.energy_pj)
    single = dataclasses.replace(TABLE, bank_kib=math.inf)
    kib = ARCH.sram_kib
    ratios = [single.sram_write(kib) / TABLE.sram_write(kib), single.sram_read(kib) / TABLE.sram_read(kib)]
    assert 2 < ratios[0] < repriced(run, single).energy["sram"] / run.energy["sram"] < ratios[1]
    assert repriced(run, single).energy["dram"] == run.energy["dram"]


def test_sensitivity_moves_the_means_the_right_way() -> None:
    scenarios = [
        Scenario("DRAM", "dearer", table=lambda table: scaled_table(table, dram=10.0)),
        Scenario("codes", "more", statistics=lambda s: s.scaled(coefficients=3.0)),
        Scenario("pruned", "more", statistics=lambda s: s.scaled(weights=2.0)),
        Scenario(
            "others' DRAM",
            "slow",
            rival=lambda machine: dataclasses.replace(machine, dram_gbps=0.1),
        ),
    ]
    base, dear, codes, pruned, slow = sensitivity(
        [small()], arch=ARCH, table=TABLE, seed=1, scenarios=scenarios
    )
    assert (base.name, base.change) == ("none", "as stated")
    assert dear.means["latency eyeriss"] == base.means["latency eyeriss"]
    assert dear.means["energy eyeriss"] != base.means["energy eyeriss"]
    assert codes.means["latency eyeriss"] < base.means["latency eyeriss"]
    assert pruned.means["latency sparse"] > base.means["latency sparse"]
    assert slow.means["latency sparse"] > 2 * base.means["latency sparse"]


def test_areas_of_published_machines_stay_near_the_area_model() -> None:
    """The same cells, counted from buffers here and from the paper's tables there."""
    from escc.backend_sim.area.calibration import checks
    from escc.backend_sim.baselines.eyeriss import Eyeriss
    from escc.backend_sim.baselines.sparten import Sparten

    probe = synthetic_workload(small()).layers[1].dense
    ours = {check.name: check.area.total_mm2 for check in checks()}
    chip, sparten = Eyeriss(), Sparten()
    assert rival_mm2(chip, chip.run(probe).buffers) == pytest.approx(ours["Eyeriss core"], rel=0.2)
    clusters = sparten.clusters * ours["SparTen cluster"]
    assert 0.8 < rival_mm2(sparten, sparten.run(probe).buffers) / clusters < 1.5


def test_tables_are_aligned_and_ratios_short() -> None:
    table = Table(("name", "value"), (("a", "1"), ("long name", "1,000")))
    assert table.plain().splitlines() == [
        "name        value",
        "-----------------",
        "a               1",
        "long name   1,000",
    ]
    assert table.markdown().splitlines()[1] == "|---|---:|"
    assert [times(x) for x in (271.2, 17.94, 0.834, None, math.nan)] == ["271x", "17.9x", "0.83x", "", ""]


def test_rivals_have_titles_and_reasons() -> None:
    for rival in find_rivals(None):
        assert rival.about
        assert rival.machine(1024, ARCH).dram_gbps == ARCH.dram_gbps
