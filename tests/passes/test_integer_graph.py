"""The integer reference against slow and obvious numpy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.passes.networks import Net, quantized

from escc.errors import EsccError
from escc.ir import escalate
from escc.ir.base import LayerOp, Symbol, make_location
from escc.ir.module import Module, Port
from escc.ir.types import MapType
from escc.passes.math.fixed_point import fixed_point, requantize
from escc.passes.reference.integer_graph import (
    Geometry,
    evaluate_integer,
    exact_convolution,
    exact_requantize,
)

Ints = NDArray[np.int64]
LARGEST = 2**31 - 1


def convolve(x: Ints, weight: Ints, geometry: Geometry) -> Ints:
    """Direct convolution of one image (C, H, W) in 64-bit integers."""
    outputs, channels, rows, columns = weight.shape
    top, left, bottom, right = geometry.padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    (dy, dx), (sy, sx) = geometry.dilation, geometry.stride
    height = (padded.shape[1] - dy * (rows - 1) - 1) // sy + 1
    width = (padded.shape[2] - dx * (columns - 1) - 1) // sx + 1
    y = np.zeros((outputs, height, width), np.int64)
    for k in range(outputs):
        first = k // (outputs // geometry.groups) * channels
        for c, r, s in np.ndindex(channels, rows, columns):
            window = padded[first + c, r * dy :, s * dx :][
                : (height - 1) * sy + 1 : sy, : (width - 1) * sx + 1 : sx
            ]
            y[k] += weight[k, c, r, s] * window
    return y


GEOMETRIES = [
    Geometry((1, 1), (1, 1, 1, 1), (1, 1), 1),
    Geometry((2, 1), (0, 1, 2, 0), (1, 1), 1),
    Geometry((1, 2), (2, 2, 2, 2), (2, 1), 2),
    Geometry((3, 3), (0, 0, 0, 0), (1, 1), 6),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("largest", "bits"), [(127, 32), (30_000, 32), (10**7, 64)])
def test_convolution_is_exact(geometry: Geometry, largest: int, bits: int) -> None:
    """Plain float32, float32 over parts of the channels, float64: all equal 64-bit integers."""
    random = np.random.default_rng(largest)
    weight = random.integers(-largest, largest + 1, (12, 6 // geometry.groups, 3, 3))
    x = random.integers(0, 256, (3, 6, 9, 8))
    found = exact_convolution(weight, geometry, 0, 255)(torch.from_numpy(x.astype(np.float32)))
    if bits == 64:
        assert found.dtype == torch.float64
    assert np.array_equal(found.numpy(), np.stack([convolve(image, weight, geometry) for image in x]))


def test_convolution_at_the_float32_bound() -> None:
    """Sums of exactly 2^24 - 255 and 2^24: the second must not be computed in one float32 sum."""
    x = torch.full((1, 2, 1, 1), 255.0)
    geometry = Geometry((1, 1), (0, 0, 0, 0), (1, 1), 1)
    for weights in ((65792, 1), (65793, 1), (2**24 // 255 + 1, 2**24 // 255)):
        weight = np.array(weights, np.int64).reshape(1, 2, 1, 1)
        assert int(exact_convolution(weight, geometry, 0, 255)(x).item()) == 255 * sum(weights)


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(2**30, LARGEST), st.integers(0, 62)), min_size=1, max_size=4),
    st.integers(0, 31),
)
def test_fast_requantisation_is_exact(seed: int, records: list[tuple[int, int]], bits: int) -> None:
    """Any mix of shifts per channel; accumulators of any size, and those that land on halves."""
    random = np.random.default_rng(seed)
    count = len(records)
    m, s = (np.array(row, np.int64) for row in zip(*records, strict=True))
    bias = random.integers(-1000, 1000, count)
    x = random.integers(-(2**bits) + 1, 2**bits, (2, count, 3, 5)) - bias[:, None, None]
    found = exact_requantize(bias, m, s, 256)(torch.from_numpy(x.astype(np.float64)))
    expected = requantize(x, *(row[:, None, None] for row in (bias, m, s)))
    limit = 256
    assert np.array_equal(np.clip(found.numpy(), -limit, limit), np.clip(expected, -limit, limit))


@pytest.mark.parametrize("multiplier", [2**30, 3 * 2**29, 2**30 + 1, LARGEST, LARGEST - 1])
def test_requantisation_around_every_tie(multiplier: int) -> None:
    """Accumulators next to each k + 1/2 that the factor can reach."""
    tried = 0
    for shift in range(30, 63):
        halves = (np.arange(-256, 256) + 0.5) * 2.0**shift / multiplier
        x = np.unique(np.concatenate([np.floor(halves), np.floor(halves) + 1]))
        x = x[np.abs(x) < 2**31].astype(np.int64).reshape(1, 1, 1, -1)
        tried += x.size
        found = exact_requantize(0, multiplier, shift, 256)(torch.from_numpy(x.astype(np.float64)))
        assert np.array_equal(found.numpy(), requantize(x, 0, multiplier, shift))
    assert tried > 20_000


# -- single operations --------------------------------------------------------------------------------------


class Single:
    """A module with one integer operation on inputs of random integers."""

    def __init__(self, *types: MapType, seed: int = 0) -> None:
        self.types = types
        ports = [
            (Port(f"in{i}", (kind.shape_tuple[2], *kind.shape_tuple[:2])), kind)
            for i, kind in enumerate(types)
        ]
        self.module = Module.create(ports)
        random = np.random.default_rng(seed)
        self.images: list[NDArray[Any]] = []
        for port, kind in ports:
            low, high = kind.limits
            dtype = np.int8 if kind.signed else np.uint8
            self.images.append(random.integers(low, high + 1, (4, *port.torch_shape)).astype(dtype))

    def keep(self, array: NDArray[Any]) -> Symbol:
        return Symbol(self.module.store.add("array", array))

    def run(self, kind: type[LayerOp], result: MapType, **properties: Any) -> Ints:
        op = kind.make(self.module.inputs, result, make_location("layer"), **properties)
        self.module.body.add_op(op)
        shape = result.shape_tuple
        self.module.set_outputs([(Port("out", (shape[2], *shape[:2])), op.out)])
        self.module.verify()
        return evaluate_integer(self.module, self.images)[0].astype(np.int64)

    @property
    def wide(self) -> list[Ints]:
        return [image.astype(np.int64) for image in self.images]


def test_add_rescales_both_then_clamps() -> None:
    single = Single(MapType.of((3, 4, 5), True, 0.1), MapType.of((3, 4, 5), False, 0.1))
    (am, ash), (bm, bs) = fixed_point(0.5), fixed_point(1.25)
    found = single.run(
        escalate.Add,
        MapType.of((3, 4, 5), False, 0.1),
        a_multiplier=am,
        a_shift=ash,
        b_multiplier=bm,
        b_shift=bs,
        low=3,
        high=200,
    )
    a, b = single.wide
    expected = np.clip(requantize(a, 0, am, ash) + requantize(b, 0, bm, bs), 3, 200)
    assert np.array_equal(found, expected)


def test_table_index_is_the_byte_of_the_saturated_sum() -> None:
    single = Single(MapType.of((3, 4, 5), True, 0.1), MapType.of((3, 4, 5), True, 0.1))
    table = np.random.default_rng(1).integers(-128, 128, 256).astype(np.int8)
    m, s = fixed_point(1.0)
    found = single.run(
        escalate.Add,
        MapType.of((3, 4, 5), True, 0.1),
        a_multiplier=m,
        a_shift=s,
        b_multiplier=m,
        b_shift=s,
        low=-128,
        high=127,
        table=single.keep(table),
    )
    a, b = single.wide
    assert np.array_equal(found, table[np.clip(a + b, -128, 127) & 0xFF])


@pytest.mark.parametrize("second", [(3, 4, 5), (1, 1, 5)])
def test_mul(second: tuple[int, int, int]) -> None:
    single = Single(MapType.of((3, 4, 5), True, 0.1), MapType.of(second, False, 0.1))
    m, s = fixed_point(1 / 150)
    found = single.run(
        escalate.Mul, MapType.of((3, 4, 5), True, 0.1), multiplier=m, shift=s, low=-128, high=127
    )
    a, b = single.wide
    assert np.array_equal(found, np.clip(requantize(a * b, 0, m, s), -128, 127))


def test_max_pool_padding_never_wins() -> None:
    kind = MapType.of((3, 4, 2), True, 0.1)
    single = Single(kind)
    single.images[0] = (-np.abs(single.images[0].astype(np.int64)) // 2 - 1).astype(np.int8)
    result = MapType.of((2, 4, 2), True, 0.1)
    found = single.run(escalate.MaxPool, result, kernel=(2, 3), stride=(2, 1), padding=(1, 1, 0, 1))
    padded = np.pad(single.wide[0], ((0, 0), (0, 0), (1, 0), (1, 1)), constant_values=-999)
    for i, j in np.ndindex(2, 4):
        window = padded[:, :, 2 * i : 2 * i + 2, j : j + 3]
        assert np.array_equal(found[:, :, i, j], window.max((2, 3)))


@pytest.mark.parametrize("include", [True, False])
def test_avg_pool_divides_by_the_count(include: bool) -> None:
    single = Single(MapType.of((5, 4, 2), False, 0.1))
    counts = [4, 6] if not include else [6]
    records = np.array([(count, *fixed_point(1 / count)) for count in counts], np.int32)
    found = single.run(
        escalate.AvgPool,
        MapType.of((2, 4, 2), False, 0.1),
        divisors=single.keep(records),
        kernel=(2, 3),
        stride=(2, 1),
        padding=(0, 1, 0, 1),
        count_include_pad=include,
    )
    padded = np.pad(single.wide[0], ((0, 0), (0, 0), (0, 0), (1, 1)))
    for i, j in np.ndindex(2, 4):
        count = 6 if include or j in (1, 2) else 4
        _, m, s = next(record for record in records.tolist() if record[0] == count)
        total = padded[:, :, 2 * i : 2 * i + 2, j : j + 3].sum((2, 3))
        assert np.array_equal(found[:, :, i, j], requantize(total, 0, m, s))


def test_adaptive_avg_pool_of_unequal_windows() -> None:
    single = Single(MapType.of((5, 7, 2), True, 0.1))
    records = np.array([(count, *fixed_point(1 / count)) for count in (6, 9)], np.int32)
    found = single.run(
        escalate.AdaptiveAvgPool, MapType.of((2, 3, 2), True, 0.1), divisors=single.keep(records), size=(2, 3)
    )
    x = single.wide[0]
    for i, j in np.ndindex(2, 3):
        window = x[:, :, i * 5 // 2 : -(-(i + 1) * 5 // 2), j * 7 // 3 : -(-(j + 1) * 7 // 3)]
        count = window.shape[2] * window.shape[3]
        _, m, s = next(record for record in records.tolist() if record[0] == count)
        assert np.array_equal(found[:, :, i, j], requantize(window.sum((2, 3)), 0, m, s))


def test_missing_divisor_is_an_error() -> None:
    single = Single(MapType.of((5, 7, 2), True, 0.1))
    records = np.array([(6, *fixed_point(1 / 6))], np.int32)
    with pytest.raises(EsccError, match=r"layer: no divisor for windows of \[9\]"):
        single.run(
            escalate.AdaptiveAvgPool,
            MapType.of((2, 3, 2), True, 0.1),
            divisors=single.keep(records),
            size=(2, 3),
        )


def test_lookup_concat_and_pad() -> None:
    single = Single(MapType.of((2, 2, 3), True, 0.1))
    table = np.arange(256).astype(np.uint8)[::-1].copy()
    found = single.run(escalate.Lookup, MapType.of((2, 2, 3), False, 0.1), table=single.keep(table))
    assert np.array_equal(found, 255 - (single.wide[0] & 0xFF))

    single = Single(MapType.of((2, 2, 3), True, 0.1), MapType.of((2, 2, 2), False, 0.3))
    m, s = fixed_point(3.0)
    rescale = np.array([(0, 0), (m, s)], np.int32)
    found = single.run(
        escalate.Concat, MapType.of((2, 2, 5), True, 0.1), rescale=single.keep(rescale), low=-128, high=100
    )
    a, b = single.wide
    assert np.array_equal(found, np.clip(np.concatenate([a, 3 * b], 1), -128, 100))

    single = Single(MapType.of((2, 2, 3), True, 0.1))
    kind = MapType.of((5, 3, 6), True, 0.1)
    found = single.run(escalate.Pad, kind, padding=(1, 0, 2, 1), channels=(2, 1))
    assert np.array_equal(found, np.pad(single.wide[0], ((0, 0), (2, 1), (1, 2), (0, 1))))


# -- whole networks -----------------------------------------------------------------------------------------


def integer_network() -> Module:
    """One operation, so that inputs can be checked."""
    single = Single(MapType.of((4, 3, 2), True, 0.25))
    single.run(escalate.Pad, MapType.of((4, 4, 2), True, 0.25), padding=(0, 0, 0, 1), channels=(0, 0))
    return single.module


def test_float_images_are_quantised_like_the_host_does() -> None:
    module = integer_network()
    images = np.random.default_rng(0).normal(size=(5, 2, 4, 3)).astype(np.float32) * 20
    integers = np.clip(np.rint(images.astype(np.float64) / 0.25), -128, 127).astype(np.int8)
    found = evaluate_integer(module, images)[0]
    assert found.dtype == np.int8
    assert np.array_equal(found, evaluate_integer(module, integers)[0])
    assert np.array_equal(found[..., :3], integers)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 2, 3, 4), np.int8), "must be N x"),
        (np.zeros((1, 2, 4, 3), np.uint8), "takes int8 or float, found uint8"),
        (np.zeros((1, 2, 4, 3), np.int64), "takes int8 or float, found int64"),
        (np.full((1, 2, 4, 3), np.nan, np.float32), "not numbers"),
    ],
)
def test_bad_images(images: NDArray[Any], message: str) -> None:
    with pytest.raises(EsccError, match=message):
        evaluate_integer(integer_network(), images)


def test_float_networks_are_refused() -> None:
    net = Net(4, 4, 3)
    module = net.finish(net.random_conv(net.x, 2, 3))
    with pytest.raises(EsccError, match="run quantize-hybrid first"):
        evaluate_integer(module, np.zeros((1, 3, 4, 4), np.float32))


def test_visits_and_slices_of_a_large_batch() -> None:
    module = integer_network()
    images = np.random.default_rng(0).integers(-128, 128, (70_000, 2, 4, 3)).astype(np.int8)
    seen: list[int] = []
    found = evaluate_integer(module, images, lambda op, result: seen.append(len(result)))[0]
    assert len(seen) > 1
    assert sum(seen) == len(images)
    assert np.array_equal(found[..., :3], images)


def test_a_process_that_allows_bfloat16_gets_exact_integers() -> None:
    """Processors with bfloat16 units would round the products; the setting is overruled and put back."""
    net = Net(28, 28, 16)
    module = net.finish(net.random_conv(net.x, 16, 3))
    images = np.random.default_rng(0).normal(size=(16, 16, 28, 28)).astype(np.float32)
    integer = quantized(module, images)
    expected = evaluate_integer(integer, images)[0]
    nowhere = SimpleNamespace(fp32_precision="none")  # older torch never rounds
    settings: Any = getattr(torch.backends.mkldnn, "conv", nowhere)
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        assert np.array_equal(evaluate_integer(integer, images)[0], expected)
        assert settings.fp32_precision == "bf16"
    finally:
        settings.fp32_precision = before
