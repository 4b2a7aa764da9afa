// The vectors of one instruction set. A file that is compiled for one level first includes all other headers, then
// defines SPECTRAL_EXT_SIMD_BYTES (16 baseline, 32 AVX2, 64 AVX-512), includes this header, its kernels and
// cpu/simd_end.h. What stands between the two is compiled for that level. Functions of headers that were included
// before, such as std::min, stay code for any processor: the linker may keep this file's copy of them.
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/scalar.h"
#include "cpu/simd.h"

#ifdef __clang__
#if SPECTRAL_EXT_SIMD_BYTES == 64
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), \
                             apply_to = function)
#elif SPECTRAL_EXT_SIMD_BYTES == 32
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#endif
#define SPECTRAL_EXT_UNROLL _Pragma("unroll")
#else
#pragma GCC push_options
#if SPECTRAL_EXT_SIMD_BYTES == 64
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")
#elif SPECTRAL_EXT_SIMD_BYTES == 32
#pragma GCC target("avx2,fma")
#endif
#define SPECTRAL_EXT_UNROLL _Pragma("GCC unroll 32")
#endif
#define SPECTRAL_EXT_INLINE inline __attribute__((always_inline))

namespace spectral_ext::cpu {
namespace {

constexpr int kVectorBytes = SPECTRAL_EXT_SIMD_BYTES;
constexpr SimdLevel kSimdLevel = kVectorBytes == 64   ? SimdLevel::kAvx512
                                 : kVectorBytes == 32 ? SimdLevel::kAvx2
                                                      : SimdLevel::kBaseline;

// Numbers per vector; a lane is one of them.
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// The integer of T's size, as lanes of a mask: all bits set or none.
template <class T>
using MaskLane = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <class T>
struct VectorTypes {
  typedef T vector __attribute__((vector_size(kVectorBytes)));
  typedef T in_memory __attribute__((vector_size(kVectorBytes), may_alias));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
  typedef MaskLane<T> mask __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorTypes<T>::vector;
template <class T>
using Mask = typename VectorTypes<T>::mask;

template <class T>
SPECTRAL_EXT_INLINE Vector<T> load(const T* from) {
  return *reinterpret_cast<const typename VectorTypes<T>::unaligned*>(from);
}
template <class T>
SPECTRAL_EXT_INLINE void store(T* to, Vector<T> v) {
  *reinterpret_cast<typename VectorTypes<T>::unaligned*>(to) = v;
}
// The same at addresses that are multiples of kVectorBytes.
template <class T>
SPECTRAL_EXT_INLINE Vector<T> load_aligned(const T* from) {
  return *reinterpret_cast<const typename VectorTypes<T>::in_memory*>(from);
}
template <class T>
SPECTRAL_EXT_INLINE void store_aligned(T* to, Vector<T> v) {
  *reinterpret_cast<typename VectorTypes<T>::in_memory*>(to) = v;
}

// ---- other element types, exactly

template <class To, class From>
SPECTRAL_EXT_INLINE To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// The float with the bits of a bfloat16 number; Word: uint32_t or a vector of it, Real: as many floats.
template <class Real, class Word>
SPECTRAL_EXT_INLINE Real widen_bfloat16(Word bits) {
  return bits_of<Real>(bits << 16);
}

// The float of a float16 number: exponent and mantissa shifted into place and multiplied by 2^112 to move the
// exponent's bias, exact for subnormals too; the exponent 31 is infinity or NaN.
template <class Real, class Word>
SPECTRAL_EXT_INLINE Real widen_half(Word bits) {
  const Word magnitude = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
  const Word finite = bits_of<Word>(bits_of<Real>(magnitude) * 0x1p112f);
  return bits_of<Real>((magnitude >= (0x7c00u << 13) ? magnitude | 0x7f800000u : finite) | sign);
}

template <class T, class S>
SPECTRAL_EXT_INLINE T convert(S x) {
  if constexpr (std::is_same_v<S, BFloat16>)
    return static_cast<T>(widen_bfloat16<float>(static_cast<uint32_t>(x.bits)));
  else if constexpr (std::is_same_v<S, Half>)
    return static_cast<T>(widen_half<float>(static_cast<uint32_t>(x.bits)));
  else
    return static_cast<T>(x);
}

// Vectors of n numbers, whatever their size.
template <class S, int n>
struct Numbers {
  typedef S vector __attribute__((vector_size(n * sizeof(S))));
};

// kLanes<T> consecutive numbers of type S.
template <class T, class S>
SPECTRAL_EXT_INLINE Vector<T> load_as(const S* from) {
  if constexpr (std::is_same_v<S, T>) {
    return load(from);
  } else if constexpr (std::is_same_v<S, BFloat16> || std::is_same_v<S, Half>) {
    using Floats = typename Numbers<float, kLanes<T>>::vector;
    typename Numbers<decltype(S::bits), kLanes<T>>::vector bits;
    std::memcpy(&bits, from, sizeof bits);
    const auto words = __builtin_convertvector(bits, typename Numbers<uint32_t, kLanes<T>>::vector);
    if constexpr (std::is_same_v<S, BFloat16>)
      return __builtin_convertvector(widen_bfloat16<Floats>(words), Vector<T>);
    else
      return __builtin_convertvector(widen_half<Floats>(words), Vector<T>);
  } else {
    typename Numbers<S, kLanes<T>>::vector numbers;
    std::memcpy(&numbers, from, sizeof numbers);
    return __builtin_convertvector(numbers, Vector<T>);
  }
}

// ---- transposition

// Lane i of the result: where bit `step` of i is not set, lane i of a; where it is, lane i − step of b; `high`: the
// lanes that are left, i + step of a and i of b.
template <class T, int step, bool high, int... I>
SPECTRAL_EXT_INLINE Vector<T> exchange(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
#ifdef __clang__
  return __builtin_shufflevector(a, b, ((I & step ? n + I - step : I) + (high ? step : 0))...);
#else
  return __builtin_shuffle(a, b, Mask<T>{((I & step ? n + I - step : I) + (high ? step : 0))...});
#endif
}

// A square of vectors becomes its transpose: blocks of step × step lanes are swapped, from half the square down to one.
template <class T, int step = kLanes<T> / 2>
SPECTRAL_EXT_INLINE void transpose_in_registers(Vector<T>* rows) {
  if constexpr (step >= 1) {
    using Sequence = std::make_integer_sequence<int, kLanes<T>>;
    SPECTRAL_EXT_UNROLL
    for (int i = 0; i < kLanes<T>; ++i) {
      if (i & step) continue;
      const Vector<T> a = rows[i], b = rows[i + step];
      rows[i] = exchange<T, step, false>(a, b, Sequence{});
      rows[i + step] = exchange<T, step, true>(a, b, Sequence{});
    }
    transpose_in_registers<T, step / 2>(rows);
  }
}

}  // namespace
}  // namespace spectral_ext::cpu
