"""Build the sdist, the wheel from that sdist, and try the wheel as somebody would who only has the wheel.

Checked: every file of the package that git tracks is in the wheel (but the C++ sources, which the sdist has)
and nothing else is, but the libraries made of those sources where there is a compiler; the wheel installs
into a fresh virtual environment; every module imports there, every pass registers, the command runs. The
libraries come from the environment this script runs in (installing torch twice would only cost time).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("frontend", "passes", "isa", "backend_sim")
SOURCES = (".cpp", ".h")
LIBRARIES = {"escc/backend_sim/simulator/native/kernel.so", "escc/passes/math/native/coding.so"}
COMPILERS = ("c++", "g++", "clang++")

TRY = """
import pkgutil, sys, importlib
from importlib.metadata import entry_points
from pathlib import Path
import escc
home = Path(escc.__file__).parent
assert home.is_relative_to(sys.prefix), f"{home} is not the installed wheel"
names = [item.name for item in pkgutil.walk_packages([str(home)], "escc.")]
for name in names:
    # the native libraries are for ctypes, no modules, though they lie there like some
    libraries = ("escc.backend_sim.simulator.native.kernel", "escc.passes.math.native.coding")
    if name not in ("escc.__main__", *libraries):
        importlib.import_module(name)
passes = [entry.load() for entry in entry_points(group="escc.passes") if entry.value.startswith("escc.")]
assert passes, "no pass is registered"
escc.Arch.default()
from escc.backend_sim.simulator.timing import make_engine
print(f"{len(names)} modules import, {len(passes)} passes load, engine {make_engine().name}")
"""


def expected_files() -> set[str]:
    """Paths inside the wheel of every tracked file of the package."""
    places = {folder: f"escc/{folder}" for folder in LINKED} | {"src/escc": "escc"}
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--", *places], cwd=ROOT, check=True, capture_output=True, text=True
    )
    files: set[str] = set()
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.endswith(SOURCES):
            folder = next(folder for folder in places if name.startswith(folder + "/"))
            files.add(places[folder] + name.removeprefix(folder))
    return files


def compare(expected: set[str], shipped: set[str]) -> list[str]:
    """One line for each file that is missing from the wheel or has no business in it."""
    package = {name for name in shipped if not name.partition("/")[0].endswith(".dist-info")} - LIBRARIES
    return [f"missing from the wheel: {name}" for name in sorted(expected - package)] + [
        f"in the wheel but not a tracked file: {name}" for name in sorted(package - expected)
    ]


def run(*command: str | Path, folder: Path) -> str:
    """Run a command in ``folder`` and return its output; its own message and exit code end the check."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{done.stderr}check_wheel: failed: {' '.join(map(str, command))}")
    return done.stdout.strip()


def main() -> None:
    """Build, compare, install, try; exit code 1 with the reasons if anything is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # without --sdist or --wheel, build makes the wheel from the sdist it has just made
        run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT, folder=folder)
        (wheel,) = (folder / "dist").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            shipped = set(archive.namelist())
        if problems := compare(expected_files(), shipped):
            sys.exit("\n".join(problems))
        if any(map(shutil.which, COMPILERS)) and (lacking := LIBRARIES - shipped):
            sys.exit(f"there is a compiler, but the wheel has no {min(lacking)}")
        for needed in ("LICENSE", "NOTICE"):
            if not any(entry.endswith(f".dist-info/licenses/{needed}") for entry in shipped):
                sys.exit(f"missing from the wheel: {needed}")

        run(sys.executable, "-m", "venv", folder / "venv", folder=folder)
        scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        pip = (scripts / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, "--no-deps", wheel, folder=folder)
        site = run(
            scripts / "python", "-c", "import sysconfig as s; print(s.get_path('purelib'))", folder=folder
        )
        # a plain path line: the libraries become importable, this checkout's editable escc does not
        (Path(site) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
        print(f"{wheel.name}: {len(shipped)} files; {run(scripts / 'python', '-c', TRY, folder=folder)}")
        print(run(scripts / "escc", "--version", folder=folder))


if __name__ == "__main__":
    main()
