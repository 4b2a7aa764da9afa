// Every op and its schema, one m.def a line: the table of contents. Implementations are in the file of the op's name.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(spectral_ext, m) {
  // clang-format off
  m.def("rayleigh_quotients(Tensor x, Tensor delta, Tensor U, Tensor V, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int[] output_padding, bool transposed, int groups, bool bias, int memory_budget) -> Tensor");
  // clang-format on
}
