"""The loop roller: repeated runs of instructions whose registers advance by constant steps become loops."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from escc.isa.instructions import MAX_LOOP_NEST
from escc.isa.registers import GENERAL_REGISTERS

MAX_PERIOD = 256
MIN_REPEATS = 3


@dataclass(frozen=True, eq=False)
class Leaf:
    """One word that is not loop control: ``key`` says which, ``registers`` what it needs to be set.

    ``registers``: full unit register names; ``values``: their values, in the same order.
    ``layer``: index of the layer it belongs to.
    """

    key: tuple[Hashable, ...]
    registers: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    layer: int = -1

    @property
    def signature(self) -> Hashable:
        """What must be equal for two leaves to be passes of one loop."""
        return self.key, self.registers, self.layer

    @property
    def depth(self) -> int:
        """Nesting depth of loops."""
        return 0


@dataclass(frozen=True, eq=False)
class Loop:
    """``count`` passes of ``body``; ``values`` are those of the first pass (all leaves of the body one after
    the other), ``strides`` what each gains per pass."""

    count: int
    body: tuple[Node, ...]
    strides: tuple[int, ...]
    values: tuple[int, ...] = field(init=False)
    signature: Hashable = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(value for node in self.body for value in node.values))
        signature = self.count, tuple(node.signature for node in self.body), self.strides
        object.__setattr__(self, "signature", signature)

    @property
    def depth(self) -> int:
        """Nesting depth of loops."""
        return 1 + max(node.depth for node in self.body)


Node = Leaf | Loop


def roll(leaves: Sequence[Leaf]) -> list[Node]:
    """Nodes that expand to exactly ``leaves``, with as few words as the search finds.

    Shortest periods first, so that inner loops form before outer ones; a loop is made only where it saves
    words, nests at most as deep as the machine allows and needs no more general registers than there are.
    """
    row = _Row(list(leaves))
    period = 1
    while period <= min(MAX_PERIOD, len(row.nodes) // MIN_REPEATS):
        # A new loop may be the body, or part of the body, of a shorter period than this one.
        period = 1 if row.roll(period) else period + 1
    return row.nodes


def expand(nodes: Sequence[Node]) -> Iterator[Leaf]:
    """The leaves that the nodes stand for, in order."""
    for node in nodes:
        if isinstance(node, Leaf):
            yield node
            continue
        for number in range(node.count):
            yield from expand(advance(node, number))


def advance(loop: Loop, passes: int) -> list[Node]:
    """The body of a loop as it is after ``passes`` passes."""
    moved: list[Node] = []
    start = 0
    for node in loop.body:
        steps = [passes * stride for stride in loop.strides[start : start + len(node.values)]]
        start += len(node.values)
        moved.append(_shift(node, steps))
    return moved


def _shift(node: Node, steps: Sequence[int]) -> Node:
    if isinstance(node, Leaf):
        values = tuple(value + step for value, step in zip(node.values, steps, strict=True))
        return Leaf(node.key, node.registers, values, node.layer)
    body: list[Node] = []
    start = 0
    for inner in node.body:
        body.append(_shift(inner, steps[start : start + len(inner.values)]))
        start += len(inner.values)
    return Loop(node.count, tuple(body), node.strides)


class _Row:
    """A row of nodes that is being rolled; ``marks`` numbers their signatures."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self._kinds: dict[Hashable, int] = {}
        self.marks = np.array([self._kind(node) for node in nodes], np.int64)

    def _kind(self, node: Node) -> int:
        return self._kinds.setdefault(node.signature, len(self._kinds))

    def roll(self, period: int) -> bool:
        """Replace runs that repeat with ``period`` nodes; True when there was one."""
        loops: list[tuple[int, int, Loop]] = []
        taken = 0
        for first, length in _runs(self._steady(period)):
            # a loop reaches two periods further than its steady run, perhaps into the next one
            start = max(first, taken)
            if first + length - start < period:
                continue
            repeats = (first + length - start) // period + 2
            middle = start + period
            loop = _loop(self.nodes[start:middle], self.nodes[middle : middle + period], repeats)
            if loop is not None:
                taken = start + repeats * period
                loops.append((start, taken, loop))
        for start, stop, loop in reversed(loops):
            self.nodes[start:stop] = [loop]
            self.marks = np.concatenate([self.marks[:start], [self._kind(loop)], self.marks[stop:]])
        return bool(loops)

    def _steady(self, period: int) -> NDArray[np.bool_]:
        """Entry i: nodes i, i + period and i + 2 * period are alike and advance by equal steps."""
        count = len(self.nodes) - 2 * period
        first, second, third = (self.marks[k * period : k * period + max(count, 0)] for k in range(3))
        steady = (first == second) & (first == third)
        for index in np.flatnonzero(steady).tolist():
            values = (self.nodes[index + k * period].values for k in range(3))
            steady[index] = all(a + c == 2 * b for a, b, c in zip(*values, strict=True))
        return steady


def _loop(body: list[Node], following: list[Node], repeats: int) -> Loop | None:
    """The loop of a body and its next pass, None when it is not worth it or the machine cannot run it."""
    strides = tuple(
        after - before
        for first, second in zip(body, following, strict=True)
        for before, after in zip(first.values, second.values, strict=True)
    )
    loop = Loop(repeats, tuple(body), strides)
    if loop.depth > MAX_LOOP_NEST or registers_needed(loop) > GENERAL_REGISTERS:
        return None
    return loop if _saving(loop) > 0 else None


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, length) of every run of true entries."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(stop - start)) for start, stop in edges.reshape(-1, 2)]


def registers_needed(loop: Loop) -> int:
    """General registers a loop takes: one for each different value that advances, in it or around it."""
    return len({item for item in varying(loop)})


def varying(loop: Loop) -> Iterator[Hashable]:
    """The advancing values of a loop: (path of inner loops, value, strides from the outside in)."""
    yield from _varying(loop, (), [()] * len(loop.values))


def _varying(loop: Loop, path: tuple[int, ...], outer: Sequence[tuple[int, ...]]) -> Iterator[Hashable]:
    start = 0
    for number, node in enumerate(loop.body):
        stop = start + len(node.values)
        strides = [
            (*before, stride)
            for before, stride in zip(outer[start:stop], loop.strides[start:stop], strict=True)
        ]
        start = stop
        if isinstance(node, Loop):
            yield from _varying(node, (*path, number), strides)
            continue
        for value, steps in zip(node.values, strides, strict=True):
            if any(steps):
                yield path, value, steps


def _saving(loop: Loop) -> int:
    """Estimated words saved: the repeated passes, less loop control and general registers."""
    words = 0
    changing = sum(bool(stride) for stride in loop.strides)
    for node in loop.body:
        words += _words(node)
    unrolled = loop.count * (words + changing)
    rolled = words + changing + 2 + 2 * registers_needed(loop)
    return unrolled - rolled


def _words(node: Node) -> int:
    if isinstance(node, Leaf):
        return 1
    changing = sum(bool(stride) for stride in node.strides)
    return 2 + 2 * changing + sum(_words(inner) for inner in node.body)
