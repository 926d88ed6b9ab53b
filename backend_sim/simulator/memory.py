"""DRAM and SRAM of a batch of images, as byte arrays and strided views of them.

The data section is the DRAM from address 0 and the same for all images, so it exists once. Behind it every
image has its own maps. Streams that are loaded from the data section to SRAM are not copied either: the SRAM
remembers where they come from (a *shared piece*) until something overwrites them. Bytes that were never
written are zero.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError
from escc.isa.program import MapDescriptor, Program

Bytes = npt.NDArray[np.uint8]


class DivergentOperand(EsccError):
    """An operand stream (coefficients, kernels, ...) is not the same for all images of the batch."""


class Piece(NamedTuple):
    """SRAM bytes ``start..stop-1`` that hold the data section's bytes from ``source`` on."""

    start: int
    stop: int
    source: int


class Block(NamedTuple):
    """A strided box of bytes: ``address`` of the first, pitches in bytes, channels side by side."""

    address: int
    rows: int
    cols: int
    chans: int
    row_pitch: int
    pos_pitch: int

    @property
    def stop(self) -> int:
        """One past the last byte (the address itself for an empty box)."""
        if not (self.rows and self.cols and self.chans):
            return self.address
        last = (self.rows - 1) * self.row_pitch + (self.cols - 1) * self.pos_pitch
        return self.address + last + self.chans


def strided(memory: Bytes, block: Block, base: int = 0) -> Bytes:
    """The view (n, rows, cols, chans) of ``block`` in ``memory`` (n, bytes) that begins at address base."""
    shape = (len(memory), block.rows, block.cols, block.chans)
    if 0 in shape:
        return np.zeros(shape, np.uint8)
    strides = (memory.strides[0], block.row_pitch, block.pos_pitch, 1)
    return np.ndarray(shape, np.uint8, memory, block.address - base, strides)


