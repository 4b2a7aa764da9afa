// One matrix of spectral_newton, from G to T(G), with its own error estimate. Compiled once per instruction set.
#pragma once

#include "cpu/spectral_newton_fractions.h"
#include "cpu/spectral_newton_substitution.h"

namespace spectral_ext::cpu {
namespace {

constexpr double kSpreadSlack = 1e-5;  // rounding of ‖R‖_F² and (tr R)²/n, relative to ‖R‖_F²
constexpr double kRangeSlack = 1e-9;   // between the host's logarithm of y_max and this one's bounds
constexpr int64_t kConversionColumns = 256;

constexpr double kMaxConditionError = 1e3;  // unit round-off · condition number beyond which an attempt is wasted
constexpr double kSafety = 3;  // error over estimate near 1e-5: at most 3 over α, d, shapes and spectra, 0.1 as a rule

inline const PartialFractions* fit_for(const TransferSettings& settings, double y_max) {
  for (int64_t l = 0; l < settings.fit_count; ++l)
    if (settings.fits[l].y_min <= (1 + kRangeSlack) * y_max && y_max <= (1 + kRangeSlack) * settings.fits[l].y_max)
      return settings.fits + l;
  return nullptr;
}

inline int64_t scratch_bytes(int64_t rows, int64_t columns, int64_t threads) {
  const int64_t n = std::min(rows, columns), N = std::max(rows, columns);
  const int64_t packing = product_scratch<double>(std::min(N, kRowBlock), N);
  const int64_t spare = std::max(inverse_scratch<float>(n), kLanczosVectors * n);
  const int64_t fractions =
      3 * n * n + spare + 3 * n + threads * packing + std::min(kConversionColumns, columns) * rows;
  return 8 * (n * n + std::max(fractions, substitution_scratch<float>(n, threads)) + 640);
}

template <class T>
void eigenvalues_of(const TransferSettings& settings, const T* R, int64_t n, double* eigenvalues) {
  if constexpr (std::is_same_v<T, float>)
    settings.eigenvalues.of_float(R, n, eigenvalues);
  else
    settings.eigenvalues.of_double(R, n, eigenvalues);
}

// An upper bound of λ_max from the mean and the mean square of n eigenvalues ≥ 0 (Samuelson's inequality).
inline double largest_eigenvalue_bound(double trace, double square, int64_t n) {
  const double mean = trace / n, spread = std::max(square / n - mean * mean, 0.0) + kSpreadSlack * square / n;
  return std::min(mean + std::sqrt((n - 1) * spread), std::sqrt((1 + kSpreadSlack) * square));
}

struct NormBounds {
  double lower, upper;
};

// Bounds of ‖T(G)‖_F in units of √δ/d from t = tr R/δ and q = ‖R‖_F²/δ²; T² = g(y) = y φ(y)², φ = 1/(1 + y^β), β = α/2.
// Below: φ² is at least a convex function h, φ² itself for β ≤ 1 and else (1 + y)^{−2β}, so that by Jensen
// Σ y φ(y)² ≥ t h(q/t). Above: g is concave up to its maximum, at y^β = 1/(2β − 1), so that n g(min(t/n, that)) is.
inline NormBounds norm_of_result(double t, double q, int64_t n, double beta) {
  const double mean = q / t, h = beta <= 1 ? 1 + std::pow(mean, beta) : std::pow(1 + mean, beta);
  const double peak = beta > 0.5 ? std::pow(1 / (2 * beta - 1), 1 / beta) : t, y = std::min(t / n, peak);
  const double lower = std::sqrt(t) / h;
  return {lower, std::max(lower, std::sqrt(n * y) / (1 + std::pow(y, beta)))};
}

// Largest |G|, NaN if any element is not finite.
template <class S>
double largest_magnitude(const GradientMatrix<S>& G) {
  double largest = 0;
  for (int64_t i = 0; i < G.rows; ++i)
    for (int64_t j = 0; j < G.columns; ++j) {
      const double x = std::fabs(static_cast<double>(G.data[i * G.row_stride + j * G.column_stride]));
      if (!(x <= std::numeric_limits<double>::max())) return std::numeric_limits<double>::quiet_NaN();
      largest = std::max(largest, x);
    }
  return largest;
}

// out = F G or G F, in double with a rounding at the end.
template <class S>
void apply_in_double(const Workspace<double>& workspace, const GradientMatrix<S>& G, Operand<S> g, bool wide,
                     const double* F, int64_t n, double* block) {
  const Operand<double> f{F, n, 1};
  for (int64_t j = 0; j < G.columns; j += kConversionColumns) {
    const int64_t width = std::min(kConversionColumns, G.columns - j);
    if (wide)
      multiply<double, S, double>(workspace, G.rows, width, n, 1.0, f, g.from_column(j), false, block, width, false);
    else
      multiply<S, double, double>(workspace, G.rows, width, n, 1.0, g, f.from_column(j), false, block, width, false);
    for (int64_t i = 0; i < G.rows; ++i)
      for (int64_t c = 0; c < width; ++c) G.out[i * G.columns + j + c] = static_cast<S>(block[i * width + c]);
  }
}

// One attempt with R and f(R) in T, and the last product in S, or in double where `exact_apply`.
template <class S, class T>
TransferResult solve_in_precision(const GradientMatrix<S>& G, const TransferSettings& settings, void* scratch,
                                  const Parallel& parallel, bool exact_apply) {
  const bool wide = G.rows <= G.columns;
  const int64_t n = std::min(G.rows, G.columns), N = std::max(G.rows, G.columns);
  Buffers<T> at(scratch, n, N);
  const Workspace<T> workspace{at.packing, at.packing_size, &parallel};
  Operand<S> g{G.data, G.row_stride, G.column_stride};
  const auto gram = [&] {
    const Operand<S> rows = wide ? g : g.transposed();
    multiply<S, S, T>(workspace, n, n, N, T(1), rows, rows.transposed(), false, at.R, n, true);
    double trace = 0;
    for (int64_t i = 0; i < n; ++i) trace += at.R[i * n + i];
    return trace;
  };
  const auto fill = [&](double value) { std::fill(G.out, G.out + G.rows * G.columns, static_cast<S>(value)); };

  double trace = gram(), scale = 1;
  const double range = std::sqrt(std::sqrt(static_cast<double>(std::numeric_limits<S>::max())));
  if (!(trace > 1 / range && trace < range)) {
    const double largest = largest_magnitude(G);
    if (std::isnan(largest)) return fill(largest), TransferResult{TransferStatus::kNonFinite, largest};
    if (largest == 0) return fill(0), TransferResult{TransferStatus::kSinglePrecision, 0};
    const int limit = std::numeric_limits<S>::max_exponent - 2;
    scale = std::exp2(std::clamp(std::ilogb(largest), -limit, limit));
    g.scale = static_cast<S>(1 / scale);
    trace = gram();
  }

  const double alpha = settings.alpha;
  const double square = square_of_symmetric(at.R, n), size = std::sqrt(square);
  const bool exactly = settings.mode == DampingMode::kSpectral;
  const auto top = [&] {
    if (!exactly) return largest_eigenvalue_bound(trace, square, n);
    const LargestEigenvalue first = largest_eigenvalue(at.R, n, size, 0.02 * settings.tolerance, 0, at.spare);
    const LargestEigenvalue second = largest_eigenvalue(at.R, n, size, 0.02 * settings.tolerance, 1, at.spare);
    if (first.converged && second.converged) return std::max(first.value, second.value);
    eigenvalues_of(settings, at.R, n, at.eigenvalues);
    return at.eigenvalues[n - 1];
  };
  const double lambda = top();
  double damping = settings.damping;
  if (exactly) damping *= std::pow(scale * std::sqrt(lambda), alpha);
  if (settings.mode == DampingMode::kRms) damping *= std::pow(scale * std::sqrt(trace / n), alpha);
  const double delta = std::pow(damping, 2 / alpha) / (scale * scale);
  // f(0), the largest eigenvalue of f(R): it may leave the range of S where T(G) does not.
  const double gain = scale / damping, largest_gain = 1e-2 * std::numeric_limits<S>::max();
  if (!exact_apply && !(gain < largest_gain)) return {TransferStatus::kIllConditioned, lambda / delta};
  if constexpr (std::is_same_v<S, T>) {
    const double shifted = std::sqrt((square + delta * (2 * trace + n * delta)) / n), unit = std::max(lambda, delta);
    const double error =
        (2 + std::sqrt(n) / 8) * unit_roundoff<T>() * shifted / delta;  // as in Rounding, ‖X⁻¹‖_F ≤ √n/δ
    if (alpha == 2 && n <= kSubstitutionSide && kSafety * error <= settings.tolerance) {
      const double shift = delta / unit, weight = gain * shift;
      Substitution<T> substitution{parallel, at.R,  n,   N, T(1 / unit), T(shift), T(weight), wide ? g.transposed() : g,
                                   wide,     G.out, at.X};
      if (substitution.run()) return {TransferStatus::kSinglePrecision, lambda / delta};
    }
  }
  const double y_max = lambda / delta;
  if (!(delta > 0 && std::isfinite(y_max))) return {TransferStatus::kIllConditioned, y_max};
  const PartialFractions* phi = fit_for(settings, y_max);
  if (phi == nullptr) return {TransferStatus::kNeedsFit, y_max};

  const TransferResult refused{TransferStatus::kIllConditioned, y_max};
  const double worst_terms = cancellation(*phi, y_max);
  if (unit_roundoff<T>() * y_max * worst_terms > kMaxConditionError) return refused;
  const double unit = std::exp2(std::ceil(std::log2(std::max(lambda, delta))));
  const T shrink = static_cast<T>(1 / unit);
  for (int64_t i = 0; i < n; ++i) at.diagonal[i] = shrink * at.R[i * n + i];
  const NormBounds bounds = norm_of_result(trace / delta, square / (delta * delta), n, 0.5 * alpha);
  const double norm_unit = gain * std::sqrt(delta / unit);
  // Only decides what is tried: a wrong guess costs time. For α > 2, T falls with σ: λ_max alone, and the rest at the
  // largest that ‖R‖_F leaves for it, come near.
  const double second = std::sqrt(std::max(square - lambda * lambda, 0.0)) / delta;
  const auto map = [&](double y) { return 1 / (std::pow(y, 0.5 * alpha) + 1); };
  const double two = std::sqrt(y_max * std::pow(map(y_max), 2) +
                               std::max(trace - lambda, 0.0) / delta * std::pow(map(std::min(second, y_max)), 2));
  const double norm = norm_unit * (alpha > 2 ? std::max(bounds.lower, two) : std::sqrt(bounds.lower * bounds.upper));
  const bool mixed = !std::is_same_v<S, T> && !exact_apply;
  Fractions<T> fractions{workspace,
                         *phi,
                         n,
                         shrink,
                         delta / unit,
                         gain,
                         lambda / unit,
                         trace / unit,
                         square / unit / unit,
                         worst_terms,
                         settings.tolerance * norm / kSafety,
                         mixed,
                         at};
  if (!fractions.evaluate()) return refused;

  double last = 0;
  for (int64_t i = 0; i < n; ++i) last += dot(at.F + i * n, at.F + i * n, n) * at.diagonal[i];
  last = exact_apply ? 0 : std::sqrt(last) * unit_roundoff<S>() * (1 + std::sqrt(static_cast<double>(n)) / 16);
  const double relative = fractions.rounding.relative, absolute = last + fractions.rounding.absolute;
  const auto fails = [&](double norm) { return !(kSafety * (relative + absolute / norm) <= settings.tolerance); };
  if (fails(kNormSlack * norm)) return refused;
  if (!exact_apply) {
    const Workspace<S> workspace_out{reinterpret_cast<S*>(at.packing), at.packing_size, &parallel};
    const Operand<T> f{at.F, n, 1};
    if (wide)
      multiply<T, S, S>(workspace_out, n, N, n, S(1), f, g, false, G.out, N, false);
    else
      multiply<S, T, S>(workspace_out, N, n, n, S(1), g, f, false, G.out, n, false);
  } else if constexpr (std::is_same_v<T, double>) {
    apply_in_double(workspace, G, g, wide, at.F, n, at.packing + parallel.threads * at.packing_size);
  }
  if (fails(norm_unit * bounds.lower) && fails(std::sqrt(dot(G.out, G.out, G.rows * G.columns) / unit))) return refused;
  return {std::is_same_v<T, float> ? TransferStatus::kSinglePrecision
          : exact_apply            ? TransferStatus::kDoublePrecision
                                   : TransferStatus::kDoubleGram,
          y_max};
}

inline TransferResult run_float(const GradientMatrix<float>& G, const TransferSettings& settings, void* scratch,
                                const Parallel& parallel) {
  TransferResult result = solve_in_precision<float, float>(G, settings, scratch, parallel, false);
  if (result.status == TransferStatus::kIllConditioned)
    result = solve_in_precision<float, double>(G, settings, scratch, parallel, false);
  if (result.status == TransferStatus::kIllConditioned)
    result = solve_in_precision<float, double>(G, settings, scratch, parallel, true);
  return result;
}

inline TransferResult run_double(const GradientMatrix<double>& G, const TransferSettings& settings, void* scratch,
                                 const Parallel& parallel) {
  TransferResult result = solve_in_precision<double, double>(G, settings, scratch, parallel, false);
  if (result.status == TransferStatus::kSinglePrecision || result.status == TransferStatus::kDoubleGram)
    result.status = TransferStatus::kDoublePrecision;
  return result;
}

constexpr TransferKernels kKernels{&run_float, &run_double, &scratch_bytes};

}  // namespace

template <>
const TransferKernels& transfer_kernels<kSimdLevel>() {
  return kKernels;
}

}  // namespace spectral_ext::cpu
