// The engine for one instruction set; the flags it is compiled with are in setup.py.
#include "conv.h"
#include "maps.h"
#include "streams.h"

ESCC_KERNEL(avx2, 4)
