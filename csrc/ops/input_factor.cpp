// input_factor on the CPU: checks, allocation, threads.
#include "cpu/input_factor.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "ops/input_geometry.h"
#include "ops/torch_context.h"

namespace spectral_ext {
namespace {

using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

cpu::Input input_of(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  cpu::Input input{x.const_data_ptr(),
                   type == ScalarType::BFloat16 ? cpu::Scalar::kBFloat16
                   : type == ScalarType::Half   ? cpu::Scalar::kHalf
                   : type == ScalarType::Double ? cpu::Scalar::kDouble
                                                : cpu::Scalar::kFloat,
                   x.stride(0),
                   x.stride(1),
                   {0, 0, 0}};
  const int64_t dims = x.dim() - 2;
  for (int64_t i = 0; i < dims; ++i) input.strides[kAxes - dims + i] = x.stride(2 + i);
  return input;
}

cpu::Context context_of(TorchContext& torch_context) {
  return {torch_context.parallel, [&](int64_t bytes) { return torch_context.allocate(bytes); }};
}

template <class Body>
void dispatch(const Tensor& x, const Body& body) {
  if (accumulator_of(x) == ScalarType::Double)
    body(double{});
  else
    body(float{});
}

const torch::stable::Device kCpu(torch::headeronly::DeviceType::CPU);

void accumulate(Tensor& out, const Tensor& x, const Geometry& g, bool channels_last_order, double beta, double scale) {
  check_output(out, x, {g.groups, g.n(), g.n()}, "out");
  TorchContext torch_context;
  dispatch(x, [&](auto zero) {
    using T = decltype(zero);
    cpu::input_factor<T>(g, input_of(x), channels_last_order, {beta, scale}, static_cast<T*>(out.mutable_data_ptr()),
                         context_of(torch_context));
  });
}

Tensor input_factor(const Tensor& x, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                    const Ints& dilation, int64_t groups, bool bias, bool transposed, const Ints& output_padding,
                    bool channels_last_order, double scale) {
  check_input(x, "x", kCpu);
  const Geometry g =
      make_geometry(shape_of(x), {kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding});
  Tensor out = torch::stable::new_empty(x, {groups, g.n(), g.n()}, accumulator_of(x));
  advise_huge_pages(out.mutable_data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
  accumulate(out, x, g, channels_last_order, 0, scale);
  return out;
}

void input_factor_(Tensor out, const Tensor& x, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                   const Ints& dilation, int64_t groups, bool bias, bool transposed, const Ints& output_padding,
                   bool channels_last_order, double beta, double scale) {
  check_input(x, "x", kCpu);
  const Geometry g =
      make_geometry(shape_of(x), {kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding});
  accumulate(out, x, g, channels_last_order, beta, scale);
}

void lag_sums_(Tensor state, const Tensor& x, const Ints& kernel_size, const Ints& stride, const Ints& padding,
               const Ints& dilation, int64_t groups, bool bias, bool transposed, const Ints& output_padding,
               double beta, double scale) {
  check_input(x, "x", kCpu);
  const Geometry g =
      make_geometry(shape_of(x), {kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding});
  check_output(state, x, {LagPlan(g).state_size()}, "state");
  TorchContext torch_context;
  dispatch(x, [&](auto zero) {
    using T = decltype(zero);
    cpu::lag_sums<T>(g, input_of(x), {beta, scale}, static_cast<T*>(state.mutable_data_ptr()),
                     context_of(torch_context));
  });
}

Tensor expand_lag_sums(const Tensor& state, const Ints& input_size, const Ints& kernel_size, const Ints& stride,
                       const Ints& padding, const Ints& dilation, int64_t groups, bool bias, bool transposed,
                       const Ints& output_padding, bool channels_last_order) {
  Ints shape = input_size;
  shape.insert(shape.begin(), 1);
  const Geometry g =
      make_geometry(shape, {kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding});
  check_tensor(state, {ScalarType::Float, ScalarType::Double}, {LagPlan(g).state_size()}, "state", kCpu);
  check_contiguous(state, "state");
  Tensor out = torch::stable::new_empty(state, {groups, g.n(), g.n()}, state.scalar_type());
  advise_huge_pages(out.mutable_data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
  TorchContext torch_context;
  dispatch(state, [&](auto zero) {
    using T = decltype(zero);
    cpu::expand_lag_sums<T>(g, static_cast<const T*>(state.const_data_ptr()), channels_last_order,
                            static_cast<T*>(out.mutable_data_ptr()), context_of(torch_context));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spectral_ext, CPU, m) {
  m.impl("input_factor", TORCH_BOX(&input_factor));
  m.impl("input_factor_", TORCH_BOX(&input_factor_));
  m.impl("lag_sums_", TORCH_BOX(&lag_sums_));
  m.impl("expand_lag_sums", TORCH_BOX(&expand_lag_sums));
}

}  // namespace spectral_ext
