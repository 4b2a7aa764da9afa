// spectral_newton_cpu_: T(G) for every matrix of a list of batches in one parallel loop. Levels and their layout are
// those of spectral_ext/ops/spectral_newton/partial_fractions.py: rows [α, lowest, reach, constant, b, u, v, quadratic,
// poles, pole…, residue…].
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/spectral_newton.h"
#include "ops/check_tensor.h"
#include "ops/torch_context.h"

namespace spectral_ext {
namespace {

using namespace cpu;
using torch::stable::Tensor;

struct Job {
  const Tensor* G;
  const Tensor* out;
  int64_t item, index;  // which matrix of the batch; which row of the per-matrix tensors
  double cost;
};

struct Release {
  void operator()(void* p) const { std::free(p); }
};
using Scratch = std::unique_ptr<void, Release>;

Scratch allocate(int64_t bytes) {
  Scratch memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  STD_TORCH_CHECK(memory != nullptr, "spectral_newton: no memory for ", bytes, " bytes of scratch");
  return memory;
}

template <class T>
GradientMatrix<T> matrix_of(const Job& job) {
  const Tensor &G = *job.G, &out = *job.out;
  const int64_t m = G.size(1), n = G.size(2);
  return {m,
          n,
          G.stride(1),
          G.stride(2),
          static_cast<const T*>(G.data_ptr()) + job.item * G.stride(0),
          static_cast<T*>(out.data_ptr()) + job.item * m * n};
}

// Of the lower triangle, by LAPACK.
template <class T>
void eigenvalues(const T* R, int64_t n, double* values) {
  const ScalarType type = std::is_same_v<T, float> ? ScalarType::Float : ScalarType::Double;
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  const std::array<int64_t, 2> size{n, n}, stride{n, 1};
  std::array<StableIValue, 2> stack{
      torch::stable::detail::from(torch::stable::from_blob(const_cast<T*>(R), size, stride, cpu, type)),
      torch::stable::detail::from(std::string("L"))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linalg_eigvalsh", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor found = torch::stable::detail::to<Tensor>(stack[0]);
  std::copy_n(static_cast<const T*>(found.data_ptr()), n, values);
}

std::vector<PartialFractions> fits_of(const Tensor& fits, double alpha) {
  std::vector<PartialFractions> found;
  const int64_t columns = fits.size(1), capacity = (columns - kFitHeader) / 2;
  for (int64_t i = 0; i < fits.size(0); ++i) {
    const double* row = static_cast<const double*>(fits.const_data_ptr()) + i * columns;
    if (row[kFitAlpha] != alpha) continue;
    const double* poles = row + kFitHeader;
    found.push_back({row[kFitYMin], row[kFitYMax], row[kFitConstant], row[kFitB], row[kFitU], row[kFitV],
                     static_cast<Quadratic>(static_cast<int64_t>(row[kFitForm])), static_cast<int64_t>(row[kFitPoles]),
                     poles, poles + capacity});
  }
  return found;
}

// Rows of `fits` are within its capacity and finite; an exact fit has no largest y.
void check_fits(const Tensor& fits) {
  const int64_t columns = fits.size(1), capacity = (columns - kFitHeader) / 2;
  STD_TORCH_CHECK(columns >= kFitHeader && (columns - kFitHeader) % 2 == 0, "fits must have ", kFitHeader,
                  " columns and as many for poles as for residues, not ", columns, " columns");
  for (int64_t i = 0; i < fits.size(0); ++i) {
    const double* row = static_cast<const double*>(fits.const_data_ptr()) + i * columns;
    for (int64_t c = 0; c < columns; ++c)
      STD_TORCH_CHECK(std::isfinite(row[c]) || (c == kFitYMax && row[c] > 0), "fits: number ", c, " of row ", i, " is ",
                      row[c]);
    const double form = row[kFitForm], poles = row[kFitPoles];
    STD_TORCH_CHECK(form == 0 || form == 1 || form == 2, "fits: the form of row ", i, " must be 0, 1 or 2, not ", form);
    STD_TORCH_CHECK(poles == std::floor(poles) && poles >= (form == 1 ? 1 : 0) && poles <= capacity,
                    "fits: the pole count of row ", i, " must be an integer from ", form == 1 ? 1 : 0, " to ", capacity,
                    ", not ", poles);
  }
}

void check(const std::vector<Tensor>& G, const std::vector<Tensor>& out, const Tensor& alpha, const Tensor& damping,
           int64_t mode, double tolerance, const Tensor& fits, const Tensor& status, const Tensor& y_max) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  STD_TORCH_CHECK(G.size() == out.size(), "out must have as many tensors as G, ", G.size(), ", not ", out.size());
  int64_t count = 0;
  for (size_t i = 0; i < G.size(); ++i) {
    check_tensor(G[i], {ScalarType::Float, ScalarType::Double}, {-1, -1, -1}, "G", cpu);
    check_tensor(out[i], {G[i].scalar_type()}, shape_of(G[i]), "out", cpu);
    check_contiguous(out[i], "out");
    count += G[i].size(0);
  }
  check_tensor(alpha, {ScalarType::Double}, {count}, "alpha", cpu);
  check_tensor(damping, {ScalarType::Double}, {count}, "damping", cpu);
  check_tensor(status, {ScalarType::Long}, {count}, "status", cpu);
  check_tensor(y_max, {ScalarType::Double}, {count}, "y_max", cpu);
  check_tensor(fits, {ScalarType::Double}, {-1, -1}, "fits", cpu);
  check_contiguous(alpha, "alpha"), check_contiguous(damping, "damping"), check_contiguous(status, "status");
  check_contiguous(y_max, "y_max"), check_contiguous(fits, "fits");
  STD_TORCH_CHECK(mode >= 0 && mode <= static_cast<int64_t>(DampingMode::kRms), "damping_mode must be 0, 1 or 2, not ",
                  mode);
  STD_TORCH_CHECK(tolerance > 0, "tolerance must be positive, not ", tolerance);
  check_fits(fits);

  // What is written shares no memory with anything else: ranges of memory, by where they begin.
  struct Range {
    uintptr_t begin, end;
    bool written;
    const char* name;
  };
  std::vector<Range> ranges;
  const auto add = [&](const Tensor& t, bool written, const char* name) {
    if (t.numel() == 0) return;
    const auto [begin, end] = memory_of(t);
    ranges.push_back({begin, end, written, name});
  };
  for (size_t i = 0; i < G.size(); ++i) add(G[i], false, "G"), add(out[i], true, "out");
  add(alpha, false, "alpha"), add(damping, false, "damping"), add(fits, false, "fits");
  add(status, true, "status"), add(y_max, true, "y_max");
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  Range read{0, 0, false, ""}, written{0, 0, true, ""};  // those that reach furthest so far
  for (const Range& range : ranges) {
    for (const Range* other : {&read, &written})
      STD_TORCH_CHECK(other->end <= range.begin || !(other->written || range.written), range.name,
                      " overlaps the memory of ", other->name, ": pass a tensor of its own");
    Range& furthest = range.written ? written : read;
    if (range.end > furthest.end) furthest = range;
  }
}

void spectral_newton_cpu_(std::vector<Tensor> G, std::vector<Tensor> out, Tensor alpha, Tensor damping, int64_t mode,
                          double tolerance, Tensor fits, Tensor status, Tensor y_max) {
  check(G, out, alpha, damping, mode, tolerance, fits, status, y_max);
  const auto* alphas = static_cast<const double*>(alpha.data_ptr());
  const auto* dampings = static_cast<const double*>(damping.data_ptr());
  auto* statuses = static_cast<int64_t*>(status.data_ptr());
  auto* extents = static_cast<double*>(y_max.data_ptr());

  std::vector<Job> jobs;
  double left = 0;
  int64_t index = 0;
  for (size_t i = 0; i < G.size(); ++i)
    for (int64_t item = 0; item < G[i].size(0); ++item, ++index) {
      if (G[i].size(1) == 0 || G[i].size(2) == 0) {  // no element: done
        statuses[index] = static_cast<int64_t>(TransferStatus::kSinglePrecision);
        extents[index] = 0;
        continue;
      }
      const double side = std::min(G[i].size(1), G[i].size(2)), other = std::max(G[i].size(1), G[i].size(2));
      jobs.push_back({&G[i], &out[i], item, index, side * side * (side + 3 * other)});
      left += jobs.back().cost;
    }
  std::sort(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) { return a.cost > b.cost; });

