"""A network ready to be compared: its program for escc's machine, and the same layers for every other one.

Activations are the integers of the compiled network, from the integer reference, and every machine gets the
same. Weights are each machine's own, all made of one float weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.backend_sim.baselines import ConvWork
from escc.compare.statistics import Network, Statistics
from escc.compare.synthesis import (
    CodeWeights,
    DrawWeights,
    SteerActivations,
    is_depthwise,
    natural_images,
    prune,
    quantize_weight,
)
from escc.driver import CompileOptions, compile_module, default_pipeline, import_model, machine_passes
from escc.errors import EsccError
from escc.frontend import zoo
from escc.ir.base import LayerOp, map_shape, module_path
from escc.ir.escalate import QuantizedConv2d
from escc.ir.module import Module
from escc.ir.nn import ConvolutionLike
from escc.ir.passes import Pass, PassContext, make_pass, run_pipeline
from escc.isa.arch import Arch
from escc.isa.program import Program
from escc.passes.calibrate import Calibrate
from escc.passes.convolutions import dense_weight
from escc.passes.reference.integer_graph import evaluate_integer
from escc.progress import Progress, silent

Images = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer.

    ``dense`` holds its input and 8-bit weights; ``pruned`` the same input with the weights that magnitude
    pruning keeps. ``coefficients``: share of non-zero codes of escc's form, None where it is dense.
    """

    dense: ConvWork
    pruned: ConvWork
    coefficients: float | None
    depthwise: bool

    @property
    def activation_density(self) -> float:
        """Share of non-zero inputs."""
        return self.dense.x_nonzeros / self.dense.x.size


