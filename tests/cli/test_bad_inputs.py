"""Bad input gets one line that says what and where, exit code 1, and leaves nothing half-written."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from escc.cli import run
from escc.isa.container import fix_checksums
from escc.isa.program import Program


class Net(nn.Module):
    """Something small with every section of a program filled."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


class Unsupported(Net):
    """Uses an operator no machine of ours has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cumsum(self.second(self.first(x)), 1).mean((2, 3)))


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its program and images, once for all tests."""
    import escc

    folder = tmp_path_factory.mktemp("bad")
    escc.save(Net().eval(), torch.zeros(2, 3, 8, 8), folder / "model.pt2")
    code = run(["compile", str(folder / "model.pt2"), "-o", str(folder / "prog.bin"), "--bases", "3"])
    assert code == 0
    np.save(folder / "images.npy", np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
    return folder


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Run a command that must fail with exit code 1 and one line on stderr; the line."""
    capsys.readouterr()
    assert run([str(arg) for arg in args]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "Traceback" not in lines[0]
    return lines[0]


def test_the_good_program_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sim", str(folder / "prog.bin"), "--input", str(folder / "images.npy")]) == 0


@pytest.mark.parametrize("command", ["sim", "dis", "inspect"])
def test_missing_program(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.bin" in refused(capsys, command, folder / "none.bin")


def damaged(folder: Path, change: Callable[[bytearray], bytes | bytearray]) -> Path:
    content = change(bytearray((folder / "prog.bin").read_bytes()))
    target = folder / "damaged.bin"
    target.write_bytes(bytes(content))
    return target


@pytest.mark.parametrize("keep", [0, 7, 63, 64, 200, 0.5, 0.99])
def test_truncated(folder: Path, keep: float, capsys: pytest.CaptureFixture[str]) -> None:
    path = damaged(folder, lambda c: c[: int(len(c) * keep) if keep < 1 else int(keep)])
    assert "damaged.bin" in refused(capsys, "sim", path)


def test_wrong_magic_and_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = damaged(folder, lambda c: b"X" + c[1:])
    assert "not an escc program" in refused(capsys, "sim", path)
    (folder / "text.bin").write_text("hello, machine\n" * 40)
    assert "not an escc program" in refused(capsys, "sim", folder / "text.bin")
    assert "not an escc program" in refused(capsys, "sim", folder / "model.pt2")


def test_newer_version(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((folder / "prog.bin").read_bytes())
    content[8] = 0x7F  # the major version follows the eight bytes of magic
    (folder / "damaged.bin").write_bytes(fix_checksums(bytes(content)))
    assert "format 127.0 is newer" in refused(capsys, "sim", folder / "damaged.bin")


def test_every_flipped_bit_is_noticed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = (folder / "prog.bin").stat().st_size
    rng = np.random.default_rng(1)
    for bit in {*range(0, 512, 37), *(int(b) for b in rng.integers(0, 8 * size, 40))}:
        path = damaged(folder, lambda c, bit=bit: c[: bit // 8] + bytes([c[bit // 8] ^ (1 << bit % 8)])
                       + c[bit // 8 + 1 :])  # fmt: skip
        if path.read_bytes() != (folder / "prog.bin").read_bytes():
            try:
                Program.load(path)
            except Exception:
                refused(capsys, "sim", path)
            else:  # padding between sections carries no meaning
                assert bit // 8 >= 64


def test_model_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.bin"
    assert "none.pt" in refused(capsys, "compile", tmp_path / "none.pt", "-o", out)
    (tmp_path / "text.pt").write_text("not a model")
    refused(capsys, "compile", tmp_path / "text.pt", "-o", out)
    marker = tmp_path / "marker"
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb(marker)))
    refused(capsys, "compile", tmp_path / "bomb.pt", "-o", out, "--input-shape", "3,8,8")
    torch.save(Bomb(marker), tmp_path / "bomb2.pt")
    refused(capsys, "compile", tmp_path / "bomb2.pt", "-o", out, "--input-shape", "3,8,8")
    assert not marker.exists()
    content = (folder / "model.pt2").read_bytes()
    (tmp_path / "cut.pt2").write_bytes(content[: len(content) // 2])
    refused(capsys, "compile", tmp_path / "cut.pt2", "-o", out)
    torch.save(Net(), tmp_path / "own.pt")
    assert "--allow-class" in refused(
        capsys, "compile", tmp_path / "own.pt", "-o", out, "--input-shape", "3,8,8"
    )
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(("out", ".out"))) == []


def test_unsupported_operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import escc

    escc.save(Unsupported().eval(), torch.zeros(2, 3, 8, 8), tmp_path / "model.pt2")
    line = refused(capsys, "compile", tmp_path / "model.pt2", "-o", tmp_path / "out.bin")
    assert "cumsum" in line
    assert "test_bad_inputs.py" in line
    assert not (tmp_path / "out.bin").exists()


def test_output_folder_is_missing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "compile", folder / "model.pt2", "-o", tmp_path / "no" / "out.bin")


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((2, 3, 9, 8), np.float32), "shape"),
        (np.zeros((3, 8), np.float32), "shape"),
        (np.zeros((2, 3, 8, 8), np.complex64), "complex64"),
        (np.full((1, 3, 8, 8), np.nan, np.float32), ""),
        (np.zeros((0, 3, 8, 8), np.float32), ""),
    ],
)
def test_bad_images(
    folder: Path, tmp_path: Path, array: np.ndarray, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", array)
    assert word in refused(capsys, "sim", folder / "prog.bin", "--input", tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("blocks = 7", "", "blocks"),
        ("blocks = 7", "blocks = 0", "blocks"),
        ("blocks = 7", 'blocks = "many"', "blocks"),
        ("blocks = 7", "blocks = 1000000", "blocks"),
        ("blocks = 7", "blocks = 7\nblocs = 3", "blocs"),
        ("sram_kib = 1024", "sram_kib = -5", "sram_kib"),
        ('policy = "window"', 'policy = "windows"', "policy"),
        ("[array]", "[array", ""),
    ],
)
def test_bad_architecture_files(
    folder: Path, tmp_path: Path, old: str, new: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from escc.isa.arch import Arch

    text = Arch.default().to_toml()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new, 1))
    line = refused(
        capsys, "compile", folder / "model.pt2", "-o", tmp_path / "out.bin", "--arch", tmp_path / "mine.toml"
    )
    assert "mine.toml" in line
    assert word in line
