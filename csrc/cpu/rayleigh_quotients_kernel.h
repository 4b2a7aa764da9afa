// From lane groups to partial sums: what a block of the plan computes.
// Compiled once per instruction set: see cpu/simd_vectors.h.
#include "cpu/rayleigh_quotients_simd.h"

namespace spectral_ext::cpu {
namespace {

template <class T>
struct LaneGroup {
  int64_t x[kLanes<T>], delta[kLanes<T>];   // element offsets
  int64_t length[kLanes<T>];                // valid positions are [0, length)
  int64_t low[kLanes<T>], high[kLanes<T>];  // coordinates along strip_axis that exist in this lane
  int64_t shortest = 0;

  LaneGroup(const RayleighPlan& plan, int64_t group) {
    constexpr int L = kLanes<T>;
    const auto& problem = plan.problem;
    const Axis& axis = problem.input.axes[plan.strip_axis];
    const int64_t out = axis.positions(), a = plan.strip_axis;
    int64_t inner = 1;
    for (int i = a + 1; i < kAxes; ++i) inner *= plan.lane_out[i];
    for (int i = 0; i < L; ++i) {
      int64_t sample, first, start_x;
      if (plan.interleaved) {
        sample = group / plan.strips;
        first = group % plan.strips * plan.strip * L + i;
        start_x = first;
        length[i] = std::clamp<int64_t>(ceil_div(out - first, L), 0, plan.strip);
        low[i] = 0;
        high[i] = plan.strip;
      } else {
        sample = (group * L + i) / plan.strips;
        first = (group * L + i) % plan.strips * plan.strip;
        start_x = first * axis.stride;
        length[i] = sample < problem.input.batch ? std::clamp<int64_t>(out - first, 0, plan.strip) * inner : 0;
        low[i] = -start_x;
        high[i] = axis.size - start_x;
      }
      x[i] = sample * problem.x.sample + start_x * problem.x.axis[a];
      delta[i] = sample * problem.delta.sample + first * problem.delta.axis[a];
      if (length[i] == 0) {  // an idle lane reads what lane 0 reads, and its sums are masked
        x[i] = x[0], delta[i] = delta[0], low[i] = low[0], high[i] = high[0];
      }
      shortest = i == 0 ? length[0] : std::min(shortest, length[i]);
    }
  }
  bool ends_at(int64_t position) const {
    for (int64_t n : length)
      if (n == position) return true;
    return false;
  }
};

template <class T>
struct Block {
  static constexpr int L = kLanes<T>;
  const RayleighPlan& plan;
  const RayleighProblem& problem;
  const Geometry& input;
  const int64_t conv_group;
  const TileKernels<T> kernels;
  const int KR;
  const int64_t pixel_step, error_step;
  const T *V, *start, *U;
  T *pixels, *errors, *P, *Q;
  MaskLane<T>* masks;
  double* totals;
  BoxReads& reads;
  std::vector<Run<T>> runs;
  std::vector<int64_t> run_begin;

  Block(const RayleighPlan& plan, const T* directions, int64_t conv_group, char* scratch, BoxReads& reads)
      : plan(plan),
        problem(plan.problem),
        input(problem.input),
        conv_group(conv_group),
        kernels(choose_kernels<T>(plan.tile, TileWidths{})),
        KR(plan.tile),
        pixel_step(RayleighLayout::spread(input.group_channels(), sizeof(T) * L) * L),
        error_step(RayleighLayout::spread(plan.problem.outputs, sizeof(T) * L) * L),
        reads(reads) {
    const RayleighLayout layout(plan, sizeof(T));
    V = directions + conv_group * layout.directions_of_group;
    start = V + layout.V;
    U = start + plan.columns();
    totals = (double*)(scratch + layout.totals);
    pixels = (T*)(scratch + layout.pixels);
    errors = (T*)(scratch + layout.errors);
    P = (T*)(scratch + layout.products);
    Q = P + kPositionsAtOnce * KR * L;
    masks = (MaskLane<T>*)(scratch + layout.masks);
  }

  template <class F>
  static void with_type(const RayleighOperand& operand, F f) {
    switch (operand.type) {
      case Scalar::kFloat:
        return f((const float*)operand.data);
      case Scalar::kDouble:
        if constexpr (sizeof(T) == 8) f((const double*)operand.data);
        return;
      case Scalar::kBFloat16:
        return f((const BFloat16*)operand.data);
      case Scalar::kHalf:
        return f((const Half*)operand.data);
    }
  }

  template <class S>
  void pack_row(const S* const* lane, const LaneGroup<T>& group, int64_t coordinate, int64_t coordinate_step,
                int64_t offset, int64_t count, T* to) {
    const int64_t C = input.group_channels();
    for (int64_t p = 0; p < count; ++p)
      for (int64_t c = 0; c < C; ++c)
        for (int i = 0; i < L; ++i) {
          const int64_t at = coordinate + p * coordinate_step;
          const S* from = lane[i] + offset + p * problem.x.axis[2] + c * problem.x.channel;
          to[p * pixel_step + c * L + i] = at >= group.low[i] && at < group.high[i] ? convert<T>(*from) : T(0);
        }
  }

