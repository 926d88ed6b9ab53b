"""Run the native libraries' tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer.

``python tools/sanitize_native.py`` builds the libraries of ``setup.py`` in build/sanitized,
and runs the tests of the libraries, of reuse and a part of the 2,000 random convolutions on it, in every
instruction set of this processor. Needs g++ with its sanitizers' libraries; a minute or two.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "sanitized"
FLAGS = ["-fPIC", "-shared", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
TESTS = [
    "tests/passes/test_native_coding.py",
    "tests/backend_sim/timing/test_native.py",
    "tests/backend_sim/timing/test_reuse.py",
    "tests/backend_sim/simulator/test_native_maps.py",
    "tests/backend_sim/simulator/test_numerics.py::test_random_records",
    *(f"tests/backend_sim/timing/test_equal.py::test_random_convolutions[{batch}]" for batch in range(8)),
]
CHILD = """
import sys
from pathlib import Path
import pytest
from escc.backend_sim.simulator.timing import native
from escc.passes.math import native_coding
native.LIBRARY = Path(sys.argv[1]) / "kernel.so"
native_coding.LIBRARY = Path(sys.argv[1]) / "coding.so"
sys.exit(pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


def build() -> None:
    """Compile and link, each source with the flags of its instruction set."""
    with patch("setuptools.setup"):
        settings = runpy.run_path(str(ROOT / "setup.py"))
    FOLDER.mkdir(parents=True, exist_ok=True)
    defined = ["-DESCC_X86=1"] if settings["X86"] else []
    for library, (folder, sources) in settings["LIBRARIES"].items():
        objects: list[str] = []
        for name, flags in sources.items():
            target = FOLDER / f"{Path(name).stem}.o"
            # the optimisation level of a sanitised build, the rest as ever
            common = [flag for flag in settings["COMMON"] if not flag.startswith(("-O", "-g"))]
            command = ["g++", *common, *FLAGS, *flags, *defined, "-c", str(ROOT / folder / name)]
            command = [word for word in command if word != "-shared"]
            subprocess.run([*command, "-o", str(target)], check=True, cwd=ROOT)
            objects.append(str(target))
        whole = FOLDER / f"{library.rpartition('.')[2]}.so"
        subprocess.run(["g++", *FLAGS, *objects, "-o", str(whole)], check=True, cwd=ROOT)


def main(tests: list[str]) -> int:
    """Build, and run the tests with the sanitizers' library loaded first."""
    build()
    found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    # Python itself leaks by design; what the library takes it gives back in its destructors
    environment = os.environ | {
        "LD_PRELOAD": found.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", CHILD, str(FOLDER), *(tests or TESTS)]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
