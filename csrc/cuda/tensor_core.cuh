// The instructions that 16-bit matrix products need (sm_80 and newer).
#pragma once
#include "cuda/device.cuh"

namespace spectral_ext::cuda {

// cp.async: sixteen bytes, both addresses aligned to them, from global to shared memory while the thread goes on.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#ifdef __CUDACC__
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
  cuda_emulator::copy_async(shared, global);
#endif
}

// Ends a group of the copies that this thread has begun.
__device__ __forceinline__ void end_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cuda_emulator::end_copies();
#endif
}

// Waits for this thread's groups but the last kLeft.
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#else
  cuda_emulator::wait_for_copies(kLeft);
#endif
}

// ldmatrix.x4.trans. Lane l names row l%8, of eight 16-bit numbers in shared memory, 16-byte aligned, of matrix l/8. Of
// each matrix M the lane gets M[2(l%4)][l/4] and M[2(l%4) + 1][l/4].
__device__ __forceinline__ void load_transposed(uint32_t (&matrices)[4], const void* row) {
#ifdef __CUDACC__
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
#else
  cuda_emulator::load_transposed(matrices, row);
#endif
}

// ldmatrix.x4. As above, but of each matrix M the lane gets M[l/4][2(l%4)] and M[l/4][2(l%4) + 1].
__device__ __forceinline__ void load_matrices(uint32_t (&matrices)[4], const void* row) {
#ifdef __CUDACC__
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
#else
  cuda_emulator::load_matrices(matrices, row);
#endif
}

// mma.m16n8k16: sum += A B in float32. With g = lane/4 and t = 2(lane%4): a = A[g, g+8, g, g+8][t, t, t+8, t+8] and the
// number after each, b = B[t, t+8][g] and the one below, sum = [g][t], [g][t+1], [g+8][t], [g+8][t+1].
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             __nv_bfloat16) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  cuda_emulator::multiply_add<__nv_bfloat16>(sum, a, b0, b1);
#endif
}

__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             __half) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  cuda_emulator::multiply_add<__half>(sum, a, b0, b1);
#endif
}

}  // namespace spectral_ext::cuda
