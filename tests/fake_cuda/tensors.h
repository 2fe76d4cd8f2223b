// Tensors on the stand-in's device, and the same memory as tensors that libtorch computes with: of the CPU, or, where nothing is to be
// computed, of the device "meta", which knows shapes alone.
#pragma once
#include "memory.h"
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>

namespace fake_cuda {
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline bool is_here(const Tensor &xs) { return xs.defined() && xs.is_cuda(); }

inline const char *begin_of(const Tensor &xs) {
  return static_cast<const char *>(xs.storage().data()) + xs.storage_offset() * static_cast<int64_t>(xs.element_size());
}

inline const char *end_of(const Tensor &xs) {
  int64_t last = 0;
  for (int64_t i = 0; i < xs.dim(); ++i) last += (xs.size(i) - 1) * xs.stride(i);
  return begin_of(xs) + (last + 1) * static_cast<int64_t>(xs.element_size());
}

inline void touch(const Tensor &xs, bool writes, const std::string &what) {
  if (is_here(xs) && xs.numel()) Memory::all().touch(begin_of(xs), end_of(xs), writes, what);
}

// The same numbers for libtorch's own kernels.
inline Tensor host(const Tensor &xs) {
  if (!is_here(xs)) return xs;
  const auto options = at::TensorOptions(xs.scalar_type()).device(settings().computes ? at::kCPU : at::kMeta);
  if (!settings().computes || xs.numel() == 0) return at::empty_strided(xs.sizes(), xs.strides(), options);
  return at::from_blob(const_cast<char *>(begin_of(xs)), xs.sizes(), xs.strides(), [](void *) {}, options);
}

inline Tensor made(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType kind) {
  return at::detail::empty_strided_generic(sizes, strides, &Memory::all(), c10::DispatchKeySet(c10::DispatchKey::CUDA), kind);
}

inline Tensor made(at::IntArrayRef sizes, at::ScalarType kind, std::optional<at::MemoryFormat> format = std::nullopt) {
  return at::detail::empty_generic(sizes, &Memory::all(), c10::DispatchKeySet(c10::DispatchKey::CUDA), kind, format);
}

// What libtorch's kernels have made, on the device, laid out as it lies.
inline Tensor here(const Tensor &xs, const std::string &what = "a result") {
  if (!xs.defined() || is_here(xs)) return xs;
  const Tensor dense = xs.is_non_overlapping_and_dense() ? xs : xs.contiguous();
  const Tensor out = made(dense.sizes(), dense.strides(), dense.scalar_type());
  touch(out, true, what);
  if (dense.numel() && !dense.is_meta()) memcpy(const_cast<char *>(begin_of(out)), dense.const_data_ptr(), dense.nbytes());
  return out;
}
} // namespace fake_cuda
