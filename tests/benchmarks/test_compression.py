"""The comparison of compression methods: experiment files, measuring, resuming, the page and its plots."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from itertools import pairwise
from math import log10
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import numpy as np
import pytest
from benchmarks.compression.__main__ import DEFAULT, main
from benchmarks.compression.experiments import Network, Row, load_experiments
from benchmarks.compression.measure import Task, compile_command
from benchmarks.compression.page import Line, cells, table
from benchmarks.compression.plot import LEFT, TOP, Point, scatter
from hypothesis import given
from hypothesis import strategies as st

from escc.cli.compile import compile_command as escc_compile
from escc.errors import EsccError

SVG = "{http://www.w3.org/2000/svg}"

DEMO = """
text = "A few images."
[data.demo]
source = "demo"
shape = [1, 28, 28]
calibration = 32
test = 40
timed = 1
[[method]]
name = "dense8"
title = "dense, 8 bits"
compile = "--dense"
[[method]]
name = "svd-twn"
compile = "-p 'fold-batch-norm,fuse-requantize,decompose-kernels{method=svd-twn bases=5},shrink-channels,\
calibrate,quantize-hybrid,reorder-linear-combination,plan-memory,schedule'"
[[network]]
name = "demo"
title = "The demo's ResNet-20"
data = "demo"
model = "{demo}/resnet20.safetensors"
options = "--model zoo:resnet20,num_classes=10,in_channels=1 --input-shape 1,28,28"
[[network.row]]
name = "later"
title = "not trained yet"
model = "{work}/later-{seed}.pt2"
seeds = [0, 1]
obtain = "escc compress {model} -o {work}/later-{seed}.pt2"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compression")
    (folder / "demo.toml").write_text(DEMO)
    assert main(arguments(folder, "--page", str(folder / "docs" / "page.md"))) == 0
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    return [str(folder / "demo.toml"), "--work", str(folder / "work"), *more]


def result(folder: Path, row: str) -> dict[str, Any]:
    return json.loads((folder / "work" / "results" / "demo" / f"{row}.json").read_text())


# -- measuring ----------------------------------------------------------------------------------------------


def test_the_figures_of_real_programs(folder: Path) -> None:
    dense, eight, ternary = (result(folder, name) for name in ("fp32", "dense8", "svd-twn"))
    weights = 16 * 9 + 6 * 16 * 16 * 9 + (16 + 5 * 32) * 32 * 9 + (32 + 5 * 64) * 64 * 9 + 640
    assert dense["weight_bytes"] == 4 * weights
    assert dense["ratio"] == 1.0
    assert dense["reductions"]["network"]["convolve_first"] == 0
    assert (dense["bits_per_weight"], dense["cycles"]) == (None, None)
    assert dense["accuracy"] >= eight["accuracy"] - 0.05 > 0.8
    # biases, multipliers and shifts of 698 channels: nine bytes each, like the divisor of the average
    assert eight["weight_bytes"] == weights + 9 * (16 * 7 + 32 * 6 + 64 * 6 + 10 + 1)
    assert eight["ratio"] == pytest.approx(4 * weights / eight["weight_bytes"])
    assert ternary["weight_bytes"] < eight["weight_bytes"] / 4
    assert ternary["entropy_bytes"] < ternary["weight_bytes"]
    # masks and signs; 18 layers of five kernels and 672 scales; less than a byte of padding for each of these
    streams = 5 / 9 * (1 + ternary["density"])
    rest = (18 * 8 * 45 + 672 * 40) / (weights - 16 * 9 - 640)
    padding = ternary["bits_per_weight"] - streams - rest
    assert 0 < padding < 672 * 8 / (weights - 16 * 9 - 640)
    saved = ternary["reductions"]["without_classifier"]
    assert 0 < saved["convolve_first"] <= saved["convolve_first_used"] < 1
    assert ternary["cycles"] < eight["cycles"]
    assert ternary["energy_pj"] < eight["energy_pj"]
    report = json.loads((folder / "work" / "build" / "demo" / "svd-twn" / "compile.json").read_text())
    assert ternary["bits_per_weight"] == report["bits_per_weight"]


