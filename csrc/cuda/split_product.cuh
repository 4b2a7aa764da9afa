// A 128 × 128 tile of A Bᵀ in nearly float32, on the bfloat16 tensor cores: each operand is split into hi + lo, both
// bfloat16, and three of the four products are summed (lo·lo is below 2⁻¹⁶ of a product). The relative error of one
// product is at most 3·2⁻¹⁸; an operand that is bfloat16 already needs no lo.
//
// Eight warps, 32 × 64 each. A step takes 32 numbers of the depth: they are read from global memory while the step
// before is multiplied, split in registers, and staged in shared memory as they lie in memory (depth or rows
// contiguous); ldmatrix transposes the latter. Tensor cores cut off their float32 sums: they are folded into a second
// set of registers every kFold steps, where additions are rounded.
#pragma once
#include "cuda/device.cuh"
#include "cuda/tensor_core.cuh"

namespace spectral_ext::cuda {
namespace {

constexpr int kTile = 128, kThreads = 256;
constexpr int kDepth = 32;  // of a step
constexpr int kFold = 4;    // steps
// Pitches keep the eight rows that ldmatrix reads together in different banks.
constexpr int kDepthPitch = kDepth + 8, kRowPitch = kTile + 8;
constexpr int kPlane = kTile * kDepthPitch;
static_assert(kPlane >= kDepth * kRowPitch);

// hi and lo of the rows of A and of B: [row][depth] at kDepthPitch, or [depth][row] at kRowPitch.
struct alignas(16) Planes {
  uint16_t left[2][kPlane], right[2][kPlane];
};

using Sum = float[2][8][4];  // the 16 × 8 blocks of a warp's part

// Number p of the pairs of neighbours that a thread moves per operand and step: (row, depth) of its first.
struct Pair {
  int row, depth;
};

__device__ __forceinline__ Pair pair_of(int p, bool depth_contiguous) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (depth_contiguous) return {warp * 16 + 2 * p + lane / 16, lane % 16 * 2};
  return {p % 2 * 64 + 2 * lane, warp * 4 + p / 2};
}

__device__ __forceinline__ uint32_t pack(__nv_bfloat16 first, __nv_bfloat16 second) {
  uint16_t bits[2];
  __builtin_memcpy(&bits[0], &first, sizeof(first));
  __builtin_memcpy(&bits[1], &second, sizeof(second));
  return bits[0] | static_cast<uint32_t>(bits[1]) << 16;
}

// What a thread holds of an operand between reading and staging: bfloat16 pairs if it is kExact, else float32.
template <bool kExact>
struct Held {
  uint32_t pairs[8];
};
template <>
struct Held<false> {
  float numbers[16];
};

// element(row, depth): a number of the operand, 0 outside of it.
template <bool kExact, typename Element>
__device__ __forceinline__ void fetch(Held<kExact>& held, bool depth_contiguous, const Element& element) {
#pragma unroll
  for (int p = 0; p < 8; ++p) {
    const Pair at = pair_of(p, depth_contiguous);
    const float first = element(at.row, at.depth);
    const float second = depth_contiguous ? element(at.row, at.depth + 1) : element(at.row + 1, at.depth);
    if constexpr (kExact)
      held.pairs[p] = pack(__float2bfloat16_rn(first), __float2bfloat16_rn(second));
    else
      held.numbers[2 * p] = first, held.numbers[2 * p + 1] = second;
  }
}

template <bool kExact>
__device__ __forceinline__ void stage(uint16_t (&planes)[2][kPlane], bool depth_contiguous, const Held<kExact>& held) {
#pragma unroll
  for (int p = 0; p < 8; ++p) {
    const Pair at = pair_of(p, depth_contiguous);
    const int offset = depth_contiguous ? at.row * kDepthPitch + at.depth : at.depth * kRowPitch + at.row;
    if constexpr (kExact) {
      *reinterpret_cast<uint32_t*>(&planes[0][offset]) = held.pairs[p];
    } else {
      const float first = held.numbers[2 * p], second = held.numbers[2 * p + 1];
      const __nv_bfloat16 a = __float2bfloat16_rn(first), b = __float2bfloat16_rn(second);
      *reinterpret_cast<uint32_t*>(&planes[0][offset]) = pack(a, b);
      *reinterpret_cast<uint32_t*>(&planes[1][offset]) =
          pack(__float2bfloat16_rn(first - __bfloat162float(a)), __float2bfloat16_rn(second - __bfloat162float(b)));
    }
  }
}

// Rows row … row + 15, depths depth … depth + 15, as the left operand of mma wants them; numbers 0 and 2, 1 and 3 are
// the right operands of the two halves of the rows.
__device__ __forceinline__ void load_fragment(uint32_t (&fragment)[4], const uint16_t (&plane)[kPlane],
                                              bool depth_contiguous, int row, int depth) {
  const int matrix = threadIdx.x % 32 / 8, line = threadIdx.x % 8;
  if (depth_contiguous)
    load_matrices(fragment, &plane[(row + matrix % 2 * 8 + line) * kDepthPitch + depth + matrix / 2 * 8]);
  else
    load_transposed(fragment, &plane[(depth + matrix / 2 * 8 + line) * kRowPitch + row + matrix % 2 * 8]);
}

template <bool kExactLeft, bool kExactRight>
__device__ __forceinline__ void multiply(const Planes& planes, bool left_depth, bool right_depth, Sum& sum) {
  const int warp = threadIdx.x / 32, row = warp / 2 * 32, column = warp % 2 * 64;
#pragma unroll
  for (int depth = 0; depth < kDepth; depth += 16) {
    uint32_t a[2][2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      load_fragment(a[0][i], planes.left[0], left_depth, row + 16 * i, depth);
      if (!kExactLeft) load_fragment(a[1][i], planes.left[1], left_depth, row + 16 * i, depth);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t b[2][4];
      load_fragment(b[0], planes.right[0], right_depth, column + 16 * j, depth);
      if (!kExactRight) load_fragment(b[1], planes.right[1], right_depth, column + 16 * j, depth);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float (&target)[4] = sum[i][2 * j + h];  // small products first
          if (!kExactLeft) multiply_add(target, a[1][i], b[0][h], b[0][h + 2], __nv_bfloat16{});
          if (!kExactRight) multiply_add(target, a[0][i], b[1][h], b[1][h + 2], __nv_bfloat16{});
          multiply_add(target, a[0][i], b[0][h], b[0][h + 2], __nv_bfloat16{});
        }
    }
  }
}

