"""Pickles of dictionaries with numbers, texts and byte arrays in them, read without calling anything.

Every class or function a pickle names becomes a :class:`Stand`, which only records what the file wants done
with it: numpy's arrays are then rebuilt here from what was recorded. A pickle that names anything beside the
few things numpy needs for an array is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError

ARRAY_PARTS = {
    (f"numpy.{core}{module}", name)
    for core, module, name in (
        ("core.", "multiarray", "_reconstruct"),
        ("_core.", "multiarray", "_reconstruct"),
        ("core.", "numeric", "_frombuffer"),
        ("_core.", "numeric", "_frombuffer"),
    )
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
"""What pickled byte arrays are made of, in numpy 1 and 2 and every protocol."""
MAX_MEMO = 1 << 20
MAX_DIMENSIONS = 4
LATIN = ("latin1", b"latin1")
BYTE_TYPES = ("u1", "|u1", "uint8")


class Stand:
    """Stands for something a pickle names, or for the outcome of calling it."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.args = args
        self.state: Any = None

    def __call__(self, *args: Any) -> Stand:
        return Stand(self.name, args)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, where: str) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._where = where

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in ARRAY_PARTS:
            raise EsccError(
                f"refused: loading this file would use {module_name}.{global_name}, which no data set needs",
                where=self._where,
            )
        # a fresh one each time: a file cannot leave anything behind in it
        return Stand(global_name)


def read_pickle(data: bytes, where: str) -> dict[str, Any]:
    """The dictionary a pickle holds, with its keys as text and its uint8 arrays as such.

    Args:
        data: the pickle, of any protocol, written by Python 2 or 3.
        where: what errors are about.

    Raises:
        EsccError: damaged, no dictionary, or made of anything but plain data and byte arrays.
    """
    try:
        for opcode, argument, _position in pickletools.genops(data):
            # the C unpickler reserves a table as long as the largest number says
            if "PUT" in opcode.name and isinstance(argument, int) and argument > MAX_MEMO:
                raise EsccError("refused: a pickle with an absurd memo number", where=where)
        loaded = _Reader(data, where).load()
    except EsccError:
        raise
    except Exception:  # a damaged pickle can raise anything while it is read
        raise EsccError("a damaged or truncated pickle", where=where) from None
    if not isinstance(loaded, dict):
        raise EsccError("a pickle, but not of a data set", where=where)
    result: dict[str, Any] = {}
    for key, value in cast("dict[Any, Any]", loaded).items():
        name = _bytes(key)
        name = name.decode("latin-1") if isinstance(name, bytes) else name
        if isinstance(name, str):
            result[name] = _array(value, where) if isinstance(value, Stand) else value
    return result


def _bytes(value: Any) -> Any:
    """The bytes that Python 3 writes as a text to be encoded in old protocols; anything else as it is."""
    if isinstance(value, Stand) and value.name == "encode" and len(value.args) == 2:
        text, coding = value.args
        if isinstance(text, str) and max(text, default="") <= "\xff" and coding in LATIN:
            return text.encode("latin-1")
    return value


def _array(stand: Stand, where: str) -> NDArray[np.uint8]:
    """The uint8 array that a pickle wants built."""
    shape: Any
    fortran: Any
    if stand.name == "_reconstruct" and isinstance(stand.state, tuple) and len(stand.state) == 5:
        _version, shape, kind, fortran, raw = cast("tuple[Any, ...]", stand.state)
    elif stand.name == "_frombuffer" and len(stand.args) == 4:
        raw, kind, shape, order = stand.args
        fortran = order in ("F", b"F")
    else:
        raise EsccError("a damaged array in a pickle", where=where)
    raw = _bytes(raw)
    code: Any = kind.args[0] if isinstance(kind, Stand) and kind.name == "dtype" and kind.args else None
    code = code.decode("latin-1") if isinstance(code, bytes) else code
    if code not in BYTE_TYPES:
        raise EsccError(f"an array of type {code!s:.20} in a pickle; expected bytes (u1)", where=where)
    sizes = cast("tuple[Any, ...]", shape if isinstance(shape, tuple) else (-1,))
    if (
        not isinstance(raw, bytes | bytearray)
        or len(sizes) > MAX_DIMENSIONS
        or not all(isinstance(size, int) and size >= 0 for size in sizes)
        or math.prod(sizes) != len(raw)
    ):
        raise EsccError("a damaged array in a pickle", where=where)
    return np.frombuffer(raw, dtype=np.uint8).reshape(sizes, order="F" if fortran else "C")