class Memory:
    """The memories of ``images`` images running ``program``.

    ``constants``: (data bytes,) uint8, DRAM from 0. ``maps``: (images, dram_bytes - data bytes), DRAM behind
    it. ``sram``: (images, sram_bytes), to be read through the methods only.
    """

    def __init__(self, program: Program, images: int) -> None:
        self.images = images
        self.constants = program.data_array
        self.dram_bytes = program.dram_bytes
        self.sram_bytes = program.arch.sram_bytes
        self.maps: Bytes = np.zeros((images, max(self.dram_bytes - len(self.constants), 0)), np.uint8)
        self.sram: Bytes = np.zeros((images, self.sram_bytes), np.uint8)
        self._starts: list[int] = []
        self._pieces: list[Piece] = []

    # DRAM

    def dram_view(self, block: Block, *, write: bool = False) -> Bytes:
        """The view (images, rows, cols, chans) of a box in DRAM; stride 0 over images in the data section.

        Raises:
            EsccError: outside DRAM, across the end of the data section, or a write into the data section.
        """
        self._bounds("DRAM", block.address, block.stop, self.dram_bytes)
        edge = len(self.constants)
        if block.address >= edge:
            return strided(self.maps, block, edge)
        if write:
            raise EsccError(f"writes DRAM byte {block.address}, inside the data section (0..{edge - 1})")
        if block.stop > edge:
            raise EsccError(
                f"a map at DRAM {block.address}..{block.stop} crosses the end of the data section"
            )
        return np.broadcast_to(
            strided(self.constants[None], block), (self.images, block.rows, block.cols, block.chans)
        )

    def map_view(self, item: MapDescriptor) -> Bytes:
        """The view (images, height, width, channels) uint8 of an input or output map in DRAM."""
        block = Block(item.address, item.height, item.width, item.channels, item.row_pitch, item.pos_pitch)
        return self.dram_view(block, write=True)

    # SRAM

    def sram_view(self, block: Block, *, write: bool = False) -> Bytes:
        """The view (images, rows, cols, chans) of a box in SRAM, for reading or for writing.

        Raises:
            EsccError: outside SRAM, or a write to a box that overlaps itself.
        """
        self._bounds("SRAM", block.address, block.stop, self.sram_bytes)
        if write and not _separate(block):
            raise EsccError(
                f"writes {block.cols} positions of {block.chans} channels with pitches {block.row_pitch} and "
                f"{block.pos_pitch}: they overlap"
            )
        self._own(block.address, block.stop)
        return strided(self.sram, block)

    def load_stream(self, dram: int, sram: int, size: int) -> None:
        """Copy ``size`` bytes from DRAM to SRAM.

        Raises:
            EsccError: outside one of the memories.
        """
        self._bounds("DRAM", dram, dram + size, self.dram_bytes)
        self._bounds("SRAM", sram, sram + size, self.sram_bytes)
        self._drop(sram, sram + size)
        edge = len(self.constants)
        shared = min(size, max(edge - dram, 0))
        if shared:
            index = bisect_left(self._starts, sram)
            self._starts.insert(index, sram)
            self._pieces.insert(index, Piece(sram, sram + shared, dram))
        if shared < size:
            first = dram + shared - edge
            self.sram[:, sram + shared : sram + size] = self.maps[:, first : first + size - shared]

    def operand(self, address: int, size: int) -> tuple[Hashable, Bytes]:
        """The ``size`` bytes of an operand stream at ``address`` and a key: equal keys mean equal bytes.

        Raises:
            EsccError: outside SRAM.
            DivergentOperand: the images do not agree on the bytes.
        """
        self._bounds("SRAM", address, address + size, self.sram_bytes)
        pieces = [] if not size else self._overlapping(address, address + size)
        parts: list[tuple[int, int]] = []
        reached = address
        for piece in pieces:
            if piece.start > reached:
                break
            source, stop = piece.source + reached - piece.start, min(piece.stop, address + size)
            if parts and sum(parts[-1]) == source:
                parts[-1] = (parts[-1][0], parts[-1][1] + stop - reached)
            else:
                parts.append((source, stop - reached))
            reached = stop
        if reached == address + size:
            views = [self.constants[first : first + length] for first, length in parts]
            return tuple(parts), views[0] if len(views) == 1 else np.concatenate([*views, views[0][:0]])
        self._own(address, address + size)
        own = self.sram[:, address : address + size]
        if (own != own[:1]).any():
            raise DivergentOperand(f"the operand stream at SRAM {address} differs between images")
        copy = own[0].copy()
        return copy.tobytes(), copy

    def origin(self, address: int) -> tuple[int, int] | None:
        """Where SRAM ``address`` was loaded from: (DRAM address, bytes that follow from there), or None."""
        pieces = self._overlapping(address, address + 1)
        if not pieces:
            return None
        return pieces[0].source + address - pieces[0].start, pieces[0].stop - address

    def tail(self, address: int) -> Bytes:
        """A copy of what the first image has in SRAM from ``address`` to the end: a stream of unknown size.

        Raises:
            EsccError: outside SRAM.
        """
        self._bounds("SRAM", address, address + 1, self.sram_bytes)
        content = self.sram[0, address:].copy()
        for start, stop, source in self._overlapping(address, self.sram_bytes):
            first = max(start, address)
            content[first - address : stop - address] = self.constants[
                source + first - start : source + stop - start
            ]
        return content

    # pieces

    def _overlapping(self, start: int, stop: int) -> list[Piece]:
        """The shared pieces that overlap ``start..stop-1``, in order of address."""
        first = bisect_right(self._starts, start)
        if first and self._pieces[first - 1].stop > start:
            first -= 1
        return self._pieces[first : bisect_left(self._starts, stop)]

    def _own(self, start: int, stop: int) -> None:
        """Give every image its own copy of the shared bytes in ``start..stop-1``."""
        for piece in self._overlapping(start, stop):
            first, last = max(piece.start, start), min(piece.stop, stop)
            source = piece.source + first - piece.start
            self.sram[:, first:last] = self.constants[source : source + last - first]
        self._drop(start, stop)

    def _drop(self, start: int, stop: int) -> None:
        """Forget the shared bytes in ``start..stop-1``."""
        for piece in self._overlapping(start, stop):
            index = bisect_left(self._starts, piece.start)
            rest: list[Piece] = []
            if piece.start < start:
                rest.append(Piece(piece.start, start, piece.source))
            if piece.stop > stop:
                rest.append(Piece(stop, piece.stop, piece.source + stop - piece.start))
            self._pieces[index : index + 1] = rest
            self._starts[index : index + 1] = [item.start for item in rest]

    @staticmethod
    def _bounds(name: str, start: int, stop: int, size: int) -> None:
        if stop > size:
            raise EsccError(f"reaches {name} byte {stop - 1}, but there are only {size}")


def _separate(block: Block) -> bool:
    """Whether all bytes of the box have addresses of their own (rows in order, positions in order)."""
    row = (block.cols - 1) * block.pos_pitch + block.chans
    positions = block.cols <= 1 or block.pos_pitch >= block.chans
    return positions and (block.rows <= 1 or block.row_pitch >= row)


def as_signed(values: Bytes, signed: bool) -> npt.NDArray[Any]:
    """The same bytes as int8 or uint8."""
    return values.view(np.int8) if signed else values
