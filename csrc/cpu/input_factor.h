// Sums of outer products of convolution patches: lag sums over packed panels, or im2col folded into channels where that
// is less work. Torch-free: the caller lends memory and threads.
#pragma once
#include <array>
#include <cstdint>
#include <functional>

#include "common/lag_plan.h"
#include "cpu/input_factor_kernels.h"
#include "cpu/parallel.h"

namespace spectral_ext::cpu {

struct Input {
  const void* data;
  Scalar type;                           // T of the accumulator, or a 16-bit type for float
  int64_t batch_stride, channel_stride;  // in elements
  std::array<int64_t, kAxes> strides;
};

struct Context {
  Parallel parallel;
  std::function<void*(int64_t bytes)> allocate;  // 64-byte aligned, not cleared, alive until the call returns
};

// out = beta · out + scale · Σ a aᵀ. out is not read where beta is zero.
struct Update {
  double beta, scale;
};

// The axes that are cheaper to fold into channels, by a count of multiplications and of packed numbers. panel: channels
// per panel.
std::array<bool, kAxes> choose_fold(const Geometry& geometry, int panel);

// out: (groups, n, n), contiguous. T is the accumulator: double for double input, else float.
template <class T>
void input_factor(const Geometry& geometry, const Input& input, bool channels_last_order, Update update, T* out,
                  const Context& context);

// state: LagPlan(geometry).state_size() numbers.
template <class T>
void lag_sums(const Geometry& geometry, const Input& input, Update update, T* state, const Context& context);

// out: (groups, n, n) = the factor that a state stands for.
template <class T>
void expand_lag_sums(const Geometry& geometry, const T* state, bool channels_last_order, T* out,
                     const Context& context);

}  // namespace spectral_ext::cpu
