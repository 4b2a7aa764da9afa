#include "cpu/input_factor.h"

#include <algorithm>

#include "cpu/input_factor_depthwise.h"
#include "cpu/input_factor_expand.h"
#include "cpu/input_factor_sums.h"

namespace spectral_ext::cpu {
namespace {

// Multiply-adds that cost as much as packing one number, as clearing and reading one number of a region's matrix, and
// as a microkernel call's way to its tiles and back.
constexpr double kPackCost = 24, kRegionCost = 64, kCallCost = 6000;

double cost(const Geometry& geometry, std::array<bool, kAxes> fold, int panel) {
  const LagPlan plan(geometry, fold);
  const int64_t panels = (plan.channels + panel - 1) / panel, rows = (plan.channels + 7) / 8 * 8;
  double pixels = 0, runs = 0, packed = 1;
  for (int a = 0; a < kAxes; ++a) packed *= static_cast<double>(plan.axes[a].size);
  for (const LagClass& c : plan.classes) {
    double here = c.symmetric ? static_cast<double>(panels + 1) / (2.0 * static_cast<double>(panels)) : 1.0, along = 0;
    for (int a = 0; a < kAxes; ++a) {
      here *= a > 0 ? along : 1.0, along = 0;
      for (const Segment& s : plan.axis_class(c, a).segments) along += static_cast<double>(s.end - s.begin);
    }
    pixels += here * along;
    runs += here * static_cast<double>(plan.axis_class(c, kAxes - 1).segments.size());
  }
  const double tile = static_cast<double>(panels * panel);
  return static_cast<double>(geometry.batch) * (pixels * rows + packed * kPackCost) * tile +
         static_cast<double>(plan.regions) * tile * tile * kRegionCost +
         runs * static_cast<double>(rows / 8 * ((panels + 2) / 3)) * kCallCost;
}

template <class T>
RegionView<T> view_of(const RegionSums<T>& s) {
  constexpr int64_t kTile = kPanel<T> * kPanel<T>;
  const int64_t np = s.panels();
  return {s.tiles(), np * np * kTile, np * kTile, kTile, kPanel<T>, true, s.sums(), np * kPanel<T>};
}

double positions_of(const Geometry& g) { return static_cast<double>(g.batch) * static_cast<double>(g.positions()); }

bool depthwise(const Geometry& g) { return g.group_channels() == 1 && g.groups > 1; }

}  // namespace

std::array<bool, kAxes> choose_fold(const Geometry& geometry, int panel) {
  std::array<bool, kAxes> best{}, fold{};
  double least = cost(geometry, best, panel);
  for (int a = kAxes - 1; a >= 0 && geometry.axes[a].up() == 1; --a) {
    fold[a] = true;
    if (geometry.axes[a].kernel == 1 && geometry.axes[a].trivial()) continue;
    const double now = cost(geometry, fold, panel);
    if (now < least) least = now, best = fold;
  }
  return best;
}

template <class T>
void input_factor(const Geometry& geometry, const Input& input, bool channels_last_order, Update update, T* out,
                  const Context& context) {
  if (depthwise(geometry)) {
    const LagPlan plan(geometry);
    DepthwiseSums<T> sums(plan, input, context);
    sums.run();
    sums.expand(update, out);
    return;
  }
  const LagPlan plan(geometry, choose_fold(geometry, kPanel<T>));
  RegionSums<T> sums(plan, input, channels_last_order, context);
  for (int64_t group = 0; group < geometry.groups; ++group) {
    sums.run(group);
    expand<T>(plan, view_of(sums), positions_of(geometry), channels_last_order, update,
              out + group * geometry.n() * geometry.n(), context);
  }
}

template <class T>
void lag_sums(const Geometry& geometry, const Input& input, Update update, T* state, const Context& context) {
  const LagPlan plan(geometry);
  if (depthwise(geometry)) {
    DepthwiseSums<T> sums(plan, input, context);
    sums.run();
    sums.store(update, state);
    return;
  }
  RegionSums<T> sums(plan, input, false, context);
  for (int64_t group = 0; group < geometry.groups; ++group) {
    sums.run(group);
    store_state<T>(plan, view_of(sums), positions_of(geometry), update, state + group * plan.group_state_size(),
                   context);
  }
}

template <class T>
void expand_lag_sums(const Geometry& geometry, const T* state, bool channels_last_order, T* out,
                     const Context& context) {
  const LagPlan plan(geometry);
  const int64_t c = plan.channels;
  std::vector<double> sums(plan.sum_regions * c);
  for (int64_t group = 0; group < geometry.groups; ++group) {
    const T* regions = state + group * plan.group_state_size();
    const T* tail = regions + plan.regions * c * c;
    std::copy(tail, tail + sums.size(), sums.begin());
    const RegionView<T> view{regions, c * c, kPanel<T> * c, kPanel<T>, c, false, sums.data(), c};
    expand<T>(plan, view, geometry.bias ? static_cast<double>(tail[sums.size()]) : 0.0, channels_last_order, {0, 1},
              out + group * geometry.n() * geometry.n(), context);
  }
}

#define SPECTRAL_EXT_INSTANTIATE(T)                                                               \
  template void input_factor<T>(const Geometry&, const Input&, bool, Update, T*, const Context&); \
  template void lag_sums<T>(const Geometry&, const Input&, Update, T*, const Context&);           \
  template void expand_lag_sums<T>(const Geometry&, const T*, bool, T*, const Context&);
SPECTRAL_EXT_INSTANTIATE(float)
SPECTRAL_EXT_INSTANTIATE(double)
#undef SPECTRAL_EXT_INSTANTIATE

}  // namespace spectral_ext::cpu
