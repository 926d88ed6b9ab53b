"""Machine layers: what every operator looks like to tiling, scheduling and emission.

A layer computes one output map. Its output channels are divided into *parts*, one instruction form each
(the groups of a convolution, the inputs of a concatenation, the zeros beside a padded map). A part says
which channels of which operands it reads; an operand says which of its rows a run of output rows needs;
a stream says which bytes a run of output channels needs. Tiling is built on these three answers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from escc.ir.base import LayerOp
from escc.ir.xdsl import SSAValue
from escc.isa.maps import position_pitch

Range = tuple[int, int]
"""A half-open run [first, stop) of rows, channels or bytes."""

Role = Literal["x", "residual", "a", "b"]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Window:
    """Row rule of windows: output row i needs input rows i * stride - pad .. + extent, inside the map."""

    extent: int = 1
    stride: int = 1
    pad: int = 0

    def rows(self, first: int, stop: int, height: int, out_height: int) -> Range:
        """Input rows that output rows [first, stop) need; at least one, so that a tile is never empty."""
        del out_height
        low = min(max(first * self.stride - self.pad, 0), height - 1)
        return low, min(max((stop - 1) * self.stride - self.pad + self.extent, low + 1), height)


@dataclass(frozen=True)
class Adaptive:
    """Row rule of adaptive pooling: output row i covers floor(i*H/O) .. ceil((i+1)*H/O)."""

    def rows(self, first: int, stop: int, height: int, out_height: int) -> Range:
        """Input rows that output rows [first, stop) need."""
        return first * height // out_height, -(-stop * height // out_height)


@dataclass(frozen=True)
class Broadcast:
    """Row rule of an operand whose one position serves every output position."""

    def rows(self, first: int, stop: int, height: int, out_height: int) -> Range:
        """The one row."""
        del first, stop, out_height
        return 0, height


RowRule = Window | Adaptive | Broadcast


@dataclass(frozen=True)
class Operand:
    """An input map of a layer."""

    value: SSAValue
    shape: Shape
    signed: bool
    rule: RowRule


@dataclass(frozen=True)
class Read:
    """The channels of one operand that a part reads.

    ``count`` channels from ``first`` whatever the outputs, or, with ``count`` None, the channels that go
    with the outputs: output ``lo + j`` of the part reads channel ``first + j // multiplier``.
    """

    operand: int
    role: Role
    first: int = 0
    count: int | None = None
    multiplier: int = 1

    def channels(self, offset: int, stop: int) -> Range:
        """Channels that outputs [offset, stop), counted inside the part, read."""
        if self.count is not None:
            return self.first, self.first + self.count
        return self.first + offset // self.multiplier, self.first + -(-stop // self.multiplier)


@dataclass(frozen=True)
class Part:
    """Output channels [lo, hi) and the instruction that computes them.

    ``registers``: the unit registers that do not depend on tile or address.
    """

    mnemonic: str
    lo: int
    hi: int
    reads: tuple[Read, ...]
    registers: Mapping[str, int]


@dataclass(frozen=True)
class Stream:
    """Weights of a layer: bytes the instruction finds at unit register ``register``.

    ``offsets``: (K + 1,) byte offset of every output channel, or None when each tile needs all
    ``size`` bytes. ``encode(first, stop)`` gives the bytes of output channels [first, stop).
    """

    kind: Literal["coefficients", "bases", "requant", "table", "divisors"]
    register: str
    size: int
    offsets: NDArray[np.int64] | None
    encode: Callable[[int, int], NDArray[np.uint8]]

    def bytes_of(self, first: int, stop: int) -> int:
        """Bytes that output channels [first, stop) need."""
        return self.size if self.offsets is None else int(self.offsets[stop] - self.offsets[first])


@dataclass(frozen=True)
class ConvWork:
    """Statistics of a convolution that the cost estimate uses.

    ``form`` as in the IR; ``bases`` M; ``density`` share of non-zero coefficients;
    ``kernel`` (R, S).
    """

    form: str
    bases: int
    density: float
    kernel: tuple[int, int]


@dataclass(frozen=True)
class MachineLayer:
    """One layer of the machine program.

    ``anchor``: the operation whose result is the output map; it carries placement and schedule.
    ``unit``: tiles of output channels are multiples of it. ``taps``: window size of a vector operation.
    ``dense_bytes``: bytes of the same layer with plain 8-bit weights, requantisation records included.
    """

    name: str
    operation: str
    source: str
    anchor: LayerOp
    operands: tuple[Operand, ...]
    shape: Shape
    signed: bool
    parts: tuple[Part, ...]
    streams: tuple[Stream, ...] = ()
    unit: int = 1
    taps: int = 1
    work: ConvWork | None = None
    dense_bytes: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def outs(self) -> int:
        """Output channels."""
        return self.shape[2]

    @property
    def vector(self) -> bool:
        """True for a vector operation, False for a convolution."""
        return self.work is None

    @property
    def residual(self) -> SSAValue | None:
        """The map that a convolution adds to its result, if it reads it for nothing else."""
        if self.work is None or len(self.operands) < 2 or self.operands[1].value is self.operands[0].value:
            return None
        return self.operands[1].value

    def parts_of(self, first: int, stop: int) -> list[tuple[Part, int, int]]:
        """(part, first output, stop output) of every part that output channels [first, stop) touch."""
        return [
            (part, max(first, part.lo), min(stop, part.hi))
            for part in self.parts
            if part.lo < stop and part.hi > first
        ]

    def operand_rows(self, operand: int, first: int, stop: int) -> Range:
        """Rows of an operand that output rows [first, stop) need."""
        source = self.operands[operand]
        return source.rule.rows(first, stop, source.shape[0], self.shape[0])

    def operand_channels(self, operand: int, first: int, stop: int) -> Range | None:
        """Channels of an operand that output channels [first, stop) need, None when it is not read."""
        found = [
            read.channels(low - part.lo, high - part.lo)
            for part, low, high in self.parts_of(first, stop)
            for read in part.reads
            if read.operand == operand
        ]
        return (min(low for low, _ in found), max(high for _, high in found)) if found else None

    def channel_streams(self) -> list[Stream]:
        """The streams that are cut along output channels."""
        return [stream for stream in self.streams if stream.offsets is not None]

    def shared_streams(self) -> list[Stream]:
        """The streams that every tile needs whole."""
        return [stream for stream in self.streams if stream.offsets is None]

    def weight_bytes(self) -> int:
        """Bytes of all streams."""
        return sum(stream.size for stream in self.streams)


def map_bytes(rows: int, width: int, channels: int) -> int:
    """Bytes that rows of a map occupy: every position has its channels and their mask bits."""
    return rows * width * position_pitch(channels)
