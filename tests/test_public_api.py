"""What ``import escc`` promises."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

import escc


def declared_for_the_type_checker() -> dict[str, str]:
    """Name -> module of the imports under ``if TYPE_CHECKING`` in escc/__init__.py."""
    tree = ast.parse(Path(escc.__file__).read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name: node.module or ""
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("name", escc.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(escc, name) is not None
    assert name in dir(escc)


def test_what_runs_is_what_the_type_checker_sees() -> None:
    declared = declared_for_the_type_checker()
    assert {*declared, "__version__", "load_arch"} == set(escc.__all__)
    for name, module in declared.items():
        assert getattr(import_module(module), name) is getattr(escc, name)


def test_load_arch_reads_a_machine() -> None:
    assert escc.load_arch() == escc.Arch.default()
    with pytest.raises(escc.EsccError, match="no such architecture"):
        escc.load_arch("nonesuch")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'escc' has no attribute 'complie'"):
        _ = escc.complie  # pyright: ignore
