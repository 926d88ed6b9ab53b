"""The operators of compressed networks: their numbers, their registration, archives that hold them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import escc
from escc.frontend.custom_ops import compose
from escc.frontend.exported_schema import RefusedArchive, check_target
from escc.passes.math.basis import reconstruct

OPERATORS: Any = torch.ops.escc


def arguments(dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    torch.manual_seed(0)
    x, bases = torch.randn(2, 4, 6, 5), torch.randn(3, 3, 3)
    codes = torch.randint(-1, 2, (6, 2, 3)).to(dtype)
    return x, bases, codes, torch.rand(6) + 0.5, torch.randn(6), [2, 1], [1, 0], [1, 1], 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_decomposed_convolution_is_one_with_the_composed_weight(dtype: torch.dtype) -> None:
    x, bases, codes, scale, bias, *geometry = arguments(dtype)
    weight = compose(bases, codes, scale)
    np.testing.assert_allclose(
        weight.numpy(), reconstruct(bases.numpy(), codes.numpy(), scale.numpy()), rtol=1e-5, atol=1e-6
    )
    result = OPERATORS.decomposed_conv2d(x, bases, codes, scale, bias, *geometry)
    assert torch.equal(result, nn.functional.conv2d(x, weight, bias, *geometry))


def test_registrations_agree() -> None:
    """Schema, shapes without numbers, and gradients, by torch's own checks."""
    given = [item.requires_grad_() if isinstance(item, Tensor) else item for item in arguments()]
    torch.library.opcheck(OPERATORS.decomposed_conv2d.default, tuple(given))
    # gradients of rounding are none that differences show: only schema and shapes are checked
    quantizing = (torch.randn(3, 4), 0.1, True)
    torch.library.opcheck(OPERATORS.fake_quantize.default, quantizing)


def test_gradients_of_the_convolution() -> None:
    x, bases, codes, scale, bias, *geometry = arguments()
    inputs = tuple(item.double().requires_grad_() for item in (x, bases, codes, scale, bias))
    assert torch.autograd.gradcheck(lambda *given: OPERATORS.decomposed_conv2d(*given, *geometry), inputs)


def test_rounding_lets_gradients_through_inside_its_range() -> None:
    x = torch.tensor([-20.0, -0.26, 0.3, 20.0], requires_grad=True)
    result = OPERATORS.fake_quantize(x, 0.1, True)
    torch.testing.assert_close(result, torch.tensor([-12.8, -0.3, 0.3, 12.7]))
    result.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


class Net(nn.Module):
    """Both operators."""

    def __init__(self) -> None:
        super().__init__()
        _, bases, codes, scale, bias, *self.geometry = arguments(torch.int8)
        self.bases, self.codes, self.scale = nn.Buffer(bases), nn.Buffer(codes), nn.Buffer(scale)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        y = OPERATORS.decomposed_conv2d(x, self.bases, self.codes, self.scale, self.bias, *self.geometry)
        return OPERATORS.fake_quantize(y, 0.05, True)


def test_archives_with_them_open_in_a_fresh_process(tmp_path: Path) -> None:
    model, x = Net().eval(), arguments()[0]
    path = tmp_path / "model.pt2"
    escc.save(model, x, path)
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys, numpy, torch; from escc.frontend.open_file import open_model;"
        f"x = torch.from_numpy(numpy.load({str(tmp_path / 'x.npy')!r}));"
        f"y = open_model({str(path)!r}).model.module()(x);"
        f"numpy.save({str(tmp_path / 'y.npy')!r}, y.detach().numpy())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), model(x).detach().numpy())


@pytest.mark.parametrize("name", ["decomposed_conv2d", "fake_quantize"])
def test_no_other_name_of_the_namespace_passes(name: str) -> None:
    target = f"torch.ops.escc.{name}.default"
    assert check_target(target) == target
    for other in (
        f"torch.ops.escc.{name}.out",
        f"torch.ops.escc.{name}_.default",
        "torch.ops.escc.run.default",
    ):
        with pytest.raises(RefusedArchive, match="not one of torch's or escc's own"):
            check_target(other)
