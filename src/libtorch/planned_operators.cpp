// What libtorch's operators give of tensors without numbers, where it has no answer of its own in C++ (Python's are in
// torch/_meta_registrations.py), and the products, which are counted.
#include "planned.h"
#include "quiet_registration.h"
#include <ATen/ops/addmm_meta_dispatch.h>
#include <ATen/ops/baddbmm_meta_dispatch.h>
#include <ATen/ops/bmm_meta_dispatch.h>
#include <ATen/ops/mm_meta_dispatch.h>

namespace {
using at::IntArrayRef;
using at::Scalar;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

double bytes_of(const Tensor &xs) { return static_cast<double>(xs.nbytes()); }

Tensor like(const Tensor &xs) { return at::empty_like(xs); }

Tensor numbers(const Tensor &of, IntArrayRef size, at::ScalarType kind) { return at::empty(size, of.options().dtype(kind)); }

// [m, k] x [k, n]
void count_matmul(const Tensor &a, const Tensor &b) { count_product(kMatmul, {a.size(-2), a.size(-1), b.size(-1)}, 1, bytes_of(b)); }

void count_batched(const Tensor &a, const Tensor &b) {
  count_product(kMatmul, {a.size(-2), a.size(-1), b.size(-1)}, static_cast<double>(a.size(0)), 0);
}

Tensor mm(const Tensor &a, const Tensor &b) {
  auto made = at::meta::mm(a, b);
  count_matmul(a, b);
  return made;
}

Tensor &mm_out(const Tensor &a, const Tensor &b, Tensor &out) {
  at::meta::mm_out(out, a, b);
  count_matmul(a, b);
  return out;
}

Tensor mm_in(const Tensor &a, const Tensor &b, at::ScalarType kind) {
  count_matmul(a, b);
  return numbers(a, {a.size(0), b.size(1)}, kind);
}

Tensor int_mm(const Tensor &a, const Tensor &b) { return mm_in(a, b, at::kInt); }

Tensor bmm(const Tensor &a, const Tensor &b) {
  auto made = at::meta::bmm(a, b);
  count_batched(a, b);
  return made;
}

Tensor addmm(const Tensor &added, const Tensor &a, const Tensor &b, const Scalar &beta, const Scalar &alpha) {
  auto made = at::meta::addmm(added, a, b, beta, alpha);
  count_matmul(a, b);
  return made;
}

Tensor &addmm_(Tensor &sum, const Tensor &a, const Tensor &b, const Scalar &beta, const Scalar &alpha) {
  auto &made = at::meta::addmm_(sum, a, b, beta, alpha);
  count_matmul(a, b);
  return made;
}

Tensor baddbmm(const Tensor &added, const Tensor &a, const Tensor &b, const Scalar &beta, const Scalar &alpha) {
  auto made = at::meta::baddbmm(added, a, b, beta, alpha);
  count_batched(a, b);
  return made;
}

// Counts the convolution of `inputs` by `weight` to images of `size`, or one as large.
void count_convolution(const Tensor &weight, int64_t images, IntArrayRef size, IntArrayRef stride, double times) {
  count_product(kConvolution, {images, weight.size(1), weight.size(0), size[0], size[1], weight.size(2), stride[0]}, times,
                times * bytes_of(weight));
  // oneDNN puts the weight in its own order, for this call only.
  if (weight.size(2) > 1) count_scratch(weight, weight.numel());
}

// The number for a side, where one may stand for both.
int64_t of_side(IntArrayRef numbers, int side) { return numbers[numbers.size() == 1 ? 0 : side]; }

at::MemoryFormat layout_of(const Tensor &xs, const Tensor &weight) {
  const auto format = xs.suggest_memory_format();
  return format == at::MemoryFormat::Contiguous ? weight.suggest_memory_format() : format;
}

Tensor convolution(const Tensor &xs, const Tensor &weight, const OptionalTensor &, IntArrayRef stride, IntArrayRef padding,
                   IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups) {
  TORCH_CHECK(xs.dim() == 4 && weight.dim() == 4, "a plan knows convolutions of images alone");
  std::vector<int64_t> sizes{xs.size(0), transposed ? weight.size(1) * groups : weight.size(0)};
  for (int i = 0; i < 2; ++i) {
    const int64_t reach = of_side(dilation, i) * (weight.size(2 + i) - 1), from = xs.size(2 + i);
    const int64_t step = of_side(stride, i), around = 2 * of_side(padding, i);
    sizes.push_back(transposed ? (from - 1) * step - around + reach + of_side(output_padding, i) + 1
                               : (from + around - reach - 1) / step + 1);
  }
  auto made = at::empty(sizes, xs.options().memory_format(layout_of(xs, weight)));
  count_convolution(weight, xs.size(0), transposed ? xs.sizes().slice(2) : made.sizes().slice(2), stride, 1);
  return made;
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor &grad, const Tensor &xs, const Tensor &weight, at::OptionalIntArrayRef,
                                                        IntArrayRef stride, IntArrayRef, IntArrayRef, bool transposed, IntArrayRef,
                                                        int64_t, std::array<bool, 3> wanted) {
  const auto size = transposed ? xs.sizes().slice(2) : grad.sizes().slice(2);
  count_convolution(weight, xs.size(0), size, stride, double(wanted[0]) + double(wanted[1]));
  return {wanted[0] ? like(xs) : Tensor(), wanted[1] ? like(weight) : Tensor(),
          wanted[2] ? numbers(grad, {grad.size(1)}, grad.scalar_type()) : Tensor()};
}

// Like `xs` [b, h, q, d] as libtorch's kernels lay out what they give: heads side by side.
Tensor heads_side_by_side(const Tensor &xs) {
  return at::empty({xs.size(0), xs.size(2), xs.size(1), xs.size(3)}, xs.options()).transpose(1, 2);
}

void count_attention(const Tensor &q, const Tensor &k, bool causal, double times) {
  count_product(kAttention, {q.size(0) * q.size(1), q.size(2), k.size(2), q.size(3)}, causal ? times / 2 : times, 0);
}

std::tuple<Tensor, Tensor> attention(const Tensor &q, const Tensor &k, const Tensor &, double, bool causal, const OptionalTensor &,
                                     std::optional<double>) {
  auto ys = heads_side_by_side(q);
  auto log_sums = numbers(q, {q.size(0), q.size(1), q.size(2)}, at::kFloat);
  count_attention(q, k, causal, 1);
  return {ys, log_sums};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor &, const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &,
                                                      const Tensor &, double, bool causal, const OptionalTensor &, std::optional<double>) {
  // Two products forward, five backward.
  count_attention(q, k, causal, 2.5);
  return {heads_side_by_side(q), heads_side_by_side(k), heads_side_by_side(v)};
}

// By kernels that never hold the matrix of scores, as there are on the CPU and on cards. CUDA's keep what the CPU's keep.
Tensor fused_attention(const Tensor &q, const Tensor &k, const Tensor &v, const OptionalTensor &mask, double dropout, bool causal,
                       std::optional<double> scale, bool) {
  OptionalTensor added = mask;
  // libtorch makes numbers of booleans for each call.
  if (mask && mask->scalar_type() == at::kBool) added = at::empty_like(*mask, mask->options().dtype(q.scalar_type()));
  return std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, dropout, causal, added, scale));
}

