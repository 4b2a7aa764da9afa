#include "cpu/rayleigh_quotients.h"

#include <algorithm>
#include <limits>

#include "cpu/rayleigh_quotients_box.h"

namespace spectral_ext::cpu {
namespace {

constexpr int64_t kMostBlocks = 128;  // bounds the partial sums; fixed, because results must not depend on threads
constexpr int64_t kMostScratch = int64_t{1} << 40;
constexpr int64_t kMergedStrip = 32;  // positions of a lane where rows have no sample to belong to

int tile_width(int64_t columns) { return columns == 1 ? 1 : int(columns + 1) / 2 * 2; }

bool pointwise(const Geometry& input) {
  return std::all_of(input.axes.begin(), input.axes.end(), [](const Axis& axis) { return axis.trivial(); });
}

// Merges the spatial axes of a pointwise problem into one where both operands allow it; one position a sample becomes
// one sample of many positions.
void flatten(RayleighPlan& plan) {
  auto& [input, m, K, x, delta, U, V] = plan.problem;
  for (int i = kAxes - 2; i >= 0; --i) {
    Axis &outer = input.axes[i], &inner = input.axes[2];
    const auto mergeable = [&](const RayleighOperand& o) { return o.axis[i] == o.axis[2] * inner.size; };
    if (outer.size == 1) continue;
    if (inner.size == 1) {
      x.axis[2] = x.axis[i], delta.axis[2] = delta.axis[i];
    } else if (!mergeable(x) || !mergeable(delta)) {
      return;
    }
    inner.size *= outer.size;
    outer.size = 1;
  }
  if (input.axes[2].size == 1) {
    plan.merged = true;
    x.axis[2] = x.sample, delta.axis[2] = delta.sample;
    input.axes[2].size = input.batch;
    input.batch = 1;
  }
}

void choose_lanes(RayleighPlan& plan) {
  const auto& axes = plan.problem.input.axes;
  const int64_t batch = plan.problem.input.batch, lanes = plan.lanes;
  std::array<int64_t, kAxes> out;
  for (int i = 0; i < kAxes; ++i) out[i] = axes[i].positions();
  const int64_t all = out[0] * out[1] * out[2];
  plan.strip_axis = out[0] > 1 ? 0 : out[1] > 1 ? 1 : 2;
  const Axis& axis = axes[plan.strip_axis];
  if (pointwise(plan.problem.input) && all == out[2]) {
    const int64_t by_sample = ceil_div(batch, lanes) * all, by_position = batch * ceil_div(all, lanes);
    // Adjacent positions that are adjacent in memory need no transposition.
    const bool in_order = plan.problem.x.axis[2] == 1 && plan.problem.delta.axis[2] == 1;
    if (plan.merged || by_position <= (in_order ? by_sample + by_sample / 3 : by_sample)) {
      plan.interleaved = true;
      plan.strip_axis = 2;
      plan.strip = plan.merged ? std::min(kMergedStrip, ceil_div(all, lanes)) : ceil_div(all, lanes);
      plan.strips = ceil_div(all, plan.strip * lanes);
      plan.lane_groups = batch * plan.strips;
      plan.lanes_per_sample = plan.lanes;
      plan.lane_out = {1, 1, plan.strip};
      return;
    }
  }
  double best = std::numeric_limits<double>::infinity();
  for (int64_t strips = 1; strips <= (axis.transposed ? 1 : lanes); strips *= 2) {
    const int64_t strip = ceil_div(out[plan.strip_axis], strips), groups = ceil_div(batch * strips, lanes);
    const double overlap = strips > 1 ? 0.5 * double(axis.extent() - 1) / double(axis.stride) : 0;
    // Lane positions to compute, with the strips' overlap, and a preference for several groups to share among threads.
    const double cost = double(groups) * (double(strip) + overlap) * (1 + 0.5 / double(groups));
    if (cost < best) {
      best = cost;
      plan.strips = strips;
      plan.strip = strip;
      plan.lane_groups = groups;
    }
  }
  plan.lanes_per_sample = int(plan.strips);
  plan.lane_out = out;
  plan.lane_out[plan.strip_axis] = plan.strip;
}

// Shrinks the box until its pixels fit: rows first, because the next box keeps the rows they share, whole rows last,
// because those follow each other in memory.
void choose_box(RayleighPlan& plan, int64_t size, int64_t budget) {
  plan.box = plan.lane_out;
  const int64_t vector = plan.lanes * size,
                pixel = vector * RayleighLayout::spread(plan.problem.input.group_channels(), vector);
  const auto bytes = [&] {
    int64_t most = pixel;
    for (int i = 0; i < kAxes; ++i) most *= RayleighLayout::box_reads(plan, i, plan.box[i]);
    return most;
  };
  for (int axis : {1, 0, 2})
    for (int64_t pieces = 2; bytes() > budget * 5 / 8 && plan.box[axis] > 1; ++pieces)
      plan.box[axis] = ceil_div(plan.lane_out[axis], pieces);  // equal pieces
  const int64_t error = vector * RayleighLayout::spread(plan.problem.outputs, vector);
  plan.error_positions = std::clamp<int64_t>(budget / 4 / std::max<int64_t>(error, 1), 1, kErrorPositions);
}

template <class T>
void pack(const RayleighPlan& plan, T* to) {
  const auto& problem = plan.problem;
  const int64_t C = problem.input.group_channels(), taps = problem.input.taps(), n = C * taps, m = problem.outputs;
  const int64_t K = problem.directions, bias = problem.input.bias, tile = plan.tile;
  const auto copy_row = [&](const T* row, int64_t first, T* out) {
    for (int64_t j = 0; j < tile; ++j) out[j] = row && first + j < K ? row[first + j] : T(0);
  };
  for (int64_t g = 0; g < problem.input.groups; ++g) {
    const T *V = (const T*)problem.V + g * (n + bias) * K, *U = (const T*)problem.U + g * m * K;
    for (int64_t t = 0; t < plan.tiles; ++t)
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t c = 0; c < C; ++c, to += tile) copy_row(V + (c * taps + tap) * K, t * tile, to);
    for (int64_t t = 0; t < plan.tiles; ++t, to += tile) copy_row(bias ? V + n * K : nullptr, t * tile, to);
    for (int64_t t = 0; t < plan.tiles; ++t)
      for (int64_t i = 0; i < m; ++i, to += tile) copy_row(U + i * K, t * tile, to);
  }
}

// Adds the blocks in order and divides.
void finish(const RayleighPlan& plan, const double* partials, double* out) {
  const auto& input = plan.problem.input;
  const int64_t K = plan.problem.directions, G = input.groups, positions = input.batch * input.positions();
  const double samples = double(plan.merged ? positions : input.batch);
  const double count[4] = {samples, double(positions), double(positions), samples};
  for (int z = 0; z < 4; ++z)
    for (int64_t g = 0; g < G; ++g)
      for (int64_t k = 0; k < K; ++k) {
        const int from = plan.merged && z == 3 ? 2 : z;
        double sum = 0;
        for (int64_t b = 0; b < plan.blocks_per_group; ++b)
          sum += partials[((g * plan.blocks_per_group + b) * 4 + from) * K + k];
        out[(z * G + g) * K + k] = sum / count[z];
      }
}

}  // namespace

