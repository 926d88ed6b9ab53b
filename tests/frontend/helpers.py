"""Import a model and compare the imported network with torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from escc.frontend.capture import capture
from escc.frontend.importer import import_exported
from escc.ir.module import Module
from escc.passes.reference.float_graph import evaluate


class Probe(nn.Module):
    """A few layers, and a function that uses them."""

    def __init__(self, function: Callable[[Probe, torch.Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)
        self.mask = nn.Buffer(torch.tensor([1.0, 0.0, 2.0, 1.0]).view(4, 1, 1))

    def forward(self, x: torch.Tensor) -> object:
        return self.function(self, x)


class Many(nn.Module):
    """Several probes side by side: one export for all of them, told apart by their module paths."""

    def __init__(self, functions: Mapping[str, Callable[[Probe, torch.Tensor], object]]) -> None:
        super().__init__()
        self.probes = nn.ModuleDict({name: Probe(function) for name, function in functions.items()})

    def forward(self, x: torch.Tensor) -> list[object]:
        return [probe(x) for probe in self.probes.values()]


def fixed_batch(model: nn.Module) -> torch.export.ExportedProgram:
    """A model captured for 3 images of 4x8x8: much quicker than with a free batch size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks about these odd models
        return capture(torch.export.export(model, (torch.zeros(3, 4, 8, 8),)))


def probe_of(path: str) -> str:
    """The name of the probe that a module path lies in."""
    return path.removeprefix("probes.").split(".")[0]


def randomise(model: nn.Module) -> nn.Module:
    """Random weights, and batch norms that do something; evaluation mode."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_()
                module.bias.normal_()
    return model.eval()


def imported(model: nn.Module, shape: Sequence[int] = (4, 8, 8)) -> Module:
    """The module that a torch model becomes."""
    return import_exported(capture(model, input_shape=shape))


def names(module: Module) -> list[str]:
    """Its operations in order."""
    return [op.name for op in module.layers]


def assert_same(model: nn.Module, shape: Sequence[int] = (4, 8, 8), tolerance: float = 1e-4) -> Module:
    """Import, run on 3 random images, compare every output with torch; the module."""
    module = imported(model, shape)
    x = torch.randn(3, *shape)
    with torch.no_grad():
        result = model(x.clone())
    expected = list(result) if isinstance(result, tuple | list) else [result]
    found = evaluate(module, x.numpy())
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == tuple(b.shape)
        scale = max(1.0, float(b.abs().max()))
        assert float(np.abs(a - b.numpy()).max()) <= tolerance * scale
    return module
