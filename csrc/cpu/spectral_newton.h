// T(G) = U diag(σ/(σ^α + d)) Vᵀ as f(R) G on the small side, R = G Gᵀ, with f a sum of partial fractions: no
// eigendecomposition. In units δ = d^{2/α} of the eigenvalues of R, f = φ(R/δ)/d with φ(y) = 1/(y^{α/2} + 1), and
//   φ(y) ≈ g(y)                    for α ≤ 2,   g(y) = constant + Σ_j residue_j/(y + pole_j)   on 0 ≤ y ≤ y_max,
//   φ(y) ≈ g(y) + (u + v y)/Q(y)   for 2 < α < 4 (kPlus),   Q(y) = y² + b y + 1,
//   φ(y) ≈ g(y)/Q(y)               for α ≥ 4 (kTimes): the form whose terms do not cancel.
// α = 2 is one pole, α = 4 is Q alone, both exact; every matrix to invert is positive definite.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace spectral_ext::cpu {

enum class Quadratic : int64_t { kNone, kPlus, kTimes };

// The columns that begin a row of the table of fits, which spectral_ext writes; poles and residues follow, each as many
// as the table has room for.
enum FitColumn : int64_t { kFitAlpha, kFitYMin, kFitYMax, kFitConstant, kFitB, kFitU, kFitV, kFitForm, kFitPoles };
constexpr const char* kFitColumns[] = {"alpha", "y_min", "y_max", "constant", "b", "u", "v", "form", "poles"};
constexpr int64_t kFitHeader = sizeof(kFitColumns) / sizeof(kFitColumns[0]);

struct PartialFractions {
  double y_min, y_max, constant, b, u, v;  // for y_min ≤ σ_max²/δ ≤ y_max
  Quadratic quadratic;
  int64_t poles;
  const double *pole, *residue;
};

enum class DampingMode : int64_t { kAbsolute, kSpectral, kRms };  // the unit of d: 1, σ_max^α, (mean σ²)^{α/2}

// All eigenvalues of a symmetric matrix (n × n, contiguous, lower triangle), ascending.
struct Eigenvalues {
  void (*of_float)(const float* R, int64_t n, double* values);
  void (*of_double)(const double* R, int64_t n, double* values);
};

struct TransferSettings {
  double alpha, damping, tolerance;
  DampingMode mode;
  Eigenvalues eigenvalues;  // for kSpectral, where Lanczos does not find λ_max
  const PartialFractions* fits;
  int64_t fit_count;
};

template <class T>
struct GradientMatrix {  // any strides; `out` is row-major and contiguous
  int64_t rows, columns, row_stride, column_stride;
  const T* data;
  T* out;
};

enum class TransferStatus : int64_t {
  kSinglePrecision,  // done in the precision of G
  kDoubleGram,       // done with R and f(R) in double, the last product in float
  kDoublePrecision,  // done in double throughout
  kNeedsFit,         // no fit covers y_max; nothing written
  kIllConditioned,   // the tolerance needs singular values in double; nothing written
  kNonFinite,        // filled with NaN
};

struct TransferResult {
  TransferStatus status;
  double y_max;  // σ_max²/δ, or a bound of it
};

// One instruction set. `scratch` holds scratch_bytes(…) bytes, 64-byte aligned.
struct TransferKernels {
  TransferResult (*run_float)(const GradientMatrix<float>&, const TransferSettings&, void* scratch, const Parallel&);
  TransferResult (*run_double)(const GradientMatrix<double>&, const TransferSettings&, void* scratch, const Parallel&);
  int64_t (*scratch_bytes)(int64_t rows, int64_t columns, int64_t threads);
};

template <SimdLevel level>
const TransferKernels& transfer_kernels();

}  // namespace spectral_ext::cpu
