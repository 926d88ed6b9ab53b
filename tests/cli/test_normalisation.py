"""--mean and --std: images reach the network as it was trained, whichever command reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from escc.cli.compile import compile_command
from escc.cli.images import calibration_images
from escc.errors import EsccError
from escc.isa.program import Program


def test_bytes_are_normalised(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    found = calibration_images((2, 4, 4), str(tmp_path / "x.npy"), 4, (0.5, 0.25), (0.5, 2.0))
    assert found is not None
    wanted = (pixels[:4] / 255 - np.array([0.5, 0.25])[:, None, None]) / np.array([0.5, 2.0])[:, None, None]
    assert np.allclose(found, wanted, atol=1e-6)
    assert calibration_images((2, 4, 4), None, 4, None, None) is None
    with pytest.raises(EsccError, match="std positive"):
        calibration_images((2, 4, 4), str(tmp_path / "x.npy"), 4, (0.5,), (0.5,))


def test_compile_takes_the_scale_of_normalised_images(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4 * 64, dtype=np.uint8).reshape(4, 1, 8, 8))
    common = ["zoo:resnet8,in_channels=1,num_classes=4", "--input-shape", "1,8,8", "--dense"]
    common += ["--calibration", str(tmp_path / "x.npy"), "-o"]
    scales: list[float] = []
    for more in ([], ["--mean", "0.5", "--std", "0.25"]):
        output = str(tmp_path / f"{len(more)}.bin")
        done = CliRunner().invoke(compile_command, [*common, output, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        scales.append(Program.load(output).inputs[0].scale)
    # 0..1 in 255 steps; -2..2 in 127 steps a side
    assert scales == pytest.approx([1 / 255, 2 / 127], rel=0.02)


def test_a_number_that_is_none() -> None:
    done = CliRunner().invoke(compile_command, ["x.pt2", "-o", "y", "--mean", "0.5;0.4"])
    assert done.exit_code == 2
    assert "not a number per channel" in done.output
