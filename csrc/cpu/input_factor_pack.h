// One group's pixels as panels: [phase][panel][pixel of the phase][sample][kPanel], so that every lag is a run at an
// offset.
#pragma once
#include <vector>

#include "cpu/input_factor.h"

namespace spectral_ext::cpu {

template <class T>
class Packing {
 public:
  // The plan's channels are numbered as the patch order asks: folded tap slowest if channels_last_order, else fastest.
  // With depthwise, all groups (of one channel each) are packed as one group's channels.
  Packing(const LagPlan& plan, const Input& input, bool channels_last_order, bool depthwise);

  int64_t channels() const { return channels_; }
  int64_t panels() const { return panels_; }
  int64_t sample_numbers() const { return sample_numbers_; }  // packed numbers a sample

  // Start of a phase triple's panel 0, in a buffer of `samples` samples; a panel has panel_stride(phase) · samples
  // numbers.
  int64_t offset(int64_t phase, int64_t samples) const { return phases_[phase].offset * samples; }
  int64_t panel_stride(int64_t phase) const { return phases_[phase].pixels * kPanel<T>; }
  int64_t phase(int64_t f0, int64_t f1, int64_t f2) const {
    return (f0 * plan_.axes[1].phases + f1) * plan_.axes[2].phases + f2;
  }
  int64_t pixel(int64_t phase, int64_t u0, int64_t u1, int64_t u2) const {
    return (u0 * phases_[phase].length[1] + u1) * phases_[phase].length[2] + u2;
  }
  int64_t scratch_numbers() const { return row_ * kPanel<T>; }  // a thread

  // Packs sample `sample` of the batch as sample `slot` of `samples` in the buffer.
  void pack(int64_t group, int64_t sample, T* buffer, int64_t slot, int64_t samples, T* scratch) const;

 private:
  struct Phase {
    std::array<int64_t, kAxes> f, length;
    int64_t pixels, offset;
    bool used;
  };
  struct Lane {
    int64_t channel;
    std::array<int64_t, kAxes> tap;
  };
  void pack_plane(const Phase& phase, const T* from, T* to, int64_t samples) const;
  void pack_pixels(const Phase& phase, const char* from, T* to, int64_t samples) const;
  void pack_rows(const Phase& phase, const char* from, T* to, int64_t samples, T* scratch) const;

  const LagPlan& plan_;
  Input input_;
  int64_t element_, channels_, panels_, sample_numbers_ = 0, row_ = 0;
  bool folded_, whole_rows_;
  std::vector<Phase> phases_;
  std::vector<Lane> lanes_;
};

}  // namespace spectral_ext::cpu
