// What Python calls, by ctypes: plain C, compiled for the oldest processor.
#include "streams.h"

#define ESCC_PUBLIC extern "C" __attribute__((visibility("default")))
#define ESCC_NAME(name) #name ","

namespace {

struct Variant {
    const char *name;
    const Kernel *kernel;
};

// The best first; the ones this processor cannot run are left out.
int variants(Variant *found) {
    int count = 0;
#if defined(ESCC_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2"))
        found[count++] = Variant{"avx512", &escc_kernel_avx512};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt"))
        found[count++] = Variant{"avx2", &escc_kernel_avx2};
#endif
    found[count++] = Variant{"baseline", &escc_kernel_baseline};
    return count;
}

}  // namespace

// Names of the parameters, of the figures.
ESCC_PUBLIC const char *escc_fields() { return ESCC_FIELDS(ESCC_NAME); }
ESCC_PUBLIC const char *escc_figures() { return ESCC_FIGURES(ESCC_NAME); }

// Name of instruction set `index` that this processor can run, the best first; null behind the last.
ESCC_PUBLIC const char *escc_variant(int64_t index) {
    Variant found[4];
    return index >= 0 && index < variants(found) ? found[index].name : nullptr;
}

ESCC_PUBLIC int64_t escc_plane_words(int64_t outs, int64_t bases) { return plane_words(outs, bases); }

// Ternary coefficients (outs, chans, bases) to planes [chans + 1][plane_words] for blocks of `rows` rows, and
// the non-zeros of every channel, weights [chans].
ESCC_PUBLIC int escc_pack_planes(
    const int8_t *ternary, int64_t outs, int64_t chans, int64_t bases, int64_t rows, uint64_t *planes,
    int32_t *weights) {
    if (outs < 1 || chans < 1 || bases < 1 || rows < 1) return STATUS_BAD_PARAMETER;
    const int64_t words = words_of(outs), step = plane_words(outs, bases);
    Work work = {};
    work.outs = outs;
    work.rows = rows;
    const Order order(work);
    memset(planes, 0, sizeof(uint64_t) * step * (chans + 1));
    memset(weights, 0, sizeof(int32_t) * chans);
    for (int64_t r = 0; r < rows && r < outs; r++)
        for (int64_t g = 0; g < order.groups_of(r); g++) {
            const int64_t place = order.begin(r) + g;
            const int8_t *from = ternary + (g * rows + r) * chans * bases;
            uint64_t *to = planes + place / 64;
            for (int64_t c = 0; c < chans; c++, to += step)
                for (int64_t m = 0; m < bases; m++) {
                    const uint64_t set = *from++ != 0;
                    to[m * words] |= set << (place % 64);
                    weights[c] += (int32_t)set;
                }
        }
    return STATUS_OK;
}

namespace {

// The rows of a two-level stream one after the other.
struct TwoLevelReader {
    static constexpr int64_t MOST_BASES = 64;

    const uint8_t *data;
    int64_t size, chans, bases;
    int64_t offset = 0, length = 0, signs = 0;
    BitReader row = {};

    // The next row, with `length` mask bits of both levels; false: there is none, or bits behind its end are set.
    bool next() {
        if (offset > size) return false;
        row = {data + offset, size - offset};
        length = chans + bases * ones(0, chans);
        signs = ones(chans, length);
        const int64_t bits = length + signs, bytes = up(bits, 8);
        if (bytes > row.size || (bits & 7 && row.data[bytes - 1] >> (bits & 7))) return false;
        offset += bytes;
        return true;
    }

    // The row as one of plain masks, which is all zeros; returns its bytes.
    int64_t flatten(int64_t chunk, uint8_t *flat) const {
        int64_t cell = chans;
        for (int64_t first = 0; first < chans; first += chunk) {
            const int64_t count = first + chunk < chans ? chunk : chans - first, begin = first * bases;
            for (int64_t c = 0; c < count; c += 32) {
                uint64_t heads = row.bits(first + c, count - c < 32 ? count - c : 32);
                for (; heads; heads &= heads - 1) {
                    const int64_t at = begin + c + __builtin_ctzll(heads);
                    for (int64_t m = 0; m < bases; m++, cell++)
                        if (row.bits(cell, 1)) flat[(at + m * count) >> 3] |= (uint8_t)(1 << ((at + m * count) & 7));
                }
            }
        }
        int64_t place = chans * bases;
        const int64_t end = length + signs;
        for (int64_t at = length; at < end; at += 32, place += 32) {
            const int64_t some = end - at < 32 ? end - at : 32;
            const uint64_t word = row.bits(at, some) << (place & 7);
            for (int64_t i = 0; i < up((place & 7) + some, 8); i++) flat[(place >> 3) + i] |= (uint8_t)(word >> 8 * i);
        }
        return up(chans * bases + signs, 8);
    }

