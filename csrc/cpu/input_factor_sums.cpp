#include "cpu/input_factor_sums.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace spectral_ext::cpu {
namespace {

constexpr int64_t kPackedBytes = 4 << 20;  // packed at a time, unless one sample is more
constexpr int64_t kTileBytes = 4 << 20;    // accumulators that may be duplicated for more streams
constexpr int64_t kRun = 256;              // panels a microkernel call: a run of A and three of B stay in L1
constexpr int64_t kRowBytes = 192 << 10;   // packed pixels a row block: a few of them stay in L2
constexpr int64_t kUnits = 96, kStreams = 16;
constexpr int64_t kUpdates = 64;  // runs added to a tile before it is folded into its total

int64_t segments_of(const LagPlan& plan, const LagClass& c) {
  return plan.axis_class(c, 0).segments.size() * plan.axis_class(c, 1).segments.size() *
         plan.axis_class(c, 2).segments.size();
}

int64_t pixels_of(const LagPlan& plan, const LagClass& c) {
  int64_t pixels = 1;
  for (int a = 0; a < kAxes; ++a) {
    int64_t along = 0;
    for (const Segment& s : plan.axis_class(c, a).segments) along += s.end - s.begin;
    pixels *= along;
  }
  return pixels;
}

Schedule make_schedule(const LagPlan& plan, int64_t sample_bytes, int64_t tile_bytes, int64_t units) {
  const int64_t batch = plan.geometry.batch, width = plan.axes[2].length(0);
  int64_t together = std::max<int64_t>(kPackedBytes / std::max<int64_t>(sample_bytes, 1), 1);
  together = std::min(batch, std::max(together, kRun / width));
  // More streams only where threads would lack work, accumulators are small and runs stay long.
  int64_t streams = std::min({(kUnits + units - 1) / units, kTileBytes / std::max<int64_t>(tile_bytes, 1), kStreams,
                              together * width / kRun, together});
  streams = std::max<int64_t>(streams, 1);
  const int64_t rounds = (batch + together - 1) / std::max<int64_t>(together, 1);
  const int64_t pieces = std::max<int64_t>(rounds * streams, 1);
  const int64_t samples = (batch + pieces - 1) / pieces;
  const int64_t updates = plan.axes[0].length(0) * plan.axes[1].length(0) * ((samples * width + kRun - 1) / kRun);
  const int64_t every = std::max<int64_t>(kUpdates / std::max<int64_t>(updates, 1), 1);
  return {samples, streams, rounds, rounds > 2 * every ? every : 0};
}

}  // namespace

template <class T>
RegionSums<T>::RegionSums(const LagPlan& plan, const Input& input, bool channels_last_order, const Context& context)
    : plan_(plan), context_(context), packing_(plan, input, channels_last_order, false) {
  const int64_t np = packing_.panels();
  tile_numbers_ = plan.regions * np * np * kPanel<T> * kPanel<T>;
  sum_numbers_ = plan.sum_regions * np * kPanel<T>;
  schedule_ = make_schedule(plan, packing_.sample_numbers() * sizeof(T), tile_numbers_ * sizeof(T),
                            std::max<int64_t>(static_cast<int64_t>(plan.classes.size()) * np, 1));
  stream_numbers_ = schedule_.samples * packing_.sample_numbers();
  block_ = std::max<int64_t>(kRowBytes / std::max<int64_t>(np * schedule_.samples * 64, 1), 1);
  block_ = std::max(block_, (kRun + schedule_.samples - 1) / std::max<int64_t>(schedule_.samples, 1));

  packed_ = static_cast<T*>(context.allocate(schedule_.streams * stream_numbers_ * sizeof(T)));
  tiles_ = static_cast<T*>(context.allocate(schedule_.streams * tile_numbers_ * sizeof(T)));
  if (schedule_.fold_every) totals_ = static_cast<T*>(context.allocate(schedule_.streams * tile_numbers_ * sizeof(T)));
  sums_ = static_cast<double*>(context.allocate(schedule_.streams * sum_numbers_ * sizeof(double)));
  scratch_ = static_cast<T*>(context.allocate(context.parallel.threads * packing_.scratch_numbers() * sizeof(T)));

  for (const LagClass& c : plan.classes) {
    segment_of_class_.emplace_back();
    for (int a = 0; a < 2; ++a) {
      const AxisClass& one = plan.axis_class(c, a);
      auto& of = segment_of_class_.back()[a];
      of.assign(plan.axes[a].length(0), -1);
      for (size_t s = 0; s < one.segments.size(); ++s)
        std::fill(of.begin() + one.segments[s].begin, of.begin() + one.segments[s].end, static_cast<int32_t>(s));
    }
  }
  share_out();
}

