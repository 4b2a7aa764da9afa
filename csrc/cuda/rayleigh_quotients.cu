// Rayleigh quotients fused against the singular vectors: x and delta are read in place, once for each 64 directions,
// their projections stay on chip, and all four sums come out.
//
// A block takes a unit of rows (output positions of samples) in tiles of 128 and up to 64 directions. Per tile it sums
// the projections P = a·V and Q = d·U in registers over steps of 16 patch entries, puts them in shared memory, and adds
// what they give to the four sums in float64. Where there are few tiles, the patch entries are sliced too: slices of P
// and Q then go to scratch, and a second kernel adds them. `finish` adds the units. Every sum has a fixed order.
//
// Taps of a convolution read the same numbers again, out of the caches: the device memory is read once.
#include "cuda/patches.cuh"
#include "cuda/rayleigh_quotients.h"

namespace spectral_ext::cuda {
namespace {

constexpr int kRows = 128;                        // of a tile
constexpr int kDepth = 16;                        // patch entries per step
constexpr int kGroups = 4;                        // threads that share a direction in the sums over rows
constexpr int kUnits = 1024;                      // blocks that are enough
constexpr int kSlicedUnits = 128, kBlocks = 256;  // below so many units, slices make this many blocks
constexpr int kRowPitch = kRows + 4;

template <typename Acc>
struct alignas(16) Four {
  Acc v[4];
};

// 16 × kWidth/4 threads with fragments of 8 rows × 4 directions.
template <typename Acc, int kWidth>
struct Tiles {
  static constexpr int kThreads = 4 * kWidth, kColumnPitch = kWidth + 4;
  static_assert(kThreads == kGroups * kWidth);
  Four<Acc> rows[kDepth][kRowPitch / 4], columns[kDepth][kColumnPitch / 4];
  Acc projections[2][kRows][kWidth];  // P, Q
  Column entries[kDepth];
  Row row[kRows];
};

template <typename Acc>
__device__ __forceinline__ Acc load(const void* data, Dtype dtype, int64_t offset) {
  switch (dtype) {
    case Dtype::kFloat64:
      return static_cast<Acc>(static_cast<const double*>(data)[offset]);
    case Dtype::kFloat32:
      return static_cast<const float*>(data)[offset];
    case Dtype::kBFloat16:
      return widen(static_cast<const __nv_bfloat16*>(data)[offset]);
    default:
      return widen(static_cast<const __half*>(data)[offset]);
  }
}

struct Range {
  int64_t begin, end;
};

// Rows of a tile among all rows.
__device__ __forceinline__ Range rows_of(const RayleighPlan& plan, int64_t tile, int64_t batch, int64_t positions) {
  if (plan.tile_samples > 0) {
    const int64_t begin = tile * plan.tile_samples, end = begin + plan.tile_samples;
    return {begin * positions, (end < batch ? end : batch) * positions};
  }
  const int64_t per_sample = (positions + kRows - 1) / kRows;
  const int64_t sample = tile / per_sample, begin = tile % per_sample * kRows;
  return {sample * positions + begin, sample * positions + (begin + kRows < positions ? begin + kRows : positions)};
}

// Tiles of a unit.
__device__ __forceinline__ Range tiles_of(const RayleighPlan& plan, int64_t unit, int64_t positions) {
  if (plan.tile_samples > 0) {
    const int64_t begin = unit * plan.tiles_per_unit, end = begin + plan.tiles_per_unit;
    return {begin, end < plan.tiles ? end : plan.tiles};
  }
  const int64_t per_sample = (positions + kRows - 1) / kRows;
  const int64_t first = unit / plan.parts * per_sample, begin = unit % plan.parts * plan.tiles_per_unit;
  const int64_t end = begin + plan.tiles_per_unit;
  return {first + (begin < per_sample ? begin : per_sample), first + (end < per_sample ? end : per_sample)};
}

// tiles.projections[which] = rows of one operand times its directions, over the steps [begin, end).
template <typename Acc, int kWidth>
__device__ __forceinline__ void project(Tiles<Acc, kWidth>& tiles, const RayleighOperand& operand, int which, int K,
                                        int group, int first_direction, const Range& range, int begin, int end) {
  constexpr int kThreads = Tiles<Acc, kWidth>::kThreads, kColumns = kWidth / 4;
  const DirectSizes& s = operand.sizes;
  const int thread = threadIdx.x, ty = thread / kColumns, tx = thread % kColumns;
  const int n = s.group_channels * s.axes[0].kernel * s.axes[1].kernel * s.axes[2].kernel + s.bias;
  const Acc* directions = static_cast<const Acc*>(operand.directions) + static_cast<int64_t>(group) * n * K;
  // Neighbouring threads read neighbouring addresses: channels where they are contiguous, positions otherwise.
  const bool entries_fast = s.channel_stride == 1;
  __syncthreads();  // nobody still needs the rows of what was projected before
  for (int r = thread; r < kRows; r += kThreads) tiles.row[r] = decode_row(s, range.begin + r, range.end);
  Acc sum[8][4] = {};
#pragma unroll 1
  for (int step = begin; step < end; ++step) {
    __syncthreads();  // the rows are there, and nobody still reads the step before
    if (thread < kDepth) tiles.entries[thread] = decode_column(s, group, step * kDepth + thread);
    __syncthreads();
#pragma unroll 2
    for (int i = thread; i < kDepth * kRows; i += kThreads) {
      const int k = entries_fast ? i % kDepth : i / kRows, r = entries_fast ? i / kDepth : i % kRows;
      tiles.rows[k][r / 4].v[r % 4] = read_patch<Acc>(s, tiles.row[r], tiles.entries[k], [&](int64_t offset) {
        return load<Acc>(operand.data, operand.dtype, offset);
      });
    }
    for (int i = thread; i < kDepth * kWidth; i += kThreads) {
      const int k = i / kWidth, c = i % kWidth, direction = first_direction + c;
      const bool inside = tiles.entries[k].kind != 0 && direction < K;
      tiles.columns[k][c / 4].v[c % 4] =
          inside ? directions[static_cast<int64_t>(tiles.entries[k].index) * K + direction] : Acc{0};
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const Four<Acc> a[2] = {tiles.rows[k][ty], tiles.rows[k][ty + 16]}, b = tiles.columns[k][tx];
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += a[i / 4].v[i % 4] * b.v[j];
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) tiles.projections[which][4 * (ty + i / 4 * 16) + i % 4][4 * tx + j] = sum[i][j];
}

// The sums of one direction over the rows that one thread takes.
struct Sums {
  double output = 0, input = 0, product = 0, inner = 0, gauss_newton = 0;

  __device__ __forceinline__ void add(double p, double q) {
    output += q * q, input += p * p, product += (q * q) * (p * p), inner += q * p;
  }
  __device__ __forceinline__ void end_sample() { gauss_newton += inner * inner, inner = 0; }
};

template <typename Acc, int kWidth>
__device__ __forceinline__ void add_tile(const Tiles<Acc, kWidth>& tiles, const RayleighPlan& plan, const Range& range,
                                         int64_t positions, Sums& sums) {
  const int c = threadIdx.x % kWidth, own = threadIdx.x / kWidth, rows = static_cast<int>(range.end - range.begin);
  const auto add = [&](int row) {
    sums.add(static_cast<double>(tiles.projections[0][row][c]), static_cast<double>(tiles.projections[1][row][c]));
  };
  if (plan.tile_samples == 0) {
    for (int row = own; row < rows; row += kGroups) add(row);
    return;
  }
  const int per_sample = static_cast<int>(positions);
  for (int first = own * per_sample; first < rows; first += kGroups * per_sample) {
    for (int row = first; row < first + per_sample; ++row) add(row);
    sums.end_sample();
  }
}

// partials (units, 4, groups, K): Σ q², Σ p², Σ p²q², and Σ (Σ p q)², or Σ p q where units are parts of a sample.
template <typename Acc, int kWidth>
__device__ __forceinline__ void put_unit(Tiles<Acc, kWidth>& tiles, const RayleighPlan& plan, const Sums& sums,
                                         int64_t unit, int groups, int K, int group, int first_direction,
                                         double* partials) {
  auto& shared = reinterpret_cast<double (&)[kGroups][4][kWidth]>(tiles.rows);
  static_assert(sizeof(shared) <= sizeof(tiles.rows));
  const int c = threadIdx.x % kWidth, own = threadIdx.x / kWidth;
  __syncthreads();  // nobody still reads what lay there
  shared[own][0][c] = sums.output, shared[own][1][c] = sums.input, shared[own][2][c] = sums.product;
  shared[own][3][c] = plan.tile_samples > 0 ? sums.gauss_newton : sums.inner;
  __syncthreads();
  if (first_direction + c >= K) return;
  double total = 0;
  for (int g = 0; g < kGroups; ++g) total += shared[g][own][c];  // thread group `own` takes sum `own`
  partials[((unit * 4 + own) * groups + group) * K + first_direction + c] = total;
}

// Grid (units, groups, ⌈K/kWidth⌉ · depth slices). With several slices P and Q go to scratch
// (slices, units, groups, ⌈K/kWidth⌉, 2, kRows, kWidth); a unit is then one tile.
template <typename Acc, int kWidth>
__global__ void __launch_bounds__(4 * kWidth, 1)
    project_rows(RayleighOperand x, RayleighOperand delta, RayleighPlan plan, int K, Acc* scratch, double* partials) {
  auto& tiles = *dynamic_shared<Tiles<Acc, kWidth>>();
  const int64_t positions =
      static_cast<int64_t>(x.sizes.axes[0].positions) * x.sizes.axes[1].positions * x.sizes.axes[2].positions;
  const int group = blockIdx.y, blocks = (K + kWidth - 1) / kWidth;
  const int slice = blockIdx.z / blocks, direction_block = blockIdx.z % blocks,
            first_direction = direction_block * kWidth;
  const auto steps = [](const DirectSizes& s) {
    const int n = s.group_channels * s.axes[0].kernel * s.axes[1].kernel * s.axes[2].kernel + s.bias;
    return (n + kDepth - 1) / kDepth;
  };
  // The steps of both operands in one row, cut evenly.
  const int of_x = steps(x.sizes), all = of_x + steps(delta.sizes);
  const int length = (all + plan.depth_slices - 1) / plan.depth_slices;
  const int begin = slice * length < all ? slice * length : all, end = begin + length < all ? begin + length : all;
  const Range mine = tiles_of(plan, blockIdx.x, positions);
  Sums sums;
#pragma unroll 1
  for (int64_t tile = mine.begin; tile < mine.end; ++tile) {
    const Range range = rows_of(plan, tile, x.sizes.batch, positions);
#pragma unroll 1
    for (int which = 0; which < 2; ++which) {
      const int before = which == 0 ? 0 : of_x, count = which == 0 ? of_x : all - of_x;
      const int from = begin - before < 0 ? 0 : begin - before > count ? count : begin - before;
      const int to = end - before < 0 ? 0 : end - before > count ? count : end - before;
      project(tiles, which == 0 ? x : delta, which, K, group, first_direction, range, from, to);
    }
    __syncthreads();
    if (plan.depth_slices == 1) add_tile(tiles, plan, range, positions, sums);
  }
  if (plan.depth_slices == 1)
    return put_unit(tiles, plan, sums, blockIdx.x, gridDim.y, K, group, first_direction, partials);
  constexpr int kNumbers = 2 * kRows * kWidth;
  const int64_t at =
      ((static_cast<int64_t>(slice) * gridDim.x + blockIdx.x) * gridDim.y + group) * blocks + direction_block;
  const Acc* source = &tiles.projections[0][0][0];
  for (int i = threadIdx.x; i < kNumbers; i += 4 * kWidth) scratch[at * kNumbers + i] = source[i];
}

// Adds the slices. Grid (units, groups, ⌈K/kWidth⌉).
template <typename Acc, int kWidth>
__global__ void __launch_bounds__(4 * kWidth, 1)
    add_slices(RayleighPlan plan, int64_t batch, int64_t positions, int K, const Acc* scratch, double* partials) {
  auto& tiles = *dynamic_shared<Tiles<Acc, kWidth>>();
  constexpr int kNumbers = 2 * kRows * kWidth;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * gridDim.z + blockIdx.z;
  const int64_t slice_size = static_cast<int64_t>(gridDim.x) * gridDim.y * gridDim.z * kNumbers;
  Acc* target = &tiles.projections[0][0][0];
  for (int i = threadIdx.x; i < kNumbers; i += 4 * kWidth) {
    Acc sum = 0;
#pragma unroll 4
    for (int slice = 0; slice < plan.depth_slices; ++slice) sum += scratch[slice * slice_size + at * kNumbers + i];
    target[i] = sum;
  }
  __syncthreads();
  const Range mine = tiles_of(plan, blockIdx.x, positions);
  Sums sums;
  for (int64_t tile = mine.begin; tile < mine.end; ++tile)
    add_tile(tiles, plan, rows_of(plan, tile, batch, positions), positions, sums);
  put_unit(tiles, plan, sums, blockIdx.x, gridDim.y, K, blockIdx.y, blockIdx.z * kWidth, partials);
}

struct Scales {
  double sample, position;  // 1/B, 1/(B·S)
};

// Adds the units; where they are parts of a sample, it is whole here, and its Σ p q is squared. Block (32, 32): lanes
// along directions, warps along samples. Grid (⌈directions/32⌉, 4).
__global__ void __launch_bounds__(1024, 1) finish(const double* partials, int64_t samples, int64_t parts,
                                                  int tile_samples, int directions, Scales scales, double* out) {
  __shared__ double sums[32][32];
  const int direction = static_cast<int>(blockIdx.x * 32 + threadIdx.x), o = blockIdx.y;
  double total = 0;
#pragma unroll 2
  for (int64_t sample = threadIdx.y; direction < directions && sample < samples; sample += 32) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part)
      sum += partials[((sample * parts + part) * 4 + o) * directions + direction];
    total += o == 3 && tile_samples == 0 ? sum * sum : sum;
  }
  sums[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y != 0 || direction >= directions) return;
  total = 0;
  for (int warp = 0; warp < 32; ++warp) total += sums[warp][threadIdx.x];
  out[static_cast<int64_t>(o) * directions + direction] = total * (o == 0 || o == 3 ? scales.sample : scales.position);
}

int width_of(const RayleighProblem& problem) {
  if (problem.float64) return 32;  // what shared memory holds
  return problem.directions <= 24 ? 24 : problem.directions <= 32 ? 32 : 64;
}

int64_t positions_of(const DirectSizes& s) {
  return static_cast<int64_t>(s.axes[0].positions) * s.axes[1].positions * s.axes[2].positions;
}

template <typename Acc, int kWidth>
cudaError_t run(const RayleighProblem& problem, const RayleighPlan& plan, void* scratch, double* partials,
                cudaStream_t stream) {
  const DirectSizes& s = problem.x.sizes;
  const int K = problem.directions, blocks = (K + kWidth - 1) / kWidth;
  const int64_t z = static_cast<int64_t>(blocks) * plan.depth_slices;
  if (plan.units > 0x7fffffff || s.groups > 65535 || z > 65535) return cudaErrorInvalidConfiguration;
  const dim3 threads(4 * kWidth), grid(static_cast<unsigned>(plan.units), s.groups, static_cast<unsigned>(z));
  const size_t shared = sizeof(Tiles<Acc, kWidth>);
  Acc* slices = static_cast<Acc*>(scratch);
  const cudaError_t error = launch(project_rows<Acc, kWidth>, grid, threads, shared, stream, problem.x, problem.delta,
                                   plan, K, slices, partials);
  if (error != cudaSuccess || plan.depth_slices == 1) return error;
  return launch(add_slices<Acc, kWidth>, dim3(grid.x, grid.y, blocks), threads, shared, stream, plan, s.batch,
                positions_of(s), K, slices, partials);
}

}  // namespace

