// Spectral Newton for many small matrices (n ≤ 160) in four launches, exact fp32:
//   gram      R = G Gᵀ in slices of the large side, one block per slice and tile
//   weights   w_j (R + p_j I)⁻¹, one block per matrix and pole, which holds it in registers
//   add       f(R) = c I + Σ_j w_j (R + p_j I)⁻¹, in the order of the poles
//   apply     f(R) G, one block per strip of columns
// Matrices are padded: with zeros, and with ones on the diagonal of what is inverted. 160 is what one block's registers
// hold.
#include "cuda/device.cuh"
#include "cuda/spectral_newton.h"
#include "cuda/spectral_newton_invert.cuh"

namespace spectral_ext::cuda {
namespace {

constexpr int kDepth = 16;         // columns of G, or rows of f(R), a step
constexpr int kSliceLength = 256;  // columns of G a gram block sums

// Products of tiles: 64 × 64, 256 threads.
constexpr int kTile = 64, kTileThreads = 256;
using Tile = Quad[kDepth][kTile / 4 + 1];  // a row more than it holds: neighbours along the depth take other banks

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

// Grid (batch, terms). f: (terms, batch, pad, pad), of which the leading C::kPad rows and columns are written;
// failures: (terms, batch).
template <class C>
__global__ void __launch_bounds__(C::kThreads)
    weights(const float* partials, NewtonSizes s, NewtonCoefficients coefficients, int slices, int pad, float* f,
            int32_t* failures) {
  __shared__ Quad row[2][C::kPad / 4], column[2][C::kPad / 4];
  const int matrix = blockIdx.x, term = blockIdx.y, ty = threadIdx.x / C::kSide, tx = threadIdx.x % C::kSide;
  const int64_t area = static_cast<int64_t>(pad) * pad;
  const int64_t coefficient = static_cast<int64_t>(matrix) * s.terms + term;
  float a[C::kFragment][C::kFragment] = {};
#pragma unroll 1
  for (int slice = 0; slice < slices; ++slice) {
    const float* R = partials + (static_cast<int64_t>(matrix) * slices + slice) * area;
#pragma unroll
    for (int i = 0; i < C::kFragment; ++i) {
      const Quad* line = reinterpret_cast<const Quad*>(R + C::index(ty, i) * pad) + tx;
#pragma unroll
      for (int j = 0; j < C::kFragment; ++j) a[i][j] += line[j / 4 * C::kSide].v[j % 4];
    }
  }
  if (ty == tx) {
#pragma unroll
    for (int i = 0; i < C::kFragment; ++i)
      a[i][i] = C::index(ty, i) < s.n ? a[i][i] + coefficients.poles[coefficient] : 1.0f;
  }
  const int failed = invert<C>(a, s.n, ty, tx, row, column);
  const float weight = coefficients.weights[coefficient];
  float* target = f + (static_cast<int64_t>(term) * s.batch + matrix) * area;
#pragma unroll
  for (int i = 0; i < C::kFragment; ++i) {
    Quad* line = reinterpret_cast<Quad*>(target + C::index(ty, i) * pad) + tx;
#pragma unroll
    for (int j = 0; j < C::kBlocks; ++j)
      line[j * C::kSide] = {
          {weight * a[i][4 * j], weight * a[i][4 * j + 1], weight * a[i][4 * j + 2], weight * a[i][4 * j + 3]}};
  }
  if (threadIdx.x == 0) failures[static_cast<int64_t>(term) * s.batch + matrix] = failed;
}

// f(R) to the first term's place. Grid (pad²/256, batch).
__global__ void __launch_bounds__(kTileThreads)
    add(float* f, NewtonSizes s, const float* constants, int pad, const int32_t* failures, int32_t* status) {
  const int matrix = blockIdx.y, element = static_cast<int>(blockIdx.x * kTileThreads + threadIdx.x);
  const int64_t area = static_cast<int64_t>(pad) * pad;
  const int r = element / pad, c = element % pad;
  float sum = r == c ? constants[matrix] : 0.0f;
#pragma unroll 4
  for (int term = 0; term < s.terms; ++term)
    if (r < s.n && c < s.n) sum += f[(static_cast<int64_t>(term) * s.batch + matrix) * area + element];
  f[matrix * area + element] = r < s.n && c < s.n ? sum : 0.0f;
  if (element != 0) return;
  int bad = 0;
  for (int term = s.terms - 1; term >= 0; --term) {
    const int failed = failures[static_cast<int64_t>(term) * s.batch + matrix];
    bad = failed != 0 ? failed : bad;
  }
  status[matrix] = bad;
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
  int32_t* failures = reinterpret_cast<int32_t*>(f + static_cast<int64_t>(s.batch) * s.terms * pad * pad);
  const T* input = static_cast<const T*>(G);
  cudaError_t error =
      launch(gram<T>, dim3(slices, tiles * tiles, s.batch), dim3(kTileThreads), 0, stream, input, s, pad, scratch);
  if (error != cudaSuccess) return error;
  const auto invert_all = [&](auto config) {
    using C = decltype(config);
    return launch(weights<C>, dim3(s.batch, s.terms), dim3(C::kThreads), 0, stream, scratch, s, coefficients, slices,
                  pad, f, failures);
  };
  error = pad == 64    ? invert_all(Config<16, 4>{})
          : pad == 128 ? invert_all(Config<16, 8>{})
                       : invert_all(Config<20, 8>{});
  if (error != cudaSuccess) return error;
  error = launch(add, dim3(pad * pad / kTileThreads, s.batch), dim3(kTileThreads), 0, stream, f, s,
                 coefficients.constant, pad, failures, status);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>((s.length + kTile - 1) / kTile), tiles, s.batch);
  return launch(apply<T>, grid, dim3(kTileThreads), 0, stream, input, f, s, pad, status, scale, beta,
                static_cast<T*>(out));
}

}  // namespace

int64_t newton_scratch(const NewtonSizes& s) {
  const int64_t pad = pad_of(s.n);
  return s.batch * ((slices_of(s) + s.terms) * pad * pad + s.terms);
}

cudaError_t launch_spectral_newton(const void* G, void* out, Dtype dtype, const NewtonSizes& sizes,
                                   const NewtonCoefficients& coefficients, float scale, float beta, int32_t* status,
                                   float* scratch, cudaStream_t stream) {
  if (sizes.batch == 0 || sizes.n == 0 || sizes.length == 0) return cudaSuccess;
  if (sizes.n > kNewtonMaxSide || sizes.terms < 1 || sizes.terms > 65535 || sizes.batch > 65535 ||
      sizes.length > (int64_t{1} << 30))
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
