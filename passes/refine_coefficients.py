"""refine-coefficients: recode decomposed layers for the inputs they really see."""

from __future__ import annotations

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
from escc.passes.math.covariance import CovarianceFit, least_squares_target, refine
from escc.passes.reference.side_by_side import Affine, Maps, calibration_batches, channel_statistics, walk


@dataclass
class RefineCoefficients(Pass):
    """Recode ternary layers, first to last, for the least error of their sums on calibration images.

    Layers of 1x1 kernels keep theirs. Each layer sees what the compressed layers before it deliver and
    aims at the sums of the original network (methods of OBQ/GPTQ with a ternary codebook; bases and scales
    by least squares). Without calibration images nothing changes.

    Options:
        penalty: price of a non-zero coefficient, as a share of the mean output energy of one kernel.
        rounds: alternations of coding and least squares; sweeps: coordinate descents in each.
        images: at most that many calibration images.
        samples: about how many positions of all images are used for a layer.
        max_size: layers with more inputs per output (C * R * S) keep their codes.
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
    max_size: int = 1152
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

        def recode(op: LayerOp, inputs: Maps, wanted: Maps) -> None:
            options = last_match(module_path(op), exceptions) or self
            if options._refines(module, op):
                options._recode(module, op, inputs, wanted, random)

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
        if not isinstance(op, DecomposedConv2d) or int(op.value("groups")) != 1:
            return False
        kernel = op.ints("kernel")
        size = map_shape(op.x)[2] * kernel[0] * kernel[1]
        ternary = np.issubdtype(needed(module, op, "coefficients").dtype, np.integer)
        # planes of a 1x1 kernel are a fine number system already: little to gain for a long loop over inputs
        return ternary and kernel != (1, 1) and size <= self.max_size

    def _recode(
        self, module: Module, op: LayerOp, inputs: Maps, wanted: Maps, random: np.random.Generator
    ) -> None:
        patches, sums = _samples(op, inputs, wanted, self.samples, random)
        original = needed(module, op, ORIGINAL_WEIGHT)
        flat = original.reshape(len(original), -1).astype(np.float64)
        target, covariance = least_squares_target(patches, sums, flat, self.damping)
        bases = needed(module, op, "bases").astype(np.float64)
        codes = needed(module, op, "coefficients")
        energy = float(np.einsum("kn,kn->", target @ covariance, target)) / (codes.shape[0] * codes.shape[1])
        fit = CovarianceFit(
            target,
            covariance,
            bases.reshape(len(bases), -1),
            np.maximum(needed(module, op, "scale").astype(np.float64), 1e-12),
            codes.astype(np.int8),
            self.penalty * energy,
        )
        refine(fit, self.rounds, self.sweeps)
        set_array(module, op, "bases", "bases", fit.bases.reshape(bases.shape))
        set_array(module, op, "coefficients", "coefficients", fit.codes)
        set_array(module, op, "scale", "scale", fit.scale)
        op.set_value("density", float(f"{np.count_nonzero(fit.codes) / fit.codes.size:.4g}"))
        share = fit.error() / max(energy * codes.shape[0] * codes.shape[1], 1e-30)
        op.set_value("output_error", float(f"{share:.4g}"))
        # least squares with a matched mean is the end of it: calibrate's matching of deviations would undo it
        op.set_value(ORIGINAL_WEIGHT, None)


def _samples(
    op: LayerOp, inputs: Maps, wanted: Maps, count: int, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Patches (n, C * R * S) of our inputs and the original sums (n, K), n about ``count``."""
    top, left, bottom, right = op.ints("padding")
    height, width, _ = map_shape(op.out)
    positions = height * width
    images = sum(len(item) for item in inputs)
    each = min(positions, max(1, -(-count // images)))
    patches: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []
    for item, want in zip(inputs, wanted, strict=True):
        padded = functional.pad(item, (left, right, top, bottom))
        columns = functional.unfold(
            padded, op.ints("kernel"), dilation=op.ints("dilation"), stride=op.ints("stride")
        )
        chosen = torch.from_numpy(np.sort(random.choice(positions, each, replace=False)))
        patches.append(columns[:, :, chosen].permute(0, 2, 1).reshape(-1, columns.shape[1]))
        sums.append(want.flatten(2)[:, :, chosen].permute(0, 2, 1).reshape(-1, want.shape[1]))
    return torch.cat(patches).double().numpy(), torch.cat(sums).double().numpy()
