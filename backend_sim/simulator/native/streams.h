// Coefficient row streams: the readers, and what is made of them (isa/sparsemap.py says what they are).
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "geometry.h"

namespace {

inline int64_t bits_in(uint64_t word) { return __builtin_popcountll(word); }

// Bits of a buffer from any place; bytes behind its end read as 0.
struct BitReader {
    const uint8_t *data;
    int64_t size;

    // `count` bits from bit `at` on, 1 to 32.
    uint64_t bits(int64_t at, int64_t count) const {
        const int64_t first = at >> 3;
        uint64_t word = 0;
        if (first + 8 <= size)
            memcpy(&word, data + first, 8);
        else if (first < size)
            memcpy(&word, data + first, (size_t)(size - first));
        return word >> (at & 7) & (((uint64_t)1 << count) - 1);
    }

    // The same, 1 to 64.
    uint64_t wide(int64_t at, int64_t count) const {
        return count <= 32 ? bits(at, count) : bits(at, 32) | bits(at + 32, count - 32) << 32;
    }
};

#if !defined(__BMI2__)
// place[m][s]: bits of s, from the lowest on, at the places where m has its bits.
struct Deposit {
    uint8_t place[256][256] = {};
    uint8_t count[256] = {};

    constexpr Deposit() {
        for (int mask = 0; mask < 256; mask++) {
            for (int bit = 0; bit < 8; bit++) count[mask] = (uint8_t)(count[mask] + (mask >> bit & 1));
            for (int signs = 0; signs < 256; signs++) {
                int found = 0, left = signs;
                for (int bit = 0; bit < 8; bit++)
                    if (mask >> bit & 1) {
                        found |= (left & 1) << bit;
                        left >>= 1;
                    }
                place[mask][signs] = (uint8_t)found;
            }
        }
    }
};
constexpr Deposit deposit;
#endif

// The lowest bits of `signs` at the places where `mask` has its bits, of 32.
inline uint64_t deposited(uint64_t signs, uint64_t mask) {
#if defined(__BMI2__)
    return __builtin_ia32_pdep_di(signs, mask);
#else
    uint64_t found = 0;
    for (int shift = 0; shift < 32; shift += 8) {
        const uint8_t here = (uint8_t)(mask >> shift);
        found |= (uint64_t)deposit.place[here][(uint8_t)signs] << shift;
        signs >>= deposit.count[here];
    }
    return found;
#endif
}

// The rows of a stream one after the other: where the signs of one begin, and how many bytes it has.
struct RowReader {
    const uint8_t *data;
    int64_t size, length;
    int64_t offset = 0, signs = 0;
    BitReader row = {};

    // The next row; false: there is none, or bits behind its end are set.
    bool next() {
        if (offset > size) return false;
        row = {data + offset, size - offset};
        signs = 0;
        for (int64_t at = 0; at < length; at += 32)
            signs += bits_in(row.bits(at, length - at < 32 ? length - at : 32));
        const int64_t bits = length + signs, bytes = up(bits, 8);
        if (bytes > row.size || (bits & 7 && row.data[bytes - 1] >> (bits & 7))) return false;
        offset += bytes;
        return true;
    }

