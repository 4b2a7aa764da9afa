// From lag sums to the factor: block (tap, tap') is the sum of a box of regions, or the transpose of that of (tap',
// tap).
//
// A block of threads writes rows (tap, eight channels) × columns (all taps, a strip of channels), staged in shared
// memory so that both the reads (rows of a region, or eight-wide pieces of its columns) and the writes (either column
// order) are contiguous. Element (i, j) and (j, i) add the same numbers in the same order: the factor is exactly
// symmetric.
#include "cuda/device.cuh"
#include "cuda/input_factor_lag.h"

namespace spectral_ext::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 8;
constexpr int kMaxTaps = 343;
constexpr int kPad = 4;  // of a staged row, against bank conflicts
constexpr int kStage = (kMaxTaps + kPad) * kRows;

// Numbers from one tap to the next in a staged row: neighbouring taps fall into different banks.
__host__ __device__ constexpr int tap_pitch(int strip) { return strip % 2 == 0 ? strip + kPad : strip; }

// Regions first + Σ_a i_a·stride_a for begin_a ≤ i_a < end_a; none where first is −1.
struct Box {
  int first, begin[3], end[3], stride[2];
  bool transposed;
};

__device__ __forceinline__ void split_tap(int tap, const int32_t (&kernel)[3], int (&out)[3]) {
  out[2] = tap % kernel[2], tap /= kernel[2];
  out[1] = tap % kernel[1];
  out[0] = tap / kernel[1];
}

__device__ __forceinline__ Box find_box(const LagExpansion& t, int row_tap, int column_tap) {
  Box box{-1, {0, 0, 0}, {0, 0, 0}, {0, 0}, false};
  for (int transposed = 0; transposed < 2 && box.first < 0; ++transposed) {
    int a[3], b[3], which[3];
    split_tap(transposed ? column_tap : row_tap, t.kernel, a);
    split_tap(transposed ? row_tap : column_tap, t.kernel, b);
    bool meets = true;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int32_t* pair = t.pairs[axis] + 3 * (a[axis] * t.kernel[axis] + b[axis]);
      which[axis] = pair[0], box.begin[axis] = pair[1], box.end[axis] = pair[2];
      meets &= which[axis] >= 0;
    }
    if (!meets) return box;
    box.first = t.first_region[(which[0] * t.classes[1] + which[1]) * t.classes[2] + which[2]];
    box.stride[1] = t.segments[2][which[2]];
    box.stride[0] = t.segments[1][which[1]] * box.stride[1];
    box.transposed = transposed != 0;
  }
  return box;
}

template <typename Acc>
__device__ __forceinline__ Acc sum_box(const Acc* state, const Box& box, int64_t matrix, int64_t element) {
  Acc total = 0;
  if (box.first < 0) return total;
  for (int i = box.begin[0]; i < box.end[0]; ++i)
    for (int j = box.begin[1]; j < box.end[1]; ++j)
      for (int k = box.begin[2]; k < box.end[2]; ++k)
        total += state[(box.first + i * box.stride[0] + j * box.stride[1] + k) * matrix + element];
  return total;
}

// Σ_y of the patch's entry (tap, channel).
template <typename Acc>
__device__ __forceinline__ Acc sum_patch(const Acc* sums, const LagExpansion& t, int tap, int channel, int channels) {
  int i[3];
  split_tap(tap, t.kernel, i);
  Box box{0, {0, 0, 0}, {0, 0, 0}, {0, 0}, false};
  int which[3];
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const int32_t* entry = t.taps[axis] + 3 * i[axis];
    which[axis] = entry[0], box.begin[axis] = entry[1], box.end[axis] = entry[2];
  }
  box.first = t.first_sum[(which[0] * t.sums[1] + which[1]) * t.sums[2] + which[2]];
  box.stride[1] = t.sum_segments[2][which[2]];
  box.stride[0] = t.sum_segments[1][which[1]] * box.stride[1];
  return sum_box(sums, box, channels, channel);
}

template <typename Acc>
__device__ __forceinline__ void put(Acc* out, const FactorOutput& o, int64_t row, int64_t column, Acc value) {
  Acc& element = out[row * o.row_stride + column * o.column_stride];
  const Acc beta = static_cast<Acc>(o.beta);
  value *= static_cast<Acc>(o.scale);
  element = beta == 0 ? value : beta * element + value;
}

