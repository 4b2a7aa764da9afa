// The leaf loops: loads, repacking of strided operands into [pixel][channel][lane], projections, sums.
// Included by rayleigh_quotients.cpp once an instruction set, inside a namespace of its own: no include guard.
// SIMD_BYTES is the vector width, TileWidths the tiles of directions that the registers hold.

template <class T>
constexpr int kLanes = SIMD_BYTES / sizeof(T);
template <class T>
using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <class T>
struct Simd {
  typedef T vec __attribute__((vector_size(SIMD_BYTES), may_alias));
  typedef Index<T> mask __attribute__((vector_size(SIMD_BYTES), may_alias));
};
template <class T>
using Vec = typename Simd<T>::vec;
template <class T>
using Mask = typename Simd<T>::mask;

// ---- loads of one vector from any element type

template <class S, class T, int N>
struct Load {
  typedef S from __attribute__((vector_size(N * sizeof(S))));
  static Vec<T> call(const S* p) {
    from v;
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, Vec<T>);
  }
};
template <class T, int N>
struct Load<T, T, N> {
  static Vec<T> call(const T* p) {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
};

template <int N, class U16 = uint16_t>
struct Bits {
  typedef U16 half __attribute__((vector_size(N * 2)));  // GCC checks conversions early unless the type is dependent
  typedef uint32_t word __attribute__((vector_size(N * 4)));
  typedef float real __attribute__((vector_size(N * 4)));
  static word read(const void* p) {
    half h;
    std::memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, word);
  }
};
template <class T, int N>
struct Load<BFloat16, T, N> {
  static Vec<T> call(const BFloat16* p) {
    return __builtin_convertvector((typename Bits<N>::real)(Bits<N>::read(p) << 16), Vec<T>);
  }
};
template <class T, int N>
struct Load<Half, T, N> {
  // 2^112 moves the exponent to float's bias, subnormals included; what lands at or above 65536 was infinity or NaN.
  static Vec<T> call(const Half* p) {
    using B = Bits<N>;
    typename B::word h = B::read(p), magnitude = (h & 0x7fffu) << 13;
    typename B::real scaled = (typename B::real)magnitude * 0x1p112f;
    typename B::word special = (typename B::word)(scaled >= 65536.0f) & 0x7f800000u;
    typename B::word bits = (typename B::word)scaled | special | ((h & 0x8000u) << 16);
    return __builtin_convertvector((typename B::real)bits, Vec<T>);
  }
};
template <class S, class T>
static inline Vec<T> load(const S* p) {
  return Load<S, T, kLanes<T>>::call(p);
}
template <class S, class T>
static T load_one(const S* p) {
  S block[kLanes<T>] = {*p};
  return load<S, T>(block)[0];
}

// ---- repacking into [pixel][channel][lane]

template <class T, int Step, bool Low, int... I>
static inline Vec<T> exchange(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  if constexpr (Low) {
    const Mask<T> pick = {((I & Step) ? n + I - Step : I)...};
    return __builtin_shuffle(a, b, pick);
  } else {
    const Mask<T> pick = {((I & Step) ? n + I : I + Step)...};
    return __builtin_shuffle(a, b, pick);
  }
}
template <class T, int Step>
static inline void transpose_steps(Vec<T>* r) {
  if constexpr (Step >= 1) {
    using Sequence = std::make_integer_sequence<int, kLanes<T>>;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if (i & Step) continue;
      const Vec<T> low = exchange<T, Step, true>(r[i], r[i + Step], Sequence{});
      r[i + Step] = exchange<T, Step, false>(r[i], r[i + Step], Sequence{});
      r[i] = low;
    }
    transpose_steps<T, Step / 2>(r);
  }
}

// Element e of every lane to to[e·step + lane], for `count` elements that are adjacent in memory.
template <class S, class T>
static void pack_adjacent(const S* const* lane, int64_t offset, int64_t count, T* to, int64_t step) {
  constexpr int L = kLanes<T>;
  Vec<T> r[L];
  int64_t e = 0;
  while (e < count) {
    if (count >= L) {
      e = std::min(e, count - L);  // the last block overlaps the one before
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) r[i] = load<S, T>(lane[i] + offset + e);
    } else {
      for (int i = 0; i < L; ++i) {
        S block[L] = {};
        std::memcpy(block, lane[i] + offset, count * sizeof(S));
        r[i] = load<S, T>(block);
      }
    }
    transpose_steps<T, L / 2>(r);
    const int64_t n = std::min<int64_t>(L, count - e);
    if (n == L) {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) *(Vec<T>*)(to + (e + i) * step) = r[i];
    } else {
      for (int64_t i = 0; i < n; ++i) *(Vec<T>*)(to + i * step) = r[i];
    }
    e += L;
  }
}

// Channels are pages apart, so that the hardware does not see the next one coming.
constexpr int64_t kPrefetchedChannels = 4;