  private:
    int64_t ones(int64_t at, int64_t stop) const {
        int64_t found = 0;
        for (; at < stop; at += 32) found += __builtin_popcountll(row.bits(at, stop - at < 32 ? stop - at : 32));
        return found;
    }
};

}  // namespace

// Bytes of the row streams at the start of `data`; -1: they are no such streams.
ESCC_PUBLIC int64_t escc_stream_bytes(
    int64_t variant, const uint8_t *data, int64_t size, int64_t outs, int64_t chans, int64_t bases, int64_t two_level) {
    if (outs < 1 || chans < 1 || bases < 1 || (two_level && bases > TwoLevelReader::MOST_BASES)) return -1;
    Variant found[4];
    if (variant < 0 || variant >= variants(found)) return -1;
    return two_level ? end_of_rows(TwoLevelReader{data, size, chans, bases}, outs)
                     : found[variant].kernel->stream_bytes(data, size, outs, chans * bases);
}

// The two-level row streams at the start of `data` as plain ones, in the `room` bytes of `flat`, which are all
// zeros; `used`: bytes of both. Anything but STATUS_OK: they are no such streams, or there is no room.
ESCC_PUBLIC int escc_flatten_streams(
    const uint8_t *data, int64_t size, int64_t outs, int64_t chans, int64_t bases, int64_t chunk, uint8_t *flat,
    int64_t room, int64_t *used) {
    if (outs < 1 || chans < 1 || bases < 1 || chunk < 1) return STATUS_BAD_PARAMETER;
    if (bases > TwoLevelReader::MOST_BASES) return STATUS_BAD_PARAMETER;
    TwoLevelReader rows = {data, size, chans, bases};
    used[1] = 0;
    for (int64_t k = 0; k < outs; k++) {
        if (!rows.next() || used[1] + up(chans * bases + rows.signs, 8) > room) return STATUS_BAD_PARAMETER;
        used[1] += rows.flatten(chunk, flat + used[1]);
    }
    used[0] = rows.offset;
    return STATUS_OK;
}

// The row streams at the start of `data` to ternary (outs, chans, bases), which is all zeros, and the bytes
// used. Anything but STATUS_OK: they are no such streams.
ESCC_PUBLIC int escc_decode_streams(
    const uint8_t *data, int64_t size, int64_t outs, int64_t chans, int64_t bases, int64_t chunk, int8_t *ternary,
    int64_t *used) {
    if (outs < 1 || chans < 1 || bases < 1 || chunk < 1) return STATUS_BAD_PARAMETER;
    RowReader rows = {data, size, chans * bases};
    for (int64_t k = 0; k < outs; k++, ternary += rows.length) {
        if (!rows.next()) return STATUS_BAD_PARAMETER;
        rows.runs(chans, bases, chunk, [&](int64_t first, int64_t, int64_t m, uint64_t mask, uint64_t negative) {
            for (; mask; mask &= mask - 1) {
                const int i = __builtin_ctzll(mask);
                ternary[(first + i) * bases + m] = (int8_t)(1 - 2 * (int)(negative >> i & 1));
            }
        });
    }
    *used = rows.offset;
    return STATUS_OK;
}

// recompose and pack_streams of streams.h.
ESCC_PUBLIC int escc_recompose_streams(
    int64_t variant, const uint8_t *data, int64_t size, int64_t outs, int64_t chans, int64_t bases, int64_t chunk,
    const int8_t *kernels, float *weights, int64_t *sizes) {
    Variant found[4];
    if (variant < 0 || variant >= variants(found)) return STATUS_BAD_PARAMETER;
    return found[variant].kernel->recompose(data, size, outs, chans, bases, chunk, kernels, weights, sizes);
}

ESCC_PUBLIC int escc_pack_streams(
    int64_t variant, const uint8_t *data, int64_t size, int64_t outs, int64_t chans, int64_t bases, int64_t chunk,
    int64_t rows, uint64_t *planes, int32_t *weights) {
    Variant found[4];
    if (variant < 0 || variant >= variants(found)) return STATUS_BAD_PARAMETER;
    return found[variant].kernel->pack(data, size, outs, chans, bases, chunk, rows, planes, weights);
}

ESCC_PUBLIC int escc_conv_timing(
    int64_t variant, const Work *work, const uint8_t *x, const uint64_t *planes, const int32_t *weights,
    Figures *figures) {
    Variant found[4];
    if (variant < 0 || variant >= variants(found) || !work || !x || !figures) return STATUS_BAD_PARAMETER;
    return found[variant].kernel->conv_timing(work, x, planes, weights, nullptr, figures);
}

