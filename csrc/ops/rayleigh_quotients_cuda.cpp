// rayleigh_quotients on CUDA: projections P = a·V by cuDNN or cuBLAS and Q = d·U by cuBLAS, in chunks of samples, then
// one reduction kernel for all four outputs. Arguments: see rayleigh_arguments.h; scratch_bytes counts bytes of P
// and Q for each multiprocessor.
#include "cuda/rayleigh_quotients.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <limits>

#include "common/cuda.h"
#include "ops/rayleigh_arguments.h"

namespace spectral_ext {
namespace {

using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

// The convolution of cuDNN in full precision, whatever torch.backends.cudnn.allow_tf32 says.
Tensor convolution(const Tensor& x, const Tensor& weight, const GeometryArguments& g) {
  using torch::stable::detail::from;
  std::array<StableIValue, 13> stack{
      from(x),          from(weight),       from(std::optional<Tensor>()), from(g.stride), from(g.padding),
      from(g.dilation), from(g.transposed), from(g.output_padding),        from(g.groups),
      from(false),   // benchmark
      from(true),    // deterministic
      from(true),    // cudnn_enabled
      from(false)};  // allow_tf32
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::_convolution", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// V (groups, channels · taps, K) as filters: (groups·K, channels, kernel…), or (groups·channels, K, kernel…) if
// transposed.
Tensor filters(Tensor V, int64_t taps, const GeometryArguments& g) {
  const int64_t groups = V.size(0), channels = V.size(1) / taps, K = V.size(2);
  Ints shape = g.transposed ? Ints{groups * channels, K} : Ints{groups * K, channels};
  shape.insert(shape.end(), g.kernel_size.begin(), g.kernel_size.end());
  if (g.transposed) V = torch::stable::reshape(V, {groups * channels, taps, K});
  return torch::stable::reshape(torch::stable::transpose(V, 1, 2), shape);
}

cuda::Projections projections(const Tensor& t, bool positions_last) {
  return {t.const_data_ptr(), t.stride(0), t.stride(positions_last ? 1 : 2), t.stride(positions_last ? 2 : 1), nullptr};
}

Tensor rayleigh_quotients(const Tensor& x, const Tensor& delta, const Tensor& U, const Tensor& V,
                          std::vector<int64_t> kernel_size, std::vector<int64_t> stride, std::vector<int64_t> padding,
                          std::vector<int64_t> dilation, int64_t groups, bool bias, bool transposed,
                          std::vector<int64_t> output_padding, int64_t scratch_bytes) {
  const bool conv = !kernel_size.empty();
  const GeometryArguments arguments{kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding};
  const Geometry input = check_rayleigh(x, delta, U, V, arguments, scratch_bytes, x.device());
  const int64_t K = U.size(2), samples = input.batch, taps = input.taps(), patch = input.group_channels() * taps;
  const int64_t positions = input.positions();
  const ScalarType compute = V.scalar_type();
  Tensor out = torch::stable::new_zeros(x, {4, groups, K}, ScalarType::Double);
  if (out.numel() == 0 || samples == 0 || positions <= 0) return out;
  STD_TORCH_CHECK(groups * K <= std::numeric_limits<int32_t>::max(), "U: more directions than this kernel counts");

  const cuda::Device device(x);
  Tensor directions = V, bias_row = V;
  if (bias) {
    directions = torch::stable::narrow(bias_row, 1, 0, patch);
    bias_row = torch::stable::contiguous(torch::stable::narrow(bias_row, 1, patch, 1));
  }
  const Tensor left = conv ? filters(directions, taps, arguments) : torch::stable::select(directions, 0, 0);
  const Tensor right = torch::stable::transpose(U, 1, 2);  // (groups, K, m)
  const int64_t bytes = 2 * groups * K * positions * static_cast<int64_t>(V.element_size());
  const int64_t chunk = std::clamp<int64_t>(
      static_cast<int64_t>(static_cast<double>(scratch_bytes) * device.multiprocessors() / static_cast<double>(bytes)),
      1, samples);

  cuda::RayleighSizes sizes{samples, positions, static_cast<int>(groups * K)};
  int64_t rows = 0;
  for (int64_t first = 0; first < samples; first += chunk)
    rows += cuda::rayleigh_partial_rows({std::min(chunk, samples - first), positions, sizes.directions});
  const Tensor partials = torch::stable::new_empty(x, {rows, 4, groups * K}, ScalarType::Double);
  double* partial = static_cast<double*>(partials.mutable_data_ptr());
  Tensor all_x = x, all_delta = delta;
  for (int64_t first = 0; first < samples; first += chunk) {
    sizes.samples = std::min(chunk, samples - first);
    const Tensor some_x = torch::stable::to(torch::stable::narrow(all_x, 0, first, sizes.samples), compute);
    const Tensor some_delta = torch::stable::to(torch::stable::narrow(all_delta, 0, first, sizes.samples), compute);
    Tensor P, Q;
    if (conv) {
      P = torch::stable::reshape(convolution(some_x, left, arguments), {sizes.samples, groups * K, positions});
      const int64_t m = U.size(1);
      Q = torch::stable::matmul(right, torch::stable::reshape(some_delta, {sizes.samples, groups, m, positions}));
      Q = torch::stable::reshape(Q, {sizes.samples, groups * K, positions});
    } else {
      P = torch::stable::matmul(some_x, left);
      Q = torch::stable::matmul(some_delta, torch::stable::select(U, 0, 0));
    }
    cuda::Projections p = projections(P, conv);
    if (bias) p.shift = bias_row.const_data_ptr();
    cuda::Device::check(
        cuda::launch_rayleigh_partials(p, projections(Q, conv), cuda::dtype_of(P), sizes, partial, device.stream()),
        "rayleigh_quotients");
    partial += cuda::rayleigh_partial_rows(sizes) * 4 * groups * K;
  }
  const double a_sample = 1 / static_cast<double>(samples), a_position = a_sample / static_cast<double>(positions);
  double* result = static_cast<double*>(out.mutable_data_ptr());
  void* const outputs[4] = {result, result + groups * K, result + 2 * groups * K, result + 3 * groups * K};
  cuda::Device::check(cuda::launch_rayleigh_finish(static_cast<const double*>(partials.const_data_ptr()), rows,
                                                   sizes.directions, {{a_sample, a_position, a_position, a_sample}},
                                                   outputs, cuda::Dtype::kFloat64, device.stream()),
                      "rayleigh_quotients");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spectral_ext, SPECTRAL_EXT_CUDA_KEY, m) {
  m.impl("rayleigh_quotients", TORCH_BOX(&rayleigh_quotients));
}

}  // namespace spectral_ext
