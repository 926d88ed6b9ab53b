"""The side store that holds the numbers of an IR module: name -> read-only array."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.files import atomic_write

Array = NDArray[Any]


class TensorStore(Mapping[str, Array]):
    """Arrays by name. Passes add new names; nothing is ever changed in place, so copies are cheap."""

    def __init__(self, arrays: Mapping[str, Array] | None = None) -> None:
        self._arrays: dict[str, Array] = {}
        for name, array in (arrays or {}).items():
            self.add(name, array)

    def __getitem__(self, name: str) -> Array:
        try:
            return self._arrays[name]
        except KeyError:
            raise EsccError(f"the tensor store has no array '{name}'") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def add(self, name: str, array: Array) -> str:
        """Store ``array`` (made contiguous and read-only) and return the name used: ``name``, or ``name.2``,
        ``name.3``, ... when another array already has it."""
        frozen = np.ascontiguousarray(array).view()
        frozen.flags.writeable = False
        used, number = name, 1
        while used in self._arrays:
            existing = self._arrays[used]
            if (
                existing.dtype == frozen.dtype
                and existing.shape == frozen.shape
                and np.array_equal(existing, frozen)
            ):
                return used
            number += 1
            used = f"{name}.{number}"
        self._arrays[used] = frozen
        return used

    def copy(self) -> TensorStore:
        """A store with the same (shared, read-only) arrays."""
        other = TensorStore()
        other._arrays = dict(self._arrays)
        return other

    def keep(self, names: Iterable[str]) -> None:
        """Forget every array that is not in ``names``."""
        wanted = set(names)
        self._arrays = {name: array for name, array in self._arrays.items() if name in wanted}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all arrays as one safetensors file (whole or not at all)."""
        from safetensors.numpy import save

        atomic_write(path, save({name: np.ascontiguousarray(array) for name, array in self._arrays.items()}))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> TensorStore:
        """Read a safetensors file.

        Raises:
            EsccError: the file is missing or not a safetensors file.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return TensorStore(load(Path(path).read_bytes()))
        except OSError as error:
            raise EsccError(f"cannot read: {error.strerror}", where=str(path)) from None
        except SafetensorError as error:
            raise EsccError(f"not a safetensors file: {error}", where=str(path)) from None
