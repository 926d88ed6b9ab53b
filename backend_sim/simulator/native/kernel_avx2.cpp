// The engine for one instruction set; the flags it is compiled with are in setup.py.
#include "conv.h"

int escc_conv_timing_avx2(
    const Work *work, const uint8_t *x, const uint64_t *planes, const int32_t *weights, Kept *kept,
    Figures *figures) {
    return conv_timing<4>(*work, x, planes, weights, kept, figures);
}