  void pack_input(const LaneGroup<T>& group) {
    with_type(problem.x, [&](auto* data) {
      using S = std::remove_cv_t<std::remove_pointer_t<decltype(data)>>;
      const int64_t C = input.group_channels(), channel = problem.x.channel;
      const int64_t step = problem.x.axis[2] * (plan.interleaved ? L : 1);
      const S* lane[L];
      for (int i = 0; i < L; ++i) lane[i] = data + group.x[i] + conv_group * C * channel;
      if (plan.interleaved) {
        pack_ragged(lane, group, reads.first_column, reads.columns,
                    [&](const S* const* from, int64_t p, int64_t count) {
                      pack_pixels<S, T>(from, p * step, count, step, C, channel,
                                        pixels + (p - reads.first_column) * pixel_step, pixel_step);
                    });
        return;
      }
      int64_t low = group.low[0], high = group.high[0];
      for (int i = 1; i < L; ++i) low = std::max(low, group.low[i]), high = std::min(high, group.high[i]);
      // Rows that follow each other in memory, and will, are packed as one.
      int64_t pending = 0, from = 0, to = 0;
      const auto flush = [&] {
        if (pending) pack_pixels<S, T>(lane, from, pending, step, C, channel, pixels + to * pixel_step, pixel_step);
        pending = 0;
      };
      const bool guarded = plan.strips > 1;
      for (const auto& z : reads.planes)
        for (const auto& y : reads.rows) {
          const int64_t source =
              z.coordinate * problem.x.axis[0] + y.coordinate * problem.x.axis[1] + reads.first_column * step;
          const int64_t target = (z.slot * reads.row_slots + y.slot) * reads.columns;
          const int64_t at[kAxes] = {z.coordinate, y.coordinate, reads.first_column};
          const int64_t coordinate = at[plan.strip_axis], moves = plan.strip_axis == 2;
          const int64_t last = coordinate + moves * (reads.columns - 1);
          if (guarded && (coordinate < low || last >= high)) {
            pack_row(lane, group, coordinate, moves, source, reads.columns, pixels + target * pixel_step);
            continue;
          }
          if (pending && (source != from + pending * step || target != to + pending)) flush();
          if (!pending) from = source, to = target;
          pending += reads.columns;
        }
      flush();
    });
  }

  // Cuts [first, first + count) where a lane ends. From there on that lane reads what lane 0 reads, which ends last,
  // and its sums are masked. Where lane 0 has ended too, nothing is packed: `masks` excludes all lanes of these
  // positions.
  template <class S, class F>
  void pack_ragged(const S* const* lane, const LaneGroup<T>& group, int64_t first, int64_t count, F pack) {
    const int64_t end = std::min(first + count, group.length[0]);
    for (int64_t p = first; p < end;) {
      const S* from[L];
      int64_t next = end;
      for (int i = 0; i < L; ++i) {
        from[i] = lane[group.length[i] > p ? i : 0];
        if (group.length[i] > p) next = std::min(next, group.length[i]);
      }
      pack(from, p, next - p);
      p = next;
    }
  }

  // Errors of positions box_position[0..count), which need not follow each other.
  void pack_errors(const LaneGroup<T>& group, const int64_t* position, const int64_t* offset, int64_t count) {
    with_type(problem.delta, [&](auto* data) {
      using S = std::remove_cv_t<std::remove_pointer_t<decltype(data)>>;
      const int64_t m = problem.outputs, channel = problem.delta.channel;
      const int64_t step = problem.delta.axis[2] * (plan.interleaved ? L : 1);
      const S* lane[L];
      for (int i = 0; i < L; ++i) lane[i] = data + group.delta[i] + conv_group * m * channel;
      for (int64_t i = 0; i < count;) {
        int64_t n = 1;
        while (i + n < count && offset[i + n] == offset[i] + n * step && position[i + n] == position[i] + n) ++n;
        pack_ragged(lane, group, position[i], n, [&](const S* const* from, int64_t p, int64_t pixels_now) {
          const int64_t at = p - position[i];
          pack_pixels<S, T>(from, offset[i] + at * step, pixels_now, step, m, channel, errors + (i + at) * error_step,
                            error_step);
        });
        i += n;
      }
    });
  }

  void run_positions(const LaneGroup<T>& group, const int64_t* position, int count, const T* error) {
    const int64_t n = input.taps() * input.group_channels(), m = problem.outputs;
    bool masked = false;
    for (int i = 0; i < count; ++i) {
      masked |= position[i] >= group.shortest;
      for (int l = 0; l < L; ++l) masks[i * L + l] = position[i] < group.length[l] ? -1 : 0;
    }
    for (int t = 0; t < plan.tiles; ++t) {
      for (int i = 0; i < count; ++i) {
        const Run<T>* first = runs.data() + run_begin[i];
        kernels.project(first, run_begin[i + 1] - run_begin[i], V + t * n * KR, start + t * KR, P + i * KR * L);
        const Run<T> error_run = {error + i * error_step, 0, m};
        kernels.project(&error_run, 1, U + t * m * KR, nullptr, Q + i * KR * L);
      }
      double* total = totals + int64_t(t) * KR * 4 * L;
      (masked ? kernels.reduce_masked : kernels.reduce)(P, Q, masks, count, total);
    }
  }

