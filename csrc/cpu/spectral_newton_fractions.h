// f(R) as a sum of partial fractions, and what rounding did to it. Compiled once per instruction set.
#pragma once

#include "cpu/spectral_newton_inverse.h"

namespace spectral_ext::cpu {
namespace {

template <class T>
constexpr double unit_roundoff() {
  return std::numeric_limits<T>::epsilon() / 2;
}

constexpr double kNormSlack = 2;  // ‖T(G)‖_F over its estimate beyond which an attempt is given up

// How much larger than their sum the terms of φ are, at worst over the spectrum.
inline double cancellation(const PartialFractions& phi, double y_max) {
  double worst = 1;
  for (int point = 0; point < 24; ++point) {
    const double y = y_max * std::exp2(-2.0 * point);
    double sum = phi.constant, size = std::fabs(phi.constant);
    for (int64_t j = 0; j < phi.poles; ++j) {
      sum += phi.residue[j] / (y + phi.pole[j]);
      size += std::fabs(phi.residue[j]) / (y + phi.pole[j]);
    }
    if (phi.quadratic == Quadratic::kPlus) {
      const double pair = (phi.u + phi.v * y) / (y * y + phi.b * y + 1);
      sum += pair, size += std::fabs(pair);
    }
    worst = std::max(worst, size / std::fabs(sum));
  }
  return worst;
}

template <class T>
struct Buffers {
  T *R, *X, *P, *F, *spare, *diagonal, *packing;  // n² each; spare for the inverse or the Lanczos vectors; diagonal n
  double* eigenvalues;                            // n
  int64_t packing_size;
  Buffers(void* scratch, int64_t n, int64_t N) {
    T* next = static_cast<T*>(scratch);
    const auto take = [&](int64_t count) {
      T* taken = next;
      next += (count + 63) / 64 * 64;
      return taken;
    };
    R = take(n * n), X = take(n * n), P = take(n * n), F = take(n * n);
    eigenvalues = reinterpret_cast<double*>(take(2 * n));
    spare = take(std::max(inverse_scratch<float>(n), kLanczosVectors * n)), diagonal = take(n);
    packing_size = product_scratch<T>(std::min(N, kRowBlock), N);
    packing = next;
  }
};

// Relative to ‖T(G)‖_F, or in its unit. An error E of X with entries of √mean square e gives
// ‖X⁻¹ E X⁻¹ G‖_F ≈ e ‖X⁻¹‖_F ‖X⁻¹ G‖_F, taken with e = 2 · unit round-off · ‖X‖_F/n; a product A B with A, B, G
// unaligned, unit round-off · ‖A‖_F ‖B‖_F ‖G‖_F/n.
struct Rounding {
  double absolute = 0, relative = 0;
};

// φ(R'/δ) · gain for R' = shrink R, of which the lower triangle is read, in a unit where δ is `delta`, λ_max of R' is
// `top`, ‖G‖_F² = tr R' is `trace` and ‖R'‖_F² is `square`. With `mixed`, poles whose inverse may be rounded to float
// within `allowed`, in the unit of `rounding.absolute`, are inverted in float.
template <class T>
struct Fractions {
  const Workspace<T>& workspace;
  const PartialFractions& phi;
  int64_t n;
  T shrink;
  double delta, gain, top, trace, square, cancellation, allowed;
  bool mixed;
  Buffers<T>& at;
  Rounding rounding = {};
  double last_in_float = kUnknown;  // what rounding to float would have made of the pole before
  double kept_applied = 0;          // ‖(R' + δ b)⁻¹ G‖_F

  static constexpr double kUnknown = -1;

  // X ← −(R' + shift)⁻¹, lower triangle, in the precision of X; ‖X G‖_F to `applied`, and to `error`, in units of the
  // unit round-off, what rounding does to X G. False if R' + shift is not positive definite.
  template <class P>
  bool invert_shifted(double shift, P* X, P* spare, double& applied, double& error) const {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j <= i; ++j) X[i * n + j] = static_cast<P>(shrink * at.R[i * n + j]);
      X[i * n + i] += static_cast<P>(shift);
    }
    if (!invert_negated(*workspace.parallel, X, n, n, spare)) return false;
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum -= X[i * n + i];
    const double inverse = square_of_symmetric(X, n), size = std::sqrt(square + shift * (2 * trace + n * shift));
    // ‖X⁻¹ G‖² = tr X⁻¹ − shift ‖X⁻¹‖²
    applied = std::sqrt(std::max(std::fabs(sum - shift * inverse), unit_roundoff<P>() * sum));
    error = 2 * size * std::sqrt(inverse) * applied / n;
    return true;
  }

  // F += residue/(R' + shift) for pole j, or F = that; of kPlus's first pole the inverse stays in P. False if it is not
  // positive definite, or if rounding alone already exceeds what is allowed.
  bool add_pole(int64_t j, bool kept, double slope) {
    const double shift = delta * phi.pole[j], weight = gain * delta * phi.residue[j] + slope;
    double applied = 0, error = 0;
    if constexpr (std::is_same_v<T, double>) {
      // ‖X⁻¹‖ ‖X⁻¹ G‖ falls by about (shift/shift')^{3/2} from pole to pole; the attempt measures it.
      const auto expected = [&] {
        return last_in_float * std::fabs(weight / (gain * delta * phi.residue[j - 1])) *
               std::pow(phi.pole[j - 1] / phi.pole[j], 1.5);
      };
      const double left = (allowed - rounding.absolute) / 2;
      if (mixed && !kept && last_in_float != kUnknown && expected() < left) {
        float* const X = reinterpret_cast<float*>(at.X);
        if (invert_shifted(shift, X, reinterpret_cast<float*>(at.spare), applied, error)) {
          last_in_float = unit_roundoff<float>() * error * std::fabs(weight);
          if (last_in_float < left) {
            rounding.absolute += last_in_float;
            add(-weight, X, j == 0);
            return true;
          }
        }
      }
    }
    T* const X = kept ? at.P : at.X;
    if (!invert_shifted(shift, X, at.spare, applied, error)) return false;
    error *= std::fabs(weight);
    (kept ? kept_applied : last_in_float) = kept ? applied : unit_roundoff<float>() * error;
    rounding.absolute += unit_roundoff<T>() * error;
    add(-weight, X, j == 0);
    return rounding.absolute < kNormSlack * allowed;
  }

