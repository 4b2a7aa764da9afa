// From region sums to a factor in the asked patch order, or to the compact state.
#pragma once
#include "cpu/input_factor.h"

namespace spectral_ext::cpu {

// One group's region matrices, as tiles of kPanel × kPanel or as plain (channels, channels) matrices.
template <class T>
struct RegionView {
  const T* data;
  int64_t region_stride, panel_row_stride, panel_column_stride, row_stride;
  bool upper_only;  // of symmetric classes only tiles with panel a ≤ panel b are there
  const double* sums;
  int64_t sum_stride;
};

// out: (n, n) = beta · out + scale · factor.
template <class T>
void expand(const LagPlan& plan, const RegionView<T>& regions, double positions, bool channels_last_order,
            Update update, T* out, const Context& context);

// state: one group's part of the state.
template <class T>
void store_state(const LagPlan& plan, const RegionView<T>& regions, double positions, Update update, T* state,
                 const Context& context);

}  // namespace spectral_ext::cpu
