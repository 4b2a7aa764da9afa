// The inner loops of input_factor: one table of functions per instruction set and number type.
//
// A *panel* is 64 bytes of consecutive channels of one pixel (kPanel numbers). A *run* is k panels, one per pixel and
// sample.
#pragma once
#include <cstdint>

#include "cpu/scalar.h"
#include "cpu/simd.h"

namespace spectral_ext::cpu {

template <class T>
constexpr int kPanel = 64 / sizeof(T);
constexpr int kMaxPanels = 3;

template <class T>
struct Kernels {
  int rows;        // channels of A a call multiplies: kPanel is a multiple of it
  int max_panels;  // panels of B a call takes: 1 … max_panels ≤ kMaxPanels
  // tile j (of tile_stride numbers), row i: += Σ_k a[k·kPanel + i] · b[j][k·kPanel + …]
  void (*multiply[kMaxPanels])(int64_t k, const T* a, const T* const* b, T* tile, int64_t tile_stride);
  // to[l] = Σ_k a[k·kPanel + l]
  void (*sum)(int64_t k, const T* a, T* to);
  // to[l] += Σ_k a[k·kPanel + l] · b[k·kPanel + l]
  void (*multiply_lanes)(int64_t k, const T* a, const T* b, T* to);
  // to[i·to_stride + l] = l < lanes ? from[l][i] : 0, for i < count
  void (*transpose)(const T* const* from, int lanes, int64_t count, T* to, int64_t to_stride);
  // tile = Σ_r from[r], kPanel × kPanel with rows of from_stride, or its transpose
  void (*add_tiles)(const T* const* from, int64_t count, int64_t from_stride, bool transposed, T* tile);
  // to[i] = from[i·step], converted from the type that indexes the table; no float accumulator reads double
  void (*load[4])(const void* from, int64_t step, int64_t count, T* to);
};

template <class T, SimdLevel level>
const Kernels<T>& kernels_of();

template <class T>
const Kernels<T>& kernels() {
  return with_simd_level([](auto level) -> const Kernels<T>& { return kernels_of<T, level>(); });
}

}  // namespace spectral_ext::cpu
