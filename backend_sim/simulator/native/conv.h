// One convolution instruction over all images: the three forms, the report.
#pragma once

#include "recurrence.h"

namespace {

// An upper bound that every parameter and every count derived from two of them stays far below.
const int64_t CAP = (int64_t)1 << 24;

inline bool valid(const Work &w) {
    const int64_t positive[] = {w.outs, w.chans, w.height, w.width, w.bases, w.kernel_h, w.kernel_w, w.stride_h,
        w.stride_w, w.dil_h, w.dil_w, w.bands, w.multiplier, w.blocks, w.rows, w.macs, w.units, w.lanes, w.chunk,
        w.ring_entries, w.fifo_positions};
    const int64_t natural[] = {w.images, w.x_rows, w.y_rows, w.y_cols, w.pad_top, w.pad_left, w.x_first, w.y_first,
        w.look_ahead, w.look_aside, w.startup_cycles};
    for (int64_t value : positive)
        if (value < 1 || value > CAP) return false;
    for (int64_t value : natural)
        if (value < 0 || value > CAP) return false;
    if (w.form < 0 || w.form > 2 || w.policy < 0 || w.policy > 2 || w.wide < 0 || w.wide > 1) return false;
    if (w.form == 2 && w.chans * w.multiplier != w.outs) return false;
    // work of the array: products of these are allocated or multiplied
    if (w.lanes > 65536 || w.chunk > 65536 || w.rows > 65536 || w.macs > 65536 || w.units > 65536) return false;
    if (w.look_ahead > 65536 || w.bases > 65536 || w.blocks > 1 << 20) return false;
    // matches of a position and chunk are counted in 32 bits
    return w.form != 0 || w.outs * w.bases * (w.chunk < w.chans ? w.chunk : w.chans) < (int64_t)1 << 31;
}

struct Totals {
    int64_t lc_busy, matches, issued, active, products, values;
};

// Items of the form dense: every output of every group does the same, one row stands for all.
class DenseItems {
   public:
    DenseItems(const Work &w, Geometry &geometry) : w_(w), g_(geometry) {}

    int prepare(Scratch &memory) {
        chunks_ = up(w_.chans, w_.chunk);
        const int64_t entries = g_.longest * w_.width * chunks_;
        ring_ = w_.ring_entries < entries ? w_.ring_entries : entries;
        fifo_ = w_.fifo_positions < entries ? w_.fifo_positions : entries;
        filled_ = memory.zeroed<int32_t>(g_.needed * w_.width * chunks_);
        released_ = memory.raw<int64_t>(ring_);
        popped_ = memory.raw<int64_t>(fifo_);
        return memory.failed() ? STATUS_NO_MEMORY : STATUS_OK;
    }

    void count(const uint8_t *x, int64_t row, int64_t &active) {
        int32_t *filled = filled_ + g_.slot[row] * w_.width * chunks_;
        for (int64_t col = 0; col < w_.width; col++, x += w_.step_pos)
            for (int64_t first = 0; first < w_.chans; first += w_.chunk, filled++) {
                const int64_t stop = first + w_.chunk < w_.chans ? first + w_.chunk : w_.chans;
                int32_t some = 0;
                for (int64_t c = first; c < stop; c++) some += x[c] != 0;
                *filled = some;
                active += some;
            }
    }

    void run(int64_t *block_time, Sums &sums, Totals &totals) {
        const int64_t groups = up(w_.outs, w_.rows);
        int64_t item = 0;
        for (int64_t b = 0; b < g_.bands; b++) {
            g_.set_band(w_, b);
            const int64_t time = g_.band[b].rows ? band(g_.band[b], sums, totals) : 0;
            for (int64_t i = 0; i < groups; i++) block_time[item++ % w_.blocks] += time;
        }
    }

   private:
    const Work &w_;
    Geometry &g_;
    int64_t chunks_, ring_, fifo_;
    int32_t *filled_;
    int64_t *released_, *popped_;

