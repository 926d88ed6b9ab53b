"""The program file: a fixed header, a section table, and 64-byte aligned sections, each with its checksum.

Little endian. Header (64 bytes): magic (8), major u16, minor u16, flags u32, file length u64, DRAM bytes u64,
section table offset u64, section count u32, section table crc32 u32, geometry hash (8), reserved u32,
crc32 of the header's first 60 bytes u32. Section table entry (32 bytes): name (8, zero padded), offset u64,
size u64, crc32 u32, reserved u32. Sections: arch (TOML), code (u64 words), data (the DRAM image), tensors
(JSON) and, optional, debug (JSON). A reader checks every offset, size and checksum before it uses the bytes.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError
from escc.isa.arch import Arch
from escc.isa.descriptors import (
    check_maps,
    debug_from_json,
    debug_to_json,
    tensors_from_json,
    tensors_to_json,
)
from escc.isa.maps import MapDescriptor

MAGIC = b"\x89ESCC\r\n\x1a"
MAJOR, MINOR = 1, 0
ALIGNMENT = 64
HEADER = struct.Struct("<8sHHIQQQII8sII")
ENTRY = struct.Struct("<8sQQII")
REQUIRED = ("arch", "code", "data", "tensors")
OPTIONAL = ("debug",)
MAX_SECTIONS = 64
MAX_WORDS = 1 << 27
MAX_DRAM_BYTES = 1 << 34
TABLE_OFFSET = HEADER.size


class Header(NamedTuple):
    """The fields of the header in file order."""

    magic: bytes
    major: int
    minor: int
    flags: int
    length: int
    dram_bytes: int
    table_offset: int
    sections: int
    table_crc: int
    geometry: bytes
    reserved: int
    crc: int


class Section(NamedTuple):
    """An entry of the section table."""

    name: str
    offset: int
    size: int
    crc: int


class Contents(NamedTuple):
    """What a program file holds: the fields of `escc.isa.program.Program`, in its order."""

    arch: Arch
    code: npt.NDArray[np.uint64]
    data: npt.NDArray[np.uint8]
    inputs: list[MapDescriptor]
    outputs: list[MapDescriptor]
    dram_bytes: int
    debug: dict[str, Any] | None


def pack(program: Contents) -> list[bytes]:
    """The program file in pieces, ready to write or join.

    Raises:
        EsccError: the parts of the program do not fit each other.
    """
    code, data = program.code, program.data
    if code.dtype != np.uint64 or code.ndim != 1:
        raise EsccError("code must be a one-dimensional uint64 array", where="program")
    if data.dtype != np.uint8 or data.ndim != 1:
        raise EsccError("data must be a one-dimensional uint8 array", where="program")
    _check_sizes(int(code.size), int(data.size), program.dram_bytes, "program")
    check_maps(program.inputs, program.outputs, int(data.size), program.dram_bytes, "program")
    bodies = {
        "arch": program.arch.to_toml().encode(),
        "code": code.astype("<u8", copy=False).tobytes(),
        "data": data.tobytes(),
        "tensors": tensors_to_json(program.inputs, program.outputs),
    }
    if program.debug is not None:
        bodies["debug"] = debug_to_json(program.debug, int(code.size), "program")
    offset = _aligned(TABLE_OFFSET + ENTRY.size * len(bodies))
    table = b""
    pieces: list[bytes] = []
    for name, body in bodies.items():
        table += ENTRY.pack(name.encode(), offset, len(body), zlib.crc32(body), 0)
        padding = _aligned(len(body)) - len(body)
        pieces += [body, bytes(padding)]
        offset += len(body) + padding
    geometry = bytes.fromhex(program.arch.geometry_hash)
    header = Header(
        MAGIC,
        MAJOR,
        MINOR,
        0,
        offset,
        program.dram_bytes,
        TABLE_OFFSET,
        len(bodies),
        zlib.crc32(table),
        geometry,
        0,
        0,
    )
    front = _with_crc(header) + table
    return [front, bytes(_aligned(len(front)) - len(front)), *pieces]


def unpack(content: memoryview, where: str) -> Contents:
    """Read a program file; ``where`` names it in errors. Arrays of the result are views of ``content``.

    Raises:
        EsccError: not a program file, newer format, truncated, damaged (names the section) or inconsistent.
    """
    content = content.cast("B")
    header, sections = read_sections(content, where)
    for name in REQUIRED:
        if name not in sections:
            raise EsccError(f"section {name} is missing", where=where)
    arch = _read_arch(content, sections["arch"], header, where)
    code_bytes = _body(content, sections["code"])
    if len(code_bytes) % 8:
        raise EsccError("section code: its size is not a multiple of 8 bytes", where=where)
    code = np.frombuffer(code_bytes, dtype="<u8").view(np.uint64)
    data = np.frombuffer(_body(content, sections["data"]), dtype=np.uint8)
    _check_sizes(int(code.size), int(data.size), header.dram_bytes, where)
    inputs, outputs = tensors_from_json(_body(content, sections["tensors"]).tobytes(), where)
    check_maps(inputs, outputs, int(data.size), header.dram_bytes, where)
    debug = None
    if "debug" in sections:
        debug = debug_from_json(_body(content, sections["debug"]).tobytes(), int(code.size), where)
    return Contents(arch, code, data, inputs, outputs, header.dram_bytes, debug)


def read_sections(content: memoryview, where: str) -> tuple[Header, dict[str, Section]]:
    """Check the framing (header, table, bounds, overlaps, padding, every checksum) and list the sections.

    Raises:
        EsccError: as `unpack`.
    """
    header = _read_header(content, where)
    table_end = header.table_offset + ENTRY.size * header.sections
    table = content[header.table_offset : table_end]
    if zlib.crc32(table) != header.table_crc:
        raise EsccError("the section table is damaged (checksum mismatch)", where=where)
    sections: dict[str, Section] = {}
    for index in range(header.sections):
        raw, offset, size, crc, reserved = ENTRY.unpack_from(table, index * ENTRY.size)
        name = _section_name(raw, where)
        if name in sections:
            raise EsccError(f"section {name} occurs twice", where=where)
        if name not in REQUIRED + OPTIONAL and header.minor <= MINOR:
            raise EsccError(f"unknown section {name!r}", where=where)
        if reserved:
            raise EsccError(f"section {name}: reserved bits are set", where=where)
        if offset % ALIGNMENT or offset < table_end or offset + size > header.length:
            raise EsccError(f"section {name}: lies outside the file or is not aligned", where=where)
        sections[name] = Section(name, offset, size, crc)
    end, previous = table_end, "the section table"
    for section in sorted(sections.values(), key=lambda s: (s.offset, s.size)):
        if section.offset < end:
            raise EsccError(f"section {section.name} overlaps {previous}", where=where)
        _check_padding(content, end, section.offset, previous, where)
        if zlib.crc32(_body(content, section)) != section.crc:
            raise EsccError(
                f"section {section.name} is damaged (checksum mismatch)",
                where=where,
                hint="copy the file again or compile again",
            )
        end, previous = section.offset + section.size, f"section {section.name}"
    _check_padding(content, end, header.length, previous, where)
    return header, sections


def fix_checksums(content: bytes) -> bytes:
    """``content`` with all checksums recomputed, as far as its structure is readable (for tests, tools)."""
    fixed = bytearray(content)
    if len(fixed) < HEADER.size:
        return content
    header = Header._make(HEADER.unpack_from(fixed))
    table_end = header.table_offset + ENTRY.size * header.sections
    if header.sections <= MAX_SECTIONS and table_end <= len(fixed):
        for index in range(header.sections):
            at = header.table_offset + index * ENTRY.size
            raw, offset, size, _, reserved = ENTRY.unpack_from(fixed, at)
            if offset + size <= len(fixed):
                crc = zlib.crc32(memoryview(fixed)[offset : offset + size])
                ENTRY.pack_into(fixed, at, raw, offset, size, crc, reserved)
        table_crc = zlib.crc32(memoryview(fixed)[header.table_offset : table_end])
        header = header._replace(table_crc=table_crc)
    fixed[: HEADER.size] = _with_crc(header)
    return bytes(fixed)


def _read_header(content: memoryview, where: str) -> Header:
    size = len(content)
    if size == 0:
        raise EsccError("the file is empty", where=where)
    if bytes(content[: len(MAGIC)]) != MAGIC[:size]:
        hint = "make one with 'escc compile MODEL -o prog.bin' or 'escc asm'"
        raise EsccError("not an escc program", where=where, hint=hint)
    if size < HEADER.size:
        raise EsccError(f"truncated: {size} bytes do not even hold the header", where=where)
    header = Header._make(HEADER.unpack_from(content))
    if zlib.crc32(content[: HEADER.size - 4]) != header.crc:
        raise EsccError("the header is damaged (checksum mismatch)", where=where)
    if header.major != MAJOR:
        age = "newer" if header.major > MAJOR else "older"
        raise EsccError(
            f"program format {header.major}.{header.minor} is {age} than this escc's {MAJOR}.{MINOR}",
            where=where,
            hint="update escc, or compile the model again with this escc"
            if age == "newer"
            else "compile the model again with this escc",
        )
    if header.flags or header.reserved:
        raise EsccError("the header has unknown flags set", where=where)
    if size < header.length:
        raise EsccError(f"truncated: {size} of {header.length} bytes", where=where)
    if size > header.length:
        raise EsccError(f"{size - header.length} bytes follow the end of the program", where=where)
    if header.sections > MAX_SECTIONS:
        raise EsccError(f"the header claims {header.sections} sections, at most {MAX_SECTIONS}", where=where)
    table_end = header.table_offset + ENTRY.size * header.sections
    if header.table_offset != TABLE_OFFSET or table_end > header.length:
        raise EsccError("the section table lies outside the file", where=where)
    return header


def _section_name(raw: bytes, where: str) -> str:
    name = raw.rstrip(b"\0")
    if not name or not name.isalnum() or not name.isascii():
        raise EsccError("the section table holds an unreadable name", where=where)
    return name.decode("ascii")


def _read_arch(content: memoryview, section: Section, header: Header, where: str) -> Arch:
    place = f"{where}: section arch"
    try:
        text = _body(content, section).tobytes().decode()
    except UnicodeDecodeError:
        raise EsccError("not a text", where=place) from None
    arch = Arch.from_toml(text, place)
    if bytes.fromhex(arch.geometry_hash) != header.geometry:
        raise EsccError("its hash differs from the header's", where=place)
    return arch


def _check_sizes(words: int, data_bytes: int, dram_bytes: int, where: str) -> None:
    if words > MAX_WORDS:
        raise EsccError(f"section code: {words} words, at most {MAX_WORDS}", where=where)
    if not 0 <= dram_bytes <= MAX_DRAM_BYTES:
        raise EsccError(f"DRAM size {dram_bytes} is outside 0..{MAX_DRAM_BYTES}", where=where)
    if data_bytes > dram_bytes:
        raise EsccError(f"section data: {data_bytes} bytes exceed the DRAM of {dram_bytes}", where=where)


def _check_padding(content: memoryview, start: int, end: int, after: str, where: str) -> None:
    if end - start >= ALIGNMENT:
        raise EsccError(f"unused bytes after {after}", where=where)
    if any(content[start:end]):
        raise EsccError(f"the padding after {after} is damaged (not zero)", where=where)


def _body(content: memoryview, section: Section) -> memoryview:
    return content[section.offset : section.offset + section.size]


def _with_crc(header: Header) -> bytes:
    raw = HEADER.pack(*header)
    return raw[:-4] + struct.pack("<I", zlib.crc32(raw[:-4]))


def _aligned(size: int) -> int:
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
