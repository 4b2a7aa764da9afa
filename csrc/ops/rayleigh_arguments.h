// The checks of rayleigh_quotients that every device shares.
#pragma once
#include "ops/input_geometry.h"

namespace spectral_ext {

// x (B, C, axes…) with delta (B, M, axes…), or x (B, S, n) with delta (B, S, m) where kernel_size is empty;
// U (groups, m, K) and V (groups, n, K) in the compute type, float64 if x or delta is, else float32.
inline Geometry check_rayleigh(const torch::stable::Tensor& x, const torch::stable::Tensor& delta,
                               const torch::stable::Tensor& U, const torch::stable::Tensor& V,
                               const GeometryArguments& arguments, int64_t scratch_bytes,
                               const torch::stable::Device& device) {
  check_input(x, "x", device);
  check_input(delta, "delta", device);
  STD_TORCH_CHECK(scratch_bytes >= 0, "scratch_bytes must not be negative, and is ", scratch_bytes);
  Geometry input;
  int64_t outputs = 0;
  if (!arguments.kernel_size.empty()) {
    input = make_geometry(shape_of(x), arguments);
    STD_TORCH_CHECK(delta.dim() == x.dim() && delta.size(1) % input.groups == 0, "delta must have ", x.dim(),
                    " dimensions and channels that groups = ", input.groups, " divides, not shape ",
                    text_of(shape_of(delta)));
    std::vector<int64_t> shape = {x.size(0), delta.size(1)};
    for (int64_t i = 2; i < x.dim(); ++i) shape.push_back(input.axes[kAxes - x.dim() + i].positions());
    check_tensor(delta, {delta.scalar_type()}, shape, "delta", device);
    outputs = delta.size(1) / input.groups;
  } else {
    STD_TORCH_CHECK(x.dim() == 3, "x must be (B, S, n) where kernel_size is empty, not of shape ",
                    text_of(shape_of(x)));
    input = make_geometry({x.size(0), x.size(2)}, arguments);
    input.axes[2].size = x.size(1);
    checked_product({std::max<int64_t>(x.size(0), 1), std::max<int64_t>(x.size(1), 1)}, kMostElements, "positions");
    check_tensor(delta, {delta.scalar_type()}, {x.size(0), x.size(1), -1}, "delta", device);
    outputs = delta.size(2);
  }
  const bool wide = x.scalar_type() == ScalarType::Double || delta.scalar_type() == ScalarType::Double;
  const ScalarType compute = wide ? ScalarType::Double : ScalarType::Float;
  check_tensor(U, {compute}, {input.groups, outputs, -1}, "U", device);
  check_tensor(V, {compute}, {input.groups, input.n(), U.size(2)}, "V", device);
  checked_product({input.groups, std::max<int64_t>(U.size(2), 1), std::max(outputs, input.n()) + 1}, kMostElements,
                  "numbers of the directions");
  return input;
}

}  // namespace spectral_ext