std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor &xs, IntArrayRef normed, const OptionalTensor &, const OptionalTensor &, double) {
  auto sizes = xs.sizes().vec();
  for (size_t i = sizes.size() - normed.size(); i < sizes.size(); ++i) sizes[i] = 1;
  auto ys = at::empty(xs.sizes(), xs.options());
  return {ys, numbers(xs, sizes, at::kFloat), numbers(xs, sizes, at::kFloat)};
}

Tensor like_where(bool wanted, const OptionalTensor &xs) { return wanted && xs && xs->defined() ? like(*xs) : Tensor(); }

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor &, const Tensor &xs, IntArrayRef, const Tensor &, const Tensor &,
                                                       const OptionalTensor &weight, const OptionalTensor &bias,
                                                       std::array<bool, 3> wanted) {
  return {wanted[0] ? at::empty(xs.sizes(), xs.options()) : Tensor(), like_where(wanted[1], weight), like_where(wanted[2], bias)};
}

std::tuple<Tensor, Tensor, Tensor> group_norm(const Tensor &xs, const OptionalTensor &, const OptionalTensor &, int64_t images, int64_t,
                                              int64_t, int64_t groups, double) {
  return {like(xs), numbers(xs, {images, groups}, xs.scalar_type()), numbers(xs, {images, groups}, xs.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_backward(const Tensor &, const Tensor &xs, const Tensor &, const Tensor &,
                                                       const OptionalTensor &weight, int64_t, int64_t, int64_t, int64_t,
                                                       std::array<bool, 3> wanted) {
  return {wanted[0] ? like(xs) : Tensor(), like_where(wanted[1], weight), like_where(wanted[2], weight)};
}

Tensor embedding(const Tensor &table, const Tensor &ids, int64_t, bool, bool) {
  auto sizes = ids.sizes().vec();
  sizes.push_back(table.size(1));
  return at::empty(sizes, table.options());
}

Tensor embedding_backward(const Tensor &grad, const Tensor &, int64_t rows, int64_t, bool) {
  return at::empty({rows, grad.size(-1)}, grad.options());
}

Tensor index_select(const Tensor &xs, int64_t dim, const Tensor &ids) {
  auto sizes = xs.sizes().vec();
  sizes[at::maybe_wrap_dim(dim, xs.dim())] = ids.numel();
  return at::empty(sizes, xs.options());
}

Tensor where(const Tensor &condition, const Tensor &xs, const Tensor &ys) {
  return at::empty(at::infer_size(at::infer_size(condition.sizes(), xs.sizes()), ys.sizes()),
                   xs.options().dtype(at::result_type(xs, ys)));
}

Tensor logical_not(const Tensor &xs) { return at::empty_like(xs, xs.options().dtype(at::kBool)); }

Tensor logical(const Tensor &xs, const Tensor &ys) {
  return at::empty(at::infer_size(xs.sizes(), ys.sizes()), xs.options().dtype(at::kBool));
}

// As if there were none.
Tensor nonzero(const Tensor &xs) { return at::empty({0, xs.dim()}, xs.options().dtype(at::kLong)); }

Tensor element_wise(const Tensor &xs) { return like(xs); }

Tensor mse_loss_backward(const Tensor &, const Tensor &xs, const Tensor &, int64_t) { return like(xs); }

// They stay for as long as the process lives.
torch::Library *registered() {
  const QuietRegistration quiet;
  auto *library = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::Meta, __FILE__, __LINE__);
  library->impl("mm", TORCH_FN(mm));
  library->impl("mm.out", TORCH_FN(mm_out));
  library->impl("mm.dtype", TORCH_FN(mm_in));
  library->impl("_int_mm", TORCH_FN(int_mm));
  library->impl("bmm", TORCH_FN(bmm));
  library->impl("addmm", TORCH_FN(addmm));
  library->impl("addmm_", TORCH_FN(addmm_));
  library->impl("baddbmm", TORCH_FN(baddbmm));
  library->impl("convolution", TORCH_FN(convolution));
  library->impl("convolution_backward", TORCH_FN(convolution_backward));
  library->impl("_scaled_dot_product_flash_attention_for_cpu", TORCH_FN(attention));
  library->impl("_scaled_dot_product_flash_attention_for_cpu_backward", TORCH_FN(attention_backward));
  library->impl("native_layer_norm", TORCH_FN(layer_norm));
  library->impl("native_layer_norm_backward", TORCH_FN(layer_norm_backward));
  library->impl("native_group_norm", TORCH_FN(group_norm));
  library->impl("native_group_norm_backward", TORCH_FN(group_norm_backward));
  library->impl("embedding", TORCH_FN(embedding));
  library->impl("embedding_dense_backward", TORCH_FN(embedding_backward));
  library->impl("index_select", TORCH_FN(index_select));
  library->impl("where.self", TORCH_FN(where));
  library->impl("nonzero", TORCH_FN(nonzero));
  library->impl("mse_loss_backward", TORCH_FN(mse_loss_backward));
  library->impl("relu", TORCH_FN(element_wise));
  library->impl("abs", TORCH_FN(element_wise));
  library->impl("logical_not", TORCH_FN(logical_not));
  library->impl("logical_and", TORCH_FN(logical));
  // It is made of others, one of which is chosen by the device: above autograd, which knows those.
  auto *above = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::AutogradMeta, __FILE__, __LINE__);
  above->impl("scaled_dot_product_attention", TORCH_FN(fused_attention));
  return library;
}
} // namespace

void register_planned_operators() {
  static const torch::Library *const library = registered();
  (void)library;
}
