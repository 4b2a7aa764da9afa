// Lends torch's allocator and threads to the CPU kernels for the time of one call.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <deque>
#ifdef __SANITIZE_THREAD__
#include <atomic>
#include <thread>
#include <vector>
#endif

#include "cpu/parallel.h"

namespace spectral_ext {

// Page faults of a fresh buffer of tens of megabytes cost as much as filling it: asks for huge pages.
inline void advise_huge_pages(void* data, int64_t bytes) {
#ifdef __linux__
  constexpr int64_t kHugePage = 2 << 20;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// body(begin, end) over ranges that make up [0, tasks), on torch's threads.
// ThreadSanitizer does not see the barriers of OpenMP: under it the tasks run on threads that it knows.
template <class Body>
void on_torch_threads(int64_t tasks, const Body& body) {
#ifdef __SANITIZE_THREAD__
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < static_cast<int64_t>(torch::stable::get_num_threads()); ++t) {
    threads.emplace_back([&] {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(i, i + 1);
    });
  }
  for (std::thread& thread : threads) thread.join();
#else
  torch::stable::parallel_for(0, tasks, 1, body);
#endif
}

inline Parallel torch_threads() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t tasks, void (*task)(void*, int64_t), void* context) {
            on_torch_threads(tasks, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) task(context, i);
            });
          }};
}

class TorchContext {
 public:
  const Parallel parallel = torch_threads();

  // 64-byte aligned memory of at least `bytes`, not cleared, kept until this object goes.
  void* allocate(int64_t bytes) {
    held_.push_back(torch::stable::empty({bytes + 64}, torch::headeronly::ScalarType::Byte, std::nullopt,
                                         torch::stable::Device(torch::headeronly::DeviceType::CPU)));
    void* data = held_.back().mutable_data_ptr();
    advise_huge_pages(data, bytes + 64);
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(data) + 63) / 64 * 64);
  }

 private:
  std::deque<torch::stable::Tensor> held_;
};

}  // namespace spectral_ext
