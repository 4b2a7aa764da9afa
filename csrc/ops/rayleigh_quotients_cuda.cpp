// rayleigh_quotients on CUDA. Arguments: see rayleigh_arguments.h; scratch_bytes is of the CPU, and is not used here.
#include "cuda/rayleigh_quotients.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>

#include "common/cuda.h"
#include "ops/patch_sizes.h"
#include "ops/rayleigh_arguments.h"

namespace spectral_ext {
namespace {

using torch::stable::Tensor;

// (B, S, features) as the input of a pointwise convolution with S positions; its channels are the features.
cuda::DirectSizes linear_sizes(const Tensor& t, bool bias) {
  cuda::DirectSizes s{};
  s.batch = t.size(0), s.groups = 1, s.group_channels = static_cast<int>(t.size(2)), s.bias = bias;
  s.batch_stride = t.stride(0), s.channel_stride = t.stride(2), s.axis_stride[2] = t.stride(1);
  for (cuda::DirectAxis& axis : s.axes) axis = {1, 1, 1, 1, 1, 0, 0};
  s.axes[2].size = s.axes[2].positions = static_cast<int>(t.size(1));
  return s;
}

// The errors of a convolution: every output position is a patch of its own.
cuda::DirectSizes error_sizes(const Tensor& delta, int64_t groups) {
  Geometry g;
  g.batch = delta.size(0), g.channels = delta.size(1), g.groups = groups;
  for (int64_t i = 2; i < delta.dim(); ++i) g.axes[kAxes - delta.dim() + i].size = delta.size(i);
  return patch_sizes(delta, g, false);
}

Tensor rayleigh_quotients(const Tensor& x, const Tensor& delta, const Tensor& U, const Tensor& V,
                          std::vector<int64_t> kernel_size, std::vector<int64_t> stride, std::vector<int64_t> padding,
                          std::vector<int64_t> dilation, int64_t groups, bool bias, bool transposed,
                          std::vector<int64_t> output_padding, int64_t scratch_bytes) {
  const GeometryArguments arguments{kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding};
  const Geometry input = check_rayleigh(x, delta, U, V, arguments, scratch_bytes, x.device());
  const int64_t K = U.size(2);
  Tensor out = torch::stable::new_zeros(x, {4, groups, K}, ScalarType::Double);
  if (out.numel() == 0 || input.batch == 0 || input.positions() <= 0) return out;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(groups * K <= kMost, "U: more directions than this kernel counts, ", kMost);
  STD_TORCH_CHECK(groups <= 65535, "groups: at most 65535 on CUDA, not ", groups);
  STD_TORCH_CHECK(input.n() <= kMost / 2 && U.size(1) <= kMost / 2 && input.axes[2].size <= kMost,
                  "x, delta: more features or positions than this kernel counts, ", kMost / 2);

  const cuda::Device device(x);
  const Tensor u = torch::stable::contiguous(U), v = torch::stable::contiguous(V);
  const bool convolution = !kernel_size.empty();
  cuda::RayleighProblem problem{};
  problem.x = {x.const_data_ptr(), cuda::dtype_of(x),
               convolution ? patch_sizes(x, input, false) : linear_sizes(x, bias), v.const_data_ptr()};
  problem.delta = {delta.const_data_ptr(), cuda::dtype_of(delta),
                   convolution ? error_sizes(delta, groups) : linear_sizes(delta, false), u.const_data_ptr()};
  // Entries are summed in the order in which they lie in memory.
  problem.x.sizes.channels_last = problem.x.sizes.channel_stride == 1;
  problem.directions = static_cast<int>(K);
  problem.float64 = V.scalar_type() == ScalarType::Double;
  const cuda::RayleighPlan plan = cuda::rayleigh_plan(problem);
  STD_TORCH_CHECK(plan.units <= kMost && (K + plan.width - 1) / plan.width * plan.depth_slices <= 65535,
                  "x, U: more samples or directions than one launch takes: split the batch");
  const Tensor scratch = cuda::allocate_scratch(x, plan.scratch_numbers, V.scalar_type(), "rayleigh_quotients");
  const Tensor partials = cuda::allocate_scratch(x, plan.partial_numbers, ScalarType::Double, "rayleigh_quotients");
  cuda::Device::check(cuda::launch_rayleigh(problem, plan, scratch.mutable_data_ptr(),
                                            static_cast<double*>(partials.mutable_data_ptr()),
                                            static_cast<double*>(out.mutable_data_ptr()), device.stream()),
                      "rayleigh_quotients");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spectral_ext, SPECTRAL_EXT_CUDA_KEY, m) {
  m.impl("rayleigh_quotients", TORCH_BOX(&rayleigh_quotients));
}

}  // namespace spectral_ext
