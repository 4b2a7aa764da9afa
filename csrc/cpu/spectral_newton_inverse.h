// The inverse of a positive definite matrix in one sweep. Compiled once per instruction set: see
// cpu/simd_vectors.h.
//
// X = L Lᵀ, M = L⁻¹, X⁻¹ = Mᵀ M, all in the lower triangle of X, block column by block column. When column block k is
// done, row block i and column block j hold: X⁻¹ so far, negated, for i, j ≤ k; −Σ L M, which is M before its own
// triangular solve, for j ≤ k < i; and the Schur complement for i, j > k. With W_i = L_ik for i > k, W_k = L_kk⁻ᵀ and
// W_j = M_kjᵀ for j < k, all three advance by the same (i, j) −= W_i W_jᵀ: n³ operations in symmetric products of the
// whole width, where Cholesky, inversion and product one after the other work on ever smaller blocks.
// Solves substitute: with explicit inverses of diagonal blocks the error grows as the square of the condition number.
#pragma once

#include "cpu/spectral_newton_matrix.h"

namespace spectral_ext::cpu {
namespace {

// Columns per step: each sweeps over the whole triangle in memory, so more where that outgrows the second cache.
template <class T>
constexpr int64_t sweep_columns(int64_t n) {
  return kPanel<T> * (n <= 256 ? 1 : n <= 768 ? 2 : 4);
}

template <class T>
constexpr int64_t inverse_scratch(int64_t n) {
  const int64_t block = sweep_columns<T>(n);
  return (round_up<T>(n) + block + 1) * block;
}

// Cholesky factor of one packed diagonal block t[k][row], row ≥ k: t becomes Lᵀ. False if a pivot is not positive.
template <class T>
bool cholesky_block(T* t, T* reciprocals) {
  constexpr int64_t W = kPanel<T>;
  for (int64_t k = 0; k < W; ++k) {
    const T pivot = t[k * W + k];
    if (!(pivot > T(0))) return false;
    const T inverse = T(1) / std::sqrt(pivot);
    reciprocals[k] = inverse;
    const auto p0 = load(t + k * W) * inverse, p1 = load(t + k * W + kLanes<T>) * inverse;
    store(t + k * W, p0);
    store(t + k * W + kLanes<T>, p1);
    for (int64_t i = k + 1; i < W; ++i) {
      store(t + i * W, load(t + i * W) - t[k * W + i] * p0);
      store(t + i * W + kLanes<T>, load(t + i * W + kLanes<T>) - t[k * W + i] * p1);
    }
  }
  return true;
}

// The first `columns` of P ← P L⁻ᵀ for one packed panel P; L packed likewise, `depth` columns a panel. With `kBack`,
// P ← P L⁻¹ from Lᵀ so packed, the last column first.
template <bool kBack = false, class T>
void substitute(const T* L_, const T* reciprocals, int64_t depth, int64_t columns, T* P) {
  constexpr int R = kTileRows;
  constexpr int64_t W = kPanel<T>;
  for (int64_t done = 0; done < columns; done += R) {
    const int64_t c = kBack ? columns - R - done : done;
    const T* l = L_ + c / W * W * depth + c % W;  // the factor's element (c + r, k) is l[k W + r]
    Vector<T> v[R][2];
    SPECTRAL_EXT_UNROLL
    for (int r = 0; r < R; ++r) v[r][0] = load(P + (c + r) * W), v[r][1] = load(P + (c + r) * W + kLanes<T>);
    for (int64_t k = kBack ? c + R : 0, end = kBack ? columns : c; k < end; ++k) {
      const auto p0 = load(P + k * W), p1 = load(P + k * W + kLanes<T>);
      SPECTRAL_EXT_UNROLL
      for (int r = 0; r < R; ++r) v[r][0] -= l[k * W + r] * p0, v[r][1] -= l[k * W + r] * p1;
    }
    SPECTRAL_EXT_UNROLL
    for (int i = 0; i < R; ++i) {
      const int r = kBack ? R - 1 - i : i;
      SPECTRAL_EXT_UNROLL
      for (int j = 0; j < i; ++j) {
        const int q = kBack ? R - 1 - j : j;
        v[r][0] -= l[(c + q) * W + r] * v[q][0];
        v[r][1] -= l[(c + q) * W + r] * v[q][1];
      }
      v[r][0] *= reciprocals[c + r];
      v[r][1] *= reciprocals[c + r];
      store(P + (c + r) * W, v[r][0]);
      store(P + (c + r) * W + kLanes<T>, v[r][1]);
    }
  }
}

// One step of the sweep: columns first, …, first + count − 1 of X, as packed panels of W rows and `depth` columns.
template <class T>
struct Sweep {
  static constexpr int64_t W = kPanel<T>;
  T* X;
  int64_t n, ld, first, count, depth, tasks;
  T *panels, *factor, *reciprocals;

