#include "cpu/input_factor_expand.h"

#include <algorithm>
#include <vector>

namespace spectral_ext::cpu {
namespace {

constexpr int64_t kAtOnce = 32;            // regions of a block that are added in registers
constexpr int64_t kBufferNumbers = 40000;  // an output tile that is put in order before it is written, within L2

template <class T>
inline void write(T* to, const T* from, int64_t count, T beta, T scale) {
  if (beta == T(0))
    for (int64_t i = 0; i < count; ++i) to[i] = scale * from[i];
  else
    for (int64_t i = 0; i < count; ++i) to[i] = beta * to[i] + scale * from[i];
}

// Which regions a pair of taps adds up, in either order.
struct PairRegions {
  const int64_t* regions = nullptr;
  int64_t count = 0;
  bool transposed = false, symmetric = false;
};

template <class T>
class Expander {
 public:
  Expander(const LagPlan& plan, const RegionView<T>& view, bool channels_last_order, Update update, T* out)
      : plan_(plan),
        view_(view),
        table_(plan),
        beta_(static_cast<T>(update.beta)),
        scale_(static_cast<T>(update.scale)),
        out_(out) {
    const Geometry& g = plan.geometry;
    const auto& axes = plan.axes;
    n_ = g.n(), channels_ = plan.channels, panels_ = (channels_ + kPanel<T> - 1) / kPanel<T>;
    taps_ = axes[0].taps * axes[1].taps * axes[2].taps;
    std::array<int64_t, kAxes> weight{g.axes[1].kernel * g.axes[2].kernel, g.axes[2].kernel, 1};
    const int64_t per_tap = channels_last_order ? g.group_channels() : 1;
    for (int64_t t = 0; t < taps_; ++t)
      tap_offset_.push_back(per_tap * (t / (axes[1].taps * axes[2].taps) * weight[0] +
                                       t / axes[2].taps % axes[1].taps * weight[1] + t % axes[2].taps * weight[2]));
    std::array<int64_t, kAxes> folded;
    for (int a = 0; a < kAxes; ++a) folded[a] = plan.folded[a] ? g.axes[a].kernel : 1;
    const int64_t fold = folded[0] * folded[1] * folded[2];
    for (int64_t v = 0; v < channels_; ++v) {
      const int64_t c = channels_last_order ? v % g.group_channels() : v / fold;
      const int64_t t = channels_last_order ? v / g.group_channels() : v % fold;
      const int64_t full =
          t / (folded[1] * folded[2]) * weight[0] + t / folded[2] % folded[1] * weight[1] + t % folded[2] * weight[2];
      channel_offset_.push_back(patch_index(g, channels_last_order, c, full));
      consecutive_ = consecutive_ && channel_offset_.back() == v;
    }
    strided_ = !consecutive_ && fold == 1;
    pairs_.resize(taps_ * taps_);
    for (const auto& b : table_.blocks) {
      const int64_t* regions = table_.regions.data() + b.first;
      const bool symmetric = b.tap_a == b.tap_b;
      pairs_[b.tap_a * taps_ + b.tap_b] = {regions, b.last - b.first, false, symmetric};
      if (!symmetric) pairs_[b.tap_b * taps_ + b.tap_a] = {regions, b.last - b.first, true, false};
    }
    rows_ = kPanel<T>;
    while (rows_ > 1 && rows_ * taps_ * taps_ * kPanel<T> > kBufferNumbers) rows_ /= 2;
  }

  int64_t panels() const { return panels_; }
  int64_t buffer_numbers() const { return strided_ ? rows_ * taps_ * taps_ * kPanel<T> : 0; }

  // Rows of the factor that belong to the channels of one panel, bias column apart.
  void expand_panel(int64_t panel, T* buffer) const {
    if (strided_)
      interleaved(panel, buffer);
    else
      direct(panel);
  }

  void bias(double positions) const {
    std::vector<T> row(n_);
    for (const auto& s : table_.sums)
      for (int64_t v = 0; v < channels_; ++v) {
        double total = 0;
        for (int64_t r = s.first; r < s.last; ++r) total += view_.sums[table_.sum_regions[r] * view_.sum_stride + v];
        row[tap_offset_[s.tap] + channel_offset_[v]] = static_cast<T>(total);
      }
    row[n_ - 1] = static_cast<T>(positions);
    write(out_ + (n_ - 1) * n_, row.data(), n_, beta_, scale_);
    for (int64_t i = 0; i + 1 < n_; ++i) write(out_ + i * n_ + n_ - 1, row.data() + i, 1, beta_, scale_);
  }

