#include "cpu/input_factor_kernels.h"

#ifdef SPECTRAL_EXT_X86
#define SPECTRAL_EXT_SIMD_BYTES 64
#include "cpu/simd_vectors.h"

#include "cpu/input_factor_kernels_body.h"

#include "cpu/simd_end.h"
#endif
