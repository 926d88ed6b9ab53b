"""Whole recipes on a small network: resumed runs equal uninterrupted ones, whatever stopped them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from escc.backend_sim.simulator import simulate
from escc.driver import compile_module, import_model
from escc.errors import EsccError
from escc.frontend.datasets import Dataset, load_dataset
from escc.passes.reference.float_graph import evaluate
from escc.training.compress import Compressed, compress
from escc.training.recipe import shipped_recipes
from escc.training.run import CHECKPOINT, LOG

RECIPE = """
seed = 3
precision = "fp32"
[data]
shift = 1
[[phase]]
kind = "train"
name = "dense"
epochs = 5
batch = 32
learning_rate = 0.2
[[phase]]
kind = "decompose"
bases = 5
method = "svd"
[[phase]]
kind = "train"
name = "turns"
epochs = 2
batch = 32
learning_rate = 0.02
l1 = 1e-4
swap_every = 1
[[phase]]
kind = "prune"
std = 0.5
[[phase]]
kind = "train"
name = "fine"
epochs = 1
batch = 32
learning_rate = 0.01
distill = 0.5
optimizer = "adamw"
"""


class Small(nn.Module):
    """Two blocks and a classifier, for images of 1x8x8."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(self.bn2(self.conv(x)))
        return self.classifier(x.mean((2, 3)))


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four classes: which quarter of the image is bright."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, count)
    pictures = random.integers(0, 100, (count, 8, 8), dtype=np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        row, column = divmod(int(label), 2)
        picture[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 120
    return pictures, labels


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "quarters.npz"
    (x_train, y_train), (x_test, y_test) = images(256, 1), images(128, 2)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="module")
def data(data_file: Path) -> Dataset:
    return load_dataset(data_file, (1, 8, 8))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE)
    return str(path)


def train(data: Dataset, recipe: str, work: Path, *settings: str, seconds: float = 1e9) -> Compressed:
    return compress(
        Small().eval(),
        data,
        recipe,
        work=work,
        settings=("data.flip=false", *settings),
        device="cpu",
        checkpoint_seconds=seconds,
        input_shape=(1, 8, 8),
    )


