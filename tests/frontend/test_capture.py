"""Capturing and saving modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.frontend.helpers import names
from torch import nn

from escc.errors import EsccError
from escc.frontend.capture import capture, save
from escc.frontend.importer import import_exported
from escc.frontend.open_file import open_model


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))


def test_training_mode_is_left_with_a_warning_and_put_back() -> None:
    model = small().train()
    model[1].eval()
    with pytest.warns(UserWarning, match="was in training mode"):
        exported = capture(model, input_shape=(3, 8, 8))
    assert [module.training for module in model] == [True, False, True, True]
    assert names(import_exported(exported)) == ["nn.conv2d", "nn.batch_norm", "nn.activation"]


@pytest.mark.parametrize(
    "example",
    [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8), torch.zeros(5, 3, 8, 8), [torch.zeros(1, 3, 8, 8)]],
)
def test_any_batch_of_the_example_gives_a_free_batch(example: torch.Tensor | list[torch.Tensor]) -> None:
    exported = capture(small().eval(), example=example)
    for batch in (1, 2, 7):
        assert exported.module()(torch.zeros(batch, 3, 8, 8)).shape == (batch, 4, 6, 6)


def test_no_shape_is_one_line_that_names_the_option() -> None:
    with pytest.raises(EsccError, match=r"give --input-shape C,H,W .*the first convolution takes C=3"):
        capture(small().eval())
    with pytest.raises(EsccError, match="is not \\(C, H, W\\)"):
        capture(small().eval(), input_shape=(3, 8))


class Asks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "shape", "where"),
    [
        (nn.Sequential(nn.Identity(), nn.Sequential(Asks())), (3, 8, 8), "1.0"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(5, 4, 3)), (3, 8, 8), "1"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), (1, 8, 8), "0"),
        (nn.Sequential(nn.Flatten(), nn.Linear(10, 2)), (3, 8, 8), "1"),
    ],
)
def test_a_model_that_cannot_be_exported_is_one_line_with_the_module(
    model: nn.Module, shape: tuple[int, int, int], where: str
) -> None:
    with pytest.raises(EsccError, match="torch cannot export the model") as caught:
        capture(model.eval(), input_shape=shape)
    assert caught.value.where == where
    assert "\n" not in str(caught.value)


def test_an_exported_program_keeps_its_shape() -> None:
    exported = capture(small().eval(), input_shape=(3, 8, 8))
    assert capture(exported, input_shape=(3, 8, 8)) is exported
    with pytest.raises(EsccError, match=r"takes \(3, 8, 8\), not \(3, 9, 9\)"):
        capture(exported, input_shape=(3, 9, 9))


def test_save_and_open(tmp_path: Path) -> None:
    model = small().eval()
    save(model, torch.zeros(1, 3, 8, 8), tmp_path / "m.pt2")
    opened = open_model(tmp_path / "m.pt2").model
    assert isinstance(opened, torch.export.ExportedProgram)
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(opened.module()(x), model(x))
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]
    with pytest.raises(EsccError, match="cannot write"):
        save(model, torch.zeros(2, 3, 8, 8), tmp_path / "no" / "m.pt2")
