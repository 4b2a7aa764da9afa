#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/spectral_newton.h"

#define SPECTRAL_EXT_SIMD_BYTES 16
#include "cpu/simd_vectors.h"

#include "cpu/spectral_newton_solve.h"

#include "cpu/simd_end.h"
