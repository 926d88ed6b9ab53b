"""The network layer by layer on many images, beside the network it was before compression.

A layer whose weights a pass changed carries its original weight (``original_weight``); with those in place
the module is the uncompressed network. Both run in step, sharing every map they have in common, so that a
layer can be compared with its original, and corrected, before the next one sees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.ir.base import LayerOp, describe, map_shape
from escc.ir.module import Module
from escc.ir.nn import ConvolutionLike
from escc.ir.pins import TRAINED, input_pin, pin_of, pre_pin_of
from escc.ir.xdsl import SSAValue
from escc.passes.convolutions import ORIGINAL_WEIGHT
from escc.passes.reference.float_graph import activate, convolution, input_maps, linear_part, rounded

Tensor = torch.Tensor
Maps = list[Tensor]
"""One map (n, C, H, W) per batch of images."""

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Affine:
    """y' = gain * y + offset per channel, float64 (K,)."""

    gain: NDArray[np.float64]
    offset: NDArray[np.float64]


Correct = Callable[[LayerOp, Maps, Maps], Affine | None]
"""Called as ``correct(op, ours, original)`` with a convolution's sums before residual and activation; when
layers are recoded, with their residuals: what earlier layers got wrong in those is to be made good too."""
Observe = Callable[[LayerOp, Maps, Maps], None]
"""Called as ``observe(op, before, after)`` with an operation's maps before and after its activation."""


Recode = Callable[[LayerOp, list[Maps], Maps], None]
"""Called as ``recode(op, operands, wanted)`` with our operands (input and, if any, residual) of a compressed
layer and what the original network has there before the activation, residual included."""

_BATCH = 32
_MEMORY = 2**30


def calibration_batches(module: Module, images: NDArray[np.float32], limit: int, where: str) -> list[Maps]:
    """At most ``limit`` images (N, C, H, W), evenly spaced, in batches; fewer when a gigabyte does not hold
    their maps.

    Raises:
        EsccError: no images, or a network with several inputs.
    """
    if len(module.inputs) != 1:
        raise EsccError(
            f"the network has {len(module.inputs)} inputs, calibration images serve one", where=where
        )
    if len(images) == 0:
        raise EsccError("no calibration images", where=where)
    count = min(image_limit(module, limit), len(images))
    chosen = np.linspace(0, len(images) - 1, count).round().astype(np.int64)
    return [batched(np.asarray(images[chosen], np.float32))]


