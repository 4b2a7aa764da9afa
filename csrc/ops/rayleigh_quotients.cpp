// rayleigh_quotients on the CPU. Arguments: see rayleigh_arguments.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#include "cpu/rayleigh_quotients.h"
#include "ops/rayleigh_arguments.h"
#include "ops/torch_context.h"

namespace spectral_ext {
namespace {

using torch::stable::Tensor;

cpu::RayleighOperand operand(const Tensor& t, bool convolution) {
  cpu::RayleighOperand o;
  o.data = t.const_data_ptr();
  switch (t.scalar_type()) {
    case ScalarType::Float:
      o.type = cpu::Scalar::kFloat;
      break;
    case ScalarType::Double:
      o.type = cpu::Scalar::kDouble;
      break;
    case ScalarType::BFloat16:
      o.type = cpu::Scalar::kBFloat16;
      break;
    case ScalarType::Half:
      o.type = cpu::Scalar::kHalf;
      break;
    default:
      STD_TORCH_CHECK(false, "rayleigh_quotients: dtype must be float32, float64, bfloat16 or float16");
  }
  o.sample = t.stride(0);
  if (!convolution) {
    o.axis[2] = t.stride(1);
    o.channel = t.stride(2);
    return o;
  }
  o.channel = t.stride(1);
  for (int64_t i = t.dim() - 1, axis = kAxes - 1; i >= 2; --i, --axis) o.axis[axis] = t.stride(i);
  return o;
}

Tensor rayleigh_quotients(const Tensor& x, const Tensor& delta, const Tensor& U, const Tensor& V,
                          std::vector<int64_t> kernel_size, std::vector<int64_t> stride, std::vector<int64_t> padding,
                          std::vector<int64_t> dilation, int64_t groups, bool bias, bool transposed,
                          std::vector<int64_t> output_padding, int64_t scratch_bytes) {
  const bool convolution = !kernel_size.empty();
  cpu::RayleighProblem problem;
  problem.input =
      check_rayleigh(x, delta, U, V, {kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding},
                     scratch_bytes, torch::stable::Device(torch::headeronly::DeviceType::CPU));
  const int64_t K = U.size(2);
  Tensor out = torch::stable::new_zeros(x, {4, groups, K}, ScalarType::Double);
  if (out.numel() == 0 || problem.input.batch == 0 || problem.input.positions() <= 0) return out;
  problem.x = operand(x, convolution);
  problem.delta = operand(delta, convolution);
  problem.outputs = U.size(1);
  problem.directions = K;
  const Tensor directions_u = torch::stable::contiguous(U), directions_v = torch::stable::contiguous(V);
  problem.U = directions_u.const_data_ptr();
  problem.V = directions_v.const_data_ptr();
  const cpu::RayleighPlan plan = cpu::make_rayleigh_plan(problem, scratch_bytes);
  TorchContext torch_context;
  cpu::run_rayleigh(plan, torch_context.parallel, torch_context.allocate(plan.direction_bytes),
                    torch_context.allocate(plan.scratch_bytes * torch_context.parallel.threads),
                    static_cast<double*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spectral_ext, CPU, m) { m.impl("rayleigh_quotients", TORCH_BOX(&rayleigh_quotients)); }

}  // namespace spectral_ext
