"""The zoo: known sizes and names, repeatable numbers, and every network imports to torch's numbers."""

from __future__ import annotations

import pytest
import torch
from tests.frontend.helpers import assert_same, names
from torch import nn

from escc.errors import EsccError
from escc.frontend import zoo

PARAMETERS = {
    # published counts, with the usual number of classes
    "resnet20": 269_722,
    "resnet56": 853_018,
    "resnet18_cifar": 11_173_962,
    "vgg16_cifar": 14_728_266,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "vgg16_bn": 138_365_992,
    "alexnet": 61_100_840,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v2_cifar": 2_236_682,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
}

NAMES = {
    # a few names of the public state dictionaries, with shapes
    "resnet20": {"layer2.0.conv1.weight": (32, 16, 3, 3), "linear.bias": (10,), "bn1.running_mean": (16,)},
    "resnet18_cifar": {"layer3.0.shortcut.1.weight": (256,), "linear.weight": (10, 512)},
    "vgg16_cifar": {"features.40.weight": (512, 512, 3, 3), "classifier.weight": (10, 512)},
    "resnet18": {"layer2.0.downsample.0.weight": (128, 64, 1, 1), "fc.weight": (1000, 512)},
    "resnet50": {"layer1.0.conv3.weight": (256, 64, 1, 1), "layer4.2.bn3.bias": (2048,)},
    "vgg16_bn": {"features.41.running_var": (512,), "classifier.6.weight": (1000, 4096)},
    "alexnet": {"features.3.weight": (192, 64, 5, 5), "classifier.1.weight": (4096, 9216)},
    "mobilenet_v2": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.2.conv.2.weight": (24, 96, 1, 1),
        "features.18.1.weight": (1280,),
        "classifier.1.weight": (1000, 1280),
    },
    "squeezenet1_0": {"features.3.squeeze.weight": (16, 96, 1, 1), "features.12.expand3x3.bias": (256,)},
    "squeezenet1_1": {
        "features.4.expand1x1.weight": (64, 16, 1, 1),
        "classifier.1.weight": (1000, 512, 1, 1),
    },
}


@pytest.mark.parametrize("name", zoo.names())
def test_sizes_and_names_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = zoo.skeleton(name)
    if name in PARAMETERS:
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    state = model.state_dict()
    for key, shape in NAMES.get(name, {}).items():
        assert tuple(state[key].shape) == shape


def small(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    options = {"hidden": 32} if name in ("vgg16_bn", "alexnet") else {}
    model = zoo.build(name, num_classes=10, **options)
    channels, height, width = zoo.default_shape(name)
    side = 64 if name == "alexnet" else 40  # its strides leave nothing of smaller images
    return model, (channels, min(height, side), min(width, side))


@pytest.mark.parametrize("name", zoo.names())
def test_every_network_imports(name: str) -> None:
    model, shape = small(name)
    module = assert_same(zoo.settle(model, shape), shape)
    assert {name.partition(".")[0] for name in names(module)} == {"nn"}
    (output,) = module.output_ports
    assert output.torch_shape == (10,)


def test_options_and_unknown_names() -> None:
    model = zoo.build("resnet8", shortcut="B", in_channels=1)
    assert "layer2.0.shortcut.0.weight" in model.state_dict()
    assert_same(zoo.settle(model, (1, 16, 16)), (1, 16, 16))
    with pytest.raises(EsccError, match="did you mean 'mobilenet_v2'"):
        zoo.build("mobilenetv2")
    with pytest.raises(EsccError, match="neither 'A' nor 'B'"):
        zoo.build("resnet8", shortcut="C")
    with pytest.raises(EsccError, match="must be positive"):
        zoo.build("resnet8", num_classes=0)


def test_seeds_repeat_and_differ_and_leave_torch_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = zoo.settle(zoo.build("resnet8", seed=1), (3, 16, 16), seed=2)
    assert torch.equal(torch.rand(3), expected)
    again = zoo.settle(zoo.build("resnet8", seed=1), (3, 16, 16), seed=2)
    other = zoo.build("resnet8", seed=4)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(first.state_dict()["conv1.weight"], other.state_dict()["conv1.weight"])


def test_settling_keeps_the_signal_and_the_modes() -> None:
    raw = zoo.build("resnet56", seed=3)
    x = torch.randn(8, 3, 32, 32)
    settled = zoo.settle(zoo.build("resnet56", seed=3), (3, 32, 32))
    assert not any(module.training for module in settled.modules())
    assert settled.get_submodule("bn1").momentum == 0.1
    with torch.no_grad():
        wild, tame = float(raw(x).std()), float(settled(x).std())
    assert wild > 1e3
    assert 0.05 < tame < 50
