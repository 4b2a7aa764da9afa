// The lag sums: which products of pixels a convolution's input factor is made of, each counted once.
//
// Block (i, i') of the factor is Σ_y x[h_i(y)] x[h_i'(y)]ᵀ. Tap pairs with the same *phase pair and lag* sum the same
// field P(h) = x_f[h] x_f'[h + lag]ᵀ (x_f: every down-th pixel from f on) over shifted windows of h. Cutting h at every
// window's start and end gives *segments*; one matrix a (class, segment) is accumulated, and a block is the sum of
// consecutive segments. Axes combine as products: a class of the plan is one class an axis, a region one segment an
// axis. Of a class and its mirror (phases exchanged, lag negated: the transposed blocks) only one is kept. Stride 1, k
// taps, "same": (2k−1)² classes halve to 2k(k−1)+1, for 3×3 13 classes in 29 regions instead of 45 blocks.
//
// A folded axis is unfolded instead: its taps become channels (channel v = folded tap · group_channels + c), its only
// class has lag 0, and h counts output positions. Folding all axes is im2col. CUDA and lag-sum states use the plan
// without folding.
#pragma once
#include <algorithm>
#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "common/geometry.h"

namespace spectral_ext {

// Positions [begin, end) of phase_a's pixels.
struct Segment {
  int64_t begin, end;
};

// Block (tap_a, tap_b) of the factor is the sum of segments [segment_begin, segment_end), possibly none.
struct TapPair {
  int32_t tap_a, tap_b, segment_begin, segment_end;
};

// Σ over h in a segment of x_phase_a[h] x_phase_b[h + lag]ᵀ; every h and h + lag of a segment is inside the phase
// image.
struct AxisClass {
  int32_t phase_a, phase_b;
  int64_t lag;
  std::vector<Segment> segments;
  std::vector<TapPair> pairs;
};

struct Tap {
  int32_t tap, segment_begin, segment_end;
};

// The same for Σ_y x[h_i(y)], which the bias column needs: one entry a phase.
struct AxisSum {
  int32_t phase;
  std::vector<Segment> segments;
  std::vector<Tap> taps;
};

struct AxisPlan {
  int64_t phases = 1;              // phase f holds pixels f, f + phases, f + 2·phases, …
  int64_t taps = 1;                // blocks along this axis: kernel, or 1 if folded
  int64_t size = 1;                // pixels along this axis: input size, or output positions if folded
  std::vector<AxisClass> classes;  // every ordered pair of taps that ever meets is in exactly one class
  std::vector<AxisSum> sums;

  int64_t length(int64_t phase) const { return (size - phase + phases - 1) / phases; }
};

// One class an axis, and its regions: (segment of axis 0, of axis 1, of axis 2), the last fastest, from first_region
// on.
struct LagClass {
  std::array<int32_t, kAxes> axis_class;
  bool symmetric;  // phases equal and lag zero: regions are symmetric matrices, and only diagonal blocks use them
  int64_t first_region;
};

struct LagSum {
  std::array<int32_t, kAxes> axis_sum;
  int64_t first_region;
};

namespace detail {

template <class Windows>
std::vector<Segment> cut(const Windows& windows) {
  std::vector<int64_t> cuts;
  for (const Segment& w : windows)
    if (w.begin < w.end) cuts.insert(cuts.end(), {w.begin, w.end});
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  std::vector<Segment> segments;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const Segment s{cuts[i], cuts[i + 1]};
    for (const Segment& w : windows)
      if (w.begin <= s.begin && s.end <= w.end) {
        segments.push_back(s);
        break;
      }
  }
  return segments;
}

// The segments inside a window are consecutive: {first, one past the last}.
inline std::pair<int32_t, int32_t> inside(const std::vector<Segment>& segments, const Segment& window) {
  int32_t first = 0, last = 0;
  for (int32_t i = 0; i < static_cast<int32_t>(segments.size()); ++i)
    if (window.begin <= segments[i].begin && segments[i].end <= window.end) {
      if (first == last) first = i;
      last = i + 1;
    }
  return {first, last};
}

}  // namespace detail

