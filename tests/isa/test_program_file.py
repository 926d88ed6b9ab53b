"""The program file: round trips, and one clear line for every kind of damage."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.isa.programs import programs, small_program

from escc.errors import EsccError
from escc.isa.arch import Arch
from escc.isa.container import ENTRY, HEADER, MAJOR, TABLE_OFFSET, fix_checksums, read_sections
from escc.isa.program import MapDescriptor, Program

SMALL = small_program().to_bytes()


def section(content: bytes, name: str) -> bytes:
    found = read_sections(memoryview(content), "x")[1][name]
    return content[found.offset : found.offset + found.size]


def with_section(content: bytes, name: str, body: bytes) -> bytes:
    """The file with one section replaced by a body no longer than it, checksums right."""
    sections = read_sections(memoryview(content), "x")[1]
    found, index = sections[name], list(sections).index(name)
    assert found.size - 64 < len(body) <= found.size
    edited = bytearray(content)
    edited[found.offset : found.offset + found.size] = body.ljust(found.size, b"\0")
    ENTRY.pack_into(edited, TABLE_OFFSET + index * ENTRY.size, name.encode(), found.offset, len(body), 0, 0)
    return fix_checksums(bytes(edited))


def with_header(content: bytes, **fields: int) -> bytes:
    """The file with header fields replaced, checksums right."""
    names = "magic major minor flags length dram_bytes table_offset sections table_crc geometry reserved crc"
    values = dict(zip(names.split(), HEADER.unpack_from(content), strict=True)) | fields
    return fix_checksums(HEADER.pack(*values.values()) + content[HEADER.size :])


@settings(max_examples=50)
@given(programs())
def test_round_trip(program: Program) -> None:
    content = program.to_bytes()
    again = Program.from_bytes(content)
    assert again.to_bytes() == content
    assert again.arch == program.arch
    assert again.code.tolist() == program.code.tolist()
    assert again.data_array.tobytes() == program.data_array.tobytes()
    assert (again.inputs, again.outputs) == (program.inputs, program.outputs)
    assert (again.dram_bytes, again.debug) == (program.dram_bytes, program.debug)
    stripped = Program.from_bytes(program.stripped().to_bytes())
    assert stripped.debug is None
    assert stripped.code.tolist() == program.code.tolist()


def test_files_are_mapped_and_aligned(tmp_path: Path) -> None:
    program = small_program()
    path = tmp_path / "prog.bin"
    program.save(path)
    loaded = Program.load(path)
    assert loaded.same_as(program)
    assert not loaded.code.flags.writeable
    assert loaded.layer_name(0) == "features.0"
    assert loaded.layer_name(7) is None
    for found in read_sections(memoryview(path.read_bytes()), "x")[1].values():
        assert found.offset % 64 == 0


def test_every_single_bit_flip_is_detected() -> None:
    names = [*read_sections(memoryview(SMALL), "x")[1].values()]
    for bit in range(len(SMALL) * 8):
        damaged = bytearray(SMALL)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EsccError) as error:
            Program.from_bytes(bytes(damaged))
        inside = [s.name for s in names if s.offset <= bit // 8 < s.offset + s.size]
        if inside:
            assert f"section {inside[0]} is damaged" in str(error.value)


@settings(max_examples=60)
@given(st.integers(0, len(SMALL) - 1), st.binary(max_size=8))
def test_cut_and_lengthened_files(size: int, behind: bytes) -> None:
    with pytest.raises(EsccError, match=r"truncated|empty|not an escc program"):
        Program.from_bytes(SMALL[:size])
    if behind:
        with pytest.raises(EsccError, match="follow the end"):
            Program.from_bytes(SMALL + behind)


@settings(max_examples=300)
@given(st.data())
def test_damage_with_right_checksums_is_a_program_or_one_line(data: st.DataObject) -> None:
    """What checksums cannot catch: a hostile file. It loads or is refused, and never does anything else."""
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(SMALL) - 1))
        damaged[position] = data.draw(st.integers(0, 255))
    content = fix_checksums(bytes(damaged))
    try:
        program = Program.from_bytes(content)
    except EsccError as failure:
        message = str(failure)
    else:
        message = ""
        assert isinstance(program.to_bytes(), bytes)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"; a text\n", "not an escc program (make one with 'escc compile MODEL -o prog.bin'"),
        (b"PK\x03\x04" + bytes(100), "not an escc program"),
        (SMALL[:40], "truncated: 40 bytes do not even hold the header"),
        (SMALL[:-1], f"truncated: {len(SMALL) - 1} of {len(SMALL)} bytes"),
        (with_header(SMALL, major=MAJOR + 1), "is newer than this escc's"),
        (with_header(SMALL, major=MAJOR + 1), "update escc, or compile the model again"),
        (with_header(SMALL, major=0), "is older than this escc's"),
        (with_header(SMALL, flags=1), "unknown flags"),
        (with_header(SMALL, sections=1 << 31), "claims 2147483648 sections"),
        (with_header(SMALL, sections=4), "unused bytes after the section table"),
        (with_header(SMALL, table_offset=1 << 60), "section table lies outside"),
        (with_header(SMALL, dram_bytes=1 << 60), "DRAM size"),
        (with_header(SMALL, dram_bytes=3), "section data: 54 bytes exceed the DRAM of 3"),
        (with_header(SMALL, dram_bytes=100), "input 'x': occupies 54..194, outside 54..100"),
        (with_header(SMALL, geometry=bytes(8)), "section arch: its hash differs"),  # type: ignore[arg-type]
    ],
)
def test_headers_and_foreign_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "prog.bin"
    path.write_bytes(content)
    with pytest.raises(EsccError) as error:
        Program.load(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))


def entry(index: int, **fields: int | bytes) -> bytes:
    """The small program with fields of a section table entry replaced, checksums right."""
    edited = bytearray(SMALL)
    at = TABLE_OFFSET + index * ENTRY.size
    names = ("name", "offset", "size", "crc", "reserved")
    values = dict(zip(names, ENTRY.unpack_from(edited, at), strict=True)) | fields
    ENTRY.pack_into(edited, at, *values.values())
    return fix_checksums(bytes(edited))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (entry(1, offset=1 << 62), "section code: lies outside the file"),
        (entry(1, size=1 << 62), "section code: lies outside the file"),
        (entry(1, offset=0), "section code: lies outside the file"),
        (entry(1, offset=257), "section code: lies outside the file or is not aligned"),
        (entry(1, name=b"data"), "section data occurs twice"),
        (entry(1, name=b"kode"), "unknown section 'kode'"),
        (entry(1, name=b"\x1b[31m"), "unreadable name"),
        (entry(4, name=b"code"), "section code occurs twice"),
        (entry(1, reserved=1), "reserved bits"),
        (entry(1, offset=struct.unpack_from("<Q", SMALL, TABLE_OFFSET + 8)[0]), "overlaps section"),
        (with_section(SMALL, "code", section(SMALL, "code")[:-1]), "not a multiple of 8"),
    ],
)
def test_section_tables(content: bytes, message: str) -> None:
    with pytest.raises(EsccError, match=message):
        Program.from_bytes(content)


Edit = Callable[[dict[str, object]], object]


def edited_json(name: str, edit: Edit) -> bytes:
    """The small program with a JSON section edited."""
    value = json.loads(section(SMALL, name))
    edit(value)
    return _packed_with(name, json.dumps(value).encode())


def _packed_with(name: str, body: bytes) -> bytes:
    """A file whose section ``name`` has been replaced by a body of any size, moved to the end."""
    content = SMALL
    sections = read_sections(memoryview(content), "x")[1]
    index = list(sections).index(name)
    at = len(content)
    padded = body + bytes(-len(body) % 64)
    edited = bytearray(content + padded)
    old = sections[name]
    # The old place becomes an unused gap, so the later sections move up.
    gap = (old.size + 63) // 64 * 64
    del edited[old.offset : old.offset + gap]
    for number, item in enumerate(sections.values()):
        offset = item.offset - (gap if item.offset > old.offset else 0)
        size = item.size
        if number == index:
            offset, size = at - gap, len(body)
        ENTRY.pack_into(edited, TABLE_OFFSET + number * ENTRY.size, item.name.encode(), offset, size, 0, 0)
    return with_header(bytes(edited), length=len(edited))


def first_input(value: dict[str, object], **changes: object) -> None:
    value["inputs"][0].update(changes)  # type: ignore[index]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v.pop("inputs"), "section tensors: field inputs is missing"),
        (lambda v: v.update(extra=1), "unknown field 'extra'"),
        (lambda v: v.update(inputs={}), "inputs must be a list"),
        (lambda v: v.update(inputs=[3]), r"inputs\[0\]: must be an object"),
        (lambda v: first_input(v, name=3), "name must be a printable text"),
        (lambda v: first_input(v, name="\x1b[2J"), "name must be a printable text"),
        (lambda v: first_input(v, name="x" * 2000), "name must be a printable text"),
        (lambda v: first_input(v, height="4"), "height: '4' is not an integer"),
        (lambda v: first_input(v, height=True), "height: True is not an integer"),
        (lambda v: first_input(v, height=1 << 40), "height: 1099511627776 is not an integer from 1"),
        (lambda v: first_input(v, channels=0), "channels: 0 is not"),
        (lambda v: first_input(v, address=-1), "address: -1 is not"),
        (lambda v: first_input(v, address=3), "occupies 3..143, outside 54..274"),
        (lambda v: first_input(v, signed=1), "signed must be true or false"),
        (lambda v: first_input(v, scale="1"), "scale must be a number"),
        (lambda v: first_input(v, scale=0), "scale must lie between"),
        (lambda v: first_input(v, scale=1e400), "Infinity is not a number"),
        (lambda v: first_input(v, scale=10**400), "scale must lie between"),
        (lambda v: first_input(v, torch_shape=6), "torch_shape must be a list"),
        (lambda v: first_input(v, torch_shape=[6, 4, 4]), "does not match the map 4x5x6"),
        (lambda v: first_input(v, torch_shape=[6, 4, 5.0]), "torch_shape: 5.0 is not an integer"),
        (lambda v: v["inputs"].append(v["inputs"][0]), "two inputs have this name"),
        (lambda v: v["inputs"].append({**v["inputs"][0], "name": "z"}), "overlaps input 'x'"),
    ],
)
def test_tensor_sections(edit: Edit, message: str) -> None:
    with pytest.raises(EsccError, match=message):
        Program.from_bytes(edited_json("tensors", edit))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v.update(layers=3), "section debug: layers must be a list"),
        (lambda v: v.update(layers=[{}]), r"layers\[0\] must be an object with a name"),
        (lambda v: v.update(layers=[{"name": "\n"}]), r"layers\[0\].name must be a printable"),
        (lambda v: v.update(instructions=[[0, 1 << 40, 0]]), r"instructions\[0\] must be"),
        (lambda v: v.update(instructions=[[0, 1, 9]]), r"instructions\[0\] must be"),
        (lambda v: v.update(instructions=[[0, 1]]), r"instructions\[0\] must be"),
        (lambda v: v.update(instructions="x"), "instructions must be a list"),
    ],
)
def test_debug_sections(edit: Edit, message: str) -> None:
    with pytest.raises(EsccError, match=message):
        Program.from_bytes(edited_json("debug", edit))


@pytest.mark.parametrize("body", [b"[" * 100_000, b"{", b"\xff", b'"\\ud800"', b"NaN", b"3", b"1" * 10_000])
@pytest.mark.parametrize("name", ["debug", "tensors"])
def test_sections_that_are_no_json(name: str, body: bytes) -> None:
    with pytest.raises(EsccError, match=f"section {name}: ") as error:
        Program.from_bytes(_packed_with(name, body))
    assert "\n" not in str(error.value)


def test_the_arch_section_is_checked() -> None:
    text = section(SMALL, "arch")
    with pytest.raises(EsccError, match=r"section arch: \[array\] rows = 0"):
        Program.from_bytes(with_section(SMALL, "arch", text.replace(b"rows = 16", b"rows = 0")))
    with pytest.raises(EsccError, match="section arch: not a text"):
        Program.from_bytes(with_section(SMALL, "arch", text[:-1] + b"\xff"))


MAP = MapDescriptor("x", 100, 2, 2, 3, False, 0.5, (3, 2, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": np.zeros(3, np.int64)}, "uint64"),
        ({"data": np.zeros((3, 3), np.uint8)}, "uint8"),
        ({"dram_bytes": 20}, "exceed the DRAM"),
        ({"dram_bytes": -1}, "DRAM size"),
        ({"inputs": [replace(MAP, scale=float("nan"))]}, "input 'x': scale must lie between"),
        ({"inputs": [replace(MAP, address=10)]}, "outside 50..1000"),
        ({"inputs": [replace(MAP, height=0)]}, "height: 0"),
        ({"outputs": [MAP, replace(MAP, name="y", address=101)]}, "overlaps output 'x'"),
        ({"debug": {"layers": [{"name": "a", "x": {1, 2}}]}}, "cannot be written as JSON"),
        ({"debug": {"layers": [{"name": "a", "x": float("nan")}]}}, "cannot be written as JSON"),
    ],
)
def test_parts_that_do_not_fit_are_refused_on_writing(changes: dict[str, object], message: str) -> None:
    program = Program(Arch.default(), np.zeros(1, np.uint64), bytes(50), [MAP], [MAP], 1000, None)
    program.to_bytes()
    with pytest.raises(EsccError, match=message):
        replace(program, **changes).to_bytes()  # type: ignore[arg-type]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EsccError, match=r"absent.bin: cannot read: No such file"):
        Program.load(tmp_path / "absent.bin")
    with pytest.raises(EsccError, match="cannot read: Is a directory"):
        Program.load(tmp_path)
    (tmp_path / "empty.bin").touch()
    with pytest.raises(EsccError, match=r"empty.bin: the file is empty"):
        Program.load(tmp_path / "empty.bin")
