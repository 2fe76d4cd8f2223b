// On processors without units for bfloat16 or float16 libtorch's products of them are loops over single numbers, ten to a hundred
// times as slow as float32's (measured on AVX2), and so are its products of int8 without VNNI. Here such processors get kernels
// that convert the operands of one operation to float32 and its result back: what is kept stays in the narrow dtype. They are
// registered in the place of libtorch's kernels for the CPU, below autograd, so that gradients take them too. Where the processor
// has the units, nothing is registered.
#include "quiet_registration.h"
#include "shim.h"
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cpu/Utils.h>
#include <ATen/ops/_int_mm_cpu_dispatch.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward_cpu_dispatch.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_cpu_dispatch.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/baddbmm_cpu_dispatch.h>
#include <ATen/ops/bmm_cpu_dispatch.h>
#include <ATen/ops/convolution_backward_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/convolution_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/mm_cpu_dispatch.h>

namespace {
using at::OptionalSymIntArrayRef;
using at::SymIntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Up to so many rows libtorch's loops read a transposed matrix faster than it is converted.
constexpr int64_t kFewRows = 4;
// Sums of so many products of two int8 numbers are exact in float32: 2^7 * 2^7 * 2^10 = 2^24.
constexpr int64_t kExactProducts = 1024;

// libtorch's own checks, by which its kernels are chosen.
bool libtorch_says(const char *name) {
  const auto op = c10::Dispatcher::singleton().findSchema({name, ""});
  return op && op->typed<bool()>().call();
}

bool has_bfloat16() {
  static const bool has = libtorch_says("mkldnn::_is_mkldnn_bf16_supported");
  return has;
}

bool has_float16() {
  static const bool has = libtorch_says("mkldnn::_is_mkldnn_fp16_supported");
  return has;
}

bool is_slow(const Tensor &xs) {
  return (xs.scalar_type() == at::kBFloat16 && !has_bfloat16()) || (xs.scalar_type() == at::kHalf && !has_float16());
}

// Mixed dtypes are left to libtorch, which refuses them.
bool are_slow(const Tensor &a, const Tensor &b) { return is_slow(a) && a.scalar_type() == b.scalar_type(); }

bool is_slow_product(const Tensor &a, const Tensor &b) {
  const bool dots_of_lines = a.size(-2) <= kFewRows && b.stride(-2) == 1;
  return are_slow(a, b) && !dots_of_lines;
}

Tensor wide(const Tensor &xs) { return xs.to(at::kFloat); }

OptionalTensor wide(const OptionalTensor &xs) {
  return xs && xs->defined() && xs->is_floating_point() ? OptionalTensor(wide(*xs)) : xs;
}

Tensor mm(const Tensor &a, const Tensor &b) {
  if (a.dim() != 2 || b.dim() != 2 || !is_slow_product(a, b)) return at::cpu::mm(a, b);
  return at::cpu::mm(wide(a), wide(b)).to(a.scalar_type());
}

Tensor bmm(const Tensor &a, const Tensor &b) {
  if (a.dim() != 3 || b.dim() != 3 || !is_slow_product(a, b)) return at::cpu::bmm(a, b);
  return at::cpu::bmm(wide(a), wide(b)).to(a.scalar_type());
}

Tensor addmm(const Tensor &added, const Tensor &a, const Tensor &b, const at::Scalar &beta, const at::Scalar &alpha) {
  if (a.dim() != 2 || b.dim() != 2 || !are_slow(added, a) || !is_slow_product(a, b))
    return at::cpu::addmm(added, a, b, beta, alpha);
  return at::cpu::addmm(wide(added), wide(a), wide(b), beta, alpha).to(a.scalar_type());
}

Tensor &addmm_(Tensor &sum, const Tensor &a, const Tensor &b, const at::Scalar &beta, const at::Scalar &alpha) {
  if (a.dim() != 2 || b.dim() != 2 || !are_slow(sum, a) || !is_slow_product(a, b))
    return at::cpu::addmm_(sum, a, b, beta, alpha);
  return sum.copy_(at::cpu::addmm(wide(sum), wide(a), wide(b), beta, alpha));
}

Tensor baddbmm(const Tensor &added, const Tensor &a, const Tensor &b, const at::Scalar &beta, const at::Scalar &alpha) {
  if (a.dim() != 3 || b.dim() != 3 || !are_slow(added, a) || !is_slow_product(a, b))
    return at::cpu::baddbmm(added, a, b, beta, alpha);
  return at::cpu::baddbmm(wide(added), wide(a), wide(b), beta, alpha).to(a.scalar_type());
}

Tensor convolution(const Tensor &xs, const Tensor &weight, const OptionalTensor &bias, SymIntArrayRef stride,
                   SymIntArrayRef padding, SymIntArrayRef dilation, bool transposed, SymIntArrayRef output_padding,
                   c10::SymInt groups) {
  const auto convolve = [&](const Tensor &xs, const Tensor &weight, const OptionalTensor &bias) {
    return at::compositeexplicitautograd::convolution_symint(xs, weight, bias, stride, padding, dilation, transposed,
                                                             output_padding, groups);
  };
  if (!are_slow(xs, weight)) return convolve(xs, weight, bias);
  return convolve(wide(xs), wide(weight), wide(bias)).to(xs.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor &grad, const Tensor &xs, const Tensor &weight,
                                                        OptionalSymIntArrayRef bias, SymIntArrayRef stride,
                                                        SymIntArrayRef padding, SymIntArrayRef dilation, bool transposed,
                                                        SymIntArrayRef output_padding, c10::SymInt groups,
                                                        std::array<bool, 3> wanted) {
  const auto differentiate = [&](const Tensor &grad, const Tensor &xs, const Tensor &weight) {
    return at::compositeexplicitautograd::convolution_backward_symint(grad, xs, weight, bias, stride, padding, dilation,
                                                                      transposed, output_padding, groups, wanted);
  };
  if (!are_slow(xs, weight)) return differentiate(grad, xs, weight);
  auto [of_xs, of_weight, of_bias] = differentiate(wide(grad), wide(xs), wide(weight));
  const auto narrow = [&](const Tensor &xs) { return xs.defined() ? xs.to(weight.scalar_type()) : xs; };
  return {narrow(of_xs), narrow(of_weight), narrow(of_bias)};
}

std::tuple<Tensor, Tensor> attention(const Tensor &q, const Tensor &k, const Tensor &v, double dropout, bool causal,
                                     const OptionalTensor &mask, std::optional<double> scale) {
  namespace cpu = at::cpu;
  if (!is_slow(q)) return cpu::_scaled_dot_product_flash_attention_for_cpu(q, k, v, dropout, causal, mask, scale);
  auto [ys, log_sums] = cpu::_scaled_dot_product_flash_attention_for_cpu(wide(q), wide(k), wide(v), dropout, causal,
                                                                         wide(mask), scale);
  return {ys.to(q.scalar_type()), log_sums};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor &grad, const Tensor &q, const Tensor &k, const Tensor &v,
                                                      const Tensor &ys, const Tensor &log_sums, double dropout, bool causal,
                                                      const OptionalTensor &mask, std::optional<double> scale) {
  namespace cpu = at::cpu;
  if (!is_slow(q))
    return cpu::_scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, ys, log_sums, dropout, causal, mask,
                                                                     scale);
  auto [of_q, of_k, of_v] = cpu::_scaled_dot_product_flash_attention_for_cpu_backward(
      wide(grad), wide(q), wide(k), wide(v), wide(ys), log_sums, dropout, causal, wide(mask), scale);
  const auto kind = q.scalar_type();
  return {of_q.to(kind), of_k.to(kind), of_v.to(kind)};
}

// Exact: part sums are whole numbers that float32 has.
Tensor int_mm(const Tensor &a, const Tensor &b) {
  const bool is_product = a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0) && a.scalar_type() == at::kChar &&
                          b.scalar_type() == at::kChar && a.size(1) > 0;
  if (!is_product) return at::cpu::_int_mm(a, b);
  const int64_t length = a.size(1);
  Tensor sum;
  for (int64_t start = 0; start < length; start += kExactProducts) {
    const int64_t count = std::min(kExactProducts, length - start);
    const auto part = at::cpu::mm(wide(a.narrow(1, start, count)), wide(b.narrow(0, start, count))).to(at::kInt);
    sum = sum.defined() ? sum.add_(part) : part;
  }
  return sum;
}

