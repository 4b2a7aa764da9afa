// How the lag kernels divide their work: regions into tiles of channels × channels and slices of rows.
#pragma once
#include "cuda/device.cuh"
#include "cuda/input_factor_lag.h"

namespace spectral_ext::cuda {
namespace {

// Where row r of a region is: sample fastest, then axes 2, 1, 0.
struct Cursor {
  int64_t sample;
  int pixel[3];
};

__device__ __forceinline__ Cursor cursor_at(int64_t row, int64_t batch, const int32_t (&extent)[3]) {
  Cursor c;
  c.sample = row % batch;
  int64_t pixel = row / batch;
  c.pixel[2] = static_cast<int>(pixel % extent[2]), pixel /= extent[2];
  c.pixel[1] = static_cast<int>(pixel % extent[1]);
  c.pixel[0] = static_cast<int>(pixel / extent[1]);
  return c;
}

__device__ __forceinline__ void advance(Cursor& c, int rows, int64_t batch, const int32_t (&extent)[3]) {
  c.sample += rows;
  while (c.sample >= batch) {
    c.sample -= batch;
    if (++c.pixel[2] < extent[2]) continue;
    c.pixel[2] = 0;
    if (++c.pixel[1] < extent[1]) continue;
    c.pixel[1] = 0, ++c.pixel[0];
  }
}

// The region whose [first, first of the next) contains index; every thread of the block calls it.
template <int32_t LagRegion::* first>
__device__ __forceinline__ int find_region(const LagRegion* regions, int count, int index) {
  __shared__ int found;
  for (int r = threadIdx.x; r < count; r += blockDim.x)
    if (regions[r].*first <= index && index < regions[r + 1].*first) found = r;
  __syncthreads();
  return found;
}

struct Tile {
  int row, column;
};

__device__ __forceinline__ Tile tile_of(int index, int side, bool symmetric) {
  if (!symmetric) return {index / side, index % side};
  int column = 0;
  while ((column + 1) * (column + 2) / 2 <= index) ++column;
  return {index - column * (column + 1) / 2, column};
}

template <typename Acc>
__device__ __forceinline__ void put(Acc* state, int64_t index, Acc value, Acc beta) {
  state[index] = beta == 0 ? value : beta * state[index] + value;
}

// One unit: rows [begin, end) of a region, one tile of its channels × channels.
struct Unit {
  int which, index;  // the region, and the number of this unit in it
  LagRegion region;
  Tile tile;
  int64_t begin, end;
};

__device__ __forceinline__ Unit find_unit(const LagSizes& s, const LagRegion* regions, int block, int tile) {
  Unit u;
  u.which = find_region<&LagRegion::first_unit>(regions, s.regions, block);
  u.region = regions[u.which];
  u.index = block - u.region.first_unit;
  const int side = (s.channels + tile - 1) / tile;
  const int tiles = u.region.symmetric ? side * (side + 1) / 2 : side * side;
  u.tile = tile_of(u.index % tiles, side, u.region.symmetric);
  const int64_t rows = s.batch * u.region.extent[0] * u.region.extent[1] * u.region.extent[2];
  u.begin = u.index / tiles * u.region.rows_per_slice;
  u.end = u.begin + u.region.rows_per_slice < rows ? u.begin + u.region.rows_per_slice : rows;
  return u;
}

// Element (a, b) of a region's matrix, a and b channels; of a symmetric one only a ≤ b counts, and is mirrored.
template <typename Acc>
__device__ __forceinline__ void put_element(Acc* matrix, const LagSizes& s, bool symmetric, int64_t a, int64_t b,
                                            Acc value, Acc beta) {
  if (a >= s.channels || b >= s.channels || (symmetric && a > b)) return;
  put(matrix, a * s.channels + b, value, beta);
  if (symmetric && a != b) put(matrix, b * s.channels + a, value, beta);
}

// Element (r, c) of a unit's tile: to the state where the unit is all of the tile's rows, to scratch otherwise.
template <typename Acc, int kTile>
__device__ __forceinline__ void put_unit(const LagSizes& s, const Unit& u, int group, int r, int c, Acc value,
                                         Acc scale, Acc beta, Acc* state, Acc* scratch) {
  if (u.region.slices > 1) {
    scratch[(group * s.partial_tiles + u.region.first_partial + u.index) * (kTile * kTile) + r * kTile + c] = value;
    return;
  }
  Acc* matrix = state + group * s.group_state_size + static_cast<int64_t>(u.which) * s.channels * s.channels;
  put_element(matrix, s, u.region.symmetric != 0, static_cast<int64_t>(u.tile.row) * kTile + r,
              static_cast<int64_t>(u.tile.column) * kTile + c, scale * value, beta);
}

}  // namespace
}  // namespace spectral_ext::cuda
