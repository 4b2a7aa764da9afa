// Runs a CUDA grid on one CPU thread. Each CUDA thread is a fiber (ucontext) that runs until a barrier; then the next
// one does. CUDA_EMULATOR_ORDER=forward|reverse|<seed> sets the order of blocks, and of threads between two barriers: a
// result that depends on it is a race. With -DRACECHECK (this file not instrumented, kernels with -fsanitize=thread)
// fibers are switched without implying an order and only barriers synchronise: ThreadSanitizer then reports every
// unordered pair of accesses within a block, whatever the values.
#include <cuda_runtime.h>
#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <unordered_map>
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

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulator {
namespace {
constexpr size_t kStackBytes = 256 * 1024;

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

// A place to go on from. __builtin_setjmp and __builtin_longjmp switch stacks without a system call, and no sanitizer
// intercepts them.
struct Place {
  void* words[5];
};

struct Fiber {
  ucontext_t start;
  Place place;
  bool begun = false;
  void* sanitizer = nullptr;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  State state = State::kDone;
  dim3 index;
  uint64_t value = 0;
  const void* shown = nullptr;
  unsigned block_barriers = 0, warp_barriers = 0;
  struct Copy {
    void* to;
    const void* from;
  };
  std::vector<std::vector<Copy>> copies;  // groups that are not waited for yet; the last one is still open
};

std::vector<Fiber> fibers;
ucontext_t unused;  // what swapcontext saves where it begins a fiber
Place scheduler;
void* scheduler_sanitizer = nullptr;
int current = -1;
const std::function<void()>* body = nullptr;
// Only their addresses matter. Two a barrier, in turn: else a thread that is late in leaving one barrier would be
// ordered after what an early one did before the next.
char launch_order, finish_order, block_order[2], warp_order[32][2];

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulator: %s (block %u,%u,%u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z);
  std::abort();
}

// Shared memory ends at a page that may not be touched.
char* shared_pages() {
  static char* pages = [] {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = (kSharedBytesOptIn + page - 1) / page * page;
    auto* start =
        static_cast<char*>(mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(start + bytes, page, PROT_NONE);
    return start + bytes;
  }();
  return pages;
}
char* shared_start = nullptr;

// noipa: a caller must not keep anything in registers that these functions seem to leave alone.
[[noreturn]] __attribute__((noipa)) void jump(Place& place) { __builtin_longjmp(place.words, 1); }
// Returns when someone jumps to `here`.
__attribute__((noipa)) void leave(Place& here, Place& there) {
  if (__builtin_setjmp(here.words) == 0) jump(there);
}

// What the kernels declare __shared__ is all the thread-local storage of this library or program.
struct Storage {
  void* data;
  size_t bytes;
};
thread_local volatile char touched;  // so that the storage exists before a kernel reads it
Storage static_shared() {
  touched = 0;
  Storage found{nullptr, 0};
  const auto look = [](dl_phdr_info* info, size_t, void* result) {
    const auto here = reinterpret_cast<uintptr_t>(&static_shared);
    bool ours = false;
    const ElfW(Phdr)* local = nullptr;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const ElfW(Phdr) & header = info->dlpi_phdr[i];
      const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
      ours |= header.p_type == PT_LOAD && here >= begin && here < begin + header.p_memsz;
      if (header.p_type == PT_TLS) local = &header;
    }
    if (ours && local != nullptr) *static_cast<Storage*>(result) = {info->dlpi_tls_data, local->p_memsz};
    return ours ? 1 : 0;
  };
  dl_iterate_phdr(look, &found);
  return found;
}

// Not memset: ThreadSanitizer would look at every byte.
__attribute__((optimize("no-tree-loop-distribute-patterns"))) void fill_with_nan(const Storage& storage) {
  auto* words = static_cast<uint64_t*>(storage.data);
  for (size_t i = 0; i < storage.bytes / sizeof(uint64_t); ++i) words[i] = ~uint64_t{0};
}

void enter() {
  __tsan_acquire(&launch_order);
  (*body)();
  Fiber& self = fibers[static_cast<size_t>(current)];
  self.state = State::kDone;
  __tsan_release(&finish_order);
  __tsan_switch_to_fiber(scheduler_sanitizer, kNoOrder);
  jump(scheduler);
}

void yield(State state, void* order) {
  Fiber& self = fibers[static_cast<size_t>(current)];
  const dim3 index = threadIdx;
  self.state = state;
  __tsan_release(order);
  __tsan_switch_to_fiber(scheduler_sanitizer, kNoOrder);
  leave(self.place, scheduler);
  __tsan_acquire(order);
  threadIdx = index;
}

__attribute__((noipa)) void begin(Fiber& fiber) {
  if (__builtin_setjmp(scheduler.words) == 0) swapcontext(&unused, &fiber.start);
}
void resume(int i) {
  Fiber& fiber = fibers[static_cast<size_t>(i)];
  current = i;
  threadIdx = fiber.index;
  __tsan_switch_to_fiber(fiber.sanitizer, kNoOrder);
  if (fiber.begun) return leave(scheduler, fiber.place);
  fiber.begun = true;
  begin(fiber);
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
    fiber.begun = false;
    fiber.copies.assign(1, {});
    getcontext(&fiber.start);
    fiber.start.uc_stack = {fiber.stack.data(), 0, fiber.stack.size()};
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, enter, 0);
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

void copy_async(void* shared, const void* global) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0)
    fail("cp.async of an address that is not a multiple of 16");
  std::memset(shared, 0xff, 16);
  fibers[static_cast<size_t>(current)].copies.back().push_back({shared, global});
}
void end_copies() { fibers[static_cast<size_t>(current)].copies.emplace_back(); }
void wait_for_copies(int groups_left) {
  auto& groups = fibers[static_cast<size_t>(current)].copies;
  while (groups.size() > static_cast<size_t>(groups_left) + 1) {
    for (const Fiber::Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, 16);
    groups.erase(groups.begin());
  }
}
void show(const void* mine) { fibers[static_cast<size_t>(current)].shown = mine; }
const void* shown_by(int lane) { return fibers[static_cast<size_t>(current / 32 * 32 + lane)].shown; }

