"""Weights and activations with stated statistics, drawn from a seed; as passes of the compiler.

:class:`DrawWeights` gives every convolution a float weight. From it follows what each machine runs: 8 bits of
it, its large values (:func:`prune`), or ternary codes (:class:`CodeWeights`). :class:`SteerActivations` then
sets scales and biases layer by layer so that every ReLU lets through the stated share of its values.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from escc.compare.statistics import (
    ACTIVATION_SPREAD,
    CHANNEL_SPREAD,
    SPECTRUM_DECAY,
    Statistics,
    even_statistics,
)
from escc.ir.activations import is_non_negative
from escc.ir.base import LayerOp, map_shape, module_path, replace_op
from escc.ir.escalate import DecomposedConv2d
from escc.ir.module import Module
from escc.ir.nn import Conv2d, ConvolutionLike, MaxPool
from escc.ir.passes import Pass, PassContext
from escc.ir.xdsl import SSAValue
from escc.passes.calibrate import absorb
from escc.passes.convolutions import keep_array, needed, users
from escc.passes.math.fixed_point import balanced_ternary
from escc.passes.reference.float_graph import activate, input_maps, linear_part
from escc.passes.reference.side_by_side import Affine

Float = NDArray[np.float64]
Weight = NDArray[np.float32]

FEW_POSITIONS = 16
"""Channels of smaller maps have too few values for a mean of their own."""


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers of one layer: of the seed and its name, whatever was drawn before."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


# -- weights ------------------------------------------------------------------------------------------------


def smooth_bases(rows: int, columns: int) -> Float:
    """Orthonormal kernels (rows * columns, rows, columns), the smooth ones first: the two-dimensional DCT."""

    def cosines(size: int) -> Float:
        index = np.arange(size)
        waves = np.cos(np.pi * np.outer(index, 2 * index + 1) / (2 * size))
        return waves / np.linalg.norm(waves, axis=1, keepdims=True)

    order = sorted((i + j, abs(i - j), i) for i in range(rows) for j in range(columns))
    first, second = cosines(rows), cosines(columns)
    return np.stack([np.outer(first[i], second[total - i]) for total, _, i in order])


def drawn_weight(random: np.random.Generator, shape: tuple[int, ...]) -> Weight:
    """A weight (K, C/groups, R, S) of unit energy a kernel: heavy tails, decaying spectrum, uneven channels.

    Kernel coordinates in the smooth bases are Laplace distributed with energies that fall by
    `SPECTRUM_DECAY` from one to the next; scales of input and output channels are log-normal.
    """
    outs, chans, rows, columns = shape
    taps = rows * columns
    energy = SPECTRUM_DECAY ** np.arange(taps)
    deviation = np.sqrt(energy / energy.sum())
    values = random.laplace(scale=math.sqrt(0.5), size=(outs * chans, taps)) * deviation
    scales = [np.exp(random.normal(0.0, CHANNEL_SPREAD, size)) for size in (outs, chans)]
    spatial = values @ smooth_bases(rows, columns).reshape(taps, taps)
    return (spatial.reshape(shape) * np.multiply.outer(*scales)[:, :, None, None]).astype(np.float32)


def prune(weight: NDArray[Any], density: float) -> NDArray[np.bool_]:
    """Which weights magnitude pruning keeps: the ``density * size`` largest, all of them at density 1."""
    magnitude = np.abs(weight).reshape(-1)
    kept = round(density * magnitude.size)
    if kept >= magnitude.size:
        return np.ones(weight.shape, np.bool_)
    chosen = np.zeros(magnitude.size, np.bool_)
    if kept:
        chosen[np.argpartition(magnitude, -kept)[-kept:]] = True
    return chosen.reshape(weight.shape)


def quantize_weight(weight: NDArray[Any], kept: NDArray[np.bool_] | None = None) -> NDArray[np.int8]:
    """8 bits, a scale per output channel; what pruning kept stays non-zero, what it did not is zero."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1, initial=0.0)
    step = np.where(largest > 0, largest / 127, 1.0).reshape(-1, *[1] * (weight.ndim - 1))
    values = np.rint(weight / step)
    if kept is not None:
        values = np.where(kept, np.where(values == 0, np.where(weight < 0, -1.0, 1.0), values), 0.0)
    return values.astype(np.int8)


def spread_bases(rows: int, columns: int, count: int) -> Float:
    """``count`` orthonormal kernels over the smoothest directions, each with about the same energy.

    A fit of ternary codes does not keep the order of the spectrum: on trained layers it uses every basis
    about equally often [measured]. Here a Hartley transform mixes the directions.
    """
    angle = 2 * np.pi * np.outer(np.arange(count), np.arange(count)) / count
    mixed = (np.cos(angle) + np.sin(angle)) / math.sqrt(count)
    return np.einsum("mn,nrs->mrs", mixed, smooth_bases(rows, columns)[:count])


