// Every op and its schema, one m.def a line: the table of contents. Implementations are in the file of the op's name.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(spectral_ext, m) {
  // clang-format off
  // Kronecker factors: scale · Σ a aᵀ, (groups, n, n); float64 for float64 x, else float32. No kernel_size: x is (rows, n).
  m.def("input_factor(Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, bool bias, bool transposed, int[] output_padding, bool channels_last_order, float scale) -> Tensor");
  m.def("input_factor_(Tensor(a!) out, Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, bool bias, bool transposed, int[] output_padding, bool channels_last_order, float beta, float scale) -> ()");
  m.def("lag_sums_(Tensor(a!) state, Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, bool bias, bool transposed, int[] output_padding, float beta, float scale) -> ()");
  m.def("expand_lag_sums(Tensor state, int[] input_size, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, bool bias, bool transposed, int[] output_padding, bool channels_last_order) -> Tensor");
  m.def("rayleigh_quotients(Tensor x, Tensor delta, Tensor U, Tensor V, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int[] output_padding, bool transposed, int groups, bool bias, int memory_budget) -> Tensor");
  // clang-format on
}
