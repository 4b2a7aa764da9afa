#include <algorithm>
#include <vector>

#include "cpu/rayleigh_quotients_box.h"

#ifdef SPECTRAL_EXT_X86
#define SPECTRAL_EXT_SIMD_BYTES 64
#include "cpu/simd_vectors.h"

#include "cpu/rayleigh_quotients_kernel.h"

#include "cpu/simd_end.h"
#endif
