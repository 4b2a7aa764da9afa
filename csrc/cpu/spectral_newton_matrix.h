// Dense symmetric helpers of spectral_newton over the packed products: threaded products, dot products, the largest
// eigenvalue. Compiled once per instruction set: see cpu/simd_vectors.h.
#pragma once

#include "cpu/spectral_newton_product.h"

namespace spectral_ext::cpu {
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
};

// C (m × n) (+)= sign · A B on all threads of the workspace; `lower` as in product().
template <class SA, class SB, class T>
void multiply(const Workspace<T>& workspace, int64_t m, int64_t n, int64_t k, T sign, Operand<SA> A, Operand<SB> B,
              bool accumulate, T* C, int64_t ldc, bool lower) {
  const bool threaded = workspace.parallel->threads > 1 && static_cast<double>(m) * n * k > kWorthThreads;
  const ProductTask<SA, SB, T> task{
      m, n, k, threaded ? workspace.parallel->threads : 1, sign, A, B, accumulate, lower, C, ldc, &workspace};
  (*workspace.parallel)(task.tasks, [&](int64_t t) { task.run(t); });
}

// Copies the lower triangle of X to the upper, squares of vectors at a time in registers.
template <class T>
void mirror(T* X, int64_t n, int64_t ld) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t i0 = 0; i0 < n; i0 += lanes)
    for (int64_t j0 = 0; j0 <= i0; j0 += lanes) {
      if (i0 + lanes > n || i0 == j0) {
        for (int64_t i = i0; i < i0 + lanes && i < n; ++i)
          for (int64_t j = j0; j < j0 + lanes && j < i; ++j) X[j * ld + i] = X[i * ld + j];
        continue;
      }
      Vector<T> v[kLanes<T>];
      SPECTRAL_EXT_UNROLL
      for (int i = 0; i < lanes; ++i) v[i] = load(X + (i0 + i) * ld + j0);
      transpose_in_registers<T>(v);
      SPECTRAL_EXT_UNROLL
      for (int i = 0; i < lanes; ++i) store(X + (j0 + i) * ld + i0, v[i]);
    }
}

template <class T>
double sum_of_lanes(Vector<T> v) {
  T part[kLanes<T>];
  store(part, v);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) part[l] += part[l + half];
  return part[0];
}

template <class T>
double dot(const T* x, const T* y, int64_t n) {
  Vector<T> s0 = {}, s1 = {};
  int64_t i = 0;
  for (; i + kPanel<T> <= n; i += kPanel<T>) {
    s0 += load(x + i) * load(y + i);
    s1 += load(x + i + kLanes<T>) * load(y + i + kLanes<T>);
  }
  double sum = sum_of_lanes<T>(s0 + s1);
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * y[i];
  return sum;
}

// ‖X‖_F² of symmetric X (n × n), of which the lower triangle is read.
template <class T>
double square_of_symmetric(const T* X, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double pivot = X[i * n + i];
    sum += 2 * dot(X + i * n, X + i * n, i) + pivot * pivot;
  }
  return sum;
}

// y ← R x for symmetric R, of which the lower triangle is read, once; four rows at a time.
template <class T>
void multiply_symmetric(const T* R, int64_t n, const T* x, T* y) {
  constexpr int kRows = 4;
  for (int64_t first = 0; first < n; first += kRows) {
    const int64_t rows = n - first < kRows ? n - first : kRows,
                  whole = rows == kRows ? first / kLanes<T> * kLanes<T> : 0;
    Vector<T> s[kRows] = {};
    for (int64_t j = 0; j < whole; j += kLanes<T>) {
      const auto v = load(x + j);
      auto sum = load(y + j);
      SPECTRAL_EXT_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const auto row = load(R + (first + r) * n + j);
        s[r] += row * v;
        sum += x[first + r] * row;
      }
      store(y + j, sum);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = first + r;
      const T* row = R + i * n;
      double sum = sum_of_lanes<T>(s[r]) + static_cast<double>(row[i]) * x[i];
      for (int64_t j = whole; j < i; ++j) {
        sum += static_cast<double>(row[j]) * x[j];
        y[j] += x[i] * row[j];
      }
      y[i] = static_cast<T>(sum);
    }
  }
}