    int64_t band(const Band &band, Sums &sums, Totals &totals) {
        for (int64_t d = 0; d < ring_; d++) released_[d] = 0;
        for (int64_t f = 0; f < fifo_; f++) popped_[f] = 0;
        int64_t finish = 1, mdone = 0, entry = 0, push = 0, busy = 0, waited = 0, mac = 0, psums = 0;
        for (int64_t row = band.lo; row < band.hi; row++) {
            if (!g_.row_taps[row]) continue;
            const int32_t *filled = filled_ + g_.slot[row] * w_.width * chunks_;
            for (int64_t col = 0; col < w_.width; col++) {
                const int64_t taps = (int64_t)g_.row_taps[row] * g_.col_taps[col];
                const int64_t at_once = taps && taps <= w_.macs ? w_.macs / taps : 1;
                for (int64_t chunk = 0; chunk < chunks_; chunk++) {
                    const int64_t n = *filled++;
                    const int64_t lc = n ? up(n, w_.units) : 1;
                    const int64_t work = !taps ? 0 : taps <= w_.macs ? up(n, at_once) : n * up(taps, w_.macs);
                    const int64_t done = (finish > released_[entry] ? finish : released_[entry]) + lc;
                    finish = done > popped_[push] ? done : popped_[push];
                    const int64_t pop = finish > mdone ? finish : mdone;
                    waited += finish - done;
                    mdone = pop + work;
                    popped_[push] = pop;
                    released_[entry] = finish;
                    if (++push == fifo_) push = 0;
                    if (++entry == ring_) entry = 0;
                    busy += lc;
                    mac += work;
                    psums += taps <= w_.macs ? work * taps : n * taps;
                    totals.products += n * taps * w_.outs;
                    totals.values += n * w_.outs;
                }
            }
        }
        totals.lc_busy += busy * w_.outs;
        sums.wait_input += w_.outs;
        sums.wait_fifo += waited * w_.outs;
        sums.after_first += (finish - 1) * w_.outs;
        sums.mac_busy += mac * w_.outs;
        sums.mac_end += mdone * w_.outs;
        sums.psums += psums * w_.outs;
        return mdone;
    }
};

// The rows of the forms combine and depthwise, whose outputs differ.
template <class S, class T, class U, int WORDS>
int row_items(
    const Work &w, const uint8_t *x, const uint64_t *planes, const int32_t *weights, Geometry &g, Kept *kept,
    int64_t *block_time, Sums &sums, Totals &totals) {
    Scratch memory;
    Load<S> load;
    const bool combine = w.form == 0;
    const int64_t places = g.needed * w.width;
    load.chunks = combine ? up(w.chans, w.chunk) : 1;
    load.stride = 64 * words_of(w.outs);
    const bool reuse = kept && kept->filled;
    if (kept) {
        load.cycles = (S *)kept->cycles;
        load.values = (S *)kept->values;
        load.value_sum = kept->value_sum;
    } else {
        load.cycles = memory.raw<S>(places * load.chunks * load.stride);
        load.values = memory.raw<S>(places * load.stride);
        load.value_sum = memory.zeroed<int64_t>(places);
    }
    load.busy = kept ? kept->sums : memory.zeroed<int64_t>(4 * g.needed);
    load.matches = load.busy + g.needed;
    load.issued = load.busy + 2 * g.needed;
    load.active = load.busy + 3 * g.needed;
    Combine<S, WORDS> combination(w, planes, weights, load);
    Recurrence<S, T, U, 8 * WORDS / (int)sizeof(T)> recurrence(w, g, load);
    int32_t *channel = memory.zeroed<int32_t>(w.outs);
    if (memory.failed()) return STATUS_NO_MEMORY;
    int status = combine && !reuse ? combination.prepare(memory) : STATUS_OK;
    if (status == STATUS_OK) status = recurrence.prepare(memory);
    if (status != STATUS_OK) return status;
    if (!combine) {
        const Order order(w);
        for (int64_t r = 0; r < w.rows; r++)
            for (int64_t i = 0; i < order.groups_of(r); i++)
                channel[order.begin(r) + i] = (int32_t)((i * w.rows + r) / w.multiplier);
        for (int64_t i = 0; i < places * load.stride; i++) load.cycles[i] = 1;
    }
    for (int64_t row = 0; row < w.height; row++) {
        if (g.slot[row] < 0) continue;
        const int64_t slot = g.slot[row];
        const uint8_t *from = x + (row - w.x_first) * w.step_row;
        for (int64_t col = 0; col < w.width && !reuse; col++, from += w.step_pos) {
            const int64_t place = slot * w.width + col;
            if (combine) {
                combination.position(from, slot, place);
            } else {
                S *values = load.values + place * load.stride;
                int64_t sum = 0;
                for (int64_t k = 0; k < w.outs; k++) sum += values[k] = from[channel[k]] != 0;
                load.value_sum[place] = sum;
            }
        }
        if (!combine) load.busy[slot] = w.outs * w.width;
        const int64_t reads = g.reads[row];
        totals.lc_busy += reads * load.busy[slot];
        totals.matches += reads * load.matches[slot];
        totals.issued += reads * load.issued[slot];
        totals.active += reads * load.active[slot];
        for (int64_t col = 0; col < w.width; col++) totals.values += reads * load.value_sum[slot * w.width + col];
    }
    for (int64_t b = 0; b < g.bands; b++) {
        g.set_band(w, b);
        for (int64_t row = g.band[b].lo; row < g.band[b].hi; row++)
            if (g.row_taps[row])
                for (int64_t col = 0; col < w.width; col++)
                    totals.products +=
                        g.row_taps[row] * g.col_taps[col] * load.value_sum[g.slot[row] * w.width + col];
    }
    recurrence.run(block_time, sums);
    if (kept) kept->filled = 1;
    return STATUS_OK;
}

// Bytes (mask, non-zeros) written into the rings by all items, and read by all rows with an output.
inline int ring_bytes(const Work &w, const Geometry &g, const uint8_t *x, int64_t active, Figures &f) {
    if (w.form != 2) {
        int64_t mask = 0;
        for (int64_t first = 0; first < w.chans; first += w.chunk)
            mask += up(first + w.chunk < w.chans ? w.chunk : w.chans - first, 8);
        const int64_t each = active + mask * w.width * g.read;
        f.ring_bytes_written = each * up(w.outs, w.rows);
        f.ring_bytes_read = each * w.outs;
        return STATUS_OK;
    }
    Scratch memory;
    int64_t *before = memory.zeroed<int64_t>(w.chans + 1);  // non-zeros of the channels below
    if (memory.failed()) return STATUS_NO_MEMORY;
    for (int64_t row = 0; row < w.height; row++) {
        if (g.slot[row] < 0) continue;
        const uint8_t *from = x + (row - w.x_first) * w.step_row;
        for (int64_t col = 0; col < w.width; col++, from += w.step_pos)
            for (int64_t c = 0; c < w.chans; c++) before[c + 1] += from[c] ? g.reads[row] : 0;
    }
    for (int64_t c = 0; c < w.chans; c++) before[c + 1] += before[c];
    for (int64_t first = 0; first < w.outs; first += w.rows) {
        const int64_t stop = first + w.rows < w.outs ? first + w.rows : w.outs;
        const int64_t low = first / w.multiplier, high = (stop - 1) / w.multiplier + 1;
        const int64_t each = before[high] - before[low] + up(high - low, 8) * w.width * g.read;
        f.ring_bytes_written += each;
        f.ring_bytes_read += each * (stop - first);
    }
    return STATUS_OK;
}

template <int WORDS>
int conv_image(
    const Work &w, const uint8_t *x, const uint64_t *planes, const int32_t *weights, Geometry &g, Kept *kept,
    Figures &f) {
    Scratch memory;
    int64_t *block_time = memory.zeroed<int64_t>(w.blocks);
    if (memory.failed()) return STATUS_NO_MEMORY;
    Sums sums = {};
    Totals totals = {};
    const int64_t chunks = w.form == 2 ? 1 : up(w.chans, w.chunk), groups = up(w.outs, w.rows);
    int status = STATUS_OK;
    if (w.form == 1) {
        DenseItems dense(w, g);
        status = dense.prepare(memory);
        if (status != STATUS_OK) return status;
        for (int64_t row = 0; row < w.height; row++)
            if (g.slot[row] >= 0) {
                int64_t active = 0;
                dense.count(x + (row - w.x_first) * w.step_row, row, active);
                totals.active += active * g.reads[row];
            }
        dense.run(block_time, sums, totals);
    } else {
        const int64_t chans = w.chunk < w.chans ? w.chunk : w.chans;
        const bool combine = w.form == 0;
        const int64_t turns = combine ? up(w.bases, w.units) : 1;
        const int64_t most_cycles = combine ? turns * up(chans, w.lanes) : 1;
        const int64_t most_values = combine ? w.bases : 1;
        const int64_t most_taps = w.kernel_h * w.kernel_w;
        // no row ends later than if every entry and push took longest, one after the other
        const double bound =
            (double)g.longest * w.width * (chunks * (double)most_cycles + most_values * (double)up(most_taps, w.macs));
        const bool narrow = most_cycles <= 255 && most_values <= 255 && (w.policy != 2 || chans <= 255) &&
            (255 + w.macs) * w.macs < 1 << NARROW_SHIFT && (bound + 2) * w.rows < 2147483647.0;
        if (kept && (!narrow || w.wide)) return STATUS_WIDE;
        status = narrow && !w.wide
            ? row_items<uint8_t, int32_t, uint32_t, WORDS>(w, x, planes, weights, g, kept, block_time, sums, totals)
            : row_items<uint32_t, int64_t, uint64_t, WORDS>(
                  w, x, planes, weights, g, nullptr, block_time, sums, totals);
        if (status != STATUS_OK) return status;
    }
    int64_t longest = 0;
    for (int64_t b = 0; b < w.blocks; b++) longest = block_time[b] > longest ? block_time[b] : longest;
    f = Figures{};
    f.cycles = w.startup_cycles + longest;
    const int64_t whole = f.cycles * w.rows * w.blocks, positions = w.width * g.read;
    f.lc_busy = totals.lc_busy;
    f.lc_wait_input = sums.wait_input;
    f.lc_wait_row = sums.after_first - totals.lc_busy - sums.wait_fifo;
    f.lc_wait_fifo = sums.wait_fifo;
    f.lc_idle = whole - f.lc_busy - f.lc_wait_input - f.lc_wait_row - f.lc_wait_fifo;
    f.mac_busy = sums.mac_busy;
    f.mac_wait_lc = sums.mac_end - sums.mac_busy;
    f.mac_idle = whole - f.mac_busy - f.mac_wait_lc;
    f.matches = totals.matches;
    f.dilution_words = w.form == 0 ? w.bases * w.outs * positions * chunks : 0;
    f.issue_cycles = totals.issued;
    f.products = totals.products;
    f.fifo_pushes = w.outs * positions * (w.form == 1 ? chunks : 1);
    f.fifo_values = totals.values;
    f.psum_updates = sums.psums;
    f.ring_entries = groups * positions * chunks;
    return ring_bytes(w, g, x, totals.active, f);
}

template <int WORDS>
int conv_timing(
    const Work *work, const uint8_t *x, const uint64_t *planes, const int32_t *weights, Kept *kept,
    Figures *figures) {
    const Work &w = *work;
    const bool known = kept && kept->filled;
    if (!valid(w) || (kept && (w.form != 0 || w.images > 1))) return STATUS_BAD_PARAMETER;
    if (!known && (!x || (w.form == 0 && (!planes || !weights)))) return STATUS_BAD_PARAMETER;
    Scratch memory;
    Geometry geometry;
    int status = geometry.prepare(w, memory);
    for (int64_t i = 0; i < w.images && status == STATUS_OK; i++)
        status = conv_image<WORDS>(w, x + i * w.step_image, planes, weights, geometry, kept, figures[i]);
    return status;
}

}  // namespace
