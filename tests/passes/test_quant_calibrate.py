"""Ranges from images, and the repair of statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.passes.networks import Net, quantized, sqnr

from escc.errors import EsccError
from escc.ir import nn
from escc.ir.base import LayerOp, Symbol, replace_op
from escc.ir.module import Module
from escc.ir.passes import PassContext, run_pipeline
from escc.ir.types import MapType
from escc.passes import calibrate
from escc.passes.calibrate import CALIBRATION, Calibrate, matching
from escc.passes.math.ranges import map_scale
from escc.passes.reference import side_by_side
from escc.passes.reference.float_graph import evaluate, run
from escc.passes.reference.integer_graph import evaluate_integer
from escc.passes.reference.side_by_side import channel_statistics

IMAGES = np.random.default_rng(7).normal(size=(80, 3, 8, 8)).astype(np.float32)


def calibrated(module: Module, batch: NDArray[np.float32] | None = IMAGES, **options: object) -> Module:
    run_pipeline(module, [Calibrate(**options)], PassContext(calibration=batch))  # pyright: ignore[reportArgumentType]
    return module


def two_layers() -> Module:
    net = Net(8, 8, 3)
    return net.finish(net.random_conv(net.random_conv(net.x, 6, 3, activation="relu"), 4, 3))


def test_max_records_the_true_range_of_every_value() -> None:
    module = calibrated(two_layers(), method="max")
    values = run(module, IMAGES)
    for op in module.layers:
        low, high = op.floats("range")
        assert (low, high) == (float(values[op.out].min()), float(values[op.out].max()))
    assert module.input_value(0, "range") == (float(IMAGES.min()), float(IMAGES.max()))
    assert module.op.attributes[CALIBRATION].data == "images"  # pyright: ignore


def test_clipping_stays_inside_and_spares_inputs_and_outputs() -> None:
    whole, clipped = calibrated(two_layers(), method="max"), calibrated(two_layers(), method="percentile")
    (first, last), (first_clipped, last_clipped) = whole.layers, clipped.layers
    assert last_clipped.floats("range") == last.floats("range")
    assert clipped.input_value(0, "range") == whole.input_value(0, "range")
    assert 0.3 < first_clipped.floats("range")[1] / first.floats("range")[1] < 1.0
    assert first_clipped.floats("range")[0] == 0.0


def test_chosen_scale_survives_the_record() -> None:
    """The pass records a range; the scale made of it again is the one that was chosen."""
    module = calibrated(two_layers())
    op = next(iter(module.layers))
    low, high = op.floats("range")
    assert map_scale(low, high, signed=False) == pytest.approx(high / 255)


def test_tables_get_the_range_of_their_input() -> None:
    net = Net(8, 8, 3)
    x = net.random_conv(net.x, 6, 3, activation="silu")
    y = net.op(nn.Add, [x, net.random_conv(net.x, 6, 1)], activation="sigmoid")
    z = net.random_conv(y, 6, 1, activation="clamp", activation_args=(-1.0, 1.0))
    module = calibrated(net.finish(z), method="max")
    silu, _, add, clamp = module.layers
    sums: dict[LayerOp, torch.Tensor] = {}
    run(module, IMAGES, visit_sum=lambda op, value: sums.update({op: value}))
    for op in (silu, add):
        assert op.floats("pre_range") == pytest.approx((float(sums[op].min()), float(sums[op].max())))
    assert clamp.floats("pre_range") == ()
    assert clamp.floats("range") == (-1.0, 1.0)


def test_without_images_noise_stands_in_and_is_marked() -> None:
    first, second = calibrated(two_layers(), None), calibrated(two_layers(), None)
    assert first.op.attributes[CALIBRATION].data == "synthetic"  # pyright: ignore
    assert first.to_text() == second.to_text()
    low, high = first.input_value(0, "range")
    assert -6 < low < -3 < 3 < high < 6
    assert calibrated(two_layers(), None, seed=1).to_text() != first.to_text()


def test_images_are_limited_by_number_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def count(module: Module, inputs: list[list[torch.Tensor]], *_: object) -> None:
        seen.append(sum(len(batch) for batch in inputs[0]))

    monkeypatch.setattr(calibrate, "walk", count)
    calibrated(two_layers())
    calibrated(two_layers(), images=10)
    monkeypatch.setattr(side_by_side, "_MEMORY", 2**17)
    calibrated(two_layers())
    assert seen[:2] == [80, 10]
    assert 1 <= seen[2] < 20


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (IMAGES, {"method": "median"}, "methods: mse, percentile, max"),
        (IMAGES, {"percentile": 0.0}, "bad options"),
        (IMAGES[:0], {}, "no calibration images"),
        (IMAGES[:, :2], {}, "must be N x"),
        (np.full_like(IMAGES, np.nan), {}, "not finite"),
    ],
)
def test_bad_calibration(images: NDArray[np.float32], options: dict[str, object], message: str) -> None:
    with pytest.raises(EsccError, match=message):
        calibrated(two_layers(), images, **options)


# -- statistics ---------------------------------------------------------------------------------------------


def compressed() -> Module:
    """A network with two badly decomposed layers that remember their weights."""
    net, random = Net(8, 8, 3), np.random.default_rng(5)
    x = net.random_conv(net.x, 8, 3, activation="relu")
    for activation in ("relu", None):
        coefficients = random.integers(-1, 2, size=(8, 8, 4)).astype(np.int8)
        bases = random.normal(size=(4, 3, 3)) * 0.15
        exact = np.einsum("kcm,mrs->kcrs", coefficients, bases)
        weight = exact + random.normal(size=exact.shape) * 0.1
        bias = random.normal(size=8)
        x = net.decomposed(
            x,
            bases,
            coefficients,
            random.uniform(1 / 3, 3, 8),
            bias + random.normal(size=8),
            residual=x,
            activation=activation,
        )
        list(net.module.layers)[-1].set_value("original_weight", net.keep(weight.astype(np.float32)))
    return net.finish(net.random_conv(x, 5, 1))


def evaluate_original(module: Module) -> list[torch.Tensor]:
    """Values of the network with every original weight in its place."""
    dense = module.clone()
    for op in dense.layers:
        if (name := op.symbol("original_weight")) is not None:
            shared = {key: op.properties[key] for key in _CONV if key in op.properties}
            new = nn.Conv2d.make(list(op.operands), None, op.location, weight=Symbol(name), **shared)
            replace_op(op, [new])
    return list(run(dense, IMAGES).values())


_CONV = ("bias", "kernel", "outputs", "stride", "padding", "dilation", "groups", "activation")


def test_compressed_layers_get_their_statistics_back() -> None:
    """Means and deviations of the values behind each layer come close to those of the original network."""
    module = compressed()
    plain = calibrated(module.clone(), correct_statistics=False)
    fixed = calibrated(module.clone())
    values = [evaluate_original(module), *(list(run(item, IMAGES).values()) for item in (plain, fixed))]
    for goal, spoiled, repaired in list(zip(*values, strict=True))[2:]:
        statistics = [channel_statistics([item]) for item in (goal, spoiled, repaired)]
        for wanted, before, after in zip(*statistics, strict=True):
            assert np.abs(after - wanted).max() < 0.2 * np.abs(before - wanted).max()


def test_correction_brings_the_outputs_back() -> None:
    module = compressed()
    wanted = evaluate_original(module)[-1].numpy()
    plain, fixed = calibrated(module.clone(), correct_statistics=False), calibrated(module.clone())
    assert sqnr(wanted, evaluate(fixed, IMAGES)[0]) > sqnr(wanted, evaluate(plain, IMAGES)[0]) + 10


def test_uncompressed_networks_keep_their_weights() -> None:
    module = two_layers()
    names = [op.symbols() for op in module.layers]
    assert [op.symbols() for op in calibrated(module).layers] == names


def test_original_weight_of_another_shape_is_an_error() -> None:
    module = compressed()
    op = [op for op in module.layers if op.name == "escalate.decomposed_conv2d"][1]
    name = module.store.add("wrong", np.zeros((8, 7, 3, 3), np.float32))
    op.set_value("original_weight", Symbol(name))
    with pytest.raises(EsccError, match=r"layer3.*shape \(8, 7, 3, 3\), not \(8, 8, 3, 3\)"):
        calibrated(module)


def test_matching_of_odd_channels() -> None:
    """A normal channel, one that compression silenced, one that was constant, one that nearly vanished."""
    random = np.random.default_rng(0)
    noise = torch.from_numpy(random.normal(size=(6, 4, 5, 5)).astype(np.float32))
    ours, original = noise.clone(), noise * 2 + 1
    ours[:, 1] = 3.0
    original[:, 2] = -1.0
    ours[:, 3] *= 1e-4
    answer = matching([ours[:2], ours[2:]], [original])
    assert answer.gain == pytest.approx([2.0, 1.0, 0.0, 4.0], rel=1e-4)
    corrected = ours * torch.from_numpy(answer.gain).float()[:, None, None]
    corrected += torch.from_numpy(answer.offset).float()[:, None, None]
    assert channel_statistics([corrected])[0] == pytest.approx(channel_statistics([original])[0], abs=1e-4)


def test_channel_statistics_over_batches_of_different_size() -> None:
    x = np.random.default_rng(0).normal(50, 2, size=(9, 3, 4, 5)).astype(np.float32)
    mean, deviation = channel_statistics([torch.from_numpy(part) for part in np.split(x, [2, 7])])
    assert mean == pytest.approx(x.astype(np.float64).mean((0, 2, 3)), rel=1e-5)
    assert deviation == pytest.approx(x.astype(np.float64).std((0, 2, 3)), rel=1e-4)


def test_integer_network_follows_the_corrected_one() -> None:
    module = compressed()
    integer = quantized(module, IMAGES)
    kind = integer.outputs[0].type
    assert isinstance(kind, MapType)
    found = evaluate_integer(integer, IMAGES)[0] * kind.scale_value
    assert sqnr(evaluate(module, IMAGES)[0], found) > 28
