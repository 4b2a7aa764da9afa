// spectral_newton for batches of small matrices on CUDA, from the coefficients of a partial fraction.
#include "cuda/spectral_newton.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/cuda.h"

namespace spectral_ext {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const float* coefficients(const Tensor& t, const Tensor& G, const char* name, int64_t numel) {
  cuda::check_same_device(t, G, name);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.numel() == numel,
                  "spectral_newton: ", name, " must be contiguous float32 with ", numel, " numbers");
  return static_cast<const float*>(t.const_data_ptr());
}

// G (B, m, N); constant (B), weights and poles (B, terms); status (B) int32: 0, or 1 + the pivot that failed (out is
// then 0).
void spectral_newton_poles_(Tensor out, Tensor status, const Tensor& G, const Tensor& constant, const Tensor& weights,
                            const Tensor& poles, double scale, double beta) {
  STD_TORCH_CHECK(G.dim() == 3 && out.dim() == 3, "spectral_newton: G and out must be (B, m, N)");
  for (int64_t i = 0; i < 3; ++i)
    STD_TORCH_CHECK(out.size(i) == G.size(i), "spectral_newton: out must have the shape of G");
  cuda::check_same_device(out, G, "out");
  cuda::check_same_device(status, G, "status");
  const cuda::Dtype dtype = cuda::dtype_of(G);
  STD_TORCH_CHECK(dtype != cuda::Dtype::kFloat64 && out.scalar_type() == G.scalar_type(),
                  "spectral_newton: G and out must both be float32, bfloat16 or float16");
  const int64_t batch = G.size(0), terms = batch > 0 ? weights.numel() / batch : 0;
  STD_TORCH_CHECK(status.scalar_type() == ScalarType::Int && status.is_contiguous() && status.numel() == batch,
                  "spectral_newton: status must be contiguous int32 with one number a matrix");
  if (G.numel() == 0) return;
  const int small = G.size(1) <= G.size(2) ? 1 : 2, large = 3 - small;
  STD_TORCH_CHECK(G.size(small) <= cuda::kNewtonMaxSide, "spectral_newton: this kernel takes a small side of at most ",
                  cuda::kNewtonMaxSide, ", not ", G.size(small));
  const cuda::NewtonSizes sizes{static_cast<int>(batch),
                                static_cast<int>(G.size(small)),
                                G.size(large),
                                static_cast<int>(terms),
                                {G.stride(0), G.stride(small), G.stride(large)},
                                {out.stride(0), out.stride(small), out.stride(large)}};
  const cuda::NewtonCoefficients c{coefficients(constant, G, "constant", batch),
                                   coefficients(weights, G, "weights", batch * terms),
                                   coefficients(poles, G, "poles", batch * terms)};
  const cuda::Device device(G);
  const Tensor scratch = torch::stable::new_empty(G, {cuda::newton_scratch(sizes)}, ScalarType::Float);
  cuda::Device::check(cuda::launch_spectral_newton(G.const_data_ptr(), out.mutable_data_ptr(), dtype, sizes, c,
                                                   static_cast<float>(scale), static_cast<float>(beta),
                                                   static_cast<int32_t*>(status.mutable_data_ptr()),
                                                   static_cast<float*>(scratch.mutable_data_ptr()), device.stream()),
                      "spectral_newton");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spectral_ext, SPECTRAL_EXT_CUDA_KEY, m) {
  m.impl("spectral_newton_poles_", TORCH_BOX(&spectral_newton_poles_));
}

}  // namespace spectral_ext
