// input_factor on the CPU: checks, allocation, threads.
#include "cpu/input_factor.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>

#include "ops/input_geometry.h"

namespace spectral_ext {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

constexpr int64_t kHugePage = 2 << 20;

// Page faults of a fresh factor of tens of megabytes cost as much as filling it: ask for huge pages.
void advise_huge_pages(void* data, int64_t bytes) {
#ifdef __linux__
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Lends torch's allocator and threads to the kernels for one call.
class Lender {
 public:
  explicit Lender(const Tensor& like) : like_(like) {
    context_.threads = static_cast<int>(torch::stable::get_num_threads());
    context_.parallel = [](int64_t tasks, const std::function<void(int64_t)>& task) {
      torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) task(i);
      });
    };
    context_.allocate = [this](int64_t bytes) -> void* {
      held_.push_back(torch::stable::new_empty(like_, {bytes + 64}, ScalarType::Byte));
      void* data = held_.back().mutable_data_ptr();
      advise_huge_pages(data, bytes + 64);
      return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(data) + 63) / 64 * 64);
    };
  }
  const cpu::Context& context() const { return context_; }

 private:
  const Tensor& like_;
  std::vector<Tensor> held_;
  cpu::Context context_;
};

cpu::Input input_of(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  cpu::Input input{x.const_data_ptr(),
                   type == ScalarType::BFloat16 ? cpu::Source::kBFloat16
                   : type == ScalarType::Half   ? cpu::Source::kHalf
                                                : cpu::Source::kSame,
                   x.stride(0),
                   x.stride(1),
                   {0, 0, 0}};
  const int64_t dims = x.dim() - 2;
  for (int64_t i = 0; i < dims; ++i) input.strides[kAxes - dims + i] = x.stride(2 + i);
  return input;
}

template <class Body>
void dispatch(const Tensor& x, const Body& body) {
  if (accumulator_of(x) == ScalarType::Double)
    body(double{});
  else
    body(float{});
}

void accumulate(Tensor& out, const Tensor& x, const Geometry& g, bool channels_last_order, double beta, double scale) {
  check_output(out, x, g.groups * g.n() * g.n(), "out");
  const Lender lender(x);
  dispatch(x, [&](auto zero) {
    using T = decltype(zero);
    cpu::input_factor<T>(g, input_of(x), channels_last_order, {beta, scale}, static_cast<T*>(out.mutable_data_ptr()),
                         lender.context());
  });
}

Tensor input_factor(const Tensor& x, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                    const Ints& dilation, int64_t groups, bool bias, bool transposed, const Ints& output_padding,
                    bool channels_last_order, double scale) {
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
  const Geometry g =
      make_geometry(shape_of(x), {kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding});
  accumulate(out, x, g, channels_last_order, beta, scale);
}

void lag_sums_(Tensor state, const Tensor& x, const Ints& kernel_size, const Ints& stride, const Ints& padding,
               const Ints& dilation, int64_t groups, bool bias, bool transposed, const Ints& output_padding,
               double beta, double scale) {
  const Geometry g =
      make_geometry(shape_of(x), {kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding});
  check_output(state, x, LagPlan(g).state_size(), "state");
  const Lender lender(x);
  dispatch(x, [&](auto zero) {
    using T = decltype(zero);
    cpu::lag_sums<T>(g, input_of(x), {beta, scale}, static_cast<T*>(state.mutable_data_ptr()), lender.context());
  });
}

Tensor expand_lag_sums(const Tensor& state, const Ints& input_size, const Ints& kernel_size, const Ints& stride,
                       const Ints& padding, const Ints& dilation, int64_t groups, bool bias, bool transposed,
                       const Ints& output_padding, bool channels_last_order) {
  Ints shape = input_size;
  shape.insert(shape.begin(), 1);
  const Geometry g =
      make_geometry(shape, {kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding});
  STD_TORCH_CHECK(state.scalar_type() == ScalarType::Float || state.scalar_type() == ScalarType::Double,
                  "state must be float32 or float64");
  check_output(state, state, LagPlan(g).state_size(), "state");
  Tensor out = torch::stable::new_empty(state, {groups, g.n(), g.n()}, state.scalar_type());
  advise_huge_pages(out.mutable_data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
  const Lender lender(state);
  dispatch(state, [&](auto zero) {
    using T = decltype(zero);
    cpu::expand_lag_sums<T>(g, static_cast<const T*>(state.const_data_ptr()), channels_last_order,
                            static_cast<T*>(out.mutable_data_ptr()), lender.context());
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
