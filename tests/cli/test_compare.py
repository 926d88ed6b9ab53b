"""``escc compare``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.compare.small_networks import small

from escc.cli import run


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones in the place of the six."""
    table = (small("tiny"),)
    monkeypatch.setattr("escc.compare.statistics.NETWORKS", table)


@pytest.mark.usefixtures("networks")
def test_table_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    words = ["compare", "--machines", "dense,sparten", "-o", str(tmp_path / "out"), "--page", str(page)]
    assert run([*words, "--csv", str(tmp_path / "table.csv")]) == 0
    printed = capsys.readouterr().out
    assert "Synthetic: " in printed
    assert "At equal area" in printed
    assert "tiny, small" in printed
    assert "SCNN" not in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"comparison.html", "comparison.json", "comparison.csv", "comparison-energy.svg"} <= names
    assert (tmp_path / "table.csv").read_text() == (tmp_path / "out" / "comparison.csv").read_text()
    assert "`escc compare --machines dense,sparten`" in page.read_text()
    assert (tmp_path / "page-area.svg").exists()


def test_the_shipped_network_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "compare",
        "demo",
        "--machines",
        "dense",
        "--bases",
        "4",
        "--weight-density",
        "0.4",
        "--json",
        "-",
    ]
    assert run(words) == 0
    content = json.loads(capsys.readouterr().out)
    (network,) = content["networks"]
    assert not network["synthetic"]
    assert "trained on Fashion-MNIST" in network["origin"]
    assert network["reached"]["weights"] == pytest.approx(0.4, abs=0.01)


def test_a_model_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from torch import nn

    import escc

    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip
    escc.save(model, torch.zeros(2, 3, 12, 12), tmp_path / "model.pt2")
    assert run(["compare", "--model", str(tmp_path / "model.pt2"), "--machines", "sparten"]) == 0
    printed = capsys.readouterr().out
    assert "model.pt2" in printed
    assert "trained" in printed
    assert "Synthetic" not in printed


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["resnet5"], 1, "no network 'resnet5' to compare on (did you mean 'resnet50'?)"),
        (["vgg16-cifar", "--machines", "eye"], 1, "no machine 'eye' to compare with"),
        (["--model", "nowhere.pt2"], 1, "nowhere.pt2"),
        (["demo", "--sensitivity"], 2, "--sensitivity changes what synthetic networks are drawn with"),
        (["demo", "--arch", "nowhere.toml"], 1, "nowhere.toml"),
        (["demo", "--energy-table", "horowitz"], 1, "did you mean 'horowitz45'"),
        (["demo", "--json", "no/such/folder/x.json"], 1, "the folder does not exist"),
        (["demo", "--input-shape", "a,b"], 2, "'a,b' is not three numbers"),
        (["demo", "--weight-density", "0"], 2, "0.0 is not in the range"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *words]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
