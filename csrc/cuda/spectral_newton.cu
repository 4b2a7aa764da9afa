// Spectral Newton for many small matrices (n ≤ 160) in three launches, exact fp32:
//   gram      R = G Gᵀ in slices of the large side, one block a slice
//   weights   f(R) = c I + Σ_j w_j (R + p_j I)⁻¹: the matrix lives in the registers of one block, and each inverse is n
//   steps of
//             Gauss–Jordan elimination, stable without pivoting for positive definite matrices: a rank-1 update a step
//   apply     f(R) G, one block a strip of columns
// Matrices are padded: with zeros, and with ones on the diagonal of what is inverted. 160 is what one block's registers
// hold.
#include "cuda/device.cuh"
#include "cuda/spectral_newton.h"

namespace spectral_ext::cuda {
namespace {

constexpr int kDepth = 16;         // columns of G, or rows of f(R), a step
constexpr int kSliceLength = 256;  // columns of G a gram block sums

struct alignas(16) Quad {
  float v[4];
};

// A thread's fragment of a kSide·kFragment square: rows index(ty, i), columns index(tx, j).
template <int kSideSize, int kFragmentSize>
struct Config {
  static constexpr int kSide = kSideSize, kFragment = kFragmentSize, kBlocks = kFragment / 4;
  static constexpr int kThreads = kSide * kSide, kPad = kSide * kFragment;
  __device__ static __forceinline__ int index(int t, int i) { return 4 * (t + i / 4 * kSide) + i % 4; }
};

// Products of tiles: 64 × 64, 256 threads.
constexpr int kTile = 64, kTileThreads = 256;
using Tile = Quad[kDepth][kTile / 4];

// values(k, i) for all of a tile; neighbouring threads take neighbouring k where depth_fast, neighbouring i otherwise.
template <typename Values>
__device__ __forceinline__ void fill(Tile& tile, bool depth_fast, const Values& values) {
#pragma unroll
  for (int l = 0; l < kDepth * kTile / kTileThreads; ++l) {
    const int e = threadIdx.x + l * kTileThreads;
    const int k = depth_fast ? e % kDepth : e / kTile, i = depth_fast ? e / kDepth : e % kTile;
    tile[k][i / 4].v[i % 4] = values(k, i);
  }
}

__device__ __forceinline__ void multiply(const Tile& left, const Tile& right, int ty, int tx, float (&sum)[4][4]) {
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    const Quad a = left[k][ty], b = right[k][tx];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] += a.v[i] * b.v[j];
  }
}

// Grid (slices, (pad/64)², batch). partials: (batch, slices, pad, pad).
template <typename T>
__global__ void __launch_bounds__(kTileThreads) gram(const T* G, NewtonSizes s, int pad, float* partials) {
  __shared__ Tile left, right;
  const int ty = threadIdx.x / 16, tx = threadIdx.x % 16, tiles = pad / kTile;
  const int first_row = blockIdx.y / tiles * kTile, first_column = blockIdx.y % tiles * kTile;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kSliceLength;
  const int64_t end = begin + kSliceLength < s.length ? begin + kSliceLength : s.length;
  const T* matrix = G + blockIdx.z * s.input.matrix;
  const bool wide = s.input.large_side == 1;
  float sum[4][4] = {};
  for (int64_t first = begin; first < end; first += kDepth) {
    const auto element = [&](int k, int i) {
      const bool inside = i < s.n && first + k < end;
      return inside ? widen(matrix[i * s.input.small_side + (first + k) * s.input.large_side]) : 0.0f;
    };
    __syncthreads();
    fill(left, wide, [&](int k, int i) { return element(k, first_row + i); });
    fill(right, wide, [&](int k, int i) { return element(k, first_column + i); });
    __syncthreads();
    multiply(left, right, ty, tx, sum);
  }
  float* target = partials + (static_cast<int64_t>(blockIdx.z) * gridDim.x + blockIdx.x) * pad * pad;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) target[(first_row + 4 * ty + i) * pad + first_column + 4 * tx + j] = sum[i][j];
}

