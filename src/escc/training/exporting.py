"""From a network that learns to the program that is compiled."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import Tensor, nn

from escc.frontend.capture import capture
from escc.training.modules import Conv2d, DecomposedConv2d, FrozenDecomposedConv2d, Linear

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def frozen(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode as it is compiled.

    Decomposed layers hold their bases and codes as used, 8-bit layers their rounded weights. ``model`` itself
    stays as it is.
    """
    made = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if isinstance(module, DecomposedConv2d):
            made.set_submodule(name, FrozenDecomposedConv2d(module))
        elif isinstance(module, Conv2d | Linear) and module.weight_bits:
            module.weight.data = module.used_weight().detach()
            module.weight_bits = 0
    return made.eval()


def export(model: nn.Module, example: Tensor) -> ExportedProgram:
    """The network as a program for ``escc compile``, with a free batch size.

    Decomposed layers are ``escc::decomposed_conv2d``, activation quantisers ``escc::fake_quantize``.

    Args:
        model: a network made by :func:`trainable`.
        example: an image (N, C, H, W); only its shape matters.

    Raises:
        EsccError: torch cannot export the model.
    """
    return capture(frozen(model), example=example)
