// X⁻¹ G by Cholesky and substitution, for α = 2: (n³/3 + 2 n² N) operations where an inverse and a product take
// n³ + 2 n² N, and no product with X⁻¹ to round. Compiled once per instruction set: see cpu/simd_vectors.h.
#pragma once

#include "cpu/spectral_newton_inverse.h"

namespace spectral_ext::cpu {
namespace {

// The side up to which reading the whole factor for each panel of G costs less than the inverse.
constexpr int64_t kSubstitutionSide = 1536;

template <class T>
constexpr int64_t substitution_scratch(int64_t n, int64_t threads) {
  return round_up<T>(n) * (2 * round_up<T>(n) + 1 + threads * kPanel<T>);
}

// out = weight · (shrink R + shift)⁻¹ G, or G times it where G is tall; the lower triangle of R is read.
template <class T>
struct Substitution {
  static constexpr int64_t W = kPanel<T>;
  const Parallel& parallel;
  const T* R;
  int64_t n, N;
  T shrink, shift, weight;
  Operand<T> g;  // its first axis is the long one
  bool wide;
  T *out, *scratch;
  int64_t depth = round_up<T>(n);
  T *factor = scratch, *transposed = factor + depth * depth, *reciprocals = transposed + depth * depth,
    *panels = reciprocals + depth;

  // L row panel by row panel, each against all columns before it.
  bool factorise() const {
    for (int64_t p = 0; p * W < n; ++p) {
      T *const P = factor + p * W * depth, *const diagonal = P + p * W * W;
      const int64_t rows = n - p * W < W ? n - p * W : W;
      pack(Operand<T>{R + p * W * n, n, 1, shrink}, rows, p * W + rows, P);
      std::fill(P + (p * W + rows) * W, P + (p + 1) * W * W, T(0));
      for (int64_t k = 0; k < rows; ++k) diagonal[k * W + k] += shift;
      for (int64_t k = rows; k < W; ++k) diagonal[k * W + k] = T(1);
      substitute(factor, reciprocals, depth, p * W, P);
      for (int64_t r = 0; r < W; r += kTileRows) tile(p * W, P + r, P, T(-1), true, diagonal + r * W, W, W, W);
      if (!cholesky_block(diagonal, reciprocals + p * W)) return false;
      for (int64_t q = 0; q <= p; ++q)
        pack(Operand<T>{P + q * W * W, W, 1}, W, W, transposed + q * W * depth + p * W * W);
    }
    return true;
  }
  void solve(int64_t panel, T* P) const {
    const int64_t first = panel * W, lanes = N - first < W ? N - first : W;
    pack(g.from_row(first), lanes, n, P);
    std::fill(P + n * W, P + depth * W, T(0));
    substitute(factor, reciprocals, depth, depth, P);
    substitute<true>(transposed, reciprocals, depth, depth, P);
    for (int64_t k = 0; wide && k < n; ++k)
      for (int64_t lane = 0; lane < lanes; ++lane) out[k * N + first + lane] = weight * P[k * W + lane];
    if (wide) return;
    for (int64_t k = 0; k < n * W; ++k) P[k] *= weight;
    for (int64_t k = 0; k < n; k += W) {  // W columns of the panel at a time, transposed
      T square[W * W];
      const int64_t columns = n - k < W ? n - k : W;
      pack(Operand<T>{P + k * W, W, 1}, columns, W, square);
      for (int64_t lane = 0; lane < lanes; ++lane)
        std::copy(square + lane * W, square + lane * W + columns, out + (first + lane) * n + k);
    }
  }
  // False if the matrix is not positive definite; `out` is then untouched.
  bool run() {
    if (!factorise()) return false;
    parallel(parallel.threads, [&](int64_t t) {
      for (int64_t p = t; p * W < N; p += parallel.threads) solve(p, panels + t * W * depth);
    });
    return true;
  }
};

}  // namespace
}  // namespace spectral_ext::cpu
