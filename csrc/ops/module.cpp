// The Python module. Importing it registers the ops; what is not a tensor op is bound here.

// torch 2.11 and 2.12 refuse their own copy of pybind11 where a stable ABI target is set.
#pragma push_macro("TORCH_TARGET_VERSION")
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#pragma pop_macro("TORCH_TARGET_VERSION")

#include "cpu/simd.h"
#include "cpu/spectral_newton.h"
#include "ops/input_geometry.h"

namespace py = pybind11;
using namespace py::literals;
using namespace spectral_ext::cpu;

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
      "cpu_capability", [] { return simd_name(simd_level()); },
      "The vector instructions in use: avx512, avx2 or baseline.");
  m.def(
      "check_simd_environment",
      [] {
        const SimdLevel wanted = requested_simd_level();
        if (wanted <= simd_level()) return;
        const std::string text = std::string("SPECTRAL_EXT_SIMD=") + simd_name(wanted) +
                                 ": this processor lacks these instructions; the CPU kernels use " +
                                 simd_name(simd_level());
        if (PyErr_WarnEx(PyExc_RuntimeWarning, text.c_str(), 1) != 0) throw py::error_already_set();
      },
      "Raises ValueError where SPECTRAL_EXT_SIMD names no level, and warns where the processor lacks it.");
  m.def(
      "set_cpu_capability", [](const std::string& name) { set_simd_level(simd_level_named(name)); }, py::arg("name"),
      "Use avx512, avx2 or baseline from now on, or what the processor has where that is less.");
  // What spectral_newton_cpu_ writes to status, reads as damping_mode, and expects in the columns of fits.
  const auto number = [](auto value) { return static_cast<int64_t>(value); };
  m.attr("NEWTON_STATUS") = py::dict("single_precision"_a = number(TransferStatus::kSinglePrecision),
                                     "double_gram"_a = number(TransferStatus::kDoubleGram),
                                     "double_precision"_a = number(TransferStatus::kDoublePrecision),
                                     "needs_fit"_a = number(TransferStatus::kNeedsFit),
                                     "ill_conditioned"_a = number(TransferStatus::kIllConditioned),
                                     "non_finite"_a = number(TransferStatus::kNonFinite));
  m.attr("NEWTON_DAMPING_MODE") =
      py::dict("absolute"_a = number(DampingMode::kAbsolute), "spectral"_a = number(DampingMode::kSpectral),
               "rms"_a = number(DampingMode::kRms));
  m.attr("NEWTON_FIT_COLUMNS") = py::tuple(py::cast(std::vector<std::string>(kFitColumns, kFitColumns + kFitHeader)));
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
