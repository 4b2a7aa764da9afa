// Dense symmetric helpers of spectral_newton over the packed products: threaded products, the inverse of a positive
// definite matrix, the largest eigenvalue. Included once per instruction set, after spectral_newton_product.h.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/spectral_newton_product.h"

namespace spectral_ext {
namespace {

template <class T>
struct Workspace {
  T* packing;  // `packing_size` elements a thread
  int64_t packing_size;
  const Parallel* parallel;
};

constexpr int64_t kRowBlock = 1024;    // rows of C per call: bounds the packed copy of A
constexpr double kWorthThreads = 4e6;  // multiply-adds below which threads cost more than they save

template <class SA, class SB, class T>
struct ProductTask {
  int64_t m, n, k, tasks;
  T sign;
  Operand<SA> A;
  Operand<SB> B;
  bool accumulate, lower;
  T* C;
  int64_t ldc;
  const Workspace<T>* workspace;

  // Rows of task t: equal areas, also of a triangle, in whole panels.
  int64_t row(int64_t t) const {
    if (t == tasks) return m;
    const double share = static_cast<double>(t) / tasks;
    return round_up<T>(static_cast<int64_t>(m * (lower ? std::sqrt(share) : share)));
  }
  void run(int64_t t) const {
    T* packing = workspace->packing + t * workspace->packing_size;
    const int64_t end = row(t + 1) < m ? row(t + 1) : m;
    for (int64_t i = row(t); i < end; i += kRowBlock) {
      const int64_t rows = end - i < kRowBlock ? end - i : kRowBlock;
      const int64_t columns = lower && i + rows < n ? i + rows : n;
      product<SA, SB, T>(rows, columns, k, sign, A.from_row(i), B, accumulate, C + i * ldc, ldc, lower, i, packing);
    }
  }
  static void call(void* self, int64_t t) { static_cast<const ProductTask*>(self)->run(t); }
};

// C (m × n) (+)= sign · A B on all threads of the workspace; `lower` as in product().
template <class SA, class SB, class T>
void multiply(const Workspace<T>& workspace, int64_t m, int64_t n, int64_t k, T sign, Operand<SA> A, Operand<SB> B,
              bool accumulate, T* C, int64_t ldc, bool lower) {
  const bool threaded = workspace.parallel->threads > 1 && static_cast<double>(m) * n * k > kWorthThreads;
  ProductTask<SA, SB, T> task{
      m, n, k, threaded ? workspace.parallel->threads : 1, sign, A, B, accumulate, lower, C, ldc, &workspace};
  if (threaded)
    workspace.parallel->run(task.tasks, &ProductTask<SA, SB, T>::call, &task);
  else
    task.run(0);
}

template <class T>
void mirror(T* X, int64_t n, int64_t ld) {
  constexpr int64_t block = 16;
  for (int64_t i0 = 0; i0 < n; i0 += block)
    for (int64_t j0 = 0; j0 <= i0; j0 += block)
      for (int64_t i = i0; i < i0 + block && i < n; ++i)
        for (int64_t j = j0; j < j0 + block && j < i; ++j) X[j * ld + i] = X[i * ld + j];
}

// The steps of X⁻¹ = L⁻ᵀ L⁻¹, X = L Lᵀ, by recursion down to one panel. Triangular solves at the bottom substitute:
// with explicit inverses of diagonal blocks instead, the error grows as the square of the condition number.

// Cholesky factor of one panel-sized block, in place below the diagonal. False if a pivot is not positive.
template <class T>
bool cholesky_block(T* X, int64_t n, int64_t ld) {
  using L = Lanes<T>;
  T t[L::width][L::width];  // becomes Lᵀ
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < L::width; ++j) t[i][j] = j >= n ? T(0) : j <= i ? X[i * ld + j] : X[j * ld + i];
  for (int64_t k = 0; k < n; ++k) {
    if (!(t[k][k] > T(0))) return false;
    const T inverse = T(1) / std::sqrt(t[k][k]);
    const auto p0 = L::load(t[k]) * inverse, p1 = L::load(t[k] + L::count) * inverse;
    L::store(t[k], p0);
    L::store(t[k] + L::count, p1);
    for (int64_t i = k + 1; i < n; ++i) {
      L::store(t[i], L::load(t[i]) - t[k][i] * p0);
      L::store(t[i] + L::count, L::load(t[i] + L::count) - t[k][i] * p1);
    }
  }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) X[i * ld + j] = t[j][i];
  return true;
}

