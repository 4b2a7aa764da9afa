// What a convolution reads: sizes, taps and where they fall. Torch-free; host code only.
#pragma once
#include <array>
#include <cstdint>

namespace spectral_ext {

constexpr int kAxes = 3;  // depth, height, width; a convolution with fewer axes leaves the leading ones trivial

constexpr int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

// One spatial axis. Tap i of output position y reads input h where h·up = y·down + offset(i), if that h is an integer
// inside [0, size): a convolution has up = 1 and down = stride, a transposed convolution up = stride and down = 1.
struct Axis {
  int64_t size = 1, kernel = 1, stride = 1, padding = 0, dilation = 1, output_padding = 0;
  bool transposed = false;

  int64_t up() const { return transposed ? stride : 1; }
  int64_t down() const { return transposed ? 1 : stride; }
  int64_t offset(int64_t tap) const { return transposed ? padding - tap * dilation : tap * dilation - padding; }
  int64_t extent() const { return dilation * (kernel - 1) + 1; }
  // Output positions; below 1 where the geometry leaves no output.
  int64_t positions() const {
    if (transposed) return (size - 1) * stride - 2 * padding + extent() + output_padding;
    return floor_div(size + 2 * padding - extent(), stride) + 1;
  }
  bool trivial() const { return kernel == 1 && stride == 1 && padding == 0 && output_padding == 0; }
};

// A layer's input: x is (batch, channels, axes…). A linear layer has trivial axes of size 1 and one row a sample.
struct Geometry {
  int64_t batch = 0, channels = 1, groups = 1;
  std::array<Axis, kAxes> axes;
  bool bias = false;

  int64_t group_channels() const { return channels / groups; }
  int64_t positions() const { return axes[0].positions() * axes[1].positions() * axes[2].positions(); }
  int64_t taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
  // Side of one group's factor.
  int64_t n() const { return group_channels() * taps() + bias; }
};

}  // namespace spectral_ext
