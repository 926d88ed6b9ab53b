"""The engines that time a convolution: numpy, always there, and the native one where it was built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.timing.conv_timing import Convolution, conv_timings
from escc.backend_sim.simulator.timing.load import Order, weights_of_channels
from escc.backend_sim.simulator.timing.native import MissingLibraryError, NativeEngine
from escc.backend_sim.simulator.timing.native_maps import NativeMaps
from escc.backend_sim.simulator.timing.work import ConvTiming, ConvWork, Ternary, TimingArch
from escc.errors import EsccError
from escc.isa.sparsemap import decode_row_streams, row_offsets

ENGINES = ("auto", "native", "numpy")


class Codec(Protocol):
    """Reads coefficient streams; all give the same."""

    def stream_bytes(
        self, buffer: npt.NDArray[np.uint8], outs: int, chans: int, bases: int, *, two_level: bool = False
    ) -> int:
        """Bytes of the row streams at the start of a buffer: the last of `escc.isa.sparsemap.row_offsets`.

        Raises:
            EsccError: see there.
        """
        ...

    def decode(
        self,
        buffer: npt.NDArray[np.uint8],
        outs: int,
        chans: int,
        bases: int,
        chunk: int,
        *,
        two_level: bool = False,
    ) -> tuple[npt.NDArray[np.int8], int]:
        """`escc.isa.sparsemap.decode_row_streams`.

        Raises:
            EsccError: see there.
        """
        ...

    def recompose(
        self,
        buffer: npt.NDArray[np.uint8],
        outs: int,
        chans: int,
        bases: int,
        chunk: int,
        kernels: npt.NDArray[np.int8],
        *,
        two_level: bool = False,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None:
        """Weights that coefficients stand for with ``kernels`` (bases,) of one tap, straight from the stream.

        Returns:
            (outs, chans), integers, and the sum of their sizes for each output; None if no way is quicker
            than that over the decoded coefficients.

        Raises:
            EsccError: see `decode`.
        """
        ...

    def signs(
        self,
        buffer: npt.NDArray[np.uint8],
        outs: int,
        chans: int,
        bases: int,
        chunk: int,
        *,
        two_level: bool = False,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
        """How many coefficients of every output and basis are 1, and how many are -1.

        Returns:
            (outs, bases) each; None if no way is quicker than over the decoded coefficients.

        Raises:
            EsccError: see `decode`.
        """
        ...


class Engine(Codec, Protocol):
    """Times convolutions and reads coefficients; all engines give the same.

    ``maps``: what does the inner loops of the functional path; None: numpy.
    """

    @property
    def maps(self) -> NativeMaps | None: ...

    @property
    def name(self) -> str:
        """What results are labelled with: ``numpy``, ``native-avx512``, ..."""
        ...

    def conv_timing(
        self,
        arch: TimingArch,
        work: ConvWork,
        x: npt.NDArray[np.uint8] | npt.NDArray[np.bool_],
        ternary: Ternary | None = None,
    ) -> ConvTiming:
        """`conv_timing` of ``x`` (N, rows, width, chans), non-zero where an activation is.

        Raises:
            EsccError: see there.
        """
        ...

    def conv_timings(self, arch: TimingArch, convolutions: Sequence[Convolution]) -> list[ConvTiming]:
        """`conv_timing` of each of ``convolutions``.

        Raises:
            EsccError: what one of them raises.
        """
        ...

    def nonzeros(self, arch: TimingArch, ternary: Ternary) -> int:
        """How many coefficients are not zero."""
        ...


class NumpyEngine:
    """The definition itself."""

    name = "numpy"
    maps: NativeMaps | None = None

    def conv_timing(
        self,
        arch: TimingArch,
        work: ConvWork,
        x: npt.NDArray[np.uint8] | npt.NDArray[np.bool_],
        ternary: Ternary | None = None,
    ) -> ConvTiming:
        """See `Engine`."""
        return self.conv_timings(arch, [Convolution(work, x, ternary)])[0]

    def conv_timings(self, arch: TimingArch, convolutions: Sequence[Convolution]) -> list[ConvTiming]:
        """See `Engine`."""
        return conv_timings(arch, convolutions)

    def nonzeros(self, arch: TimingArch, ternary: Ternary) -> int:
        """See `Engine`."""
        return int(weights_of_channels(ternary, Order(ternary.shape[0], arch.rows)).sum())

    def decode(
        self,
        buffer: npt.NDArray[np.uint8],
        outs: int,
        chans: int,
        bases: int,
        chunk: int,
        *,
        two_level: bool = False,
    ) -> tuple[npt.NDArray[np.int8], int]:
        """See `Codec`."""
        return decode_row_streams(buffer, outs, chans, bases, chunk, two_level=two_level)

    def stream_bytes(
        self, buffer: npt.NDArray[np.uint8], outs: int, chans: int, bases: int, *, two_level: bool = False
    ) -> int:
        """See `Codec`."""
        return row_offsets(buffer, outs, chans, bases, two_level=two_level)[-1]

    def recompose(
        self,
        buffer: npt.NDArray[np.uint8],
        outs: int,
        chans: int,
        bases: int,
        chunk: int,
        kernels: npt.NDArray[np.int8],
        *,
        two_level: bool = False,
    ) -> None:
        """See `Codec`."""

    def signs(
        self,
        buffer: npt.NDArray[np.uint8],
        outs: int,
        chans: int,
        bases: int,
        chunk: int,
        *,
        two_level: bool = False,
    ) -> None:
        """See `Codec`."""


def make_engine(name: str = "auto") -> Engine:
    """The engine of a name: ``numpy``; ``native``, the best instruction set of this processor, or one by name
    (``native-avx2``); ``auto``, native where it is there and numpy otherwise.

    Raises:
        EsccError: no such engine, or the native one is asked for and is not there.
    """
    if name == "numpy":
        return NumpyEngine()
    kind, _, variant = name.partition("-")
    if name not in ENGINES and not (kind == "native" and variant):
        raise EsccError(f"unknown engine {name!r}", hint=f"engines: {', '.join(ENGINES)}")
    try:
        return NativeEngine(variant or None)
    except MissingLibraryError as error:
        if name == "auto":
            return NumpyEngine()
        raise EsccError(
            f"the native engine is not there: {error}",
            hint="install escc again where g++ or clang++ is, or take --engine numpy",
        ) from None