// B (m × n) ← B L⁻ᵀ for L (n × n) lower, n at most a panel: substitution, W rows of B at a time.
template <class T>
void solve_block(const T* L_, int64_t n, T* B, int64_t m, int64_t ld) {
  using L = Lanes<T>;
  alignas(64) T t[L::width * L::width];
  for (int64_t i = 0; i < m; i += L::width) {
    const int64_t rows = m - i < L::width ? m - i : L::width;
    pack(Operand<T>{B + i * ld, ld, 1}, rows, n, t);
    for (int64_t j = 0; j < n; ++j) {
      auto v0 = L::load(t + j * L::width), v1 = L::load(t + j * L::width + L::count);
      for (int64_t k = 0; k < j; ++k) {
        v0 -= L_[j * ld + k] * L::load(t + k * L::width);
        v1 -= L_[j * ld + k] * L::load(t + k * L::width + L::count);
      }
      const T inverse = T(1) / L_[j * ld + j];
      L::store(t + j * L::width, v0 * inverse);
      L::store(t + j * L::width + L::count, v1 * inverse);
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < n; ++j) B[(i + r) * ld + j] = t[j * L::width + r];
  }
}

template <class T>
int64_t split(int64_t n) {
  return round_up<T>(n / 2 < Lanes<T>::width ? Lanes<T>::width : n / 2);
}

template <class T>
void solve(const Workspace<T>& workspace, const T* L, int64_t n, T* B, int64_t m, int64_t ld) {
  if (n <= Lanes<T>::width) return solve_block(L, n, B, m, ld);
  const int64_t h = split<T>(n);
  const Operand<T> first{B, ld, 1}, below{L + h * ld, ld, 1};
  solve(workspace, L, h, B, m, ld);
  multiply<T, T, T>(workspace, m, n - h, h, T(-1), first, below.transposed(), true, B + h, ld, false);
  solve(workspace, L + h * ld + h, n - h, B + h, m, ld);
}

template <class T>
bool cholesky(const Workspace<T>& workspace, T* X, int64_t n, int64_t ld) {
  if (n <= Lanes<T>::width) return cholesky_block(X, n, ld);
  const int64_t h = split<T>(n);
  T *const B = X + h * ld, *const C = B + h;
  if (!cholesky(workspace, X, h, ld)) return false;
  solve(workspace, X, h, B, n - h, ld);
  const Operand<T> b{B, ld, 1};
  multiply<T, T, T>(workspace, n - h, n - h, h, T(-1), b, b.transposed(), true, C, ld, true);
  return cholesky(workspace, C, n - h, ld);
}

// C (m × n) = sign · A B where A is lower (or, `upper`, upper) triangular, in strips of rows that skip its zeros.
template <class T>
void multiply_triangular(const Workspace<T>& workspace, int64_t m, int64_t n, T sign, Operand<T> A, bool upper,
                         Operand<T> B, T* C, int64_t ldc) {
  const int64_t strip = m > 8 * Lanes<T>::width ? round_up<T>(m / 4) : m;
  for (int64_t i = 0; i < m; i += strip) {
    const int64_t rows = m - i < strip ? m - i : strip, k0 = upper ? i : 0, k1 = upper ? m : i + rows;
    multiply<T, T, T>(workspace, rows, n, k1 - k0, sign, A.from_row(i).from_column(k0), B.from_row(k0), false,
                      C + i * ldc, ldc, false);
  }
}

// L ← L⁻¹, lower triangular; what is above the diagonal becomes zero. `spare`: n²/4 elements.
template <class T>
void invert_lower(const Workspace<T>& workspace, T* L, int64_t n, int64_t ld, T* spare) {
  if (n <= Lanes<T>::width) {
    T t[Lanes<T>::width][Lanes<T>::width] = {};
    for (int64_t i = 0; i < n; ++i) {
      const T inverse = T(1) / L[i * ld + i];
      for (int64_t k = 0; k < i; ++k)
        for (int64_t j = 0; j < Lanes<T>::width; ++j) t[i][j] -= L[i * ld + k] * t[k][j];
      for (int64_t j = 0; j < i; ++j) t[i][j] *= inverse;
      t[i][i] = inverse;
    }
    for (int64_t i = 0; i < n; ++i) std::copy(t[i], t[i] + n, L + i * ld);
    return;
  }
  const int64_t h = split<T>(n), rest = n - h;
  T *const B = L + h * ld, *const C = B + h;
  invert_lower(workspace, L, h, ld, spare);
  invert_lower(workspace, C, rest, ld, spare);
  // −C⁻¹ (B A⁻¹): the inner product transposed, (A⁻ᵀ Bᵀ)ᵀ, so that the triangular factor is on the left.
  const Operand<T> a{L, ld, 1}, b{B, ld, 1}, c{C, ld, 1}, w{spare, rest, 1};
  multiply_triangular(workspace, h, rest, T(1), a.transposed(), true, b.transposed(), spare, rest);
  multiply_triangular(workspace, rest, h, T(-1), c, false, w.transposed(), B, ld);
  for (int64_t i = 0; i < h; ++i) std::fill(L + i * ld + h, L + i * ld + n, T(0));
}