def kernel_codes(weight: Weight, bases: Float, density: float) -> tuple[NDArray[np.int8], Weight]:
    """Codes (K, C, M) of the largest coordinates of all kernels, and a scale per output channel (K,).

    Args:
        weight: (K, C, R, S).
        bases: orthonormal (M, R, S).
        density: share of non-zero codes.
    """
    coordinates = np.einsum("kcrs,mrs->kcm", weight, bases.astype(np.float32), optimize=True)
    kept = prune(coordinates, density)
    codes = np.where(kept, np.sign(coordinates), 0).astype(np.int8)
    count = kept.sum(axis=(1, 2))
    sums = np.abs(coordinates * kept).sum(axis=(1, 2))
    return codes, (sums / np.maximum(count, 1) + (count == 0)).astype(np.float32)


def plane_codes(weight: Weight, density: float, planes: int) -> tuple[NDArray[np.int8], Weight]:
    """Balanced ternary digits (K, C, planes) of a pruned 1 x 1 weight, largest plane first, and scales (K,).

    Weights beyond three deviations of their channel (fewer planes: so many) are clipped; what pruning kept
    stays non-zero.
    """
    flat = weight[:, :, 0, 0]
    kept = prune(flat, density)
    most = (3**planes - 1) // 2
    used = np.where(kept, flat, 0.0)
    deviation = np.sqrt((used**2).sum(axis=1) / np.maximum(kept.sum(axis=1), 1))
    step = np.where(deviation > 0, min(3, planes) * deviation / most, 1.0)
    integers = np.clip(np.rint(used / step[:, None]), -most, most)
    integers = np.where(kept & (integers == 0), np.where(flat < 0, -1, 1), integers)
    digits = balanced_ternary(integers.astype(np.int64), planes)[:, :, ::-1]
    return np.ascontiguousarray(digits), (step * 3 ** (planes - 1)).astype(np.float32)


# -- passes -------------------------------------------------------------------------------------------------


def is_depthwise(op: LayerOp) -> bool:
    """One input channel a group."""
    return int(op.value("groups")) > 1 and map_shape(op.x)[2] == int(op.value("groups"))


@dataclass
class DrawWeights(Pass):
    """Give every convolution a drawn weight of its shape."""

    name: ClassVar[str] = "draw-weights"
    requires: ClassVar[frozenset[str]] = frozenset({"fused"})

    seed: int = 0

    def run(self, module: Module, context: PassContext) -> None:
        """Replace the weights."""
        layers = [op for op in module.layers if isinstance(op, Conv2d)]
        for index, op in enumerate(layers):
            context.progress(self.name, index, len(layers))
            shape = needed(module, op, "weight").shape
            weight = drawn_weight(generator(self.seed, f"{module_path(op)} weight"), shape)
            op.set_value("weight", keep_array(module, op, "drawn_weight", weight))
        module.drop_unused_arrays()


