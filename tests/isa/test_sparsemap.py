"""Coefficient row streams and activation SparseMaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escc.errors import EsccError
from escc.isa import sparsemap


def ternary(seed: int, outs: int, chans: int, bases: int, density: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([-1, 1], np.int8), (outs, chans, bases))
    return np.where(rng.random((outs, chans, bases)) < density, signs, 0).astype(np.int8)


def slow_encode(coefficients: np.ndarray, chunk: int) -> bytes:
    """The stream written bit by bit, straight from its definition."""
    outs, chans, bases = coefficients.shape
    stream = b""
    for k in range(outs):
        masks: list[int] = []
        signs: list[int] = []
        for start in range(0, chans, chunk):
            for m in range(bases):
                for value in coefficients[k, start : start + chunk, m]:
                    masks.append(int(value != 0))
                    signs += [int(value < 0)] if value else []
        bits = masks + signs
        bits += [0] * (-len(bits) % 8)
        stream += bytes(
            sum(bit << i for i, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8)
        )
    return stream


shapes = st.tuples(st.integers(1, 5), st.integers(1, 150), st.integers(1, 4))


@settings(max_examples=60)
@given(shapes, st.integers(0, 2**32), st.floats(0, 1), st.sampled_from([8, 64, 128]))
def test_row_streams_are_the_definition_and_decode_back(
    shape: tuple[int, int, int], seed: int, density: float, chunk: int
) -> None:
    coefficients = ternary(seed, *shape, density)
    stream = sparsemap.encode_row_streams(coefficients, chunk)
    assert stream.tobytes() == slow_encode(coefficients, chunk)
    sizes = sparsemap.row_stream_sizes(coefficients)
    assert sizes.tolist() == [len(slow_encode(coefficients[k : k + 1], chunk)) for k in range(shape[0])]
    assert sparsemap.row_offsets(stream, shape[0], shape[1] * shape[2]) == [0, *np.cumsum(sizes).tolist()]
    behind = stream.tobytes() + b"\xff\xff"
    decoded, used = sparsemap.decode_row_streams(behind, *shape, chunk)
    assert used == stream.size
    assert decoded.dtype == np.int8
    np.testing.assert_array_equal(decoded, coefficients)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 10_000))
def test_a_cut_stream_is_refused(seed: int, cut: int) -> None:
    stream = sparsemap.encode_row_streams(ternary(seed, 4, 70, 3, 0.3), 64).tobytes()
    with pytest.raises(EsccError):
        sparsemap.decode_row_streams(stream[: cut % len(stream)], 4, 70, 3, 64)


def test_set_padding_bits_are_refused() -> None:
    stream = bytearray(sparsemap.encode_row_streams(np.ones((1, 3, 1), np.int8), 64).tobytes())
    assert stream == b"\x07"
    stream[0] |= 0x80
    with pytest.raises(EsccError, match="bits set behind its end"):
        sparsemap.decode_row_streams(bytes(stream), 1, 3, 1, 64)


@pytest.mark.parametrize(
    "bad", [np.full((1, 2, 3), 2, np.int8), np.full((1, 2, 3), 257), np.full((1, 2, 3), 0.5)]
)
def test_values_that_are_not_ternary_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(EsccError, match="-1, 0 or 1"):
        sparsemap.encode_row_streams(bad, 64)


def test_absurd_sizes_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(EsccError, match="do not fit"):
        sparsemap.decode_row_streams(bytes(100), 1 << 24, 1 << 24, 1 << 16, 64)
    with pytest.raises(EsccError, match="does not exist"):
        sparsemap.decode_row_streams(bytes(100), 0, 3, 1, 64)


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=100), st.binary(max_size=3))
def test_activation_vectors_round_trip(values: list[int], behind: bytes) -> None:
    vector = np.array(values, np.int8)
    encoded = sparsemap.encode_vector(vector)
    assert len(encoded) == (len(values) + 7) // 8 + sum(v != 0 for v in values)
    assert sparsemap.map_bytes(vector[None, None]) == len(encoded)
    decoded, used = sparsemap.decode_vector(encoded + behind, len(values), signed=True)
    assert used == len(encoded)
    np.testing.assert_array_equal(decoded, vector)
    unsigned, _ = sparsemap.decode_vector(encoded, len(values), signed=False)
    np.testing.assert_array_equal(unsigned, vector.view(np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "mask bytes"),
        (b"\x01\x00", "needs 3 bytes"),
        (b"\x00\x04", "beyond its channels"),
        (b"\x01\x00\x00", "a zero"),
    ],
)
def test_bad_activation_vectors_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(EsccError, match=message):
        sparsemap.decode_vector(content, 10, signed=True)


@given(st.binary(max_size=40), st.integers(1, 40))
def test_decoding_any_bytes_gives_values_or_one_error(content: bytes, channels: int) -> None:
    try:
        values, used = sparsemap.decode_vector(content, channels, signed=False)
    except EsccError:
        return
    assert sparsemap.encode_vector(values) == content[:used]
