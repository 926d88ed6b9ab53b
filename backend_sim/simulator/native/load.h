// What every ring entry costs every row, and what it pushes: independent of time, bands and grouping.
#pragma once

#include "concentrate.h"
#include "geometry.h"
#include "streams.h"

namespace {

const int64_t MOST_THERMOMETER = 16;

// The load of an image. S holds LC cycles of an entry and values of a push.
template <class S>
struct Load {
    int64_t chunks, stride;  // stride: outputs of a position, up to whole words
    S *cycles;               // [needed rows * width][chunks][stride], in the order of the planes
    S *values;               // [needed rows * width][stride]
    int64_t *value_sum;      // [needed rows * width]
    // Per needed row: sums over columns, outputs and bases.
    int64_t *busy, *matches, *issued, *active;
};

// Adds the bits of words to 64 values each, as a sum in registers.
template <class S, int WORDS>
struct BitSums {
    S sum[64];

    explicit BitSums(S start) {
        for (int i = 0; i < 64; i++) sum[i] = start;
    }
    void add(uint64_t word, int shift = 0) {
        for (int i = 0; i < 64; i++) sum[i] += (S)((S)(word >> i & 1) << shift);
    }
    void store(S *to) const { memcpy(to, sum, sizeof sum); }
};

#if defined(__clang__) || __GNUC__ >= 12
#define ESCC_SHUFFLE(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define ESCC_SHUFFLE(x, ...) __builtin_shuffle(x, (Bytes){__VA_ARGS__})
#endif

// Eight bits of two bytes against every bit of 16 values: the byte is repeated, its bits are tested one each.
#define ESCC_EIGHT(n) n, n, n, n, n, n, n, n
#define ESCC_BITS 1, 2, 4, 8, 16, 32, 64, 128

#if defined(__AVX2__)
#if defined(__AVX512BW__)
const int SUM_BYTES = 64;
#else
const int SUM_BYTES = 32;
#endif

template <int WORDS>
struct BitSums<uint8_t, WORDS> {
    typedef uint8_t Bytes __attribute__((vector_size(SUM_BYTES)));
    typedef uint64_t Words __attribute__((vector_size(SUM_BYTES)));
    static const int PARTS = 64 / SUM_BYTES;
    Bytes sum[PARTS];

    explicit BitSums(uint8_t start) {
        for (int p = 0; p < PARTS; p++) sum[p] = Bytes{} + start;
    }

    static Bytes repeated(uint64_t word, int part) {
#if defined(__AVX512BW__)
        (void)part;
        const Bytes all = (Bytes)(Words{} + word);
        return ESCC_SHUFFLE(
            all, ESCC_EIGHT(0), ESCC_EIGHT(1), ESCC_EIGHT(18), ESCC_EIGHT(19), ESCC_EIGHT(36), ESCC_EIGHT(37),
            ESCC_EIGHT(54), ESCC_EIGHT(55));
#else
        const Bytes all = (Bytes)(Words{} + (word >> (32 * part)));
        return ESCC_SHUFFLE(all, ESCC_EIGHT(0), ESCC_EIGHT(1), ESCC_EIGHT(18), ESCC_EIGHT(19));
#endif
    }

    void add(uint64_t word, int shift = 0) {
#if defined(__AVX512BW__)
        const Bytes bit = {ESCC_BITS, ESCC_BITS, ESCC_BITS, ESCC_BITS, ESCC_BITS, ESCC_BITS, ESCC_BITS, ESCC_BITS};
#else
        const Bytes bit = {ESCC_BITS, ESCC_BITS, ESCC_BITS, ESCC_BITS};
#endif
        const uint8_t one = (uint8_t)(1 << shift);
        for (int p = 0; p < PARTS; p++) {
            const Bytes set = (Bytes)((repeated(word, p) & bit) != 0);
            sum[p] += set & one;
        }
    }

    void store(uint8_t *to) const { memcpy(to, sum, sizeof sum); }
};
#else
// spread[b]: byte i is bit i of b.
struct Spread {
    uint64_t of[256];

    Spread() {
        for (int b = 0; b < 256; b++) {
            of[b] = 0;
            for (int i = 0; i < 8; i++) of[b] |= (uint64_t)(b >> i & 1) << (8 * i);
        }
    }
};

const Spread SPREAD;

template <int WORDS>
struct BitSums<uint8_t, WORDS> {
    uint64_t sum[8];

