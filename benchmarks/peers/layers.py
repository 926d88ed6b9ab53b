"""The layers on which peers and escc are compared: of ResNet-18, and small ones that take no time.

``python -m benchmarks.peers.layers NAME FILE`` writes escc's program of one, for a process that stays small.
"""

from __future__ import annotations

import sys

from benchmarks.shapes import Layer

LAYERS = {
    "64x8x8": Layer(64, 64, 8),
    "resnet18-conv5": Layer(512, 512, 7),
    "resnet18-conv2": Layer(64, 64, 56),
}

if __name__ == "__main__":
    from benchmarks.layers import layer_program

    layer_program(LAYERS[sys.argv[1]]).save(sys.argv[2])
