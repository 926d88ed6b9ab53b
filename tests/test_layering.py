"""Dependencies point one way, and nobody reaches for a library that is not theirs.

Read from the source, not from what happens to be loaded: an import inside a function counts too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "escc"
LINKED = ("frontend", "passes", "isa", "backend_sim")
LONGEST_FILE = 600


@dataclass(frozen=True)
class Layer:
    """A part of escc: which escc modules (prefixes) and which libraries its files may import."""

    escc: tuple[str, ...]
    libraries: tuple[str, ...]


BASICS = ("escc.errors", "escc.files", "escc.progress")

# The longest matching prefix decides; a layer may always import itself and the basics.
LAYERS = {
    "escc.errors": Layer((), ()),
    "escc.files": Layer((), ()),
    "escc.progress": Layer((), ()),
    "escc.isa": Layer((), ("numpy", "lark")),
    # the parameters of the machine are data that passes ask for
    "escc.ir": Layer(("escc.isa.arch",), ("numpy", "safetensors")),
    "escc.ir.xdsl": Layer((), ("xdsl",)),
    "escc.frontend": Layer(("escc.ir",), ("numpy", "torch", "safetensors")),
    # calibration runs the network, on torch
    "escc.passes": Layer(("escc.ir", "escc.isa.arch"), ("numpy", "torch")),
    # pure functions on arrays: of the IR they know only tables of numbers
    "escc.passes.math": Layer(("escc.ir.activations",), ("numpy",)),
    "escc.passes.reference": Layer(("escc.ir", "escc.passes"), ("numpy", "torch")),
    "escc.backend_sim.lowering": Layer(("escc.ir", "escc.isa"), ("numpy",)),
    "escc.backend_sim.simulator": Layer(("escc.isa",), ("numpy",)),
    # other machines; they share the table of energies with the simulator, nothing else
    "escc.backend_sim.baselines": Layer(("escc.isa", "escc.backend_sim.simulator.energy"), ("numpy",)),
    # square millimetres of a machine, from its parameters alone
    "escc.backend_sim.area": Layer(("escc.isa.arch",), ()),
    # pictures of a run, from its result alone
    "escc.backend_sim.report": Layer(("escc.backend_sim.simulator", "escc.isa"), ("numpy",)),
    # networks that learn in the form they are compiled to
    "escc.training": Layer(
        ("escc.frontend", "escc.passes", "escc.ir", "escc.driver"), ("numpy", "torch", "safetensors")
    ),
    # settings per layer: runs the pipeline, the reference and the simulator to judge them
    "escc.budget": Layer(
        ("escc.ir", "escc.isa", "escc.passes", "escc.backend_sim", "escc.driver"), ("numpy", "torch", "rich")
    ),
    # networks with stated statistics, on escc's machine and on others
    "escc.compare": Layer(
        (
            "escc.frontend",
            "escc.passes",
            "escc.ir",
            "escc.isa",
            "escc.backend_sim",
            "escc.driver",
            "escc.demo",
        ),
        ("numpy", "torch"),
    ),
    # searching parameters: compiles, judges and times networks on many machines
    "escc.sweep": Layer(
        (
            "escc.backend_sim",
            "escc.compare",
            "escc.demo",
            "escc.driver",
            "escc.frontend",
            "escc.ir",
            "escc.isa",
            "escc.passes",
        ),
        ("numpy", "distributed"),
    ),
    # what ties the layers together: the command line and the compile driver
    "escc": Layer(("escc",), ("click", "rich", "numpy", "torch", "safetensors")),
}


def modules() -> dict[str, Path]:
    """Every module of the package by its import name."""
    found: dict[str, Path] = {}
    # rglob does not follow the links, so each linked folder is walked from its own root
    for name, folder in {"escc": PACKAGE, **{f"escc.{part}": ROOT / part for part in LINKED}}.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((name, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def layer_of(module: str) -> str:
    return max((name for name in LAYERS if is_within(module, name)), key=len)


def is_within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, absolute module name) of every import; ``from a import b`` gives a.b when that is a module."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.append((node.lineno, full if full in MODULES else base))
    return found


def test_all_parts_are_seen() -> None:
    for name in ("escc.cli", "escc.ir.xdsl", "escc.isa.arch", "escc.frontend.zoo", "escc.passes.math"):
        assert name in MODULES
    assert len(MODULES) == len({path.resolve() for path in MODULES.values()})


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_layers(module: str) -> None:
    name = layer_of(module)
    layer = LAYERS[name]
    wrong: list[str] = []
    for line, target in imports(MODULES[module]):
        top = target.partition(".")[0]
        if top in sys.stdlib_module_names:
            continue
        if top == "escc":
            allowed = any(is_within(target, prefix) for prefix in (name, *BASICS, *layer.escc))
        else:
            allowed = top in layer.libraries
        if not allowed:
            wrong.append(f"{MODULES[module].relative_to(ROOT)}:{line}: {name} must not import {target}")
    assert not wrong, "\n".join(wrong)


def test_only_the_facade_imports_xdsl() -> None:
    users = {
        name for name, path in MODULES.items() for _, target in imports(path) if is_within(target, "xdsl")
    }
    assert users == {"escc.ir.xdsl"}


@pytest.mark.parametrize(
    ("module", "kept_out"),
    [
        ("escc", {"numpy", "torch", "xdsl", "click"}),
        ("escc.isa.program", {"torch", "xdsl", "click"}),
        ("escc.backend_sim.simulator", {"torch", "xdsl", "click"}),
        ("escc.ir.module", {"torch", "click"}),
        ("escc.cli.sim", {"torch", "xdsl"}),
    ],
)
def test_what_an_import_really_loads(module: str, kept_out: set[str]) -> None:
    code = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not kept_out & set(done.stdout.split())


def test_every_library_is_declared_and_every_declared_one_is_used_and_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=\[ ]", text)[0] for text in project["dependencies"]}
    providers = packages_distributions()
    used = {
        provider
        for path in MODULES.values()
        for _, target in imports(path)
        if (top := target.partition(".")[0]) not in sys.stdlib_module_names and top != "escc"
        for provider in providers[top]
    }
    extras = {
        name: {re.split(r"[<>=\[ ]", text)[0] for text in texts}
        for name, texts in project["optional-dependencies"].items()
    }
    development = extras.pop("dev")
    optional = set[str]().union(*extras.values())
    assert used == declared | optional
    # what is optional is tested too
    assert optional <= development
    page = (ROOT / "docs" / "dependencies.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == declared | development


@pytest.mark.parametrize("name", LINKED)
def test_top_level_folders_are_linked_into_the_package(name: str) -> None:
    link = PACKAGE / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../../{name}"
    assert link.resolve() == ROOT / name


def test_no_file_is_too_long_to_read() -> None:
    folders = ("src", "tests", "tools", "benchmarks", "docs", *LINKED)
    lengths = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert not {str(path): lines for path, lines in lengths.items() if lines > LONGEST_FILE}
