"""Exact ternary coding by the library in ``native/``, where it was built: the same codes, five times faster.

The library has a plain C interface with no Python in it: it is loaded with ctypes and serves every version.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.passes.math import native

Array = NDArray[Any]
Codes = NDArray[np.int8]
Single = NDArray[np.float32]

LIBRARY = Path(native.__file__).with_name("coding.so")
_LANES = 16
"""Most kernels side by side: what scratch memory is sized and aligned for."""


class _Job(ctypes.Structure):
    """``Job`` of coding.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "bases", "codes")),
        *(
            (name, ctypes.c_void_p)
            for name in ("beta", "penalty", "table", "prefix", "half_energy", "count", "scratch", "found")
        ),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The library, None where it was not built or cannot be loaded."""
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        loaded.escc_encode.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        loaded.escc_encode.restype = ctypes.c_int64
    except (OSError, AttributeError):
        return None
    return loaded


def encode(
    beta: Array, penalty: Array, table: Codes, half_energy: Single, *, variant: int = 0
) -> Codes | None:
    """The best code of every kernel; None without the library, or without this variant on this processor.

    Args:
        beta: (K, C, d) projections.
        penalty: (K,) cost of a non-zero.
        table: int8 (J, d) codes to choose from, their negatives as well; ties go to the first.
        half_energy: float32 (J,) c G c / 2 of each.
        variant: instruction set, 0 for the best one.

    Returns:
        int8 (K, C, d).
    """
    loaded = library()
    if loaded is None:
        return None
    outputs, inputs, bases = beta.shape
    digits = np.where(table < 0, 2, table).astype(np.int32)
    prefix = np.ascontiguousarray(digits[:, :-1] @ 3 ** np.arange(bases - 2, -1, -1, dtype=np.int32))
    arrays: dict[str, Array] = {
        "beta": np.ascontiguousarray(beta, dtype=np.float32),
        "penalty": np.ascontiguousarray(penalty, dtype=np.float32),
        "table": np.ascontiguousarray(table),
        "prefix": prefix.astype(np.int32),
        "half_energy": np.ascontiguousarray(half_energy, dtype=np.float32),
        "count": np.count_nonzero(table, axis=1).astype(np.float32),
        "scratch": _aligned((3 ** (bases - 1) + 3) * _LANES),
        "found": np.empty(beta.shape, dtype=np.int8),
    }
    job = _Job(outputs, inputs, bases, len(table), *(array.ctypes.data for array in arrays.values()))
    return arrays["found"] if loaded.escc_encode(ctypes.byref(job), variant) == 0 else None


def _aligned(size: int) -> Single:
    memory = np.empty(size + _LANES, dtype=np.float32)
    start = -memory.ctypes.data // memory.itemsize % _LANES
    return memory[start : start + size]
