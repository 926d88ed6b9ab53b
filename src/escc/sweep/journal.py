"""The journal of a sweep: a line of JSON for each measured point, appended and synced."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from escc.errors import EsccError
from escc.sweep.measure import Fidelity, Figures
from escc.sweep.space import Point

FORMAT = "escc sweep"
VERSION = 1


@dataclass(frozen=True)
class Entry:
    """A measured point: ``figures`` over all workloads, ``workloads`` each on its own; or ``refused``, why it
    cannot be measured."""

    point: Point
    fidelity: Fidelity
    figures: Figures
    workloads: dict[str, Figures]
    refused: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What tells points apart."""
        return point_key(self.point), self.fidelity


def point_key(point: Mapping[str, Any]) -> str:
    """A point as canonical text."""
    return json.dumps(dict(sorted(point.items())))


class Journal:
    """The entries of a sweep, in a file that only grows.

    Args:
        path: the file; made when it is not there. A line that a kill cut short is cut off.
        identity: of what is measured; a journal of something else is refused.

    Raises:
        EsccError: the file is no journal, or one of other networks, or in use, or cannot be written.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.entries: dict[tuple[str, str], Entry] = {}
        self._number = -1
        try:
            self._number = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
            self._lock()
            length = self._read(identity)
            os.ftruncate(self._number, length)
            os.lseek(self._number, 0, os.SEEK_END)
            if not length:
                self._append({"format": FORMAT, "version": VERSION, "identity": identity})
        except OSError as error:
            raise EsccError(f"cannot write: {error.strerror}", where=str(path)) from None
        except EsccError:
            os.close(self._number)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._number)

    def add(self, entry: Entry) -> None:
        """Append an entry; it is on the disk when this returns."""
        if entry.key in self.entries:
            return
        self._append(
            {
                "point": entry.point,
                "fidelity": entry.fidelity,
                "figures": entry.figures,
                "workloads": entry.workloads,
                "refused": entry.refused,
            }
        )
        self.entries[entry.key] = entry

    def _lock(self) -> None:
        """Two sweeps must not write one journal; the lock goes with the process, however it ends."""
        try:
            fcntl.flock(self._number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EsccError("another sweep is at work in this folder", where=str(self.path)) from None

    def _append(self, content: Mapping[str, Any]) -> None:
        os.write(self._number, (json.dumps(content) + "\n").encode())
        os.fsync(self._number)

    def _read(self, identity: str) -> int:
        """Take in what is there; the bytes up to the end of the last whole line."""
        data = self.path.read_bytes()
        length = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:length].splitlines()):
            try:
                content = json.loads(line)
                if number == 0:
                    self._check(content, identity)
                    continue
                entry = Entry(**content)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise EsccError(f"line {number + 1} is no entry of a sweep", where=str(self.path)) from None
            self.entries[entry.key] = entry
        return length

    def _check(self, head: Mapping[str, Any], identity: str) -> None:
        if head["format"] != FORMAT or head["version"] != VERSION:
            raise ValueError
        if head["identity"] != identity:
            raise EsccError(
                "was measured on other networks, images or another base machine",
                where=str(self.path),
                hint="give another --work, or --restart to begin anew",
            )
