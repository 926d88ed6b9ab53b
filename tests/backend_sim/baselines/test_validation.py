"""The machines against their own papers; docs/baselines.md says what is missed and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from benchmarks.baselines import MARKS, main

from escc.backend_sim.baselines import validation
from escc.backend_sim.baselines.published import ALEXNET, VGG16
from escc.backend_sim.baselines.validation import Figure

PAGE = Path(__file__).resolve().parents[3] / "docs" / "baselines.md"


def ratios(figures: list[Figure]) -> dict[str, float]:
    return {figure.what: figure.ratio for figure in figures if figure.ratio is not None}


def stands_on_the_page(figures: list[Figure], before: str = "") -> None:
    """The page shows these figures: it is not older than the models."""
    text = PAGE.read_text(encoding="utf-8")
    for figure in figures:
        published = "" if figure.published is None else f"{figure.published:.2f}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        assert f"| {before}{figure.what} | {published} | {figure.ours:.2f} | {ratio} |" in text, figure.what


def test_the_layers_are_the_published_networks() -> None:
    assert sum(layer.work(0).macs for layer in ALEXNET) == 665_784_864
    works = [layer.work(0) for layer in VGG16]
    assert sum(work.macs for work in works) == 15_346_630_656
    # what skipping every zero would gain at these densities
    ideal = sum(work.macs for work in works) / sum(
        work.macs * layer.weights * layer.inputs for work, layer in zip(works, VGG16, strict=True)
    )
    assert ideal == pytest.approx(4.95, abs=0.01)


def test_clumps_keep_the_density_and_are_clumps() -> None:
    layer = VGG16[10]
    even, clumped = layer.work(0), layer.work(0, clump=5)
    for work in (even, clumped):
        assert work.x_mask.mean() == pytest.approx(layer.inputs, abs=0.01)
        assert work.weight_mask.mean() == pytest.approx(layer.weights, abs=0.01)

    def neighbours(mask: npt.NDArray[np.bool_]) -> float:
        return float((mask[:, :, 1:] & mask[:, :, :-1]).mean())

    assert neighbours(even.x_mask) == pytest.approx(layer.inputs**2, abs=0.01)
    assert neighbours(clumped.x_mask) > 1.5 * layer.inputs**2


def test_eyeriss_on_alexnet() -> None:
    tables = validation.eyeriss()
    time = ratios(tables["processing ms"])
    assert all(0.85 <= ratio <= 1.05 for ratio in time.values())
    assert 0.90 <= time["all"] <= 1.0
    assert all(0.995 <= ratio <= 1.005 for ratio in ratios(tables["global buffer MB"]).values())
    dram = ratios(tables["DRAM MB"])
    assert all(1.0 <= ratio <= 1.45 for ratio in dram.values())
    assert dram["all"] <= 1.25
    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| conv2 "))
    assert f"{tables['processing ms'][1].ours:.1f} |" in row


def test_scnn_over_dcnn() -> None:
    figures = validation.scnn()
    found = ratios(figures)
    assert 0.95 <= found["AlexNet"] <= 1.04
    assert 0.97 <= found["VGG-16"] <= 1.08
    assert 0.98 <= found["GoogLeNet 3a, 5b"] <= 1.10
    assert 1.0 <= found["VGG-16, no zeros"] <= 1.15
    assert 1.0 <= found["VGG-16, densities 0.85"] <= 1.15
    # a model beyond 60 to 85 % of perfect skipping would be wrong
    vgg = next(figure.ours for figure in figures if figure.what == "VGG-16")
    assert 0.60 <= vgg / 4.95 <= 0.85
    stands_on_the_page(figures)


def test_sparten_over_the_others() -> None:
    tables = validation.sparten()
    last = {over: ratios(figures)["all layers"] for over, figures in tables.items()}
    assert 0.93 <= last["dense"] <= 1.03
    assert 0.94 <= last["one-sided"] <= 1.04
    assert 0.62 <= last["SCNN"] <= 0.75
    assert 0.93 <= last["SCNN without bank queues"] <= 1.08
    for over, figures in tables.items():
        stands_on_the_page(figures, f"{over} | ")


def test_the_page_has_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert [PAGE.read_text(encoding="utf-8").count(mark) for mark in MARKS] == [1, 1]
    assert main(["--help"]) == 0
    assert "beside the published ones" in capsys.readouterr().out
