// Every kernel once, on small sizes that reach each branch, with results compared with plain loops; the argument "racy"
// runs one that lacks a barrier instead. By g++ with the emulator and ThreadSanitizer: two accesses of one block that
// no barrier orders make the program fail, and buffers end at a page that may not be touched. By nvcc: for
// compute-sanitizer.
#ifndef __CUDACC__
#include <sys/mman.h>
#endif

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/device.cuh"
#include "cuda/lag_tables.h"
#include "cuda/rayleigh_quotients.h"
#include "cuda/spectral_newton.h"
#include "cuda/transpose.h"

using namespace spectral_ext;
using namespace spectral_ext::cuda;

namespace {

void expect(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "wrong result: %s\n", what);
  std::exit(2);
}

#ifdef __CUDACC__
void check(cudaError_t error) {
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  expect(error == cudaSuccess, cudaGetErrorString(error));
}
// Memory of the device that only kernels touch: managed memory would hide accesses from compute-sanitizer. Every byte
// is 0xff: NaN.
template <typename T>
T* guarded(int64_t count) {
  void* data = nullptr;
  const size_t bytes = static_cast<size_t>(count > 0 ? count : 1) * sizeof(T);
  check(cudaMalloc(&data, bytes));
  check(cudaMemset(data, 0xff, bytes));
  return static_cast<T*>(data);
}
void copy(void* to, const void* from, size_t bytes) { check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault)); }
#else
void check(cudaError_t error) { expect(error == cudaSuccess, "launch"); }
// The same, and the last element ends where the mapped memory does.
template <typename T>
T* guarded(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16, page = 4096;
  const size_t mapped = (bytes + page - 1) / page * page;
  char* start =
      static_cast<char*>(mmap(nullptr, mapped + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(start + mapped, page, PROT_NONE);
  std::memset(start, 0xff, mapped);
  return reinterpret_cast<T*>(start + mapped - bytes);
}
void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
#endif

template <typename T>
T* to_device(const std::vector<T>& values) {
  T* data = guarded<T>(static_cast<int64_t>(values.size()));
  copy(data, values.data(), values.size() * sizeof(T));
  return data;
}
template <typename T>
std::vector<T> to_host(const T* data, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  copy(values.data(), data, values.size() * sizeof(T));
  return values;
}

template <typename T>
std::vector<T> random_numbers(int64_t count) {
  static std::mt19937 random(7);
  std::normal_distribution<double> normal;
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(static_cast<float>(normal(random)));
  return values;
}

void expect_close(double got, double want, double tolerance, const char* what) {
  if (!(std::fabs(got - want) <= tolerance * (1 + std::fabs(want)))) std::fprintf(stderr, "%g, not %g\n", got, want);
  expect(std::fabs(got - want) <= tolerance * (1 + std::fabs(want)), what);
}

// A column of an NHWC patch matrix at (row, channel·taps + tap), by the definition.
double patch(const double* x, const Geometry& g, int64_t row, int64_t column) {
  const int64_t taps = g.taps(), channel = column / taps;
  int64_t tap = column % taps, h[2];
  if (column == g.group_channels() * taps) return 1;
  const int64_t per_sample = g.axes[1].positions() * g.axes[2].positions(), sample = row / per_sample;
  const int64_t y[2] = {row % per_sample / g.axes[2].positions(), row % g.axes[2].positions()};
  const int64_t t[2] = {tap / g.axes[2].kernel, tap % g.axes[2].kernel};
  for (int a = 0; a < 2; ++a) {
    h[a] = y[a] * g.axes[1 + a].down() + g.axes[1 + a].offset(t[a]);
    if (h[a] < 0 || h[a] >= g.axes[1 + a].size) return 0;
  }
  return x[((sample * g.axes[1].size + h[0]) * g.axes[2].size + h[1]) * g.channels + channel];
}

void factor(int64_t channels, int64_t stride, int multiprocessors) {
  Geometry g;
  g.batch = 2, g.channels = channels, g.bias = true;
  g.axes[1] = {5, 3, stride, 1, 1, 0, false}, g.axes[2] = {4, 3, stride, 1, 1, 0, false};
  const std::vector<double> numbers = random_numbers<double>(g.batch * 20 * channels);
  const double* x = to_device(numbers);
  const int64_t n = g.n(), rows = g.batch * g.positions();
  double* direct = guarded<double>(n * n);
  double* lag = guarded<double>(n * n);

  DirectSizes sizes{};
  sizes.batch = g.batch, sizes.groups = 1, sizes.group_channels = static_cast<int>(channels), sizes.bias = true;
  sizes.batch_stride = 20 * channels, sizes.channel_stride = 1;
  const int64_t axis_stride[3] = {0, 4 * channels, channels};
  for (int a = 0; a < 3; ++a) {
    const Axis& axis = g.axes[a];
    sizes.axes[a] = {static_cast<int>(axis.size),        static_cast<int>(axis.kernel),
                     static_cast<int>(axis.positions()), 1,
                     static_cast<int>(axis.stride),      1,
                     static_cast<int>(axis.offset(0))};
    sizes.axis_stride[a] = axis_stride[a];
  }
  double* scratch = guarded<double>(input_factor_direct_scratch(sizes, Dtype::kFloat64, multiprocessors));
  check(launch_input_factor_direct(x, Dtype::kFloat64, sizes, {direct, n * n, n, 1, 0.5, 0}, scratch, multiprocessors,
                                   nullptr));

  const LagPlan plan(g);
  const LagTables tables(plan, axis_stride, 20 * channels, Dtype::kFloat64, true, multiprocessors);
  int64_t* words = guarded<int64_t>(static_cast<int64_t>(tables.words.size()));
  check(launch_upload(tables.words.data(), static_cast<int64_t>(tables.words.size()), words, nullptr));
  double* state = guarded<double>(plan.state_size());
  check(launch_lag_sums(x, Dtype::kFloat64, tables.sizes, tables.regions(words), tables.sum_regions(words), state, 1, 0,
                        guarded<double>(tables.scratch_numbers()), nullptr));
  check(launch_lag_expand(state, Dtype::kFloat64, tables.sizes, tables.tables(words), false, {lag, n * n, n, 1, 0.5, 0},
                          nullptr));
  const std::vector<double> by_direct = to_host(direct, n * n), by_lag = to_host(lag, n * n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; j += 1 + n / 40) {
      double want = 0;
      for (int64_t row = 0; row < rows; ++row)
        want += patch(numbers.data(), g, row, i) * patch(numbers.data(), g, row, j) / 2;
      expect_close(by_direct[i * n + j], want, 1e-12, "direct input factor");
      expect_close(by_lag[i * n + j], want, 1e-12, "lag input factor");
    }
}

// Rows of channels without pixels, so that the factor is a plain product: each type and tile of the lag kernels.
template <typename T>
void factor_of_rows(int64_t rows, int64_t channels, Dtype dtype, int multiprocessors) {
  Geometry g;
  g.batch = rows, g.channels = channels;
  const std::vector<T> numbers = random_numbers<T>(rows * channels);
  const T* x = to_device(numbers);
  const LagPlan plan(g);
  const int64_t axis_stride[3] = {0, 0, 0};
  const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
  const LagTables tables(plan, axis_stride, channels, dtype, aligned, multiprocessors);
  int64_t* words = guarded<int64_t>(static_cast<int64_t>(tables.words.size()));
  check(launch_upload(tables.words.data(), static_cast<int64_t>(tables.words.size()), words, nullptr));
  float* out = guarded<float>(channels * channels);
  check(launch_lag_sums(x, dtype, tables.sizes, tables.regions(words), tables.sum_regions(words), out, 1, 0,
                        guarded<float>(tables.scratch_numbers()), nullptr));
  const std::vector<float> found = to_host(out, channels * channels);
  for (int64_t i = 0; i < channels; ++i)
    for (int64_t j = 0; j < channels; ++j) {
      double want = 0;
      for (int64_t r = 0; r < rows; ++r)
        want += static_cast<double>(static_cast<float>(numbers[r * channels + i])) *
                static_cast<float>(numbers[r * channels + j]);
      expect_close(found[i * channels + j], want, 1e-4, "input factor of rows");
    }
}

void transposition(int64_t batch, int64_t rows, int64_t columns) {
  const std::vector<float> x = random_numbers<float>(batch * rows * columns);
  float* transposed = guarded<float>(batch * rows * columns);
  check(launch_transpose(to_device(x), transposed, 4, batch, rows, columns, nullptr));
  const std::vector<float> out = to_host(transposed, batch * rows * columns);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c)
        expect(out[(b * columns + c) * rows + r] == x[(b * rows + r) * columns + c], "transpose");
}

// A linear layer: rows of n and m numbers.
void rayleigh(int64_t samples, int positions, int n, int m, int K) {
  const int64_t rows = samples * positions;
  const std::vector<float> x = random_numbers<float>(rows * n), delta = random_numbers<float>(rows * m);
  const std::vector<float> U = random_numbers<float>(m * K), V = random_numbers<float>(n * K);
  const auto operand = [&](const std::vector<float>& numbers, int features, const std::vector<float>& directions) {
    DirectSizes s{};
    s.batch = samples, s.groups = 1, s.group_channels = features;
    s.batch_stride = static_cast<int64_t>(positions) * features, s.channel_stride = 1, s.axis_stride[2] = features;
    for (DirectAxis& axis : s.axes) axis = {1, 1, 1, 1, 1, 0, 0};
    s.axes[2].size = s.axes[2].positions = positions;
    return RayleighOperand{to_device(numbers), Dtype::kFloat32, s, to_device(directions)};
  };
  const RayleighProblem problem{operand(x, n, V), operand(delta, m, U), K, false};
  const RayleighPlan plan = rayleigh_plan(problem);
  double* out = guarded<double>(4 * K);
  check(launch_rayleigh(problem, plan, guarded<float>(plan.scratch_numbers), guarded<double>(plan.partial_numbers), out,
                        nullptr));
  const std::vector<double> found = to_host(out, 4 * K);
  for (int k = 0; k < K; ++k) {
    double want[4] = {};
    for (int64_t b = 0; b < samples; ++b) {
      double inner = 0;
      for (int64_t row = b * positions; row < (b + 1) * positions; ++row) {
        double p = 0, q = 0;
        for (int i = 0; i < n; ++i) p += static_cast<double>(x[row * n + i]) * V[i * K + k];
        for (int i = 0; i < m; ++i) q += static_cast<double>(delta[row * m + i]) * U[i * K + k];
        want[0] += q * q, want[1] += p * p, want[2] += q * q * p * p, inner += q * p;
      }
      want[3] += inner * inner;
    }
    const double B = static_cast<double>(samples), BS = static_cast<double>(rows);
    const double scale[4] = {1 / B, 1 / BS, 1 / BS, 1 / B};
    for (int o = 0; o < 4; ++o) expect_close(found[o * K + k], scale[o] * want[o], 2e-5, "Rayleigh quotients");
  }
}

// The residual of (R + p)·T = w·G + c·(R + p)·G for one term.
void newton(int n, int64_t length, bool blocked) {
  const int matrices = blocked ? 1 : 2;
  const NewtonStrides strides{n * length, length, 1};
  const NewtonSizes sizes{matrices, n, length, 1, strides, strides};
  const std::vector<float> G = random_numbers<float>(matrices * n * length);
  const std::vector<float> constant(2, 0.25f), weight(2, 2.0f), pole(2, static_cast<float>(length));
  float* out = guarded<float>(matrices * n * length);
  int32_t* codes = guarded<int32_t>(matrices);
  const auto launch_newton = blocked ? launch_spectral_newton_blocked : launch_spectral_newton;
  float* scratch = guarded<float>(blocked ? newton_blocked_scratch(sizes) : newton_scratch(sizes));
  check(launch_newton(to_device(G), out, Dtype::kFloat32, sizes,
                      {to_device(constant), to_device(weight), to_device(pole)}, 1, 0, codes, scratch, nullptr));
  const std::vector<float> found = to_host(out, matrices * n * length);
  const std::vector<int32_t> status = to_host(codes, matrices);
  for (int b = 0; b < matrices; ++b) {
    expect(status[b] == 0, "Newton status");
    const float *g = G.data() + b * n * length, *t = found.data() + b * n * length;
    for (int64_t c = 0; c < length; c += 1 + length / 4)
      for (int i = 0; i < n; i += 1 + n / 6) {
        double left = static_cast<double>(pole[b]) * t[i * length + c], right = 0;
        right += (2.0 + 0.25 * pole[b]) * g[i * length + c];
        for (int j = 0; j < n; ++j) {
          double r = 0;
          for (int64_t k = 0; k < length; ++k) r += static_cast<double>(g[i * length + k]) * g[j * length + k];
          left += r * t[j * length + c], right += 0.25 * r * g[j * length + c];
        }
        expect_close(left / pole[b], right / pole[b], 1e-4, "spectral Newton");
      }
  }
}

__global__ void missing_barrier(int* out) {
  __shared__ int value[32];
  value[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = value[31 - threadIdx.x];
}

#ifndef __CUDACC__
__global__ void unwritten(float* out) {
  __shared__ float value[32];
  if (threadIdx.x == 0) value[0] = 1;
  __syncthreads();
  out[threadIdx.x] = value[threadIdx.x];
}

// What the emulator promises: shared memory that nobody wrote is NaN in every block, and no launch exceeds a device.
void emulator() {
  float* out = guarded<float>(32);
  for (int run = 0; run < 2; ++run) {
    std::memset(out, 0, 32 * sizeof(float));
    check(launch(unwritten, dim3(2), dim3(32), 0, nullptr, out));
    expect(out[0] == 1 && std::isnan(out[1]), "static shared memory is not NaN at a block's start");
  }
  expect(launch(unwritten, dim3(1), dim3(1056), 0, nullptr, out) != cudaSuccess, "more than 1024 threads");
  expect(launch(unwritten, dim3(1, 65536), dim3(32), 0, nullptr, out) != cudaSuccess, "a grid beyond its limits");
  expect(launch(unwritten, dim3(1), dim3(32), 100 * 1024, nullptr, out) != cudaSuccess, "more shared memory than is");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1), config.blockDim = dim3(32), config.dynamicSmemBytes = 64 * 1024;
  expect(cudaLaunchKernelEx(&config, missing_barrier, reinterpret_cast<int*>(out)) != cudaSuccess,
         "more than 48 KiB of shared memory, and nobody asked for it");
}
#endif

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "racy") {
    check(launch(missing_barrier, dim3(1), dim3(32), 0, nullptr, guarded<int>(32)));
    return 0;
  }
#ifndef __CUDACC__
  emulator();
#endif
  factor(3, 1, 2), factor(33, 2, 1), factor(18, 1, 20);
  factor_of_rows<__nv_bfloat16>(70, 72, Dtype::kBFloat16, 1);
  factor_of_rows<__half>(140, 128, Dtype::kFloat16, 1);
  factor_of_rows<__half>(300, 66, Dtype::kFloat16, 20);
  factor_of_rows<float>(70, 68, Dtype::kFloat32, 1);
  factor_of_rows<float>(600, 35, Dtype::kFloat32, 20);
  factor_of_rows<float>(37, 19, Dtype::kFloat32, 1);
  transposition(2, 33, 70), transposition(1, 5, 3);
  rayleigh(3, 140, 5, 4, 5), rayleigh(9, 7, 70, 33, 27), rayleigh(30, 1, 90, 70, 40);
  newton(3, 300, false), newton(66, 70, false), newton(129, 20, false), newton(130, 20, true);
  std::puts("every kernel ran");
}
