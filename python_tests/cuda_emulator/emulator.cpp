// Runs a CUDA grid on one CPU thread. Each CUDA thread is a fiber (ucontext) that runs until a barrier; then the next
// one does. CUDA_EMULATOR_ORDER=forward|reverse|<seed> sets the order of blocks, and of threads between two barriers: a
// result that depends on it is a race. With -DRACECHECK (this file not instrumented, kernels with -fsanitize=thread)
// fibers are switched without implying an order and only barriers synchronise: ThreadSanitizer then reports every
// unordered pair of accesses within a block, whatever the values.
#include <cuda_runtime.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#ifdef RACECHECK
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#else
static void* __tsan_get_current_fiber() { return nullptr; }
static void* __tsan_create_fiber(unsigned) { return nullptr; }
static void __tsan_switch_to_fiber(void*, unsigned) {}
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif
constexpr unsigned kNoOrder = 1;

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulator {
namespace {
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kSharedBytes = 227 * 1024;

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  ucontext_t context;
  void* sanitizer = nullptr;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  State state = State::kDone;
  dim3 index;
  uint64_t value = 0;
  const void* shown = nullptr;
  unsigned block_barriers = 0, warp_barriers = 0;
};

thread_local std::vector<Fiber> fibers;
thread_local ucontext_t scheduler;
thread_local void* scheduler_sanitizer = nullptr;
thread_local int current = -1;
thread_local const std::function<void()>* body = nullptr;
// Only their addresses matter. Two a barrier, in turn: else a thread that is late in leaving one barrier would be
// ordered after what an early one did before the next.
thread_local char launch_order, finish_order, block_order[2], warp_order[32][2];

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulator: %s (block %u,%u,%u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z);
  std::abort();
}

// Shared memory ends at a page that may not be touched.
char* shared_pages() {
  static thread_local char* pages = [] {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = (kSharedBytes + page - 1) / page * page;
    auto* start =
        static_cast<char*>(mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(start + bytes, page, PROT_NONE);
    return start + bytes;
  }();
  return pages;
}
thread_local char* shared_start = nullptr;

void enter() {
  __tsan_acquire(&launch_order);
  (*body)();
  Fiber& self = fibers[static_cast<size_t>(current)];
  self.state = State::kDone;
  __tsan_release(&finish_order);
  __tsan_switch_to_fiber(scheduler_sanitizer, kNoOrder);
  swapcontext(&self.context, &scheduler);
}

void yield(State state, void* order) {
  Fiber& self = fibers[static_cast<size_t>(current)];
  const dim3 index = threadIdx;
  self.state = state;
  __tsan_release(order);
  __tsan_switch_to_fiber(scheduler_sanitizer, kNoOrder);
  swapcontext(&self.context, &scheduler);
  __tsan_acquire(order);
  threadIdx = index;
}

void resume(int i) {
  Fiber& fiber = fibers[static_cast<size_t>(i)];
  current = i;
  threadIdx = fiber.index;
  __tsan_switch_to_fiber(fiber.sanitizer, kNoOrder);
  swapcontext(&scheduler, &fiber.context);
}

void arrange(std::vector<uint32_t>& order, std::mt19937& random) {
  const char* name = std::getenv("CUDA_EMULATOR_ORDER");
  const std::string mode = name ? name : "forward";
  std::iota(order.begin(), order.end(), 0u);
  if (mode == "reverse")
    std::reverse(order.begin(), order.end());
  else if (mode != "forward")
    std::shuffle(order.begin(), order.end(), random);
}

void release_warps(int threads) {
  for (int warp = 0; warp * 32 < threads; ++warp) {
    const int first = warp * 32, last = std::min(threads, first + 32);
    bool all = true;
    for (int i = first; i < last; ++i) all &= fibers[static_cast<size_t>(i)].state == State::kAtWarpBarrier;
    for (int i = first; all && i < last; ++i) fibers[static_cast<size_t>(i)].state = State::kReady;
  }
}

void run_block(int threads, std::mt19937& random) {
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[static_cast<size_t>(i)];
    fiber.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
    fiber.state = State::kReady;
    fiber.block_barriers = fiber.warp_barriers = 0;
    if (fiber.sanitizer == nullptr) fiber.sanitizer = __tsan_create_fiber(0);
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.data(), 0, fiber.stack.size()};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  __tsan_release(&launch_order);
  std::vector<uint32_t> order(static_cast<size_t>(threads));
  for (;;) {
    arrange(order, random);
    bool progress = false;
    for (uint32_t i : order)
      if (fibers[i].state == State::kReady) resume(static_cast<int>(i)), progress = true;
    release_warps(threads);
    int done = 0, waiting = 0;
    for (int i = 0; i < threads; ++i) {
      done += fibers[static_cast<size_t>(i)].state == State::kDone;
      waiting += fibers[static_cast<size_t>(i)].state == State::kAtBlockBarrier;
    }
    if (done == threads) break;
    if (done > 0 && done + waiting == threads) fail("a thread ended while others wait at __syncthreads");
    if (waiting == threads)
      for (int i = 0; i < threads; ++i) fibers[static_cast<size_t>(i)].state = State::kReady;
    else if (!progress && done + waiting > 0)
      fail("threads of a block wait at different barriers");
  }
  __tsan_acquire(&finish_order);
}
}  // namespace

void block_barrier() {
  yield(State::kAtBlockBarrier, &block_order[fibers[static_cast<size_t>(current)].block_barriers++ % 2]);
}
void warp_barrier() {
  yield(State::kAtWarpBarrier, &warp_order[current / 32][fibers[static_cast<size_t>(current)].warp_barriers++ % 2]);
}
int lane() { return current % 32; }

uint64_t exchange(uint64_t value, int source_lane) {
  fibers[static_cast<size_t>(current)].value = value;
  warp_barrier();
  const size_t source = static_cast<size_t>(current / 32 * 32 + source_lane);
  if (source >= size_t(blockDim.x) * blockDim.y * blockDim.z) fail("a shuffle reads a lane that does not exist");
  const uint64_t result = fibers[source].value;
  warp_barrier();
  return result;
}

void show(const void* mine) { fibers[static_cast<size_t>(current)].shown = mine; }
const void* shown_by(int lane) { return fibers[static_cast<size_t>(current / 32 * 32 + lane)].shown; }

void* dynamic_shared() { return shared_start; }

void run(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  const int threads = static_cast<int>(config.blockDim.x * config.blockDim.y * config.blockDim.z);
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  body = &thread;
  if (fibers.size() < static_cast<size_t>(threads)) fibers.resize(static_cast<size_t>(threads));
  scheduler_sanitizer = __tsan_get_current_fiber();
  if (config.dynamicSmemBytes > kSharedBytes) fail("more dynamic shared memory than any device has");
  shared_start = shared_pages() - (config.dynamicSmemBytes + 15) / 16 * 16;
  const char* seed = std::getenv("CUDA_EMULATOR_ORDER");
  std::mt19937 random(seed ? static_cast<unsigned>(std::atoi(seed)) : 0u);
  std::vector<uint32_t> order(size_t(config.gridDim.x) * config.gridDim.y * config.gridDim.z);
  arrange(order, random);
  for (uint32_t block : order) {
    blockIdx = dim3(block % gridDim.x, block / gridDim.x % gridDim.y, block / (gridDim.x * gridDim.y));
    std::memset(shared_start, 0xff, config.dynamicSmemBytes);  // NaN: reading what nobody wrote shows
    run_block(threads, random);
  }
}
}  // namespace cuda_emulator
