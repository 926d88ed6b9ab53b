// Time of the items: producer, ring, rows, FIFOs and MAC parts. The equations are those of recurrence.py;
// a lane of a register is a group of outputs, all groups advance together row by row of the block.
#pragma once

#include "load.h"

namespace {

const int NARROW_SHIFT = 22;

// MAC cycles of n values that meet t taps: (n * times + add) >> shift, in numbers of `bits` bits.
struct MacRule {
    uint64_t times, add;
    int shift;
    bool together;  // t <= macs: the products of a cycle are added before the partial sum is updated

    MacRule(int64_t taps, int64_t macs, int bits) : times(0), add(0), shift(0), together(taps <= macs) {
        if (taps == 0) return;
        const uint64_t at_once = (uint64_t)(taps <= macs ? macs / taps : 1);
        if (at_once > 1) {
            // ceil(n / q) as floor((n + q - 1) * (2^s / q + 1) / 2^s): exact for (n + q - 1) * q < 2^s
            shift = bits == 32 ? NARROW_SHIFT : 40;
            times = ((uint64_t)1 << shift) / at_once + 1;
            add = (at_once - 1) * times;
        } else {
            times = taps <= macs ? 1 : (uint64_t)up(taps, macs);
        }
    }
};

// Sums over the rows of all items.
struct Sums {
    int64_t wait_input, wait_fifo, after_first, mac_busy, mac_end, psums;
};

// Runs the items of all bands. T: int32 or int64 times; LANES of them in a register. block_time: [blocks].
template <class S, class T, class U, int LANES>
class Recurrence {
    typedef T Times __attribute__((vector_size(sizeof(T) * LANES)));
    typedef U Unsigned __attribute__((vector_size(sizeof(T) * LANES)));

   public:
    Recurrence(const Work &w, Geometry &geometry, const Load<S> &load) : w_(w), g_(geometry), load_(load), order_(w) {}

    int prepare(Scratch &memory) {
        const int64_t entries = g_.longest * w_.width * load_.chunks;
        ring_ = w_.ring_entries < entries ? w_.ring_entries : entries;
        fifo_ = w_.fifo_positions < entries ? w_.fifo_positions : entries;
        finish_ = memory.raw<Times>(w_.rows);
        mdone_ = memory.raw<Times>(w_.rows);
        mask_ = memory.raw<Times>(w_.rows);
        released_ = memory.raw<Times>(ring_ ? ring_ : 1);
        popped_ = memory.raw<Times>((fifo_ ? fifo_ : 1) * w_.rows);
        begin_ = memory.raw<int64_t>(w_.rows);
        time_ = memory.raw<int64_t>(order_.groups + LANES);
        return memory.failed() ? STATUS_NO_MEMORY : STATUS_OK;
    }

    void run(int64_t *block_time, Sums &sums) {
        for (int64_t r = 0; r < w_.rows; r++) begin_[r] = order_.begin(r);
        int64_t item = 0;
        for (int64_t b = 0; b < g_.bands; b++) {
            g_.set_band(w_, b);
            for (int64_t first = 0; first < order_.groups; first += LANES) {
                if (g_.band[b].rows)
                    groups(g_.band[b], first, sums);
                else
                    for (int i = 0; i < LANES; i++) time_[first + i] = 0;
            }
            for (int64_t i = 0; i < order_.groups; i++) block_time[item++ % w_.blocks] += time_[i];
        }
    }

   private:
    const Work &w_;
    Geometry &g_;
    const Load<S> &load_;
    Order order_;
    int64_t ring_, fifo_;
    Times *finish_, *mdone_, *mask_, *released_, *popped_;
    int64_t *begin_, *time_;

    static Times most(Times a, Times b) { return a > b ? a : b; }

    static Times widened(const S *from) {
        // a loop: gcc 12 takes a conversion of the whole register apart
        T lanes[LANES];
        for (int i = 0; i < LANES; i++) lanes[i] = (T)from[i];
        Times times;
        memcpy(&times, lanes, sizeof times);
        return times;
    }