def image_limit(module: Module, limit: int) -> int:
    """``limit``, or fewer images when a gigabyte does not hold their maps."""
    return max(1, min(limit, _MEMORY // bytes_per_image(module)))


def batched(images: NDArray[np.float32]) -> Maps:
    """Images (N, C, H, W) cut into batches."""
    return [torch.from_numpy(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]


def walk(
    module: Module,
    inputs: Sequence[Maps],
    observe: Observe,
    correct: Correct | None = None,
    recode: Recode | None = None,
) -> None:
    """Run the network layer by layer over all batches.

    Args:
        module: a float network; ``correct`` may change the weights of the operation it is called for.
        inputs: for each input of the network its batches, as torch images.
        observe: sees every operation of the (corrected) network.
        correct: asked wherever the two networks differ in a convolution; its answer is applied to the maps
            here and must be absorbed in the weights by the callee. Not asked about layers that came
            decomposed.
        recode: may give a compressed layer other weights before its maps are computed.

    Raises:
        EsccError: an original weight of another shape than its layer.
    """
    pins = [input_pin(module, index) for index in range(len(module.inputs))]
    prepared = [
        [rounded(item, pin) for item, pin in zip(input_maps(module, images), pins, strict=True)]
        for images in zip(*inputs, strict=True)
    ]
    ours: dict[SSAValue, Maps] = {
        value: [maps[i] for maps in prepared] for i, value in enumerate(module.inputs)
    }
    theirs = dict(ours)
    layers = list(module.layers)
    last_use = {operand: op for op in layers for operand in op.operands}
    with torch.inference_mode():
        for op in layers:
            mine = [ours[value] for value in op.operands]
            original = [theirs[value] for value in op.operands]
            changed = correct is not None and ORIGINAL_WEIGHT in op.attributes
            same = not changed and all(a is b for a, b in zip(mine, original, strict=True))
            wanted = None if same else _sums(module, op, original, original_weight=changed)
            if recode is not None and changed and wanted is not None:
                recode(op, mine, _with_residual(op, wanted, original))
            sums = _sums(module, op, mine)
            wanted = sums if wanted is None else wanted
            # what training has fixed stays, whatever happened before it
            corrected = isinstance(op, ConvolutionLike) and not op.value(TRAINED)
            if correct is not None and not same and corrected:
                if recode is None:
                    answer = correct(op, sums, wanted)
                else:
                    answer = correct(op, _with_residual(op, sums, mine), _with_residual(op, wanted, original))
                if answer is not None:
                    gain, offset = (
                        torch.from_numpy(row).to(torch.float32)[:, None, None]
                        for row in (answer.gain, answer.offset)
                    )
                    sums = [item * gain + offset for item in sums]
            before = _with_residual(op, sums, mine)
            ours[op.out] = _activated(op, before)
            theirs[op.out] = ours[op.out] if same else _activated(op, _with_residual(op, wanted, original))
            observe(op, before, ours[op.out])
            for value in set(op.operands):
                if last_use[value] is op:
                    del ours[value], theirs[value]


def _sums(module: Module, op: LayerOp, operands: list[Maps], *, original_weight: bool = False) -> Maps:
    """The operation without residual and activation, on every batch."""
    batches = [list(maps) for maps in zip(*operands, strict=True)]
    if not isinstance(op, ConvolutionLike):
        return [linear_part(module, op, maps)[0] for maps in batches]
    if not original_weight:
        return [linear_part(module, op, maps[:1])[0] for maps in batches]
    array = module.store[op.weight_name(ORIGINAL_WEIGHT)]
    channels = map_shape(op.x)[2] // int(op.value("groups"))
    expected = (int(op.value("outputs")), channels, *op.ints("kernel"))
    if array.shape != expected:
        raise EsccError(f"{ORIGINAL_WEIGHT} has shape {array.shape}, not {expected}", where=describe(op))
    weight = torch.from_numpy(np.array(array, np.float32))
    return [convolution(module, op, maps[:1], weight) for maps in batches]


def _with_residual(op: LayerOp, sums: Maps, operands: list[Maps]) -> Maps:
    if not isinstance(op, ConvolutionLike) or len(operands) < 2:
        return sums
    return [item + residual for item, residual in zip(sums, operands[1], strict=True)]


def _activated(op: LayerOp, maps: Maps) -> Maps:
    name, arguments = ("kind", "args") if op.name == "nn.activation" else ("activation", "activation_args")
    kind = op.value(name)
    if kind is not None:
        before = pre_pin_of(op)
        maps = [activate(rounded(item, before), kind, op.floats(arguments)) for item in maps]
    pin = pin_of(op)
    return maps if pin is None else [rounded(item, pin) for item in maps]


def bytes_per_image(module: Module) -> int:
    """Most memory :func:`walk` needs for one image: live maps of both networks and the working copies."""
    layers = list(module.layers)
    last_use = {operand: op for op in layers for operand in op.operands}
    live: dict[SSAValue, int] = {value: math.prod(map_shape(value)) for value in module.inputs}
    peak = sum(live.values())
    for op in layers:
        size = math.prod(map_shape(op.out))
        live[op.out] = size
        # sums of both networks, the corrected sums, the sums with residual
        peak = max(peak, 2 * sum(live.values()) + 4 * size)
        for value in set(op.operands):
            if last_use[value] is op:
                del live[value]
    return peak * _FLOAT_BYTES


def channel_statistics(maps: Maps) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation per channel over all images and positions, each float64 (C,)."""
    counts: list[int] = []
    means: list[NDArray[np.float64]] = []
    squares: list[NDArray[np.float64]] = []
    for item in maps:
        count = item.shape[0] * item.shape[2] * item.shape[3]
        mean = item.sum((0, 2, 3)) / count
        centred = item - mean[:, None, None]
        counts.append(count)
        means.append(mean.numpy().astype(np.float64))
        squares.append(centred.square_().sum((0, 2, 3)).numpy().astype(np.float64))
    share = np.array(counts, np.float64)[:, None] / sum(counts)
    mean = (np.stack(means) * share).sum(0)
    within = np.sum(squares, axis=0) / sum(counts)
    between = ((np.stack(means) - mean) ** 2 * share).sum(0)
    return mean, np.sqrt(within + between)
