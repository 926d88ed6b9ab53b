"""Text form: every operation prints, parses back to the same text, and is refused when malformed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from escc.errors import EsccError
from escc.ir import escalate, nn
from escc.ir.base import LayerOp, Symbol, make_location, map_shape, module_path, source_place, tensor_type
from escc.ir.module import Module, Port, make_context
from escc.ir.types import MapType, StreamType, SumsType
from escc.ir.xdsl import Parser, TensorType, TypeAttribute

MAP = MapType.of((8, 8, 16), False, 0.25)
WINDOW = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1)}
CONV = {**WINDOW, "outputs": 16, "dilation": (1, 1), "groups": 1}
LIMITS = {"low": 0, "high": 255}
W = Symbol("a.weight")

Entry = tuple[type[LayerOp], list[TypeAttribute], TypeAttribute, Mapping[str, Any]]

EVERY_OP: list[Entry] = [
    (nn.Conv2d, [tensor_type(8, 8, 16)] * 2, tensor_type(8, 8, 16),
     {"weight": W, "bias": Symbol("0.bias"), **CONV, "activation": "clamp", "activation_args": (0.0, 6.0)}),
    (nn.BatchNorm, [tensor_type(8, 8, 16)], tensor_type(8, 8, 16), {"mean": W, "var": W, "eps": 1e-5}),
    (nn.Activation, [tensor_type(8, 8, 16)], tensor_type(8, 8, 16), {"kind": "silu"}),
    (nn.Add, [tensor_type(8, 8, 16)] * 2, tensor_type(8, 8, 16), {"activation": "relu"}),
    (nn.Mul, [tensor_type(8, 8, 16), tensor_type(1, 1, 16)], tensor_type(8, 8, 16), {}),
    (nn.MaxPool, [tensor_type(8, 8, 16)], tensor_type(8, 8, 16), WINDOW),
    (nn.AvgPool, [tensor_type(8, 8, 16)], tensor_type(8, 8, 16), {**WINDOW, "count_include_pad": False}),
    (nn.AdaptiveAvgPool, [tensor_type(8, 8, 16)], tensor_type(3, 2, 16), {"size": (3, 2)}),
    (nn.Concat, [tensor_type(8, 8, 16)] * 3, tensor_type(8, 8, 48), {}),
    (nn.Pad, [tensor_type(8, 8, 16)], tensor_type(9, 8, 20), {"padding": (0, 0, 1, 0), "channels": (1, 3)}),
    (escalate.DecomposedConv2d, [tensor_type(8, 8, 16)], tensor_type(8, 8, 16),
     {"bases": W, "coefficients": W, "scale": W, **CONV}),
    (escalate.QuantizedConv2d, [MAP, MAP], MAP,
     {"form": "ternary", "bases": W, "coefficients": W, "requant": W, **CONV, **LIMITS,
      "residual_multiplier": 1 << 30, "residual_shift": 31}),
    (escalate.Combine, [MAP], StreamType.of((8, 8, 16, 6), 20),
     {"coefficients": W, "outputs": 16, "bases": 6, "groups": 1}),
    (escalate.Convolve, [StreamType.of((8, 8, 16, 6), 20)], SumsType.of((8, 8, 16)),
     {"form": "ternary", "bases": W, **CONV}),
    (escalate.Requantize, [SumsType.of((8, 8, 16))], MAP, {"requant": W, **LIMITS, "table": W}),
    (escalate.Add, [MAP, MAP], MAP,
     {"a_multiplier": 1 << 30, "a_shift": 30, "b_multiplier": 1 << 30, "b_shift": 31, **LIMITS}),
    (escalate.Mul, [MAP, MapType.of((1, 1, 16), True, 0.5)], MAP,
     {"multiplier": 1 << 30, "shift": 40, **LIMITS}),
    (escalate.MaxPool, [MAP], MAP, WINDOW),
    (escalate.AvgPool, [MAP], MAP, {"divisors": W, **WINDOW, "count_include_pad": True}),
    (escalate.AdaptiveAvgPool, [MAP], MapType.of((1, 1, 16), False, 0.25), {"divisors": W, "size": (1, 1)}),
    (escalate.Lookup, [MAP], MAP, {"table": W}),
    (escalate.Concat, [MAP, MAP], MapType.of((8, 8, 32), False, 1e-9), {"rescale": W, **LIMITS}),
    (escalate.Pad, [MAP], MapType.of((10, 8, 16), False, 0.25),
     {"padding": (1, 0, 1, 0), "channels": (0, 0)}),
]  # fmt: skip


def module_with(kind: type[LayerOp], operands: list[TypeAttribute], result: TypeAttribute,
                properties: Mapping[str, Any]) -> Module:  # fmt: skip
    module = Module.create([(Port(f"x{i}", (16, 8, 8)), operand) for i, operand in enumerate(operands)])
    location = make_location("layer1.0.conv1", "model.py", 12)
    op = kind.make(module.inputs, result, location, **properties)  # type: ignore[arg-type]
    module.body.add_op(op)
    module.set_outputs([(Port("y", (16, 8, 8)), op.out)])
    return module


def test_the_list_has_every_operation() -> None:
    known = {op for dialect in (nn.NN, escalate.ESCALATE) for op in dialect.operations}
    assert {entry[0] for entry in EVERY_OP} == known


@pytest.mark.parametrize("entry", EVERY_OP, ids=lambda entry: entry[0].name)
@pytest.mark.parametrize("generic", [False, True], ids=["custom", "generic"])
def test_round_trip(entry: Entry, generic: bool) -> None:
    module = module_with(*entry)
    module.verify()
    text = module.to_text(generic=generic)
    again = Module.from_text(text)
    assert again.to_text(generic=generic) == text
    assert again.to_text() == module.to_text()
    op = next(iter(again.layers))
    assert (module_path(op), source_place(op)) == ("layer1.0.conv1", "model.py:12")
    assert map_shape(op.out) == map_shape(next(iter(module.layers)).out)


def one_row_more(kind: TypeAttribute) -> TypeAttribute:
    if isinstance(kind, MapType):
        return MapType.of((kind.shape_tuple[0] + 1, *kind.shape_tuple[1:]), False, 0.25)
    if isinstance(kind, StreamType):
        return StreamType.of((kind.shape_tuple[0] + 1, *kind.shape_tuple[1:]), 20)
    if isinstance(kind, SumsType):
        return SumsType.of((kind.shape_tuple[0] + 1, *kind.shape_tuple[1:]))
    assert isinstance(kind, TensorType)
    height, width, channels = cast("TensorType[Any]", kind).get_shape()
    return tensor_type(height + 1, width, channels)


@pytest.mark.parametrize("entry", EVERY_OP, ids=lambda entry: entry[0].name)
def test_a_wrong_result_shape_is_refused(entry: Entry) -> None:
    kind, operands, result, properties = entry
    with pytest.raises(
        EsccError,
        match=r"layer1\.0\.conv1 \(model\.py:12\).*result is (9|4|2|10|11)x",
    ):
        module_with(kind, operands, one_row_more(result), properties).verify()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("groups 1", "grups 1", r"<text>:3:\d+: 'nn\.conv2d' has no property 'grups'"),
        ("groups 1", "groups 3", "3 groups do not divide 16 -> 16 channels"),
        ("groups 1", "groups 1 groups 1", "given twice"),
        ('activation "clamp"', 'activation "klamp"', "unknown activation 'klamp'"),
        ("[0.0, 6.0]", "[0.0]", "takes 2 numbers"),
        ("stride [1, 1]", "stride [0, 1]", "must be positive"),
        ("nn.conv2d", "nn.conv3d", "nn.conv3d"),
        ("weight @a.weight", "", "weight"),
        ("func.return", "func.retrn", "func.retrn"),
    ],
)
def test_bad_text_gets_one_clear_line(old: str, new: str, message: str) -> None:
    text = module_with(*EVERY_OP[0]).to_text()
    assert old in text
    with pytest.raises(EsccError, match=message) as caught:
        Module.from_text(text.replace(old, new, 1))
    assert "\n" not in str(caught.value)


@given(
    shape=st.tuples(*[st.integers(1, 4096)] * 3),
    signed=st.booleans(),
    scale=st.floats(1e-30, 1e30, allow_nan=False),
)
def test_map_types_round_trip(shape: tuple[int, ...], signed: bool, scale: float) -> None:
    kind = MapType.of(shape, signed, scale)
    parsed = Parser(make_context(), str(kind)).parse_type()
    assert isinstance(parsed, MapType)
    assert (parsed.shape_tuple, parsed.signed, parsed.scale_value) == (shape, signed, scale)


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30))
def test_any_parameter_name_survives(name: str) -> None:
    kind, operands, result, properties = EVERY_OP[2]
    module = module_with(kind, operands, result, properties)
    op = next(iter(module.layers))
    op.set_value("original", Symbol(name))
    op.set_value("range", (-1.5, 1e-7))
    again = next(iter(Module.from_text(module.to_text()).layers))
    assert again.value("original") == Symbol(name)
    assert again.floats("range") == (-1.5, 1e-7)


def test_modules_are_saved_with_their_numbers(tmp_path: Path) -> None:
    module = module_with(*EVERY_OP[0])
    module.store.add("a.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    module.set_facts({"fused"})
    module.save(tmp_path / "m.mlir")
    again = Module.load(tmp_path / "m.mlir")
    assert again.to_text() == module.to_text()
    assert again.facts == {"fused"}
    np.testing.assert_array_equal(again.store["a.weight"], module.store["a.weight"])
    assert again.input_ports[0] == Port("x0", (16, 8, 8))


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(EsccError, match="cannot read"):
        Module.load(tmp_path / "none.mlir")
    (tmp_path / "b.mlir").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EsccError, match="not an IR text file"):
        Module.load(tmp_path / "b.mlir")
    (tmp_path / "c.mlir").write_text(module_with(*EVERY_OP[2]).to_text())
    (tmp_path / "c.mlir.safetensors").write_bytes(b"nonsense")
    with pytest.raises(EsccError, match="not a safetensors file"):
        Module.load(tmp_path / "c.mlir")
