"""decompose-kernels and prune-coefficients: which layers, how well, and what the options do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.passes.networks import Net

from escc.errors import EsccError
from escc.ir import nn
from escc.ir.base import LayerOp, map_shape, module_path
from escc.ir.module import Module
from escc.ir.passes import PassContext, parse_pipeline, run_pipeline
from escc.passes.convolutions import ORIGINAL_WEIGHT, dense_weight
from escc.passes.math.basis import relative_error
from escc.passes.math.pruning import remove_cheapest
from escc.passes.math.ternary import fit_ternary
from escc.passes.reference.float_graph import evaluate

DECOMPOSED = "escalate.decomposed_conv2d"


def network(seed: int = 0) -> Module:
    """image, layer1, layer2 (3x3), layer3 (depthwise), layer4 (1x1), layer5 (residual), pool, layer7."""
    net = Net(8, 8, 3, seed)
    x = net.random_conv(net.x, 16, 3, activation="relu")
    x = net.random_conv(x, 16, 3, activation="relu")
    x = net.random_conv(x, 16, 3, groups=16)
    x = net.random_conv(x, 16, 1, activation="relu")
    weight = net.random.standard_normal((16, 16, 3, 3)) / 12
    x = net.conv(x, weight, np.ones(16), residual=x, activation="relu", stride=(1, 1))
    x = net.op(nn.AdaptiveAvgPool, [x], size=(1, 1))
    return net.finish(net.random_conv(x, 10, 1))


def images(module: Module) -> NDArray[np.float32]:
    height, width, channels = map_shape(module.inputs[0])
    return np.random.default_rng(1).standard_normal((3, channels, height, width)).astype(np.float32)


def after(module: Module, pipeline: str) -> Module:
    run_pipeline(module, parse_pipeline(pipeline), PassContext())
    return module


def decomposed(module: Module) -> dict[str, LayerOp]:
    return {module_path(op): op for op in module.layers if op.name == DECOMPOSED}


def arrays(module: Module, op: LayerOp) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    names = ("bases", "coefficients", "scale")
    bases, coefficients, scale = (module.store[op.weight_name(name)] for name in names)
    return bases, coefficients, scale


def test_inner_layers_are_decomposed_and_say_how_well() -> None:
    original = network()
    module = after(network(), "decompose-kernels")
    assert list(decomposed(module)) == ["layer2", "layer4", "layer5"]
    for name, op in decomposed(module).items():
        bases, coefficients, scale = arrays(module, op)
        assert len(bases) == (4 if name == "layer4" else 6)
        assert (coefficients.dtype, bases.dtype, scale.dtype) == (np.int8, np.float32, np.float32)
        weight = module.store[op.weight_name(ORIGINAL_WEIGHT)]
        source = next(item for item in original.layers if module_path(item) == name)
        np.testing.assert_array_equal(weight, original.store[source.weight_name("weight")])
        assert op.value("relative_error") == pytest.approx(
            relative_error(weight, dense_weight(module, op)), rel=1e-3
        )
        assert op.value("density") == pytest.approx(
            np.count_nonzero(coefficients) / coefficients.size, rel=1e-3
        )
        assert op.location == source.location
    last = decomposed(module)["layer5"]
    assert len(last.operands) == 2
    assert last.value("activation") == "relu"
    assert "decomposed" in module.facts


def test_the_network_computes_with_the_fitted_weights() -> None:
    module = after(network(), "decompose-kernels{bases=8 penalty=0}")
    fitted = network()
    for op in fitted.layers:
        if (found := decomposed(module).get(module_path(op))) is not None:
            op.set_value("weight", fitted_symbol(fitted, module, found))
    np.testing.assert_allclose(
        evaluate(module, images(module))[0], evaluate(fitted, images(fitted))[0], rtol=1e-4, atol=1e-4
    )


def fitted_symbol(target: Module, source: Module, op: LayerOp) -> Any:
    from escc.ir.base import Symbol

    weight = dense_weight(source, op).astype(np.float32)
    return Symbol(target.store.add(f"{module_path(op)}.fitted", weight))


def test_svd_with_all_bases_is_lossless() -> None:
    module = after(network(), "decompose-kernels{method=svd bases=9 planes=1}")
    assert len(decomposed(module)) == 3
    wanted = evaluate(network(), images(module))[0]
    np.testing.assert_allclose(evaluate(module, images(module))[0], wanted, atol=1e-5)


@pytest.mark.parametrize(("method", "bases"), [("svd-twn", 6), ("twn", 9), ("svd", 6)])
def test_other_methods(method: str, bases: int) -> None:
    module = after(network(), f"decompose-kernels{{method={method} max_error=1}}")
    op = decomposed(module)["layer2"]
    assert len(arrays(module, op)[0]) == bases
    # exact coding is better than thresholds and worse than real coefficients
    exact = after(network(), "decompose-kernels{penalty=0}")
    other = decomposed(exact)["layer2"].value("relative_error")
    assert (op.value("relative_error") > other) == (method == "svd-twn")


def test_options_choose_the_layers() -> None:
    assert list(decomposed(after(network(), "decompose-kernels{planes=0}"))) == ["layer2", "layer5"]
    assert list(decomposed(after(network(), "decompose-kernels{keep_dense=layer2;*4}"))) == ["layer5"]
    assert list(decomposed(after(network(), "decompose-kernels{keep_dense=layer2,layer5}"))) == ["layer4"]
    assert not decomposed(after(network(), "decompose-kernels{min_inputs=17}"))
    assert not decomposed(after(network(), "decompose-kernels{min_kernels=257}"))
    assert list(decomposed(after(network(), "decompose-kernels{max_error=0.1}"))) == ["layer4"]
    module = after(network(), "decompose-kernels{layers=layer1:bases=8,layer5:bases=3:penalty=0;layer7}")
    sizes = {name: len(arrays(module, op)[0]) for name, op in decomposed(module).items()}
    assert sizes == {"layer1": 8, "layer2": 6, "layer4": 4, "layer5": 3, "layer7": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("method=best", "unknown method 'best', known: als"),
        ("bases=10", r"bases=10 is not in 1\.\.9"),
        ("bases=0", r"bases=0 is not in 1\.\.9"),
        ("penalty=-1", "penalty=-1.0 is not"),
        ("penalty=nan", "penalty=nan is not"),
        ("iterations=0", "iterations=0"),
        ("layers=fc:colour=3", "cannot read 'colour=3' of 'fc:colour=3'"),
        ("layers=fc:bases=x", "cannot read 'bases=x'"),
        ("layers=fc:bases=11", r"bases=11 is not in 1\.\.9"),
    ],
)
def test_bad_options_are_refused(options: str, message: str) -> None:
    with pytest.raises(EsccError, match=message):
        after(network(), f"decompose-kernels{{{options}}}")


def test_progress_and_empty_networks() -> None:
    seen: list[tuple[int, int]] = []
    context = PassContext(progress=lambda stage, done, total: seen.append((done, total)))
    run_pipeline(network(), parse_pipeline("decompose-kernels"), context)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    net = Net(4, 4, 2)
    assert not decomposed(after(net.finish(net.random_conv(net.x, 2, 3)), "decompose-kernels"))


def test_ternary_pruning_is_off_by_default_and_reaches_the_density_asked_for() -> None:
    module = after(network(), "decompose-kernels,prune-coefficients")
    plain = after(network(), "decompose-kernels")
    for name, op in decomposed(module).items():
        np.testing.assert_array_equal(arrays(module, op)[1], arrays(plain, decomposed(plain)[name])[1])
    module = after(network(), "decompose-kernels,prune-coefficients{density=0.2}")
    for name, op in decomposed(module).items():
        before, now = arrays(plain, decomposed(plain)[name])[1], arrays(module, op)[1]
        assert np.count_nonzero(now) == int(0.2 * now.size)
        assert (now[now != 0] == before[now != 0]).all()
        assert op.value("density") == pytest.approx(0.2, abs=2e-3)
        assert op.value("relative_error") > decomposed(plain)[name].value("relative_error")
    assert "pruned" in module.facts


def test_real_coefficients_are_pruned_by_their_spread() -> None:
    plain = after(network(), "decompose-kernels{method=svd}")
    module = after(network(), "decompose-kernels{method=svd},prune-coefficients{std=1.5}")
    for name, op in decomposed(module).items():
        before, now = arrays(plain, decomposed(plain)[name])[1], arrays(module, op)[1]
        np.testing.assert_array_equal(now, np.where(np.abs(before) < 1.5 * before.std(), 0, before))
        assert now.dtype == np.float32
    unchanged = after(network(), "decompose-kernels{method=svd},prune-coefficients{std=0}")
    assert evaluate(unchanged, images(plain))[0] == pytest.approx(evaluate(plain, images(plain))[0])


def test_layers_that_came_decomposed_are_pruned_on_request_only() -> None:
    def trained() -> Module:
        net = Net(6, 6, 8)
        coefficients = net.random.standard_normal((8, 8, 4)).astype(np.float32)
        module = net.finish(
            net.decomposed(net.x, net.random.standard_normal((4, 3, 3)), coefficients, np.ones(8))
        )
        module.set_facts(module.facts | {"decomposed"})
        return module

    for options, pruned in (("", False), ("{trained}", True)):
        module = after(trained(), f"prune-coefficients{options}")
        assert (arrays(module, next(module.layers))[1] == 0).any() == pruned


@pytest.mark.parametrize("options", ["density=0", "density=1.5", "std=-1", "std=nan", "density=nan"])
def test_bad_pruning_options_are_refused(options: str) -> None:
    with pytest.raises(EsccError, match="bad options"):
        after(network(), f"decompose-kernels,prune-coefficients{{{options}}}")


def test_cheapest_removal_beats_removal_at_random_and_counts_exactly() -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((8, 8, 3, 3))
    fit = fit_ternary(weight, 6, 0.0)
    target = 0.5 * fit.density
    codes = remove_cheapest(weight, fit.bases, fit.coefficients, fit.scale, target)
    assert np.count_nonzero(codes) == int(target * codes.size)
    positions = np.flatnonzero(fit.coefficients)
    random = fit.coefficients.copy().reshape(-1)
    random[rng.choice(positions, len(positions) - np.count_nonzero(codes), replace=False)] = 0

    def error(candidate: NDArray[Any]) -> float:
        rows = candidate.reshape(8, 8, 6) @ fit.bases.reshape(6, 9) * fit.scale[:, None, None]
        return relative_error(weight.reshape(8, 8, 9), rows)

    assert error(codes) < 0.7 * error(random)
    np.testing.assert_array_equal(
        remove_cheapest(weight, fit.bases, fit.coefficients, fit.scale, 1.0), fit.coefficients
    )
    # one entry less: exactly the one whose loss costs least
    single = remove_cheapest(
        weight, fit.bases, fit.coefficients, fit.scale, (len(positions) - 1) / codes.size + 1e-9
    )
    costs: list[float] = []
    for position in positions:
        candidate = fit.coefficients.copy().reshape(-1)
        candidate[position] = 0
        costs.append(error(candidate))
    assert error(single) == pytest.approx(min(costs))
