// What a card leaves to cuBLAS, cuDNN and the attention kernels, within their limits: products of 16-bit numbers are summed in float32.
#pragma once
#include "tensors.h"
#include <ATen/native/ConvUtils.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>

namespace fake_cuda {
// One launch that reads `inputs`, all on the device.
inline void launch(const std::string &name, std::initializer_list<Tensor> inputs) {
  for (const Tensor &xs : inputs)
    TORCH_CHECK(is_here(xs), "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (", name, ")");
  counts().launch(name);
  for (const Tensor &xs : inputs) touch(xs, false, name);
}

inline Tensor wide(const Tensor &xs) { return host(xs).to(at::kFloat); }

inline Tensor narrow(const Tensor &ys, const Tensor &like, const char *name) { return here(ys.to(like.scalar_type()), name); }

// ---- cuBLAS
inline void check_kinds(const Tensor &a, const Tensor &b) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), "expected mat1 and mat2 to have the same dtype, but got: ", a.scalar_type(), " != ", b.scalar_type());
}

inline Tensor mm(const Tensor &a, const Tensor &b) {
  check_kinds(a, b);
  launch("mm", {a, b});
  return narrow(at::mm(wide(a), wide(b)), a, "mm");
}

// Into columns of a wider matrix, too.
inline Tensor &mm_out(const Tensor &a, const Tensor &b, Tensor &ys) {
  check_kinds(a, b), check_kinds(ys, a);
  launch("mm", {a, b});
  touch(ys, true, "mm");
  if (settings().computes) host(ys).copy_(at::mm(wide(a), wide(b)));
  return ys;
}

inline Tensor bmm(const Tensor &a, const Tensor &b) {
  check_kinds(a, b);
  launch("bmm", {a, b});
  return narrow(at::bmm(wide(a), wide(b)), a, "bmm");
}

inline Tensor addmm(const Tensor &c, const Tensor &a, const Tensor &b, const at::Scalar &beta, const at::Scalar &alpha) {
  check_kinds(a, b), check_kinds(c, a);
  launch("addmm", {c, a, b});
  return narrow(at::addmm(wide(c), wide(a), wide(b), beta, alpha), a, "addmm");
}

// With a result in float32 of operands in 16 bits.
inline Tensor mm_wide(const Tensor &a, const Tensor &b, at::ScalarType kind) {
  check_kinds(a, b);
  TORCH_CHECK(kind == a.scalar_type() || kind == at::kFloat, "out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs");
  launch("mm", {a, b});
  return here(at::mm(wide(a), wide(b)).to(kind), "mm");
}

inline Tensor &addmm_(Tensor &c, const Tensor &a, const Tensor &b, const at::Scalar &beta, const at::Scalar &alpha) {
  check_kinds(a, b), check_kinds(c, a);
  launch("addmm_", {c, a, b});
  touch(c, true, "addmm_");
  if (settings().computes) host(c).copy_(at::addmm(wide(c), wide(a), wide(b), beta, alpha));
  return c;
}

inline Tensor baddbmm(const Tensor &c, const Tensor &a, const Tensor &b, const at::Scalar &beta, const at::Scalar &alpha) {
  check_kinds(a, b), check_kinds(c, a);
  launch("baddbmm", {c, a, b});
  return narrow(at::baddbmm(wide(c), wide(a), wide(b), beta, alpha), a, "baddbmm");
}

inline Tensor int_mm(const Tensor &a, const Tensor &b) {
  launch("_int_mm", {a, b});
  TORCH_CHECK(settings().major * 10 + settings().minor >= 75, "_int_mm needs compute capability 7.5");
  TORCH_CHECK(a.size(0) > 16, "self.size(0) needs to be greater than 16, but got ", a.size(0));
  TORCH_CHECK(a.size(1) > 0 && a.size(1) % 8 == 0, "self.size(1) needs to be greater than 0 and a multiple of 8, but got ", a.size(1));
  TORCH_CHECK(b.size(1) > 0 && b.size(1) % 8 == 0, "mat2.size(1) needs to be greater than 0 and a multiple of 8, but got ", b.size(1));
  if (!settings().computes) return made({a.size(0), b.size(1)}, at::kInt);
  return here(at::_int_mm(host(a), host(b)), "_int_mm");
}

// ---- cuDNN, which convolves in one layout: operands that lie in the other are copied first. While it searches for the fastest algorithm it takes
// large workspaces.
constexpr int64_t kWorkspace = 1 << 30;

