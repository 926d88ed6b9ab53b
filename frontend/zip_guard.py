"""Reading zip files that nobody vouches for: bounded, checked, nothing unpacked to disk."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import Self

from escc.errors import EsccError

MAX_MEMBERS = 200_000
MAX_TOTAL_BYTES = 32 << 30
MAX_RATIO = 200
SMALL_MEMBER = 1 << 20


class GuardedZip:
    """A zip file whose directory has been checked: no doubled, encrypted, overlapping or exploding members.

    Use as a context manager. All failures are :class:`EsccError` with the file's path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = os.path.getsize(path)
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, EOFError, NotImplementedError):
            raise EsccError("a damaged or truncated zip archive", where=str(path)) from None
        except OSError as error:
            raise EsccError(f"cannot read: {error.strerror or error}", where=str(path)) from None
        try:
            self.members = self._check(self._zip.infolist(), size)
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def fail(self, message: str, hint: str | None = None) -> EsccError:
        """An error about this archive."""
        return EsccError(message, where=str(self.path), hint=hint)

    def _check(self, infos: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
        if not infos:
            raise self.fail("an empty zip archive")
        if len(infos) > MAX_MEMBERS:
            raise self.fail(f"refused: {len(infos)} members in one archive")
        members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            parts = info.filename.split("/")
            if (
                info.filename.startswith("/")
                or ".." in parts
                or "\\" in info.filename
                or "\0" in info.filename
            ):
                raise self.fail(f"refused: member name {info.filename!r}")
            if info.filename in members:
                raise self.fail(f"refused: member {info.filename!r} occurs twice")
            if info.flag_bits & 0x1:
                raise self.fail("refused: encrypted members")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self.fail(f"refused: member {info.filename!r} uses an unusual compression")
            if info.file_size > SMALL_MEMBER and info.file_size > MAX_RATIO * max(info.compress_size, 1):
                raise self.fail(
                    f"refused: member {info.filename!r} unpacks to {info.file_size} bytes (zip bomb)"
                )
            members[info.filename] = info
        if sum(info.compress_size for info in infos) > size:
            raise self.fail("refused: members overlap (zip bomb)")
        if sum(info.file_size for info in infos) > MAX_TOTAL_BYTES:
            raise self.fail("refused: unpacks to more than 32 GiB")
        return members

    def root(self) -> str:
        """The one folder that all members lie in, as ``name/``; '' when there is none."""
        heads = {name.split("/", 1)[0] for name in self.members}
        nested = all("/" in name for name in self.members)
        return f"{heads.pop()}/" if len(heads) == 1 and nested else ""

    def read(self, name: str, limit: int) -> bytes:
        """The whole content of one member, at most ``limit`` bytes."""
        info = self.members.get(name)
        if info is None:
            raise self.fail(f"member {name!r} is missing")
        if info.file_size > limit:
            raise self.fail(f"refused: member {name!r} has {info.file_size} bytes, more than {limit}")
        try:
            with self._zip.open(info) as stream:
                data = stream.read(limit + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError):
            raise self.fail(f"member {name!r} is damaged") from None
        if len(data) != info.file_size:
            raise self.fail(f"member {name!r} is damaged")
        return data
