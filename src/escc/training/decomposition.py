"""From dense convolutions to decomposed ones that learn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from escc.errors import EsccError
from escc.passes.decompose_kernels import DecomposeKernels
from escc.passes.layer_choice import Choice, Step, ends
from escc.passes.math.basis import relative_error
from escc.passes.math.ternary import Decomposition
from escc.passes.math.thresholds import ternarize
from escc.progress import Progress, silent
from escc.training.modules import (
    FIXED_THRESHOLD,
    FIXED_WINDOW,
    RULES,
    TTQ_THRESHOLD,
    TWN_THRESHOLD,
    DecomposedConv2d,
)

LAYER_OPTIONS = ("bases", "planes", "penalty", "method", "rule", "basis_bits")


@dataclass(frozen=True)
class DecomposedLayer:
    """What became of one convolution.

    Attributes:
        path: module path.
        error: ||W - W'||^2 / ||W||^2 of its weight.
        density: share of coefficients, as used, that are not zero.
    """

    path: str
    error: float
    density: float


@dataclass(frozen=True)
class _Options:
    """The options of one layer."""

    bases: int
    planes: int
    penalty: float
    method: str
    rule: str
    basis_bits: int
    iterations: int

    def check(self) -> None:
        DecomposeKernels(**self._shared(), method=self.method).check()
        if self.rule not in ("", *RULES):
            raise EsccError(
                f"unknown rule '{self.rule}'", where="decompose", hint=f"one of {', '.join(RULES)}"
            )

    @property
    def final_rule(self) -> str:
        """The rule given, else the one that keeps what the method finds."""
        return self.rule or ("none" if self.method == "svd" else "fixed")

    def fit(self, weight: NDArray[Any]) -> Decomposition:
        # one real plane says all about 1x1 kernels; ternary ones are expanded plane by plane
        planes = self.method == "svd" and weight.shape[2:] == (1, 1) and self.final_rule != "none"
        method = "svd-twn" if planes else self.method
        return DecomposeKernels(**self._shared(), method=method).fit(weight)

    def _shared(self) -> dict[str, Any]:
        return {
            "bases": self.bases,
            "planes": self.planes,
            "penalty": self.penalty,
            "iterations": self.iterations,
        }


def decompose(
    model: fx.GraphModule,
    *,
    bases: int = 6,
    method: str = "als",
    rule: str = "",
    planes: int = 4,
    penalty: float = 0.02,
    iterations: int = 25,
    basis_bits: int = 0,
    keep_dense: Sequence[str] = (),
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    min_inputs: int = 8,
    min_kernels: int = 128,
    max_error: float = 0.75,
    progress: Progress = silent,
) -> list[DecomposedLayer]:
    """Replace convolutions by :class:`DecomposedConv2d` modules, in place, at the same module paths.

    Layers are chosen as the compiler's ``decompose-kernels`` chooses them: not those that read the image or
    that no other layer follows, not depthwise or tiny ones, not those the bases fit worse than ``max_error``;
    a layer that ``layers`` names always.

    Args:
        model: a graph made by :func:`escc.training.graph.trainable`.
        bases: M of k x k kernels.
        method: "svd" (PENNI's, uncentred, real coefficients), "als" (exact ternary codes in alternation with
            least squares), "svd-twn", "twn" (see ``decompose-kernels``).
        rule: how coefficients are used, see :class:`DecomposedConv2d`; by default "none" for "svd", else
            "fixed". Ternary codes of the method are reproduced exactly; real ones are scaled so that the rule
            gives the codes it gives to them.
        planes: bases of 1x1 kernels; 0 leaves them dense. Without a ternary rule they always stay dense.
        penalty, iterations: of "als".
        basis_bits: 8 rounds bases to 8 bits from now on.
        keep_dense: shell patterns of module paths.
        layers: pattern -> options of :data:`LAYER_OPTIONS`; the last match wins.
        min_inputs, min_kernels, max_error: bounds of the choice.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        One entry per decomposed layer, in the order of the graph.

    Raises:
        EsccError: an option out of range or unknown.
    """
    general = _Options(bases, planes, penalty, method, rule, basis_bits, iterations)
    general.check()
    exceptions: list[tuple[str, _Options]] = []
    for pattern, options in (layers or {}).items():
        if unknown := sorted(options.keys() - set(LAYER_OPTIONS)):
            hint = f"known: {', '.join(LAYER_OPTIONS)}"
            raise EsccError(f"layers: '{pattern}' has unknown options {', '.join(unknown)}", hint=hint)
        own = replace(general, **options)
        own.check()
        exceptions.append((pattern, own))
    choice = Choice(tuple(keep_dense), planes if general.final_rule != "none" else 0, min_inputs, min_kernels)
    at_ends = _paths_at_ends(model)
    work: list[_Job] = []
    for path, layer in _convolutions(model).items():
        named = [options for pattern, options in exceptions if fnmatchcase(path, pattern)]
        kernel, inner = cast("tuple[int, int]", layer.kernel_size), layer.in_channels // layer.groups
        if named:
            work.append(_Job(path, layer, named[-1], float("inf")))
        elif path not in at_ends and choice.takes(path, kernel, inner, layer.out_channels):
            work.append(_Job(path, layer, general, max_error))
    return _carry_out(model, work, progress)


@dataclass(frozen=True)
class _Job:
    path: str
    dense: nn.Conv2d
    options: _Options
    max_error: float

    @property
    def weight(self) -> NDArray[np.float32]:
        return self.dense.weight.detach().cpu().numpy()


def _convolutions(model: fx.GraphModule) -> dict[str, nn.Conv2d]:
    """The convolutions the graph calls whose padding is a pair of numbers."""
    found: dict[str, nn.Conv2d] = {}
    for node in model.graph.find_nodes(op="call_module"):
        module = model.get_submodule(str(node.target))
        if isinstance(module, nn.Conv2d) and not isinstance(module.padding, str):
            found[str(node.target)] = module
    return found


def _paths_at_ends(model: fx.GraphModule) -> set[str]:
    """Module paths of the layers that read the image or that no other layer follows."""
    steps: list[Step] = []
    for node in model.graph.nodes:
        reads = tuple(source for source in node.all_input_nodes if source.op != "get_attr")
        if node.op in ("call_module", "call_function") and reads:
            steps.append(Step(reads, node, _layer(model, node) is not None))
    found = ends(model.graph.find_nodes(op="placeholder"), steps)
    return {str(cast("fx.Node", node).target) for node in found}


def _layer(model: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The convolution or linear layer a node calls."""
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, nn.Conv2d | nn.Linear | DecomposedConv2d) else None


