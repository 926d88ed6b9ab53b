"""A compiled program: machine, instruction words, DRAM image, descriptors of its inputs and outputs."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError
from escc.files import atomic_write
from escc.isa.arch import Arch
from escc.isa.container import Contents, pack, unpack
from escc.isa.maps import MapDescriptor, position_pitch

__all__ = ["MapDescriptor", "Program", "position_pitch"]

Bytes = bytes | bytearray | memoryview | npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Program:
    """Everything the machine needs to run a network.

    ``code``: (words,) uint64. ``data``: the DRAM image from address 0 (uint8); maps lie behind it, inside
    ``dram_bytes``. ``debug``: ``{"layers": [{"name", "op", "source", ...}], "instructions": [[first_word,
    last_word, layer], ...]}``; execution never reads it.
    """

    arch: Arch
    code: npt.NDArray[np.uint64]
    data: Bytes
    inputs: list[MapDescriptor]
    outputs: list[MapDescriptor]
    dram_bytes: int
    debug: dict[str, Any] | None = field(default=None)

    @property
    def data_array(self) -> npt.NDArray[np.uint8]:
        """The DRAM image as a (bytes,) uint8 view, without a copy."""
        return self.data if isinstance(self.data, np.ndarray) else np.frombuffer(self.data, np.uint8)

    def stripped(self) -> Program:
        """The same program without its debug section."""
        return replace(self, debug=None)

    def layer_name(self, layer: int) -> str | None:
        """The name of debug layer number ``layer``, None when the program has none."""
        layers = (self.debug or {}).get("layers", [])
        return str(layers[layer]["name"]) if 0 <= layer < len(layers) else None

    def to_bytes(self) -> bytes:
        """The program file.

        Raises:
            EsccError: the parts do not fit each other (a map outside DRAM, data beyond ``dram_bytes``, ...).
        """
        return b"".join(pack(self._contents()))

    @classmethod
    def from_bytes(cls, content: Bytes, where: str = "program") -> Program:
        """Read a program file from memory; arrays of the result are views of ``content``.

        Raises:
            EsccError: not a program file, of a newer format, truncated, damaged or inconsistent.
        """
        view = content.data if isinstance(content, np.ndarray) else memoryview(content)
        return cls(*unpack(view, where))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program file; readers never see half of it.

        Raises:
            EsccError: as `to_bytes`, or the file cannot be written.
        """
        atomic_write(path, pack(self._contents()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Program:
        """Read a program file, memory-mapped.

        Raises:
            EsccError: the file cannot be read, or as `from_bytes`.
        """
        where = str(path)
        try:
            with Path(path).open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                if size == 0:
                    raise EsccError("the file is empty", where=where)
                content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise EsccError(f"cannot read: {reason}", where=where) from None
        return cls.from_bytes(memoryview(content), where)

    def _contents(self) -> Contents:
        return Contents(
            self.arch, self.code, self.data_array, self.inputs, self.outputs, self.dram_bytes, self.debug
        )

    def same_as(self, other: Program) -> bool:
        """Whether both give the byte-identical program file."""
        return self.to_bytes() == other.to_bytes()
