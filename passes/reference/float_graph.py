"""Reference interpreter of the float levels: ``nn`` operations and ``escalate.decomposed_conv2d``, on torch.

Maps are torch tensors (N, C, H, W) here; weights keep the layout of the tensor store. The precision follows
the input: float32 images give float32 results, float64 images run everything in double precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.ir.base import LayerOp, describe, map_shape
from escc.ir.module import Module
from escc.ir.pins import Pin, input_pin, pin_of, pre_pin_of
from escc.ir.xdsl import SSAValue

Visit = Callable[[LayerOp, torch.Tensor], None]
"""Called as ``visit(op, map)`` with the operation's result (N, C, H, W)."""

Images = NDArray[Any] | torch.Tensor | Sequence[NDArray[Any]] | Sequence[torch.Tensor]
"""One batch (N, ...) in torch's order, or one per input of the network."""


def evaluate(module: Module, x: Images, *, pins: bool = True) -> list[NDArray[Any]]:
    """Outputs of the network, each (N, *torch_shape), in the precision of ``x``.

    Args:
        module: a network of ``nn`` operations and ``escalate.decomposed_conv2d``.
        x: images (N, *torch_shape) of the input, or a sequence with one such batch per input.
        pins: round maps with a pinned scale, as the model does that pinned them; False lets them be.

    Raises:
        EsccError: wrong number or shape of inputs; an operation of another level.
    """
    values = run(module, x, keep=False, pins=pins)
    return [
        values[value].reshape(-1, *port.torch_shape).numpy()
        for value, port in zip(module.outputs, module.output_ports, strict=True)
    ]


def run(
    module: Module,
    x: Images,
    visit: Visit | None = None,
    visit_sum: Visit | None = None,
    *,
    keep: bool = True,
    pins: bool = True,
) -> dict[SSAValue, torch.Tensor]:
    """Walk the network in order.

    Args:
        module, x, pins: as in :func:`evaluate`.
        visit: called after each operation with its result.
        visit_sum: called with the value before the fused activation of a convolution or an addition (and with
            the input of a stand-alone activation).
        keep: True returns every value; False forgets a map after its last use and returns only the outputs.

    Returns:
        The maps (N, C, H, W) by IR value.
    """
    given = [
        rounded(item, input_pin(module, index) if pins else None)
        for index, item in enumerate(input_maps(module, x))
    ]
    values: dict[SSAValue, torch.Tensor] = dict(zip(module.inputs, given, strict=True))
    outputs = set(module.outputs)
    left: dict[SSAValue, int] = {value: value.uses.get_length() for value in module.inputs}
    with torch.inference_mode():
        for op in module.layers:
            operands = [values[value] for value in op.operands]
            before, kind, arguments = linear_part(module, op, operands)
            if kind is not None and visit_sum is not None:
                visit_sum(op, before)
            if pins:
                before = rounded(before, pre_pin_of(op))
            result = before if kind is None else activate(before, kind, arguments)
            if pins:
                result = rounded(result, pin_of(op))
            values[op.out] = result
            left[op.out] = op.out.uses.get_length()
            if visit is not None:
                visit(op, result)
            for value in op.operands:
                left[value] -= 1
                if not keep and left[value] == 0 and value not in outputs:
                    values.pop(value, None)
    if not keep:
        values = {value: values[value] for value in outputs}
    return values


_ACTIVATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "relu": torch.relu,
    "clamp": torch.clamp,
    "leaky_relu": functional.leaky_relu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": functional.hardsigmoid,
    "silu": functional.silu,
    "hardswish": functional.hardswish,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "elu": functional.elu,
}


def activate(x: torch.Tensor, kind: str, arguments: Sequence[float]) -> torch.Tensor:
    """The activation function ``kind`` of :mod:`escc.ir.activations` on a torch tensor."""
    return _ACTIVATIONS[kind](x, *arguments)


def rounded(x: torch.Tensor, pin: Pin | None) -> torch.Tensor:
    """A map on the scale it is pinned to, as ``escc::fake_quantize`` gives it; as it is without a pin."""
    if pin is None:
        return x
    steps = x / pin.scale
    steps = torch.trunc(steps + torch.copysign(torch.full_like(steps, 0.5), steps))
    return steps.clamp_(*pin.limits).mul_(pin.scale)


def input_maps(module: Module, x: Images) -> list[torch.Tensor]:
    """The given images as maps (N, C, H, W), one per input, float32 unless they are float64."""
    given: list[Any] = [x] if isinstance(x, np.ndarray | torch.Tensor) else list(x)
    ports = module.input_ports
    if len(given) != len(ports):
        raise EsccError(f"the network has {len(ports)} inputs, {len(given)} given")
    maps: list[torch.Tensor] = []
    for batch, port, value in zip(given, ports, module.inputs, strict=True):
        tensor = batch if isinstance(batch, torch.Tensor) else torch.as_tensor(np.array(batch))
        if tensor.dtype != torch.float64:
            tensor = tensor.to(torch.float32)
        height, width, channels = map_shape(value)
        if tuple(tensor.shape[1:]) not in (tuple(port.torch_shape), (channels, height, width)):
            raise EsccError(
                f"input '{port.name}' must be N x {list(port.torch_shape)}, found {list(tensor.shape)}"
            )
        maps.append(tensor.reshape(-1, channels, height, width))
    return maps


