"""The native engine: the timing of a convolution by the library in ``native/``, where it was built.

The library has a plain C interface with no Python in it, so it is loaded with ctypes and serves every
version. It computes exactly what `conv_timing` defines, on bit planes of the coefficients that are packed
once (`Ternary.packed`) and on the activations where they lie.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator import native
from escc.backend_sim.simulator.timing.conv_timing import Convolution, check_shapes
from escc.backend_sim.simulator.timing.geometry import plan
from escc.backend_sim.simulator.timing.native_maps import FILL, FINISH, NativeMaps
from escc.backend_sim.simulator.timing.work import ConvTiming, ConvWork, Ternary, TimingArch
from escc.errors import EsccError
from escc.isa.sparsemap import TWO_LEVEL_BASES, decode_row_streams, row_offsets, smallest_row_streams

LIBRARY = Path(native.__file__).with_name("kernel.so")
FORMS = {"combine": 0, "dense": 1, "depthwise": 2}
POLICIES = {"none": 0, "window": 1, "gather": 2}
BAD_PARAMETER, MISSING_ROW, NO_MEMORY = 1, 2, 3
"""What the library answers besides 0; abi.h."""

_ARCH = (
    "blocks", "rows", "macs", "units", "lanes", "chunk", "ring_entries", "fifo_positions", "look_ahead",
    "look_aside", "startup_cycles",
)  # fmt: skip
_WORK = tuple(field.name for field in fields(ConvWork) if field.name != "form")
_OTHERS = ("form", "policy", "images", "x_rows", "step_image", "step_row", "step_pos", "wide")


class MissingLibraryError(Exception):
    """Why there is no native engine."""


@dataclass(frozen=True)
class Planes:
    """Coefficients as the library takes them, for blocks of ``rows`` rows.

    ``words`` (chans + 1, words) uint64: abi.h says which bit is which; ``weights`` (chans,) int32: non-zeros
    of each channel.
    """

    rows: int
    words: npt.NDArray[np.uint64]
    weights: npt.NDArray[np.int32]


@cache
def library() -> ctypes.CDLL:
    """The library, its functions declared.

    Raises:
        MissingLibraryError: there is none, or it cannot be used.
    """
    if not LIBRARY.exists():
        raise MissingLibraryError("it was not built: escc was installed without a C++ compiler")
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        for name in ("escc_fields", "escc_figures", "escc_variant"):
            getattr(loaded, name).restype = ctypes.c_char_p
        loaded.escc_variant.argtypes = [ctypes.c_int64]
        loaded.escc_plane_words.argtypes = [ctypes.c_int64] * 2
        loaded.escc_plane_words.restype = ctypes.c_int64
        loaded.escc_pack_planes.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 4, *[ctypes.c_void_p] * 2]
        loaded.escc_conv_timing.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 5]
        loaded.escc_conv_timings.argtypes = [*[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 7]
        loaded.escc_conv_timings.restype = None
        loaded.escc_reorder.argtypes = [*[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 2]
        loaded.escc_timeline.argtypes = [
            ctypes.c_int64,
            *[ctypes.c_void_p] * 4,
            *[ctypes.c_int64] * 2,
            *[ctypes.c_void_p] * 2,
        ]
        loaded.escc_timeline.restype = ctypes.c_int64
        loaded.escc_stream_bytes.argtypes = [ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 5]
        loaded.escc_stream_bytes.restype = ctypes.c_int64
        stream = [ctypes.c_void_p, *[ctypes.c_int64] * 5]
        loaded.escc_decode_streams.argtypes = [*stream, *[ctypes.c_void_p] * 2]
        loaded.escc_recompose_streams.argtypes = [ctypes.c_int64, *stream, *[ctypes.c_void_p] * 3]
        loaded.escc_pack_streams.argtypes = [ctypes.c_int64, *stream, ctypes.c_int64, *[ctypes.c_void_p] * 2]
        loaded.escc_flatten_streams.argtypes = [*stream, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        loaded.escc_count_signs.argtypes = [ctypes.c_int64, *stream, *[ctypes.c_void_p] * 2]
        for name in ("escc_finish_fields", "escc_fill_fields"):
            getattr(loaded, name).restype = ctypes.c_char_p
        for name in ("escc_finish", "escc_fill"):
            getattr(loaded, name).argtypes = [ctypes.c_int64, ctypes.c_void_p]
        loaded.escc_count_nonzeros.argtypes = [ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 5]
        loaded.escc_count_nonzeros.restype = ctypes.c_int64
        maps = _names(loaded.escc_finish_fields()), _names(loaded.escc_fill_fields())
        parameters, figures = _names(loaded.escc_fields()), _names(loaded.escc_figures())
    except (OSError, AttributeError) as error:
        raise MissingLibraryError(f"{LIBRARY.name} cannot be loaded: {error}") from None
    known = {*_ARCH, *_WORK, *_OTHERS}, [f.name for f in fields(ConvTiming)], ([*FINISH], [*FILL])
    if (set(parameters), figures, maps) != known:
        raise MissingLibraryError(f"{LIBRARY.name} was built from other sources than these")
    return loaded


def _names(text: bytes) -> list[str]:
    return text.decode().rstrip(",").split(",")


@cache
def variants() -> tuple[str, ...]:
    """The instruction sets of the library that this processor can run, the best first.

    Raises:
        MissingLibraryError: there is no library.
    """
    found: list[str] = []
    while name := library().escc_variant(len(found)):
        found.append(name.decode())
    return tuple(found)


@cache
def parameter_names() -> tuple[str, ...]:
    """Names of the parameters in the library's order."""
    return tuple(_names(library().escc_fields()))