  // Tile (rows [first, first + rows) of panel p, panel q) of block (a, b): tile[i · kPanel + j].
  void fetch(const PairRegions& pair, int64_t p, int64_t first, int64_t rows, int64_t q, T* tile) const {
    const bool transposed = pair.transposed || (pair.symmetric && view_.upper_only && p > q);
    const bool padded = view_.row_stride == kPanel<T> || std::max(p, q) < channels_ / kPanel<T>;
    if (rows == kPanel<T> && padded && pair.count <= kAtOnce) {
      const T* from[kAtOnce];
      for (int64_t r = 0; r < pair.count; ++r)
        from[r] = transposed ? tile_of(pair.regions[r], q, p) : tile_of(pair.regions[r], p, q);
      kernel_.add_tiles(from, pair.count, view_.row_stride, transposed, tile);
    } else if (transposed) {
      alignas(64) T turned[kPanel<T> * kPanel<T>];
      add_up(pair, q, 0, kPanel<T>, p, first, rows, turned);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < kPanel<T>; ++j) tile[i * kPanel<T> + j] = turned[j * kPanel<T> + i];
    } else {
      add_up(pair, p, first, rows, q, 0, kPanel<T>, tile);
    }
  }

 private:
  // Σ of the pair's regions as they are stored: rows [row, row + rows) of panel p, columns [column, column + columns)
  // of panel q; zero beyond the last channel, where plain matrices end.
  void add_up(const PairRegions& pair, int64_t p, int64_t row, int64_t rows, int64_t q, int64_t column, int64_t columns,
              T* tile) const {
    const int64_t rows_there = std::min(rows, channels_ - p * kPanel<T> - row);
    const int64_t columns_there = std::min(columns, channels_ - q * kPanel<T> - column);
    for (int64_t i = 0; i < rows * kPanel<T>; ++i) tile[i] = T(0);
    for (int64_t r = 0; r < pair.count; ++r) {
      const T* from = tile_of(pair.regions[r], p, q) + row * view_.row_stride + column;
      for (int64_t i = 0; i < rows_there; ++i, from += view_.row_stride)
        if (columns_there == kPanel<T>)
          for (int64_t j = 0; j < kPanel<T>; ++j) tile[i * kPanel<T> + j] += from[j];
        else
          for (int64_t j = 0; j < columns_there; ++j) tile[i * kPanel<T> + j] += from[j];
    }
  }

  const T* tile_of(int64_t region, int64_t p, int64_t q) const {
    return view_.data + region * view_.region_stride + p * view_.panel_row_stride + q * view_.panel_column_stride;
  }

  // Element by element, or 64 bytes at a time where the panel's channels are consecutive in a row.
  void direct(int64_t p) const {
    alignas(64) T tile[kPanel<T> * kPanel<T>];
    const int64_t rows = std::min<int64_t>(channels_ - p * kPanel<T>, kPanel<T>);
    for (int64_t a = 0; a < taps_; ++a)
      for (int64_t b = 0; b < taps_; ++b)
        for (int64_t q = 0; q < panels_; ++q) {
          fetch(pairs_[a * taps_ + b], p, 0, kPanel<T>, q, tile);
          const int64_t columns = std::min<int64_t>(channels_ - q * kPanel<T>, kPanel<T>);
          for (int64_t i = 0; i < rows; ++i) {
            T* row = out_ + (tap_offset_[a] + channel_offset_[p * kPanel<T> + i]) * n_ + tap_offset_[b];
            if (consecutive_)
              write(row + q * kPanel<T>, tile + i * kPanel<T>, columns, beta_, scale_);
            else
              for (int64_t j = 0; j < columns; ++j)
                write(row + channel_offset_[q * kPanel<T> + j], tile + i * kPanel<T> + j, 1, beta_, scale_);
          }
        }
  }

  // Row (c, a) holds b fastest: all taps of a tile meet in a buffer, then long rows are written.
  void interleaved(int64_t p, T* buffer) const {
    alignas(64) T tile[kPanel<T> * kPanel<T>];
    const int64_t here = std::min<int64_t>(channels_ - p * kPanel<T>, kPanel<T>);
    for (int64_t first = 0; first < here; first += rows_) {
      const int64_t rows = std::min(rows_, here - first);
      for (int64_t q = 0; q < panels_; ++q) {
        const int64_t columns = std::min<int64_t>(channels_ - q * kPanel<T>, kPanel<T>);
        for (int64_t a = 0; a < taps_; ++a)
          for (int64_t b = 0; b < taps_; ++b) {
            fetch(pairs_[a * taps_ + b], p, first, rows_, q, tile);
            for (int64_t i = 0; i < rows; ++i) {
              T* to = buffer + (i * taps_ + a) * kPanel<T> * taps_ + b;
              for (int64_t j = 0; j < kPanel<T>; ++j) to[j * taps_] = tile[i * kPanel<T> + j];
            }
          }
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t a = 0; a < taps_; ++a)
            write(out_ + ((p * kPanel<T> + first + i) * taps_ + a) * n_ + q * kPanel<T> * taps_,
                  buffer + (i * taps_ + a) * kPanel<T> * taps_, columns * taps_, beta_, scale_);
      }
    }
  }