// Equal shares of consecutive items: a thread keeps to few streams and few classes, whose pixels stay in its cache.
// Which thread adds up a tile does not change its value.
template <class T>
void RegionSums<T>::share_out() {
  const int64_t np = packing_.panels();
  std::vector<Item> items;
  std::vector<double> cost;
  for (int64_t stream = 0; stream < schedule_.streams; ++stream)
    for (size_t c = 0; c < plan_.classes.size(); ++c)
      for (int64_t p = 0; p < np; ++p) {
        const double panels = static_cast<double>(plan_.classes[c].symmetric ? np - p : np);
        items.push_back({stream, p, static_cast<int32_t>(c)});
        cost.push_back(panels * static_cast<double>(pixels_of(plan_, plan_.classes[c])));
      }
  const double share = std::accumulate(cost.begin(), cost.end(), 0.0) / context_.parallel.threads;
  items_.resize(context_.parallel.threads);
  double before = 0;
  for (size_t i = 0; i < items.size(); before += cost[i++]) {
    const auto thread = static_cast<int64_t>((before + cost[i] / 2) / share);
    items_[std::min<int64_t>(thread, context_.parallel.threads - 1)].push_back(items[i]);
  }
}

template <class T>
int64_t RegionSums<T>::piece_begin(int64_t round, int64_t stream) const {
  return std::min((round * schedule_.streams + stream) * schedule_.samples, plan_.geometry.batch);
}

template <class T>
int64_t RegionSums<T>::piece_samples(int64_t round, int64_t stream) const {
  return std::min(piece_begin(round, stream) + schedule_.samples, plan_.geometry.batch) - piece_begin(round, stream);
}

template <class T>
void RegionSums<T>::run(int64_t group) {
  context_.parallel(context_.parallel.threads, [&](int64_t thread) {
    const int64_t n = schedule_.streams * tile_numbers_, begin = n * thread / context_.parallel.threads,
                  end = n * (thread + 1) / context_.parallel.threads;
    std::memset(tiles_ + begin, 0, (end - begin) * sizeof(T));
    if (totals_) std::memset(totals_ + begin, 0, (end - begin) * sizeof(T));
  });
  std::fill(sums_, sums_ + schedule_.streams * sum_numbers_, 0.0);
  for (int64_t round = 0; round < schedule_.rounds; ++round) {
    pack(group, round);
    const bool fold_now = totals_ && ((round + 1) % schedule_.fold_every == 0 || round + 1 == schedule_.rounds);
    context_.parallel(context_.parallel.threads, [&](int64_t thread) {
      multiply(thread, round);
      if (fold_now) fold(thread);
    });
  }
  reduce();
}

template <class T>
void RegionSums<T>::pack(int64_t group, int64_t round) {
  const int64_t first = piece_begin(round, 0), last = piece_begin(round + 1, 0);
  context_.parallel(context_.parallel.threads, [&](int64_t thread) {
    const int64_t n = last - first, begin = first + n * thread / context_.parallel.threads,
                  end = first + n * (thread + 1) / context_.parallel.threads;
    for (int64_t sample = begin; sample < end; ++sample) {
      const int64_t stream = (sample - first) / schedule_.samples;
      packing_.pack(group, sample, buffer(stream), sample - piece_begin(round, stream), piece_samples(round, stream),
                    scratch_ + thread * packing_.scratch_numbers());
    }
  });
}

