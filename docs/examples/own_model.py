"""Compile a network of your own and run it, from Python."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import escc

model = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1, bias=False),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(64, 10),
).eval()
images = np.random.default_rng(0).standard_normal((64, 3, 32, 32), dtype=np.float32)

program = escc.compile(model, example=torch.from_numpy(images[:2]), calibration=images)
program.save("prog.bin")

result = escc.simulate(program, images[:4])
print("classes", result.outputs_float[0].argmax(axis=1))
print("cycles", result.cycles[0], "energy", f"{result.energy_pj / 1e6:.2f} uJ")

# for the command line: escc compile model.pt2 -o prog.bin --calibration images.npy
escc.save(model, torch.from_numpy(images[:2]), "model.pt2")
np.save("images.npy", images)
