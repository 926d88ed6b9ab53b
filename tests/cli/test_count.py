"""``escc count``."""

from __future__ import annotations

import json

import pytest

from escc.cli import run


def test_reference_counts_of_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["count", "zoo:resnet56", "--bases", "5", "--density", "0.04"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines[1:]] == [
        "convolutions (55)",
        "with linear layers (56)",
    ]
    # weights, dense MACs, basis part, a twenty-fifth of 69.71 M coefficients, the published ratio
    figures = ["848,304", "125,485,056", "23,086,080", "2,785,856", "0.206"]
    assert lines[1].split()[2:7] == figures


def test_layers_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["count", "zoo:resnet8", "--layers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 8 + 2
    assert lines[1].split()[:6] == ["conv1", "3x3", "-", "432", "442,368", "442,368"]
    assert run(["count", "zoo:resnet8", "--bases", "5", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [layer["kind"] for layer in content["layers"]] == ["spatial"] * 7 + ["fully-connected"]
    assert content["convolutions"]["parameters"] == 74_160
    assert content["with_linear_layers"]["dense_macs"] == 12_238_848 + 640


def test_a_density_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["count", "zoo:resnet8", "--density", "0.5"]) == 2
    assert "--density needs --bases" in capsys.readouterr().err
