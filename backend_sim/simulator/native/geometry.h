// Rows, bands and taps of a convolution: what geometry.py says.
#pragma once

#include "scratch.h"

namespace {

inline int64_t up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// Adds to taps[i] the taps that carry input i to the outputs first .. stop-1; inputs 0 .. extent-1.
inline void add_taps(
    int32_t *taps, int64_t extent, int64_t first, int64_t stop, int64_t kernel, int64_t stride, int64_t pad,
    int64_t dilation) {
    for (int64_t o = first; o < stop; o++)
        for (int64_t r = 0; r < kernel; r++) {
            const int64_t i = o * stride - pad + r * dilation;
            if (i >= extent) break;
            if (i >= 0) taps[i]++;
        }
}

// One band: its input rows are those of lo .. hi-1 with taps.
struct Band {
    int64_t lo, hi, rows;
};

struct Geometry {
    int64_t bands;      // that have output rows; the rest are empty items at the end
    Band *band;         // [bands]
    int32_t *row_taps;  // of the band last set
    int32_t *col_taps;  // [width]
    int32_t *reads;     // [height]: bands that read the row
    int64_t *slot;      // [height]: place of the row among those needed, -1 for the others
    int64_t needed;     // rows that some band reads
    int64_t read;       // sum of reads
    int64_t longest;    // most rows of a band

    // Taps of the rows lo .. hi-1 of a band.
    void set_band(const Work &w, int64_t index) {
        const int64_t size = w.y_rows / w.bands, longer = w.y_rows % w.bands;
        const int64_t first = w.y_first + index * size + (index < longer ? index : longer);
        const int64_t stop = first + size + (index < longer);
        Band &b = band[index];
        b.lo = first * w.stride_h - w.pad_top;
        b.hi = (stop - 1) * w.stride_h - w.pad_top + (w.kernel_h - 1) * w.dil_h + 1;
        b.lo = b.lo < 0 ? 0 : b.lo > w.height ? w.height : b.lo;
        b.hi = b.hi < b.lo ? b.lo : b.hi > w.height ? w.height : b.hi;
        memset(row_taps + b.lo, 0, sizeof(int32_t) * (b.hi - b.lo));
        add_taps(row_taps, w.height, first, stop, w.kernel_h, w.stride_h, w.pad_top, w.dil_h);
    }

    int prepare(const Work &w, Scratch &memory) {
        bands = w.bands < w.y_rows ? w.bands : w.y_rows;
        band = memory.zeroed<Band>(bands);
        row_taps = memory.zeroed<int32_t>(w.height);
        col_taps = memory.zeroed<int32_t>(w.width);
        reads = memory.zeroed<int32_t>(w.height);
        slot = memory.zeroed<int64_t>(w.height);
        if (memory.failed()) return STATUS_NO_MEMORY;
        add_taps(col_taps, w.width, 0, w.y_cols, w.kernel_w, w.stride_w, w.pad_left, w.dil_w);
        needed = read = longest = 0;
        for (int64_t b = 0; b < bands; b++) {
            set_band(w, b);
            for (int64_t i = band[b].lo; i < band[b].hi; i++)
                if (row_taps[i]) {
                    band[b].rows++;
                    reads[i]++;
                }
            read += band[b].rows;
            if (band[b].rows > longest) longest = band[b].rows;
        }
        for (int64_t i = 0; i < w.height; i++) {
            slot[i] = reads[i] ? needed++ : -1;
            if (reads[i] && (i < w.x_first || i >= w.x_first + w.x_rows)) return STATUS_MISSING_ROW;
        }
        return STATUS_OK;
    }
};

// The outputs in the order of the planes: by row of the block, then by group.
struct Order {
    int64_t outs, rows, groups;

    explicit Order(const Work &w) : outs(w.outs), rows(w.rows), groups(up(w.outs, w.rows)) {}

    // Groups that have an output in row r.
    int64_t groups_of(int64_t r) const { return r < outs ? up(outs - r, rows) : 0; }

    // Where the outputs of row r begin.
    int64_t begin(int64_t r) const {
        const int64_t full = outs - (groups - 1) * rows;  // rows with an output in the last group
        return r <= full ? r * groups : full * groups + (r < rows ? r - full : rows - full) * (groups - 1);
    }
};

}  // namespace