// total = Σ over steps of left rightᵀ. left(step, row, depth) and right(…) give numbers; left_depth(step) says whether
// neighbours along the depth are neighbours in memory, right_depth likewise. Every thread of the block calls it.
// Not kLong: there are at most kFold steps.
template <bool kExactLeft, bool kExactRight, bool kLong, typename LeftOrder, typename Left, typename Right>
__device__ __forceinline__ void split_product(Planes& planes, int steps, const LeftOrder& left_depth, const Left& left,
                                              bool right_depth, const Right& right, Sum& total) {
  Held<kExactLeft> next_left;
  Held<kExactRight> next_right;
  const auto read = [&](int step) {
    fetch(next_left, left_depth(step), [&](int row, int depth) { return left(step, row, depth); });
    fetch(next_right, right_depth, [&](int row, int depth) { return right(step, row, depth); });
  };
  Sum sum = {};
#pragma unroll
  for (int i = 0; i < 64; ++i) total[i / 32][i / 4 % 8][i % 4] = 0;
  if (steps > 0) read(0);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    __syncthreads();  // nobody still reads the planes of the step before
    stage(planes.left, left_depth(step), next_left);
    stage(planes.right, right_depth, next_right);
    __syncthreads();
    if (step + 1 < steps) read(step + 1);
    multiply<kExactLeft, kExactRight>(planes, left_depth(step), right_depth, kLong ? sum : total);
    if (kLong && (step % kFold == kFold - 1 || step + 1 == steps)) {
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        total[i / 32][i / 4 % 8][i % 4] += sum[i / 32][i / 4 % 8][i % 4];
        sum[i / 32][i / 4 % 8][i % 4] = 0;
      }
    }
  }
}

// visit(row, column, number) for the numbers of the tile that this thread holds.
template <typename Visit>
__device__ __forceinline__ void for_each(const Sum& sum, const Visit& visit) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        visit(warp / 2 * 32 + 16 * i + lane / 4 + e / 2 * 8, warp % 2 * 64 + 8 * j + lane % 4 * 2 + e % 2,
              sum[i][j][e]);
}

}  // namespace
}  // namespace spectral_ext::cuda
