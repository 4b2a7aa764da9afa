// Bodies of input_factor_kernels.h for one instruction set. The including file sets the target, then
// SPECTRAL_EXT_VECTOR_BYTES, SPECTRAL_EXT_ROWS, SPECTRAL_EXT_PANELS and SPECTRAL_EXT_TABLE. No std:: templates here:
// the linker could pick this file's copy of one, with instructions that the running CPU lacks.

namespace spectral_ext::cpu {
namespace {

constexpr int kVectorBytes = SPECTRAL_EXT_VECTOR_BYTES;

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
};

template <class T>
constexpr int kWidth = kVectorBytes / sizeof(T);  // numbers a vector
constexpr int kParts = 64 / kVectorBytes;         // vectors a panel

template <class T>
inline typename VectorOf<T>::type load_vector(const T* from) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(from);
}
template <class T>
inline void store_vector(T* to, typename VectorOf<T>::type v) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(to) = v;
}

template <class T, int Panels>
void multiply(int64_t k, const T* __restrict__ a, const T* const* b, T* tile, int64_t tile_stride) {
  using V = typename VectorOf<T>::type;
  constexpr int kRows = SPECTRAL_EXT_ROWS, kVectors = Panels * kParts;
  V sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) sum[i][j] = V{};
  const T* __restrict__ b0 = b[0];
  const T* __restrict__ b1 = Panels > 1 ? b[1] : b[0];
  const T* __restrict__ b2 = Panels > 2 ? b[2] : b[0];
  for (int64_t step = 0; step < k; ++step) {
    V x[kVectors];
    for (int p = 0; p < kParts; ++p) {
      x[p] = load_vector(b0 + p * kWidth<T>);
      if (Panels > 1) x[kParts + p] = load_vector(b1 + p * kWidth<T>);
      if (Panels > 2) x[2 * kParts + p] = load_vector(b2 + p * kWidth<T>);
    }
    for (int i = 0; i < kRows; ++i) {
      const V y = a[i] - V{};
      for (int j = 0; j < kVectors; ++j) sum[i][j] += y * x[j];
    }
    a += kLanes<T>, b0 += kLanes<T>, b1 += kLanes<T>, b2 += kLanes<T>;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Panels; ++j)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) {
        T* to = tile + j * tile_stride + i * kLanes<T> + p * kWidth<T>;
        store_vector<T>(to, load_vector(to) + sum[i][j * kParts + p]);
      }
}

template <class T>
void sum_lanes(int64_t k, const T* a, T* to) {
  for (int p = 0; p < kParts; ++p) {
    typename VectorOf<T>::type s[4] = {};
    const T* from = a + p * kWidth<T>;
    int64_t i = 0;
    for (; i + 4 <= k; i += 4)
      for (int u = 0; u < 4; ++u) s[u] += load_vector(from + (i + u) * kLanes<T>);
    for (; i < k; ++i) s[0] += load_vector(from + i * kLanes<T>);
    store_vector<T>(to + p * kWidth<T>, (s[0] + s[1]) + (s[2] + s[3]));
  }
}

template <class T>
void multiply_lanes(int64_t k, const T* a, const T* b, T* to) {
  for (int p = 0; p < kParts; ++p) {
    typename VectorOf<T>::type s[4] = {};
    const T *x = a + p * kWidth<T>, *y = b + p * kWidth<T>;
    int64_t i = 0;
    for (; i + 4 <= k; i += 4)
      for (int u = 0; u < 4; ++u) s[u] += load_vector(x + (i + u) * kLanes<T>) * load_vector(y + (i + u) * kLanes<T>);
    for (; i < k; ++i) s[0] += load_vector(x + i * kLanes<T>) * load_vector(y + i * kLanes<T>);
    T* out = to + p * kWidth<T>;
    store_vector<T>(out, load_vector(out) + ((s[0] + s[1]) + (s[2] + s[3])));
  }
}

// Elements first, first + W, first + 1, … of two vectors of W: one stage of a W × W transpose.
template <class T, int First>
inline typename VectorOf<T>::type interleave(typename VectorOf<T>::type a, typename VectorOf<T>::type b) {
  constexpr int f = First, w = kWidth<T>;
#ifdef __clang__
#define SPECTRAL_EXT_SHUFFLE(...) return __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SPECTRAL_EXT_SHUFFLE(...) return __builtin_shuffle(a, b, typename VectorOf<T>::mask{__VA_ARGS__})
#endif
  if constexpr (w == 16)
    SPECTRAL_EXT_SHUFFLE(f, f + w, f + 1, f + 1 + w, f + 2, f + 2 + w, f + 3, f + 3 + w, f + 4, f + 4 + w, f + 5,
                         f + 5 + w, f + 6, f + 6 + w, f + 7, f + 7 + w);
  else if constexpr (w == 8)
    SPECTRAL_EXT_SHUFFLE(f, f + w, f + 1, f + 1 + w, f + 2, f + 2 + w, f + 3, f + 3 + w);
  else if constexpr (w == 4)
    SPECTRAL_EXT_SHUFFLE(f, f + w, f + 1, f + 1 + w);
  else
    SPECTRAL_EXT_SHUFFLE(f, f + w);
#undef SPECTRAL_EXT_SHUFFLE
}

