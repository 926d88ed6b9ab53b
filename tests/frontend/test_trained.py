"""Import of escc's own operators: decomposed convolutions, and where fake quantisers belong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.frontend.helpers import Many, Probe, fixed_batch, probe_of
from torch import Tensor

import escc.frontend.custom_ops as own
from escc.frontend.importer import import_exported, inspect_exported
from escc.ir.base import LayerOp, module_path
from escc.ir.module import Module
from escc.ir.pins import Pin, input_pin, pin_of
from escc.passes.reference.float_graph import evaluate

OPERATORS: Any = torch.ops.escc
Function = Callable[[Any, Tensor], Any]


def fq(x: Tensor, scale: float = 0.05, signed: bool = True) -> Tensor:
    return OPERATORS.fake_quantize(x, scale, signed)


def decomposed(
    x: Tensor, bases: Tensor, coefficients: Tensor, scale: Tensor, *, bias: Any = None, **other: Any
) -> Tensor:
    given = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1, **other}
    return OPERATORS.decomposed_conv2d(x, bases, coefficients, scale, bias, *given.values())


def codes(outputs: int = 4, inputs: int = 4, bases: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(-1, 2, (outputs, inputs, bases))).float()


def bases(count: int = 3, rows: int = 3, columns: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(count, rows, columns))).float()


def imported(functions: dict[str, Function]) -> tuple[Module, Many]:
    model = Many(functions).eval()
    return import_exported(fixed_batch(model)), model


CONVOLUTIONS: dict[str, Function] = {
    "ternary": lambda p, x: decomposed(x, bases(), codes(), torch.ones(4)),
    "real": lambda p, x: decomposed(x, bases(), codes() * 0.3, torch.ones(4)),
    "negative zero": lambda p, x: decomposed(x, bases(), codes() * -1.0, torch.ones(4)),
    "bias and scales": lambda p, x: decomposed(
        x, bases(), codes(), torch.tensor([1.0, -2.0, 0.0, 0.5]), bias=p.conv.bias
    ),
    "groups": lambda p, x: decomposed(x, bases(), codes(inputs=2), torch.ones(4), groups=2),
    "strides": lambda p, x: decomposed(x, bases(), codes(), torch.ones(4), stride=[2, 1], padding=[0, 2]),
    "dilation": lambda p, x: decomposed(x, bases(), codes(), torch.ones(4), dilation=[2, 1]),
    "1x5": lambda p, x: decomposed(x, bases(2, 1, 5), codes(bases=2), torch.ones(4)),
    "padding before": lambda p, x: decomposed(F.pad(x, (1, 0, 2, 0)), bases(), codes(), torch.ones(4)),
    "computed": lambda p, x: decomposed(
        x, bases() * 2, torch.sign(p.conv.weight.flatten(2)[..., :3]), torch.ones(4)
    ),
}


def test_decomposed_convolutions() -> None:
    module, model = imported(CONVOLUTIONS)
    x = torch.randn(3, 4, 8, 8)
    for name, wanted, found in zip(CONVOLUTIONS, model(x), evaluate(module, x.numpy()), strict=True):
        np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=0, atol=1e-4, err_msg=name)
    kinds = {
        probe_of(module_path(op)): module.store[op.weight_name("coefficients")].dtype
        for op in module.layers
        if op.name == "escalate.decomposed_conv2d"
    }
    assert kinds == {name: np.dtype(np.float32 if name == "real" else np.int8) for name in CONVOLUTIONS}
    assert "nn.pad" not in [op.name for op in module.layers]


PLACED: dict[str, tuple[Function, dict[str, Pin]]] = {
    "behind an activation": (lambda p, x: fq(F.relu(x), 0.1, False), {"nn.activation": Pin(0.1, False)}),
    "through views": (
        lambda p, x: fq(F.relu(x).flatten(1)).view(-1, 4, 8, 8),
        {"nn.activation": Pin(0.05, True)},
    ),
    "above pooling": (lambda p, x: fq(F.max_pool2d(F.relu(x), 2)), {"nn.activation": Pin(0.05, True)}),
    "above padding": (lambda p, x: fq(F.pad(F.relu(x), (1, 1, 1, 1))), {"nn.activation": Pin(0.05, True)}),
    "twice the same": (lambda p, x: fq(fq(F.relu(x))), {"nn.activation": Pin(0.05, True)}),
    "again behind pooling": (
        lambda p, x: fq(F.max_pool2d(fq(F.relu(x)), 2)),
        {"nn.activation": Pin(0.05, True)},
    ),
    "one for each reader": (
        lambda p, x: [F.silu(fq(y := torch.tanh(x))), F.max_pool2d(fq(y), 2)],
        {"nn.activation": Pin(0.05, True)},
    ),
    "of a mean": (lambda p, x: fq(x.mean((2, 3))), {"nn.adaptive_avg_pool": Pin(0.05, True)}),
    "between norm and activation": (lambda p, x: F.relu(fq(p.norm(x))), {"nn.batch_norm": Pin(0.05, True)}),
}


def test_scales_go_to_what_makes_the_map() -> None:
    functions = {name: function for name, (function, _) in PLACED.items()}
    # probes would share the input otherwise: what reads it rounded and what does not
    module, model = imported(
        {name: lambda p, x, f=function: f(p, torch.sigmoid(x)) for name, function in functions.items()}
    )
    x = torch.randn(3, 4, 8, 8)
    wanted = [item for part in model(x) for item in (part if isinstance(part, list) else [part])]
    for a, b in zip(evaluate(module, x.numpy()), wanted, strict=True):
        np.testing.assert_array_equal(a, b.detach().numpy())
    for name, (_, pins) in PLACED.items():
        own_ops = [op for op in module.layers if probe_of(module_path(op)) == name and _is_pinned(op)]
        assert {op.name: pin_of(op) for op in own_ops} == pins, name
    assert Module.from_text(module.to_text(), module.store).to_text() == module.to_text()


def _is_pinned(op: LayerOp) -> bool:
    return pin_of(op) is not None


def test_inputs_are_pinned_too() -> None:
    module, _ = imported(
        {"a": lambda p, x: F.relu(fq(x, 0.125, False)), "b": lambda p, x: p.conv(fq(x, 0.125, False))}
    )
    assert input_pin(module, 0) == Pin(0.125, False)
    again = Module.from_text(module.to_text(), module.store)
    assert input_pin(again, 0) == Pin(0.125, False)


REFUSED: dict[str, tuple[Function, str]] = {
    "another reader": (lambda p, x: [fq(y := F.relu(x)), p.conv(y)], "reads the same map unrounded"),
    "returned": (lambda p, x: [fq(y := F.relu(x)), y], "the network returns the same map unrounded"),
    "two scales": (lambda p, x: [fq(y := F.relu(x)), fq(y, 0.1)], "rounds to 0.05 signed what"),
    "two in a row": (lambda p, x: fq(fq(F.relu(x)), 0.05, False), "what is rounded to 0.05 signed before"),
    "pooling of another scale": (
        lambda p, x: fq(F.max_pool2d(fq(F.relu(x)), 2), 0.1),
        "rounds to 0.1 signed what",
    ),
    "pooling read unrounded": (lambda p, x: [fq(y := F.max_pool2d(F.relu(x), 2)), p.conv(y)], "unrounded"),
}

BAD: dict[str, tuple[Function, str]] = {
    "scale of zero": (lambda p, x: fq(x, 0.0), "scale 0.0 is not a positive number"),
    "negative scale": (lambda p, x: fq(x, -0.5), "scale -0.5 is not a positive number"),
    "no number": (lambda p, x: fq(x, float("nan")), "scale nan is not a positive number"),
    "weights not finite": (
        lambda p, x: decomposed(x, bases() * float("inf"), codes(), torch.ones(4)),
        "are not finite",
    ),
    "computed weights": (
        lambda p, x: decomposed(x, x[0, :3, :3, :3], codes(), torch.ones(4)),
        "computed|follow|mixes",
    ),
}


@pytest.mark.parametrize("table", [REFUSED, BAD], ids=["placements", "numbers"])
def test_refused_in_one_line_with_the_place(table: dict[str, tuple[Function, str]]) -> None:
    import re

    model = Many({name: function for name, (function, _) in table.items()}).eval()
    if table is REFUSED:
        model = Many(
            {name: lambda p, x, f=f: f(p, torch.sigmoid(x)) for name, (f, _) in table.items()}
        ).eval()
    uses = [use for use in inspect_exported(fixed_batch(model)) if not use.supported]
    for name, (_, reason) in table.items():
        found = [use.reason for use in uses if probe_of(use.path) == name]
        assert any(re.search(reason, text) for text in found), (name, found)
        assert all("\n" not in text for text in found)


SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    # bases, coefficients, scale, bias; groups 1, 4 channels
    "number of bases": ((2, 3, 3), (4, 4, 3), (4,), (4,)),
    "bases of two dimensions": ((3, 9), (4, 4, 3), (4,), (4,)),
    "no bases": ((0, 3, 3), (4, 4, 0), (4,), (4,)),
    "channels": ((3, 3, 3), (4, 5, 3), (4,), (4,)),
    "scales": ((3, 3, 3), (4, 4, 3), (3,), (4,)),
    "biases": ((3, 3, 3), (4, 4, 3), (4,), (5,)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_archives_with_inconsistent_shapes(name: str) -> None:
    """torch checks shapes when it exports, nobody when an archive is read."""
    from escc.errors import EsccError

    model = Probe(
        lambda p, x: decomposed(
            x, p.get_buffer("b"), p.get_buffer("c"), p.get_buffer("s"), bias=p.get_buffer("o")
        )
    )
    for key, value in {"b": bases(), "c": codes(), "s": torch.ones(4), "o": torch.zeros(4)}.items():
        model.register_buffer(key, value)
    exported = torch.export.export(model.eval(), (torch.zeros(3, 4, 8, 8),))
    for key, shape in zip("bcso", SHAPES[name], strict=True):
        exported.state_dict[key] = torch.ones(shape)
    with pytest.raises(EsccError, match=r"decomposed_conv2d.*: (needs bases|coefficients|bias)") as error:
        import_exported(exported)
    assert "\n" not in str(error.value)


def test_operators_round_as_the_reference_does() -> None:
    x = torch.tensor([-1.0, -0.26, -0.25, 0.0, 0.25, 0.24, 0.75, 63.4, 63.5, 900.0])
    assert own.fake_quantize(x, 0.5, True).tolist() == [
        -1.0,
        -0.5,
        -0.5,
        0.0,
        0.5,
        0.0,
        1.0,
        63.5,
        63.5,
        63.5,
    ]
    assert own.fake_quantize(x, 0.5, False).tolist()[:3] == [0.0, 0.0, 0.0]
