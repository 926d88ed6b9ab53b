"""Deterministic random weights, and batch-norm statistics that fit them."""

from __future__ import annotations

import torch
from torch import nn


def initialise(model: nn.Module, seed: int) -> nn.Module:
    """He initialisation (fan out) of convolutions, small linear layers, neutral batch norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1] // module.groups
                module.weight.normal_(0.0, (2.0 / fan_out) ** 0.5, generator=generator)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0.0, module.in_features**-0.5, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.zero_()
    return model


def settle(model: nn.Module, shape: tuple[int, int, int], seed: int, batches: int) -> nn.Module:
    """Average batch statistics over ``batches`` batches of 4 standard-normal images (C, H, W) of ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
            norm.train()
        with torch.no_grad():
            for _ in range(batches if norms else 0):
                model(torch.randn(4, *shape, generator=generator))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
    return model
