// The bias column of lag sums: Σ of x over each region of a LagSum, in double and in a fixed order.
#include "cuda/lag_units.cuh"

namespace spectral_ext::cuda {
namespace {

// Σ over a region's rows of x, for the bias column. Block (32, 8): lanes along channels. Grid (sum regions, slices,
// groups · ⌈channels/32⌉).
template <typename T>
__global__ void __launch_bounds__(256)
    sum_rows(const T* x, LagSizes s, const LagSumRegion* regions, Accumulator<T>* scratch) {
  __shared__ double sums[8][32];
  const LagSumRegion region = regions[blockIdx.x];
  const int strips = (s.channels + 31) / 32, group = blockIdx.z / strips;
  const int channel = static_cast<int>(blockIdx.z % strips * 32 + threadIdx.x);
  const int64_t rows = s.batch * region.extent[0] * region.extent[1] * region.extent[2];
  const T* base = x + static_cast<int64_t>(group) * s.channels + region.offset + channel;
  double total = 0;
  for (int64_t row = blockIdx.y * 8 + threadIdx.y; channel < s.channels && row < rows; row += 8 * gridDim.y) {
    const Cursor c = cursor_at(row, s.batch, region.extent);
    total += static_cast<double>(widen(
        base[c.sample * s.batch_stride + c.pixel[0] * s.step[0] + c.pixel[1] * s.step[1] + c.pixel[2] * s.step[2]]));
  }
  sums[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y != 0 || channel >= s.channels) return;
  total = 0;
  for (int i = 0; i < 8; ++i) total += sums[i][threadIdx.x];
  scratch[((static_cast<int64_t>(blockIdx.y) * s.groups + group) * s.sum_regions + blockIdx.x) * s.channels + channel] =
      static_cast<Accumulator<T>>(total);
}

// Grid (⌈sum_regions·channels/256⌉, groups).
template <typename Acc>
__global__ void __launch_bounds__(256) add_row_sums(const Acc* scratch, LagSizes s, Acc* state, Acc scale, Acc beta) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t count = static_cast<int64_t>(s.sum_regions) * s.channels;
  Acc* target = state + blockIdx.y * s.group_state_size + static_cast<int64_t>(s.regions) * s.channels * s.channels;
  if (i == 0) put(target, count, scale * static_cast<Acc>(s.count), beta);
  if (i >= count) return;
  double total = 0;
  for (int slice = 0; slice < s.sum_slices; ++slice)
    total += static_cast<double>(scratch[(static_cast<int64_t>(slice) * s.groups + blockIdx.y) * count + i]);
  put(target, i, scale * static_cast<Acc>(total), beta);
}

template <typename T>
cudaError_t run(const void* x, const LagSizes& s, const LagSumRegion* regions, void* state, double scale, double beta,
                void* scratch, cudaStream_t stream) {
  using Acc = Accumulator<T>;
  Acc* sums = static_cast<Acc*>(scratch);
  if (s.sum_regions > 0) {
    const dim3 grid(s.sum_regions, s.sum_slices, s.groups * ((s.channels + 31) / 32));
    const cudaError_t error =
        launch(sum_rows<T>, grid, dim3(32, 8), 0, stream, static_cast<const T*>(x), s, regions, sums);
    if (error != cudaSuccess) return error;
  }
  const int64_t count = static_cast<int64_t>(s.sum_regions) * s.channels;
  return launch(add_row_sums<Acc>, dim3(static_cast<unsigned>(count / 256 + 1), s.groups), dim3(256), 0, stream, sums,
                s, static_cast<Acc*>(state), static_cast<Acc>(scale), static_cast<Acc>(beta));
}

}  // namespace

cudaError_t launch_lag_row_sums(const void* x, Dtype dtype, const LagSizes& sizes, const LagSumRegion* regions,
                                void* state, double scale, double beta, void* scratch, cudaStream_t stream) {
  return dispatch(
      dtype, [&](auto type) { return run<decltype(type)>(x, sizes, regions, state, scale, beta, scratch, stream); });
}

}  // namespace spectral_ext::cuda
