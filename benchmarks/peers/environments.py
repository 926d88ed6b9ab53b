"""Virtual environments of the peers: made once, with exactly these versions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from escc.errors import EsccError
from escc.files import atomic_write

TAIL = 6
"""Lines of pip's output that an error shows."""


@dataclass(frozen=True)
class Peer:
    """A simulator from the package index: what pip installs, and the script of ours that drives it."""

    name: str
    requirements: tuple[str, ...]
    driver: str


PEERS = {
    # with newer ones it stops behind the first layer ("only 0-dimensional arrays can be converted")
    "scalesim": Peer("SCALE-Sim 3.0.0", ("scalesim==3.0.0", "numpy<2", "pandas<3"), "run_scalesim.py"),
    # it imports six and does not say so
    "zigzag": Peer("ZigZag 3.9.1", ("zigzag-dse==3.9.1", "six"), "run_zigzag.py"),
}


def environment(key: str, folder: Path) -> Path:
    """The Python of a peer's environment below ``folder``; made and filled where it is not there yet.

    Raises:
        EsccError: no environment can be made, or pip cannot install (no network, no such version, ...).
    """
    peer, home = PEERS[key], folder / key
    python, done = home / "bin" / "python", home / "installed.txt"
    wanted = "\n".join(peer.requirements)
    if done.exists() and done.read_text() == wanted and python.exists():
        return python
    shutil.rmtree(home, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(home)], f"cannot make an environment for {peer.name}", "")
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements]
    hint = "needs the package index: check the network or pip's settings (index-url, proxy), then run again"
    _run([str(python), *install], f"cannot install {peer.name}", hint)
    atomic_write(done, wanted.encode())
    return python


def _run(command: list[str], failure: str, hint: str) -> None:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        raise EsccError(f"{failure}: {error.strerror}", where=command[0]) from None
    if done.returncode:
        tail = " / ".join(done.stdout.strip().splitlines()[-TAIL:]) or f"exit code {done.returncode}"
        raise EsccError(f"{failure}: {tail}", hint=hint or None)
