// Every op and its schema, one m.def per line: the table of contents. Implementations are in the file of the op's name.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(spectral_ext, m) {
  // clang-format off
  // Kronecker factors: scale · Σ a aᵀ, (groups, n, n); float64 for float64 x, else float32. No kernel_size: x is (rows, n).
  m.def("input_factor(Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, bool bias, bool transposed, int[] output_padding, bool channels_last_order, float scale) -> Tensor");
  m.def("input_factor_(Tensor(a!) out, Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, bool bias, bool transposed, int[] output_padding, bool channels_last_order, float beta, float scale) -> ()");
  m.def("lag_sums_(Tensor(a!) state, Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, bool bias, bool transposed, int[] output_padding, float beta, float scale) -> ()");
  m.def("expand_lag_sums(Tensor state, int[] input_size, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, bool bias, bool transposed, int[] output_padding, bool channels_last_order) -> Tensor");
  // Second moments along K pairs of directions: (4, groups, K) float64 of output, input, sum_of_products, gauss_newton.
  // x (B, C, axes…), delta (B, M, axes…); no kernel_size: x (B, S, n), delta (B, S, m). U (groups, m, K) and V (groups, n, K)
  // are float64 if x or delta is, else float32. scratch_bytes: bytes of scratch of each CPU thread.
  m.def("rayleigh_quotients(Tensor x, Tensor delta, Tensor U, Tensor V, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, bool bias, bool transposed, int[] output_padding, int scratch_bytes) -> Tensor");
  // out = beta · out + scale · (c + Σ_j w_j (R + p_j)⁻¹) G for G (B, m, N), R = G Gᵀ on the small side; CUDA only.
  m.def("spectral_newton_poles_(Tensor(a!) out, Tensor(b!) status, Tensor G, Tensor constant, Tensor weights, Tensor poles, float scale, float beta) -> ()");
  // T of every matrix of a list of batches (B_i, m, n); one α, d, status and σ_max²/d^(2/α) per matrix; CPU only.
  m.def("spectral_newton_cpu_(Tensor[] G, Tensor(a!)[] out, Tensor alpha, Tensor damping, int damping_mode, float tolerance, Tensor fits, Tensor(b!) status, Tensor(c!) y_max) -> ()");
  // clang-format on
}
