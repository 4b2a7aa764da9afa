// Bodies of input_factor_kernels.h for one instruction set: see cpu/simd_vectors.h.

namespace spectral_ext::cpu {
namespace {

// Channels of A and panels of B per microkernel call: their sums fill the registers, 32 of them with AVX-512, else 16.
constexpr int kRowsAtOnce = kVectorBytes == 64 ? 8 : kVectorBytes == 32 ? 4 : 2;
constexpr int kPanelsAtOnce = kVectorBytes == 64 ? 3 : 1;
constexpr int kParts = 64 / kVectorBytes;  // vectors per panel

template <class T, int Panels>
void multiply(int64_t k, const T* __restrict__ a, const T* const* b, T* tile, int64_t tile_stride) {
  constexpr int kRows = kRowsAtOnce, kVectors = Panels * kParts;
  Vector<T> sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) sum[i][j] = Vector<T>{};
  const T* __restrict__ b0 = b[0];
  const T* __restrict__ b1 = Panels > 1 ? b[1] : b[0];
  const T* __restrict__ b2 = Panels > 2 ? b[2] : b[0];
  for (int64_t step = 0; step < k; ++step) {
    Vector<T> x[kVectors];
    for (int p = 0; p < kParts; ++p) {
      x[p] = load(b0 + p * kLanes<T>);
      if (Panels > 1) x[kParts + p] = load(b1 + p * kLanes<T>);
      if (Panels > 2) x[2 * kParts + p] = load(b2 + p * kLanes<T>);
    }
    for (int i = 0; i < kRows; ++i) {
      const Vector<T> y = a[i] - Vector<T>{};
      for (int j = 0; j < kVectors; ++j) sum[i][j] += y * x[j];
    }
    a += kPanel<T>, b0 += kPanel<T>, b1 += kPanel<T>, b2 += kPanel<T>;
  }
  SPECTRAL_EXT_UNROLL
  for (int i = 0; i < kRows; ++i) SPECTRAL_EXT_UNROLL
  for (int j = 0; j < Panels; ++j) SPECTRAL_EXT_UNROLL
  for (int p = 0; p < kParts; ++p) {
    T* to = tile + j * tile_stride + i * kPanel<T> + p * kLanes<T>;
    store<T>(to, load(to) + sum[i][j * kParts + p]);
  }
}

template <class T>
void sum_panels(int64_t k, const T* a, T* to) {
  for (int p = 0; p < kParts; ++p) {
    Vector<T> s[4] = {};
    const T* from = a + p * kLanes<T>;
    int64_t i = 0;
    for (; i + 4 <= k; i += 4)
      for (int u = 0; u < 4; ++u) s[u] += load(from + (i + u) * kPanel<T>);
    for (; i < k; ++i) s[0] += load(from + i * kPanel<T>);
    store<T>(to + p * kLanes<T>, (s[0] + s[1]) + (s[2] + s[3]));
  }
}

template <class T>
void multiply_lanes(int64_t k, const T* a, const T* b, T* to) {
  for (int p = 0; p < kParts; ++p) {
    Vector<T> s[4] = {};
    const T *x = a + p * kLanes<T>, *y = b + p * kLanes<T>;
    int64_t i = 0;
    for (; i + 4 <= k; i += 4)
      for (int u = 0; u < 4; ++u) s[u] += load(x + (i + u) * kPanel<T>) * load(y + (i + u) * kPanel<T>);
    for (; i < k; ++i) s[0] += load(x + i * kPanel<T>) * load(y + i * kPanel<T>);
    T* out = to + p * kLanes<T>;
    store<T>(out, load(out) + ((s[0] + s[1]) + (s[2] + s[3])));
  }
}

template <class T>
void transpose(const T* const* from, int lanes, int64_t count, T* to, int64_t to_stride) {
  constexpr int w = kLanes<T>;
  int64_t i = 0;
  for (; i + w <= count; i += w)
    for (int part = 0; part < kParts; ++part) {
      Vector<T> x[w];
      for (int l = 0; l < w; ++l) x[l] = part * w + l < lanes ? load(from[part * w + l] + i) : Vector<T>{};
      transpose_in_registers<T>(x);
      for (int l = 0; l < w; ++l) store<T>(to + (i + l) * to_stride + part * w, x[l]);
    }
  for (; i < count; ++i)
    for (int l = 0; l < kPanel<T>; ++l) to[i * to_stride + l] = l < lanes ? from[l][i] : T(0);
}

template <class T>
void add_tiles(const T* const* from, int64_t count, int64_t from_stride, bool transposed, T* tile) {
  constexpr int w = kLanes<T>;
  for (int row = 0; row < kParts; ++row)
    for (int column = 0; column < kParts; ++column) {
      Vector<T> x[w];
      for (int i = 0; i < w; ++i) x[i] = Vector<T>{};
      for (int64_t r = 0; r < count; ++r) {
        const T* at = from[r] + row * w * from_stride + column * w;
        for (int i = 0; i < w; ++i) x[i] += load(at + i * from_stride);
      }
      if (transposed) transpose_in_registers<T>(x);
      T* to = transposed ? tile + (column * kPanel<T> + row) * w : tile + (row * kPanel<T> + column) * w;
      for (int i = 0; i < w; ++i) store<T>(to + i * kPanel<T>, x[i]);
    }
}

template <class T, class S>
void load_row(const void* from, int64_t step, int64_t count, T* to) {
  const S* x = static_cast<const S*>(from);
  int64_t i = 0;
  if (step == 1)
    for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load_as<T>(x + i));
  for (; i < count; ++i) to[i] = convert<T>(x[i * step]);
}

template <class T>
constexpr Kernels<T> make_table() {
  Kernels<T> table{kRowsAtOnce,
                   kPanelsAtOnce,
                   {multiply<T, 1>, nullptr, nullptr},
                   sum_panels<T>,
                   multiply_lanes<T>,
                   transpose<T>,
                   add_tiles<T>,
                   {nullptr, nullptr, load_row<T, BFloat16>, load_row<T, Half>}};
  if constexpr (kPanelsAtOnce == 3) table.multiply[1] = multiply<T, 2>, table.multiply[2] = multiply<T, 3>;
  table.load[static_cast<int>(sizeof(T) == 8 ? Scalar::kDouble : Scalar::kFloat)] = load_row<T, T>;
  return table;
}

constexpr Kernels<float> kFloatTable = make_table<float>();
constexpr Kernels<double> kDoubleTable = make_table<double>();

}  // namespace

template <>
const Kernels<float>& kernels_of<float, kSimdLevel>() {
  return kFloatTable;
}
template <>
const Kernels<double>& kernels_of<double, kSimdLevel>() {
  return kDoubleTable;
}

}  // namespace spectral_ext::cpu
