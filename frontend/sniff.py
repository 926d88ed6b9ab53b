"""What a file is, decided by its content alone; nothing in it is executed or unpickled."""

from __future__ import annotations

import enum
import stat
import struct
from pathlib import Path

from escc.errors import EsccError
from escc.frontend.zip_guard import GuardedZip

TORCH_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of ``torch.save`` files from before torch 1.6."""

HEAD_BYTES = 4096


class FileKind(enum.Enum):
    """The kinds of model file that are told apart."""

    EXPORTED = "torch.export archive"
    OLD_EXPORTED = "torch.export archive of an old torch"
    TORCH_ZIP = "torch.save file"
    TORCH_LEGACY = "torch.save file in the format from before torch 1.6"
    TORCHSCRIPT = "TorchScript archive"
    SAFETENSORS = "safetensors file"


def identify(path: Path) -> FileKind:
    """The kind of a model file.

    Raises:
        EsccError: the path is missing, a folder, empty, unreadable, or holds no kind of model we read.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise EsccError("is a folder, not a model file", where=str(path))
        if not stat.S_ISREG(status.st_mode):
            raise EsccError("is not a regular file", where=str(path))
        if status.st_size == 0:
            raise EsccError("the file is empty", where=str(path))
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except FileNotFoundError:
        raise EsccError("no such file", where=str(path)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise EsccError(f"cannot read: {reason}", where=str(path)) from None
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return _identify_zip(path)
    if head.startswith(TORCH_LEGACY_MAGIC):
        return FileKind.TORCH_LEGACY
    if _is_safetensors(head, status.st_size):
        return FileKind.SAFETENSORS
    raise EsccError(f"not a model file: {_describe(head)}", where=str(path), hint=KNOWN)


KNOWN = "escc reads torch.export archives, torch.save files and safetensors"


def _identify_zip(path: Path) -> FileKind:
    with GuardedZip(path) as archive:
        root = archive.root()
        names = archive.members
        if f"{root}constants.pkl" in names or any(name.startswith(f"{root}code/") for name in names):
            return FileKind.TORCHSCRIPT
        if f"{root}archive_format" in names and archive.read(f"{root}archive_format", 64) == b"pt2":
            return FileKind.EXPORTED
        if "serialized_exported_program.json" in names or f"{root}serialized_exported_program.json" in names:
            return FileKind.OLD_EXPORTED
        if root and f"{root}data.pkl" in names:
            return FileKind.TORCH_ZIP
        if all(name.endswith(".npy") for name in names):
            raise EsccError("a numpy .npz archive, not a model", where=str(path), hint=KNOWN)
        raise EsccError("a zip archive, but not one that torch wrote", where=str(path), hint=KNOWN)


def _is_safetensors(head: bytes, size: int) -> bool:
    if len(head) < 10:
        return False
    (length,) = struct.unpack("<Q", head[:8])
    return head[8:9] == b"{" and 2 <= length <= min(size - 8, 100_000_000)


def _describe(head: bytes) -> str:
    """A guess in words at content we do not read."""
    signatures = {
        b"\x89HDF": "an HDF5 file",
        b"\x93NUMPY": "a numpy array",
        b"\x1f\x8b": "gzip data, unpack it first",
        b"\x7fELF": "an executable",
        b"\x89PNG": "a PNG image",
        b"\xff\xd8\xff": "a JPEG image",
    }
    for signature, name in signatures.items():
        if head.startswith(signature):
            return name
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle that torch.save did not write"
    if head[257:262] == b"ustar":
        return "a tar archive, unpack it first"
    if head[:1] == b"\x08" and b"\x12" in head[:8]:
        return "it looks like an ONNX model, export from torch instead"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return "unknown binary data"
        text = head[: error.start].decode("utf-8")
    printable = all(character.isprintable() or character in "\t\r\n\f" for character in text)
    return "a text file" if printable else "unknown binary data"
