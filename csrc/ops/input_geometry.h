// From tensor shapes and schema arguments to a Geometry, with the checks that every device shares.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "common/lag_plan.h"

namespace spectral_ext {

struct GeometryArguments {
  std::vector<int64_t> kernel_size, stride, padding, dilation;
  int64_t groups;
  bool bias, transposed;
  std::vector<int64_t> output_padding;
};

// shape: (batch, channels, axes…) of a convolution, (rows, n) of a linear layer, where kernel_size is empty.
inline Geometry make_geometry(const std::vector<int64_t>& shape, const GeometryArguments& arguments) {
  Geometry g;
  const int64_t dims = static_cast<int64_t>(arguments.kernel_size.size());
  STD_TORCH_CHECK(dims <= kAxes, "kernel_size: at most three spatial dimensions, not ", dims);
  STD_TORCH_CHECK(static_cast<int64_t>(shape.size()) == 2 + dims, "x must have ", 2 + dims, " dimensions, not ",
                  shape.size());
  for (const auto* list : {&arguments.stride, &arguments.padding, &arguments.dilation, &arguments.output_padding})
    STD_TORCH_CHECK(static_cast<int64_t>(list->size()) == dims, "one number a spatial dimension is needed");
  g.batch = shape[0], g.channels = shape[1], g.groups = arguments.groups, g.bias = arguments.bias;
  STD_TORCH_CHECK(g.groups > 0 && g.channels % g.groups == 0, "groups = ", g.groups, " does not divide the ",
                  g.channels, " channels of x");
  for (int64_t i = 0; i < dims; ++i) {
    Axis& axis = g.axes[kAxes - dims + i];
    axis = {shape[2 + i],          arguments.kernel_size[i],    arguments.stride[i], arguments.padding[i],
            arguments.dilation[i], arguments.output_padding[i], arguments.transposed};
    STD_TORCH_CHECK(axis.kernel > 0 && axis.stride > 0 && axis.dilation > 0 && axis.padding >= 0,
                    "kernel_size, stride and dilation must be positive, padding not negative");
    STD_TORCH_CHECK(axis.size > 0 && axis.positions() > 0, "spatial dimension ", i, " of size ", axis.size,
                    " leaves no output position for kernel_size ", axis.kernel, ", padding ", axis.padding,
                    ", dilation ", axis.dilation);
  }
  return g;
}

inline std::vector<int64_t> shape_of(const torch::stable::Tensor& x) {
  std::vector<int64_t> shape(x.dim());
  for (int64_t i = 0; i < x.dim(); ++i) shape[i] = x.size(i);
  return shape;
}

// float64 sums in float64, everything else in float32.
inline torch::headeronly::ScalarType accumulator_of(const torch::stable::Tensor& x) {
  using torch::headeronly::ScalarType;
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
                      type == ScalarType::Half,
                  "x must be float32, float64, bfloat16 or float16");
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_output(const torch::stable::Tensor& out, const torch::stable::Tensor& x, int64_t numel,
                         const char* name) {
  STD_TORCH_CHECK(out.scalar_type() == accumulator_of(x), name, " must be ",
                  accumulator_of(x) == torch::headeronly::ScalarType::Double ? "float64" : "float32", " for this x");
  STD_TORCH_CHECK(out.numel() == numel && out.is_contiguous(), name, " must be contiguous and hold ", numel,
                  " numbers");
}

}  // namespace spectral_ext
