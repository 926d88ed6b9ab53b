"""From operations to machine layers: one function per operator, found by the operation's name.

Adding an operator to the machine means its definition in the dialect and one entry here (plus, if the
vector unit has no such instruction yet, the instruction itself).
"""

from __future__ import annotations

from collections.abc import Callable

from escc.backend_sim.lowering.convolution import convolution_layer
from escc.backend_sim.lowering.layers import (
    Adaptive,
    Broadcast,
    MachineLayer,
    Operand,
    Part,
    Read,
    Stream,
    Window,
)
from escc.backend_sim.lowering.streams import divisor_stream, table_stream
from escc.backend_sim.lowering.values import map_type, operand_of, shape_of
from escc.errors import EsccError
from escc.ir.base import LayerOp, describe, module_path, source_place
from escc.ir.module import Module
from escc.ir.store import TensorStore
from escc.isa.arch import Arch
from escc.isa.registers import VecFlags

Builder = Callable[[LayerOp, TensorStore, Arch], MachineLayer]


def extract_layers(module: Module, arch: Arch) -> list[MachineLayer]:
    """The machine layers of a module at the level "reordered", in execution order.

    Raises:
        EsccError: an operation the machine does not have, or one outside the chain it belongs to.
    """
    layers: list[MachineLayer] = []
    for op in module.layers:
        if op.name in INNER_OPERATIONS:
            if not any(isinstance(use.operation, LayerOp) for use in op.out.uses):
                raise EsccError("its result is not requantised", where=describe(op))
            continue
        builder = BUILDERS.get(op.name)
        if builder is None:
            raise EsccError(
                "the machine has no such operation",
                where=describe(op),
                hint="run quantize-hybrid and reorder-linear-combination first",
            )
        layers.append(builder(op, module.store, arch))
    return layers


def _vector_layer(
    op: LayerOp,
    operands: tuple[Operand, ...],
    parts: tuple[Part, ...],
    *,
    streams: tuple[Stream, ...] = (),
    taps: int = 1,
) -> MachineLayer:
    return MachineLayer(
        name=module_path(op) or op.name,
        operation=op.name,
        source=source_place(op),
        anchor=op,
        operands=operands,
        shape=shape_of(op.out),
        signed=map_type(op.out, op).signed,
        parts=parts,
        streams=streams,
        taps=taps,
    )


def _one_part(op: LayerOp, mnemonic: str, reads: tuple[Read, ...], **registers: int) -> tuple[Part, ...]:
    return (Part(mnemonic, 0, shape_of(op.out)[2], reads, registers),)


def _flags(op: LayerOp, *operands: Operand, table: bool = False) -> int:
    flags = VecFlags(0)
    for operand, bit in zip(operands, (VecFlags.A_SIGNED, VecFlags.B_SIGNED), strict=False):
        flags |= bit if operand.signed else VecFlags(0)
    flags |= VecFlags.Y_SIGNED if map_type(op.out, op).signed else VecFlags(0)
    return int(flags | (VecFlags.TABLE if table else VecFlags(0)))


def _table(op: LayerOp, store: TensorStore) -> tuple[Stream, ...]:
    name = op.symbol("table")
    return () if name is None else (table_stream(store[name]),)


def _add(op: LayerOp, store: TensorStore, arch: Arch) -> MachineLayer:
    del arch
    a, b = (operand_of(value, Window(), op) for value in op.operands)
    streams = _table(op, store)
    registers = {name: int(op.value(long)) for name, long in _ADD_REGISTERS.items()}
    part = _one_part(
        op,
        "vec_add",
        (Read(0, "a"), Read(1, "b")),
        flags=_flags(op, a, b, table=bool(streams)),
        **registers,
    )
    return _vector_layer(op, (a, b), part, streams=streams)


_ADD_REGISTERS = {
    "a_mult": "a_multiplier",
    "a_shift": "a_shift",
    "b_mult": "b_multiplier",
    "b_shift": "b_shift",
    "low": "low",
    "high": "high",
}


def _mul(op: LayerOp, store: TensorStore, arch: Arch) -> MachineLayer:
    del store, arch
    a = operand_of(op.operands[0], Window(), op)
    small = shape_of(op.operands[1])[:2] == (1, 1)
    b = operand_of(op.operands[1], Broadcast() if small else Window(), op)
    part = _one_part(
        op,
        "vec_mul",
        (Read(0, "a"), Read(1, "b")),
        a_mult=int(op.value("multiplier")),
        a_shift=int(op.value("shift")),
        low=int(op.value("low")),
        high=int(op.value("high")),
        flags=_flags(op, a, b),
    )
    return _vector_layer(op, (a, b), part)


def _window_registers(op: LayerOp) -> dict[str, int]:
    (kernel_h, kernel_w), (stride_h, stride_w) = op.ints("kernel"), op.ints("stride")
    top, left = op.ints("padding")[:2]
    return {
        "kernel_h": kernel_h,
        "kernel_w": kernel_w,
        "stride_h": stride_h,
        "stride_w": stride_w,
        "pad_top": top,
        "pad_left": left,
    }