// Pixel p, channel c to to[p·pixel_step + c·lanes + lane].
template <class S, class T>
static void pack_pixels(const S* const* lane, int64_t offset, int64_t pixels, int64_t pixel_stride, int64_t channels,
                        int64_t channel_stride, T* to, int64_t pixel_step) {
  constexpr int L = kLanes<T>;
  bool side_by_side = true;
  for (int i = 1; i < L; ++i) side_by_side &= lane[i] == lane[0] + i;
  if (side_by_side) {
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t c = 0; c < channels; ++c)
        *(Vec<T>*)(to + p * pixel_step + c * L) = load<S, T>(lane[0] + offset + p * pixel_stride + c * channel_stride);
  } else if (channel_stride == 1 && (pixel_stride != 1 || channels >= pixels)) {
    for (int64_t p = 0; p < pixels; ++p)
      pack_adjacent<S, T>(lane, offset + p * pixel_stride, channels, to + p * pixel_step, L);
  } else if (pixel_stride == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t ahead = offset + std::min(c + kPrefetchedChannels, channels - 1) * channel_stride;
      for (int64_t e = 0; e < pixels; e += 64 / sizeof(S))
        for (int i = 0; i < L; ++i) __builtin_prefetch(lane[i] + ahead + e);
      pack_adjacent<S, T>(lane, offset + c * channel_stride, pixels, to + c * L, pixel_step);
    }
  } else {
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t c = 0; c < channels; ++c)
        for (int i = 0; i < L; ++i)
          to[p * pixel_step + c * L + i] = load_one<S, T>(lane[i] + offset + p * pixel_stride + c * channel_stride);
  }
}

// ---- projections and sums

template <class T>
struct Run {
  const T* x;   // `length` vectors
  int64_t row;  // first row of the packed directions
  int64_t length;
};

// out[k][lane] = start_k + Σ over the runs' rows r of x_r[lane] · v[r][k]
template <class T, int KR>
static void project(const Run<T>* run, int64_t runs, const T* v, const T* start, T* out) {
  constexpr int L = kLanes<T>;
  constexpr int kChains = KR >= 8 ? 1 : KR >= 4 ? 2 : KR == 2 ? 4 : 8;  // enough sums to hide an addition's latency
  Vec<T> sum[kChains * KR];
#pragma GCC unroll 32
  for (int k = 0; k < KR; ++k) sum[k] = Vec<T>{} + (start ? start[k] : T(0));
#pragma GCC unroll 32
  for (int k = KR; k < kChains * KR; ++k) sum[k] = Vec<T>{};
  for (; runs > 0; --runs, ++run) {
    const T *x = run->x, *w = v + run->row * KR;
    int64_t i = 0;
    for (; i + kChains <= run->length; i += kChains, x += kChains * L, w += kChains * KR) {
#pragma GCC unroll 8
      for (int j = 0; j < kChains; ++j) {
        const Vec<T> value = *(const Vec<T>*)(x + j * L);
#pragma GCC unroll 32
        for (int k = 0; k < KR; ++k) sum[j * KR + k] += value * w[j * KR + k];
      }
    }
    for (; i < run->length; ++i, x += L, w += KR) {
      const Vec<T> value = *(const Vec<T>*)x;
#pragma GCC unroll 32
      for (int k = 0; k < KR; ++k) sum[k] += value * w[k];
    }
  }
#pragma GCC unroll 32
  for (int k = KR; k < kChains * KR; ++k) sum[k % KR] += sum[k];
#pragma GCC unroll 32
  for (int k = 0; k < KR; ++k) *(Vec<T>*)(out + k * L) = sum[k];
}

// Adds q², p², p²q² and pq over `count` positions to total[k][4][lane]; positions where a mask is 0 do not count.
template <class T, int KR, bool Masked>
static void reduce(const T* P, const T* Q, const Index<T>* masks, int count, double* total) {
  constexpr int L = kLanes<T>;
  for (int k = 0; k < KR; ++k, total += 4 * L) {
    Vec<T> sum[4] = {};
    for (int i = 0; i < count; ++i) {
      Vec<T> p = *(const Vec<T>*)(P + (i * KR + k) * L), q = *(const Vec<T>*)(Q + (i * KR + k) * L);
      if constexpr (Masked) {
        const Mask<T> valid = *(const Mask<T>*)(masks + i * L);
        p = (Vec<T>)((Mask<T>)p & valid);
        q = (Vec<T>)((Mask<T>)q & valid);
      }
      sum[3] += p * q;
      p *= p;
      q *= q;
      sum[0] += q;
      sum[1] += p;
      sum[2] += p * q;
    }
    for (int z = 0; z < 4; ++z)
      for (int l = 0; l < L; ++l) total[z * L + l] += sum[z][l];
  }
}

template <class T>
struct TileKernels {
  int width;
  void (*project)(const Run<T>*, int64_t, const T*, const T*, T*);
  void (*reduce)(const T*, const T*, const Index<T>*, int, double*);
  void (*reduce_masked)(const T*, const T*, const Index<T>*, int, double*);
};

template <class T, int... Widths>
static TileKernels<T> choose_kernels(int tile, std::integer_sequence<int, Widths...>) {
  TileKernels<T> chosen{};
  ((tile == Widths ? void(chosen = {Widths, &project<T, Widths>, &reduce<T, Widths, false>, &reduce<T, Widths, true>})
                   : void()),
   ...);
  return chosen;
}
