#include "cpu/input_factor_kernels.h"

#define SPECTRAL_EXT_SIMD_BYTES 16
#include "cpu/simd_vectors.h"

#include "cpu/input_factor_kernels_body.h"

#include "cpu/simd_end.h"
