"""``escc ops``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from escc.cli import run
from escc.frontend.capture import save


def test_a_network_that_compiles(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ops", "zoo:resnet8"]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "aten.conv2d.default" in line]
    assert line.split()[1:4] == ["7", "yes", "nn.conv2d"]
    assert "conv1 and 6 more" in line
    assert "cifar.py:" in line
    assert out.splitlines()[-1] == "zoo:resnet8: all 35 operator calls can be compiled"


def test_a_network_that_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.pt2"
    save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Mish(), nn.Mish()).eval(), torch.zeros(2, 3, 8, 8), path)
    assert run(["ops", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["aten.mish.default", "2", "no"]
    assert "1 and 1 more" in lines[1]
    assert lines[1].rstrip().endswith("no rule for this operator")
    assert lines[-1] == f"{path}: 2 of 3 operator calls cannot be compiled"
    assert run(["ops", str(path), "--all"]) == 1
    assert sum("aten.mish" in line for line in capsys.readouterr().out.splitlines()) == 2


def test_a_pickled_network_needs_a_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.pt"
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), path)
    assert run(["ops", str(path)]) == 1
    error = capsys.readouterr().err
    assert "--input-shape C,H,W" in error
    assert error.count("\n") == 1
    assert run(["ops", str(path), "--input-shape", "3,8,8"]) == 0


def test_training_mode_is_a_warning_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train(), path)
    done = subprocess.run(
        [sys.executable, "-m", "escc", "ops", str(path), "--input-shape", "3,8,8"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.startswith("warning: the model was in training mode")
    assert done.stderr.count("\n") == 1


def test_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ops", "nothing.pt"]) == 1
    assert capsys.readouterr().err == "error: nothing.pt: no such file\n"