// M ← Mᵀ M, of which the lower triangle is right, for M lower triangular with zeros above. `spare`: n²/4 elements.
template <class T>
void gram_of_lower(const Workspace<T>& workspace, T* M, int64_t n, int64_t ld, T* spare) {
  if (n <= Lanes<T>::width) {
    T t[Lanes<T>::width][Lanes<T>::width] = {};
    for (int64_t k = 0; k < n; ++k)
      for (int64_t i = 0; i <= k; ++i)
        for (int64_t j = 0; j < n; ++j) t[i][j] += M[k * ld + i] * M[k * ld + j];
    for (int64_t i = 0; i < n; ++i) std::copy(t[i], t[i] + n, M + i * ld);
    return;
  }
  const int64_t h = split<T>(n), rest = n - h;
  T *const B = M + h * ld, *const C = B + h;
  const Operand<T> b{B, ld, 1}, c{C, ld, 1};
  gram_of_lower(workspace, M, h, ld, spare);
  multiply<T, T, T>(workspace, h, h, rest, T(1), b.transposed(), b, true, M, ld, true);
  multiply_triangular(workspace, rest, h, T(1), c.transposed(), true, b, spare, h);
  for (int64_t i = 0; i < rest; ++i) std::copy(spare + i * h, spare + (i + 1) * h, B + i * ld);
  gram_of_lower(workspace, C, rest, ld, spare);
}

// X ← X⁻¹, full, for X positive definite, of which the lower triangle is read. `spare`: n²/4 elements. False if X is
// not positive definite.
template <class T>
bool invert(const Workspace<T>& workspace, T* X, int64_t n, int64_t ld, T* spare) {
  if (!cholesky(workspace, X, n, ld)) return false;
  invert_lower(workspace, X, n, ld, spare);
  gram_of_lower(workspace, X, n, ld, spare);
  mirror(X, n, ld);
  return true;
}

template <class T>
double dot(const T* x, const T* y, int64_t n) {
  using L = Lanes<T>;
  typename L::Vector s0 = {}, s1 = {};
  int64_t i = 0;
  for (; i + L::width <= n; i += L::width) {
    s0 += L::load(x + i) * L::load(y + i);
    s1 += L::load(x + i + L::count) * L::load(y + i + L::count);
  }
  s0 += s1;
  double sum = 0;
  for (int l = 0; l < L::count; ++l) sum += s0[l];
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * y[i];
  return sum;
}

// Largest eigenvalue of the symmetric tridiagonal matrix (diagonal a, off-diagonal b), by bisection on Sturm counts.
inline double largest_of_tridiagonal(const double* a, const double* b, int64_t n, double low, double high) {
  for (int step = 0; step < 60 && high - low > 1e-14 * high; ++step) {
    const double middle = 0.5 * (low + high);
    bool above = false;
    for (double q = 1, i = 0; !above && i < n; ++i) {
      const int64_t k = static_cast<int64_t>(i);
      q = a[k] - middle - (k ? b[k - 1] * b[k - 1] / q : 0);
      if (q == 0) q = -1e-300;
      above = q > 0;
    }
    (above ? low : high) = middle;
  }
  return low;
}

constexpr int64_t kLanczosSteps = 96;

// λ_max of a positive semidefinite R (n × n, full) by Lanczos with full reorthogonalisation: Ritz values rise to λ_max
// with the square of the vector's error. Stops when four steps add less than `tolerance`. `basis`: 97 n elements.
template <class T>
double largest_eigenvalue(const T* R, int64_t n, double tolerance, T* basis) {
  double a[kLanczosSteps], b[kLanczosSteps], trace = 0, value = 0;
  for (int64_t i = 0; i < n; ++i) trace += R[i * n + i];
  uint64_t state = 0x9E3779B97F4A7C15ull;
  for (int64_t i = 0; i < n; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    basis[i] = static_cast<T>(static_cast<int64_t>(state >> 33) - (int64_t{1} << 30)) / T(1 << 30);
  }
  double norm = std::sqrt(dot(basis, basis, n));
  for (int64_t i = 0; i < n; ++i) basis[i] = static_cast<T>(basis[i] / norm);
  for (int64_t k = 0; k < kLanczosSteps; ++k) {
    const T* v = basis + k * n;
    T* next = basis + (k + 1) * n;
    for (int64_t i = 0; i < n; ++i) next[i] = static_cast<T>(dot(R + i * n, v, n));
    a[k] = dot(next, v, n);
    for (int pass = 0; pass < 2; ++pass)
      for (int64_t j = k; j >= 0; --j) {
        const T c = static_cast<T>(dot(next, basis + j * n, n));
        for (int64_t i = 0; i < n; ++i) next[i] -= c * basis[j * n + i];
      }
    b[k] = std::sqrt(dot(next, next, n));
    const bool exhausted = k + 1 >= n || b[k] <= 1e-7 * trace / n;
    if (exhausted || k % 4 == 3) {
      const double before = value;
      value = largest_of_tridiagonal(a, b, k + 1, value, trace * (1 + 1e-6) + 1e-300);
      if (exhausted || value - before <= tolerance * value) break;
    }
    for (int64_t i = 0; i < n; ++i) next[i] = static_cast<T>(next[i] / b[k]);
  }
  return value;
}

}  // namespace
}  // namespace spectral_ext
