// spectral_newton on CUDA, from the coefficients of a partial fraction: in the registers of a block up to a small side
// of 160, blocked on the tensor cores beyond.
#include "cuda/spectral_newton.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <utility>

#include "common/cuda.h"
#include "ops/check_tensor.h"

namespace spectral_ext {
namespace {

using torch::stable::Tensor;

constexpr int64_t kMostProblems = 65535;            // of a grid's second axis
constexpr int64_t kLargestSide = int64_t{1} << 30;  // the kernels count tiles of it in 32 bits

// G (B, m, N); constant (B), weights and poles (B, terms); status (B) int32: 0, or 1 + the pivot that failed (out is
// then 0).
void spectral_newton_poles_(Tensor out, Tensor status, const Tensor& G, const Tensor& constant, const Tensor& weights,
                            const Tensor& poles, double scale, double beta) {
  const torch::stable::Device where = G.device();
  check_tensor(G, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}, {-1, -1, -1}, "G", where);
  check_tensor(out, {G.scalar_type()}, shape_of(G), "out", where);
  check_no_self_overlap(out, "out");
  check_no_overlap(out, "out", G, "G");
  const int64_t batch = G.size(0);
  check_tensor(status, {ScalarType::Int}, {batch}, "status", where);
  check_tensor(constant, {ScalarType::Float}, {batch}, "constant", where);
  check_tensor(weights, {ScalarType::Float}, {batch, -1}, "weights", where);
  const int64_t terms = weights.size(1);
  check_tensor(poles, {ScalarType::Float}, {batch, terms}, "poles", where);
  check_contiguous(status, "status"), check_contiguous(constant, "constant");
  check_contiguous(weights, "weights"), check_contiguous(poles, "poles");
  for (const auto& [t, name] : {std::pair<const Tensor&, const char*>{G, "G"},
                                {constant, "constant"},
                                {weights, "weights"},
                                {poles, "poles"},
                                {out, "out"}})
    check_no_overlap(status, "status", t, name);
  for (const auto& [t, name] :
       {std::pair<const Tensor&, const char*>{constant, "constant"}, {weights, "weights"}, {poles, "poles"}})
    check_no_overlap(out, "out", t, name);
  const cuda::Dtype dtype = cuda::dtype_of(G);
  if (G.numel() == 0) return;
  const int small = G.size(1) <= G.size(2) ? 1 : 2, large = 3 - small;
  STD_TORCH_CHECK(terms > 0, "weights must have at least one pole per matrix");
  const int64_t n = G.size(small), problems = batch * terms;
  const bool blocked = n > cuda::kNewtonMaxSide;
  STD_TORCH_CHECK(n <= cuda::kNewtonBlockedMaxSide, "G: a small side of at most ", cuda::kNewtonBlockedMaxSide,
                  " can be solved on CUDA, not ", n);
  STD_TORCH_CHECK(problems <= kMostProblems, "G: ", batch, " matrices of ", terms,
                  " poles are more than one call takes, ", kMostProblems, " products of both: split the batch");
  STD_TORCH_CHECK(G.size(large) <= kLargestSide, "G: a large side of at most ", kLargestSide, ", not ", G.size(large));
  const cuda::NewtonSizes sizes{static_cast<int>(batch),
                                static_cast<int>(n),
                                G.size(large),
                                static_cast<int>(terms),
                                {G.stride(0), G.stride(small), G.stride(large)},
                                {out.stride(0), out.stride(small), out.stride(large)}};
  const cuda::NewtonCoefficients c{static_cast<const float*>(constant.const_data_ptr()),
                                   static_cast<const float*>(weights.const_data_ptr()),
                                   static_cast<const float*>(poles.const_data_ptr())};
  const cuda::Device device(G);
  const int64_t floats = blocked ? cuda::newton_blocked_scratch(sizes) : cuda::newton_scratch(sizes);
  const Tensor scratch = cuda::allocate_scratch(G, floats, ScalarType::Float, "spectral_newton");
  const auto launch = blocked ? cuda::launch_spectral_newton_blocked : cuda::launch_spectral_newton;
  cuda::Device::check(launch(G.const_data_ptr(), out.mutable_data_ptr(), dtype, sizes, c, static_cast<float>(scale),
                             static_cast<float>(beta), static_cast<int32_t*>(status.mutable_data_ptr()),
                             static_cast<float*>(scratch.mutable_data_ptr()), device.stream()),
                      "spectral_newton");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spectral_ext, SPECTRAL_EXT_CUDA_KEY, m) {
  m.impl("spectral_newton_poles_", TORCH_BOX(&spectral_newton_poles_));
}

}  // namespace spectral_ext
