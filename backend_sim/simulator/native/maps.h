// Work on whole maps for the functional path: bytes to floats, sums to bytes, counting.
#pragma once

#include <string.h>

#include "abi.h"

namespace {

// Numbers to `low` .. `high`, which are integers, and to integers, towards zero: in either order the same.
inline void limited(const double *from, int64_t count, double low, double high, int32_t *to) {
    double value[64];
    for (int64_t k = 0; k < count; k++) {
        const double t = from[k] < low ? low : from[k];
        value[k] = t > high ? high : t;
    }
    for (int64_t k = 0; k < count; k++) to[k] = (int32_t)value[k];
}

// One position: sums of `outs` outputs to bytes, a piece at a time: loops that change the type only, or only
// compute, are done side by side by every compiler.
template <class T>
inline void finish_position(const Finish &f, const T *sums, const uint8_t *residual, uint8_t *out) {
    const int64_t PIECE = 64;
    const double largest = 1 << 30;
    double value[PIECE];
    int32_t whole[PIECE];
    for (int64_t first = 0; first < f.outs; first += PIECE) {
        const int64_t count = f.outs - first < PIECE ? f.outs - first : PIECE;
        const double *factor = f.factor + first, *offset = f.offset + first;
        for (int64_t k = 0; k < count; k++) value[k] = (double)sums[first + k];
        for (int64_t k = 0; k < count; k++) {
            // exact, or so large that it saturates: numerics.py; rounded half away from zero
            const double t = value[k] * factor[k] + offset[k];
            value[k] = t + __builtin_copysign(0.5, t);
        }
        if (residual) {
            // residuals are below 2^29: beyond 2^30 they do not keep a sum from saturating
            limited(value, count, -largest, largest, whole);
            for (int64_t k = 0; k < count; k++) value[k] = (double)whole[k];
            for (int64_t k = 0; k < count; k++) value[k] += f.residual_table[residual[first + k]];
        }
        limited(value, count, f.low, f.high, whole);
        for (int64_t k = 0; k < count; k++) out[first + k] = (uint8_t)whole[k];
        if (f.table)
            for (int64_t k = 0; k < count; k++) out[first + k] = f.table[out[first + k]];
    }
}

template <class T>
void finish_sums(const Finish &f) {
    for (int64_t n = 0; n < f.images; n++)
        for (int64_t y = 0; y < f.rows; y++) {
            const T *sums = (const T *)f.sums + n * f.sums_image + y * f.sums_row;
            const uint8_t *residual = f.residual ? f.residual + n * f.residual_image + y * f.residual_row : nullptr;
            uint8_t *out = f.out + n * f.out_image + y * f.out_row;
            for (int64_t x = 0; x < f.cols; x++, sums += f.outs, out += f.out_col) {
                // two loops: the one without a residual has nothing to look up
                if (residual)
                    finish_position(f, sums, residual + x * f.residual_col, out);
                else
                    finish_position(f, sums, nullptr, out);
            }
        }
}

inline int finish(const Finish *f) {
    if (f->wide)
        finish_sums<double>(*f);
    else
        finish_sums<float>(*f);
    return STATUS_OK;
}

template <class T>
inline void to_floats(const T *from, float *to, int64_t count) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; i++) to[i] = (float)from[i];
}

// A padded input: floats, zero outside.
inline int fill(const Fill *f) {
    const int64_t line = f->cols * f->chans;
    float *to = f->out;
    for (int64_t n = 0; n < f->images; n++)
        for (int64_t y = 0; y < f->rows; y++, to += line) {
            if (y < f->top || y >= f->bottom) {
                memset(to, 0, sizeof(float) * line);
                continue;
            }
            const uint8_t *from = f->x + n * f->x_image + (y - f->top) * f->x_row;
            memset(to, 0, sizeof(float) * f->left * f->chans);
            for (int64_t x = f->left; x < f->right; x++, from += f->x_col) {
                if (f->is_signed)
                    to_floats((const int8_t *)from, to + x * f->chans, f->chans);
                else
                    to_floats(from, to + x * f->chans, f->chans);
            }
            memset(to + f->right * f->chans, 0, sizeof(float) * (f->cols - f->right) * f->chans);
        }
    return STATUS_OK;
}

// Bytes that are not zero, of rows x cols runs of `chans`.
inline int64_t count_nonzeros(
    const uint8_t *x, int64_t rows, int64_t cols, int64_t chans, int64_t x_row, int64_t x_col) {
    typedef uint8_t Bytes __attribute__((vector_size(64)));
    int64_t found = 0, waiting = 0;
    Bytes sums = {};
    for (int64_t y = 0; y < rows; y++)
        for (int64_t col = 0; col < cols; col++) {
            const uint8_t *from = x + y * x_row + col * x_col;
            int64_t c = 0;
            for (; c + 64 <= chans; c += 64) {
                Bytes some;
                memcpy(&some, from + c, sizeof some);
                sums -= (Bytes)(some != 0);
                if (++waiting == 255) {
                    for (int i = 0; i < 64; i++) found += sums[i];
                    sums = Bytes{};
                    waiting = 0;
                }
            }
            for (; c < chans; c++) found += from[c] != 0;
        }
    for (int i = 0; i < 64; i++) found += sums[i];
    return found;
}

}  // namespace