def _carry_out(model: fx.GraphModule, work: Sequence[_Job], progress: Progress) -> list[DecomposedLayer]:
    # the largest layers first, so that no thread is left with a long one at the end
    order = sorted(work, key=lambda job: -job.dense.weight.numel())
    found: dict[str, DecomposedLayer] = {}
    with ThreadPoolExecutor(min(len(work), os.cpu_count() or 1) or 1) as pool:
        fits = pool.map(lambda job: job.options.fit(job.weight), order)
        for done, (job, fit) in enumerate(zip(order, fits, strict=True), start=1):
            if fit.error(job.weight) <= job.max_error:
                layer = _learning(job, fit, normalised=_is_normalised(model, job.path))
                model.set_submodule(job.path, layer)
                error = relative_error(job.weight, layer.weight().detach().cpu().numpy())
                density = float(layer.codes()[0].count_nonzero()) / layer.coefficients.numel()
                found[job.path] = DecomposedLayer(job.path, error, density)
            progress("decompose", done, len(work))
    return [found[job.path] for job in work if job.path in found]


def _is_normalised(model: fx.GraphModule, path: str) -> bool:
    """Whether a batch norm is all that reads a layer: then the layer's scale makes no difference."""
    readers = [user for node in model.graph.nodes if node.target == path for user in node.users]
    return bool(readers) and all(
        user.op == "call_module" and isinstance(model.get_submodule(str(user.target)), nn.BatchNorm2d)
        for user in readers
    )


def _learning(job: _Job, fit: Decomposition, normalised: bool) -> DecomposedConv2d:
    rule = job.options.final_rule
    layer = DecomposedConv2d.like(
        job.dense,
        len(fit.bases),
        rule=rule,
        basis_bits=job.options.basis_bits,
        learn_scale=rule != "none" and not normalised,
    )
    latents, bases = starting_point(fit, rule)
    with torch.no_grad():
        for target, values in ((layer.bases, bases), (layer.coefficients, latents), (layer.scale, fit.scale)):
            target.copy_(torch.from_numpy(np.asarray(values, np.float32)))
    return layer


def starting_point(fit: Decomposition, rule: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Latent coefficients and bases from which a rule makes the weight of a decomposition.

    Ternary codes are reproduced exactly: they are their own latents. Real coefficients get the codes and one
    scale per basis that ternary weight networks would give them (for "ttq": by its own threshold).

    Returns:
        (latents (K, C, M), bases (M, R, S)).
    """
    values = fit.coefficients.astype(np.float64)
    if rule == "none" or np.issubdtype(fit.coefficients.dtype, np.integer):
        return values, fit.bases
    magnitude = np.abs(values)
    if rule == "twn":
        return values, fit.bases
    if rule == "ttq":
        kept = magnitude > TTQ_THRESHOLD * magnitude.max(axis=(0, 1))
        sizes = (magnitude * kept).sum(axis=(0, 1)) / np.maximum(kept.sum(axis=(0, 1)), 1)
        return values, fit.bases * np.where(sizes > 0, sizes, 1.0)[:, None, None]
    sizes = ternarize(values, axis=(0, 1))[1].reshape(-1, 1, 1)
    threshold = TWN_THRESHOLD * magnitude.mean(axis=(0, 1))
    latents = values * (FIXED_THRESHOLD / np.where(threshold > 0, threshold, 1.0))
    return np.clip(latents, -FIXED_WINDOW, FIXED_WINDOW), fit.bases * np.where(sizes > 0, sizes, 1.0)
