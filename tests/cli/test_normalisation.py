"""--mean and --std: images reach the network as it was trained, whichever command reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from escc.cli import root
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
        done = CliRunner().invoke(root, ["compile", *common, output, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        scales.append(Program.load(output).inputs[0].scale)
    # 0..1 in 255 steps; -2..2 in 127 steps a side
    assert scales == pytest.approx([1 / 255, 2 / 127], rel=0.02)


def test_a_number_that_is_none() -> None:
    done = CliRunner().invoke(root, ["compile", "x.pt2", "-o", "y", "--mean", "0.5;0.4"])
    assert done.exit_code == 2
    assert "not a number per channel" in done.output


def test_sim_takes_a_data_set(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    pixels, labels = random.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 4
    for part, name in ((slice(0, 30), "train"), (slice(30, 40), "t10k")):
        for kind, array in (("images-idx3-ubyte", pixels[part]), ("labels-idx1-ubyte", labels[part])):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (tmp_path / f"{name}-{kind}").write_bytes(head + array.astype(np.uint8).tobytes())
    program, normal = str(tmp_path / "p.bin"), ["--mean", "0.5", "--std", "0.25"]
    model = ["zoo:resnet8,in_channels=1,num_classes=4", "--input-shape", "1,8,8", "--dense", "-o", program]
    made = CliRunner().invoke(root, ["compile", *model, "--calibration", str(tmp_path), *normal])
    assert made.exit_code == 0, made.output
    outputs: list[bytes] = []
    np.save(tmp_path / "x.npy", ((pixels[30:, None] / 255 - 0.5) / 0.25).astype(np.float32))
    np.save(tmp_path / "y.npy", labels[30:])
    for images, classes, more in (
        (str(tmp_path), str(tmp_path), normal),
        (str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), []),
    ):
        written = tmp_path / "out.npy"
        words = [program, "--input", images, "--labels", classes, "--output", str(written), "--functional"]
        done = CliRunner().invoke(root, ["sim", *words, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert "accuracy" in done.output
        outputs.append(written.read_bytes())
    assert outputs[0] == outputs[1]
