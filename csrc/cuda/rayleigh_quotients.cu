// Fused reduction of Rayleigh quotients: one read of P and Q gives all four outputs, summed in double in a fixed order.
//
// A block takes kSamples samples and kTile directions. Two thread layouts, by which axis of P is contiguous:
//   positions: a warp a (sample, direction), lanes along positions       (convolutions: P is (sample, k, position))
//   directions: lanes along directions, warps along positions            (linear layers: P is (sample, position, k))
#include "cuda/device.cuh"
#include "cuda/rayleigh_quotients.h"

namespace spectral_ext::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kSamples = 32;       // samples a block sums where each has several positions
constexpr int kManySamples = 512;  // where each has one

int64_t samples_per_row(const RayleighSizes& sizes) { return sizes.positions == 1 ? kManySamples : kSamples; }

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

template <typename T>
struct View {
  const T* data;
  int64_t sample_stride, direction_stride, position_stride;
  const T* shift;

  __device__ __forceinline__ double shift_of(int direction) const {
    return shift == nullptr ? 0.0 : static_cast<double>(widen(shift[direction]));
  }
};

// Block (32, kWarps), grid (rows, directions).
template <typename T>
__global__ void __launch_bounds__(32 * kWarps)
    along_positions(View<T> p, View<T> q, RayleighSizes sizes, int64_t samples_per_row, double* partials) {
  __shared__ double sums[kWarps][4];
  const int64_t row = blockIdx.x;
  const int direction = blockIdx.y;
  const int64_t begin = row * samples_per_row;
  const int64_t end = begin + samples_per_row < sizes.samples ? begin + samples_per_row : sizes.samples;
  const double shift = p.shift_of(direction);
  double output = 0, input = 0, product = 0, gauss_newton = 0;
  for (int64_t sample = begin + threadIdx.y; sample < end; sample += kWarps) {
    const T* a = p.data + sample * p.sample_stride + direction * p.direction_stride;
    const T* d = q.data + sample * q.sample_stride + direction * q.direction_stride;
    double inner = 0;
#pragma unroll 4
    for (int64_t position = threadIdx.x; position < sizes.positions; position += 32) {
      const double av = static_cast<double>(widen(a[position * p.position_stride])) + shift;
      const double dv = static_cast<double>(widen(d[position * q.position_stride]));
      output += dv * dv, input += av * av, product += (dv * dv) * (av * av), inner += dv * av;
    }
    inner = warp_sum(inner);
    gauss_newton += inner * inner;
  }
  output = warp_sum(output), input = warp_sum(input), product = warp_sum(product);
  if (threadIdx.x == 0) {
    sums[threadIdx.y][0] = output, sums[threadIdx.y][1] = input;
    sums[threadIdx.y][2] = product, sums[threadIdx.y][3] = gauss_newton;
  }
  __syncthreads();
  if (threadIdx.y == 0 && threadIdx.x < 4) {
    double total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += sums[warp][threadIdx.x];
    partials[(row * 4 + threadIdx.x) * sizes.directions + direction] = total;
  }
}

// Block (32, kWarps), grid (rows, ⌈directions/32⌉).
template <typename T>
__global__ void __launch_bounds__(32 * kWarps)
    along_directions(View<T> p, View<T> q, RayleighSizes sizes, int64_t samples_per_row, double* partials) {
  __shared__ double sums[kWarps][32];
  const int64_t row = blockIdx.x;
  const int direction = static_cast<int>(blockIdx.y * 32 + threadIdx.x);
  const bool inside = direction < sizes.directions;
  const int64_t begin = row * samples_per_row;
  const int64_t end = begin + samples_per_row < sizes.samples ? begin + samples_per_row : sizes.samples;
  const T* a = p.data + direction * p.direction_stride;
  const T* d = q.data + direction * q.direction_stride;
  const double shift = inside ? p.shift_of(direction) : 0;
  const bool single = sizes.positions == 1;
  double output = 0, input = 0, product = 0, gauss_newton = 0;
  if (single) {
#pragma unroll 4
    for (int64_t sample = begin + threadIdx.y; inside && sample < end; sample += kWarps) {
      const double av = static_cast<double>(widen(a[sample * p.sample_stride])) + shift;
      const double dv = static_cast<double>(widen(d[sample * q.sample_stride]));
      output += dv * dv, input += av * av, product += (dv * dv) * (av * av);
    }
    gauss_newton = product;
  }
  for (int64_t sample = begin; !single && sample < end; ++sample) {
    double inner = 0;
#pragma unroll 4
    for (int64_t position = threadIdx.y; inside && position < sizes.positions; position += kWarps) {
      const double av = static_cast<double>(widen(a[sample * p.sample_stride + position * p.position_stride])) + shift;
      const double dv = static_cast<double>(widen(d[sample * q.sample_stride + position * q.position_stride]));
      output += dv * dv, input += av * av, product += (dv * dv) * (av * av), inner += dv * av;
    }
    sums[threadIdx.y][threadIdx.x] = inner;
    __syncthreads();
    if (threadIdx.y == 0) {
      double total = 0;
      for (int warp = 0; warp < kWarps; ++warp) total += sums[warp][threadIdx.x];
      gauss_newton += total * total;
    }
    __syncthreads();
  }
  const double mine[4] = {output, input, product, gauss_newton};
#pragma unroll
  for (int o = 0; o < 4; ++o) {
    sums[threadIdx.y][threadIdx.x] = mine[o];
    __syncthreads();
    if (threadIdx.y == 0 && inside) {
      double total = 0;
      for (int warp = 0; warp < kWarps; ++warp) total += sums[warp][threadIdx.x];
      partials[(row * 4 + o) * sizes.directions + direction] = total;
    }
    __syncthreads();
  }
}