    explicit BitSums(uint8_t start) {
        for (int i = 0; i < 8; i++) sum[i] = start * (uint64_t)0x0101010101010101;
    }
    void add(uint64_t word, int shift = 0) {
        for (int i = 0; i < 8; i++) sum[i] += SPREAD.of[word >> (8 * i) & 255] << shift;
    }
    void store(uint8_t *to) const { memcpy(to, sum, sizeof sum); }
};
#endif

// Set bits of every 64-bit lane.
template <class V>
inline V lane_bits(V v) {
    v -= v >> 1 & 0x5555555555555555u;
    v = (v & 0x3333333333333333u) + (v >> 2 & 0x3333333333333333u);
    v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    v += v >> 8;
    v += v >> 16;
    return (v + (v >> 32)) & 127;
}

// The set bits of every byte in order, and how many.
struct Places {
    uint16_t of[256][8];
    uint8_t count[256];

    Places() {
        for (int b = 0; b < 256; b++) {
            int n = 0;
            for (int i = 0; i < 8; i++)
                if (b >> i & 1) of[b][n++] = (uint16_t)i;
            count[b] = (uint8_t)n;
            while (n < 8) of[b][n++] = 0;
        }
    }
};

const Places PLACES;

// The form combine: concentration of all outputs and bases of a position, chunk by chunk.
template <class S, int WORDS>
class Combine {
   public:
    Combine(const Work &w, const uint64_t *planes, const int32_t *weights, Load<S> &load)
        : w_(w), planes_(planes), weights_(weights), load_(load) {}

    int prepare(Scratch &memory) {
        words_ = words_of(w_.outs);
        step_ = plane_words(w_.outs, w_.bases);
        const int64_t chans = w_.chunk < w_.chans ? w_.chunk : w_.chans;
        most_ = up(chans, w_.lanes);
        reduced_ = w_;
        const int64_t ahead = most_ - 1 > 2 ? most_ - 1 : 2;
        if (reduced_.look_ahead > ahead) reduced_.look_ahead = ahead;
        // few vectors can be counted in unary, where the slowest unit is an OR and a sum few operations
        turns_ = up(w_.bases, w_.units);
        unary_ = w_.policy != 2 && turns_ * most_ <= MOST_THERMOMETER;
        const int64_t lanes = (most_ + reduced_.look_ahead + 1) * w_.lanes;
        lane_ = memory.raw<const uint64_t *>(lanes);
        place_ = memory.raw<uint16_t>(chans + 8);
        window_scratch_ = memory.raw<uint64_t>(8 * lanes);
        const int64_t heads = w_.policy == 2 ? chans : most_;
        levels_ = 64 - __builtin_clzll((uint64_t)heads);
        issued_ = memory.raw<uint64_t>(8 * (most_ + 1));
        level_ = memory.raw<uint64_t>(8 * (most_ + levels_));
        met_ = memory.raw<uint64_t>(step_);
        counters_ = memory.raw<uint64_t>(unary_ ? most_ * step_ : levels_ * step_);
        unit_ = memory.raw<S>(64 * (w_.units < w_.bases ? w_.units : w_.bases));
        counts_ = memory.raw<S>(64);
        return memory.failed() ? STATUS_NO_MEMORY : STATUS_OK;
    }

    // A position: x its channels.
    void position(const uint8_t *x, int64_t row, int64_t place) {
        memset(met_, 0, sizeof(uint64_t) * step_);
        S *cycles = load_.cycles + place * load_.chunks * load_.stride;
        for (int64_t first = 0; first < w_.chans; first += w_.chunk, cycles += load_.stride) {
            const int64_t stop = first + w_.chunk < w_.chans ? first + w_.chunk : w_.chans;
            const int64_t filled = pack(x, first, stop, row);
            if (w_.policy == 2)
                gather(filled);
            else
                concentrate(filled, row);
            if (unary_)
                unary_cycles(up(filled, w_.lanes), row, cycles);
            else
                counted_cycles(filled != 0, row, cycles);
        }
        count_values(place);
    }

   private:
    const Work &w_;
    const uint64_t *planes_;
    const int32_t *weights_;
    Load<S> &load_;
    Work reduced_;
    bool unary_;
    int64_t words_, step_, most_, levels_, turns_;
    const uint64_t **lane_;
    uint16_t *place_;  // channels of the chunk that are not zero
    uint64_t *window_scratch_, *issued_, *level_, *met_, *counters_;
    S *unit_, *counts_;