def _pool_operand(op: LayerOp) -> Operand:
    rule = Window(op.ints("kernel")[0], op.ints("stride")[0], op.ints("padding")[0])
    return operand_of(op.x, rule, op)


def _max_pool(op: LayerOp, store: TensorStore, arch: Arch) -> MachineLayer:
    del store, arch
    a = _pool_operand(op)
    window = _window_registers(op)
    part = _one_part(op, "vec_max", (Read(0, "a"),), flags=_flags(op, a), **window)
    return _vector_layer(op, (a,), part, taps=window["kernel_h"] * window["kernel_w"])


def _limits(op: LayerOp) -> dict[str, int]:
    low, high = map_type(op.out, op).limits
    return {"low": low, "high": high}


def _avg_pool(op: LayerOp, store: TensorStore, arch: Arch) -> MachineLayer:
    del arch
    a = _pool_operand(op)
    window = _window_registers(op)
    records = store[op.weight_name("divisors")]
    flags = _flags(op, a) | (int(VecFlags.COUNT_INCLUDE_PAD) if op.value("count_include_pad") else 0)
    part = _one_part(
        op, "vec_avg", (Read(0, "a"),), flags=flags, entries=len(records), **_limits(op), **window
    )
    taps = window["kernel_h"] * window["kernel_w"]
    return _vector_layer(op, (a,), part, streams=(divisor_stream(records),), taps=taps)


def _adaptive_avg_pool(op: LayerOp, store: TensorStore, arch: Arch) -> MachineLayer:
    del arch
    a = operand_of(op.x, Adaptive(), op)
    height, width = op.ints("size")
    records = store[op.weight_name("divisors")]
    part = _one_part(
        op,
        "vec_avg",
        (Read(0, "a"),),
        flags=_flags(op, a) | int(VecFlags.ADAPTIVE),
        entries=len(records),
        kernel_h=height,
        kernel_w=width,
        stride_h=1,
        stride_w=1,
        pad_top=0,
        pad_left=0,
        **_limits(op),
    )
    taps = -(-a.shape[0] // height) * -(-a.shape[1] // width)
    return _vector_layer(op, (a,), part, streams=(divisor_stream(records),), taps=taps)


def _lookup(op: LayerOp, store: TensorStore, arch: Arch) -> MachineLayer:
    del arch
    a = operand_of(op.x, Window(), op)
    part = _one_part(op, "vec_lut", (Read(0, "a"),), flags=_flags(op, a, table=True))
    return _vector_layer(op, (a,), part, streams=_table(op, store))


def _copy_registers(multiplier: int, shift: int, low: int, high: int, flags: int) -> dict[str, int]:
    return {
        "stride_h": 1,
        "stride_w": 1,
        "pad_top": 0,
        "pad_left": 0,
        "a_mult": multiplier,
        "a_shift": shift,
        "low": low,
        "high": high,
        "flags": flags,
    }


def _concat(op: LayerOp, store: TensorStore, arch: Arch) -> MachineLayer:
    del arch
    operands = tuple(operand_of(value, Window(), op) for value in op.operands)
    rescale = store[op.weight_name("rescale")]
    low, high = int(op.value("low")), int(op.value("high"))
    parts: list[Part] = []
    start = 0
    for index, operand in enumerate(operands):
        multiplier, shift = (int(number) for number in rescale[index])
        smallest, largest = map_type(operand.value, op).limits
        if not multiplier and not low <= smallest <= largest <= high:
            # a plain copy does not clamp; times 2^30 / 2^30 does
            multiplier, shift = 1 << 30, 30
        registers = _copy_registers(multiplier, shift, low, high, _flags(op, operand))
        stop = start + operand.shape[2]
        parts.append(Part("vec_copy", start, stop, (Read(index, "a"),), registers))
        start = stop
    return _vector_layer(op, operands, tuple(parts))


def _pad(op: LayerOp, store: TensorStore, arch: Arch) -> MachineLayer:
    del store, arch
    top, left = op.ints("padding")[:2]
    a = operand_of(op.x, Window(pad=top), op)
    before, channels = op.ints("channels")[0], a.shape[2]
    outs = shape_of(op.out)[2]
    registers = _copy_registers(0, 0, **_limits(op), flags=_flags(op, a))
    parts = [
        Part("vec_fill", 0, before, (), {}),
        Part(
            "vec_copy",
            before,
            before + channels,
            (Read(0, "a"),),
            {**registers, "pad_top": top, "pad_left": left},
        ),
        Part("vec_fill", before + channels, outs, (), {}),
    ]
    return _vector_layer(op, (a,), tuple(part for part in parts if part.hi > part.lo))


INNER_OPERATIONS = ("escalate.combine", "escalate.convolve")
"""Operations that belong to the layer of the requantize behind them."""

BUILDERS: dict[str, Builder] = {
    "escalate.requantize": convolution_layer,
    "escalate.add": _add,
    "escalate.mul": _mul,
    "escalate.max_pool": _max_pool,
    "escalate.avg_pool": _avg_pool,
    "escalate.adaptive_avg_pool": _adaptive_avg_pool,
    "escalate.lookup": _lookup,
    "escalate.concat": _concat,
    "escalate.pad": _pad,
}
