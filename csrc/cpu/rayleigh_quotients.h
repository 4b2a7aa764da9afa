// Second moments of layer inputs and errors along K pairs of directions, in one pass and without an N × K buffer.
//
// Per output position: p_k = v_k·a (a convolution with V as filters) and q_k = u_k·d stay in cache; only Σp², Σq²,
// Σp²q² and per-sample Σpq leave it. One SIMD lane holds one sample (or one strip of a sample): the input is repacked
// as [pixel][channel][lane], so that every tap, stride and dilation is a run of aligned vectors, nothing is padded, and
// the per-sample sums of the Gauss-Newton form are lane-wise.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "common/geometry.h"
#include "cpu/parallel.h"
#include "cpu/scalar.h"

namespace spectral_ext::cpu {

// Element (sample b, channel c, coordinates z) is data[b·sample + c·channel + Σ_i z_i·axis[i]], strides in elements.
struct RayleighOperand {
  const void* data = nullptr;
  Scalar type = Scalar::kFloat;
  int64_t sample = 0, channel = 0;
  std::array<int64_t, kAxes> axis{};
};

// Directions are contiguous (groups, size, K) in the compute type: double if either operand is double, otherwise float.
// V's rows are in the order of weight.flatten(1), (channel, taps…), one row more for the bias.
struct RayleighProblem {
  Geometry input;
  int64_t outputs = 0;  // m, of one group
  int64_t directions = 0;
  RayleighOperand x, delta;
  const void *U = nullptr, *V = nullptr;

  bool wide() const { return x.type == Scalar::kDouble || delta.type == Scalar::kDouble; }
};

struct RayleighKernels;

// How a problem is cut. It depends on shapes, strides and the machine's vector width only: never on the thread count.
struct RayleighPlan {
  RayleighProblem problem;  // as given, or flattened: see make_rayleigh_plan
  const RayleighKernels* kernels = nullptr;
  bool merged = false;       // one position per sample: samples became positions, and gauss_newton is sum_of_products
  bool interleaved = false;  // lane i holds positions i, i + lanes, … of one sample
  int lanes = 0, tile = 0, tiles = 0;  // directions are computed in tiles of `tile` columns
  int lanes_per_sample = 1, strip_axis = 0;
  int64_t strip = 0;                             // positions along strip_axis in one lane
  std::array<int64_t, kAxes> lane_out{}, box{};  // output positions of a lane, and of the box that is packed at a time
  int64_t strips = 1;                            // strips of a sample
  int64_t lane_groups = 0, lane_groups_per_block = 1, blocks_per_group = 0;
  int64_t error_positions = 0;                     // positions whose errors are packed at a time
  int64_t direction_bytes = 0, scratch_bytes = 0;  // scratch of a thread, a multiple of 64

  int64_t blocks() const { return blocks_per_group * problem.input.groups; }
  int64_t columns() const { return int64_t(tile) * tiles; }
};

// `scratch_bytes`: bytes that a thread's scratch should not exceed; a single position's patch may exceed it.
RayleighPlan make_rayleigh_plan(const RayleighProblem& problem, int64_t scratch_bytes);

// `directions`: plan.direction_bytes; `scratch`: plan.scratch_bytes for each of `parallel.threads`, both 64-byte
// aligned. out[4][groups][K] is output, input, sum_of_products, gauss_newton.
void run_rayleigh(const RayleighPlan& plan, const Parallel& parallel, void* directions, void* scratch, double* out);

}  // namespace spectral_ext::cpu