inline AxisPlan plan_axis(const Axis& axis, bool fold) {
  AxisPlan plan;
  if (fold) {
    plan.size = axis.positions();
    plan.classes.push_back({0, 0, 0, {{0, plan.size}}, {{0, 0, 0, 1}}});
    plan.sums.push_back({0, {{0, plan.size}}, {{0, 0, 1}}});
    return plan;
  }
  plan.phases = axis.down(), plan.taps = axis.kernel, plan.size = axis.size;
  const int64_t up = axis.up(), down = axis.down(), positions = axis.positions();
  const auto phase = [&](int64_t i) { return axis.offset(i) - floor_div(axis.offset(i), down) * down; };
  // Tap i in its phase's pixels: h = (y + offset) / up at up = 1 or down = 1.
  const auto window = [&](int64_t i) {
    const int64_t offset = floor_div(axis.offset(i), down);
    const int64_t begin = up == 1 ? offset : ceil_div(offset, up);
    const int64_t end = up == 1 ? offset + positions : floor_div(offset + positions - 1, up) + 1;
    return Segment{std::max<int64_t>(begin, 0), std::min(end, plan.length(phase(i)))};
  };
  std::map<std::tuple<int64_t, int64_t, int64_t>, std::vector<std::pair<TapPair, Segment>>> classes;
  std::map<int64_t, std::vector<std::pair<Tap, Segment>>> sums;
  for (int64_t i = 0; i < axis.kernel; ++i) {
    sums[phase(i)].push_back({{static_cast<int32_t>(i), 0, 0}, window(i)});
    for (int64_t j = 0; j < axis.kernel; ++j) {
      const int64_t shift = floor_div(axis.offset(j), down) - floor_div(axis.offset(i), down);
      if (shift % up != 0) continue;  // taps i and j of a transposed convolution never meet a pixel at the same output
      const int64_t lag = shift / up;
      const Segment a = window(i), b = window(j);
      const Segment both{std::max(a.begin, b.begin - lag), std::min(a.end, b.end - lag)};
      const TapPair pair{static_cast<int32_t>(i), static_cast<int32_t>(j), 0, 0};
      classes[{phase(i), phase(j), lag}].push_back({pair, both});
    }
  }
  const auto finish = [](auto& members, auto& segments, auto& out) {
    std::vector<Segment> windows;
    for (const auto& member : members) windows.push_back(member.second);
    segments = detail::cut(windows);
    for (auto [tap, w] : members) {
      std::tie(tap.segment_begin, tap.segment_end) = detail::inside(segments, w);
      out.push_back(tap);
    }
  };
  for (auto& [key, members] : classes) {
    AxisClass c{
        static_cast<int32_t>(std::get<0>(key)), static_cast<int32_t>(std::get<1>(key)), std::get<2>(key), {}, {}};
    finish(members, c.segments, c.pairs);
    plan.classes.push_back(std::move(c));
  }
  for (auto& [f, members] : sums) {
    AxisSum s{static_cast<int32_t>(f), {}, {}};
    finish(members, s.segments, s.taps);
    plan.sums.push_back(std::move(s));
  }
  return plan;
}

struct LagPlan {
  Geometry geometry;
  std::array<bool, kAxes> folded{};
  std::array<AxisPlan, kAxes> axes;
  std::vector<LagClass> classes;
  std::vector<LagSum> sums;              // empty without a bias
  int64_t regions = 0, sum_regions = 0;  // over all classes, over all sums
  int64_t channels = 1;                  // side of one region's matrix: a group's channels times the folded taps

  LagPlan(const Geometry& g, std::array<bool, kAxes> fold = {})
      : geometry(g), folded(fold), channels(g.group_channels()) {
    for (int a = 0; a < kAxes; ++a) {
      axes[a] = plan_axis(g.axes[a], fold[a]);
      if (fold[a]) channels *= g.axes[a].kernel;
    }
    std::array<int32_t, kAxes> i;
    for (i[0] = 0; i[0] < static_cast<int32_t>(axes[0].classes.size()); ++i[0])
      for (i[1] = 0; i[1] < static_cast<int32_t>(axes[1].classes.size()); ++i[1])
        for (i[2] = 0; i[2] < static_cast<int32_t>(axes[2].classes.size()); ++i[2]) add_class(i);
    if (!g.bias) return;
    for (i[0] = 0; i[0] < static_cast<int32_t>(axes[0].sums.size()); ++i[0])
      for (i[1] = 0; i[1] < static_cast<int32_t>(axes[1].sums.size()); ++i[1])
        for (i[2] = 0; i[2] < static_cast<int32_t>(axes[2].sums.size()); ++i[2]) {
          const LagSum sum{i, sum_regions};
          sum_regions +=
              axis_sum(sum, 0).segments.size() * axis_sum(sum, 1).segments.size() * axis_sum(sum, 2).segments.size();
          if (sum_regions > sum.first_region) sums.push_back(sum);
        }
  }