// Block (32, kWarps): warps along rows, lanes along directions. Grid (⌈directions/32⌉, 4).
template <typename Out>
__global__ void __launch_bounds__(32 * kWarps) finish(const double* partials, int64_t rows, int directions,
                                                      RayleighScales scales, Out* o0, Out* o1, Out* o2, Out* o3) {
  __shared__ double sums[kWarps][32];
  const int direction = static_cast<int>(blockIdx.x * 32 + threadIdx.x), o = blockIdx.y;
  double total = 0;
  for (int64_t row = threadIdx.y; direction < directions && row < rows; row += kWarps)
    total += partials[(row * 4 + o) * directions + direction];
  sums[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y != 0 || direction >= directions) return;
  total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += sums[warp][threadIdx.x];
  Out* out = o == 0 ? o0 : o == 1 ? o1 : o == 2 ? o2 : o3;
  const double scale = o == 0 ? scales.scale[0] : o == 1 ? scales.scale[1] : o == 2 ? scales.scale[2] : scales.scale[3];
  out[direction] = static_cast<Out>(total * scale);
}

template <typename T>
View<T> view(const Projections& p) {
  return {static_cast<const T*>(p.data), p.sample_stride, p.direction_stride, p.position_stride,
          static_cast<const T*>(p.shift)};
}

}  // namespace

int64_t rayleigh_partial_rows(const RayleighSizes& sizes) {
  return (sizes.samples + samples_per_row(sizes) - 1) / samples_per_row(sizes);
}

cudaError_t launch_rayleigh_partials(const Projections& p, const Projections& q, Dtype dtype,
                                     const RayleighSizes& sizes, double* partials, cudaStream_t stream) {
  const int64_t rows = rayleigh_partial_rows(sizes);
  if (rows == 0 || sizes.directions == 0) return cudaSuccess;
  if (rows > 0x7fffffff || sizes.directions > 65535) return cudaErrorInvalidValue;
  const bool positions = sizes.positions > 1 && p.position_stride == 1;
  const dim3 grid(static_cast<unsigned>(rows), positions ? sizes.directions : (sizes.directions + 31) / 32);
  return dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    return launch(positions ? along_positions<T> : along_directions<T>, grid, dim3(32, kWarps), 0, stream, view<T>(p),
                  view<T>(q), sizes, samples_per_row(sizes), partials);
  });
}

cudaError_t launch_rayleigh_finish(const double* partials, int64_t rows, int directions, const RayleighScales& scales,
                                   void* const (&out)[4], Dtype out_dtype, cudaStream_t stream) {
  if (directions == 0) return cudaSuccess;
  const dim3 grid((directions + 31) / 32, 4);
  return dispatch(out_dtype, [&](auto type) {
    using Out = Accumulator<decltype(type)>;
    return launch(finish<Out>, grid, dim3(32, kWarps), 0, stream, partials, rows, directions, scales,
                  static_cast<Out*>(out[0]), static_cast<Out*>(out[1]), static_cast<Out*>(out[2]),
                  static_cast<Out*>(out[3]));
  });
}

}  // namespace spectral_ext::cuda