def test_what_is_there_is_not_measured_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((folder / "work" / "results").rglob("*.json"))
    before = [path.stat().st_mtime_ns for path in files]
    assert main(arguments(folder, "--list")) == 0
    states = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert states == {
        "demo/fp32": "done",
        "demo/dense8": "done",
        "demo/svd-twn": "done",
        "demo/later": "no model, no model",
    }
    assert main(arguments(folder)) == 0
    captured = capsys.readouterr()
    assert "escc compile" not in captured.err
    assert "dense, 8 bits | " in captured.out
    assert [path.stat().st_mtime_ns for path in files] == before
    # other images are another measurement
    assert main(arguments(folder, "--list", "--images", "7")) == 0
    assert capsys.readouterr().out.startswith("demo/fp32: to do\n")


def test_a_damaged_or_missing_result_is_measured_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "work" / "results" / "demo" / "fp32.json"
    content = path.read_text()
    path.write_text(content[:50])
    assert main(arguments(folder, "--row", "demo/fp32")) == 0
    assert "% of 40 images" in capsys.readouterr().err
    again, kept = json.loads(path.read_text()), json.loads(content)
    assert again.keys() == kept.keys()
    assert all(again[name] == kept[name] for name in kept if name != "seconds")


def test_another_machine_means_timing_again_and_no_more(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "work" / "results" / "demo" / "svd-twn.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"machine": "another", "cycles": 1.0, "energy_pj": 1.0}))
    assert main(arguments(folder, "--row", "demo/svd-twn")) == 0
    captured = capsys.readouterr().err
    assert "timed again" in captured
    assert "escc compile" not in captured
    assert json.loads(path.read_text()) == kept


def test_the_page(folder: Path) -> None:
    text = (folder / "docs" / "page.md").read_text()
    assert "A few images." in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in rows] == [
        "| method", "| dense, 32-bit floats", "| dense, 8 bits", "| svd-twn",
    ]  # fmt: skip
    assert len({line.count("|") for line in rows}) == 1
    commands = [line.split("`")[1] for line in text.splitlines() if "--row" in line]
    assert len(commands) == 4
    for line in commands:
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "benchmarks.compression"]
        # the command is one that this program takes: it lists the row
        assert main([*words[3:-1], "--list"]) == 0
    compiled = [line.split("`")[1] for line in text.splitlines() if "`escc compile" in line]
    assert len(compiled) == 2
    for line in compiled:
        escc_compile.make_context("compile", shlex.split(line)[2:], parent=click.Context(escc_compile))
    for name in ("page-demo-weight.svg", "page-demo-cycles.svg"):
        assert f"]({name})" in text
        root = ElementTree.fromstring((folder / "docs" / name).read_text())
        assert root.tag == f"{SVG}svg"


def test_what_the_user_gets_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, "--row", "demo/svd")) == 1
    assert "no such row" in capsys.readouterr().err
    assert main(arguments(folder, "--data", "fashion=/x")) == 1
    assert "NAME=PATH with a name of demo" in capsys.readouterr().err
    assert main([str(folder / "nothing.toml")]) == 1
    assert main(["--colour"]) == 2
    (folder / "later.toml").write_text(DEMO.replace("escc compress {model}", "rm {model}"))
    args = [str(folder / "later.toml"), "--work", str(folder / "work"), "--row", "demo/later", "--obtain"]
    assert main(args) == 1
    assert "did not make" in capsys.readouterr().err
    assert (Path(folder) / "demo.toml").exists()


# -- experiment files ---------------------------------------------------------------------------------------


def test_the_shipped_experiments_are_commands_that_escc_takes(tmp_path: Path) -> None:
    experiments = load_experiments(DEFAULT)
    assert {"demo", "resnet20", "resnet56", "vgg16"} <= {network.name for network in experiments.networks}
    for network in experiments.networks:
        assert len(network.rows) >= 7
        for row in network.rows:
            task = Task(network, row, experiments.data[network.data], tmp_path, seed=0)
            words = compile_command(task, "images.npy", tmp_path)
            context = escc_compile.make_context("compile", words[1:], parent=click.Context(escc_compile))
            if context.params["passes"]:
                from escc.ir.passes import parse_pipeline

                parse_pipeline(context.params["passes"])
    (demo,) = (network for network in experiments.networks if network.name == "demo")
    assert Task(demo, demo.dense, experiments.data["demo"], tmp_path).is_there


