// One check for every tensor argument of every op, so that no kernel is handed memory that it must not touch.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace spectral_ext {

using torch::headeronly::ScalarType;

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return "another dtype";
  }
}

inline std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i)
    text += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  return text + ")";
}

inline std::vector<int64_t> shape_of(const torch::stable::Tensor& x) {
  std::vector<int64_t> shape(x.dim());
  for (int64_t i = 0; i < x.dim(); ++i) shape[i] = x.size(i);
  return shape;
}

inline bool same_device(const torch::stable::Device& a, const torch::stable::Device& b) {
  return a.type() == b.type() && (a.type() == torch::headeronly::DeviceType::CPU || a.index() == b.index());
}

// First and one past the last address that a tensor with elements reaches.
inline std::pair<uintptr_t, uintptr_t> memory_of(const torch::stable::Tensor& t) {
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  const auto first = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  return {first, first + (last + 1) * t.element_size()};
}

// The named argument lies on `device`, has one of `dtypes` and the shape, where −1 stands for any size, and its storage
// still holds its elements.
inline void check_tensor(const torch::stable::Tensor& t, std::initializer_list<ScalarType> dtypes,
                         const std::vector<int64_t>& shape, const char* name, const torch::stable::Device& device) {
  STD_TORCH_CHECK(t.defined(), name, " must be a tensor");
  STD_TORCH_CHECK(same_device(t.device(), device), name, " is on another device than the op runs on");
  std::string wanted;
  for (const ScalarType type : dtypes) wanted += (wanted.empty() ? "" : " or ") + std::string(name_of(type));
  STD_TORCH_CHECK(std::find(dtypes.begin(), dtypes.end(), t.scalar_type()) != dtypes.end(), name, " must be ", wanted,
                  ", not ", name_of(t.scalar_type()));
  const std::vector<int64_t> found = shape_of(t);
  bool fits = found.size() == shape.size();
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 || shape[i] == found[i];
  STD_TORCH_CHECK(fits, name, " must have shape ", text_of(shape), ", not ", text_of(found));
  if (t.numel() == 0) return;
  int64_t bytes = 0, end = t.storage_offset() + 1;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  for (int64_t i = 0; i < t.dim(); ++i) end += (t.size(i) - 1) * t.stride(i);
  STD_TORCH_CHECK(end * static_cast<int64_t>(t.element_size()) <= bytes, name, " reaches beyond its storage of ", bytes,
                  " bytes, which was resized");
}

inline void check_contiguous(const torch::stable::Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
}

// For a tensor that is written: no element shares memory with another one.
inline void check_no_self_overlap(const torch::stable::Tensor& t, const char* name) {
  std::vector<std::pair<int64_t, int64_t>> axes;
  for (int64_t i = 0; i < t.dim(); ++i)
    if (t.size(i) > 1) axes.emplace_back(t.stride(i), t.size(i));
  std::sort(axes.begin(), axes.end());
  int64_t reach = 0;
  for (const auto& [stride, size] : axes) {
    STD_TORCH_CHECK(stride > reach, name, " must not overlap itself: its elements share memory");
    reach += (size - 1) * stride;
  }
}

inline void check_no_overlap(const torch::stable::Tensor& a, const char* a_name, const torch::stable::Tensor& b,
                             const char* b_name) {
  if (a.numel() == 0 || b.numel() == 0) return;
  const auto first = memory_of(a), second = memory_of(b);
  STD_TORCH_CHECK(first.second <= second.first || second.second <= first.first, a_name, " overlaps the memory of ",
                  b_name, ": pass a tensor of its own");
}

}  // namespace spectral_ext