    // Planes of the non-zero activations in order: dilution.
    int64_t pack(const uint8_t *x, int64_t first, int64_t stop, int64_t row) {
        uint32_t matches = 0;
        for (int64_t c = first; c < stop; c++) matches += (uint32_t)weights_[c] & -(uint32_t)(x[c] != 0);
        int64_t filled = 0;
        for (int64_t c = first; c < stop; c += 8) {
            uint64_t eight = 0;
            if (stop - c >= 8)
                memcpy(&eight, x + c, 8);
            else
                memcpy(&eight, x + c, (size_t)(stop - c));
            const uint64_t low = 0x7f7f7f7f7f7f7f7fu;
            const uint64_t active = (((eight & low) + low) | eight) & ~low;
            const int bits = (int)((active >> 7) * 0x0102040810204080u >> 56);
            typedef uint16_t Eight __attribute__((vector_size(16)));
            Eight where;
            memcpy(&where, PLACES.of[bits], sizeof where);
            where += (uint16_t)(c - first);
            memcpy(place_ + filled, &where, sizeof where);
            filled += PLACES.count[bits];
        }
        const uint64_t *plane = planes_ + first * step_;
        const uint32_t step = (uint32_t)step_;
        for (int64_t i = 0; i < filled; i++) lane_[i] = plane + (uint64_t)place_[i] * step;
        load_.active[row] += filled;
        load_.matches[row] += matches;
        return filled;
    }

    // Issued vectors of all pairs, counted.
    void concentrate(int64_t filled, int64_t row) {
        if (filled == 0) return;
        const int64_t vectors = up(filled, w_.lanes), words = words_ * w_.bases;
        const int64_t wanted = (vectors + reduced_.look_ahead + 1) * w_.lanes;
        const uint64_t *empty = planes_ + w_.chans * step_;
        for (int64_t i = filled; i < wanted; i++) lane_[i] = empty;
        int64_t issued = 0;
        for (int64_t word = 0; word < words;) {
            const int64_t left = words - word;
            if (WORDS == 8 && left > 4)
                word = block<WORDS == 8 ? 8 : 2>(vectors, word, issued);
            else if (WORDS >= 4 && left > 2)
                word = block<WORDS >= 4 ? 4 : 2>(vectors, word, issued);
            else
                word = block<2>(vectors, word, issued);
        }
        load_.issued[row] += issued;
    }

    template <int WIDTH>
    int64_t block(int64_t vectors, int64_t word, int64_t &total) {
        typedef typename Vector<WIDTH>::type V;
        V *issued = (V *)issued_, *level = (V *)level_, sum = {};
        const typename Window<WIDTH>::Function function =
            vectors == 1 ? no_window<WIDTH> : window_function<WIDTH>(&reduced_);
        function(lane_, vectors, word, issued, &reduced_, window_scratch_);
        V any = issued[0];
        if (unary_) {
            level[0] = issued[0];
            for (int64_t head = 1; head < vectors; head++) {
                level[head] = level[head - 1] & issued[head];
                for (int64_t j = head - 1; j > 0; j--) level[j] |= level[j - 1] & issued[head];
                level[0] |= issued[head];
            }
            any = level[0];
            for (int64_t j = 0; j < vectors; j++) {
                sum += lane_bits(level[j]);
                memcpy(counters_ + j * step_ + word, level + j, sizeof(V));
            }
        } else {
            for (int64_t b = 0; b < levels_; b++) level[b] = V{};
            for (int64_t head = 0; head < vectors; head++) {
                V carry = issued[head];
                sum += lane_bits(carry);
                any |= carry;
                // after n + 1 heads no counter exceeds n + 1
                for (int64_t b = 0; (head + 1) >> b; b++) {
                    const V before = level[b];
                    level[b] = before ^ carry;
                    carry &= before;
                }
            }
            for (int64_t b = 0; b < levels_; b++) memcpy(counters_ + b * step_ + word, level + b, sizeof(V));
        }
        V met = load<WIDTH>(met_ + word) | any;
        memcpy(met_ + word, &met, sizeof met);
        for (int i = 0; i < WIDTH; i++) total += (int64_t)sum[i];
        return word + WIDTH;
    }

