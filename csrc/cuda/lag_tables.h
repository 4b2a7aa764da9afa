// A lag plan as the tables that the CUDA kernels read, and how the work is cut into units. Host code, torch-free.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/lag_plan.h"
#include "cuda/input_factor_lag.h"

namespace spectral_ext::cuda {

class LagTables {
 public:
  LagSizes sizes{};
  std::vector<int64_t> words;  // everything the device needs, to be uploaded in one piece

  // x is (batch, channels, axes…) with contiguous channels; axis_stride and batch_stride in elements.
  LagTables(const LagPlan& plan, const int64_t (&axis_stride)[3], int64_t batch_stride, Dtype dtype, bool aligned,
            int multiprocessors)
      : plan_(plan), tile_(lag_tile(static_cast<int>(plan.channels), dtype)) {
    const Geometry& g = plan.geometry;
    sizes.batch = g.batch, sizes.batch_stride = batch_stride;
    for (int a = 0; a < 3; ++a) axis_stride_[a] = axis_stride[a], sizes.step[a] = plan.axes[a].phases * axis_stride[a];
    sizes.groups = static_cast<int>(g.groups), sizes.channels = static_cast<int>(plan.channels);
    sizes.regions = static_cast<int>(plan.regions), sizes.sum_regions = static_cast<int>(plan.sum_regions);
    sizes.group_state_size = plan.group_state_size();
    sizes.bias = g.bias, sizes.count = static_cast<double>(g.batch) * static_cast<double>(g.positions());
    sizes.vectors = aligned && sizes.channels % lag_vector(dtype) == 0 && batch_stride % lag_vector(dtype) == 0;
    for (int64_t stride : axis_stride) sizes.vectors &= stride % lag_vector(dtype) == 0;
    const std::vector<LagRegion> regions = make_regions(multiprocessors);
    const std::vector<LagSumRegion> sums = make_sum_regions();
    regions_ = append(regions), sum_regions_ = append(sums);
    make_pair_tables();
  }

  int64_t scratch_numbers() const {
    return (sizes.partial_tiles * tile_ * tile_ +
            static_cast<int64_t>(sizes.sum_slices) * sizes.sum_regions * sizes.channels) *
           sizes.groups;
  }
  const LagRegion* regions(const int64_t* device_words) const {
    return reinterpret_cast<const LagRegion*>(device_words + regions_);
  }
  const LagSumRegion* sum_regions(const int64_t* device_words) const {
    return reinterpret_cast<const LagSumRegion*>(device_words + sum_regions_);
  }
  LagExpansion tables(const int64_t* device_words) const {
    const int32_t* base = reinterpret_cast<const int32_t*>(device_words + integers_);
    LagExpansion t{};
    for (int a = 0; a < 3; ++a) {
      t.pairs[a] = base + pairs_[a], t.segments[a] = base + segments_[a];
      t.taps[a] = base + taps_[a], t.sum_segments[a] = base + sum_segments_[a];
      t.kernel[a] = static_cast<int32_t>(plan_.axes[a].taps);
      t.classes[a] = static_cast<int32_t>(plan_.axes[a].classes.size());
      t.sums[a] = static_cast<int32_t>(plan_.axes[a].sums.size());
    }
    t.first_region = base + first_region_, t.first_sum = base + first_sum_;
    return t;
  }

 private:
  const LagPlan& plan_;
  int tile_;
  int64_t axis_stride_[3];
  int64_t regions_ = 0, sum_regions_ = 0, integers_ = 0;                                           // words
  int64_t pairs_[3], segments_[3], taps_[3], sum_segments_[3], first_region_ = 0, first_sum_ = 0;  // integers

  // Rows of a unit: enough units for about three waves of six a multiprocessor, none below 256 rows.
  std::vector<LagRegion> make_regions(int multiprocessors) {
    const int64_t side = (sizes.channels + tile_ - 1) / tile_;
    std::vector<LagRegion> regions;
    int64_t work = 0;
    for (const LagClass& c : plan_.classes) {
      const AxisClass* axis[3];
      for (int a = 0; a < 3; ++a) axis[a] = &plan_.axis_class(c, a);
      const int64_t n0 = axis[0]->segments.size(), n1 = axis[1]->segments.size(), n2 = axis[2]->segments.size();
      for (int64_t i = 0; i < n0 * n1 * n2; ++i) {
        const int64_t index[3] = {i / (n1 * n2), i / n2 % n1, i % n2};
        LagRegion r{};
        int64_t rows = sizes.batch;
        for (int a = 0; a < 3; ++a) {
          const Segment& segment = axis[a]->segments[index[a]];
          r.offset += axis[a]->phase_a * axis_stride_[a] + segment.begin * sizes.step[a];
          r.delta += (axis[a]->phase_b - axis[a]->phase_a) * axis_stride_[a] + axis[a]->lag * sizes.step[a];
          r.extent[a] = static_cast<int32_t>(segment.end - segment.begin);
          rows *= r.extent[a];
        }
        r.symmetric = c.symmetric;
        r.rows_per_slice = rows;
        work += rows * (c.symmetric ? side * (side + 1) / 2 : side * side) * sizes.groups;
        regions.push_back(r);
      }
    }
    const int64_t target = std::max<int64_t>(256, work / (18 * static_cast<int64_t>(multiprocessors)) + 1);
    for (LagRegion& r : regions) {
      const int64_t rows = r.rows_per_slice, tiles = r.symmetric ? side * (side + 1) / 2 : side * side;
      const int64_t slices = std::max<int64_t>(1, (rows + target - 1) / target);
      r.rows_per_slice = ((rows + slices - 1) / slices + 15) / 16 * 16;
      r.slices = static_cast<int32_t>(rows == 0 ? 1 : (rows + r.rows_per_slice - 1) / r.rows_per_slice);
      r.first_unit = sizes.units, r.first_sum = sizes.sums, r.first_partial = sizes.partial_tiles;
      sizes.units += static_cast<int>(tiles * r.slices);
      if (r.slices > 1) sizes.sums += static_cast<int>(tiles), sizes.partial_tiles += tiles * r.slices;
    }
    LagRegion end{};
    end.first_unit = sizes.units, end.first_sum = sizes.sums;
    regions.push_back(end);
    return regions;
  }

