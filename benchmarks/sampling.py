"""Where an escc command spends its CPU time: ``python -m benchmarks.sampling OUT.json sim prog.bin ...``.

Every millisecond of CPU time, as soon as the interpreter can look, the time since the last look goes to the
innermost module of escc on the stack (what it calls in numpy or in C counts for it), to imports or to nobody.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

INTERVAL = 0.001
START, IMPORTS, OTHER = "interpreter start", "imports", "other"


class Sampler:
    """CPU seconds by area: the modules of escc, and the three areas above."""

    def __init__(self) -> None:
        self.last = time.process_time()
        self.seconds: dict[str, float] = {START: self.last}

    def start(self) -> None:
        """Look every millisecond."""
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)

    def stop(self) -> None:
        """Look no more; what is left goes to nobody."""
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        self._count(OTHER)

    def _look(self, _number: int, frame: FrameType | None) -> None:
        self._count(area(frame))

    def _count(self, name: str) -> None:
        now = time.process_time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def area(frame: FrameType | None) -> str:
    """Whose time it is while ``frame`` runs."""
    found = OTHER
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name == "importlib._bootstrap":
            return IMPORTS
        if found == OTHER and name.startswith("escc."):
            found = name
        frame = frame.f_back
    return found


def main(target: str, arguments: list[str]) -> int:
    """Run an escc command and write its seconds by area."""
    sampler = Sampler()
    sampler.start()
    from escc.cli import run

    code = run(arguments)
    sampler.stop()
    Path(target).write_text(json.dumps(sampler.seconds))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
