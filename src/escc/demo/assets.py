"""The shipped network and images.

``resnet20.safetensors``: ResNet-20 trained on Fashion-MNIST by ``tools/train_demo.py`` from other initial
weights than the script draws today: running it again gives a sibling of this network, not these numbers.
``fashion_mnist.npz``: the first 2,000 test images with labels and the first 512 training images (for
calibration) of Fashion-MNIST (Zalando SE, MIT licence).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

MEAN, STD = 0.2860, 0.3530
"""Mean and standard deviation of the training pixels, as the network was trained with."""

INPUT_SHAPE = (1, 28, 28)


@dataclass(frozen=True)
class DemoData:
    """Images as the network takes them: float32 (N, 1, 28, 28), normalised; labels (N,)."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    calibration: NDArray[np.float32]


def load_data() -> DemoData:
    """The shipped images."""
    with (
        as_file(files("escc.demo") / "fashion_mnist.npz") as path,
        np.load(path, allow_pickle=False) as content,
    ):
        return DemoData(
            images=_normalise(content["images"]),
            labels=content["labels"].astype(np.int64),
            calibration=_normalise(content["calibration"]),
        )


def load_network() -> nn.Module:
    """The trained ResNet-20, in evaluation mode."""
    from safetensors.torch import load_file

    from escc.frontend import zoo

    model = zoo.build("resnet20", num_classes=10, in_channels=1, seed=0)
    with as_file(files("escc.demo") / "resnet20.safetensors") as path:
        state = load_file(path)
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [name for name in missing if not name.endswith("num_batches_tracked")] + list(unexpected)
    if wrong:
        raise RuntimeError(f"the shipped checkpoint does not fit the network: {wrong}")
    return model.eval()


def _normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    scaled = (pixels.astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(scaled[:, None].astype(np.float32))
