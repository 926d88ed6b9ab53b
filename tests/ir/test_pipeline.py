"""Pipelines: text, options, facts, legality, hooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from escc.errors import EsccError
from escc.ir import nn
from escc.ir.base import Symbol, make_location, replace_op, tensor_type
from escc.ir.module import Module, Port
from escc.ir.passes import (
    Pass,
    PassContext,
    Timing,
    make_pass,
    parse_pipeline,
    pass_class,
    pass_names,
    run_pipeline,
)


def small_module() -> Module:
    module = Module.create([(Port("x", (4, 2, 2)), tensor_type(2, 2, 4))])
    norm = nn.BatchNorm.make(
        module.inputs, mean=Symbol("m"), var=Symbol("v"), eps=1e-5, location=make_location("bn", "net.py", 3)
    )
    module.body.add_op(norm)
    module.set_outputs([(Port("y", (4, 2, 2)), norm.out)])
    return module


@dataclass
class Noop(Pass):
    """Changes nothing, but claims things."""

    name: ClassVar[str] = "noop"
    establishes: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})

    def run(self, module: Module, context: PassContext) -> None:
        del module, context


@dataclass
class NormToRelu(Pass):
    """Replaces every batch norm by a ReLU."""

    name: ClassVar[str] = "norm-to-relu"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})

    def run(self, module: Module, context: PassContext) -> None:
        del context
        for op in module.layers:
            replace_op(op, [nn.Activation.make([op.x], kind="relu")])


@dataclass
class Needy(Pass):
    """Needs what fold-batch-norm gives."""

    name: ClassVar[str] = "needy"
    requires: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})

    def run(self, module: Module, context: PassContext) -> None:
        del module, context


def test_every_built_in_pass_comes_through_the_entry_points() -> None:
    names = pass_names()
    assert {"fold-batch-norm", "quantize-hybrid", "schedule"} <= set(names)
    for name in names:
        assert pass_class(name).name == name
        assert pass_class(name).__doc__


def test_pipeline_text() -> None:
    items = parse_pipeline("fold-batch-norm, decompose-kernels{bases=4 penalty=0.5},shrink-channels")
    assert [item.name for item in items] == ["fold-batch-norm", "decompose-kernels", "shrink-channels"]
    assert (items[1].bases, items[1].penalty) == (4, 0.5)  # type: ignore[attr-defined]
    assert [item.spec() for item in parse_pipeline(items[1].spec())] == [items[1].spec()]
    assert parse_pipeline("") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold-batch-nrm", "did you mean 'fold-batch-norm'"),
        ("decompose-kernels{basis=3}", "did you mean 'bases'"),
        ("decompose-kernels{bases=many}", "'many' is not a int"),
        ("decompose-kernels{bases=3", "cannot read the pass pipeline"),
        ("a b", "cannot read the pass pipeline"),
    ],
)
def test_bad_pipeline_text(text: str, message: str) -> None:
    with pytest.raises(EsccError, match=message):
        parse_pipeline(text)


def test_an_order_that_breaks_a_requirement_is_refused() -> None:
    with pytest.raises(EsccError, match=r"'needy' needs batch-norm-folded first .*fold-batch-norm"):
        run_pipeline(small_module(), [Needy()], PassContext())


def test_legality_is_checked_after_the_pass_that_establishes_it() -> None:
    with pytest.raises(EsccError, match=r"nn\.batch_norm at bn \(net\.py:3\): may not remain"):
        run_pipeline(small_module(), [Noop()], PassContext())


def test_rewrites_keep_the_location_and_hooks_see_the_change() -> None:
    module = small_module()
    seen: list[tuple[int, str, bool]] = []
    timing = Timing()
    run_pipeline(
        module,
        [NormToRelu(), Needy()],
        PassContext(),
        after=[lambda index, item, _module, changed: seen.append((index, item.name, changed))],
        timing=timing,
    )
    assert seen == [(0, "norm-to-relu", True), (1, "needy", False)]
    assert [name for name, _ in timing.rows] == ["norm-to-relu", "needy"]
    assert 'kind "relu"' in module.to_text()
    assert 'loc("bn"("net.py":3:0))' in module.to_text()


def test_unknown_pass_lists_known_ones() -> None:
    with pytest.raises(EsccError, match="unknown pass 'zzzzzz'"):
        make_pass("zzzzzz")
