"""Programs of networks compressed in training: how close their integers are to the trained network's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.generators.trained_network import Block, Decomposed, ResNet8, settle, vgg
from torch import nn

import escc
from escc.backend_sim.simulator import simulate
from escc.cli import run
from escc.driver import CompileOptions, compile_module, import_model
from escc.ir.base import LayerOp, module_path
from escc.ir.module import Module
from escc.ir.passes import PassContext, make_pass, run_pipeline
from escc.ir.pins import pin_of
from escc.ir.types import MapType
from escc.ir.xdsl import SSAValue
from escc.isa.program import Program
from escc.passes.calibrate import scales_from
from escc.passes.reference.float_graph import activate, evaluate, linear_part
from escc.passes.reference.integer_graph import evaluate_integer

SHAPE = (3, 16, 16)


@dataclass(frozen=True)
class Case:
    """A trained network and what became of it."""

    model: nn.Module
    images: NDArray[np.float32]
    logits: NDArray[np.float32]
    calibrated: Module
    compiled: Module
    program: Program


@cache
def case(name: str) -> Case:
    """Compiled without any image: all scales come from training."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        images = torch.randn(24, *SHAPE)
        model = settle(vgg() if name == "vgg" else ResNet8(), images)
        if name == "resnet, scales of their own":
            for index, rounding in enumerate(model.residual_stream()):  # type: ignore[operator]
                rounding.scale *= 1.0 + 0.13 * index
    with torch.inference_mode():
        logits = model(images).numpy()
    module = import_model(model, input_shape=SHAPE)
    np.testing.assert_array_equal(evaluate(module, images.numpy())[0], logits)
    calibrated = compile_module(module.clone(), stop_after="calibrate").module
    done = compile_module(module)
    assert done.program is not None
    assert scales_from(module) == "pinned"
    return Case(model, images.numpy(), logits, calibrated, module, done.program)


NAMES = ["resnet", "resnet, scales of their own", "vgg"]


@pytest.mark.parametrize("name", NAMES)
def test_program_follows_the_trained_network(name: str) -> None:
    """Free run over all layers: the machine's logits beside torch's."""
    found = case(name)
    (kind,) = (value.type for value in found.compiled.outputs)
    assert isinstance(kind, MapType)
    (integers,) = evaluate_integer(found.compiled, found.images)
    (machine,) = simulate(found.program, found.images[:2], timing_images=None).outputs
    np.testing.assert_array_equal(machine, integers[:2])
    steps = np.rint(found.logits / kind.scale_value).astype(int)
    difference = np.abs(integers.astype(int) - steps)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.5
    decided = np.ptp(np.sort(steps)[:, -2:], axis=1) > 2 * difference.max()
    assert decided.sum() > 12
    np.testing.assert_array_equal(integers.argmax(1)[decided], steps.argmax(1)[decided])


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_rounds_as_trained(name: str) -> None:
    """Given the machine's own integers, a layer's next ones are the exact value's nearest, but for half a
    unit of the bias, and half a step for a residual of another scale."""
    found = case(name)
    quantized = found.calibrated.clone()
    run_pipeline(quantized, [make_pass("quantize-hybrid")], PassContext())
    maps: list[list[torch.Tensor]] = []
    layers = list(quantized.layers)

    def keep(op: LayerOp, value: torch.Tensor) -> None:
        maps[layers.index(op)].append(value.double())

    maps = [[] for _ in layers]
    evaluate_integer(quantized, found.images, visit=keep)
    scale = _type(quantized.inputs[0].type).scale_value
    whole = torch.from_numpy(np.clip(np.rint(found.images.astype(np.float64) / scale), -128, 127) * scale)
    real: dict[SSAValue, torch.Tensor] = {found.calibrated.inputs[0]: whole}
    off = total = 0
    for op, integer, pieces in zip(found.calibrated.layers, layers, maps, strict=True):
        kind = _type(integer.out.type)
        machine = torch.cat(pieces)
        exact, activation, arguments = linear_part(found.calibrated, op, [real[x] for x in op.operands])
        if activation is not None:
            exact = activate(exact, activation, arguments)
        wanted = (exact / kind.scale_value).clamp(*kind.limits)
        slack = _slack(quantized, integer)
        assert ((machine - wanted).abs() <= 0.5 + slack).all(), module_path(op)
        half_away = torch.trunc(wanted + torch.copysign(torch.full_like(wanted, 0.5), wanted))
        assert (machine - half_away).abs().max() <= 1
        off += int((machine != half_away).sum())
        total += machine.numel()
        real[op.out] = machine * kind.scale_value
        pin = pin_of(op)
        assert pin is None or (pin.scale, pin.signed) == (kind.scale_value, kind.signed)
    # a residual of another scale is rounded twice
    assert off / total < (0.1 if "own" in name else 0.002)


def _type(kind: object) -> MapType:
    assert isinstance(kind, MapType)
    return kind


def _slack(module: Module, op: LayerOp) -> torch.Tensor:
    """(K, 1, 1): how far from a rounding boundary, in steps, the bias and the residual can move a value."""
    symbol = op.symbol("requant")
    if symbol is None:
        return torch.full((1, 1, 1), 1e-6)
    rows = module.store[symbol].astype(np.float64)
    slack = 0.5 * np.ldexp(rows[:, 1], -rows[:, 2].astype(int)) + 1e-4
    if op.value("residual_multiplier") is not None:
        ratio = np.ldexp(float(op.value("residual_multiplier")), -int(op.value("residual_shift")))
        slack = slack + (0.0 if ratio == round(ratio) else 0.5)
    return torch.from_numpy(slack)[:, None, None]


