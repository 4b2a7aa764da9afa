// Where things are in a thread's scratch, and which input rows a box of output positions reads; the kernels of one
// instruction set. Private to rayleigh_quotients*.cpp.
#pragma once
#include <algorithm>
#include <limits>
#include <utility>

#include "cpu/rayleigh_quotients.h"
#include "cpu/simd.h"

namespace spectral_ext::cpu {

struct RayleighKernels {
  int vector_bytes;
  int widest_tile;  // directions whose sums the registers hold
  // Sums of one block into partial[4][K]; `scratch` is plan.scratch_bytes, 64-byte aligned, private to the caller.
  void (*run_float)(const RayleighPlan& plan, const float* directions, int64_t block, char* scratch, double* partial);
  void (*run_double)(const RayleighPlan& plan, const double* directions, int64_t block, char* scratch, double* partial);
};

template <SimdLevel level>
const RayleighKernels& rayleigh_kernels();

namespace {

constexpr int kPositionsAtOnce = 8;  // P and Q of so many positions stay in L1; also the length of a float sum
constexpr int kErrorPositions = 16;  // a vector's worth of positions, so that whole cache lines are transposed

using Box = std::array<int64_t, kAxes>;

// Byte offsets within a thread's scratch, and element counts of the packed directions.
struct RayleighLayout {
  int64_t totals, pixels, errors, products, masks, bytes;
  int64_t V, directions_of_group;

  RayleighLayout(const RayleighPlan& plan, int64_t size) {
    const auto& problem = plan.problem;
    const int64_t vector = plan.lanes * size, C = problem.input.group_channels();
    int64_t at = 0;
    const auto take = [&](int64_t n) { return std::exchange(at, at + (n + 63) / 64 * 64); };
    totals = take(plan.columns() * 4 * plan.lanes * int64_t(sizeof(double)));
    int64_t most = vector * spread(C, vector);
    for (int i = 0; i < kAxes; ++i) most *= box_reads(plan, i, plan.box[i]);
    pixels = take(most);
    errors = take(plan.error_positions * spread(problem.outputs, vector) * vector);
    products = take(2 * kPositionsAtOnce * plan.tile * vector);
    masks = take(kPositionsAtOnce * vector);
    bytes = at;
    V = problem.input.taps() * C * plan.columns();
    directions_of_group = V + plan.columns() * (1 + problem.outputs);
  }

  // Vectors from one pixel to the next: one more than `channels` where pixels would fall on few sets of the cache.
  static int64_t spread(int64_t channels, int64_t vector) { return channels + (channels * vector % 1024 == 0); }

  // At most so many input coordinates are packed along an axis for `out` output positions.
  static int64_t box_reads(const RayleighPlan& plan, int i, int64_t out) {
    const Axis& axis = plan.problem.input.axes[i];
    if (plan.interleaved) return out;
    int64_t most = ((out - 1) * axis.down() + axis.extent() - 1) / axis.up() + 1;
    if (i < 2) most = std::min(most, out * axis.kernel);
    return plan.strips > 1 && i == plan.strip_axis ? most : std::clamp<int64_t>(most, 1, axis.size);
  }
};

// Which input rows a box of output positions reads, and where each tap of each position finds its row and columns.
// Packed rows are kept from box to box while only the height changes.
class BoxReads {
 public:
  struct Row {
    int64_t coordinate, slot;
  };
  struct ColumnRun {
    int64_t column, tap, length;
  };
  std::vector<Row> planes, rows;       // depth coordinates; height coordinates that have to be packed for this box
  std::vector<int64_t> plane, row;     // [position][tap]: slot, or -1 outside the input
  std::vector<ColumnRun> column_runs;  // consecutive taps on consecutive columns
  std::vector<int64_t> column_begin;
  int64_t first_column = 0, columns = 0, row_slots = 0;

  // A range of depths and columns; nothing of it is packed yet.
  void begin(const RayleighPlan& plan, const Box& low, const Box& high) {
    find(plan, 0, low, high, plane);
    needed(plane);
    planes.clear();
    for (size_t i = 0; i < need_.size(); ++i) planes.push_back({need_[i], int64_t(i)});
    for (int64_t& c : plane) c = c == kNone ? -1 : std::lower_bound(need_.begin(), need_.end(), c) - need_.begin();
    find_columns(plan, low, high);
    row_slots = RayleighLayout::box_reads(plan, 1, plan.box[1]);
    kept_.assign(row_slots, kNone);
  }

  // A range of heights within it.
  void move_to(const RayleighPlan& plan, const Box& low, const Box& high) {
    find(plan, 1, low, high, row);
    needed(row);
    rows.clear();
    const auto is_needed = [&](int64_t c) { return std::binary_search(need_.begin(), need_.end(), c); };
    int64_t free = 0;
    for (int64_t c : need_) {
      if (std::find(kept_.begin(), kept_.end(), c) != kept_.end()) continue;
      while (kept_[free] != kNone && is_needed(kept_[free])) ++free;
      rows.push_back({c, free});
      kept_[free++] = c;
    }
    for (int64_t& c : row) c = c == kNone ? -1 : std::find(kept_.begin(), kept_.end(), c) - kept_.begin();
  }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::min();
  std::vector<int64_t> kept_, need_;

  static int64_t coordinate(const RayleighPlan& plan, int i, int64_t position, int64_t tap) {
    const Axis& axis = plan.problem.input.axes[i];
    const int64_t numerator = position * axis.down() + axis.offset(tap);
    if (plan.interleaved) return position;
    if (numerator % axis.up() != 0) return kNone;
    const int64_t at = numerator / axis.up();
    const bool open = plan.strips > 1 && i == plan.strip_axis;  // a strip's neighbours are zero-filled lane by lane
    return open || (at >= 0 && at < axis.size) ? at : kNone;
  }

  static void find(const RayleighPlan& plan, int i, const Box& low, const Box& high, std::vector<int64_t>& at) {
    at.clear();
    for (int64_t o = low[i]; o < high[i]; ++o)
      for (int64_t tap = 0; tap < plan.problem.input.axes[i].kernel; ++tap) at.push_back(coordinate(plan, i, o, tap));
  }

  void needed(const std::vector<int64_t>& at) {
    need_.clear();
    for (int64_t c : at)
      if (c != kNone) need_.push_back(c);
    std::sort(need_.begin(), need_.end());
    need_.erase(std::unique(need_.begin(), need_.end()), need_.end());
  }

  void find_columns(const RayleighPlan& plan, const Box& low, const Box& high) {
    column_runs.clear();
    column_begin.assign(1, 0);
    int64_t first = std::numeric_limits<int64_t>::max(), last = kNone;
    for (int64_t o = low[2]; o < high[2]; ++o) {
      const size_t begin = column_runs.size();
      for (int64_t tap = 0; tap < plan.problem.input.axes[2].kernel; ++tap) {
        const int64_t c = coordinate(plan, 2, o, tap);
        if (c == kNone) continue;
        first = std::min(first, c), last = std::max(last, c);
        ColumnRun* run = column_runs.size() > begin ? &column_runs.back() : nullptr;
        if (run && run->column + run->length == c && run->tap + run->length == tap) {
          ++run->length;
        } else {
          column_runs.push_back({c, tap, 1});
        }
      }
      column_begin.push_back(int64_t(column_runs.size()));
    }
    first_column = last == kNone ? 0 : first;
    columns = last == kNone ? 0 : last - first + 1;
    for (auto& run : column_runs) run.column -= first_column;
  }
};

}  // namespace
}  // namespace spectral_ext::cpu
