"""Coefficient row streams and activation SparseMaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escc.errors import EsccError
from escc.isa import bits, sparsemap


def ternary(seed: int, outs: int, chans: int, bases: int, density: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([-1, 1], np.int8), (outs, chans, bases))
    return np.where(rng.random((outs, chans, bases)) < density, signs, 0).astype(np.int8)


def slow_encode(coefficients: np.ndarray, chunk: int, two_level: bool = False) -> bytes:
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
        if two_level:
            kept = [row for row in coefficients[k].tolist() if any(row)]
            masks = [int(any(row)) for row in coefficients[k].tolist()]
            masks += [int(value != 0) for row in kept for value in row]
        bits = masks + signs
        bits += [0] * (-len(bits) % 8)
        stream += bytes(
            sum(bit << i for i, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8)
        )
    return stream


shapes = st.tuples(st.integers(1, 5), st.integers(1, 150), st.integers(1, 4))


@settings(max_examples=60)
@given(shapes, st.integers(0, 2**32), st.floats(0, 1), st.sampled_from([8, 64, 128]), st.booleans())
def test_row_streams_are_the_definition_and_decode_back(
    shape: tuple[int, int, int], seed: int, density: float, chunk: int, two_level: bool
) -> None:
    coefficients = ternary(seed, *shape, density)
    stream = sparsemap.encode_row_streams(coefficients, chunk, two_level=two_level)
    assert stream.tobytes() == slow_encode(coefficients, chunk, two_level)
    sizes = sparsemap.row_stream_sizes(coefficients, two_level=two_level)
    rows = [coefficients[k : k + 1] for k in range(shape[0])]
    assert sizes.tolist() == [len(slow_encode(row, chunk, two_level)) for row in rows]
    offsets = sparsemap.row_offsets(stream, *shape, two_level=two_level)
    assert offsets == [0, *np.cumsum(sizes).tolist()]
    assert sparsemap.smallest_row_streams(*shape, two_level=two_level) <= sum(sizes)
    behind = stream.tobytes() + b"\xff\xff"
    decoded, used = sparsemap.decode_row_streams(behind, *shape, chunk, two_level=two_level)
    assert used == stream.size
    assert decoded.dtype == np.int8
    np.testing.assert_array_equal(decoded, coefficients)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 20), st.integers(1, 6), st.floats(0, 1))
def test_rows_of_whole_bytes(seed: int, outs: int, eighths: int, bases: int, density: float) -> None:
    coefficients = ternary(seed, outs, 8 * eighths, bases, density)
    stream = sparsemap.encode_row_streams(coefficients, 64)
    assert stream.tobytes() == slow_encode(coefficients, 64)
    decoded, used = sparsemap.decode_row_streams(stream, outs, 8 * eighths, bases, 64)
    assert used == stream.size
    np.testing.assert_array_equal(decoded, coefficients)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint64])
def test_bit_counts(kind: type[np.unsignedinteger]) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (3, 50), kind, endpoint=True)
    wanted = [[int(value).bit_count() for value in row] for row in values]
    assert bits.bit_counts(values).tolist() == bits.counted_by_byte(values).tolist() == wanted


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 10_000), st.booleans(), st.sampled_from([70, 72]))
def test_a_cut_stream_is_refused(seed: int, cut: int, two_level: bool, chans: int) -> None:
    coefficients = ternary(seed, 4, chans, 3, 0.3)
    stream = sparsemap.encode_row_streams(coefficients, 64, two_level=two_level).tobytes()
    with pytest.raises(EsccError):
        sparsemap.decode_row_streams(stream[: cut % len(stream)], 4, chans, 3, 64, two_level=two_level)


def test_a_two_level_stream_by_hand() -> None:
    # channels 0 and 3 have coefficients: (0, -1) and (1, 1); signs in the order of the basis
    coefficients = np.zeros((1, 4, 2), np.int8)
    coefficients[0, 0] = 0, -1
    coefficients[0, 3] = 1, 1
    stream = sparsemap.encode_row_streams(coefficients, 64, two_level=True)
    # mask 1001, cells 01 11, signs of (3, 0), (0, 1), (3, 1): + - +
    assert stream.tobytes() == bytes([0b1110_1001, 0b010])


def test_a_bit_does_not_stand_for_any_number_of_coefficients() -> None:
    with pytest.raises(EsccError, match="two-level masks of 65 bases, at most 64"):
        sparsemap.decode_row_streams(bytes(100), 2, 3, 65, 64, two_level=True)


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
