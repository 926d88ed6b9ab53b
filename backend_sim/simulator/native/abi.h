// What the engine's parts agree on: the parameters of a call, its results, its error codes.
#pragma once

#include <stdint.h>

// The parameters of one call, all int64, in this order; Python asks the library for the names.
// form 0 combine, 1 dense, 2 depthwise; policy 0 none, 1 window, 2 gather; stride_* of x in bytes, the
// others as in ConvWork and Arch; wide 1: count in 64 bits even where 32 are enough (tests).
#define ESCC_FIELDS(F)                                                                                 \
    F(form) F(images) F(x_rows) F(step_image) F(step_row) F(step_pos) F(outs) F(chans) F(height)       \
    F(width) F(y_rows) F(y_cols) F(bases) F(kernel_h) F(kernel_w) F(stride_h) F(stride_w) F(pad_top)   \
    F(pad_left) F(dil_h) F(dil_w) F(x_first) F(y_first) F(bands) F(multiplier) F(blocks) F(rows)       \
    F(macs) F(units) F(lanes) F(chunk) F(ring_entries) F(fifo_positions) F(policy) F(look_ahead)       \
    F(look_aside) F(startup_cycles) F(wide)

// The results of one image, all int64, in this order: the fields of ConvTiming.
#define ESCC_FIGURES(F)                                                                                \
    F(cycles) F(lc_busy) F(lc_wait_input) F(lc_wait_row) F(lc_wait_fifo) F(lc_idle) F(mac_busy)        \
    F(mac_wait_lc) F(mac_idle) F(matches) F(dilution_words) F(issue_cycles) F(products)                \
    F(fifo_pushes) F(fifo_values) F(psum_updates) F(ring_entries) F(ring_bytes_written)                \
    F(ring_bytes_read)

#define ESCC_MEMBER(name) int64_t name;

struct Work {
    ESCC_FIELDS(ESCC_MEMBER)
};

struct Figures {
    ESCC_FIGURES(ESCC_MEMBER)
};

enum Status {
    STATUS_OK = 0,
    STATUS_BAD_PARAMETER = 1,
    STATUS_MISSING_ROW = 2,
    STATUS_NO_MEMORY = 3,
    STATUS_WIDE = 4,  // numbers do not fit what is kept
};

// What concentration leaves of an instruction of the form combine and one image: another number of blocks,
// MACs, ring entries or FIFO positions need not do it again, another number of rows needs another order only
// (escc_reorder). Filled by the first call, used by the next ones. A place is a needed row and a column;
// every buffer has 64 bytes behind its end.
struct Kept {
    int64_t filled;
    uint8_t *cycles;     // [places][chunks][words_of(outs) * 64], in the order of the planes
    uint8_t *values;     // [places][words_of(outs) * 64]
    int64_t *value_sum;  // [places]
    int64_t *sums;       // [4][needed rows]: busy, matches, issued, active
};

// Planes of an instruction, [chans + 1][plane_words]: bit j of the words of basis m of channel c is 1 where
// output order(j) has a coefficient; the last plane is empty. Outputs are ordered by row of the block, then
// by group, so that the groups of a row lie side by side.
static inline int64_t words_of(int64_t outs) { return (outs + 63) / 64; }
static inline int64_t plane_words(int64_t outs, int64_t bases) { return (words_of(outs) * bases + 7) / 8 * 8; }

// Requantisation of sums: numerics.py. Strides of `sums` in items (its outputs and columns lie side by side),
// the others in bytes.
#define ESCC_FINISH(F)                                                                                  \
    F(images) F(rows) F(cols) F(outs) F(wide) F(sums_image) F(sums_row) F(out_image) F(out_row) F(out_col)  \
    F(residual_image) F(residual_row) F(residual_col)

struct Finish {
    ESCC_FINISH(ESCC_MEMBER)
    double low, high;
    const void *sums;              // float, or double where wide
    uint8_t *out;
    const double *factor, *offset; // [outs]
    const uint8_t *residual;       // or null
    const double *residual_table;  // [256]
    const uint8_t *table;          // [256], or null
};

// Bytes of a map to floats with zeros around: rows top .. bottom-1 and columns left .. right-1 of `rows` x `cols`
// are there. Strides in bytes.
#define ESCC_FILL(F)                                                                                    \
    F(images) F(rows) F(cols) F(chans) F(top) F(bottom) F(left) F(right) F(x_image) F(x_row) F(x_col) F(is_signed)

struct Fill {
    ESCC_FILL(ESCC_MEMBER)
    const uint8_t *x;
    float *out;
};

// What every instruction set has.
struct Kernel {
    int (*conv_timing)(
        const Work *work, const uint8_t *x, const uint64_t *planes, const int32_t *weights, Kept *kept,
        Figures *figures);
    int64_t (*stream_bytes)(const uint8_t *data, int64_t size, int64_t outs, int64_t length);
    int (*recompose)(
        const uint8_t *data, int64_t size, int64_t outs, int64_t chans, int64_t bases, int64_t chunk,
        const int8_t *kernels, float *weights, int64_t *sizes);
    int (*pack)(
        const uint8_t *data, int64_t size, int64_t outs, int64_t chans, int64_t bases, int64_t chunk, int64_t rows,
        uint64_t *planes, int32_t *weights);
    int (*signs)(
        const uint8_t *data, int64_t size, int64_t outs, int64_t chans, int64_t bases, int64_t chunk,
        int64_t *positive, int64_t *negative);
    int (*finish)(const Finish *);
    int (*fill)(const Fill *);
    int64_t (*count)(const uint8_t *x, int64_t rows, int64_t cols, int64_t chans, int64_t x_row, int64_t x_col);
};

#define ESCC_HIDDEN extern "C" __attribute__((visibility("hidden")))
ESCC_HIDDEN const Kernel escc_kernel_baseline;
ESCC_HIDDEN const Kernel escc_kernel_avx2;
ESCC_HIDDEN const Kernel escc_kernel_avx512;

// The kernel of instruction set `name`, with registers of `WORDS` words.
#define ESCC_KERNEL(name, WORDS)                                                                          \
    const Kernel escc_kernel_##name = {                                                                   \
        conv_timing<WORDS>, stream_bytes, recompose, pack_streams, count_signs, finish, fill, count_nonzeros};