def changed(old: str, new: str) -> Callable[[], str]:
    assert old in DEMO
    return lambda: DEMO.replace(old, new)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (changed('name = "dense8"', 'name = "svd-twn"'), "two rows 'svd-twn'"),
        (changed("timed = 1", "timing = 1"), "unknown entry 'timing'"),
        (changed('data = "demo"', 'data = "cifar"'), "no data.cifar"),
        (changed('title = "dense, 8 bits"', 'evaluate = "both"'), "'integer' or 'float'"),
        (changed('title = "dense, 8 bits"', 'evaluate = "float"'), "is not compiled"),
        (changed("later-{seed}.pt2", "later.pt2"), "no {seed} in its model"),
        (changed('shape = [1, 28, 28]', ""), "missing 1 required"),
        (lambda: "[data", "not TOML"),
    ],
)  # fmt: skip
def test_experiment_files_that_are_refused(tmp_path: Path, text: Callable[[], str], words: str) -> None:
    path = tmp_path / "e.toml"
    path.write_text(text())
    with pytest.raises(EsccError, match=words.replace("{", r"\{")):
        load_experiments(path)


def test_a_row_of_several_seeds_is_their_mean() -> None:
    network, row = Network("n", "N", "d", "m"), Row("r", "retrained")
    base = {
        "images": 10, "weight_bytes": 100, "entropy_bytes": 80, "ratio": 40.0, "bits_per_weight": None,
        "density": 0.25, "cycles": 500.0, "energy_pj": 2e6, "seconds": 3.0,
        "reductions": {"without_classifier": dict.fromkeys(
            ("convolve_first", "convolve_first_used", "combine_first"), 0.5)},
    }  # fmt: skip
    shares = (0.90, 0.93, 0.93)
    results = tuple({**base, "accuracy": share, "weight_bytes": 100 + i} for i, share in enumerate(shares))
    line = Line(network, row, (), results)
    assert line.mean("accuracy") == pytest.approx(0.92)
    found = cells(line, 0.95)
    assert found[:3] == ["retrained", "92.00 ± 1.50", "-3.00"]
    assert found[6:8] == ["101", "40.0x"]
    assert found[8] == ""
    missing = Line(network, Row("x", "X"), (), (), "no x.pt2")
    assert len(table([missing, line])) == 3


# -- plots --------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.floats(1, 1e9), st.floats(0, 100), st.sampled_from(["a", "b <c>", "d"])),
        min_size=1,
        max_size=12,
    )
)
def test_marks_lie_where_their_values_are(values: list[tuple[float, float, str]]) -> None:
    points = [Point(x, y, f"p{i} & more", family) for i, (x, y, family) in enumerate(values)]
    root = ElementTree.fromstring(scatter(points, title="T", x_label="bytes", y_label="accuracy"))
    places: dict[str, tuple[float, float]] = {}
    for mark in root.iter():
        name = mark.find(f"{SVG}title")
        if name is None or name.text is None:
            continue
        if mark.tag == f"{SVG}circle":
            places[name.text] = (float(mark.attrib["cx"]), float(mark.attrib["cy"]))
        else:
            first, second = mark.attrib["transform"][len("translate(") : -1].split()
            places[name.text] = (float(first), float(second))
    seen = [(places[point.label], point) for point in points]
    assert all(x >= LEFT - 0.1 and y >= TOP - 0.1 for (x, y), _ in seen)
    for ((x1, y1), a), ((x2, y2), b) in pairwise(seen):
        assert np.sign(round(x1 - x2)) in (0, np.sign(log10(a.x) - log10(b.x)))
        assert np.sign(round(y2 - y1)) in (0, np.sign(a.y - b.y))
