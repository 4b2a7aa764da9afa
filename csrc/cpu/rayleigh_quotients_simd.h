// The leaf loops: repacking of strided operands into [pixel][channel][lane], projections, sums. Compiled once per
// instruction set: see cpu/simd_vectors.h.

namespace spectral_ext::cpu {
namespace {

// The sums of a tile of directions are one register each: 32 registers hold 24 of them, 16 hold 12.
using NarrowTiles = std::integer_sequence<int, 1, 2, 4, 6, 8, 10, 12>;
using WideTiles = std::integer_sequence<int, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24>;
using TileWidths = std::conditional_t<kVectorBytes == 64, WideTiles, NarrowTiles>;

template <int... Widths>
constexpr int widest_tile(std::integer_sequence<int, Widths...>) {
  int widest = 0;
  ((widest = Widths), ...);
  return widest;
}

// ---- repacking into [pixel][channel][lane]

// Element e of every lane to to[e·step + lane], for `count` elements that are adjacent in memory.
template <class S, class T>
void pack_adjacent(const S* const* lane, int64_t offset, int64_t count, T* to, int64_t step) {
  constexpr int L = kLanes<T>;
  Vector<T> r[L];
  int64_t e = 0;
  while (e < count) {
    if (count >= L) {
      e = std::min(e, count - L);  // the last block overlaps the one before
      SPECTRAL_EXT_UNROLL
      for (int i = 0; i < L; ++i) r[i] = load_as<T>(lane[i] + offset + e);
    } else {
      for (int i = 0; i < L; ++i) {
        S block[L] = {};
        std::memcpy(block, lane[i] + offset, count * sizeof(S));
        r[i] = load_as<T>(block);
      }
    }
    transpose_in_registers<T>(r);
    const int64_t n = std::min<int64_t>(L, count - e);
    if (n == L) {
      SPECTRAL_EXT_UNROLL
      for (int i = 0; i < L; ++i) store_aligned<T>(to + (e + i) * step, r[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) store_aligned<T>(to + i * step, r[i]);
    }
    e += L;
  }
}

// Channels are pages apart, so that the hardware does not see the next one coming.
constexpr int64_t kPrefetchedChannels = 4;

// Pixel p, channel c to to[p·pixel_step + c·lanes + lane].
template <class S, class T>
void pack_pixels(const S* const* lane, int64_t offset, int64_t pixels, int64_t pixel_stride, int64_t channels,
                 int64_t channel_stride, T* to, int64_t pixel_step) {
  constexpr int L = kLanes<T>;
  bool side_by_side = true;
  for (int i = 1; i < L; ++i) side_by_side &= lane[i] == lane[0] + i;
  if (side_by_side) {
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t c = 0; c < channels; ++c)
        store_aligned<T>(to + p * pixel_step + c * L,
                         load_as<T>(lane[0] + offset + p * pixel_stride + c * channel_stride));
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
          to[p * pixel_step + c * L + i] = convert<T>(lane[i][offset + p * pixel_stride + c * channel_stride]);
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
void project(const Run<T>* run, int64_t runs, const T* v, const T* start, T* out) {
  constexpr int L = kLanes<T>;
  constexpr int kChains = KR >= 8 ? 1 : KR >= 4 ? 2 : KR == 2 ? 4 : 8;  // enough sums to hide an addition's latency
  Vector<T> sum[kChains * KR];
  SPECTRAL_EXT_UNROLL
  for (int k = 0; k < KR; ++k) sum[k] = Vector<T>{} + (start ? start[k] : T(0));
  SPECTRAL_EXT_UNROLL
  for (int k = KR; k < kChains * KR; ++k) sum[k] = Vector<T>{};
  for (; runs > 0; --runs, ++run) {
    const T *x = run->x, *w = v + run->row * KR;
    int64_t i = 0;
    for (; i + kChains <= run->length; i += kChains, x += kChains * L, w += kChains * KR) {
      SPECTRAL_EXT_UNROLL
      for (int j = 0; j < kChains; ++j) {
        const Vector<T> value = load_aligned(x + j * L);
        SPECTRAL_EXT_UNROLL
        for (int k = 0; k < KR; ++k) sum[j * KR + k] += value * w[j * KR + k];
      }
    }
    for (; i < run->length; ++i, x += L, w += KR) {
      const Vector<T> value = load_aligned(x);
      SPECTRAL_EXT_UNROLL
      for (int k = 0; k < KR; ++k) sum[k] += value * w[k];
    }
  }
  SPECTRAL_EXT_UNROLL
  for (int k = KR; k < kChains * KR; ++k) sum[k % KR] += sum[k];
  SPECTRAL_EXT_UNROLL
  for (int k = 0; k < KR; ++k) store_aligned<T>(out + k * L, sum[k]);
}

// Adds q², p², p²q² and pq over `count` positions to total[k][4][lane]; positions where a mask is 0 do not count.
template <class T, int KR, bool Masked>
void reduce(const T* P, const T* Q, const MaskLane<T>* masks, int count, double* total) {
  constexpr int L = kLanes<T>;
  for (int k = 0; k < KR; ++k, total += 4 * L) {
    Vector<T> sum[4] = {};
    for (int i = 0; i < count; ++i) {
      Vector<T> p = load_aligned(P + (i * KR + k) * L), q = load_aligned(Q + (i * KR + k) * L);
      if constexpr (Masked) {
        const Mask<T> valid = load_aligned(masks + i * L);
        p = (Vector<T>)((Mask<T>)p & valid);
        q = (Vector<T>)((Mask<T>)q & valid);
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
  void (*reduce)(const T*, const T*, const MaskLane<T>*, int, double*);
  void (*reduce_masked)(const T*, const T*, const MaskLane<T>*, int, double*);
};

template <class T, int... Widths>
TileKernels<T> choose_kernels(int tile, std::integer_sequence<int, Widths...>) {
  TileKernels<T> chosen{};
  ((tile == Widths ? void(chosen = {Widths, &project<T, Widths>, &reduce<T, Widths, false>, &reduce<T, Widths, true>})
                   : void()),
   ...);
  return chosen;
}

}  // namespace
}  // namespace spectral_ext::cpu