inline Tensor convolve(const std::string &name, const Tensor &xs_, const Tensor &weight_, at::IntArrayRef padding, at::IntArrayRef output_padding,
                       at::IntArrayRef stride, at::IntArrayRef dilation, int64_t groups, bool transposed) {
  TORCH_CHECK(xs_.scalar_type() == weight_.scalar_type(), "Input type and weight type should be the same");
  TORCH_CHECK(xs_.scalar_type() != at::kBFloat16 || settings().major >= 8, "cuDNN convolves no bfloat16 below compute capability 8.0");
  const auto format = at::native::cudnn_conv_suggest_memory_format(xs_, weight_);
  const Tensor xs = xs_.contiguous(format), weight = weight_.contiguous(format);
  launch(name + (format == at::MemoryFormat::ChannelsLast ? " (channels last)" : ""), {xs, weight});
  if (at::globalContext().benchmarkCuDNN()) {
    counts().event("convolution searched");
    made({kWorkspace}, at::kByte);
  }
  if (settings().computes) {
    const Tensor ys = at::convolution(wide(xs), wide(weight), {}, stride, padding, dilation, transposed, output_padding, groups);
    return here(ys.to(xs.scalar_type()).contiguous(format), name);
  }
  std::vector<int64_t> sizes{xs.size(0), transposed ? weight.size(1) * groups : weight.size(0)};
  for (size_t i = 0; i < padding.size(); ++i) {
    const int64_t in = xs.size(2 + i), span = dilation[i] * (weight.size(2 + i) - 1) + 1;
    sizes.push_back(transposed ? (in - 1) * stride[i] - 2 * padding[i] + span + output_padding[i] : (in + 2 * padding[i] - span) / stride[i] + 1);
  }
  return made(sizes, xs.scalar_type(), format);
}

inline Tensor cudnn_convolution(const Tensor &xs, const Tensor &weight, at::IntArrayRef padding, at::IntArrayRef stride, at::IntArrayRef dilation,
                                int64_t groups, bool, bool, bool) {
  const std::vector<int64_t> none(padding.size(), 0);
  return convolve("cudnn_convolution", xs, weight, padding, none, stride, dilation, groups, false);
}

inline Tensor cudnn_convolution_transpose(const Tensor &xs, const Tensor &weight, at::IntArrayRef padding, at::IntArrayRef output_padding,
                                          at::IntArrayRef stride, at::IntArrayRef dilation, int64_t groups, bool, bool, bool) {
  return convolve("cudnn_convolution_transpose", xs, weight, padding, output_padding, stride, dilation, groups, true);
}

// Where the weight learns too.
inline std::tuple<Tensor, Tensor> cudnn_convolution_backward(const Tensor &xs_, const Tensor &grad_, const Tensor &weight_, at::IntArrayRef padding,
                                                             at::IntArrayRef stride, at::IntArrayRef dilation, int64_t groups, bool, bool, bool,
                                                             std::array<bool, 2> wanted) {
  const auto format = at::native::cudnn_conv_suggest_memory_format(xs_, weight_);
  const Tensor xs = xs_.contiguous(format), grad = grad_.contiguous(format), weight = weight_.contiguous(format);
  for (const bool one : wanted)
    if (one) launch("cudnn_convolution_backward", {xs, grad, weight});
  if (!settings().computes) return {wanted[0] ? at::empty_like(xs) : Tensor(), wanted[1] ? at::empty_like(weight) : Tensor()};
  const std::vector<int64_t> none(padding.size(), 0);
  const auto [of_xs, of_weight, of_bias] = at::convolution_backward(wide(grad), wide(xs), wide(weight), std::nullopt, stride, padding, dilation, false, none,
                                                                    groups, {wanted[0], wanted[1], false});
  const auto back = [&](const Tensor &ys) { return ys.defined() ? here(ys.to(xs.scalar_type()).contiguous(format), "cudnn_convolution_backward") : ys; };
  return {back(of_xs), back(of_weight)};
}

// ---- attention
// Which kernel serves, as sdp_utils.cpp chooses: flash from capability 8.0 on, for 16 bits, without a mask; the memory-efficient one, for
// widths that its loads allow and as many heads of keys as of queries; else full score matrices. The first two are one kernel alike here.
inline int64_t attention_choice(const Tensor &q, const Tensor &k, const Tensor &v, const OptionalTensor &mask, double, bool, std::optional<double>,
                                bool gqa) {
  const bool half = q.scalar_type() == at::kHalf || q.scalar_type() == at::kBFloat16, modern = settings().major >= 8;
  const auto one_kernel = static_cast<int64_t>(at::SDPBackend::efficient_attention), plain = static_cast<int64_t>(at::SDPBackend::math);
  if (modern && half && !mask && q.size(3) <= 256) return one_kernel;
  if (gqa && q.size(1) != k.size(1)) return plain;
  if (!modern && q.scalar_type() == at::kBFloat16) return plain;
  const int64_t alignment = half ? 8 : modern ? 4 : 1;
  return q.size(3) % alignment || v.size(3) % alignment ? plain : one_kernel;
}

// Keys or values with as many heads as the queries.
inline Tensor for_heads(const Tensor &xs, const Tensor &q) {
  return xs.size(1) == q.size(1) ? xs : xs.repeat_interleave(q.size(1) / xs.size(1), 1);
}

