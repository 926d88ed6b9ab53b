"""Networks of the comparison that are small enough for tests."""

from __future__ import annotations

from dataclasses import replace

from escc.compare.statistics import Network, Stated, Statistics, find_network


def stated(
    coefficients: float = 0.2, weights: float = 0.3, inner: float = 0.4, joined: float = 0.55
) -> Statistics:
    """Statistics with these densities."""
    first, second, third, last = (Stated(value, "a test") for value in (coefficients, weights, inner, joined))
    return Statistics(first, second, third, last)


def small(name: str = "tiny", zoo: str = "resnet8", statistics: Statistics | None = None) -> Network:
    """A network of the zoo, by default ResNet-8 with option B shortcuts (1 x 1 layers)."""
    options = {"shortcut": "B"} if zoo.startswith("resnet8") else {}
    return Network(name, f"{name}, small", zoo, statistics or stated(), options)


def cut(name: str) -> Network:
    """A network of the tables with few classes."""
    return replace(find_network(name), options={"num_classes": 10})