// x becomes its transpose, by way of y.
template <class T>
inline __attribute__((always_inline)) void turn(typename VectorOf<T>::type* x, typename VectorOf<T>::type* y) {
  constexpr int w = kWidth<T>;
#pragma GCC unroll 4
  for (int stage = 1; stage < w; stage *= 2) {
#pragma GCC unroll 8
    for (int l = 0; l < w / 2; ++l) {
      y[2 * l] = interleave<T, 0>(x[l], x[l + w / 2]);
      y[2 * l + 1] = interleave<T, w / 2>(x[l], x[l + w / 2]);
    }
#pragma GCC unroll 16
    for (int l = 0; l < w; ++l) x[l] = y[l];
  }
}

template <class T>
void transpose(const T* const* from, int lanes, int64_t count, T* to, int64_t to_stride) {
  using V = typename VectorOf<T>::type;
  constexpr int w = kWidth<T>;
  int64_t i = 0;
  for (; i + w <= count; i += w)
    for (int part = 0; part < kParts; ++part) {
      V x[w], y[w];
      for (int l = 0; l < w; ++l) x[l] = part * w + l < lanes ? load_vector(from[part * w + l] + i) : V{};
      turn<T>(x, y);
      for (int l = 0; l < w; ++l) store_vector<T>(to + (i + l) * to_stride + part * w, x[l]);
    }
  for (; i < count; ++i)
    for (int l = 0; l < kLanes<T>; ++l) to[i * to_stride + l] = l < lanes ? from[l][i] : T(0);
}

template <class T>
void add_tiles(const T* const* from, int64_t count, int64_t from_stride, bool transposed, T* tile) {
  using V = typename VectorOf<T>::type;
  constexpr int w = kWidth<T>;
  for (int row = 0; row < kParts; ++row)
    for (int column = 0; column < kParts; ++column) {
      V x[w], y[w];
      for (int i = 0; i < w; ++i) x[i] = V{};
      for (int64_t r = 0; r < count; ++r) {
        const T* at = from[r] + row * w * from_stride + column * w;
        for (int i = 0; i < w; ++i) x[i] += load_vector(at + i * from_stride);
      }
      if (transposed) turn<T>(x, y);
      T* to = transposed ? tile + (column * kLanes<T> + row) * w : tile + (row * kLanes<T> + column) * w;
      for (int i = 0; i < w; ++i) store_vector<T>(to + i * kLanes<T>, x[i]);
    }
}

template <class T>
void load_same(const void* from, int64_t step, int64_t count, T* to) {
  const T* x = static_cast<const T*>(from);
  if (step == 1)
    for (int64_t i = 0; i < count; ++i) to[i] = x[i];
  else
    for (int64_t i = 0; i < count; ++i) to[i] = x[i * step];
}

inline float from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline float widen_bfloat16(uint16_t bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }

// Exponent and mantissa shifted into place and rescaled by 2^112 (exact, subnormals too); 31 is infinity or NaN.
inline float widen_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  const float scaled = from_bits(magnitude << 13) * 0x1p112f;
  uint32_t out;
  __builtin_memcpy(&out, &scaled, 4);
  if (magnitude >= 0x7c00) out = magnitude << 13 | 0x7f800000;
  return from_bits(out | sign);
}

template <class T, float (*Widen)(uint16_t)>
void load_16bit(const void* from, int64_t step, int64_t count, T* to) {
  const uint16_t* x = static_cast<const uint16_t*>(from);
  if (step == 1)
    for (int64_t i = 0; i < count; ++i) to[i] = Widen(x[i]);
  else
    for (int64_t i = 0; i < count; ++i) to[i] = Widen(x[i * step]);
}

template <class T>
constexpr Kernels<T> table() {
  return {SPECTRAL_EXT_ROWS,
          SPECTRAL_EXT_PANELS,
#if SPECTRAL_EXT_PANELS == 3
          {multiply<T, 1>, multiply<T, 2>, multiply<T, 3>},
#else
          {multiply<T, 1>, nullptr, nullptr},
#endif
          sum_lanes<T>,
          multiply_lanes<T>,
          transpose<T>,
          add_tiles<T>,
          {load_same<T>, load_16bit<T, widen_bfloat16>, load_16bit<T, widen_half>}};
}

constexpr Kernels<float> kFloatTable = table<float>();
constexpr Kernels<double> kDoubleTable = table<double>();

}  // namespace

template <>
const Kernels<float>& SPECTRAL_EXT_TABLE<float>() {
  return kFloatTable;
}
template <>
const Kernels<double>& SPECTRAL_EXT_TABLE<double>() {
  return kDoubleTable;
}

}  // namespace spectral_ext::cpu