// In-place inverse of a positive definite matrix held in registers. Returns 0, or 1 + the first bad pivot; same for all
// threads.
template <class C>
__device__ __forceinline__ int invert(float (&a)[C::kFragment][C::kFragment], int n, int ty, int tx,
                                      Quad (&row)[2][C::kPad / 4], Quad (&column)[2][C::kPad / 4]) {
  int bad = 0;
#pragma unroll
  for (int block = 0; block < C::kBlocks; ++block)
    for (int t = 0; t < C::kSide; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int quad = t + block * C::kSide, k = 4 * quad + e, r = 4 * block + e;
        constexpr int kBuffers = 2;
        const int buffer =
            e % kBuffers;  // in turn: one barrier a step parts its writes from the reads two steps before
        if (k >= n) continue;
        if (ty == t) {
#pragma unroll
          for (int j = 0; j < C::kFragment; ++j) row[buffer][tx + j / 4 * C::kSide].v[j % 4] = a[r][j], a[r][j] = 0;
        }
        if (tx == t) {
      // Where ty == t too, a[r][r] is already 0 and its value in row. −1 makes row k come out as row/pivot.
#pragma unroll
          for (int i = 0; i < C::kFragment; ++i)
            column[buffer][ty + i / 4 * C::kSide].v[i % 4] = ty == t && i == r ? -1.0f : a[i][r], a[i][r] = 0;
        }
        __syncthreads();
        const float pivot = row[buffer][quad].v[e];
        if (bad == 0 && !(pivot > 0.0f && pivot < 3.0e38f)) bad = k + 1;
        const float inverse = 1.0f / pivot;
        Quad b[C::kBlocks];
#pragma unroll
        for (int j = 0; j < C::kBlocks; ++j) {
          b[j] = row[buffer][tx + j * C::kSide];
#pragma unroll
          for (int v = 0; v < 4; ++v) b[j].v[v] *= inverse;
        }
        if (tx == t) b[block].v[e] = inverse;
#pragma unroll
        for (int i = 0; i < C::kBlocks; ++i) {
          const Quad f = column[buffer][ty + i * C::kSide];
#pragma unroll
          for (int v = 0; v < 4; ++v)
#pragma unroll
            for (int j = 0; j < C::kFragment; ++j) a[4 * i + v][j] -= f.v[v] * b[j / 4].v[j % 4];
        }
      }
  __syncthreads();  // the buffers may be written again
  return bad;
}

// Grid (batch). f: (batch, pad, pad), of which the leading C::kPad rows and columns are read and written.
template <class C>
__global__ void __launch_bounds__(C::kThreads)
    weights(const float* partials, NewtonSizes s, NewtonCoefficients coefficients, int slices, int pad, float* f,
            int32_t* status) {
  __shared__ Quad row[2][C::kPad / 4], column[2][C::kPad / 4];
  const int matrix = blockIdx.x, ty = threadIdx.x / C::kSide, tx = threadIdx.x % C::kSide;
  const int64_t area = static_cast<int64_t>(pad) * pad;
  const float* R = partials + matrix * slices * area;
  float* target = f + matrix * area;
  int bad = 0;
  for (int term = 0; term < s.terms; ++term) {
    const float pole = coefficients.poles[static_cast<int64_t>(matrix) * s.terms + term];
    float a[C::kFragment][C::kFragment] = {};
    for (int slice = 0; slice < slices; ++slice)
#pragma unroll
      for (int i = 0; i < C::kFragment; ++i)
#pragma unroll
        for (int j = 0; j < C::kFragment; ++j) a[i][j] += R[slice * area + C::index(ty, i) * pad + C::index(tx, j)];
    if (ty == tx) {
#pragma unroll
      for (int i = 0; i < C::kFragment; ++i) a[i][i] = C::index(ty, i) < s.n ? a[i][i] + pole : 1.0f;
    }
    const int failed = invert<C>(a, s.n, ty, tx, row, column);
    bad = bad == 0 ? failed : bad;
    const float weight = coefficients.weights[static_cast<int64_t>(matrix) * s.terms + term];
    const float constant = coefficients.constant[matrix];
#pragma unroll
    for (int i = 0; i < C::kFragment; ++i)
#pragma unroll
      for (int j = 0; j < C::kFragment; ++j) {
        const int r = C::index(ty, i), c = C::index(tx, j);
        float& element = target[r * pad + c];
        const float start = term > 0 ? element : r == c ? constant : 0.0f;
        element = r < s.n && c < s.n ? start + weight * a[i][j] : 0.0f;
      }
  }
  if (threadIdx.x == 0) status[matrix] = bad;
}