@dataclass
class CodeWeights(Pass):
    """Decompose every convolution but the first and depthwise ones, with codes at the stated density.

    k x k layers get orthonormal bases and the codes of their largest coordinates; 1 x 1 layers, the
    classifier among them, the digits of their pruned weights, which are those of the sparse machines.
    """

    name: ClassVar[str] = "code-weights"
    requires: ClassVar[frozenset[str]] = frozenset({"fused"})
    establishes: ClassVar[frozenset[str]] = frozenset({"decomposed"})

    statistics: Statistics = field(default_factory=even_statistics)

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite the module."""
        layers = [op for op in module.layers if isinstance(op, Conv2d) and op.x not in set(module.inputs)]
        layers = [op for op in layers if not is_depthwise(op)]
        for index, op in enumerate(layers):
            context.progress(self.name, index, len(layers))
            self._code(module, op, needed(module, op, "weight").astype(np.float32))
        module.drop_unused_arrays()

    def _code(self, module: Module, op: Conv2d, weight: Weight) -> None:
        stated = self.statistics
        if weight.shape[2:] == (1, 1):
            bases = 3.0 ** -np.arange(stated.planes).reshape(-1, 1, 1)
            codes, scale = plane_codes(weight, stated.weights.value, stated.planes)
        else:
            rows, columns = weight.shape[2:]
            bases = spread_bases(rows, columns, min(stated.bases, rows * columns))
            codes, scale = kernel_codes(weight, bases, stated.coefficients.value)
        shared = {key: value for key, value in op.properties.items() if key != "weight"}
        new = DecomposedConv2d.make(
            op.operands,
            None,
            op.location,
            bases=keep_array(module, op, "bases", bases),
            coefficients=keep_array(module, op, "coefficients", codes),
            scale=keep_array(module, op, "scale", scale),
            **shared,
        )
        new.attributes.update(op.attributes)
        replace_op(op, [new])


@dataclass
class SteerActivations(Pass):
    """Scale and shift every convolution so that its ReLU lets through the stated share of its values.

    What batch norms do in training, for the given images: channels get unit deviation and a mean that varies
    over channels, so that densities do; then one shift for all of them hits the stated density exactly. The
    share is taken behind a maximum pooling that follows, where the next convolution reads.
    """

    name: ClassVar[str] = "steer-activations"
    requires: ClassVar[frozenset[str]] = frozenset({"fused"})

    statistics: Statistics = field(default_factory=even_statistics)
    seed: int = 0

    def run(self, module: Module, context: PassContext) -> None:
        """Change scales and biases.

        Raises:
            EsccError: there are no images.
        """
        assert context.calibration is not None, "steering needs images"
        values: dict[SSAValue, torch.Tensor] = dict(
            zip(module.inputs, input_maps(module, context.calibration), strict=True)
        )
        layers = list(module.layers)
        last_use = {operand: op for op in layers for operand in op.operands}
        profile = list(self.statistics.profile)
        with torch.inference_mode():
            for index, op in enumerate(layers):
                context.progress(self.name, index, len(layers))
                maps = [values[value] for value in op.operands]
                residual = maps[1] if isinstance(op, ConvolutionLike) and len(maps) > 1 else None
                before, kind, arguments = linear_part(module, op, maps if residual is None else maps[:1])
                if isinstance(op, ConvolutionLike):
                    density = self._density(op, residual is not None, profile)
                    before = self._steer(module, op, before, residual, density)
                values[op.out] = before if kind is None else activate(before, kind, arguments)
                for value in set(op.operands):
                    if last_use[value] is op:
                        del values[value]

    def _density(self, op: LayerOp, joined: bool, profile: list[float]) -> float | None:
        """The stated density behind an operation; None where nothing is cut off."""
        kind = op.value("activation")
        if kind is None or not is_non_negative(kind, op.floats("activation_args")):
            return None
        if self.statistics.profile:
            return profile.pop(0) if profile else self.statistics.inner.value
        return (self.statistics.joined if joined else self.statistics.inner).value

    def _steer(
        self,
        module: Module,
        op: LayerOp,
        sums: torch.Tensor,
        residual: torch.Tensor | None,
        density: float | None,
    ) -> torch.Tensor:
        """The sums (N, K, H, W) after the change, residual included."""
        positions = sums.shape[0] * sums.shape[2] * sums.shape[3]
        axes = (0, 2, 3) if positions >= FEW_POSITIONS else (0, 1, 2, 3)
        channels = sums.shape[1]
        deviation = sums.std(dim=axes, unbiased=False).double().expand(channels).numpy()
        mean = sums.mean(dim=axes).double().expand(channels).numpy()
        gain = 1.0 / np.maximum(deviation, 1e-6)
        offset = -gain * mean
        if density is not None:
            spread = ACTIVATION_SPREAD / _NORMAL_DENSITY
            offset = offset + generator(self.seed, f"{module_path(op)} bias").normal(0.0, spread, channels)

        def changed(shift: Float) -> torch.Tensor:
            rows = [torch.from_numpy(row.astype(np.float32))[:, None, None] for row in (gain, shift)]
            y = sums * rows[0] + rows[1]
            return y if residual is None else y + residual

        result = changed(offset)
        if density is not None:
            offset = offset - threshold(_as_read(op, result), density)
            result = changed(offset)
        absorb(module, op, Affine(gain, offset))
        return result


_NORMAL_DENSITY = 0.4
"""Change of a normal variable's positive share with its mean, about: the height of the bell curve."""


def _as_read(op: LayerOp, values: torch.Tensor) -> torch.Tensor:
    """The values where the next layer reads them: a maximum commutes with a shift and a ReLU."""
    readers = users(op.out)
    if len(readers) == 1 and isinstance(readers[0], MaxPool):
        pool = readers[0]
        top, left, bottom, right = pool.ints("padding")
        padded = torch.nn.functional.pad(values, (left, right, top, bottom), value=-torch.inf)
        return torch.nn.functional.max_pool2d(padded, pool.ints("kernel"), pool.ints("stride"))
    return values


def threshold(values: torch.Tensor, density: float) -> float:
    """The number that a share ``density`` of the values lies above."""
    flat = values.reshape(-1)
    below = min(flat.numel() - 1, max(0, round((1.0 - density) * flat.numel()) - 1))
    ordered = torch.sort(flat).values
    above = min(below + 1, flat.numel() - 1)
    return float(ordered[below] + ordered[above]) / 2


def natural_images(shape: tuple[int, ...], count: int, seed: int) -> NDArray[np.float32]:
    """Seeded stand-ins for photographs (count, C, H, W), zero mean, unit deviation.

    Amplitudes fall with frequency as 1/f, as in natural images; the channels are alike in part.
    """
    random = np.random.default_rng(seed)
    channels, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    noise = random.standard_normal((count, channels + 1, height, width))
    waves = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(height, width))
    images = waves[:, :channels] + 2.0 * waves[:, channels:]
    images -= images.mean(axis=(1, 2, 3), keepdims=True)
    images /= images.std(axis=(1, 2, 3), keepdims=True)
    return images.astype(np.float32)
