#include "cpu/input_factor_pack.h"

#include <algorithm>
#include <cstring>

namespace spectral_ext::cpu {
namespace {

bool same_type(const Input& input) { return input.type == Scalar::kFloat || input.type == Scalar::kDouble; }

}  // namespace

template <class T>
Packing<T>::Packing(const LagPlan& plan, const Input& input, bool channels_last_order, bool depthwise)
    : plan_(plan),
      input_(input),
      element_(same_type(input) ? sizeof(T) : 2),
      channels_(depthwise ? plan.geometry.channels : plan.channels),
      panels_((channels_ + kPanel<T> - 1) / kPanel<T>),
      folded_(plan.folded[0] || plan.folded[1] || plan.folded[2]) {
  const auto& axes = plan.axes;
  phases_.resize(axes[0].phases * axes[1].phases * axes[2].phases);
  for (size_t f = 0; f < phases_.size(); ++f) {
    Phase& p = phases_[f];
    const int64_t i = static_cast<int64_t>(f);
    p.f = {i / (axes[1].phases * axes[2].phases), i / axes[2].phases % axes[1].phases, i % axes[2].phases};
    p.pixels = 1, p.used = false;
    for (int a = 0; a < kAxes; ++a) p.pixels *= p.length[a] = axes[a].length(p.f[a]);
  }
  const auto use = [&](const auto& one, bool second) {
    phases_[second ? phase(one[0]->phase_b, one[1]->phase_b, one[2]->phase_b)
                   : phase(one[0]->phase_a, one[1]->phase_a, one[2]->phase_a)]
        .used = true;
  };
  for (const LagClass& c : plan.classes) {
    const std::array<const AxisClass*, kAxes> one = {&plan.axis_class(c, 0), &plan.axis_class(c, 1),
                                                     &plan.axis_class(c, 2)};
    use(one, false), use(one, true);
  }
  for (Phase& p : phases_)
    if (p.used) {
      p.offset = sample_numbers_;
      sample_numbers_ += panels_ * p.pixels * kPanel<T>;
      row_ = std::max(row_, p.length[2]);
    }
  whole_rows_ = same_type(input) && !folded_ && phases_.size() == 1 && input.strides[2] == 1;
  const std::array<int64_t, kAxes> kernel = [&] {
    std::array<int64_t, kAxes> k;
    for (int a = 0; a < kAxes; ++a) k[a] = plan.folded[a] ? plan.geometry.axes[a].kernel : 1;
    return k;
  }();
  const int64_t taps = kernel[0] * kernel[1] * kernel[2], per_tap = channels_ / taps;
  for (int64_t v = 0; v < channels_; ++v) {
    const int64_t tap = channels_last_order ? v / per_tap : v % taps;
    lanes_.push_back({channels_last_order ? v % per_tap : v / taps,
                      {tap / (kernel[1] * kernel[2]), tap / kernel[2] % kernel[1], tap % kernel[2]}});
  }
}

template <class T>
void Packing<T>::pack(int64_t group, int64_t sample, T* buffer, int64_t slot, int64_t samples, T* scratch) const {
  const char* from =
      static_cast<const char*>(input_.data) +
      (sample * input_.batch_stride + group * plan_.geometry.group_channels() * input_.channel_stride) * element_;
  for (const Phase& phase : phases_) {
    if (!phase.used) continue;
    T* to = buffer + phase.offset * samples + slot * kPanel<T>;
    if (input_.channel_stride == 1 && !folded_)
      pack_pixels(phase, from, to, samples);
    else if (whole_rows_)
      pack_plane(phase, reinterpret_cast<const T*>(from), to, samples);
    else
      pack_rows(phase, from, to, samples, scratch);
  }
}

// Pixels in memory order: transpose straight from the input, rows joined where they touch.
template <class T>
void Packing<T>::pack_plane(const Phase& phase, const T* from, T* to, int64_t samples) const {
  const auto& length = phase.length;
  int64_t count = length[2], rows = length[1], planes = length[0];
  if (input_.strides[1] == count || rows == 1) count *= rows, rows = 1;
  if (rows == 1 && (input_.strides[0] == count || planes == 1)) count *= planes, planes = 1;
  const Kernels<T>& kernel = kernels<T>();
  for (int64_t p = 0; p < panels_; ++p) {
    const int lanes = static_cast<int>(std::min<int64_t>(kPanel<T>, channels_ - p * kPanel<T>));
    for (int64_t u0 = 0; u0 < planes; ++u0)
      for (int64_t u1 = 0; u1 < rows; ++u1) {
        const T* rows_of[kPanel<T>];
        for (int l = 0; l < lanes; ++l)
          rows_of[l] =
              from + (p * kPanel<T> + l) * input_.channel_stride + u0 * input_.strides[0] + u1 * input_.strides[1];
        kernel.transpose(rows_of, lanes, count,
                         to + (p * phase.pixels + (u0 * rows + u1) * count) * samples * kPanel<T>, samples * kPanel<T>);
      }
  }
}

// Channels in memory order: panels are copies.
template <class T>
void Packing<T>::pack_pixels(const Phase& phase, const char* from, T* to, int64_t samples) const {
  const auto load = kernels<T>().load[static_cast<int>(input_.type)];
  const auto& axes = plan_.axes;
  int64_t pixel = 0;
  for (int64_t u0 = 0; u0 < phase.length[0]; ++u0)
    for (int64_t u1 = 0; u1 < phase.length[1]; ++u1)
      for (int64_t u2 = 0; u2 < phase.length[2]; ++u2, ++pixel) {
        const char* x = from + element_ * ((u0 * axes[0].phases + phase.f[0]) * input_.strides[0] +
                                           (u1 * axes[1].phases + phase.f[1]) * input_.strides[1] +
                                           (u2 * axes[2].phases + phase.f[2]) * input_.strides[2]);
        for (int64_t p = 0; p < panels_; ++p) {
          T* out = to + (p * phase.pixels + pixel) * samples * kPanel<T>;
          const int64_t lanes = std::min<int64_t>(kPanel<T>, channels_ - p * kPanel<T>);
          load(x + p * kPanel<T> * element_, 1, lanes, out);
          std::fill(out + lanes, out + kPanel<T>, T(0));
        }
      }
}

// Any strides, phases and folded taps: a row of each lane into scratch, zeros where it reads the padding, then
// transpose.
template <class T>
void Packing<T>::pack_rows(const Phase& phase, const char* from, T* to, int64_t samples, T* scratch) const {
  const Kernels<T>& kernel = kernels<T>();
  const auto load = kernel.load[static_cast<int>(input_.type)];
  const auto& axes = plan_.axes;
  const int64_t width = phase.length[2];
  const T* rows_of[kPanel<T>];
  for (int l = 0; l < kPanel<T>; ++l) rows_of[l] = scratch + l * width;
  // Input index at position u of an axis, for a lane: u · step + start.
  const auto step = [&](int a) { return plan_.folded[a] ? plan_.geometry.axes[a].down() : axes[a].phases; };
  const auto start = [&](int a, const Lane& lane) {
    return plan_.folded[a] ? plan_.geometry.axes[a].offset(lane.tap[a]) : phase.f[a];
  };
  for (int64_t p = 0; p < panels_; ++p) {
    const int lanes = static_cast<int>(std::min<int64_t>(kPanel<T>, channels_ - p * kPanel<T>));
    for (int64_t u0 = 0; u0 < phase.length[0]; ++u0)
      for (int64_t u1 = 0; u1 < phase.length[1]; ++u1) {
        for (int l = 0; l < lanes; ++l) {
          const Lane& lane = lanes_[p * kPanel<T> + l];
          T* row = scratch + l * width;
          const int64_t h0 = u0 * step(0) + start(0, lane), h1 = u1 * step(1) + start(1, lane), s = step(2);
          int64_t begin = 0, end = 0;
          const int64_t first = start(2, lane), size = plan_.geometry.axes[2].size;
          if (h0 >= 0 && h0 < plan_.geometry.axes[0].size && h1 >= 0 && h1 < plan_.geometry.axes[1].size) {
            begin = std::clamp<int64_t>(ceil_div(-first, s), 0, width);
            end = std::clamp<int64_t>(floor_div(size - 1 - first, s) + 1, begin, width);
          }
          std::fill(row, row + begin, T(0)), std::fill(row + end, row + width, T(0));
          if (begin < end)
            load(from + element_ * (lane.channel * input_.channel_stride + h0 * input_.strides[0] +
                                    h1 * input_.strides[1] + (begin * s + first) * input_.strides[2]),
                 s * input_.strides[2], end - begin, row + begin);
        }
        kernel.transpose(rows_of, lanes, width,
                         to + (p * phase.pixels + (u0 * phase.length[1] + u1) * width) * samples * kPanel<T>,
                         samples * kPanel<T>);
      }
  }
}

template class Packing<float>;
template class Packing<double>;

}  // namespace spectral_ext::cpu
