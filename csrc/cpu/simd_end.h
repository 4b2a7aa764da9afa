// Ends what cpu/simd_vectors.h began: the code after it is for any processor again.
#ifdef __clang__
#if SPECTRAL_EXT_SIMD_BYTES > 16
#pragma clang attribute pop
#endif
#else
#pragma GCC pop_options
#endif
#undef SPECTRAL_EXT_SIMD_BYTES
