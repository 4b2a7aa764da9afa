// input_factor on CUDA: the lag kernel where a group has enough channels to fill its tile, implicit im2col otherwise.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/cuda.h"
#include "cuda/input_factor_direct.h"
#include "cuda/lag_tables.h"
#include "cuda/transpose.h"
#include "ops/input_geometry.h"
#include "ops/patch_sizes.h"

namespace spectral_ext {
namespace {

using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

constexpr int64_t kLagChannels = 16;         // fewer waste most of a 32-wide tile
constexpr int64_t kLagTableWords = 1 << 14;  // 128 KiB of tables: more regions than the sums they save are worth
constexpr int64_t kLagTaps = 343;            // what the expansion holds in shared memory

// x as (batch, axes…, channels) with contiguous channels; a view where it already is.
Tensor channels_last(Tensor x, const cuda::Device& device) {
  const int64_t last = x.dim() - 1;
  const bool plain = x.is_contiguous();
  const int64_t batch = x.size(0), channels = x.size(1),
                pixels = batch * channels > 0 ? x.numel() / (batch * channels) : 0;
  const Tensor source = x;
  for (int64_t i = 1; i < last; ++i) x = torch::stable::transpose(x, i, i + 1);
  if (x.size(last) == 1 || x.stride(last) == 1) return x;
  if (!plain) return torch::stable::contiguous(x);
  const Tensor copy = torch::stable::new_empty(x, shape_of(x));
  cuda::Device::check(
      cuda::launch_transpose(source.const_data_ptr(), copy.mutable_data_ptr(), static_cast<int>(source.element_size()),
                             batch, channels, pixels, device.stream()),
      "channels last");
  return copy;
}

// Everything one lag-sum computation holds on the device.
class LagSums {
 public:
  LagSums(const Tensor& x, const LagPlan& plan, const cuda::Device& device)
      : x_(channels_last(x, device)), device_(device), tables_(make(plan)), words_(upload(x)) {}

  void accumulate(void* state, double beta, double scale) const {
    const Tensor scratch = cuda::allocate_scratch(x_, tables_.scratch_numbers(), accumulator_of(x_), "lag sums");
    cuda::Device::check(cuda::launch_lag_sums(x_.const_data_ptr(), cuda::dtype_of(x_), tables_.sizes,
                                              tables_.regions(device_words()), tables_.sum_regions(device_words()),
                                              state, scale, beta, scratch.mutable_data_ptr(), device_.stream()),
                        "lag sums");
  }

  void expand(const void* state, bool channels_last_order, const cuda::FactorOutput& out) const {
    const auto type = accumulator_of(x_) == ScalarType::Double ? cuda::Dtype::kFloat64 : cuda::Dtype::kFloat32;
    cuda::Device::check(cuda::launch_lag_expand(state, type, tables_.sizes, tables_.tables(device_words()),
                                                channels_last_order, out, device_.stream()),
                        "lag expansion");
  }

 private:
  Tensor x_;
  const cuda::Device& device_;
  cuda::LagTables tables_;
  Tensor words_;

  const int64_t* device_words() const { return static_cast<const int64_t*>(words_.const_data_ptr()); }

  cuda::LagTables make(const LagPlan& plan) const {
    int64_t axis_stride[3] = {0, 0, 0};
    const int64_t dims = x_.dim() - 2;
    for (int64_t i = 0; i < dims; ++i) axis_stride[kAxes - dims + i] = x_.stride(1 + i);
    const bool aligned = reinterpret_cast<uintptr_t>(x_.const_data_ptr()) % 16 == 0;
    return cuda::LagTables(plan, axis_stride, x_.stride(0), cuda::dtype_of(x_), aligned, device_.multiprocessors());
  }