template <class T>
void RegionSums<T>::multiply(int64_t thread, int64_t round) {
  const auto& items = items_[thread];
  for (size_t first = 0; first < items.size();) {
    size_t last = first;
    const int64_t stream = items[first].stream, samples = piece_samples(round, stream);
    while (last < items.size() && items[last].stream == stream) ++last;
    for (int64_t u0 = 0; u0 < plan_.axes[0].length(0); ++u0)
      for (int64_t u1 = 0; u1 < plan_.axes[1].length(0); ++u1)
        for (int64_t u2 = 0; u2 < plan_.axes[2].length(0); u2 += block_)
          for (size_t i = first; i < last && samples > 0; ++i) multiply_row(items[i], samples, u0, u1, u2, u2 + block_);
    first = last;
  }
  if (plan_.sums.empty()) return;
  for (int64_t task = thread; task < schedule_.streams * packing_.panels(); task += context_.parallel.threads) {
    const int64_t stream = task / packing_.panels();
    add_columns(stream, piece_samples(round, stream), task % packing_.panels());
  }
}

// One row block of one class: panel a of pixel u with all panels of pixel u + lag.
template <class T>
void RegionSums<T>::multiply_row(const Item& item, int64_t samples, int64_t u0, int64_t u1, int64_t begin,
                                 int64_t end) {
  const LagClass& c = plan_.classes[item.of_class];
  const int64_t s0 = segment_of_class_[item.of_class][0][u0], s1 = segment_of_class_[item.of_class][1][u1];
  if (s0 < 0 || s1 < 0) return;
  const AxisClass &c0 = plan_.axis_class(c, 0), &c1 = plan_.axis_class(c, 1), &c2 = plan_.axis_class(c, 2);
  const int64_t np = packing_.panels(), step = samples * kPanel<T>;
  const int64_t fa = packing_.phase(c0.phase_a, c1.phase_a, c2.phase_a);
  const int64_t fb = packing_.phase(c0.phase_b, c1.phase_b, c2.phase_b);
  const T* row_a = buffer(item.stream) + packing_.offset(fa, samples) +
                   (item.panel * packing_.panel_stride(fa) + packing_.pixel(fa, u0, u1, 0) * kPanel<T>)*samples;
  const T* row_b =
      buffer(item.stream) + packing_.offset(fb, samples) + packing_.pixel(fb, u0 + c0.lag, u1 + c1.lag, c2.lag) * step;
  const int64_t stride_b = packing_.panel_stride(fb) * samples;
  const Kernels<T>& kernel = kernels<T>();
  constexpr int64_t kTile = kPanel<T> * kPanel<T>;
  const int64_t first_panel = c.symmetric ? item.panel : 0, halves = kPanel<T> / kernel.rows;
  const int64_t lanes_a = std::min<int64_t>(packing_.channels() - item.panel * kPanel<T>, kPanel<T>);
  for (size_t s2 = 0; s2 < c2.segments.size(); ++s2) {
    const int64_t from = std::max(begin, c2.segments[s2].begin), to = std::min(end, c2.segments[s2].end);
    if (from >= to) continue;
    const int64_t region = c.first_region + (s0 * c1.segments.size() + s1) * c2.segments.size() + s2;
    T* tile = tiles_ + item.stream * tile_numbers_ + (region * np + item.panel) * np * kTile;
    const int64_t total = (to - from) * samples, runs = (total + kRun - 1) / kRun;
    for (int64_t r = 0; r < runs; ++r) {
      const int64_t k0 = total * r / runs, k = total * (r + 1) / runs - k0;
      const T* a = row_a + from * step + k0 * kPanel<T>;
      const T* b = row_b + from * step + k0 * kPanel<T>;
      for (int64_t p = first_panel; p < np;) {
        const int64_t left = np - p;
        int64_t count = std::min<int64_t>(left, kernel.max_panels);
        if (left == 4 && count == 3) count = 2;
        const T* panels[kMaxPanels];
        for (int64_t j = 0; j < count; ++j) panels[j] = b + (p + j) * stride_b;
        for (int64_t h = 0; h < halves && h * kernel.rows < lanes_a; ++h)
          kernel.multiply[count - 1](k, a + h * kernel.rows, panels, tile + p * kTile + h * kernel.rows * kPanel<T>,
                                     kTile);
        p += count;
      }
    }
  }
}

