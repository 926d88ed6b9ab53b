"""The data section of a program: operand streams, aligned, equal ones stored once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from escc.backend_sim.lowering.allocator import align
from escc.backend_sim.lowering.assignment import Assignment
from escc.backend_sim.lowering.layers import MachineLayer, Stream
from escc.backend_sim.lowering.tiling import channel_tiles


@dataclass
class DataSection:
    """Collects byte strings and gives each its DRAM address."""

    pieces: list[NDArray[np.uint8]] = field(default_factory=list[NDArray[np.uint8]])
    size: int = 0
    _known: dict[bytes, int] = field(default_factory=dict[bytes, int])

    def add(self, content: NDArray[np.uint8]) -> int:
        """The address of ``content``, stored now or before."""
        key = content.tobytes()
        address = self._known.get(key)
        if address is None:
            address = self._known[key] = self.size
            padding = align(len(key)) - len(key)
            self.pieces.append(content)
            if padding:
                self.pieces.append(np.zeros(padding, np.uint8))
            self.size += len(key) + padding
        return address

    def array(self) -> NDArray[np.uint8]:
        """All bytes."""
        return np.concatenate(self.pieces) if self.pieces else np.zeros(0, np.uint8)


@dataclass(frozen=True)
class Bundle:
    """Streams that one load brings on chip: DRAM address, size, and the offset of each stream.

    ``first``: the output channel the per-channel streams start at.
    """

    address: int
    size: int
    first: int
    offsets: dict[str, int]


@dataclass
class LayerData:
    """The bundles of one layer: per tile of output channels, and the shared one when channels are cut."""

    tiles: dict[tuple[int, int], Bundle]
    shared: Bundle | None
    entries: list[dict[str, int | str]]

    @staticmethod
    def build(assignment: Assignment, section: DataSection) -> LayerData:
        """Encode the streams of a layer into the data section."""
        layer = assignment.layer
        entries: list[dict[str, int | str]] = []

        def bundle(streams: list[Stream], first: int, stop: int) -> Bundle | None:
            if not streams:
                return None
            contents = [stream.encode(first, stop) for stream in streams]
            ends = np.cumsum([content.size for content in contents]).tolist()
            address = section.add(np.concatenate(contents))
            offsets: dict[str, int] = {}
            for stream, content, end in zip(streams, contents, ends, strict=True):
                offsets[stream.register] = end - content.size
                place = {"address": address + end - content.size, "bytes": content.size}
                entries.append({"kind": stream.kind, **place, "first": first, "outputs": stop - first})
            return Bundle(address, ends[-1], first, offsets)

        cut = assignment.cut_channels
        streams = layer.channel_streams() if cut else list(layer.streams)
        tiles = {
            tile: made
            for tile in channel_tiles(layer, assignment.outs)
            if (made := bundle(streams, *tile)) is not None
        }
        shared = bundle(layer.shared_streams(), 0, layer.outs) if cut else None
        return LayerData(tiles, shared, entries)


def stream_bytes(layer: MachineLayer) -> dict[str, int]:
    """Bytes of each kind of stream of a layer."""
    return {stream.kind: stream.size for stream in layer.streams}
