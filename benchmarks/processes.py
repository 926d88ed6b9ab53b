"""Commands in processes of their own, and what they took.

Nothing heavy may be imported by whoever calls this: the peak memory that Linux reports of a child begins with
that of its parent.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from escc.errors import EsccError


@dataclass(frozen=True)
class Usage:
    """What a process and its children took: wall-clock and CPU seconds, peak resident MiB, and the load of
    the machine meanwhile (processes that want a core, this one included)."""

    wall: float
    cpu: float
    mib: float
    load: float

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def measured(
    command: Sequence[str], *, repeat: int = 1, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Usage:
    """The least of ``repeat`` runs of a command, figure by figure: what other work on the machine adds is not
    the command's. Its output is shown only when it fails.

    Raises:
        EsccError: it cannot be started or does not end with 0.
    """
    runs = [_run(command, {**os.environ, **(env or {})}, cwd) for _ in range(repeat)]

    def least(value: Callable[[Usage], float]) -> float:
        return min(value(usage) for usage in runs)

    return Usage(
        least(lambda u: u.wall), least(lambda u: u.cpu), least(lambda u: u.mib), least(lambda u: u.load)
    )


def _run(command: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> Usage:
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        try:
            child = subprocess.Popen(command, env=env, cwd=cwd, stdout=output, stderr=subprocess.STDOUT)
        except OSError as error:
            raise EsccError(f"cannot start: {error.strerror}", where=command[0]) from None
        try:
            _, status, used = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            tail = "\n".join(lines[-8:])
            raise EsccError(f"ended with {child.returncode}: {tail}", where=" ".join(command))
    # of the last minute; what ran beside a short command is better seen in wall against CPU seconds
    return Usage(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, os.getloadavg()[0])


def escc(*arguments: str) -> list[str]:
    """The escc command of this environment."""
    return [str(Path(sys.executable).with_name("escc")), *arguments]


def machine() -> dict[str, str | int]:
    """The processor, its cores, the system."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2] for line in info.read_text().splitlines() if "model name" in line]
        model = names[0].strip() if names else model
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
