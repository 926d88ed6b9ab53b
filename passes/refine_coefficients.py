"""refine-coefficients: recode decomposed layers for the inputs they really see."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.ir.base import LayerOp, map_shape, module_path
from escc.ir.escalate import DecomposedConv2d
from escc.ir.module import Module
from escc.ir.passes import Pass, PassContext
from escc.passes.convolutions import ORIGINAL_WEIGHT, needed, set_array
from escc.passes.layer_options import last_match, layer_options
from escc.passes.math.covariance import code_layer
from escc.passes.math.quadratic import Quadratic, Single, layer_quadratic
from escc.passes.reference.side_by_side import Affine, Maps, calibration_batches, channel_statistics, walk

_PATCH_VALUES = 2**26
"""Most float32 values in the patches of one layer."""


@dataclass
class RefineCoefficients(Pass):
    """Recode ternary layers, first to last, for the least error of their sums on calibration images.

    Each layer sees what the compressed layers before it deliver and aims at what the original network has
    before the activation, residual included, so that it makes good what those layers and the residual got
    wrong (methods of OBQ/GPTQ with a ternary codebook; bases, scales and biases by least squares). Without
    calibration images nothing changes.

    Options:
        penalty: price of a non-zero coefficient, as a share of the mean output energy of one kernel.
        rounds: alternations of coding and least squares; sweeps: coordinate descents in each.
        images: at most that many calibration images.
        samples: about how many positions of all images are used for a layer.
        max_size: layers with more inputs per output (C * R * S, of a group) keep their codes.
        damping: share of the mean variance added to the covariance's diagonal.
        layers: exceptions as ``pattern:option=value[:option=value]``, separated by ';' or ','; options are
            penalty, rounds, sweeps and damping. The last match wins.
    """

    name: ClassVar[str] = "refine-coefficients"
    requires: ClassVar[frozenset[str]] = frozenset({"decomposed", "fused"})

    penalty: float = 0.02
    rounds: int = 2
    sweeps: int = 2
    images: int = 512
    samples: int = 16384
    max_size: int = 8192
    damping: float = 0.01
    layers: str = ""
    seed: int = 0

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite coefficients, bases, scales and biases.

        Raises:
            EsccError: an option out of range.
        """
        self._check()
        exceptions = self._exceptions()
        if context.calibration is None:
            return
        inputs = calibration_batches(module, context.calibration, self.images, self.name)
        random = np.random.default_rng(self.seed)
        total, done = sum(1 for _ in module.layers), 0

        def observe(_op: LayerOp, _before: Maps, _after: Maps) -> None:
            nonlocal done
            done += 1
            context.progress(self.name, done, total)

        def recode(op: LayerOp, operands: list[Maps], wanted: Maps) -> None:
            options = last_match(module_path(op), exceptions) or self
            if options._refines(module, op):
                options._recode(module, op, *layer_samples(op, operands, wanted, self.samples, random))

        def correct(op: LayerOp, ours: Maps, original: Maps) -> Affine:
            offset = channel_statistics(original)[0] - channel_statistics(ours)[0]
            symbol = op.symbol("bias")
            bias = module.store[symbol] if symbol is not None else np.zeros(len(offset))
            set_array(module, op, "bias", "bias", (bias + offset).astype(np.float32))
            return Affine(np.ones(len(offset)), offset)

        walk(module, inputs, observe, correct, recode)
        module.drop_unused_arrays()

    def _check(self) -> None:
        numbers = (self.penalty, self.rounds, self.sweeps, self.damping)
        if not all(0 <= number < np.inf for number in numbers) or min(self.images, self.samples) < 1:
            raise EsccError("options must not be negative, images and samples positive", where=self.name)

    def _exceptions(self) -> list[tuple[str, RefineCoefficients]]:
        """Pattern and full options of each exception."""
        kinds = {"penalty": float, "rounds": int, "sweeps": int, "damping": float}
        found: list[tuple[str, RefineCoefficients]] = []
        for pattern, values in layer_options(self.layers, kinds, self.name):
            options = replace(self, **values)
            options._check()
            found.append((pattern, options))
        return found

    def _refines(self, module: Module, op: LayerOp) -> bool:
        if not isinstance(op, DecomposedConv2d):
            return False
        shape = needed(module, op, "coefficients").shape
        size = shape[1] * math.prod(op.ints("kernel"))
        return np.issubdtype(needed(module, op, "coefficients").dtype, np.integer) and size <= self.max_size

    def _recode(self, module: Module, op: LayerOp, patches: Single, sums: Single) -> None:
        bases, codes = needed(module, op, "bases"), needed(module, op, "coefficients")
        quadratics = group_quadratics(
            patches, sums, needed(module, op, ORIGINAL_WEIGHT), int(op.value("groups")), self.damping
        )
        start = (
            bases.reshape(len(bases), -1).astype(np.float64),
            needed(module, op, "scale").astype(np.float64),
            codes.astype(np.int8),
        )
        found = code_layer(quadratics, start, self.penalty, rounds=self.rounds, sweeps=self.sweeps)
        set_array(module, op, "bases", "bases", found.bases.reshape(bases.shape))
        set_array(module, op, "coefficients", "coefficients", found.codes)
        set_array(module, op, "scale", "scale", found.scale)
        op.set_value("density", float(f"{found.nonzeros / found.codes.size:.4g}"))
        op.set_value("output_error", float(f"{found.error:.4g}"))
        # least squares with a matched mean is the end of it: calibrate's matching of deviations would undo it
        op.set_value(ORIGINAL_WEIGHT, None)