// count_signs of streams.h.
ESCC_PUBLIC int escc_count_signs(
    int64_t variant, const uint8_t *data, int64_t size, int64_t outs, int64_t chans, int64_t bases, int64_t chunk,
    int64_t *positive, int64_t *negative) {
    Variant found[4];
    if (variant < 0 || variant >= variants(found)) return STATUS_BAD_PARAMETER;
    return found[variant].kernel->signs(data, size, outs, chans, bases, chunk, positive, negative);
}

// What maps.h has. Python asks for the names of the parameters.
ESCC_PUBLIC const char *escc_finish_fields() { return ESCC_FINISH(ESCC_NAME); }
ESCC_PUBLIC const char *escc_fill_fields() { return ESCC_FILL(ESCC_NAME); }

ESCC_PUBLIC int escc_finish(int64_t variant, const Finish *work) {
    Variant found[4];
    if (variant < 0 || variant >= variants(found)) return STATUS_BAD_PARAMETER;
    return found[variant].kernel->finish(work);
}

ESCC_PUBLIC int escc_fill(int64_t variant, const Fill *work) {
    Variant found[4];
    if (variant < 0 || variant >= variants(found)) return STATUS_BAD_PARAMETER;
    return found[variant].kernel->fill(work);
}

ESCC_PUBLIC int64_t escc_count_nonzeros(
    int64_t variant, const uint8_t *x, int64_t rows, int64_t cols, int64_t chans, int64_t x_row, int64_t x_col) {
    Variant found[4];
    if (variant < 0 || variant >= variants(found)) return -1;
    return found[variant].kernel->count(x, rows, cols, chans, x_row, x_col);
}

// escc_conv_timing of `count` instructions of one image each, with what is kept of those of the form combine
// (null for the others); x, planes and weights of one may be null when what is kept is filled. The status of
// each is left in `status`.
ESCC_PUBLIC void escc_conv_timings(
    int64_t variant, int64_t count, const Work *works, const uint8_t *const *x, const uint64_t *const *planes,
    const int32_t *const *weights, Kept *const *kept, Figures *figures, int64_t *status) {
    Variant found[4];
    const bool known = variant >= 0 && variant < variants(found);
    for (int64_t i = 0; i < count; i++)
        status[i] = known ? found[variant].kernel->conv_timing(works + i, x[i], planes[i], weights[i], kept[i], figures + i)
                          : STATUS_BAD_PARAMETER;
}

// `lines` lines of words_of(outs) * 64 bytes from the order of the planes of one row to that of `rows` rows.
ESCC_PUBLIC int escc_reorder(int64_t rows, int64_t outs, int64_t lines, const uint8_t *from, uint8_t *to) {
    if (rows < 1 || outs < 1 || lines < 0) return STATUS_BAD_PARAMETER;
    Work work = {};
    work.outs = outs;
    work.rows = rows;
    const Order order(work);
    const int64_t stride = 64 * words_of(outs);
    for (int64_t line = 0; line < lines; line++, from += stride, to += stride)
        for (int64_t r = 0; r < rows && r < outs; r++) {
            const int64_t groups = order.groups_of(r);
            uint8_t *place = to + order.begin(r);
            for (int64_t g = 0; g < groups; g++) place[g] = from[g * rows + r];
        }
    return STATUS_OK;
}

// Cycles of a program: timeline.py's rules for one image. Step i goes to queue[i] (0 to 2) after `executed[i]`
// words; partner[i] is -1 for work of durations[i] cycles, i for a signal, and the step of its signal for a
// wait. started: [3][count], scratch.
ESCC_PUBLIC int64_t escc_timeline(
    int64_t count, const int64_t *queue, const int64_t *executed, const int64_t *partner, const int64_t *durations,
    int64_t depth, int64_t words, int64_t *begin, int64_t *started) {
    int64_t free[3] = {0, 0, 0}, held[3] = {0, 0, 0}, stall = 0, reached = 0;
    for (int64_t i = 0; i < count; i++) {
        const int64_t q = queue[i];
        int64_t issue = executed[i] + stall;
        if (held[q] >= depth) {
            const int64_t room = started[q * count + held[q] - depth];
            if (room > issue) issue = room;
            stall = issue - executed[i];
        }
        const int64_t ready = issue + 1 > free[q] ? issue + 1 : free[q];
        int64_t finish = ready;
        begin[i] = ready;
        if (partner[i] < 0) {
            finish += durations[i];
        } else if (partner[i] != i) {
            const int64_t sent = begin[partner[i]];
            if (sent > finish) finish = sent;
            begin[i] = finish;
        }
        started[q * count + held[q]++] = begin[i];
        free[q] = finish;
        if (finish > reached) reached = finish;
    }
    return reached > words + stall ? reached : words + stall;
}
