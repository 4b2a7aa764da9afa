#include "cpu/input_factor_depthwise.h"

#include <algorithm>

namespace spectral_ext::cpu {
namespace {

constexpr int64_t kPackedBytes = 2 << 20;  // packed at a time, unless one sample is more
constexpr int64_t kRun = 256;              // products summed in T before they are added to a double

}  // namespace

template <class T>
DepthwiseSums<T>::DepthwiseSums(const LagPlan& plan, const Input& input, const Context& context)
    : plan_(plan), context_(context), packing_(plan, input, false, true) {
  const int64_t batch = plan.geometry.batch, bytes = packing_.sample_numbers() * sizeof(T);
  samples_ = std::clamp<int64_t>(kPackedBytes / std::max<int64_t>(bytes, 1), 1, std::max<int64_t>(batch, 1));
  pieces_ = (batch + samples_ - 1) / samples_;
  packed_ = static_cast<T*>(context.allocate(samples_ * bytes));
  scratch_ = static_cast<T*>(context.allocate(context.parallel.threads * packing_.scratch_numbers() * sizeof(T)));
  sums_.assign((plan.regions + plan.sum_regions) * packing_.panels() * kPanel<T>, 0.0);
}

template <class T>
void DepthwiseSums<T>::run() {
  for (int64_t piece = 0; piece < pieces_; ++piece) {
    const int64_t first = piece * samples_, samples = std::min(samples_, plan_.geometry.batch - first);
    context_.parallel(context_.parallel.threads, [&](int64_t thread) {
      for (int64_t s = samples * thread / context_.parallel.threads;
           s < samples * (thread + 1) / context_.parallel.threads; ++s)
        packing_.pack(0, first + s, packed_, s, samples, scratch_ + thread * packing_.scratch_numbers());
    });
    context_.parallel(context_.parallel.threads, [&](int64_t thread) {
      for (int64_t panel = thread; panel < packing_.panels(); panel += context_.parallel.threads) add(piece, panel);
    });
  }
}

template <class T>
void DepthwiseSums<T>::add(int64_t piece, int64_t panel) {
  const int64_t samples = std::min(samples_, plan_.geometry.batch - piece * samples_);
  const Kernels<T>& kernel = kernels<T>();
  alignas(64) T partial[kPanel<T>];
  const auto flush = [&](int64_t region) {
    double* to = sums_.data() + (region * packing_.panels() + panel) * kPanel<T>;
    for (int l = 0; l < kPanel<T>; ++l) to[l] += partial[l], partial[l] = T(0);
  };
  std::fill(partial, partial + kPanel<T>, T(0));
  for (const LagClass& c : plan_.classes) {
    const AxisClass &c0 = plan_.axis_class(c, 0), &c1 = plan_.axis_class(c, 1), &c2 = plan_.axis_class(c, 2);
    const int64_t fa = packing_.phase(c0.phase_a, c1.phase_a, c2.phase_a);
    const int64_t fb = packing_.phase(c0.phase_b, c1.phase_b, c2.phase_b);
    const T* a = packed_ + packing_.offset(fa, samples) + panel * packing_.panel_stride(fa) * samples;
    const T* b = packed_ + packing_.offset(fb, samples) + panel * packing_.panel_stride(fb) * samples;
    int64_t region = c.first_region;
    for (const Segment& s0 : c0.segments)
      for (const Segment& s1 : c1.segments)
        for (const Segment& s2 : c2.segments) {
          int64_t pending = 0;
          for (int64_t u0 = s0.begin; u0 < s0.end; ++u0)
            for (int64_t u1 = s1.begin; u1 < s1.end; ++u1) {
              const int64_t at_a = packing_.pixel(fa, u0, u1, s2.begin) * samples;
              const int64_t at_b = packing_.pixel(fb, u0 + c0.lag, u1 + c1.lag, s2.begin + c2.lag) * samples;
              const int64_t count = (s2.end - s2.begin) * samples;
              for (int64_t k = 0; k < count; k += kRun) {
                const int64_t run = std::min(kRun, count - k);
                kernel.multiply_lanes(run, a + (at_a + k) * kPanel<T>, b + (at_b + k) * kPanel<T>, partial);
                if ((pending += run) >= kRun) flush(region), pending = 0;
              }
            }
          flush(region++);
        }
  }
  for (const LagSum& s : plan_.sums) {
    const AxisSum &c0 = plan_.axis_sum(s, 0), &c1 = plan_.axis_sum(s, 1), &c2 = plan_.axis_sum(s, 2);
    const int64_t f = packing_.phase(c0.phase, c1.phase, c2.phase);
    const T* a = packed_ + packing_.offset(f, samples) + panel * packing_.panel_stride(f) * samples;
    int64_t region = plan_.regions + s.first_region;
    for (const Segment& s0 : c0.segments)
      for (const Segment& s1 : c1.segments)
        for (const Segment& s2 : c2.segments) {
          for (int64_t u0 = s0.begin; u0 < s0.end; ++u0)
            for (int64_t u1 = s1.begin; u1 < s1.end; ++u1)
              for (int64_t u2 = s2.begin; u2 < s2.end; ++u2) {
                kernel.sum(samples, a + packing_.pixel(f, u0, u1, u2) * samples * kPanel<T>, partial);
                flush(region);
              }
          ++region;
        }
  }
}

template <class T>
void DepthwiseSums<T>::expand(Update update, T* out) const {
  const Geometry& g = plan_.geometry;
  const BlockTable table(plan_);
  const int64_t n = g.n();
  const double positions = static_cast<double>(g.batch) * static_cast<double>(g.positions());
  context_.parallel(context_.parallel.threads, [&](int64_t thread) {
    std::vector<double> factor(n * n);
    for (int64_t c = g.groups * thread / context_.parallel.threads;
         c < g.groups * (thread + 1) / context_.parallel.threads; ++c) {
      std::fill(factor.begin(), factor.end(), 0.0);
      for (const auto& block : table.blocks) {
        double total = 0;
        for (int64_t r = block.first; r < block.last; ++r) total += region(table.regions[r], c);
        factor[block.tap_a * n + block.tap_b] = factor[block.tap_b * n + block.tap_a] = total;
      }
      for (const auto& sum : table.sums) {
        double total = 0;
        for (int64_t r = sum.first; r < sum.last; ++r) total += region(plan_.regions + table.sum_regions[r], c);
        factor[sum.tap * n + n - 1] = factor[(n - 1) * n + sum.tap] = total;
      }
      if (g.bias) factor[n * n - 1] = positions;
      T* to = out + c * n * n;
      for (int64_t i = 0; i < n * n; ++i)
        to[i] = static_cast<T>(update.scale * factor[i] + (update.beta == 0 ? 0.0 : update.beta * to[i]));
    }
  });
}

template <class T>
void DepthwiseSums<T>::store(Update update, T* state) const {
  const Geometry& g = plan_.geometry;
  const double positions = static_cast<double>(g.batch) * static_cast<double>(g.positions());
  for (int64_t c = 0; c < g.groups; ++c)
    for (int64_t r = 0; r < plan_.group_state_size(); ++r, ++state) {
      const double sum = r < plan_.regions + plan_.sum_regions ? region(r, c) : positions;
      *state = static_cast<T>(update.scale * sum + (update.beta == 0 ? 0.0 : update.beta * *state));
    }
}

template class DepthwiseSums<float>;
template class DepthwiseSums<double>;

}  // namespace spectral_ext::cpu
