"""A program as text that `escc.isa.assembler` turns into the byte-identical program file."""

from __future__ import annotations

import binascii
import itertools
import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError
from escc.isa.encoding import decode
from escc.isa.instructions import BY_MNEMONIC, MAX_LOOP_NEST, OPCODE_LOW, Instruction, Operand, Queue
from escc.isa.maps import MapDescriptor
from escc.isa.program import Program
from escc.isa.registers import BY_INDEX

TEXT_VERSION = 1
_LINE = 76
_WRITES = ("set", "mov", "add")


def disassemble(program: Program, data_file: str | None = None) -> str:
    """The text form of ``program``, complete by itself.

    Args:
        data_file: name of a side file that holds the data section (written by the caller), to keep it out of
            the text; `None` embeds the data as base64.
    """
    parts = [f".escc {TEXT_VERSION}", "", ".arch", program.arch.to_toml().rstrip("\n"), ".end", ""]
    parts.append(f".dram {program.dram_bytes}")
    parts += [_map_line(".input", item) for item in program.inputs]
    parts += [_map_line(".output", item) for item in program.outputs]
    parts += ["", ".code", *code_lines(program), ".end", ""]
    data = program.data_array
    if data_file is None:
        parts += [f".data {data.size} base64\n{base64_lines(data)}.end", ""]
    else:
        crc = zlib.crc32(np.ascontiguousarray(data).data)
        parts += [f".data {data.size} crc {crc:#010x} file {json.dumps(data_file)}", ""]
    if program.debug is not None:
        parts += [".debug", _debug_text(program.debug), ".end", ""]
    return "\n".join(parts)


def code_lines(program: Program) -> Iterator[str]:
    """The instructions, one line a word; loop bodies indented, register groups headed by layer and word."""
    layers = _layer_names(program)
    depth = 0
    in_group = False
    texts = {word: _word_text(word) for word in set(program.code.tolist())}
    for index, word in enumerate(program.code.tolist()):
        text, mnemonic = texts[word]
        if mnemonic == "endloop":
            depth = max(depth - 1, 0)
        indent = "  " * (depth + 1)
        if mnemonic in _WRITES and not in_group:
            layer = layers[index]
            yield f"{indent}; word {index}" + (f", {layer}" if layer else "")
        in_group = mnemonic in _WRITES
        yield indent + text
        if mnemonic == "loop":
            depth = min(depth + 1, MAX_LOOP_NEST)


def base64_lines(data: npt.NDArray[np.uint8]) -> str:
    """Base64 text of ``data`` in lines of 76 characters, the last one ended too; empty for no data."""
    text = np.frombuffer(binascii.b2a_base64(np.ascontiguousarray(data).data, newline=False), np.uint8)
    whole = text.size // _LINE
    lines = np.full((whole, _LINE + 1), ord("\n"), np.uint8)
    lines[:, :_LINE] = text[: whole * _LINE].reshape(whole, _LINE)
    rest = text[whole * _LINE :].tobytes()
    return (lines.tobytes() + (rest + b"\n" if rest else b"")).decode("ascii")


def _map_line(directive: str, item: MapDescriptor) -> str:
    shape = ", ".join(str(size) for size in item.torch_shape)
    return (
        f"{directive} {json.dumps(item.name)} at {item.address} "
        f"map {item.height}x{item.width}x{item.channels} {'s8' if item.signed else 'u8'} "
        f"scale {item.scale!r} shape [{shape}]"
    )


def _debug_text(debug: dict[str, Any]) -> str:
    """The debug section as JSON with one list element a line."""
    entries: list[str] = []
    for key, value in debug.items():
        if isinstance(value, list):
            rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in value)
            text = f"[\n{rows}\n  ]" if rows else "[]"
        else:
            text = json.dumps(value, ensure_ascii=False)
        entries.append(f"  {json.dumps(key, ensure_ascii=False)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}" if entries else "{}"


def _layer_names(program: Program) -> list[str | None]:
    """The layer of each word: from the debug ranges, where these are silent from the last mark."""
    code = program.code
    numbers = np.full(code.size, -1, np.int64)
    marks = np.flatnonzero(code >> np.uint64(OPCODE_LOW) == BY_MNEMONIC["mark"].opcode)
    for start, stop in itertools.pairwise([*marks.tolist(), code.size]):
        numbers[start:stop] = int(code[start]) & 0xFFFFFFFF
    for first, last, layer in (program.debug or {}).get("instructions", []):
        numbers[first : last + 1] = layer
    names = {number: program.layer_name(number) for number in np.unique(numbers).tolist()}
    return [names[number] for number in numbers.tolist()]


def _word_text(word: int) -> tuple[str, str]:
    """The line of a word and its mnemonic; a word that is no instruction stays a number."""
    try:
        instruction, operands = decode(word)
    except EsccError:
        return f".word {word:#018x}", ".word"
    if not operands:
        return instruction.mnemonic, instruction.mnemonic
    texts = [
        _operand_text(instruction, operand, value, operands)
        for operand, value in zip(instruction.operands, operands, strict=True)
    ]
    return f"{instruction.mnemonic} {', '.join(texts)}", instruction.mnemonic


def _operand_text(instruction: Instruction, operand: Operand, value: int, operands: tuple[int, ...]) -> str:
    if operand.kind == "queue":
        return Queue(value).text
    if operand.kind in ("register", "unit_register"):
        return BY_INDEX[value].name
    if operand.kind == "general":
        return f"r{value}"
    if instruction.mnemonic == "set" and BY_INDEX[operands[0]].measure == "byte" and value > 9:
        return hex(value)
    return str(value)
