// The Python module. Importing it registers the ops; what is not a tensor op is bound here.
#include <pybind11/pybind11.h>

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
}
