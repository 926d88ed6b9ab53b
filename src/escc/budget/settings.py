"""What each setting of a layer costs, and the error its sums are left with on calibration images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.ir.base import LayerOp, module_path
from escc.ir.module import Module
from escc.ir.nn import Conv2d
from escc.ir.passes import PassContext
from escc.isa.access import RECORD_BYTES
from escc.passes.convolutions import needed
from escc.passes.costs import layer_costs
from escc.passes.decompose_kernels import DecomposeKernels
from escc.passes.math.accounting import ConvolutionShape, combine_first
from escc.passes.math.basis import reconstruct
from escc.passes.math.covariance import code_layer
from escc.passes.math.quadratic import Quadratic, layer_quadratic
from escc.passes.math.ternary import Decomposition
from escc.passes.refine_coefficients import RefineCoefficients
from escc.progress import Progress

Float = NDArray[np.float64]

BASES = (3, 4, 5, 6, 7, 8)
PLANES = (2, 3, 4, 5)
PENALTIES = (0.002, 0.006, 0.02, 0.06)
"""The grid of settings; every layer can also stay dense 8-bit."""

SAMPLES = 4096
"""Positions of all images a layer's covariance is taken from."""

SAMPLES_PLAIN = 1024
"""The same for layers too large for a covariance."""

OUTPUTS = 16
"""Output channels that stand for all of a layer (evenly spaced) when its settings are measured."""


@dataclass(frozen=True)
class Setting:
    """How a layer is stored: ternary with so many bases (planes of a 1x1 layer) at this price of a non-zero
    coefficient, or dense 8-bit with 0 bases."""

    bases: int
    penalty: float = 0.0


@dataclass(frozen=True)
class Measured:
    """A setting with its figures.

    Attributes:
        density: share of non-zero coefficients.
        error: squared error of the layer's sums over their variance.
        bytes: weights as stored: bases, mask and sign streams, requantisation records.
        operations: multiply-accumulates and additions of the combine-first order, each counted as one.
        cycles: of the machine; nan when they were not measured.
    """

    setting: Setting
    density: float
    error: float
    bytes: float
    operations: float
    cycles: float = float("nan")


@dataclass
class Layer:
    """A layer to choose a setting for.

    Attributes:
        path: module path.
        ops: the convolutions with that path (several when the network calls a module repeatedly).
        refined: refine-coefficients recodes it; otherwise decompose-kernels has the last word.
        measured: its settings.
        sensitivity: output error per error of its sums.
    """

    path: str
    ops: list[Conv2d]
    shape: ConvolutionShape
    refined: bool
    measured: list[Measured] = field(default_factory=lambda: [])
    sensitivity: float = float("nan")


@dataclass
class CachedDecompose(DecomposeKernels):
    """decompose-kernels that remembers its fits: a search decomposes the same weights again and again."""

    fits: dict[tuple[Any, ...], Decomposition] = field(default_factory=lambda: {}, repr=False)

    def fit(self, weight: NDArray[Any]) -> Decomposition:
        """As the pass fits."""
        digest = hashlib.blake2b(np.ascontiguousarray(weight).tobytes()).digest()
        key = (digest, weight.shape, self.method, self.bases, self.planes, self.penalty, self.iterations)
        if key not in self.fits:
            self.fits[key] = super().fit(weight)
        return self.fits[key]


def find_layers(module: Module, decompose: DecomposeKernels) -> list[Layer]:
    """The layers that decompose-kernels chooses by its rule, in order.

    Raises:
        EsccError: there are none.
    """
    trial = module.clone()
    quick = replace(decompose, method="svd-twn", bases=1, planes=min(1, decompose.planes), max_error=1e30)
    quick.run(trial, PassContext())
    names = {cost.name for cost in layer_costs(trial) if cost.bases}
    shapes = {cost.name: cost.shape for cost in layer_costs(module)}
    found: dict[str, Layer] = {}
    for op in module.layers:
        path = module_path(op)
        if isinstance(op, Conv2d) and path in names:
            layer = Layer(path, [], shapes[path], _refined(shapes[path]))
            found.setdefault(path, layer).ops.append(op)
    found.pop("", None)
    if not found:
        raise EsccError("no layer of the network can be decomposed: there is nothing to choose")
    return list(found.values())


def _refined(shape: ConvolutionShape) -> bool:
    return shape.inputs * prod(shape.kernel) <= RefineCoefficients.max_size


def measure(
    module: Module,
    layer: Layer,
    maps: torch.Tensor,
    decompose: CachedDecompose,
    *,
    rounds: int = 1,
    sweeps: int = 1,
    seed: int = 0,
) -> None:
    """Fill in the settings of a layer.

    Args:
        module: float network without batch norms.
        maps: what the layer reads (n, C, H, W).
        decompose: fits the weights, as in the pipeline.
        rounds, sweeps: of the recoding.
    """
    op, shape = layer.ops[0], layer.shape
    weight = needed(module, op, "weight")
    rows = _patches(op, maps, SAMPLES if layer.refined else SAMPLES_PLAIN, np.random.default_rng(seed))
    judge = _Judge(weight, rows, shape.groups)
    layer.measured = [
        Measured(Setting(0), 1.0, judge.error(_rounded(weight)), dense_bytes(shape), shape.dense_macs)
    ]
    quadratics = _quadratics(weight, rows, shape) if layer.refined else []
    for bases in PLANES if shape.kernel == (1, 1) else BASES:
        fit = replace(decompose, bases=bases, planes=bases)
        if layer.refined:
            layer.measured += _recoded(shape, quadratics, fit.fit(weight), rounds, sweeps)
            continue
        for penalty in PENALTIES:
            found = replace(fit, penalty=penalty).fit(weight)
            error = judge.error(reconstruct(found.bases.astype(np.float64), found.coefficients, found.scale))
            layer.measured.append(_ternary(shape, Setting(bases, penalty), found.coefficients, error))
    uses = len(layer.ops)
    layer.measured = [replace(item, operations=item.operations * uses) for item in layer.measured]


