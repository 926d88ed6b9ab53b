"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from escc.errors import EsccError


def atomic_write(
    path: str | os.PathLike[str], data: bytes | bytearray | memoryview | Iterable[bytes]
) -> None:
    """Write ``data`` (bytes, or byte strings) to ``path`` through a temporary file and a rename.

    Raises:
        EsccError: the folder is missing or cannot be written.
    """
    target = Path(path)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise EsccError(f"cannot write: {error.strerror}", where=str(target)) from None
    try:
        with os.fdopen(descriptor, "wb") as stream:
            if isinstance(data, bytes | bytearray | memoryview):
                stream.write(data)
            else:
                for piece in data:
                    stream.write(piece)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise EsccError(f"cannot write: {error.strerror}", where=str(target)) from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
