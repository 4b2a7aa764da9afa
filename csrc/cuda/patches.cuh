// Reading the patches of a convolution where they lie in its input.
#pragma once
#include "cuda/device.cuh"
#include "cuda/input_factor_direct.h"

namespace spectral_ext::cuda {
namespace {

// Offsets of a column and a row add up to an element's, on axes whose `up` is 1; read() adds those of the others.
struct Column {
  int64_t offset;
  int start[3];  // tap·step + start
  int kind;      // 0 outside the patch, 1 patch, 2 ones
  int index;     // in the order (channel, tap), with the ones last
};

struct Row {
  int64_t offset;
  int base[3];  // y·down
  bool inside;
};

// Entry i of the patches of a group: in the order (tap, channel) if s.channels_last, else (channel, tap).
__device__ __forceinline__ Column decode_column(const DirectSizes& s, int group, int i) {
  const int taps = s.axes[0].kernel * s.axes[1].kernel * s.axes[2].kernel;
  const int patch = s.group_channels * taps;
  Column column{0, {0, 0, 0}, i < patch ? 1 : s.bias && i == patch ? 2 : 0, i};
  if (column.kind != 1) return column;
  const int channel = s.channels_last ? i % s.group_channels : i / taps;
  int tap = s.channels_last ? i / s.group_channels : i % taps;
  column.index = channel * taps + tap;
  column.offset = (static_cast<int64_t>(group) * s.group_channels + channel) * s.channel_stride;
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    column.start[a] = tap % s.axes[a].kernel * s.axes[a].step + s.axes[a].start;
    tap /= s.axes[a].kernel;
    if (s.axes[a].up == 1) column.offset += column.start[a] * s.axis_stride[a];
  }
  return column;
}

// Row `row` of all patches: its output position, then its sample.
__device__ __forceinline__ Row decode_row(const DirectSizes& s, int64_t row, int64_t end) {
  Row result{0, {0, 0, 0}, row < end};
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    result.base[a] = static_cast<int>(row % s.axes[a].positions) * s.axes[a].down;
    row /= s.axes[a].positions;
    if (s.axes[a].up == 1) result.offset += result.base[a] * s.axis_stride[a];
  }
  result.offset += row * s.batch_stride;
  return result;
}

// load(offset), 0 in the padding, 1 in the column of ones.
template <typename Acc, typename Load>
__device__ __forceinline__ Acc read_patch(const DirectSizes& s, const Row& row, const Column& column,
                                          const Load& load) {
  if (!row.inside || column.kind == 0) return 0;
  if (column.kind == 2) return 1;
  int64_t offset = row.offset + column.offset;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const int scaled = row.base[a] + column.start[a];
    if (s.axes[a].up == 1) {
      if (scaled < 0 || scaled >= s.axes[a].size) return 0;
      continue;
    }
    const int h = scaled / s.axes[a].up;
    if (scaled < 0 || h >= s.axes[a].size || h * s.axes[a].up != scaled) return 0;
    offset += h * s.axis_stride[a];
  }
  return load(offset);
}

}  // namespace
}  // namespace spectral_ext::cuda
