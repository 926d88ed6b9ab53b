"""Random integer layers at the level "reordered", by hand: no float network, no other pass involved."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.ir import escalate
from escc.ir.base import LayerOp, Symbol, make_location, map_shape
from escc.ir.geometry import window_output
from escc.ir.module import Module, Port
from escc.ir.types import MapType, StreamType, SumsType
from escc.ir.xdsl import SSAValue
from escc.isa.arch import Arch

Z_BITS = 20
FORMS = ("ternary", "dense", "depthwise")
VECTOR_OPERATIONS = (
    *("add", "mul", "scale", "max_pool", "avg_pool", "adaptive_avg_pool", "lookup", "concat", "pad"),
)


def small_arch(sram_kib: int, **changes: Any) -> Arch:
    """A small machine: few blocks and rows, short chunks, little SRAM, a DRAM that makes small tiles pay."""
    values: dict[str, Any] = {"blocks": 2, "rows": 3, "chunk": 16, "sram_kib": sram_kib, "queue_depth": 4}
    values["dram_latency_cycles"] = 8
    return Arch.default().replace(**{**values, **changes})


def ratio(value: float) -> tuple[int, int]:
    """(multiplier, shift) with multiplier / 2^shift about ``value``, multiplier in [2^30, 2^31)."""
    fraction, exponent = math.frexp(value)
    return min(int(fraction * (1 << 31)), (1 << 31) - 1), 31 - exponent


@dataclass
class NetBuilder:
    """Builds a module operation by operation; weights are random, sums land in a useful 8-bit range."""

    rng: np.random.Generator
    module: Module = field(init=False)
    _count: int = 0

    def start(self, *inputs: tuple[tuple[int, int, int], bool]) -> list[SSAValue]:
        """Begin the network: (H, W, C) and signedness of every input."""
        kinds = [
            (Port(f"x{i}", (shape[2], *shape[:2])), MapType.of(shape, signed, 0.05))
            for i, (shape, signed) in enumerate(inputs)
        ]
        self.module = Module.create(list(kinds))
        return list(self.module.inputs)

    def finish(self, *outputs: SSAValue) -> Module:
        """Return ``outputs`` and mark the module as reordered."""
        ports: list[tuple[Port, SSAValue]] = []
        for index, value in enumerate(outputs):
            height, width, channels = map_shape(value)
            ports.append((Port(f"y{index}", (channels, height, width)), value))
        self.module.set_outputs(ports)
        self.module.set_facts({"quantized", "reordered"})
        self.module.verify()
        return self.module

    def _store(self, name: str, array: NDArray[Any]) -> Symbol:
        return Symbol(self.module.store.add(f"l{self._count}.{name}", array))

    def _append(self, op: LayerOp) -> SSAValue:
        self.module.body.add_op(op)
        return op.out

    def _location(self) -> Any:
        self._count += 1
        return make_location(f"net.l{self._count}", "net.py", self._count)

    def _result(self, shape: tuple[int, ...], signed: bool) -> tuple[MapType, int, int]:
        kind = MapType.of(shape, signed, 0.05)
        smallest, largest = kind.limits
        return kind, int(self.rng.integers(smallest, 1)), int(self.rng.integers(100, largest + 1))

    def _table(self, signed: bool) -> Symbol:
        kind = np.int8 if signed else np.uint8
        return self._store("table", self.rng.integers(0, 256, 256, dtype=np.uint8).view(kind))

    def _perhaps_table(self, signed: bool) -> Symbol | None:
        return self._table(signed) if self.rng.random() < 0.25 else None

    def conv(
        self,
        x: SSAValue,
        outs: int,
        *,
        form: str = "dense",
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (1, 1, 1, 1),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        bases: int = 4,
        density: float = 0.3,
        residual: SSAValue | None = None,
        signed: bool = False,
    ) -> SSAValue:
        """A convolution with requantisation; depthwise takes groups from the channels."""
        height, width, channels = map_shape(x)
        groups = channels if form == "depthwise" else groups
        rng = self.rng
        location = self._location()
        geometry: dict[str, Any] = {
            "kernel": kernel,
            "outputs": outs,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
        }
        source = x
        if form == "ternary":
            kernels = rng.integers(-20, 21, (bases, *kernel)).astype(np.int8)
            shape = (outs, channels // groups, bases)
            ternary = rng.choice(
                np.array([-1, 0, 1], np.int8), shape, p=[density / 2, 1 - density, density / 2]
            )
            combine = escalate.Combine.make(
                [x],
                StreamType.of((height, width, outs, bases), Z_BITS),
                location=location,
                coefficients=self._store("coefficients", ternary),
                outputs=outs,
                bases=bases,
                groups=groups,
            )
            source = self._append(combine)
            spread = 12.0 * math.sqrt(max(ternary.size / outs * density, 1.0) * math.prod(kernel))
        else:
            kernels = rng.integers(-127, 128, (outs, channels // groups, *kernel)).astype(np.int8)
            kernels[rng.random(kernels.shape) < 0.3] = 0
            spread = 60.0 * math.sqrt(kernels.size / outs)
        out = (*window_output((height, width), kernel, stride, padding, dilation), outs)
        sums = escalate.Convolve.make(
            [source],
            SumsType.of(out),
            location=location,
            form=form,
            bases=self._store("bases", kernels),
            **geometry,
        )
        self._append(sums)
        scales = [ratio(float(rng.uniform(0.3, 2.0)) / spread) for _ in range(outs)]
        biases = rng.integers(-3000, 3000, outs)
        records = np.array([(int(b), *s) for b, s in zip(biases, scales, strict=True)], np.int32)
        kind, low, high = self._result(out, signed)
        extra: dict[str, Any] = {}
        if residual is not None:
            multiplier, shift = ratio(float(rng.uniform(0.2, 1.5)))
            extra = {"residual_multiplier": multiplier, "residual_shift": shift}
        requantize = escalate.Requantize.make(
            [sums.out, *([residual] if residual is not None else [])],
            kind,
            location=location,
            requant=self._store("requant", records),
            low=low,
            high=high,
            table=self._perhaps_table(signed),
            **extra,
        )
        return self._append(requantize)

    def add(self, a: SSAValue, b: SSAValue, *, signed: bool = False) -> SSAValue:
        """Sum of two maps."""
        location = self._location()
        kind, low, high = self._result(map_shape(a), signed)
        (am, ash), (bm, bsh) = ratio(float(self.rng.uniform(0.2, 1.5))), ratio(0.7)
        return self._append(
            escalate.Add.make(
                [a, b],
                kind,
                location=location,
                a_multiplier=am,
                a_shift=ash,
                b_multiplier=bm,
                b_shift=bsh,
                low=low,
                high=high,
                table=self._perhaps_table(signed),
            )
        )

    def mul(self, a: SSAValue, b: SSAValue, *, signed: bool = False) -> SSAValue:
        """Product of two maps, the second perhaps 1x1xC."""
        location = self._location()
        kind, low, high = self._result(map_shape(a), signed)
        multiplier, shift = ratio(0.013)
        return self._append(
            escalate.Mul.make(
                [a, b], kind, location=location, multiplier=multiplier, shift=shift, low=low, high=high
            )
        )

    def max_pool(
        self,
        x: SSAValue,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
    ) -> SSAValue:
        """Largest value of a window."""
        location = self._location()
        kind = x.type
        assert isinstance(kind, MapType)
        shape = (*window_output(map_shape(x)[:2], kernel, stride, padding), map_shape(x)[2])
        result = MapType.of(shape, kind.signed, 0.05)
        return self._append(
            escalate.MaxPool.make(
                [x], result, location=location, kernel=kernel, stride=stride, padding=padding
            )
        )

    def avg_pool(
        self,
        x: SSAValue,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        *,
        include: bool = True,
        signed: bool = False,
    ) -> SSAValue:
        """Mean of a window."""
        location = self._location()
        shape = (*window_output(map_shape(x)[:2], kernel, stride, padding), map_shape(x)[2])
        return self._append(
            escalate.AvgPool.make(
                [x],
                MapType.of(shape, signed, 0.05),
                location=location,
                divisors=self._divisors(math.prod(kernel)),
                kernel=kernel,
                stride=stride,
                padding=padding,
                count_include_pad=include,
            )
        )

    def adaptive_avg_pool(self, x: SSAValue, size: tuple[int, int], *, signed: bool = False) -> SSAValue:
        """Mean over adaptive windows."""
        location = self._location()
        height, width, channels = map_shape(x)
        largest = (height // size[0] + 2) * (width // size[1] + 2)
        return self._append(
            escalate.AdaptiveAvgPool.make(
                [x],
                MapType.of((*size, channels), signed, 0.05),
                location=location,
                divisors=self._divisors(largest),
                size=size,
            )
        )

    def _divisors(self, largest: int) -> Symbol:
        rows = [(count, *ratio(1.1 / count)) for count in range(1, largest + 1)]
        return self._store("divisors", np.array(rows, np.int32))

    def lookup(self, x: SSAValue, *, signed: bool = False) -> SSAValue:
        """A table of 256 bytes."""
        location = self._location()
        kind = MapType.of(map_shape(x), signed, 0.05)
        return self._append(escalate.Lookup.make([x], kind, location=location, table=self._table(signed)))

    def concat(self, *values: SSAValue, signed: bool = False) -> SSAValue:
        """Channels side by side, some rescaled."""
        location = self._location()
        kind, low, high = self._result(
            (*map_shape(values[0])[:2], sum(map_shape(v)[2] for v in values)), signed
        )
        rows = [ratio(0.8) if self.rng.random() < 0.6 else (0, 0) for _ in values]
        rescale = self._store("rescale", np.array(rows, np.int32))
        return self._append(
            escalate.Concat.make(list(values), kind, location=location, rescale=rescale, low=low, high=high)
        )

    def pad(
        self, x: SSAValue, padding: tuple[int, int, int, int], channels: tuple[int, int] = (0, 0)
    ) -> SSAValue:
        """Zeros around a map."""
        location = self._location()
        kind = x.type
        assert isinstance(kind, MapType)
        height, width, depth = map_shape(x)
        shape = (height + padding[0] + padding[2], width + padding[1] + padding[3], depth + sum(channels))
        result = MapType.of(shape, kind.signed, 0.05)
        return self._append(
            escalate.Pad.make([x], result, location=location, padding=padding, channels=channels)
        )


def random_images(module: Module, count: int, rng: np.random.Generator) -> list[NDArray[Any]]:
    """Integer images (count, *torch_shape) for every input, about half zeros."""
    images: list[NDArray[Any]] = []
    for value, port in zip(module.inputs, module.input_ports, strict=True):
        kind = value.type
        assert isinstance(kind, MapType)
        low, high = kind.limits
        values = rng.integers(low, high + 1, (count, *port.torch_shape))
        values[rng.random(values.shape) < 0.5] = 0
        images.append(values.astype(np.int8 if kind.signed else np.uint8))
    return images


def random_layer(net: NetBuilder, x: SSAValue, kind: str) -> SSAValue:
    """Append a random layer of ``kind`` (a form of convolution or a vector operation) to ``x``."""
    rng = net.rng
    height, width, channels = map_shape(x)
    signed = bool(rng.random() < 0.4)

    def window() -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
        kernel = int(rng.integers(1, min(4, height) + 1)), int(rng.integers(1, min(4, width) + 1))
        stride = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        top, left, bottom, right = (int(rng.integers(0, (kernel[i % 2] + 1) // 2)) for i in range(4))
        return kernel, stride, (top, left, bottom, right)

    if kind in FORMS:
        kernel, stride, padding = window()
        dilation = tuple(
            2 if size * 2 - 1 <= limit and rng.random() < 0.3 else 1
            for size, limit in zip(kernel, (height, width), strict=True)
        )
        groups = int(rng.choice([g for g in (1, 1, 2, 3) if channels % g == 0])) if kind != "depthwise" else 1
        outs = (
            channels * int(rng.integers(1, 3))
            if kind == "depthwise"
            else groups * int(rng.integers(1, 90 // groups))
        )
        y = net.conv(
            x,
            outs,
            form=kind,
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=(dilation[0], dilation[1]),
            groups=groups,
            bases=int(rng.integers(1, 8)),
            density=float(rng.choice([0.05, 0.3, 0.8])),
            signed=signed,
        )
        return y
    if kind == "residual":
        other = net.conv(x, channels, kernel=(1, 1), padding=(0, 0, 0, 0), signed=signed)
        form = str(rng.choice(FORMS))
        return net.conv(other, channels, form=form, residual=x, signed=bool(rng.random() < 0.5))
    if kind == "add":
        return net.add(x, net.conv(x, channels, kernel=(1, 1), padding=(0, 0, 0, 0)), signed=signed)
    if kind == "mul":
        return net.mul(x, net.conv(x, channels, form="depthwise"), signed=signed)
    if kind == "scale":
        return net.mul(x, net.adaptive_avg_pool(x, (1, 1)), signed=signed)
    if kind == "max_pool":
        return net.max_pool(x, *window())
    if kind == "avg_pool":
        return net.avg_pool(x, *window(), include=bool(rng.random() < 0.5), signed=signed)
    if kind == "adaptive_avg_pool":
        size = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        return net.adaptive_avg_pool(x, size, signed=signed)
    if kind == "lookup":
        return net.lookup(x, signed=signed)
    if kind == "concat":
        more = net.conv(x, int(rng.integers(1, 80)), kernel=(1, 1), padding=(0, 0, 0, 0))
        return net.concat(x, more, x, signed=signed)
    assert kind == "pad"
    top, left, bottom, right, before, after = (int(n) for n in rng.integers(0, 4, 6))
    return net.pad(x, (top, left, bottom, right), (before, after))


def random_net(seed: int, *, layers: int = 1, kind: str | None = None) -> Module:
    """A small random network of ``layers`` random layers, all of ``kind`` where it is given."""
    rng = np.random.default_rng(seed)
    net = NetBuilder(rng)
    shape = int(rng.integers(3, 15)), int(rng.integers(3, 12)), int(rng.integers(1, 80))
    (x,) = net.start((shape, bool(rng.random() < 0.3)))
    kinds = (*FORMS, *FORMS, "residual", *VECTOR_OPERATIONS)
    values = [x]
    for _ in range(layers):
        chosen = kind if kind is not None else str(rng.choice(kinds))
        values.append(random_layer(net, values[-1], chosen))
    return net.finish(values[-1])
