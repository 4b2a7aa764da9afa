// The inner loops of input_factor, one table of functions an instruction set and a number type.
//
// A *panel* is 64 bytes of consecutive channels of one pixel (kLanes numbers), and a *run* k panels, one a (pixel,
// sample).
#pragma once
#include <cstdint>

#include "common/simd.h"

namespace spectral_ext::cpu {

enum class Source { kSame, kBFloat16, kHalf };  // kSame: the accumulator's own type, float or double

template <class T>
constexpr int kLanes = 64 / sizeof(T);
constexpr int kMaxPanels = 3;

template <class T>
struct Kernels {
  int rows;        // channels of A a call multiplies: kLanes is a multiple of it
  int max_panels;  // panels of B a call takes: 1 … max_panels ≤ kMaxPanels
  // tile j (of tile_stride numbers), row i: += Σ_k a[k·kLanes + i] · b[j][k·kLanes + …]
  void (*multiply[kMaxPanels])(int64_t k, const T* a, const T* const* b, T* tile, int64_t tile_stride);
  // to[l] = Σ_k a[k·kLanes + l]
  void (*sum)(int64_t k, const T* a, T* to);
  // to[l] += Σ_k a[k·kLanes + l] · b[k·kLanes + l]
  void (*multiply_lanes)(int64_t k, const T* a, const T* b, T* to);
  // to[i·to_stride + l] = l < lanes ? from[l][i] : 0, for i < count
  void (*transpose)(const T* const* from, int lanes, int64_t count, T* to, int64_t to_stride);
  // tile = Σ_r from[r], kLanes × kLanes with rows of from_stride, or its transpose
  void (*add_tiles)(const T* const* from, int64_t count, int64_t from_stride, bool transposed, T* tile);
  // to[i] = from[i·step], converted
  void (*load[3])(const void* from, int64_t step, int64_t count, T* to);
};

template <class T>
const Kernels<T>& baseline_kernels();
template <class T>
const Kernels<T>& avx2_kernels();
template <class T>
const Kernels<T>& avx512_kernels();

template <class T>
const Kernels<T>& kernels() {
#ifdef __x86_64__
  const auto level = static_cast<Simd>(simd_level().load(std::memory_order_relaxed));
  if (level == Simd::kAvx512) return avx512_kernels<T>();
  if (level == Simd::kAvx2) return avx2_kernels<T>();
#endif
  return baseline_kernels<T>();
}

}  // namespace spectral_ext::cpu
