// A low-rank product added to the output of a linear layer, as one autograd node: nine kernels forward and backward where the
// operations one by one take sixteen.
#include "planned.h"
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {
// factor * (x y), without a kernel for the factor. What stands in for the sum is read by no kernel, as it counts 0 times; it must
// be finite all the same, for kernels that multiply it.
at::Tensor scaled_product(const at::Tensor &x, const at::Tensor &y, double factor, const at::Tensor &any) {
  return at::addmm(any.flatten().narrow(0, 0, 1), x, y, /*beta=*/0, /*alpha=*/factor);
}

// xs [m, in], a [r, in], b [out, r], ys [m, out]; a and b are the leaves, a_copy and b_copy their numbers in the dtype of xs.
struct AddLowRank : torch::autograd::Function<AddLowRank> {
  static at::Tensor forward(AutogradContext *ctx, at::Tensor ys, const at::Tensor &xs, const at::Tensor &a, const at::Tensor &b,
                            const at::Tensor &a_copy, const at::Tensor &b_copy, double factor) {
    auto hidden = at::mm(xs, a_copy.t());
    ys.addmm_(hidden, b_copy.t(), /*beta=*/1, /*alpha=*/factor);
    ctx->mark_dirty({ys});
    ctx->save_for_backward({xs, hidden, a_copy, b_copy});
    ctx->saved_data["factor"] = factor;
    return ys;
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &xs = saved[0], &hidden = saved[1], &a = saved[2], &b = saved[3];
    const double factor = ctx->saved_data["factor"].toDouble();
    const auto &grad = grads[0];
    at::Tensor to_xs, to_a, to_b;
    if (ctx->needs_input_grad(1) || ctx->needs_input_grad(2)) {
      const auto to_hidden = scaled_product(grad, b, factor, b);
      if (ctx->needs_input_grad(1)) to_xs = at::mm(to_hidden, a);
      if (ctx->needs_input_grad(2)) to_a = at::mm(to_hidden.t(), xs);
    }
    if (ctx->needs_input_grad(3)) to_b = scaled_product(grad.t(), hidden, factor, b);
    return {grad, to_xs, to_a, to_b, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};
} // namespace

extern "C" {
char *lorabooth_add_low_rank(at::Tensor *ys, at::Tensor *xs, at::Tensor *a, at::Tensor *b, at::Tensor *a_copy, at::Tensor *b_copy,
                             double factor, at::Tensor **out) {
  return guarded([&] { *out = new at::Tensor(AddLowRank::apply(*ys, *xs, *a, *b, *a_copy, *b_copy, factor)); });
}

// factor * (x y) in the dtype of x.
char *lorabooth_scaled_product(at::Tensor *x, at::Tensor *y, double factor, at::Tensor **out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    // Its first number stands in for the sum.
    *out = new at::Tensor(at::addmm(x->as_strided({1}, {1}), *x, *y, /*beta=*/0, /*alpha=*/factor));
  });
}

// x y in float32: CUDA sums products of 16 bits in it, and gives them so in one kernel.
char *lorabooth_wide_product(at::Tensor *x, at::Tensor *y, at::Tensor **out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const bool is_wide = x->scalar_type() == at::kFloat;
    *out = new at::Tensor(is_wide ? at::mm(*x, *y) : x->is_cuda() || is_planned_on_cuda(*x) ? at::mm(*x, *y, at::kFloat) : at::mm(*x, *y).to(at::kFloat));
  });
}

char *lorabooth_add_product(at::Tensor *sum, at::Tensor *x, at::Tensor *y) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    sum->addmm_(*x, *y);
  });
}

// The number that counts up with each change in place.
char *lorabooth_version(at::Tensor *tensor, int64_t *out) {
  return guarded([&] { *out = tensor->_version(); });
}

char *lorabooth_copy_all(at::Tensor *const *to, at::Tensor *const *from, int64_t n) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> targets, sources;
    for (int64_t i = 0; i < n; ++i) {
      targets.push_back(*to[i]);
      sources.push_back(*from[i]);
    }
    at::_foreach_copy_(targets, sources);
  });
}
}
