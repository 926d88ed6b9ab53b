"""Assembly text to a program: the grammar of ``grammar.lark``, instructions checked against the table."""

from __future__ import annotations

import binascii
import difflib
import json
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from escc.errors import EsccError
from escc.isa.arch import Arch
from escc.isa.descriptors import debug_from_json
from escc.isa.disassembler import TEXT_VERSION
from escc.isa.encoding import QUEUES, encode
from escc.isa.instructions import BY_MNEMONIC
from escc.isa.maps import MapDescriptor
from escc.isa.program import Program
from escc.isa.registers import BY_NAME

Node = Tree[Token]

_REQUIRED = {"version": ".escc", "arch": ".arch", "dram": ".dram", "code": ".code", "data": ".data"}
_SHOWN = {
    "_NL": "the end of the line",
    "INT": "a number",
    "NUMBER": "a number",
    "NAME": "a name",
    "STRING": "a quoted text",
    "DIMS": "HEIGHTxWIDTHxCHANNELS",
    "TYPE": "u8 or s8",
    "VERSION": "a version",
    "DIRECTION": ".input or .output",
    "ARCH_BLOCK": ".arch to .end",
    "DEBUG_BLOCK": ".debug to .end",
    "DATA_BLOCK": ".data SIZE base64 to .end",
    "CODE_LINES": "instructions, one a line",
    "END": "an instruction ('mnemonic operand, operand') or .end",
    "COMMA": "','",
    "LSQB": "'['",
    "RSQB": "']'",
    "$END": "the end of the text",
}


def assemble(text: str, where: str = "assembly", folder: Path | None = None) -> Program:
    """The program a text describes.

    Args:
        where: name of the text in errors, which say ``where:line``.
        folder: where side files of the directive ``.data ... file`` lie; None refuses them.

    Raises:
        EsccError: a syntax error, an unknown instruction or operand, a directive missing or given twice, or
            parts that do not fit each other.
    """
    try:
        tree = _parser().parse(text if text.endswith("\n") else text + "\n")
    except UnexpectedInput as error:
        raise _syntax_error(error, text, where) from None
    reader = _Reader(where, folder)
    for item in cast("list[Node]", tree.children):
        reader.read(item)
    return reader.program()


class _Reader:
    """Collects the directives of one text."""

    def __init__(self, where: str, folder: Path | None) -> None:
        self._where = where
        self._folder = folder
        self._parts: dict[str, Any] = {}
        self._maps: dict[str, list[MapDescriptor]] = {".input": [], ".output": []}
        self._functions: dict[str, Callable[[list[Any], int], Any]] = {
            "version": self._version,
            "arch": self._arch,
            "dram": lambda children, line: _integer(children[0]),
            "data_here": self._data_here,
            "data_file": self._data_file,
            "debug": self._debug,
            "code": self._code,
        }

    def read(self, item: Node) -> None:
        """Take one directive."""
        kind = str(item.data)
        if kind == "map":
            self._map(item.children)
            return
        name = "data" if kind.startswith("data_") else kind
        first = next(item.scan_values(lambda value: isinstance(value, Token)), None)
        line = first.line if isinstance(first, Token) and first.line else 1
        if name in self._parts:
            raise EsccError(f"a second .{name}", where=self._place(line))
        self._parts[name] = self._functions[kind](cast("list[Any]", item.children), line)

    def program(self) -> Program:
        """The program, once all directives are read."""
        for name, directive in _REQUIRED.items():
            if name not in self._parts:
                raise EsccError(f"{directive} is missing", where=self._where)
        code = self._parts["code"]
        debug = None
        if "debug" in self._parts:
            debug = debug_from_json(self._parts["debug"], len(code), self._where)
        return Program(
            self._parts["arch"],
            code,
            self._parts["data"],
            self._maps[".input"],
            self._maps[".output"],
            self._parts["dram"],
            debug,
        )

    def _place(self, line: int | None) -> str:
        return f"{self._where}:{line}"

    def _version(self, children: list[Token], line: int) -> int:
        version = int(children[0])
        if version != TEXT_VERSION:
            hint = "update escc, or disassemble the program again"
            raise EsccError(
                f"text form {version}, this escc reads {TEXT_VERSION}", where=self._place(line), hint=hint
            )
        return version

    def _arch(self, children: list[Token], line: int) -> Arch:
        return Arch.from_toml(_block(children[0]), f"{self._place(line)}: .arch")

    def _debug(self, children: list[Token], line: int) -> bytes:
        del line
        return _block(children[0]).encode()

    def _map(self, children: list[Any]) -> None:
        direction, name, address, dims, kind, scale, *shape = cast("list[Token]", children)
        height, width, channels = (int(size) for size in dims.split("x"))
        self._maps[str(direction)].append(
            MapDescriptor(
                self._string(name),
                _integer(address),
                height,
                width,
                channels,
                kind == "s8",
                float(scale),
                # An empty shape leaves one None behind.
                tuple(_integer(size) for size in shape if cast("Token | None", size) is not None),
            )
        )

    def _data_here(self, children: list[Token], line: int) -> npt.NDArray[np.uint8]:
        head, _, body = children[0].partition("\n")
        size = int(head.split()[1])
        # ".end" goes, and the line ends, which strict decoding refuses.
        try:
            packed = body[: body.rindex(".end")].encode("ascii").translate(None, b" \t\r\n")
            content = binascii.a2b_base64(packed, strict_mode=True)
        except ValueError as error:
            raise EsccError(f".data is not base64: {error}", where=self._place(line)) from None
        if len(content) != size:
            raise EsccError(f".data says {size} bytes and holds {len(content)}", where=self._place(line))
        return np.frombuffer(content, np.uint8)

    def _data_file(self, children: list[Token], line: int) -> npt.NDArray[np.uint8]:
        size, crc, name = _integer(children[0]), _integer(children[1]), self._string(children[2])
        if self._folder is None:
            raise EsccError("side files are not allowed here", where=self._place(line))
        path = self._folder / name
        try:
            content = path.read_bytes()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise EsccError(f"cannot read {path}: {reason}", where=self._place(line)) from None
        if len(content) != size or zlib.crc32(content) != crc:
            raise EsccError(f"{path} is not the file this text was written with", where=self._place(line))
        return np.frombuffer(content, np.uint8)

    def _code(self, children: list[Token], line: int) -> npt.NDArray[np.uint64]:
        words: list[int] = []
        known: dict[str, int] = {}
        for number, text in enumerate(children[0].split("\n"), start=line):
            statement = text.partition(";")[0].strip()
            if not statement:
                continue
            word = known.get(statement)
            if word is None:
                word = known[statement] = _word(statement, self._place(number))
            words.append(word)
        return np.array(words, np.uint64)

    def _string(self, token: Token) -> str:
        try:
            value: str = json.loads(token)
        except ValueError:
            raise EsccError(f"{token} is not a valid quoted text", where=self._place(token.line)) from None
        return value