// Grid (⌈length/64⌉, pad/64, batch).
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    apply(const T* G, const float* f, NewtonSizes s, int pad, const int32_t* status, float scale, float beta, T* out) {
  __shared__ Tile left, right;
  const int matrix = blockIdx.z, ty = threadIdx.x / 16, tx = threadIdx.x % 16, first_row = blockIdx.y * kTile;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * kTile;
  const float* weight = f + static_cast<int64_t>(matrix) * pad * pad;
  const T* input = G + matrix * s.input.matrix;
  T* output = out + matrix * s.output.matrix;
  const bool wide = s.input.large_side == 1, good = status[matrix] == 0;
  float sum[4][4] = {};
  for (int first = 0; good && first < s.n; first += kDepth) {
    __syncthreads();
    // f(R) is symmetric up to rounding: a row is read where its column is meant, which is coalesced.
    fill(left, false, [&](int k, int i) { return weight[(first + k) * pad + first_row + i]; });
    fill(right, !wide, [&](int k, int c) {
      const bool inside = first + k < s.n && first_column + c < s.length;
      return inside ? widen(input[(first + k) * s.input.small_side + (first_column + c) * s.input.large_side]) : 0.0f;
    });
    __syncthreads();
    multiply(left, right, ty, tx, sum);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int r = first_row + 4 * ty + i;
      const int64_t c = first_column + 4 * tx + j;
      if (r >= s.n || c >= s.length) continue;
      T& element = output[r * s.output.small_side + c * s.output.large_side];
      const float value = scale * sum[i][j];
      element = narrow<T>(beta == 0.0f ? value : beta * widen(element) + value);
    }
}

int pad_of(int n) { return n <= 64 ? 64 : n <= 128 ? 128 : 192; }

int64_t slices_of(const NewtonSizes& s) { return s.length > 0 ? (s.length + kSliceLength - 1) / kSliceLength : 1; }

template <typename T>
cudaError_t run(const void* G, void* out, const NewtonSizes& s, const NewtonCoefficients& coefficients, float scale,
                float beta, int32_t* status, float* scratch, cudaStream_t stream) {
  const int slices = static_cast<int>(slices_of(s)), pad = pad_of(s.n), tiles = pad / kTile;
  float* f = scratch + static_cast<int64_t>(s.batch) * slices * pad * pad;
  const T* input = static_cast<const T*>(G);
  cudaError_t error =
      launch(gram<T>, dim3(slices, tiles * tiles, s.batch), dim3(kTileThreads), 0, stream, input, s, pad, scratch);
  if (error != cudaSuccess) return error;
  const auto invert_all = [&](auto config) {
    using C = decltype(config);
    return launch(weights<C>, dim3(s.batch), dim3(C::kThreads), 0, stream, scratch, s, coefficients, slices, pad, f,
                  status);
  };
  error = pad == 64    ? invert_all(Config<16, 4>{})
          : pad == 128 ? invert_all(Config<16, 8>{})
                       : invert_all(Config<20, 8>{});
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>((s.length + kTile - 1) / kTile), tiles, s.batch);
  return launch(apply<T>, grid, dim3(kTileThreads), 0, stream, input, f, s, pad, status, scale, beta,
                static_cast<T*>(out));
}

}  // namespace

int64_t newton_scratch(const NewtonSizes& s) {
  const int64_t pad = pad_of(s.n);
  return s.batch * (slices_of(s) + 1) * pad * pad;
}

cudaError_t launch_spectral_newton(const void* G, void* out, Dtype dtype, const NewtonSizes& sizes,
                                   const NewtonCoefficients& coefficients, float scale, float beta, int32_t* status,
                                   float* scratch, cudaStream_t stream) {
  if (sizes.batch == 0 || sizes.n == 0 || sizes.length == 0) return cudaSuccess;
  if (sizes.n > kNewtonMaxSide || sizes.terms < 1 || sizes.batch > 65535 || sizes.length > (int64_t{1} << 30))
    return cudaErrorInvalidValue;
  switch (dtype) {
    case Dtype::kFloat32:
      return run<float>(G, out, sizes, coefficients, scale, beta, status, scratch, stream);
    case Dtype::kBFloat16:
      return run<__nv_bfloat16>(G, out, sizes, coefficients, scale, beta, status, scratch, stream);
    case Dtype::kFloat16:
      return run<__half>(G, out, sizes, coefficients, scale, beta, status, scratch, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace spectral_ext::cuda
