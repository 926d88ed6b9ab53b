"""Space files: what they mean, and one line for whatever makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.sweep.spaces import GRID, WORKLOAD

from escc.backend_sim.area import area
from escc.errors import EsccError
from escc.isa.arch import Arch
from escc.sweep.space import Axis, Search, load_space, parse_space


def test_axes_fixed_values_and_machines(network: Path) -> None:
    space = parse_space(GRID + WORKLOAD, network)
    assert space.axes == (
        Axis("array.rows", (2, 4)),
        Axis("array.blocks", (2, 4)),
        Axis("array.ring_entries", (2, 8)),
        Axis("concentration.policy", ("window", "gather")),
    )
    assert space.size == len(space.grid()) == 16
    assert space.search == Search("grid", confirm=False)
    point = space.grid()[5]
    assert point == {
        "array.rows": 2, "array.blocks": 4, "array.ring_entries": 2, "concentration.policy": "gather"
    }  # fmt: skip
    arch = space.arch(point)
    assert (arch.rows, arch.blocks, arch.ring_entries, arch.policy, arch.macs) == (2, 4, 2, "gather", 9)
    assert arch.lanes == Arch.default().lanes


def test_ranges() -> None:
    text = GRID.replace("rows = [2, 4]", "rows = { from = 2, to = 9, step = 3 }")
    text = text.replace("[2, 8]", "{ from = 2, to = 16, factor = 2 }") + '[[workload]]\nmodel = "demo"\n'
    axes = {axis.name: axis.values for axis in parse_space(text, Path()).axes}
    assert axes["array.rows"] == (2, 5, 8)
    assert axes["array.ring_entries"] == (2, 4, 8, 16)


def test_blocks_fill_the_multipliers() -> None:
    text = GRID.replace("blocks = [2, 4]", 'blocks = "fill"').replace("<= 64", "<= 100")
    space = parse_space(text + '[[workload]]\nmodel = "demo"\n', Path())
    assert space.fills
    assert [space.arch(point).blocks for point in space.grid()[::4]] == [5, 2]
    other = parse_space(text.replace("<= 100", "<= 200") + '[[workload]]\nmodel = "demo"\n', Path())
    assert other.identity != space.identity


def test_constraints_on_parameters_and_area_need_no_measurement(network: Path) -> None:
    space = parse_space(GRID + WORKLOAD, network)
    refused = {(p["array.rows"], p["array.blocks"]): space.refusal(p) for p in space.grid()}
    assert refused == {
        (2, 2): None,
        (2, 4): "multipliers <= 64: multipliers is 72",
        (4, 2): "multipliers <= 64: multipliers is 72",
        (4, 4): "multipliers <= 64: multipliers is 144",
    }
    small = area(space.arch(space.grid()[0])).total_mm2
    text = GRID.replace('"multipliers <= 64"', f'"area < {small}", "vector.lanes >= 64"')
    assert "area" in str(parse_space(text + WORKLOAD, network).refusal(space.grid()[0]))


def test_identity_follows_the_files_and_the_base_machine(network: Path, tmp_path: Path) -> None:
    for name in ("model.pt2", "images.npy", "labels.npy"):
        (tmp_path / name).write_bytes((network / name).read_bytes())
    here, there = parse_space(GRID + WORKLOAD, network), parse_space(GRID + WORKLOAD, tmp_path)
    assert here.identity == there.identity
    (tmp_path / "base.toml").write_text(Arch.default().replace(mhz=400.0).to_toml())
    slow = parse_space('base = "base.toml"\n' + GRID + WORKLOAD, tmp_path)
    assert slow.base.mhz == 400
    (tmp_path / "labels.npy").write_bytes((network / "images.npy").read_bytes())
    assert (
        len({here.identity, slow.identity, there.identity, parse_space(GRID + WORKLOAD, tmp_path).identity})
        == 3
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[arch.array]", "[arch.aray]", "unknown key 'aray' in [arch] (did you mean 'array'?)"),
        ("macs = 9", "mac = 9", "unknown key 'mac' in [arch.array] (did you mean 'macs'?)"),
        ("macs = 9", "macs = 0", "[array] macs = 0 is not allowed"),
        ("[2, 8]", "[2, 2]", "array.ring_entries needs values, each once"),
        ("[2, 8]", "[]", "array.ring_entries needs values, each once"),
        ("[2, 8]", "{ from = 2, to = 8 }", "either step above 0 or factor above 1"),
        ("[2, 8]", "{ from = 8, to = 2, step = 1 }", "from <= to"),
        ("[2, 8]", "{ from = 2, to = 8, steps = 1 }", "unknown key 'steps'"),
        ("[2, 8]", '{ from = "a", to = 8, step = 1 }', "a range is"),
        ('"grid"', '"gird"', "strategy 'gird' is unknown"),
        ("confirm = false", "confirm = 1", "confirm in [search] must be true or false"),
        ("confirm = false", "points = 0", "points in [search] must be an integer of at least 1"),
        ('"area"]', '"areas"]', "unknown objective 'areas' (did you mean 'area'?)"),
        ('"area"]', '"area", "area"]', "objectives needs names, each once"),
        ("multipliers <= 64", "multipliers = 64", "is not NAME <= NUMBER"),
        ("multipliers <= 64", "multiplier <= 64", "which is no figure (did you mean 'multipliers'?)"),
        ("blocks = [2, 4]", "blocks = 'full'", "[array] blocks = 'full' is not allowed"),
        ("[search]", "[serch]", "unknown key 'serch' in the space (did you mean 'search'?)"),
        ("[search]", "[[search]]", "search must be a section"),
        ("objectives =", "objectives", "not a valid TOML file"),
        ("[arch.concentration]", "[compile]\nbases = [0]\n[arch.concentration]", "compile.bases = 0"),
        ("[search]", 'base = "defualt"\n[search]', "base: defualt: no such architecture"),
    ],
)
def test_bad_spaces_are_refused_in_one_line(network: Path, old: str, new: str, message: str) -> None:
    assert old in GRID
    with pytest.raises(EsccError) as error:
        parse_space(GRID.replace(old, new, 1) + WORKLOAD, network, "space.toml")
    assert message in str(error.value)
    assert str(error.value).startswith("space.toml: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('model = "model.pt2"', 'model = "modell.pt2"', "workload 1: there is no modell.pt2"),
        ('model = "model.pt2"', "", "workload 1: names no model"),
        ('labels = "labels.npy"', 'label = "labels.npy"', "workload 1: unknown key 'label'"),
        ('images = "images.npy"\n', "", "workload 1: has labels but no images"),
        ('labels = "labels.npy"', "timed_images = 0", "timed_images must be an integer from 1 on"),
        ('labels = "labels.npy"', "labels = 3", "labels must be a text"),
        ('model = "model.pt2"', 'model = "synthetic:resnet51"', "no network 'resnet51'"),
        (WORKLOAD, "", "no network to measure on"),
        (WORKLOAD, WORKLOAD + WORKLOAD, "two workloads have the same name"),
    ],
)
def test_bad_workloads_are_refused_in_one_line(network: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(EsccError) as error:
        parse_space(GRID + WORKLOAD.replace(old, new, 1), network)
    assert message in str(error.value)


def test_no_file_no_axis_no_limit_no_labels(network: Path, tmp_path: Path) -> None:
    with pytest.raises(EsccError, match="cannot read: No such file"):
        load_space(tmp_path / "none.toml")
    (tmp_path / "picture.toml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(EsccError, match="not a text file"):
        load_space(tmp_path / "picture.toml")
    with pytest.raises(EsccError, match="nothing varies"):
        parse_space(WORKLOAD, network)
    with pytest.raises(EsccError, match='"fill" needs a constraint'):
        parse_space('[arch.array]\nrows = [2]\nblocks = "fill"\n' + WORKLOAD, network)
    text = 'objectives = ["accuracy"]\n[arch.array]\nrows = [2]\n'
    with pytest.raises(EsccError, match="accuracy needs a workload with labels"):
        parse_space(text + WORKLOAD.replace('labels = "labels.npy"\n', ""), network)
    names = ("rows", "blocks", "macs", "units")
    many = "\n".join(f"{name} = {{ from = 1, to = 100, step = 1 }}" for name in names)
    with pytest.raises(EsccError, match="a grid of"):
        parse_space(f'[search]\nstrategy = "grid"\n[arch.array]\n{many}\n' + WORKLOAD, network)