  std::vector<LagSumRegion> make_sum_regions() {
    std::vector<LagSumRegion> regions;
    int64_t most = 0;
    for (const LagSum& s : plan_.sums) {
      const AxisSum* axis[3];
      for (int a = 0; a < 3; ++a) axis[a] = &plan_.axis_sum(s, a);
      const int64_t n0 = axis[0]->segments.size(), n1 = axis[1]->segments.size(), n2 = axis[2]->segments.size();
      for (int64_t i = 0; i < n0 * n1 * n2; ++i) {
        const int64_t index[3] = {i / (n1 * n2), i / n2 % n1, i % n2};
        LagSumRegion r{};
        int64_t rows = sizes.batch;
        for (int a = 0; a < 3; ++a) {
          const Segment& segment = axis[a]->segments[index[a]];
          r.offset += axis[a]->phase * axis_stride_[a] + segment.begin * sizes.step[a];
          r.extent[a] = static_cast<int32_t>(segment.end - segment.begin);
          rows *= r.extent[a];
        }
        most = std::max(most, rows);
        regions.push_back(r);
      }
    }
    sizes.sum_slices = static_cast<int>(std::clamp<int64_t>(most / 1024, 1, 64));
    return regions;
  }

  void make_pair_tables() {
    std::vector<int32_t> integers;
    const auto start = [&](int64_t count, int32_t fill) {
      const int64_t at = integers.size();
      integers.resize(at + count, fill);
      return at;
    };
    for (int a = 0; a < 3; ++a) {
      const AxisPlan& axis = plan_.axes[a];
      pairs_[a] = start(3 * axis.taps * axis.taps, -1);
      for (size_t c = 0; c < axis.classes.size(); ++c)
        for (const TapPair& p : axis.classes[c].pairs) {
          const int32_t entry[3] = {static_cast<int32_t>(c), p.segment_begin, p.segment_end};
          std::copy_n(entry, 3, integers.begin() + pairs_[a] + 3 * (p.tap_a * axis.taps + p.tap_b));
        }
      segments_[a] = start(axis.classes.size(), 0);
      for (size_t c = 0; c < axis.classes.size(); ++c)
        integers[segments_[a] + c] = static_cast<int32_t>(axis.classes[c].segments.size());
      taps_[a] = start(3 * axis.taps, -1);
      for (size_t s = 0; s < axis.sums.size(); ++s)
        for (const Tap& t : axis.sums[s].taps) {
          const int32_t entry[3] = {static_cast<int32_t>(s), t.segment_begin, t.segment_end};
          std::copy_n(entry, 3, integers.begin() + taps_[a] + 3 * t.tap);
        }
      sum_segments_[a] = start(axis.sums.size(), 0);
      for (size_t s = 0; s < axis.sums.size(); ++s)
        integers[sum_segments_[a] + s] = static_cast<int32_t>(axis.sums[s].segments.size());
    }
    const auto flat = [](const std::array<int32_t, kAxes>& i, size_t n1, size_t n2) {
      return (i[0] * n1 + i[1]) * n2 + i[2];
    };
    const size_t c1 = plan_.axes[1].classes.size(), c2 = plan_.axes[2].classes.size();
    first_region_ = start(plan_.axes[0].classes.size() * c1 * c2, -1);
    for (const LagClass& c : plan_.classes)
      integers[first_region_ + flat(c.axis_class, c1, c2)] = static_cast<int32_t>(c.first_region);
    const size_t s1 = plan_.axes[1].sums.size(), s2 = plan_.axes[2].sums.size();
    first_sum_ = start(plan_.axes[0].sums.size() * s1 * s2, -1);
    for (const LagSum& s : plan_.sums)
      integers[first_sum_ + flat(s.axis_sum, s1, s2)] = static_cast<int32_t>(s.first_region);
    integers_ = append(integers);
  }

  // Copies items to the next word and returns its index.
  template <typename Item>
  int64_t append(const std::vector<Item>& items) {
    const size_t bytes = items.size() * sizeof(Item), at = words.size();
    words.resize(at + (bytes + 7) / 8);
    if (bytes > 0) std::memcpy(words.data() + at, items.data(), bytes);
    return static_cast<int64_t>(at);
  }
};

}  // namespace spectral_ext::cuda
