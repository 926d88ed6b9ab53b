"""SparseMap: a bit mask and the packed non-zeros. Coefficient row streams and activation vectors.

A coefficient row stream (one output channel, ternary) holds, for every chunk of channels in order and every
basis m = 0..M-1, the mask bits of that chunk; then one sign bit (1 = negative) per non-zero in the same
order; then zero bits up to a whole byte. Bits are little-endian within a byte. Rows follow each other in k
order without an offset table: where a row ends is known once its masks are read.

A *two-level* row stream has other masks: one bit per channel, set if any of its M coefficients is not zero;
then M mask bits, m = 0..M-1, for each channel whose bit is set. Signs and padding are the same. It is shorter
where channels without a coefficient are more than one in M: sparse codes, and the planes of pruned weights.

An activation vector of C channels is ceil(C/8) mask bytes and one byte per non-zero, in channel order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError
from escc.isa.bits import bit_counts

TWO_LEVEL_BASES = 64
"""Most bases of a two-level stream: a bit of it must not stand for any number of coefficients."""

Int8Array = npt.NDArray[np.int8]
ByteBuffer = bytes | bytearray | memoryview | npt.NDArray[np.uint8]


def row_stream_sizes(coefficients: npt.NDArray[Any], *, two_level: bool = False) -> npt.NDArray[np.int64]:
    """Bytes of each row stream: (K,) int64 for ``coefficients`` (K, C, M)."""
    rows, chans, bases = coefficients.shape
    mask = coefficients != 0
    signs = np.count_nonzero(mask.reshape(rows, -1), axis=1)
    masks = chans + bases * np.count_nonzero(_used_channels(mask), axis=1) if two_level else chans * bases
    return (masks + signs + 7) // 8


def _used_channels(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """``mask.any(axis=2)``, basis by basis: numpy reduces short axes slowly."""
    used = np.zeros(mask.shape[:2], np.bool_)
    for basis in range(mask.shape[2]):
        used |= mask[:, :, basis]
    return used


def encode_row_streams(
    coefficients: npt.NDArray[Any], chunk: int, *, two_level: bool = False
) -> npt.NDArray[np.uint8]:
    """The row streams of all output channels, concatenated: uint8 bytes.

    Args:
        coefficients: (K, C, M), every value -1, 0 or 1.
        chunk: channels in one mask word.
        two_level: which masks.

    Raises:
        EsccError: a value is not ternary.
    """
    values = coefficients.astype(np.int8)
    if values.ndim != 3 or chunk < 1:
        raise EsccError("coefficients must have the shape (K, C, M)")
    if np.any(values != coefficients) or values.min(initial=0) < -1 or values.max(initial=0) > 1:
        raise EsccError("coefficients must be -1, 0 or 1")
    flat = _to_stream_order(values, chunk)
    rows, length = flat.shape
    mask = flat != 0
    nonzeros = np.count_nonzero(mask, axis=1)
    cells = np.zeros((0, values.shape[2]), np.bool_)
    lengths = np.full(rows, length)
    if two_level:
        by_channel = values != 0
        heads = _used_channels(by_channel)
        cells = by_channel[heads]
        length = values.shape[1]
        lengths = length + values.shape[2] * np.count_nonzero(heads, axis=1)
    else:
        heads = mask
    sizes = (lengths + nonzeros + 7) // 8
    width = int(sizes.max(initial=0))
    bits = np.zeros((rows, width * 8), np.bool_)
    bits[:, :length] = heads
    bits[_between(np.full(rows, length), lengths, width * 8)] = cells.reshape(-1)
    bits[_between(lengths, lengths + nonzeros, width * 8)] = flat[mask] < 0
    packed = np.packbits(bits, axis=1, bitorder="little")
    return packed[_prefix(sizes, width)]


def row_offsets(
    buffer: ByteBuffer, outs: int, chans: int, bases: int, *, two_level: bool = False
) -> list[int]:
    """Byte offsets of the row streams in ``buffer``, and after the last one the end: ``outs + 1`` numbers.

    Raises:
        EsccError: the streams do not fit into the buffer, padding bits are set, or too many bases.
    """
    if two_level and bases > TWO_LEVEL_BASES:
        raise EsccError(f"two-level masks of {bases} bases, at most {TWO_LEVEL_BASES} are allowed")
    view = memoryview(buffer.data if isinstance(buffer, np.ndarray) else buffer)
    available = len(view)
    head = chans if two_level else chans * bases
    # bits before every byte that a stream may have, where its masks are whole bytes
    before = None if two_level or head % 8 else _bits_before(view[: outs * head // 4])
    offset = 0
    offsets = [0]
    for row in range(outs):
        length = head
        if before is not None:
            stop = min(offset + head // 8, available)
            set_bits = before[stop] - before[offset]
        else:
            set_bits = _count_bits(view, offset, 0, head)
        if two_level:
            length += set_bits * bases
            set_bits = _count_bits(view, offset, head, length)
        used = length + set_bits
        end = offset + (used + 7) // 8
        if end > available:
            raise EsccError(f"the coefficient stream ends inside row {row}")
        if used & 7 and view[end - 1] >> (used & 7):
            raise EsccError(f"coefficient row {row} has bits set behind its end")
        offsets.append(end)
        offset = end
    return offsets


def smallest_row_streams(outs: int, chans: int, bases: int, *, two_level: bool) -> int:
    """Bytes that the row streams of a layer take at least: those of its masks when nothing is set."""
    return outs * (((chans if two_level else chans * bases) + 7) // 8)


def decode_row_streams(
    buffer: ByteBuffer, outs: int, chans: int, bases: int, chunk: int, *, two_level: bool = False
) -> tuple[Int8Array, int]:
    """Decode the row streams at the start of ``buffer``: coefficients (outs, chans, bases) int8, bytes used.

    Raises:
        EsccError: the streams do not fit into the buffer, padding bits are set, or too many bases.
    """
    if outs < 1 or chans < 1 or bases < 1 or chunk < 1:
        raise EsccError(f"a coefficient stream of {outs} x {chans} x {bases} does not exist")
    data = buffer if isinstance(buffer, np.ndarray) else np.frombuffer(buffer, np.uint8)
    if smallest_row_streams(outs, chans, bases, two_level=two_level) > data.size:
        raise EsccError(f"coefficients of {outs} x {chans} x {bases} do not fit into {data.size} bytes")
    offsets = np.array(row_offsets(buffer, outs, chans, bases, two_level=two_level), dtype=np.int64)
    if not (two_level or chans % 8 or chunk % 8):
        values = _whole_bytes(data, offsets, chans * bases)
        return _from_stream_order(values, chans, bases, chunk), int(offsets[-1])
    sizes = np.diff(offsets)
    width = int(sizes.max())
    packed = np.zeros((outs, width), np.uint8)
    packed[_prefix(sizes, width)] = data[: offsets[-1]]
    bits = np.unpackbits(packed, axis=1, bitorder="little").view(np.bool_)
    if two_level:
        heads = bits[:, :chans]
        lengths = chans + bases * np.count_nonzero(heads, axis=1)
        by_channel = np.zeros((outs, chans, bases), np.int8)
        cells = bits[_between(np.full(outs, chans), lengths, width * 8)]
        by_channel[heads] = cells.reshape(-1, bases)
        mask = _to_stream_order(by_channel, chunk).view(np.bool_)
    else:
        mask = bits[:, : chans * bases]
        lengths = np.full(outs, chans * bases)
    flat = mask.astype(np.int8)
    signs = bits[_between(lengths, lengths + np.count_nonzero(mask, axis=1), width * 8)]
    flat[mask] = 1 - 2 * signs.view(np.int8)
    return _from_stream_order(flat, chans, bases, chunk), int(offsets[-1])


def encode_vector(vector: npt.NDArray[Any]) -> bytes:
    """The SparseMap of one position, ``vector`` (C,) int8 or uint8: ceil(C/8) mask bytes, then non-zeros."""
    mask = np.packbits(vector != 0, bitorder="little")
    return mask.tobytes() + vector[vector != 0].astype(vector.dtype).tobytes()


def decode_vector(buffer: ByteBuffer, channels: int, signed: bool) -> tuple[npt.NDArray[Any], int]:
    """Decode one position: values (channels,) int8 or uint8, and the bytes used.

    Raises:
        EsccError: the buffer is too short, mask bits are set beyond the channels, or a packed value is zero.
    """
    data = buffer if isinstance(buffer, np.ndarray) else np.frombuffer(buffer, np.uint8)
    mask_bytes = (channels + 7) // 8
    if data.size < mask_bytes:
        raise EsccError(f"a SparseMap of {channels} channels needs {mask_bytes} mask bytes, not {data.size}")
    bits = np.unpackbits(data[:mask_bytes], bitorder="little").view(np.bool_)
    if bits[channels:].any():
        raise EsccError("a SparseMap has mask bits set beyond its channels")
    used = mask_bytes + int(np.count_nonzero(bits))
    if data.size < used:
        raise EsccError(f"a SparseMap needs {used} bytes, not {data.size}")
    values = np.zeros(channels, np.int8 if signed else np.uint8)
    values[bits[:channels]] = data[mask_bytes:used].view(values.dtype)
    if np.count_nonzero(values) != used - mask_bytes:
        raise EsccError("a SparseMap packs a zero")
    return values, used


def map_bytes(array: npt.NDArray[Any]) -> int:
    """SparseMap bytes of a map (..., C): per position ceil(C/8) mask bytes and one byte per non-zero."""
    channels = array.shape[-1]
    positions = array.size // channels if channels else 0
    return positions * ((channels + 7) // 8) + int(np.count_nonzero(array))


def _to_stream_order(values: Int8Array, chunk: int) -> Int8Array:
    """(K, C, M) -> (K, C * M) ordered by chunk, basis, channel of the chunk."""
    rows, chans, bases = values.shape
    whole = chans // chunk * chunk
    full = values[:, :whole].reshape(rows, whole // chunk, chunk, bases).transpose(0, 1, 3, 2)
    rest = values[:, whole:].transpose(0, 2, 1)
    return np.concatenate(
        [full.reshape(rows, whole * bases), rest.reshape(rows, (chans - whole) * bases)], axis=1
    )


def _from_stream_order(flat: Int8Array, chans: int, bases: int, chunk: int) -> Int8Array:
    rows = flat.shape[0]
    whole = chans // chunk * chunk
    values = np.empty((rows, chans, bases), np.int8)
    full = flat[:, : whole * bases].reshape(rows, whole // chunk, bases, chunk)
    parts = values[:, :whole].reshape(rows, whole // chunk, chunk, bases)
    assert not whole or np.shares_memory(parts, values), "splitting an axis must not copy"
    # basis by basis: inner loops over channels are longer than over bases
    for basis in range(bases):
        parts[..., basis] = full[:, :, basis]
    values[:, whole:] = flat[:, whole * bases :].reshape(rows, bases, chans - whole).transpose(0, 2, 1)
    return values


def _prefix(counts: npt.NDArray[Any], width: int) -> npt.NDArray[np.bool_]:
    """(rows, width) bool, the first ``counts[row]`` of each row true."""
    return np.arange(width) < counts[:, None]


def _between(start: npt.NDArray[Any], stop: npt.NDArray[Any], width: int) -> npt.NDArray[np.bool_]:
    """(rows, width) bool, the columns from ``start[row]`` up to ``stop[row]`` of each row true."""
    columns = np.arange(width)
    return (columns >= start[:, None]) & (columns < stop[:, None])


def _count_bits(view: memoryview, offset: int, start: int, stop: int) -> int:
    """Set bits from bit ``start`` up to bit ``stop`` behind the byte ``offset``; bytes that are not there
    have none."""
    word = int.from_bytes(view[offset : offset + (stop + 7) // 8], "little")
    return ((word & ((1 << stop) - 1)) >> start).bit_count()


def _bits_before(view: memoryview) -> memoryview:
    """Set bits before each byte and, last, of all of them."""
    # half the bytes to write where they are enough
    before = np.zeros(len(view) + 1, np.int32 if 8 * len(view) < 1 << 31 else np.int64)
    np.cumsum(bit_counts(np.frombuffer(view, np.uint8)), out=before[1:])
    return before.data


def _whole_bytes(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], length: int
) -> npt.NDArray[np.int8]:
    """Rows with ``length`` plain mask bits in whole bytes: coefficients (rows, length) in stream order."""
    rows, size = len(offsets) - 1, length // 8
    masks = np.empty((rows, size), np.uint8)
    for row, offset in enumerate(offsets[:-1].tolist()):
        masks[row] = data[offset : offset + size]
    counts = bit_counts(masks)
    # the first sign bit of every mask byte
    kind = np.int32 if 8 * offsets[-1] < 1 << 31 else np.int64
    place = np.cumsum(counts, axis=1, dtype=kind)
    place -= counts
    place += (8 * (offsets[:-1, None] + size)).astype(kind)
    # signs of a byte lie in two bytes at most; where there is no second one, none of it is asked for
    content = np.zeros(int(offsets[-1]) + 2, np.uint16)
    content[:-2] = data[: offsets[-1]]
    content[:-1] |= content[1:] << 8
    index = content.take(place >> 3)
    index >>= (place & 7).astype(np.uint16)
    index &= 255
    index |= masks.astype(np.uint16) << 8
    return _signed_bytes().take(index).view(np.int8)


@cache
def _signed_bytes() -> npt.NDArray[np.uint64]:
    """Eight coefficients, as the bytes of one number, for 256 * mask byte + its sign bits."""
    mask, signs = np.divmod(np.arange(1 << 16), 256)
    found = np.zeros((1 << 16, 8), np.int8)
    for bit in range(8):
        is_set = mask >> bit & 1
        found[:, bit] = is_set * (1 - 2 * (signs & 1))
        signs = signs >> is_set
    return found.view(np.uint64)[:, 0]