    // Calls visit(first channel, channels, basis, mask, negative), bit i for channel first + i, for every run of
    // up to 32 channels of the row.
    template <class Visit>
    void runs(int64_t chans, int64_t bases, int64_t chunk, Visit visit) const {
        int64_t at = 0, sign = length;
        for (int64_t first = 0; first < chans; first += chunk) {
            const int64_t count = first + chunk < chans ? chunk : chans - first;
            for (int64_t m = 0; m < bases; m++)
                for (int64_t c = 0; c < count; c += 32) {
                    const int64_t some = count - c < 32 ? count - c : 32;
                    const uint64_t mask = row.bits(at, some);
                    at += some;
                    if (!mask) continue;
                    visit(first + c, some, m, mask, deposited(row.bits(sign, 32), mask));
                    sign += bits_in(mask);
                }
        }
    }
};

// Where the last of the rows ends; -1: they are no rows.
template <class Reader>
int64_t end_of_rows(Reader rows, int64_t outs) {
    for (int64_t k = 0; k < outs; k++)
        if (!rows.next()) return -1;
    return rows.offset;
}

inline int64_t stream_bytes(const uint8_t *data, int64_t size, int64_t outs, int64_t length) {
    return end_of_rows(RowReader{data, size, length}, outs);
}

// Adds `size` times the coefficients of a run to `weights` of its channels.
inline void add_run(float *weights, int64_t count, float size, uint64_t mask, uint64_t negative) {
#if defined(__AVX512F__)
    if (count == 32) {
        const uint64_t positive = mask & ~negative;
        const __m512 by = _mm512_set1_ps(size);
        for (int half = 0; half < 2; half++) {
            __m512 sum = _mm512_loadu_ps(weights + 16 * half);
            sum = _mm512_mask_add_ps(sum, (__mmask16)(positive >> 16 * half), sum, by);
            sum = _mm512_mask_sub_ps(sum, (__mmask16)(negative >> 16 * half), sum, by);
            _mm512_storeu_ps(weights + 16 * half, sum);
        }
        return;
    }
#endif
    const float values[4] = {0, size, 0, -size};
    for (int64_t i = 0; i < count; i++) weights[i] += values[(mask >> i & 1) + 2 * (negative >> i & 1)];
}

// The row streams at the start of `data` times kernels of one tap, int8 (bases): weights (outs, chans), which are
// all zeros, and the sum of their sizes for each output. Exact: a weight is a sum of at most 2^16 numbers of 8 bits.
inline int recompose(
    const uint8_t *data, int64_t size, int64_t outs, int64_t chans, int64_t bases, int64_t chunk,
    const int8_t *kernels, float *weights, int64_t *sizes) {
    if (outs < 1 || chans < 1 || bases < 1 || bases > 1 << 16 || chunk < 1) return STATUS_BAD_PARAMETER;
    RowReader rows = {data, size, chans * bases};
    for (int64_t k = 0; k < outs; k++, weights += chans) {
        if (!rows.next()) return STATUS_BAD_PARAMETER;
        rows.runs(chans, bases, chunk, [&](int64_t first, int64_t count, int64_t m, uint64_t mask, uint64_t negative) {
            add_run(weights + first, count, kernels[m], mask, negative);
        });
        sizes[k] = 0;
        for (int64_t c = 0; c < chans;) {
            // 128 weights below 2^23 in 32 bits, which any processor adds up side by side
            const int64_t stop = c + 128 < chans ? c + 128 : chans;
            int32_t sum = 0;
            for (; c < stop; c++) sum += (int32_t)(weights[c] < 0 ? -weights[c] : weights[c]);
            sizes[k] += sum;
        }
    }
    return STATUS_OK;
}

// Positive and negative coefficients of every output and basis, [outs][bases], which are all zeros.
inline int count_signs(
    const uint8_t *data, int64_t size, int64_t outs, int64_t chans, int64_t bases, int64_t chunk, int64_t *positive,
    int64_t *negative) {
    if (outs < 1 || chans < 1 || bases < 1 || chunk < 1) return STATUS_BAD_PARAMETER;
    RowReader rows = {data, size, chans * bases};
    for (int64_t k = 0; k < outs; k++, positive += bases, negative += bases) {
        if (!rows.next()) return STATUS_BAD_PARAMETER;
        rows.runs(chans, bases, chunk, [&](int64_t, int64_t, int64_t m, uint64_t mask, uint64_t minus) {
            positive[m] += bits_in(mask & ~minus);
            negative[m] += bits_in(minus);
        });
    }
    return STATUS_OK;
}

// Bit p of word c becomes bit c of word p: 64 x 64 bits, halves of halves changed places.
inline void transpose(uint64_t *words) {
    uint64_t mask = 0x00000000ffffffffu;
    for (int step = 32; step; step >>= 1, mask ^= mask << step)
        for (int begin = 0; begin < 64; begin += 2 * step)
            for (int i = begin; i < begin + step; i++) {
                const uint64_t changed = (words[i] >> step ^ words[i + step]) & mask;
                words[i] ^= changed << step;
                words[i + step] ^= changed;
            }
}

// The row streams at the start of `data` to planes [chans + 1][plane_words] for blocks of `rows` rows, and the
// non-zeros of every channel, weights [chans].
inline int pack_streams(
    const uint8_t *data, int64_t size, int64_t outs, int64_t chans, int64_t bases, int64_t chunk, int64_t rows,
    uint64_t *planes, int32_t *weights) {
    if (outs < 1 || chans < 1 || bases < 1 || chunk < 1 || rows < 1) return STATUS_BAD_PARAMETER;
    Scratch memory;
    BitReader *row = memory.raw<BitReader>(outs + 64);
    if (memory.failed()) return STATUS_NO_MEMORY;
    RowReader reader = {data, size, chans * bases};
    Work work = {};
    work.outs = outs;
    work.rows = rows;
    const Order order(work);
    for (int64_t k = 0; k < outs; k++) {
        if (!reader.next()) return STATUS_BAD_PARAMETER;
        row[order.begin(k % rows) + k / rows] = reader.row;
    }
    // places without an output have no bits
    for (int64_t place = outs; place < outs + 64; place++) row[place] = {data, 0};
    const int64_t words = words_of(outs), step = plane_words(outs, bases);
    memset(planes, 0, sizeof(uint64_t) * step * (chans + 1));
    memset(weights, 0, sizeof(int32_t) * chans);
    uint64_t square[64];
    for (int64_t w = 0; w < words; w++) {
        int64_t at = 0;
        for (int64_t first = 0; first < chans; first += chunk) {
            const int64_t count = first + chunk < chans ? chunk : chans - first;
            for (int64_t m = 0; m < bases; m++)
                for (int64_t c = 0; c < count; c += 64) {
                    const int64_t some = count - c < 64 ? count - c : 64;
                    for (int i = 0; i < 64; i++) square[i] = row[64 * w + i].wide(at, some);
                    at += some;
                    transpose(square);
                    uint64_t *to = planes + (first + c) * step + m * words + w;
                    for (int64_t i = 0; i < some; i++, to += step) {
                        *to = square[i];
                        weights[first + c + i] += (int32_t)bits_in(square[i]);
                    }
                }
        }
    }
    return STATUS_OK;
}

}  // namespace
