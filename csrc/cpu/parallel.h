// The threads that the caller of a kernel lends to it.
#pragma once
#include <cstdint>

namespace spectral_ext {

struct Parallel {
  int64_t threads = 1;
  // Calls task(context, i) for every i < tasks, on several threads, and returns when all have returned.
  void (*run)(int64_t tasks, void (*task)(void* context, int64_t i), void* context) = nullptr;

  // body(i) for every i < tasks; in order on the calling thread where there is one thread or one task.
  template <class Body>
  void operator()(int64_t tasks, const Body& body) const {
    if (threads == 1 || tasks == 1) {
      for (int64_t i = 0; i < tasks; ++i) body(i);
      return;
    }
    run(
        tasks, [](void* context, int64_t i) { (*static_cast<const Body*>(context))(i); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

}  // namespace spectral_ext