def _address(array: npt.NDArray[np.generic]) -> int:
    return array.__array_interface__["data"][0]


def program_cycles(
    queue: npt.NDArray[np.int64],
    executed: npt.NDArray[np.int64],
    partner: npt.NDArray[np.int64],
    durations: npt.NDArray[np.int64],
    depth: int,
    words: int,
) -> int:
    """Cycles of a program of one image, by `escc.backend_sim.simulator.timeline`'s rules.

    ``queue`` 0 to 2 and words ``executed`` before each step; ``partner``: -1 for work of ``durations``
    cycles, of a signal its own step, of a wait the step of its signal.
    """
    count = len(queue)
    if not all(len(array) == count for array in (executed, partner, durations)) or depth < 1:
        raise AssertionError("the steps of a program differ in number, or a queue holds none")
    begin, started = np.empty(count, np.int64), np.empty(3 * count, np.int64)
    given = [np.ascontiguousarray(array, np.int64) for array in (queue, executed, partner, durations)]
    return library().escc_timeline(
        count, *map(_address, given), depth, words, _address(begin), _address(started)
    )


class NativeEngine:
    """The library, held to one instruction set.

    ``wide``: count in 64 bits even where 32 are enough, for tests.
    """

    def __init__(self, variant: str | None = None, *, wide: bool = False) -> None:
        names = variants()
        chosen = names[0] if variant is None else variant
        if chosen not in names:
            raise MissingLibraryError(f"this processor runs {', '.join(names)}, not {chosen}")
        self.name = f"native-{chosen}"
        self._variant = names.index(chosen)
        self._wide = wide
        self.maps = NativeMaps(library(), self._variant)

    def planes(self, ternary: Ternary, rows: int) -> Planes:
        """The coefficients packed for blocks of ``rows`` rows; packed once and kept."""
        found = ternary.packed.get(rows)
        if found is None:
            outs, chans, bases = ternary.shape
            words = np.empty((chans + 1, library().escc_plane_words(outs, bases)), np.uint64)
            weights = np.empty(chans, np.int32)
            if ternary.streams is None:
                values = np.ascontiguousarray(ternary.values).view(np.int8)
                status = library().escc_pack_planes(
                    _address(values), outs, chans, bases, rows, _address(words), _address(weights)
                )
            else:
                data, chunk, two_level = vars(ternary.streams).values()
                flat, _ = self._flat(data, outs, chans, bases, chunk, two_level=two_level)
                status = library().escc_pack_streams(
                    self._variant,
                    _address(flat),
                    flat.size,
                    outs,
                    chans,
                    bases,
                    chunk,
                    rows,
                    _address(words),
                    _address(weights),
                )
                if status == BAD_PARAMETER:
                    decode_row_streams(data, outs, chans, bases, chunk, two_level=two_level)
            raise_status(status, None)
            found = ternary.packed[rows] = Planes(rows, words, weights)
        assert isinstance(found, Planes)
        return found

    def conv_timing(
        self,
        arch: TimingArch,
        work: ConvWork,
        x: npt.NDArray[np.uint8] | npt.NDArray[np.bool_],
        ternary: Ternary | None = None,
    ) -> ConvTiming:
        """`conv_timing` of ``x`` (N, rows, width, chans), non-zero where an activation is.

        Raises:
            EsccError: what `conv_timing` refuses, and sizes beyond the library's (2^24).
        """
        check_shapes(work, x.shape, None if ternary is None else ternary.shape)
        if x.dtype.itemsize != 1 or (x.shape[3] > 1 and x.strides[3] != 1) or min(x.strides) < 0:
            x = np.ascontiguousarray(x != 0)
        images, rows = x.shape[:2]
        values: dict[str, int] = vars(work) | {name: getattr(arch, name) for name in _ARCH}
        values |= {
            "form": FORMS[work.form],
            "policy": POLICIES[arch.policy],
            "images": images,
            "x_rows": rows,
        }
        values |= dict(zip(("step_image", "step_row", "step_pos"), x.strides, strict=False))
        values["wide"] = self._wide
        parameters = np.array([values[name] for name in parameter_names()], np.int64)
        planes = None if ternary is None else self.planes(ternary, arch.rows)
        figures = np.zeros((images, len(fields(ConvTiming))), np.int64)
        if images:
            status = library().escc_conv_timing(
                self._variant,
                _address(parameters),
                _address(x),
                None if planes is None else _address(planes.words),
                None if planes is None else _address(planes.weights),
                _address(figures),
            )
            if status == MISSING_ROW:
                plan(work, rows)
            raise_status(status, work)
        return ConvTiming(*np.ascontiguousarray(figures.T))

    def conv_timings(self, arch: TimingArch, convolutions: Sequence[Convolution]) -> list[ConvTiming]:
        """`conv_timing` of each of ``convolutions``.

        Raises:
            EsccError: see there.
        """
        return [self.conv_timing(arch, *item) for item in convolutions]

    def nonzeros(self, arch: TimingArch, ternary: Ternary) -> int:
        """How many coefficients are not zero."""
        return int(self.planes(ternary, arch.rows).weights.sum(dtype=np.int64))

    def time_all(
        self,
        parameters: npt.NDArray[np.int64],
        x: npt.NDArray[np.uintp],
        planes: npt.NDArray[np.uintp],
        weights: npt.NDArray[np.uintp],
        kept: npt.NDArray[np.uintp],
        figures: npt.NDArray[np.int64],
        status: npt.NDArray[np.int64],
    ) -> None:
        """``escc_conv_timings`` of api.cpp; all arrays are contiguous, addresses are valid or 0."""
        library().escc_conv_timings(
            self._variant,
            len(parameters),
            *[_address(array) for array in (parameters, x, planes, weights, kept, figures, status)],
        )

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
        data, size = self._flat(buffer, outs, chans, bases, chunk, two_level=two_level)
        ternary = np.zeros((outs, chans, bases), np.int8)
        used = np.zeros(1, np.int64)
        status = library().escc_decode_streams(
            _address(data), data.size, outs, chans, bases, chunk, _address(ternary), _address(used)
        )
        if status:
            return decode_row_streams(buffer, outs, chans, bases, chunk, two_level=two_level)
        return ternary, int(used[0]) if size is None else size

    def stream_bytes(
        self, buffer: npt.NDArray[np.uint8], outs: int, chans: int, bases: int, *, two_level: bool = False
    ) -> int:
        """Bytes of the row streams at the start of a buffer: the last of `row_offsets`.

        Raises:
            EsccError: see there.
        """
        data = np.ascontiguousarray(buffer)
        size = library().escc_stream_bytes(
            self._variant, _address(data), data.size, outs, chans, bases, int(two_level)
        )
        # the definition finds the words for what is wrong
        return size if size >= 0 else row_offsets(data, outs, chans, bases, two_level=two_level)[-1]

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
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """See `escc.backend_sim.simulator.timing.engines.Codec`.

        Raises:
            EsccError: see `decode`.
        """
        taps = np.ascontiguousarray(kernels, np.int8)
        if taps.shape != (bases,):
            raise AssertionError(f"{bases} bases, but kernels of shape {taps.shape}")
        data, _ = self._flat(buffer, outs, chans, bases, chunk, two_level=two_level)
        weights, sizes = np.zeros((outs, chans), np.float32), np.empty(outs, np.int64)
        status = library().escc_recompose_streams(
            self._variant,
            _address(data),
            data.size,
            outs,
            chans,
            bases,
            chunk,
            _address(taps),
            _address(weights),
            _address(sizes),
        )
        if status:
            decode_row_streams(buffer, outs, chans, bases, chunk, two_level=two_level)
        raise_status(status, None)
        return weights, sizes

    def signs(
        self,
        buffer: npt.NDArray[np.uint8],
        outs: int,
        chans: int,
        bases: int,
        chunk: int,
        *,
        two_level: bool = False,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See `escc.backend_sim.simulator.timing.engines.Codec`.

        Raises:
            EsccError: see `decode`.
        """
        data, _ = self._flat(buffer, outs, chans, bases, chunk, two_level=two_level)
        positive, negative = np.zeros((2, outs, bases), np.int64)
        status = library().escc_count_signs(
            self._variant,
            _address(data),
            data.size,
            outs,
            chans,
            bases,
            chunk,
            _address(positive),
            _address(negative),
        )
        if status:
            decode_row_streams(buffer, outs, chans, bases, chunk, two_level=two_level)
        raise_status(status, None)
        return positive, negative

    def _flat(
        self,
        buffer: npt.NDArray[np.uint8],
        outs: int,
        chans: int,
        bases: int,
        chunk: int,
        *,
        two_level: bool,
    ) -> tuple[npt.NDArray[np.uint8], int | None]:
        """The row streams with plain masks; and the bytes of two-level ones.

        Raises:
            EsccError: see `decode`.
        """
        data = np.ascontiguousarray(buffer)
        # the definition finds the words for sizes that cannot be
        impossible = min(outs, chans, bases, chunk) < 1 or (two_level and bases > TWO_LEVEL_BASES)
        if impossible or smallest_row_streams(outs, chans, bases, two_level=two_level) > data.size:
            decode_row_streams(data, outs, chans, bases, chunk, two_level=two_level)
        if not two_level:
            return data, None
        # a row has at most as many sign bits as mask bits of the second level, and those are in the data
        room = outs * ((chans * bases + 7) // 8 + 1) + data.size
        flat, used = np.zeros(room, np.uint8), np.zeros(2, np.int64)
        status = library().escc_flatten_streams(
            _address(data), data.size, outs, chans, bases, chunk, _address(flat), room, _address(used)
        )
        if status:
            decode_row_streams(data, outs, chans, bases, chunk, two_level=True)
        raise_status(status, None)
        return flat[: int(used[1])], int(used[0])


def raise_status(status: int, work: ConvWork | None) -> None:
    """Raise what the library means by a status other than 0.

    Raises:
        EsccError: no memory, or a size or parameter beyond its limits.
    """
    if status == NO_MEMORY:
        raise EsccError("not enough memory to time a convolution", hint="--engine numpy needs less at a time")
    if status:
        raise EsccError(
            f"the native engine refuses {work}: a size or a parameter is too large (status {status})",
            hint="--engine numpy has no limits",
        )
