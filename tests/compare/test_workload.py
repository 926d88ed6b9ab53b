"""Networks of the comparison: statistics reached, one set of activations for all, weights of each machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.compare.small_networks import small, stated
from torch import nn

from escc.compare.machines import RIVALS, find_rivals, rectangular
from escc.compare.measure import run_ours
from escc.compare.workload import FIRST_LAYER_FACTOR, Workload, synthetic_workload, trained_workload
from escc.driver import CompileOptions, import_model
from escc.errors import EsccError
from escc.frontend import zoo
from escc.ir.module import Module


@pytest.fixture(scope="module")
def workload() -> Workload:
    return synthetic_workload(small(), seed=2)


def test_the_same_seed_gives_the_same_program_and_activations(workload: Workload) -> None:
    again = synthetic_workload(small(), seed=2)
    assert again.program.to_bytes() == workload.program.to_bytes()
    assert again.activations_digest == workload.activations_digest
    other = synthetic_workload(small(), seed=3)
    assert other.activations_digest != workload.activations_digest


def test_densities_are_reached(workload: Workload) -> None:
    reached = workload.reached()
    assert reached["coefficients"] == pytest.approx(0.2, abs=0.01)
    assert reached["weights"] == pytest.approx(0.3, abs=0.01)
    inputs = {layer.dense.name: layer.activation_density for layer in workload.layers}
    # in front of a second convolution and of a block
    assert inputs["layer2.0.conv2"] == pytest.approx(0.40, abs=0.03)
    assert inputs["layer2.0.conv1"] == pytest.approx(0.55, abs=0.03)


def test_densities_vary_over_channels(workload: Workload) -> None:
    x = next(layer.dense.x for layer in workload.layers if layer.dense.name == "layer3.0.conv2")
    assert 0.06 < np.mean(x != 0, axis=(1, 2)).std() < 0.25


def test_a_profile_is_taken_in_front_of_the_convolutions() -> None:
    profile = (0.6, 0.3, 0.5, 0.2, 0.7, 0.4, 0.25)
    found = synthetic_workload(small(statistics=replace(stated(), profile=profile, profile_source="a test")))
    first = next(layer for layer in found.layers if layer.dense.name == "layer1.0.conv1")
    assert first.activation_density == pytest.approx(0.6, abs=0.03)


def test_all_machines_get_the_same_activations_and_their_own_weights(workload: Workload) -> None:
    for rival in RIVALS:
        for layer, work in zip(workload.layers, rival.work(workload), strict=True):
            assert work.x is layer.dense.x
            own = layer.pruned if rival.pruned else layer.dense
            assert work.weight is own.weight
    layers = workload.layers
    first = layers[0].pruned.weight_nonzeros / layers[0].pruned.weight.size
    assert first == pytest.approx(0.3 * FIRST_LAYER_FACTOR, abs=0.01)
    assert all(layer.dense.weight_nonzeros >= layer.pruned.weight_nonzeros for layer in layers)
    assert layers[0].dense.x_in_dram
    assert not layers[1].dense.x_in_dram
    assert [layer.dense.y_in_dram for layer in layers] == [False] * (len(layers) - 1) + [True]


def test_the_layers_are_the_program(workload: Workload) -> None:
    """The machine gives the integer network's outputs, and the activations are those on the way there."""
    result = run_ours(workload)
    assert np.array_equal(result.outputs[0], workload.outputs[0])
    broken = replace(workload, outputs=(workload.outputs[0] + 1,))
    with pytest.raises(EsccError, match="disagree"):
        run_ours(broken)


def inverted_residual(_network: object) -> Module:
    """A stem, an inverted residual and a head, as MobileNetV2 has them."""
    layers = [
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU6(),
        nn.Conv2d(16, 48, 1), nn.ReLU6(), nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.ReLU6(),
        nn.Conv2d(48, 16, 1), nn.Conv2d(16, 64, 1), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ]  # fmt: skip
    return import_model(nn.Sequential(*layers).eval(), input_shape=(3, 16, 16))


def test_depthwise_layers_stay_dense_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("escc.compare.workload.skeleton_module", inverted_residual)
    found = synthetic_workload(small(statistics=stated(weights=0.25, inner=0.5)))
    depthwise = [layer for layer in found.layers if layer.depthwise]
    assert len(depthwise) == 1
    for layer in depthwise:
        assert layer.coefficients is None
        assert np.array_equal(layer.pruned.weight != 0, np.ones_like(layer.pruned.weight, bool))
    assert "coefficients" not in found.reached()
    head = next(layer for layer in found.layers if layer.dense.name == "7")
    # behind a projection without activation
    assert head.activation_density > 0.9


def test_a_trained_network_keeps_its_weights_and_channels() -> None:
    model = zoo.settle(zoo.build("resnet8"), (3, 32, 32))
    module = import_model(model, input_shape=(3, 32, 32))
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    options = CompileOptions(bases=3, refine=False)
    found = trained_workload(module, "mine", images, weight_density=0.5, options=options)
    assert not found.synthetic
    assert found.statistics is None
    assert [layer.dense.weight.shape[0] for layer in found.layers[:3]] == [16, 16, 16]
    assert found.reached()["weights"] == pytest.approx(0.5, abs=0.01)
    with pytest.raises(EsccError, match="no images"):
        trained_workload(module, "mine", images[:0], weight_density=0.5)


def test_machines_by_name() -> None:
    assert [rival.name for rival in find_rivals(["sparten", "eyeriss"])] == ["eyeriss", "sparten"]
    assert find_rivals(None) == list(RIVALS)
    with pytest.raises(EsccError, match="did you mean 'scnn'"):
        find_rivals(["scn"])


def test_an_array_of_equal_area_is_no_single_row() -> None:
    # 6829 is a prime, 6828 = 12 * 569, 6827 is a prime
    assert rectangular(6829) == 6825
    assert [rectangular(count) for count in (5332, 7648, 2912, 1152)] == [5332, 7648, 2912, 1152]
    assert rectangular(1) == 1