    static int64_t total(Times lanes) {
        int64_t sum = 0;
        for (int i = 0; i < LANES; i++) sum += lanes[i];
        return sum;
    }

    // One band, the groups first .. first + LANES - 1.
    void groups(const Band &band, int64_t first, Sums &sums) {
        const Times zero = {};
        for (int64_t r = 0; r < w_.rows; r++) {
            const int64_t held = order_.groups_of(r) - first;
            for (int i = 0; i < LANES; i++) mask_[r][i] = i < held ? -1 : 0;
            finish_[r] = zero + 1;
            mdone_[r] = zero;
            for (int64_t f = 0; f < fifo_; f++) popped_[f * w_.rows + r] = zero;
        }
        for (int64_t d = 0; d < ring_; d++) released_[d] = zero;
        int64_t entry = 0, push = 0;
        Times waited = zero;
        for (int64_t row = band.lo; row < band.hi; row++) {
            if (!g_.row_taps[row]) continue;
            int64_t place = g_.slot[row] * w_.width;
            for (int64_t col = 0; col < w_.width;) {
                const int64_t taps = (int64_t)g_.row_taps[row] * g_.col_taps[col];
                const MacRule rule(taps, w_.macs, 8 * sizeof(T));
                Times mac = zero;
                // columns that meet equally many taps
                int64_t values = 0;
                const int32_t here = g_.col_taps[col];
                for (; col < w_.width && g_.col_taps[col] == here; col++, place++) {
                    position(place, first, rule, entry, push, waited, mac);
                    values += load_.value_sum[place];
                }
                const int64_t busy = total(mac);
                sums.mac_busy += busy;
                if (rule.together)
                    sums.psums += busy * taps;
                else if (first == 0)
                    sums.psums += values * taps;
            }
        }
        sums.wait_fifo += total(waited);
        book(first, sums);
    }

    void position(
        int64_t place, int64_t first, const MacRule &rule, int64_t &entry, int64_t &push, Times &waited, Times &mac) {
        const Times zero = {};
        const S *cycles = load_.cycles + place * load_.chunks * load_.stride + first;
        for (int64_t chunk = 1; chunk < load_.chunks; chunk++, cycles += load_.stride) {
            const Times released = released_[entry];
            Times latest = zero;
            for (int64_t r = 0; r < w_.rows; r++) {
                const Times lc = widened(cycles + begin_[r]) & mask_[r];
                finish_[r] = most(finish_[r], released) + lc;
                latest = most(latest, finish_[r]);
            }
            released_[entry] = latest;
            if (++entry == ring_) entry = 0;
        }
        const S *values = load_.values + place * load_.stride + first;
        const Times released = released_[entry];
        Times latest = zero, *popped = popped_ + push * w_.rows;
        for (int64_t r = 0; r < w_.rows; r++) {
            const Times lc = widened(cycles + begin_[r]) & mask_[r];
            const Unsigned n = (Unsigned)(widened(values + begin_[r]) & mask_[r]);
            const Times work = (Times)((n * (U)rule.times + (U)rule.add) >> rule.shift);
            const Times done = most(finish_[r], released) + lc;
            const Times pushed = most(done, popped[r]);
            const Times pop = most(pushed, mdone_[r]);
            waited += pushed - done;
            popped[r] = pop;
            mdone_[r] = pop + work;
            mac += work;
            finish_[r] = pushed;
            latest = most(latest, pushed);
        }
        released_[entry] = latest;
        if (++entry == ring_) entry = 0;
        if (++push == fifo_) push = 0;
    }

    void book(int64_t first, Sums &sums) {
        for (int i = 0; i < LANES; i++) time_[first + i] = 0;
        for (int64_t r = 0; r < w_.rows; r++)
            for (int i = 0; i < LANES && first + i < order_.groups_of(r); i++) {
                sums.wait_input++;
                sums.after_first += finish_[r][i] - 1;
                sums.mac_end += mdone_[r][i];
                if (mdone_[r][i] > time_[first + i]) time_[first + i] = mdone_[r][i];
            }
    }
};

}  // namespace