// Grid (taps · ⌈channels/8⌉, ⌈channels/strip⌉, groups).
template <typename Acc>
__global__ void __launch_bounds__(kThreads, 2)
    expand(const Acc* state, LagSizes s, LagExpansion tables, bool channels_last, int strip, FactorOutput out) {
  __shared__ Acc stage[kStage];
  __shared__ Box boxes[kMaxTaps];
  const int taps = tables.kernel[0] * tables.kernel[1] * tables.kernel[2];
  const int row_tap = blockIdx.x % taps, first_row = blockIdx.x / taps * kRows, first_column = blockIdx.y * strip;
  const Acc* group_state = state + blockIdx.z * s.group_state_size;
  Acc* target = static_cast<Acc*>(out.data) + blockIdx.z * out.group_stride;
  const int64_t matrix = static_cast<int64_t>(s.channels) * s.channels;
  const auto position = [&](int tap, int channel) {
    return channels_last ? static_cast<int64_t>(tap) * s.channels + channel
                         : static_cast<int64_t>(channel) * taps + tap;
  };

  for (int tap = threadIdx.x; tap < taps; tap += kThreads) boxes[tap] = find_box(tables, row_tap, tap);
  __syncthreads();
  const int tap_width = tap_pitch(strip), pitch = taps * tap_width + kPad;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int kWarps = kThreads / 32;
  static_assert(kWarps == kRows && kRows == 8);
  for (int tap = warp; tap < taps; tap += kWarps) {
    const Box box = boxes[tap];
    // Lanes along what is contiguous: columns of the strip, or, of a transposed block, its eight rows.
#pragma unroll 1
    for (int i = 0; i < kRows; ++i) {
      const int r = box.transposed ? lane % kRows : i, c = box.transposed ? lane / kRows + i * (32 / kRows) : lane;
      const int row = first_row + r, column = first_column + c;
      if (c >= strip || row >= s.channels || column >= s.channels) continue;
      const int64_t element = box.transposed ? static_cast<int64_t>(column) * s.channels + row
                                             : static_cast<int64_t>(row) * s.channels + column;
      stage[r * pitch + tap * tap_width + c] = sum_box(group_state, box, matrix, element);
    }
  }
  __syncthreads();
  // Warp r writes row r: lanes along (tap, column) or (column, tap), whichever is contiguous, without a division each.
  const int row = first_row + warp, fast_size = channels_last ? strip : taps, count = strip * taps;
  if (row >= s.channels) return;
  int fast = lane % fast_size, slow = lane / fast_size;
  const int fast_step = 32 % fast_size, slow_step = 32 / fast_size;
  for (int i = lane; i < count; i += 32) {
    const int c = channels_last ? fast : slow, tap = channels_last ? slow : fast, column = first_column + c;
    if (column < s.channels)
      put(target, out, position(row_tap, row), position(tap, column), stage[warp * pitch + tap * tap_width + c]);
    fast += fast_step, slow += slow_step;
    if (fast >= fast_size) fast -= fast_size, ++slow;
  }
}

// The bias row and column. Grid (⌈(taps·channels + 1)/256⌉, groups).
template <typename Acc>
__global__ void __launch_bounds__(kThreads)
    expand_bias(const Acc* state, LagSizes s, LagExpansion tables, bool channels_last, FactorOutput out) {
  const int taps = tables.kernel[0] * tables.kernel[1] * tables.kernel[2];
  const int last = taps * s.channels, i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i > last) return;
  const Acc* sums = state + blockIdx.y * s.group_state_size + static_cast<int64_t>(s.regions) * s.channels * s.channels;
  Acc* target = static_cast<Acc*>(out.data) + blockIdx.y * out.group_stride;
  if (i == last) {
    put(target, out, last, last, sums[static_cast<int64_t>(s.sum_regions) * s.channels]);
    return;
  }
  const int tap = channels_last ? i / s.channels : i % taps;
  const int channel = channels_last ? i % s.channels : i / taps;
  const Acc value = sum_patch(sums, tables, tap, channel, s.channels);
  put(target, out, i, last, value);
  put(target, out, last, i, value);
}

}  // namespace

cudaError_t launch_lag_expand(const void* state, Dtype accumulator_dtype, const LagSizes& sizes,
                              const LagExpansion& tables, bool channels_last, const FactorOutput& out,
                              cudaStream_t stream) {
  const int64_t taps = static_cast<int64_t>(tables.kernel[0]) * tables.kernel[1] * tables.kernel[2];
  if (taps > kMaxTaps || sizes.groups > 65535 || sizes.channels < 1) return cudaErrorInvalidValue;
  if (taps * sizes.channels > 0x7fffffff - 2 * kThreads) return cudaErrorInvalidValue;  // expand_bias counts in 32 bits
  int strip = 32;
  while (strip > 1 && tap_pitch(strip) * taps > kMaxTaps) --strip;
  const int64_t row_blocks = taps * ((sizes.channels + kRows - 1) / kRows);
  const int strips = (sizes.channels + strip - 1) / strip;
  if (row_blocks > 0x7fffffff || strips > 65535) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(row_blocks), strips, sizes.groups);
  const auto run = [&](auto type) {
    using Acc = decltype(type);
    const Acc* source = static_cast<const Acc*>(state);
    const cudaError_t error =
        launch(expand<Acc>, grid, dim3(kThreads), 0, stream, source, sizes, tables, channels_last, strip, out);
    if (error != cudaSuccess || !sizes.bias) return error;
    const dim3 line(static_cast<unsigned>((taps * sizes.channels + kThreads) / kThreads), sizes.groups);
    return launch(expand_bias<Acc>, line, dim3(kThreads), 0, stream, source, sizes, tables, channels_last, out);
  };
  return accumulator_dtype == Dtype::kFloat64 ? run(double{}) : run(float{});
}

}  // namespace spectral_ext::cuda