@cache
def _parser() -> Lark:
    grammar = Path(__file__).with_name("grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", maybe_placeholders=True)


def _word(statement: str, place: str) -> int:
    """The word of an instruction's text; the grammar has checked its form."""
    mnemonic, _, rest = statement.replace("\t", " ").partition(" ")
    texts = [text.strip() for text in rest.split(",")] if rest else []
    operands = [text if text[0].isalpha() or text[0] == "_" else _integer(text) for text in texts]
    if mnemonic == ".word":
        word = _integer(texts[0])
        if not 0 <= word < 1 << 64:
            raise EsccError("a word has 64 bits", where=place)
        return word
    try:
        return encode(mnemonic, *operands)
    except EsccError as error:
        raise EsccError(error.message, where=place, hint=_suggest(mnemonic, operands)) from None


def _integer(text: str) -> int:
    return int(text, 16 if "x" in text.lower() else 10)


def _block(token: Token) -> str:
    """The lines between a block's directive and its ``.end``."""
    body = token.partition("\n")[2]
    return body[: body.rindex(".end")]


def _suggest(mnemonic: str, operands: list[int | str]) -> str | None:
    known = [*BY_MNEMONIC] if mnemonic not in BY_MNEMONIC else [*BY_NAME, *QUEUES]
    names = [mnemonic] if mnemonic not in BY_MNEMONIC else [o for o in operands if isinstance(o, str)]
    for name in names:
        close = difflib.get_close_matches(name, known, n=1)
        if name not in known and close:
            return f"did you mean {close[0]!r}?"
    return None


def _syntax_error(error: UnexpectedInput, text: str, where: str) -> EsccError:
    place = f"{where}:{error.line}:{error.column}" if error.line > 0 else where
    if isinstance(error, UnexpectedToken):
        found = "the text ends" if error.token.type == "$END" else f"unexpected {_short(error.token)}"
        expected = error.accepts or error.expected
    elif isinstance(error, UnexpectedCharacters):
        found = f"unexpected {_short(text[error.pos_in_stream : error.pos_in_stream + 20])}"
        expected = error.allowed or set()
    else:
        found, expected = "the text ends", set()
    literal = {t.name: t.pattern.value for t in _parser().terminals if t.pattern.type == "str"}
    shown = sorted({_SHOWN.get(name, literal.get(name, name.lower())) for name in expected})
    hint = "expected " + ", ".join(shown) if 0 < len(shown) <= 8 else None
    return EsccError(found, where=place, hint=hint)


def _short(text: str) -> str:
    line = text.strip("\r").split("\n")[0] if text.strip() else "the end of the line"
    return repr(line[:20]) if text.strip() else line
