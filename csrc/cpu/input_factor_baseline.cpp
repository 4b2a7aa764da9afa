#include "cpu/input_factor_kernels.h"

#define SPECTRAL_EXT_VECTOR_BYTES 16
#define SPECTRAL_EXT_ROWS 2
#define SPECTRAL_EXT_PANELS 1
#define SPECTRAL_EXT_TABLE baseline_kernels
#include "cpu/input_factor_kernels_body.h"