@dataclass(frozen=True)
class Workload:
    """A network with one image.

    ``origin`` says in a line what its numbers are; ``statistics`` what a synthetic one was drawn with, None
    for a trained one. ``outputs``: what the program must give, (1, *torch_shape) each.
    """

    name: str
    title: str
    origin: str
    statistics: Statistics | None
    program: Program
    images: Images
    layers: tuple[Layer, ...]
    outputs: tuple[NDArray[Any], ...]

    @property
    def synthetic(self) -> bool:
        """Whether weights and activations were drawn."""
        return self.statistics is not None

    @property
    def activations_digest(self) -> str:
        """A checksum over the inputs of all layers: what machines were given is the same where it is."""
        digest = hashlib.sha256()
        for layer in self.layers:
            digest.update(layer.dense.name.encode())
            digest.update(np.ascontiguousarray(layer.dense.x).tobytes())
        return digest.hexdigest()[:16]

    def reached(self) -> dict[str, float]:
        """Densities as they came out: weighted by dense MACs, of the layers that have them."""
        layers = [layer for layer in self.layers if not layer.depthwise]
        spatial = [x for x in layers if x.coefficients is not None and x.dense.weight.shape[2:] != (1, 1)]
        found = {
            "activations": _weighted([(x.dense.macs, x.activation_density) for x in layers]),
            "weights": _weighted(
                [(x.dense.macs, x.pruned.weight_nonzeros / x.pruned.weight.size) for x in layers[1:]]
            ),
            "coefficients": _weighted([(x.dense.macs, x.coefficients or 0.0) for x in spatial]),
        }
        return {name: value for name, value in found.items() if value == value}

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense network."""
        return sum(layer.dense.macs for layer in self.layers)


def _weighted(pairs: Sequence[tuple[int, float]]) -> float:
    total = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / total if total else float("nan")


FIRST_LAYER_FACTOR = 3.0
"""The first layer keeps so many times the share of weights of the others: it is pruned less."""


def synthetic_workload(
    network: Network,
    *,
    arch: Arch | None = None,
    seed: int = 0,
    statistics: Statistics | None = None,
    drawn: Module | None = None,
    progress: Progress = silent,
) -> Workload:
    """Draw a network with its stated statistics and compile it.

    Args:
        network: which one.
        arch: escc's machine; the default one if None.
        seed: of weights, biases and the image.
        statistics: others than the network's own.
        drawn: what :func:`drawn_module` gives for the network and the seed, where it is at hand.
    """
    stated = statistics or network.statistics
    module = (drawn or drawn_module(network, seed)).clone()
    images = natural_images(tuple(module.input_ports[0].torch_shape), 1, seed)
    passes: list[Pass] = [
        CodeWeights(stated),
        SteerActivations(stated, seed),
        Calibrate(correct_statistics=False),
        make_pass("quantize-hybrid"),
        *machine_passes(),
    ]
    origin = f"synthetic: weights, activations and image drawn from seed {seed}"
    built = _Builder(module, images, stated.weights.value, progress)
    return built.build(network.name, network.title, origin, stated, passes, arch)


def trained_workload(
    module: Module,
    name: str,
    images: Images,
    *,
    weight_density: float,
    arch: Arch | None = None,
    options: CompileOptions | None = None,
    origin: str = "the given network",
    progress: Progress = silent,
) -> Workload:
    """Compile a given network; channels are not removed, so that all machines run the same layers.

    Args:
        module: what :func:`escc.driver.import_model` gave; changed in place.
        images: (N, C, H, W); the first one is compared on, all of them set the scales.
        weight_density: share of weights that pruning keeps for the sparse machines.
    """
    if not len(images):
        raise EsccError("there are no images to run", where=name)
    chosen = replace(options or CompileOptions(), shrink=False)
    built = _Builder(module, images, weight_density, progress)
    return built.build(name, name, origin, None, default_pipeline(chosen), arch)


def skeleton_module(network: Network) -> Module:
    """The imported network with weights of zero: only its shape is wanted.

    Raises:
        EsccError: the zoo does not know it.
    """
    import torch
    from torch import nn

    with torch.device("meta"):
        model = zoo.skeleton(network.zoo, **network.options)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.reset_parameters()
            elif isinstance(part, nn.Conv2d | nn.Linear):
                part.weight.zero_()
                if part.bias is not None:
                    part.bias.zero_()
    return import_model(model, input_shape=zoo.default_shape(network.zoo))


def drawn_module(network: Network, seed: int) -> Module:
    """The network with drawn weights, fused, before any of its layers is coded."""
    module = skeleton_module(network)
    passes = [make_pass("fold-batch-norm"), make_pass("fuse-requantize"), DrawWeights(seed)]
    run_pipeline(module, passes, PassContext())
    return module


class _Builder:
    """Runs the pipeline and picks up what the other machines need on the way."""

    def __init__(self, module: Module, images: Images, weight_density: float, progress: Progress) -> None:
        self.module, self.images, self.progress = module, images, progress
        self.weight_density = weight_density
        self.weights = _float_weights(module) if "fused" in module.facts else []
        self.quantized: Module | None = None

    def build(
        self,
        name: str,
        title: str,
        origin: str,
        statistics: Statistics | None,
        passes: Sequence[Pass],
        arch: Arch | None,
    ) -> Workload:
        """Compile, evaluate, collect."""

        def told(stage: str, done: int, total: int) -> None:
            self.progress(f"{name}: {stage}", done, total)

        done = compile_module(
            self.module,
            arch=arch,
            calibration=self.images,
            passes=passes,
            after=[self._watch],
            progress=told,
        )
        assert done.program is not None
        assert self.quantized is not None
        told("integer maps", 0, 0)
        maps: dict[int, NDArray[Any]] = {}
        layers = list(self.quantized.layers)
        order = {id(op): index for index, op in enumerate(layers)}

        def keep(op: LayerOp, value: Any) -> None:
            maps[order[id(op)]] = value[0].numpy().astype(_integers(op))

        outputs = evaluate_integer(self.quantized, self.images[:1], keep, literal=False)
        return Workload(
            name,
            title,
            origin,
            statistics,
            done.program,
            self.images[:1],
            tuple(self._layers(layers, maps)),
            tuple(outputs),
        )

    def _watch(self, _index: int, item: Pass, module: Module, _changed: bool) -> None:
        """Keep the weights once the layers are final (drawn ones are from the start), and the integers."""
        if item.name == "fuse-requantize":
            self.weights = _float_weights(module)
        elif item.name == "quantize-hybrid":
            self.quantized = module.clone()

    def _layers(self, layers: list[LayerOp], maps: dict[int, NDArray[Any]]) -> list[Layer]:
        assert self.quantized is not None
        module = self.quantized
        made = {op.out: maps[index] for index, op in enumerate(layers)}
        given = self._inputs(module)
        outputs = set(module.outputs)
        found: list[Layer] = []
        convolutions = [op for op in layers if isinstance(op, QuantizedConv2d)]
        for op, weight in zip(convolutions, self.weights, strict=True):
            first = op.x in given
            x = given[op.x] if first else made[op.x]
            depthwise = is_depthwise(op)
            density = 1.0 if depthwise else self.weight_density * (FIRST_LAYER_FACTOR if first else 1.0)
            top, left, bottom, right = op.ints("padding")
            stride, dilation = op.ints("stride"), op.ints("dilation")
            dense = ConvWork(
                module_path(op) or op.name,
                x,
                quantize_weight(weight),
                (stride[0], stride[1]),
                (top, left, bottom, right),
                (dilation[0], dilation[1]),
                int(op.value("groups")),
                int(np.count_nonzero(made[op.out])),
                first,
                op.out in outputs,
            )
            pruned = replace(dense, weight=quantize_weight(weight, prune(weight, min(1.0, density))))
            codes = op.symbol("coefficients")
            share = None if codes is None else float(np.mean(module.store[codes] != 0))
            found.append(Layer(dense, pruned, share, depthwise))
        return found

    def _inputs(self, module: Module) -> dict[Any, NDArray[Any]]:
        """The image as the integers the machine is given."""
        from escc.passes.math.fixed_point import quantize_input

        (value,) = module.inputs
        kind: Any = value.type
        height, width, channels = map_shape(value)
        integers = quantize_input(self.images[0], kind.scale_value, kind.signed)
        return {value: integers.reshape(channels, height, width)}


def _float_weights(module: Module) -> list[NDArray[np.float32]]:
    """(K, C/groups, R, S) of every convolution in order."""
    return [
        dense_weight(module, op).astype(np.float32) for op in module.layers if isinstance(op, ConvolutionLike)
    ]


def _integers(op: LayerOp) -> type[np.int8] | type[np.uint8]:
    kind: Any = op.out.type
    return np.int8 if kind.signed else np.uint8
