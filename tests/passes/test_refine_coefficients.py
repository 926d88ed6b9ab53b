"""refine-coefficients: the compressed network comes closer to the original on held-out images."""

from __future__ import annotations

import numpy as np
import pytest

from escc.driver import import_model
from escc.errors import EsccError
from escc.frontend import zoo
from escc.ir.base import module_path
from escc.ir.module import Module
from escc.ir.passes import PassContext, parse_pipeline, run_pipeline
from escc.passes.reference.float_graph import evaluate

PREFIX = "fold-batch-norm,fuse-requantize,decompose-kernels{bases=4}"
SHAPE = (3, 16, 16)


def images(seed: int, count: int) -> np.ndarray:
    """Smooth random images: neighbouring pixels agree, as in pictures."""
    noise = np.random.default_rng(seed).standard_normal((count, *SHAPE))
    shifted = [np.roll(noise, (dy, dx), (2, 3)) for dy in range(3) for dx in range(3)]
    return (np.sum(shifted, axis=0) / 3).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> Module:
    return import_model(zoo.settle(zoo.build("resnet8", seed=5), SHAPE, seed=5), input_shape=SHAPE)


def run(network: Module, pipeline: str, calibration: np.ndarray | None) -> Module:
    module = network.clone()
    run_pipeline(module, parse_pipeline(pipeline), PassContext(calibration=calibration))
    return module


def test_outputs_come_closer_to_the_original(network: Module) -> None:
    held_out = images(1, 64)
    want = evaluate(network, held_out)[0]
    errors = []
    for pipeline in (f"{PREFIX},calibrate", f"{PREFIX},refine-coefficients{{penalty=0.001}},calibrate"):
        module = run(network, pipeline, images(0, 128))
        errors.append(float(np.square(evaluate(module, held_out)[0] - want).mean()))
    assert errors[1] < 0.5 * errors[0]


def test_codes_stay_ternary_and_shapes_stay(network: Module) -> None:
    before = run(network, PREFIX, None)
    after = run(network, f"{PREFIX},refine-coefficients", images(0, 64))
    changed = 0
    for old, new in zip(before.layers, after.layers, strict=True):
        assert old.name == new.name
        if old.name != "escalate.decomposed_conv2d":
            continue
        was = before.store[old.weight_name("coefficients")]
        now = after.store[new.weight_name("coefficients")]
        assert now.dtype == np.int8
        assert now.shape == was.shape
        assert set(np.unique(now)) <= {-1, 0, 1}
        assert float(after.store[new.weight_name("scale")].min()) > 0
        changed += not np.array_equal(was, now)
    assert changed > 0


def test_the_same_images_give_the_same_codes(network: Module) -> None:
    first, second = (run(network, f"{PREFIX},refine-coefficients", images(0, 64)) for _ in range(2))
    for name in first.store:
        np.testing.assert_array_equal(first.store[name], second.store[name])


def test_without_images_nothing_changes(network: Module) -> None:
    refined = run(network, f"{PREFIX},refine-coefficients", None)
    assert refined.to_text() == run(network, PREFIX, None).to_text()


def test_bad_options(network: Module) -> None:
    with pytest.raises(EsccError, match="refine-coefficients"):
        run(network, f"{PREFIX},refine-coefficients{{samples=0}}", images(0, 8))


def test_a_layer_has_its_own_penalty(network: Module) -> None:
    def densities(options: str) -> dict[str, float]:
        module = run(network, f"{PREFIX},refine-coefficients{{{options}}}", images(0, 64))
        layers = [op for op in module.layers if op.name == "escalate.decomposed_conv2d"]
        return {module_path(op): float(op.value("density")) for op in layers}

    plain = densities("penalty=0.01")
    first, *others = plain
    changed = densities(f"penalty=0.01 layers={first}:penalty=0.2")
    assert changed[first] < 0.7 * plain[first]
    # the last match wins, and codes stay as they are without rounds
    kept = densities(f"penalty=0.01 layers=*:penalty=9;{first}:penalty=0.2;*:rounds=0")
    untouched = densities("rounds=0")
    assert others
    assert kept == untouched != plain


@pytest.mark.parametrize("layers", ["*:penalty=-1", "*:bases=3", "*:penalty=much"])
def test_bad_options_of_a_layer(network: Module, layers: str) -> None:
    with pytest.raises(EsccError, match="refine-coefficients"):
        run(network, f"{PREFIX},refine-coefficients{{layers={layers}}}", images(0, 8))
