// Numbers of 8 bits (e4m3) in a wider dtype, on the CPU: libtorch's own conversion there takes one number at a time through its bits.
#include "shim.h"
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <c10/util/Float8_e4m3fn.h>

namespace {
template <typename T> void expand(const uint8_t *codes, int64_t n, T *out) {
  T table[256];
  for (int i = 0; i < 256; ++i) table[i] = static_cast<T>(static_cast<float>(c10::Float8_e4m3fn(static_cast<uint8_t>(i), c10::Float8_e4m3fn::from_bits())));
  at::parallel_for(0, n, 1 << 15, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) out[i] = table[codes[i]];
  });
}
} // namespace

// What the codes, uint8 on the CPU that lie densely in any order, stand for, in `kind` and in the same order.
extern "C" char *lorabooth_fp8_expand(at::Tensor *codes, int32_t kind_in, at::Tensor **out) {
  return guarded([&] {
    const at::NoGradGuard no_grad;
    TORCH_CHECK(codes->is_cpu() && codes->scalar_type() == at::kByte && codes->is_non_overlapping_and_dense(), "codes of 8 bits that do not lie densely");
    const auto kind = static_cast<at::ScalarType>(kind_in);
    auto numbers = at::empty_strided(codes->sizes(), codes->strides(), codes->options().dtype(kind));
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, kind, "fp8_expand", [&] {
      expand(codes->const_data_ptr<uint8_t>(), codes->numel(), numbers.data_ptr<scalar_t>());
    });
    *out = new at::Tensor(numbers);
  });
}
