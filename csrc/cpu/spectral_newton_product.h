// Packed matrix products. Compiled once per instruction set: see cpu/simd_vectors.h.
// Own products because a vendor library may refuse its widest kernels on another vendor's processor (MKL runs AVX2 code
// on AVX-512 machines of AMD), because half of a symmetric product is enough, and because packing reads any strides.
// Both operands are packed into panels of W = 2 vectors: panel p holds rows pW … pW+W−1 as [k][W], zero-padded.
#pragma once

namespace spectral_ext::cpu {
namespace {

constexpr int kTileRows = kVectorBytes == 64 ? 8 : 4;  // rows of C per tile: their sums fill the registers
template <class T>
constexpr int64_t kPanel = 2 * kLanes<T>;

template <class T>
struct Operand {  // element (i, j) is scale · data[i * row + j * column]
  const T* data;
  int64_t row, column;
  T scale = T(1);
  Operand transposed() const { return {data, column, row, scale}; }
  Operand from_row(int64_t i) const { return {data + i * row, row, column, scale}; }
  Operand from_column(int64_t j) const { return {data + j * column, row, column, scale}; }
};

constexpr int64_t kDepth = 256;    // k per pass: a panel of either operand stays in the first cache
constexpr int64_t kColumns = 256;  // columns of C per packed block

template <class T>
constexpr int64_t round_up(int64_t n) {
  return (n + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
}

// Elements of packing scratch that product() needs for m rows and n columns.
template <class T>
constexpr int64_t product_scratch(int64_t m, int64_t n) {
  return kDepth * (round_up<T>(m) + (n < kColumns ? round_up<T>(n) : kColumns));
}

// Panels of rows of X (rows × depth).
template <class S, class T>
void pack(Operand<S> X, int64_t rows, int64_t depth, T* out) {
  constexpr int64_t W = kPanel<T>, lanes = kLanes<T>;
  for (int64_t i0 = 0; i0 < rows; i0 += W, out += W * depth) {
    const int64_t height = rows - i0 < W ? rows - i0 : W;
    const S* x = X.data + i0 * X.row;
    if (height == W && X.row == 1) {
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t i = 0; i < W; ++i) out[k * W + i] = static_cast<T>(x[k * X.column + i] * X.scale);
      continue;
    }
    int64_t k0 = 0;
    if constexpr (std::is_same_v<S, T>) {
      if (height == W && X.column == 1)
        for (; k0 + lanes <= depth; k0 += lanes)
          for (int64_t half = 0; half < W; half += lanes) {
            Vector<T> v[kLanes<T>];
            SPECTRAL_EXT_UNROLL
            for (int i = 0; i < lanes; ++i) v[i] = load(x + (half + i) * X.row + k0) * X.scale;
            transpose_in_registers<T>(v);
            SPECTRAL_EXT_UNROLL
            for (int i = 0; i < lanes; ++i) store(out + (k0 + i) * W + half, v[i]);
          }
    }
    for (; k0 < depth; ++k0) {
      for (int64_t i = 0; i < height; ++i) out[k0 * W + i] = static_cast<T>(x[i * X.row + k0 * X.column] * X.scale);
      for (int64_t i = height; i < W; ++i) out[k0 * W + i] = T(0);
    }
  }
}

// One tile: kTileRows × W of C (+)= sign · A B, from a slice of a panel of A and a panel of B.
template <class T>
SPECTRAL_EXT_INLINE void tile(int64_t depth, const T* a, const T* b, T sign, bool accumulate, T* c, int64_t ldc,
                              int64_t rows, int64_t columns) {
  constexpr int R = kTileRows;
  constexpr int64_t W = kPanel<T>;
  Vector<T> acc[R][2] = {};
  for (int64_t k = 0; k < depth; ++k, a += W, b += W) {
    const auto b0 = load(b), b1 = load(b + kLanes<T>);
    SPECTRAL_EXT_UNROLL
    for (int r = 0; r < R; ++r) {
      acc[r][0] += a[r] * b0;
      acc[r][1] += a[r] * b1;
    }
  }
  if (rows >= R && columns >= W) {
    SPECTRAL_EXT_UNROLL
    for (int r = 0; r < R; ++r) SPECTRAL_EXT_UNROLL
    for (int h = 0; h < 2; ++h) {
      T* p = c + r * ldc + h * kLanes<T>;
      store(p, accumulate ? load(p) + sign * acc[r][h] : sign * acc[r][h]);
    }
    return;
  }
  T rest[R][kPanel<T>];
  SPECTRAL_EXT_UNROLL
  for (int r = 0; r < R; ++r) {
    store(rest[r], acc[r][0]);
    store(rest[r] + kLanes<T>, acc[r][1]);
  }
  for (int64_t r = 0; r < (rows < R ? rows : R); ++r)
    for (int64_t j = 0; j < (columns < W ? columns : W); ++j)
      c[r * ldc + j] = (accumulate ? c[r * ldc + j] : T(0)) + sign * rest[r][j];
}

// C (m × n, row-major) (+)= sign · A (m × k) B (k × n). With `lower`, only tiles that meet the lower triangle of the
// matrix whose row `first_row` is row 0 of C; first_row is a multiple of W. Elements become T on packing.
template <class SA, class SB, class T>
void product(int64_t m, int64_t n, int64_t k, T sign, Operand<SA> A, Operand<SB> B, bool accumulate, T* C, int64_t ldc,
             bool lower, int64_t first_row, T* scratch) {
  constexpr int64_t W = kPanel<T>;
  T* const packed_a = scratch;
  T* const packed_b = scratch + kDepth * round_up<T>(m);
  if (k == 0 && !accumulate)
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) C[i * ldc + j] = T(0);
  for (int64_t k0 = 0; k0 < k; k0 += kDepth) {
    const int64_t depth = k - k0 < kDepth ? k - k0 : kDepth;
    pack(A.from_column(k0), m, depth, packed_a);
    const Operand<SB> columns = B.from_row(k0).transposed();
    const bool same = static_cast<const void*>(columns.data) == A.data + k0 * A.column && columns.row == A.row &&
                      columns.column == A.column && std::is_same_v<SA, SB>;
    for (int64_t j0 = 0; j0 < n; j0 += kColumns) {
      const int64_t block = n - j0 < kColumns ? n - j0 : kColumns;
      const T* b = packed_b;
      if (same && n <= m)
        b = packed_a + j0 * depth;  // kColumns is a multiple of W, so panels coincide
      else
        pack(columns.from_row(j0), block, depth, packed_b);
      for (int64_t i = 0; i < m; i += W) {
        const T* a = packed_a + i * depth;
        for (int64_t j = 0; j < block; j += W) {
          if (lower && j0 + j >= first_row + i + W) break;
          for (int64_t r = 0; r < W && i + r < m; r += kTileRows)
            tile(depth, a + r, b + j * depth, sign, accumulate || k0 > 0, C + (i + r) * ldc + j0 + j, ldc, m - i - r,
                 block - j);
        }
      }
    }
  }
}

}  // namespace
}  // namespace spectral_ext::cpu
