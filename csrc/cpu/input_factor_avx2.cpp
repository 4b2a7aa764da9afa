#include "cpu/input_factor_kernels.h"
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define SPECTRAL_EXT_VECTOR_BYTES 32
#define SPECTRAL_EXT_ROWS 4
#define SPECTRAL_EXT_PANELS 1
#define SPECTRAL_EXT_TABLE avx2_kernels
#include "cpu/input_factor_kernels_body.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
