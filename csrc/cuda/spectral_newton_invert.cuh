// The inverse of a positive definite matrix in the registers of one block. Gauss–Jordan elimination without pivoting is
// stable for such a matrix: a rank-1 update per step.
#pragma once
#include "cuda/device.cuh"

namespace spectral_ext::cuda {
namespace {

struct alignas(16) Quad {
  float v[4];
};

// A thread's fragment of a kSide·kFragment square: rows index(ty, i), columns index(tx, j).
template <int kSideSize, int kFragmentSize>
struct Config {
  static constexpr int kSide = kSideSize, kFragment = kFragmentSize, kBlocks = kFragment / 4;
  static constexpr int kThreads = kSide * kSide, kPad = kSide * kFragment;
  __device__ static __forceinline__ int index(int t, int i) { return 4 * (t + i / 4 * kSide) + i % 4; }
};

// In-place inverse of a positive definite matrix held in registers. Returns 0, or 1 + the first bad pivot; same for all
// threads.
template <class C>
__device__ __forceinline__ int invert(float (&a)[C::kFragment][C::kFragment], int n, int ty, int tx,
                                      Quad (&row)[2][C::kPad / 4], Quad (&column)[2][C::kPad / 4]) {
  int bad = 0;
#pragma unroll
  for (int block = 0; block < C::kBlocks; ++block)
    for (int t = 0; t < C::kSide; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int quad = t + block * C::kSide, k = 4 * quad + e, r = 4 * block + e;
        constexpr int kBuffers = 2;
        const int buffer =
            e % kBuffers;  // in turn: one barrier a step parts its writes from the reads two steps before
        if (k >= n) continue;
        if (ty == t) {
#pragma unroll
          for (int j = 0; j < C::kFragment; ++j) row[buffer][tx + j / 4 * C::kSide].v[j % 4] = a[r][j], a[r][j] = 0;
        }
        if (tx == t) {
      // Where ty == t too, a[r][r] is already 0 and its value in row. −1 makes row k come out as row/pivot.
#pragma unroll
          for (int i = 0; i < C::kFragment; ++i)
            column[buffer][ty + i / 4 * C::kSide].v[i % 4] = ty == t && i == r ? -1.0f : a[i][r], a[i][r] = 0;
        }
        __syncthreads();
        const float pivot = row[buffer][quad].v[e];
        if (bad == 0 && !(pivot > 0.0f && pivot < 3.0e38f)) bad = k + 1;
        const float inverse = 1.0f / pivot;
        Quad b[C::kBlocks];
#pragma unroll
        for (int j = 0; j < C::kBlocks; ++j) {
          b[j] = row[buffer][tx + j * C::kSide];
#pragma unroll
          for (int v = 0; v < 4; ++v) b[j].v[v] *= inverse;
        }
        if (tx == t) b[block].v[e] = inverse;
#pragma unroll
        for (int i = 0; i < C::kBlocks; ++i) {
          const Quad f = column[buffer][ty + i * C::kSide];
#pragma unroll
          for (int v = 0; v < 4; ++v)
#pragma unroll
            for (int j = 0; j < C::kFragment; ++j) a[4 * i + v][j] -= f.v[v] * b[j / 4].v[j % 4];
        }
      }
  __syncthreads();  // the buffers may be written again
  return bad;
}

}  // namespace
}  // namespace spectral_ext::cuda
