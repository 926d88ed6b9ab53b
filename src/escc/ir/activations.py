"""Element-wise activation functions by name: the one table that the float graph, the lookup tables and the
sign analysis share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ActivationKind:
    """One activation function.

    ``function(x, *arguments)`` maps a float64 array; ``arguments`` is how many numbers it takes;
    ``clamps`` tells that it is x limited to [low, high] (so it needs no table on the machine).
    """

    name: str
    function: Callable[..., Array]
    arguments: int = 0
    non_negative: bool = False
    clamps: bool = False


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -700.0, 700.0)))


def _gelu(x: Array) -> Array:
    return x * 0.5 * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2.0)))


_KINDS = [
    ActivationKind("relu", lambda x: np.maximum(x, 0.0), non_negative=True, clamps=True),
    ActivationKind("clamp", lambda x, low, high: np.clip(x, low, high), arguments=2, clamps=True),
    ActivationKind("leaky_relu", lambda x, slope: np.where(x >= 0, x, slope * x), arguments=1),
    ActivationKind("sigmoid", _sigmoid, non_negative=True),
    ActivationKind("hardsigmoid", lambda x: np.clip(x / 6.0 + 0.5, 0.0, 1.0), non_negative=True),
    ActivationKind("silu", lambda x: x * _sigmoid(x)),
    ActivationKind("hardswish", lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0),
    ActivationKind("tanh", np.tanh),
    ActivationKind("gelu", _gelu),
    ActivationKind(
        "elu", lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0))), arguments=1
    ),
]

ACTIVATIONS: dict[str, ActivationKind] = {kind.name: kind for kind in _KINDS}


def is_non_negative(kind: str, arguments: tuple[float, ...]) -> bool:
    """True when the function can never give a negative value."""
    return ACTIVATIONS[kind].non_negative or (kind == "clamp" and arguments[0] >= 0)


def clamp_limits(kind: str, arguments: tuple[float, ...]) -> tuple[float, float] | None:
    """(low, high) when the function is only a clamp of its input, else None."""
    if kind == "relu":
        return 0.0, math.inf
    if kind == "clamp":
        return arguments[0], arguments[1]
    return None
