"""escc compile, opt, verify and demo as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from escc import simulate
from escc.cli import run
from escc.ir.module import Module
from escc.isa.program import Program
from escc.passes.reference.integer_graph import evaluate_integer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import escc

    folder = tmp_path_factory.mktemp("compile")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip
    escc.save(model, torch.zeros(2, 3, 8, 8), folder / "model.pt2")
    torch.save(model, folder / "model.pt")
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32))
    return folder


def test_compile_and_simulate(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, images = str(tmp_path / "prog.bin"), str(folder / "x.npy")
    args = ["compile", str(folder / "model.pt2"), "-o", program, "--calibration", images, "--timing"]
    args += ["--report", str(tmp_path / "report"), "--print-ir-tree-dir", str(tmp_path / "ir")]
    args += ["--ir", str(tmp_path / "program.mlir")]
    assert run(args) == 0
    captured = capsys.readouterr()
    assert "bytes of weights" in captured.out
    assert "refine-coefficients" in captured.err
    report = json.loads((tmp_path / "report" / "compile.json").read_text())
    assert [row["form"] for row in report["layers"] if "form" in row] == ["dense", "ternary", "dense"]
    second = report["convolutions"][1]
    assert (second["bases"], second["shape"]["outputs"]) == (6, 16)
    assert second["combine_first"]["macs"] == 3 * 3 * 16 * 6 * 9
    totals = report["totals"]["network"]
    assert totals["original"]["parameters"] == 8 * 27 + 16 * 72 + 16 * 4
    assert totals["original"]["dense_macs"] == 64 * 8 * 27 + 9 * 16 * 72 + 16 * 4
    assert totals["compiled"]["bits"] == sum(row["bits"] for row in report["convolutions"])
    assert report["totals"]["without_classifier"]["compiled"]["layers"] == 2
    assert report["bits_per_weight"] == second["bits"] / (16 * 72)
    names = sorted(path.name for path in (tmp_path / "ir").iterdir())
    assert names[0] == "00-imported.mlir"
    assert names[-1].endswith("-schedule.mlir")
    assert "escalate.combine" in (tmp_path / "ir" / names[-1]).read_text()
    module, inputs = Module.load(tmp_path / "program.mlir"), np.load(images)
    assert np.array_equal(
        evaluate_integer(module, inputs)[0], simulate(Program.load(program), inputs).outputs[0]
    )
    assert run(["sim", program, "--input", images, "--output", str(tmp_path / "y.npy")]) == 0
    assert run(["sim", program, "--input", images, "--expected", str(tmp_path / "y.npy")]) == 0


def test_a_pickled_module_compiles_with_its_shape(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "prog.bin"
    assert run(["compile", str(folder / "model.pt"), "-o", str(program), "--input-shape", "3,8,8"]) == 0
    assert program.stat().st_size > 0


def test_stop_early_and_go_on_with_opt(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "m.mlir"
    assert (
        run(["compile", str(folder / "model.pt2"), "-o", str(text), "--compile-to", "fold-batch-norm"]) == 0
    )
    assert "nn.batch_norm" not in text.read_text()
    capsys.readouterr()
    pipeline = "fuse-requantize,decompose-kernels{bases=4},calibrate,quantize-hybrid"
    assert run(["opt", str(text), "-p", pipeline, "--calibration", str(folder / "x.npy")]) == 0
    printed = capsys.readouterr().out
    assert 'form "ternary"' in printed
    assert "ui8" in printed


def test_print_ir_after_all_says_what_did_not_change(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compile", str(folder / "model.pt2"), "-o", str(tmp_path / "p.bin"), "--dense",
                "--print-ir-after-all"]) == 0  # fmt: skip
    printed = capsys.readouterr().err
    assert "// IR after fold-batch-norm" in printed
    assert "// shrink-channels: no change" in printed
    assert "warning: no --calibration images" in printed


def test_verify_agrees(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(folder / "model.pt2"), "--input", str(folder / "x.npy")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok       imported")
    assert lines[-1].startswith("ok       program on the simulator")
    assert not any("FAILED" in line for line in lines)


def test_verify_names_the_layer_that_diverges(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["verify", str(folder / "model.pt2"), "--tolerance", "1e-12"])
    lines = capsys.readouterr().out.splitlines()
    assert code == 1
    assert any("FAILED" in line and "first diverging layer" in line for line in lines)


@pytest.mark.parametrize(
    "args", [["--compile-to", "nowhere"], ["-p", "fold-batch-nrm"], ["--print-ir-after", "x"]]
)
def test_wrong_names(
    folder: Path, tmp_path: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compile", str(folder / "model.pt2"), "-o", str(tmp_path / "p.bin"), *args]) == 1
    assert "error:" in capsys.readouterr().err
    assert not (tmp_path / "p.bin").exists()


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On fewer images than `make demo` runs; the claims are the same."""
    out = tmp_path / "demo.json"
    args = [
        "demo",
        "--images",
        "400",
        "--timing-images",
        "1",
        "--json",
        str(out),
        "--keep",
        str(tmp_path / "p"),
    ]
    assert run(args) == 0
    story = json.loads(out.read_text())
    dense, best, smaller = story["rows"]
    assert all(row["predictions_equal"] for row in story["rows"])
    assert abs(dense["program_accuracy"] - story["float_accuracy"]) <= 0.005
    assert best["program_accuracy"] >= story["float_accuracy"] - 0.01
    assert best["compression_ratio"] >= 6
    assert smaller["weight_bytes"] < best["weight_bytes"] < dense["weight_bytes"] / 6
    assert smaller["cycles"] < best["cycles"] < dense["cycles"]
    assert len(list((tmp_path / "p").iterdir())) == 3
    assert "bit for bit" in capsys.readouterr().out
