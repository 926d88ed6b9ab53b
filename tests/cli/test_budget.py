"""escc compile under a budget, as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from escc.budget import settings
from escc.cli import run
from escc.cli.budget import split_images
from escc.errors import EsccError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import escc

    folder = tmp_path_factory.mktemp("budget")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip
    escc.save(model, torch.zeros(2, 3, 8, 8), folder / "model.pt2")
    random = np.random.default_rng(0)
    np.save(folder / "x.npy", random.standard_normal((40, 3, 8, 8)).astype(np.float32))
    np.save(folder / "y.npy", random.integers(0, 4, 40))
    return folder


def test_an_accuracy_budget_and_its_pipeline_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "BASES", (4, 6))
    program, images = tmp_path / "p.bin", str(folder / "x.npy")
    args = ["compile", str(folder / "model.pt2"), "-o", str(program), "--calibration", images]
    args += ["--calibration-labels", str(folder / "y.npy"), "--report", str(tmp_path)]
    assert run([*args, "--accuracy-budget", "40"]) == 0
    shown = capsys.readouterr().out
    assert "on 20 held-out images" in shown
    assert re.search(r"^ *2 +[3-8] ", shown, re.MULTILINE)
    report = json.loads((tmp_path / "compile.json").read_text())["budget"]
    assert report["calibration_images"] == report["held_out_images"] == 20
    assert report["loss_points"] <= 40
    assert report["layers"][0]["name"] == "2"
    again = tmp_path / "again.bin"
    args = ["compile", str(folder / "model.pt2"), "-o", str(again), "--calibration", images]
    assert run([*args, "--calibration-images", "20", "-p", report["pipeline"]]) == 0
    assert again.read_bytes() == program.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--accuracy-budget", "1"], "--accuracy-budget needs --calibration images"),
        (["--accuracy-budget", "1", "--budget-bytes", "9", "--calibration", "x"], "one budget at a time"),
        (["--budget-bytes", "9", "--calibration", "x", "--bases", "5"], "leave one out"),
        (
            ["--budget-bytes", "9", "--calibration", "x", "--minimise", "cycles"],
            "belongs to --accuracy-budget",
        ),
        (["--calibration-labels", "y"], "belongs to --accuracy-budget"),
    ],
)
def test_options_that_do_not_go_together(
    folder: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compile", str(folder / "model.pt2"), "-o", str(tmp_path / "p.bin"), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_split_is_in_halves_that_calibration_images_can_load_again(folder: Path) -> None:
    source, labels = str(folder / "x.npy"), str(folder / "y.npy")
    every, classes = np.load(source), np.load(labels)
    half = split_images((3, 8, 8), source, labels, 512, True)
    assert half.labels is not None
    np.testing.assert_array_equal(np.concatenate([half.fit, half.held_out]), every)
    np.testing.assert_array_equal(half.labels, classes[20:])
    few = split_images((3, 8, 8), source, None, 5, True)
    np.testing.assert_array_equal(few.held_out, every[5:10])
    assert few.labels is None
    whole = split_images((3, 8, 8), source, None, 512, False)
    assert (len(whole.fit), len(whole.held_out)) == (40, 0)


def test_labels_must_be_those_of_the_images(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros(7, np.int64))
    with pytest.raises(EsccError, match="7 labels for 40 images"):
        split_images((3, 8, 8), str(folder / "x.npy"), str(tmp_path / "few.npy"), 512, True)
    np.save(tmp_path / "one.npy", np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(EsccError, match="at least two"):
        split_images((3, 8, 8), str(tmp_path / "one.npy"), None, 512, True)
