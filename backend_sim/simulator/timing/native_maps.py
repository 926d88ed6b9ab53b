"""The functional path's inner loops in the native library: bytes to floats, sums to bytes, counting.

Each does what numpy does elsewhere in several passes, to the same bits: `escc.backend_sim.simulator.windows`,
`escc.backend_sim.simulator.numerics` and `numpy.count_nonzero` define them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Doubles = npt.NDArray[np.float64]

FINISH = (
    "images", "rows", "cols", "outs", "wide", "sums_image", "sums_row", "out_image", "out_row", "out_col",
    "residual_image", "residual_row", "residual_col",
)  # fmt: skip
FILL = (
    "images", "rows", "cols", "chans", "top", "bottom", "left", "right", "x_image", "x_row", "x_col",
    "is_signed",
)  # fmt: skip


class _Finish(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in FINISH),
        ("low", ctypes.c_double),
        ("high", ctypes.c_double),
        *(
            (name, ctypes.c_void_p)
            for name in ("sums", "out", "factor", "offset", "residual", "residual_table", "table")
        ),
    )


class _Fill(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in FILL),
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


def _address(array: npt.NDArray[Any]) -> int:
    return array.__array_interface__["data"][0]


class NativeMaps:
    """The functions of ``library`` in instruction set number ``variant``."""

    def __init__(self, library: ctypes.CDLL, variant: int) -> None:
        self._library, self._variant = library, variant

    def finish(
        self,
        sums: npt.NDArray[np.floating[Any]],
        factor: Doubles,
        offset: Doubles,
        limits: tuple[float, float],
        residual: tuple[Bytes, Doubles] | None,
        table: Bytes | None,
        out: npt.NDArray[np.int8] | Bytes,
    ) -> None:
        """Requantise ``sums`` (n, rows, cols, outs), float32 or float64, the last two axes contiguous.

        ``out`` and the bytes of ``residual`` have the same shape and outputs side by side; ``factor`` and
        ``offset`` (outs,), the table of ``residual`` (256,), its numbers below 2^29, ``table`` (256,).
        """
        images, rows, cols, outs = sums.shape
        item = sums.itemsize
        addend, scaled = (None, None) if residual is None else residual
        # numpy's strides of an axis of one are anything
        assert cols == 1 or sums.strides[2] == outs * item
        assert outs == 1 or sums.strides[3] == item
        assert outs == 1 or (out.strides[3] == 1 and (addend is None or addend.strides[3] == 1))
        assert out.shape == sums.shape
        assert addend is None or addend.shape == sums.shape
        work = _Finish(
            images,
            rows,
            cols,
            outs,
            item == 8,
            sums.strides[0] // item,
            sums.strides[1] // item,
            *out.strides[:3],
            *((0, 0, 0) if addend is None else addend.strides[:3]),
            *limits,
            _address(sums),
            _address(out),
            _address(factor),
            _address(offset),
            None if addend is None else _address(addend),
            None if scaled is None else _address(scaled),
            None if table is None else _address(table),
        )
        self._library.escc_finish(self._variant, ctypes.byref(work))

    def fill(
        self,
        x: npt.NDArray[np.int8] | Bytes,
        inside: tuple[int, int, int, int],
        out: npt.NDArray[np.float32],
    ) -> None:
        """Rows top..bottom-1 and columns left..right-1 of ``out`` (n, rows, cols, chans), contiguous, from
        ``x`` (n, bottom - top, right - left, chans) with channels side by side; zero elsewhere.

        ``inside``: top, bottom, left, right.
        """
        images, rows, cols, chans = out.shape
        top, bottom, left, right = inside
        assert out.flags.c_contiguous
        assert chans == 1 or x.strides[3] == 1
        assert x.shape == (images, bottom - top, right - left, chans)
        work = _Fill(
            images,
            rows,
            cols,
            chans,
            *inside,
            *x.strides[:3],
            x.dtype == np.int8,
            _address(x),
            _address(out),
        )
        self._library.escc_fill(self._variant, ctypes.byref(work))

    def count_nonzeros(self, image: npt.NDArray[np.uint8] | npt.NDArray[np.bool_]) -> int:
        """Bytes of ``image`` (rows, cols, chans) that are not zero; channels lie side by side."""
        rows, cols, chans = image.shape
        assert chans < 2 or image.strides[2] == 1
        return self._library.escc_count_nonzeros(
            self._variant, _address(image), rows, cols, chans, image.strides[0], image.strides[1]
        )
