"""Architecture files: exact round trip, and one clear line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from escc.errors import EsccError
from escc.isa.arch import PARAMETERS, POLICIES, Arch, Parameter, shipped_names


def values(parameter: Parameter) -> st.SearchStrategy[float | str]:
    if parameter.kind is str:
        return st.sampled_from(POLICIES)
    if parameter.key == "chunk":
        return st.sampled_from([8, 16, 64, 1024])
    if parameter.kind is float:
        return st.floats(parameter.low, parameter.high)
    return st.integers(int(parameter.low), int(parameter.high))


archs = st.fixed_dictionaries({p.name: values(p) for p in PARAMETERS}).map(lambda v: Arch(**v))  # type: ignore[arg-type]


@given(archs, archs)
def test_text_round_trip_and_hash(arch: Arch, other: Arch) -> None:
    assert Arch.from_toml(arch.to_toml()) == arch
    assert Arch.from_toml(arch.to_toml()).to_toml() == arch.to_toml()
    same = arch.geometry_hash == other.geometry_hash
    assert same == (not arch.geometry_differences(other))
    assert arch.replace(mhz=other.mhz, dram_gbps=other.dram_gbps).geometry_hash == arch.geometry_hash


def test_the_default_machine() -> None:
    arch = Arch.load()
    assert arch == Arch.load("default") == Arch.default()
    assert arch.multipliers == 1008
    assert arch.sram_bytes == 1024 * 1024
    assert arch.bytes_per_cycle == 16.0
    assert "default" in shipped_names()
    assert arch.replace(rows=8).geometry_differences(arch) == ["array.rows: 8 / 16"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rows = 16\n", "", "[array] rows is missing (an integer from 1 to 1024; rows in a block"),
        ("[clock]\nmhz = 800.0\n", "", "section [clock] is missing"),
        ("rows = 16", "row = 7", "unknown key 'row' in section [array] (did you mean 'rows'?)"),
        ("[memory]", "[memroy]", "unknown section [memroy] (did you mean 'memory'?)"),
        ("rows = 16", "rows = 0", "[array] rows = 0 is not allowed (allowed: an integer from 1 to 1024)"),
        ("rows = 16", "rows = 16.0", "rows = 16.0 is not allowed"),
        ("rows = 16", "rows = true", "rows = True is not allowed"),
        ("rows = 16", "rows = '16'", "rows = '16' is not allowed"),
        ("rows = 16", f"rows = {10**60}", "is not allowed"),
        (
            "mhz = 800.0",
            "mhz = nan",
            "mhz = nan is not allowed (allowed: a number from 1 to 1000000)",
        ),
        ("mhz = 800.0", "mhz = inf", "mhz = inf is not allowed"),
        ("chunk = 64", "chunk = 65", "an integer from 8 to 1024, a power of two"),
        ('"window"', '"windows"', "one of window, gather, none"),
        ("rows = 16", "rows = [7]", "rows = [7] is not allowed"),
        ("rows = 16", "rows = ", "not a valid TOML file"),
        ("[array]", "array = 3\n[x]", "array must be a section [array]"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = Arch.default().to_toml()
    assert old in text
    path = tmp_path / "arch.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(EsccError) as error:
        Arch.load(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EsccError, match="cannot read: No such file"):
        Arch.load(tmp_path / "absent.toml")
    with pytest.raises(EsccError, match=r"no such architecture \(did you mean 'default'\?\)"):
        Arch.load("defualt")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(EsccError, match="not a text file"):
        Arch.load(tmp_path / "b.toml")
    with pytest.raises(EsccError, match="unknown parameter 'row'"):
        Arch.default().replace(row=3)
    with pytest.raises(EsccError, match=r"architecture: .array. rows = 0"):
        Arch.default().replace(rows=0)
