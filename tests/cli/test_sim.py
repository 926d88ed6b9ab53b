"""``escc sim``: what it prints and writes, and one line for whatever is wrong."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.backend_sim.simulator.networks import network

from escc.backend_sim.simulator import random_images, simulate
from escc.cli import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program, images, labels and the right outputs; the working directory."""
    program = network()
    program.save(tmp_path / "net.bin")
    images = random_images(program.inputs[0], 4, seed=9)
    outputs = simulate(program, images, timing_images=None).outputs
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "expected.npz", pooled=outputs[0], means=outputs[1])
    np.save(tmp_path / "labels.npy", outputs[0].reshape(4, -1).argmax(axis=1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(args: list[str], capsys: Capture, code: int = 1) -> str:
    assert run(args) == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def test_random_input_is_said_so(folder: Path, capsys: Capture) -> None:
    assert run(["sim", "net.bin", "--seed", "4"]) == 0
    out = capsys.readouterr().out
    assert "1 image (random input, seed 4: not real images)" in out
    assert "stem.conv" in out
    assert "cycles (1 image)" in out
    assert "horowitz45" in out


def test_everything_at_once(folder: Path, capsys: Capture) -> None:
    args = ["sim", "net.bin", "--input", "images.npy", "--labels", "labels.npy", "--timing-images", "2"]
    args += ["--expected", "expected.npz", "--output", "out.npz", "--report", "report/deep"]
    args += ["--json", "figures.json", "--trace", "trace.json", "--dram-gbps", "3.2"]
    assert run(args) == 0
    captured = capsys.readouterr()
    assert "accuracy 100.00%" in captured.out
    assert "outputs equal expected.npz" in captured.err
    figures = json.loads(Path("figures.json").read_text())
    assert figures == json.loads(Path("report/deep/simulation.json").read_text())
    assert figures["timed_images"] == 2
    assert figures["architecture"]["dram_gbps"] == 3.2
    rows = list(csv.DictReader(Path("report/deep/layers.csv").read_text().splitlines()))
    assert len(rows) == 6
    page = Path("report/deep/report.html").read_text()
    assert "<h1>net.bin</h1>" in page
    assert "input images.npy, means of 2 timed images, engine" in page
    with np.load("out.npz") as written, np.load("expected.npz") as right:
        assert (written["means"] == right["means"]).all()
    events = json.loads(Path("trace.json").read_text())["traceEvents"]
    bars = [event for event in events if event["ph"] == "X" and event["cat"] in ("dma", "blk", "vec")]
    bars = [event for event in bars if "word" in event["args"]]
    assert len(bars) == 1 + 8 + 3 + 2 + 2
    assert {"conv_combine", "vec_max", "store_map"} <= {event["name"] for event in bars}
    end = max(event["ts"] + event["dur"] for event in bars)
    # what the sequencer does after the last store takes less than ten cycles
    assert 0 <= figures["latency_us"][0] - end < 10 / 800


def test_json_on_stdout_is_all_there_is(folder: Path, capsys: Capture) -> None:
    assert run(["sim", "net.bin", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 1


def test_functional(folder: Path, capsys: Capture) -> None:
    assert run(["sim", "net.bin", "--input", "images.npy", "--functional", "--images", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("net.bin: 3 images (input images.npy)")
    assert "cycles" not in out
    assert run(["sim", "net.bin", "--functional", "--report", "untimed"]) == 0
    assert [path.name for path in Path("untimed").iterdir()] == ["simulation.json"]
    message = error_of(["sim", "net.bin", "--functional", "--energy-table", "x"], capsys, code=2)
    assert "--functional gives no cycles" in message


def test_a_wrong_output_is_exit_code_1(folder: Path, capsys: Capture) -> None:
    with np.load("expected.npz") as right:
        pooled, means = right["pooled"].copy(), right["means"].copy()
    pooled[2, 5, 1, 0] ^= 1
    np.savez("wrong.npz", pooled=pooled, means=means)
    args = ["sim", "net.bin", "--input", "images.npy", "--functional", "--expected", "wrong.npz"]
    message = error_of(args, capsys)
    got = int(pooled[2, 5, 1, 0]) ^ 1
    assert message == (
        f"error: output pooled differs from wrong.npz in 1 of 288 values, first at [2, 5, 1, 0]: {got}, "
        f"expected {got ^ 1}"
    )
    np.savez("floats.npz", pooled=(pooled * 0.02).astype(np.float32), means=(means * 0.05).astype(np.float32))
    args[-1] = "floats.npz"
    assert "output pooled differs from floats.npz in 1 of" in error_of(args, capsys)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["none.bin"], "none.bin: cannot read: No such file"),
        (["images.npy"], "images.npy: "),
        (["net.bin", "--input", "none.npy"], "none.npy: cannot read: No such file"),
        (["net.bin", "--input", "net.bin"], "net.bin: not a file of images or labels"),
        (["net.bin", "--input", "pickled.npy"], "pickled.npy: not a .npy or .npz file of plain numbers"),
        (
            ["net.bin", "--input", "flat.npy"],
            "input 'image': the images have shape (4, 108), the",
        ),
        (["net.bin", "--input", "doubles.npz"], "doubles.npz: holds a, b, the program takes image"),
        (["net.bin", "--input", "images.npy", "--labels", "images.npy"], "labels must be a list of integers"),
        (["net.bin", "--labels", "labels.npy"], "--labels: 4 labels for 1 images"),
        (["net.bin", "--energy-table", "horowitz54"], "no such energy table (did you mean 'horowitz45'?)"),
        (["net.bin", "--dram-gbps", "-1"], "dram_gbps = -1.0 is not allowed"),
        (["net.bin", "--output", "nowhere/out.npz"], "nowhere: the folder does not exist"),
        (["net.bin", "--output", "out.npy"], "the program has 2 outputs: name a .npz file"),
        (["net.bin", "--expected", "images.npy"], "images.npy: holds images, the outputs are pooled, means"),
        (["net.bin", "--report", "net.bin/x"], "cannot create the folder"),
    ],
)
def test_one_line_for_what_is_wrong(args: list[str], message: str, folder: Path, capsys: Capture) -> None:
    images = np.load("images.npy")
    np.save("flat.npy", images.reshape(4, -1))
    np.save("pickled.npy", np.array([{"a": 1}], dtype=object))
    np.savez("doubles.npz", a=images, b=images)
    assert message in error_of(["sim", *args], capsys)


def test_wrong_usage_is_exit_code_2(folder: Path, capsys: Capture) -> None:
    error_of(["sim"], capsys, code=2)
    error_of(["sim", "net.bin", "--images", "0"], capsys, code=2)


def test_it_runs_without_torch_and_xdsl(folder: Path) -> None:
    code = """if True:
        import sys
        from escc.cli import run
        assert run(["sim", "net.bin", "--input", "images.npy", "--report", "r"]) == 0
        print(sorted({"torch", "xdsl", "lark"} & {name.partition(".")[0] for name in sys.modules}))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
