"""What has no exact counterpart is refused: all of it at once, with place and reason, in one line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.frontend.helpers import Many, Probe, fixed_batch, imported, probe_of
from torch import nn

from escc.errors import EsccError
from escc.frontend.capture import capture
from escc.frontend.importer import (
    OperatorUse,
    UnsupportedOperatorsError,
    import_exported,
    inspect_exported,
)

Function = Callable[[Any, Any], Any]

REFUSED: dict[str, tuple[Function, str]] = {
    "transposed convolution": (lambda p, x: F.conv_transpose2d(x, p.conv.weight), "transposed convolution"),
    "computed weights": (lambda p, x: F.conv2d(x, x[:1]), "mixes images"),
    "weights from the input": (lambda p, x: F.conv2d(x, x), "computed from the input|mixes images"),
    "constant padding": (lambda p, x: F.pad(x, (1, 1), value=1.0), "a value that is not zero"),
    "reflected padding": (lambda p, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "padding mode 'reflect'"),
    "cropping": (lambda p, x: F.pad(x, (-1, 0)), "cropping"),
    "padding of the batch": (
        lambda p, x: F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1)),
        "mixes images|padding of the batch",
    ),
    "dilated pooling": (lambda p, x: F.max_pool2d(x, 2, dilation=2), "dilated pooling"),
    "divisor": (lambda p, x: F.avg_pool2d(x, 2, divisor_override=3), "divisor_override"),
    "ceil with counted padding": (
        lambda p, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        "ceil_mode together with counted padding",
    ),
    "uneven adaptive maximum": (lambda p, x: F.adaptive_max_pool2d(x, 5), "windows of different sizes"),
    "alpha": (lambda p, x: torch.add(x, x, alpha=2), "alpha that is not 1"),
    "difference": (lambda p, x: x - F.relu(x), "a difference of two maps"),
    "division": (lambda p, x: 1 / (x + 9), "a division by something computed from the input"),
    "broadcast sum": (lambda p, x: x + x.mean((2, 3), keepdim=True), "a sum of"),
    "broadcast constant": (
        lambda p, x: x.mean((2, 3), keepdim=True) + torch.ones(4, 8, 8),
        "one number per channel",
    ),
    "constant per pixel": (lambda p, x: x * torch.arange(64.0).view(8, 8), "one number per channel"),
    "one gate per pixel": (lambda p, x: x * F.conv2d(x, p.conv.weight[:1], padding=1), "a product of"),
    "tanh gelu": (lambda p, x: F.gelu(x, approximate="tanh"), "tanh approximation"),
    "slope per channel": (lambda p, x: F.prelu(x, torch.arange(4.0)), "a slope per channel"),
    "one-sided clamp": (lambda p, x: x.clamp(max=1.0), "one limit"),
    "selu": (lambda p, x: F.selu(x), "scale that is not 1|no rule"),
    "softmax": (lambda p, x: F.softmax(x.mean((2, 3)), 1), "apply it to the program's outputs"),
    "channel slice": (lambda p, x: x[:, :2], "a slice of channels"),
    "crop by slice": (lambda p, x: x[:, :, 1:], "crops the map"),
    "shuffle": (lambda p, x: F.channel_shuffle(x, 2), "moves elements"),
    "transposition": (lambda p, x: x.transpose(2, 3), "moves elements"),
    "linear over columns": (lambda p, x: F.linear(x, torch.ones(3, 8)), "flatten first"),
    "upsampling": (lambda p, x: F.interpolate(x, scale_factor=2), "no upsampling"),
    "group norm": (lambda p, x: F.group_norm(x, 2), "only batch norm with stored statistics"),
    "norm without statistics": (lambda p, x: nn.BatchNorm2d(4, track_running_stats=False)(x), "statistics"),
    "mean over channels": (lambda p, x: x.mean(1), "a reduction over channels"),
    "mean over the batch": (lambda p, x: x.mean(0), "over the batch|mixes images"),
    "batch mixed": (lambda p, x: x.reshape(-1, 64), "mixes images"),
    "concatenation of rows": (lambda p, x: torch.cat([x, x], 2), "a concatenation over dimension 2"),
    "norm over a flattened map": (
        lambda p, x: F.batch_norm(x.flatten(1), torch.zeros(256), torch.ones(256)),
        "over 256 features",
    ),
    "whole numbers": (lambda p, x: x.argmax(1), "no rule|apply it to"),
    "random numbers": (lambda p, x: x * torch.rand(4, 1, 1), "random numbers"),
    "nan weights": (lambda p, x: F.conv2d(x, torch.full((1, 4, 1, 1), float("nan"))), "are not finite"),
}


@pytest.fixture(scope="module")
def uses() -> list[OperatorUse]:
    """Every operator call of all the models above, captured together."""
    model = Many({name: function for name, (function, _) in REFUSED.items()})
    return inspect_exported(fixed_batch(model.eval()))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, uses: list[OperatorUse]) -> None:
    reasons = [use.reason for use in uses if probe_of(use.path) == name and not use.supported]
    assert len(reasons) == 1
    assert re.search(REFUSED[name][1], reasons[0])
    assert "\n" not in reasons[0]


def test_indices_of_a_maximum_are_no_output() -> None:
    with pytest.raises(EsccError, match="output 0 is not a tensor computed from the input"):
        imported(Probe(lambda p, x: F.max_pool2d(x, 2, return_indices=True)[1]).eval())


class Head(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, 1)


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GELU(approximate="tanh"))
        self.head = Head()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.up(x)).flatten(1))


def test_all_refusals_are_reported_at_once_with_their_places() -> None:
    with pytest.raises(UnsupportedOperatorsError) as caught:
        imported(Stem().eval())
    uses = caught.value.uses
    assert [use.operator.rpartition(".")[0] for use in uses] == [
        "aten.conv_transpose2d",
        "aten.gelu",
        "aten.softmax",
    ]
    assert [use.path for use in uses] == ["up", "body.1", "head"]
    text = str(caught.value)
    assert "3 call(s) of 3 operator(s) are not supported" in text
    for use in uses:
        assert use.describe() in text
        assert use.source.rpartition(":")[0].endswith("test_refusals.py")


def test_inspection_lists_every_call_in_order() -> None:
    uses = inspect_exported(capture(Stem().eval(), input_shape=(4, 6, 6)))
    assert [use.supported for use in uses] == [False, True, False, True, False]
    assert [use.becomes for use in uses] == ["", "nn.conv2d", "", "view", ""]


def training_program() -> torch.export.ExportedProgram:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    free = ({0: torch.export.Dim.DYNAMIC},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=free)


def test_a_program_exported_in_training_mode_is_refused() -> None:
    with pytest.raises(UnsupportedOperatorsError, match=r"training mode; call model\.eval") as caught:
        import_exported(capture(training_program()))
    assert "1" in [use.path for use in caught.value.uses]
    with pytest.raises(UnsupportedOperatorsError, match="dropout in training mode"):
        import_exported(training_program())


def test_a_graph_with_shared_in_place_results_needs_capture() -> None:
    model = Probe(lambda p, x: (lambda y: (F.relu_(y.view(-1, 144)), y)[1])(p.conv(x))).eval()
    program = torch.export.export(model, (torch.zeros(2, 4, 8, 8),))
    with pytest.raises(UnsupportedOperatorsError, match="overwrites a tensor that is used elsewhere"):
        import_exported(program)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(2, 3, 8), "has 3 dimensions"),
        (torch.zeros(2, 3, 8, 8, 8), "has 5 dimensions"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "floating-point"),
    ],
)
def test_odd_inputs(example: torch.Tensor, message: str) -> None:
    program = torch.export.export(nn.Identity().eval(), (example,))
    with pytest.raises(EsccError, match=message):
        import_exported(program)


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.relu(x), self.value * 2


def test_a_constant_output_is_refused() -> None:
    with pytest.raises(EsccError, match="output 1 is a constant"):
        imported(Constant().eval(), (3, 4, 4))
