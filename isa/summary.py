"""What is in a program, in numbers: instructions and bytes per layer, as the sequencer dispatches them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from escc.isa.container import Section, read_sections
from escc.isa.instructions import Queue
from escc.isa.program import Program
from escc.isa.registers import DmaRegisters
from escc.isa.sequence import Dispatch, expand


@dataclass
class LayerSummary:
    """Dispatched instructions and DMA bytes of a layer.

    ``stream_bytes``: operand streams loaded (repeated loads count again). ``map_bytes``: values of the map
    tiles moved, before SparseMap encoding.
    """

    name: str
    op: str = ""
    source: str = ""
    instructions: dict[str, int] = field(default_factory=lambda: {queue.text: 0 for queue in Queue})
    tokens: int = 0
    stream_bytes: int = 0
    map_bytes: int = 0


@dataclass
class Summary:
    """A program in numbers. ``executed_words`` counts what the sequencer runs, loops unrolled."""

    words: int
    executed_words: int
    data_bytes: int
    dram_bytes: int
    layers: list[LayerSummary]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def summarise(program: Program) -> Summary:
    """Count instructions and bytes per layer, in order of first dispatch.

    Raises:
        EsccError: the code cannot be run (see `escc.isa.sequence.expand`).
    """
    layers: dict[int, LayerSummary] = {}
    known = (program.debug or {}).get("layers", [])
    steps = expand(program.code)
    while True:
        try:
            dispatch = next(steps)
        except StopIteration as end:
            executed = int(end.value)
            break
        number = dispatch.layer
        if number not in layers:
            facts = known[number] if 0 <= number < len(known) else {}
            name = str(facts.get("name", f"layer {number}" if number >= 0 else "(before any layer)"))
            layers[number] = LayerSummary(name, str(facts.get("op", "")), str(facts.get("source", "")))
        _count(layers[number], dispatch)
    return Summary(
        len(program.code), executed, program.data_array.size, program.dram_bytes, list(layers.values())
    )


def sections(content: bytes, where: str) -> list[Section]:
    """The sections of a program file in file order.

    Raises:
        EsccError: as `escc.isa.program.Program.from_bytes`, as far as the framing goes.
    """
    return sorted(read_sections(memoryview(content), where)[1].values(), key=lambda section: section.offset)


def _count(layer: LayerSummary, dispatch: Dispatch) -> None:
    registers = dispatch.registers
    if registers is None:
        layer.tokens += 1
        return
    layer.instructions[dispatch.queue.text] += 1
    if isinstance(registers, DmaRegisters):
        if dispatch.instruction.mnemonic == "load_stream":
            layer.stream_bytes += registers.size
        else:
            layer.map_bytes += registers.rows * registers.cols * registers.chans