RayleighPlan rayleigh_plan(const RayleighProblem& problem) {
  const DirectSizes& s = problem.x.sizes;
  const int64_t positions = positions_of(s);
  RayleighPlan plan{};
  plan.width = width_of(problem);
  if (positions <= kRows) {
    plan.tile_samples = static_cast<int>(kRows / positions);
    plan.tiles = (s.batch + plan.tile_samples - 1) / plan.tile_samples;
    plan.tiles_per_unit = (plan.tiles + kUnits - 1) / kUnits;
    plan.units = (plan.tiles + plan.tiles_per_unit - 1) / plan.tiles_per_unit, plan.parts = 1;
  } else {
    const int64_t per_sample = (positions + kRows - 1) / kRows, wanted = (kUnits + s.batch - 1) / s.batch;
    plan.tiles = s.batch * per_sample;
    plan.tiles_per_unit = (per_sample + wanted - 1) / wanted;
    plan.parts = (per_sample + plan.tiles_per_unit - 1) / plan.tiles_per_unit;
    plan.units = s.batch * plan.parts;
  }
  const int64_t direction_blocks = (problem.directions + plan.width - 1) / plan.width;
  const int64_t blocks = plan.units * s.groups * direction_blocks;
  const int64_t steps = (s.n() + kDepth - 1) / kDepth + (problem.delta.sizes.n() + kDepth - 1) / kDepth;
  plan.depth_slices = 1;
  if (blocks < kSlicedUnits && plan.tiles_per_unit == 1) {
    const int64_t wanted = (kBlocks + blocks - 1) / blocks, most = (steps + 3) / 4;
    plan.depth_slices = static_cast<int>(wanted < most ? wanted : most);
  }
  plan.scratch_numbers = plan.depth_slices > 1 ? plan.depth_slices * blocks * 2 * kRows * plan.width : 0;
  plan.partial_numbers = plan.units * 4 * s.groups * problem.directions;
  return plan;
}

cudaError_t launch_rayleigh(const RayleighProblem& problem, const RayleighPlan& plan, void* scratch, double* partials,
                            double* out, cudaStream_t stream) {
  const DirectSizes& s = problem.x.sizes;
  if (s.batch == 0 || s.groups == 0 || problem.directions == 0) return cudaSuccess;
  cudaError_t error = cudaErrorInvalidValue;
  if (problem.float64)
    error = run<double, 32>(problem, plan, scratch, partials, stream);
  else if (plan.width == 24)
    error = run<float, 24>(problem, plan, scratch, partials, stream);
  else if (plan.width == 32)
    error = run<float, 32>(problem, plan, scratch, partials, stream);
  else
    error = run<float, 64>(problem, plan, scratch, partials, stream);
  if (error != cudaSuccess) return error;
  const int directions = s.groups * problem.directions;
  const double sample = 1 / static_cast<double>(s.batch), row = sample / static_cast<double>(positions_of(s));
  return launch(finish, dim3((directions + 31) / 32, 4), dim3(32, 32), 0, stream, partials, plan.units / plan.parts,
                plan.parts, plan.tile_samples, directions, Scales{sample, row}, out);
}

}  // namespace spectral_ext::cuda
