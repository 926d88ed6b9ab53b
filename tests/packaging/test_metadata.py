"""What pyproject.toml, constraints.txt and the installed package say must agree."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution, entry_points, version
from pathlib import Path

from packaging.requirements import Requirement

import escc

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    exact = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonical(name): release for name, release in exact}


def needed(name: str, extras: frozenset[str], seen: set[str]) -> None:
    """Collect in ``seen`` what the distribution needs on this platform, directly or not."""
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras}
        ):
            continue
        key = canonical(requirement.name)
        if key not in seen or requirement.extras:
            seen.add(key)
            needed(requirement.name, frozenset(requirement.extras), seen)


def test_everything_an_install_brings_is_pinned() -> None:
    seen: set[str] = set()
    needed("escc", frozenset({"dev"}), seen)
    assert {"torch", "numpy", "sympy", "pluggy", "execnet"} <= seen
    assert not seen - pins().keys()


def test_the_pins_lie_in_the_declared_ranges() -> None:
    release = pins()
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(release[canonical(requirement.name)]), text


def test_the_reference_torch_is_installed() -> None:
    assert version("torch").partition("+")[0] == pins()["torch"] == "2.13.0"


def test_one_version_everywhere() -> None:
    assert version("escc") == escc.__version__


def test_the_built_in_passes_register_through_the_public_group() -> None:
    declared = PROJECT["entry-points"]["escc.passes"]
    registered = {item.name: item.value for item in entry_points(group="escc.passes")}
    assert declared.items() <= registered.items()
    for name, value in declared.items():
        module, _, attribute = value.partition(":")
        assert module.rpartition(".")[2] == name.replace("-", "_"), "a pass lives in the file of its name"
        assert attribute == "".join(word.capitalize() for word in name.split("-"))
        assert escc.parse_pipeline(name)[0].name == name


def test_no_registry_is_named() -> None:
    """Where packages come from is pip's configuration, the user's own."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml", ".ci/run", "tools/check_wheel.py"):
        assert not re.search(r"https?://|index-url", (ROOT / name).read_text()), name