def group_quadratics(
    patches: Single, sums: Single, weight: NDArray[np.floating], groups: int, damping: float
) -> list[Quadratic]:
    """The quadratic of each group of a convolution.

    Args:
        patches: (n, C * R * S); sums: (n, K); both as :func:`layer_samples` gives them.
        weight: original weight (K, C/groups, R, S).
        groups, damping: of the convolution; as in :func:`~escc.passes.math.quadratic.layer_quadratic`.
    """
    outputs, taps = len(weight) // groups, weight[0, 0].size
    flat = weight.reshape(len(weight), -1)
    size = flat.shape[1]
    found: list[Quadratic] = []
    for group in range(groups):
        inputs = patches[:, group * size : (group + 1) * size]
        own = slice(group * outputs, (group + 1) * outputs)
        found.append(layer_quadratic(inputs, sums[:, own], flat[own], taps, damping))
    return found


def layer_samples(
    op: LayerOp, operands: list[Maps], wanted: Maps, count: int, random: np.random.Generator
) -> tuple[Single, Single]:
    """About ``count`` positions of a convolution, spread over all images; fewer where the patches of so many
    would not fit in 256 MiB.

    Args:
        op: the convolution; ``operands`` its input and, if any, residual.
        wanted: what is wanted before the activation, residual included.

    Returns:
        Patches (n, C * R * S) of the input and the sums wanted there, without the residual, (n, K).
    """
    top, left, bottom, right = op.ints("padding")
    height, width, _ = map_shape(op.out)
    positions = height * width
    count = min(count, _PATCH_VALUES // (map_shape(op.x)[2] * math.prod(op.ints("kernel"))) + 1)
    each = min(positions, max(1, -(-count // sum(len(item) for item in wanted))))
    patches: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []
    for index, want in enumerate(wanted):
        chosen = torch.from_numpy(np.sort(random.choice(positions, each, replace=False)))
        padded = functional.pad(operands[0][index], (left, right, top, bottom))
        patches.append(_patches(op, padded, chosen, width))
        here = want.flatten(2)[:, :, chosen]
        if len(operands) > 1:
            here = here - operands[1][index].flatten(2)[:, :, chosen]
        sums.append(here.permute(0, 2, 1).flatten(0, 1))
    return torch.cat(patches).numpy(), torch.cat(sums).numpy()


def _patches(op: LayerOp, padded: torch.Tensor, chosen: torch.Tensor, width: int) -> torch.Tensor:
    """What the kernel covers at the chosen outputs, (images * chosen, C * R * S)."""
    (rows, columns), (down, across) = op.ints("kernel"), op.ints("stride")
    dilation = op.ints("dilation")
    y = (chosen // width * down)[:, None, None] + (torch.arange(rows) * dilation[0])[:, None]
    x = (chosen % width * across)[:, None, None] + torch.arange(columns) * dilation[1]
    # (images, C, chosen, R, S)
    return padded[:, :, y, x].permute(0, 2, 1, 3, 4).reshape(-1, padded.shape[1] * rows * columns)
