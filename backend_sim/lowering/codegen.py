"""Words: rolled nodes become instruction words, with register writes only where a value changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from escc.backend_sim.lowering.actions import Action
from escc.backend_sim.lowering.roller import Leaf, Node, roll
from escc.backend_sim.lowering.sync import Item
from escc.errors import EsccError
from escc.isa.encoding import encode
from escc.isa.instructions import BY_MNEMONIC
from escc.isa.registers import GENERAL_REGISTERS, REGISTERS

Path = tuple[int, ...]


@dataclass(frozen=True)
class Advancing:
    """A value that changes from pass to pass: kept in a general register.

    ``path``: numbers of the enclosing loops, outermost first; ``base``: value at the first pass of all of
    them; ``strides``: what it gains per pass of each.
    """

    path: Path
    base: int
    strides: tuple[int, ...]

    @property
    def home(self) -> int:
        """Depth of the outermost loop that changes it."""
        return next(depth for depth, stride in enumerate(self.strides) if stride)


Value = int | Advancing


@dataclass(frozen=True)
class _Word:
    """A leaf with its register values resolved."""

    leaf: Leaf
    values: tuple[Value, ...]


@dataclass(frozen=True)
class _Block:
    """A loop with its own number and resolved body."""

    number: int
    count: int
    body: tuple[_Word | _Block, ...]


def leaves_of(items: Sequence[Item]) -> list[Leaf]:
    """Actions and tokens as leaves, with a mark wherever the layer changes."""
    leaves: list[Leaf] = []
    layer = -1
    for item in items:
        if item.layer != layer:
            layer = item.layer
            leaves.append(Leaf(("mark", layer), layer=layer))
        if isinstance(item, Action):
            unit = BY_MNEMONIC[item.mnemonic].unit
            names = tuple(f"{unit}.{name}" for name in item.registers)
            leaves.append(Leaf((item.mnemonic,), names, tuple(item.registers.values()), layer))
        else:
            leaves.append(Leaf((item.kind, int(item.queue), item.token), layer=layer))
    return leaves


def split_marks(leaves: Sequence[Leaf]) -> list[list[Leaf]]:
    """Runs of leaves that each start at a mark: no loop goes across one."""
    runs: list[list[Leaf]] = []
    for leaf in leaves:
        if leaf.key[0] == "mark" or not runs:
            runs.append([])
        runs[-1].append(leaf)
    return runs


def generate(items: Sequence[Item], *, rolled: bool = True) -> tuple[NDArray[np.uint64], list[list[int]]]:
    """The code array, (words,) uint64, and its origins ``[first word, last word, layer]``.

    ``rolled`` false writes every instruction out (for comparison).
    """
    writer = Writer()
    for run in split_marks(leaves_of(items)):
        writer.write(roll(run) if rolled else list(run))
    writer.emit("halt")
    return np.array(writer.words, np.uint64), writer.origins


@dataclass
class Writer:
    """Writes nodes as words; ``shadow`` is what the unit registers are known to hold."""

    words: list[int] = field(default_factory=list[int])
    origins: list[list[int]] = field(default_factory=list[list[int]])
    shadow: dict[str, Value] = field(default_factory=lambda: {r.name: 0 for r in REGISTERS if r.unit != "r"})
    _layer: int = -1
    _loops: int = 0
    _free: list[int] = field(default_factory=lambda: list(range(GENERAL_REGISTERS))[::-1])
    _general: dict[Advancing, int] = field(default_factory=dict[Advancing, int])

    def emit(self, mnemonic: str, *operands: int | str) -> None:
        """Append one word."""
        self.words.append(encode(mnemonic, *operands))
        if self._layer < 0:
            return
        index = len(self.words) - 1
        if self.origins and self.origins[-1][1] == index - 1 and self.origins[-1][2] == self._layer:
            self.origins[-1][1] = index
        else:
            self.origins.append([index, index, self._layer])

    def write(self, nodes: Sequence[Node]) -> None:
        """Write top-level nodes."""
        self._nodes([self._resolve(node, (), [()] * len(node.values)) for node in nodes], 0)

    # -- resolving ------------------------------------------------------------------------------------------
    def _resolve(self, node: Node, path: Path, strides: Sequence[tuple[int, ...]]) -> _Word | _Block:
        if isinstance(node, Leaf):
            values = tuple(
                Advancing(path, value, steps) if any(steps) else value
                for value, steps in zip(node.values, strides, strict=True)
            )
            return _Word(node, values)
        self._loops += 1
        number = self._loops
        inner = [(*before, stride) for before, stride in zip(strides, node.strides, strict=True)]
        body: list[_Word | _Block] = []
        start = 0
        for child in node.body:
            stop = start + len(child.values)
            body.append(self._resolve(child, (*path, number), inner[start:stop]))
            start = stop
        return _Block(number, node.count, tuple(body))

    # -- writing --------------------------------------------------------------------------------------------
    def _nodes(self, nodes: Sequence[_Word | _Block], depth: int) -> None:
        for node in nodes:
            if isinstance(node, _Word):
                self._word(node)
            else:
                self._loop(node, depth)

    def _word(self, word: _Word) -> None:
        if word.leaf.layer != self._layer:
            self._layer = word.leaf.layer
        for register, value in zip(word.leaf.registers, word.values, strict=True):
            self._set(register, value)
        mnemonic, *operands = word.leaf.key
        self.emit(cast("str", mnemonic), *cast("list[Any]", operands))

    def _set(self, register: str, value: Value) -> None:
        if self.shadow.get(register) == value:
            return
        if isinstance(value, Advancing):
            self.emit("mov", register, self._general[value])
        else:
            self.emit("set", register, value)
        self.shadow[register] = value

    def _loop(self, block: _Block, depth: int) -> None:
        uses: dict[str, set[Value]] = {}
        advancing: dict[Advancing, None] = {}
        for word in _words_of(block):
            for register, value in zip(word.leaf.registers, word.values, strict=True):
                uses.setdefault(register, set()).add(value)
                if isinstance(value, Advancing):
                    advancing[value] = None
        mine = [value for value in advancing if value.home == depth]
        for value in mine:
            if not self._free:
                raise EsccError("a loop needs more general registers than there are")
            self._general[value] = self._free.pop()
            self.emit("set", f"r{self._general[value]}", value.base)
        for register, values in uses.items():
            (only, *others) = values
            if not others and not _changes_in(only, depth):
                self._set(register, only)
            else:
                self.shadow.pop(register, None)
        self.emit("loop", block.count)
        self._nodes(block.body, depth + 1)
        counts = _counts(block)
        for value in (item for item in advancing if item.home <= depth):
            step = value.strides[depth]
            if len(value.strides) > depth + 1:
                # the loop inside has already advanced it by all of its passes
                step -= counts[value.path[depth + 1]] * value.strides[depth + 1]
            if step:
                self.emit("add", f"r{self._general[value]}", step)
        self.emit("endloop")
        for register, held in list(self.shadow.items()):
            if isinstance(held, Advancing) and _changes_in(held, depth):
                del self.shadow[register]
        for value in mine:
            self._free.append(self._general.pop(value))


def _changes_in(value: Value, depth: int) -> bool:
    """Whether the loop at ``depth``, or one inside it, changes a value."""
    return isinstance(value, Advancing) and any(value.strides[depth:])


def _words_of(block: _Block) -> list[_Word]:
    found: list[_Word] = []
    for node in block.body:
        found += [node] if isinstance(node, _Word) else _words_of(node)
    return found


def _counts(block: _Block) -> dict[int, int]:
    """Passes of the loops directly inside a block, by their number."""
    return {node.number: node.count for node in block.body if isinstance(node, _Block)}
