// rayleigh_quotients on CPU: x (B, C, axes…) with delta (B, M, axes…), or x (B, S, n) with delta (B, S, m) where
// kernel_size is empty; U (groups, m, K) and V (groups, n, K) in the compute type. Shapes are checked in Python.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <vector>

#include "cpu/rayleigh_quotients.h"
#include "ops/input_geometry.h"
#include "ops/torch_context.h"

namespace spectral_ext {
namespace {

using torch::headeronly::ScalarType;
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
  const int64_t K = U.size(2);
  Tensor out = torch::stable::new_zeros(x, {4, groups, K}, ScalarType::Double);
  cpu::RayleighProblem problem;
  problem.x = operand(x, convolution);
  problem.delta = operand(delta, convolution);
  problem.outputs = U.size(1);
  problem.directions = K;
  Geometry& input = problem.input;
  if (convolution) {
    input =
        make_geometry(shape_of(x), {kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding});
    for (int64_t i = 2; i < x.dim(); ++i)
      STD_TORCH_CHECK(input.axes[kAxes - x.dim() + i].positions() == delta.size(i),
                      "rayleigh_quotients: the spatial size of delta is not that of the output");
  } else {
    input.batch = x.size(0);
    input.channels = x.size(2);
    input.bias = bias;
    input.axes[2].size = x.size(1);
  }
  STD_TORCH_CHECK(delta.size(0) == input.batch && V.size(1) == input.n() && V.size(2) == K && V.size(0) == groups,
                  "rayleigh_quotients: shapes do not fit each other");
  if (K == 0 || input.batch == 0 || input.positions() <= 0) return out;

  const Tensor directions_u = torch::stable::contiguous(U), directions_v = torch::stable::contiguous(V);
  const ScalarType compute = problem.wide() ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(U.scalar_type() == compute && V.scalar_type() == compute,
                  "rayleigh_quotients: U and V must have the compute type");
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
