"""Rules for the operators of compressed models, and where the scales they were trained with belong.

``escc::decomposed_conv2d`` keeps its structure. ``escc::fake_quantize`` is no operation of the network: it
says where a map is rounded to 8 bits. The walk leaves a :class:`Rounding` for each; :func:`place_pins` then
gives the scale to the operation that makes the map (:mod:`escc.ir.pins`). The machine rounds a map once,
where it is made, for all its readers, so that some placements cannot be kept; they are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from escc.frontend.translation import Call, Constant, Map, Unsupported
from escc.frontend.windows import add_padding, peel_padding
from escc.ir.base import LayerOp, Symbol, describe, module_path
from escc.ir.escalate import DecomposedConv2d
from escc.ir.module import Module
from escc.ir.pins import KEEPS_SCALE, TRAINED, Pin, input_pin, is_scale, pin_of, set_input_pin, set_pin
from escc.ir.xdsl import (
    FloatAttr,
    IntegerAttr,
    Operation,
    SSAValue,
    f64,
    i1,
    irdl_op_definition,
    operand_def,
    prop_def,
    result_def,
)


@irdl_op_definition
class Rounding(LayerOp):
    """A fake quantiser during the walk; never part of a finished module."""

    name = "escc.rounding"
    input = operand_def()
    scale = prop_def(FloatAttr)
    signed = prop_def(IntegerAttr.constr(i1))
    result = result_def()

    @property
    def pin(self) -> Pin:
        """What it rounds to."""
        return Pin(float(self.value("scale")), bool(self.value("signed")))


# -- rules --------------------------------------------------------------------------------------------------


def fake_quantize(call: Call) -> Map:
    """escc::fake_quantize(x, scale, signed)."""
    x, scale = call.map("x"), call.arguments.get("scale")
    if not is_scale(scale):
        raise Unsupported(f"scale {scale} is not a positive number")
    rounding = Rounding.make(
        [x.value], None, call.location, scale=FloatAttr(float(scale), f64), signed=call.flag("signed")
    )
    call.block.add_op(rounding)
    return call.result(rounding.out)


def decomposed_conv2d(call: Call) -> Map:
    """escc::decomposed_conv2d; coefficients become int8 where all are -1, 0 or 1."""
    x = call.image("x")
    bases, coefficients, scale = (call.constant(name) for name in ("bases", "coefficients", "scale"))
    bias, groups = call.optional_constant("bias"), int(call.number("groups"))
    _check_shapes(x.chw[0], groups, bases, coefficients, scale, bias)
    kernel = (int(bases.tensor.shape[1]), int(bases.tensor.shape[2]))
    vertical, horizontal = call.pair("padding", (0, 0))
    value, extra = peel_padding(x.value)
    codes = coefficients.tensor
    ternary = bool(((codes == 0) | (codes.abs() == 1)).all())
    out = call.emit(
        DecomposedConv2d,
        [value],
        bases=call.keep(bases),
        coefficients=_as_codes(call, coefficients) if ternary else call.keep(coefficients),
        scale=call.keep(scale),
        bias=None if bias is None else call.keep(bias),
        kernel=kernel,
        outputs=int(coefficients.tensor.shape[0]),
        stride=call.pair("stride", (1, 1)),
        padding=add_padding((vertical, horizontal, vertical, horizontal), extra),
        dilation=call.pair("dilation", (1, 1)),
        groups=groups,
    )
    owner = out.owner
    assert isinstance(owner, LayerOp)
    owner.set_value(TRAINED, True)
    return call.result(out)


def _as_codes(call: Call, coefficients: Constant) -> Symbol:
    import torch

    codes = coefficients.tensor.detach().to("cpu", torch.int8).numpy()
    return Symbol(call.store.add(f"{coefficients.name}.codes", codes))


def _check_shapes(
    channels: int,
    groups: int,
    bases: Constant,
    coefficients: Constant,
    scale: Constant,
    bias: Constant | None,
) -> None:
    """Archives can hold anything: nothing has checked that these belong together."""
    shapes = {name: tuple(item.tensor.shape) for name, item in
              (("bases", bases), ("coefficients", coefficients), ("scale", scale))}  # fmt: skip
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    wanted = "bases (M, R, S), coefficients (K, C/groups, M), scale (K,)"
    if len(shapes["bases"]) != 3 or len(shapes["coefficients"]) != 3 or 0 in shapes["bases"]:
        raise Unsupported(f"needs {wanted}, found {found}")
    outputs, inputs, count = shapes["coefficients"]
    if groups < 1 or count != shapes["bases"][0] or shapes["scale"] != (outputs,):
        raise Unsupported(f"needs {wanted}, found {found}, groups {groups}")
    if inputs * groups != channels or outputs % groups or not outputs:
        raise Unsupported(f"coefficients {shapes['coefficients']} in {groups} groups for {channels} channels")
    if bias is not None and tuple(bias.tensor.shape) != (outputs,):
        raise Unsupported(f"bias {tuple(bias.tensor.shape)} for {outputs} outputs")


# -- where the scales belong --------------------------------------------------------------------------------

Refuse = Callable[[Rounding, str], None]


def place_pins(module: Module, outputs: Sequence[SSAValue], refuse: Refuse) -> dict[SSAValue, SSAValue]:
    """Replace every rounding by a pin on what makes its map; operations without effect go first.

    A rounding behind a max pooling or a zero padding is the same one before it, where nobody else reads that.

    Args:
        module: its body holds the network, without a return yet.
        outputs: the values that the network will return.
        refuse: told of each rounding that the machine cannot do there, and why.

    Returns:
        For each rounding's result the value that stands for it now.
    """
    became: dict[SSAValue, SSAValue] = {}
    returned = set(outputs)
    _drop_dead(module, returned)
    for op in reversed(list(module.layers)):
        if isinstance(op, Rounding) and op.parent is not None:
            _raise_above(op, returned, became)
    for op in list(module.layers):
        if isinstance(op, Rounding) and op.parent is not None:
            _place(module, op, returned, refuse, became)
    return became


def _drop_dead(module: Module, outputs: set[SSAValue]) -> None:
    for op in reversed(list(module.layers)):
        if not op.out.uses.get_length() and op.out not in outputs:
            _erase(op)


def _erase(op: LayerOp) -> None:
    op.detach()
    op.erase()


def _readers(value: SSAValue) -> list[Operation]:
    return [use.operation for use in value.uses]


def _replace(rounding: Rounding, value: SSAValue, became: dict[SSAValue, SSAValue]) -> None:
    rounding.out.replace_all_uses_with(value)
    became[rounding.out] = value
    _erase(rounding)


def _alike(value: SSAValue, pin: Pin, outputs: set[SSAValue]) -> list[Rounding] | None:
    """The roundings that read a value, when nothing but roundings to ``pin`` does."""
    readers = _readers(value)
    alike = [op for op in readers if isinstance(op, Rounding) and op.pin == pin]
    return alike if len(alike) == len(readers) and value not in outputs else None


def _raise_above(rounding: Rounding, outputs: set[SSAValue], became: dict[SSAValue, SSAValue]) -> None:
    """Move a rounding above the operations it commutes with."""
    while isinstance(owner := rounding.x.owner, LayerOp) and owner.name in KEEPS_SCALE:
        alike = _alike(owner.out, rounding.pin, outputs)
        block = owner.parent
        if alike is None or block is None:
            return
        above = Rounding.make([owner.x], None, rounding.location, **rounding.properties)
        above.attributes.update(rounding.attributes)
        block.insert_op_before(above, owner)
        for op in alike:
            _replace(op, owner.out, became)
        owner.operands = (above.out,)
        rounding = above


def _place(
    module: Module,
    rounding: Rounding,
    outputs: set[SSAValue],
    refuse: Refuse,
    became: dict[SSAValue, SSAValue],
) -> None:
    value, pin = rounding.x, rounding.pin
    before = _rounded_to(module, value)
    if before is not None and before != pin:
        refuse(rounding, f"rounds to {pin.describe()} what is rounded to {before.describe()} before; {_ONCE}")
    elif before is not None:
        _replace(rounding, value, became)
    elif (alike := _alike(value, pin, outputs)) is None:
        refuse(rounding, _other_reader(value, pin))
    else:
        owner = value.owner
        if isinstance(owner, LayerOp):
            # max poolings and paddings are not here: _raise_above has gone past them
            set_pin(owner, pin)
        else:
            set_input_pin(module, module.inputs.index(value), pin)  # pyright: ignore[reportArgumentType]
        for op in alike:
            _replace(op, value, became)


def _rounded_to(module: Module, value: SSAValue) -> Pin | None:
    """The pin a value has, or has through operations that keep the scale."""
    while isinstance(owner := value.owner, LayerOp):
        if owner.name not in KEEPS_SCALE:
            return pin_of(owner)
        value = owner.x
    return input_pin(module, list(module.inputs).index(value))  # pyright: ignore[reportArgumentType]


_ONCE = "the machine rounds a map once, for all its readers"


def _other_reader(value: SSAValue, pin: Pin) -> str:
    for op in _readers(value):
        if not isinstance(op, Rounding):
            return f"{describe(op)} reads the same map unrounded; {_ONCE}"
        if op.pin != pin:
            return f"rounds to {pin.describe()} what {module_path(op)} rounds to {op.pin.describe()}; {_ONCE}"
    return f"the network returns the same map unrounded; {_ONCE}"
