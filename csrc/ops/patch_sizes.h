// A convolution and the strides of its input, as the CUDA kernels that read patches in place take them.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include "common/geometry.h"
#include "cuda/input_factor_direct.h"

namespace spectral_ext {

inline cuda::DirectSizes patch_sizes(const torch::stable::Tensor& x, const Geometry& g, bool channels_last_order) {
  cuda::DirectSizes s{};
  s.batch = g.batch, s.groups = static_cast<int>(g.groups), s.group_channels = static_cast<int>(g.group_channels());
  s.batch_stride = x.stride(0), s.channel_stride = x.stride(1);
  s.bias = g.bias, s.channels_last = channels_last_order;
  const int64_t dims = x.dim() - 2;
  for (int64_t a = 0; a < kAxes; ++a) {
    const Axis& axis = g.axes[a];
    const int64_t step = axis.kernel > 1 ? axis.offset(1) - axis.offset(0) : 0;
    s.axes[a] = {static_cast<int>(axis.size),     static_cast<int>(axis.kernel), static_cast<int>(axis.positions()),
                 static_cast<int>(axis.up()),     static_cast<int>(axis.down()), static_cast<int>(step),
                 static_cast<int>(axis.offset(0))};
    s.axis_stride[a] = a >= kAxes - dims ? x.stride(2 + a - (kAxes - dims)) : 0;
  }
  return s;
}

}  // namespace spectral_ext