def test_weights_stay_on_the_grid_of_training() -> None:
    """The program's bases and dense weights are the trained ones to the last bit of their 8."""
    found = case("resnet")
    for index, name in enumerate(("conv1", "conv2")):
        layer = found.model.get_submodule(f"blocks.1.{name}")
        assert isinstance(layer, Decomposed)
        step = float(layer.bases.abs().max()) / 127
        (op,) = [op for op in found.compiled.layers
                 if op.name == "escalate.convolve" and module_path(op) == f"blocks.1.{name}"]  # fmt: skip
        bases = found.compiled.store[op.weight_name("bases")]
        np.testing.assert_array_equal(bases, np.rint(layer.bases.numpy() / step), err_msg=str(index))


def closed_resnet() -> nn.Module:
    """Channels of the residual stream and inside a block closed as training closes them."""
    model = ResNet8()
    blocks = [block for block in model.blocks if isinstance(block, Block)]

    def close(norm: nn.BatchNorm2d, channels: list[int]) -> None:
        with torch.no_grad():
            norm.weight[channels] = 0.0
            norm.bias[channels] = 0.0

    settle(model, torch.randn(16, *SHAPE))
    inside, stream = [1, 4, 5], [0, 2]
    close(blocks[1].bn1, inside)
    blocks[1].conv1.coefficients[inside] = 0
    blocks[1].conv2.coefficients[:, inside] = 0
    # channel c of one stage is channel c + added / 2 of the next
    for block in blocks:
        offset = block.added // 2
        stream = [channel + offset for channel in stream]
        close(block.bn2, stream)
        block.conv2.coefficients[stream] = 0
    close(model.bn1, [0, 2])
    # the largest basis goes with the channels: the others keep their step
    largest = int(blocks[1].conv1.bases.abs().amax((1, 2)).argmax())
    blocks[1].conv1.coefficients[:, :, largest] = 0
    return model


def test_closed_channels_go_and_nothing_changes() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        module = import_model(closed_resnet(), input_shape=SHAPE)
        images = torch.randn(6, *SHAPE).numpy()
    whole, small = module.clone(), module.clone()
    big = compile_module(whole, options=CompileOptions(shrink=False)).program
    program = compile_module(small).program
    assert program is not None
    assert big is not None
    wanted = evaluate_integer(whole, images)[0]
    np.testing.assert_array_equal(evaluate_integer(small, images)[0], wanted)
    np.testing.assert_array_equal(simulate(program, images[:2], timing_images=None).outputs[0], wanted[:2])
    # two-level masks leave little of a channel without coefficients, but it is not nothing
    assert len(program.data) < 0.95 * len(big.data)
    outputs = {module_path(op): op.out.type.shape_tuple[2] for op in small.layers
               if op.name == "escalate.requantize" and isinstance(op.out.type, MapType)}  # fmt: skip
    assert [outputs[f"blocks.{index}.conv2"] for index in range(3)] == [6, 14, 30]
    assert outputs["conv1"] == 6
    assert outputs["blocks.1.conv1"] == 13
    # what is padded around the shortcut and closed goes too
    (combine,) = [op for op in small.layers
                  if op.name == "escalate.combine" and module_path(op) == "blocks.1.conv1"]  # fmt: skip
    assert small.store[combine.weight_name("coefficients")].shape == (13, 6, 4)


def test_archive_goes_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = case("resnet")
    model, program = tmp_path / "small.pt2", tmp_path / "prog.bin"
    escc.save(found.model, torch.from_numpy(found.images[:2]), model)
    assert run(["compile", str(model), "-o", str(program), "--report", str(tmp_path)]) == 0
    assert "random inputs" not in capsys.readouterr().err
    assert Program.load(program).same_as(found.program)
    costs = json.loads((tmp_path / "compile.json").read_text())["convolutions"]
    assert [cost["bases"] for cost in costs] == [0, *[5] * 6, 0]
    assert run(["ops", str(model)]) == 0
    printed = capsys.readouterr().out
    assert "escalate.decomposed_conv2d" in printed
    assert "(pinned scale)" in printed
    assert run(["verify", str(model), "--images", "2"]) == 0
    assert "FAILED" not in capsys.readouterr().out


def test_report_of_real_coefficients_counts_as_penni_does(tmp_path: Path) -> None:
    """PENNI's networks run with dense weights here, and are counted as they were trained."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layer = Decomposed(3, 6, bases=4, real=True)
        escc.save(nn.Sequential(layer, nn.ReLU()).eval(), torch.zeros(2, 3, 8, 10), tmp_path / "penni.pt2")
    files = [str(tmp_path / name) for name in ("penni.pt2", "prog.bin")]
    assert run(["compile", files[0], "-o", files[1], "--report", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "compile.json").read_text())
    (cost,) = report["convolutions"]
    left = int(np.count_nonzero(layer.coefficients.numpy()))
    positions, planes = 8 * 10, 3 * 4
    assert cost["convolve_first"] == {"macs": positions * planes * 9, "adds": positions * left}
    assert report["totals"]["network"]["compiled"]["convolve_first"] == cost["convolve_first"]
    # a mask, and 32 bits for each coefficient left and for the bases
    assert cost["bits"] == layer.coefficients.numel() + 32 * (left + layer.bases.numel())
    assert report["layers"][0]["form"] == "dense"
