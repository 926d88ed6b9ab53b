// Concentration on bit planes: 64 pairs (output, basis) in a word, up to 8 words in a register.
//
// A plane tells for one lane of one diluted vector which pairs have a coefficient for the activation there.
// Moving values from lane s of a vector v to the free lanes l of the head is, for all pairs at once,
//     taken = v[s];  v[s] = taken & full[l];  full[l] = full[l] | taken
// where full[l] are the pairs whose head lane l is occupied. A blank head issues nothing and takes nothing:
// its lanes count as full. The window slides one vector a step whether something was issued or not.
#pragma once

#include <string.h>

#include "abi.h"

namespace {

template <int WORDS>
struct Vector {
    typedef uint64_t type __attribute__((vector_size(8 * WORDS)));
};

template <int WORDS>
inline typename Vector<WORDS>::type load(const uint64_t *from) {
    typename Vector<WORDS>::type value;
    memcpy(&value, from, sizeof value);
    return value;
}

// issued[head]: which pairs issue the vector, for every head. lane[]: the planes of the packed activations,
// `ahead` + 1 vectors of empty planes behind them; word: where in the planes to work.
template <int WORDS>
struct Window {
    typedef void (*Function)(
        const uint64_t *const *lane, int64_t vectors, int64_t word, typename Vector<WORDS>::type *issued,
        const Work *work, void *scratch);
};

template <int WORDS, int LANES, int AHEAD, int ASIDE>
void window(
    const uint64_t *const *lane, int64_t vectors, int64_t word, typename Vector<WORDS>::type *issued,
    const Work *, void *) {
    typedef typename Vector<WORDS>::type V;
    V held[AHEAD + 1][LANES];
#pragma GCC unroll 8
    for (int d = 0; d <= AHEAD; d++)
#pragma GCC unroll 16
        for (int l = 0; l < LANES; l++) held[d][l] = load<WORDS>(lane[d * LANES + l] + word);
    for (int64_t head = 0; head < vectors; head++) {
        V any = held[0][0], full[LANES];
#pragma GCC unroll 16
        for (int l = 1; l < LANES; l++) any |= held[0][l];
        issued[head] = any;
#pragma GCC unroll 16
        for (int l = 0; l < LANES; l++) full[l] = held[0][l] | ~any;
#pragma GCC unroll 16
        for (int turn = 0; turn <= 2 * ASIDE; turn++) {
            // 0, +1, -1, +2, -2, ...
            const int offset = turn % 2 ? (turn + 1) / 2 : LANES - turn / 2;
#pragma GCC unroll 8
            for (int d = 1; d <= AHEAD; d++)
#pragma GCC unroll 16
                for (int l = 0; l < LANES; l++) {
                    V &from = held[d][(l + offset) % LANES];
                    const V taken = from;
                    from = taken & full[l];
                    full[l] |= taken;
                }
        }
        const uint64_t *const *next = lane + (head + 1 + AHEAD) * LANES;
#pragma GCC unroll 8
        for (int d = 0; d < AHEAD; d++)
#pragma GCC unroll 16
            for (int l = 0; l < LANES; l++) held[d][l] = held[d + 1][l];
#pragma GCC unroll 16
        for (int l = 0; l < LANES; l++) held[AHEAD][l] = load<WORDS>(next[l] + word);
    }
}

// Any lanes and window; the vectors lie in scratch, (vectors + ahead) * lanes registers.
template <int WORDS>
void any_window(
    const uint64_t *const *lane, int64_t vectors, int64_t word, typename Vector<WORDS>::type *issued,
    const Work *work, void *scratch) {
    typedef typename Vector<WORDS>::type V;
    const int64_t lanes = work->lanes, ahead = work->look_ahead;
    // More than lanes - 1 turns only come back to lanes that have been tried.
    const int64_t turns = 2 * (work->look_aside < lanes ? work->look_aside : lanes) + 1;
    V *held = (V *)scratch, *full = held + (vectors + ahead) * lanes;
    for (int64_t i = 0; i < (vectors + ahead) * lanes; i++) held[i] = load<WORDS>(lane[i] + word);
    for (int64_t head = 0; head < vectors; head++) {
        V any = held[0];
        for (int64_t l = 1; l < lanes; l++) any |= held[l];
        issued[head] = any;
        if (ahead && head + 1 < vectors) {
            for (int64_t l = 0; l < lanes; l++) full[l] = held[l] | ~any;
            for (int64_t turn = 0; turn < turns; turn++) {
                const int64_t offset = turn % 2 ? (turn + 1) / 2 : lanes - turn / 2;
                const int64_t first = offset % lanes;
                for (int64_t d = 1; d <= ahead; d++) {
                    V *from = held + d * lanes;
                    for (int64_t l = 0; l < lanes; l++) {
                        const int64_t s = l + first < lanes ? l + first : l + first - lanes;
                        const V taken = from[s];
                        from[s] = taken & full[l];
                        full[l] |= taken;
                    }
                }
            }
        }
        held += lanes;
    }
}

// No window: a vector is issued where any of its lanes has a coefficient.
template <int WORDS>
void no_window(
    const uint64_t *const *lane, int64_t vectors, int64_t word, typename Vector<WORDS>::type *issued,
    const Work *work, void *) {
    typedef typename Vector<WORDS>::type V;
    for (int64_t head = 0; head < vectors; head++) {
        V any = load<WORDS>(*lane++ + word);
        for (int64_t l = 1; l < work->lanes; l++) any |= load<WORDS>(*lane++ + word);
        issued[head] = any;
    }
}

// The window of the work, unrolled for the usual ones; lanes and look_ahead already reduced.
template <int WORDS>
typename Window<WORDS>::Function window_function(const Work *work) {
    const int64_t lanes = work->lanes, ahead = work->look_ahead, aside = work->look_aside;
    if (work->policy != 1 || ahead == 0) return no_window<WORDS>;
    if (lanes == 8 && ahead == 2 && aside == 2) return window<WORDS, 8, 2, 2>;
    if (lanes == 8 && ahead == 2 && aside == 1) return window<WORDS, 8, 2, 1>;
    if (lanes == 8 && ahead == 1 && aside == 1) return window<WORDS, 8, 1, 1>;
    if (lanes == 4 && ahead == 2 && aside == 2) return window<WORDS, 4, 2, 2>;
    if (lanes == 16 && ahead == 2 && aside == 1) return window<WORDS, 16, 2, 1>;
    if (lanes == 16 && ahead == 2 && aside == 2) return window<WORDS, 16, 2, 2>;
    return any_window<WORDS>;
}

}  // namespace