torch::Library *register_kernels() {
  const QuietRegistration quiet;
  auto *library = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__);
  if (!at::cpu::is_avx512_vnni_supported()) library->impl("_int_mm", TORCH_FN(int_mm));
  if (has_bfloat16() && has_float16()) return library;
  library->impl("mm", TORCH_FN(mm));
  library->impl("bmm", TORCH_FN(bmm));
  library->impl("addmm", TORCH_FN(addmm));
  library->impl("addmm_", TORCH_FN(addmm_));
  library->impl("baddbmm", TORCH_FN(baddbmm));
  library->impl("convolution", TORCH_FN(convolution));
  library->impl("convolution_backward", TORCH_FN(convolution_backward));
  library->impl("_scaled_dot_product_flash_attention_for_cpu", TORCH_FN(attention));
  library->impl("_scaled_dot_product_flash_attention_for_cpu_backward", TORCH_FN(attention_backward));
  return library;
}

// As libtorch's own kernels are: while the program is loaded. They stay for as long as the process lives.
[[maybe_unused]] const torch::Library *const kernels = register_kernels();
} // namespace

// Whether the processor has units for products in bfloat16 (else float16).
extern "C" bool lorabooth_has_half_units(bool bfloat16) { return bfloat16 ? has_bfloat16() : has_float16(); }