    // Unary counters: of a unit the sum over its bases, of all units the OR. Level j of a basis or a unit: it
    // takes at least j + 1 cycles more than it has bases.
    void unary_cycles(int64_t vectors, int64_t row, S *cycles) {
        int64_t busy = w_.outs * turns_;
        const int64_t levels = vectors > 0 ? vectors - 1 : 0;
        for (int64_t k = 0; k < words_; k++) {
            uint64_t most[MOST_THERMOMETER + 1] = {};
            for (int64_t u = 0; u < w_.units && u < w_.bases; u++) {
                uint64_t sum[MOST_THERMOMETER + 1] = {};
                int64_t have = 0, here = 0;
                for (int64_t m = u; m < w_.bases; m += w_.units, here++) {
                    const uint64_t *level = counters_ + m * words_ + k;
                    if (!here) {
                        for (int64_t j = 0; j < levels; j++) sum[j] = level[(j + 1) * step_];
                    } else {
                        uint64_t before[MOST_THERMOMETER + 1];
                        memcpy(before, sum, sizeof before);
                        for (int64_t j = have; j < have + levels; j++) sum[j] = 0;
                        for (int64_t i = 0; i < levels; i++) {
                            const uint64_t more = level[(i + 1) * step_];
                            sum[i] |= more;
                            for (int64_t j = 0; j < have; j++) sum[i + j + 1] |= more & before[j];
                        }
                    }
                    have += levels;
                }
                // a unit with fewer bases has as many cycles in hand
                for (int64_t j = turns_ - here; j < have; j++) most[j - (turns_ - here)] |= sum[j];
            }
            BitSums<S, WORDS> sums((S)turns_);
            for (int64_t j = 0; j < turns_ * levels && most[j]; j++) {
                busy += bits_in(most[j]);
                sums.add(most[j]);
            }
            sums.store(cycles + 64 * k);
        }
        load_.busy[row] += busy;
    }

    // The policy gather: matches of every pair in binary counters.
    void gather(int64_t filled) {
        memset(counters_, 0, sizeof(uint64_t) * step_ * levels_);
        for (int64_t n = 0; n < filled; n++)
            for (int64_t i = 0; i < step_; i++) {
                uint64_t carry = lane_[n][i];
                met_[i] |= carry;
                for (int64_t b = 0; carry; b++) {
                    const uint64_t before = counters_[b * step_ + i];
                    counters_[b * step_ + i] = before ^ carry;
                    carry &= before;
                }
            }
    }

    // Binary counters of every pair, added up unit by unit; in the policy gather they hold matches.
    void counted_cycles(bool any, int64_t row, S *cycles) {
        int64_t total = 0, busy = 0;
        const int64_t units = w_.units < w_.bases ? w_.units : w_.bases;
        for (int64_t k = 0; k < words_; k++) {
            memset(unit_, 0, sizeof(S) * 64 * units);
            for (int64_t m = 0; m < w_.bases; m++) {
                BitSums<S, WORDS> sums(0);
                if (any)
                    for (int64_t b = 0; b < levels_; b++) sums.add(counters_[b * step_ + m * words_ + k], (int)b);
                sums.store(counts_);
                if (w_.policy == 2)
                    for (int i = 0; i < 64; i++) total += counts_[i] = (S)up(counts_[i], w_.lanes);
                S *unit = unit_ + 64 * (m % w_.units);
                for (int i = 0; i < 64; i++) unit[i] += counts_[i] ? counts_[i] : 1;
            }
            const int64_t real = w_.outs - 64 * k < 64 ? w_.outs - 64 * k : 64;
            for (int64_t u = 1; u < units; u++)
                for (int i = 0; i < 64; i++) unit_[i] = unit_[64 * u + i] > unit_[i] ? unit_[64 * u + i] : unit_[i];
            for (int64_t i = 0; i < real; i++) busy += unit_[i];
            memcpy(cycles + 64 * k, unit_, sizeof(S) * 64);
        }
        load_.issued[row] += total;
        load_.busy[row] += busy;
    }

    void count_values(int64_t place) {
        int64_t sum = 0;
        for (int64_t k = 0; k < words_; k++) {
            BitSums<S, WORDS> sums(0);
            for (int64_t m = 0; m < w_.bases; m++) {
                sum += bits_in(met_[m * words_ + k]);
                sums.add(met_[m * words_ + k]);
            }
            sums.store(load_.values + place * load_.stride + 64 * k);
        }
        load_.value_sum[place] = sum;
    }
};

}  // namespace
