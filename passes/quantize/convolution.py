"""Quantisation of convolutions: ternary, dense and depthwise forms, and the proofs that no sum overflows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.ir.base import LayerOp, Symbol, describe, map_shape
from escc.ir.escalate import QuantizedConv2d
from escc.ir.types import MapType
from escc.passes.math.fixed_point import ACCUMULATOR_LIMIT, balanced_ternary, round_half_away
from escc.passes.math.grids import grid_steps
from escc.passes.quantize.rules import Finish, Quantizer, operand_type, rule

Array = NDArray[np.float64]
Single = NDArray[np.float32]

WEIGHT_LIMIT = 127
PLANES = 5
PLANE_LIMIT = (3**PLANES - 1) // 2
_BIAS_LIMIT = 2.0**30
_DEAD_SCALE = 2.0**-16
"""Accumulator step of a channel without weights, in steps of the result (16 bits of fraction for a bias)."""


@dataclass
class Weights:
    """Integer weights of a layer: real weight[k] ~ scale[k] * weight[k], in one of the three forms.

    ``weight`` is (K, C/groups * R * S), whole numbers of magnitude below 2^24 in float32; ``bases`` and
    ``coefficients`` are what the machine stores.
    """

    form: str
    bases: NDArray[np.int8]
    coefficients: NDArray[np.int8] | None
    weight: Single
    scale: Array

    @cached_property
    def reach(self) -> tuple[Array, Array]:
        """Per output, the sum of its weights above zero and that of those below, as sizes."""
        size = np.abs(self.weight).sum(axis=1, dtype=np.float64)
        total = self.weight.sum(axis=1, dtype=np.float64)
        return (size + total) / 2, (size - total) / 2

    def interval(self, x: MapType) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Per output, how far below and above zero its sum (and any partial sum) can go."""
        (low, high), (plus, minus) = x.limits, self.reach
        below, above = minus * high - plus * low, plus * high - minus * low
        return below.astype(np.int64), above.astype(np.int64)


@rule("nn.conv2d")
def conv2d(state: Quantizer, op: LayerOp) -> LayerOp:
    """8-bit weights, one symmetric scale per output channel."""
    return _emit_dense(state, op, state.needed_array(op, "weight"))


@rule("escalate.decomposed_conv2d")
def decomposed_conv2d(state: Quantizer, op: LayerOp) -> LayerOp:
    """Ternary form for ternary coefficients; real-valued ones are recomposed to dense weights."""
    bases = state.needed_array(op, "bases")
    scale = state.needed_array(op, "scale")
    coefficients = state.module.store[op.weight_name("coefficients")]
    if not np.issubdtype(coefficients.dtype, np.integer):
        weight = np.einsum("kcm,mrs->kcrs", coefficients * scale[:, None, None], bases)
        return _emit_dense(state, op, weight)
    if coefficients.min(initial=0) < -1 or coefficients.max(initial=0) > 1:
        raise EsccError("integer coefficients must be -1, 0 or 1", where=describe(op))
    # a negative scale moves into the signs; a channel of scale 0 has no weights
    sign = np.sign(scale).astype(np.int8)
    signed = coefficients.astype(np.int8)
    if np.any(sign != 1):
        signed = signed * sign[:, None, None]
    return _emit_ternary(state, op, bases, signed, np.abs(scale))


def _emit_ternary(
    state: Quantizer, op: LayerOp, bases: Array, coefficients: NDArray[np.int8], scale: Array
) -> LayerOp:
    x, result, finish = _types(state, op)
    step = float(grid_steps(bases.reshape(1, -1), WEIGHT_LIMIT)[0]) or 1.0
    integers = round_half_away(bases / step).astype(np.int8)
    # A bias far above the weights does not fit 32 bits of their scale. If they cannot move the result by half
    # a step they are dropped, and the bias gets a scale of its own.
    bias = _bias(state, op)
    unit = x.scale_value * step * scale
    tiny = np.abs(bias) > _BIAS_LIMIT * unit
    weights = Weights("ternary", integers, coefficients, _recompose(coefficients, integers), step * scale)
    reach = np.maximum(*weights.interval(x)) * unit
    if np.any(tiny & (reach >= finish.scale / 2)):
        raise EsccError(
            "a bias does not fit 32 bits beside its weights", where=describe(op), hint=_KEEP_DENSE
        )
    if tiny.any():
        kept = np.where(tiny[:, None, None], np.int8(0), coefficients)
        weights = Weights("ternary", integers, kept, _recompose(kept, integers), step * scale)
    return _emit(state, op, finish, result, weights)


