"""Symbolic sizes in exported archives: read as plain arithmetic, written back in one canonical form.

torch hands the expression strings of an archive to ``sympy.sympify``, which evaluates Python, and keeps guard
code to be executed later. Here both are parsed with :mod:`ast` (nothing is evaluated), everything that is not
integer arithmetic over size symbols is refused, and only text composed by this module is passed on.
"""

from __future__ import annotations

import ast
import re

MAX_LENGTH = 20_000
MAX_NODES = 2_000
MAX_DEPTH = 60
MAX_INTEGER = 1 << 62
MAX_EXPONENT = 4

SYMBOL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}")
FUNCTIONS = frozenset(
    {"Add", "Mul", "Pow", "FloorDiv", "CleanDiv", "CeilDiv", "Mod", "PythonMod", "Max", "Min", "PowByNatural"}
)
ASSUMPTIONS = frozenset({"positive", "nonnegative", "integer", "nonzero"})
OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "Add",
    ast.Mult: "Mul",
    ast.FloorDiv: "FloorDiv",
    ast.Mod: "Mod",
}


class RefusedExpression(ValueError):
    """The text is not plain integer arithmetic over size symbols."""


def canonical_size(text: object) -> str:
    """The one spelling of a symbolic size, in sympy's constructor syntax.

    Accepts what torch writes (``Mul(Integer(2), Symbol('s0', positive=True, integer=True))``) and plain
    arithmetic (``2*s0 + 1``).

    Raises:
        RefusedExpression: anything else.
    """
    return _Canonical().visit(_parse(text), 0)


def check_guard(text: object) -> None:
    """Accept a guard that only compares arithmetic over input sizes; it is dropped afterwards anyway.

    Raises:
        RefusedExpression: the guard does anything else.
    """
    _check_guard(_parse(text), 0)


def _parse(text: object) -> ast.expr:
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        raise RefusedExpression("not a short string")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise RefusedExpression("not an expression") from None
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise RefusedExpression("too long")
    return tree.body


class _Canonical:
    """Turns a syntax tree into canonical text, one method per kind of node."""

    def visit(self, node: ast.expr, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise RefusedExpression("nested too deeply")
        if isinstance(node, ast.Constant):
            return f"Integer({_integer(node)})"
        if isinstance(node, ast.Name):
            return self.symbol(node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            if isinstance(node.operand, ast.Constant):
                return f"Integer({-_integer(node.operand)})"
            return f"Mul(Integer(-1), {self.visit(node.operand, depth + 1)})"
        if isinstance(node, ast.BinOp):
            return self.binary(node, depth)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self.call(node, node.func.id, depth)
        raise RefusedExpression(f"{type(node).__name__} is not integer arithmetic")

    def symbol(self, name: str) -> str:
        if not SYMBOL.fullmatch(name):
            raise RefusedExpression(f"{name!r} is not a size symbol")
        return f"Symbol('{name}', positive=True, integer=True)"

    def binary(self, node: ast.BinOp, depth: int) -> str:
        left, right = self.visit(node.left, depth + 1), self.visit(node.right, depth + 1)
        if isinstance(node.op, ast.Sub):
            return f"Add({left}, Mul(Integer(-1), {right}))"
        if isinstance(node.op, ast.Pow):
            return f"Pow({left}, {_exponent(node.right)})"
        name = OPERATORS.get(type(node.op))
        if name is None:
            raise RefusedExpression("an operator that is not + - * // % **")
        return f"{name}({left}, {right})"

    def call(self, node: ast.Call, name: str, depth: int) -> str:
        if name == "Symbol":
            keywords = {word.arg for word in node.keywords}
            flags = all(
                isinstance(word.value, ast.Constant) and isinstance(word.value.value, bool)
                for word in node.keywords
            )
            if len(node.args) != 1 or not flags or not keywords <= ASSUMPTIONS:
                raise RefusedExpression("an unusual symbol")
            argument = node.args[0]
            if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
                raise RefusedExpression("an unusual symbol")
            return self.symbol(argument.value)
        if node.keywords:
            raise RefusedExpression(f"{name} with keywords")
        if name == "Integer":
            if len(node.args) != 1:
                raise RefusedExpression("an unusual number")
            return self.visit(node.args[0], depth + 1)
        if name not in FUNCTIONS or not node.args:
            raise RefusedExpression(f"{name!r} is not an arithmetic function")
        if name in ("Pow", "PowByNatural"):
            if len(node.args) != 2:
                raise RefusedExpression("an unusual power")
            return f"Pow({self.visit(node.args[0], depth + 1)}, {_exponent(node.args[1])})"
        return f"{name}({', '.join(self.visit(argument, depth + 1) for argument in node.args)})"


def _integer(node: ast.Constant) -> int:
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_INTEGER:
        raise RefusedExpression(f"{type(value).__name__} in place of a modest integer")
    return value


def _exponent(node: ast.expr) -> str:
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        node = node.args[0]
    if not isinstance(node, ast.Constant) or not 0 <= _integer(node) <= MAX_EXPONENT:
        raise RefusedExpression("a power that is not a small constant")
    return f"Integer({_integer(node)})"


def _check_guard(node: ast.expr, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise RefusedExpression("nested too deeply")
    children: list[ast.expr]
    if isinstance(node, ast.Constant):
        if not isinstance(node.value, bool):
            _integer(node)
        return
    if _is_input_size(node):
        return
    if isinstance(node, ast.BoolOp):
        children = node.values
    elif isinstance(node, ast.Compare):
        children = [node.left, *node.comparators]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        _exponent(node.right)
        children = [node.left]
    elif isinstance(node, ast.BinOp):
        children = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp):
        children = [node.operand]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("max", "min"):
        if node.keywords:
            raise RefusedExpression("a call with keywords")
        children = node.args
    else:
        raise RefusedExpression(f"{type(node).__name__} is not a comparison of sizes")
    for child in children:
        _check_guard(child, depth + 1)


def _is_input_size(node: ast.expr) -> bool:
    """``L['x'].size()[0]`` or ``L['args'][0].size()[2]``."""
    if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)):
        return False
    call = node.value
    if not (isinstance(call, ast.Call) and not call.args and not call.keywords):
        return False
    if not (isinstance(call.func, ast.Attribute) and call.func.attr in ("size", "stride")):
        return False
    place = call.func.value
    while isinstance(place, ast.Subscript) and isinstance(place.slice, ast.Constant):
        place = place.value
    return isinstance(place, ast.Name) and place.id == "L" and isinstance(node.slice.value, int)
