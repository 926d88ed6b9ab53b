"""Every network of the zoo compiles and runs bit-exactly."""

from __future__ import annotations

import pytest
from tests.end_to_end.harness import compile_and_check
from torch import nn

from escc.driver import CompileOptions
from escc.frontend import zoo

SMALL_INPUTS: dict[str, int] = dict.fromkeys(
    ("resnet18", "resnet50", "alexnet", "mobilenet_v2", "squeezenet1_0", "squeezenet1_1"), 64
)

RECODED = ("resnet8", "resnet20", "senet_tiny")


def build(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A seeded, settled network with 10 classes and an input shape that tests can afford."""
    channels, height, width = zoo.default_shape(name)
    side = SMALL_INPUTS.get(name)
    shape = (channels, side, side) if side else (channels, height, width)
    if name == "vgg16_bn":
        shape = (3, 32, 32)
    options = {"hidden": 64} if name == "alexnet" else {}
    model = zoo.build(name, num_classes=10, seed=1, **options)
    return zoo.settle(model, shape, seed=1), shape


@pytest.mark.parametrize("name", zoo.names())
def test_zoo_network(name: str) -> None:
    model, shape = build(name)
    # recoding large layers for one image would take most of the suite's time; small networks show it
    options = CompileOptions(bases=4, planes=3, refine=name in RECODED)
    checked = compile_and_check(model, shape, images=1, options=options)
    assert checked.result.cycles[0] > 0
    assert len(checked.program.code) < 200_000
