// Depthwise convolution: every channel is a group of its own, so that region sums are lane-wise products of panels.
#pragma once
#include <vector>

#include "cpu/input_factor_pack.h"

namespace spectral_ext::cpu {

template <class T>
class DepthwiseSums {
 public:
  DepthwiseSums(const LagPlan& plan, const Input& input, const Context& context);

  void run();
  void expand(Update update, T* out) const;   // (groups, n, n)
  void store(Update update, T* state) const;  // (groups, state of a group)

 private:
  void add(int64_t piece, int64_t panel);
  double region(int64_t region, int64_t channel) const {
    return sums_[region * packing_.panels() * kPanel<T> + channel];
  }

  const LagPlan& plan_;
  const Context& context_;
  Packing<T> packing_;
  int64_t samples_, pieces_;
  T *packed_, *scratch_;
  std::vector<double> sums_;  // [region, then sum region][channel]
};

}  // namespace spectral_ext::cpu