  Tensor upload(const Tensor& like) const {
    const int64_t count = static_cast<int64_t>(tables_.words.size());
    Tensor words = torch::stable::new_empty(like, {count}, ScalarType::Long);
    cuda::Device::check(cuda::launch_upload(tables_.words.data(), count,
                                            static_cast<int64_t*>(words.mutable_data_ptr()), device_.stream()),
                        "lag tables");
    return words;
  }
};

void direct(const Tensor& x, const Geometry& g, bool channels_last_order, const cuda::FactorOutput& out,
            const cuda::Device& device) {
  const cuda::DirectSizes sizes = patch_sizes(x, g, channels_last_order);
  const cuda::Dtype dtype = cuda::dtype_of(x);
  const int multiprocessors = device.multiprocessors();
  const Tensor scratch = cuda::allocate_scratch(x, cuda::input_factor_direct_scratch(sizes, dtype, multiprocessors),
                                                accumulator_of(x), "input_factor");
  cuda::Device::check(cuda::launch_input_factor_direct(x.const_data_ptr(), dtype, sizes, out,
                                                       scratch.mutable_data_ptr(), multiprocessors, device.stream()),
                      "input_factor");
}

void accumulate(Tensor& out, const Tensor& x, const Geometry& g, bool channels_last_order, double beta, double scale) {
  check_output(out, x, {g.groups, g.n(), g.n()}, "out");
  if (out.numel() == 0) return;
  const cuda::Device device(x);
  const cuda::FactorOutput target{out.mutable_data_ptr(), g.n() * g.n(), g.n(), 1, scale, beta};
  if (g.group_channels() < kLagChannels || g.taps() > kLagTaps)
    return direct(x, g, channels_last_order, target, device);
  const LagPlan plan(g);
  if (plan.regions * static_cast<int64_t>(sizeof(cuda::LagRegion) / 8) > kLagTableWords)
    return direct(x, g, channels_last_order, target, device);
  const LagSums sums(x, plan, device);
  if (g.taps() == 1 && plan.regions == 1 && !g.bias) return sums.accumulate(target.data, beta, scale);
  const Tensor state = cuda::allocate_scratch(x, plan.state_size(), accumulator_of(x), "input_factor");
  sums.accumulate(state.mutable_data_ptr(), 0, 1);
  sums.expand(state.const_data_ptr(), channels_last_order, target);
}

Tensor input_factor(const Tensor& x, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                    const Ints& dilation, int64_t groups, bool bias, bool transposed, const Ints& output_padding,
                    bool channels_last_order, double scale) {
  check_input(x, "x", x.device());
  const Geometry g =
      make_geometry(shape_of(x), {kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding});
  Tensor out = torch::stable::new_empty(x, {groups, g.n(), g.n()}, accumulator_of(x));
  accumulate(out, x, g, channels_last_order, 0, scale);
  return out;
}

void input_factor_(Tensor out, const Tensor& x, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                   const Ints& dilation, int64_t groups, bool bias, bool transposed, const Ints& output_padding,
                   bool channels_last_order, double beta, double scale) {
  check_input(x, "x", x.device());
  const Geometry g =
      make_geometry(shape_of(x), {kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding});
  accumulate(out, x, g, channels_last_order, beta, scale);
}

void lag_sums_(Tensor state, const Tensor& x, const Ints& kernel_size, const Ints& stride, const Ints& padding,
               const Ints& dilation, int64_t groups, bool bias, bool transposed, const Ints& output_padding,
               double beta, double scale) {
  check_input(x, "x", x.device());
  const Geometry g =
      make_geometry(shape_of(x), {kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding});
  const LagPlan plan(g);
  check_output(state, x, {plan.state_size()}, "state");
  if (state.numel() == 0) return;
  const cuda::Device device(x);
  LagSums(x, plan, device).accumulate(state.mutable_data_ptr(), beta, scale);
}

Tensor expand_lag_sums(const Tensor& state, const Ints& input_size, const Ints& kernel_size, const Ints& stride,
                       const Ints& padding, const Ints& dilation, int64_t groups, bool bias, bool transposed,
                       const Ints& output_padding, bool channels_last_order) {
  Ints shape = input_size;
  shape.insert(shape.begin(), 0);
  const Geometry g =
      make_geometry(shape, {kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding});
  STD_TORCH_CHECK(g.taps() <= kLagTaps, "expand_lag_sums: at most ", kLagTaps, " kernel taps on CUDA, not ", g.taps());
  const LagPlan plan(g);
  check_tensor(state, {ScalarType::Float, ScalarType::Double}, {plan.state_size()}, "state", state.device());
  check_contiguous(state, "state");
  Tensor out = torch::stable::new_empty(state, {groups, g.n(), g.n()}, state.scalar_type());
  if (out.numel() == 0) return out;
  const cuda::Device device(state);
  const Tensor no_input = torch::stable::new_empty(state, shape, state.scalar_type());
  LagSums(no_input, plan, device)
      .expand(state.const_data_ptr(), channels_last_order, {out.mutable_data_ptr(), g.n() * g.n(), g.n(), 1, 1, 0});
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spectral_ext, SPECTRAL_EXT_CUDA_KEY, m) {
  m.impl("input_factor", TORCH_BOX(&input_factor));
  m.impl("input_factor_", TORCH_BOX(&input_factor_));
  m.impl("lag_sums_", TORCH_BOX(&lag_sums_));
  m.impl("expand_lag_sums", TORCH_BOX(&expand_lag_sums));
}

}  // namespace spectral_ext
