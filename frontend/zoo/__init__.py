"""Network definitions of our own, with the parameter names of the usual public state dictionaries.

No weights ship with escc: :func:`build` gives seeded random ones, ``load_state_dict`` takes what users have.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from escc.errors import EsccError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ZooEntry:
    """One network: where its definition is, and the input it was designed for.

    Attributes:
        module: module of this package that defines it.
        factory: name of the function there: ``factory(num_classes=..., in_channels=..., **options)``.
        options: fixed options of this network.
        shape: default input (C, H, W).
        num_classes: default number of outputs.
        parameters_from: whose public state dictionaries fit.
    """

    module: str
    factory: str
    options: dict[str, Any]
    shape: tuple[int, int, int]
    num_classes: int
    parameters_from: str


IMAGENET = (3, 224, 224)
CIFAR = (3, 32, 32)

ZOO: dict[str, ZooEntry] = {
    "resnet8": ZooEntry("cifar", "resnet", {"blocks": 1}, CIFAR, 10, "resnet20's, one block per stage"),
    "resnet20": ZooEntry("cifar", "resnet", {"blocks": 3}, CIFAR, 10, "akamaster/pytorch_resnet_cifar10"),
    "resnet56": ZooEntry("cifar", "resnet", {"blocks": 9}, CIFAR, 10, "akamaster/pytorch_resnet_cifar10"),
    "resnet18_cifar": ZooEntry("cifar", "resnet18", {}, CIFAR, 10, "kuangliu/pytorch-cifar"),
    "vgg16_cifar": ZooEntry("vgg", "vgg16_cifar", {}, CIFAR, 10, "kuangliu/pytorch-cifar"),
    "resnet18": ZooEntry("resnet", "resnet", {"layers": (2, 2, 2, 2)}, IMAGENET, 1000, "torchvision"),
    "resnet50": ZooEntry(
        "resnet", "resnet", {"layers": (3, 4, 6, 3), "bottleneck": True}, IMAGENET, 1000, "torchvision"
    ),
    "vgg16_bn": ZooEntry("vgg", "vgg16_bn", {}, IMAGENET, 1000, "torchvision"),
    "alexnet": ZooEntry("alexnet", "alexnet", {}, IMAGENET, 1000, "torchvision"),
    "mobilenet_v2": ZooEntry("mobilenet", "mobilenet_v2", {}, IMAGENET, 1000, "torchvision"),
    "mobilenet_v2_cifar": ZooEntry(
        "mobilenet", "mobilenet_v2", {"small_images": True}, CIFAR, 10, "none: torchvision's names"
    ),
    "squeezenet1_0": ZooEntry("squeezenet", "squeezenet", {"version": "1.0"}, IMAGENET, 1000, "torchvision"),
    "squeezenet1_1": ZooEntry("squeezenet", "squeezenet", {"version": "1.1"}, IMAGENET, 1000, "torchvision"),
    "senet_tiny": ZooEntry(
        "senet", "senet_tiny", {}, CIFAR, 10, "none: escc's own test of smooth activations"
    ),
}


def names() -> list[str]:
    """The networks of the zoo."""
    return list(ZOO)


def entry(name: str) -> ZooEntry:
    """What is known about a network.

    Raises:
        EsccError: no such network.
    """
    found = ZOO.get(name)
    if found is None:
        close = difflib.get_close_matches(name, ZOO, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(ZOO)}"
        raise EsccError(f"the zoo has no network {name!r}", hint=hint)
    return found


def default_shape(name: str) -> tuple[int, int, int]:
    """The input (C, H, W) a network was designed for."""
    return entry(name).shape


def defaults(name: str) -> dict[str, int]:
    """Default ``num_classes`` and ``in_channels`` of a network."""
    found = entry(name)
    return {"num_classes": found.num_classes, "in_channels": found.shape[0]}


def skeleton(
    name: str, *, num_classes: int | None = None, in_channels: int | None = None, **options: Any
) -> nn.Module:
    """A network whose parameters are whatever torch's layer constructors put there."""
    from importlib import import_module

    found = entry(name)
    factory: Callable[..., nn.Module] = getattr(
        import_module(f"escc.frontend.zoo.{found.module}"), found.factory
    )
    classes = found.num_classes if num_classes is None else num_classes
    channels = found.shape[0] if in_channels is None else in_channels
    if classes < 1 or channels < 1:
        raise EsccError("num_classes and in_channels must be positive", where=f"zoo:{name}")
    return factory(num_classes=classes, in_channels=channels, **{**found.options, **options})


def build(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """A network with seeded random weights (He initialisation), in evaluation mode.

    The same arguments give the same numbers; torch's global random state is left alone. A random network
    needs :func:`settle` before its activations look like those of a trained one.

    Args:
        name: one of :func:`names`.
        num_classes: outputs; the network's usual number by default.
        in_channels: image channels; usually 3.
        seed: seed of the weights.
        **options: further options of the definition (``shortcut="B"`` for the CIFAR ResNets, ...).

    Raises:
        EsccError: no such network.
    """
    import torch

    from escc.frontend.zoo.seeding import initialise

    # on the meta device the layers' own initialisation costs nothing and draws no random numbers
    with torch.device("meta"):
        model = skeleton(name, num_classes=num_classes, in_channels=in_channels, **options)
    return initialise(model.to_empty(device="cpu"), seed).eval()


def settle(model: nn.Module, shape: tuple[int, int, int], seed: int = 0, *, batches: int = 2) -> nn.Module:
    """Estimate the batch-norm statistics of a random network from random images, in place; returns ``model``.

    Args:
        model: any module of (N, C, H, W) images.
        shape: (C, H, W) of the images.
        seed: seed of the images.
        batches: how many batches of 4 images are averaged.
    """
    from escc.frontend.zoo.seeding import settle as settle_statistics

    return settle_statistics(model, shape, seed, batches)
