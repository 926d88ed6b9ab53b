"""Energy tables: what ships, and what is refused in a table of one's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.backend_sim.simulator.networks import network

from escc.backend_sim.simulator import EnergyTable, random_images, simulate
from escc.backend_sim.simulator.energy import shipped_tables
from escc.backend_sim.simulator.energy.events import COSTS, EVENTS
from escc.backend_sim.simulator.energy.table import FOLDER
from escc.errors import EsccError

HOROWITZ = (FOLDER / "horowitz45.toml").read_text()


def test_shipped_tables() -> None:
    assert shipped_tables() == ["eyeriss65", "horowitz45"]
    for name in shipped_tables():
        table = EnergyTable.load(name)
        assert table.name == name
        assert set(table.costs) == set(COSTS)
        assert all(cost.citation for cost in table.costs.values())
    assert EnergyTable.load("horowitz45").unit == "pJ"
    assert EnergyTable.load().costs["multiply8"].value == 0.2


def test_every_event_costs_something_that_a_table_has() -> None:
    assert {event.cost for event in EVENTS} == {*COSTS, "sram_read", "sram_write"}
    assert len({event.name for event in EVENTS}) == len(EVENTS)


def test_sram_energy_is_interpolated_on_logarithmic_axes() -> None:
    table = EnergyTable.load()
    assert table.sram_read(4) == 2.862 / 4
    assert table.sram_leakage_uw(4) == 0.14
    # the geometric mean of two sizes has the geometric mean of their energies
    middle = (2 * 4) ** 0.5
    assert table.sram_read(middle) == pytest.approx((2.232 * 2.862) ** 0.5 / 4)
    assert table.sram_write(middle) == pytest.approx((2.635 * 3.732) ** 0.5 / 4)
    flat = EnergyTable.load("eyeriss65")
    assert [flat.sram_read(size) for size in (1, 64, 4096)] == pytest.approx([3.0, 3.0, 3.0])
    assert flat.sram_leakage_uw(64) == 0


def test_an_sram_is_made_of_banks() -> None:
    table = EnergyTable.load()
    assert table.bank_kib == 8
    # 64 banks of 8 KiB: 6.137 pJ for 8 bytes in a bank; 0.0077 pJ a bit and square root of a KiB on the way
    assert table.sram_read(512) == pytest.approx(6.137 / 8 + 8 * 0.0077 * 512**0.5)
    assert table.sram_write(512) == pytest.approx(7.878 / 8 + 8 * 0.0077 * 512**0.5)
    assert table.sram_leakage_uw(512) == pytest.approx(64 * 0.26)
    sizes = [1, 3, 8, 8.1, 48, 100, 512, 700, 1024, 4096]
    for costs in (table.sram_read, table.sram_write, table.sram_leakage_uw):
        assert [costs(size) for size in sizes] == sorted(costs(size) for size in sizes)
    # what the wires were derived from, at 45 nm: 18.2 pJ / 1.8 for 64 bits out of 32 banks of 3.375 KiB
    published = dataclasses.replace(table, bank_kib=3.375)
    assert 8 * published.sram_read(108) == pytest.approx(18.2 / 1.8, rel=0.05)


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    dear = HOROWITZ.replace("value = 8.0", "value = 80.0").replace("value = 2500.0", "value = 25000.0")
    path.write_text(dear)
    program = network()
    images = random_images(program.inputs[0], 1, 0)
    usual = simulate(program, images)
    other = simulate(program, images, energy_table=path)
    assert other.energy["dram"][0] == pytest.approx(10 * usual.energy["dram"][0])
    assert other.energy["mac"][0] == usual.energy["mac"][0]


def test_relative_units() -> None:
    program = network()
    result = simulate(program, random_images(program.inputs[0], 1, 0), energy_table="eyeriss65")
    assert result.energy["leakage"][0] == 0
    assert "total_energy_mac" in result.to_csv()
    with pytest.raises(EsccError, match="eyeriss65 is in units of MAC, not pJ"):
        _ = result.energy_pj


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[cost.add16]", "[cost.add61]", r"unknown key 'add61' in \[cost\] \(did you mean 'add16'"),
        ("value = 8.0", "value = -8.0", r"\[cost.dram_bit\] value = -8.0 is not allowed \(a number from 0"),
        ("value = 8.0", 'value = "8"', r"\[cost.dram_bit\] value = 8 is not allowed"),
        ("value = 8.0", "value = nan", r"value = nan is not allowed"),
        ('citation = "LPDDR4: accelergy-cacti-plug-in"', "", r"'citation' is missing in \[cost.dram_bit\]"),
        ('citation = "LPDDR4: accelergy-cacti-plug-in"', 'citation = ""', "must be a text of one line"),
        ('unit = "pJ"', "", "'unit' is missing in the table"),
        ('per = "operation"', 'per = "byte"', "per is 'byte'"),
        ("[1, 32, 1.324, 2.065, 0.04],", "[1, 32, 1.324, 2.065],", r"rows\[1\] is not a row"),
        ("[2, 32,", "[1, 32,", r"rows\[2\] is not larger than the row before"),
        ("[sram]", "[[sram]]", r"sram must be a section"),
        ("name =", "name ==", "not a valid TOML file"),
    ],
)
def test_what_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in HOROWITZ
    path = tmp_path / "wrong.toml"
    path.write_text(HOROWITZ.replace(old, new))
    with pytest.raises(EsccError, match=message) as caught:
        EnergyTable.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(EsccError, match=r"no such energy table \(did you mean 'horowitz45'"):
        EnergyTable.load("horowitz54")
    with pytest.raises(EsccError, match="No such file"):
        EnergyTable.load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EsccError, match="not a text file"):
        EnergyTable.load(tmp_path / "binary.toml")
