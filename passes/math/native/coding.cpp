// Exact ternary coding, as many kernels side by side as a register holds: encode() in coding.py defines it.
//
// A code's projection is the one of its first entries plus a signed last term, and projections of the first
// entries are shared by all codes that begin alike. Sums are in the order of a matrix product, and nothing is
// contracted, so that scores are those of the definition to the last bit wherever its BLAS adds in order.

#include <cstdint>

namespace {

template <int LANES>
struct Register;

// spelled out, because attributes of types that depend on a parameter are ignored
#define ESCC_REGISTER(lanes)                                           \
    template <>                                                        \
    struct Register<lanes> {                                           \
        typedef float Floats __attribute__((vector_size(4 * lanes)));  \
        typedef int32_t Ints __attribute__((vector_size(4 * lanes)));  \
    };
ESCC_REGISTER(4)
ESCC_REGISTER(8)
ESCC_REGISTER(16)

struct Job {
    int64_t outputs, inputs, bases, codes;
    const float *beta;         // (outputs, inputs, bases)
    const float *penalty;      // (outputs)
    const int8_t *table;       // (codes, bases)
    const int32_t *prefix;     // (codes): the first bases - 1 entries, entry 0 first, digits 0, 1, 2 for 0, 1, -1
    const float *half_energy;  // (codes)
    const float *count;        // (codes)
    float *scratch;            // (3^(bases - 1) + 3, 16), aligned to 64 bytes
    int8_t *found;             // (outputs, inputs, bases)
};

template <int LANES>
__attribute__((always_inline)) inline void encode(const Job &job) {
    using Floats = typename Register<LANES>::Floats;
    using Ints = typename Register<LANES>::Ints;
    const int64_t kernels = job.outputs * job.inputs, bases = job.bases;
    Floats *last = reinterpret_cast<Floats *>(job.scratch);
    Floats *sums = last + 3;
    for (int64_t first = 0; first < kernels; first += LANES) {
        const int64_t lanes = kernels - first < LANES ? kernels - first : LANES;
        Floats price = {};
        for (int64_t lane = 0; lane < lanes; ++lane) price[lane] = job.penalty[(first + lane) / job.inputs];
        sums[0] = Floats{};
        int64_t known = 1;
        for (int64_t m = 0; m < bases; ++m) {
            Floats term = {};
            for (int64_t lane = 0; lane < lanes; ++lane) term[lane] = job.beta[(first + lane) * bases + m];
            if (m == bases - 1) {
                last[0] = Floats{};
                last[1] = term;
                last[2] = -term;
                break;
            }
            // backwards, so that no sum is overwritten before it has been used
            for (int64_t id = known - 1; id >= 0; --id) {
                const Floats sum = sums[id];
                sums[3 * id + 2] = sum - term;
                sums[3 * id + 1] = sum + term;
                sums[3 * id] = sum;
            }
            known *= 3;
        }
        Floats most = Floats{} - __builtin_inff();
        Ints best = {};
        for (int64_t code = 0; code < job.codes; ++code) {
            const int digit = job.table[code * bases + bases - 1];
            Floats score = sums[job.prefix[code]] + last[digit < 0 ? 2 : digit];
            score = reinterpret_cast<Floats>(reinterpret_cast<Ints>(score) & 0x7fffffff);
            const Floats cost = job.half_energy[code] + price * job.count[code];
            score = score - cost;
            const Ints more = score > most;
            most = more ? score : most;
            best = more ? Ints{} + static_cast<int32_t>(code) : best;
        }
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int8_t *code = job.table + best[lane] * bases;
            const int digit = code[bases - 1];
            const float sum = sums[job.prefix[best[lane]]][lane] + last[digit < 0 ? 2 : digit][lane];
            int8_t *to = job.found + (first + lane) * bases;
            for (int64_t m = 0; m < bases; ++m) to[m] = static_cast<int8_t>(sum < 0 ? -code[m] : code[m]);
        }
    }
}

#ifdef ESCC_X86
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) void encode_avx512(const Job &job) {
    encode<16>(job);
}
__attribute__((target("avx2"))) void encode_avx2(const Job &job) { encode<8>(job); }
#endif
void encode_baseline(const Job &job) { encode<4>(job); }

}  // namespace

// 0 when done, 1 when there is no such variant on this processor; 0 is the best one, 1 and 2 are simpler.
extern "C" __attribute__((visibility("default"))) int64_t escc_encode(const Job *job, int64_t variant) {
#ifdef ESCC_X86
    __builtin_cpu_init();
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (wide && variant-- == 0) return encode_avx512(*job), 0;
    if (__builtin_cpu_supports("avx2") && variant-- == 0) return encode_avx2(*job), 0;
#endif
    if (variant == 0) return encode_baseline(*job), 0;
    return 1;
}