@pytest.fixture(scope="module")
def whole(data: Dataset, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    return train(data, recipe, tmp_path_factory.mktemp("whole"))


def equal(one: Compressed, other: Compressed) -> bool:
    first, second = one.model.state_dict(), other.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_it_learns_and_logs(whole: Compressed) -> None:
    assert [row["phase"] for row in whole.history] == ["dense", "decompose", "turns", "prune", "fine"]
    assert whole.history[0]["accuracy"] > 0.6
    assert whole.history[-1]["accuracy"] > 0.6


def test_the_same_seed_gives_the_same_network(
    whole: Compressed, data: Dataset, recipe: str, tmp_path: Path
) -> None:
    assert equal(whole, train(data, recipe, tmp_path / "again"))
    assert not equal(whole, train(data, recipe, tmp_path / "other", "seed=4"))


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_can_be_carried_out_and_compiled(name: str, data: Dataset, tmp_path: Path) -> None:
    settings = ["data.mean=[0.4]", "data.std=[0.3]", "train.epochs=1", "train.batch=64"]
    done = compress(
        Small().eval(), data, name, work=tmp_path, settings=settings, device="cpu", input_shape=(1, 8, 8)
    )
    done.save(tmp_path / "small.pt2")
    module = import_model(tmp_path / "small.pt2")
    images = np.random.default_rng(0).standard_normal((16, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        wanted = done.model(torch.from_numpy(images)).numpy()
    decomposed = [op for op in module.layers if op.name == "escalate.decomposed_conv2d"]
    assert len(decomposed) == (0 if name == "dense" else 1)
    assert np.allclose(evaluate(module, images)[0], wanted, atol=1e-2 * np.abs(wanted).max())
    program = compile_module(module, calibration=images).program
    assert program is not None
    close = simulate(program, images).outputs_float[0].reshape(wanted.shape)
    assert np.abs(close - wanted).max() <= 0.1 * np.abs(wanted).max()


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("step", [3, 8, 40, 42, 49, 59, 66])
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not_been(
    whole: Compressed, data: Dataset, recipe: str, tmp_path: Path, step: int
) -> None:
    seen = 0

    def stop(stage: str, done: int, total: int) -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            raise Stop

    def go(progress: object) -> Compressed:
        return compress(
            Small().eval(),
            data,
            recipe,
            work=tmp_path,
            settings=("data.flip=false",),
            device="cpu",
            checkpoint_seconds=0.0,
            input_shape=(1, 8, 8),
            **({"progress": progress} if progress else {}),  # pyright: ignore[reportArgumentType]
        )

    with pytest.raises(Stop):
        go(stop)
    assert equal(whole, go(None))
    events = [json.loads(line)["event"] for line in (tmp_path / LOG).read_text().splitlines()]
    assert events.count("phase") == 5
    assert events.count("resume") == 1 or step < 2


def test_a_finished_run_is_not_run_again(
    whole: Compressed, data: Dataset, recipe: str, tmp_path: Path
) -> None:
    train(data, recipe, tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    assert equal(whole, train(data, recipe, tmp_path))
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_another_recipe_does_not_take_over_a_run(data: Dataset, recipe: str, tmp_path: Path) -> None:
    train(data, recipe, tmp_path)
    with pytest.raises(EsccError, match="another recipe"):
        train(data, recipe, tmp_path, "seed=9")


def test_a_damaged_checkpoint_is_one_line(data: Dataset, recipe: str, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"nonsense")
    with pytest.raises(EsccError, match="damaged checkpoint"):
        train(data, recipe, tmp_path)


def test_a_diverging_run_says_so(data: Dataset, recipe: str, tmp_path: Path) -> None:
    with pytest.raises(EsccError, match="not finite"):
        train(data, recipe, tmp_path, "dense.learning_rate=1000", "dense.weight_decay=1000")


# -- the command --------------------------------------------------------------------------------------------


def command(tmp_path: Path, data: Path, recipe: str, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "escc", "compress", "zoo:resnet8,num_classes=4,in_channels=1"),
        *("--data", str(data), "--recipe", recipe, "-o", str(tmp_path / "out.pt2")),
        *("--input-shape", "1,8,8", "--threads", "1", "--device", "cpu", "--set", "dense.epochs=2"),
        *more,
    ]


def test_a_killed_command_goes_on(data_file: Path, recipe: str, tmp_path: Path) -> None:
    line = command(tmp_path, data_file, recipe, "--checkpoint-seconds", "0")
    folder = tmp_path / "out.pt2.run"
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / CHECKPOINT).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out.pt2").exists()
    subprocess.run(line, check=True, capture_output=True)
    reference = tmp_path / "reference"
    reference.mkdir()
    subprocess.run(command(reference, data_file, recipe), check=True, capture_output=True)
    final = [(path / "out.pt2.run" / CHECKPOINT) for path in (tmp_path, reference)]
    from escc.training.checkpoint import load_checkpoint

    states = [load_checkpoint(path).model for path in final]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    events = [json.loads(row)["event"] for row in (folder / LOG).read_text().splitlines()]
    assert "resume" in events


def test_two_processes_train_one_network(data_file: Path, recipe: str, tmp_path: Path) -> None:
    line = command(tmp_path, data_file, recipe)
    torchrun = [*(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"), *line[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.pt2").exists()
    rows = [json.loads(row) for row in (tmp_path / "out.pt2.run" / LOG).read_text().splitlines()]
    assert sum(row["event"] == "phase" for row in rows) == 5
    losses = [row["loss"] for row in rows if row["event"] == "epoch" and row["phase"] == "dense"]
    assert losses[1] < losses[0]