  const LagPlan& plan_;
  const RegionView<T>& view_;
  const Kernels<T>& kernel_ = kernels<T>();
  BlockTable table_;
  T beta_, scale_;
  T* out_;
  int64_t n_, channels_, panels_, taps_, rows_;
  bool consecutive_ = true, strided_;
  std::vector<int64_t> tap_offset_, channel_offset_;  // row of (tap, channel) = tap_offset + channel_offset
  std::vector<PairRegions> pairs_;                    // all ordered pairs of unfolded taps
};

}  // namespace

template <class T>
void expand(const LagPlan& plan, const RegionView<T>& regions, double positions, bool channels_last_order,
            Update update, T* out, const Context& context) {
  const Expander<T> expander(plan, regions, channels_last_order, update, out);
  T* buffers = static_cast<T*>(context.allocate(context.parallel.threads * expander.buffer_numbers() * sizeof(T)));
  context.parallel(context.parallel.threads, [&](int64_t thread) {
    for (int64_t p = thread; p < expander.panels(); p += context.parallel.threads)
      expander.expand_panel(p, buffers + thread * expander.buffer_numbers());
  });
  if (plan.geometry.bias) expander.bias(positions);
}

template <class T>
void store_state(const LagPlan& plan, const RegionView<T>& regions, double positions, Update update, T* state,
                 const Context& context) {
  const Expander<T> expander(plan, regions, false, update, nullptr);
  const int64_t channels = plan.channels, panels = expander.panels();
  const T beta = static_cast<T>(update.beta), scale = static_cast<T>(update.scale);
  std::vector<bool> symmetric(plan.regions);
  for (size_t c = 0; c < plan.classes.size(); ++c) {
    const int64_t last = c + 1 < plan.classes.size() ? plan.classes[c + 1].first_region : plan.regions;
    for (int64_t r = plan.classes[c].first_region; r < last; ++r) symmetric[r] = plan.classes[c].symmetric;
  }
  context.parallel(context.parallel.threads, [&](int64_t thread) {
    alignas(64) T tile[kPanel<T> * kPanel<T>];
    for (int64_t task = thread; task < plan.regions * panels; task += context.parallel.threads) {
      const int64_t region = task / panels, p = task % panels;
      const int64_t rows = std::min<int64_t>(channels - p * kPanel<T>, kPanel<T>);
      for (int64_t q = 0; q < panels; ++q) {
        expander.fetch({&region, 1, false, symmetric[region]}, p, 0, kPanel<T>, q, tile);
        for (int64_t i = 0; i < rows; ++i)
          write(state + (region * channels + p * kPanel<T> + i) * channels + q * kPanel<T>, tile + i * kPanel<T>,
                std::min<int64_t>(channels - q * kPanel<T>, kPanel<T>), beta, scale);
      }
    }
  });
  if (!plan.geometry.bias) return;
  T* sums = state + plan.regions * channels * channels;
  for (int64_t r = 0; r < plan.sum_regions; ++r)
    for (int64_t v = 0; v < channels; ++v) {
      const T sum = static_cast<T>(regions.sums[r * regions.sum_stride + v]);
      write(sums + r * channels + v, &sum, 1, beta, scale);
    }
  const T count = static_cast<T>(positions);
  write(sums + plan.sum_regions * channels, &count, 1, beta, scale);
}

#define SPECTRAL_EXT_INSTANTIATE(T)                                                                        \
  template void expand<T>(const LagPlan&, const RegionView<T>&, double, bool, Update, T*, const Context&); \
  template void store_state<T>(const LagPlan&, const RegionView<T>&, double, Update, T*, const Context&);
SPECTRAL_EXT_INSTANTIATE(float)
SPECTRAL_EXT_INSTANTIATE(double)
#undef SPECTRAL_EXT_INSTANTIATE

}  // namespace spectral_ext::cpu
