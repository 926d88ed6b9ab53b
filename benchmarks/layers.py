"""Programs of one convolution with drawn numbers, for benchmarks that vary one thing at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.golden import DrawnCodes, Snapped, drawn_bytes, drawn_weight
from benchmarks.shapes import Layer
from escc.driver import CompileOptions, compile_module, default_pipeline, import_model
from escc.ir.passes import Pass
from escc.isa.arch import Arch
from escc.isa.program import Program
from escc.passes.calibrate import Calibrate
from escc.passes.decompose_kernels import DecomposeKernels


def layer_program(layer: Layer, arch: Arch | None = None, seed: int = 1) -> Program:
    """The program of a layer; from quantisation on it is the default pipeline's.

    Args:
        layer: sizes and densities.
        arch: the default machine if None.
        seed: of codes and weights.
    """
    import torch
    from torch import nn

    conv = nn.Conv2d(
        layer.chans, layer.outs, layer.kernel, layer.stride, padding=(layer.kernel - 1) // 2, bias=False
    )
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(drawn_weight(seed, *conv.weight.shape)))
    model = nn.Sequential(conv, nn.ReLU()).eval()
    module = import_model(model, input_shape=(layer.chans, layer.side, layer.side))
    options = CompileOptions(dense=not layer.bases, refine=False)
    passes: list[Pass] = []
    for item in default_pipeline(options):
        if isinstance(item, DecomposeKernels):
            # a convolution that reads the image is decomposed only where it is named
            item = DrawnCodes(bases=layer.bases, layers=f"*:bases={layer.bases}", share=layer.coefficients)
        elif isinstance(item, Calibrate):
            item = Snapped()
        passes.append(item)
    images = layer_images(layer, 1).astype(np.float32)
    done = compile_module(module, arch=arch, calibration=images, passes=passes)
    assert done.program is not None
    return done.program


def layer_images(layer: Layer, count: int, seed: int = 1) -> NDArray[np.float32]:
    """(count, C, H, W) non-negative values, the layer's share of them not zero."""
    shape = (count, layer.chans, layer.side, layer.side)
    values = drawn_bytes(seed, *shape) / 64 + 1 / 64
    kept = drawn_bytes(seed + 1, *shape) < 256 * layer.activations
    return (values * kept).astype(np.float32)
