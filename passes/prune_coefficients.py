"""prune-coefficients: drop the coefficients that matter least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from escc.errors import EsccError
from escc.ir.base import LayerOp
from escc.ir.escalate import DecomposedConv2d
from escc.ir.module import Module
from escc.ir.passes import Pass, PassContext
from escc.passes.convolutions import ORIGINAL_WEIGHT, dense_weight, needed, set_array
from escc.passes.math.basis import relative_error
from escc.passes.math.pruning import remove_cheapest
from escc.passes.math.ternary import refit_scale
from escc.passes.math.thresholds import magnitude_mask


@dataclass
class PruneCoefficients(Pass):
    """Set coefficients of decomposed layers to zero; the scale of each output channel is fitted again.

    Options:
        std: real coefficients c go where |c| < std * (standard deviation of the layer's), PENNI's rule.
        density: ternary coefficients go, those first whose loss costs least, until this share is left in
            every layer. 1 changes nothing: exact coding has already weighed each against its penalty.
        trained: prune layers that came decomposed into the compiler too; they are taken as trained that way.
    """

    name: ClassVar[str] = "prune-coefficients"
    requires: ClassVar[frozenset[str]] = frozenset({"decomposed"})
    establishes: ClassVar[frozenset[str]] = frozenset({"pruned"})

    std: float = 1.0
    density: float = 1.0
    trained: bool = False

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite the module.

        Raises:
            EsccError: an option out of range.
        """
        if not 0 <= self.std < np.inf or not 0 < self.density <= 1:
            raise EsccError(
                f"bad options: std={self.std} density={self.density}",
                where=self.name,
                hint="std is at least 0, density in (0, 1]",
            )
        layers = [op for op in module.layers if isinstance(op, DecomposedConv2d)]
        for done, op in enumerate(layers, start=1):
            self._prune(module, op)
            context.progress(self.name, done, len(layers))
        module.drop_unused_arrays()

    def _prune(self, module: Module, op: LayerOp) -> None:
        coefficients = needed(module, op, "coefficients")
        bases, scale = needed(module, op, "bases"), needed(module, op, "scale")
        symbol = op.symbol(ORIGINAL_WEIGHT)
        if symbol is None and not self.trained:
            return
        target = dense_weight(module, op) if symbol is None else module.store[symbol]
        if coefficients.dtype == np.int8:
            pruned = remove_cheapest(target, bases, coefficients, scale, self.density)
        else:
            pruned = np.where(magnitude_mask(coefficients, self.std), coefficients, np.float32(0))
        if pruned is coefficients or np.array_equal(pruned, coefficients):
            return
        set_array(module, op, "coefficients", "pruned_coefficients", pruned)
        set_array(module, op, "scale", "pruned_scale", refit_scale(target, bases, pruned, scale))
        error = relative_error(target, dense_weight(module, op))
        op.set_value("relative_error", float(f"{error:.4g}"))
        op.set_value("density", float(f"{np.count_nonzero(pruned) / pruned.size:.4g}"))