  // F += weight X, lower triangles; F = weight X where `first`.
  template <class P>
  void add(double weight, const P* X, bool first) {
    const T w = static_cast<T>(weight);
    for (int64_t i = 0; i < n; ++i) {
      T* const f = at.F + i * n;
      const P* const x = X + i * n;
      if (first)
        for (int64_t j = 0; j <= i; ++j) f[j] = w * x[j];
      else
        for (int64_t j = 0; j <= i; ++j) f[j] += w * x[j];
    }
  }

  // X ← −Q(R')⁻¹ δ⁻², full; R becomes R', full.
  bool invert_quadratic() {
    T *const R = at.R, *const X = at.X;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j <= i; ++j) R[i * n + j] *= shrink;
    mirror(R, n, n);
    const Operand<T> r{R, n, 1};
    multiply<T, T, T>(workspace, n, n, n, T(1), r, r, false, X, n, true);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j <= i; ++j) X[i * n + j] += static_cast<T>(delta * phi.b) * R[i * n + j];
      X[i * n + i] += static_cast<T>(delta * delta);
    }
    const double size = square / std::sqrt(static_cast<double>(n)) + std::sqrt(square_of_symmetric(X, n));
    if (!invert_negated(*workspace.parallel, X, n, n, at.spare)) return false;
    mirror(X, n, n);
    const double relative = 2 * unit_roundoff<T>() / n * size * std::sqrt(dot(X, X, n * n));
    if (phi.quadratic == Quadratic::kTimes) {
      rounding.relative = relative;
      return true;
    }
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum -= X[i * n + i];
    // ‖Q(R')⁻¹ G‖_F by 1/Q(y) ≤ max(1, b)/(y + b), and by y/Q(y) ≤ 1/(2 + b).
    const double applied =
        std::min(std::max(1.0, phi.b) / delta * kept_applied, std::sqrt(sum / (delta * (2 + phi.b))));
    // Q⁻¹ enters as (u − v p) Q⁻¹ with 0 ≤ v p ≤ v/b = u/2; half, as both bounds are loose.
    rounding.absolute += 0.5 * relative * applied * gain * delta * delta * phi.u;
    return true;
  }

  // F (+)= sign · A X, lower triangle, for A full and commuting with X.
  void add_product(T sign, const T* A, bool accumulate, T* F) {
    const Operand<T> a{A, n, 1}, x{at.X, n, 1};
    multiply<T, T, T>(workspace, n, n, n, sign, a, x, accumulate, F, n, true);
    rounding.absolute +=
        unit_roundoff<T>() * std::sqrt(dot(A, A, n * n) * dot(at.X, at.X, n * n) * trace) / static_cast<double>(n);
  }

  // F ← φ(R'/δ) · gain, full. False if a matrix is not positive definite or rounding beyond doubt too large.
  bool evaluate() {
    const bool plus = phi.quadratic == Quadratic::kPlus, times = phi.quadratic == Quadratic::kTimes;
    // The first pole of kPlus is b: y/Q(y) = p − p/Q(y) with p = 1/(y + b), which unlike R Q⁻¹ is never large.
    const double slope = plus ? gain * delta * phi.v : 0;
    if (times) mixed = false, allowed = std::numeric_limits<double>::infinity();  // the sum is not in the unit of T(G)
    for (int64_t j = 0; j < phi.poles; ++j) {
      const bool kept = plus && j == 0;
      if (!add_pole(j, kept, kept ? slope : 0)) return false;
    }
    if (phi.poles == 0) std::fill(at.F, at.F + n * n, T(0));
    for (int64_t i = 0; i < n; ++i) at.F[i * n + i] += static_cast<T>(gain * phi.constant);
    if (plus) {
      if (!invert_quadratic()) return false;
      add(-delta * delta * gain * phi.u, at.X, false);
      mirror(at.P, n, n);
      for (int64_t i = 0; i < n * n; ++i) at.P[i] *= static_cast<T>(slope * delta * delta);
      add_product(T(-1), at.P, true, at.F);
    } else if (times) {
      if (!invert_quadratic()) return false;
      const double before = rounding.absolute;
      rounding.relative += unit_roundoff<T>() * (top / delta + cancellation);
      for (int64_t i = 0; i < n * n; ++i) at.X[i] *= static_cast<T>(-delta * delta);
      if (phi.poles == 0) {
        add(gain * phi.constant, at.X, true);
      } else {
        mirror(at.F, n, n);
        add_product(T(1), at.F, false, at.P);
        std::swap(at.P, at.F);
      }
      rounding.absolute -= before;  // the sum is multiplied by Q⁻¹: its errors are relative to its own size
    }
    mirror(at.F, n, n);
    return true;
  }
};

}  // namespace
}  // namespace spectral_ext::cpu
