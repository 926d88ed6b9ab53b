"""Symbolic sizes and guards: arithmetic passes with its meaning, everything else is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from escc.frontend.symbols import RefusedExpression, canonical_size, check_guard

LEAVES = st.one_of(st.integers(-9, 99).map(str), st.sampled_from(["s0", "s31", "u2"]))
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda text: f"-({text})"),
        inner.map(lambda text: f"({text})**2"),
    ),
    max_leaves=8,
)
VALUES = {"s0": 5, "s31": 7, "u2": 11}


@given(EXPRESSIONS)
def test_the_canonical_form_means_the_same_and_is_stable(text: str) -> None:
    canonical = canonical_size(text)
    assert canonical_size(canonical) == canonical
    functions = {
        "Integer": int,
        "Symbol": lambda name, **_: VALUES[name],
        "Add": lambda *terms: sum(terms),
        "Mul": lambda *factors: math.prod(factors),
        "Pow": pow,
    }
    assert eval(canonical, {"__builtins__": {}}, functions) == eval(text, {}, dict(VALUES))


def test_what_torch_writes_is_understood() -> None:
    half = "FloorDiv(Add(Symbol('s0', positive=True, integer=True), Integer(-3)), Integer(2))"
    text = f"Mul(Integer(4), Max(Integer(1), Add({half}, Integer(1))))"
    assert canonical_size(text) == text


@given(st.text(max_size=40))
def test_any_text_is_refused_or_plain(text: str) -> None:
    try:
        canonical = canonical_size(text)
    except RefusedExpression:
        return
    assert set(canonical) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_(), ='-")
    assert "__" not in canonical or "__" in text


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "s0.__class__",
        "open('x')",
        "[s0 for s0 in (1,)][0]",
        "lambda: 1",
        "s0 if s1 else 2",
        "Symbol('a); x')",
        "Symbol(s0)",
        "Symbol('s0', cls=int)",
        "Integer('3')",
        "Integer(3, 4)",
        "Pow(s0, s1)",
        "2**99999999",
        "s0**s0",
        "s0 / 2",
        "s0 @ s1",
        "~s0",
        "True",
        "1.5",
        "'s0'",
        "9" * 60,
        "(" * 300 + "1" + ")" * 300,
        "-" * 300 + "1",
        "+".join(["s0"] * 5000),
        "",
        None,
        3,
        ["s0"],
    ],
)
def test_anything_that_is_not_arithmetic_is_refused(text: object) -> None:
    with pytest.raises(RefusedExpression):
        canonical_size(text)


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].size()[2] >= 3",
        "(1 + (((-3) + L['x'].size()[3]) // 2)) != 1",
        "2 <= L['args'][0].size()[1] and L['x'].size()[0]**2 < 99",
        "max(1, L['x'].size()[2]) == L['x'].stride()[0]",
    ],
)
def test_honest_guards_pass(text: str) -> None:
    check_guard(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true') == 0",
        "L['x'].size().__class__",
        "L['x'].data_ptr() > 3",
        "L[open('x')].size()[0] == 1",
        "G['x'].size()[0] == 1",
        "print(1)",
        "(lambda: 1)() == 1",
        "max(L['x'].size()[0], key=print)",
        "9**9**9**9",
    ],
)
def test_other_guards_are_refused(text: str) -> None:
    with pytest.raises(RefusedExpression):
        check_guard(text)
