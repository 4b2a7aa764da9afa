// T(G) = U diag(σ/(σ^α + d)) Vᵀ as f(R) G on the small side, R = G Gᵀ, with f a sum of partial fractions: no
// eigendecomposition. In units δ = d^{2/α} of the eigenvalues of R, f = φ(R/δ)/d with φ(y) = 1/(y^{α/2} + 1), and
//   φ(y) ≈ g(y)                    for α ≤ 2,   g(y) = constant + Σ_j residue_j/(y + pole_j)   on 0 ≤ y ≤ reach,
//   φ(y) ≈ g(y) + (u + v y)/Q(y)   for 2 < α < 4 (kPlus),   Q(y) = y² + b y + 1,
//   φ(y) ≈ g(y)/Q(y)               for α ≥ 4 (kTimes): the form whose terms do not cancel.
// α = 2 is one pole, α = 4 is Q alone, both exact; every matrix to invert is positive definite.
#pragma once

#include <cstdint>

namespace spectral_ext {

struct Parallel {
  int64_t threads;
  void (*run)(int64_t tasks, void (*body)(void* context, int64_t task), void* context);
};

enum class Quadratic : int64_t { kNone, kPlus, kTimes };

struct PartialFractions {
  double lowest, reach, constant, b, u, v;  // for lowest ≤ σ_max²/δ ≤ reach
  Quadratic quadratic;
  int64_t poles;
  const double *pole, *residue;
};

enum class DampingMode : int64_t { kAbsolute, kSpectral, kMean };

// All eigenvalues of a symmetric matrix (n × n, contiguous, lower triangle), ascending.
struct Eigenvalues {
  void (*of_float)(const float* R, int64_t n, double* values);
  void (*of_double)(const double* R, int64_t n, double* values);
};

struct TransferSettings {
  double alpha, damping, tolerance;
  DampingMode mode;
  Eigenvalues eigenvalues;  // where the trace, ‖R‖_F or Lanczos do not give what the mode needs
  const PartialFractions* levels;
  int64_t level_count;
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
  kNeedsReach,       // no level reaches y_max; nothing written
  kIllConditioned,   // the tolerance needs singular values in double; nothing written
  kNonFinite,        // filled with NaN
};

struct TransferResult {
  TransferStatus status;
  double y_max;  // σ_max²/δ
};

// One instruction set. `scratch` holds scratch_bytes(…) bytes, 64-byte aligned.
struct TransferKernels {
  const char* name;
  TransferResult (*run_float)(const GradientMatrix<float>&, const TransferSettings&, void* scratch, const Parallel&);
  TransferResult (*run_double)(const GradientMatrix<double>&, const TransferSettings&, void* scratch, const Parallel&);
  int64_t (*scratch_bytes)(int64_t rows, int64_t columns, int64_t threads);
};

const TransferKernels& transfer_kernels_avx512();
const TransferKernels& transfer_kernels_avx2();
const TransferKernels& transfer_kernels_portable();
const TransferKernels& transfer_kernels();  // the widest that this processor runs

}  // namespace spectral_ext
