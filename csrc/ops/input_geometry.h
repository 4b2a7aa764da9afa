// From tensor shapes and schema arguments to a Geometry, with the checks that every device shares.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <limits>
#include <utility>
#include <vector>

#include "common/lag_plan.h"
#include "ops/check_tensor.h"

namespace spectral_ext {

struct GeometryArguments {
  std::vector<int64_t> kernel_size, stride, padding, dilation;
  int64_t groups;
  bool bias, transposed;
  std::vector<int64_t> output_padding;
};

// Bounds on what a caller may ask for: below them no product of a geometry's numbers leaves int64.
constexpr int64_t kLargestNumber = std::numeric_limits<int32_t>::max();  // of a list or a spatial size
constexpr int64_t kMostTaps = 1 << 14;                                   // plans hold every pair of taps
constexpr int64_t kMostPhases = 1 << 20;
constexpr int64_t kMostElements = int64_t{1} << 56;

inline int64_t checked_product(std::initializer_list<int64_t> factors, int64_t most, const char* what) {
  int64_t product = 1;
  for (const int64_t factor : factors)
    STD_TORCH_CHECK(!__builtin_mul_overflow(product, factor, &product) && product <= most, what, ": more than ", most);
  return product;
}

// shape: (batch, channels, axes…) of a convolution, (rows, n) of a linear layer, where kernel_size is empty.
inline Geometry make_geometry(const std::vector<int64_t>& shape, const GeometryArguments& arguments) {
  Geometry g;
  const int64_t dims = static_cast<int64_t>(arguments.kernel_size.size());
  STD_TORCH_CHECK(dims <= kAxes, "kernel_size: at most three spatial dimensions, not ", dims);
  STD_TORCH_CHECK(static_cast<int64_t>(shape.size()) == 2 + dims, "x must have ", 2 + dims,
                  " dimensions where kernel_size has ", dims, " numbers, not ", shape.size());
  const std::pair<const std::vector<int64_t>*, const char*> lists[] = {{&arguments.kernel_size, "kernel_size"},
                                                                       {&arguments.stride, "stride"},
                                                                       {&arguments.padding, "padding"},
                                                                       {&arguments.dilation, "dilation"},
                                                                       {&arguments.output_padding, "output_padding"}};
  for (const auto& [list, name] : lists) {
    STD_TORCH_CHECK(static_cast<int64_t>(list->size()) == dims, name, " must have one number per spatial dimension, ",
                    dims, ", not ", list->size());
    const int64_t least = list == &arguments.padding || list == &arguments.output_padding ? 0 : 1;
    for (const int64_t number : *list)
      STD_TORCH_CHECK(number >= least && number <= kLargestNumber, name, " must be from ", least, " to ",
                      kLargestNumber, ", not ", number);
  }
  for (const int64_t size : shape) STD_TORCH_CHECK(size >= 0, "sizes must not be negative, and one is ", size);
  g.batch = shape[0], g.channels = shape[1], g.groups = arguments.groups, g.bias = arguments.bias;
  STD_TORCH_CHECK(g.groups > 0 && g.channels % g.groups == 0, "groups = ", g.groups, " does not divide the ",
                  g.channels, " channels of x");
  STD_TORCH_CHECK(dims > 0 || (g.groups == 1 && !arguments.transposed),
                  "groups and transposed belong to a convolution: give its kernel_size");
  for (int64_t i = 0; i < dims; ++i) {
    Axis& axis = g.axes[kAxes - dims + i];
    axis = {shape[2 + i],          arguments.kernel_size[i],    arguments.stride[i], arguments.padding[i],
            arguments.dilation[i], arguments.output_padding[i], arguments.transposed};
    STD_TORCH_CHECK(arguments.transposed || axis.output_padding == 0,
                    "output_padding belongs to a transposed convolution");
    STD_TORCH_CHECK(axis.size <= kLargestNumber, "spatial sizes must be at most ", kLargestNumber, ", not ", axis.size);
    STD_TORCH_CHECK(axis.size > 0 && axis.positions() > 0, "spatial dimension ", i, " of size ", axis.size,
                    " leaves no output position for kernel_size ", axis.kernel, ", padding ", axis.padding,
                    ", dilation ", axis.dilation);
    // With one output position the stride has no effect: the smallest that leaves one keeps plans small.
    if (!axis.transposed && axis.positions() == 1) axis.stride = axis.size + 2 * axis.padding - axis.extent() + 1;
  }
  const auto& axes = g.axes;
  checked_product({axes[0].kernel, axes[1].kernel, axes[2].kernel}, kMostTaps, "kernel_size: taps");
  checked_product({axes[0].down(), axes[1].down(), axes[2].down()}, kMostPhases, "stride: products over the axes");
  checked_product({std::max<int64_t>(g.batch, 1), axes[0].positions(), axes[1].positions(), axes[2].positions()},
                  kMostElements, "output positions");
  const int64_t n = checked_product({g.group_channels(), g.taps()}, kMostElements, "patch elements") + g.bias;
  checked_product({g.groups, n, n}, kMostElements, "elements of the factor");
  return g;
}

// float64 sums in float64, everything else in float32.
inline ScalarType accumulator_of(const torch::stable::Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// x in any strides, of a type that the kernels read.
inline void check_input(const torch::stable::Tensor& x, const char* name, const torch::stable::Device& device) {
  check_tensor(x, {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half},
               std::vector<int64_t>(x.dim(), -1), name, device);
}

// A contiguous tensor that holds `shape` numbers in the type in which sums over x are taken, and no memory of x.
inline void check_output(const torch::stable::Tensor& out, const torch::stable::Tensor& x,
                         const std::vector<int64_t>& shape, const char* name) {
  check_tensor(out, {accumulator_of(x)}, shape, name, x.device());
  check_contiguous(out, name);
  check_no_overlap(out, name, x, "x");
}

}  // namespace spectral_ext