// How tensor cores add (M. Fasi et al., Numerical behavior of NVIDIA tensor cores, PeerJ CS 2021): exact products, in
// groups of eight and the sum so far; all are aligned to the largest exponent and cut off two bits below float32, and
// the result is cut off, not rounded.
float tensor_core_sum(float start, const float (&a)[16], const float (&b)[16]) {
  const auto power = [](uint64_t biased) {  // 2^(biased − 1023)
    double value;
    biased <<= 52;
    std::memcpy(&value, &biased, sizeof(value));
    return value;
  };
  float sum = start;
  for (int first = 0; first < 16; first += 8) {
    double terms[9] = {sum}, largest = std::fabs(sum), total = 0;
    for (int k = 0; k < 8; ++k) terms[k + 1] = static_cast<double>(a[first + k]) * static_cast<double>(b[first + k]);
    for (const double term : terms) largest = std::max(largest, std::fabs(term)), total += term;
    if (!std::isfinite(total)) {
      sum = static_cast<float>(total);
      continue;
    }
    if (largest == 0) continue;
    uint64_t bits;
    std::memcpy(&bits, &largest, sizeof(bits));
    const uint64_t exponent = bits >> 52;  // no product of 16-bit numbers is denormal in float64
    const double up = power(2046 - exponent + 25), down = power(exponent - 25);
    int64_t units = 0;
    for (const double term : terms) units += static_cast<int64_t>(term * up);
    total = static_cast<double>(units) * down;
    float cut = static_cast<float>(total);
    if (std::fabs(static_cast<double>(cut)) > std::fabs(total)) cut = std::nextafter(cut, 0.0f);
    sum = cut;
  }
  return sum;
}

// mma.m16n8k16: the first lane computes for all of its warp.
void tensor_core(TensorCoreLane& mine) {
  show(&mine);
  warp_barrier();
  if (current % 32 == 0) {
    float A[16][16], B[8][16];
    const auto of = [](int lane) { return static_cast<const TensorCoreLane*>(shown_by(lane)); };
    for (int lane = 0; lane < 32; ++lane)
      for (int k = 0; k < 4; ++k) {  // which of a pair, and of the two halves of the depth
        const int depth = 2 * (lane % 4) + k % 2 + k / 2 * 8;
        A[lane / 4][depth] = of(lane)->numbers[2 * (k / 2 * 2) + k % 2];
        A[lane / 4 + 8][depth] = of(lane)->numbers[2 * (k / 2 * 2 + 1) + k % 2];
        B[lane / 4][depth] = of(lane)->numbers[2 * (4 + k / 2) + k % 2];
      }
    for (int lane = 0; lane < 32; ++lane)
      for (int e = 0; e < 4; ++e) {
        float& sum = of(lane)->sum[e];
        sum = tensor_core_sum(sum, A[lane / 4 + e / 2 * 8], B[2 * (lane % 4) + e % 2]);
      }
  }
  warp_barrier();
}

void* dynamic_shared() { return shared_start; }
size_t& shared_bytes_allowed(const void* kernel) {
  static std::unordered_map<const void*, size_t> allowed;
  return allowed.try_emplace(kernel, kSharedBytesUnasked).first->second;
}

void run(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  const int threads = static_cast<int>(config.blockDim.x * config.blockDim.y * config.blockDim.z);
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  body = &thread;
  if (fibers.size() < static_cast<size_t>(threads)) fibers.resize(static_cast<size_t>(threads));
  scheduler_sanitizer = __tsan_get_current_fiber();
  if (config.dynamicSmemBytes > kSharedBytesOptIn) fail("more dynamic shared memory than any device has");
  shared_start = shared_pages() - (config.dynamicSmemBytes + 15) / 16 * 16;
  const char* seed = std::getenv("CUDA_EMULATOR_ORDER");
  std::mt19937 random(seed ? static_cast<unsigned>(std::atoi(seed)) : 0u);
  std::vector<uint32_t> order(size_t(config.gridDim.x) * config.gridDim.y * config.gridDim.z);
  arrange(order, random);
  const Storage statics = static_shared();
  for (uint32_t block : order) {
    blockIdx = dim3(block % gridDim.x, block / gridDim.x % gridDim.y, block / (gridDim.x * gridDim.y));
    // NaN: reading what nobody wrote shows.
    std::memset(shared_start, 0xff, config.dynamicSmemBytes);
    fill_with_nan(statics);
    run_block(threads, random);
  }
}
}  // namespace cuda_emulator