class _Judge:
    """Errors of other weights for a layer, relative to the variance of its sums on samples of its inputs."""

    def __init__(self, weight: NDArray[Any], rows: NDArray[np.float32], groups: int) -> None:
        self.weight = weight.astype(np.float64)
        centred = rows - rows.mean(axis=0)
        self.rows = np.split(centred, groups, axis=1)
        self.energy = self._energy(self.weight)

    def error(self, weight: NDArray[Any]) -> float:
        return self._energy(self.weight - weight.reshape(self.weight.shape)) / self.energy

    def _energy(self, weight: Float) -> float:
        parts = np.split(weight.reshape(len(weight), -1).astype(np.float32), len(self.rows))
        return max(sum(_energy(x @ w.T) for x, w in zip(self.rows, parts, strict=True)), 1e-30)


def _energy(values: NDArray[np.float32]) -> float:
    return float(np.einsum("nk,nk->", values, values, dtype=np.float64))


def _sample(shape: ConvolutionShape) -> NDArray[np.intp]:
    """Evenly spaced output channels, (groups, some of each group), that stand for all."""
    each = shape.outputs // shape.groups
    count = min(each, max(1, OUTPUTS // shape.groups))
    inside = np.linspace(0, each - 1, count).round().astype(np.intp)
    return each * np.arange(shape.groups)[:, None] + inside


def _quadratics(weight: NDArray[Any], rows: NDArray[np.float32], shape: ConvolutionShape) -> list[Quadratic]:
    """The error of the sampled outputs of each group, as refine-coefficients sees it."""
    flat = weight.reshape(len(weight), -1).astype(np.float32)
    return [
        layer_quadratic(x, x @ flat[chosen].T, flat[chosen], prod(shape.kernel), RefineCoefficients.damping)
        for x, chosen in zip(np.split(rows, shape.groups, axis=1), _sample(shape), strict=True)
    ]


def _recoded(
    shape: ConvolutionShape, quadratics: list[Quadratic], start: Decomposition, rounds: int, sweeps: int
) -> list[Measured]:
    """Settings of one number of bases, coded for the inputs at each penalty."""
    chosen = _sample(shape).reshape(-1)
    count = len(start.bases)
    state = (
        start.bases.reshape(count, -1).astype(np.float64),
        start.scale[chosen].astype(np.float64),
        start.coefficients[chosen],
    )
    found: list[Measured] = []
    for penalty in PENALTIES:
        code = code_layer(quadratics, state, penalty, rounds=rounds, sweeps=sweeps)
        found.append(_ternary(shape, Setting(count, penalty), code.codes, code.error))
    return found


def _ternary(shape: ConvolutionShape, setting: Setting, codes: NDArray[Any], error: float) -> Measured:
    """Costs from the codes of some output channels, taken as typical of all."""
    density = int(np.count_nonzero(codes)) / codes.size
    nonzeros = round(density * shape.outputs * shape.inputs * setting.bases)
    work = combine_first(shape, setting.bases, nonzeros)
    stored = ternary_bytes(shape, setting.bases, codes)
    return Measured(setting, density, error, stored, work.macs + work.adds)


def dense_bytes(shape: ConvolutionShape) -> float:
    """int8 weights and requantisation records."""
    return float(shape.parameters + RECORD_BYTES * shape.outputs)


def ternary_bytes(shape: ConvolutionShape, bases: int, codes: NDArray[Any]) -> float:
    """Bases, mask and sign streams padded per output channel, requantisation records."""
    bits = shape.inputs * bases + np.count_nonzero(codes, axis=(1, 2))
    stream = float(np.mean(-(-bits // 8))) * shape.outputs
    return stream + bases * prod(shape.kernel) + RECORD_BYTES * shape.outputs


def _rounded(weight: NDArray[Any]) -> Float:
    """The weight on the grid of symmetric int8, a step per output channel."""
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    step = np.maximum(np.abs(flat).max(axis=1, keepdims=True), 1e-30) / 127
    return np.rint(flat / step) * step


def _patches(op: LayerOp, maps: torch.Tensor, count: int, random: np.random.Generator) -> NDArray[np.float32]:
    """About ``count`` patches (n, C * R * S) of a layer's inputs, at random positions of every image."""
    top, left, bottom, right = op.ints("padding")
    found: list[torch.Tensor] = []
    for item in maps.split(16):
        columns = functional.unfold(
            functional.pad(item, (left, right, top, bottom)),
            op.ints("kernel"),
            dilation=op.ints("dilation"),
            stride=op.ints("stride"),
        )
        each = min(columns.shape[2], max(1, -(-count // len(maps))))
        places = torch.from_numpy(np.sort(random.choice(columns.shape[2], each, replace=False)))
        found.append(columns[:, :, places].permute(0, 2, 1).reshape(-1, columns.shape[1]))
    return torch.cat(found).numpy()


def measure_all(
    module: Module,
    layers: Sequence[Layer],
    maps: dict[Any, torch.Tensor],
    decompose: CachedDecompose,
    progress: Progress,
) -> None:
    """Fill in the settings of all layers from the maps of the float network (by IR value)."""
    for done, layer in enumerate(layers, start=1):
        measure(module, layer, maps[layer.ops[0].x], decompose)
        progress("measuring layers", done, len(layers))
