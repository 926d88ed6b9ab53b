"""A whole run gives the same figures whatever engine times it, and says which it was."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy.typing as npt
import pytest
from tests.backend_sim.simulator.networks import network
from tests.backend_sim.timing import oracle
from tests.backend_sim.timing.engines import native_is_there

from escc.backend_sim.simulator import random_images, runner, simulate
from escc.backend_sim.simulator.timing import Convolution, ConvTiming, NumpyEngine, TimingArch, native
from escc.cli import run
from escc.demo.assets import INPUT_SHAPE, load_data, load_network
from escc.driver import CompileOptions, compile_module, import_model
from escc.isa.program import Program

needs_library = pytest.mark.skipif(not native_is_there(), reason="no compiler, hence no native engine")


def figures(program: Program, images: Any, engine: str) -> dict[str, Any]:
    result = simulate(program, images, timing_images=2, engine=engine)
    assert result.engine.startswith(engine)
    content = result.to_dict()
    assert content.pop("engine") == result.engine
    return {name: value for name, value in content.items() if name != "simulation_seconds"} | {
        "outputs": [values.tolist() for values in result.outputs]
    }


@cache
def demo() -> tuple[Program, npt.NDArray[Any]]:
    """The demo network compiled, and its test images."""
    data = load_data()
    module = import_model(load_network(), input_shape=INPUT_SHAPE)
    options = CompileOptions(refine=False)
    program = compile_module(module, calibration=data.calibration[:8], options=options).program
    assert program is not None
    return program, data.images


@needs_library
def test_every_layer_of_the_demo_network() -> None:
    """All instructions of ResNet-20 on real images: cycles, causes, events and energy of every layer."""
    program, images = demo()
    wanted = figures(program, images[:2], "numpy")
    assert len(wanted["layers"]) > 20
    for variant in native.variants():
        assert figures(program, images[:2], f"native-{variant}") == wanted


class Recorder(NumpyEngine):
    """Keeps what it was asked for, and its answers."""

    def __init__(self) -> None:
        self.timed: list[tuple[Convolution, ConvTiming]] = []

    def conv_timings(self, arch: TimingArch, convolutions: Sequence[Convolution]) -> list[ConvTiming]:
        timings = super().conv_timings(arch, convolutions)
        self.timed += zip(convolutions, timings, strict=True)
        return timings


def test_the_demo_network_cycle_by_cycle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every convolution of ResNet-20 in full, on a real image, against the model that steps from cycle to
    cycle; `test_every_layer_of_the_demo_network` holds the native engine to the same."""
    program, images = demo()
    recorder = Recorder()
    monkeypatch.setattr(runner, "make_engine", lambda name: recorder)
    simulate(program, images[:1])
    assert len(recorder.timed) >= 20
    for (work, x, ternary), timing in recorder.timed:
        mask = None if ternary is None else ternary.mask.tolist()
        wanted = oracle.image_timing(program.arch, work, (x[0] != 0).tolist(), mask)
        assert {name: int(values[0]) for name, values in vars(timing).items()} == wanted, work


@needs_library
@pytest.mark.parametrize("seed", range(3))
def test_a_network_of_everything(seed: int) -> None:
    program = network()
    images = random_images(program.inputs[0], 3, seed)
    assert figures(program, images, "native") == figures(program, images, "numpy")


def test_an_engine_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    network().save(tmp_path / "net.bin")
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "kernel.so")
    native.library.cache_clear()
    native.variants.cache_clear()
    args = ["sim", str(tmp_path / "net.bin")]
    assert run([*args, "--engine", "native"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: the native engine is not there: it was not built")
    assert run(args) == 0
    assert "engine numpy" in " ".join(capsys.readouterr().out.split())
    monkeypatch.undo()
    native.library.cache_clear()
    native.variants.cache_clear()