  const AxisClass& axis_class(const LagClass& c, int axis) const { return axes[axis].classes[c.axis_class[axis]]; }
  const AxisSum& axis_sum(const LagSum& s, int axis) const { return axes[axis].sums[s.axis_sum[axis]]; }

  // Numbers of the linear state: (groups, [regions, channels, channels | sum_regions, channels | positions if bias]);
  // row of a region: channel at tap_a. The last is Σ 1 over samples and output positions.
  int64_t group_state_size() const {
    return regions * channels * channels + (geometry.bias ? sum_regions * channels + 1 : 0);
  }
  int64_t state_size() const { return geometry.groups * group_state_size(); }

 private:
  void add_class(const std::array<int32_t, kAxes>& i) {
    LagClass c{i, false, regions};
    std::array<int32_t, kAxes> a, b;
    std::array<int64_t, kAxes> lag;
    for (int x = 0; x < kAxes; ++x) {
      const AxisClass& one = axis_class(c, x);
      a[x] = one.phase_a, b[x] = one.phase_b, lag[x] = one.lag;
    }
    const std::array<int64_t, kAxes> zero{};
    if (a > b || (a == b && lag < zero)) return;
    c.symmetric = a == b && lag == zero;
    regions += axis_class(c, 0).segments.size() * axis_class(c, 1).segments.size() * axis_class(c, 2).segments.size();
    if (regions > c.first_region) classes.push_back(c);
  }
};

// How regions add up to blocks. Taps are numbered (i0 · taps1 + i1) · taps2 + i2 over the plan's (unfolded) taps.
// Block (a, b) = Σ regions[first … last), block (b, a) its transpose; a pair of taps in no entry never meets: its block
// is zero.
struct BlockTable {
  struct Block {
    int32_t tap_a, tap_b;
    int64_t first, last;
  };
  struct TapSum {
    int32_t tap;
    int64_t first, last;
  };
  std::vector<Block> blocks;
  std::vector<int64_t> regions;
  std::vector<TapSum> sums;  // Σ_y x[h_tap(y)], the bias column
  std::vector<int64_t> sum_regions;

  explicit BlockTable(const LagPlan& plan) {
    const auto tap = [&](int64_t i, int64_t j, int64_t k) {
      return static_cast<int32_t>((i * plan.axes[1].taps + j) * plan.axes[2].taps + k);
    };
    const auto add = [](std::vector<int64_t>& to, int64_t first, const auto& p, const auto& q, const auto& r,
                        int64_t n1, int64_t n2) {
      for (int32_t i = p.segment_begin; i < p.segment_end; ++i)
        for (int32_t j = q.segment_begin; j < q.segment_end; ++j)
          for (int32_t k = r.segment_begin; k < r.segment_end; ++k) to.push_back(first + (i * n1 + j) * n2 + k);
    };
    for (const LagClass& c : plan.classes)
      for (const TapPair& p : plan.axis_class(c, 0).pairs)
        for (const TapPair& q : plan.axis_class(c, 1).pairs)
          for (const TapPair& r : plan.axis_class(c, 2).pairs) {
            const int64_t first = regions.size();
            add(regions, c.first_region, p, q, r, plan.axis_class(c, 1).segments.size(),
                plan.axis_class(c, 2).segments.size());
            blocks.push_back({tap(p.tap_a, q.tap_a, r.tap_a), tap(p.tap_b, q.tap_b, r.tap_b), first,
                              static_cast<int64_t>(regions.size())});
          }
    for (const LagSum& s : plan.sums)
      for (const Tap& p : plan.axis_sum(s, 0).taps)
        for (const Tap& q : plan.axis_sum(s, 1).taps)
          for (const Tap& r : plan.axis_sum(s, 2).taps) {
            const int64_t first = sum_regions.size();
            add(sum_regions, s.first_region, p, q, r, plan.axis_sum(s, 1).segments.size(),
                plan.axis_sum(s, 2).segments.size());
            sums.push_back({tap(p.tap, q.tap, r.tap), first, static_cast<int64_t>(sum_regions.size())});
          }
  }
};

// Where patch element (channel c, full tap t) stands in a factor's row.
inline int64_t patch_index(const Geometry& g, bool channels_last_order, int64_t channel, int64_t tap) {
  return channels_last_order ? tap * g.group_channels() + channel : channel * g.taps() + tap;
}

}  // namespace spectral_ext
