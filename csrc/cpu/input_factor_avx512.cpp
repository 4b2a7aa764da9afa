#include "cpu/input_factor_kernels.h"
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define SPECTRAL_EXT_VECTOR_BYTES 64
#define SPECTRAL_EXT_ROWS 8
#define SPECTRAL_EXT_PANELS 3
#define SPECTRAL_EXT_TABLE avx512_kernels
#include "cpu/input_factor_kernels_body.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