RayleighPlan make_rayleigh_plan(const RayleighProblem& problem, int64_t scratch_bytes) {
  RayleighPlan plan;
  plan.problem = problem;
  const int64_t size = problem.wide() ? sizeof(double) : sizeof(float);
  plan.kernels = with_simd_level([](auto level) { return &rayleigh_kernels<level()>(); });
  plan.lanes = int(plan.kernels->vector_bytes / size);
  plan.tiles = int(ceil_div(problem.directions, plan.kernels->widest_tile));
  plan.tile = tile_width(ceil_div(problem.directions, plan.tiles));
  if (pointwise(problem.input)) flatten(plan);
  choose_lanes(plan);
  choose_box(plan, size, std::min(scratch_bytes, kMostScratch));
  plan.lane_groups_per_block = ceil_div(plan.lane_groups, std::max<int64_t>(1, kMostBlocks / problem.input.groups));
  plan.blocks_per_group = ceil_div(plan.lane_groups, plan.lane_groups_per_block);
  const RayleighLayout layout(plan, size);
  plan.scratch_bytes = layout.bytes;
  plan.direction_bytes = layout.directions_of_group * problem.input.groups * size;
  return plan;
}

void run_rayleigh(const RayleighPlan& plan, const Parallel& parallel, void* directions, void* scratch, double* out) {
  const auto run = [&](auto* packed, auto run_block) {
    pack(plan, packed);
    const int64_t K = plan.problem.directions, workers = std::clamp<int64_t>(parallel.threads, 1, plan.blocks());
    std::vector<double> partials(plan.blocks() * 4 * K);
    parallel(workers, [&](int64_t worker) {
      for (int64_t block = worker; block < plan.blocks(); block += workers)
        run_block(plan, packed, block, static_cast<char*>(scratch) + worker * plan.scratch_bytes,
                  partials.data() + block * 4 * K);
    });
    finish(plan, partials.data(), out);
  };
  if (plan.problem.wide())
    run(static_cast<double*>(directions), plan.kernels->run_double);
  else
    run(static_cast<float*>(directions), plan.kernels->run_float);
}

}  // namespace spectral_ext::cpu
