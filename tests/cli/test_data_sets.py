"""Data sets on the command line: calibration takes their training images, comparing their test images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.generators.data_sets import Content, write_npz
from torch import nn

import escc
from escc.cli import run

SHAPE = (3, 8, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, a data set whose test images are much darker, and its training images alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    escc.save(model, torch.zeros(2, *SHAPE), tmp_path / "model.pt2")
    random = np.random.default_rng(0)
    train = random.integers(128, 256, (6, *SHAPE), dtype=np.uint8)
    test = random.integers(0, 32, (6, *SHAPE), dtype=np.uint8)
    labels = np.arange(6) % 4
    write_npz(tmp_path / "set.npz", Content(train, labels, test, labels), channels_last=True)
    np.save(tmp_path / "train.npy", train)
    np.save(tmp_path / "test.npy", test)
    return tmp_path


def test_calibration_takes_the_training_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs: dict[str, bytes] = {}
    for source in ("set.npz", "train.npy", "test.npy"):
        program = folder / "program.bin"
        arguments = ["compile", str(folder / "model.pt2"), "-o", str(program), "--dense"]
        assert run([*arguments, "--calibration", str(folder / source)]) == 0
        programs[source] = program.read_bytes()
    assert programs["set.npz"] == programs["train.npy"] != programs["test.npy"]

    assert (
        run(
            [
                "compile",
                str(folder / "model.pt2"),
                "-o",
                str(folder / "m.ir"),
                "--compile-to",
                "fuse-requantize",
            ]
        )
        == 0
    )
    texts: dict[str, str] = {}
    capsys.readouterr()
    for source in ("set.npz", "train.npy", "test.npy"):
        assert (
            run(["opt", str(folder / "m.ir"), "-p", "calibrate", "--calibration", str(folder / source)]) == 0
        )
        texts[source] = capsys.readouterr().out
    assert texts["set.npz"] == texts["train.npy"] != texts["test.npy"]


def test_verify_takes_the_test_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed: dict[str, str] = {}
    for source in ("set.npz", "train.npy", "test.npy"):
        assert run(["verify", str(folder / "model.pt2"), "--input", str(folder / source)]) == 0
        printed[source] = capsys.readouterr().out
    assert printed["set.npz"] == printed["test.npy"] != printed["train.npy"]
