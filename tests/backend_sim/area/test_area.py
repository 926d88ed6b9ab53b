"""The area model: hand-worked sums, what each parameter must do to the area, calibration."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from escc.backend_sim.area import AreaTable, area
from escc.backend_sim.area.calibration import checks
from escc.backend_sim.area.cells import Cells
from escc.backend_sim.area.table import SHIPPED
from escc.errors import EsccError
from escc.isa.arch import Arch


def cells() -> Cells:
    return Cells(AreaTable.load())


def test_circuits_by_hand() -> None:
    # 8 bits: levels of 4 adders of 1, 2 and 3 bits = 24 bits of adder, 4.28 um2 each
    assert cells().prefix_count(8) == pytest.approx(24 * 4.28)
    # 8 items: 3 levels of 4 switches, two 2:1 multiplexers each, of 2 crosspoints
    assert cells().butterfly(8, 1) == pytest.approx(3 * 4 * 2 * 2 * 4.45)
    assert cells().butterfly(8, 9) == pytest.approx(9 * cells().butterfly(8, 1))
    assert cells().multiplexer(1, 100) == 0
    assert cells().multiplier(8, 20) == pytest.approx(282 * 2.5)
    # 64 bits are smaller as registers, 4 KiB as an array
    assert cells().memory(64) == pytest.approx(64 * 5.98)
    assert cells().memory(8 * 4096) == pytest.approx(13180)
    # two banks of 2 KiB
    assert cells().memory(8 * 4096, 2) == pytest.approx(2 * 7220)


def test_a_small_machine_by_hand() -> None:
    small = Arch.default().replace(
        blocks=1, rows=1, macs=1, units=1, lanes=8, chunk=8, ring_entries=1, fifo_positions=1, psum_entries=1,
        z_bits=8, policy="none", vector_lanes=1, sram_kib=1,
    )  # fmt: skip
    found = {(part.component, part.what): part.um2 * part.count for part in area(small).parts}
    gather = 24 * 4.28 + 48 * 4.45
    assert found == pytest.approx(
        {
            ("sram", "global SRAM"): 3430,
            ("ring_buffer", "entries"): (72 + 1) * 5.98,
            ("ring_buffer", "read ports"): 0,
            ("operand_registers", "coefficients and taps"): 7220,
            ("linear_combination", "sums Z"): 64 * 5.98,
            ("fifo", "places"): 64 * 5.98,
            ("mac", "multipliers and adders"): 282 + 32 * 4.28,
            ("partial_sums", "memory"): 32 * 5.98,
            ("partial_sums", "under the window"): 25 * 32 * 5.98,
            ("requantisation", "requantisers"): 3495 + 64 * 4.28,
            ("dilution", "masks and signs"): 8 * 1.56 + 2 * gather,
            ("concentration", "vector selection"): 0,
            ("linear_combination", "lanes"): 8 * 16 * 4.28 + 32 * 4.28,
            ("vector_unit", "lanes"): 16 * 4.28 + 282 + 3495 + 64 * 4.28,
        }
    )
    assert area(small).total_mm2 == pytest.approx(sum(found.values()) / 1e6)
    assert sum(area(small).components.values()) == pytest.approx(area(small).total_mm2)


GROWS = ["blocks", "rows", "macs", "units", "ring_entries", "fifo_positions", "psum_entries", "z_bits"]


@given(
    name=st.sampled_from([*GROWS, "look_ahead", "look_aside", "vector_lanes", "sram_kib"]),
    lanes=st.integers(1, 32),
    step=st.integers(1, 8),
    policy=st.sampled_from(["window", "gather", "none"]),
)
def test_more_of_anything_never_takes_less_area(name: str, lanes: int, step: int, policy: str) -> None:
    base = Arch.default().replace(lanes=lanes, policy=policy)
    bigger = base.replace(**{name: getattr(base, name) + step})
    assert area(bigger).total_mm2 >= area(base).total_mm2 * (1 - 1e-12)


def test_what_costs_area_and_what_does_not() -> None:
    base = Arch.default()
    assert area(base.replace(mhz=400.0, dram_gbps=100.0)).total_mm2 == area(base).total_mm2
    # a network for the values is dearer than a window, a window dearer than nothing
    none, window, gather = (area(base.replace(policy=name)) for name in ("none", "window", "gather"))
    assert none.total_mm2 < window.total_mm2 < gather.total_mm2
    assert window.components["dilution"] == gather.components["dilution"]


def test_published_machines_come_out_where_the_page_says() -> None:
    ratios = {check.name: check.ratio for check in checks()}
    assert ratios["EIE PE"] == pytest.approx(0.87, abs=0.02)
    assert ratios["SparTen cluster"] == pytest.approx(0.99, abs=0.02)
    assert ratios["SCNN PE"] == pytest.approx(0.49, abs=0.02)
    assert ratios["Eyeriss core"] == pytest.approx(0.25, abs=0.02)


def test_sram_between_and_beyond_the_rows() -> None:
    table = AreaTable.load()
    assert table.sram_mm2(0.1) == table.sram_mm2(0.5) == 0.00172
    assert table.sram_mm2(512) == pytest.approx(1.64463)
    assert table.sram_mm2(16) < table.sram_mm2(23) < table.sram_mm2(32)
    assert table.sram_mm2(4096) > 3.5 * table.sram_mm2(1024)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("um2 = 4.28", "um2 = -1", "um2 in [add_bit]"),
        ("[cell.logic_bit]", "[cell.logik_bit]", "unknown key 'logik_bit'"),
        ("node_nm = 45", "", "'node_nm' is missing"),
        ("[1, 0.00343],", "[0.2, 0.00343],", "row 2"),
        ("[sizes]", "sizes = 3\n[more]", "unknown key 'more'"),
        ("name = ", "name =", None),
        ('name = "horowitz45"', "name = ", "not a valid TOML file"),
        ('about = "45', 'about = "', None),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, message: str | None
) -> None:
    path = tmp_path / "area.toml"
    text = SHIPPED.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    if message is None:
        AreaTable.load(path)
        return
    with pytest.raises(EsccError) as error:
        AreaTable.load(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
