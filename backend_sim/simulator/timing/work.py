"""What a convolution instruction asks for, and what its timing answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError

Form = Literal["combine", "dense", "depthwise"]
Counts = npt.NDArray[np.int64]
Bits = npt.NDArray[np.bool_]


class TimingArch(Protocol):
    """The architecture parameters that decide time inside a convolution (`escc.isa.arch.Arch` has them)."""

    @property
    def blocks(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def macs(self) -> int: ...
    @property
    def units(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    @property
    def ring_entries(self) -> int: ...
    @property
    def fifo_positions(self) -> int: ...
    @property
    def policy(self) -> str: ...
    @property
    def look_ahead(self) -> int: ...
    @property
    def look_aside(self) -> int: ...
    @property
    def startup_cycles(self) -> int: ...


@dataclass(frozen=True)
class RowStreams:
    """The row streams of coefficients (`escc.isa.sparsemap`), in chunks of ``chunk`` channels."""

    data: npt.NDArray[np.uint8]
    chunk: int
    two_level: bool


class Ternary:
    """Ternary coefficients of a form combine.

    ``values`` (outs, chans, bases), int8 or bool: given, or read from ``streams`` when they are asked for.
    ``packed``: what an engine has made of them, kept as long as they are.
    """

    def __init__(
        self,
        values: npt.NDArray[np.int8] | Bits | Callable[[], npt.NDArray[np.int8]],
        shape: tuple[int, int, int] | None = None,
        streams: RowStreams | None = None,
    ) -> None:
        if callable(values):
            assert shape is not None
            self._read, self.shape = values, shape
        else:
            self.values = values
            self.shape = values.shape
        self.streams = streams
        self.packed: dict[Any, Any] = {}

    @cached_property
    def values(self) -> npt.NDArray[np.int8] | Bits:
        """The coefficients (outs, chans, bases)."""
        return self._read()

    @cached_property
    def mask(self) -> Bits:
        """Which coefficients are not zero."""
        return self.values != 0


@dataclass(frozen=True)
class ConvWork:
    """The geometry registers of one convolution instruction.

    ``chans`` input channels are combined into ``outs`` output channels over ``bases`` basis kernels of
    ``kernel_h`` x ``kernel_w``. The whole input map is ``height`` x ``width``; rows ``x_first`` and following
    are resident, how many the mask given to `conv_timing` says. Output rows ``y_first`` to
    ``y_first + y_rows - 1`` (rows of the whole output map) and columns 0 to ``y_cols - 1`` are computed, cut
    into ``bands`` runs of rows. A depthwise output k reads channel k // ``multiplier``; so
    ``chans == outs / multiplier`` there, and ``bases`` is not used by the forms dense and depthwise.

    Raises EsccError for a value no instruction may carry.
    """

    form: Form
    outs: int
    chans: int
    height: int
    width: int
    y_rows: int
    y_cols: int
    bases: int = 1
    kernel_h: int = 1
    kernel_w: int = 1
    stride_h: int = 1
    stride_w: int = 1
    pad_top: int = 0
    pad_left: int = 0
    dil_h: int = 1
    dil_w: int = 1
    x_first: int = 0
    y_first: int = 0
    bands: int = 1
    multiplier: int = 1

    def __post_init__(self) -> None:
        if self.form not in ("combine", "dense", "depthwise"):
            raise EsccError(f"unknown convolution form {self.form!r}")
        may_be_zero = {"pad_top", "pad_left", "x_first", "y_first", "y_rows", "y_cols"}
        for register in fields(self)[1:]:
            value, least = getattr(self, register.name), 0 if register.name in may_be_zero else 1
            if value < least:
                raise EsccError(f"convolution register {register.name} is {value}, below {least}")
        if self.form == "depthwise" and self.chans * self.multiplier != self.outs:
            raise EsccError(
                f"depthwise convolution of {self.chans} channels times {self.multiplier} gives "
                f"{self.chans * self.multiplier} outputs, not {self.outs}"
            )


@dataclass(frozen=True)
class ConvTiming:
    """Cycles, causes and event counts of one convolution instruction; every array is int64 of shape (N,).

    Causes are counted in row cycles: over all rows of all blocks they sum to ``cycles * rows * blocks``, once
    for the LC parts and once for the MAC parts.

    Of an LC part, between the start of an item and the end of its own last entry:

    - ``lc_busy``: it works on an entry (what each form costs: `escc.backend_sim.simulator.timing.load`).
    - ``lc_wait_input``: it waits for an entry that the producer delivers one cycle after the one before. A
      row works at least one cycle on an entry, so this is the one cycle before the first entry of an item.
    - ``lc_wait_row``: it waits for an entry that the producer holds back because the ring is full, that is
      because another row of the block has not read an old entry yet.
    - ``lc_wait_fifo``: its sums are done, the FIFO to its MAC part is full.
    - ``lc_idle``: everything else. Its item part is over and another row of the item still works; it has no
      output channel; another block has longer; the array starts up.

    Of a MAC part: ``mac_busy``; ``mac_wait_lc``, the time it could start before the FIFO gives it something,
    from the start of the item to its own last push; ``mac_idle``, everything else.

    Events, for the energy model:

    - ``matches``: activation and ternary coefficient both non-zero: one 8-bit add each (form combine).
    - ``dilution_words``: coefficient words (one per output, basis, position and chunk) that went through the
      dilution network (combine).
    - ``issue_cycles``: dense vectors issued to an adder tree (combine).
    - ``products``: multiplications of a Z (or activation) that is not blank with a tap that lands on an
      output.
    - ``fifo_pushes`` and ``fifo_values``: pushes, and the non-blank values in them.
    - ``psum_updates``: partial sums read, added to and written back. Values that a MAC part takes in the same
      cycle belong to the same position, so their products for one output are added before the update.
    - ``ring_entries``, ``ring_bytes_written``: entries the producer wrote, mask and non-zero bytes;
      ``ring_bytes_read``: the same bytes, once for every row with an output channel.
    """

    cycles: Counts
    lc_busy: Counts
    lc_wait_input: Counts
    lc_wait_row: Counts
    lc_wait_fifo: Counts
    lc_idle: Counts
    mac_busy: Counts
    mac_wait_lc: Counts
    mac_idle: Counts
    matches: Counts
    dilution_words: Counts
    issue_cycles: Counts
    products: Counts
    fifo_pushes: Counts
    fifo_values: Counts
    psum_updates: Counts
    ring_entries: Counts
    ring_bytes_written: Counts
    ring_bytes_read: Counts

    @property
    def mac_cycles(self) -> Counts:
        """Cycles in which a MAC part multiplies; the same as ``mac_busy``."""
        return self.mac_busy

    @property
    def lc_causes(self) -> dict[str, Counts]:
        """The causes of the LC parts by name; they sum to ``cycles * rows * blocks``."""
        return {
            "busy": self.lc_busy,
            "wait_input": self.lc_wait_input,
            "wait_row": self.lc_wait_row,
            "wait_fifo": self.lc_wait_fifo,
            "idle": self.lc_idle,
        }

    @property
    def mac_causes(self) -> dict[str, Counts]:
        """The causes of the MAC parts by name; they sum to ``cycles * rows * blocks``."""
        return {"busy": self.mac_busy, "wait_lc": self.mac_wait_lc, "idle": self.mac_idle}


def joined(parts: list[ConvTiming]) -> ConvTiming:
    """The timings of consecutive runs of images as one."""
    if len(parts) == 1:
        return parts[0]
    none = np.zeros(0, dtype=np.int64)
    names = [figure.name for figure in fields(ConvTiming)]
    return ConvTiming(**{name: np.concatenate([none, *(getattr(p, name) for p in parts)]) for name in names})