// Largest eigenvalue of the symmetric tridiagonal matrix (diagonal a, off-diagonal b), at least `low` and at most
// `high`, to `accuracy`: Sturm counts at growing steps above `low`, then bisection.
inline double largest_of_tridiagonal(const double* a, const double* b, int64_t n, double low, double high,
                                     double accuracy) {
  accuracy = std::max(accuracy, 1e-15);
  const auto above = [&](double value) {  // whether an eigenvalue is
    double q = a[0] - value;
    for (int64_t i = 1; i < n && q <= 0; ++i) q = a[i] - value - b[i - 1] * b[i - 1] / (q == 0 ? -1e-300 : q);
    return q > 0;
  };
  for (double step = accuracy * high; low + step < high; step *= 8) {
    if (!above(low + step)) {
      high = low + step;
      break;
    }
    low += step;
  }
  while (high - low > accuracy * high) {
    const double middle = 0.5 * (low + high);
    (above(middle) ? low : high) = middle;
  }
  return low;
}

constexpr int64_t kLanczosSteps = 96;
constexpr int64_t kLanczosVectors = kLanczosSteps + 1;

struct LargestEigenvalue {
  double value;
  bool converged;  // else too small, by an unknown amount
};

// λ_max of a positive semidefinite R (n × n, lower triangle) by Lanczos with full reorthogonalisation: Ritz values rise
// to λ_max with the square of the vector's error. Stops when four steps add less than `tolerance`, or where only
// rounding is left of a new vector: far too early, about once in 10⁵, where the start is nearly orthogonal to the top
// eigenvector, so that two starts settle it. `size`: ‖R‖_F. `basis`: 97 n elements.
template <class T>
LargestEigenvalue largest_eigenvalue(const T* R, int64_t n, double size, double tolerance, uint64_t start, T* basis) {
  double a[kLanczosSteps], b[kLanczosSteps], value = 0;
  const double rounding = std::numeric_limits<T>::epsilon() * size;
  uint64_t state = 0x9E3779B97F4A7C15ull * (2 * start + 1);
  for (int64_t i = 0; i < n; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    basis[i] = static_cast<T>(static_cast<int64_t>(state >> 33) - (int64_t{1} << 30)) / T(1 << 30);
  }
  const T unit = static_cast<T>(1 / std::sqrt(dot(basis, basis, n)));
  for (int64_t i = 0; i < n; ++i) basis[i] *= unit;
  for (int64_t k = 0; k < kLanczosSteps; ++k) {
    const T* v = basis + k * n;
    T* next = basis + (k + 1) * n;
    multiply_symmetric(R, n, v, next);
    a[k] = dot(next, v, n);
    // A second pass where the first cancelled most of the vector.
    for (int pass = 0; pass < 2 && (pass == 0 || b[k] < 0.1 * size); ++pass) {
      for (int64_t j = k; j >= 0; --j) {
        const T c = static_cast<T>(dot(next, basis + j * n, n));
        for (int64_t i = 0; i < n; ++i) next[i] -= c * basis[j * n + i];
      }
      b[k] = std::sqrt(dot(next, next, n));
    }
    const bool exhausted = k + 1 >= n || b[k] <= rounding;
    if (exhausted || k % 4 == 3) {
      const double last = value;
      value = largest_of_tridiagonal(a, b, k + 1, value, size * (1 + 1e-6) + 1e-300, 0.1 * tolerance);
      if (exhausted || value - last <= tolerance * value) return {value, true};
    }
    const T inverse = static_cast<T>(1 / b[k]);
    for (int64_t i = 0; i < n; ++i) next[i] *= inverse;
  }
  return {value, false};
}

}  // namespace
}  // namespace spectral_ext::cpu