def _emit_dense(state: Quantizer, op: LayerOp, weight: Array) -> LayerOp:
    x, result, finish = _types(state, op)
    groups, channels = int(op.value("groups")), map_shape(op.x)[2]
    planes = state.dense_planes and weight.shape[2:] == (1, 1) and groups < max(channels, 2)
    limit = PLANE_LIMIT if planes else WEIGHT_LIMIT
    steps = grid_steps(weight.reshape(len(weight), -1), limit)
    # at least coarse enough that the bias fits 32 bits: weights below that resolution cannot matter beside it
    scale = np.maximum(steps, np.abs(_bias(state, op)) / (_BIAS_LIMIT * x.scale_value))
    divisor = np.where(scale > 0, scale, 1.0)[:, None, None, None]
    bases = round_half_away(weight / divisor).astype(np.int8)
    integers = bases.reshape(len(bases), -1).astype(np.float32)
    if planes:
        digits = balanced_ternary(bases[:, :, 0, 0], PLANES)
        powers = (3 ** np.arange(PLANES)).astype(np.int8).reshape(PLANES, 1, 1)
        return _emit(state, op, finish, result, Weights("ternary", powers, digits, integers, scale))
    form = "depthwise" if groups == channels and channels > 1 else "dense"
    return _emit(state, op, finish, result, Weights(form, bases, None, integers, scale))


def _types(state: Quantizer, op: LayerOp) -> tuple[MapType, MapType, Finish]:
    result = state.result_type(op)
    return operand_type(op), result, state.finish(op, result)


def _bias(state: Quantizer, op: LayerOp) -> Array:
    bias = state.array(op, "bias")
    return np.zeros(int(op.value("outputs"))) if bias is None else bias


def _recompose(coefficients: NDArray[np.int8], bases: NDArray[np.int8]) -> Single:
    """The weights (K, C/groups * R * S): sums of whole numbers, exact in float32."""
    kernels = bases.reshape(len(bases), -1).astype(np.float32)
    return (coefficients.astype(np.float32) @ kernels).reshape(len(coefficients), -1)


_KEEP_DENSE = "keep this layer dense or give it fewer channels"


def _emit(state: Quantizer, op: LayerOp, finish: Finish, result: MapType, weights: Weights) -> LayerOp:
    """The integer operation, after proving that Z and the accumulator hold every sum."""
    x = operand_type(op)
    if weights.coefficients is not None:
        _prove_combinations(op, weights.coefficients, x, state.z_bits)
    dead = (weights.scale <= 0) | (sum(weights.reach) == 0)
    bias = _bias(state, op)
    least = np.maximum(np.abs(bias) / _BIAS_LIMIT, finish.scale * _DEAD_SCALE)
    unit = np.where(dead, least, x.scale_value * weights.scale)
    integer_bias = round_half_away(bias / unit).astype(np.int64)
    below, above = weights.interval(x)
    worst = np.maximum(above + integer_bias, below - integer_bias)
    if worst.max(initial=0) >= ACCUMULATOR_LIMIT:
        raise EsccError(
            f"output channel {int(worst.argmax())} can exceed the 32-bit accumulator",
            where=describe(op),
            hint=_KEEP_DENSE,
        )
    factors = [state.factor(op, float(value)) for value in unit / finish.scale]
    rows = np.array([(b, *factor) for b, factor in zip(integer_bias, factors, strict=True)], np.int64)
    residual = (None, None)
    if len(op.operands) > 1:
        residual = state.factor(op, operand_type(op, 1).scale_value / finish.scale)
    coefficients: Symbol | None = None
    if weights.coefficients is not None:
        coefficients = state.add_array(op, "coefficients", weights.coefficients)
    geometry = {
        name: op.value(name) for name in ("kernel", "outputs", "stride", "padding", "dilation", "groups")
    }
    return QuantizedConv2d.make(
        list(op.operands),
        result,
        form=weights.form,
        bases=state.add_array(op, "bases" if coefficients else "weight", weights.bases),
        coefficients=coefficients,
        requant=state.add_array(op, "requant", rows.astype(np.int32)),
        **geometry,
        residual_multiplier=residual[0],
        residual_shift=residual[1],
        low=finish.low,
        high=finish.high,
        table=finish.table,
    )


def _prove_combinations(op: LayerOp, coefficients: NDArray[np.int8], x: MapType, z_bits: int) -> None:
    """Raise unless every Z[k, m] = sum_c T[k, c, m] * x[c] is below 2**(z_bits - 1) in magnitude."""
    values = coefficients.astype(np.float32)
    ones = np.ones((1, values.shape[1]), dtype=np.float32)
    # sums of at most 2^24 ones are exact in float32
    size, total = ((ones @ part)[:, 0].astype(np.int64) for part in (np.abs(values), values))
    plus, minus = (size + total) // 2, (size - total) // 2
    low, high = x.limits
    worst = np.maximum(plus * high - minus * low, minus * high - plus * low)
    if worst.max(initial=0) >= 1 << (z_bits - 1):
        k, m = np.unravel_index(int(worst.argmax()), worst.shape)
        raise EsccError(
            f"combination of output {k}, basis {m} can reach {int(worst.max())}, beyond {z_bits} bits",
            where=describe(op),
            hint=_KEEP_DENSE,
        )
