"""Small spaces for the tests, on a network of two convolutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

import escc

IMAGES = 24


def write_network(folder: Path) -> None:
    """model.pt2, images.npy and labels.npy."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 24, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    ).eval()  # fmt: skip
    images = np.random.default_rng(3).standard_normal((IMAGES, 3, 8, 8), dtype=np.float32)
    with torch.no_grad():
        # no class is the answer to everything
        model[-1].bias -= model(torch.from_numpy(images)).mean(dim=0)
    escc.save(model, torch.from_numpy(images[:2]), str(folder / "model.pt2"))
    np.save(folder / "images.npy", images)
    with torch.no_grad():
        np.save(folder / "labels.npy", model(torch.from_numpy(images)).argmax(dim=1).numpy())


WORKLOAD = """
[[workload]]
name = "tiny"
model = "model.pt2"
images = "images.npy"
labels = "labels.npy"
calibration = "images.npy"
"""

GRID = """
objectives = ["latency", "energy", "area"]
constraints = ["multipliers <= 64"]
[search]
strategy = "grid"
confirm = false
[arch.array]
rows = [2, 4]
blocks = [2, 4]
macs = 9
ring_entries = [2, 8]
[arch.concentration]
policy = ["window", "gather"]
"""