  const TransferKernels& kernels =
      with_simd_level([](auto level) -> const TransferKernels& { return transfer_kernels<level()>(); });
  const auto scratch_for = [&](const Job& job, int64_t threads) {
    return kernels.scratch_bytes(job.G->size(1), job.G->size(2), threads);
  };
  const auto run = [&](const Job& job, void* scratch, const Parallel& parallel) {
    const double a = alphas[job.index];
    const std::vector<PartialFractions> found = fits_of(fits, a);
    const TransferSettings settings{a,
                                    dampings[job.index],
                                    tolerance,
                                    static_cast<DampingMode>(mode),
                                    {&eigenvalues<float>, &eigenvalues<double>},
                                    found.data(),
                                    static_cast<int64_t>(found.size())};
    const TransferResult result = job.G->scalar_type() == ScalarType::Float
                                      ? kernels.run_float(matrix_of<float>(job), settings, scratch, parallel)
                                      : kernels.run_double(matrix_of<double>(job), settings, scratch, parallel);
    statuses[job.index] = static_cast<int64_t>(result.status);
    extents[job.index] = result.y_max;
  };

  // A matrix that would keep one thread busy for longer than all the rest goes first, on all threads.
  const Parallel parallel = torch_threads();
  const int64_t threads = parallel.threads;
  size_t first = 0;
  for (; threads > 1 && first < jobs.size() && jobs[first].cost * threads > 1.05 * left; ++first) {
    const Scratch scratch = allocate(scratch_for(jobs[first], threads));
    run(jobs[first], scratch.get(), parallel);
    left -= jobs[first].cost;
  }
  if (first == jobs.size()) return;
  int64_t bytes = 0;
  for (size_t j = first; j < jobs.size(); ++j) bytes = std::max(bytes, scratch_for(jobs[j], 1));
  std::atomic<size_t> next{first};
  on_torch_threads(threads, [&](int64_t, int64_t) {
    const Scratch scratch = allocate(bytes);
    for (size_t j; (j = next++) < jobs.size();) run(jobs[j], scratch.get(), Parallel{});
  });
}

}  // namespace
}  // namespace spectral_ext

STABLE_TORCH_LIBRARY_IMPL(spectral_ext, CPU, m) {
  m.impl("spectral_newton_cpu_", TORCH_BOX(&spectral_ext::spectral_newton_cpu_));
}
