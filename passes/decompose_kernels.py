"""decompose-kernels: convolutions share a few basis kernels, combined by ternary coefficients."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.ir.base import LayerOp, map_shape, module_path, replace_op
from escc.ir.escalate import DecomposedConv2d
from escc.ir.module import Module
from escc.ir.nn import Conv2d, ConvolutionLike
from escc.ir.passes import Pass, PassContext
from escc.ir.pins import came_trained
from escc.ir.xdsl import Operation
from escc.passes.convolutions import ORIGINAL_WEIGHT, keep_array, needed
from escc.passes.layer_choice import Choice, Step, ends
from escc.passes.layer_options import items, last_match, layer_options
from escc.passes.math.coding import LARGEST
from escc.passes.math.ternary import Decomposition, fit_ternary, svd_float, svd_ternary, tap_ternary

METHODS = ("als", "svd-twn", "twn", "svd")


@dataclass
class DecomposeKernels(Pass):
    """Replace convolutions W by scale[k] * sum_m coefficients[k, c, m] * bases[m] (PENNI; ESCALATE).

    Left dense unless ``layers`` names them: convolutions that read the image, those that no convolution
    follows (the classifier), those with few input channels per group (depthwise) or few kernels, and those
    the bases fit worse than ``max_error``. A network that was compressed or quantised in training is left as
    it was trained, but for the layers that ``layers`` names.

    Options:
        bases: basis kernels M per layer, 1 to 9 for "als".
        penalty: price of a non-zero coefficient in units of the layer's mean kernel energy.
        planes: bases for 1x1 kernels, where a basis is the scale of one ternary plane; 0 leaves them dense.
        method: "als" exact ternary coding in alternation with least squares; "svd-twn" SVD, then thresholds;
            "twn" plain ternary weights, one basis per tap; "svd" real coefficients (R*S bases are lossless).
        iterations: most alternations of "als".
        keep_dense: patterns of module paths to leave alone, separated by ';' or ','.
        layers: exceptions as ``pattern:option=value[:option=value]``, separated likewise; options are bases,
            penalty, planes and method; a layer named here is always decomposed. The last match wins.
        min_inputs: fewest input channels per group.
        min_kernels: fewest kernels, outputs times inputs per group.
        max_error: largest relative squared error of the weight.
    """

    name: ClassVar[str] = "decompose-kernels"
    requires: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})
    establishes: ClassVar[frozenset[str]] = frozenset({"decomposed"})

    bases: int = 6
    penalty: float = 0.02
    planes: int = 4
    method: str = "als"
    iterations: int = 25
    keep_dense: str = ""
    layers: str = ""
    min_inputs: int = 8
    min_kernels: int = 128
    max_error: float = 0.75

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite the module.

        Raises:
            EsccError: an option out of range or not understood.
        """
        self.check()
        exceptions = self._exceptions()
        at_ends = _ends(module)
        trained = came_trained(module)
        work: list[tuple[LayerOp, DecomposeKernels, bool]] = []
        for op in module.layers:
            if isinstance(op, Conv2d):
                path = module_path(op)
                named = last_match(path, exceptions)
                if named or (not trained and op not in at_ends and self._chosen(op)):
                    work.append((op, named or self, named is not None))
        # the largest layers first, so that no thread is left with a long one at the end
        work.sort(key=lambda item: -needed(module, item[0], "weight").size)
        with ThreadPoolExecutor(min(len(work), os.cpu_count() or 1) or 1) as pool:
            fits = pool.map(lambda item: item[1].fit(needed(module, item[0], "weight")), work)
            for done, ((op, _, named), fit) in enumerate(zip(work, fits, strict=True), start=1):
                _apply(module, op, fit, 1e30 if named else self.max_error)
                context.progress(self.name, done, len(work))
        module.drop_unused_arrays()

    def fit(self, weight: NDArray[Any]) -> Decomposition:
        """Decompose one weight (K, C/groups, R, S) as the options say."""
        bases = self.planes if weight.shape[2:] == (1, 1) else self.bases
        if self.method == "als":
            return fit_ternary(weight, bases, self.penalty, iterations=self.iterations)
        if self.method == "twn":
            return tap_ternary(weight)
        return svd_ternary(weight, bases) if self.method == "svd-twn" else svd_float(weight, bases)

    def check(self) -> None:
        """Look at the options' values.

        Raises:
            EsccError: one is out of range.
        """

        def refuse(what: str) -> EsccError:
            return EsccError(what, where=self.name)

        if self.method not in METHODS:
            raise refuse(f"unknown method '{self.method}', known: {', '.join(METHODS)}")
        most = LARGEST if self.method == "als" else 64
        for option, least in (("bases", 1), ("planes", 0)):
            value = int(getattr(self, option))
            if not least <= value <= most:
                raise refuse(f"{option}={value} is not in {least}..{most}")
        if not 0 <= self.penalty < np.inf:
            raise refuse(f"penalty={self.penalty} is not a number >= 0")
        if self.iterations < 1:
            raise refuse(f"iterations={self.iterations} is not positive")

    def _exceptions(self) -> list[tuple[str, DecomposeKernels]]:
        """Pattern and full options of each exception."""
        kinds = {"bases": int, "planes": int, "penalty": float, "method": str}
        found: list[tuple[str, DecomposeKernels]] = []
        for pattern, values in layer_options(self.layers, kinds, self.name):
            options = replace(self, **values)
            options.check()
            found.append((pattern, options))
        return found

    def _chosen(self, op: Conv2d) -> bool:
        """The default rule."""
        choice = Choice(tuple(items(self.keep_dense)), self.planes, self.min_inputs, self.min_kernels)
        inputs = map_shape(op.x)[2] // int(op.value("groups"))
        return choice.takes(module_path(op), op.ints("kernel"), inputs, int(op.value("outputs")))


def _ends(module: Module) -> set[Operation]:
    """The convolutions at the ends of the network."""
    steps = [Step(tuple(op.operands), op.out, isinstance(op, ConvolutionLike)) for op in module.layers]
    found = ends(module.inputs, steps)
    return {op for op in module.layers if op.out in found}


def _apply(module: Module, op: LayerOp, fit: Decomposition, max_error: float) -> None:
    error = fit.fitted_error
    if error is None:
        error = fit.error(needed(module, op, "weight"))
    if error > max_error:
        return
    shared = {key: value for key, value in op.properties.items() if key != "weight"}
    new = DecomposedConv2d.make(
        op.operands,
        None,
        op.location,
        bases=keep_array(module, op, "bases", fit.bases),
        coefficients=keep_array(module, op, "coefficients", fit.coefficients),
        scale=keep_array(module, op, "scale", fit.scale),
        **shared,
    )
    new.attributes.update(op.attributes)
    new.set_value(ORIGINAL_WEIGHT, op.properties["weight"])
    new.set_value("relative_error", float(f"{error:.4g}"))
    new.set_value("density", float(f"{fit.density:.4g}"))
    replace_op(op, [new])