inline OptionalTensor wide_mask(const OptionalTensor &mask) {
  return mask && mask->defined() ? OptionalTensor(wide(*mask).contiguous()) : std::nullopt;
}

// [b, heads, s, d] that lies as [b, s, heads, d].
inline Tensor by_rows(const Tensor &xs, const Tensor &like, const char *name) {
  return narrow(xs.transpose(1, 2).contiguous(), like, name).transpose(1, 2);
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> attention(const Tensor &q, const Tensor &k, const Tensor &v, const OptionalTensor &mask, bool sums,
                                                            double dropout, bool causal, std::optional<double> scale) {
  const bool masked = mask && mask->defined();
  launch(masked ? "attention (masked)" : "attention", {q, k, v});
  TORCH_CHECK(dropout == 0 || !settings().computes, "dropout inside attention is not stood in for");
  if (masked) {
    TORCH_CHECK(is_here(*mask) && mask->scalar_type() == q.scalar_type(), "invalid dtype for bias - should match query's dtype");
    touch(*mask, false, "attention");
  }
  const auto numbers = at::TensorOptions(at::kLong);
  const Tensor seed = here(at::zeros({}, numbers)), offset = here(at::zeros({}, numbers));
  if (!settings().computes) {
    const Tensor ys = made({q.size(0), q.size(2), q.size(1), v.size(3)}, q.scalar_type()).transpose(1, 2);
    return {ys, made({sums ? q.size(0) : 0, q.size(1), q.size(2)}, at::kFloat), seed, offset};
  }
  const auto [ys, log_sums] = at::_scaled_dot_product_flash_attention_for_cpu(
      wide(q).contiguous(), for_heads(wide(k), q).contiguous(), for_heads(wide(v), q).contiguous(), 0.0, causal, wide_mask(mask), scale);
  return {by_rows(ys, q, "attention"), here(sums ? log_sums : at::empty({0}), "attention"), seed, offset};
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(const Tensor &grad, const Tensor &q, const Tensor &k, const Tensor &v,
                                                                     const Tensor &mask, const Tensor &ys, const Tensor &log_sums, const Tensor &,
                                                                     const Tensor &, double, std::array<bool, 4>, bool causal,
                                                                     std::optional<double> scale) {
  if (!grad.defined()) return {};
  launch("attention_backward", {grad, q, k, v, ys, log_sums});
  const auto empty = [&](const Tensor &xs) { return made({xs.size(0), xs.size(2), xs.size(1), xs.size(3)}, q.scalar_type()).transpose(1, 2); };
  if (!settings().computes) return {empty(q), empty(k), empty(v), Tensor()};
  auto [of_q, of_k, of_v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      wide(grad).contiguous(), wide(q).contiguous(), for_heads(wide(k), q).contiguous(), for_heads(wide(v), q).contiguous(), wide(ys).contiguous(),
      host(log_sums), 0.0, causal, wide_mask(mask), scale);
  const auto of_shared = [&](const Tensor &xs) {
    return k.size(1) == q.size(1) ? xs : xs.unflatten(1, {k.size(1), q.size(1) / k.size(1)}).sum(2);
  };
  const char *name = "attention_backward";
  return {by_rows(of_q, q, name), by_rows(of_shared(of_k), q, name), by_rows(of_shared(of_v), q, name), Tensor()};
}

// ---- RMS norm, one kernel on a card
inline std::tuple<Tensor, Tensor> rms_norm(const Tensor &xs, at::IntArrayRef, const OptionalTensor &weight, std::optional<double> eps) {
  launch("_fused_rms_norm", {xs});
  const Tensor x = wide(xs), scale = (x.square().mean(-1, true) + eps.value_or(std::numeric_limits<float>::epsilon())).rsqrt();
  const bool has_weight = weight && weight->defined();
  return {narrow(has_weight ? x * scale * wide(*weight) : x * scale, xs, "_fused_rms_norm"), here(scale, "_fused_rms_norm")};
}

inline std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor &grad, const Tensor &xs, at::IntArrayRef, const Tensor &scale, const OptionalTensor &weight,
                                                    std::array<bool, 2> wanted) {
  launch("_fused_rms_norm_backward", {grad, xs, scale});
  const Tensor s = host(scale), unit = wide(xs) * s, g = wide(grad);
  const Tensor weighted = weight && weight->defined() ? g * wide(*weight) : g;
  const Tensor of_xs = s * (weighted - unit * (weighted * unit).mean(-1, true));
  const Tensor of_weight = wanted[1] ? narrow((g * unit).reshape({-1, xs.size(-1)}).sum(0), xs, "_fused_rms_norm_backward") : Tensor();
  return {narrow(of_xs, xs, "_fused_rms_norm_backward"), of_weight};
}
} // namespace fake_cuda
