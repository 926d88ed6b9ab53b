"""Random whole networks from torch to the integer levels."""

from __future__ import annotations

import numpy as np
from tests.generators.random_network import random_network
from tests.passes.networks import sqnr

from escc.frontend.capture import capture
from escc.frontend.importer import import_exported
from escc.ir.module import Module
from escc.ir.passes import PassContext, parse_pipeline, run_pipeline
from escc.ir.types import MapType
from escc.passes.reference.float_graph import evaluate
from escc.passes.reference.integer_graph import evaluate_integer

DENSE = "fold-batch-norm,fuse-requantize,calibrate"
TERNARY = (
    "fold-batch-norm,fuse-requantize,"
    "decompose-kernels{bases=4 min_inputs=1 min_kernels=1 max_error=10 iterations=2},calibrate"
)


def noise(network: Module, shape: tuple[int, ...], pipeline: str, seed: int) -> float:
    """SQNR in dB of the quantised network on fresh images; both orders must give the same integers."""
    module, random = network.clone(), np.random.default_rng(seed)
    calibration, x = (random.normal(size=(48, *shape)).astype(np.float32) for _ in range(2))
    run_pipeline(module, parse_pipeline(pipeline), PassContext(calibration=calibration))
    wanted = evaluate(module, x)[0]
    run_pipeline(module, parse_pipeline("quantize-hybrid"), PassContext())
    found = evaluate_integer(module, x)[0]
    kind = module.outputs[0].type
    assert isinstance(kind, MapType)
    run_pipeline(module, parse_pipeline("reorder-linear-combination"), PassContext())
    assert np.array_equal(evaluate_integer(module, x)[0], found), "the two orders differ"
    return sqnr(wanted, found * kind.scale_value)


def test_integers_follow_the_float_network() -> None:
    """Whatever the operations: few dB less for deep chains of signed maps, never nonsense."""
    found: list[float] = []
    for seed in range(4):
        torch_network, shape = random_network(seed)
        network = import_exported(capture(torch_network, input_shape=shape))
        found += [noise(network, shape, pipeline, seed) for pipeline in (DENSE, TERNARY)]
    assert min(found) > 18, found
    assert np.median(found) > 28, found
