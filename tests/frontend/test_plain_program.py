"""Archives read without torch's reader: the same module, or nothing where torch has to be asked."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from escc.driver import capture_model, import_model
from escc.errors import EsccError
from escc.frontend import zoo
from escc.frontend.capture import save
from escc.frontend.importer import import_exported
from escc.frontend.plain_program import import_plain


class Viewed(nn.Module):
    """Sizes that are read, a constant, a buffer that is not saved, weights that share memory."""

    gain: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4 * 8 * 8, 5)
        self.register_buffer("gain", torch.rand(4, 1, 1), persistent=False)
        self.offset = torch.rand(1, 4, 1, 1)
        self.second.bias = self.first.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.second(torch.relu(self.first(x)) * self.gain + self.offset))
        return self.linear(x.view(x.size(0), -1))


class Laid(nn.Module):
    """An operator with a memory format as its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clone(self.conv(x), memory_format=torch.contiguous_format)


@pytest.mark.parametrize("name", ["viewed", "senet_tiny", "squeezenet1_1"])
def test_the_module_is_the_one_torch_s_reader_leads_to(name: str, tmp_path: Path) -> None:
    shape = (3, 8, 8) if name == "viewed" else zoo.default_shape(name)
    shape = (shape[0], min(shape[1], 64), min(shape[2], 64))
    model = (Viewed() if name == "viewed" else zoo.build(name)).eval()
    path = tmp_path / "model.pt2"
    save(model, torch.zeros(1, *shape), path)
    plain, usual = import_plain(path, shape), import_exported(capture_model(path))
    assert plain is not None
    assert plain.to_text() == usual.to_text()
    assert list(plain.store) == list(usual.store)
    assert all(np.array_equal(plain.store[key], usual.store[key]) for key in usual.store)


def test_what_is_not_plain_is_left_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "laid.pt2"
    save(Laid().eval(), torch.zeros(1, 3, 8, 8), path)
    assert import_plain(path) is None
    assert import_exported(capture_model(path)).to_text() == import_model(path).to_text()


def test_errors_are_left_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(dim=1)).eval(), torch.zeros(1, 3, 8, 8), path)
    assert import_plain(path) is None
    with pytest.raises(EsccError, match="softmax"):
        import_model(path)
    save(nn.Conv2d(3, 4, 3).eval(), torch.zeros(1, 3, 8, 8), path)
    assert import_plain(path, (3, 8, 8)) is not None
    with pytest.raises(EsccError, match=r"takes \(3, 8, 8\)"):
        import_model(path, input_shape=(3, 9, 9))
    assert import_plain(tmp_path) is None
    path.write_bytes(path.read_bytes()[:1000])
    assert import_plain(path) is None


def test_numbers_stay_where_they_were_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    save(nn.Conv2d(3, 4, 3).eval(), torch.zeros(1, 3, 8, 8), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = import_plain(path)
    assert module is not None
    assert not any(array.flags.writeable or array.flags.owndata for array in module.store.values())
