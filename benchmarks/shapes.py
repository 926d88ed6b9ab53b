"""Shapes of the layers that benchmarks build (a file that imports nothing)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A square convolution with padding (kernel - 1) / 2.

    ``coefficients``, ``activations``: shares of non-zero codes and input values. ``bases``: 0 leaves the
    layer dense.
    """

    chans: int
    outs: int
    side: int
    kernel: int = 3
    stride: int = 1
    bases: int = 6
    coefficients: float = 0.4
    activations: float = 0.5

    @property
    def out_side(self) -> int:
        """Rows and columns of the output."""
        return (self.side - 1) // self.stride + 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense layer for one image, padding counted like values."""
        return self.out_side**2 * self.outs * self.chans * self.kernel**2