Linear = tuple[torch.Tensor, str | None, tuple[float, ...]]


def linear_part(module: Module, op: LayerOp, maps: list[torch.Tensor]) -> Linear:
    """What the operation computes before its activation, and that activation (kind or None, arguments).

    ``maps`` are its operands (N, C, H, W); a convolution given without its residual leaves it out.
    """
    evaluator = _OPERATIONS.get(op.name)
    if evaluator is None:
        raise EsccError("not an operation of the float levels", where=describe(op))
    if op.name == "nn.activation":
        return maps[0], op.value("kind"), op.floats("args")
    return evaluator(module, op, maps), op.value("activation"), op.floats("activation_args")


def _array(module: Module, op: LayerOp, name: str, like: torch.Tensor) -> torch.Tensor | None:
    symbol = op.symbol(name)
    # copied: torch wants writable memory, arrays of the store are read-only
    return None if symbol is None else torch.as_tensor(np.array(module.store[symbol]), dtype=like.dtype)


def _needed(module: Module, op: LayerOp, name: str, like: torch.Tensor) -> torch.Tensor:
    array = _array(module, op, name, like)
    if array is None:
        raise EsccError(f"property '{name}' is missing", where=describe(op))
    return array


def _padded(x: torch.Tensor, padding: Sequence[int], value: float = 0.0) -> torch.Tensor:
    top, left, bottom, right = padding
    return functional.pad(x, (left, right, top, bottom), value=value) if any(padding) else x


def convolution(module: Module, op: LayerOp, maps: list[torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """The operation's convolution with another weight (K, C/groups, R, S), with its bias and residual."""
    x, padding = maps[0], op.ints("padding")
    symmetric = padding[:2] == padding[2:]
    y = functional.conv2d(
        x if symmetric else _padded(x, padding),
        weight,
        _array(module, op, "bias", x),
        stride=op.ints("stride"),
        padding=padding[:2] if symmetric else 0,
        dilation=op.ints("dilation"),
        groups=int(op.value("groups")),
    )
    return y + maps[1] if len(maps) > 1 else y


def _conv2d(module: Module, op: LayerOp, maps: list[torch.Tensor]) -> torch.Tensor:
    return convolution(module, op, maps, _needed(module, op, "weight", maps[0]))


def _decomposed_conv2d(module: Module, op: LayerOp, maps: list[torch.Tensor]) -> torch.Tensor:
    bases = _needed(module, op, "bases", maps[0])
    coefficients = _needed(module, op, "coefficients", maps[0])
    scale = _needed(module, op, "scale", maps[0])
    weight = (coefficients * scale[:, None, None]) @ bases.flatten(1)
    return convolution(module, op, maps, weight.reshape(*weight.shape[:2], *bases.shape[1:]))


def _batch_norm(module: Module, op: LayerOp, maps: list[torch.Tensor]) -> torch.Tensor:
    x = maps[0]
    return functional.batch_norm(
        x,
        _needed(module, op, "mean", x),
        _needed(module, op, "var", x),
        _array(module, op, "weight", x),
        _array(module, op, "bias", x),
        eps=float(op.value("eps")),
    )


def _max_pool(module: Module, op: LayerOp, maps: list[torch.Tensor]) -> torch.Tensor:
    x = _padded(maps[0], op.ints("padding"), -torch.inf)
    return functional.max_pool2d(x, op.ints("kernel"), op.ints("stride"))


def _avg_pool(module: Module, op: LayerOp, maps: list[torch.Tensor]) -> torch.Tensor:
    kernel, stride, padding = op.ints("kernel"), op.ints("stride"), op.ints("padding")
    mean = functional.avg_pool2d(_padded(maps[0], padding), kernel, stride)
    if op.value("count_include_pad") or not any(padding):
        return mean
    # share of each window that lies inside the map
    inside = _padded(torch.ones_like(maps[0][:1, :1]), padding)
    return mean / functional.avg_pool2d(inside, kernel, stride)


def _adaptive_avg_pool(module: Module, op: LayerOp, maps: list[torch.Tensor]) -> torch.Tensor:
    rows, columns = op.ints("size")
    return functional.adaptive_avg_pool2d(maps[0], (rows, columns))


def _pad(module: Module, op: LayerOp, maps: list[torch.Tensor]) -> torch.Tensor:
    top, left, bottom, right = op.ints("padding")
    before, after = op.ints("channels")
    return functional.pad(maps[0], (left, right, top, bottom, before, after))


_OPERATIONS: dict[str, Callable[[Module, LayerOp, list[torch.Tensor]], torch.Tensor]] = {
    "nn.conv2d": _conv2d,
    "escalate.decomposed_conv2d": _decomposed_conv2d,
    "nn.batch_norm": _batch_norm,
    "nn.activation": lambda module, op, maps: maps[0],
    "nn.add": lambda module, op, maps: maps[0] + maps[1],
    "nn.mul": lambda module, op, maps: maps[0] * maps[1],
    "nn.max_pool": _max_pool,
    "nn.avg_pool": _avg_pool,
    "nn.adaptive_avg_pool": _adaptive_avg_pool,
    "nn.concat": lambda module, op, maps: torch.cat(maps, dim=1),
    "nn.pad": _pad,
}