  // The runs of packed vectors that make up the patch of box position (z, y, x).
  void add_runs(int64_t z, int64_t y, int64_t x) {
    const int64_t C = input.group_channels();
    const auto& axes = input.axes;
    for (int64_t i = 0; i < axes[0].kernel; ++i) {
      const int64_t slot_z = reads.plane[z * axes[0].kernel + i];
      if (slot_z < 0) continue;
      for (int64_t j = 0; j < axes[1].kernel; ++j) {
        const int64_t slot_y = reads.row[y * axes[1].kernel + j];
        if (slot_y < 0) continue;
        const int64_t row = (slot_z * reads.row_slots + slot_y) * reads.columns;
        const int64_t taps = (i * axes[1].kernel + j) * axes[2].kernel;
        for (int64_t r = reads.column_begin[x]; r < reads.column_begin[x + 1]; ++r) {
          const auto& run = reads.column_runs[r];
          const T* from = pixels + (row + run.column) * pixel_step;
          if (pixel_step == C * L) {
            runs.push_back({from, (taps + run.tap) * C, run.length * C});
          } else {
            for (int64_t t = 0; t < run.length; ++t)
              runs.push_back({from + t * pixel_step, (taps + run.tap + t) * C, C});
          }
        }
      }
    }
  }

  void run_box(const LaneGroup<T>& group, const Box& low, const Box& high) {
    reads.move_to(plan, low, high);
    pack_input(group);
    const int64_t rows = high[1] - low[1], columns = high[2] - low[2], all = (high[0] - low[0]) * rows * columns;
    int64_t position[kErrorPositions], offset[kErrorPositions];
    for (int64_t first = 0; first < all; first += plan.error_positions) {
      const int64_t count = std::min(plan.error_positions, all - first);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = first + i, x = low[2] + at % columns;
        const int64_t y = low[1] + at / columns % rows, z = low[0] + at / (columns * rows);
        position[i] = (z * plan.lane_out[1] + y) * plan.lane_out[2] + x;
        offset[i] = z * problem.delta.axis[0] + y * problem.delta.axis[1] +
                    x * problem.delta.axis[2] * (plan.interleaved ? L : 1);
      }
      pack_errors(group, position, offset, count);
      for (int64_t i = 0; i < count; i += kPositionsAtOnce) {
        const int now = int(std::min<int64_t>(kPositionsAtOnce, count - i));
        runs.clear();
        run_begin.assign(1, 0);
        for (int64_t at = first + i; at < first + i + now; ++at) {
          add_runs(at / (columns * rows), at / columns % rows, at % columns);
          run_begin.push_back(int64_t(runs.size()));
        }
        run_positions(group, position + i, now, errors + i * error_step);
      }
    }
  }

  void run(int64_t index, double* partial) {
    const int64_t K = problem.directions;
    const int64_t end = std::min((index + 1) * plan.lane_groups_per_block, plan.lane_groups);
    std::fill_n(partial, 4 * K, 0.0);
    for (int64_t g = index * plan.lane_groups_per_block; g < end; ++g) {
      const LaneGroup<T> group(plan, g);
      std::fill_n(totals, plan.columns() * 4 * L, 0.0);
      Box low{}, high{};
      for (low[0] = 0; low[0] < plan.lane_out[0]; low[0] = high[0]) {
        high[0] = std::min(low[0] + plan.box[0], plan.lane_out[0]);
        for (low[2] = 0; low[2] < plan.lane_out[2]; low[2] = high[2]) {
          high[2] = std::min(low[2] + plan.box[2], plan.lane_out[2]);
          reads.begin(plan, low, high);
          for (low[1] = 0; low[1] < plan.lane_out[1]; low[1] = high[1]) {
            high[1] = std::min(low[1] + plan.box[1], plan.lane_out[1]);
            run_box(group, low, high);
          }
        }
      }
      for (int64_t k = 0; k < K; ++k) {
        const double* total = totals + k * 4 * L;
        for (int z = 0; z < 3; ++z)
          for (int l = 0; l < L; ++l) partial[z * K + k] += total[z * L + l];
        for (int l = 0; l < L; l += plan.lanes_per_sample) {
          double sample = 0;
          for (int i = 0; i < plan.lanes_per_sample; ++i) sample += total[3 * L + l + i];
          partial[3 * K + k] += sample * sample;
        }
      }
    }
  }
};

template <class T>
void run_block(const RayleighPlan& plan, const T* directions, int64_t block, char* scratch, double* partial) {
  BoxReads reads;
  Block<T>(plan, directions, block / plan.blocks_per_group, scratch, reads).run(block % plan.blocks_per_group, partial);
}

constexpr RayleighKernels kKernels{kVectorBytes, widest_tile(TileWidths{}), &run_block<float>, &run_block<double>};

}  // namespace

template <>
const RayleighKernels& rayleigh_kernels<kSimdLevel>() {
  return kKernels;
}

}  // namespace spectral_ext::cpu
