"""The transform whose sums are counted is that of F(2,3)."""

from __future__ import annotations

import numpy as np
from benchmarks.winograd import INPUT, tiles

KERNEL = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
"""2G: whole numbers; the result is four times too large."""
OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


def test_the_sum_over_bases_and_channels_in_the_transformed_domain_is_the_convolution() -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (7, 5, 6)).astype(np.uint8)
    codes = random.integers(-1, 2, (6, 3))
    bases = random.integers(-127, 128, (3, 3, 3))
    weight = np.einsum("cm,mij->cij", codes, bases)
    moved = INPUT @ tiles(x) @ INPUT.T
    combined = np.einsum("cm,tcij->tmij", codes, moved)
    summed = (combined * (KERNEL @ bases @ KERNEL.T)).sum(axis=1)
    got = OUTPUT @ summed @ OUTPUT.T
    padded = np.zeros((10, 8, 6), np.int64)
    padded[1:8, 1:6] = x
    for tile, (row, col) in enumerate((row, col) for row in range(0, 7, 2) for col in range(0, 5, 2)):
        for i in range(2):
            for j in range(2):
                window = padded[row + i : row + i + 3, col + j : col + j + 3]
                if row + i < 7 and col + j < 5:
                    assert got[tile, i, j] == 4 * np.einsum("ijc,cij->", window, weight)