// Σ x over the regions of the bias column, for one panel.
template <class T>
void RegionSums<T>::add_columns(int64_t stream, int64_t samples, int64_t panel) {
  alignas(64) T partial[kPanel<T>];
  const Kernels<T>& kernel = kernels<T>();
  for (const LagSum& s : plan_.sums) {
    const AxisSum &a = plan_.axis_sum(s, 0), &b = plan_.axis_sum(s, 1), &c = plan_.axis_sum(s, 2);
    const int64_t f = packing_.phase(a.phase, b.phase, c.phase);
    const T* base = buffer(stream) + packing_.offset(f, samples) + panel * packing_.panel_stride(f) * samples;
    for (size_t i = 0; i < a.segments.size(); ++i)
      for (size_t j = 0; j < b.segments.size(); ++j)
        for (size_t k = 0; k < c.segments.size(); ++k) {
          const int64_t region = s.first_region + (i * b.segments.size() + j) * c.segments.size() + k;
          double* to = sums_ + stream * sum_numbers_ + (region * packing_.panels() + panel) * kPanel<T>;
          for (int64_t u0 = a.segments[i].begin; u0 < a.segments[i].end; ++u0)
            for (int64_t u1 = b.segments[j].begin; u1 < b.segments[j].end; ++u1) {
              const int64_t begin = packing_.pixel(f, u0, u1, c.segments[k].begin) * samples,
                            end = packing_.pixel(f, u0, u1, c.segments[k].end) * samples;
              for (int64_t at = begin; at < end; at += kRun) {
                kernel.sum(std::min(kRun, end - at), base + at * kPanel<T>, partial);
                for (int l = 0; l < kPanel<T>; ++l) to[l] += partial[l];
              }
            }
        }
  }
}

// A thread's own tiles: nobody else writes them.
template <class T>
void RegionSums<T>::fold(int64_t thread) {
  const int64_t np = packing_.panels(), row = np * kPanel<T> * kPanel<T>;
  for (const Item& item : items_[thread]) {
    const LagClass& c = plan_.classes[item.of_class];
    const int64_t last = c.first_region + segments_of(plan_, c);
    for (int64_t region = c.first_region; region < last; ++region) {
      const int64_t at = item.stream * tile_numbers_ + (region * np + item.panel) * row;
      for (int64_t i = 0; i < row; ++i) totals_[at + i] += tiles_[at + i], tiles_[at + i] = T(0);
    }
  }
}

template <class T>
void RegionSums<T>::reduce() {
  if (schedule_.streams == 1) return;
  T* sum = totals_ ? totals_ : tiles_;
  context_.parallel(context_.parallel.threads, [&](int64_t thread) {
    const int64_t begin = tile_numbers_ * thread / context_.parallel.threads,
                  end = tile_numbers_ * (thread + 1) / context_.parallel.threads;
    for (int64_t stream = 1; stream < schedule_.streams; ++stream) {
      const T* from = sum + stream * tile_numbers_;
      for (int64_t i = begin; i < end; ++i) sum[i] += from[i];
    }
  });
  for (int64_t stream = 1; stream < schedule_.streams; ++stream)
    for (int64_t i = 0; i < sum_numbers_; ++i) sums_[i] += sums_[stream * sum_numbers_ + i];
}

template class RegionSums<float>;
template class RegionSums<double>;

}  // namespace spectral_ext::cpu
