// The Python module. Importing it registers the ops; what is not a tensor op is bound here.

// torch 2.11 and 2.12 refuse their own copy of pybind11 where a stable ABI target is set.
#pragma push_macro("TORCH_TARGET_VERSION")
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#pragma pop_macro("TORCH_TARGET_VERSION")

#include "common/simd.h"
#include "ops/input_geometry.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of spectral_ext: importing it registers torch.ops.spectral_ext.*";
  m.def(
      "compiled_with_cuda",
      [] {
#ifdef USE_CUDA
        return true;
#else
        return false;
#endif
      },
      "Whether the CUDA kernels are in this binary.");
  m.def(
      "cpu_capability",
      [] { return spectral_ext::simd_name(static_cast<spectral_ext::Simd>(spectral_ext::simd_level().load())); },
      "The vector instructions in use: avx512, avx2 or baseline.");
  m.def(
      "limit_cpu_capability",
      [](int level) {
        const int detected = static_cast<int>(spectral_ext::detected_simd());
        spectral_ext::simd_level() = level < detected ? level : detected;
      },
      "Use at most this level (0 baseline, 1 avx2, 2 avx512); for tests.");
  m.def(
      "lag_state_size",
      [](const std::vector<int64_t>& input_size, const std::vector<int64_t>& kernel_size,
         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
         int64_t groups, bool bias, bool transposed, const std::vector<int64_t>& output_padding) {
        std::vector<int64_t> shape = input_size;
        shape.insert(shape.begin(), 1);
        return spectral_ext::LagPlan(spectral_ext::make_geometry(shape, {kernel_size, stride, padding, dilation, groups,
                                                                         bias, transposed, output_padding}))
            .state_size();
      },
      "Numbers of the lag-sum state of inputs of size (channels, axes…).");
}