  int64_t panel_count() const { return round_up<T>(n) / W; }
  T* panel(int64_t p) const { return panels + p * W * depth; }
  bool own(int64_t p) const { return p * W >= first && p * W < first + count; }

  void gather(int64_t p) const {
    const int64_t row = p * W, rows = n - row < W ? n - row : W;
    if (row < first)
      pack(Operand<T>{X + first * ld + row, 1, ld}, W, count, panel(p));
    else
      pack(Operand<T>{X + row * ld + first, ld, 1}, rows, count, panel(p));
    std::fill(panel(p) + count * W, panel(p) + depth * W, T(0));
  }
  // The Cholesky factor of the diagonal block, into `factor`; its own panels become the identity.
  bool factorise() const {
    const int64_t start = first / W;
    for (int64_t q = 0; q * W < depth; ++q) {
      T *const P = panel(start + q), *const diagonal = P + q * W * W;
      gather(start + q);
      for (int64_t k = count - q * W; k < W; ++k) diagonal[k * W + k] = T(1);  // padding
      substitute(factor, reciprocals, depth, q * W, P);
      for (int64_t r = 0; r < W; r += kTileRows) tile(q * W, P + r, P, T(-1), true, diagonal + r * W, W, W, W);
      if (!cholesky_block(diagonal, reciprocals + q * W)) return false;
      std::copy(P, P + (q + 1) * W * W, factor + q * W * depth);
      std::fill(P, P + W * depth, T(0));
      for (int64_t k = 0; k < W; ++k) diagonal[k * W + k] = T(1);
    }
    return true;
  }
  void solve(int64_t p) const {
    if (!own(p)) gather(p);
    substitute(factor, reciprocals, depth, depth, panel(p));
  }
  void update(int64_t i) const {
    for (int64_t j = 0; j <= i; ++j)
      for (int64_t r = 0; r < W && i * W + r < n; r += kTileRows)
        tile(count, panel(i) + r, panel(j), T(-1), !own(i) && !own(j), X + (i * W + r) * ld + j * W, ld, n - i * W - r,
             n - j * W);
  }
  // Task t takes every tasks-th panel, so that tasks share the triangle evenly.
  void run(const Parallel& parallel) const {
    parallel(tasks, [&](int64_t t) {
      for (int64_t p = t; p < panel_count(); p += tasks) solve(p);
    });
    parallel(tasks, [&](int64_t t) {
      for (int64_t p = t; p < panel_count(); p += tasks) update(p);
    });
  }
};

// The lower triangle of X ← −X⁻¹ for X (n × n) positive definite, of which the lower triangle is read. Above the
// diagonal nothing is kept. `scratch`: inverse_scratch(n) elements. False if X is not positive definite.
template <class T>
bool invert_negated(const Parallel& parallel, T* X, int64_t n, int64_t ld, T* scratch) {
  const int64_t block = sweep_columns<T>(n);
  T *const factor = scratch + round_up<T>(n) * block, *const reciprocals = factor + block * block;
  const bool threaded = parallel.threads > 1 && static_cast<double>(n) * n * block > kWorthThreads;
  for (int64_t first = 0; first < n; first += block) {
    const int64_t count = n - first < block ? n - first : block;
    Sweep<T> sweep{X,       n,      ld,         first, count, round_up<T>(count), threaded ? parallel.threads : 1,
                   scratch, factor, reciprocals};
    if (!sweep.factorise()) return false;
    sweep.run(parallel);
  }
  return true;
}

}  // namespace
}  // namespace spectral_ext::cpu
