"""What a transform of a recipe is given beside the model and its own options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from escc.progress import Progress, silent


@dataclass(frozen=True)
class TransformContext:
    """Surroundings of a transform.

    Attributes:
        device: where the model's tensors are.
        input_shape: (C, H, W) of one image.
        calibration: gives at most that many normalised training images, float32 (N, C, H, W), the same at
            every call.
        seed: of the recipe, for anything random.
        progress: called as ``progress(stage, done, total)``.
    """

    device: torch.device
    input_shape: tuple[int, int, int]
    calibration: Callable[[int], NDArray[np.float32]]
    seed: int = 0
    progress: Progress = silent

    def example(self, count: int = 2) -> torch.Tensor:
        """A batch of zeros of the right shape, for exports."""
        return torch.zeros(count, *self.input_shape, device=self.device)


Transform = Callable[..., Any]
"""``transform(model, context, **options)``: changes the model in place; returns plain figures for the log
as a dictionary, or None."""
