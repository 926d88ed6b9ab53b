"""Training batches: bytes in memory, cut, mirrored and shifted on the device, the same for the same seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from escc.training.recipe import DataOptions

EVALUATION_BATCH = 500


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed for a place in a run: one step's draws do not depend on how a run got there."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def order(count: int, seed: int) -> Tensor:
    """A random permutation of ``count`` images, int64."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@dataclass
class ImageSet:
    """Images and labels on a device.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        mean, std: float32 (C, 1, 1), for images in 0..1.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(
        cls,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> ImageSet:
        """Put arrays on a device."""
        shift, scale = (torch.tensor(list(row), dtype=torch.float32)[:, None, None] for row in (mean, std))
        return cls(
            torch.from_numpy(np.ascontiguousarray(images)).to(device),
            torch.from_numpy(np.ascontiguousarray(labels)).to(device),
            shift.to(device),
            scale.to(device),
        )

    def __len__(self) -> int:
        return len(self.images)

    def normalised(self, images: Tensor) -> Tensor:
        """Bytes to float32 with the data set's mean and deviation, channels last in memory."""
        values = (images.to(torch.float32) / 255 - self.mean) / self.std
        return values.contiguous(memory_format=torch.channels_last)

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (n, C, H, W) and labels (n,) of the given indices."""
        index = chosen.to(self.images.device)
        return self.normalised(self.images[index]), self.labels[index]

    def augmented(self, chosen: Tensor, options: DataOptions, seed: int) -> tuple[Tensor, Tensor]:
        """As :meth:`batch`, mirrored and shifted: every image by draws of its own."""
        index = chosen.to(self.images.device)
        images = self.images[index]
        generator = torch.Generator().manual_seed(seed)
        count, _, height, width = images.shape
        if options.flip:
            flip = (torch.rand(count, generator=generator) < 0.5).to(images.device)
            images = torch.where(flip[:, None, None, None], images.flip(3), images)
        if options.shift:
            reach = options.shift
            padded = torch.nn.functional.pad(images, (reach, reach, reach, reach))
            moves = torch.randint(0, 2 * reach + 1, (2, count), generator=generator).to(images.device)
            rows = moves[0][:, None] + torch.arange(height, device=images.device)
            columns = moves[1][:, None] + torch.arange(width, device=images.device)
            which = torch.arange(count, device=images.device)[:, None, None]
            # advanced indices on both sides of the channel axis put it last
            images = padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return self.normalised(images), self.labels[index]


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: ImageSet) -> float:
    """Share of images the network gets right, in float32 and evaluation mode (the mode is put back)."""
    training = model.training
    model.eval()
    hits = 0
    for start in range(0, len(images), EVALUATION_BATCH):
        index = torch.arange(start, min(start + EVALUATION_BATCH, len(images)))
        inputs, labels = images.batch(index)
        hits += int((model(inputs).argmax(1) == labels).sum())
    model.train(training)
    return hits / len(images)
