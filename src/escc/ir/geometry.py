"""Shape rules of windows: one place for convolution and pooling arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from escc.ir.xdsl import VerifyException


def window_output(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
) -> tuple[int, int]:
    """Output (height, width) of a window over an (H, W) map.

    ``padding`` is (top, left, bottom, right). Raises VerifyException for absurd values.
    """
    if len(kernel) != 2 or len(stride) != 2 or len(padding) != 4 or len(dilation) != 2:
        raise VerifyException("kernel, stride, dilation take 2 numbers and padding 4")
    if min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
        raise VerifyException("kernel, stride and dilation must be positive, padding not negative")
    result = [
        (size[i] + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    ]
    return result[0], result[1]
